/* check.h: what a C test program needs: checks, named tests, and one line of output for each test.
 *
 *     static void test_one(void) { CHECK_INT(add(1, 1), 2); }
 *     int main(void) { RUN(test_one); return 0; }
 *
 * A program prints "ok NAME" or "not ok NAME: why" for every test. A failed check ends the process that
 * it is made in, which a test may have forked: such a test checks its child's exit status.
 *
 * Every test must leave as many descriptors as it found, and no child. SIGALRM ends one that hangs.
 */
#ifndef FF_CHECK_H
#define FF_CHECK_H

#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#define CHECK(condition) ((condition) ? (void)0 : check_fail(__FILE__, __LINE__, "%s", #condition))

/* Integers, and so descriptors, pids and -errno: a failure shows both values. */
#define CHECK_INT(actual, expected) \
    check_int(__FILE__, __LINE__, #actual, (intmax_t)(actual), (intmax_t)(expected))

/* `size` bytes at two places. */
#define CHECK_MEM(actual, expected, size) \
    (memcmp((actual), (expected), (size)) == 0 \
         ? (void)0 \
         : check_fail(__FILE__, __LINE__, "%s differs from %s", #actual, #expected))

#define RUN(test) check_run(#test, test)

#define CHECK_FD_LIMIT 4096    /* no test opens a descriptor beyond */
#define CHECK_TEST_SECONDS 120 /* for one test, on a machine under load */

static const char *check_name = "main";

__attribute__((noreturn, format(printf, 3, 4))) static inline void check_fail(const char *file, int line,
                                                                              const char *format, ...)
{
    va_list args;

    printf("not ok %s: %s:%d: ", check_name, file, line);
    va_start(args, format);
    vprintf(format, args);
    va_end(args);
    printf("\n");
    fflush(stdout);
    _exit(1);
}

static inline void check_int(const char *file, int line, const char *what, intmax_t actual, intmax_t expected)
{
    if (actual != expected)
        check_fail(file, line, "%s is %jd, not %jd", what, actual, expected);
}

static inline bool check_fd_is_open(int fd)
{
    return fcntl(fd, F_GETFD) >= 0;
}

static inline int check_count_fds(void)
{
    int count = 0;

    for (int fd = 0; fd < CHECK_FD_LIMIT; fd++)
        count += check_fd_is_open(fd);
    return count;
}

/* Neither a zombie nor a live one. */
static inline void check_no_child(void)
{
    CHECK_INT(waitpid(-1, NULL, WNOHANG), -1);
    CHECK_INT(errno, ECHILD);
}

/* The output is flushed before each test, lest a child that it forks prints it again. */
static inline void check_run(const char *name, void (*test)(void))
{
    int fds_before = check_count_fds();

    check_name = name;
    alarm(CHECK_TEST_SECONDS);
    test();
    alarm(0);
    CHECK_INT(check_count_fds(), fds_before);
    check_no_child();
    printf("ok %s\n", name);
    fflush(stdout);
}

/* Whether the run asks for the portable event backend. */
static inline int check_wants_poll(void)
{
    const char *backend = getenv("FASTFORK_BACKEND");

    return backend != NULL && strcmp(backend, "poll") == 0;
}

#endif
