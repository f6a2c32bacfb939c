/* test_client.c: the client's side of the frames, against a socket whose other end the test holds. */
#define _GNU_SOURCE

#include "ff_fd.h"
#include "ff_msg.h"
#include "io.h"

#include <pthread.h>
#include <signal.h>
#include <sys/time.h>

/* Read one request as a server does: its header into ret_frame, its payload into the reader. */
static void receive_request(int sock, struct ff_reader *reader, struct ff_frame *ret_frame)
{
    ff_reader_init(reader);
    CHECK_INT(ff_reader_expect(reader, sizeof *ret_frame), 0);
    while (ff_reader_fill(reader, sock) == 0)
        await_readable(sock);
    CHECK_INT(reader->have, sizeof *ret_frame);
    memcpy(ret_frame, reader->bytes, sizeof *ret_frame);
    ff_reader_restart(reader);
    CHECK_INT(ff_reader_expect(reader, ret_frame->payload_size), 0);
    while (ff_reader_fill(reader, sock) == 0)
        await_readable(sock);
    CHECK_INT(reader->have, ret_frame->payload_size);
}

static void test_request(void)
{
    struct ff_reader reader;
    struct ff_frame frame;
    int socks[2];

    make_pair(socks);
    CHECK_INT(ff_client_send(socks[0], 0xfedcba98, FF_FORK_PIDFD, "payload", 7, NULL, 0), 0);
    receive_request(socks[1], &reader, &frame);
    CHECK_INT(ff_frame_check_request(&frame), 0);
    CHECK_INT(frame.id, 0xfedcba98);
    CHECK_INT(frame.value, FF_FORK_PIDFD);
    CHECK_INT(frame.fd_count, 0);
    CHECK_INT(frame.payload_size, 7);
    CHECK_MEM(reader.bytes, "payload", 7);
    CHECK(!is_readable(socks[1]));
    ff_reader_clear(&reader);
    close_both(socks);
}

static void check_fds_arrive(uint32_t count)
{
    struct ff_reader reader;
    struct ff_frame frame;
    int fds[FF_MAX_FDS];
    int ends[2];
    int socks[2];

    make_pair(socks);
    make_pipe(ends);
    for (uint32_t i = 0; i < count; i++)
        fds[i] = ends[i % 2];
    CHECK_INT(ff_client_send(socks[0], 1, 0, "x", 1, fds, count), 0);
    receive_request(socks[1], &reader, &frame);
    CHECK_INT(frame.fd_count, count);
    CHECK_INT(reader.fd_count, count);
    for (uint32_t i = 0; i < count; i++)
        CHECK_INT(fcntl(reader.fds[i], F_GETFL), fcntl(ends[i % 2], F_GETFL));
    ff_reader_clear(&reader);
    close_both(ends);
    close_both(socks);
}

static void test_fds(void)
{
    static const uint32_t counts[] = {0, 1, 2, 252, 253, 254, 256, 257, FF_MAX_FDS};

    for (size_t i = 0; i < sizeof counts / sizeof *counts; i++)
        check_fds_arrive(counts[i]);
}

/* Too much: an error before a single byte is sent. */
static void test_limits(void)
{
    static unsigned char payload[FF_MAX_PAYLOAD + 1];
    int fds[FF_MAX_FDS + 1] = {0};
    int socks[2];

    make_pair(socks);
    CHECK_INT(ff_client_send(socks[0], 1, 0, payload, FF_MAX_PAYLOAD + 1, NULL, 0), -EMSGSIZE);
    CHECK_INT(ff_client_send(socks[0], 1, 0, payload, 0, fds, FF_MAX_FDS + 1), -EMSGSIZE);
    CHECK(!is_readable(socks[1]));
    close_both(socks);
}

struct request {
    int sock;
    unsigned char payload[FF_MAX_PAYLOAD];
};

static void *receive_in_thread(void *arg)
{
    struct request *request = arg;
    struct ff_reader reader;
    struct ff_frame frame;

    receive_request(request->sock, &reader, &frame);
    CHECK_INT(frame.payload_size, sizeof request->payload);
    CHECK_INT(reader.fd_count, FF_MAX_FDS);
    CHECK_MEM(reader.bytes, request->payload, sizeof request->payload);
    ff_reader_clear(&reader);
    return NULL;
}

