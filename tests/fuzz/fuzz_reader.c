/* fuzz_reader.c: the gatherer of bytes and descriptors, and the check of a request's header.
 *
 * What has been sent is kept beside: the reader must have exactly that, in that order, and every
 * descriptor, kept or not, must be accounted for after each step.
 */
#define _GNU_SOURCE

#include <sys/socket.h>

#include "descriptors.h"
#include "ff_fd.h"
#include "ff_msg.h"
#include "invariant.h"
#include "oracle.h"
#include "script.h"

#define MAX_SENT (4 * FF_MAX_PAYLOAD)

struct stage {
    struct script script;
    struct ff_reader reader;
    int near;
    int far; /* -1: closed */
    unsigned char sent[MAX_SENT];
    size_t sent_size;
    size_t read_size;
    size_t kept_from; /* which byte of `sent` is the reader's first */
    size_t fds_sent;  /* since the reader last dropped its descriptors */
    bool limited;     /* at some time since then */
    int fds_before;
};

static void send_some(struct stage *stage)
{
    struct attachment attachment = script_attachment(&stage->script);
    size_t size = script_size(&stage->script, MAX_SENT - stage->sent_size);
    unsigned char *bytes = stage->sent + stage->sent_size;
    ssize_t sent;

    script_bytes(&stage->script, bytes, size);
    if (size == 0 || stage->far < 0)
        return;
    sent = send_attached(stage->far, bytes, size, attachment);
    if (sent < 0)
        return;
    stage->sent_size += (size_t)sent;
    stage->fds_sent += attachment.count;
}

static void send_header(struct stage *stage)
{
    struct ff_frame frame = script_frame(&stage->script);
    ssize_t sent;

    if (stage->far < 0 || MAX_SENT - stage->sent_size < sizeof frame)
        return;
    memcpy(stage->sent + stage->sent_size, &frame, sizeof frame);
    sent = send_attached(stage->far, &frame, sizeof frame, (struct attachment){0});
    if (sent > 0)
        stage->sent_size += (size_t)sent;
}

static void expect_more(struct stage *stage)
{
    struct ff_reader *reader = &stage->reader;
    size_t size = script_size(&stage->script, FF_MAX_PAYLOAD);
    size_t have = reader->have;

    EQUAL(ff_reader_expect(reader, size), 0);
    EQUAL(reader->need, have + size);
    HOLDS(reader->need <= reader->capacity);
}

static void check_header(const struct ff_reader *reader)
{
    struct ff_frame frame;

    if (reader->have < sizeof frame)
        return;
    memcpy(&frame, reader->bytes, sizeof frame);
    EQUAL(ff_frame_check_request(&frame), expected_refusal(&frame));
}

/* A descriptor that does not fit, or that this process may not open, is the only fault that there can be. */
static void check_fill(struct stage *stage, int result, size_t had)
{
    struct ff_reader *reader = &stage->reader;
    size_t gathered = reader->have - had;

    HOLDS(reader->have <= reader->need);
    HOLDS(reader->fd_count <= FF_MAX_FDS);
    HOLDS(reader->fd_count <= stage->fds_sent);
    HOLDS(stage->read_size + gathered <= stage->sent_size);
    EQUAL(result == 1, reader->have == reader->need);
    HOLDS(result >= 0 || result == -EPIPE || result == -E2BIG);
    if (result == -E2BIG)
        HOLDS(stage->fds_sent > FF_MAX_FDS);
    if (result == -EPIPE)
        HOLDS(stage->far < 0 && stage->read_size + gathered == stage->sent_size);
    if (result == 0)
        EQUAL(stage->read_size + gathered, stage->sent_size);
    if (reader->lost_fds)
        HOLDS(stage->limited);
    EQUAL(memcmp(reader->bytes, stage->sent + stage->kept_from, reader->have), 0);
}

static void fill(struct stage *stage, bool limited)
{
    struct ff_reader *reader = &stage->reader;
    size_t had = reader->have;
    int result;

    if (reader->bytes == NULL)
        return;
    stage->limited |= limited;
    if (limited)
        limit_fds(limit_with_room_for(script_byte(&stage->script) % 8));
    result = ff_reader_fill(reader, stage->near);
    limit_fds(RLIM_INFINITY);
    if (result == -E2BIG) {
        /* The bytes of that message are lost: a connection ends here. */
        ff_reader_drop_fds(reader);
        close(stage->far);
        stage->far = -1;
        stage->script.left = 0;
        return;
    }
    check_fill(stage, result, had);
    stage->read_size += reader->have - had;
    check_header(reader);
}

static void restart(struct stage *stage)
{
    ff_reader_restart(&stage->reader);
    EQUAL(stage->reader.have, 0);
    EQUAL(stage->reader.need, 0);
    stage->kept_from = stage->read_size;
}

static void drop_fds(struct stage *stage)
{
    stage->fds_sent -= stage->reader.fd_count;
    ff_reader_drop_fds(&stage->reader);
    EQUAL(stage->reader.fd_count, 0);
    HOLDS(!stage->reader.lost_fds);
    stage->limited = false;
}

static void end_stream(struct stage *stage)
{
    if (stage->far < 0)
        return;
    close(stage->far);
    stage->far = -1;
}

static void check_fds(const struct stage *stage)
{
    EQUAL(count_fds(), stage->fds_before + (int)stage->reader.fd_count + (stage->far < 0 ? 1 : 2));
}

static void play(struct stage *stage)
{
    switch (script_byte(&stage->script) % 8) {
    case 0:
        send_some(stage);
        break;
    case 1:
        send_header(stage);
        break;
    case 2:
        expect_more(stage);
        break;
    case 3:
        fill(stage, false);
        break;
    case 4:
        fill(stage, true);
        break;
    case 5:
        restart(stage);
        break;
    case 6:
        drop_fds(stage);
        break;
    case 7:
        end_stream(stage);
        break;
    }
    check_fds(stage);
}

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t size)
{
    static struct stage stage;
    struct ledger before = ledger_open();
    int ends[2];

    EQUAL(socketpair(AF_UNIX, SOCK_STREAM, 0, ends), 0);
    stage.script = (struct script){bytes, size};
    stage.near = ends[0];
    stage.far = ends[1];
    stage.sent_size = stage.read_size = stage.kept_from = stage.fds_sent = 0;
    stage.limited = false;
    stage.fds_before = before.fds;
    ff_reader_init(&stage.reader);
    while (!script_has_ended(&stage.script))
        play(&stage);
    ff_reader_clear(&stage.reader);
    end_stream(&stage);
    close(stage.near);
    ledger_close(&before);
    return 0;
}
