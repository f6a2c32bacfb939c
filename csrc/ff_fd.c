/* ff_fd.c: descriptors: close-on-exec from birth, non-blocking, closed in bulk. */
#define _GNU_SOURCE

#include "ff_fd.h"

#include <fcntl.h>
#include <stdint.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>

#include "ff_util.h"

#ifndef MSG_NOSIGNAL
#define MSG_NOSIGNAL 0 /* the server ignores SIGPIPE as well */
#endif

int ff_fd_set_cloexec(int fd)
{
    int flags = fcntl(fd, F_GETFD);

    if (flags < 0 || fcntl(fd, F_SETFD, flags | FD_CLOEXEC) < 0)
        return -errno;
    return 0;
}

int ff_fd_set_nonblock(int fd)
{
    int flags = fcntl(fd, F_GETFL);

    if (flags < 0 || fcntl(fd, F_SETFL, flags | O_NONBLOCK) < 0)
        return -errno;
    return 0;
}

static int prepare_both(int ends[2])
{
    for (int i = 0; i < 2; i++) {
        int error = ff_fd_set_cloexec(ends[i]);

        if (error == 0)
            error = ff_fd_set_nonblock(ends[i]);
        if (error < 0)
            return error;
    }
    return 0;
}

/* What was made without the flags gets them now. */
static int give_both(int ends[2], int ret_ends[2])
{
    int error = prepare_both(ends);

    if (error < 0) {
        ff_close(&ends[0]);
        ff_close(&ends[1]);
        return error;
    }
    ret_ends[0] = ends[0];
    ret_ends[1] = ends[1];
    return 0;
}

int ff_fd_pipe(int ret_ends[2])
{
    int ends[2];

#ifdef __linux__
    if (pipe2(ret_ends, O_CLOEXEC | O_NONBLOCK) == 0)
        return 0;
    if (errno != ENOSYS)
        return -errno;
#endif
    if (pipe(ends) < 0)
        return -errno;
    return give_both(ends, ret_ends);
}

int ff_fd_socketpair(int ret_ends[2])
{
    int ends[2];

#ifdef SOCK_CLOEXEC
    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, ret_ends) == 0)
        return 0;
    if (errno != EINVAL)
        return -errno;
#endif
    if (socketpair(AF_UNIX, SOCK_STREAM, 0, ends) < 0)
        return -errno;
    return give_both(ends, ret_ends);
}

int ff_fd_duplicate(int fd)
{
    int copy = fcntl(fd, F_DUPFD_CLOEXEC, 0);

    return copy < 0 ? -errno : copy;
}

static bool is_socket(int fd)
{
    int type;
    socklen_t size = sizeof type;

    return getsockopt(fd, SOL_SOCKET, SO_TYPE, &type, &size) == 0;
}

/* fstat() would tell as well, but may itself wait: for a file system in another process. */
static bool is_pipe(int fd)
{
#ifdef F_GETPIPE_SZ
    return fcntl(fd, F_GETPIPE_SZ) >= 0 || errno != EBADF;
#else
    struct stat status;

    return fstat(fd, &status) == 0 && S_ISFIFO(status.st_mode);
#endif
}

bool ff_fd_is_stream(int fd)
{
    return is_pipe(fd) || is_socket(fd);
}

/* Kernels that know no RWF_NOWAIT, or not for pipes, leave the flag of the open file. */
static ssize_t write_pipe_now(int fd, const void *bytes, size_t size)
{
    ssize_t written;

#if defined(SYS_pwritev2) && defined(RWF_NOWAIT)
    struct iovec part = {(void *)(uintptr_t)bytes, size};

    written = syscall(SYS_pwritev2, fd, &part, 1, -1L, -1L, RWF_NOWAIT);
    if (written >= 0 || (errno != EOPNOTSUPP && errno != ENOSYS && errno != EINVAL))
        return written;
#endif
    written = ff_fd_set_nonblock(fd);
    return written < 0 ? written : write(fd, bytes, size);
}

