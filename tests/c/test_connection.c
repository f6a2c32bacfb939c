/* test_connection.c: one client's connection: each event in each state, as drawn in ff_connection.h. */
#include "ff_connection.h"
#include "ff_fd.h"
#include "ff_loop.h"
#define FAULTS_OF_CONNECTIONS_ALONE
#include "faults.h"
#include "handshake.h"

static const struct ff_config config = {
    .authkey = (const unsigned char *)AUTHKEY,
    .authkey_size = sizeof AUTHKEY - 1,
};

/* A connection, and the client's end of it. */
struct talk {
    struct ff_connection *connection;
    struct ff_status_board board; /* its counters alone: no page */
    int far;
    size_t junk; /* bytes that lie in the way of what the connection sends */
};

static void open_talk(struct talk *talk)
{
    int socks[2];

    make_pair(socks);
    CHECK_INT(ff_fd_set_nonblock(socks[0]), 0);
    talk->board = (struct ff_status_board){.fd = -1};
    CHECK_INT(ff_connection_open(socks[0], &talk->board, &talk->connection), 0);
    talk->far = socks[1];
    talk->junk = 0;
}

static void close_talk(struct talk *talk)
{
    ff_connection_free(talk->connection);
    CHECK_INT(close(talk->far), 0);
}

static enum ff_connection_state state(const struct talk *talk)
{
    return talk->connection->state;
}

static enum ff_connection_event read_on(struct talk *talk)
{
    return ff_connection_read(talk->connection, &config);
}

static void check_idle_in(struct talk *talk, enum ff_connection_state expected)
{
    CHECK_INT(read_on(talk), FF_CONNECTION_IDLE);
    CHECK_INT(state(talk), expected);
}

/* The whole handshake, with the connection reading after each message. */
static void authenticate_talk(struct talk *talk)
{
    answer_challenge(talk->far, AUTHKEY);
    check_idle_in(talk, FF_CONNECTION_AUTH_PREFIX);
    challenge_server(talk->far);
    check_idle_in(talk, FF_CONNECTION_AUTH_PREFIX);
    welcome_server(talk->far);
    check_idle_in(talk, FF_CONNECTION_HEADER);
}

static struct ff_frame request(uint32_t id, uint32_t payload_size, uint32_t fd_count)
{
    struct ff_frame frame = ff_frame_make(FF_FRAME_FORK, id, 0);

    frame.payload_size = payload_size;
    frame.fd_count = fd_count;
    return frame;
}

static void send_header(struct talk *talk, struct ff_frame frame)
{
    write_all(talk->far, &frame, sizeof frame);
}

/* Leave the socket no room for what the connection sends. */
static void fill_socket(struct talk *talk)
{
    char bytes[1024] = {0};
    int size = 1;
    ssize_t sent;

    CHECK_INT(setsockopt(talk->connection->sock, SOL_SOCKET, SO_SNDBUF, &size, sizeof size), 0);
    while ((sent = ff_msg_send(talk->connection->sock, bytes, sizeof bytes, NULL, 0)) > 0)
        talk->junk += (size_t)sent;
    CHECK_INT(sent, -EAGAIN);
}

static void take_junk(struct talk *talk)
{
    char byte;

    for (; talk->junk > 0; talk->junk--)
        read_all(talk->far, &byte, 1);
}

static void await_frame(struct talk *talk, enum ff_frame_type type, uint32_t id, int32_t value)
{
    struct ff_frame frame;
    int fd;

    CHECK_INT(ff_client_receive(talk->far, DEADLINE_MS, &frame, &fd), 1);
    CHECK_INT(frame.type, type);
    CHECK_INT(frame.id, id);
    CHECK_INT(frame.value, value);
    CHECK_INT(fd, -1);
}

/* A wrong frame, to a client that does not read: the refusal is stuck. */
static void be_closing(struct talk *talk)
{
    authenticate_talk(talk);
    fill_socket(talk);
    send_header(talk, (struct ff_frame){.id = 66});
    check_idle_in(talk, FF_CONNECTION_CLOSING);
}

#define LARGE_PAYLOAD 600 /* bytes: more than a reader takes without allocating */

static bool fault_has_struck;

/* The next of these calls fails. */
static void arm_fault(const char *call, int error)
{
    fault_has_struck = false;
    fault = (struct fault){.call = call, .error = error, .is_armed = true, .has_struck = &fault_has_struck};
}

/* There was no memory for the payload. */
static void be_skipping(struct talk *talk)
{
    send_header(talk, request(7, LARGE_PAYLOAD, 0));
    arm_fault("malloc", ENOMEM);
    check_idle_in(talk, FF_CONNECTION_SKIPPING);
    CHECK(fault_has_struck);
}

/* A whole request, for whose child there was no room. */
static void be_waiting(struct talk *talk)
{
    send_header(talk, request(7, 0, 0));
    CHECK_INT(read_on(talk), FF_CONNECTION_REQUEST);
    ff_connection_wait(talk->connection, 1);
}

static void be_gone(struct talk *talk)
{
    write_all(talk->far, "\0\0\0\0", FF_AUTH_PREFIX_SIZE); /* no length of a message */
    check_idle_in(talk, FF_CONNECTION_GONE);
}

static void open_in(struct talk *talk, enum ff_connection_state wanted)
{
    open_talk(talk);
    if (wanted == FF_CONNECTION_AUTH_MESSAGE)
        write_all(talk->far, "\0\0\0\x28", FF_AUTH_PREFIX_SIZE);
    if (wanted >= FF_CONNECTION_HEADER && wanted <= FF_CONNECTION_WAITING)
        authenticate_talk(talk);
    if (wanted == FF_CONNECTION_PAYLOAD)
        send_header(talk, request(7, 5, 0));
    if (wanted == FF_CONNECTION_SKIPPING)
        be_skipping(talk);
    if (wanted == FF_CONNECTION_WAITING)
        be_waiting(talk);
    if (wanted == FF_CONNECTION_CLOSING)
        be_closing(talk);
    if (wanted == FF_CONNECTION_GONE)
        be_gone(talk);
    check_idle_in(talk, wanted);
}

