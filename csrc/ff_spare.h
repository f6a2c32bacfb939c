/* ff_spare.h: children that were forked ahead of any request, and wait for one.
 *
 *              requests come fast,         a request             it says that it begins         exit
 *   (nothing) ---------------------> idle ----------------> handed ------------------> a child ------>
 *              nothing else to do      |    by its socket     |
 *                                      |                      +--- stopped, dead: the request is for a fork
 *                                      |
 *                                      +--- quiet for a while, other surroundings, stopped, dead: dismissed
 *
 * A request with options has its child on demand: a spare from the fork to its beginning, which has its request already.
 * Of both kinds the one that begins with such a request applies the options first. Where it cannot, it says so.
 *
 * The fork and the language runtime's hooks are over when a request comes. A spare ends by itself when the server's end
 * of its socket does. A client hears of its child only when that has begun: what happens to a spare before harms nobody.
 */
#ifndef FF_SPARE_H
#define FF_SPARE_H

#include <stdbool.h>
#include <stddef.h>

#include "ff_abi.h"
#include "ff_child.h"
#include "ff_msg.h"
#include "ff_surroundings.h"

/* ---- in the server ---- */

struct ff_spares {
    struct ff_child *list[FF_MAX_SPARES]; /* in the table of children, too; the oldest first */
    size_t count;
    uint32_t wanted;     /* how many there are to be while requests come fast */
    double quiet;        /* seconds without a request after which they go */
    double last_request; /* ff_seconds_now(); 0: none yet */
    double mean_gap;     /* seconds between requests, of late */
    double next_try;     /* when another one may be forked: later after one that came to nothing */
    struct ff_surroundings surroundings; /* of this process when the first of them was forked */
};

void ff_spares_init(struct ff_spares *spares, const struct ff_config *config);

/* A request has come: the pace is reckoned from that. */
void ff_spares_note_request(struct ff_spares *spares);

/* Whether another spare is to be forked as soon as there is nothing else to do. */
bool ff_spares_are_short(const struct ff_spares *spares);

/* Keep a spare that has been forked; it is in the table of children already, where its spare_sock is the server's end
 * of its socket. */
void ff_spares_add(struct ff_spares *spares, struct ff_child *child);

/* A spare could not be forked: rest before the next one. */
void ff_spares_rest(struct ff_spares *spares);

/* It is dead and has left the table of children. */
void ff_spares_forget(struct ff_spares *spares, const struct ff_child *child);

/* Hand a request to a spare, which is out of the list then: its record, or NULL when none has taken it. The descriptors
 * stay the caller's. */
struct ff_child *ff_spares_hand_over(struct ff_spares *spares, const struct ff_frame *header,
                                     const unsigned char *payload, const int *fds, size_t fd_count);

/* Whether a spare that has a request has begun with it: 1, or why it could not is in child->unfit; 0 for not yet, -EPIPE:
 * it never will; or another -errno: that cannot be told now. */
int ff_spare_has_begun(struct ff_child *child);

/* Where the system can: it cannot begin from now on. Whether it has is still told, and no longer changes. */
void ff_spare_refuse(const struct ff_child *child);

/* Whether somebody has stopped one that has a request, or it has taken too much time to begin. */
bool ff_spare_is_stuck(const struct ff_child *child);

/* Kill it if it lives. */
void ff_spare_kill(const struct ff_child *child);

/* The same, and close the server's end of its socket. */
void ff_spare_dismiss(struct ff_child *child);

/* Milliseconds until they are to go; -1 when there are none. */
int ff_spares_timeout(const struct ff_spares *spares);

/* Dismiss them if no request has come for a while. */
void ff_spares_check_quiet(struct ff_spares *spares);

/* Kill all of them; they are reaped as all children. */
void ff_spares_dismiss(struct ff_spares *spares);

/* ---- in a spare ---- */

struct ff_spare {
    int sock;     /* -1: this process is no spare */
    pid_t server; /* its parent as long as that lives */
    struct ff_frame header;
    struct ff_reader reader; /* then holds the request */
};

/* Become what the options of a request say, if it has any, and tell the server by the socket that this begins, or why
 * not: 0, or -EPIPE when the process is to end. The header and the reader may be those of the spare. */
int ff_spare_begin(struct ff_spare *spare, const struct ff_frame *header, struct ff_reader *reader,
                   struct ff_applied *ret_applied);

/* Wait for a request: 1 when it is there, and the server knows that it begins; 0 when none will come any more, or the
 * server knows that it cannot begin; -EAGAIN when none came within timeout_ms (negative: no limit). */
int ff_spare_receive(struct ff_spare *spare, int timeout_ms, struct ff_applied *ret_applied);

#endif
