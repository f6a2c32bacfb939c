/* fuzz_server.c: a whole server, and a world around it that does what the script says.
 *
 * All is one thread: whenever the server waits for events, the world takes its next step, and the processes and the
 * clock are fake_system.h's. So every run of an input is the same, and none takes time.
 *
 * After the script come the same questions each time. Is a good client served, whatever the others have done? Has
 * each client that did all right kept its connection, and got an answer to each request and the exit
 * code of each child, once? Once all clients and children have gone, has the server as many descriptors
 * as one that has seen none of it? Does it leave when it is told to, and with it all that it had?
 */
#define _GNU_SOURCE

#include <poll.h>

#include "descriptors.h"
#include "fake_system.h"
#include "ff_connection.h"
#include "ff_server.h"
#include "invariant.h"
#include "oracle.h"
#include "peer.h"
#include "script.h"

#define MAX_PEERS 12
#define MAX_IDLE_ROUNDS 5000 /* of the server, without anything having happened: it spins */
#define MAX_GOOD_STEPS 100   /* of the good client, the server having nothing else to do */
#define RESTS 8              /* of the world, for the server to do what it does by the clock */
#define SHORT_TIME_MS 100    /* between two steps */
#define GOOD_ID 0xC0FFEEu
#define SOUND_ID 0x10000u /* of requests in which all is right: their flags are the lowest bits */
#define LAST_EXIT_CODE 77

/* What is asked after the script. */
enum phase {
    PLAYING,
    RESTING,
    GOOD_CLIENT,
    LAST_DEATHS,
    LAST_CLOSING,
    STOCKTAKING,
    LEAVING,
    LEFT,
};

static struct stage {
    struct script script;
    enum phase phase;
    bool settling; /* the next step waits until the server has nothing to do */
    unsigned idle_rounds;
    struct ledger before;
    struct sockaddr_un address;
    socklen_t address_size;
    int alive;          /* the write end; -1: closed */
    rlim_t fd_limit;    /* for the server */
    bool small_buffers; /* of what the server sends to a client */
    struct peer peers[MAX_PEERS];
    size_t connects;
    struct peer good;
    unsigned rests;
    unsigned good_steps;
    int good_stream; /* what the server writes pid and exit code to */
    bool good_is_done;
    int status_fd; /* that the good client has got */
    int backend;
} stage;

static int idle_fds[2] = {-1, -1}; /* that an idle server and this file have, with either backend */

/* ---- what the clients hear ---- */

static void hear_started(struct peer *peer, const struct ff_frame *frame)
{
    struct fake_child *child = NULL;

    for (size_t i = 0; i < fake.count; i++)
        if (fake.children[i].pid == frame->value && fake.children[i].owner == NULL)
            child = &fake.children[i];
    HOLDS(child != NULL);
    HOLDS(!child->is_stranger && !child->is_unfit);
    child->owner = peer;
    child->id = frame->id;
}

static int exit_code_of(const struct fake_child *child)
{
    if (child->is_stolen)
        return FF_EXIT_CODE_LOST;
    return WIFSIGNALED(child->status) ? -WTERMSIG(child->status) : WEXITSTATUS(child->status);
}

static void hear_exited(const struct peer *peer, const struct ff_frame *frame)
{
    for (size_t i = 0; i < fake.count; i++) {
        struct fake_child *child = &fake.children[i];

        if (child->owner != peer || child->id != frame->id || child->state != FAKE_REAPED ||
            child->exit_is_told || exit_code_of(child) != frame->value)
            continue;
        child->exit_is_told = true;
        return;
    }
    broken(__FILE__, __LINE__, "no child of request %u has exited by %d and is not told of yet", frame->id,
           frame->value);
}

static void hear_status(const struct peer *peer)
{
    size_t stolen = fake_count(fake_is_stolen);
    size_t unreaped = fake_count(fake_is_unreaped);
    struct ff_status status;

    HOLDS(peer->fd >= 0);
    EQUAL(ff_status_read(peer->fd, &status), 0);
    EQUAL(status.pid, getpid());
    HOLDS(status.starts >= fake_count(fake_is_surely_own) && status.starts <= fake_count(fake_is_own));
    HOLDS(status.live_children >= fake_count(fake_is_surely_unreaped));
    HOLDS(status.live_children <= unreaped + stolen);
    HOLDS(status.clients <= stage.connects);
}