static const enum ff_connection_state reading_states[] = {
    FF_CONNECTION_AUTH_PREFIX,
    FF_CONNECTION_AUTH_MESSAGE,
    FF_CONNECTION_HEADER,
    FF_CONNECTION_PAYLOAD,
};
#define READING_STATES (sizeof reading_states / sizeof *reading_states)

static const size_t expected_bytes[] = {FF_AUTH_PREFIX_SIZE, 0x28, sizeof(struct ff_frame), 5};

/* ---- bytes ---- */

static void test_nothing_yet(void)
{
    for (size_t i = 0; i < READING_STATES; i++) {
        struct talk talk;

        open_in(&talk, reading_states[i]);
        CHECK_INT(ff_connection_interest(talk.connection), FF_READABLE);
        CHECK_INT(talk.connection->reader.need, expected_bytes[i]);
        close_talk(&talk);
    }
}

/* One byte less than the state expects changes nothing. */
static void test_part_of_what_is_expected(void)
{
    static const char bytes[64] = {0};

    for (size_t i = 0; i < READING_STATES; i++) {
        struct talk talk;

        open_in(&talk, reading_states[i]);
        write_all(talk.far, bytes, expected_bytes[i] - 1);
        check_idle_in(&talk, reading_states[i]);
        CHECK_INT(talk.connection->reader.have, expected_bytes[i] - 1);
        close_talk(&talk);
    }
}

/* The whole of a client's part, one byte at a time. */
static void trickle(struct talk *talk, const void *bytes, size_t size)
{
    for (size_t i = 0; i < size; i++) {
        CHECK_INT(read_on(talk), FF_CONNECTION_IDLE);
        write_all(talk->far, (const char *)bytes + i, 1);
    }
}

static void test_request_one_byte_at_a_time(void)
{
    struct ff_frame frame = request(7, 5, 0);
    struct talk talk;

    open_in(&talk, FF_CONNECTION_HEADER);
    trickle(&talk, &frame, sizeof frame);
    trickle(&talk, "hello", 5);
    CHECK_INT(read_on(&talk), FF_CONNECTION_REQUEST);
    CHECK_INT(talk.connection->header.id, 7);
    CHECK_MEM(talk.connection->reader.bytes, "hello", 5);
    ff_connection_next_request(talk.connection);
    CHECK_INT(state(&talk), FF_CONNECTION_HEADER);
    close_talk(&talk);
}

/* A client may send several; each read gives one, so that no client keeps the others waiting. */
static void test_requests_in_a_row(void)
{
    struct talk talk;

    open_in(&talk, FF_CONNECTION_HEADER);
    for (uint32_t id = 0; id < 5; id++) {
        send_header(&talk, request(id, id, 0));
        write_all(talk.far, "payload", id);
    }
    for (uint32_t id = 0; id < 5; id++) {
        CHECK_INT(read_on(&talk), FF_CONNECTION_REQUEST);
        CHECK_INT(talk.connection->header.id, id);
        CHECK_MEM(talk.connection->reader.bytes, "payload", id);
        ff_connection_next_request(talk.connection);
    }
    check_idle_in(&talk, FF_CONNECTION_HEADER);
    close_talk(&talk);
}

static void test_fds_of_a_request(void)
{
    struct ff_frame frame = request(7, 0, 2);
    struct talk talk;
    int ends[2];

    make_pipe(ends);
    open_in(&talk, FF_CONNECTION_HEADER);
    CHECK_INT(ff_msg_send(talk.far, &frame, sizeof frame, (int[]){ends[1], ends[1]}, 2), sizeof frame);
    CHECK_INT(close(ends[1]), 0);
    CHECK_INT(read_on(&talk), FF_CONNECTION_REQUEST);
    CHECK_INT(talk.connection->reader.fd_count, 2);
    CHECK(!is_readable(ends[0]));
    ff_connection_next_request(talk.connection);
    await_end(ends[0]);
    CHECK_INT(close(ends[0]), 0);
    close_talk(&talk);
}

/* ---- a client without the key ---- */

static void test_wrong_key(void)
{
    struct talk talk;

    open_talk(&talk);
    answer_challenge(talk.far, "another key");
    check_idle_in(&talk, FF_CONNECTION_GONE);
    await_message(talk.far, FAILURE, strlen(FAILURE));
    close_talk(&talk);
}

/* The server is not challenged before the client has shown that it knows the key. */
static void test_challenge_instead_of_answer(void)
{
    struct talk talk;
    unsigned char challenge[FF_AUTH_MAX_MESSAGE];

    open_talk(&talk);
    CHECK_INT(receive_message(talk.far, challenge), 59);
    send_message(talk.far, CHALLENGE CHALLENGE_BODY, strlen(CHALLENGE CHALLENGE_BODY));
    check_idle_in(&talk, FF_CONNECTION_GONE);
    await_message(talk.far, FAILURE, strlen(FAILURE));
    close_talk(&talk);
}

/* A stranger's length is not worth an answer, and no reason to allocate. */
static void test_wrong_prefixes(void)
{
    static const char prefixes[][FF_AUTH_PREFIX_SIZE + 1] = {"\0\0\0\0", "\0\0\x01\x01", "\xff\xff\xff\xff",
                                                             "FFRK"};

    for (size_t i = 0; i < sizeof prefixes / sizeof *prefixes; i++) {
        struct talk talk;

        open_talk(&talk);
        write_all(talk.far, prefixes[i], FF_AUTH_PREFIX_SIZE);
        check_idle_in(&talk, FF_CONNECTION_GONE);
        close_talk(&talk);
    }
}

