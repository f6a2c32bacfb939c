/* ff_msg.c: bytes and descriptors on a stream socket; frames. */
#define _GNU_SOURCE

#include "ff_msg.h"

#include <string.h>
#include <sys/socket.h>
#include <sys/uio.h>

#include "ff_fd.h"
#include "ff_util.h"

#ifndef MSG_NOSIGNAL
#define MSG_NOSIGNAL 0 /* the server ignores SIGPIPE as well */
#endif

#ifdef MSG_CMSG_CLOEXEC
#define RECEIVE_FLAGS (MSG_DONTWAIT | MSG_CMSG_CLOEXEC)
#else
#define RECEIVE_FLAGS MSG_DONTWAIT
#endif

/* Room for the descriptors of one message, aligned as the kernel writes them. */
union control_buffer {
    struct cmsghdr align;
    char bytes[CMSG_SPACE(FF_MAX_FDS_PER_MESSAGE * sizeof(int))];
};

void ff_reader_init(struct ff_reader *reader)
{
    reader->bytes = reader->small;
    reader->capacity = sizeof reader->small;
    reader->have = reader->need = 0;
    reader->fd_count = 0;
    reader->lost_fds = false;
}

static void free_bytes(struct ff_reader *reader)
{
    if (reader->bytes != reader->small)
        free(reader->bytes);
    reader->bytes = reader->small;
    reader->capacity = sizeof reader->small;
}

int ff_reader_expect(struct ff_reader *reader, size_t size)
{
    size_t need = reader->have + size;

    if (need > reader->capacity) {
        unsigned char *bytes = malloc(need);

        if (bytes == NULL)
            return -ENOMEM;
        memcpy(bytes, reader->bytes, reader->have);
        free_bytes(reader);
        reader->bytes = bytes;
        reader->capacity = need;
    }
    reader->need = need;
    return 0;
}

/* Take one descriptor in; without room it is closed. */
static int keep_fd(struct ff_reader *reader, int fd)
{
    if (reader->fd_count == FF_MAX_FDS) {
        ff_fd_drop(&fd);
        return -E2BIG;
    }
#ifndef MSG_CMSG_CLOEXEC
    ff_fd_set_cloexec(fd);
#endif
    reader->fds[reader->fd_count++] = fd;
    return 0;
}

static int keep_rights(struct ff_reader *reader, struct cmsghdr *cmsg)
{
    size_t count = (cmsg->cmsg_len - CMSG_LEN(0)) / sizeof(int);
    int error = 0;

    for (size_t i = 0; i < count; i++) {
        int fd;

        memcpy(&fd, CMSG_DATA(cmsg) + i * sizeof fd, sizeof fd);
        if (keep_fd(reader, fd) < 0)
            error = -E2BIG;
    }
    return error;
}

/* Every message is walked to its end even after a fault: what is not kept must be closed. */
static int keep_all_rights(struct ff_reader *reader, struct msghdr *message)
{
    int error = 0;

    if (message->msg_flags & MSG_CTRUNC)
        reader->lost_fds = true;

    for (struct cmsghdr *cmsg = CMSG_FIRSTHDR(message); cmsg != NULL; cmsg = CMSG_NXTHDR(message, cmsg)) {
        if (cmsg->cmsg_level != SOL_SOCKET || cmsg->cmsg_type != SCM_RIGHTS)
            continue;
        if (keep_rights(reader, cmsg) < 0)
            error = -E2BIG;
    }
    return error;
}

static int receive_once(struct ff_reader *reader, int sock)
{
    union control_buffer control;
    struct iovec part = {reader->bytes + reader->have, reader->need - reader->have};
    struct msghdr message = {
        .msg_iov = &part,
        .msg_iovlen = 1,
        .msg_control = control.bytes,
        .msg_controllen = sizeof control.bytes,
    };
    ssize_t received = FF_RETRY_EINTR(recvmsg(sock, &message, RECEIVE_FLAGS));
    int error;

    if (received < 0)
        return -errno;
    error = keep_all_rights(reader, &message);
    if (error < 0)
        return error;
    if (received == 0)
        return -EPIPE;
    reader->have += (size_t)received;
    return 0;
}

