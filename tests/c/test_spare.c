/* test_spare.c: children that were forked ahead of their requests. */
#define _GNU_SOURCE

#include "serving.h"

#include <sys/prctl.h>

#include "ff_fd.h"
#include "ff_spare.h"
#include "ff_surroundings.h"

#define QUICK 40 /* requests one after another: enough for a pace, and for some to be served by spares */
#define NOT_SOON 600000

/* ---- what children do ---- */

static int end_as_told(const struct ff_request *request)
{
    return request->payload_size > 0 ? request->payload[0] : 0;
}

static int tell_niceness(const struct ff_request *request)
{
    (void)request;
    return getpriority(PRIO_PROCESS, 0);
}

/* Write its place to each descriptor of the request, as many as there are. */
static int number_fds(const struct ff_request *request)
{
    for (uint32_t i = 0; i < request->fd_count; i++)
        write_all(request->fds[i], &i, sizeof i);
    return (int)request->fd_count;
}

static int tell_int_handler(const struct ff_request *request)
{
    struct sigaction now;

    (void)request;
    CHECK_INT(sigaction(SIGINT, NULL, &now), 0);
    return now.sa_handler == SIG_DFL ? 1 : now.sa_handler == SIG_IGN ? 2 : 3;
}

static int sum_payload(const struct ff_request *request)
{
    unsigned sum = 0;

    for (uint32_t i = 0; i < request->payload_size; i++)
        sum += request->payload[i];
    return (int)(sum % 251);
}

/* Its last descriptor stays open as long as it lives. */
static int wait_for_end(const struct ff_request *request)
{
    char byte;

    CHECK_INT(read(request->fds[0], &byte, 1), 0);
    return 0;
}

/* ---- servers with spares ---- */

struct spared {
    struct serving serving;
    int sock;
    int status;
    uint32_t next_id;
};

static void open_spared(struct spared *spared, const struct service *service)
{
    start_server(&spared->serving, service);
    spared->sock = connect_client(&spared->serving);
    spared->status = ask_status(spared->sock);
    spared->next_id = 1;
}

static void close_spared(struct spared *spared)
{
    CHECK_INT(close(spared->status), 0);
    CHECK_INT(close(spared->sock), 0);
    stop_server(&spared->serving);
}

static int run_one(struct spared *spared, const void *payload, size_t size, const int *fds, size_t fd_count)
{
    uint32_t id = spared->next_id++;

    start_child(spared->sock, id, 0, payload, size, fds, fd_count);
    return await_frame(spared->sock, FF_FRAME_EXITED, id);
}

static void await_spares(const struct spared *spared, uint32_t count)
{
    for (int waited = 0; look(spared->status).spares != count; waited++) {
        CHECK(waited < DEADLINE_MS);
        poll(NULL, 0, 1);
    }
}

/* Requests come so fast that spares are forked: all that there are to be. */
static void warm(struct spared *spared, uint32_t count)
{
    for (int i = 0; i < QUICK; i++)
        run_one(spared, "", 0, NULL, 0);
    await_spares(spared, count);
}

/* Requests that are there at once make a pace, too, and a spare comes only behind them. */
static void warm_at_once(struct spared *spared, uint32_t count)
{
    pause_server(&spared->serving);
    for (uint32_t i = 0; i < QUICK; i++)
        CHECK_INT(ff_client_send(spared->sock, i, 0, "", 0, NULL, 0), 0);
    resume_server(&spared->serving);
    for (int i = 0; i < 2 * QUICK; i++) {
        struct ff_frame frame;
        int fd;

        CHECK_INT(ff_client_receive(spared->sock, DEADLINE_MS, &frame, &fd), 1);
    }
    await_spares(spared, count);
}

/* The server has no child but spares when this is called: how many there are. */
static size_t find_spares(const struct spared *spared, pid_t ret_pids[FF_MAX_SPARES])
{
    char path[64];
    FILE *stream;
    size_t count = 0;

    snprintf(path, sizeof path, "/proc/%d/task/%d/children", (int)spared->serving.pid,
             (int)spared->serving.pid);
    stream = fopen(path, "r");
    CHECK(stream != NULL);
    while (count < FF_MAX_SPARES && fscanf(stream, "%d", &ret_pids[count]) == 1)
        count++;
    CHECK_INT(fclose(stream), 0);
    return count;
}

