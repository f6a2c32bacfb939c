/* test_sha256.c: SHA-256 and HMAC against published vectors and against themselves, cut differently. */
#include "check.h"
#include "ff_sha256.h"

#define LONGEST 200 /* bytes: every padding case more than three times */

static void from_hex(const char *hex, unsigned char *ret_bytes)
{
    for (size_t i = 0; i < FF_SHA256_SIZE; i++) {
        unsigned byte;

        CHECK_INT(sscanf(hex + 2 * i, "%2x", &byte), 1);
        ret_bytes[i] = (unsigned char)byte;
    }
}

static void check_digest(const unsigned char *digest, const char *hex)
{
    unsigned char expected[FF_SHA256_SIZE];

    from_hex(hex, expected);
    CHECK_MEM(digest, expected, sizeof expected);
}

static void hash_once(const unsigned char *data, size_t size, unsigned char *ret_digest)
{
    struct ff_sha256 hash;

    ff_sha256_init(&hash);
    ff_sha256_update(&hash, data, size);
    ff_sha256_final(&hash, ret_digest);
}

/* FIPS 180-4's own examples, and the empty message. */
static void test_fips_vectors(void)
{
    static const struct {
        const char *text;
        const char *digest;
    } vectors[] = {
        {"", "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"},
        {"abc", "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"},
        {"abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq",
         "248d6a61d20638b8e5c026930c3e6039a33ce45964ff2167f6ecedd419db06c1"},
        {"abcdefghbcdefghicdefghijdefghijkefghijklfghijklmghijklmnhijklmnoijklmnopjklmnopqklmnopqrlmnopqrs"
         "mnopqrstnopqrstu",
         "cf5b16a778af8380036ce59e7b0492370b249b11e8f07a51afac45037afee9d1"},
    };

    for (size_t i = 0; i < sizeof vectors / sizeof *vectors; i++) {
        unsigned char digest[FF_SHA256_SIZE];

        hash_once((const unsigned char *)vectors[i].text, strlen(vectors[i].text), digest);
        check_digest(digest, vectors[i].digest);
    }
}

/* FIPS 180-4's long example: a million times "a", in pieces that do not divide a block. */
static void test_million_letters(void)
{
    unsigned char piece[1000];
    unsigned char digest[FF_SHA256_SIZE];
    struct ff_sha256 hash;

    memset(piece, 'a', sizeof piece);
    ff_sha256_init(&hash);
    for (int i = 0; i < 1000; i++)
        ff_sha256_update(&hash, piece, sizeof piece);
    ff_sha256_final(&hash, digest);
    check_digest(digest, "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0");
}

static void fill(unsigned char *bytes, size_t size)
{
    for (size_t i = 0; i < size; i++)
        bytes[i] = (unsigned char)(7 * i + 3);
}

/* Every length, cut in two at every place. */
static void test_split_updates(void)
{
    unsigned char text[LONGEST];

    fill(text, sizeof text);
    for (size_t size = 0; size <= sizeof text; size++) {
        unsigned char whole[FF_SHA256_SIZE];

        hash_once(text, size, whole);
        for (size_t cut = 0; cut <= size; cut++) {
            struct ff_sha256 hash;
            unsigned char parts[FF_SHA256_SIZE];

            ff_sha256_init(&hash);
            ff_sha256_update(&hash, text, cut);
            ff_sha256_update(&hash, text + cut, size - cut);
            ff_sha256_final(&hash, parts);
            CHECK_MEM(parts, whole, sizeof whole);
        }
    }
}

/* The digests of the lengths 0 to 200, hashed: a wrong padding of any one shows. Reference: Python's hashlib. */
static void test_every_length(void)
{
    unsigned char text[LONGEST];
    unsigned char digest[FF_SHA256_SIZE];
    struct ff_sha256 all;

    fill(text, sizeof text);
    ff_sha256_init(&all);
    for (size_t size = 0; size <= sizeof text; size++) {
        hash_once(text, size, digest);
        ff_sha256_update(&all, digest, sizeof digest);
    }
    ff_sha256_final(&all, digest);
    check_digest(digest, "3275febb4612d86d586eb9f11cd21e648a9fc7d95e0f6b8d362786e28c9c5b79");
}

struct hmac_vector {
    unsigned char key[131];
    uint32_t key_size;
    const char *text;
    const char *digest;
};

