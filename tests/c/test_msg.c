/* test_msg.c: bytes and descriptors on a stream socket, and the layout of frames. */
#include "ff_fd.h"
#include "ff_msg.h"
#include "io.h"

#include <stddef.h>

/* A reader on one end of a socket pair; the test writes to the other. */
struct line {
    struct ff_reader reader;
    int sock;
    int far;
};

static void open_line(struct line *line, size_t expected)
{
    int socks[2];

    make_pair(socks);
    line->sock = socks[0];
    line->far = socks[1];
    ff_reader_init(&line->reader);
    CHECK_INT(ff_reader_expect(&line->reader, expected), 0);
}

static void close_line(struct line *line)
{
    ff_reader_clear(&line->reader);
    close_all((int[]){line->sock, line->far}, 2);
}

static int fill(struct line *line)
{
    return ff_reader_fill(&line->reader, line->sock);
}

#define TOO_MANY 20

/* `count` duplicates of the write end of a pipe: when all are closed, its read end is at its end. */
struct bundle {
    int read_end;
    int fds[FF_MAX_FDS + TOO_MANY];
    size_t count;
};

static void make_bundle(struct bundle *bundle, size_t count)
{
    int ends[2];

    make_pipe(ends);
    bundle->read_end = ends[0];
    bundle->count = count;
    for (size_t i = 0; i < count; i++) {
        bundle->fds[i] = dup(ends[1]);
        CHECK(bundle->fds[i] >= 0);
    }
    CHECK_INT(close(ends[1]), 0);
}

static void close_bundle(struct bundle *bundle)
{
    await_end(bundle->read_end);
    CHECK_INT(close(bundle->read_end), 0);
}

/* Send the sender's descriptors away: only what travels stays open. */
static void send_bundle(int sock, const void *bytes, size_t size, struct bundle *bundle, size_t first,
                        size_t count)
{
    CHECK_INT(ff_msg_send(sock, bytes, size, bundle->fds + first, count), size);
    close_all(bundle->fds + first, count);
}

static void test_bytes_one_at_a_time(void)
{
    struct line line;

    open_line(&line, 5);
    CHECK_INT(fill(&line), 0);
    for (int i = 0; i < 5; i++) {
        write_all(line.far, &"hello"[i], 1);
        CHECK_INT(fill(&line), i == 4);
    }
    CHECK_MEM(line.reader.bytes, "hello", 5);
    close_line(&line);
}

/* What belongs to the next message stays in the socket. */
static void test_reads_no_more_than_expected(void)
{
    struct line line;

    open_line(&line, 3);
    write_all(line.far, "onetwo", 6);
    CHECK_INT(fill(&line), 1);
    CHECK_MEM(line.reader.bytes, "one", 3);
    CHECK(is_readable(line.sock));
    ff_reader_restart(&line.reader);
    CHECK_INT(ff_reader_expect(&line.reader, 3), 0);
    CHECK_INT(fill(&line), 1);
    CHECK_MEM(line.reader.bytes, "two", 3);
    CHECK_INT(fill(&line), 1);
    close_line(&line);
}

static void test_expecting_more_keeps_what_is_there(void)
{
    struct line line;

    open_line(&line, 3);
    write_all(line.far, "onetwo", 6);
    CHECK_INT(fill(&line), 1);
    CHECK_INT(ff_reader_expect(&line.reader, FF_MAX_PAYLOAD), 0);
    CHECK_INT(fill(&line), 0);
    CHECK_INT(line.reader.have, 6);
    CHECK_MEM(line.reader.bytes, "onetwo", 6);
    close_line(&line);
}

static void test_nothing_expected(void)
{
    struct line line;

    open_line(&line, 0);
    CHECK_INT(fill(&line), 1);
    close_line(&line);
}

static void test_end_of_stream(void)
{
    struct line line;

    open_line(&line, 5);
    write_all(line.far, "he", 2);
    CHECK_INT(shutdown(line.far, SHUT_WR), 0);
    CHECK_INT(fill(&line), -EPIPE);
    CHECK_INT(line.reader.have, 2);
    close_line(&line);
}

