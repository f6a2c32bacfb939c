/* test_auth.c: the server's side of the mutual challenge, message by message. */
#include "check.h"
#include "ff_auth.h"
#include "ff_sha256.h"

#define CHALLENGE "#CHALLENGE#"
#define WELCOME "#WELCOME#"
#define FAILURE "#FAILURE#"
#define DIGEST_NAME "{sha256}"
#define TAG_SIZE (sizeof CHALLENGE - 1)
#define NAME_SIZE (sizeof DIGEST_NAME - 1)
#define ANSWER_SIZE (NAME_SIZE + FF_SHA256_SIZE)

/* Forty bytes, as multiprocessing's own client sends. */
#define CLIENT_CHALLENGE CHALLENGE DIGEST_NAME "0123456789012345678901234567890123456789"

static const struct ff_config config = {.authkey = (const unsigned char *)"secret", .authkey_size = 6};

static void check_message(const struct ff_auth_message *message, const void *body, size_t size)
{
    CHECK_INT(message->size, FF_AUTH_PREFIX_SIZE + size);
    CHECK_INT(ff_auth_read_prefix(message->bytes), size);
    CHECK_MEM(message->bytes + FF_AUTH_PREFIX_SIZE, body, size);
}

static int take(struct ff_auth *auth, const void *message, size_t size, struct ff_auth_message *ret_message)
{
    return ff_auth_take(auth, &config, message, size, ret_message);
}

static void answer(const char *key, const unsigned char *challenge, size_t size, unsigned char *ret_answer)
{
    memcpy(ret_answer, DIGEST_NAME, NAME_SIZE);
    ff_hmac_sha256((const unsigned char *)key, (uint32_t)strlen(key), challenge, (uint32_t)size,
                   ret_answer + NAME_SIZE);
}

/* Bring a handshake to a stage, along the right way. */
static void bring_to(struct ff_auth *auth, enum ff_auth_stage stage)
{
    struct ff_auth_message message;
    unsigned char right[ANSWER_SIZE];

    CHECK_INT(ff_auth_begin(auth, &message), 0);
    answer("secret", auth->challenge, sizeof auth->challenge, right);
    if (stage > FF_AUTH_AWAITS_ANSWER)
        CHECK_INT(take(auth, right, sizeof right, &message), 0);
    if (stage > FF_AUTH_AWAITS_CHALLENGE)
        CHECK_INT(take(auth, CLIENT_CHALLENGE, strlen(CLIENT_CHALLENGE), &message), 0);
    if (stage > FF_AUTH_AWAITS_WELCOME)
        CHECK_INT(take(auth, WELCOME, strlen(WELCOME), &message), 0);
    CHECK_INT(auth->stage, stage);
}

static void check_refused(enum ff_auth_stage stage, const void *bytes, size_t size)
{
    struct ff_auth auth;
    struct ff_auth_message message;

    bring_to(&auth, stage);
    CHECK_INT(take(&auth, bytes, size, &message), -EACCES);
    check_message(&message, FAILURE, strlen(FAILURE));
    CHECK_INT(auth.stage, stage);
}

static void test_challenge(void)
{
    struct ff_auth auth;
    struct ff_auth_message message;

    CHECK_INT(ff_auth_begin(&auth, &message), 0);
    CHECK_INT(message.size, FF_AUTH_PREFIX_SIZE + TAG_SIZE + NAME_SIZE + 40);
    CHECK_INT(ff_auth_read_prefix(message.bytes), TAG_SIZE + NAME_SIZE + 40);
    CHECK_MEM(message.bytes + FF_AUTH_PREFIX_SIZE, CHALLENGE DIGEST_NAME, TAG_SIZE + NAME_SIZE);
    CHECK_MEM(message.bytes + FF_AUTH_PREFIX_SIZE + TAG_SIZE, auth.challenge, sizeof auth.challenge);
}

/* An answer that was listened to is of no use for another connection. */
static void test_challenges_differ(void)
{
    struct ff_auth first;
    struct ff_auth second;

    bring_to(&first, FF_AUTH_AWAITS_ANSWER);
    bring_to(&second, FF_AUTH_AWAITS_ANSWER);
    CHECK(memcmp(first.challenge, second.challenge, sizeof first.challenge) != 0);
}

static void test_prefix(void)
{
    static const unsigned char bytes[] = {0x01, 0x02, 0x03, 0x04};
    static const unsigned char highest[] = {0xff, 0xff, 0xff, 0xff};

    CHECK_INT(ff_auth_read_prefix(bytes), 0x01020304);
    CHECK_INT(ff_auth_read_prefix(highest), 0xffffffff);
}

static void test_right_key(void)
{
    struct ff_auth auth;
    struct ff_auth_message message;
    unsigned char reply[ANSWER_SIZE];

    CHECK_INT(ff_auth_begin(&auth, &message), 0);
    answer("secret", auth.challenge, sizeof auth.challenge, reply);
    CHECK_INT(take(&auth, reply, sizeof reply, &message), 0);
    check_message(&message, WELCOME, strlen(WELCOME));

    CHECK_INT(take(&auth, CLIENT_CHALLENGE, strlen(CLIENT_CHALLENGE), &message), 0);
    answer("secret", (const unsigned char *)CLIENT_CHALLENGE + TAG_SIZE, strlen(CLIENT_CHALLENGE) - TAG_SIZE,
           reply);
    check_message(&message, reply, sizeof reply);

    CHECK_INT(take(&auth, WELCOME, strlen(WELCOME), &message), 0);
    CHECK_INT(message.size, 0);
    CHECK_INT(auth.stage, FF_AUTH_DONE);
}

