/* fuzz_connection.c: one connection, its client, and a model of what the one must make of the other.
 *
 * All that the client has sent is kept beside. A request that the connection finds must be there, byte by
 * byte, with as many descriptors; a refusal must name what the bytes deserve; and the client must
 * hear exactly what it has been told, in that order. After each step every descriptor is accounted for.
 */
#define _GNU_SOURCE

#include <poll.h>
#include <sys/ioctl.h>

#include "ff_connection.h"
#include "ff_fd.h"
#include "ff_loop.h"
#include "invariant.h"
#include "oracle.h"
#include "peer.h"
#include "script.h"

#define MAX_TOLD 4096
#define GOOD_ID 0xC0FFEEu

static const struct ff_config config = {
    .authkey = (const unsigned char *)KEY,
    .authkey_size = sizeof KEY - 1,
};

static struct ff_status_board board;

static struct stage {
    struct script script;
    struct ff_connection *connection;
    struct peer peer;
    bool is_odd;                  /* the client has done what may end its connection */
    bool limited;                 /* in descriptors, at some time */
    unsigned failing_allocations; /* to come */
    size_t frame;    /* where in the log the frame begins that is to come; 0: not authenticated yet */
    size_t fds_from; /* descriptors behind this byte of the log belong to it */
    struct ff_status counted; /* on the board before the last turn */
    size_t told_count;
    size_t heard_count;
    bool request_came;
    struct ledger before;
} stage;

static struct peer_log sent;
static struct ff_frame told[MAX_TOLD]; /* what the client is to hear */

/* ---- the model ---- */

static void tell(enum ff_frame_type type, uint32_t id, int32_t value)
{
    HOLDS(stage.told_count < MAX_TOLD);
    told[stage.told_count++] = ff_frame_make(type, id, value);
}

static void hear(struct peer *peer, const struct ff_frame *frame)
{
    const struct ff_frame *expected = &told[stage.heard_count];

    (void)peer;
    HOLDS(stage.heard_count < stage.told_count);
    stage.heard_count++;
    EQUAL(frame->type, expected->type);
    EQUAL(frame->value, expected->value);
    if (frame->type != FF_FRAME_REFUSED) /* of which request may not be known yet */
        EQUAL(frame->id, expected->id);
}

static size_t unread_bytes(void)
{
    int size;

    EQUAL(ioctl(stage.connection->sock, FIONREAD, &size), 0);
    return (size_t)size;
}

/* How much of the log the connection has taken from its socket. */
static size_t taken_bytes(void)
{
    return sent.size - unread_bytes();
}

static size_t count_marks(size_t from, size_t to)
{
    size_t count = 0;

    for (size_t i = 0; i < sent.mark_count; i++)
        if (sent.marks[i].at >= from && sent.marks[i].at < to)
            count += sent.marks[i].fd_count;
    return count;
}

static struct ff_frame frame_to_come(void)
{
    struct ff_frame frame;

    memcpy(&frame, sent.bytes + stage.frame, sizeof frame);
    return frame;
}

static void end_frame(const struct ff_frame *frame)
{
    stage.frame += sizeof *frame + frame->payload_size;
    stage.fds_from = stage.frame;
}

/* Three messages prove the key, whatever is in them. */
static size_t end_of_proof(void)
{
    size_t end = 0;

    for (int i = 0; i < 3; i++)
        end += FF_AUTH_PREFIX_SIZE + ff_auth_read_prefix(sent.bytes + end);
    return end;
}

/* Whoever has not answered the challenge never gets that far. */
static void find_first_frame(void)
{
    if (stage.frame > 0 || stage.connection->auth.stage != FF_AUTH_DONE)
        return;
    HOLDS(stage.peer.speaks_frames || stage.peer.lies);
    HOLDS(stage.peer.proof_sent >= ANSWER_SIZE && !stage.peer.lacks_key);
    stage.frame = end_of_proof();
}

