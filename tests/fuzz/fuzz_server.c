/* fuzz_server.c: a whole server, and a world around it that does what the script says.
 *
 * All is one thread: whenever the server waits for events, the world takes its next step, and the processes and the
 * clock are fake_system.h's. So every run of an input is the same, and none takes time.
 *
 * After the script come the same questions each time. Has whoever stopped amid a request been refused, and not before
 * its time? Is a good client served, whatever the others have done? Has each client that did all right kept its
 * connection, and got one answer to each request, the right one, and the exit code of each child, once? Has no request
 * been served twice, by whomever? Once all clients and children have gone, has the server as many descriptors as one
 * that has seen none of it? Does it leave when it is told to, and with it all that it had?
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
#define REST_MS 2000         /* RESTS of them are longer than a request may take, and than a look at that */
#define SHORT_TIME_MS 100    /* between two steps of them */
#define STEP_MS 50 /* that pass with a step of the script, at the most, while the server waits for a while */
#define MAX_QUIET_ROUNDS 20 /* of rest, until all spares have gone */
#define GOOD_ID 0xC0FFEEu
#define SOUND_ID 0x10000u   /* of requests in which all is right: their flags are the lowest bits */
#define FIRST_NUMBER_BIT 17 /* their number is above */
#define MAX_REQUESTS 4096
#define MAX_BURST 31 /* of them in one step: enough for a pace */
#define LAST_EXIT_CODE 77

/* What is asked after the script. */
enum phase {
    PLAYING,
    RESTING,
    GOOD_CLIENT,
    LAST_ANSWERS,
    LAST_DEATHS,
    LAST_CLOSING,
    QUIET, /* until there are no spares */
    STOCKTAKING,
    LEAVING,
    LEFT,
};

static struct stage {
    struct script script;
    enum phase phase;
    bool settling; /* the next step waits until the server has nothing to do */
    bool hurried;  /* the next one comes at once: the server finds what comes of both together */
    unsigned idle_rounds;
    struct ledger before;
    struct sockaddr_un address;
    socklen_t address_size;
    int alive;          /* the write end; -1: closed */
    rlim_t fd_limit;    /* for the server */
    bool small_buffers; /* of what the server sends to a client */
    uint32_t max_spares;
    uint32_t quiet_ms; /* after which spares go */
    struct peer peers[MAX_PEERS];
    struct asking {
        long long stopped; /* the clock when the peer first said what makes no sense, or not all of it */
        bool is_amid;      /* it has sent a part of a request that is right so far, and nothing since */
    } askings[MAX_PEERS];
    size_t connects;
    struct sound_request {
        unsigned served;
        unsigned answered;
        bool is_repeated;     /* others have its number */
    } requests[MAX_REQUESTS]; /* by their numbers */
    uint32_t request_count;
    bool may_be_forged; /* anybody may have made up any of these */
    struct peer good;
    unsigned rests;      /* in which nothing has happened */
    unsigned tree_kills; /* of the server, at the last one */
    unsigned quiet_rounds;
    unsigned good_steps;
    int good_stream; /* what the server writes pid and exit code to */
    bool good_is_done;
    int status_fd; /* that the good client has got */
    int backend;
} stage;

static int idle_fds[2] = {-1, -1}; /* that an idle server and this file have, with either backend */

/* ---- sound requests ---- */

static struct asking *asking_of(const struct peer *peer)
{
    static struct asking good;

    return peer == &stage.good ? &good : &stage.askings[peer - stage.peers];
}

/* From here on the server may refuse it, for its time too. */
static void babble(struct peer *peer)
{
    if (!peer->babbles)
        asking_of(peer)->stopped = fake.milliseconds;
    peer->babbles = true;
}

/* An id with a number of its own, or with that of the last one, as when there are too many. */
static uint32_t make_id(uint32_t flags, bool is_fresh)
{
    uint32_t number;

    if (stage.request_count == 0 || (is_fresh && stage.request_count < MAX_REQUESTS))
        stage.request_count++;
    else
        stage.requests[stage.request_count - 1].is_repeated = true;
    number = stage.request_count - 1;
    return SOUND_ID | number << FIRST_NUMBER_BIT | flags;
}