static void hear(struct peer *peer, const struct ff_frame *frame)
{
    peer->answered += frame->type != FF_FRAME_EXITED;
    if (peer->fd >= 0)
        HOLDS(frame->type == FF_FRAME_STARTED || frame->type == FF_FRAME_STATUS);
    if (frame->type == FF_FRAME_STARTED)
        hear_started(peer, frame);
    else if (frame->type == FF_FRAME_EXITED)
        hear_exited(peer, frame);
    else if (frame->type == FF_FRAME_FAILED)
        HOLDS(frame->value > 0 && frame->value < FF_MAX_ERRNO);
    else if (frame->type == FF_FRAME_REFUSED)
        HOLDS((frame->value > 0 && frame->value < FF_REFUSED_KEY) || frame->value >= FF_REFUSED_TIME);
    else {
        EQUAL(frame->type, FF_FRAME_STATUS);
        hear_status(peer);
    }
}

/* ---- what the clients do ---- */

static struct peer *any_peer(void)
{
    return &stage.peers[script_byte(&stage.script) % MAX_PEERS];
}

/* Nobody hears what becomes of the children of one that has gone. Babble may have been a request of any id. */
static void disown_children(const struct peer *peer)
{
    for (size_t i = 0; i < fake.count; i++) {
        if (fake.children[i].owner != peer)
            continue;
        fake.children[i].owner = &fake;
        if (peer->babbles)
            fake.children[i].id = 0;
    }
}

static void close_peer(struct peer *peer)
{
    disown_children(peer);
    peer_close(peer);
}

static void connect_peer(struct peer *peer)
{
    int sock = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0);

    close_peer(peer);
    peer_init(peer, sock);
    if (connect(sock, (struct sockaddr *)&stage.address, stage.address_size) < 0)
        peer_close(peer);
    else
        stage.connects++;
}

static void prove(struct peer *peer)
{
    size_t limit = script_byte(&stage.script);
    uint8_t damage = limit & 1 ? script_byte(&stage.script) : 0;
    struct attachment attachment = {0};

    if (damage & 1)
        attachment = script_attachment(&stage.script);
    peer_read(peer, SIZE_MAX, hear);
    peer_prove(peer, limit == 0 ? SIZE_MAX : limit, damage, damage, attachment);
}

static void send_from(struct peer *peer, const void *bytes, size_t size, struct attachment attachment)
{
    if (peer->sock < 0 || size == 0)
        return;
    peer->lies |= !peer->speaks_frames;
    peer->asked++;
    peer->babbles |= peer_send(peer, bytes, size, attachment) < size;
}

static void send_garbage(struct peer *peer)
{
    static unsigned char bytes[FF_MAX_PAYLOAD];
    struct attachment attachment = script_attachment(&stage.script);
    size_t size = script_size(&stage.script, sizeof bytes);

    script_bytes(&stage.script, bytes, size);
    peer->babbles = true;
    send_from(peer, bytes, size, attachment);
}

static void send_odd_frame(struct peer *peer)
{
    struct ff_frame frame = script_frame(&stage.script);
    struct attachment attachment = script_attachment(&stage.script);

    peer->babbles = true;
    send_from(peer, &frame, sizeof frame, attachment);
}

/* Have a payload begin with a block of options, if there is room for one: whether it does. What is in it is nearly all
 * the same to a server. */
static bool put_options(unsigned char *payload, size_t size)
{
    const struct ff_option option = {FF_OPTION_NEW_SESSION, 0};
    const uint32_t block_size = sizeof block_size + sizeof option;

    if (size < block_size)
        return false;
    memcpy(payload, &block_size, sizeof block_size);
    memcpy(payload + sizeof block_size, &option, sizeof option);
    payload[0] ^= script_byte(&stage.script) == 0xff; /* or is none */
    return payload[0] == block_size;
}

