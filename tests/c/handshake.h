/* handshake.h: a client's half of the mutual challenge, step by step, for tests of the server's half. */
#ifndef FF_TEST_HANDSHAKE_H
#define FF_TEST_HANDSHAKE_H

#include "ff_auth.h"
#include "ff_sha256.h"
#include "io.h"

#define AUTHKEY "the tests' key"
#define CHALLENGE "#CHALLENGE#"
#define CHALLENGE_BODY "{sha256}0123456789012345678901234567890123456789"
#define WELCOME "#WELCOME#"
#define FAILURE "#FAILURE#"
#define DIGEST_NAME "{sha256}"
#define DIGEST_NAME_SIZE (sizeof DIGEST_NAME - 1)

static inline void send_message(int sock, const void *body, size_t size)
{
    const unsigned char prefix[] = {0, 0, (unsigned char)(size >> 8), (unsigned char)size};

    write_all(sock, prefix, sizeof prefix);
    write_all(sock, body, size);
}

static inline size_t receive_message(int sock, unsigned char ret_body[FF_AUTH_MAX_MESSAGE])
{
    unsigned char prefix[FF_AUTH_PREFIX_SIZE];
    size_t size;

    read_all(sock, prefix, sizeof prefix);
    size = ff_auth_read_prefix(prefix);
    CHECK(size <= FF_AUTH_MAX_MESSAGE);
    read_all(sock, ret_body, size);
    return size;
}

static inline void await_message(int sock, const void *body, size_t size)
{
    unsigned char received[FF_AUTH_MAX_MESSAGE];

    CHECK_INT(receive_message(sock, received), size);
    CHECK_MEM(received, body, size);
}

static inline void sign(const char *key, const void *text, size_t size,
                        unsigned char ret_answer[DIGEST_NAME_SIZE + FF_SHA256_SIZE])
{
    memcpy(ret_answer, DIGEST_NAME, DIGEST_NAME_SIZE);
    ff_hmac_sha256((const unsigned char *)key, (uint32_t)strlen(key), text, (uint32_t)size,
                   ret_answer + DIGEST_NAME_SIZE);
}

/* The server's challenge comes; it is answered with `key`. */
static inline void answer_challenge(int sock, const char *key)
{
    unsigned char challenge[FF_AUTH_MAX_MESSAGE];
    unsigned char answer[DIGEST_NAME_SIZE + FF_SHA256_SIZE];
    size_t tag_size = strlen(CHALLENGE);
    size_t size = receive_message(sock, challenge);

    CHECK(size > tag_size);
    CHECK_MEM(challenge, CHALLENGE, tag_size);
    sign(key, challenge + tag_size, size - tag_size, answer);
    send_message(sock, answer, sizeof answer);
}

/* The answer was right; now the server is challenged. */
static inline void challenge_server(int sock)
{
    await_message(sock, WELCOME, strlen(WELCOME));
    send_message(sock, CHALLENGE CHALLENGE_BODY, strlen(CHALLENGE CHALLENGE_BODY));
}

/* The server knows the key, too. */
static inline void welcome_server(int sock)
{
    unsigned char answer[DIGEST_NAME_SIZE + FF_SHA256_SIZE];

    sign(AUTHKEY, CHALLENGE_BODY, strlen(CHALLENGE_BODY), answer);
    await_message(sock, answer, sizeof answer);
    send_message(sock, WELCOME, strlen(WELCOME));
}

static inline void authenticate(int sock)
{
    answer_challenge(sock, AUTHKEY);
    challenge_server(sock);
    welcome_server(sock);
}

#endif
