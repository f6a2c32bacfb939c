/* peer.h: a client that never waits: it sends what it is told to, and understands what comes.
 *
 * The fuzzer decides how far it goes at each step, which byte of its proof of the key is wrong, and
 * how much it reads. Whatever it does, what the server says to it must make sense.
 */
#ifndef FF_FUZZ_PEER_H
#define FF_FUZZ_PEER_H

#include "descriptors.h"
#include "ff_auth.h"
#include "ff_msg.h"
#include "ff_sha256.h"
#include "invariant.h"

#define KEY "the fuzzer's key"
#define CHALLENGE "#CHALLENGE#"
#define NONCE "{sha256}0123456789012345678901234567890123456789"
#define WELCOME "#WELCOME#"
#define FAILURE "#FAILURE#"
#define DIGEST "{sha256}"
#define ANSWER_SIZE (FF_AUTH_PREFIX_SIZE + sizeof DIGEST - 1 + FF_SHA256_SIZE)

/* What is to come from the server. */
enum peer_stage {
    PEER_AWAITS_CHALLENGE,
    PEER_AWAITS_WELCOME,
    PEER_AWAITS_DIGEST,
    PEER_AWAITS_FRAMES,
    PEER_AWAITS_END, /* it has been refused */
};

#define PEER_MAX_SENT (8 * FF_MAX_PAYLOAD)
#define PEER_MAX_MARKS 4096

/* All that a client has sent, for a target that wants to compare. */
struct peer_log {
    unsigned char bytes[PEER_MAX_SENT];
    size_t size;
    struct peer_mark {
        size_t at; /* on which byte */
        unsigned fd_count;
    } marks[PEER_MAX_MARKS];
    size_t mark_count;
};

struct peer {
    int sock;             /* -1: not connected */
    struct peer_log *log; /* or NULL */
    enum peer_stage stage;
    unsigned char in[FF_AUTH_PREFIX_SIZE + FF_AUTH_MAX_MESSAGE];
    size_t have;
    int fd; /* that came with what is in `in`, or -1 */
    bool has_ended;
    bool has_heard_frame;
    bool speaks_frames; /* it has sent all of its proof, and the right one */
    bool lies;          /* it has sent anything else */
    bool babbles;       /* the target's: it has sent what makes no sense, or not all of what it meant */
    size_t asked;       /* likewise: requests that deserve an answer */
    size_t answered;
    bool lacks_key; /* its answer to the challenge was a wrong one */
    unsigned char proof[FF_AUTH_MAX_MESSAGE];
    size_t proof_size; /* 0: it has not been challenged */
    size_t proof_sent;
};

/* What a frame means to the target; the descriptor that came along is closed behind it. */
typedef void peer_listener(struct peer *peer, const struct ff_frame *frame);

static inline void peer_init(struct peer *peer, int sock)
{
    *peer = (struct peer){.sock = sock, .fd = -1};
}

static inline void peer_close(struct peer *peer)
{
    if (peer->fd >= 0)
        close(peer->fd);
    if (peer->sock >= 0)
        close(peer->sock);
    peer->sock = peer->fd = -1;
}

/* ---- what goes ---- */

static inline void log_sent(struct peer_log *log, const void *bytes, size_t size, unsigned fd_count)
{
    if (fd_count > 0)
        log->marks[log->mark_count++] = (struct peer_mark){log->size, fd_count};
    memcpy(log->bytes + log->size, bytes, size);
    log->size += size;
}

static inline bool log_has_room(const struct peer_log *log, size_t size)
{
    return size <= PEER_MAX_SENT - log->size && log->mark_count < PEER_MAX_MARKS;
}

/* Send what the socket takes: how much. */
static inline size_t peer_send(struct peer *peer, const void *bytes, size_t size,
                               struct attachment attachment)
{
    ssize_t sent;

    if (peer->sock < 0 || size == 0 || (peer->log != NULL && !log_has_room(peer->log, size)))
        return 0;
    sent = send_attached(peer->sock, bytes, size, attachment);
    if (sent > 0 && peer->log != NULL)
        log_sent(peer->log, bytes, (size_t)sent, attachment.count);
    return sent < 0 ? 0 : (size_t)sent;
}

