/* ff_client.c: the client's side of the frames, on a blocking socket. */
#define _GNU_SOURCE

#include <fcntl.h>
#include <poll.h>
#include <string.h>
#include <sys/socket.h>

#include "ff_abi.h"
#include "ff_msg.h"
#include "ff_util.h"

static int send_rest(int sock, const unsigned char *bytes, size_t size)
{
    while (size > 0) {
        ssize_t sent = ff_msg_send(sock, bytes, size, NULL, 0);

        if (sent < 0)
            return (int)sent;
        bytes += sent;
        size -= (size_t)sent;
    }
    return 0;
}

/* The kernel takes FF_MAX_FDS_PER_MESSAGE descriptors with one byte or more; those beyond ride on the
 * first byte, alone, and the rest on what follows. Returns how many bytes went. */
static ssize_t send_head(int sock, const unsigned char *bytes, size_t size, const int *fds, size_t fd_count)
{
    size_t beyond = fd_count > FF_MAX_FDS_PER_MESSAGE ? fd_count - FF_MAX_FDS_PER_MESSAGE : 0;
    ssize_t sent;

    if (beyond == 0)
        return ff_msg_send(sock, bytes, size, fds, fd_count);
    for (size_t i = 0; i < fd_count; i++)
        if (fcntl(fds[i], F_GETFD) < 0)
            return -errno;
    sent = ff_msg_send(sock, bytes, 1, fds, beyond);
    if (sent < 0)
        return sent;
    sent = ff_msg_send(sock, bytes + 1, size - 1, fds + beyond, fd_count - beyond);
    return sent < 0 ? sent : sent + 1;
}

int ff_client_send(int sock, uint32_t id, uint32_t flags, const void *payload, uint32_t payload_size,
                   const int *fds, uint32_t fd_count)
{
    unsigned char bytes[sizeof(struct ff_frame) + FF_MAX_PAYLOAD];
    struct ff_frame frame = ff_frame_make(FF_FRAME_FORK, id, (int32_t)flags);
    size_t size = sizeof frame + payload_size;
    ssize_t sent;

    if (payload_size > FF_MAX_PAYLOAD || fd_count > FF_MAX_FDS)
        return -EMSGSIZE;
    frame.payload_size = payload_size;
    frame.fd_count = fd_count;
    memcpy(bytes, &frame, sizeof frame);
    if (payload_size > 0)
        memcpy(bytes + sizeof frame, payload, payload_size);
    sent = send_head(sock, bytes, size, fds, fd_count);
    if (sent < 0)
        return (int)sent;
    return send_rest(sock, bytes + sent, size - (size_t)sent);
}

int ff_client_ask_status(int sock, uint32_t id)
{
    struct ff_frame frame = ff_frame_make(FF_FRAME_STATUS, id, 0);

    return send_rest(sock, (const unsigned char *)&frame, sizeof frame);
}

int ff_wait_readable(int fd, int timeout_ms)
{
    struct pollfd polled = {.fd = fd, .events = POLLIN};
    int count = poll(&polled, 1, timeout_ms);

    while (count < 0 && errno == EINTR && timeout_ms == 0) /* a mere look is not to be interrupted */
        count = poll(&polled, 1, 0);
    return count < 0 ? -errno : polled.revents;
}

/* A frame that has begun is at hand: the server writes it with one call. */
static int receive_whole(struct ff_reader *reader, int sock)
{
    int result = ff_reader_fill(reader, sock);

    while (result == 0) {
        int ready = ff_wait_readable(sock, -1);

        if (ready < 0 && ready != -EINTR)
            return ready;
        result = ff_reader_fill(reader, sock);
    }
    return result;
}

int ff_client_receive(int sock, int timeout_ms, struct ff_frame *ret_frame, int *ret_fd)
{
    FF_CLEANUP(ff_reader_clear) struct ff_reader reader;
    struct ff_frame frame;
    int result = timeout_ms == 0 ? POLLIN : ff_wait_readable(sock, timeout_ms);

    ff_reader_init(&reader);
    if (result <= 0)
        return result;
    result = ff_reader_expect(&reader, sizeof *ret_frame);
    if (result < 0)
        return result;
    result = ff_reader_fill(&reader, sock);
    if (result == 0 && reader.have == 0)
        return 0;
    if (result == 0)
        result = receive_whole(&reader, sock);
    if (result < 0)
        return result;
    memcpy(&frame, reader.bytes, sizeof frame);
    if (frame.magic != FF_MAGIC || frame.version != FF_PROTOCOL_VERSION)
        return -EPROTO;
    *ret_frame = frame;
    *ret_fd = reader.fd_count > 0 ? ff_steal_fd(&reader.fds[0]) : -1;
    return 1;
}
