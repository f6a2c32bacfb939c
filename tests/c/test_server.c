/* test_server.c: whole servers, each in a process of its own, and their clients. */
#define _GNU_SOURCE

#include "fake_fork.h"
#include "ff_tree.h"
#include "ff_util.h"
#include "serving.h"

#include <signal.h>
#include <sys/resource.h>

/* ---- what children do ---- */

/* The payload is "x" and an exit code, or "s" and a signal; each one byte. */
static int end_as_told(const struct ff_request *request)
{
    CHECK_INT(request->payload_size, 2);
    if (request->payload[0] == 's')
        raise(request->payload[1]);
    return request->payload[1];
}

/* Tell that it runs, and wait for the gate: the last two descriptors. */
static int wait_at_gate(const struct ff_request *request)
{
    char byte;

    CHECK(request->fd_count >= 2);
    write_all(request->fds[request->fd_count - 2], "r", 1);
    CHECK_INT(read(request->fds[request->fd_count - 1], &byte, 1), 0);
    return request->payload_size > 0 ? request->payload[0] : 0;
}

/* Write its place to each descriptor of the request. */
static int number_fds(const struct ff_request *request)
{
    for (uint32_t i = 0; i < request->fd_count; i++)
        write_all(request->fds[i], &i, sizeof i);
    return 0;
}

/* Send a digest of the payload through the one descriptor. */
static int digest_payload(const struct ff_request *request)
{
    unsigned char digest[FF_SHA256_SIZE];

    CHECK_INT(request->fd_count, 1);
    ff_hmac_sha256((const unsigned char *)"", 0, request->payload, request->payload_size, digest);
    write_all(request->fds[0], digest, sizeof digest);
    return 0;
}

static const struct service ending = {.child = end_as_told};
static const struct service waiting = {.child = wait_at_gate};

/* ---- a gate for children that wait ---- */

struct gate {
    int ready[2];
    int open[2]; /* children hold the read end until the write end is closed */
};

static void make_gate(struct gate *gate)
{
    make_pipe(gate->ready);
    make_pipe(gate->open);
}

/* Start a child that waits; it has reached the gate when this returns. */
static pid_t start_waiting(int sock, uint32_t id, const struct gate *gate, char exit_code)
{
    pid_t pid = start_child(sock, id, 0, &exit_code, 1, (int[]){gate->ready[1], gate->open[0]}, 2);
    char byte;

    read_all(gate->ready[0], &byte, 1);
    return pid;
}

static void open_gate(struct gate *gate)
{
    CHECK_INT(close(gate->open[1]), 0);
}

static void close_gate(struct gate *gate)
{
    CHECK_INT(close(gate->open[0]), 0);
    close_both(gate->ready);
}

/* ---- life of a server ---- */

static void test_end_without_clients(void)
{
    struct serving serving;

    start_server(&serving, &ending);
    stop_server(&serving);
}

static void test_end_with_clients(void)
{
    struct serving serving;
    int client;
    int stranger;

    start_server(&serving, &ending);
    client = connect_client(&serving);
    stranger = connect_stranger(&serving.address);
    stop_server(&serving);
    await_end(client);
    close_all((int[]){client, stranger}, 2);
}

/* A server that ends leaves the children of clients that have gone alone. */
static void leave_child_behind(void)
{
    CHECK_INT(waitpid(-1, NULL, WNOHANG), 0);
}

static void test_end_with_children(void)
{
    static const struct service leaving = {.child = wait_at_gate, .conclude = leave_child_behind};
    struct serving serving;
    struct gate gate;
    char byte;
    int sock;

    make_gate(&gate);
    start_server(&serving, &leaving);
    sock = connect_client(&serving);
    start_waiting(sock, 1, &gate, 0);
    CHECK_INT(close(gate.ready[1]), 0);
    gate.ready[1] = dup(0);
    CHECK_INT(close(sock), 0);
    stop_server(&serving);
    CHECK(!is_readable(gate.ready[0])); /* the child has it still */
    open_gate(&gate);
    await_readable(gate.ready[0]);
    CHECK_INT(read(gate.ready[0], &byte, 1), 0);
    close_gate(&gate);
}

/* A client that is still connected is told of every exit first, and served meanwhile; then it is let go. */
static void test_end_waits_for_children(void)
{
    struct serving serving;
    struct gate gates[2];
    int sock;
    int other;

    make_gate(&gates[0]);
    make_gate(&gates[1]);
    start_server(&serving, &waiting);
    sock = connect_client(&serving);
    start_waiting(sock, 1, &gates[0], 7);
    release_server(&serving);
    other = connect_client(&serving);
    start_waiting(other, 2, &gates[1], 8);
    open_gate(&gates[0]);
    check_exit(sock, 1, 7);
    CHECK(!is_readable(other));
    CHECK(!is_readable(sock));
    open_gate(&gates[1]);
    check_exit(other, 2, 8);
    await_end(sock);
    await_end(other);
    await_server_end(&serving);
    close_gate(&gates[0]);
    close_gate(&gates[1]);
    close_all((int[]){sock, other}, 2);
}

/* The child is dead, its client has let go, and the server learns of both at the same moment. */
static void test_end_and_death_at_once(void)
{
    for (int i = 0; i < 20; i++) {
        struct serving serving;
        struct gate gate;
        pid_t pid;
        int sock;

        make_gate(&gate);
        start_server(&serving, &waiting);
        sock = connect_client(&serving);
        pid = start_waiting(sock, 1, &gate, 9);
        CHECK_INT(close(ask_status(sock)), 0); /* the server has done with the request */
        pause_server(&serving);
        CHECK_INT(close(gate.ready[1]), 0);
        gate.ready[1] = dup(0);
        if (i % 2)
            release_server(&serving);
        CHECK_INT(kill(pid, SIGKILL), 0);
        await_end(gate.ready[0]);
        if (i % 2 == 0)
            release_server(&serving);
        resume_server(&serving);
        check_exit(sock, 1, -SIGKILL);
        await_server_end(&serving);
        open_gate(&gate);
        close_gate(&gate);
        CHECK_INT(close(sock), 0);
    }
}

/* What was asked for before is served, and the client hears of the exit. */
static void test_end_after_a_request(void)
{
    struct serving serving;
    int sock;

    start_server(&serving, &ending);
    sock = connect_client(&serving);
    pause_server(&serving);
    CHECK_INT(ff_client_send(sock, 1, 0, "x\x05", 2, NULL, 0), 0);
    release_server(&serving);
    resume_server(&serving);
    CHECK(await_frame(sock, FF_FRAME_STARTED, 1) > 0);
    check_exit(sock, 1, 5);
    await_server_end(&serving);
    CHECK_INT(close(sock), 0);
}

/* A client that reads late is told all the same. */
static void test_end_waits_for_slow_reader(void)
{
    enum { COUNT = 400 }; /* of whose answers a socket takes some */
    struct serving serving;
    int exits = 0;
    int sock;

    start_server(&serving, &ending);
    sock = connect_client(&serving);
    for (uint32_t i = 0; i < COUNT; i++)
        CHECK_INT(ff_client_send(sock, i, 0, "x\x05", 2, NULL, 0), 0);
    release_server(&serving);
    for (int i = 0; i < 2 * COUNT; i++) {
        struct ff_frame frame;
        int fd;

        CHECK_INT(ff_client_receive(sock, DEADLINE_MS, &frame, &fd), 1);
        CHECK(frame.type == FF_FRAME_STARTED || (frame.type == FF_FRAME_EXITED && frame.value == 5));
        exits += frame.type == FF_FRAME_EXITED;
    }
    CHECK_INT(exits, COUNT);
    await_server_end(&serving);
    CHECK_INT(close(sock), 0);
}

/* Strangers are owed nothing, nor is who has been refused. */
static void test_end_with_strangers(void)
{
    struct ff_frame frame = ff_frame_make(FF_FRAME_FORK, 1, 0);
    struct serving serving;
    struct gate gate;
    int sock;
    int stranger;

    make_gate(&gate);
    frame.version++;
    start_server(&serving, &waiting);
    stranger = connect_stranger(&serving.address);
    write_all(stranger, "\0\0", 2);
    sock = connect_client(&serving);
    write_all(sock, &frame, sizeof frame);
    await_frame(sock, FF_FRAME_REFUSED, 1);
    stop_server(&serving);
    open_gate(&gate);
    close_gate(&gate);
    close_all((int[]){sock, stranger}, 2);
}