/* A request in which nearly all is right, or that stops before its end. */
static void send_request(struct peer *peer)
{
    static unsigned char bytes[sizeof(struct ff_frame) + FF_MAX_PAYLOAD];
    uint32_t number = script_byte(&stage.script);
    uint32_t chosen = script_byte(&stage.script);
    uint32_t flags = chosen % 32;
    uint32_t modules = chosen / 32 * FF_FIRST_MODULE;
    struct ff_frame frame =
        ff_frame_make(FF_FRAME_FORK, SOUND_ID | number << 5 | flags, (int32_t)(flags | modules));
    struct attachment attachment;
    size_t omitted;

    attachment = script_attachment(&stage.script);
    frame.payload_size = (uint32_t)script_size(&stage.script, FF_MAX_PAYLOAD);
    frame.fd_count = attachment.count;
    omitted = script_size(&stage.script, sizeof frame + frame.payload_size);
    memcpy(bytes, &frame, sizeof frame);
    if (flags & FF_FORK_OPTIONS)
        peer->babbles |= !put_options(bytes + sizeof frame, frame.payload_size);
    peer->babbles |= omitted > 0 || expected_refusal(&frame) != 0;
    send_from(peer, bytes, sizeof frame + frame.payload_size - omitted, attachment);
}

static void ask_status(struct peer *peer)
{
    struct ff_frame frame = ff_frame_make(FF_FRAME_STATUS, script_byte(&stage.script), 0);

    send_from(peer, &frame, sizeof frame, (struct attachment){0});
}

static void shut_down(struct peer *peer)
{
    if (peer->sock >= 0)
        shutdown(peer->sock, script_byte(&stage.script) % 3);
    peer->lies = true;
}

static void read_some(struct peer *peer)
{
    size_t limit = script_byte(&stage.script);

    peer_read(peer, limit == 0 ? SIZE_MAX : limit, hear);
}

/* ---- what happens to children and to the server ---- */

static struct fake_child *any_child(void)
{
    return fake.count == 0 ? NULL : &fake.children[script_byte(&stage.script) % fake.count];
}

static void kill_child(void)
{
    struct fake_child *child = any_child();
    int status = script_byte(&stage.script);

    if (child != NULL)
        fake_die(child, status & 1 ? status >> 1 : (status >> 1) << 8);
}

static void steal_child(void)
{
    struct fake_child *child = any_child();

    if (child == NULL || child->state == FAKE_REAPED)
        return;
    fake_hang_up(&child->sock);
    child->state = FAKE_REAPED;
    child->is_stolen = !child->is_stranger;
    raise(SIGCHLD);
}

/* A child that has options says that it begins, or why it cannot, or says it in part, or lets go of its socket. */
static void speak(void)
{
    struct fake_child *child = any_child();
    unsigned choice = script_byte(&stage.script);
    struct ff_unfit unfit = {.error = choice & 1 ? EPERM : 0, .option = choice & 1 ? FF_OPTION_NICE : 0};
    ssize_t sent = 0;

    if (child == NULL || child->sock < 0)
        return;
    if (choice % 8 < 7)
        sent = send(child->sock, &unfit, choice % 8 == 6 ? 4 : sizeof unfit, MSG_NOSIGNAL | MSG_DONTWAIT);
    child->is_unfit |= sent == sizeof unfit && unfit.error != 0;
    fake_hang_up(&child->sock);
}

static void fail_fork(void)
{
    static const int errors[] = {EAGAIN, ENOMEM, ENOSYS, EINTR};

    fake.fork_error = errors[script_byte(&stage.script) % 4];
}

static void lack_memory(void)
{
    unsigned choice = script_byte(&stage.script);

    fake.shortage.call = (enum fake_call)(choice % FAKE_CALLS);
    fake.shortage.count = choice / FAKE_CALLS % 8;
}

static void limit_server(void)
{
    unsigned room = script_byte(&stage.script);

    stage.fd_limit = room < 128 ? limit_with_room_for(room) : RLIM_INFINITY;
}

