/* ff_loop.h: waiting for descriptors and for the death of children.
 *
 * Two backends behind one table of functions: ff_loop_epoll.c (epoll, signalfd) and ff_loop_poll.c
 * (poll and the self-pipe of ff_signals.c).
 */
#ifndef FF_LOOP_H
#define FF_LOOP_H

#include <signal.h>
#include <stddef.h>
#include <sys/types.h>

#include "ff_abi.h"

#define FF_LOOP_BATCH 64   /* events taken at once */
#define FF_LOOP_MAX_FDS 4  /* descriptors that a loop itself holds */
#define FF_SOME_CHILD (-1) /* in place of a pid */
/* In place of a timeout: do not wait, and leave out those that had nothing to tell lately, if that is cheaper. */
#define FF_LOOP_GLANCE (-2)

enum ff_interest {
    FF_READABLE = 1, /* or at its end, or broken */
    FF_WRITABLE = 2,
    FF_HANGUP = 4, /* the peer has gone: told as both of the others */
};

struct ff_loop_event {
    void *tag;
    unsigned ready; /* FF_READABLE, FF_WRITABLE; a broken descriptor is both */
};

struct ff_loop;

struct ff_loop_backend {
    /* Watch fd for interest (0: no longer), known by its tag. */
    int (*watch)(struct ff_loop *loop, int fd, unsigned interest, void *tag);
    /* Wait; the number of events, or -EINTR on a signal. ret_died: a child of this process that may have died, others
     * perhaps with it; FF_SOME_CHILD where it is not known which; 0 where none has. */
    int (*wait)(struct ff_loop *loop, int timeout_ms, struct ff_loop_event events[FF_LOOP_BATCH],
                pid_t *ret_died);
    /* The loop's own descriptors: how many. */
    size_t (*own_fds)(const struct ff_loop *loop, int ret_fds[FF_LOOP_MAX_FDS]);
    /* Put the signals back as they were before, close the descriptors, free the memory. */
    void (*close)(struct ff_loop *loop);
    /* The same in a child, which has closed the descriptors together with others, and is to set this mask. With ret_int,
     * ^C is left to be put back as that says. */
    void (*abandon)(struct ff_loop *loop, sigset_t *ret_mask, struct sigaction *ret_int);
};

/* The first member of each backend's own structure. */
struct ff_loop {
    const struct ff_loop_backend *backend;
};

int ff_loop_open(enum ff_backend backend, struct ff_loop **ret_loop);

int ff_loop_open_poll(struct ff_loop **ret_loop);
#ifdef __linux__
int ff_loop_open_epoll(struct ff_loop **ret_loop);
#endif

#endif
