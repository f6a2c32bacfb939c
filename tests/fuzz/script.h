/* script.h: an input of the fuzzer, read as a script: whatever its bytes, it means something.
 *
 * At its end a script goes on with zeros, so that every prefix of a script is one.
 */
#ifndef FF_FUZZ_SCRIPT_H
#define FF_FUZZ_SCRIPT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "ff_abi.h"

struct script {
    const uint8_t *bytes;
    size_t left;
};

static inline bool script_has_ended(const struct script *script)
{
    return script->left == 0;
}

static inline uint8_t script_byte(struct script *script)
{
    if (script->left == 0)
        return 0;
    script->left--;
    return *script->bytes++;
}

static inline void script_bytes(struct script *script, void *ret_bytes, size_t size)
{
    size_t there = size < script->left ? size : script->left;

    memset(ret_bytes, 0, size);
    if (there > 0)
        memcpy(ret_bytes, script->bytes, there);
    script->bytes += there;
    script->left -= there;
}

/* A number for a field of 32 bits: one byte for most, and for those at which something changes. */
static inline uint32_t script_number(struct script *script)
{
    static const uint32_t edges[] = {
        FF_MAX_FDS_PER_MESSAGE,
        FF_MAX_FDS_PER_MESSAGE + 1,
        FF_MAX_FDS,
        FF_MAX_FDS + 1,
        4096,
        FF_MAX_PAYLOAD - 1,
        FF_MAX_PAYLOAD,
        FF_MAX_PAYLOAD + 1,
        INT32_MAX,
        (uint32_t)INT32_MAX + 1,
        UINT32_MAX,
    };
    const unsigned first = 0xF0;
    unsigned byte = script_byte(script);
    uint32_t any;

    if (byte < first)
        return byte;
    if (byte - first < sizeof edges / sizeof *edges)
        return edges[byte - first];
    script_bytes(script, &any, sizeof any);
    return any;
}

/* The same, bounded. */
static inline size_t script_size(struct script *script, size_t limit)
{
    size_t number = script_number(script);

    return number < limit ? number : limit;
}

#endif