/* ---- the proof of the key, and the challenge to the server ---- */

static inline void add_message(struct peer *peer, const void *body, size_t size)
{
    const unsigned char prefix[FF_AUTH_PREFIX_SIZE] = {0, 0, 0, (unsigned char)size};

    memcpy(peer->proof + peer->proof_size, prefix, sizeof prefix);
    memcpy(peer->proof + peer->proof_size + sizeof prefix, body, size);
    peer->proof_size += sizeof prefix + size;
}

static inline size_t sign(const void *text, size_t size, unsigned char *ret_answer)
{
    memcpy(ret_answer, DIGEST, strlen(DIGEST));
    ff_hmac_sha256((const unsigned char *)KEY, strlen(KEY), text, (uint32_t)size,
                   ret_answer + strlen(DIGEST));
    return strlen(DIGEST) + FF_SHA256_SIZE;
}

/* All that a client has to say until the first frame: nothing in it depends on the server's answers. */
static inline void take_challenge(struct peer *peer, const unsigned char *body, size_t size)
{
    unsigned char answer[FF_AUTH_MAX_MESSAGE];

    HOLDS(size > strlen(CHALLENGE));
    EQUAL(memcmp(body, CHALLENGE, strlen(CHALLENGE)), 0);
    add_message(peer, answer, sign(body + strlen(CHALLENGE), size - strlen(CHALLENGE), answer));
    add_message(peer, CHALLENGE NONCE, strlen(CHALLENGE NONCE));
    add_message(peer, WELCOME, strlen(WELCOME));
    peer->stage = PEER_AWAITS_WELCOME;
}

/* Send up to `limit` bytes more of the proof, one of them damaged by `damage`. */
static inline void peer_prove(struct peer *peer, size_t limit, size_t damaged, uint8_t damage,
                              struct attachment attachment)
{
    unsigned char part[FF_AUTH_MAX_MESSAGE];
    size_t left = peer->proof_size - peer->proof_sent;
    size_t size = limit < left ? limit : left;
    size_t sent;

    if (size == 0)
        return;
    damaged %= size;
    memcpy(part, peer->proof + peer->proof_sent, size);
    part[damaged] ^= damage;
    sent = peer_send(peer, part, size, attachment);
    if (sent > damaged && damage != 0) {
        peer->lies = true;
        peer->lacks_key |= peer->proof_sent + damaged < ANSWER_SIZE;
    }
    peer->lies |= sent > 0 && attachment.count > 0;
    peer->proof_sent += sent;
    peer->speaks_frames = peer->proof_sent == peer->proof_size && !peer->lies;
}

/* ---- what comes ---- */

static inline bool message_is(const unsigned char *body, size_t size, const char *text)
{
    return size == strlen(text) && memcmp(body, text, size) == 0;
}

static inline void take_digest(struct peer *peer, const unsigned char *body, size_t size)
{
    unsigned char digest[FF_AUTH_MAX_MESSAGE];

    EQUAL(size, sign(NONCE, strlen(NONCE), digest));
    if (!peer->lies)
        EQUAL(memcmp(body, digest, size), 0);
    peer->stage = PEER_AWAITS_FRAMES;
}

/* Without the right answer there is no welcome, and whoever does all right is not refused. */
static inline void take_message(struct peer *peer, const unsigned char *body, size_t size)
{
    EQUAL(peer->fd, -1);
    if (message_is(body, size, FAILURE)) {
        HOLDS(peer->lies && peer->stage != PEER_AWAITS_CHALLENGE);
        peer->stage = PEER_AWAITS_END;
    } else if (peer->stage == PEER_AWAITS_CHALLENGE) {
        take_challenge(peer, body, size);
    } else if (peer->stage == PEER_AWAITS_WELCOME) {
        HOLDS(message_is(body, size, WELCOME));
        HOLDS(peer->proof_sent >= ANSWER_SIZE && !peer->lacks_key);
        peer->stage = PEER_AWAITS_DIGEST;
    } else {
        EQUAL(peer->stage, PEER_AWAITS_DIGEST);
        take_digest(peer, body, size);
    }
}