int ff_reader_fill(struct ff_reader *reader, int sock)
{
    while (reader->have < reader->need) {
        int error = receive_once(reader, sock);

        if (error == -EAGAIN || error == -EWOULDBLOCK)
            return 0;
        if (error < 0)
            return error;
    }
    return 1;
}

void ff_reader_restart(struct ff_reader *reader)
{
    free_bytes(reader);
    reader->have = reader->need = 0;
}

void ff_reader_drop_fds(struct ff_reader *reader)
{
    while (reader->fd_count > 0)
        ff_fd_drop(&reader->fds[--reader->fd_count]);
    reader->lost_fds = false;
}

void ff_reader_hand_over_fds(struct ff_reader *reader)
{
    while (reader->fd_count > 0)
        ff_close(&reader->fds[--reader->fd_count]);
}

void ff_reader_clear(struct ff_reader *reader)
{
    ff_reader_drop_fds(reader);
    free_bytes(reader);
    ff_reader_init(reader);
}

static void attach_rights(struct msghdr *message, union control_buffer *control, const int *fds,
                          size_t fd_count)
{
    struct cmsghdr *cmsg;

    /* The padding travels into the kernel: it must not carry what was on the stack. */
    memset(control, 0, CMSG_SPACE(fd_count * sizeof(int)));
    message->msg_control = control->bytes;
    message->msg_controllen = CMSG_SPACE(fd_count * sizeof(int));
    cmsg = CMSG_FIRSTHDR(message);
    cmsg->cmsg_level = SOL_SOCKET;
    cmsg->cmsg_type = SCM_RIGHTS;
    cmsg->cmsg_len = CMSG_LEN(fd_count * sizeof(int));
    memcpy(CMSG_DATA(cmsg), fds, fd_count * sizeof(int));
}

ssize_t ff_msg_send(int sock, const void *bytes, size_t size, const int *fds, size_t fd_count)
{
    union control_buffer control;
    struct iovec part = {(void *)(uintptr_t)bytes, size};
    struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1};
    ssize_t sent;

    if (fd_count > FF_MAX_FDS_PER_MESSAGE)
        return -EINVAL;
    if (fd_count > 0)
        attach_rights(&message, &control, fds, fd_count);
    sent = FF_RETRY_EINTR(sendmsg(sock, &message, MSG_NOSIGNAL));
    return sent < 0 ? -errno : sent;
}

struct ff_frame ff_frame_make(enum ff_frame_type type, uint32_t id, int32_t value)
{
    return (struct ff_frame){
        .magic = FF_MAGIC,
        .version = FF_PROTOCOL_VERSION,
        .type = (uint16_t)type,
        .id = id,
        .value = value,
    };
}

static int flags_are_sound(uint32_t flags, uint32_t fd_count)
{
    const uint32_t known = FF_FORK_PIDFD | FF_FORK_HELD | FF_FORK_STREAM | FF_FORK_DIE_WITH_CLIENT |
                           FF_FORK_OPTIONS | FF_FORK_MODULES;

    if (flags & ~known)
        return 0;
    if (flags & FF_FORK_STREAM && !(flags & FF_FORK_HELD))
        return 0;
    return !(flags & FF_FORK_HELD) || fd_count > 0;
}

/* It has nothing to say but its type. */
static int check_status_request(const struct ff_frame *frame)
{
    if (frame->payload_size > 0)
        return FF_REFUSED_PAYLOAD;
    if (frame->fd_count > 0)
        return FF_REFUSED_FDS;
    return frame->value == 0 ? 0 : FF_REFUSED_TYPE;
}

int ff_frame_check_request(const struct ff_frame *frame)
{
    if (frame->magic != FF_MAGIC)
        return FF_REFUSED_MAGIC;
    if (frame->version != FF_PROTOCOL_VERSION)
        return FF_REFUSED_VERSION;
    if (frame->payload_size > FF_MAX_PAYLOAD)
        return FF_REFUSED_PAYLOAD;
    if (frame->fd_count > FF_MAX_FDS)
        return FF_REFUSED_FDS;
    if (frame->type == FF_FRAME_STATUS)
        return check_status_request(frame);
    if (frame->type != FF_FRAME_FORK || !flags_are_sound((uint32_t)frame->value, frame->fd_count))
        return FF_REFUSED_TYPE;
    return 0;
}
