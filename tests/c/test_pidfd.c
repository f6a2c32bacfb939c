/* test_pidfd.c: processes by descriptor, and the exit code of one that somebody else has reaped. */
#include "ff_abi.h"
#include "io.h"

#include <signal.h>

/* A child that ends with a code, or by a signal when that is negative, once the gate is closed. */
static pid_t fork_waiting(const int gate[2], int code)
{
    pid_t pid = fork();
    char byte;

    CHECK(pid >= 0);
    if (pid != 0)
        return pid;
    close(gate[1]);
    CHECK_INT(read(gate[0], &byte, 1), 0);
    if (code < 0)
        raise(-code);
    _exit(code);
}

/* Whether the kernel has pidfds; a test that needs them says why it does not run. */
static bool has_pidfds(const char *test)
{
    int fd = ff_pidfd_open((int)getpid());

    if (fd == -ENOSYS) {
        printf("# %s: the kernel has no pidfds: skipped\n", test);
        return false;
    }
    CHECK(fd >= 0);
    CHECK(fcntl(fd, F_GETFD) & FD_CLOEXEC);
    CHECK_INT(close(fd), 0);
    return true;
}

static void test_open(void)
{
    int gate[2];
    pid_t pid;
    int fd;

    if (!has_pidfds("test_open"))
        return;
    make_pipe(gate);
    pid = fork_waiting(gate, 0);
    fd = ff_pidfd_open((int)pid);
    CHECK(fd >= 0);
    CHECK(!is_readable(fd));
    close_both(gate);
    await_readable(fd);
    CHECK_INT(await_status(pid), 0);
    CHECK_INT(ff_pidfd_open((int)pid), -ESRCH);
    CHECK_INT(close(fd), 0);
}

/* Follow one process to its end. Returns false where the kernel does not tell the exit code (before 6.15). */
static bool check_exit_code(int expected)
{
    int gate[2];
    pid_t pid;
    int fd;
    int code = -12345;
    int result;

    make_pipe(gate);
    pid = fork_waiting(gate, expected);
    fd = ff_pidfd_open((int)pid);
    CHECK(fd >= 0);
    result = ff_pidfd_exit_code(fd, &code);
    CHECK(result == -EAGAIN || result == -ENOSYS);
    close_both(gate);
    await_readable(fd);
    CHECK(ff_pidfd_exit_code(fd, &code) < 0); /* dead, but not reaped */
    CHECK_INT(code, -12345);
    await_status(pid);
    result = ff_pidfd_exit_code(fd, &code);
    CHECK_INT(close(fd), 0);
    if (result < 0)
        return false;
    CHECK_INT(code, expected);
    return true;
}

static void test_exit_codes(void)
{
    static const int codes[] = {0, 1, 127, 255, -SIGKILL, -SIGTERM};

    if (!has_pidfds("test_exit_codes"))
        return;
    for (size_t i = 0; i < sizeof codes / sizeof *codes; i++) {
        if (!check_exit_code(codes[i])) {
            printf("# test_exit_codes: the kernel does not tell a reaped process's exit code: skipped\n");
            return;
        }
    }
}

static void test_no_pidfd(void)
{
    int ends[2];
    int code;

    make_pipe(ends);
    CHECK_INT(ff_pidfd_exit_code(ends[0], &code), -ENOSYS);
    close_both(ends);
}

int main(void)
{
    RUN(test_open);
    RUN(test_exit_codes);
    RUN(test_no_pidfd);
    return 0;
}
