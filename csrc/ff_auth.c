/* ff_auth.c: the server's side of multiprocessing.connection's mutual challenge, with SHA-256. */
#define _GNU_SOURCE

#include "ff_auth.h"

#include <fcntl.h>
#include <string.h>
#include <unistd.h>
#ifdef __APPLE__
#include <sys/random.h>
#endif

#include "ff_sha256.h"
#include "ff_util.h"

static const char challenge_tag[] = "#CHALLENGE#";
static const char welcome[] = "#WELCOME#";
static const char failure[] = "#FAILURE#";
static const char digest_name[] = "{sha256}";

#define TAG_SIZE (sizeof challenge_tag - 1)
#define NAME_SIZE (sizeof digest_name - 1)

static void message_start(struct ff_auth_message *message)
{
    message->size = FF_AUTH_PREFIX_SIZE;
}

static void message_add(struct ff_auth_message *message, const void *bytes, size_t size)
{
    memcpy(message->bytes + message->size, bytes, size);
    message->size += size;
}

static void message_finish(struct ff_auth_message *message)
{
    size_t body = message->size - FF_AUTH_PREFIX_SIZE;

    message->bytes[0] = message->bytes[1] = 0;
    message->bytes[2] = (unsigned char)(body >> 8);
    message->bytes[3] = (unsigned char)body;
}

static void message_set(struct ff_auth_message *message, const char *text)
{
    message_start(message);
    message_add(message, text, strlen(text));
    message_finish(message);
}

uint32_t ff_auth_read_prefix(const unsigned char prefix[FF_AUTH_PREFIX_SIZE])
{
    return (uint32_t)prefix[0] << 24 | (uint32_t)prefix[1] << 16 | (uint32_t)prefix[2] << 8 | prefix[3];
}

/* Kernels that have no call for it have a device. */
static int fill_randomly(unsigned char *ret_bytes, size_t size)
{
    FF_CLEANUP(ff_close) int fd = -1;
    ssize_t received;

    if (getentropy(ret_bytes, size) == 0)
        return 0;
    if (errno != ENOSYS)
        return -errno;
    fd = open("/dev/urandom", O_RDONLY | O_CLOEXEC);
    received = fd < 0 ? -1 : FF_RETRY_EINTR(read(fd, ret_bytes, size));
    if (received < 0)
        return -errno;
    return (size_t)received == size ? 0 : -EIO;
}

int ff_auth_begin(struct ff_auth *auth, struct ff_auth_message *ret_message)
{
    int error;

    auth->stage = FF_AUTH_AWAITS_ANSWER;
    memcpy(auth->challenge, digest_name, NAME_SIZE);
    error = fill_randomly(auth->challenge + NAME_SIZE, sizeof auth->challenge - NAME_SIZE);
    if (error < 0)
        return error;
    message_start(ret_message);
    message_add(ret_message, challenge_tag, TAG_SIZE);
    message_add(ret_message, auth->challenge, sizeof auth->challenge);
    message_finish(ret_message);
    return 0;
}

/* Compare in a time that does not depend on where the first difference is. */
static int digests_equal(const unsigned char *a, const unsigned char *b)
{
    unsigned char difference = 0;

    for (size_t i = 0; i < FF_SHA256_SIZE; i++)
        difference |= a[i] ^ b[i];
    return difference == 0;
}

static int answer_is_right(const struct ff_auth *auth, const struct ff_config *config,
                           const unsigned char *message, size_t size)
{
    unsigned char digest[FF_SHA256_SIZE];

    if (size != NAME_SIZE + FF_SHA256_SIZE || memcmp(message, digest_name, NAME_SIZE) != 0)
        return 0;
    ff_hmac_sha256(config->authkey, config->authkey_size, auth->challenge, sizeof auth->challenge, digest);
    return digests_equal(digest, message + NAME_SIZE);
}

/* A client's challenge that names another digest, or is short enough to be guessed at, gets no answer. */
static int challenge_is_sound(const unsigned char *message, size_t size)
{
    return size >= TAG_SIZE + NAME_SIZE + 20 && memcmp(message, challenge_tag, TAG_SIZE) == 0 &&
           memcmp(message + TAG_SIZE, digest_name, NAME_SIZE) == 0;
}

static void answer_challenge(const struct ff_config *config, const unsigned char *message, size_t size,
                             struct ff_auth_message *ret_message)
{
    unsigned char digest[FF_SHA256_SIZE];

    ff_hmac_sha256(config->authkey, config->authkey_size, message + TAG_SIZE, (uint32_t)(size - TAG_SIZE),
                   digest);
    message_start(ret_message);
    message_add(ret_message, digest_name, NAME_SIZE);
    message_add(ret_message, digest, sizeof digest);
    message_finish(ret_message);
}

static int fail(struct ff_auth_message *ret_message)
{
    message_set(ret_message, failure);
    return -EACCES;
}

int ff_auth_take(struct ff_auth *auth, const struct ff_config *config, const unsigned char *message,
                 size_t size, struct ff_auth_message *ret_message)
{
    ret_message->size = 0;
    switch (auth->stage) {
    case FF_AUTH_AWAITS_ANSWER:
        if (!answer_is_right(auth, config, message, size))
            return fail(ret_message);
        message_set(ret_message, welcome);
        auth->stage = FF_AUTH_AWAITS_CHALLENGE;
        return 0;
    case FF_AUTH_AWAITS_CHALLENGE:
        if (!challenge_is_sound(message, size))
            return fail(ret_message);
        answer_challenge(config, message, size, ret_message);
        auth->stage = FF_AUTH_AWAITS_WELCOME;
        return 0;
    case FF_AUTH_AWAITS_WELCOME:
        if (size != strlen(welcome) || memcmp(message, welcome, size) != 0)
            return fail(ret_message);
        auth->stage = FF_AUTH_DONE;
        return 0;
    case FF_AUTH_DONE:
        break;
    }
    return fail(ret_message);
}