/* NULL where one cannot tell by its id which request it is. */
static struct sound_request *find_request(uint32_t id)
{
    uint32_t number = id >> FIRST_NUMBER_BIT;

    if (!(id & SOUND_ID) || number >= stage.request_count || stage.may_be_forged)
        return NULL;
    return stage.requests[number].is_repeated ? NULL : &stage.requests[number];
}

/* However often the server tries, with whatever child. */
static void note_served(uint32_t id)
{
    struct sound_request *request = find_request(id);

    if (request != NULL)
        EQUAL(++request->served, 1);
}

/* It has failed only if nobody serves it; but of a child that serves it the pidfd may be lacking. */
static void check_answer(const struct peer *peer, const struct ff_frame *frame)
{
    struct sound_request *request = find_request(frame->id);

    if (request == NULL || peer->babbles || frame->type == FF_FRAME_EXITED)
        return;
    EQUAL(++request->answered, 1);
    if (frame->type == FF_FRAME_FAILED && !(frame->id & FF_FORK_PIDFD))
        EQUAL(request->served, 0);
}

/* ---- what the clients hear ---- */

/* One that never began is not told of. */
static bool may_be_told(const struct fake_child *child)
{
    return child->owner == NULL && (!child->is_spare || child->has_begun);
}

/* A child on demand that was killed before it could say anything counts as one that began. */
static void check_starter(const struct fake_child *child, uint32_t id)
{
    HOLDS(!child->is_stranger && !child->is_unfit);
    HOLDS(child->has_begun || (child->is_on_demand && child->state == FAKE_REAPED));
    EQUAL(child->id_to_serve, id);
}

static void hear_started(struct peer *peer, const struct ff_frame *frame)
{
    struct fake_child *child = NULL;

    for (size_t i = 0; i < fake.count; i++)
        if (fake.children[i].pid == frame->value && may_be_told(&fake.children[i]))
            child = &fake.children[i];
    HOLDS(child != NULL);
    check_starter(child, frame->id);
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
    HOLDS(status.spares <= stage.max_spares);
}

static void hear_refused(const struct peer *peer, const struct ff_frame *frame)
{
    HOLDS((frame->value > 0 && frame->value < FF_REFUSED_KEY) || frame->value >= FF_REFUSED_TIME);
    HOLDS(peer->babbles || peer->lies);
    if (frame->value == FF_REFUSED_TIME && !peer->lies)
        HOLDS(fake.milliseconds >= asking_of(peer)->stopped + FF_REQUEST_MS);
}

