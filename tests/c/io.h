/* io.h: descriptors in tests: every call either does what it says within a deadline or fails the test. */
#ifndef FF_TEST_IO_H
#define FF_TEST_IO_H

#include <poll.h>
#include <sys/resource.h>
#include <sys/socket.h>

#include "check.h"

#define DEADLINE_MS 60000 /* generous: it is reached only when what is waited for never comes */

static inline void make_pipe(int ends[2])
{
    CHECK_INT(pipe(ends), 0);
}

static inline void make_pair(int socks[2])
{
    CHECK_INT(socketpair(AF_UNIX, SOCK_STREAM, 0, socks), 0);
}

static inline void close_both(int fds[2])
{
    CHECK_INT(close(fds[0]), 0);
    CHECK_INT(close(fds[1]), 0);
}

static inline void await_readable(int fd)
{
    struct pollfd polled = {.fd = fd, .events = POLLIN};

    CHECK_INT(poll(&polled, 1, DEADLINE_MS), 1);
}

static inline bool is_readable(int fd)
{
    struct pollfd polled = {.fd = fd, .events = POLLIN};

    return poll(&polled, 1, 0) == 1;
}

static inline void write_all(int fd, const void *bytes, size_t size)
{
    const char *rest = bytes;

    while (size > 0) {
        ssize_t written = write(fd, rest, size);

        CHECK(written > 0);
        rest += written;
        size -= (size_t)written;
    }
}

static inline void read_all(int fd, void *ret_bytes, size_t size)
{
    char *rest = ret_bytes;

    while (size > 0) {
        ssize_t received;

        await_readable(fd);
        received = read(fd, rest, size);
        CHECK(received > 0);
        rest += received;
        size -= (size_t)received;
    }
}

/* Nobody holds the other end any more. A socket whose peer left something unread says so by ECONNRESET. */
static inline void await_end(int fd)
{
    char byte;
    ssize_t received;

    await_readable(fd);
    received = read(fd, &byte, 1);
    CHECK(received == 0 || (received < 0 && errno == ECONNRESET));
}

static inline void close_all(const int *fds, size_t count)
{
    for (size_t i = 0; i < count; i++)
        CHECK_INT(close(fds[i]), 0);
}

/* Leave this process `count` descriptors to open; returns the limit as it was. */
static inline struct rlimit leave_fds(int count)
{
    struct rlimit before;
    struct rlimit lowered;
    int limit = 0;

    while (count > 0 || check_fd_is_open(limit))
        count -= !check_fd_is_open(limit++);
    CHECK_INT(getrlimit(RLIMIT_NOFILE, &before), 0);
    lowered = (struct rlimit){.rlim_cur = (rlim_t)limit, .rlim_max = before.rlim_max};
    CHECK_INT(setrlimit(RLIMIT_NOFILE, &lowered), 0);
    return before;
}

/* The same for good: the limit cannot be raised by who means well. */
static inline void leave_only_fds(int count)
{
    struct rlimit limit;

    leave_fds(count);
    CHECK_INT(getrlimit(RLIMIT_NOFILE, &limit), 0);
    limit.rlim_max = limit.rlim_cur;
    CHECK_INT(setrlimit(RLIMIT_NOFILE, &limit), 0);
}

/* The exit status of a child of the test itself, as waitpid() gives it. */
static inline int await_status(pid_t pid)
{
    int status;

    CHECK_INT(waitpid(pid, &status, 0), pid);
    return status;
}

#endif