static void test_one_server_after_another(void)
{
    struct sockaddr_un addresses[2];
    int alive[2][2];
    pid_t pid;
    int listeners[2];

    for (int i = 0; i < 2; i++) {
        listeners[i] = make_listener(&addresses[i]);
        make_pipe(alive[i]);
    }
    pid = fork();
    CHECK(pid >= 0);
    if (pid == 0) {
        close_all((int[]){alive[0][1], alive[1][1]}, 2);
        for (int i = 0; i < 2; i++)
            serve_here(&ending, listeners[i], alive[i][0]);
        exit(0);
    }
    for (int i = 0; i < 2; i++) {
        int sock = connect_stranger(&addresses[i]);

        authenticate(sock);
        start_child(sock, 1, 0, "x\x07", 2, NULL, 0);
        check_exit(sock, 1, 7);
        close_all((int[]){sock, listeners[i], alive[i][0], alive[i][1]}, 4);
        remove_listener(&addresses[i]);
    }
    CHECK_INT(await_status(pid), 0);
}

static void test_unsound_config(void)
{
    struct ff_server *server;
    struct ff_config config = serving_config(0, -1);

    config.authkey_size = 0;
    CHECK_INT(ff_server_new(&config, &server), -EINVAL);
    config.authkey_size = FF_MAX_AUTHKEY + 1;
    CHECK_INT(ff_server_new(&config, &server), -EINVAL);
    config = serving_config(CHECK_FD_LIMIT - 1, -1);
    CHECK_INT(ff_server_new(&config, &server), -EBADF);
}

/* ---- clients that do not know the key ---- */

static void test_wrong_key(void)
{
    struct serving serving;
    int stranger;
    int client;

    start_server(&serving, &ending);
    stranger = connect_stranger(&serving.address);
    answer_challenge(stranger, "another key");
    await_message(stranger, FAILURE, strlen(FAILURE));
    await_end(stranger);
    client = connect_client(&serving);
    close_all((int[]){stranger, client}, 2);
    stop_server(&serving);
}

/* A request without a handshake is no handshake. */
static void test_no_handshake(void)
{
    struct serving serving;
    unsigned char challenge[FF_AUTH_MAX_MESSAGE];
    int stranger;

    start_server(&serving, &ending);
    stranger = connect_stranger(&serving.address);
    receive_message(stranger, challenge);
    CHECK_INT(ff_client_send(stranger, 1, 0, "x\x07", 2, NULL, 0), 0);
    await_end(stranger);
    CHECK_INT(close(stranger), 0);
    stop_server(&serving);
}

/* ---- what children get ---- */

static void check_fds_arrive(int sock, uint32_t count)
{
    static int pipes[FF_MAX_FDS][2];
    int write_ends[FF_MAX_FDS];

    for (uint32_t i = 0; i < count; i++) {
        make_pipe(pipes[i]);
        write_ends[i] = pipes[i][1];
    }
    start_child(sock, count, 0, NULL, 0, write_ends, count);
    check_exit(sock, count, 0);
    for (uint32_t i = 0; i < count; i++) {
        uint32_t number;

        read_all(pipes[i][0], &number, sizeof number);
        CHECK_INT(number, i);
        CHECK_INT(close(pipes[i][1]), 0);
        await_end(pipes[i][0]);
        CHECK_INT(close(pipes[i][0]), 0);
    }
}

static void test_fds(void)
{
    static const uint32_t counts[] = {0, 1, 2, 252, 253, 254, 255, 256, 257, FF_MAX_FDS};
    static const struct service numbering = {.child = number_fds};
    struct serving serving;
    int sock;

    start_server(&serving, &numbering);
    sock = connect_client(&serving);
    for (size_t i = 0; i < sizeof counts / sizeof *counts; i++)
        check_fds_arrive(sock, counts[i]);
    CHECK_INT(close(sock), 0);
    stop_server(&serving);
}

static void check_payload_arrives(int sock, uint32_t size)
{
    static unsigned char payload[FF_MAX_PAYLOAD];
    unsigned char expected[FF_SHA256_SIZE];
    unsigned char digest[FF_SHA256_SIZE];
    int ends[2];

    for (uint32_t i = 0; i < size; i++)
        payload[i] = (unsigned char)(i * 31 >> 3);
    ff_hmac_sha256((const unsigned char *)"", 0, payload, size, expected);
    make_pipe(ends);
    start_child(sock, size, 0, payload, size, &ends[1], 1);
    read_all(ends[0], digest, sizeof digest);
    CHECK_MEM(digest, expected, sizeof digest);
    check_exit(sock, size, 0);
    close_both(ends);
}

static void test_payloads(void)
{
    static const uint32_t sizes[] = {0, 1, 24, 4095, 4096, 4097, 40000, 65535, FF_MAX_PAYLOAD, 3};
    static const struct service digesting = {.child = digest_payload};
    struct serving serving;
    int sock;

    start_server(&serving, &digesting);
    sock = connect_client(&serving);
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++)
        check_payload_arrives(sock, sizes[i]);
    CHECK_INT(close(sock), 0);
    stop_server(&serving);
}

static void note_signal(int signal_number)
{
    (void)signal_number;
}

/* What a server takes for itself. */
static const int taken_signals[] = {SIGCHLD, SIGPIPE, SIGINT};
#define TAKEN_SIGNALS (sizeof taken_signals / sizeof *taken_signals)

static void set_signals(void)
{
    sigset_t set;

    for (size_t i = 0; i < TAKEN_SIGNALS; i++)
        signal(taken_signals[i], note_signal);
    sigemptyset(&set);
    sigaddset(&set, SIGUSR1);
    sigprocmask(SIG_SETMASK, &set, NULL);
}

static int check_signals(const struct ff_request *request)
{
    sigset_t mask;

    CHECK_INT(request->fd_count, 0);
    for (size_t i = 0; i < TAKEN_SIGNALS; i++) {
        struct sigaction action;

        CHECK_INT(sigaction(taken_signals[i], NULL, &action), 0);
        CHECK(action.sa_handler == note_signal);
    }
    CHECK_INT(sigprocmask(SIG_SETMASK, NULL, &mask), 0);
    CHECK(sigismember(&mask, SIGUSR1) && !sigismember(&mask, SIGCHLD));
    return 5;
}

static void test_signals_in_children(void)
{
    static const struct service checking = {.child = check_signals, .prepare = set_signals};
    struct serving serving;
    int sock;

    start_server(&serving, &checking);
    sock = connect_client(&serving);
    start_child(sock, 1, 0, NULL, 0, NULL, 0);
    check_exit(sock, 1, 5);
    CHECK_INT(close(sock), 0);
    stop_server(&serving);
}

/* The memory of a server can be given back in a child: the descriptors with its numbers are other files now. */
static int reuse_numbers(const struct ff_request *request)
{
    CHECK_INT(request->fd_count, 1);
    for (int i = 0; i < 20; i++)
        CHECK(dup(0) >= 0);
    write_all(request->fds[0], "x", 1);
    return 0;
}

/* run_child() checks that freeing the server closes none of them. */
static void test_numbers_used_again_in_children(void)
{
    static const struct service reusing = {.child = reuse_numbers, .children_check_leaks = true};
    struct serving serving;
    int ends[2];
    int others[3];
    int sock;

    make_pipe(ends);
    start_server(&serving, &reusing);
    for (int i = 0; i < 3; i++)
        others[i] = connect_client(&serving);
    sock = connect_client(&serving);
    start_child(sock, 1, 0, NULL, 0, &ends[1], 1);
    check_exit(sock, 1, 0);
    close_both(ends);
    close_all(others, 3);
    CHECK_INT(close(sock), 0);
    stop_server(&serving);
}

/* ---- how children end ---- */

static void test_exit_codes(void)
{
    static const unsigned char ends[][2] = {{'x', 0},       {'x', 1},       {'x', 127},     {'x', 255},
                                            {'s', SIGKILL}, {'s', SIGTERM}, {'s', SIGUSR1}, {'s', SIGABRT}};
    struct serving serving;
    int sock;

    start_server(&serving, &ending);
    sock = connect_client(&serving);
    for (uint32_t i = 0; i < sizeof ends / sizeof *ends; i++) {
        start_child(sock, i, 0, ends[i], 2, NULL, 0);
        check_exit(sock, i, ends[i][0] == 's' ? -ends[i][1] : ends[i][1]);
    }
    CHECK_INT(close(sock), 0);
    stop_server(&serving);
}

