/* ff_loop_poll.c: the portable backend: poll(2) and a self-pipe. */
#define _GNU_SOURCE

#include <poll.h>

#include "ff_loop.h"
#include "ff_signals.h"
#include "ff_util.h"

#ifndef POLLRDHUP
#define POLLRDHUP 0 /* that the peer has gone altogether is told in any case */
#endif

struct poll_loop {
    struct ff_loop base;
    struct ff_signals signals;
    struct pollfd *polled; /* [0] is the self-pipe */
    void **tags;
    size_t count;
    size_t capacity;
    size_t next; /* where the next batch begins: behind the last one, lest a busy descriptor starve others */
};

static struct poll_loop *of(struct ff_loop *loop)
{
    return (struct poll_loop *)loop;
}

static int grow(struct poll_loop *loop)
{
    size_t capacity = loop->capacity ? 2 * loop->capacity : 16;
    struct pollfd *polled = realloc(loop->polled, capacity * sizeof *polled);
    void **tags;

    if (polled == NULL)
        return -ENOMEM;
    loop->polled = polled;
    tags = realloc(loop->tags, capacity * sizeof *tags);
    if (tags == NULL)
        return -ENOMEM;
    loop->tags = tags;
    loop->capacity = capacity;
    return 0;
}

static size_t index_of(const struct poll_loop *loop, int fd)
{
    size_t i = 0;

    while (i < loop->count && loop->polled[i].fd != fd)
        i++;
    return i;
}

static short to_poll(unsigned interest)
{
    return (short)((interest & FF_READABLE ? POLLIN : 0) | (interest & FF_WRITABLE ? POLLOUT : 0) |
                   (interest & FF_HANGUP ? POLLRDHUP : 0));
}

static unsigned from_poll(short ready)
{
    unsigned interest = 0;

    if (ready & ~POLLOUT)
        interest |= FF_READABLE;
    if (ready & ~POLLIN)
        interest |= FF_WRITABLE;
    return interest;
}

static int watch(struct ff_loop *base, int fd, unsigned interest, void *tag)
{
    struct poll_loop *loop = of(base);
    size_t i = index_of(loop, fd);

    if (interest == 0) {
        if (i < loop->count) {
            loop->polled[i] = loop->polled[--loop->count];
            loop->tags[i] = loop->tags[loop->count];
        }
        return 0;
    }
    if (i == loop->capacity) {
        int error = grow(loop);

        if (error < 0)
            return error;
    }
    if (i == loop->count)
        loop->count++;
    loop->polled[i] = (struct pollfd){.fd = fd, .events = to_poll(interest)};
    loop->tags[i] = tag;
    return 0;
}

static int collect(struct poll_loop *loop, struct ff_loop_event events[FF_LOOP_BATCH])
{
    size_t others = loop->count - 1;
    size_t step = 0;
    int count = 0;

    for (; step < others && count < FF_LOOP_BATCH; step++) {
        size_t i = 1 + (loop->next + step) % others;

        if (loop->polled[i].revents != 0)
            events[count++] = (struct ff_loop_event){loop->tags[i], from_poll(loop->polled[i].revents)};
    }
    loop->next += step;
    return count;
}

static int wait_events(struct ff_loop *base, int timeout_ms, struct ff_loop_event events[FF_LOOP_BATCH],
                       pid_t *ret_died)
{
    struct poll_loop *loop = of(base);
    int ready = poll(loop->polled, (nfds_t)loop->count, timeout_ms);

    *ret_died = 0;
    if (ready < 0)
        return -errno;
    if (loop->polled[0].revents != 0) {
        ff_signals_drain(&loop->signals);
        *ret_died = FF_SOME_CHILD;
    }
    return collect(loop, events);
}

static size_t own_fds(const struct ff_loop *base, int ret_fds[FF_LOOP_MAX_FDS])
{
    const struct poll_loop *loop = (const struct poll_loop *)base;

    ret_fds[0] = loop->signals.wake_ends[0];
    ret_fds[1] = loop->signals.wake_ends[1];
    return 2;
}

static void abandon(struct ff_loop *base, sigset_t *ret_mask, struct sigaction *ret_int)
{
    struct poll_loop *loop = of(base);

    ff_signals_restore(&loop->signals, ret_mask, ret_int);
    free(loop->polled);
    free(loop->tags);
    free(loop);
}

static void close_loop(struct ff_loop *base)
{
    struct poll_loop *loop = of(base);
    struct ff_signals signals = loop->signals;
    sigset_t mask;

    abandon(base, &mask, NULL);
    ff_signals_close(&signals);
    pthread_sigmask(SIG_SETMASK, &mask, NULL);
}

static const struct ff_loop_backend poll_backend = {
    .watch = watch,
    .wait = wait_events,
    .own_fds = own_fds,
    .close = close_loop,
    .abandon = abandon,
};

int ff_loop_open_poll(struct ff_loop **ret_loop)
{
    struct poll_loop *loop = calloc(1, sizeof *loop);
    int error;

    if (loop == NULL)
        return -ENOMEM;
    loop->base.backend = &poll_backend;
    error = ff_signals_take(&loop->signals);
    if (error < 0) {
        free(loop);
        return error;
    }
    error = watch(&loop->base, loop->signals.wake_ends[0], FF_READABLE, NULL);
    if (error < 0) {
        close_loop(&loop->base);
        return error;
    }
    *ret_loop = &loop->base;
    return 0;
}