static void signal_spares(const struct spared *spared, int number)
{
    pid_t pids[FF_MAX_SPARES];
    size_t count = find_spares(spared, pids);

    CHECK(count > 0);
    for (size_t i = 0; i < count; i++)
        CHECK_INT(kill(pids[i], number), 0);
}

static uint64_t served_by_spares(const struct spared *spared)
{
    return look(spared->status).spare_starts;
}

/* ---- tests ---- */

static const struct service ending = {.child = end_as_told, .max_spares = 2, .spare_quiet_ms = NOT_SOON};

static void test_spares_serve(void)
{
    struct spared spared;

    open_spared(&spared, &ending);
    CHECK_INT(look(spared.status).spares, 0);
    warm(&spared, 2);
    for (unsigned char code = 1; code <= QUICK; code++)
        CHECK_INT(run_one(&spared, &code, 1, NULL, 0), code);
    CHECK(served_by_spares(&spared) >= 2);
    CHECK_INT(look(spared.status).starts, 2 * QUICK);
    await_spares(&spared, 2);
    CHECK_INT(look(spared.status).live_children, 0);
    close_spared(&spared);
}

static void test_none_without_a_pace(void)
{
    struct spared spared;

    open_spared(&spared, &ending);
    for (int i = 0; i < 3; i++)
        run_one(&spared, "", 0, NULL, 0);
    CHECK_INT(look(spared.status).spares, 0);
    CHECK_INT(served_by_spares(&spared), 0);
    close_spared(&spared);
}

static void test_none_unless_asked_for(void)
{
    static const struct service none = {.child = end_as_told, .spare_quiet_ms = NOT_SOON};
    struct spared spared;

    open_spared(&spared, &none);
    warm(&spared, 0);
    CHECK_INT(served_by_spares(&spared), 0);
    close_spared(&spared);
}

static void test_they_go_when_it_is_quiet(void)
{
    static const struct service nervous = {.child = end_as_told, .max_spares = 2, .spare_quiet_ms = 100};
    struct spared spared;
    pid_t pids[FF_MAX_SPARES];

    open_spared(&spared, &nervous);
    for (int i = 0; i < QUICK; i++)
        run_one(&spared, "", 0, NULL, 0);
    await_spares(&spared, 0);
    for (int waited = 0; find_spares(&spared, pids) > 0; waited++) {
        CHECK(waited < DEADLINE_MS);
        poll(NULL, 0, 1);
    }
    CHECK_INT(run_one(&spared, "\x07", 1, NULL, 0), 7);
    close_spared(&spared);
}

/* Though a child lives, and the server with it: no request for them will come. */
static void test_they_go_when_the_server_is_let_go_of(void)
{
    static const struct service waiting = {
        .child = wait_for_end, .max_spares = 2, .spare_quiet_ms = NOT_SOON};
    struct spared spared;
    int closed[2];
    int gate[2];

    make_pipe(closed);
    make_pipe(gate);
    CHECK_INT(close(closed[1]), 0);
    open_spared(&spared, &waiting);
    for (int i = 0; i < QUICK; i++)
        run_one(&spared, "", 0, closed, 1);
    start_child(spared.sock, 1000, 0, "", 0, gate, 1);
    await_spares(&spared, 2);
    release_server(&spared.serving);
    await_spares(&spared, 0);
    CHECK_INT(look(spared.status).live_children, 1);
    close_both(gate);
    check_exit(spared.sock, 1000, 0);
    CHECK_INT(close(spared.status), 0);
    CHECK_INT(close(spared.sock), 0);
    await_server_end(&spared.serving);
    CHECK_INT(close(closed[0]), 0);
}

static void test_descriptors_and_payloads(void)
{
    static const struct service numbering = {
        .child = number_fds, .max_spares = 1, .spare_quiet_ms = NOT_SOON};
    struct spared spared;
    uint64_t before;
    int ends[2];
    uint32_t numbers[3];

    make_pipe(ends);
    open_spared(&spared, &numbering);
    warm(&spared, 1);
    before = served_by_spares(&spared);
    CHECK_INT(run_one(&spared, "", 0, (int[]){ends[1], ends[1], ends[1]}, 3), 3);
    read_all(ends[0], numbers, sizeof numbers);
    CHECK_INT(numbers[0] + numbers[1] + numbers[2], 3);
    CHECK_INT(served_by_spares(&spared), before + 1);
    close_spared(&spared);
    close_both(ends);
}

