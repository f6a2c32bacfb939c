/* invariant.h: what holds after every input of a fuzz target, beside the absence of crashes.
 *
 * A broken invariant ends the process by abort(), which libFuzzer and driver.c take as a finding.
 * Descriptors are counted in /proc, memory by the sanitizer: both need Linux and -fsanitize=address.
 */
#ifndef FF_FUZZ_INVARIANT_H
#define FF_FUZZ_INVARIANT_H

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#define HOLDS(condition) ((condition) ? (void)0 : broken(__FILE__, __LINE__, "%s", #condition))
#define EQUAL(actual, expected) equal(__FILE__, __LINE__, #actual, (intmax_t)(actual), (intmax_t)(expected))

size_t __sanitizer_get_current_allocated_bytes(void);
int __lsan_do_recoverable_leak_check(void);

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t size);

/* Of descriptors: numbers from `limit` on are not given out. Lifted while the harness itself acts. */
static inline void limit_fds(rlim_t limit)
{
    struct rlimit now;

    getrlimit(RLIMIT_NOFILE, &now);
    if (limit > now.rlim_max)
        limit = now.rlim_max;
    if (limit == now.rlim_cur)
        return;
    now.rlim_cur = limit;
    setrlimit(RLIMIT_NOFILE, &now);
}

__attribute__((noreturn, format(printf, 3, 4))) static inline void broken(const char *file, int line,
                                                                          const char *format, ...)
{
    va_list args;

    limit_fds(RLIM_INFINITY); /* the symbolizer needs pipes */
    fprintf(stderr, "%s:%d: broken invariant: ", file, line);
    va_start(args, format);
    vfprintf(stderr, format, args);
    va_end(args);
    fprintf(stderr, "\n");
    abort();
}

static inline void equal(const char *file, int line, const char *what, intmax_t actual, intmax_t expected)
{
    if (actual != expected)
        broken(file, line, "%s is %jd, not %jd", what, actual, expected);
}

/* The lowest limit on descriptors that leaves this process `count` more to open. */
static inline rlim_t limit_with_room_for(unsigned count)
{
    int limit = 0;

    while (count > 0 || fcntl(limit, F_GETFD) >= 0)
        count -= fcntl(limit++, F_GETFD) < 0;
    return (rlim_t)limit;
}

static inline int list_fds(void)
{
    DIR *directory = opendir("/proc/self/fd");
    int count = 0;

    HOLDS(directory != NULL);
    while (readdir(directory) != NULL)
        count++;
    closedir(directory);
    return count - 3; /* two that are no descriptors, and the directory itself */
}

/* The size of that directory tells from Linux 6.2 on. */
static inline int count_fds(void)
{
    struct stat status;

    EQUAL(stat("/proc/self/fd", &status), 0);
    return status.st_size > 0 ? (int)status.st_size : list_fds();
}

/* What an input must leave as it was. */
struct ledger {
    int fds;
    size_t bytes;
};

static inline struct ledger ledger_open(void)
{
    return (struct ledger){.fds = count_fds(), .bytes = __sanitizer_get_current_allocated_bytes()};
}

static inline void ledger_close(const struct ledger *before)
{
    EQUAL(count_fds(), before->fds);
    if (__sanitizer_get_current_allocated_bytes() == before->bytes)
        return;
    __lsan_do_recoverable_leak_check();
    EQUAL(__sanitizer_get_current_allocated_bytes(), before->bytes);
}

#endif