/* ---- refusals ---- */

/* The cause is told, what came with the frame is closed, and that is the end. */
static void check_refused(struct ff_frame frame, const void *payload, size_t payload_size, size_t fd_count,
                          enum ff_refusal cause)
{
    struct talk talk;
    int ends[2];
    int fds[2];

    make_pipe(ends);
    fds[0] = fds[1] = ends[1];
    open_in(&talk, FF_CONNECTION_HEADER);
    CHECK_INT(ff_msg_send(talk.far, &frame, sizeof frame, fds, fd_count), sizeof frame);
    write_all(talk.far, payload, payload_size);
    CHECK_INT(close(ends[1]), 0);
    check_idle_in(&talk, FF_CONNECTION_GONE);
    await_end(ends[0]);
    await_frame(&talk, FF_FRAME_REFUSED, frame.id, (int32_t)cause);
    CHECK_INT(close(ends[0]), 0);
    close_talk(&talk);
}

static void test_refused_heads(void)
{
    struct ff_frame frame = request(3, 0, 1);

    frame.magic = 0;
    check_refused(frame, "", 0, 1, FF_REFUSED_MAGIC);
    frame = request(3, 0, 1);
    frame.version = FF_PROTOCOL_VERSION + 1;
    check_refused(frame, "", 0, 1, FF_REFUSED_VERSION);
    frame = request(3, 0, 1);
    frame.type = FF_FRAME_STARTED;
    check_refused(frame, "", 0, 1, FF_REFUSED_TYPE);
    frame = request(3, 0, 1);
    frame.value = 64;
    check_refused(frame, "", 0, 1, FF_REFUSED_TYPE);
}

static void test_refused_numbers(void)
{
    check_refused(request(3, FF_MAX_PAYLOAD + 1, 1), "", 0, 1, FF_REFUSED_PAYLOAD);
    check_refused(request(3, 0, FF_MAX_FDS + 1), "", 0, 1, FF_REFUSED_FDS);
    check_refused(request(3, 5, 2), "hello", 5, 1, FF_REFUSED_FDS);
    check_refused(request(3, 5, 1), "hello", 5, 2, FF_REFUSED_FDS);
    check_refused(request(3, 0, 1), "", 0, 0, FF_REFUSED_FDS);
    check_refused(request(3, 0, 0), "", 0, 1, FF_REFUSED_FDS);
}

/* More than a reader holds: two messages of as many as the kernel takes. */
static void send_too_many_fds(struct talk *talk)
{
    int fds[FF_MAX_FDS_PER_MESSAGE] = {0};

    for (int i = 0; i < 2; i++)
        CHECK_INT(ff_msg_send(talk->far, "x", 1, fds, FF_MAX_FDS_PER_MESSAGE), 1);
}

/* Who speaks frames is told why; who does not know the key yet is not. */
static void test_too_many_fds(void)
{
    for (size_t i = 0; i < READING_STATES; i++) {
        struct talk talk;

        open_in(&talk, reading_states[i]);
        send_too_many_fds(&talk);
        check_idle_in(&talk, FF_CONNECTION_GONE);
        if (reading_states[i] == FF_CONNECTION_PAYLOAD)
            await_frame(&talk, FF_FRAME_REFUSED, 7, FF_REFUSED_FDS);
        if (reading_states[i] == FF_CONNECTION_HEADER)
            await_frame(&talk, FF_FRAME_REFUSED, 0, FF_REFUSED_FDS);
        close_talk(&talk);
    }
}

/* The server's own lack of descriptors fails that request, and the connection goes on. */
static void test_lost_fds(void)
{
    struct ff_frame frame = request(7, 0, 2);
    struct rlimit before;
    struct talk talk;

    open_in(&talk, FF_CONNECTION_HEADER);
    CHECK_INT(ff_msg_send(talk.far, &frame, sizeof frame, (int[]){0, 0}, 2), sizeof frame);
    before = leave_fds(1);
    check_idle_in(&talk, FF_CONNECTION_HEADER);
    CHECK_INT(setrlimit(RLIMIT_NOFILE, &before), 0);
    await_frame(&talk, FF_FRAME_FAILED, 7, EMFILE);
    CHECK_INT(talk.connection->reader.fd_count, 0);
    CHECK_INT(ff_msg_send(talk.far, &frame, sizeof frame, (int[]){0, 0}, 2), sizeof frame);
    CHECK_INT(read_on(&talk), FF_CONNECTION_REQUEST);
    close_talk(&talk);
}

/* ---- the end of the stream ---- */

static void test_end_of_stream(void)
{
    for (size_t i = 0; i < READING_STATES; i++) {
        struct talk talk;

        open_in(&talk, reading_states[i]);
        CHECK_INT(shutdown(talk.far, SHUT_WR), 0);
        check_idle_in(&talk, FF_CONNECTION_GONE);
        close_talk(&talk);
    }
}

static void test_client_gone_while_closing(void)
{
    struct talk talk;

    open_in(&talk, FF_CONNECTION_CLOSING);
    CHECK_INT(close(talk.far), 0);
    check_idle_in(&talk, FF_CONNECTION_CLOSING);
    ff_connection_flush(talk.connection);
    CHECK_INT(state(&talk), FF_CONNECTION_GONE);
    talk.far = dup(0);
    close_talk(&talk);
}

