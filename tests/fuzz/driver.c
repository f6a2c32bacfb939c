/* driver.c: a small fuzzer for machines that have no libFuzzer: replay, then mutation guided by coverage.
 *
 *   fuzz_x [--seconds=N] [--seed=N] [FILE or DIRECTORY]...
 *
 * The files are run as they are; with --seconds they are then mutated for that long. An input that
 * reaches what none before it has reached joins those that are mutated further. gcc's
 * -fsanitize-coverage=trace-pc calls __sanitizer_cov_trace_pc() for each basic block.
 *
 * The inputs run in a fork of the driver, which sees how that ends, keeps the input, and says how to run it again.
 */
#define _GNU_SOURCE

#include <dirent.h>
#include <errno.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "invariant.h"

#define MAP_SIZE 65536
#define MAX_INPUTS 8192
#define MAX_SIZE 4096
#define HANG_SECONDS 60 /* for one input, on a machine under load */

struct input {
    size_t size;
    uint8_t bytes[MAX_SIZE];
};

static struct input *current; /* shared with the parent, which keeps it when this process dies */
static struct input *corpus[MAX_INPUTS];
static size_t corpus_size;
static unsigned char hits[MAP_SIZE]; /* of an edge between two blocks, in this run */
static unsigned char seen[MAP_SIZE]; /* which magnitudes of hits an edge has had, a bit for each */
static unsigned long seed = 1;
static unsigned long runs;

void __sanitizer_cov_trace_pc(void);

void __sanitizer_cov_trace_pc(void)
{
    static uint64_t previous;
    uint64_t offset = (uintptr_t)__builtin_return_address(0) - (uintptr_t)&__sanitizer_cov_trace_pc;
    uint64_t here = (offset * 0x9E3779B97F4A7C15u) >> 48;
    unsigned char *count = &hits[(here ^ previous) % MAP_SIZE];

    *count += *count < 255;
    previous = here >> 1;
}

static unsigned long random_below(unsigned long limit)
{
    seed ^= seed << 13;
    seed ^= seed >> 7;
    seed ^= seed << 17;
    return seed % limit;
}

static unsigned char magnitude(unsigned char count)
{
    return (unsigned char)(1u << (31 - __builtin_clz(count)));
}

/* Whether this run went where none has been. */
static bool found_something(void)
{
    bool found = false;

    for (size_t i = 0; i < MAP_SIZE; i++) {
        if (hits[i] == 0 || seen[i] & magnitude(hits[i]))
            continue;
        seen[i] |= magnitude(hits[i]);
        found = true;
    }
    return found;
}

static void keep_current(void)
{
    struct input *input = malloc(sizeof *input);

    if (input == NULL || corpus_size == MAX_INPUTS) {
        free(input);
        return;
    }
    *input = *current;
    corpus[corpus_size++] = input;
}

static void run_current(void)
{
    memset(hits, 0, sizeof hits);
    alarm(HANG_SECONDS);
    LLVMFuzzerTestOneInput(current->bytes, current->size);
    runs++;
    if (found_something())
        keep_current();
}

static void insert_bytes(size_t at, const uint8_t *bytes, size_t size)
{
    uint8_t copy[MAX_SIZE];

    if (size > MAX_SIZE - current->size)
        return;
    memcpy(copy, bytes, size);
    memmove(current->bytes + at + size, current->bytes + at, current->size - at);
    memcpy(current->bytes + at, copy, size);
    current->size += size;
}

static void remove_bytes(size_t at, size_t size)
{
    memmove(current->bytes + at, current->bytes + at + size, current->size - at - size);
    current->size -= size;
}

/* A piece of another input, or of the same. */
static void insert_piece(size_t at)
{
    const struct input *other = corpus[random_below(corpus_size)];
    size_t from = random_below(other->size + 1);
    size_t size = random_below(other->size - from + 1);

    insert_bytes(at, other->bytes + from, size < 64 ? size : 64);
}