static void test_no_socket(void)
{
    struct line line;
    int ends[2];

    make_pipe(ends);
    open_line(&line, 1);
    CHECK_INT(ff_reader_fill(&line.reader, ends[0]), -ENOTSOCK);
    close_line(&line);
    close_both(ends);
}

static void check_fds_with_byte(size_t position)
{
    struct line line;
    struct bundle bundle;

    open_line(&line, 5);
    make_bundle(&bundle, 2);
    for (size_t i = 0; i < 5; i++) {
        send_bundle(line.far, &"hello"[i], 1, &bundle, 0, i == position ? 2 : 0);
        CHECK_INT(fill(&line), i == 4);
        CHECK_INT(line.reader.fd_count, i >= position ? 2 : 0);
    }
    CHECK(!is_readable(bundle.read_end));
    close_line(&line);
    close_bundle(&bundle);
}

static void test_fds_with_any_byte(void)
{
    for (size_t position = 0; position < 5; position++)
        check_fds_with_byte(position);
}

/* Descriptors keep their order, are close-on-exec, and are those that were sent. */
static void test_fds_are_those_sent(void)
{
    struct line line;
    int pipes[3][2];
    char byte;

    open_line(&line, 1);
    for (int i = 0; i < 3; i++)
        make_pipe(pipes[i]);
    CHECK_INT(ff_msg_send(line.far, "x", 1, (int[]){pipes[0][1], pipes[1][1], pipes[2][1]}, 3), 1);
    CHECK_INT(fill(&line), 1);
    CHECK_INT(line.reader.fd_count, 3);
    for (int i = 0; i < 3; i++) {
        CHECK(fcntl(line.reader.fds[i], F_GETFD) & FD_CLOEXEC);
        write_all(line.reader.fds[i], &"abc"[i], 1);
        read_all(pipes[i][0], &byte, 1);
        CHECK_INT(byte, "abc"[i]);
        close_both(pipes[i]);
    }
    close_line(&line);
}

/* Those of the next message are not taken with this one, even when both lie in the socket. */
static void test_fds_of_next_message_stay(void)
{
    struct line line;
    struct bundle bundle;

    open_line(&line, 3);
    make_bundle(&bundle, 3);
    send_bundle(line.far, "one", 3, &bundle, 0, 1);
    send_bundle(line.far, "two", 3, &bundle, 1, 2);
    CHECK_INT(fill(&line), 1);
    CHECK_INT(line.reader.fd_count, 1);
    ff_reader_drop_fds(&line.reader);
    ff_reader_restart(&line.reader);
    CHECK_INT(ff_reader_expect(&line.reader, 3), 0);
    CHECK_INT(fill(&line), 1);
    CHECK_INT(line.reader.fd_count, 2);
    close_line(&line);
    close_bundle(&bundle);
}

/* Send `count` descriptors over one message of four bytes, as many with each byte as the kernel takes. */
static void send_many(int sock, struct bundle *bundle)
{
    size_t sent = 0;

    for (size_t i = 0; i < 4; i++) {
        size_t rest = bundle->count - sent;
        size_t count = rest < FF_MAX_FDS_PER_MESSAGE ? rest : FF_MAX_FDS_PER_MESSAGE;

        send_bundle(sock, &"many"[i], 1, bundle, sent, count);
        sent += count;
    }
}

static void check_many_fds(size_t count)
{
    struct line line;
    struct bundle bundle;

    open_line(&line, 4);
    make_bundle(&bundle, count);
    send_many(line.far, &bundle);
    CHECK_INT(fill(&line), 1);
    CHECK_INT(line.reader.fd_count, count);
    ff_reader_drop_fds(&line.reader);
    close_bundle(&bundle);
    close_line(&line);
}

static void test_many_fds(void)
{
    check_many_fds(1);
    check_many_fds(252);
    check_many_fds(253);
    check_many_fds(254);
    check_many_fds(FF_MAX_FDS);
}

/* An error, and none of them stays open, not even those that did not fit. */
static void check_too_many_fds(size_t count)
{
    struct line line;
    struct bundle bundle;

    open_line(&line, 4);
    make_bundle(&bundle, count);
    send_many(line.far, &bundle);
    CHECK_INT(fill(&line), -E2BIG);
    ff_reader_drop_fds(&line.reader);
    close_bundle(&bundle);
    close_line(&line);
}

