/* ff_sha256.h: SHA-256 (FIPS 180-4) and HMAC (RFC 2104), for the authentication of clients. */
#ifndef FF_SHA256_H
#define FF_SHA256_H

#include <stddef.h>
#include <stdint.h>

#include "ff_abi.h"

#define FF_SHA256_SIZE 32
#define FF_SHA256_BLOCK 64

struct ff_sha256 {
    uint32_t state[8];
    uint64_t total; /* bytes taken so far */
    unsigned char block[FF_SHA256_BLOCK];
};

void ff_sha256_init(struct ff_sha256 *hash);
void ff_sha256_update(struct ff_sha256 *hash, const unsigned char *data, size_t size);
void ff_sha256_final(struct ff_sha256 *hash, unsigned char ret_digest[FF_SHA256_SIZE]);

#endif
