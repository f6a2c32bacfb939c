/* ff_fd.h: descriptors: close-on-exec from birth, non-blocking, closed in bulk. */
#ifndef FF_FD_H
#define FF_FD_H

#include <stddef.h>
#include <sys/types.h>

int ff_fd_set_cloexec(int fd);
int ff_fd_set_nonblock(int fd);

/* A pipe whose both ends are close-on-exec and non-blocking. */
int ff_fd_pipe(int ret_ends[2]);

/* A close-on-exec duplicate. */
int ff_fd_duplicate(int fd);

/* Accept a connection, close-on-exec and non-blocking. */
int ff_fd_accept(int listener);

/* The effective user of the process at the other end of a connected AF_UNIX socket. */
int ff_fd_peer_uid(int sock, uid_t *ret_uid);

/* Close a set of descriptors with one system call for each run of neighbours. The array is sorted. */
void ff_fd_close_all(int *fds, size_t count);

#endif
