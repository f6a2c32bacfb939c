/* fuzz_options.c: blocks of options, checked and applied.
 *
 * What a block may be is stated here once more, apart from the core. A sound one is applied, to a process that is not
 * this one: the calls are this file's own, they note what they are asked for, and fail when the script says so.
 */
#define _GNU_SOURCE

#include <fcntl.h>
#include <sched.h>
#include <stdarg.h>
#include <sys/resource.h>
#include <sys/stat.h>

#include "ff_options.h"
#include "invariant.h"
#include "script.h"

#define MAX_FDS 4
#define FIRST_FD 100 /* of a request; they are no descriptors of this process */

extern char **environ;

static struct stage {
    bool applying; /* else the calls are the kernel's */
    unsigned calls;
    unsigned failing_call; /* the place of the one that fails; 0: none */
    unsigned closed;
} stage;

static bool fails(void)
{
    errno = EPERM;
    return ++stage.calls == stage.failing_call;
}

/* ---- the calls ---- */

int __wrap_chdir(const char *path);
int __wrap_dup2(int fd, int number);
pid_t __wrap_setsid(void);
int __wrap_setpriority(__priority_which_t which, id_t who, int priority);
int __wrap_sched_setaffinity(pid_t pid, size_t size, const cpu_set_t *cpus);
int __wrap_setrlimit(__rlimit_resource_t resource, const struct rlimit *limit);
mode_t __wrap_umask(mode_t mask);
int __real_open(const char *path, int flags, ...);
int __wrap_open(const char *path, int flags, ...);
int __real_close(int fd);
int __wrap_close(int fd);

int __wrap_chdir(const char *path)
{
    HOLDS(strlen(path) < FF_MAX_PAYLOAD);
    return fails() ? -1 : 0;
}

int __wrap_dup2(int fd, int number)
{
    HOLDS(fd >= FIRST_FD || fd == STDOUT_FILENO);
    HOLDS(number >= STDIN_FILENO && number <= STDERR_FILENO);
    return fails() ? -1 : number;
}

pid_t __wrap_setsid(void)
{
    return fails() ? -1 : 1;
}

int __wrap_setpriority(__priority_which_t which, id_t who, int priority)
{
    (void)priority;
    EQUAL(which, PRIO_PROCESS);
    EQUAL(who, 0);
    return fails() ? -1 : 0;
}

int __wrap_sched_setaffinity(pid_t pid, size_t size, const cpu_set_t *cpus)
{
    static unsigned char all[FF_MAX_CPUS / 8];

    EQUAL(pid, 0);
    EQUAL(size, sizeof all);
    memcpy(all, cpus, size); /* all of it is there */
    return fails() ? -1 : 0;
}

int __wrap_setrlimit(__rlimit_resource_t resource, const struct rlimit *limit)
{
    (void)limit;
    HOLDS((unsigned)resource < FF_MAX_RLIMITS);
    return fails() ? -1 : 0;
}

mode_t __wrap_umask(mode_t mask)
{
    return mask;
}

int __wrap_open(const char *path, int flags, ...)
{
    if (!stage.applying)
        return __real_open(path, flags, 0);
    EQUAL(strcmp(path, "/dev/null"), 0);
    return fails() ? -1 : FIRST_FD + MAX_FDS;
}

int __wrap_close(int fd)
{
    if (!stage.applying)
        return __real_close(fd);
    HOLDS(fd >= FIRST_FD);
    stage.closed += fd < FIRST_FD + MAX_FDS;
    return 0;
}

/* ---- what a block may be ---- */

static uint32_t word_at(const unsigned char *bytes)
{
    uint32_t word;

    memcpy(&word, bytes, sizeof word);
    return word;
}

