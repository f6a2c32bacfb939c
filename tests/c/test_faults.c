/* test_faults.c: each call that a server makes fails, with each errno that its manual page names, at each place.
 *
 * What is asked of a server in every case: it goes on; a start that fails says why; the very next one works; exit
 * codes arrive; whoever is to die with its client dies; no descriptor, memory or zombie is lost. A missing call (ENOSYS)
 * is done without altogether. Only what a server cannot begin without may keep it from beginning, and then it says so.
 *
 * The table says what each call may do: all the rest fails the test. It says, too, where the server makes the call at
 * all: a row that never strikes tests nothing.
 */
#define _GNU_SOURCE

#include "faults.h"
#include "serving.h"

#define MAX_POSITION 400   /* beyond what any call is made in one case */
#define COULD_NOT_BEGIN 42 /* exit status */
#define PAYLOAD_SIZE 600   /* bytes: more than the server takes without allocating */
#define BURST 24           /* requests at once: enough for a pace, so that there are spares */

#define FOR_EVER 'e' /* the first byte of a payload: its child does not end by itself */

/* ---- the server's side ---- */

static void nothing(void)
{
}

static void disarm(void)
{
    fault.is_armed = false;
}

static void arm(int number)
{
    (void)number;
    fault.is_armed = true;
}

static const struct ff_fork_hooks disarming = {nothing, nothing, disarm};

__attribute__((noreturn)) static void do_as_told(const struct ff_request *request)
{
    CHECK_INT(request->payload_size, PAYLOAD_SIZE);
    CHECK_INT(request->fd_count, 1);
    write_all(request->fds[0], "r", 1);
    while (request->payload[0] == FOR_EVER)
        pause();
    _exit(7);
}

/* The server may have more, and raises its limit. */
static void lower_limit(void)
{
    struct rlimit limit;

    CHECK_INT(getrlimit(RLIMIT_NOFILE, &limit), 0);
    limit.rlim_cur = 2 * FF_MAX_FDS_PER_MESSAGE;
    CHECK(limit.rlim_cur < limit.rlim_max);
    CHECK_INT(setrlimit(RLIMIT_NOFILE, &limit), 0);
}

/* It ends by exit(), which looks for memory that was lost. */
__attribute__((noreturn)) static void serve_faulty(int listener, int alive, uint32_t max_spares)
{
    struct ff_config config = serving_config(listener, alive);
    struct ff_server *server;
    struct ff_request request;
    int fds_before = check_count_fds();
    int result;

    config.max_spares = max_spares;
    config.spare_quiet_ms = DEADLINE_MS;
    lower_limit();
    signal(SIGUSR1, arm);
    fault.has_waited = false; /* the test has */
    fault.is_armed = max_spares == 0;
    result = ff_server_new(&config, &server);
    if (result < 0)
        exit(result == -fault.error ? COULD_NOT_BEGIN : 3);
    result = ff_server_serve_hooked(server, &disarming, &request);
    if (result == FF_SERVED_UNFIT)
        _exit(0);
    if (result == FF_SERVED_SPARE)
        result = await_request(server, &request);
    if (result == FF_SERVED_CHILD)
        do_as_told(&request);
    disarm();
    ff_server_free(server);
    CHECK_INT(check_count_fds(), fds_before - 2);
    check_no_child();
    if (result < 0)
        exit(result == -fault.error ? COULD_NOT_BEGIN : 4);
    exit(0);
}