/* No frame of the server's has a payload: two have something else in its place. */
static inline void check_in_place_of_payload(const struct ff_frame *frame)
{
    if (frame->type == FF_FRAME_STARTED && frame->unsent != 0)
        EQUAL(frame->unsent, ETOOMANYREFS);
    else if (frame->type != FF_FRAME_FAILED)
        EQUAL(frame->payload_size, 0);
}

static inline void take_frame(struct peer *peer, peer_listener *listener)
{
    struct ff_frame frame;

    memcpy(&frame, peer->in, sizeof frame);
    EQUAL(frame.magic, FF_MAGIC);
    EQUAL(frame.version, FF_PROTOCOL_VERSION);
    check_in_place_of_payload(&frame);
    EQUAL(frame.fd_count, peer->fd >= 0);
    if (frame.type == FF_FRAME_REFUSED)
        peer->stage = PEER_AWAITS_END;
    peer->has_heard_frame = true;
    listener(peer, &frame);
    if (peer->fd >= 0)
        close(peer->fd);
    peer->fd = -1;
}

static inline bool is_frame(const struct peer *peer)
{
    const uint32_t magic = FF_MAGIC;

    return peer->stage == PEER_AWAITS_FRAMES && memcmp(peer->in, &magic, sizeof magic) == 0;
}

/* How long the message or frame is that has begun, as far as one can tell. */
static inline size_t expected_size(const struct peer *peer)
{
    uint32_t body;

    if (peer->have < FF_AUTH_PREFIX_SIZE)
        return FF_AUTH_PREFIX_SIZE;
    if (is_frame(peer))
        return sizeof(struct ff_frame);
    body = ff_auth_read_prefix(peer->in);
    HOLDS(body > 0 && body <= FF_AUTH_MAX_MESSAGE);
    return FF_AUTH_PREFIX_SIZE + body;
}

static inline void keep_received_fd(struct peer *peer, struct msghdr *message)
{
    struct cmsghdr *cmsg = CMSG_FIRSTHDR(message);

    EQUAL(message->msg_flags & MSG_CTRUNC, 0);
    if (cmsg == NULL)
        return;
    EQUAL(cmsg->cmsg_len, CMSG_LEN(sizeof peer->fd));
    EQUAL(peer->fd, -1);
    memcpy(&peer->fd, CMSG_DATA(cmsg), sizeof peer->fd);
}

static inline ssize_t receive_part(struct peer *peer, size_t size)
{
    char control[CMSG_SPACE(2 * sizeof(int))] __attribute__((aligned(8)));
    struct iovec part = {peer->in + peer->have, size};
    struct msghdr message = {
        .msg_iov = &part,
        .msg_iovlen = 1,
        .msg_control = control,
        .msg_controllen = sizeof control,
    };
    ssize_t received = recvmsg(peer->sock, &message, MSG_DONTWAIT);

    if (received >= 0)
        keep_received_fd(peer, &message);
    return received;
}

/* A part of a message or frame, never beyond its end: false when there is nothing to be had. */
static inline bool read_part(struct peer *peer, size_t *limit)
{
    size_t missing = expected_size(peer) - peer->have;
    ssize_t received = receive_part(peer, missing < *limit ? missing : *limit);

    if (received <= 0) {
        peer->has_ended |= received == 0 || errno != EAGAIN;
        return false;
    }
    HOLDS(peer->stage != PEER_AWAITS_END);
    peer->have += (size_t)received;
    *limit -= (size_t)received;
    return true;
}

/* Read at most `limit` bytes of what is there: true where there is something. */
static inline bool peer_read(struct peer *peer, size_t limit, peer_listener *listener)
{
    size_t left = limit;

    while (peer->sock >= 0 && left > 0 && read_part(peer, &left)) {
        if (peer->have < expected_size(peer))
            continue;
        if (is_frame(peer))
            take_frame(peer, listener);
        else
            take_message(peer, peer->in + FF_AUTH_PREFIX_SIZE, peer->have - FF_AUTH_PREFIX_SIZE);
        peer->have = 0;
    }
    return left < limit;
}

#endif