static void test_largest_payload(void)
{
    static const struct service summing = {.child = sum_payload, .max_spares = 1, .spare_quiet_ms = NOT_SOON};
    static unsigned char payload[FF_MAX_PAYLOAD];
    struct spared spared;
    uint64_t before;

    memset(payload, 3, sizeof payload);
    open_spared(&spared, &summing);
    warm(&spared, 1);
    before = served_by_spares(&spared);
    CHECK_INT(run_one(&spared, payload, sizeof payload, NULL, 0), 3 * FF_MAX_PAYLOAD % 251);
    CHECK_INT(served_by_spares(&spared), before + 1);
    close_spared(&spared);
}

/* More than one message takes: they are for a fork, and so is what the exit code is written to. */
static void test_what_is_not_for_spares(void)
{
    enum { COUNT = FF_MAX_FDS_PER_MESSAGE + 1 };
    static const struct service numbering = {
        .child = number_fds, .max_spares = 1, .spare_quiet_ms = NOT_SOON};
    struct spared spared;
    uint64_t before;
    int fds[COUNT];
    int ends[2];
    int64_t numbers[2];

    make_pipe(ends);
    for (int i = 0; i < COUNT; i++)
        fds[i] = ends[1];
    open_spared(&spared, &numbering);
    warm(&spared, 1);
    before = served_by_spares(&spared);
    CHECK_INT(run_one(&spared, "", 0, fds, COUNT), COUNT % 256);
    for (int i = 0; i < COUNT; i++)
        read_all(ends[0], numbers, sizeof(uint32_t));
    start_child(spared.sock, 1000, FF_FORK_HELD | FF_FORK_STREAM, "", 0, &ends[1], 1);
    check_exit(spared.sock, 1000, 0);
    read_all(ends[0], numbers, sizeof numbers);
    CHECK_INT(numbers[1], 0);
    CHECK_INT(served_by_spares(&spared), before);
    close_spared(&spared);
    close_both(ends);
}

static void test_killed_and_stopped_ones_harm_nobody(void)
{
    static const int signals[] = {SIGKILL, SIGSTOP, SIGTERM};
    struct spared spared;

    for (size_t i = 0; i < sizeof signals / sizeof *signals; i++) {
        open_spared(&spared, &ending);
        warm(&spared, 2);
        pause_server(&spared.serving);
        signal_spares(&spared, signals[i]);
        resume_server(&spared.serving);
        CHECK_INT(run_one(&spared, "\x09", 1, NULL, 0), 9);
        close_spared(&spared);
    }
}

/* It does not take its request, and is neither dead nor stopped, before the test says so. */
static void hesitate(void)
{
    for (;;)
        pause();
}

static const struct service hesitating = {
    .child = end_as_told, .max_spares = 1, .spare_quiet_ms = NOT_SOON, .in_spare = hesitate};

/* Hand a request to a spare that hesitates: the spare. */
static pid_t hand_over(struct spared *spared, const void *payload)
{
    pid_t pids[FF_MAX_SPARES];

    warm_at_once(spared, 1);
    CHECK_INT(find_spares(spared, pids), 1);
    CHECK_INT(ff_client_send(spared->sock, 1000, 0, payload, 1, NULL, 0), 0);
    await_spares(spared, 0);
    return pids[0];
}

static void test_one_that_ends_before_it_begins_harms_nobody(void)
{
    static const int signals[] = {SIGKILL, SIGSTOP};

    for (size_t i = 0; i < sizeof signals / sizeof *signals; i++) {
        struct spared spared;
        pid_t pid;

        open_spared(&spared, &hesitating);
        pid = hand_over(&spared, "\x0b");
        CHECK_INT(kill(pid, signals[i]), 0);
        CHECK(await_frame(spared.sock, FF_FRAME_STARTED, 1000) != pid);
        check_exit(spared.sock, 1000, 11);
        CHECK_INT(served_by_spares(&spared), 0);
        close_spared(&spared);
    }
}

static void test_one_that_never_begins_harms_nobody(void)
{
    struct spared spared;
    pid_t pid;

    open_spared(&spared, &hesitating);
    pid = hand_over(&spared, "\x0b");
    CHECK(await_frame(spared.sock, FF_FRAME_STARTED, 1000) != pid);
    check_exit(spared.sock, 1000, 11);
    close_spared(&spared);
}