static void test_killed_from_outside(void)
{
    struct serving serving;
    struct gate gate;
    int sock;

    make_gate(&gate);
    start_server(&serving, &waiting);
    sock = connect_client(&serving);
    CHECK_INT(kill(start_waiting(sock, 1, &gate, 0), SIGKILL), 0);
    check_exit(sock, 1, -SIGKILL);
    open_gate(&gate);
    close_gate(&gate);
    CHECK_INT(close(sock), 0);
    stop_server(&serving);
}

static void test_many_in_a_row(void)
{
    struct serving serving;
    int sock;

    start_server(&serving, &ending);
    sock = connect_client(&serving);
    for (uint32_t i = 0; i < 100; i++) {
        const unsigned char payload[] = {'x', (unsigned char)i};

        start_child(sock, i, 0, payload, 2, NULL, 0);
        check_exit(sock, i, (int)i);
    }
    CHECK_INT(close(sock), 0);
    stop_server(&serving);
}

/* All alive together: each exit is told once, with the right code. */
static void test_many_at_once(void)
{
    enum { COUNT = 20 };
    bool told[COUNT] = {false};
    struct serving serving;
    struct gate gate;
    int sock;

    make_gate(&gate);
    start_server(&serving, &waiting);
    sock = connect_client(&serving);
    for (uint32_t i = 0; i < COUNT; i++)
        start_waiting(sock, i, &gate, (char)(i + 1));
    open_gate(&gate);
    for (int i = 0; i < COUNT; i++) {
        struct ff_frame frame;
        int fd;

        CHECK_INT(ff_client_receive(sock, DEADLINE_MS, &frame, &fd), 1);
        CHECK_INT(frame.type, FF_FRAME_EXITED);
        CHECK(frame.id < COUNT && !told[frame.id]);
        CHECK_INT(frame.value, frame.id + 1);
        told[frame.id] = true;
    }
    close_gate(&gate);
    CHECK_INT(close(sock), 0);
    stop_server(&serving);
}

/* ---- sentinels ---- */

/* A child that leaves one of its own behind, which waits at the gate. */
static int leave_grandchild(const struct ff_request *request)
{
    pid_t pid = fork();

    CHECK(pid >= 0);
    if (pid == 0)
        _exit(wait_at_gate(request));
    return 0;
}

/* The held descriptor is the server's alone: neither the child nor what the child leaves behind keeps it open. */
static void test_held(void)
{
    static const struct service leaving = {.child = leave_grandchild};
    struct serving serving;
    struct gate gate;
    int held[2];
    char byte;
    int sock;

    make_gate(&gate);
    make_pipe(held);
    start_server(&serving, &leaving);
    sock = connect_client(&serving);
    start_child(sock, 1, FF_FORK_HELD, NULL, 0, (int[]){held[1], gate.ready[1], gate.open[0]}, 3);
    CHECK_INT(close(held[1]), 0);
    check_exit(sock, 1, 0);
    await_end(held[0]);
    read_all(gate.ready[0], &byte, 1);
    CHECK_INT(close(gate.ready[1]), 0);
    CHECK(!is_readable(gate.ready[0])); /* the grandchild lives */
    open_gate(&gate);
    await_end(gate.ready[0]);
    close_all((int[]){gate.ready[0], gate.open[0], held[0], sock}, 4);
    stop_server(&serving);
}

static void test_held_while_alive(void)
{
    struct serving serving;
    struct gate gate;
    int held[2];
    char byte;
    int sock;

    make_gate(&gate);
    make_pipe(held);
    start_server(&serving, &waiting);
    sock = connect_client(&serving);
    start_child(sock, 1, FF_FORK_HELD, NULL, 0, (int[]){held[1], gate.ready[1], gate.open[0]}, 3);
    CHECK_INT(close(held[1]), 0);
    read_all(gate.ready[0], &byte, 1);
    CHECK(!is_readable(held[0]));
    open_gate(&gate);
    await_end(held[0]);
    check_exit(sock, 1, 0);
    close_gate(&gate);
    close_all((int[]){held[0], sock}, 2);
    stop_server(&serving);
}

/* Two children with sentinels: the second finds nothing of the first. */
static void test_held_by_siblings(void)
{
    struct serving serving;
    struct gate gates[2];
    int held[2][2];
    char byte;
    int sock;

    start_server(&serving, &waiting);
    sock = connect_client(&serving);
    for (int i = 0; i < 2; i++) {
        make_gate(&gates[i]);
        make_pipe(held[i]);
        start_child(sock, (uint32_t)i, FF_FORK_HELD, NULL, 0,
                    (int[]){held[i][1], gates[i].ready[1], gates[i].open[0]}, 3);
        read_all(gates[i].ready[0], &byte, 1);
        CHECK_INT(close(held[i][1]), 0);
    }
    open_gate(&gates[0]);
    await_end(held[0][0]);
    CHECK(!is_readable(held[1][0]));
    open_gate(&gates[1]);
    await_end(held[1][0]);
    for (int i = 0; i < 2; i++) {
        check_exit(sock, (uint32_t)i, 0);
        close_gate(&gates[i]);
        CHECK_INT(close(held[i][0]), 0);
    }
    CHECK_INT(close(sock), 0);
    stop_server(&serving);
}

/* multiprocessing's own client reads pid and exit code from the held descriptor. */
static void check_stream(int sock, const char *payload, int exit_code)
{
    int64_t number;
    int held[2];
    pid_t pid;

    make_pipe(held);
    pid = start_child(sock, 1, FF_FORK_HELD | FF_FORK_STREAM, payload, 2, &held[1], 1);
    CHECK_INT(close(held[1]), 0);
    read_all(held[0], &number, sizeof number);
    CHECK_INT(number, pid);
    read_all(held[0], &number, sizeof number);
    CHECK_INT(number, exit_code);
    await_end(held[0]);
    check_exit(sock, 1, exit_code);
    CHECK_INT(close(held[0]), 0);
}

/* The client does not read the stream at all, and is gone before the exit code is written. */
static void check_broken_stream(int sock)
{
    int held[2];

    make_pipe(held);
    CHECK_INT(close(held[0]), 0);
    start_child(sock, 2, FF_FORK_HELD | FF_FORK_STREAM, "x\x04", 2, &held[1], 1);
    CHECK_INT(close(held[1]), 0);
    check_exit(sock, 2, 4);
}

static void fill_pipe(int fd)
{
    char bytes[4096] = {0};
    int flags = fcntl(fd, F_GETFL);

    CHECK_INT(fcntl(fd, F_SETFL, flags | O_NONBLOCK), 0);
    while (write(fd, bytes, sizeof bytes) > 0)
        continue;
    CHECK_INT(errno, EAGAIN);
    CHECK_INT(fcntl(fd, F_SETFL, flags), 0);
}

/* A stream that takes no more keeps nobody waiting. */
static void check_full_stream(int sock)
{
    int held[2];

    make_pipe(held);
    fill_pipe(held[1]);
    start_child(sock, 3, FF_FORK_HELD | FF_FORK_STREAM, "x\x04", 2, &held[1], 1);
    check_exit(sock, 3, 4);
    close_both(held);
}

static void test_stream(void)
{
    static const char killed[] = {'s', SIGKILL};
    struct serving serving;
    int sock;

    start_server(&serving, &ending);
    sock = connect_client(&serving);
    check_stream(sock, "x\x03", 3);
    check_stream(sock, killed, -SIGKILL);
    check_broken_stream(sock);
    check_full_stream(sock);
    CHECK_INT(close(sock), 0);
    stop_server(&serving);
}