static void close_alive(void)
{
    if (stage.alive >= 0)
        close(stage.alive);
    stage.alive = -1;
}

/* Clients are kept apart from what follows: their opcodes come first, and are more. */
static void play(void)
{
    unsigned code = script_byte(&stage.script);

    stage.settling = !(code & 0x80);
    switch (code % 32) {
    case 0:
        connect_peer(any_peer());
        break;
    case 1:
    case 2:
        prove(any_peer());
        break;
    case 3:
        send_garbage(any_peer());
        break;
    case 4:
        send_odd_frame(any_peer());
        break;
    case 5:
    case 6:
    case 7:
        send_request(any_peer());
        break;
    case 8:
        ask_status(any_peer());
        break;
    case 9:
        read_some(any_peer());
        break;
    case 10:
        shut_down(any_peer());
        break;
    case 11:
        close_peer(any_peer());
        break;
    case 12:
    case 13:
        kill_child();
        break;
    case 14:
        steal_child();
        break;
    case 15:
        fake_bear(true);
        break;
    case 16:
        fail_fork();
        break;
    case 17:
        fake.fork_as_child = true;
        break;
    case 18:
        fake.reuse_pid = true;
        break;
    case 19:
        limit_server();
        break;
    case 20:
        if (stage.alive >= 0)
            EQUAL(write(stage.alive, "", 1), 1);
        break;
    case 21:
        close_alive();
        break;
    case 22:
        raise(SIGCHLD);
        break;
    case 23:
        fake.milliseconds += 10 * script_byte(&stage.script);
        break;
    case 24:
        lack_memory();
        break;
    case 25:
    case 26:
        speak();
        break;
    default: /* the server goes on alone */
        break;
    }
}

/* True when there was one. */
static bool kill_all(void)
{
    bool found = false;

    for (size_t i = 0; i < fake.count; i++) {
        found |= fake.children[i].state == FAKE_ALIVE;
        fake_die(&fake.children[i], LAST_EXIT_CODE << 8);
    }
    return found;
}

/* ---- a good client, that asks for a child and sees it to its end ---- */

static void send_good_request(void)
{
    struct ff_frame frames[] = {
        ff_frame_make(FF_FRAME_STATUS, GOOD_ID, 0),
        ff_frame_make(FF_FRAME_FORK, GOOD_ID, FF_FORK_PIDFD | FF_FORK_HELD | FF_FORK_STREAM),
    };
    int ends[2];

    frames[1].fd_count = 1;
    EQUAL(pipe2(ends, O_NONBLOCK), 0);
    EQUAL(send_fd(stage.good.sock, &frames[0], sizeof *frames, -1, 0), sizeof *frames);
    EQUAL(send_fd(stage.good.sock, &frames[1], sizeof *frames, ends[1], 1), sizeof *frames);
    close(ends[1]);
    stage.good_stream = ends[0];
}

/* The server has closed its end by now: nobody else has it. */
static void check_good_stream(pid_t pid)
{
    int64_t numbers[3];

    EQUAL(read(stage.good_stream, numbers, sizeof numbers), 2 * sizeof *numbers);
    EQUAL(numbers[0], pid);
    EQUAL(numbers[1], LAST_EXIT_CODE);
    EQUAL(read(stage.good_stream, numbers, sizeof numbers), 0);
    close(stage.good_stream);
}

static void hear_good(struct peer *peer, const struct ff_frame *frame)
{
    static pid_t pid;

    hear(peer, frame);
    EQUAL(frame->id, GOOD_ID);
    if (frame->type == FF_FRAME_STARTED) {
        pid = frame->value;
        fake_die(fake_find(pid), LAST_EXIT_CODE << 8);
    } else if (frame->type == FF_FRAME_EXITED) {
        check_good_stream(pid);
        stage.good_is_done = true;
    } else {
        EQUAL(frame->type, FF_FRAME_STATUS);
        stage.status_fd = fcntl(peer->fd, F_DUPFD_CLOEXEC, 0);
    }
}