static void fail_frame(int error)
{
    struct ff_frame frame = frame_to_come();

    EQUAL(expected_refusal(&frame), 0);
    tell(FF_FRAME_FAILED, frame.id, error);
    end_frame(&frame);
}

/* Requests for which there was no memory. */
static void find_skipped_frames(void)
{
    uint64_t count = board.counts.failures[ENOMEM] - stage.counted.failures[ENOMEM];

    while (count-- > 0)
        fail_frame(ENOMEM);
}

/* A frame that is over and of which nothing was heard: its descriptors have been lost. */
static void find_failed_frame(void)
{
    size_t begun = taken_bytes() - stage.connection->reader.have;

    if (stage.connection->state == FF_CONNECTION_PAYLOAD)
        begun -= sizeof(struct ff_frame);
    else if (stage.connection->state != FF_CONNECTION_HEADER)
        return;
    if (begun == stage.frame)
        return;
    HOLDS(stage.limited);
    fail_frame(EMFILE);
    EQUAL(begun, stage.frame);
}

static int cause_of_last_refusal(void)
{
    int cause = 0;

    for (int i = 1; i < FF_REFUSED_CAUSES; i++)
        if (board.counts.refused[i] != stage.counted.refused[i])
            cause = i;
    return cause;
}

static int deserved_refusal(void)
{
    struct ff_frame frame;

    if (taken_bytes() - stage.frame < sizeof frame)
        return 0;
    frame = frame_to_come();
    return expected_refusal(&frame);
}

/* Descriptors are counted at the end of a request, or as soon as they are too many. */
static bool fds_are_wrong(void)
{
    size_t taken = taken_bytes();
    size_t count = count_marks(stage.fds_from, taken);
    struct ff_frame frame;

    if (count > FF_MAX_FDS)
        return true;
    if (taken - stage.frame < sizeof frame)
        return false;
    frame = frame_to_come();
    return taken == stage.frame + sizeof frame + frame.payload_size && count != frame.fd_count;
}

/* The frame to come, which is here, says that its payload begins with a block; fuzz_options.c is about these. */
static bool has_sound_options(const struct ff_frame *frame)
{
    uint32_t held = (uint32_t)frame->value & FF_FORK_HELD ? 1 : 0;

    return !((uint32_t)frame->value & FF_FORK_OPTIONS) || frame->type != FF_FRAME_FORK ||
           ff_options_check(sent.bytes + stage.frame + sizeof *frame, frame->payload_size,
                            frame->fd_count - held) > 0;
}

static bool options_are_wrong(void)
{
    struct ff_frame frame;

    if (taken_bytes() - stage.frame < sizeof frame)
        return false;
    frame = frame_to_come();
    return taken_bytes() == stage.frame + sizeof frame + frame.payload_size && !has_sound_options(&frame);
}

static void check_refusal(int cause)
{
    HOLDS(cause > 0);
    HOLDS(stage.is_odd || stage.peer.lies);
    if (stage.frame == 0) {
        HOLDS(cause == FF_REFUSED_KEY || cause == FF_REFUSED_FDS);
        return;
    }
    if (cause == FF_REFUSED_KEY)
        return;
    HOLDS(cause == deserved_refusal() || (cause == FF_REFUSED_FDS && fds_are_wrong()) ||
          (cause == FF_REFUSED_OPTIONS && options_are_wrong()));
    tell(FF_FRAME_REFUSED, 0, cause);
}

static void check_request(enum ff_frame_type type)
{
    const struct ff_connection *connection = stage.connection;
    struct ff_frame frame = frame_to_come();
    size_t end = stage.frame + sizeof frame + frame.payload_size;

    EQUAL(taken_bytes(), end);
    EQUAL(frame.type, type);
    EQUAL(expected_refusal(&frame), 0);
    HOLDS(has_sound_options(&frame));
    EQUAL(memcmp(&connection->header, &frame, sizeof frame), 0);
    EQUAL(connection->reader.have, frame.payload_size);
    EQUAL(memcmp(connection->reader.bytes, sent.bytes + stage.frame + sizeof frame, frame.payload_size), 0);
    EQUAL(connection->reader.fd_count, frame.fd_count);
    EQUAL(count_marks(stage.fds_from, end), frame.fd_count);
    end_frame(&frame);
    stage.request_came = true;
}

