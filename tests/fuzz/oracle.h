/* oracle.h: frames as a client may make them up, and what the protocol says of them, stated apart from the core. */
#ifndef FF_FUZZ_ORACLE_H
#define FF_FUZZ_ORACLE_H

#include "ff_msg.h"
#include "script.h"

/* A frame with one thing or another wrong with it; often nothing. */
static inline struct ff_frame script_frame(struct script *script)
{
    unsigned faults = script_byte(script);
    struct ff_frame frame = {
        .magic = faults & 1 ? script_number(script) : FF_MAGIC,
        .version = faults & 2 ? (uint16_t)script_number(script) : FF_PROTOCOL_VERSION,
        .type = faults & 4 ? (uint16_t)script_number(script) : FF_FRAME_FORK,
        .id = script_byte(script),
        .value = faults & 8 ? (int32_t)script_number(script) : 0,
        .payload_size = faults & 16 ? script_number(script) : 0,
        .fd_count = faults & 32 ? script_number(script) : 0,
    };

    return frame;
}

static inline int expected_refusal_of_fork(const struct ff_frame *frame)
{
    const uint32_t known = FF_FORK_PIDFD | FF_FORK_HELD | FF_FORK_STREAM | FF_FORK_DIE_WITH_CLIENT |
                           FF_FORK_OPTIONS | FF_FORK_MODULES;
    uint32_t flags = (uint32_t)frame->value;

    if ((flags | known) != known)
        return FF_REFUSED_TYPE;
    if ((flags & (FF_FORK_STREAM | FF_FORK_HELD)) == FF_FORK_STREAM)
        return FF_REFUSED_TYPE;
    return flags & FF_FORK_HELD && frame->fd_count == 0 ? FF_REFUSED_TYPE : 0;
}

static inline int expected_refusal_of_status(const struct ff_frame *frame)
{
    if (frame->payload_size > 0)
        return FF_REFUSED_PAYLOAD;
    if (frame->fd_count > 0)
        return FF_REFUSED_FDS;
    return frame->value != 0 ? FF_REFUSED_TYPE : 0;
}

/* The ff_refusal that a header deserves, or 0. */
static inline int expected_refusal(const struct ff_frame *frame)
{
    if (frame->magic != FF_MAGIC)
        return FF_REFUSED_MAGIC;
    if (frame->version != FF_PROTOCOL_VERSION)
        return FF_REFUSED_VERSION;
    if (frame->payload_size > FF_MAX_PAYLOAD)
        return FF_REFUSED_PAYLOAD;
    if (frame->fd_count > FF_MAX_FDS)
        return FF_REFUSED_FDS;
    if (frame->type == FF_FRAME_FORK)
        return expected_refusal_of_fork(frame);
    return frame->type == FF_FRAME_STATUS ? expected_refusal_of_status(frame) : FF_REFUSED_TYPE;
}

#endif