/* The largest request there is, through a socket that takes little at once. */
static void test_largest_through_small_socket(void)
{
    static struct request request;
    int fds[FF_MAX_FDS] = {0};
    int size = 1; /* the kernel makes it the least that it allows */
    int socks[2];
    pthread_t thread;

    make_pair(socks);
    CHECK_INT(setsockopt(socks[0], SOL_SOCKET, SO_SNDBUF, &size, sizeof size), 0);
    for (size_t i = 0; i < sizeof request.payload; i++)
        request.payload[i] = (unsigned char)(i * 31 >> 3);
    request.sock = socks[1];
    CHECK_INT(pthread_create(&thread, NULL, receive_in_thread, &request), 0);
    CHECK_INT(ff_client_send(socks[0], 1, 0, request.payload, sizeof request.payload, fds, FF_MAX_FDS), 0);
    CHECK_INT(pthread_join(thread, NULL), 0);
    close_both(socks);
}

/* No SIGPIPE, which would end the client. */
static void test_send_without_server(void)
{
    int socks[2];
    int fds[FF_MAX_FDS] = {0};

    make_pair(socks);
    CHECK_INT(close(socks[1]), 0);
    CHECK_INT(ff_client_send(socks[0], 1, 0, NULL, 0, NULL, 0), -EPIPE);
    CHECK_INT(ff_client_send(socks[0], 1, 0, NULL, 0, fds, FF_MAX_FDS), -EPIPE);
    CHECK_INT(close(socks[0]), 0);
}

static void send_frame(int sock, struct ff_frame frame, const int *fds, size_t fd_count)
{
    CHECK_INT(ff_msg_send(sock, &frame, sizeof frame, fds, fd_count), sizeof frame);
}

static void test_receive(void)
{
    struct ff_frame frame;
    int fd = -7;
    int socks[2];

    make_pair(socks);
    CHECK_INT(ff_client_receive(socks[0], 0, &frame, &fd), 0);
    CHECK_INT(ff_client_receive(socks[0], 1, &frame, &fd), 0);
    CHECK_INT(fd, -7);
    send_frame(socks[1], ff_frame_make(FF_FRAME_STARTED, 11, 1234), NULL, 0);
    send_frame(socks[1], ff_frame_make(FF_FRAME_EXITED, 11, -9), NULL, 0);
    CHECK_INT(ff_client_receive(socks[0], DEADLINE_MS, &frame, &fd), 1);
    CHECK(frame.type == FF_FRAME_STARTED && frame.id == 11 && frame.value == 1234 && fd == -1);
    CHECK_INT(ff_client_receive(socks[0], -1, &frame, &fd), 1);
    CHECK(frame.type == FF_FRAME_EXITED && frame.id == 11 && frame.value == -9 && fd == -1);
    CHECK_INT(ff_client_receive(socks[0], 0, &frame, &fd), 0);
    close_both(socks);
}

/* One comes along with a frame; whatever else a server sent would be lost and is closed. */
static void test_receive_fds(void)
{
    struct ff_frame frame;
    int socks[2];
    int ends[2];
    int fd;

    make_pair(socks);
    make_pipe(ends);
    send_frame(socks[1], ff_frame_make(FF_FRAME_STARTED, 1, 1), (int[]){ends[1], ends[1], ends[1]}, 3);
    CHECK_INT(close(ends[1]), 0);
    CHECK_INT(ff_client_receive(socks[0], DEADLINE_MS, &frame, &fd), 1);
    CHECK(fcntl(fd, F_GETFD) & FD_CLOEXEC);
    CHECK_INT(close(fd), 0);
    await_end(ends[0]);
    CHECK_INT(close(ends[0]), 0);
    close_both(socks);
}

/* A frame that comes in parts is waited for, even by a caller that would not wait for one to begin. */
static void test_receive_in_parts(void)
{
    struct ff_frame sent = ff_frame_make(FF_FRAME_EXITED, 5, 6);
    struct ff_frame frame;
    int socks[2];
    int fd;
    pid_t pid;

    make_pair(socks);
    write_all(socks[1], &sent, 10);
    pid = fork();
    CHECK(pid >= 0);
    if (pid == 0) {
        write_all(socks[1], (char *)&sent + 10, sizeof sent - 10);
        _exit(0);
    }
    CHECK_INT(ff_client_receive(socks[0], 0, &frame, &fd), 1);
    CHECK_MEM(&frame, &sent, sizeof frame);
    CHECK_INT(await_status(pid), 0);
    close_both(socks);
}

