/* ff_status.h: what a server tells of itself: counters of its own, and a page with a copy of them.
 *
 * The page is shared memory that this process alone can write. It holds the counters twice: readers are sent to
 * the one while the other is written, so that they find a sound one even where the server was stopped amid a
 * change. What is on the page is never read back: the server trusts its own memory alone.
 */
#ifndef FF_STATUS_H
#define FF_STATUS_H

#include <stddef.h>

#include "ff_abi.h"

struct ff_status_page;

struct ff_status_board {
    struct ff_status counts;
    struct ff_status_page *page; /* NULL where none could be had: all else works on */
    int fd;                      /* the page, for reading only; -1 without a page */
    int error;                   /* why there is no page: -errno */
};

/* Begin to count. A page that cannot be had is no failure: board->error says why. */
void ff_status_open(struct ff_status_board *board);

/* Put the counters on the page. */
void ff_status_publish(struct ff_status_board *board);

/* Count and publish. */
void ff_status_count_failure(struct ff_status_board *board, int error);
void ff_status_count_accept_failure(struct ff_status_board *board, int error);
void ff_status_count_refusal(struct ff_status_board *board, enum ff_refusal cause);

/* Unmap the page, close the descriptor. */
void ff_status_close(struct ff_status_board *board);

/* The same in a child, which has closed the descriptor together with others. */
void ff_status_abandon(struct ff_status_board *board);

#endif