static void mutate_once(void)
{
    static const uint8_t edges[] = {0, 1, 0x7F, 0x80, 0xF2, 0xF3, 0xF6, 0xF7, 0xFA, 0xFF};
    size_t at = random_below(current->size + 1);
    uint8_t byte = (uint8_t)random_below(256);
    unsigned long choice = random_below(6);

    if (choice == 0 || at == current->size)
        insert_bytes(at, &byte, 1);
    else if (choice == 1)
        current->bytes[at] ^= (uint8_t)(1u << (byte % 8));
    else if (choice == 2)
        current->bytes[at] = byte;
    else if (choice == 3)
        current->bytes[at] = edges[byte % sizeof edges];
    else if (choice == 4)
        remove_bytes(at, 1 + random_below(current->size - at));
    else
        insert_piece(at);
}

static void fuzz(time_t seconds)
{
    struct timespec now;
    time_t end;

    clock_gettime(CLOCK_MONOTONIC, &now);
    end = now.tv_sec + seconds;
    while (now.tv_sec < end) {
        *current = *corpus[random_below(corpus_size)];
        for (unsigned long count = 1 + random_below(8); count > 0; count--)
            mutate_once();
        run_current();
        clock_gettime(CLOCK_MONOTONIC, &now);
    }
}

static void replay_file(const char *path)
{
    FILE *file = fopen(path, "rb");

    if (file == NULL) {
        perror(path);
        exit(2);
    }
    current->size = fread(current->bytes, 1, MAX_SIZE, file);
    fclose(file);
    run_current();
}

static void replay(const char *path)
{
    struct dirent **entries;
    char file[4096];
    int count = scandir(path, &entries, NULL, alphasort);

    if (count < 0 && errno == ENOTDIR) {
        replay_file(path);
        return;
    }
    for (int i = 0; i < count; i++) {
        snprintf(file, sizeof file, "%s/%s", path, entries[i]->d_name);
        if (entries[i]->d_name[0] != '.')
            replay_file(file);
        free(entries[i]);
    }
    if (count >= 0)
        free(entries);
}

static int run_all(char **paths, time_t seconds)
{
    unsigned long replayed;

    current->size = 0;
    run_current();
    for (; *paths != NULL; paths++)
        replay(*paths);
    replayed = runs;
    fuzz(seconds);
    printf("%lu inputs replayed, %lu more run, %zu kept\n", replayed, runs - replayed, corpus_size);
    for (size_t i = 0; i < corpus_size; i++)
        free(corpus[i]);
    return 0;
}

static int keep_finding(const char *program, int status)
{
    char path[4096];
    FILE *file;

    snprintf(path, sizeof path, "%s-finding-%ld", program, (long)getpid());
    file = fopen(path, "wb");
    if (file == NULL || fwrite(current->bytes, 1, current->size, file) != current->size || fclose(file) != 0)
        perror(path);
    printf("%s: %s %d\nto run it again: %s %s\n", program, WIFSIGNALED(status) ? "signal" : "exit status",
           WIFSIGNALED(status) ? WTERMSIG(status) : WEXITSTATUS(status), program, path);
    return 1;
}

static void take_option(const char *program, const char *option, time_t *ret_seconds)
{
    if (sscanf(option, "--seconds=%ld", ret_seconds) == 1 || sscanf(option, "--seed=%lu", &seed) == 1)
        return;
    fprintf(stderr, "%s: what is %s?\n", program, option);
    exit(2);
}

static void check_call(bool successful, const char *name)
{
    if (successful)
        return;
    perror(name);
    exit(2);
}

int main(int argc, char **argv)
{
    char **paths = argv + 1;
    time_t seconds = 0;
    int status;
    pid_t pid;

    for (; paths < argv + argc && strncmp(*paths, "--", 2) == 0; paths++)
        take_option(argv[0], *paths, &seconds);
    seed += seed == 0; /* the generator would stay there */
    printf("%s: seed %lu, %ld s\n", argv[0], seed, (long)seconds);
    fflush(stdout);
    current = mmap(NULL, sizeof *current, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    check_call(current != MAP_FAILED, "mmap");
    pid = fork();
    check_call(pid >= 0, "fork");
    if (pid == 0)
        exit(run_all(paths, seconds));
    check_call(waitpid(pid, &status, 0) == pid, "waitpid");
    return status == 0 ? 0 : keep_finding(argv[0], status);
}