/* All die at once, while nobody reads; their exits are more than a socket takes. */
static void fill_socket_with_exits(struct spared *spared, int gate[2], uint32_t count)
{
    for (uint32_t id = 1; id <= count; id++)
        start_child(spared->sock, 2000 + id, 0, "", 0, gate, 1);
    await_spares(spared, 1);
    pause_server(&spared->serving);
    CHECK_INT(close(gate[1]), 0);
}

/* A spare has begun, and its client, which does not read, cannot be told: it is not one that never begins. */
static void test_one_whose_client_does_not_read_lives_on(void)
{
    enum { COUNT = 500 };
    static const struct service waiting = {
        .child = wait_for_end, .max_spares = 1, .spare_quiet_ms = NOT_SOON};
    struct spared spared;
    int closed[2];
    int exits[2];
    int gate[2];
    int value = -1;
    uint64_t before;

    make_pipe(closed);
    make_pipe(exits);
    make_pipe(gate);
    CHECK_INT(close(closed[1]), 0);
    open_spared(&spared, &waiting);
    for (int i = 0; i < QUICK; i++)
        run_one(&spared, "", 0, closed, 1);
    fill_socket_with_exits(&spared, exits, COUNT);
    before = served_by_spares(&spared);
    CHECK_INT(ff_client_send(spared.sock, 1000, 0, "", 0, gate, 1), 0);
    resume_server(&spared.serving);
    poll(NULL, 0, FF_HANDED_LIMIT_MS + 10 * FF_HANDED_MS);
    CHECK_INT(close(gate[1]), 0);
    for (int i = 0; i < COUNT + 2; i++) {
        struct ff_frame frame;
        int fd;

        CHECK_INT(ff_client_receive(spared.sock, DEADLINE_MS, &frame, &fd), 1);
        if (frame.id == 1000 && frame.type == FF_FRAME_EXITED)
            value = frame.value;
    }
    CHECK_INT(value, 0);
    CHECK_INT(served_by_spares(&spared), before + 1);
    close_spared(&spared);
    close_all((int[]){closed[0], exits[0], gate[0]}, 3);
}

static void test_client_that_vanishes_meanwhile(void)
{
    struct spared spared;
    int other;

    open_spared(&spared, &hesitating);
    warm_at_once(&spared, 1);
    other = connect_client(&spared.serving);
    CHECK_INT(ff_client_send(other, 1, 0, "", 0, NULL, 0), 0);
    await_spares(&spared, 0);
    CHECK_INT(close(other), 0);
    while (look(spared.status).clients > 1)
        poll(NULL, 0, 1);
    CHECK_INT(run_one(&spared, "\x07", 1, NULL, 0), 7);
    close_spared(&spared);
}

static void test_interrupts_are_not_for_them(void)
{
    static const struct service telling = {
        .child = tell_int_handler, .max_spares = 2, .spare_quiet_ms = NOT_SOON};
    struct spared spared;
    uint64_t before;

    signal(SIGINT, SIG_DFL); /* a shell has what it runs in the background ignore it */
    open_spared(&spared, &telling);
    CHECK_INT(run_one(&spared, "", 0, NULL, 0), 1);
    warm(&spared, 2);
    before = served_by_spares(&spared);
    signal_spares(&spared, SIGINT);
    CHECK_INT(run_one(&spared, "", 0, NULL, 0), 1);
    CHECK_INT(served_by_spares(&spared), before + 1);
    close_spared(&spared);
}

static void test_surroundings_are_not_stale(void)
{
    static const struct service nice = {.child = tell_niceness, .max_spares = 2, .spare_quiet_ms = NOT_SOON};
    struct spared spared;
    int niceness = getpriority(PRIO_PROCESS, 0);

    open_spared(&spared, &nice);
    warm(&spared, 2);
    CHECK_INT(setpriority(PRIO_PROCESS, (id_t)spared.serving.pid, niceness + 1), 0);
    CHECK_INT(run_one(&spared, "", 0, NULL, 0), (niceness + 1) & 0xff);
    warm(&spared, 2);
    CHECK_INT(run_one(&spared, "", 0, NULL, 0), (niceness + 1) & 0xff);
    close_spared(&spared);
}