static void hear(struct peer *peer, const struct ff_frame *frame)
{
    peer->answered += frame->type != FF_FRAME_EXITED;
    check_answer(peer, frame);
    if (peer->fd >= 0)
        HOLDS(frame->type == FF_FRAME_STARTED || frame->type == FF_FRAME_STATUS);
    if (frame->type == FF_FRAME_STARTED)
        hear_started(peer, frame);
    else if (frame->type == FF_FRAME_EXITED)
        hear_exited(peer, frame);
    else if (frame->type == FF_FRAME_FAILED)
        HOLDS(frame->value > 0 && frame->value < FF_MAX_ERRNO);
    else if (frame->type == FF_FRAME_REFUSED)
        hear_refused(peer, frame);
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
    *asking_of(peer) = (struct asking){0};
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

/* How much of it. */
static size_t send_from(struct peer *peer, const void *bytes, size_t size, struct attachment attachment)
{
    size_t sent;

    if (peer->sock < 0 || size == 0)
        return 0;
    peer->lies |= !peer->speaks_frames;
    peer->asked++;
    asking_of(peer)->is_amid = false;
    sent = peer_send(peer, bytes, size, attachment);
    if (sent < size)
        babble(peer);
    return sent;
}

static void send_garbage(struct peer *peer)
{
    static unsigned char bytes[FF_MAX_PAYLOAD];
    struct attachment attachment = script_attachment(&stage.script);
    size_t size = script_size(&stage.script, sizeof bytes);

    script_bytes(&stage.script, bytes, size);
    babble(peer);
    stage.may_be_forged |= peer->speaks_frames;
    send_from(peer, bytes, size, attachment);
}

static void send_odd_frame(struct peer *peer)
{
    struct ff_frame frame = script_frame(&stage.script);
    struct attachment attachment = script_attachment(&stage.script);

    babble(peer);
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

/* A part of a request, and all that it lacks is its rest: the server waits for that, but not for ever. */
static void stop_amid(struct peer *peer, const void *bytes, size_t size, struct attachment attachment)
{
    bool was_sound = !peer->babbles;
    size_t sent;

    babble(peer);
    sent = send_from(peer, bytes, size, attachment);
    asking_of(peer)->is_amid = sent > 0 && was_sound && peer->speaks_frames && !peer->lies;
}

/* A request in which nearly all is right, or that stops before its end. */
static void send_request(struct peer *peer)
{
    static unsigned char bytes[sizeof(struct ff_frame) + FF_MAX_PAYLOAD];
    bool is_fresh = script_byte(&stage.script) != 0xff;
    uint32_t chosen = script_byte(&stage.script);
    uint32_t flags = chosen % 32;
    uint32_t modules = chosen / 32 * FF_FIRST_MODULE;
    struct ff_frame frame =
        ff_frame_make(FF_FRAME_FORK, make_id(flags, is_fresh), (int32_t)(flags | modules));
    struct attachment attachment;
    bool is_wrong;
    size_t omitted;

    attachment = script_attachment(&stage.script);
    frame.payload_size = (uint32_t)script_size(&stage.script, FF_MAX_PAYLOAD);
    frame.fd_count = attachment.count;
    omitted = script_size(&stage.script, sizeof frame + frame.payload_size);
    memcpy(bytes, &frame, sizeof frame);
    is_wrong = expected_refusal(&frame) != 0;
    if (flags & FF_FORK_OPTIONS)
        is_wrong |= !put_options(bytes + sizeof frame, frame.payload_size);
    if (is_wrong)
        babble(peer);
    if (omitted > 0)
        stop_amid(peer, bytes, sizeof frame + frame.payload_size - omitted, attachment);
    else
        send_from(peer, bytes, sizeof frame + frame.payload_size, attachment);
}

/* Requests that come so fast that spares are worth their while. */
static void send_burst(struct peer *peer)
{
    unsigned count = script_byte(&stage.script) % (MAX_BURST + 1);
    uint32_t flags = script_byte(&stage.script) & (FF_FORK_PIDFD | FF_FORK_DIE_WITH_CLIENT);

    for (unsigned i = 0; i < count; i++) {
        struct ff_frame frame = ff_frame_make(FF_FRAME_FORK, make_id(flags, true), (int32_t)flags);

        send_from(peer, &frame, sizeof frame, (struct attachment){0});
    }
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
    asking_of(peer)->is_amid = false;
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

static void stop_child(void)
{
    struct fake_child *child = any_child();

    if (child != NULL)
        child->is_stopped = !child->is_stopped;
}

static bool may_speak(const struct fake_child *child)
{
    return child->sock >= 0 && !child->is_stopped;
}

/* Any of those, or NULL. */
static struct fake_child *any_that_may_speak(void)
{
    unsigned choice = script_byte(&stage.script);
    size_t count = fake_count(may_speak);
    struct fake_child *child = fake.children;

    if (count == 0)
        return NULL;
    for (size_t i = choice % count; i > 0 || !may_speak(child); child++)
        i -= may_speak(child);
    return child;
}

/* How many descriptors came with a message: they are closed. */
static size_t drop_fds(struct msghdr *message)
{
    struct cmsghdr *cmsg = CMSG_FIRSTHDR(message);
    size_t count = cmsg == NULL ? 0 : (cmsg->cmsg_len - CMSG_LEN(0)) / sizeof(int);
    int fd;

    EQUAL(message->msg_flags & MSG_CTRUNC, 0);
    for (size_t i = 0; i < count; i++) {
        memcpy(&fd, CMSG_DATA(cmsg) + i * sizeof fd, sizeof fd);
        EQUAL(close(fd), 0);
    }
    return count;
}

/* What there is, or what goes with one lot of descriptors. */
static size_t read_request(int sock, unsigned char *bytes, size_t size, size_t *fd_count)
{
    char control[CMSG_SPACE(FF_MAX_FDS_PER_MESSAGE * sizeof(int))] __attribute__((aligned(8)));
    struct iovec part = {bytes, size};
    struct msghdr message = {
        .msg_iov = &part,
        .msg_iovlen = 1,
        .msg_control = control,
        .msg_controllen = sizeof control,
    };
    ssize_t received = recvmsg(sock, &message, MSG_DONTWAIT);

    if (received <= 0)
        return 0;
    *fd_count += drop_fds(&message);
    return (size_t)received;
}

/* A spare reads its request, if that is there: it has come whole. */
static void take_request(struct fake_child *child)
{
    static unsigned char bytes[sizeof(struct ff_frame) + FF_MAX_PAYLOAD + 1];
    size_t fd_count = 0;
    size_t size = 0;
    struct ff_frame frame;

    for (size_t part = 1; part > 0; size += part)
        part = read_request(child->sock, bytes + size, sizeof bytes - size, &fd_count);
    if (size == 0)
        return;
    memcpy(&frame, bytes, sizeof frame);
    EQUAL(size, sizeof frame + frame.payload_size);
    EQUAL(fd_count, frame.fd_count);
    HOLDS(!(frame.value & FF_FORK_STREAM));
    HOLDS(!child->is_old);
    child->has_request = true;
    child->id_to_serve = frame.id;
    child->is_for_pidfd = frame.value & FF_FORK_PIDFD;
}

/* A spare with a request, or a child that has options, says that it begins, or why it cannot, or says it in part, or
 * lets go of its socket. */
static void say(struct fake_child *child, unsigned words)
{
    struct ff_unfit unfit = {.error = words & 1 ? EPERM : 0, .option = words & 1 ? FF_OPTION_NICE : 0};
    ssize_t sent = 0;

    if (!may_speak(child))
        return;
    if (words % 8 < 7)
        sent = send(child->sock, &unfit, words % 8 == 6 ? 4 : sizeof unfit, MSG_NOSIGNAL | MSG_DONTWAIT);
    child->is_unfit |= sent == sizeof unfit && unfit.error != 0;
    if (sent == sizeof unfit && unfit.error == 0)
        fake_begin(child);
    fake_hang_up(&child->sock);
}

static void speak(void)
{
    struct fake_child *child = any_that_may_speak();
    unsigned words = script_byte(&stage.script);

    if (child != NULL && !child->has_request)
        take_request(child);
    if (child == NULL || !child->has_request)
        return;
    child->looks = words >> 3 & 3;
    child->late_words = words;
    if (child->looks == 0)
        say(child, words);
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
    stage.hurried = (code & 0xE0) == 0xA0;
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
    case 27:
    case 28:
        send_burst(any_peer());
        break;
    case 29:
        stop_child();
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

/* Those that have stopped amid a request, and read, have been told that their time is over: nothing else kept the server
 * from reading what they sent. */
static void check_amid(void)
{
    for (size_t i = 0; i < MAX_PEERS; i++) {
        const struct peer *peer = &stage.peers[i];

        if (peer->sock >= 0 && stage.askings[i].is_amid && peer->answered + 1 >= peer->asked)
            HOLDS(peer->has_ended);
    }
}

/* True when there was something to read: their time may have begun by that, as nothing is read of one that does not. */
static bool read_those_amid(void)
{
    bool found = false;

    for (size_t i = 0; i < MAX_PEERS; i++)
        if (stage.askings[i].is_amid)
            found |= peer_read(&stage.peers[i], SIZE_MAX, hear);
    return found;
}

/* Whether the server has seen to any doomed child since this was last asked: it sees to few at a time. */
static bool is_killing(void)
{
    bool found = fake.tree_kills > stage.tree_kills;

    stage.tree_kills = fake.tree_kills;
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
    if (peer->sock < 0 || !is_sound(peer))
        return;
    HOLDS(!peer->has_ended || !peer->has_heard_frame);
    if (!peer->has_ended)
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
        fake.milliseconds += REST_MS;
        stage.rests = read_those_amid() || is_killing() ? 0 : stage.rests + 1;
        if (stage.rests <= RESTS)
            break;
        check_amid();
        check_doomed();
        stage.rests = 0;
        stage.phase = stage.alive < 0 ? LAST_ANSWERS : GOOD_CLIENT;
        break;
    case GOOD_CLIENT:
        if (!play_good())
            stage.phase = LAST_ANSWERS;
        break;
    case LAST_ANSWERS:
        fake.milliseconds += REST_MS;
        stage.rests = read_all() ? 0 : stage.rests + 1;
        if (stage.rests <= RESTS)
            break;
        if (fake.max_unreaped == 0 && fake_count(fake_is_silent) == 0)
            check_sound();
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
        stage.phase = QUIET;
        break;
    case QUIET:
        fake.milliseconds += stage.quiet_ms;
        HOLDS(stage.quiet_rounds++ < MAX_QUIET_ROUNDS);
        stage.phase = STOCKTAKING;
        break;
    case STOCKTAKING:
        stage.phase = QUIET;
        if (fake_count(fake_is_unreaped_spare) > 0)
            break;
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
    do {
        stage.settling = true;
        stage.hurried = false;
        if (script_has_ended(&stage.script))
            conclude();
        else
            play();
    } while (stage.hurried && !script_has_ended(&stage.script));
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
    long long end = fake.milliseconds + timeout_ms;
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
        if (count == 0 && fake.milliseconds < end)
            fake.milliseconds += end - fake.milliseconds < STEP_MS ? end - fake.milliseconds : STEP_MS;
    } while (count == 0 && (timeout_ms < 0 || fake.milliseconds < end));
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

static bool is_end_of_child(int result)
{
    return result == FF_SERVED_CHILD || result == FF_SERVED_UNFIT || result == FF_SERVED_SPARE;
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
        for (size_t i = 0; i < fake.count; i++)
            fake_age(&fake.children[i]);
    }
    fake.serving = false;
    limit_fds(RLIM_INFINITY);
    HOLDS(fake.is_child ? is_end_of_child(result) : result == FF_SERVED_ALL);
    if (result == FF_SERVED_SPARE)
        EQUAL(ff_spare_await(server, 0, &request), 0); /* its server has gone */
    else if (fake.is_child)
        check_child(&request);
    if (fake.is_child)
        return;
    EQUAL(stage.alive, -1);
    read_all();
    check_sound();
    check_exits(is_sound); /* a server that leaves does not wait for those to listen whom it has refused */
}

static struct ff_server *make_server(void)
{
    static const uint32_t limits[] = {0, 0, 1, 3};
    static const uint32_t quiets[] = {5000, 300, 20, 60000};
    unsigned options = script_byte(&stage.script);
    struct ff_config config = {
        .authkey = (const unsigned char *)KEY,
        .authkey_size = strlen(KEY),
        .backend = options & 1 ? FF_BACKEND_POLL : FF_BACKEND_AUTO,
        .max_children = limits[options >> 2 & 3],
        .max_spares = options >> 4 & 3,
        .spare_quiet_ms = quiets[options >> 6 & 3],
    };
    struct ff_server *server;
    int ends[2];

    EQUAL(pipe(ends), 0);
    stage.alive = ends[1];
    stage.backend = config.backend;
    stage.max_spares = config.max_spares;
    stage.quiet_ms = config.spare_quiet_ms;
    fake.max_unreaped = config.max_children;
    fake.max_spares = config.max_spares;
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
    fake.id_to_favour = GOOD_ID;
    fake.served = note_served;
    fake.say = say;
    fake.milliseconds = 1000; /* as the clock of a system that runs: 0 is no time */
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