static void check_fds(void)
{
    const struct ff_connection *connection = stage.connection;
    int expected = stage.before.fds + (stage.peer.sock >= 0) + (stage.peer.fd >= 0);

    expected += 1 + (int)connection->reader.fd_count + (connection->outbox.fd >= 0);
    EQUAL(count_fds(), expected);
}

/* ---- the server's part ---- */

static void finish_request(void)
{
    ff_connection_next_request(stage.connection);
    HOLDS(stage.connection->reader.fd_count == 0 || stage.connection->state == FF_CONNECTION_GONE);
}

static void answer_fork(unsigned choice)
{
    uint32_t id = stage.connection->header.id;

    if (choice % 4 == 3) {
        tell(FF_FRAME_FAILED, id, EAGAIN);
        ff_connection_post_failure(stage.connection, EAGAIN);
    } else {
        tell(FF_FRAME_STARTED, id, (int32_t)choice);
        ff_connection_post(stage.connection, ff_frame_make(FF_FRAME_STARTED, id, (int32_t)choice),
                           choice & 1 ? open_kind(choice) : -1);
    }
    finish_request();
}

/* At once, or when there is room for another child. */
static void take_fork(void)
{
    unsigned choice = script_byte(&stage.script);

    if (choice < 0x80)
        answer_fork(choice);
    else
        ff_connection_wait(stage.connection, choice);
}

static void go_on(void)
{
    if (ff_connection_may_go_on(stage.connection))
        answer_fork(script_byte(&stage.script));
}

static void answer_status(void)
{
    uint32_t id = stage.connection->header.id;

    tell(FF_FRAME_STATUS, id, 0);
    ff_connection_post(stage.connection, ff_frame_make(FF_FRAME_STATUS, id, 0), ff_fd_duplicate(board.fd));
    finish_request();
}

void *__real_malloc(size_t size);
void *__wrap_malloc(size_t size);

void *__wrap_malloc(size_t size)
{
    if (stage.failing_allocations == 0)
        return __real_malloc(size);
    stage.failing_allocations--;
    errno = ENOMEM;
    return NULL;
}

static enum ff_connection_event read_within(rlim_t limit)
{
    enum ff_connection_event event;

    limit_fds(limit);
    event = ff_connection_read(stage.connection, &config);
    limit_fds(RLIM_INFINITY);
    return event;
}

static void read_client(rlim_t limit)
{
    enum ff_connection_state state = stage.connection->state;
    enum ff_connection_event event;
    int cause;

    stage.counted = board.counts;
    event = read_within(limit);
    cause = cause_of_last_refusal();
    find_first_frame();
    find_skipped_frames();
    if (cause != 0 || (state < FF_CONNECTION_CLOSING && stage.connection->state == FF_CONNECTION_CLOSING)) {
        check_refusal(cause);
        EQUAL(event, FF_CONNECTION_IDLE);
    } else if (event == FF_CONNECTION_REQUEST) {
        check_request(FF_FRAME_FORK);
        take_fork();
    } else if (event == FF_CONNECTION_STATUS) {
        check_request(FF_FRAME_STATUS);
        answer_status();
    }
    find_failed_frame();
}

