/* ff_fd.c: descriptors: close-on-exec from birth, non-blocking, closed in bulk. */
#define _GNU_SOURCE

#include "ff_fd.h"

#include <fcntl.h>
#include <sys/socket.h>
#include <sys/syscall.h>

#include "ff_util.h"

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

int ff_fd_pipe(int ret_ends[2])
{
    int ends[2];
    int error;

#ifdef __linux__
    if (pipe2(ends, O_CLOEXEC | O_NONBLOCK) == 0) {
        ret_ends[0] = ends[0];
        ret_ends[1] = ends[1];
        return 0;
    }
    if (errno != ENOSYS)
        return -errno;
#endif
    if (pipe(ends) < 0)
        return -errno;
    error = prepare_both(ends);
    if (error < 0) {
        ff_close(&ends[0]);
        ff_close(&ends[1]);
        return error;
    }
    ret_ends[0] = ends[0];
    ret_ends[1] = ends[1];
    return 0;
}

int ff_fd_duplicate(int fd)
{
    int copy = fcntl(fd, F_DUPFD_CLOEXEC, 0);

    return copy < 0 ? -errno : copy;
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
