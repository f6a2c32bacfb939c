/* test_modules.c: what clients have loaded, the server loads before it forks for them. */
#define _GNU_SOURCE

#include "serving.h"

#define MODULE(n) ((uint32_t)FF_FIRST_MODULE << (n))
#define QUICK 40 /* requests one after another: enough for a pace, and for some to be served by spares */

static uint32_t loaded;
static int loads;

static void load(uint32_t modules)
{
    CHECK(modules != 0);
    CHECK(!(modules & loaded)); /* each once */
    loaded |= modules;
    loads++;
}

/* The modules in the low bits, and how often some were loaded in the high ones. */
static int tell_loaded(const struct ff_request *request)
{
    (void)request;
    return (int)(loaded >> 16) | loads << 4;
}

static const struct service loading = {.child = tell_loaded, .load = load};

static int run_one(int sock, uint32_t id, uint32_t modules)
{
    start_child(sock, id, modules, "", 0, NULL, 0);
    return await_frame(sock, FF_FRAME_EXITED, id);
}

static void test_loaded_before_the_fork_and_once(void)
{
    struct serving serving;
    int sock;

    start_server(&serving, &loading);
    sock = connect_client(&serving);
    CHECK_INT(run_one(sock, 1, 0), 0);
    CHECK_INT(run_one(sock, 2, MODULE(0) | MODULE(2)), 5 | 1 << 4);
    CHECK_INT(run_one(sock, 3, MODULE(2)), 5 | 1 << 4);
    CHECK_INT(run_one(sock, 4, MODULE(1) | MODULE(2)), 7 | 2 << 4);
    CHECK_INT(run_one(sock, 5, 0), 7 | 2 << 4);
    CHECK_INT(close(sock), 0);
    stop_server(&serving);
}

static void test_what_is_there_is_not_loaded(void)
{
    static const struct service having = {.child = tell_loaded, .load = load, .modules = MODULE(1)};
    struct serving serving;
    int sock;

    start_server(&serving, &having);
    sock = connect_client(&serving);
    CHECK_INT(run_one(sock, 1, MODULE(1)), 0);
    CHECK_INT(run_one(sock, 2, MODULE(0) | MODULE(1)), 1 | 1 << 4);
    CHECK_INT(close(sock), 0);
    stop_server(&serving);
}

/* All bits that a client may set. */
static void test_many(void)
{
    struct serving serving;
    int sock;

    start_server(&serving, &loading);
    sock = connect_client(&serving);
    CHECK_INT(run_one(sock, 1, FF_FORK_MODULES) & 0x1f, 0x1f);
    CHECK_INT(close(sock), 0);
    stop_server(&serving);
}

/* Requests of several clients that the server finds at once: one load for all, and no child goes without. */
static void test_of_several_clients_at_once(void)
{
    enum { CLIENTS = 8 };
    struct serving serving;
    int socks[CLIENTS];

    start_server(&serving, &loading);
    for (int i = 0; i < CLIENTS; i++)
        socks[i] = connect_client(&serving);
    for (int i = 0; i < CLIENTS; i++)
        CHECK_INT(run_one(socks[i], 100, 0), 0); /* it has let them all in */
    pause_server(&serving);
    for (uint32_t i = 0; i < CLIENTS; i++)
        CHECK_INT(ff_client_send(socks[i], i, MODULE(i % 4), "", 0, NULL, 0), 0);
    resume_server(&serving);
    for (uint32_t i = 0; i < CLIENTS; i++) {
        CHECK(await_frame(socks[i], FF_FRAME_STARTED, i) > 0);
        CHECK(await_frame(socks[i], FF_FRAME_EXITED, i) & 1 << i % 4);
    }
    close_all(socks, CLIENTS);
    stop_server(&serving);
}

/* Spares that were forked before lack what has been loaded since. */
static void test_spares_have_them_too(void)
{
    static const struct service spared = {
        .child = tell_loaded, .load = load, .max_spares = 2, .spare_quiet_ms = 600000};
    struct serving serving;
    uint32_t id = 0;
    int sock;
    int fd;

    start_server(&serving, &spared);
    sock = connect_client(&serving);
    fd = ask_status(sock);
    while (id < QUICK)
        CHECK_INT(run_one(sock, id++, 0), 0);
    for (int waited = 0; look(fd).spares == 0; waited++) {
        CHECK(waited < DEADLINE_MS);
        poll(NULL, 0, 1);
    }
    CHECK_INT(run_one(sock, id++, MODULE(3)), 8 | 1 << 4);
    while (id < 2 * QUICK)
        CHECK_INT(run_one(sock, id++, 0), 8 | 1 << 4);
    CHECK_INT(close(fd), 0);
    CHECK_INT(close(sock), 0);
    stop_server(&serving);
}

static void test_client_that_vanishes(void)
{
    struct serving serving;
    int sock;
    int other;

    start_server(&serving, &loading);
    sock = connect_client(&serving);
    other = connect_client(&serving);
    CHECK_INT(run_one(other, 1, 0), 0);
    CHECK_INT(run_one(sock, 1, 0), 0);
    pause_server(&serving);
    CHECK_INT(ff_client_send(sock, 2, MODULE(0), "", 0, NULL, 0), 0);
    CHECK_INT(close(sock), 0);
    resume_server(&serving);
    CHECK_INT(run_one(other, 2, 0) & ~(1 | 1 << 4), 0); /* with or without */
    CHECK_INT(close(other), 0);
    stop_server(&serving);
}

/* A server is let go of in place of serving on, and the process is as it was before. */
static void test_freed_in_between(void)
{
    struct sockaddr_un address;
    struct serving client = {.alive = -1};
    struct ff_server *server;
    struct ff_request request;
    struct sigaction before;
    struct sigaction after;
    struct ff_config config;
    int listener = make_listener(&address);
    int alive[2];
    int fds;
    pid_t pid;

    make_pipe(alive);
    config = serving_config(listener, alive[0]);
    client.address = address;
    fds = check_count_fds();
    CHECK_INT(sigaction(SIGINT, NULL, &before), 0);
    pid = fork();
    CHECK(pid >= 0);
    if (pid == 0) {
        int sock = connect_client(&client);

        CHECK_INT(ff_client_send(sock, 1, MODULE(0), "", 0, NULL, 0), 0);
        await_end(sock);
        _exit(0);
    }
    CHECK_INT(ff_server_new(&config, &server), 0);
    CHECK_INT(ff_server_serve(server, &request), FF_SERVED_MODULES);
    CHECK_INT(request.modules, MODULE(0));
    CHECK_INT(sigaction(SIGINT, NULL, &after), 0);
    CHECK(after.sa_handler == SIG_IGN); /* as while it serves */
    ff_server_free(server);
    CHECK_INT(sigaction(SIGINT, NULL, &after), 0);
    CHECK(after.sa_handler == before.sa_handler);
    CHECK_INT(await_status(pid), 0);
    CHECK_INT(check_count_fds(), fds - 2);
    CHECK_INT(close(alive[1]), 0);
    remove_listener(&address);
}

int main(void)
{
    RUN(test_loaded_before_the_fork_and_once);
    RUN(test_what_is_there_is_not_loaded);
    RUN(test_many);
    RUN(test_of_several_clients_at_once);
    RUN(test_spares_have_them_too);
    RUN(test_client_that_vanishes);
    RUN(test_freed_in_between);
    return 0;
}
