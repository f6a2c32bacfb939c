/* ff_fd.h: descriptors: close-on-exec from birth, non-blocking, closed in bulk. */
#ifndef FF_FD_H
#define FF_FD_H

#include <poll.h>
#include <stdbool.h>
#include <stddef.h>
#include <sys/resource.h>
#include <sys/types.h>

#ifndef POLLRDHUP
#define POLLRDHUP 0 /* that the peer has gone altogether is told in any case */
#endif

int ff_fd_set_cloexec(int fd);
int ff_fd_set_nonblock(int fd);

/* A pipe whose both ends are close-on-exec and non-blocking. */
int ff_fd_pipe(int ret_ends[2]);

/* A pair of connected stream sockets, likewise. */
int ff_fd_socketpair(int ret_ends[2]);

/* A close-on-exec duplicate. */
int ff_fd_duplicate(int fd);

/* Whether something can be written to a descriptor without any wait: a pipe or a socket. */
bool ff_fd_is_stream(int fd);

/* Write to a pipe or a socket what it takes at once: all, or -errno. Where the system has a way, the open file stays
 * as it is: others share it, and would find it non-blocking. */
int ff_fd_write_now(int fd, const void *bytes, size_t size);

/* Close a descriptor that may be the last one of its file, and forget it: a socket that lingers does not make this
 * process wait, the kernel delivers what is left. */
void ff_fd_drop(int *fd);

/* The same; a socket comes to its end, whoever else still holds it: children that have just been forked do, for a moment. */
void ff_fd_end(int *fd);

/* Accept a connection, close-on-exec and non-blocking. */
int ff_fd_accept(int listener);

/* The effective user of the process at the other end of a connected AF_UNIX socket. */
int ff_fd_peer_uid(int sock, uid_t *ret_uid);

/* Whether the peer of a connected socket has gone, or sends no more; on a system that cannot tell the latter, the former. */
bool ff_fd_has_hung_up(int sock);

/* Give descriptors from `limit` on, which no call would return, lower numbers, as far as there are any. */
void ff_fd_lower_all(int *fds, size_t count, rlim_t limit);

/* Give a descriptor a number above those of the standard streams: 0, or -errno and it stays. */
int ff_fd_raise(int *fd);

/* Close a set of descriptors with one system call for each run of neighbours. The array is sorted. */
void ff_fd_close_all(int *fds, size_t count);

#endif
