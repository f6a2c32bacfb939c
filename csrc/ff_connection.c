/* ff_connection.c: one client of the server: what it has sent so far and what it is still to be told. */
#include "ff_connection.h"

#include <string.h>

#include "ff_loop.h"
#include "ff_util.h"

static bool outbox_is_empty(const struct ff_outbox *outbox)
{
    return outbox->sent == outbox->size;
}

static void outbox_put(struct ff_outbox *outbox, const void *bytes, size_t size, int fd)
{
    memcpy(outbox->bytes, bytes, size);
    outbox->size = size;
    outbox->sent = 0;
    outbox->fd = fd;
}

/* Too many descriptors are on their way between processes: a pidfd is not worth a wait, and the page was asked for. */
static void outbox_drop_fd(struct ff_outbox *outbox)
{
    struct ff_frame frame;

    ff_close(&outbox->fd);
    memcpy(&frame, outbox->bytes, sizeof frame);
    frame.fd_count = 0;
    frame.unsent = ETOOMANYREFS;
    if (frame.type == FF_FRAME_STATUS)
        frame = ff_frame_make(FF_FRAME_FAILED, frame.id, ETOOMANYREFS);
    memcpy(outbox->bytes, &frame, sizeof frame);
}

static void outbox_advance(struct ff_outbox *outbox, size_t size)
{
    outbox->sent += size;
    ff_close(&outbox->fd);
}

/* Send what is left of the message: 1 when all is out, 0 when the socket is full, or -errno. */
static int outbox_send(struct ff_outbox *outbox, int sock)
{
    while (!outbox_is_empty(outbox)) {
        ssize_t sent = ff_msg_send(sock, outbox->bytes + outbox->sent, outbox->size - outbox->sent,
                                   &outbox->fd, outbox->fd >= 0 ? 1 : 0);

        if (sent == -ETOOMANYREFS && outbox->fd >= 0)
            outbox_drop_fd(outbox);
        else if (sent == -EAGAIN || sent == -EWOULDBLOCK)
            return 0;
        else if (sent < 0)
            return (int)sent;
        else
            outbox_advance(outbox, (size_t)sent);
    }
    return 1;
}

static void fail(struct ff_connection *connection)
{
    connection->state = FF_CONNECTION_GONE;
}

void ff_connection_dismiss(struct ff_connection *connection, enum ff_refusal cause)
{
    ff_status_count_refusal(connection->status, cause);
    fail(connection);
}

/* The system lacks memory, for a moment as a rule: neither end has done anything wrong. */
static bool is_shortage(int error)
{
    return error == -ENOMEM || error == -ENOBUFS;
}

/* The cause is the last thing that the client hears. */
static void refuse(struct ff_connection *connection, enum ff_refusal cause)
{
    ff_status_count_refusal(connection->status, cause);
    ff_reader_drop_fds(&connection->reader);
    connection->state = FF_CONNECTION_CLOSING;
    ff_connection_post(connection, ff_frame_make(FF_FRAME_REFUSED, connection->header.id, (int32_t)cause),
                       -1);
}

static int expect(struct ff_connection *connection, enum ff_connection_state state, size_t size)
{
    ff_reader_restart(&connection->reader);
    connection->state = state;
    return ff_reader_expect(&connection->reader, size);
}

/* The rest of a payload that cannot be kept, as much at a time as needs no memory. */
static void skip(struct ff_connection *connection)
{
    size_t size = connection->to_skip < FF_READER_SMALL ? connection->to_skip : FF_READER_SMALL;

    expect(connection, FF_CONNECTION_SKIPPING, size);
}

int ff_connection_open(int sock, struct ff_status_board *status, struct ff_connection **ret_connection)
{
    struct ff_connection *connection = calloc(1, sizeof *connection);
    struct ff_auth_message message;
    int error;

    if (connection == NULL)
        return -ENOMEM;
    error = ff_auth_begin(&connection->auth, &message);
    if (error < 0) {
        free(connection);
        return error;
    }
    connection->sock = sock;
    connection->status = status;
    connection->opened = ff_seconds_now();
    ff_reader_init(&connection->reader);
    expect(connection, FF_CONNECTION_AUTH_PREFIX, FF_AUTH_PREFIX_SIZE);
    outbox_put(&connection->outbox, message.bytes, message.size, -1);
    ff_connection_flush(connection);
    *ret_connection = connection;
    return 0;
}

void ff_connection_post(struct ff_connection *connection, struct ff_frame frame, int fd)
{
    frame.fd_count = fd >= 0 ? 1 : 0;
    outbox_put(&connection->outbox, &frame, sizeof frame, fd);
    ff_connection_flush(connection);
}

void ff_connection_post_failure(struct ff_connection *connection, int error)
{
    ff_connection_post_unfit(connection, (struct ff_unfit){.error = error});
}

void ff_connection_post_unfit(struct ff_connection *connection, struct ff_unfit unfit)
{
    struct ff_frame frame = ff_frame_make(FF_FRAME_FAILED, connection->header.id, unfit.error);

    frame.option = (uint32_t)unfit.option;
    if (connection->header.type == FF_FRAME_FORK)
        ff_status_count_failure(connection->status, unfit.error);
    ff_reader_drop_fds(&connection->reader);
    ff_connection_post(connection, frame, -1);
}