static void test_client_gone_before_answer(void)
{
    struct talk talk;

    open_in(&talk, FF_CONNECTION_HEADER);
    CHECK_INT(close(talk.far), 0);
    ff_connection_post(talk.connection, ff_frame_make(FF_FRAME_STARTED, 1, 1), dup(0));
    CHECK_INT(state(&talk), FF_CONNECTION_GONE);
    talk.far = dup(0);
    close_talk(&talk);
}

/* ---- answers ---- */

static void post_exit(struct talk *talk, uint32_t id, int exit_code)
{
    struct ff_child *child = ff_child_new(talk->connection, id);

    CHECK(child != NULL);
    child->exit_code = exit_code;
    ff_connection_post_exit(talk->connection, child);
    ff_connection_flush(talk->connection);
}

static void test_usage_comes_with_the_exit(void)
{
    struct ff_frame frame;
    struct ff_child *child;
    struct talk talk;
    int fd;

    open_in(&talk, FF_CONNECTION_HEADER);
    child = ff_child_new(talk.connection, 1);
    CHECK(child != NULL);
    child->usage.ru_utime = (struct timeval){.tv_sec = 1, .tv_usec = 2000};
    child->usage.ru_stime = (struct timeval){.tv_sec = 2, .tv_usec = 999999};
    child->usage.ru_maxrss = 5000;
    ff_connection_post_exit(talk.connection, child);
    ff_connection_flush(talk.connection);
    CHECK_INT(ff_client_receive(talk.far, DEADLINE_MS, &frame, &fd), 1);
    CHECK_INT(frame.type, FF_FRAME_EXITED);
    CHECK_INT(frame.cpu_ms, 4001);
    CHECK_INT(frame.peak_memory, 5000);
    close_talk(&talk);
}

/* A child may die in the middle of the next request. */
static void test_exits(void)
{
    const enum ff_connection_state states[] = {FF_CONNECTION_HEADER, FF_CONNECTION_PAYLOAD};

    for (int i = 0; i < 2; i++) {
        struct talk talk;

        open_in(&talk, states[i]);
        post_exit(&talk, 1, -9);
        post_exit(&talk, 2, 3);
        CHECK_INT(state(&talk), states[i]);
        await_frame(&talk, FF_FRAME_EXITED, 1, -9);
        await_frame(&talk, FF_FRAME_EXITED, 2, 3);
        close_talk(&talk);
    }
}

/* Nobody is told any more; the record is freed with the connection. */
static void test_exits_at_the_end(void)
{
    const enum ff_connection_state states[] = {FF_CONNECTION_CLOSING, FF_CONNECTION_GONE};

    for (int i = 0; i < 2; i++) {
        struct talk talk;

        open_in(&talk, states[i]);
        post_exit(&talk, 1, -9);
        CHECK_INT(state(&talk), states[i]);
        CHECK(talk.connection->dead != NULL);
        close_talk(&talk);
    }
}

/* The descriptor goes with the frame, and the connection's own copy is closed. */
static void test_pidfd_travels(void)
{
    struct ff_frame frame;
    struct talk talk;
    int ends[2];
    int fd;

    make_pipe(ends);
    open_in(&talk, FF_CONNECTION_HEADER);
    ff_connection_post(talk.connection, ff_frame_make(FF_FRAME_STARTED, 4, 1234), ends[1]);
    CHECK(!check_fd_is_open(ends[1]));
    CHECK_INT(ff_client_receive(talk.far, DEADLINE_MS, &frame, &fd), 1);
    CHECK_INT(frame.fd_count, 1);
    CHECK_INT(close(fd), 0);
    await_end(ends[0]);
    CHECK_INT(close(ends[0]), 0);
    close_talk(&talk);
}

/* ---- a client that does not read ---- */

/* As long as an answer is stuck nothing is read, and what waits goes out in order as soon as there is room. */
static void test_slow_reader(void)
{
    struct talk talk;

    open_in(&talk, FF_CONNECTION_HEADER);
    fill_socket(&talk);
    ff_connection_post(talk.connection, ff_frame_make(FF_FRAME_STARTED, 1, 1234), -1);
    CHECK_INT(ff_connection_interest(talk.connection), FF_WRITABLE);
    post_exit(&talk, 1, 7);
    post_exit(&talk, 2, 8);
    send_header(&talk, request(3, 0, 0));
    check_idle_in(&talk, FF_CONNECTION_HEADER);
    CHECK_INT(talk.connection->reader.have, 0);
    take_junk(&talk);
    ff_connection_flush(talk.connection);
    CHECK_INT(ff_connection_interest(talk.connection), FF_READABLE);
    await_frame(&talk, FF_FRAME_STARTED, 1, 1234);
    await_frame(&talk, FF_FRAME_EXITED, 1, 7);
    await_frame(&talk, FF_FRAME_EXITED, 2, 8);
    CHECK_INT(read_on(&talk), FF_CONNECTION_REQUEST);
    CHECK_INT(talk.connection->header.id, 3);
    close_talk(&talk);
}

static void test_refusal_of_slow_reader(void)
{
    struct talk talk;

    open_in(&talk, FF_CONNECTION_CLOSING);
    CHECK_INT(ff_connection_interest(talk.connection), FF_WRITABLE);
    send_header(&talk, request(3, 0, 0));
    check_idle_in(&talk, FF_CONNECTION_CLOSING);
    take_junk(&talk);
    ff_connection_flush(talk.connection);
    CHECK_INT(state(&talk), FF_CONNECTION_GONE);
    await_frame(&talk, FF_FRAME_REFUSED, 66, FF_REFUSED_MAGIC);
    close_talk(&talk);
}

