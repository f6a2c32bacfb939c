/* test_faults.c: each call that a server makes fails, with each errno that its manual page names, at each place.
 *
 * What is asked of a server in every case: it goes on; a start that fails says why; the very next one works; exit
 * codes arrive; no descriptor, memory or zombie is lost. A missing call (ENOSYS) is done without altogether. Only
 * what a server cannot begin without may keep it from beginning, and then it says so.
 */
#define _GNU_SOURCE

#include "faults.h"
#include "serving.h"

#define MAX_POSITION 40
#define COULD_NOT_BEGIN 42 /* exit status */

/* ---- the server's side ---- */

static void nothing(void)
{
}

static void disarm(void)
{
    fault.is_armed = false;
}

static const struct ff_fork_hooks disarming = {nothing, nothing, disarm};

/* It ends by exit(), which looks for memory that was lost. */
__attribute__((noreturn)) static void serve_faulty(int listener, int alive)
{
    struct ff_config config = serving_config(listener, alive);
    struct ff_server *server;
    struct ff_request request;
    int fds_before = check_count_fds();
    int result;

    fault.is_armed = fault.call != NULL;
    result = ff_server_new(&config, &server);
    if (result < 0)
        exit(result == -fault.error ? COULD_NOT_BEGIN : 3);
    result = ff_server_serve_hooked(server, &disarming, &request);
    if (result == 1) {
        CHECK_INT(request.payload_size, 600);
        CHECK_INT(request.fd_count, 1);
        write_all(request.fds[0], "r", 1);
        _exit(7);
    }
    disarm();
    ff_server_free(server);
    CHECK_INT(check_count_fds(), fds_before - 2);
    check_no_child();
    if (result < 0)
        exit(result == -fault.error ? COULD_NOT_BEGIN : 4);
    exit(0);
}

static void start_faulty(struct serving *serving)
{
    int listener = make_listener(&serving->address);
    int alive[2];

    make_pipe(alive);
    serving->pid = fork();
    CHECK(serving->pid >= 0);
    if (serving->pid == 0) {
        close_all_but(listener, alive[0]);
        alarm(CHECK_TEST_SECONDS);
        serve_faulty(listener, alive[0]);
    }
    CHECK_INT(close(listener), 0);
    CHECK_INT(close(alive[0]), 0);
    serving->alive = alive[1];
}

/* ---- the client's side: it lives with what may happen ---- */

static bool try_read(int sock, void *ret_bytes, size_t size)
{
    size_t have = 0;

    while (have < size) {
        ssize_t received;

        await_readable(sock);
        received = recv(sock, (char *)ret_bytes + have, size - have, 0);
        if (received <= 0)
            return false;
        have += (size_t)received;
    }
    return true;
}

static bool try_receive_message(int sock, unsigned char ret_body[FF_AUTH_MAX_MESSAGE], size_t *ret_size)
{
    unsigned char prefix[FF_AUTH_PREFIX_SIZE];

    if (!try_read(sock, prefix, sizeof prefix))
        return false;
    *ret_size = ff_auth_read_prefix(prefix);
    CHECK(*ret_size <= FF_AUTH_MAX_MESSAGE);
    return try_read(sock, ret_body, *ret_size);
}

static bool try_send_message(int sock, const void *body, size_t size)
{
    unsigned char bytes[FF_AUTH_PREFIX_SIZE + FF_AUTH_MAX_MESSAGE] = {0, 0, 0, (unsigned char)size};

    memcpy(bytes + FF_AUTH_PREFIX_SIZE, body, size);
    size += FF_AUTH_PREFIX_SIZE;
    return send(sock, bytes, size, MSG_NOSIGNAL) == (ssize_t)size;
}

static bool try_authenticate(int sock)
{
    unsigned char message[FF_AUTH_MAX_MESSAGE];
    unsigned char answer[DIGEST_NAME_SIZE + FF_SHA256_SIZE];
    size_t tag_size = strlen(CHALLENGE);
    size_t size;

    if (!try_receive_message(sock, message, &size))
        return false;
    sign(AUTHKEY, message + tag_size, size - tag_size, answer);
    return try_send_message(sock, answer, sizeof answer) && try_receive_message(sock, message, &size) &&
           try_send_message(sock, CHALLENGE CHALLENGE_BODY, strlen(CHALLENGE CHALLENGE_BODY)) &&
           try_receive_message(sock, message, &size) && try_send_message(sock, WELCOME, strlen(WELCOME));
}