#ifdef __linux__
static int tell_limit(const struct ff_request *request)
{
    struct rlimit limit;

    (void)request;
    CHECK_INT(getrlimit(RLIMIT_CORE, &limit), 0);
    return (int)limit.rlim_cur;
}

static void test_limits_are_not_stale(void)
{
    static const struct service limited = {.child = tell_limit, .max_spares = 2, .spare_quiet_ms = NOT_SOON};
    struct rlimit limit = {.rlim_cur = 77, .rlim_max = 78};
    struct spared spared;

    open_spared(&spared, &limited);
    warm(&spared, 2);
    CHECK_INT(prlimit(spared.serving.pid, RLIMIT_CORE, &limit, NULL), 0);
    CHECK_INT(run_one(&spared, "", 0, NULL, 0), 77);
    close_spared(&spared);
}
#endif

static void test_they_do_not_count_as_children(void)
{
    static const struct service one = {
        .child = end_as_told, .max_children = 1, .max_spares = 3, .spare_quiet_ms = NOT_SOON};
    struct spared spared;

    open_spared(&spared, &one);
    warm(&spared, 3);
    CHECK_INT(run_one(&spared, "\x05", 1, NULL, 0), 5);
    close_spared(&spared);
}

static void test_die_with_client(void)
{
    static const struct service waiting = {
        .child = wait_for_end, .max_spares = 1, .spare_quiet_ms = NOT_SOON};
    struct spared spared;
    int gate[2];
    int other;
    uint64_t before;

    make_pipe(gate);
    open_spared(&spared, &waiting);
    for (int i = 0; i < QUICK; i++) {
        int ends[2];

        make_pipe(ends);
        CHECK_INT(close(ends[1]), 0);
        CHECK_INT(run_one(&spared, "", 0, ends, 1), 0);
        CHECK_INT(close(ends[0]), 0);
    }
    await_spares(&spared, 1);
    before = served_by_spares(&spared);
    other = connect_client(&spared.serving);
    start_child(other, 1, FF_FORK_DIE_WITH_CLIENT, "", 0, gate, 1);
    CHECK_INT(served_by_spares(&spared), before + 1);
    CHECK_INT(close(other), 0);
    while (look(spared.status).live_children > 0)
        poll(NULL, 0, 1);
    close_spared(&spared);
    close_both(gate);
}

/* Without a server they end by themselves: to their new parent, here. */
static void test_they_end_with_their_server(void)
{
    struct spared spared;
    pid_t pids[FF_MAX_SPARES];

    prctl(PR_SET_CHILD_SUBREAPER, 1L, 0L, 0L, 0L);
    open_spared(&spared, &ending);
    warm(&spared, 2);
    CHECK_INT(find_spares(&spared, pids), 2);
    CHECK_INT(kill(spared.serving.pid, SIGKILL), 0);
    CHECK_INT(await_status(spared.serving.pid), SIGKILL);
    for (int i = 0; i < 2; i++)
        CHECK_INT(await_status(pids[i]), 0);
    CHECK_INT(close(spared.status), 0);
    CHECK_INT(close(spared.sock), 0);
    release_server(&spared.serving);
    remove_listener(&spared.serving.address);
}

/* ---- the pace, without a server ---- */

static struct ff_spares fresh_spares(void)
{
    struct ff_spares spares;

    ff_spares_init(&spares, &(struct ff_config){.max_spares = 1000, .spare_quiet_ms = NOT_SOON});
    return spares;
}

static void test_pace(void)
{
    struct ff_spares spares = fresh_spares();
    int count = 0;

    CHECK(!ff_spares_are_short(&spares));
    CHECK_INT(ff_spares_timeout(&spares), -1);
    for (; !ff_spares_are_short(&spares); count++)
        ff_spares_note_request(&spares);
    CHECK(count > 8 && count < QUICK);
    ff_spares_rest(&spares);
    CHECK(!ff_spares_are_short(&spares));
}

static void test_number_is_bounded(void)
{
    struct ff_spares spares = fresh_spares();

    CHECK_INT(spares.wanted, FF_MAX_SPARES);
}

static void test_surroundings(void)
{
    struct ff_surroundings before;
    struct ff_surroundings after;

    ff_surroundings_look(&before);
    ff_surroundings_look(&after);
    CHECK(ff_surroundings_equal(&before, &after));
    after.niceness++;
    CHECK(!ff_surroundings_equal(&before, &after));
}