/* All that is stuck belongs to the connection. */
static void test_freed_while_stuck(void)
{
    struct talk talk;
    int ends[2];

    make_pipe(ends);
    open_in(&talk, FF_CONNECTION_PAYLOAD);
    fill_socket(&talk);
    ff_connection_post(talk.connection, ff_frame_make(FF_FRAME_STARTED, 1, 1234), ends[1]);
    post_exit(&talk, 1, 7);
    close_talk(&talk);
    await_end(ends[0]);
    CHECK_INT(close(ends[0]), 0);
}

/* ---- every event in every state ---- */

/* A message that is none: more than any state expects. */
static void send_garbage(struct talk *talk)
{
    char bytes[LARGE_PAYLOAD];

    memset(bytes, 0xff, sizeof bytes);
    write_all(talk->far, bytes, sizeof bytes);
    read_on(talk);
}

static void send_a_byte(struct talk *talk)
{
    write_all(talk->far, "", 1);
    CHECK_INT(read_on(talk), FF_CONNECTION_IDLE);
}

static void send_fds(struct talk *talk)
{
    send_too_many_fds(talk);
    CHECK_INT(read_on(talk), FF_CONNECTION_IDLE);
}

static bool is_reading(const struct talk *talk)
{
    return state(talk) < FF_CONNECTION_WAITING;
}

static void send_an_fd(struct talk *talk)
{
    bool is_read = is_reading(talk);

    CHECK_INT(ff_msg_send(talk->far, "", 1, (int[]){0}, 1), 1);
    CHECK_INT(read_on(talk), FF_CONNECTION_IDLE);
    CHECK_INT(talk->connection->reader.fd_count, is_read);
}

/* Another try, as by the server after a while. */
static void try_again(struct talk *talk)
{
    talk->connection->stalled = false;
    ff_connection_flush(talk->connection);
    CHECK_INT(read_on(talk), FF_CONNECTION_IDLE);
}

static void lack_memory_to_read(struct talk *talk)
{
    bool was_reading = is_reading(talk);
    size_t had = talk->connection->reader.have;

    write_all(talk->far, "", 1);
    arm_fault("recvmsg", ENOMEM);
    CHECK_INT(read_on(talk), FF_CONNECTION_IDLE);
    fault.is_armed = false;
    CHECK_INT(fault_has_struck, was_reading);
    CHECK_INT(talk->connection->stalled, was_reading);
    if (was_reading)
        CHECK_INT(ff_connection_interest(talk->connection), FF_HANGUP);
    try_again(talk);
    CHECK_INT(talk->connection->reader.have, had + was_reading);
}

static void end_stream(struct talk *talk)
{
    CHECK_INT(shutdown(talk->far, SHUT_WR), 0);
    CHECK_INT(read_on(talk), FF_CONNECTION_IDLE);
}

static void lose_child(struct talk *talk)
{
    post_exit(talk, 1, 7);
}

/* What one that is closing has to send is stuck already. */
static void lack_memory_to_send(struct talk *talk)
{
    arm_fault("sendmsg", ENOBUFS);
    post_exit(talk, 1, 7);
    fault.is_armed = false;
    CHECK_INT(fault_has_struck, state(talk) != FF_CONNECTION_GONE);
    CHECK_INT(talk->connection->stalled, fault_has_struck);
    try_again(talk);
}

/* Its client reads only after all that. */
static void be_full(struct talk *talk)
{
    size_t had = talk->connection->reader.have;

    if (state(talk) < FF_CONNECTION_CLOSING)
        fill_socket(talk);
    post_exit(talk, 1, 7);
    write_all(talk->far, "", 1);
    CHECK_INT(read_on(talk), FF_CONNECTION_IDLE);
    CHECK_INT(talk->connection->reader.have, had);
    if (state(talk) >= FF_CONNECTION_CLOSING)
        return;
    CHECK_INT(ff_connection_interest(talk->connection), FF_WRITABLE);
    take_junk(talk);
    ff_connection_flush(talk->connection);
}

static void hang_up(struct talk *talk)
{
    ff_connection_hang_up(talk->connection);
}

static void dismiss(struct talk *talk)
{
    ff_connection_dismiss(talk->connection, FF_REFUSED_CLIENTS);
}

/* For what has begun, all the time that it has. */
static bool let_time_pass(struct talk *talk)
{
    bool is_timed = ff_connection_note_time(talk->connection);

    CHECK(!ff_connection_check_time(talk->connection));
    if (is_timed)
        talk->connection->began -= 1e-3 * FF_REQUEST_MS;
    return ff_connection_check_time(talk->connection);
}

static void be_late(struct talk *talk)
{
    let_time_pass(talk);
}

static void finish_request(struct talk *talk)
{
    ff_connection_next_request(talk->connection);
}

static void flush(struct talk *talk)
{
    ff_connection_flush(talk->connection);
}

#define AUTH_PREFIX FF_CONNECTION_AUTH_PREFIX
#define AUTH_MESSAGE FF_CONNECTION_AUTH_MESSAGE
#define HEADER FF_CONNECTION_HEADER
#define PAYLOAD FF_CONNECTION_PAYLOAD
#define SKIPPING FF_CONNECTION_SKIPPING
#define WAITING FF_CONNECTION_WAITING
#define CLOSING FF_CONNECTION_CLOSING
#define GONE FF_CONNECTION_GONE
#define STATES (GONE + 1)

#define HEARS_FAILURE (-1) /* multiprocessing's word for a wrong key, and no frame */

/* What comes of an event. */
struct outcome {
    enum ff_connection_state after;
    int heard;               /* ff_frame_type; 0: nothing; or HEARS_FAILURE */
    int value;               /* of that frame */
    enum ff_refusal counted; /* 0: none */
};