/* A connection, or -1. */
static int try_connect(const struct serving *serving)
{
    int sock = socket(AF_UNIX, SOCK_STREAM, 0);

    if (connect(sock, (const struct sockaddr *)&serving->address, sizeof serving->address) == 0 &&
        try_authenticate(sock))
        return sock;
    close(sock);
    return -1;
}

/* ---- one case ---- */

struct trial {
    struct serving serving;
    bool may_break; /* the call is one by which a connection may end */
    int sock;
    int failures; /* of a fault that strikes once there is one at most */
};

static void count_failure(struct trial *trial)
{
    trial->failures++;
    CHECK(fault.for_ever || trial->failures <= 1);
    CHECK(trial->failures <= 5);
}

static void reconnect(struct trial *trial)
{
    count_failure(trial);
    CHECK(trial->may_break);
    CHECK_INT(close(trial->sock), 0);
    trial->sock = try_connect(&trial->serving);
    CHECK(trial->sock >= 0);
}

/* A frame for this request, or false at the end of the connection. */
static bool try_await_frame(struct trial *trial, uint32_t id, struct ff_frame *ret_frame)
{
    int fd;
    int result = ff_client_receive(trial->sock, DEADLINE_MS, ret_frame, &fd);

    if (result == -EPIPE || result == -ECONNRESET)
        return false;
    CHECK_INT(result, 1);
    CHECK_INT(ret_frame->id, id);
    if (fd >= 0)
        CHECK_INT(close(fd), 0);
    return true;
}

/* Ask for one child: whether it has been started, and its exit code has come. */
static bool try_start(struct trial *trial, uint32_t id)
{
    static const char payload[600];
    const uint32_t flags = FF_FORK_PIDFD | FF_FORK_HELD | FF_FORK_STREAM;
    struct ff_frame frame;
    int held[2];
    int ready[2];
    bool is_told;

    make_pipe(held);
    make_pipe(ready);
    is_told =
        ff_client_send(trial->sock, id, flags, payload, sizeof payload, (int[]){held[1], ready[1]}, 2) == 0;
    close_all((int[]){held[1], ready[1]}, 2);
    is_told = is_told && try_await_frame(trial, id, &frame);
    if (is_told && frame.type == FF_FRAME_STARTED) {
        is_told = try_await_frame(trial, id, &frame);
        if (is_told) {
            CHECK_INT(frame.type, FF_FRAME_EXITED);
            CHECK_INT(frame.value, 7);
        }
    } else if (is_told) {
        CHECK_INT(frame.type, FF_FRAME_FAILED);
        CHECK_INT(frame.value, fault.error);
    }
    while (read(held[0], &(char[64]){0}, 64) > 0) /* whatever has happened, the sentinel ends */
        continue;
    close_all((int[]){held[0], ready[0]}, 2);
    if (!is_told)
        reconnect(trial);
    else if (frame.type == FF_FRAME_FAILED)
        count_failure(trial);
    return is_told && frame.type == FF_FRAME_EXITED;
}

static void ask_for_status(struct trial *trial)
{
    struct ff_frame frame;

    if (ff_client_ask_status(trial->sock, 500) < 0 || !try_await_frame(trial, 500, &frame))
        reconnect(trial);
    else
        CHECK(frame.type == FF_FRAME_STATUS || (frame.type == FF_FRAME_FAILED && frame.value == fault.error));
}

static void use_server(struct trial *trial)
{
    ask_for_status(trial);
    for (uint32_t id = 1; id <= 3; id++)
        while (!try_start(trial, id))
            continue;
    ask_for_status(trial);
    CHECK_INT(close(trial->sock), 0);
}

/* It is left to be reaped. */
static bool is_dead(pid_t pid)
{
    siginfo_t info = {0};

    CHECK_INT(waitid(P_PID, (id_t)pid, &info, WEXITED | WNOHANG | WNOWAIT), 0);
    return info.si_pid == pid;
}

/* Returns false where the server could not begin, and has said so. */
static bool try_to_use_server(struct trial *trial)
{
    trial->sock = try_connect(&trial->serving);
    if (trial->sock < 0 && !is_dead(trial->serving.pid))
        trial->sock = try_connect(&trial->serving); /* this one alone was turned away */
    if (trial->sock < 0)
        return false;
    use_server(trial);
    return true;
}