/* What the loop does on a batch of events: true where there was one. */
static bool take_turn(rlim_t limit)
{
    unsigned interest = ff_connection_interest(stage.connection);
    struct pollfd polled = {.fd = stage.connection->sock};

    stage.connection->stalled = false;
    polled.events = (short)((interest & FF_READABLE ? POLLIN : 0) | (interest & FF_WRITABLE ? POLLOUT : 0));
    if (stage.connection->state == FF_CONNECTION_GONE || poll(&polled, 1, 0) == 0)
        return false;
    if (polled.revents & ~POLLOUT)
        ff_connection_hang_up(stage.connection);
    if (polled.revents & ~POLLIN)
        ff_connection_flush(stage.connection);
    if (polled.revents & ~POLLOUT)
        read_client(limit);
    if (stage.connection->state == FF_CONNECTION_GONE)
        HOLDS(stage.is_odd || stage.peer.lies);
    return true;
}

static void settle(void)
{
    unsigned turns = 0;

    while (take_turn(RLIM_INFINITY))
        HOLDS(turns++ < MAX_TOLD);
}

/* Nobody has children before a first request. */
static void end_child(void)
{
    uint32_t id = script_byte(&stage.script);
    int exit_code = (int)script_byte(&stage.script) - 128;
    struct ff_child *child;

    if (stage.frame == 0)
        return;
    child = ff_child_new(stage.connection, id);
    HOLDS(child != NULL);
    child->exit_code = exit_code;
    if (stage.connection->state < FF_CONNECTION_CLOSING)
        tell(FF_FRAME_EXITED, id, child->exit_code);
    ff_connection_post_exit(stage.connection, child);
    ff_connection_flush(stage.connection);
}

/* ---- the client's part ---- */

static void prove(void)
{
    size_t limit = script_byte(&stage.script);
    uint8_t damage = limit & 1 ? script_byte(&stage.script) : 0;
    struct attachment attachment = {0};

    if (damage & 1)
        attachment = script_attachment(&stage.script);
    peer_read(&stage.peer, SIZE_MAX, hear);
    peer_prove(&stage.peer, limit == 0 ? SIZE_MAX : limit, damage, damage, attachment);
}

static void send_odd(const void *bytes, size_t size, struct attachment attachment)
{
    stage.peer.lies |= !stage.peer.speaks_frames;
    stage.is_odd = true;
    peer_send(&stage.peer, bytes, size, attachment);
}

static void send_garbage(void)
{
    static unsigned char bytes[FF_MAX_PAYLOAD];
    struct attachment attachment = script_attachment(&stage.script);
    size_t size = script_size(&stage.script, sizeof bytes);

    script_bytes(&stage.script, bytes, size);
    send_odd(bytes, size, attachment);
}

static void send_odd_frame(void)
{
    struct ff_frame frame = script_frame(&stage.script);

    send_odd(&frame, sizeof frame, script_attachment(&stage.script));
}

static bool send_whole(const void *bytes, size_t size, struct attachment attachment)
{
    return peer_send(&stage.peer, bytes, size, attachment) == size;
}

/* A request in which all is right, in two parts, each with some of its descriptors. */
static void send_request(uint32_t id, struct attachment first, struct attachment second, size_t payload_size,
                         size_t cut)
{
    static unsigned char bytes[sizeof(struct ff_frame) + FF_MAX_PAYLOAD];
    struct ff_frame frame = ff_frame_make(FF_FRAME_FORK, id, 0);
    size_t size = sizeof frame + payload_size;

    cut = 1 + cut % (size - 1);
    frame.payload_size = (uint32_t)payload_size;
    frame.fd_count = first.count + second.count;
    memcpy(bytes, &frame, sizeof frame);
    memset(bytes + sizeof frame, (int)id, payload_size);
    if (!stage.peer.speaks_frames || frame.fd_count > FF_MAX_FDS)
        send_odd(bytes, cut, first);
    else if (!send_whole(bytes, cut, first) || !send_whole(bytes + cut, size - cut, second))
        stage.is_odd = true;
}

static void send_any_request(void)
{
    uint32_t id = script_byte(&stage.script);
    struct attachment first = script_attachment(&stage.script);
    struct attachment second = script_attachment(&stage.script);
    size_t payload_size = script_size(&stage.script, FF_MAX_PAYLOAD);

    send_request(id, first, second, payload_size, script_number(&stage.script));
}