#define STAYS(state) {(state), 0, 0, 0}
#define HEARS(state, type, value) {(state), (type), (value), 0}
#define LEAVES {GONE, 0, 0, 0}
#define DISMISSED(cause) {GONE, 0, 0, (cause)}
#define REFUSED(cause) {GONE, FF_FRAME_REFUSED, (cause), (cause)}
#define NO_KEY {GONE, HEARS_FAILURE, 0, FF_REFUSED_KEY}
#define EXIT(state) HEARS(state, FF_FRAME_EXITED, 7)

/* For each state before the event. A CLOSING connection here is one whose client does not read. */
static const struct {
    const char *name;
    void (*happen)(struct talk *talk);
    struct outcome outcomes[STATES];
} transitions[] = {
    {"a byte",
     send_a_byte,
     {STAYS(AUTH_PREFIX), STAYS(AUTH_MESSAGE), STAYS(HEADER), STAYS(PAYLOAD), STAYS(SKIPPING), STAYS(WAITING),
      STAYS(CLOSING), STAYS(GONE)}},
    {"garbage",
     send_garbage,
     {DISMISSED(FF_REFUSED_KEY), NO_KEY, REFUSED(FF_REFUSED_MAGIC), STAYS(PAYLOAD),
      HEARS(HEADER, FF_FRAME_FAILED, ENOMEM), STAYS(WAITING), STAYS(CLOSING), STAYS(GONE)}},
    {"a descriptor",
     send_an_fd,
     {DISMISSED(FF_REFUSED_FDS), DISMISSED(FF_REFUSED_FDS), STAYS(HEADER), STAYS(PAYLOAD), STAYS(SKIPPING),
      STAYS(WAITING), STAYS(CLOSING), STAYS(GONE)}},
    {"too many descriptors",
     send_fds,
     {DISMISSED(FF_REFUSED_FDS), DISMISSED(FF_REFUSED_FDS), REFUSED(FF_REFUSED_FDS), REFUSED(FF_REFUSED_FDS),
      REFUSED(FF_REFUSED_FDS), STAYS(WAITING), STAYS(CLOSING), STAYS(GONE)}},
    {"end of stream",
     end_stream,
     {LEAVES, LEAVES, LEAVES, LEAVES, LEAVES, STAYS(WAITING), STAYS(CLOSING), STAYS(GONE)}},
    {"death",
     lose_child,
     {EXIT(AUTH_PREFIX), EXIT(AUTH_MESSAGE), EXIT(HEADER), EXIT(PAYLOAD), EXIT(SKIPPING), EXIT(WAITING),
      STAYS(CLOSING), STAYS(GONE)}},
    {"a full socket",
     be_full,
     {EXIT(AUTH_PREFIX), EXIT(AUTH_MESSAGE), EXIT(HEADER), EXIT(PAYLOAD), EXIT(SKIPPING), EXIT(WAITING),
      STAYS(CLOSING), STAYS(GONE)}},
    {"no memory to read",
     lack_memory_to_read,
     {STAYS(AUTH_PREFIX), STAYS(AUTH_MESSAGE), STAYS(HEADER), STAYS(PAYLOAD), STAYS(SKIPPING), STAYS(WAITING),
      STAYS(CLOSING), STAYS(GONE)}},
    {"no memory to send",
     lack_memory_to_send,
     {EXIT(AUTH_PREFIX), EXIT(AUTH_MESSAGE), EXIT(HEADER), EXIT(PAYLOAD), EXIT(SKIPPING), EXIT(WAITING),
      STAYS(CLOSING), STAYS(GONE)}},
    {"hang-up",
     hang_up,
     {STAYS(AUTH_PREFIX), STAYS(AUTH_MESSAGE), STAYS(HEADER), STAYS(PAYLOAD), STAYS(SKIPPING), LEAVES,
      STAYS(CLOSING), STAYS(GONE)}},
    {"dismissal",
     dismiss,
     {DISMISSED(FF_REFUSED_CLIENTS), DISMISSED(FF_REFUSED_CLIENTS), DISMISSED(FF_REFUSED_CLIENTS),
      DISMISSED(FF_REFUSED_CLIENTS), DISMISSED(FF_REFUSED_CLIENTS), DISMISSED(FF_REFUSED_CLIENTS),
      DISMISSED(FF_REFUSED_CLIENTS), DISMISSED(FF_REFUSED_CLIENTS)}},
    {"end of time",
     be_late,
     {STAYS(AUTH_PREFIX), STAYS(AUTH_MESSAGE), STAYS(HEADER), REFUSED(FF_REFUSED_TIME),
      REFUSED(FF_REFUSED_TIME), STAYS(WAITING), STAYS(CLOSING), STAYS(GONE)}},
    {"end of request",
     finish_request,
     {STAYS(AUTH_PREFIX), STAYS(AUTH_MESSAGE), STAYS(HEADER), STAYS(HEADER), STAYS(HEADER), STAYS(HEADER),
      STAYS(CLOSING), STAYS(GONE)}},
    {"room to send",
     flush,
     {STAYS(AUTH_PREFIX), STAYS(AUTH_MESSAGE), STAYS(HEADER), STAYS(PAYLOAD), STAYS(SKIPPING), STAYS(WAITING),
      STAYS(CLOSING), STAYS(GONE)}},
};

/* What the client has heard and not read yet: how much. */
static size_t hear(struct talk *talk, unsigned char ret_bytes[sizeof(struct ff_auth_message)])
{
    ssize_t received = recv(talk->far, ret_bytes, sizeof(struct ff_auth_message), MSG_DONTWAIT);

    CHECK(received > 0 || (received < 0 && errno == EAGAIN));
    return received < 0 ? 0 : (size_t)received;
}