/* A spare that is asked to begin with an empty request, and its server's side. */
static void open_asked(struct ff_child *child, struct ff_spare *spare)
{
    struct ff_frame request = ff_frame_make(FF_FRAME_FORK, 1, 0);
    int ends[2];

    CHECK_INT(ff_fd_socketpair(ends), 0);
    *child = (struct ff_child){.spare_sock = ends[0]};
    *spare = (struct ff_spare){.sock = ends[1], .server = getppid()};
    ff_reader_init(&spare->reader);
    CHECK_INT(ff_msg_send(child->spare_sock, &request, sizeof request, NULL, 0), sizeof request);
}

static void close_asked(struct ff_child *child, struct ff_spare *spare)
{
    ff_reader_clear(&spare->reader);
    CHECK_INT(close(child->spare_sock), 0);
    CHECK_INT(close(spare->sock), 0);
}

#ifdef __linux__
static void test_one_that_is_refused_does_not_begin(void)
{
    struct ff_child child;
    struct ff_spare spare;
    struct ff_applied applied;

    open_asked(&child, &spare);
    ff_spare_refuse(&child);
    CHECK_INT(ff_spare_receive(&spare, DEADLINE_MS, &applied), 0);
    CHECK_INT(ff_spare_has_begun(&child), -EPIPE);
    close_asked(&child, &spare);
}
#endif

static void test_one_that_has_begun_is_not_refused(void)
{
    struct ff_child child;
    struct ff_spare spare;
    struct ff_applied applied;

    open_asked(&child, &spare);
    CHECK_INT(ff_spare_receive(&spare, DEADLINE_MS, &applied), 1);
    ff_spare_refuse(&child);
    CHECK_INT(ff_spare_has_begun(&child), 1);
    close_asked(&child, &spare);
}

#ifdef __linux__
/* Somebody else holds the dead one's end of the socket: so it does not seem to have ended. */
static void test_one_that_a_dead_server_cannot_hear_does_not_begin(void)
{
    struct ff_child child;
    struct ff_spare spare;
    struct ff_applied applied;

    open_asked(&child, &spare);
    spare.server = getpid();
    CHECK_INT(ff_spare_receive(&spare, DEADLINE_MS, &applied), 0);
    close_asked(&child, &spare);
}
#endif

static void test_no_spare(void)
{
    struct ff_request request;
    struct ff_server *server;
    int listener[2];
    struct ff_config config;

    make_pair(listener);
    config = serving_config(listener[0], -1);
    CHECK_INT(ff_server_new(&config, &server), 0);
    CHECK_INT(ff_spare_await(server, 0, &request), -EINVAL);
    ff_server_free(server);
    CHECK_INT(close(listener[1]), 0);
}

int main(void)
{
    RUN(test_pace);
    RUN(test_number_is_bounded);
    RUN(test_surroundings);
#ifdef __linux__
    RUN(test_one_that_is_refused_does_not_begin);
#endif
    RUN(test_one_that_has_begun_is_not_refused);
#ifdef __linux__
    RUN(test_one_that_a_dead_server_cannot_hear_does_not_begin);
#endif
    RUN(test_no_spare);
    RUN(test_spares_serve);
    RUN(test_none_without_a_pace);
    RUN(test_none_unless_asked_for);
    RUN(test_they_go_when_it_is_quiet);
    RUN(test_they_go_when_the_server_is_let_go_of);
    RUN(test_descriptors_and_payloads);
    RUN(test_largest_payload);
    RUN(test_what_is_not_for_spares);
    RUN(test_killed_and_stopped_ones_harm_nobody);
    RUN(test_one_that_ends_before_it_begins_harms_nobody);
    RUN(test_one_that_never_begins_harms_nobody);
    RUN(test_one_whose_client_does_not_read_lives_on);
    RUN(test_client_that_vanishes_meanwhile);
    RUN(test_interrupts_are_not_for_them);
    RUN(test_surroundings_are_not_stale);
#ifdef __linux__
    RUN(test_limits_are_not_stale);
#endif
    RUN(test_they_do_not_count_as_children);
    RUN(test_die_with_client);
    RUN(test_they_end_with_their_server);
    return 0;
}