static void test_too_many_fds(void)
{
    check_too_many_fds(FF_MAX_FDS + 1);
    check_too_many_fds(FF_MAX_FDS + TOO_MANY);
}

static void test_send_limit(void)
{
    struct line line;
    int fds[FF_MAX_FDS_PER_MESSAGE + 1] = {0};

    open_line(&line, 1);
    CHECK_INT(ff_msg_send(line.far, "x", 1, fds, FF_MAX_FDS_PER_MESSAGE + 1), -EINVAL);
    CHECK_INT(fill(&line), 0);
    close_line(&line);
}

/* The kernel drops what this process has no number for; the bytes come all the same. */
static void check_lost_fds(int room)
{
    struct line line;
    struct bundle bundle;
    struct rlimit before;

    open_line(&line, 1);
    make_bundle(&bundle, 3);
    send_bundle(line.far, "x", 1, &bundle, 0, 3);
    before = leave_fds(room);
    CHECK_INT(fill(&line), 1);
    CHECK_INT(setrlimit(RLIMIT_NOFILE, &before), 0);
    CHECK(line.reader.lost_fds);
    CHECK_INT(line.reader.fd_count, room);
    ff_reader_drop_fds(&line.reader);
    CHECK(!line.reader.lost_fds);
    close_bundle(&bundle);
    close_line(&line);
}

static void test_lost_fds(void)
{
    check_lost_fds(0);
    check_lost_fds(2);
}

/* No SIGPIPE, which would end the test. */
static void test_send_to_nobody(void)
{
    struct line line;

    open_line(&line, 1);
    CHECK_INT(close(line.sock), 0);
    CHECK_INT(ff_msg_send(line.far, "x", 1, NULL, 0), -EPIPE);
    line.sock = dup(line.far);
    close_line(&line);
}

static void test_send_to_full_socket(void)
{
    struct line line;
    char bytes[4096] = {0};
    ssize_t sent;

    open_line(&line, 1);
    CHECK_INT(ff_fd_set_nonblock(line.far), 0);
    do
        sent = ff_msg_send(line.far, bytes, sizeof bytes, NULL, 0);
    while (sent > 0);
    CHECK_INT(sent, -EAGAIN);
    close_line(&line);
}

static void test_frame_layout(void)
{
    CHECK_INT(offsetof(struct ff_frame, magic), 0);
    CHECK_INT(offsetof(struct ff_frame, version), 4);
    CHECK_INT(offsetof(struct ff_frame, type), 6);
    CHECK_INT(offsetof(struct ff_frame, id), 8);
    CHECK_INT(offsetof(struct ff_frame, value), 12);
    CHECK_INT(offsetof(struct ff_frame, payload_size), 16);
    CHECK_INT(offsetof(struct ff_frame, fd_count), 20);
    CHECK_INT(sizeof(struct ff_frame), 24);
}

/* In memory on a little-endian machine, written out. */
static void test_frame_bytes(void)
{
    static const unsigned char expected[] = {
        'F',  'F',  'R',  'K',  0x01, 0x00, 0x04, 0x00, 0x78, 0x56, 0x34, 0x12,
        0xf7, 0xff, 0xff, 0xff, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00,
    };
    struct ff_frame frame = ff_frame_make(FF_FRAME_EXITED, 0x12345678, -9);
    const uint16_t one = 1;

    if (*(const unsigned char *)&one == 1)
        CHECK_MEM(&frame, expected, sizeof expected);
}

static struct ff_frame request(uint32_t flags, uint32_t payload_size, uint32_t fd_count)
{
    struct ff_frame frame = ff_frame_make(FF_FRAME_FORK, 1, (int32_t)flags);

    frame.payload_size = payload_size;
    frame.fd_count = fd_count;
    return frame;
}