static void check_heard(struct talk *talk, const struct outcome *expected)
{
    unsigned char bytes[sizeof(struct ff_auth_message)];
    size_t size = hear(talk, bytes);
    struct ff_frame frame;

    if (expected->heard == 0) {
        CHECK_INT(size, 0);
    } else if (expected->heard == HEARS_FAILURE) {
        CHECK_INT(size, FF_AUTH_PREFIX_SIZE + strlen(FAILURE));
        CHECK_MEM(bytes + FF_AUTH_PREFIX_SIZE, FAILURE, strlen(FAILURE));
    } else {
        CHECK_INT(size, sizeof frame);
        memcpy(&frame, bytes, sizeof frame);
        CHECK_INT(frame.type, expected->heard);
        CHECK_INT(frame.value, expected->value);
    }
}

static void check_counted(const struct talk *talk, enum ff_refusal counted)
{
    for (int cause = 0; cause < FF_REFUSED_CAUSES; cause++)
        CHECK_INT(talk->board.counts.refused[cause], cause != 0 && cause == (int)counted);
}

/* One that waits is not read: only its end is of interest. */
static unsigned interest_in(enum ff_connection_state state_after)
{
    if (state_after == CLOSING)
        return FF_WRITABLE;
    return state_after == WAITING ? FF_HANGUP : FF_READABLE;
}

/* One that is closing has told its client nothing that could be told from what lies in the way. */
static void try_transition(void (*happen)(struct talk *talk), enum ff_connection_state before,
                           const struct outcome *expected)
{
    unsigned char bytes[sizeof(struct ff_auth_message)];
    struct talk talk;

    open_in(&talk, before);
    while (before != CLOSING && hear(&talk, bytes) > 0)
        continue;
    memset(talk.board.counts.refused, 0, sizeof talk.board.counts.refused);
    happen(&talk);
    CHECK_INT(state(&talk), expected->after);
    if (before != CLOSING)
        check_heard(&talk, expected);
    check_counted(&talk, expected->counted);
    if (expected->after != GONE)
        CHECK_INT(ff_connection_interest(talk.connection), interest_in(expected->after));
    close_talk(&talk);
}

static void test_every_event_in_every_state(void)
{
    const char *test = check_name;

    for (size_t i = 0; i < sizeof transitions / sizeof *transitions; i++) {
        for (int before = 0; before < STATES; before++) {
            char name[64];

            snprintf(name, sizeof name, "%s in state %d", transitions[i].name, before);
            check_name = name;
            try_transition(transitions[i].happen, (enum ff_connection_state)before,
                           &transitions[i].outcomes[before]);
            check_name = test;
        }
    }
}

/* A spare has got the request of one that waits, and its client another child, which dies. */
static void be_handed(struct talk *talk, struct ff_child *spare)
{
    open_in(talk, WAITING);
    talk->connection->spare = spare;
    CHECK(!ff_connection_may_go_on(talk->connection));
    post_exit(talk, 1, 7);
    CHECK(!is_readable(talk->far));
    CHECK_INT(ff_connection_interest(talk->connection), FF_HANGUP);
    talk->connection->spare = NULL;
}

/* The answer comes first, then the exit that has waited for it, then the next request. */
static void check_goes_on(struct talk *talk, enum ff_frame_type type, int32_t value)
{
    ff_connection_next_request(talk->connection);
    CHECK_INT(state(talk), HEADER);
    await_frame(talk, type, 7, value);
    await_frame(talk, FF_FRAME_EXITED, 1, 7);
    send_header(talk, request(8, 0, 0));
    CHECK_INT(read_on(talk), FF_CONNECTION_REQUEST);
    close_talk(talk);
}

static void test_spare_that_begins(void)
{
    struct ff_child spare = {0};
    struct talk talk;

    be_handed(&talk, &spare);
    ff_connection_post(talk.connection, ff_frame_make(FF_FRAME_STARTED, 7, 1234), -1);
    check_goes_on(&talk, FF_FRAME_STARTED, 1234);
}

static void test_spare_that_cannot_begin(void)
{
    struct ff_child spare = {0};
    struct talk talk;

    be_handed(&talk, &spare);
    ff_connection_post_unfit(talk.connection, (struct ff_unfit){.error = EPERM, .option = FF_OPTION_NICE});
    CHECK_INT(talk.board.counts.failures[EPERM], 1);
    check_goes_on(&talk, FF_FRAME_FAILED, EPERM);
}

/* The request is for a fork, whose answer comes as that of any. */
static void test_spare_that_dies(void)
{
    struct ff_child spare = {0};
    struct talk talk;

    be_handed(&talk, &spare);
    CHECK(ff_connection_may_go_on(talk.connection));
    CHECK_INT(state(&talk), WAITING);
    ff_connection_post(talk.connection, ff_frame_make(FF_FRAME_STARTED, 7, 1234), -1);
    check_goes_on(&talk, FF_FRAME_STARTED, 1234);
}

static void open_amid_header(struct talk *talk)
{
    open_in(talk, FF_CONNECTION_HEADER);
    send_a_byte(talk);
}

/* Who begins a request and does not end it is refused, and hears why. */
static void test_time_of_a_request(void)
{
    struct talk talk;

    open_amid_header(&talk);
    CHECK(let_time_pass(&talk));
    CHECK_INT(state(&talk), FF_CONNECTION_GONE);
    CHECK_INT(talk.board.counts.refused[FF_REFUSED_TIME], 1);
    await_frame(&talk, FF_FRAME_REFUSED, 0, FF_REFUSED_TIME);
    close_talk(&talk);
}

/* The server has not come to read for long: what is there by now may be the end of it. */
static void test_time_of_a_request_that_has_not_been_read(void)
{
    struct talk talk;

    open_amid_header(&talk);
    write_all(talk.far, "", 1);
    CHECK(!let_time_pass(&talk));
    check_idle_in(&talk, FF_CONNECTION_HEADER);
    CHECK(ff_connection_check_time(talk.connection));
    close_talk(&talk);
}