int ff_fd_write_now(int fd, const void *bytes, size_t size)
{
    ssize_t written =
        is_pipe(fd) ? write_pipe_now(fd, bytes, size) : send(fd, bytes, size, MSG_DONTWAIT | MSG_NOSIGNAL);

    if (written < 0)
        return -errno;
    return (size_t)written == size ? 0 : -EAGAIN;
}

/* O_NONBLOCK is no help: only without a linger time does close() of a socket not wait. Zero is a reset, at once. */
static void stop_lingering(int fd)
{
    struct linger linger;
    socklen_t size = sizeof linger;

    if (getsockopt(fd, SOL_SOCKET, SO_LINGER, &linger, &size) < 0 || !linger.l_onoff || linger.l_linger == 0)
        return;
    linger.l_onoff = 0;
    setsockopt(fd, SOL_SOCKET, SO_LINGER, &linger, sizeof linger);
}

void ff_fd_drop(int *fd)
{
    int saved_errno = errno;

    if (*fd >= 0)
        stop_lingering(*fd);
    errno = saved_errno;
    ff_close(fd);
}

void ff_fd_end(int *fd)
{
    if (*fd >= 0)
        shutdown(*fd, SHUT_RDWR);
    ff_fd_drop(fd);
}

/* For kernels without accept4(): another thread's fork and exec may catch the descriptor in between. */
static int accept_plain(int listener)
{
    int fd = FF_RETRY_EINTR(accept(listener, NULL, NULL));
    int error;

    if (fd < 0)
        return -errno;
    error = ff_fd_set_cloexec(fd);
    if (error == 0)
        error = ff_fd_set_nonblock(fd);
    if (error < 0) {
        ff_close(&fd);
        return error;
    }
    return fd;
}

int ff_fd_accept(int listener)
{
#ifdef __linux__
    int fd = FF_RETRY_EINTR(accept4(listener, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK));

    if (fd >= 0)
        return fd;
    if (errno != ENOSYS)
        return -errno;
#endif
    return accept_plain(listener);
}

int ff_fd_peer_uid(int sock, uid_t *ret_uid)
{
#ifdef SO_PEERCRED
    struct ucred cred;
    socklen_t size = sizeof cred;

    if (getsockopt(sock, SOL_SOCKET, SO_PEERCRED, &cred, &size) < 0)
        return -errno;
    *ret_uid = cred.uid;
    return 0;
#else
    gid_t gid;

    return getpeereid(sock, ret_uid, &gid) < 0 ? -errno : 0;
#endif
}

bool ff_fd_has_hung_up(int sock)
{
    struct pollfd polled = {.fd = sock, .events = POLLRDHUP};

    return FF_RETRY_EINTR(poll(&polled, 1, 0)) > 0;
}

void ff_fd_lower_all(int *fds, size_t count, rlim_t limit)
{
    for (size_t i = 0; i < count; i++) {
        int lower = (rlim_t)fds[i] < limit ? -EBADF : ff_fd_duplicate(fds[i]);

        if (lower < 0)
            continue;
        ff_close(&fds[i]);
        fds[i] = lower;
    }
}

int ff_fd_raise(int *fd)
{
    int higher;

    if (*fd > STDERR_FILENO)
        return 0;
    higher = fcntl(*fd, F_DUPFD_CLOEXEC, STDERR_FILENO + 1);
    if (higher < 0)
        return -errno;
    ff_close(fd);
    *fd = higher;
    return 0;
}

static int compare_ints(const void *a, const void *b)
{
    int left = *(const int *)a;
    int right = *(const int *)b;

    return (left > right) - (left < right);
}

static void close_run(int first, int last)
{
#ifdef SYS_close_range
    if (first != last && syscall(SYS_close_range, (unsigned)first, (unsigned)last, 0u) == 0)
        return;
#endif
    for (int fd = first; fd <= last; fd++)
        close(fd);
}

void ff_fd_close_all(int *fds, size_t count)
{
    size_t start = 0;

    qsort(fds, count, sizeof *fds, compare_ints);
    for (size_t i = 1; i <= count; i++) {
        if (i < count && fds[i] <= fds[i - 1] + 1)
            continue;
        close_run(fds[start], fds[i - 1]);
        start = i;
    }
}