static void test_sound_requests(void)
{
    static const struct {
        uint32_t flags, payload_size, fd_count;
    } sound[] = {
        {0, 0, 0},
        {0, FF_MAX_PAYLOAD, FF_MAX_FDS},
        {FF_FORK_PIDFD, 1, 0},
        {FF_FORK_HELD, 0, 1},
        {FF_FORK_HELD | FF_FORK_STREAM, 0, FF_MAX_FDS},
        {FF_FORK_PIDFD | FF_FORK_HELD | FF_FORK_STREAM, 0, 1},
    };

    for (size_t i = 0; i < sizeof sound / sizeof *sound; i++) {
        struct ff_frame frame = request(sound[i].flags, sound[i].payload_size, sound[i].fd_count);

        CHECK_INT(ff_frame_check_request(&frame), 0);
    }
}

static void test_unsound_numbers(void)
{
    static const struct {
        uint32_t flags, payload_size, fd_count;
        int refusal;
    } unsound[] = {
        {0, FF_MAX_PAYLOAD + 1, 0, FF_REFUSED_PAYLOAD},
        {0, UINT32_MAX, 0, FF_REFUSED_PAYLOAD},
        {0, 0, FF_MAX_FDS + 1, FF_REFUSED_FDS},
        {0, 0, UINT32_MAX, FF_REFUSED_FDS},
        {32, 0, 1, FF_REFUSED_TYPE},
        {1u << 31, 0, 1, FF_REFUSED_TYPE},
        {FF_FORK_HELD, 0, 0, FF_REFUSED_TYPE},
        {FF_FORK_STREAM, 0, 1, FF_REFUSED_TYPE},
        {FF_FORK_STREAM | FF_FORK_PIDFD, 0, 1, FF_REFUSED_TYPE},
    };

    for (size_t i = 0; i < sizeof unsound / sizeof *unsound; i++) {
        struct ff_frame frame = request(unsound[i].flags, unsound[i].payload_size, unsound[i].fd_count);

        CHECK_INT(ff_frame_check_request(&frame), unsound[i].refusal);
    }
}

/* The first fault is named: of a stranger's bytes nothing behind the magic number means anything. */
static void test_unsound_heads(void)
{
    struct ff_frame frame;

    memset(&frame, 0xff, sizeof frame);
    CHECK_INT(ff_frame_check_request(&frame), FF_REFUSED_MAGIC);
    frame.magic = FF_MAGIC;
    CHECK_INT(ff_frame_check_request(&frame), FF_REFUSED_VERSION);
    for (unsigned type = 0; type < 8; type++) {
        frame = request(0, 0, 0);
        frame.type = (uint16_t)type;
        CHECK_INT(ff_frame_check_request(&frame),
                  type == FF_FRAME_FORK || type == FF_FRAME_STATUS ? 0 : FF_REFUSED_TYPE);
    }
}

/* One that asks for the status has nothing else to say. */
static void test_status_requests(void)
{
    static const struct {
        uint32_t value, payload_size, fd_count;
        int refusal;
    } requests[] = {
        {0, 0, 0, 0},
        {1, 0, 0, FF_REFUSED_TYPE},
        {0, 1, 0, FF_REFUSED_PAYLOAD},
        {0, 0, 1, FF_REFUSED_FDS},
    };

    for (size_t i = 0; i < sizeof requests / sizeof *requests; i++) {
        struct ff_frame frame = request(requests[i].value, requests[i].payload_size, requests[i].fd_count);

        frame.type = FF_FRAME_STATUS;
        CHECK_INT(ff_frame_check_request(&frame), requests[i].refusal);
    }
}

int main(void)
{
    RUN(test_bytes_one_at_a_time);
    RUN(test_reads_no_more_than_expected);
    RUN(test_expecting_more_keeps_what_is_there);
    RUN(test_nothing_expected);
    RUN(test_end_of_stream);
    RUN(test_no_socket);
    RUN(test_fds_with_any_byte);
    RUN(test_fds_are_those_sent);
    RUN(test_fds_of_next_message_stay);
    RUN(test_many_fds);
    RUN(test_too_many_fds);
    RUN(test_send_limit);
    RUN(test_lost_fds);
    RUN(test_send_to_nobody);
    RUN(test_send_to_full_socket);
    RUN(test_frame_layout);
    RUN(test_frame_bytes);
    RUN(test_sound_requests);
    RUN(test_unsound_numbers);
    RUN(test_unsound_heads);
    RUN(test_status_requests);
    return 0;
}
