/* serving.h: a server in a process of its own, as a template is, and clients of it. */
#ifndef FF_TEST_SERVING_H
#define FF_TEST_SERVING_H

#include <signal.h>
#include <sys/un.h>

#include "ff_msg.h"
#include "ff_server.h"
#include "handshake.h"

/* What a test wants of the server's process and of its children; all but `child` may be left out. */
struct service {
    int (*child)(const struct ff_request *request); /* runs in each child: its exit code */
    void (*prepare)(void);                          /* runs before the server is made */
    void (*conclude)(void); /* runs after it has ended, in place of the check that no child is left */
    const struct ff_fork_hooks *hooks;
    uint32_t max_children;
    uint32_t max_spares;
    uint32_t spare_quiet_ms;
    void (*in_spare)(void);         /* runs in each spare before it waits for a request */
    void (*load)(uint32_t modules); /* those that clients have and the server has not */
    uint32_t modules;               /* what it has from the beginning */
    bool children_check_leaks;      /* they end by exit(), which takes its time under a sanitizer */
};

struct serving {
    pid_t pid;
    int alive; /* closed, the server ends */
    struct sockaddr_un address;
};

/* To conclude with: a server that has no room for a client must not spin on its listener. */
static inline void check_little_cpu_used(void)
{
    struct rusage usage;

    CHECK_INT(getrusage(RUSAGE_SELF, &usage), 0);
    CHECK(usage.ru_utime.tv_sec == 0 && usage.ru_stime.tv_sec == 0);
    CHECK(usage.ru_utime.tv_usec + usage.ru_stime.tv_usec < 200000);
    check_no_child();
}

static inline int make_listener(struct sockaddr_un *ret_address)
{
    char directory[] = "/tmp/ff-test-XXXXXX";
    int listener = socket(AF_UNIX, SOCK_STREAM, 0);

    CHECK(mkdtemp(directory) != NULL);
    *ret_address = (struct sockaddr_un){.sun_family = AF_UNIX};
    snprintf(ret_address->sun_path, sizeof ret_address->sun_path, "%s/s", directory);
    CHECK_INT(bind(listener, (struct sockaddr *)ret_address, sizeof *ret_address), 0);
    CHECK_INT(listen(listener, 64), 0);
    return listener;
}

static inline void remove_listener(struct sockaddr_un *address)
{
    CHECK_INT(unlink(address->sun_path), 0);
    *strrchr(address->sun_path, '/') = '\0';
    CHECK_INT(rmdir(address->sun_path), 0);
}

/* Which descriptors a child should find open beside those of its request. */
static bool serving_open_before[CHECK_FD_LIMIT];

static inline void remember_open_fds(int listener, int alive)
{
    for (int fd = 0; fd < CHECK_FD_LIMIT; fd++)
        serving_open_before[fd] = fd != listener && fd != alive && check_fd_is_open(fd);
}

/* Only what was open before, and what the request brought: nothing of the server, of other clients, of siblings. */
static inline void check_only_fds_of(const struct ff_request *request)
{
    bool expected[CHECK_FD_LIMIT];

    memcpy(expected, serving_open_before, sizeof expected);
    for (uint32_t i = 0; i < request->fd_count; i++)
        expected[request->fds[i]] = true;
    for (int fd = 0; fd < CHECK_FD_LIMIT; fd++)
        if (check_fd_is_open(fd) != expected[fd])
            check_fail(__FILE__, __LINE__, "descriptor %d is%s open in a child", fd,
                       expected[fd] ? " not" : "");
}

/* What a child still has to do with its server is to give back the memory; no descriptor is the server's. */
__attribute__((noreturn)) static inline void
run_child(const struct service *service, struct ff_server *server, const struct ff_request *request)
{
    int fds_before;
    int code;

    check_only_fds_of(request);
    code = service->child(request);
    fds_before = check_count_fds();
    ff_server_free(server);
    CHECK_INT(check_count_fds(), fds_before);
    if (service->children_check_leaks)
        exit(code);
    _exit(code);
}

/* In a spare, which ends here when no request comes. */
static inline int await_request(struct ff_server *server, struct ff_request *ret_request)
{
    int result;

    do
        result = ff_spare_await(server, -1, ret_request);
    while (result == -EAGAIN);
    if (result != 1)
        _exit(result == 0 ? 0 : 99);
    return FF_SERVED_CHILD;
}

static inline struct ff_config serving_config(int listener, int alive)
{
    return (struct ff_config){
        .listener_fd = listener,
        .alive_fd = alive,
        .authkey = (const unsigned char *)AUTHKEY,
        .authkey_size = sizeof AUTHKEY - 1,
        .backend = check_wants_poll() ? FF_BACKEND_POLL : FF_BACKEND_AUTO,
    };
}

