/* ff_signals.c: SIGCHLD, SIGPIPE, SIGINT, SIGTERM and SIGHUP of a serving process, and how they were before. */
#define _GNU_SOURCE

#include "ff_signals.h"

#include "ff_address.h"
#include "ff_fd.h"
#include "ff_util.h"

/* A handler has no argument of its own; lock-free and async-signal-safe by C's rules for this type. */
static volatile sig_atomic_t wake_fd = -1;

static void wake(int signal_number)
{
    int saved_errno = errno;

    (void)signal_number;
    if (FF_RETRY_EINTR(write(wake_fd, "", 1)) < 0) {
        /* A full pipe wakes the loop just as well. */
    }
    errno = saved_errno;
}

static void end_by(int signal_number, struct sigaction *ret_old)
{
    struct sigaction end = {.sa_handler = ff_address_end, .sa_flags = (int)SA_NODEFER};

    sigemptyset(&end.sa_mask);
    sigaction(signal_number, NULL, ret_old);
    if (ret_old->sa_handler != SIG_IGN)
        sigaction(signal_number, &end, NULL);
}

int ff_signals_take(struct ff_signals *signals)
{
    struct sigaction on_chld = {.sa_handler = wake, .sa_flags = SA_RESTART | SA_NOCLDSTOP};
    struct sigaction ignore = {.sa_handler = SIG_IGN};
    sigset_t only_chld;
    int error = ff_fd_pipe(signals->wake_ends);

    if (error < 0)
        return error;
    wake_fd = signals->wake_ends[1];
    sigemptyset(&on_chld.sa_mask);
    sigemptyset(&ignore.sa_mask);
    sigaction(SIGCHLD, &on_chld, &signals->old_chld);
    sigaction(SIGPIPE, &ignore, &signals->old_pipe);
    sigaction(SIGINT, &ignore, &signals->old_int);
    end_by(SIGTERM, &signals->old_term);
    end_by(SIGHUP, &signals->old_hup);
    /* A process that blocks SIGCHLD hands the blocked signal on to those that it forks or executes. */
    sigemptyset(&only_chld);
    sigaddset(&only_chld, SIGCHLD);
    pthread_sigmask(SIG_UNBLOCK, &only_chld, &signals->old_mask);
    return 0;
}

void ff_signals_restore(const struct ff_signals *signals, sigset_t *ret_mask, struct sigaction *ret_int)
{
    sigaction(SIGCHLD, &signals->old_chld, NULL);
    sigaction(SIGPIPE, &signals->old_pipe, NULL);
    sigaction(SIGTERM, &signals->old_term, NULL);
    sigaction(SIGHUP, &signals->old_hup, NULL);
    if (ret_int != NULL)
        *ret_int = signals->old_int;
    else
        sigaction(SIGINT, &signals->old_int, NULL);
    wake_fd = -1;
    *ret_mask = signals->old_mask;
}

void ff_signals_close(struct ff_signals *signals)
{
    ff_close(&signals->wake_ends[0]);
    ff_close(&signals->wake_ends[1]);
}

void ff_signals_drain(const struct ff_signals *signals)
{
    char bytes[64];

    while (read(signals->wake_ends[0], bytes, sizeof bytes) > 0)
        continue;
}
