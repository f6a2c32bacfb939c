/* test_address.c: a process that a signal ends removes its socket, and nobody else does. */
#include "ff_abi.h"
#include "ff_address.h"
#include "io.h"

#include <limits.h>
#include <signal.h>
#include <sys/stat.h>

static char folder[PATH_MAX];
static char path[PATH_MAX + 2];

static void make_address(void)
{
    const char *base = getenv("TMPDIR");

    snprintf(folder, sizeof folder, "%s/test_address-XXXXXX", base == NULL ? "/tmp" : base);
    CHECK(mkdtemp(folder) != NULL);
    snprintf(path, sizeof path, "%s/s", folder);
    CHECK_INT(close(open(path, O_CREAT | O_WRONLY | O_CLOEXEC, 0600)), 0);
}

static bool is_there(const char *name)
{
    struct stat status;

    return lstat(name, &status) == 0;
}

static void remove_address(void)
{
    CHECK_INT(unlink(path), 0);
    CHECK_INT(rmdir(folder), 0);
}

/* How a process has ended: its exit code, negative for a signal. */
static int end_of(pid_t pid)
{
    int status = await_status(pid);

    return WIFSIGNALED(status) ? -WTERMSIG(status) : WEXITSTATUS(status);
}

/* How a process ends that does this first, and then gets the signal. */
static int end_after(void (*prepare)(void), int signal_number)
{
    pid_t pid = fork();

    CHECK(pid >= 0);
    if (pid == 0) {
        prepare();
        raise(signal_number);
        _exit(5);
    }
    return end_of(pid);
}

static void guard(void)
{
    CHECK_INT(ff_address_remove_at_end(path), 0);
}

static void check_removes(int signal_number)
{
    make_address();
    CHECK_INT(end_after(guard, signal_number), -signal_number);
    CHECK(!is_there(path));
    CHECK(!is_there(folder));
}

static void test_the_signals_that_end_it(void)
{
    signal(SIGHUP, SIG_DFL); /* nohup has it ignored */
    check_removes(SIGTERM);
    check_removes(SIGHUP);
}

static void test_other_signals_remove_nothing(void)
{
    make_address();
    CHECK_INT(end_after(guard, SIGUSR1), -SIGUSR1);
    CHECK(is_there(path));
    remove_address();
}

static void become_a_fork(void)
{
    pid_t pid;

    guard();
    pid = fork();
    CHECK(pid >= 0);
    if (pid > 0)
        _exit(end_of(pid) == -SIGTERM && is_there(path) ? 6 : 7);
}

static void test_a_fork_removes_nothing(void)
{
    make_address();
    CHECK_INT(end_after(become_a_fork, SIGTERM), 6);
    remove_address();
}

static void guard_and_forget(void)
{
    guard();
    ff_address_forget();
}

static void test_forgotten(void)
{
    make_address();
    CHECK_INT(end_after(guard_and_forget, SIGTERM), -SIGTERM);
    CHECK(is_there(path));
    remove_address();
}

static void ignore_and_guard(void)
{
    signal(SIGHUP, SIG_IGN);
    guard();
}

static void test_what_is_ignored_stays_so(void)
{
    make_address();
    CHECK_INT(end_after(ignore_and_guard, SIGHUP), 5);
    CHECK(is_there(path));
    remove_address();
}

static void end_here(int signal_number)
{
    _exit(signal_number);
}

static void guard_and_handle_and_forget(void)
{
    guard();
    signal(SIGTERM, end_here);
    ff_address_forget();
}

static void test_the_handler_of_another_stays(void)
{
    make_address();
    CHECK_INT(end_after(guard_and_handle_and_forget, SIGTERM), SIGTERM);
    CHECK(is_there(path));
    remove_address();
}

static void test_no_such_address(void)
{
    static char long_path[2 * PATH_MAX];

    memset(long_path, '/', sizeof long_path - 1);
    CHECK_INT(ff_address_remove_at_end(long_path), -ENAMETOOLONG);
    CHECK_INT(ff_address_remove_at_end("s"), -EINVAL);
    CHECK_INT(ff_address_remove_at_end("/s"), -EINVAL);
    CHECK_INT(ff_address_remove_at_end(""), -EINVAL);
}

int main(void)
{
    RUN(test_the_signals_that_end_it);
    RUN(test_other_signals_remove_nothing);
    RUN(test_a_fork_removes_nothing);
    RUN(test_forgotten);
    RUN(test_what_is_ignored_stays_so);
    RUN(test_the_handler_of_another_stays);
    RUN(test_no_such_address);
    return 0;
}