/* Nothing is in its way any more but the other clients. */
static void lift_limits(void)
{
    fake.fork_error = 0;
    fake.shortage.count = 0;
    fake.fork_as_child = fake.reuse_pid = false;
    fake.limit = FAKE_MAX_CHILDREN;
    stage.fd_limit = RLIM_INFINITY;
}

/* True as long as it has something to do. */
static bool play_good(void)
{
    bool spoke_frames = stage.good.speaks_frames;

    HOLDS(stage.good_steps++ < MAX_GOOD_STEPS);
    if (fake.max_unreaped > 0)
        kill_all(); /* those of the others, for which it would wait */
    if (stage.good.sock < 0) {
        connect_peer(&stage.good); /* fails while the backlog is full */
        return true;
    }
    peer_read(&stage.good, SIZE_MAX, hear_good);
    HOLDS(!stage.good.has_ended);
    peer_prove(&stage.good, SIZE_MAX, 0, 0, (struct attachment){0});
    if (stage.good.speaks_frames && !spoke_frames)
        send_good_request();
    return !stage.good_is_done;
}

/* ---- the end ---- */

/* True when there was something to read, which may have made room for more. */
static bool read_all(void)
{
    bool found = false;

    for (size_t i = 0; i < MAX_PEERS; i++)
        found |= peer_read(&stage.peers[i], SIZE_MAX, hear);
    return found;
}

static bool is_connected(const struct peer *peer)
{
    return !peer->has_ended;
}

static bool is_sound(const struct peer *peer)
{
    return !peer->lies && !peer->babbles;
}

/* These clients know of the end of each child that they have started. */
static void check_exits(bool (*should_know)(const struct peer *peer))
{
    for (size_t i = 0; i < fake.count; i++)
        for (size_t j = 0; j < MAX_PEERS; j++)
            if (fake.children[i].owner == &stage.peers[j] && should_know(&stage.peers[j]))
                HOLDS(fake.children[i].exit_is_told);
}

static void close_all(void)
{
    for (size_t i = 0; i < MAX_PEERS; i++)
        close_peer(&stage.peers[i]);
    close_peer(&stage.good);
}

/* Whoever was to die with its client has been killed, and nobody else. */
static void check_doomed(void)
{
    for (size_t i = 0; i < fake.count; i++) {
        const struct fake_child *child = &fake.children[i];
        bool was_to_die = child->id & FF_FORK_DIE_WITH_CLIENT;

        if (child->owner != &fake || !(child->id & SOUND_ID))
            continue;
        HOLDS(was_to_die || !child->is_killed);
        HOLDS(!was_to_die || child->state != FAKE_ALIVE);
    }
}

/* Nothing that others do, or that the system lacks, takes the connection of a client that has been let in and does
 * all right, and each of its requests is answered. */
static void check_sound_one(const struct peer *peer)
{
    if (peer->sock < 0 || !peer->has_heard_frame || !is_sound(peer))
        return;
    HOLDS(!peer->has_ended);
    EQUAL(peer->answered, peer->asked);
}

static void check_sound(void)
{
    for (size_t i = 0; i < MAX_PEERS; i++)
        check_sound_one(&stage.peers[i]);
}

/* The first server of each kind has seen nothing but a good client. */
static void take_stock(void)
{
    struct ff_status status;
    int fds;

    if (stage.status_fd >= 0) {
        EQUAL(ff_status_read(stage.status_fd, &status), 0);
        EQUAL(status.clients, 0);
        EQUAL(status.live_children, 0);
        close(stage.status_fd);
        stage.status_fd = -1;
    }
    if (stage.alive < 0)
        return;
    fds = count_fds() - stage.before.fds;
    if (idle_fds[stage.backend] < 0)
        idle_fds[stage.backend] = fds;
    EQUAL(fds, idle_fds[stage.backend]);
}

