/* ff_sha256.c: SHA-256 (FIPS 180-4) and HMAC (RFC 2104).
 *
 * Written out here because the template may not run Python between two requests and the extension may
 * depend on nothing but libc. It runs once for each client process, not for each child.
 */
#include "ff_sha256.h"

#include <string.h>

static const uint32_t initial_state[8] = {
    0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a, 0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19,
};

static const uint32_t round_constants[64] = {
    0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5,
    0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3, 0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174,
    0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa, 0x5cb0a9dc, 0x76f988da,
    0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967,
    0x27b70a85, 0x2e1b2138, 0x4d2c6dfc, 0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85,
    0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070,
    0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3,
    0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2,
};

static uint32_t rotate(uint32_t word, int bits)
{
    return word >> bits | word << (32 - bits);
}

static uint32_t load_be32(const unsigned char *bytes)
{
    return (uint32_t)bytes[0] << 24 | (uint32_t)bytes[1] << 16 | (uint32_t)bytes[2] << 8 | bytes[3];
}

static void store_be32(unsigned char *bytes, uint32_t word)
{
    for (int i = 0; i < 4; i++)
        bytes[i] = (unsigned char)(word >> (24 - 8 * i));
}

static void expand_block(const unsigned char *block, uint32_t words[64])
{
    for (int i = 0; i < 16; i++)
        words[i] = load_be32(block + 4 * i);
    for (int i = 16; i < 64; i++) {
        uint32_t a = words[i - 15];
        uint32_t b = words[i - 2];
        uint32_t sigma0 = rotate(a, 7) ^ rotate(a, 18) ^ a >> 3;
        uint32_t sigma1 = rotate(b, 17) ^ rotate(b, 19) ^ b >> 10;

        words[i] = words[i - 16] + sigma0 + words[i - 7] + sigma1;
    }
}

/* One round on the working variables a to h, kept in v[0] to v[7]. */
static void mix_round(uint32_t v[8], uint32_t word, uint32_t constant)
{
    uint32_t sum1 = rotate(v[4], 6) ^ rotate(v[4], 11) ^ rotate(v[4], 25);
    uint32_t choice = (v[4] & v[5]) ^ (~v[4] & v[6]);
    uint32_t temp1 = v[7] + sum1 + choice + constant + word;
    uint32_t sum0 = rotate(v[0], 2) ^ rotate(v[0], 13) ^ rotate(v[0], 22);
    uint32_t majority = (v[0] & v[1]) ^ (v[0] & v[2]) ^ (v[1] & v[2]);

    memmove(v + 1, v, 7 * sizeof *v);
    v[4] += temp1;
    v[0] = temp1 + sum0 + majority;
}

static void take_block(struct ff_sha256 *hash, const unsigned char *block)
{
    uint32_t words[64];
    uint32_t v[8];

    expand_block(block, words);
    memcpy(v, hash->state, sizeof v);
    for (int i = 0; i < 64; i++)
        mix_round(v, words[i], round_constants[i]);
    for (int i = 0; i < 8; i++)
        hash->state[i] += v[i];
}

void ff_sha256_init(struct ff_sha256 *hash)
{
    memcpy(hash->state, initial_state, sizeof hash->state);
    hash->total = 0;
}

void ff_sha256_update(struct ff_sha256 *hash, const unsigned char *data, size_t size)
{
    while (size > 0) {
        size_t filled = hash->total % FF_SHA256_BLOCK;
        size_t taken = FF_SHA256_BLOCK - filled < size ? FF_SHA256_BLOCK - filled : size;

        memcpy(hash->block + filled, data, taken);
        hash->total += taken;
        data += taken;
        size -= taken;
        if (hash->total % FF_SHA256_BLOCK == 0)
            take_block(hash, hash->block);
    }
}

void ff_sha256_final(struct ff_sha256 *hash, unsigned char ret_digest[FF_SHA256_SIZE])
{
    static const unsigned char padding[FF_SHA256_BLOCK] = {0x80};
    uint64_t bits = hash->total * 8;
    size_t filled = hash->total % FF_SHA256_BLOCK;
    unsigned char length[8];

    store_be32(length, (uint32_t)(bits >> 32));
    store_be32(length + 4, (uint32_t)bits);
    ff_sha256_update(hash, padding, (filled < 56 ? 56 : 120) - filled);
    ff_sha256_update(hash, length, sizeof length);
    for (int i = 0; i < 8; i++)
        store_be32(ret_digest + 4 * i, hash->state[i]);
}

static void start_keyed(struct ff_sha256 *hash, const unsigned char block[FF_SHA256_BLOCK], unsigned char pad)
{
    unsigned char padded[FF_SHA256_BLOCK];

    for (size_t i = 0; i < sizeof padded; i++)
        padded[i] = block[i] ^ pad;
    ff_sha256_init(hash);
    ff_sha256_update(hash, padded, sizeof padded);
}

/* A key longer than a block is replaced by its own hash. */
static void fit_key(const unsigned char *key, uint32_t key_size, unsigned char ret_block[FF_SHA256_BLOCK])
{
    struct ff_sha256 hash;

    memset(ret_block, 0, FF_SHA256_BLOCK);
    if (key_size <= FF_SHA256_BLOCK) {
        memcpy(ret_block, key, key_size);
        return;
    }
    ff_sha256_init(&hash);
    ff_sha256_update(&hash, key, key_size);
    ff_sha256_final(&hash, ret_block);
}

void ff_hmac_sha256(const unsigned char *key, uint32_t key_size, const unsigned char *text,
                    uint32_t text_size, unsigned char *ret_digest)
{
    struct ff_sha256 hash;
    unsigned char block[FF_SHA256_BLOCK];
    unsigned char inner[FF_SHA256_SIZE];

    fit_key(key, key_size, block);
    start_keyed(&hash, block, 0x36);
    ff_sha256_update(&hash, text, text_size);
    ff_sha256_final(&hash, inner);
    start_keyed(&hash, block, 0x5c);
    ff_sha256_update(&hash, inner, sizeof inner);
    ff_sha256_final(&hash, ret_digest);
}