static void check_hmac(const struct hmac_vector *vector)
{
    unsigned char digest[FF_SHA256_SIZE];

    ff_hmac_sha256(vector->key, vector->key_size, (const unsigned char *)vector->text,
                   (uint32_t)strlen(vector->text), digest);
    check_digest(digest, vector->digest);
}

/* RFC 4231, test cases 1 to 4, 6 and 7; case 5 is about truncated digests. */
static void test_rfc4231_vectors(void)
{
    struct hmac_vector vectors[] = {
        {{0}, 20, "Hi There", "b0344c61d8db38535ca8afceaf0bf12b881dc200c9833da726e9376c2e32cff7"},
        {"Jefe", 4, "what do ya want for nothing?",
         "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843"},
        {{0},
         20,
         "\xdd\xdd\xdd\xdd\xdd\xdd\xdd\xdd\xdd\xdd\xdd\xdd\xdd\xdd\xdd\xdd\xdd\xdd\xdd\xdd\xdd\xdd\xdd\xdd"
         "\xdd"
         "\xdd\xdd\xdd\xdd\xdd\xdd\xdd\xdd\xdd\xdd\xdd\xdd\xdd\xdd\xdd\xdd\xdd\xdd\xdd\xdd\xdd\xdd\xdd\xdd"
         "\xdd",
         "773ea91e36800e46854db8ebd09181a72959098b3ef8c122d9635514ced565fe"},
        {{1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23, 24, 25},
         25,
         "\xcd\xcd\xcd\xcd\xcd\xcd\xcd\xcd\xcd\xcd\xcd\xcd\xcd\xcd\xcd\xcd\xcd\xcd\xcd\xcd\xcd\xcd\xcd\xcd"
         "\xcd"
         "\xcd\xcd\xcd\xcd\xcd\xcd\xcd\xcd\xcd\xcd\xcd\xcd\xcd\xcd\xcd\xcd\xcd\xcd\xcd\xcd\xcd\xcd\xcd\xcd"
         "\xcd",
         "82558a389a443c0ea4cc819899f2083a85f0faa3e578f8077a2e3ff46729665b"},
        {{0},
         131,
         "Test Using Larger Than Block-Size Key - Hash Key First",
         "60e431591ee0b67f0d8a26aacbf5b77f8e0bc6213728c5140546040f0ee37f54"},
        {{0},
         131,
         "This is a test using a larger than block-size key and a larger than block-size data. The key needs "
         "to "
         "be hashed before being used by the HMAC algorithm.",
         "9b09ffa71b942fcb27635fbcd5b0e944bfdc63644f0713938a7f51535c3a35e2"},
    };

    memset(vectors[0].key, 0x0b, 20);
    memset(vectors[2].key, 0xaa, 20);
    memset(vectors[4].key, 0xaa, 131);
    memset(vectors[5].key, 0xaa, 131);
    for (size_t i = 0; i < sizeof vectors / sizeof *vectors; i++)
        check_hmac(&vectors[i]);
}

/* A key of one block is used as it is, of one byte more as its hash. */
static void test_keys_around_a_block(void)
{
    unsigned char key[FF_SHA256_BLOCK + 1];
    unsigned char hashed_key[FF_SHA256_SIZE];
    unsigned char digest[FF_SHA256_SIZE];
    unsigned char expected[FF_SHA256_SIZE];

    fill(key, sizeof key);
    hash_once(key, sizeof key, hashed_key);
    ff_hmac_sha256(key, sizeof key, (const unsigned char *)"text", 4, digest);
    ff_hmac_sha256(hashed_key, sizeof hashed_key, (const unsigned char *)"text", 4, expected);
    CHECK_MEM(digest, expected, sizeof expected);
    ff_hmac_sha256(key, FF_SHA256_BLOCK, (const unsigned char *)"text", 4, digest);
    check_digest(digest, "a8601cef2bfe1d9baf62ad98f0c13ad92c7a3e278edba3e081fa8400605af4ba");
}

int main(void)
{
    RUN(test_fips_vectors);
    RUN(test_million_letters);
    RUN(test_split_updates);
    RUN(test_every_length);
    RUN(test_rfc4231_vectors);
    RUN(test_keys_around_a_block);
    return 0;
}