/* One step of what happens once the script has ended. Each begins when the server has nothing to do. */
static void conclude(void)
{
    fake.milliseconds += SHORT_TIME_MS;
    switch (stage.phase) {
    case PLAYING:
        lift_limits();
        stage.phase = RESTING;
        break;
    case RESTING:
        if (stage.rests++ < RESTS)
            break;
        check_doomed();
        stage.phase = stage.alive < 0 ? LAST_DEATHS : GOOD_CLIENT;
        break;
    case GOOD_CLIENT:
        if (!play_good())
            stage.phase = LAST_DEATHS;
        break;
    case LAST_DEATHS:
        /* Whoever reads again may start what it has asked for long ago. */
        if (kill_all() || read_all())
            break;
        check_exits(is_connected);
        check_sound();
        stage.phase = LAST_CLOSING;
        break;
    case LAST_CLOSING:
        close_all();
        stage.phase = STOCKTAKING;
        break;
    case STOCKTAKING:
        take_stock();
        stage.phase = LEAVING;
        break;
    case LEAVING:
        close_alive();
        stage.phase = LEFT;
        break;
    case LEFT:
        broken(__FILE__, __LINE__, "the server does not leave");
    }
}

static void step(void)
{
    stage.idle_rounds = 0;
    stage.settling = true;
    if (script_has_ended(&stage.script))
        conclude();
    else
        play();
}

/* ---- the calls in which the server waits ---- */

/* What one client or one child may cost. Those that have gone may be known to the server for one more batch. */
static void check_memory(void)
{
    size_t limit = 256 * 1024 + MAX_PEERS * (FF_MAX_PAYLOAD + 4096) + stage.connects * 8192 +
                   fake.count * sizeof(struct ff_child);

    HOLDS(__sanitizer_get_current_allocated_bytes() - stage.before.bytes < limit);
}

/* The server waits: the world goes on until there is something for it, or it would have waited long enough. */
static int wait_until(int (*look)(void *arg), void *arg, int timeout_ms)
{
    bool took_step = false;
    int count;

    fake.serving = false;
    limit_fds(RLIM_INFINITY);
    check_memory();
    do {
        if (took_step || !stage.settling)
            step();
        took_step = true;
        count = look(arg);
        if (count == 0)
            stage.settling = false;
        if (count == 0 && timeout_ms > 0)
            fake.milliseconds += timeout_ms;
    } while (count == 0 && timeout_ms < 0);
    HOLDS(stage.idle_rounds++ < MAX_IDLE_ROUNDS);
    limit_fds(stage.fd_limit);
    fake.serving = true;
    return count;
}

struct epoll_call {
    int fd;
    struct epoll_event *events;
    int size;
};

int __real_epoll_wait(int fd, struct epoll_event *events, int size, int timeout_ms);
int __wrap_epoll_wait(int fd, struct epoll_event *events, int size, int timeout_ms);

static int look_at_epoll(void *arg)
{
    const struct epoll_call *call = arg;

    return __real_epoll_wait(call->fd, call->events, call->size, 0);
}

int __wrap_epoll_wait(int fd, struct epoll_event *events, int size, int timeout_ms)
{
    struct epoll_call call = {fd, events, size};

    if (!fake.serving)
        return __real_epoll_wait(fd, events, size, timeout_ms);
    return wait_until(look_at_epoll, &call, timeout_ms);
}

struct poll_call {
    struct pollfd *polled;
    nfds_t count;
};

int __real_poll(struct pollfd *polled, nfds_t count, int timeout_ms);
int __wrap_poll(struct pollfd *polled, nfds_t count, int timeout_ms);

static int look_at_poll(void *arg)
{
    const struct poll_call *call = arg;

    return __real_poll(call->polled, call->count, 0);
}

int __wrap_poll(struct pollfd *polled, nfds_t count, int timeout_ms)
{
    struct poll_call call = {polled, count};

    if (!fake.serving)
        return __real_poll(polled, count, timeout_ms);
    return wait_until(look_at_poll, &call, timeout_ms);
}

int __wrap_ff_wait_readable(int fd, int timeout_ms);

/* The server only looks: nothing happens meanwhile. */
int __wrap_ff_wait_readable(int fd, int timeout_ms)
{
    struct pollfd polled = {.fd = fd, .events = POLLIN};

    EQUAL(timeout_ms, 0);
    return __real_poll(&polled, 1, 0) == 0 ? 0 : polled.revents;
}