static void try_case(bool may_break)
{
    struct trial trial = {.may_break = may_break};
    bool was_used;

    *fault.has_struck = false;
    start_faulty(&trial.serving);
    was_used = try_to_use_server(&trial);
    CHECK_INT(close(trial.serving.alive), 0);
    CHECK_INT(WEXITSTATUS(await_status(trial.serving.pid)), was_used ? 0 : COULD_NOT_BEGIN);
    remove_listener(&trial.serving.address);
}

/* ---- all cases ---- */

#define BREAKS true /* a connection may end by it */

static const struct {
    const char *call;
    bool may_break;
    int errors[8]; /* ended by 0 */
} table[] = {
    {"fork", false, {EAGAIN, ENOMEM}},
    {"accept", false, {ECONNABORTED, EINTR, EMFILE, ENFILE, ENOBUFS, ENOMEM, EPERM}},
    {"accept4", false, {ECONNABORTED, EINTR, EMFILE, ENFILE, ENOBUFS, ENOMEM, ENOSYS}},
    {"recvmsg", false, {EINTR, ENOMEM, EAGAIN}},
    {"recvmsg", BREAKS, {ECONNRESET}},
    {"sendmsg", false, {EINTR, ENOMEM, ENOBUFS, ETOOMANYREFS}},
    {"sendmsg", BREAKS, {ECONNRESET, EPIPE}},
    {"send", false, {EPIPE, EAGAIN, ENOMEM}},
    {"epoll_create1", false, {EMFILE, ENFILE, ENOMEM, ENOSYS}},
    {"epoll_ctl", false, {ENOMEM, ENOSPC}},
    {"epoll_wait", false, {EINTR}},
    {"poll", false, {EINTR, ENOMEM}},
    {"pipe2", false, {EMFILE, ENFILE, ENOSYS}},
    {"pipe", false, {EMFILE, ENFILE}},
    {"signalfd", false, {EMFILE, ENFILE, ENODEV, ENOMEM, ENOSYS}},
    {"waitid", false, {EINTR, ENOSYS}},
    {"wait4", false, {EINTR, EINVAL}},
    {"mmap", false, {EACCES, EAGAIN, ENOMEM}},
    {"madvise", false, {EAGAIN, EINVAL, ENOMEM}},
    {"ftruncate", false, {EPERM, EINTR}},
    {"fcntl", BREAKS, {EAGAIN, EMFILE, EPERM}},
    {"getrlimit", false, {EPERM, EINVAL}},
    {"setrlimit", false, {EPERM, EINVAL}},
    {"getentropy", false, {EIO, ENOSYS}},
    {"getsockopt", false, {ENOBUFS, ENOPROTOOPT}},
    {"read", false, {EINTR, EAGAIN}},
    {"write", false, {EINTR}},
    {"open", false, {EACCES, EMFILE, ENFILE, ENOENT, ENOMEM}},
    {"shm_open", false, {EACCES, EEXIST, EMFILE, ENFILE}},
    {"pidfd_open", false, {EINVAL, EMFILE, ENFILE, ENODEV, ENOMEM, ENOSYS}},
    {"memfd_create", false, {EINVAL, EMFILE, ENFILE, ENOMEM, ENOSYS}},
    {"close_range", false, {EINVAL, EMFILE, ENOMEM, ENOSYS}},
    {"pwritev2", false, {EAGAIN, EOPNOTSUPP, ENOSYS}},
    {"malloc", false, {ENOMEM}},
    {"calloc", false, {ENOMEM}},
    {"realloc", false, {ENOMEM}},
};

static void try_everywhere(const char *call, int error, bool may_break)
{
    fault.call = call;
    fault.error = error;
    for (int i = 0; i < MAX_POSITION; i++) {
        fault.for_ever = error == ENOSYS;
        fault.position = i;
        try_case(may_break);
        if (!*fault.has_struck || fault.for_ever)
            return;
    }
}

static void test_calls_that_fail(void)
{
    fault.has_struck = mmap(NULL, sizeof(bool), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    CHECK(fault.has_struck != MAP_FAILED);
    for (size_t i = 0; i < sizeof table / sizeof *table; i++) {
        for (const int *error = table[i].errors; *error != 0; error++) {
            char name[64];

            snprintf(name, sizeof name, "%s: %s", table[i].call, strerror(*error));
            check_name = name;
            alarm(CHECK_TEST_SECONDS);
            try_everywhere(table[i].call, *error, table[i].may_break);
            check_name = "test_calls_that_fail";
        }
    }
    munmap(fault.has_struck, sizeof(bool));
}

int main(void)
{
    RUN(test_calls_that_fail);
    return 0;
}