void ff_connection_post_exit(struct ff_connection *connection, struct ff_child *child)
{
    child->next = NULL;
    if (connection->dead == NULL)
        connection->dead = child;
    else
        connection->last_dead->next = child;
    connection->last_dead = child;
}

static uint32_t cpu_ms(const struct rusage *usage)
{
    return (uint32_t)((usage->ru_utime.tv_sec + usage->ru_stime.tv_sec) * 1000 +
                      (usage->ru_utime.tv_usec + usage->ru_stime.tv_usec) / 1000);
}

static void put_exit(struct ff_connection *connection)
{
    struct ff_child *child = connection->dead;
    struct ff_frame frame = ff_frame_make(FF_FRAME_EXITED, child->request_id, child->exit_code);

    frame.cpu_ms = cpu_ms(&child->usage);
    frame.peak_memory = (uint32_t)child->usage.ru_maxrss;
    connection->dead = child->next;
    outbox_put(&connection->outbox, &frame, sizeof frame, -1);
    ff_child_free(child);
}

void ff_connection_flush(struct ff_connection *connection)
{
    while (connection->state != FF_CONNECTION_GONE) {
        int result = outbox_send(&connection->outbox, connection->sock);

        if (is_shortage(result))
            connection->stalled = true;
        else if (result < 0)
            fail(connection);
        if (result <= 0)
            return;
        if (connection->state == FF_CONNECTION_CLOSING) {
            fail(connection);
            return;
        }
        if (connection->dead == NULL || connection->spare != NULL)
            return;
        put_exit(connection);
    }
}

static void take_auth_prefix(struct ff_connection *connection)
{
    uint32_t size = ff_auth_read_prefix(connection->reader.bytes);

    if (size == 0 || size > FF_AUTH_MAX_MESSAGE)
        ff_connection_dismiss(connection, FF_REFUSED_KEY);
    else
        expect(connection, FF_CONNECTION_AUTH_MESSAGE, size);
}

static void take_auth_message(struct ff_connection *connection, const struct ff_config *config)
{
    struct ff_auth_message reply;
    int error =
        ff_auth_take(&connection->auth, config, connection->reader.bytes, connection->reader.have, &reply);

    if (error < 0) {
        ff_status_count_refusal(connection->status, FF_REFUSED_KEY);
        connection->state = FF_CONNECTION_CLOSING;
    } else if (connection->auth.stage == FF_AUTH_DONE) {
        expect(connection, FF_CONNECTION_HEADER, sizeof(struct ff_frame));
    } else {
        expect(connection, FF_CONNECTION_AUTH_PREFIX, FF_AUTH_PREFIX_SIZE);
    }
    outbox_put(&connection->outbox, reply.bytes, reply.size, -1);
    ff_connection_flush(connection);
}

static void take_header(struct ff_connection *connection)
{
    int cause;

    memcpy(&connection->header, connection->reader.bytes, sizeof connection->header);
    connection->to_skip = connection->header.payload_size;
    cause = ff_frame_check_request(&connection->header);
    if (cause != 0)
        refuse(connection, (enum ff_refusal)cause);
    else if (expect(connection, FF_CONNECTION_PAYLOAD, connection->header.payload_size) < 0)
        skip(connection);
}

/* The request fails when all of it has come; its client's other children are not touched by that. */
static void take_skipped(struct ff_connection *connection)
{
    connection->to_skip -= connection->reader.have;
    if (connection->to_skip > 0) {
        skip(connection);
        return;
    }
    ff_connection_post_failure(connection, ENOMEM);
    ff_connection_next_request(connection);
}

static bool has_sound_options(const struct ff_connection *connection)
{
    const struct ff_reader *reader = &connection->reader;
    uint32_t flags = (uint32_t)connection->header.value;
    size_t held = flags & FF_FORK_HELD ? 1 : 0;

    return !(flags & FF_FORK_OPTIONS) ||
           ff_options_check(reader->bytes, connection->header.payload_size, reader->fd_count - held) > 0;
}

/* Descriptors that the kernel could not deliver are the server's lack: the request fails, the client stays. */
static enum ff_connection_event take_payload(struct ff_connection *connection)
{
    if (connection->reader.lost_fds) {
        ff_connection_post_failure(connection, EMFILE);
        ff_connection_next_request(connection);
    } else if (connection->reader.fd_count != connection->header.fd_count) {
        refuse(connection, FF_REFUSED_FDS);
    } else if (connection->header.type == FF_FRAME_STATUS) {
        return FF_CONNECTION_STATUS;
    } else if (!has_sound_options(connection)) {
        refuse(connection, FF_REFUSED_OPTIONS);
    } else {
        return FF_CONNECTION_REQUEST;
    }
    return FF_CONNECTION_IDLE;
}