static void check_wrong_answer(const char *key, size_t size, const char *name)
{
    struct ff_auth auth;
    struct ff_auth_message message;
    unsigned char reply[ANSWER_SIZE + 1] = {0};

    bring_to(&auth, FF_AUTH_AWAITS_ANSWER);
    answer(key, auth.challenge, sizeof auth.challenge, reply);
    memcpy(reply, name, NAME_SIZE);
    CHECK_INT(take(&auth, reply, size, &message), -EACCES);
    check_message(&message, FAILURE, strlen(FAILURE));
    CHECK_INT(auth.stage, FF_AUTH_AWAITS_ANSWER);
}

static void test_wrong_answers(void)
{
    check_wrong_answer("Secret", ANSWER_SIZE, DIGEST_NAME);
    check_wrong_answer("secret", ANSWER_SIZE, "{sha384}");
    check_wrong_answer("secret", ANSWER_SIZE - 1, DIGEST_NAME);
    check_wrong_answer("secret", ANSWER_SIZE + 1, DIGEST_NAME);
    check_wrong_answer("secret", 0, DIGEST_NAME);
}

/* One wrong bit anywhere is enough. */
static void test_every_bit_counts(void)
{
    struct ff_auth auth;
    struct ff_auth_message message;
    unsigned char reply[ANSWER_SIZE];

    bring_to(&auth, FF_AUTH_AWAITS_ANSWER);
    answer("secret", auth.challenge, sizeof auth.challenge, reply);
    for (size_t bit = 0; bit < 8 * sizeof reply; bit++) {
        reply[bit / 8] ^= (unsigned char)(1 << bit % 8);
        CHECK_INT(take(&auth, reply, sizeof reply, &message), -EACCES);
        reply[bit / 8] ^= (unsigned char)(1 << bit % 8);
    }
    CHECK_INT(take(&auth, reply, sizeof reply, &message), 0);
}

/* What Pythons before 3.12 send: a bare MD5 digest. The server does not go down to it. */
static void test_downgrade(void)
{
    static const unsigned char md5[16] = {0};
    static const char named[] = "{md5}0123456789abcdef";
    static const char old_challenge[] = CHALLENGE "01234567890123456789";
    static const char md5_challenge[] = CHALLENGE "{md5}012345678901234567890123456789";

    check_refused(FF_AUTH_AWAITS_ANSWER, md5, sizeof md5);
    check_refused(FF_AUTH_AWAITS_ANSWER, named, strlen(named));
    check_refused(FF_AUTH_AWAITS_CHALLENGE, old_challenge, strlen(old_challenge));
    check_refused(FF_AUTH_AWAITS_CHALLENGE, md5_challenge, strlen(md5_challenge));
}

static void test_wrong_challenges(void)
{
    static const char wrong_tag[] = "#challenge#" DIGEST_NAME "0123456789012345678901234567890123456789";
    static const char short_one[] = CHALLENGE DIGEST_NAME "0123456789012345678";

    check_refused(FF_AUTH_AWAITS_CHALLENGE, wrong_tag, strlen(wrong_tag));
    check_refused(FF_AUTH_AWAITS_CHALLENGE, short_one, strlen(short_one));
    check_refused(FF_AUTH_AWAITS_CHALLENGE, CHALLENGE, strlen(CHALLENGE));
    check_refused(FF_AUTH_AWAITS_CHALLENGE, "", 0);
}

/* The shortest and the longest challenge that are answered. */
static void test_challenge_sizes(void)
{
    unsigned char challenge[FF_AUTH_MAX_MESSAGE];
    const size_t sizes[] = {TAG_SIZE + NAME_SIZE + 20, sizeof challenge};

    memset(challenge, 'x', sizeof challenge);
    memcpy(challenge, CHALLENGE DIGEST_NAME, TAG_SIZE + NAME_SIZE);
    for (size_t i = 0; i < 2; i++) {
        struct ff_auth auth;
        struct ff_auth_message message;
        unsigned char reply[ANSWER_SIZE];

        bring_to(&auth, FF_AUTH_AWAITS_CHALLENGE);
        CHECK_INT(take(&auth, challenge, sizes[i], &message), 0);
        answer("secret", challenge + TAG_SIZE, sizes[i] - TAG_SIZE, reply);
        check_message(&message, reply, sizeof reply);
    }
}

/* Each right message is wrong in every stage but its own. */
static void test_each_message_in_each_stage(void)
{
    const enum ff_auth_stage stages[] = {FF_AUTH_AWAITS_ANSWER, FF_AUTH_AWAITS_CHALLENGE,
                                         FF_AUTH_AWAITS_WELCOME, FF_AUTH_DONE};
    unsigned char unasked[ANSWER_SIZE];

    answer("secret", (const unsigned char *)"", 0, unasked);
    for (size_t i = 0; i < sizeof stages / sizeof *stages; i++) {
        check_refused(stages[i], unasked, sizeof unasked);
        if (stages[i] != FF_AUTH_AWAITS_CHALLENGE)
            check_refused(stages[i], CLIENT_CHALLENGE, strlen(CLIENT_CHALLENGE));
        if (stages[i] != FF_AUTH_AWAITS_WELCOME)
            check_refused(stages[i], WELCOME, strlen(WELCOME));
        check_refused(stages[i], FAILURE, strlen(FAILURE));
    }
}

int main(void)
{
    RUN(test_challenge);
    RUN(test_challenges_differ);
    RUN(test_prefix);
    RUN(test_right_key);
    RUN(test_wrong_answers);
    RUN(test_every_bit_counts);
    RUN(test_downgrade);
    RUN(test_wrong_challenges);
    RUN(test_challenge_sizes);
    RUN(test_each_message_in_each_stage);
    return 0;
}
