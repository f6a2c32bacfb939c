/* ff_loop_poll.c: the portable backend: poll(2) and a self-pipe. */
#define _GNU_SOURCE

#include <stdbool.h>

#include "ff_fd.h"
#include "ff_loop.h"
#include "ff_signals.h"
#include "ff_util.h"

#define FEW 64   /* descriptors that are not worth telling the lively ones from the quiet ones */
#define ALL_MS 4 /* from one wait for all of them to the next, while lively ones have something to tell */
#define LIVELY_FOR 32 /* waits for all, since there was something to tell of one */

struct watched {
    void *tag;
    unsigned lively_for;
};

/* A wait takes as long as there are descriptors, and most of them may be of clients that want nothing. So those for which
 * there was something to do lately come first, and it is for them that most waits are. */
struct poll_loop {
    struct ff_loop base;
    struct ff_signals signals;
    struct pollfd *polled; /* [0] is the self-pipe, behind it the lively ones, behind those the quiet ones */
    struct watched *watched; /* in the same order */
    size_t lively;           /* how many, with the self-pipe */
    size_t count;
    size_t capacity;
    size_t next; /* where the next batch begins: behind the last one, lest a busy descriptor starve others */
    double next_wait_for_all;
};

static struct poll_loop *of(struct ff_loop *loop)
{
    return (struct poll_loop *)loop;
}

static int grow(struct poll_loop *loop)
{
    size_t capacity = loop->capacity ? 2 * loop->capacity : 16;
    struct pollfd *polled = realloc(loop->polled, capacity * sizeof *polled);
    struct watched *watched;

    if (polled == NULL)
        return -ENOMEM;
    loop->polled = polled;
    watched = realloc(loop->watched, capacity * sizeof *watched);
    if (watched == NULL)
        return -ENOMEM;
    loop->watched = watched;
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

static void exchange(struct poll_loop *loop, size_t i, size_t j)
{
    struct pollfd polled = loop->polled[i];
    struct watched watched = loop->watched[i];

    loop->polled[i] = loop->polled[j];
    loop->watched[i] = loop->watched[j];
    loop->polled[j] = polled;
    loop->watched[j] = watched;
}

static void enliven(struct poll_loop *loop, size_t i)
{
    loop->watched[i].lively_for = LIVELY_FOR;
    if (i >= loop->lively)
        exchange(loop, i, loop->lively++);
}

static void forget(struct poll_loop *loop, size_t i)
{
    if (i >= loop->count)
        return;
    if (i < loop->lively) {
        exchange(loop, i, --loop->lively);
        i = loop->lively;
    }
    exchange(loop, i, --loop->count);
}

static int watch(struct ff_loop *base, int fd, unsigned interest, void *tag)
{
    struct poll_loop *loop = of(base);
    size_t i = index_of(loop, fd);

    if (interest == 0) {
        forget(loop, i);
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
    loop->watched[i].tag = tag;
    enliven(loop, i);
    return 0;
}

static int collect(struct poll_loop *loop, size_t polled, struct ff_loop_event events[FF_LOOP_BATCH])
{
    size_t others = polled - 1;
    size_t step = 0;
    int count = 0;

    for (; step < others && count < FF_LOOP_BATCH; step++) {
        size_t i = 1 + (loop->next + step) % others;

        if (loop->polled[i].revents != 0) {
            enliven(loop, i);
            events[count++] =
                (struct ff_loop_event){loop->watched[i].tag, from_poll(loop->polled[i].revents)};
        }
    }
    loop->next += step;
    return count;
}

/* After a wait for all: which are lively. */
static void sort(struct poll_loop *loop)
{
    for (size_t i = loop->lively; i < loop->count; i++)
        if (loop->polled[i].revents != 0)
            enliven(loop, i);
    if (loop->count <= FEW)
        return;
    for (size_t i = loop->lively; i-- > 1;)
        if (loop->polled[i].revents == 0 && --loop->watched[i].lively_for == 0)
            exchange(loop, i, --loop->lively);
}

static int wait_for_all(struct poll_loop *loop, int timeout_ms)
{
    int ready = poll(loop->polled, (nfds_t)loop->count, timeout_ms);

    loop->next_wait_for_all = ff_seconds_now() + 1e-3 * ALL_MS;
    if (ready >= 0)
        sort(loop);
    return ready;
}

/* How long a wait may be for the lively ones alone; 0: it is for all. */
static int time_for_lively(const struct poll_loop *loop)
{
    double left_ms;

    if (loop->lively == loop->count)
        return 0;
    left_ms = 1e3 * (loop->next_wait_for_all - ff_seconds_now());
    return left_ms > 0 ? 1 + (int)left_ms : 0;
}

/* How many descriptors it was for; those behind them are not known about. Or -errno. */
static int wait_for_some(struct poll_loop *loop, int timeout_ms)
{
    int lively_ms = time_for_lively(loop);
    bool is_glance = timeout_ms == FF_LOOP_GLANCE;
    int ready;

    if (is_glance)
        timeout_ms = 0;
    if (lively_ms > 0) {
        if (timeout_ms >= 0)
            lively_ms = ff_min(lively_ms, timeout_ms);
        ready = poll(loop->polled, (nfds_t)loop->lively, lively_ms);
        if (ready != 0 || is_glance)
            return ready < 0 ? -errno : (int)loop->lively;
        if (timeout_ms > 0)
            timeout_ms -= lively_ms;
    }
    ready = wait_for_all(loop, timeout_ms);
    return ready < 0 ? -errno : (int)loop->count;
}

static int wait_events(struct ff_loop *base, int timeout_ms, struct ff_loop_event events[FF_LOOP_BATCH],
                       pid_t *ret_died)
{
    struct poll_loop *loop = of(base);
    int polled = wait_for_some(loop, timeout_ms);

    *ret_died = 0;
    if (polled < 0)
        return polled;
    if (loop->polled[0].revents != 0) {
        ff_signals_drain(&loop->signals);
        *ret_died = FF_SOME_CHILD;
    }
    return collect(loop, (size_t)polled, events);
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
    free(loop->watched);
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