/* While an exit is stuck nothing is read: its client's time does not go on, and it is told of the exit. */
static void test_time_while_an_exit_is_stuck(void)
{
    struct talk talk;

    open_amid_header(&talk);
    fill_socket(&talk);
    post_exit(&talk, 5, 7);
    CHECK(!let_time_pass(&talk));
    take_junk(&talk);
    ff_connection_flush(talk.connection);
    await_frame(&talk, FF_FRAME_EXITED, 5, 7);
    CHECK(let_time_pass(&talk));
    await_frame(&talk, FF_FRAME_REFUSED, 0, FF_REFUSED_TIME);
    close_talk(&talk);
}

/* The loop has to know that it is to be written to. */
static void test_time_of_slow_reader(void)
{
    struct talk talk;

    open_amid_header(&talk);
    fill_socket(&talk);
    CHECK(let_time_pass(&talk));
    CHECK_INT(state(&talk), FF_CONNECTION_CLOSING);
    CHECK_INT(ff_connection_interest(talk.connection), FF_WRITABLE);
    take_junk(&talk);
    ff_connection_flush(talk.connection);
    await_frame(&talk, FF_FRAME_REFUSED, 0, FF_REFUSED_TIME);
    CHECK_INT(state(&talk), FF_CONNECTION_GONE);
    close_talk(&talk);
}

/* A payload without memory fails alone; its descriptors are closed, the next request is read. */
static void test_skipped_payload(void)
{
    struct ff_frame frame = request(8, 0, 0);
    struct talk talk;

    open_in(&talk, SKIPPING);
    send_garbage(&talk);
    CHECK_INT(state(&talk), HEADER);
    await_frame(&talk, FF_FRAME_FAILED, 7, ENOMEM);
    CHECK_INT(talk.board.counts.failures[ENOMEM], 1);
    send_header(&talk, frame);
    CHECK_INT(read_on(&talk), FF_CONNECTION_REQUEST);
    CHECK_INT(talk.connection->header.id, 8);
    close_talk(&talk);
}

/* One that waits is told of the deaths of its other children, and goes on once that is out. */
static void test_waiting(void)
{
    struct talk talk;

    open_in(&talk, WAITING);
    CHECK_INT(ff_connection_interest(talk.connection), FF_HANGUP);
    CHECK(ff_connection_may_go_on(talk.connection));
    CHECK(ff_connection_is_owed(talk.connection));
    fill_socket(&talk);
    post_exit(&talk, 1, 7);
    CHECK(!ff_connection_may_go_on(talk.connection));
    CHECK_INT(ff_connection_interest(talk.connection), FF_WRITABLE);
    take_junk(&talk);
    ff_connection_flush(talk.connection);
    CHECK(ff_connection_may_go_on(talk.connection));
    await_frame(&talk, FF_FRAME_EXITED, 1, 7);
    close_talk(&talk);
}

static void test_owed(void)
{
    struct talk talk;

    open_in(&talk, AUTH_MESSAGE);
    CHECK(ff_connection_is_stranger(talk.connection));
    CHECK(!ff_connection_is_owed(talk.connection));
    close_talk(&talk);
    open_in(&talk, HEADER);
    CHECK(!ff_connection_is_stranger(talk.connection));
    CHECK(!ff_connection_is_owed(talk.connection));
    talk.connection->child_count = 1;
    CHECK(ff_connection_is_owed(talk.connection));
    talk.connection->child_count = 0;
    fill_socket(&talk);
    post_exit(&talk, 1, 7);
    CHECK(ff_connection_is_owed(talk.connection));
    close_talk(&talk);
}

static void test_status_request(void)
{
    struct ff_frame frame = request(9, 0, 0);
    struct talk talk;

    frame.type = FF_FRAME_STATUS;
    open_in(&talk, HEADER);
    send_header(&talk, frame);
    CHECK_INT(read_on(&talk), FF_CONNECTION_STATUS);
    ff_connection_post_failure(talk.connection, ENOSYS);
    await_frame(&talk, FF_FRAME_FAILED, 9, ENOSYS);
    CHECK_INT(talk.board.counts.failures[ENOSYS], 0); /* it was no start */
    close_talk(&talk);
}

int main(void)
{
    RUN(test_every_event_in_every_state);
    RUN(test_spare_that_begins);
    RUN(test_spare_that_cannot_begin);
    RUN(test_spare_that_dies);
    RUN(test_time_of_a_request);
    RUN(test_time_of_a_request_that_has_not_been_read);
    RUN(test_time_while_an_exit_is_stuck);
    RUN(test_time_of_slow_reader);
    RUN(test_skipped_payload);
    RUN(test_waiting);
    RUN(test_owed);
    RUN(test_status_request);
    RUN(test_nothing_yet);
    RUN(test_part_of_what_is_expected);
    RUN(test_request_one_byte_at_a_time);
    RUN(test_requests_in_a_row);
    RUN(test_fds_of_a_request);
    RUN(test_wrong_key);
    RUN(test_challenge_instead_of_answer);
    RUN(test_wrong_prefixes);
    RUN(test_refused_heads);
    RUN(test_refused_numbers);
    RUN(test_too_many_fds);
    RUN(test_lost_fds);
    RUN(test_end_of_stream);
    RUN(test_client_gone_while_closing);
    RUN(test_client_gone_before_answer);
    RUN(test_exits);
    RUN(test_usage_comes_with_the_exit);
    RUN(test_exits_at_the_end);
    RUN(test_pidfd_travels);
    RUN(test_slow_reader);
    RUN(test_refusal_of_slow_reader);
    RUN(test_freed_while_stuck);
    return 0;
}