/* A client that reads no answers still learns of each death by its sentinel. */
static void test_held_by_slow_reader(void)
{
    enum { COUNT = 200 }; /* a socket takes that many answers, but by default not twice as many */
    struct serving serving;
    struct gate gate;
    int held[COUNT][2];
    char ready[COUNT];
    int sock;

    make_gate(&gate);
    start_server(&serving, &waiting);
    sock = connect_client(&serving);
    for (uint32_t i = 0; i < COUNT; i++) {
        make_pipe(held[i]);
        CHECK_INT(ff_client_send(sock, i, FF_FORK_HELD, NULL, 0,
                                 (int[]){held[i][1], gate.ready[1], gate.open[0]}, 3),
                  0);
        CHECK_INT(close(held[i][1]), 0);
    }
    read_all(gate.ready[0], ready, sizeof ready);
    open_gate(&gate);
    for (int i = 0; i < COUNT; i++) {
        await_end(held[i][0]);
        CHECK_INT(close(held[i][0]), 0);
    }
    for (int i = 0; i < 2 * COUNT; i++) {
        struct ff_frame frame;
        int fd;

        CHECK_INT(ff_client_receive(sock, DEADLINE_MS, &frame, &fd), 1);
        CHECK(frame.type == FF_FRAME_STARTED || (frame.type == FF_FRAME_EXITED && frame.value == 0));
    }
    close_gate(&gate);
    CHECK_INT(close(sock), 0);
    stop_server(&serving);
}

/* Whether this run and this kernel have pidfds. */
static bool has_pidfds(void)
{
    int fd = check_wants_poll() ? -ENOSYS : ff_pidfd_open((int)getpid());

    if (fd < 0)
        return false;
    CHECK_INT(close(fd), 0);
    return true;
}

/* The pidfd is the child's: it is ready when that dies, and where the kernel tells, has its exit code. */
static void check_pidfd(int pidfd, int sock, struct gate *gate)
{
    int code = 9;

    CHECK(fcntl(pidfd, F_GETFD) & FD_CLOEXEC);
    CHECK(!is_readable(pidfd));
    open_gate(gate);
    await_readable(pidfd);
    check_exit(sock, 1, 9);
    if (ff_pidfd_exit_code(pidfd, &code) == 0)
        CHECK_INT(code, 9);
    CHECK_INT(close(pidfd), 0);
}

static void test_pidfd(void)
{
    struct serving serving;
    struct gate gate;
    struct ff_frame frame;
    int pidfd;
    int sock;

    make_gate(&gate);
    start_server(&serving, &waiting);
    sock = connect_client(&serving);
    CHECK_INT(ff_client_send(sock, 1, FF_FORK_PIDFD, "\x09", 1, (int[]){gate.ready[1], gate.open[0]}, 2), 0);
    frame = await_frame_with_fd(sock, FF_FRAME_STARTED, 1, &pidfd);
    CHECK(frame.value > 0);
    CHECK_INT(pidfd >= 0, has_pidfds());
    if (pidfd >= 0) {
        check_pidfd(pidfd, sock, &gate);
    } else {
        open_gate(&gate);
        check_exit(sock, 1, 9);
    }
    close_gate(&gate);
    CHECK_INT(close(sock), 0);
    stop_server(&serving);
}

/* ---- several clients ---- */

/* Each is told of its own children alone. */
static void test_several_clients(void)
{
    enum { CLIENTS = 8, ROUNDS = 5 };
    struct serving serving;
    int socks[CLIENTS];

    start_server(&serving, &ending);
    for (int i = 0; i < CLIENTS; i++)
        socks[i] = connect_client(&serving);
    for (uint32_t round = 0; round < ROUNDS; round++) {
        for (int i = 0; i < CLIENTS; i++)
            CHECK_INT(ff_client_send(socks[i], round, 0, (char[]){'x', (char)i}, 2, NULL, 0), 0);
        for (int i = 0; i < CLIENTS; i++) {
            CHECK(await_frame(socks[i], FF_FRAME_STARTED, round) > 0);
            check_exit(socks[i], round, i);
        }
    }
    for (int i = 0; i < CLIENTS; i++)
        CHECK(!is_readable(socks[i]));
    close_all(socks, CLIENTS);
    stop_server(&serving);
}

/* One in the middle of a request, one in the middle of a handshake: nobody else waits. */
static void test_slow_clients(void)
{
    struct ff_frame frame = ff_frame_make(FF_FRAME_FORK, 1, 0);
    struct serving serving;
    int slow;
    int stranger;
    int sock;

    frame.payload_size = 2;
    start_server(&serving, &ending);
    slow = connect_client(&serving);
    stranger = connect_stranger(&serving.address);
    write_all(stranger, "\0\0", 2);
    write_all(slow, &frame, sizeof frame);
    write_all(slow, "x", 1);
    sock = connect_client(&serving);
    start_child(sock, 1, 0, "x\x05", 2, NULL, 0);
    check_exit(sock, 1, 5);
    write_all(slow, "\x06", 1);
    CHECK(await_frame(slow, FF_FRAME_STARTED, 1) > 0);
    check_exit(slow, 1, 6);
    close_all((int[]){slow, stranger, sock}, 3);
    stop_server(&serving);
}

/* Its children live on, are reaped, and their sentinels end. */
static void test_client_that_vanishes(void)
{
    struct serving serving;
    struct gate gate;
    int held[2];
    char byte;
    int sock;
    int other;

    make_gate(&gate);
    make_pipe(held);
    start_server(&serving, &waiting);
    sock = connect_client(&serving);
    start_child(sock, 1, FF_FORK_HELD, NULL, 0, (int[]){held[1], gate.ready[1], gate.open[0]}, 3);
    CHECK_INT(close(held[1]), 0);
    read_all(gate.ready[0], &byte, 1);
    CHECK_INT(close(sock), 0);
    other = connect_client(&serving);
    start_waiting(other, 1, &gate, 0);
    CHECK(!is_readable(held[0]));
    open_gate(&gate);
    await_end(held[0]);
    check_exit(other, 1, 0);
    close_gate(&gate);
    close_all((int[]){held[0], other}, 2);
    stop_server(&serving);
}

/* What it had sent of a request is closed. */
static void test_client_that_vanishes_in_a_request(void)
{
    struct ff_frame frame = ff_frame_make(FF_FRAME_FORK, 1, 0);
    struct serving serving;
    int ends[2];
    int sock;

    make_pipe(ends);
    frame.fd_count = 1;
    frame.payload_size = 1;
    start_server(&serving, &ending);
    sock = connect_client(&serving);
    CHECK_INT(ff_msg_send(sock, &frame, sizeof frame, &ends[1], 1), sizeof frame);
    CHECK_INT(close(ends[1]), 0);
    CHECK_INT(close(sock), 0);
    await_end(ends[0]);
    CHECK_INT(close(ends[0]), 0);
    stop_server(&serving);
}

/* A request, and gone before the answer: the child runs, nobody is told, nobody is waited for. */
static void test_client_that_vanishes_after_a_request(void)
{
    static const struct service numbering = {.child = number_fds};
    struct serving serving;
    uint32_t number;
    int ends[2];
    int sock;

    make_pipe(ends);
    start_server(&serving, &numbering);
    sock = connect_client(&serving);
    CHECK_INT(ff_client_send(sock, 1, FF_FORK_PIDFD | FF_FORK_HELD, NULL, 0, (int[]){ends[1], ends[1]}, 2),
              0);
    CHECK_INT(close(sock), 0);
    CHECK_INT(close(ends[1]), 0);
    read_all(ends[0], &number, sizeof number);
    await_end(ends[0]); /* so the child has been reaped */
    CHECK_INT(close(ends[0]), 0);
    stop_server(&serving);
}

/* ---- children that die with their client ---- */

/* A child and one below it, a daemon: all wait at the gate. */
static int make_daemon(const struct ff_request *request)
{
    if (fork() == 0) {
        setsid();
        if (fork() == 0)
            _exit(wait_at_gate(request));
        _exit(0);
    }
    return wait_at_gate(request);
}

static const struct service daemons = {.child = make_daemon};

static void await_ready(const struct gate *gate, int count)
{
    char byte;

    for (int i = 0; i < count; i++)
        read_all(gate->ready[0], &byte, 1);
}

/* Nobody but the test has the end of the gate that says who is ready. */
static void let_go_of_gate(struct gate *gate)
{
    CHECK_INT(close(gate->ready[1]), 0);
    gate->ready[1] = dup(0);
}

static void start_dying(int sock, uint32_t id, const struct gate *gate, uint32_t flags)
{
    start_child(sock, id, flags, "\0", 1, (int[]){gate->ready[1], gate->open[0]}, 2);
}