/* Serve in this process until the alive descriptor ends. Children do not return. */
static inline void serve_here(const struct service *service, int listener, int alive)
{
    struct ff_config config = serving_config(listener, alive);
    struct ff_server *server;
    struct ff_request request;
    int fds_before;
    int result;

    config.max_children = service->max_children;
    config.max_spares = service->max_spares;
    config.spare_quiet_ms = service->spare_quiet_ms;
    config.modules = service->modules;
    if (service->prepare != NULL)
        service->prepare();
    remember_open_fds(listener, alive);
    fds_before = check_count_fds();
    CHECK_INT(ff_server_new(&config, &server), 0);
    while ((result = ff_server_serve_hooked(server, service->hooks, &request)) == FF_SERVED_MODULES)
        service->load(request.modules);
    if (result == FF_SERVED_UNFIT)
        _exit(0);
    if (result == FF_SERVED_SPARE && service->in_spare != NULL)
        service->in_spare();
    if (result == FF_SERVED_SPARE)
        result = await_request(server, &request);
    if (result == FF_SERVED_CHILD)
        run_child(service, server, &request);
    CHECK_INT(result, 0);
    ff_server_free(server);
    CHECK_INT(check_count_fds(), fds_before - 2);
    if (service->conclude != NULL)
        service->conclude();
    else
        check_no_child();
}

/* Of what a fork of the test inherits: a pipe of the test's would otherwise stay open in every child. */
static inline void close_all_but(int listener, int alive)
{
    for (int fd = STDERR_FILENO + 1; fd < CHECK_FD_LIMIT; fd++)
        if (fd != listener && fd != alive)
            close(fd);
}

/* Start a server as a fork of this process. It ends by exit(), which runs the leak checker. */
static inline void start_server(struct serving *serving, const struct service *service)
{
    int listener = make_listener(&serving->address);
    int alive[2];

    make_pipe(alive);
    serving->pid = fork();
    CHECK(serving->pid >= 0);
    if (serving->pid == 0) {
        close_all_but(listener, alive[0]);
        alarm(CHECK_TEST_SECONDS);
        serve_here(service, listener, alive[0]);
        exit(0);
    }
    CHECK_INT(close(listener), 0);
    CHECK_INT(close(alive[0]), 0);
    serving->alive = alive[1];
}

/* Let go of the server: it leaves as soon as everybody has been told everything. */
static inline void release_server(struct serving *serving)
{
    CHECK_INT(close(serving->alive), 0);
}

static inline void await_server_end(struct serving *serving)
{
    CHECK_INT(await_status(serving->pid), 0);
    remove_listener(&serving->address);
}

static inline void stop_server(struct serving *serving)
{
    release_server(serving);
    await_server_end(serving);
}

/* Between the two the server does nothing: what happens meanwhile it finds all at once. */
static inline void pause_server(const struct serving *serving)
{
    int status;

    CHECK_INT(kill(serving->pid, SIGSTOP), 0);
    CHECK_INT(waitpid(serving->pid, &status, WUNTRACED), serving->pid);
    CHECK(WIFSTOPPED(status));
}

static inline void resume_server(const struct serving *serving)
{
    CHECK_INT(kill(serving->pid, SIGCONT), 0);
}

static inline int connect_stranger(const struct sockaddr_un *address)
{
    int sock = socket(AF_UNIX, SOCK_STREAM, 0);

    CHECK_INT(connect(sock, (const struct sockaddr *)address, sizeof *address), 0);
    return sock;
}

static inline int connect_client(const struct serving *serving)
{
    int sock = connect_stranger(&serving->address);

    authenticate(sock);
    return sock;
}

static inline struct ff_frame await_frame_with_fd(int sock, enum ff_frame_type type, uint32_t id, int *ret_fd)
{
    struct ff_frame frame;

    CHECK_INT(ff_client_receive(sock, DEADLINE_MS, &frame, ret_fd), 1);
    CHECK_INT(frame.type, type);
    CHECK_INT(frame.id, id);
    return frame;
}

/* A frame's value. */
static inline int32_t await_frame(int sock, enum ff_frame_type type, uint32_t id)
{
    int fd;
    struct ff_frame frame = await_frame_with_fd(sock, type, id, &fd);

    CHECK_INT(fd, -1);
    return frame.value;
}

/* Ask for a child and wait until it has been forked: its pid. */
static inline pid_t start_child(int sock, uint32_t id, uint32_t flags, const void *payload, size_t size,
                                const int *fds, size_t fd_count)
{
    pid_t pid;

    CHECK_INT(ff_client_send(sock, id, flags, payload, (uint32_t)size, fds, (uint32_t)fd_count), 0);
    pid = await_frame(sock, FF_FRAME_STARTED, id);
    CHECK(pid > 0);
    return pid;
}

static inline void check_exit(int sock, uint32_t id, int exit_code)
{
    CHECK_INT(await_frame(sock, FF_FRAME_EXITED, id), exit_code);
}

/* The descriptor of the status page. */
static inline int ask_status(int sock)
{
    int fd;

    CHECK_INT(ff_client_ask_status(sock, 123), 0);
    await_frame_with_fd(sock, FF_FRAME_STATUS, 123, &fd);
    CHECK(fd >= 0);
    return fd;
}

static inline struct ff_status look(int fd)
{
    struct ff_status status;

    CHECK_INT(ff_status_read(fd, &status), 0);
    return status;
}

#endif
