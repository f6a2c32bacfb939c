/* ff_child.h: the children that the server forked for requests, and their exit codes. */
#ifndef FF_CHILD_H
#define FF_CHILD_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/resource.h>
#include <sys/types.h>

#include "ff_options.h"
#include "ff_tree.h"

#define FF_CHILD_BUCKETS 1024
#define FF_CHILD_KILLS 4      /* doomed children that are seen to at once */
#define FF_EXIT_CODE_LOST 255 /* somebody else reaped the child: what multiprocessing reports then */

struct ff_connection;

struct ff_child {
    pid_t pid;
    uint32_t request_id;
    struct ff_connection *owner; /* NULL once its client has gone */
    int held_fd;                 /* the server's end of the sentinel until it is dead, or -1 */
    bool stream;                 /* held_fd also takes pid and exit code */
    bool is_dead;                /* and reaped: its pid may be another's */
    int exit_code;               /* then */
    struct rusage usage;         /* likewise; zeros where somebody else has reaped it */
    struct ff_child *next;       /* in its bucket, then in a list of dead ones */
    bool dies_with_client;
    struct ff_tree tree;          /* how far it and those below it have been killed */
    struct ff_child *next_doomed; /* its client has gone, it is not dead yet */
    bool is_spare;                /* it has not begun with a request yet: see ff_spare.h */
    bool is_on_demand;            /* a spare, at first, that was forked for its request and not ahead */
    bool is_looked_at;            /* now and then, as its socket alone does not tell whether it begins */
    bool is_condemned;            /* it will not begin with its request: only its death is waited for */
    int spare_sock;               /* the server's end of a spare's socket, or -1 */
    double handed;                /* ff_seconds_now() when a spare has got a request */
    struct ff_unfit unfit;        /* what a spare has said of the options of its request */
    int pidfd;                    /* for its client, until that is told of the start; or -errno */
};

struct ff_children {
    struct ff_child *buckets[FF_CHILD_BUCKETS];
    size_t count;       /* spares among them */
    size_t spare_count; /* those that wait, and those that were dismissed and not reaped yet */
    struct ff_child *doomed;
    struct ff_child *lost; /* somebody else has reaped them, and their pids are others' now */
    bool is_suspicious;    /* somebody else may have reaped one: ff_children_reap_each() tells */
};

/* Allocate a record; it joins the table by ff_children_add(), once it has a pid. NULL without memory. */
struct ff_child *ff_child_new(struct ff_connection *owner, uint32_t request_id);
void ff_child_free(struct ff_child *child);

void ff_children_add(struct ff_children *children, struct ff_child *child);

/* A spare has got a request: it is like the others from now on. */
void ff_children_adopt_spare(struct ff_children *children, struct ff_child *child);

/* Reap all spares that have been dismissed: waits for their end. */
void ff_children_await_spares(struct ff_children *children);

/* Leave every child of a client that has gone without an owner. Those that die with it are doomed. */
void ff_children_disown(struct ff_children *children, const struct ff_connection *owner);

/* Go on killing the doomed ones, a few at a time, those below them first. They are reaped as all others. */
void ff_children_kill_doomed(struct ff_children *children);

/* Reap the dead ones: they leave the table as a list. No other child of the process is touched. The kernel goes through
 * all children to find one that is dead, but not to tell whether this one is: so a pid that is likely to be dead, or -1. */
struct ff_child *ff_children_reap(struct ff_children *children, pid_t likely);

/* The same, but each child is asked for by itself: that finds those that somebody else has reaped. */
struct ff_child *ff_children_reap_each(struct ff_children *children);

/* Those whose pid another child has got: they leave as a list. To be asked for after every ff_children_add(), since
 * nobody disowns them, nor closes their descriptors in a child. */
struct ff_child *ff_children_take_lost(struct ff_children *children);

#define FF_CHILD_FDS 3 /* descriptors of the server that one child takes at the most */

/* Copy the held descriptors, and those of spares, to ret_fds, which has room for FF_CHILD_FDS for each child: how many
 * there are. */
size_t ff_children_held_fds(const struct ff_children *children, int *ret_fds);

/* In a child, where the held descriptors have been closed by number. */
void ff_children_forget_fds(struct ff_children *children);

void ff_children_clear(struct ff_children *children);

#endif