static void check_end_after(size_t size)
{
    struct ff_frame sent = ff_frame_make(FF_FRAME_EXITED, 5, 6);
    struct ff_frame frame;
    int socks[2];
    int fd;

    make_pair(socks);
    write_all(socks[1], &sent, size);
    CHECK_INT(close(socks[1]), 0);
    CHECK_INT(ff_client_receive(socks[0], -1, &frame, &fd), -EPIPE);
    CHECK_INT(close(socks[0]), 0);
}

static void test_end_of_stream(void)
{
    check_end_after(0);
    check_end_after(10);
}

/* A server that dies with a request unread resets the connection; what it said before is not lost. */
static void test_last_words(void)
{
    struct ff_frame frame;
    int socks[2];
    int fd;

    make_pair(socks);
    CHECK_INT(ff_client_send(socks[0], 1, 0, NULL, 0, NULL, 0), 0);
    send_frame(socks[1], ff_frame_make(FF_FRAME_REFUSED, 1, FF_REFUSED_FDS), NULL, 0);
    CHECK_INT(close(socks[1]), 0);
    CHECK_INT(ff_client_receive(socks[0], -1, &frame, &fd), 1);
    CHECK(frame.type == FF_FRAME_REFUSED && frame.value == FF_REFUSED_FDS);
    CHECK_INT(ff_client_receive(socks[0], -1, &frame, &fd), -ECONNRESET);
    CHECK_INT(close(socks[0]), 0);
}

static void check_protocol_error(struct ff_frame sent)
{
    struct ff_frame frame;
    int socks[2];
    int ends[2];
    int fd;

    make_pair(socks);
    make_pipe(ends);
    send_frame(socks[1], sent, &ends[1], 1);
    CHECK_INT(close(ends[1]), 0);
    CHECK_INT(ff_client_receive(socks[0], -1, &frame, &fd), -EPROTO);
    await_end(ends[0]);
    CHECK_INT(close(ends[0]), 0);
    close_both(socks);
}

static void test_no_fastfork_server(void)
{
    struct ff_frame frame = ff_frame_make(FF_FRAME_STARTED, 1, 1);

    frame.magic++;
    check_protocol_error(frame);
    frame = ff_frame_make(FF_FRAME_STARTED, 1, 1);
    frame.version++;
    check_protocol_error(frame);
}

static void on_alarm(int signal_number)
{
    (void)signal_number;
}

/* A signal ends the wait, for the caller's handlers to run. The timer repeats, lest it fires too early. */
static void test_interrupted(void)
{
    struct itimerval often = {{0, 10000}, {0, 10000}};
    struct itimerval never = {{0, 0}, {0, 0}};
    struct ff_frame frame;
    int socks[2];
    int fd;

    make_pair(socks);
    signal(SIGALRM, on_alarm);
    CHECK_INT(setitimer(ITIMER_REAL, &often, NULL), 0);
    CHECK_INT(ff_client_receive(socks[0], -1, &frame, &fd), -EINTR);
    CHECK_INT(ff_wait_readable(socks[0], -1), -EINTR);
    CHECK_INT(setitimer(ITIMER_REAL, &never, NULL), 0);
    signal(SIGALRM, SIG_DFL);
    close_both(socks);
}

static void test_wait_readable(void)
{
    int ends[2];

    make_pipe(ends);
    CHECK_INT(ff_wait_readable(ends[0], 0), 0);
    CHECK_INT(ff_wait_readable(ends[0], 1), 0);
    write_all(ends[1], "x", 1);
    CHECK_INT(ff_wait_readable(ends[0], -1), POLLIN);
    CHECK_INT(close(ends[1]), 0);
    CHECK(ff_wait_readable(ends[0], 0) & POLLHUP);
    CHECK_INT(close(ends[0]), 0);
}

int main(void)
{
    RUN(test_request);
    RUN(test_fds);
    RUN(test_limits);
    RUN(test_largest_through_small_socket);
    RUN(test_send_without_server);
    RUN(test_receive);
    RUN(test_receive_fds);
    RUN(test_receive_in_parts);
    RUN(test_end_of_stream);
    RUN(test_last_words);
    RUN(test_no_fastfork_server);
    RUN(test_interrupted);
    RUN(test_wait_readable);
    return 0;
}
