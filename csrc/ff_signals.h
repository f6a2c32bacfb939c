/* ff_signals.h: SIGCHLD, SIGPIPE, SIGINT, SIGTERM and SIGHUP of a serving process, and how they were before. */
#ifndef FF_SIGNALS_H
#define FF_SIGNALS_H

#include <signal.h>

struct ff_signals {
    struct sigaction old_chld;
    struct sigaction old_pipe;
    struct sigaction old_int;
    struct sigaction old_term;
    struct sigaction old_hup;
    sigset_t old_mask; /* of the serving thread */
    int wake_ends[2];  /* SIGCHLD's handler writes to [1] */
};

/* Watch SIGCHLD, unblocked in this thread, through a self-pipe, and ignore SIGPIPE and SIGINT: ^C is for the
 * program, not for its server. SIGTERM and SIGHUP are its end if they are not ignored, whatever handler they have: in a
 * Python process that would not be called. One server at a time in one process. */
int ff_signals_take(struct ff_signals *signals);

/* Put the dispositions back, and say which mask there was. The self-pipe stays open. With ret_int, SIGINT stays ignored,
 * and is to be put back as it says. */
void ff_signals_restore(const struct ff_signals *signals, sigset_t *ret_mask, struct sigaction *ret_int);

/* Close the self-pipe. */
void ff_signals_close(struct ff_signals *signals);

/* Empty the self-pipe. */
void ff_signals_drain(const struct ff_signals *signals);

#endif