#ifdef __linux__
#define BELOW 1
#else
#define BELOW 0 /* only Linux tells who is below a child */
#endif

/* All that it asked for so dies, daemons too; its other child lives on, and those of others. */
static void test_die_with_client(void)
{
    struct serving serving;
    struct gate dying;
    struct gate living;
    int sock;
    int other;
    int fd;

    make_gate(&dying);
    make_gate(&living);
    start_server(&serving, BELOW ? &daemons : &waiting);
    sock = connect_client(&serving);
    other = connect_client(&serving);
    for (uint32_t i = 0; i < 12; i++)
        start_dying(sock, i, &dying, FF_FORK_DIE_WITH_CLIENT);
    start_dying(sock, 20, &living, 0);
    start_dying(other, 21, &living, FF_FORK_DIE_WITH_CLIENT);
    await_ready(&dying, 12 * (1 + BELOW));
    await_ready(&living, 2 * (1 + BELOW));
    let_go_of_gate(&dying);
    let_go_of_gate(&living);
    CHECK_INT(close(sock), 0);
    await_end(dying.ready[0]);
    CHECK(!is_readable(living.ready[0]));
    CHECK(!is_readable(other));
    open_gate(&living);
    check_exit(other, 21, 0);
    await_end(living.ready[0]);
    fd = ask_status(other);
    while (look(fd).live_children > 0)
        poll(NULL, 0, 1);
    close_all((int[]){other, fd}, 2);
    open_gate(&dying);
    stop_server(&serving);
    close_gate(&dying);
    close_gate(&living);
}

/* A client that goes at the very moment, after its request or in its answer. */
static void test_die_with_client_at_once(void)
{
    struct serving serving;
    struct gate gate;

    make_gate(&gate);
    start_server(&serving, BELOW ? &daemons : &waiting);
    for (uint32_t i = 0; i < 20; i++) {
        int sock = connect_client(&serving);

        CHECK_INT(ff_client_send(sock, i, FF_FORK_DIE_WITH_CLIENT, "\0", 1,
                                 (int[]){gate.ready[1], gate.open[0]}, 2),
                  0);
        if (i % 2)
            await_frame(sock, FF_FRAME_STARTED, i);
        CHECK_INT(close(sock), 0);
    }
    let_go_of_gate(&gate);
    while (read(gate.ready[0], &(char){0}, 1) == 1)
        continue;
    stop_server(&serving);
    open_gate(&gate);
    close_gate(&gate);
}

/* The last client goes, with all that it has: the server kills what is to die before it leaves. */
static void test_die_with_last_client(void)
{
    struct serving serving;
    struct gate gate;
    int sock;

    make_gate(&gate);
    start_server(&serving, &waiting);
    sock = connect_client(&serving);
    for (uint32_t i = 0; i < 12; i++)
        start_dying(sock, i, &gate, FF_FORK_DIE_WITH_CLIENT);
    await_ready(&gate, 12);
    let_go_of_gate(&gate);
    pause_server(&serving);
    CHECK_INT(close(sock), 0);
    release_server(&serving);
    resume_server(&serving);
    await_server_end(&serving);
    await_end(gate.ready[0]);
    open_gate(&gate);
    close_gate(&gate);
}

/* As long as its client lives such a child ends as any other. */
static void test_die_with_client_that_lives(void)
{
    struct serving serving;
    int sock;

    start_server(&serving, &ending);
    sock = connect_client(&serving);
    for (uint32_t i = 0; i < 3; i++) {
        start_child(sock, i, FF_FORK_DIE_WITH_CLIENT, "x\x05", 2, NULL, 0);
        check_exit(sock, i, 5);
    }
    CHECK_INT(close(sock), 0);
    stop_server(&serving);
}

/* Others are served while a tree is killed that takes many rounds. */
static int make_long_chain(const struct ff_request *request)
{
    for (int i = 0; i < 3 * FF_TREE_BATCH; i++)
        if (fork() == 0)
            return wait_at_gate(request);
    return wait_at_gate(request);
}

static void test_others_while_a_tree_dies(void)
{
    static const struct service growing = {.child = make_long_chain};
    struct serving serving;
    struct gate gate;
    int sock;
    int other;
    int fd;

    make_gate(&gate);
    start_server(&serving, BELOW ? &growing : &waiting);
    sock = connect_client(&serving);
    other = connect_client(&serving);
    fd = ask_status(other);
    start_dying(sock, 1, &gate, FF_FORK_DIE_WITH_CLIENT);
    await_ready(&gate, BELOW ? 3 * FF_TREE_BATCH + 1 : 1);
    CHECK_INT(close(sock), 0);
    CHECK_INT(close(ask_status(other)), 0);
    let_go_of_gate(&gate);
    await_end(gate.ready[0]);
    while (look(fd).live_children > 0)
        poll(NULL, 0, 1);
    close_all((int[]){other, fd}, 2);
    stop_server(&serving);
    open_gate(&gate);
    close_gate(&gate);
}

/* ---- refusals ---- */

static struct ff_frame frame_with(uint32_t flags, uint32_t payload_size, uint32_t fd_count)
{
    struct ff_frame frame = ff_frame_make(FF_FRAME_FORK, 77, (int32_t)flags);

    frame.payload_size = payload_size;
    frame.fd_count = fd_count;
    return frame;
}

static struct ff_frame status_with(uint32_t payload_size, uint32_t fd_count)
{
    struct ff_frame frame = frame_with(0, payload_size, fd_count);

    frame.type = FF_FRAME_STATUS;
    return frame;
}

/* The client is told why and is closed; so is the one descriptor that came along. Others go on. */
static void check_refused(const struct serving *serving, struct ff_frame frame, enum ff_refusal cause)
{
    int sock = connect_client(serving);
    int ends[2];

    make_pipe(ends);
    CHECK_INT(ff_msg_send(sock, &frame, sizeof frame, &ends[1], 1), sizeof frame);
    CHECK_INT(close(ends[1]), 0);
    CHECK_INT(await_frame(sock, FF_FRAME_REFUSED, 77), cause);
    await_end(sock);
    await_end(ends[0]);
    close_all((int[]){sock, ends[0]}, 2);
}

static void check_refused_heads(const struct serving *serving)
{
    struct ff_frame frame = frame_with(0, 0, 1);

    frame.magic ^= 1;
    check_refused(serving, frame, FF_REFUSED_MAGIC);
    frame = frame_with(0, 0, 1);
    frame.version = 0;
    check_refused(serving, frame, FF_REFUSED_VERSION);
    frame = frame_with(0, 0, 1);
    frame.type = FF_FRAME_EXITED;
    check_refused(serving, frame, FF_REFUSED_TYPE);
}

static void test_refusals(void)
{
    struct serving serving;
    int sock;

    start_server(&serving, &ending);
    sock = connect_client(&serving);
    check_refused_heads(&serving);
    check_refused(&serving, frame_with(0, FF_MAX_PAYLOAD + 1, 1), FF_REFUSED_PAYLOAD);
    check_refused(&serving, frame_with(0, 0, FF_MAX_FDS + 1), FF_REFUSED_FDS);
    check_refused(&serving, frame_with(0, 0, 0), FF_REFUSED_FDS);
    check_refused(&serving, frame_with(0, 0, 2), FF_REFUSED_FDS);
    check_refused(&serving, frame_with(32, 0, 1), FF_REFUSED_TYPE);
    check_refused(&serving, frame_with(FF_FORK_STREAM, 0, 1), FF_REFUSED_TYPE);
    check_refused(&serving, status_with(0, 1), FF_REFUSED_FDS);
    check_refused(&serving, status_with(1, 0), FF_REFUSED_PAYLOAD);
    check_refused(&serving, frame_with(FF_FORK_HELD, 0, 0), FF_REFUSED_TYPE);
    start_child(sock, 1, 0, "x\x05", 2, NULL, 0);
    check_exit(sock, 1, 5);
    CHECK_INT(close(sock), 0);
    stop_server(&serving);
}

/* ---- status ---- */

