/* descriptors.h: descriptors of every kind, to be sent where they are not expected. */
#ifndef FF_FUZZ_DESCRIPTORS_H
#define FF_FUZZ_DESCRIPTORS_H

#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/inotify.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/timerfd.h>
#include <sys/un.h>

#include "ff_abi.h"
#include "invariant.h"
#include "script.h"

#define MAX_ATTACHED 256 /* beyond what the kernel takes with one message */

static inline int keep_first(int ends[2])
{
    close(ends[1]);
    return ends[0];
}

static inline int open_pipe_end(bool writing)
{
    int ends[2];

    EQUAL(pipe(ends), 0);
    if (!writing)
        return keep_first(ends);
    close(ends[0]);
    return ends[1];
}

static inline int open_socket_end(int type)
{
    int ends[2];

    EQUAL(socketpair(AF_UNIX, type, 0, ends), 0);
    return keep_first(ends);
}

/* Bound to a name that the kernel chooses; ret_address may be NULL. */
static inline int open_listener(struct sockaddr_un *ret_address, socklen_t *ret_size)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    socklen_t size = sizeof address;
    int listener = socket(AF_UNIX, SOCK_STREAM, 0);

    EQUAL(bind(listener, (struct sockaddr *)&address, sizeof address.sun_family), 0);
    EQUAL(listen(listener, 64), 0);
    EQUAL(getsockname(listener, (struct sockaddr *)&address, &size), 0);
    if (ret_address != NULL) {
        *ret_address = address;
        *ret_size = size;
    }
    return listener;
}

/* A write to it blocks, unless it is non-blocking. */
static inline int open_full_counter(void)
{
    int fd = eventfd(0, 0);
    uint64_t most = UINT64_MAX - 1;

    EQUAL(write(fd, &most, sizeof most), sizeof most);
    return fd;
}

static inline int open_kind(unsigned kind)
{
    switch (kind % 16) {
    case 0:
        return open_pipe_end(true);
    case 1:
        return open_pipe_end(false);
    case 2:
        return memfd_create("fuzz", 0);
    case 3:
        return open("/", O_RDONLY | O_DIRECTORY);
    case 4:
        return open_socket_end(SOCK_STREAM);
    case 5:
        return open_socket_end(SOCK_DGRAM);
    case 6:
        return open_listener(NULL, NULL);
    case 7:
        return epoll_create1(0);
    case 8:
        return eventfd(0, 0);
    case 9:
        return open_full_counter();
    case 10:
        return open("/", O_PATH);
    case 11:
        return timerfd_create(CLOCK_MONOTONIC, 0);
    case 12:
        return inotify_init();
    case 13:
        return open("/dev/full", O_WRONLY);
    case 14:
        return open("/dev/null", O_RDONLY);
    default:
        return open("/dev/zero", O_RDWR);
    }
}

/* What goes along with a message: `count` times the same descriptor. */
struct attachment {
    unsigned count;
    unsigned kind;
};

static inline struct attachment script_attachment(struct script *script)
{
    unsigned count = (unsigned)script_size(script, MAX_ATTACHED);

    return (struct attachment){.count = count, .kind = count > 0 ? script_byte(script) : 0};
}

static inline void attach(struct msghdr *message, void *control, int fd, unsigned count)
{
    struct cmsghdr *cmsg;

    memset(control, 0, CMSG_SPACE(count * sizeof fd));
    message->msg_control = control;
    message->msg_controllen = CMSG_SPACE(count * sizeof fd);
    cmsg = CMSG_FIRSTHDR(message);
    cmsg->cmsg_level = SOL_SOCKET;
    cmsg->cmsg_type = SCM_RIGHTS;
    cmsg->cmsg_len = CMSG_LEN(count * sizeof fd);
    for (unsigned i = 0; i < count; i++)
        memcpy(CMSG_DATA(cmsg) + i * sizeof fd, &fd, sizeof fd);
}

/* Send what the socket takes, with `count` times a descriptor: the number of bytes, or -1. */
static inline ssize_t send_fd(int sock, const void *bytes, size_t size, int fd, unsigned count)
{
    char control[CMSG_SPACE(MAX_ATTACHED * sizeof(int))] __attribute__((aligned(8)));
    struct iovec part = {(void *)(uintptr_t)bytes, size};
    struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1};

    if (count > 0)
        attach(&message, control, fd, count);
    return sendmsg(sock, &message, MSG_DONTWAIT | MSG_NOSIGNAL);
}

/* The same with a descriptor of some kind, of which nothing stays here. */
static inline ssize_t send_attached(int sock, const void *bytes, size_t size, struct attachment attachment)
{
    int fd = attachment.count > 0 ? open_kind(attachment.kind) : -1;
    ssize_t sent = send_fd(sock, bytes, size, fd, attachment.count);

    if (attachment.count > 0)
        EQUAL(close(fd), 0);
    return sent;
}

#endif
