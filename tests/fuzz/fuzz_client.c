/* fuzz_client.c: the client's side of the frames, against a server that sends what it likes.
 *
 * ff_client_receive() waits for the rest of a frame that has begun. So the server acts whenever the
 * client waits: poll() is replaced by one that plays the next step of the script.
 */
#define _GNU_SOURCE

#include <poll.h>
#include <sys/socket.h>

#include "descriptors.h"
#include "ff_msg.h"
#include "ff_status.h"
#include "invariant.h"
#include "script.h"

#define MAX_SENT 65536

static struct stage {
    struct script script;
    int near;
    int far; /* -1: closed */
    unsigned char sent[MAX_SENT];
    size_t sent_size;
    size_t read_size;
    unsigned fds_sent;
    bool server_is_rude; /* it never reads, so that the client hears ECONNRESET at the end */
    bool client_waits;
} stage;

static struct ff_status_board board;

static void end_stream(void)
{
    if (stage.far < 0)
        return;
    close(stage.far);
    stage.far = -1;
}

static void send_bytes(const void *bytes, size_t size, int fd, unsigned fd_count)
{
    ssize_t sent;

    if (stage.far < 0 || size == 0 || size > MAX_SENT - stage.sent_size)
        return;
    sent = send_fd(stage.far, bytes, size, fd, fd_count);
    if (sent < 0)
        return;
    memcpy(stage.sent + stage.sent_size, bytes, (size_t)sent);
    stage.sent_size += (size_t)sent;
    stage.fds_sent += fd_count;
}

static void send_with(const void *bytes, size_t size, struct attachment attachment)
{
    int fd = open_kind(attachment.kind);

    send_bytes(bytes, size, fd, attachment.count);
    close(fd);
}

static void send_garbage(void)
{
    unsigned char bytes[256];
    struct attachment attachment = script_attachment(&stage.script);
    size_t size = script_size(&stage.script, sizeof bytes);

    script_bytes(&stage.script, bytes, size);
    send_with(bytes, size, attachment);
}

/* An answer, whole or up to some byte. */
static void send_frame(void)
{
    struct attachment attachment = script_attachment(&stage.script);
    struct ff_frame frame = ff_frame_make(script_byte(&stage.script) % 8, script_byte(&stage.script),
                                          (int32_t)script_number(&stage.script));
    size_t omitted = script_byte(&stage.script) % sizeof frame;

    send_with(&frame, sizeof frame - omitted, attachment);
}

/* A copy of a server's page, too short or with a wrong byte, or as it should be. */
static int make_page(void)
{
    unsigned char page[65536];
    ssize_t size = pread(board.fd, page, sizeof page, 0);
    int fd = memfd_create("page", 0);
    size_t wrong = script_number(&stage.script);

    HOLDS(size > 0 && fd >= 0);
    page[wrong % (size_t)size] ^= script_byte(&stage.script);
    size -= script_byte(&stage.script);
    EQUAL(pwrite(fd, page, (size_t)size, 0), size);
    return fd;
}

static void send_page(void)
{
    struct ff_frame frame = ff_frame_make(FF_FRAME_STATUS, script_byte(&stage.script), 0);
    int fd = make_page();

    send_bytes(&frame, sizeof frame, fd, 1);
    close(fd);
}

/* What the server does next; at the end of its script it goes. */
static void play_server(void)
{
    unsigned step = script_byte(&stage.script) % 4;

    if (script_has_ended(&stage.script) || step == 3)
        end_stream();
    else if (step == 0)
        send_garbage();
    else if (step == 1)
        send_frame();
    else
        send_page();
}

int __real_poll(struct pollfd *polled, nfds_t count, int timeout_ms);
int __wrap_poll(struct pollfd *polled, nfds_t count, int timeout_ms);

int __wrap_poll(struct pollfd *polled, nfds_t count, int timeout_ms)
{
    int ready;

    if (!stage.client_waits)
        return __real_poll(polled, count, timeout_ms);
    while ((ready = __real_poll(polled, count, 0)) == 0 && timeout_ms < 0)
        play_server();
    return ready;
}

/* What the server hands out for the status page may be anything; the first bytes tell. */
static void read_status(int fd)
{
    struct ff_status status = {.starts = UINT64_MAX};

    if (ff_status_read(fd, &status) < 0)
        EQUAL(status.starts, UINT64_MAX);
    else
        HOLDS(lseek(fd, 0, SEEK_END) > (off_t)sizeof status);
}

static void check_frame(const struct ff_frame *frame, int fd, unsigned fds_sent)
{
    EQUAL(memcmp(frame, stage.sent + stage.read_size, sizeof *frame), 0);
    EQUAL(frame->magic, FF_MAGIC);
    EQUAL(frame->version, FF_PROTOCOL_VERSION);
    if (fds_sent == 0)
        EQUAL(fd, -1);
    if (fd < 0)
        return;
    read_status(fd);
    EQUAL(close(fd), 0);
}

static bool frame_is_there(void)
{
    return stage.sent_size - stage.read_size >= sizeof(struct ff_frame);
}

/* The server's errors and those that its data deserve. */
static void check_error(int error, const struct ff_frame *frame, const struct ff_frame *untouched)
{
    struct ff_frame sent;

    EQUAL(memcmp(frame, untouched, sizeof *frame), 0);
    if (error == -EPROTO) {
        HOLDS(frame_is_there());
        memcpy(&sent, stage.sent + stage.read_size, sizeof sent);
        HOLDS(sent.magic != FF_MAGIC || sent.version != FF_PROTOCOL_VERSION);
        return;
    }
    if (error == -E2BIG) {
        HOLDS(stage.fds_sent > FF_MAX_FDS);
        return;
    }
    EQUAL(error, stage.server_is_rude ? -ECONNRESET : -EPIPE);
    HOLDS(stage.far < 0 && !frame_is_there());
}

static int receive(int timeout_ms)
{
    static const struct ff_frame untouched = {.magic = 0xAAAAAAAA, .id = 0x55555555};
    struct ff_frame frame = untouched;
    int fd = -2;
    int result;

    stage.client_waits = true;
    result = ff_client_receive(stage.near, timeout_ms, &frame, &fd);
    stage.client_waits = false;
    if (result == 1) {
        check_frame(&frame, fd, stage.fds_sent);
        stage.read_size += sizeof frame;
        return 1;
    }
    EQUAL(fd, -2);
    if (result == 0)
        EQUAL(stage.read_size, stage.sent_size);
    else
        check_error(result, &frame, &untouched);
    return result;
}

/* A client that looks for answers now and then, or waits for them, until the connection is of no use. */
static void play(void)
{
    int result;

    do {
        if (script_byte(&stage.script) & 1)
            play_server();
        result = receive(script_byte(&stage.script) & 1 ? 0 : -1);
    } while (result >= 0 && (stage.far >= 0 || frame_is_there()) && !script_has_ended(&stage.script));
}

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t size)
{
    struct ledger before;
    int ends[2];

    if (board.counts.pid == 0)
        ff_status_open(&board);
    before = ledger_open();
    EQUAL(socketpair(AF_UNIX, SOCK_STREAM, 0, ends), 0);
    stage.script = (struct script){bytes, size};
    stage.near = ends[0];
    stage.far = ends[1];
    stage.sent_size = stage.read_size = stage.fds_sent = 0;
    stage.server_is_rude = script_byte(&stage.script) & 1;
    if (stage.server_is_rude)
        EQUAL(write(stage.near, "", 1), 1);
    play();
    end_stream();
    close(stage.near);
    ledger_close(&before);
    return 0;
}