/* What a client has been told is on the page already. */
static void test_status(void)
{
    struct serving serving;
    struct gate gate;
    int sock;
    int fd;

    make_gate(&gate);
    start_server(&serving, &waiting);
    sock = connect_client(&serving);
    fd = ask_status(sock);
    CHECK_INT(look(fd).pid, serving.pid);
    CHECK(look(fd).started > 0);
    CHECK_INT(look(fd).clients, 1);
    for (uint32_t i = 0; i < 3; i++) {
        CHECK_INT(look(fd).starts, i);
        start_waiting(sock, i, &gate, 0);
        CHECK_INT(look(fd).live_children, i + 1);
    }
    open_gate(&gate);
    for (int i = 0; i < 3; i++)
        CHECK_INT(ff_client_receive(sock, DEADLINE_MS, &(struct ff_frame){0}, &(int){0}), 1);
    CHECK_INT(look(fd).live_children, 0);
    CHECK_INT(look(fd).starts, 3);
    close_gate(&gate);
    CHECK_INT(close(sock), 0);
    stop_server(&serving);
    CHECK_INT(look(fd).starts, 3);
    CHECK_INT(close(fd), 0);
}

/* Who is refused, and why; those in front of the door count as clients as long as they are there. */
static void test_status_of_refusals(void)
{
    struct serving serving;
    int sock;
    int stranger;
    int fd;

    start_server(&serving, &ending);
    sock = connect_client(&serving);
    fd = ask_status(sock);
    stranger = connect_stranger(&serving.address);
    answer_challenge(stranger, "another key");
    await_message(stranger, FAILURE, strlen(FAILURE));
    CHECK_INT(look(fd).refused[FF_REFUSED_KEY], 1);
    CHECK_INT(close(stranger), 0);
    check_refused_heads(&serving);
    check_refused(&serving, frame_with(0, FF_MAX_PAYLOAD + 1, 1), FF_REFUSED_PAYLOAD);
    check_refused(&serving, frame_with(0, 0, 2), FF_REFUSED_FDS);
    CHECK_INT(look(fd).refused[FF_REFUSED_MAGIC], 1);
    CHECK_INT(look(fd).refused[FF_REFUSED_VERSION], 1);
    CHECK_INT(look(fd).refused[FF_REFUSED_TYPE], 1);
    CHECK_INT(look(fd).refused[FF_REFUSED_PAYLOAD], 1);
    CHECK_INT(look(fd).refused[FF_REFUSED_FDS], 1);
    stranger = connect_client(&serving);
    while (look(fd).clients != 2) /* the refused ones are gone at the end of a batch */
        poll(NULL, 0, 1);
    close_all((int[]){sock, stranger, fd}, 3);
    stop_server(&serving);
}

/* A server that is stopped, even dead, needs not be asked. */
static void test_status_of_stopped_server(void)
{
    struct serving serving;
    int sock;
    int fd;

    start_server(&serving, &ending);
    sock = connect_client(&serving);
    fd = ask_status(sock);
    start_child(sock, 1, 0, "x\x05", 2, NULL, 0);
    check_exit(sock, 1, 5);
    pause_server(&serving);
    CHECK_INT(look(fd).starts, 1);
    resume_server(&serving);
    close_all((int[]){sock, fd}, 2);
    stop_server(&serving);
}

/* ---- what the server lacks ---- */

#define ROOM 6 /* descriptors beside the server's own: clients, and what they send */

/* The loop, the reserve and the status page take theirs first; listener and alive descriptor are there already. */
static void leave_little_room(void)
{
    leave_only_fds((check_wants_poll() ? 2 : 4) + 2 + ROOM);
}

/* A request with too many fails alone; the client and the next request are served. */
static void test_no_room_for_fds(void)
{
    static const struct service crowded = {.child = number_fds, .prepare = leave_little_room};
    struct serving serving;
    int fds[ROOM];
    uint32_t number;
    int status_fd;
    int ends[2];
    int sock;

    make_pipe(ends);
    for (int i = 0; i < ROOM; i++)
        fds[i] = ends[1];
    start_server(&serving, &crowded);
    sock = connect_client(&serving);
    CHECK_INT(ff_client_send(sock, 1, 0, NULL, 0, fds, ROOM), 0);
    CHECK_INT(await_frame(sock, FF_FRAME_FAILED, 1), EMFILE);
    status_fd = ask_status(sock);
    CHECK_INT(look(status_fd).failures[EMFILE], 1);
    CHECK_INT(close(status_fd), 0);
    start_child(sock, 2, 0, NULL, 0, fds, 2);
    check_exit(sock, 2, 0);
    for (uint32_t i = 0; i < 2; i++) {
        read_all(ends[0], &number, sizeof number);
        CHECK_INT(number, i);
    }
    close_both(ends);
    CHECK_INT(close(sock), 0);
    stop_server(&serving);
}

/* Not even the last descriptor missing keeps a client from its pidfd. */
static void test_pidfd_without_room(void)
{
    static const struct service crowded = {.child = number_fds, .prepare = leave_little_room};
    struct serving serving;
    int fds[ROOM - 1] = {0};
    int ends[2];
    int pidfd;
    int sock;

    make_pipe(ends);
    for (int i = 0; i < ROOM - 1; i++)
        fds[i] = ends[1];
    start_server(&serving, &crowded);
    sock = connect_client(&serving);
    CHECK_INT(ff_client_send(sock, 1, FF_FORK_PIDFD, NULL, 0, fds, ROOM - 1), 0);
    await_frame_with_fd(sock, FF_FRAME_STARTED, 1, &pidfd);
    CHECK_INT(pidfd >= 0, has_pidfds());
    check_exit(sock, 1, 0);
    if (pidfd >= 0)
        CHECK_INT(close(pidfd), 0);
    close_both(ends);
    CHECK_INT(close(sock), 0);
    stop_server(&serving);
}

/* Those for whom there is no room wait, whatever they do, and come in as soon as another one leaves. */
static void test_no_room_for_clients(void)
{
    static const struct service crowded = {
        .child = end_as_told, .prepare = leave_little_room, .conclude = check_little_cpu_used};
    struct serving serving;
    struct pollfd polled = {.events = POLLIN};
    int socks[ROOM];
    int last;

    start_server(&serving, &crowded);
    for (int i = 0; i < ROOM; i++)
        socks[i] = connect_client(&serving);
    last = connect_stranger(&serving.address);
    polled.fd = last;
    CHECK_INT(poll(&polled, 1, 400), 0);
    start_child(socks[0], 1, 0, "x\x05", 2, NULL, 0);
    check_exit(socks[0], 1, 5);
    CHECK_INT(close(socks[1]), 0);
    authenticate(last);
    socks[1] = last;
    close_all(socks, ROOM);
    stop_server(&serving);
}

static void fail_fork(void)
{
    fork_error = EAGAIN;
}

/* The first fork fails; its descriptors are closed, the held one too, and the client asks again. */
static void test_fork_that_fails(void)
{
    static const struct service failing = {.child = number_fds, .prepare = fail_fork};
    struct serving serving;
    uint32_t number;
    int ends[2];
    int sock;

    make_pipe(ends);
    start_server(&serving, &failing);
    sock = connect_client(&serving);
    CHECK_INT(ff_client_send(sock, 1, FF_FORK_HELD, NULL, 0, (int[]){ends[1], ends[1]}, 2), 0);
    CHECK_INT(await_frame(sock, FF_FRAME_FAILED, 1), EAGAIN);
    start_child(sock, 2, 0, NULL, 0, &ends[1], 1);
    CHECK_INT(close(ends[1]), 0);
    read_all(ends[0], &number, sizeof number);
    await_end(ends[0]);
    check_exit(sock, 2, 0);
    close_all((int[]){sock, ends[0]}, 2);
    stop_server(&serving);
}

/* Wait for the server to have looked for a place for one more in vain. */
static void await_lack_of_place(int status)
{
    for (int waited = 0; look(status).accept_failures[EMFILE] == 0; waited++) {
        CHECK(waited < DEADLINE_MS);
        poll(NULL, 0, 1);
    }
}

/* All of the handshake but the last word. */
static int connect_half_a_client(const struct serving *serving)
{
    unsigned char digest[FF_AUTH_MAX_MESSAGE];
    int sock = connect_stranger(&serving->address);

    answer_challenge(sock, AUTHKEY);
    challenge_server(sock);
    receive_message(sock, digest);
    return sock;
}