static void take_read_error(struct ff_connection *connection, int error)
{
    if (is_shortage(error))
        connection->stalled = true;
    else if (error == -E2BIG && !ff_connection_is_stranger(connection))
        refuse(connection, FF_REFUSED_FDS);
    else if (error == -E2BIG)
        ff_connection_dismiss(connection, FF_REFUSED_FDS);
    else
        fail(connection);
}

/* Nothing is read while something is still to be sent: a client that does not read cannot make it grow. */
static bool may_read(const struct ff_connection *connection)
{
    return connection->state < FF_CONNECTION_WAITING && outbox_is_empty(&connection->outbox);
}

static bool has_descriptors(const struct ff_connection *connection)
{
    return connection->reader.fd_count > 0 || connection->reader.lost_fds;
}

/* Whether a part of a request is here. */
static bool is_amid_request(const struct ff_connection *connection)
{
    if (connection->state == FF_CONNECTION_HEADER)
        return connection->reader.have > 0;
    return connection->state == FF_CONNECTION_PAYLOAD || connection->state == FF_CONNECTION_SKIPPING;
}

/* What is there and has not been read may be the rest of it: somebody may have stopped the server for a while. */
static bool is_late(const struct ff_connection *connection)
{
    return ff_seconds_now() >= connection->began + 1e-3 * FF_REQUEST_MS &&
           ff_wait_readable(connection->sock, 0) == 0;
}

bool ff_connection_note_time(struct ff_connection *connection)
{
    if (!is_amid_request(connection) || !outbox_is_empty(&connection->outbox))
        connection->began = 0;
    else if (connection->began == 0)
        connection->began = ff_seconds_now();
    return connection->began > 0;
}

bool ff_connection_check_time(struct ff_connection *connection)
{
    if (connection->began == 0 || !is_late(connection))
        return false;
    refuse(connection, FF_REFUSED_TIME);
    return true;
}

enum ff_connection_event ff_connection_read(struct ff_connection *connection, const struct ff_config *config)
{
    while (may_read(connection)) {
        int result = ff_reader_fill(&connection->reader, connection->sock);

        if (result < 0)
            take_read_error(connection, result);
        else if (ff_connection_is_stranger(connection) && has_descriptors(connection))
            /* Whoever has not proved that it knows the key has no descriptors kept here. */
            ff_connection_dismiss(connection, FF_REFUSED_FDS);
        if (result <= 0)
            break;
        switch (connection->state) {
        case FF_CONNECTION_AUTH_PREFIX:
            take_auth_prefix(connection);
            break;
        case FF_CONNECTION_AUTH_MESSAGE:
            take_auth_message(connection, config);
            break;
        case FF_CONNECTION_HEADER:
            take_header(connection);
            break;
        case FF_CONNECTION_PAYLOAD:
            return take_payload(connection);
        case FF_CONNECTION_SKIPPING:
            take_skipped(connection);
            break;
        case FF_CONNECTION_WAITING:
        case FF_CONNECTION_CLOSING:
        case FF_CONNECTION_GONE:
            break;
        }
    }
    return FF_CONNECTION_IDLE;
}

void ff_connection_wait(struct ff_connection *connection, uint64_t ticket)
{
    connection->state = FF_CONNECTION_WAITING;
    connection->ticket = ticket;
}

void ff_connection_hang_up(struct ff_connection *connection)
{
    if (connection->state == FF_CONNECTION_WAITING)
        fail(connection);
}

bool ff_connection_may_go_on(const struct ff_connection *connection)
{
    return connection->state == FF_CONNECTION_WAITING && connection->spare == NULL &&
           outbox_is_empty(&connection->outbox);
}

bool ff_connection_is_stranger(const struct ff_connection *connection)
{
    return connection->state < FF_CONNECTION_HEADER;
}

void ff_connection_next_request(struct ff_connection *connection)
{
    if (connection->state < FF_CONNECTION_PAYLOAD || connection->state > FF_CONNECTION_WAITING)
        return;
    ff_reader_hand_over_fds(&connection->reader);
    expect(connection, FF_CONNECTION_HEADER, sizeof(struct ff_frame));
}

bool ff_connection_is_owed(const struct ff_connection *connection)
{
    if (ff_connection_is_stranger(connection) || connection->state >= FF_CONNECTION_CLOSING)
        return false;
    return connection->state == FF_CONNECTION_WAITING || connection->child_count > 0 ||
           connection->dead != NULL || !outbox_is_empty(&connection->outbox);
}

unsigned ff_connection_interest(const struct ff_connection *connection)
{
    if (connection->stalled)
        return FF_HANGUP;
    if (!outbox_is_empty(&connection->outbox))
        return FF_WRITABLE;
    return connection->state == FF_CONNECTION_WAITING ? FF_HANGUP : FF_READABLE;
}

void ff_connection_shut(struct ff_connection *connection)
{
    connection->state = FF_CONNECTION_GONE;
    ff_reader_clear(&connection->reader);
    ff_close(&connection->outbox.fd);
    ff_close(&connection->sock);
}

void ff_connection_free(struct ff_connection *connection)
{
    while (connection->dead != NULL) {
        struct ff_child *child = connection->dead;

        connection->dead = child->next;
        ff_child_free(child);
    }
    ff_connection_shut(connection);
    free(connection);
}