static void start_faulty(struct serving *serving, uint32_t max_spares)
{
    int listener = make_listener(&serving->address);
    int alive[2];

    make_pipe(alive);
    serving->pid = fork();
    CHECK(serving->pid >= 0);
    if (serving->pid == 0) {
        close_all_but(listener, alive[0]);
        alarm(CHECK_TEST_SECONDS);
        serve_faulty(listener, alive[0], max_spares);
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

/* What a call that fails may do beside failing a request. */
enum {
    BREAKS = 1,     /* end a connection */
    TURNS_AWAY = 2, /* end one that has just been accepted */
    PREVENTS = 4,   /* keep the server from beginning */
};

struct trial {
    struct serving serving;
    int may; /* of the above */
    int sock;
    int failures; /* of a fault that strikes once there is one at most */
};

static void count_failure(struct trial *trial)
{
    trial->failures++;
    CHECK(fault.for_ever || trial->failures <= 1);
    CHECK(trial->failures <= 5);
}

/* It is left to be reaped. */
static bool is_dead(pid_t pid)
{
    siginfo_t info = {0};

    CHECK_INT(waitid(P_PID, (id_t)pid, &info, WEXITED | WNOHANG | WNOWAIT), 0);
    return info.si_pid == pid;
}

/* -1 where there is no server. */
static int connect_or_retry(struct trial *trial)
{
    int sock = try_connect(&trial->serving);

    if (sock >= 0 || is_dead(trial->serving.pid))
        return sock;
    sock = try_connect(&trial->serving);
    if (sock < 0)
        return -1;
    CHECK(trial->may & (TURNS_AWAY | BREAKS));
    count_failure(trial);
    return sock;
}

static void reconnect(struct trial *trial)
{
    count_failure(trial);
    CHECK(trial->may & BREAKS);
    CHECK_INT(close(trial->sock), 0);
    trial->sock = try_connect(&trial->serving);
    CHECK(trial->sock >= 0);
}

/* A frame for this request, or false at the end of the connection. */
static bool try_await_frame(int sock, uint32_t id, struct ff_frame *ret_frame)
{
    int fd;
    int result = ff_client_receive(sock, DEADLINE_MS, ret_frame, &fd);

    if (result == -EPIPE || result == -ECONNRESET)
        return false;
    CHECK_INT(result, 1);
    CHECK_INT(ret_frame->id, id);
    if (fd >= 0)
        CHECK_INT(close(fd), 0);
    return true;
}

/* What is asked for. */
struct wish {
    uint32_t flags;
    bool holds_socket; /* and not a pipe */
};

/* Send a request whose child writes to a pipe: its other end, or -1 where the connection has ended. */
static int try_ask(int sock, uint32_t id, uint32_t flags, char first, int held)
{
    const uint32_t block[3] = {sizeof block, FF_OPTION_NEW_SESSION, 0};
    size_t size = flags & FF_FORK_OPTIONS ? sizeof block : 0;
    char payload[sizeof block + PAYLOAD_SIZE] = {0};
    int ready[2];
    int fds[2];
    uint32_t fd_count = 0;
    int result;

    make_pipe(ready);
    memcpy(payload, block, size);
    payload[size] = first;
    if (flags & FF_FORK_HELD)
        fds[fd_count++] = held;
    fds[fd_count++] = ready[1];
    result = ff_client_send(sock, id, flags, payload, (uint32_t)(size + PAYLOAD_SIZE), fds, fd_count);
    CHECK_INT(close(ready[1]), 0);
    if (result == 0)
        return ready[0];
    CHECK_INT(close(ready[0]), 0);
    return -1;
}

/* A child on demand that could not say that it begins leaves its server nothing to tell but that, and a stream that does
 * not say what it is is none. */
static void check_failure(const struct ff_frame *frame, uint32_t flags)
{
    bool is_mute = flags & FF_FORK_OPTIONS && frame->value == EPIPE;
    bool is_no_stream =
        flags & FF_FORK_STREAM && frame->value == EINVAL && strcmp(fault.call, "getsockopt") == 0;

    CHECK_INT(frame->type, FF_FRAME_FAILED);
    if (!is_mute && !is_no_stream)
        CHECK_INT(frame->value, fault.error);
}

/* Ask for one child: whether it has been started, and its exit code has come. */
static bool try_start(struct trial *trial, uint32_t id, struct wish wish)
{
    struct ff_frame frame;
    int held[2];
    int ready;
    bool is_told;

    if (wish.holds_socket)
        make_pair(held);
    else
        make_pipe(held);
    ready = try_ask(trial->sock, id, wish.flags, 0, held[1]);
    CHECK_INT(close(held[1]), 0);
    is_told = ready >= 0 && try_await_frame(trial->sock, id, &frame);
    if (is_told && frame.type == FF_FRAME_STARTED) {
        is_told = try_await_frame(trial->sock, id, &frame);
        if (is_told) {
            CHECK_INT(frame.type, FF_FRAME_EXITED);
            CHECK_INT(frame.value, 7);
        }
    } else if (is_told) {
        check_failure(&frame, wish.flags);
    }
    while (read(held[0], &(char[64]){0}, 64) > 0) /* whatever has happened, the sentinel ends */
        continue;
    CHECK_INT(close(held[0]), 0);
    if (ready >= 0)
        CHECK_INT(close(ready), 0);
    if (!is_told)
        reconnect(trial);
    else if (frame.type == FF_FRAME_FAILED)
        count_failure(trial);
    return is_told && frame.type == FF_FRAME_EXITED;
}

/* A child that goes on for ever: whether it has been started, and has ended once its client has gone. */
static bool try_doom(struct trial *trial)
{
    int sock = connect_or_retry(trial);
    int ready = try_ask(sock, 1, FF_FORK_DIE_WITH_CLIENT, FOR_EVER, -1);
    struct ff_frame frame;
    bool is_told = ready >= 0 && try_await_frame(sock, 1, &frame);
    char byte;

    if (!is_told)
        CHECK(trial->may & BREAKS);
    else if (frame.type == FF_FRAME_STARTED)
        read_all(ready, &byte, 1);
    else
        check_failure(&frame, 0);
    CHECK_INT(close(sock), 0);
    if (ready >= 0) {
        do
            await_readable(ready);
        while (read(ready, &byte, 1) > 0);
        CHECK_INT(close(ready), 0);
    }
    if (is_told && frame.type == FF_FRAME_STARTED)
        return true;
    count_failure(trial);
    return false;
}

static void ask_for_status(struct trial *trial)
{
    struct ff_frame frame;

    if (ff_client_ask_status(trial->sock, 500) < 0 || !try_await_frame(trial->sock, 500, &frame))
        reconnect(trial);
    else if (frame.type == FF_FRAME_FAILED)
        CHECK_INT(frame.value, fault.error);
    else
        CHECK_INT(frame.type, FF_FRAME_STATUS);
}

static void use_server(struct trial *trial)
{
    static const struct wish wishes[] = {
        {.flags = FF_FORK_PIDFD | FF_FORK_HELD | FF_FORK_STREAM},
        {.flags = FF_FORK_PIDFD | FF_FORK_HELD | FF_FORK_STREAM, .holds_socket = true},
        {.flags = FF_FORK_HELD, .holds_socket = true},
        {.flags = FF_FORK_PIDFD | FF_FORK_HELD | FF_FORK_STREAM | FF_FORK_OPTIONS},
    };

    write_all(trial->serving.alive, "", 1); /* it is no end that may be read there */
    ask_for_status(trial);
    for (uint32_t i = 0; i < sizeof wishes / sizeof *wishes; i++)
        while (!try_start(trial, i + 1, wishes[i]))
            continue;
    while (!try_doom(trial))
        continue;
    ask_for_status(trial);
    CHECK_INT(close(trial->sock), 0);
}

static void await_spare(int status)
{
    for (int waited = 0; look(status).spares == 0; waited++) {
        CHECK(waited < DEADLINE_MS);
        poll(NULL, 0, 1);
    }
}

static void use_spares(struct trial *trial)
{
    static const struct wish wish = {.flags = FF_FORK_PIDFD | FF_FORK_HELD, .holds_socket = true};
    struct ff_frame frame;
    int status = ask_status(trial->sock);
    int readies[BURST];

    for (uint32_t i = 0; i < BURST; i++)
        readies[i] = try_ask(trial->sock, 9, 0, 0, -1);
    for (int i = 0; i < 2 * BURST; i++) /* started, and exited */
        CHECK(try_await_frame(trial->sock, 9, &frame));
    close_all(readies, BURST);
    await_spare(status);
    CHECK_INT(kill(trial->serving.pid, SIGUSR1), 0); /* from here on the fault may strike */
    for (uint32_t id = 10; id <= 15; id++)
        while (!try_start(trial, id, wish))
            continue;
    close_all((int[]){status, trial->sock}, 2);
}

static void try_case(int may, bool has_spares)
{
    struct trial trial = {.may = may};
    bool was_used;

    *fault.has_struck = *fault.was_waiting = false;
    start_faulty(&trial.serving, has_spares ? 1 : 0);
    trial.sock = connect_or_retry(&trial);
    was_used = trial.sock >= 0;
    if (was_used && has_spares)
        use_spares(&trial);
    else if (was_used)
        use_server(&trial);
    CHECK_INT(close(trial.serving.alive), 0);
    CHECK_INT(WEXITSTATUS(await_status(trial.serving.pid)), was_used ? 0 : COULD_NOT_BEGIN);
    CHECK(was_used || (may & PREVENTS && !*fault.was_waiting));
    remove_listener(&trial.serving.address);
}

/* ---- all cases ---- */

/* Where a call is made in any case, so that the first one fails. */
enum {
    ON_EPOLL = 1,
    ON_POLL = 2,
    ON_OTHERS = 4, /* as on a system that is not Linux */
    ON_LINUX = ON_EPOLL | ON_POLL,
    ON_ALL = ON_LINUX | ON_OTHERS,
};

static int current_system(void)
{
#ifdef __linux__
    return check_wants_poll() ? ON_POLL : ON_EPOLL;
#else
    return ON_OTHERS;
#endif
}

struct row {
    const char *call;
    int systems;
    int may;
    int errors[8]; /* ended by 0 */
};

static const struct row table[] = {
    {"fork", ON_ALL, 0, {EAGAIN, ENOMEM}},
    {"accept", ON_OTHERS, 0, {ECONNABORTED, EINTR, EMFILE, ENFILE, ENOBUFS, ENOMEM, EPERM}},
    {"accept4", ON_LINUX, 0, {ECONNABORTED, EINTR, EMFILE, ENFILE, ENOBUFS, ENOMEM, ENOSYS}},
    {"recvmsg", ON_ALL, 0, {EINTR, ENOMEM, EAGAIN}},
    {"recvmsg", ON_ALL, BREAKS, {ECONNRESET}},
    {"recv", ON_ALL, 0, {EINTR, ENOMEM}},
    {"recv", ON_ALL, BREAKS, {EAGAIN}}, /* taken for the end of the client */
    {"sendmsg", ON_ALL, 0, {EINTR, ENOMEM, ENOBUFS, ETOOMANYREFS}},
    {"sendmsg", ON_ALL, BREAKS, {ECONNRESET, EPIPE}},
    {"send", ON_ALL, 0, {EPIPE, EAGAIN, ENOMEM}},
    {"shutdown", ON_ALL, 0, {ENOTCONN, ENOBUFS}},
    {"socketpair", ON_ALL, 0, {EMFILE, ENFILE, ENOMEM, EINVAL}},
    {"kill", ON_ALL, 0, {EPERM, ESRCH}},
    {"epoll_create1", ON_EPOLL, PREVENTS, {EMFILE, ENFILE, ENOMEM, ENOSYS}},
    {"epoll_ctl", ON_EPOLL, PREVENTS, {ENOMEM, ENOSPC}},
    {"epoll_wait", ON_EPOLL, 0, {EINTR}},
    {"poll", ON_POLL | ON_OTHERS, 0, {EINTR, ENOMEM}},
    {"pipe2", ON_LINUX, PREVENTS, {EMFILE, ENFILE, ENOSYS}},
    {"pipe", ON_OTHERS, PREVENTS, {EMFILE, ENFILE}},
    {"signalfd", ON_EPOLL, PREVENTS, {EMFILE, ENFILE, ENODEV, ENOMEM, ENOSYS}},
    {"waitid", ON_ALL, 0, {EINTR, ENOSYS}},
    {"wait4", ON_ALL, 0, {EINTR, EINVAL}},
    {"mmap", ON_ALL, 0, {EACCES, EAGAIN, ENOMEM}},
    {"madvise", ON_LINUX, 0, {EAGAIN, EINVAL, ENOMEM}},
    {"ftruncate", ON_ALL, 0, {EPERM, EINTR}},
    {"fcntl", ON_ALL, PREVENTS | BREAKS, {EAGAIN, EMFILE, EPERM}},
    {"getrlimit", ON_ALL, 0, {EPERM, EINVAL}},
    {"setrlimit", ON_ALL, 0, {EPERM, EINVAL}},
    {"getentropy", ON_ALL, TURNS_AWAY, {EIO, ENOSYS}},
    {"getsockopt", ON_ALL, TURNS_AWAY, {ENOBUFS, ENOPROTOOPT}},
    {"read", ON_ALL, 0, {EINTR, EAGAIN, EIO}},
    {"write", ON_POLL | ON_OTHERS, 0, {EINTR}},
    {"open", ON_LINUX, 0, {EACCES, EMFILE, ENFILE, ENOENT, ENOMEM}},
    {"shm_open", ON_OTHERS, 0, {EACCES, EEXIST, EMFILE, ENFILE}},
    {"pidfd_open", ON_EPOLL, 0, {EINVAL, EMFILE, ENFILE, ENODEV, ENOMEM, ENOSYS}},
    {"memfd_create", ON_LINUX, 0, {EINVAL, EMFILE, ENFILE, ENOMEM, ENOSYS}},
    {"close_range", ON_ALL, 0, {EINVAL, EMFILE, ENOMEM, ENOSYS}},
    {"pwritev2", ON_LINUX, 0, {EAGAIN, EOPNOTSUPP, ENOSYS}},
    {"malloc", ON_ALL, 0, {ENOMEM}},
    {"calloc", ON_ALL, PREVENTS | TURNS_AWAY, {ENOMEM}},
    {"realloc", ON_POLL | ON_OTHERS, PREVENTS, {ENOMEM}},
};

/* Where there are spares. */
static const struct row table_of_spares[] = {
    {"fork", 0, 0, {EAGAIN, ENOMEM}},
    {"recv", ON_ALL, 0, {EINTR, ENOMEM}},
    {"recv", ON_ALL, BREAKS, {EAGAIN}},
    {"sendmsg", ON_ALL, 0, {EINTR, ENOMEM, ENOBUFS, ETOOMANYREFS}},
    {"socketpair", 0, 0, {EMFILE, ENFILE, ENOMEM}},
    {"kill", 0, 0, {EPERM}},
    {"epoll_ctl", ON_EPOLL, 0, {ENOMEM, ENOSPC}},
    {"waitid", ON_ALL, 0, {EINTR, EINVAL}},
    {"wait4", ON_ALL, 0, {EINTR, EINVAL}},
    {"malloc", 0, 0, {ENOMEM}},
    {"calloc", 0, 0, {ENOMEM}},
};

/* At one place after another, until it is one that no call comes to. */
static void try_everywhere(const struct row *row, int error, bool has_spares)
{
    int position = 0;

    fault.call = row->call;
    fault.error = error;
    fault.for_ever = error == ENOSYS;
    do {
        CHECK(position < MAX_POSITION);
        fault.position = position++;
        try_case(row->may, has_spares);
        if (position == 1 && row->systems & current_system())
            CHECK(*fault.has_struck);
    } while (*fault.has_struck && !fault.for_ever);
}

static void try_table(const struct row *rows, size_t count, bool has_spares)
{
    const char *test = check_name;

    for (size_t i = 0; i < count; i++) {
        for (const int *error = rows[i].errors; *error != 0; error++) {
            char name[64];

            snprintf(name, sizeof name, "%s: %s", rows[i].call, strerror(*error));
            check_name = name;
            alarm(CHECK_TEST_SECONDS);
            try_everywhere(&rows[i], *error, has_spares);
            check_name = test;
        }
    }
}

static void test_calls_that_fail(void)
{
    try_table(table, sizeof table / sizeof *table, false);
}

static void test_calls_that_fail_amid_spares(void)
{
    try_table(table_of_spares, sizeof table_of_spares / sizeof *table_of_spares, true);
}

int main(void)
{
    bool *shared = mmap(NULL, 2 * sizeof *shared, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);

    if (shared == MAP_FAILED)
        return 1;
    fault.has_struck = &shared[0];
    fault.was_waiting = &shared[1];
    RUN(test_calls_that_fail);
    RUN(test_calls_that_fail_amid_spares);
    return 0;
}
