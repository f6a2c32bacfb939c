/* ff_util.h: small helpers that every file of the core may use. */
#ifndef FF_UTIL_H
#define FF_UTIL_H

#include <errno.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

/* Repeat a system call that a signal interrupted. Never for close(): the descriptor is gone either way. */
#define FF_RETRY_EINTR(call) \
    __extension__({ \
        __typeof__(call) ff_result_; \
        do \
            ff_result_ = (call); \
        while (ff_result_ == -1 && errno == EINTR); \
        ff_result_; \
    })

#define FF_CLEANUP(function) __attribute__((cleanup(function)))

/* Hand a descriptor over: the variable no longer owns it. */
static inline int ff_steal_fd(int *fd)
{
    int stolen = *fd;

    *fd = -1;
    return stolen;
}

/* Close a descriptor if there is one, and forget it. errno is kept. */
static inline void ff_close(int *fd)
{
    int saved_errno = errno;

    if (*fd >= 0)
        close(ff_steal_fd(fd));
    errno = saved_errno;
}

static inline double ff_seconds_now(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

static inline int ff_min(int a, int b)
{
    return a < b ? a : b;
}

#endif