/* Say the last word and ask for a child: whether the server was still there to hear it. */
static bool try_to_become_a_client(int sock)
{
    const char word[] = "\0\0\0\x09" WELCOME;
    struct ff_frame frame;
    int fd;

    if (send(sock, word, sizeof word - 1, MSG_NOSIGNAL) < 0 ||
        ff_client_send(sock, 1, 0, "x\x05", 2, NULL, 0) < 0 ||
        ff_client_receive(sock, DEADLINE_MS, &frame, &fd) != 1)
        return false;
    CHECK_INT(frame.type, FF_FRAME_STARTED);
    check_exit(sock, 1, 5);
    return true;
}

/* Another one comes than there is room for, and the oldest stranger goes on a while later: false where all that has
 * taken so long that it may have lost its place. */
static bool try_fresh_stranger(void)
{
    static const struct service crowded = {.child = end_as_told, .prepare = leave_little_room};
    struct serving serving;
    int strangers[ROOM];
    double begin;
    bool is_served;
    int status;
    int sock;

    start_server(&serving, &crowded);
    sock = connect_client(&serving);
    status = ask_status(sock);
    begin = ff_seconds_now();
    strangers[0] = connect_half_a_client(&serving);
    for (int i = 1; i < ROOM; i++)
        strangers[i] = connect_stranger(&serving.address);
    await_lack_of_place(status);
    while (ff_seconds_now() < begin + 0.6e-3 * FF_GRACE_MS)
        poll(NULL, 0, 1);
    is_served = try_to_become_a_client(strangers[0]);
    CHECK(is_served || ff_seconds_now() >= begin + 1e-3 * FF_GRACE_MS);
    close_all(strangers, ROOM);
    close_all((int[]){sock, status}, 2);
    stop_server(&serving);
    return is_served;
}

/* However many others come, who has just come keeps its place for a while. */
static void test_fresh_strangers_keep_their_places(void)
{
    for (int tries = 1; !try_fresh_stranger(); tries++)
        CHECK(tries < 20);
}

/* All places are taken by those who do not go on: the oldest gives its own to one that does. */
static void test_strangers_make_room(void)
{
    static const struct service crowded = {
        .child = end_as_told, .prepare = leave_little_room, .conclude = check_little_cpu_used};
    struct serving serving;
    int strangers[ROOM];
    unsigned char challenge[FF_AUTH_MAX_MESSAGE];
    int socks[2];
    int fd;

    start_server(&serving, &crowded);
    for (int i = 0; i < ROOM; i++) {
        strangers[i] = connect_stranger(&serving.address);
        receive_message(strangers[i], challenge);
    }
    for (int i = 0; i < 2; i++) {
        socks[i] = connect_client(&serving);
        await_end(strangers[i]);
    }
    start_child(socks[0], 1, 0, "x\x05", 2, NULL, 0);
    check_exit(socks[0], 1, 5);
    CHECK_INT(close(strangers[5]), 0);
    fd = ask_status(socks[0]);
    CHECK_INT(look(fd).refused[FF_REFUSED_CLIENTS], 2);
    CHECK(look(fd).accept_failures[EMFILE] > 0);
    CHECK(!is_readable(strangers[2]));
    close_all(strangers, ROOM - 1);
    close_all((int[]){socks[0], socks[1], fd}, 3);
    stop_server(&serving);
}

static void do_nothing(void)
{
}

#define LOW_LIMIT 40 /* descriptors: fewer than a server with many clients needs */

static void lower_soft_limit(void)
{
    struct rlimit limit;

    CHECK_INT(getrlimit(RLIMIT_NOFILE, &limit), 0);
    limit.rlim_cur = LOW_LIMIT;
    CHECK_INT(setrlimit(RLIMIT_NOFILE, &limit), 0);
}

static void check_soft_limit(void)
{
    struct rlimit limit;

    CHECK_INT(getrlimit(RLIMIT_NOFILE, &limit), 0);
    CHECK_INT(limit.rlim_cur, LOW_LIMIT);
}

static void conclude_with_soft_limit(void)
{
    check_soft_limit();
    check_no_child();
}

static int check_limit_in_child(const struct ff_request *request)
{
    check_soft_limit();
    CHECK_INT(request->fd_count, 3);
    for (uint32_t i = 0; i < request->fd_count; i++)
        CHECK(request->fds[i] < LOW_LIMIT);
    return number_fds(request);
}

/* The server takes more clients than it had descriptors; its children have the old limit, and keep to it. */
static void test_limit_of_descriptors(void)
{
    enum { CLIENTS = 2 * LOW_LIMIT };
    static const struct ff_fork_hooks hooks = {do_nothing, do_nothing, check_soft_limit};
    static const struct service limited = {.child = check_limit_in_child,
                                           .prepare = lower_soft_limit,
                                           .conclude = conclude_with_soft_limit,
                                           .hooks = &hooks};
    struct serving serving;
    int socks[CLIENTS];
    uint32_t numbers[3];
    int ends[2];

    make_pipe(ends);
    start_server(&serving, &limited);
    for (int i = 0; i < CLIENTS; i++)
        socks[i] = connect_client(&serving);
    start_child(socks[CLIENTS - 1], 1, 0, NULL, 0, (int[]){ends[1], ends[1], ends[1]}, 3);
    check_exit(socks[CLIENTS - 1], 1, 0);
    read_all(ends[0], numbers, sizeof numbers);
    for (uint32_t i = 0; i < 3; i++)
        CHECK_INT(numbers[i], i);
    close_both(ends);
    close_all(socks, CLIENTS);
    stop_server(&serving);
}

/* ---- as many children as may live ---- */

static const struct service one_child = {.child = wait_at_gate, .max_children = 1};

static void send_waiting(int sock, uint32_t id, const struct gate *gate, char exit_code)
{
    CHECK_INT(ff_client_send(sock, id, 0, &exit_code, 1, (int[]){gate->ready[1], gate->open[0]}, 2), 0);
}

/* Those that ask for more wait, in turn, and so do their other requests; others are served meanwhile. */
static void test_max_children(void)
{
    struct serving serving;
    struct gate gates[4];
    int socks[4];
    int fd;

    start_server(&serving, &one_child);
    for (int i = 0; i < 4; i++) {
        make_gate(&gates[i]);
        socks[i] = connect_client(&serving);
    }
    start_waiting(socks[0], 0, &gates[0], 10);
    fd = ask_status(socks[0]);
    for (uint32_t i = 1; i < 4; i++) {
        send_waiting(socks[i], i, &gates[i], (char)(10 + i));
        CHECK_INT(ff_client_ask_status(socks[i], 99), 0);
        CHECK_INT(close(ask_status(socks[0])),
                  0); /* the server has seen the request before the next one comes */
    }
    CHECK_INT(look(fd).starts, 1);
    for (uint32_t i = 0; i < 4; i++) {
        for (uint32_t j = i + 1; j < 4; j++)
            CHECK(!is_readable(socks[j]));
        CHECK_INT(look(fd).live_children, 1);
        open_gate(&gates[i]);
        check_exit(socks[i], i, 10 + (int)i);
        if (i < 3) {
            CHECK(await_frame(socks[i + 1], FF_FRAME_STARTED, i + 1) > 0);
            await_ready(&gates[i + 1], 1);
            CHECK_INT(close(fd), 0);
            await_frame_with_fd(socks[i + 1], FF_FRAME_STATUS, 99, &fd);
        }
    }
    for (int i = 0; i < 4; i++)
        close_gate(&gates[i]);
    close_all(socks, 4);
    CHECK_INT(close(fd), 0);
    stop_server(&serving);
}

/* It is not started any more, and what it had sent is closed. */
static void test_waiting_client_that_vanishes(void)
{
    struct serving serving;
    struct gate gate;
    struct gate other_gate;
    int sock;
    int waiting_sock;
    int fd;

    make_gate(&gate);
    make_gate(&other_gate);
    start_server(&serving, &one_child);
    sock = connect_client(&serving);
    start_waiting(sock, 1, &gate, 1);
    waiting_sock = connect_client(&serving);
    send_waiting(waiting_sock, 2, &other_gate, 2);
    let_go_of_gate(&other_gate);
    fd = ask_status(sock);
    CHECK(!is_readable(other_gate.ready[0]));
    CHECK_INT(close(waiting_sock), 0);
    await_end(other_gate.ready[0]);
    open_gate(&gate);
    check_exit(sock, 1, 1);
    CHECK_INT(look(fd).starts, 1);
    CHECK_INT(look(fd).clients, 1);
    open_gate(&other_gate);
    close_gate(&gate);
    close_gate(&other_gate);
    close_all((int[]){sock, fd}, 2);
    stop_server(&serving);
}

