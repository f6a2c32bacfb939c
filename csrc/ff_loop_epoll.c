/* ff_loop_epoll.c: the Linux backend: epoll and signalfd. */
#ifdef __linux__
#define _GNU_SOURCE

#include <pthread.h>
#include <stdbool.h>
#include <sys/epoll.h>
#include <sys/signalfd.h>

#include "ff_loop.h"
#include "ff_signals.h"
#include "ff_util.h"

struct epoll_loop {
    struct ff_loop base;
    struct ff_signals signals;
    int epoll_fd;
    int signal_fd; /* -1 where the kernel has none: then the self-pipe alone tells */
};

static struct epoll_loop *of(struct ff_loop *loop)
{
    return (struct epoll_loop *)loop;
}

static uint32_t to_epoll(unsigned interest)
{
    return (interest & FF_READABLE ? (uint32_t)EPOLLIN : 0) |
           (interest & FF_WRITABLE ? (uint32_t)EPOLLOUT : 0) |
           (interest & FF_HANGUP ? (uint32_t)EPOLLRDHUP : 0);
}

static unsigned from_epoll(uint32_t ready)
{
    unsigned interest = 0;

    if (ready & ~(uint32_t)EPOLLOUT)
        interest |= FF_READABLE;
    if (ready & ~(uint32_t)EPOLLIN)
        interest |= FF_WRITABLE;
    return interest;
}

static int watch(struct ff_loop *base, int fd, unsigned interest, void *tag)
{
    int epoll_fd = of(base)->epoll_fd;
    struct epoll_event event = {.events = to_epoll(interest), .data.ptr = tag};

    if (interest == 0)
        return epoll_ctl(epoll_fd, EPOLL_CTL_DEL, fd, &event) < 0 && errno != ENOENT ? -errno : 0;
    if (epoll_ctl(epoll_fd, EPOLL_CTL_MOD, fd, &event) == 0)
        return 0;
    if (errno != ENOENT)
        return -errno;
    return epoll_ctl(epoll_fd, EPOLL_CTL_ADD, fd, &event) < 0 ? -errno : 0;
}

/* Both sources of SIGCHLD carry the loop itself as their tag. Empty them: what ret_died is to be. */
static pid_t drain_signals(struct epoll_loop *loop)
{
    struct signalfd_siginfo info;
    pid_t died = FF_SOME_CHILD;

    if (loop->signal_fd >= 0)
        while (read(loop->signal_fd, &info, sizeof info) > 0)
            if (info.ssi_pid > 0) /* 0: somebody in another pid namespace has sent it */
                died = (pid_t)info.ssi_pid;
    ff_signals_drain(&loop->signals);
    return died;
}

static int wait_events(struct ff_loop *base, int timeout_ms, struct ff_loop_event events[FF_LOOP_BATCH],
                       pid_t *ret_died)
{
    struct epoll_loop *loop = of(base);
    struct epoll_event ready[FF_LOOP_BATCH];
    int count =
        epoll_wait(loop->epoll_fd, ready, FF_LOOP_BATCH, timeout_ms == FF_LOOP_GLANCE ? 0 : timeout_ms);
    bool has_signal = false;
    int kept = 0;

    *ret_died = 0;
    if (count < 0)
        return -errno;
    for (int i = 0; i < count; i++) {
        if (ready[i].data.ptr == loop)
            has_signal = true;
        else
            events[kept++] = (struct ff_loop_event){ready[i].data.ptr, from_epoll(ready[i].events)};
    }
    if (has_signal)
        *ret_died = drain_signals(loop);
    return kept;
}

static size_t own_fds(const struct ff_loop *base, int ret_fds[FF_LOOP_MAX_FDS])
{
    const struct epoll_loop *loop = (const struct epoll_loop *)base;

    ret_fds[0] = loop->signals.wake_ends[0];
    ret_fds[1] = loop->signals.wake_ends[1];
    ret_fds[2] = loop->epoll_fd;
    ret_fds[3] = loop->signal_fd;
    return loop->signal_fd < 0 ? 3 : 4;
}

static void abandon(struct ff_loop *base, sigset_t *ret_mask, struct sigaction *ret_int)
{
    struct epoll_loop *loop = of(base);

    ff_signals_restore(&loop->signals, ret_mask, ret_int);
    free(loop);
}

static void close_loop(struct ff_loop *base)
{
    struct epoll_loop *loop = of(base);
    sigset_t mask;

    ff_close(&loop->signal_fd);
    ff_close(&loop->epoll_fd);
    ff_signals_restore(&loop->signals, &mask, NULL);
    pthread_sigmask(SIG_SETMASK, &mask, NULL);
    ff_signals_close(&loop->signals);
    free(loop);
}

static const struct ff_loop_backend epoll_backend = {
    .watch = watch,
    .wait = wait_events,
    .own_fds = own_fds,
    .close = close_loop,
    .abandon = abandon,
};

/* SIGCHLD is blocked in this thread for signalfd to see it. A thread that a preloaded module left running
 * may still take it: then its handler writes to the self-pipe, which is watched as well. */
static int watch_signals(struct epoll_loop *loop)
{
    sigset_t only_chld;
    int error = watch(&loop->base, loop->signals.wake_ends[0], FF_READABLE, loop);

    if (error < 0)
        return error;
    sigemptyset(&only_chld);
    sigaddset(&only_chld, SIGCHLD);
    loop->signal_fd = signalfd(-1, &only_chld, SFD_CLOEXEC | SFD_NONBLOCK);
    if (loop->signal_fd < 0)
        return errno == ENOSYS ? 0 : -errno;
    pthread_sigmask(SIG_BLOCK, &only_chld, NULL);
    return watch(&loop->base, loop->signal_fd, FF_READABLE, loop);
}

int ff_loop_open_epoll(struct ff_loop **ret_loop)
{
    struct epoll_loop *loop = calloc(1, sizeof *loop);
    int error;

    if (loop == NULL)
        return -ENOMEM;
    loop->base.backend = &epoll_backend;
    loop->signal_fd = -1;
    loop->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    error = loop->epoll_fd < 0 ? -errno : ff_signals_take(&loop->signals);
    if (error < 0) {
        ff_close(&loop->epoll_fd);
        free(loop);
        return error;
    }
    error = watch_signals(loop);
    if (error < 0) {
        close_loop(&loop->base);
        return error;
    }
    *ret_loop = &loop->base;
    return 0;
}

#else
typedef int ff_loop_epoll_is_for_linux; /* ISO C forbids an empty translation unit */
#endif