static bool value_is_sound(uint32_t kind, const unsigned char *value, uint32_t size)
{
    if (kind >= FF_OPTION_STDIN && kind <= FF_OPTION_STDERR)
        return size == 4 && word_at(value) <= FF_STREAM_STDOUT;
    if (kind == FF_OPTION_UMASK || kind == FF_OPTION_NICE)
        return size == 4;
    if (kind == FF_OPTION_CWD)
        return size > 0 && strnlen((const char *)value, size) == size - 1;
    if (kind == FF_OPTION_ENV)
        return size == 0 || value[size - 1] == 0;
    if (kind == FF_OPTION_AFFINITY)
        return size >= 1 && size <= FF_MAX_CPUS / 8;
    if (kind >= FF_OPTION_RLIMIT && kind < FF_OPTION_RLIMIT + FF_MAX_RLIMITS)
        return size == 16;
    return kind == FF_OPTION_NEW_SESSION && size == 0;
}

/* How many descriptors a block needs; -1 where it is none. */
static int expected_fds(const unsigned char *payload, uint32_t payload_size)
{
    uint32_t end = payload_size < 4 ? 0 : word_at(payload);
    int count = 0;

    if (end < 4 || end > payload_size)
        return -1;
    for (uint32_t at = 4; at < end;) {
        uint32_t kind, size;

        if (end - at < 8)
            return -1;
        kind = word_at(payload + at);
        size = word_at(payload + at + 4);
        at += 8;
        if (size > end - at || !value_is_sound(kind, payload + at, size))
            return -1;
        count += kind <= FF_OPTION_STDERR && word_at(payload + at) == FF_STREAM_FD;
        at += size;
    }
    return count;
}

/* ---- one block ---- */

static void check_environment(const struct ff_applied *applied, char **before)
{
    uint32_t size = 0;

    if (environ == before)
        return;
    for (char **variable = environ; *variable != NULL; variable++)
        size += (uint32_t)strlen(*variable) + 1;
    EQUAL(size, applied->env_size);
}

static void apply(const unsigned char *payload, unsigned fd_count, unsigned needed)
{
    char **before = environ;
    int fds[MAX_FDS];
    size_t left = fd_count;
    struct ff_applied applied;
    struct ff_unfit unfit;

    for (unsigned i = 0; i < fd_count; i++)
        fds[i] = FIRST_FD + (int)i;
    stage.applying = true;
    unfit = ff_options_apply(payload, fds, &left, &applied);
    stage.applying = false;
    EQUAL(applied.size, word_at(payload));
    EQUAL(stage.closed, fd_count - left);
    for (size_t i = 0; i < left; i++)
        EQUAL(fds[i], FIRST_FD + (int)(fd_count - left + i));
    EQUAL(unfit.error, stage.failing_call > 0 && stage.calls >= stage.failing_call ? EPERM : 0);
    if (unfit.error == 0)
        EQUAL(fd_count - left, needed);
    check_environment(&applied, before);
    environ = before;
}

/* The memory of an environment is the process's for good: here it ends with the input. */
static void *kept[4096];
static size_t kept_count;

void *__real_malloc(size_t size);
void *__wrap_malloc(size_t size);

void *__wrap_malloc(size_t size)
{
    void *memory = __real_malloc(size);

    if (stage.applying && kept_count < sizeof kept / sizeof *kept)
        kept[kept_count++] = memory;
    return memory;
}

static void release_kept(void)
{
    while (kept_count > 0)
        free(kept[--kept_count]);
}

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t size)
{
    static unsigned char payload[FF_MAX_PAYLOAD];
    struct script script = {bytes, size};
    struct ledger before = ledger_open();
    unsigned fd_count = script_byte(&script) % (MAX_FDS + 1);
    uint32_t payload_size;
    int needed;

    memset(&stage, 0, sizeof stage);
    stage.failing_call = script_byte(&script);
    payload_size = (uint32_t)script.left < FF_MAX_PAYLOAD ? (uint32_t)script.left : FF_MAX_PAYLOAD;
    script_bytes(&script, payload, payload_size);
    needed = expected_fds(payload, payload_size);
    if (needed < 0 || (unsigned)needed > fd_count) {
        EQUAL(ff_options_check(payload, payload_size, fd_count), -EINVAL);
    } else {
        EQUAL(ff_options_check(payload, payload_size, fd_count), word_at(payload));
        apply(payload, fd_count, (unsigned)needed);
    }
    release_kept();
    ledger_close(&before);
    return 0;
}