/* Nobody is forgotten, whatever the order; a server that is let go of serves those that wait. */
static void test_many_wait(void)
{
    enum { CLIENTS = 30, EACH = 3 };
    static const struct service few = {.child = end_as_told, .max_children = 3};
    struct serving serving;
    int socks[CLIENTS];

    start_server(&serving, &few);
    for (int i = 0; i < CLIENTS; i++)
        socks[i] = connect_client(&serving);
    for (int i = 0; i < CLIENTS; i++)
        for (uint32_t id = 0; id < EACH; id++)
            CHECK_INT(ff_client_send(socks[i], id, 0, (char[]){'x', (char)(i + 1)}, 2, NULL, 0), 0);
    release_server(&serving);
    for (int i = 0; i < CLIENTS; i++) {
        for (int exits = 0; exits < EACH;) {
            struct ff_frame frame;
            int fd;

            CHECK_INT(ff_client_receive(socks[i], DEADLINE_MS, &frame, &fd), 1);
            if (frame.type == FF_FRAME_STARTED)
                continue;
            CHECK_INT(frame.type, FF_FRAME_EXITED);
            CHECK_INT(frame.value, i + 1);
            exits++;
        }
    }
    await_server_end(&serving);
    close_all(socks, CLIENTS);
}

/* ---- served twice ---- */

/* Each call ends at the end of the alive descriptor; the next one finds it at its end and leaves nothing open. */
static void test_serve_again(void)
{
    struct sockaddr_un address;
    struct ff_server *server;
    struct ff_request request;
    struct ff_config config;
    int listener = make_listener(&address);
    int alive[2];

    make_pipe(alive);
    config = serving_config(listener, alive[0]);
    CHECK_INT(close(alive[1]), 0);
    CHECK_INT(ff_server_new(&config, &server), 0);
    for (int i = 0; i < 3; i++)
        CHECK_INT(ff_server_serve(server, &request), 0);
    ff_server_free(server);
    CHECK(!check_fd_is_open(listener));
    remove_listener(&address);
}

/* ---- around the fork ---- */

static int hook_fds;

static void count_in_child(void)
{
    hook_fds = check_count_fds();
}

/* A hook in the child finds the descriptors of an ordinary process. */
static int compare_hook_fds(const struct ff_request *request)
{
    CHECK_INT(request->fd_count, 0);
    CHECK_INT(hook_fds, check_count_fds());
    return 0;
}

static void test_hooks(void)
{
    static const struct ff_fork_hooks hooks = {do_nothing, do_nothing, count_in_child};
    static const struct service hooked = {.child = compare_hook_fds, .hooks = &hooks};
    struct serving serving;
    int sock;

    start_server(&serving, &hooked);
    sock = connect_client(&serving);
    start_child(sock, 1, 0, NULL, 0, NULL, 0);
    check_exit(sock, 1, 0);
    CHECK_INT(close(sock), 0);
    stop_server(&serving);
}

static pid_t stranger_pid;

/* A subprocess of a preloaded module, dead before the first request. */
static void start_stranger(void)
{
    siginfo_t info;

    stranger_pid = fork();
    CHECK(stranger_pid >= 0);
    if (stranger_pid == 0)
        _exit(42);
    CHECK_INT(waitid(P_PID, (id_t)stranger_pid, &info, WEXITED | WNOWAIT), 0);
}

static void reap_stranger(void)
{
    CHECK_INT(WEXITSTATUS(await_status(stranger_pid)), 42);
    check_no_child();
}

static void test_stranger_keeps_its_status(void)
{
    static const struct service host = {
        .child = end_as_told, .prepare = start_stranger, .conclude = reap_stranger};
    struct serving serving;
    int sock;

    start_server(&serving, &host);
    sock = connect_client(&serving);
    for (uint32_t i = 0; i < 5; i++) {
        start_child(sock, i, 0, "x\x05", 2, NULL, 0);
        check_exit(sock, i, 5);
    }
    CHECK_INT(close(sock), 0);
    stop_server(&serving);
}

/* ---- several servers in one tree ---- */

/* The child of a server becomes one: its request brings a listener and an alive descriptor. */
static int become_server(const struct ff_request *request)
{
    int listener = request->fds[0];
    int alive = request->fds[1];

    CHECK_INT(request->fd_count, 2);
    serve_here(&ending, listener, alive);
    return 12;
}

static void test_nested_server(void)
{
    static const struct service nesting = {.child = become_server};
    struct serving outer;
    struct serving inner;
    int listener;
    int alive[2];
    int outer_sock;
    int inner_sock;

    start_server(&outer, &nesting);
    outer_sock = connect_client(&outer);
    listener = make_listener(&inner.address);
    make_pipe(alive);
    start_child(outer_sock, 1, 0, NULL, 0, (int[]){listener, alive[0]}, 2);
    inner_sock = connect_client(&inner);
    start_child(inner_sock, 1, 0, "x\x05", 2, NULL, 0);
    check_exit(inner_sock, 1, 5);
    CHECK_INT(close(alive[1]), 0);
    check_exit(outer_sock, 1, 12);
    await_end(inner_sock);
    close_all((int[]){listener, alive[0], outer_sock, inner_sock}, 4);
    remove_listener(&inner.address);
    stop_server(&outer);
}

/* Two forks of one process that asks both: each has its own children, and ends by itself. */
static void test_two_servers(void)
{
    struct serving first;
    struct serving second;
    int socks[2];

    start_server(&first, &ending);
    socks[0] = connect_client(&first);
    start_server(&second, &ending);
    socks[1] = connect_client(&second);
    for (uint32_t i = 0; i < 4; i++) {
        start_child(socks[i % 2], i, 0, "x\x05", 2, NULL, 0);
        check_exit(socks[i % 2], i, 5);
    }
    stop_server(&second);
    start_child(socks[0], 9, 0, "x\x06", 2, NULL, 0);
    check_exit(socks[0], 9, 6);
    stop_server(&first);
    close_all(socks, 2);
}

int main(void)
{
    RUN(test_end_without_clients);
    RUN(test_end_with_clients);
    RUN(test_end_with_children);
    RUN(test_end_waits_for_children);
    RUN(test_end_and_death_at_once);
    RUN(test_end_after_a_request);
    RUN(test_end_waits_for_slow_reader);
    RUN(test_end_with_strangers);
    RUN(test_one_server_after_another);
    RUN(test_unsound_config);
    RUN(test_wrong_key);
    RUN(test_no_handshake);
    RUN(test_fds);
    RUN(test_payloads);
    RUN(test_signals_in_children);
    RUN(test_numbers_used_again_in_children);
    RUN(test_exit_codes);
    RUN(test_killed_from_outside);
    RUN(test_many_in_a_row);
    RUN(test_many_at_once);
    RUN(test_held);
    RUN(test_held_while_alive);
    RUN(test_held_by_siblings);
    RUN(test_stream);
    RUN(test_held_by_slow_reader);
    RUN(test_pidfd);
    RUN(test_several_clients);
    RUN(test_slow_clients);
    RUN(test_client_that_vanishes);
    RUN(test_client_that_vanishes_in_a_request);
    RUN(test_client_that_vanishes_after_a_request);
    RUN(test_die_with_client);
    RUN(test_die_with_client_at_once);
    RUN(test_die_with_last_client);
    RUN(test_die_with_client_that_lives);
    RUN(test_others_while_a_tree_dies);
    RUN(test_refusals);
    RUN(test_status);
    RUN(test_status_of_refusals);
    RUN(test_status_of_stopped_server);
    RUN(test_no_room_for_fds);
    RUN(test_pidfd_without_room);
    RUN(test_no_room_for_clients);
    RUN(test_fresh_strangers_keep_their_places);
    RUN(test_strangers_make_room);
    RUN(test_limit_of_descriptors);
    RUN(test_max_children);
    RUN(test_waiting_client_that_vanishes);
    RUN(test_many_wait);
    RUN(test_serve_again);
    RUN(test_fork_that_fails);
    RUN(test_hooks);
    RUN(test_stranger_keeps_its_status);
    RUN(test_nested_server);
    RUN(test_two_servers);
    return 0;
}