static void ask_status(void)
{
    struct ff_frame frame = ff_frame_make(FF_FRAME_STATUS, script_byte(&stage.script), 0);

    if (!stage.peer.speaks_frames)
        send_odd(&frame, sizeof frame, (struct attachment){0});
    else if (!send_whole(&frame, sizeof frame, (struct attachment){0}))
        stage.is_odd = true;
}

static void read_some(void)
{
    size_t limit = script_byte(&stage.script);

    peer_read(&stage.peer, limit == 0 ? SIZE_MAX : limit, hear);
}

static void shut_down(void)
{
    if (stage.peer.sock >= 0)
        shutdown(stage.peer.sock, script_byte(&stage.script) % 3);
    stage.is_odd = true;
}

static void leave(void)
{
    peer_close(&stage.peer);
    stage.is_odd = true;
}

static void take_limited_turn(void)
{
    stage.limited = true;
    take_turn(limit_with_room_for(script_byte(&stage.script) % 8));
}

/* With the uppermost bit the connection has its turn only later. */
static void play(void)
{
    unsigned code = script_byte(&stage.script);

    switch (code % 32) {
    case 0:
    case 1:
        prove();
        break;
    case 2:
        send_garbage();
        break;
    case 3:
        send_odd_frame();
        break;
    case 4:
    case 5:
    case 6:
        send_any_request();
        break;
    case 7:
        ask_status();
        break;
    case 8:
        read_some();
        break;
    case 9:
        shut_down();
        break;
    case 10:
        leave();
        break;
    case 11:
    case 12:
        end_child();
        break;
    case 13:
        take_limited_turn();
        break;
    case 14:
        go_on();
        break;
    case 15:
        stage.failing_allocations = script_byte(&stage.script) % 4;
        break;
    case 16:
        read_client(RLIM_INFINITY); /* though the loop would not have asked for it */
        break;
    default:
        take_turn(RLIM_INFINITY);
        break;
    }
    check_fds();
    if (code & 0x80)
        return;
    settle();
    check_fds();
}

/* ---- the end ---- */

/* Until neither has anything to do. */
static void talk_on(void)
{
    do {
        settle();
        go_on();
    } while (peer_read(&stage.peer, SIZE_MAX, hear));
}

/* A client that has done nothing wrong is served, and all is told to whoever listens. */
static void conclude(void)
{
    struct attachment two = {.count = 2, .kind = 0};

    stage.failing_allocations = 0;
    talk_on();
    if (!stage.is_odd && !stage.peer.lies) {
        peer_prove(&stage.peer, SIZE_MAX, 0, 0, (struct attachment){0});
        talk_on();
        stage.request_came = false;
        send_request(GOOD_ID, two, two, 1000, 30);
        talk_on();
        HOLDS(stage.request_came);
    }
    if (stage.peer.sock >= 0 && !stage.peer.has_ended)
        EQUAL(stage.heard_count, stage.told_count);
}

static void open_connection(const struct script *script)
{
    int ends[2];
    int size = 1;

    EQUAL(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, ends), 0);
    if (script->left > 0 && script->bytes[0] & 1)
        EQUAL(setsockopt(ends[0], SOL_SOCKET, SO_SNDBUF, &size, sizeof size), 0);
    EQUAL(ff_connection_open(ends[0], &board, &stage.connection), 0);
    peer_init(&stage.peer, ends[1]);
    stage.peer.log = &sent;
}

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t size)
{
    if (board.counts.pid == 0)
        ff_status_open(&board);
    memset(&stage, 0, sizeof stage);
    sent.size = sent.mark_count = 0;
    stage.before = ledger_open();
    stage.script = (struct script){bytes, size};
    open_connection(&stage.script);
    script_byte(&stage.script);
    while (!script_has_ended(&stage.script))
        play();
    conclude();
    ff_connection_free(stage.connection);
    peer_close(&stage.peer);
    ledger_close(&stage.before);
    return 0;
}