int __real_ff_fd_accept(int listener);
int __wrap_ff_fd_accept(int listener);

int __wrap_ff_fd_accept(int listener)
{
    int sock = __real_ff_fd_accept(listener);
    int size = 1; /* the least that the kernel allows: a few frames */

    if (sock >= 0 && stage.small_buffers)
        setsockopt(sock, SOL_SOCKET, SO_SNDBUF, &size, sizeof size);
    return sock;
}

/* ---- one server ---- */

/* Its descriptors are the child's own, and open. */
static void check_child(const struct ff_request *request)
{
    HOLDS(request->payload_size <= FF_MAX_PAYLOAD);
    HOLDS(request->fd_count <= FF_MAX_FDS);
    for (uint32_t i = 0; i < request->fd_count; i++)
        EQUAL(close(request->fds[i]), 0);
}

static void serve(struct ff_server *server)
{
    struct ff_request request;
    uint32_t modules = 0;
    int result;

    fake.serving = true;
    while ((result = ff_server_serve(server, &request)) == FF_SERVED_MODULES) {
        HOLDS((request.modules & FF_FORK_MODULES) == request.modules);
        HOLDS(request.modules != 0 && !(request.modules & modules)); /* each is asked for once */
        modules |= request.modules;
    }
    fake.serving = false;
    limit_fds(RLIM_INFINITY);
    HOLDS(fake.is_child ? result == FF_SERVED_CHILD || result == FF_SERVED_UNFIT : result == FF_SERVED_ALL);
    if (fake.is_child) {
        check_child(&request);
        return;
    }
    EQUAL(stage.alive, -1);
    read_all();
    check_sound();
    check_exits(is_sound); /* a server that leaves does not wait for those to listen whom it has refused */
}

static struct ff_server *make_server(void)
{
    static const uint32_t limits[] = {0, 0, 1, 3};
    unsigned options = script_byte(&stage.script);
    struct ff_config config = {
        .authkey = (const unsigned char *)KEY,
        .authkey_size = strlen(KEY),
        .backend = options & 1 ? FF_BACKEND_POLL : FF_BACKEND_AUTO,
        .max_children = limits[options >> 2 & 3],
    };
    struct ff_server *server;
    int ends[2];

    EQUAL(pipe(ends), 0);
    stage.alive = ends[1];
    stage.backend = config.backend;
    fake.max_unreaped = config.max_children;
    stage.small_buffers = options & 2;
    config.alive_fd = ends[0];
    config.listener_fd = open_listener(&stage.address, &stage.address_size);
    EQUAL(ff_server_new(&config, &server), 0);
    return server;
}

static void begin(const uint8_t *bytes, size_t size)
{
    memset(&stage, 0, sizeof stage);
    memset(&fake, 0, sizeof fake);
    fake.limit = FAKE_MAX_CHILDREN - 1; /* the good client needs one */
    fake.sock = -1;
    stage.before = ledger_open();
    stage.script = (struct script){bytes, size};
    stage.fd_limit = RLIM_INFINITY;
    stage.status_fd = stage.good_stream = stage.good.sock = stage.good.fd = -1;
    for (size_t i = 0; i < MAX_PEERS; i++)
        peer_init(&stage.peers[i], -1);
}

static void run(const uint8_t *bytes, size_t size)
{
    struct ff_server *server;

    begin(bytes, size);
    server = make_server();
    serve(server);
    ff_server_free(server);
    fake_unmap();
    fake_hang_up(&fake.sock);
    for (size_t i = 0; i < fake.count; i++)
        fake_hang_up(&fake.children[i].sock);
    close_all();
    close_alive();
    ledger_close(&stage.before);
}

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t size)
{
    static const uint8_t backends[] = {FF_BACKEND_AUTO, FF_BACKEND_POLL};

    for (size_t i = 0; i < sizeof backends && idle_fds[i] < 0; i++)
        run(&backends[i], 1);
    run(bytes, size);
    return 0;
}
