/* test_fork.c: the only fork() of the core: the order of what happens around it. */
#define _GNU_SOURCE

#include "fake_fork.h"
#include "ff_abi.h"
#include "ff_fork.h"
#include "io.h"

#include <signal.h>

static char calls[8];

static void note(char call)
{
    size_t length = strlen(calls);

    CHECK(length < sizeof calls - 1);
    calls[length] = call;
    calls[length + 1] = '\0';
}

/* errno is spoilt, as a hook of a language runtime may do. */
static void before(void)
{
    note('b');
}

static void after_in_parent(void)
{
    note('p');
    errno = EDOM;
}

static void after_in_child(void)
{
    note('c');
}

static const struct ff_fork_hooks hooks = {before, after_in_parent, after_in_child};

static void clean_up(void *arg, sigset_t *mask)
{
    note(*(char *)arg);
    sigaddset(mask, SIGUSR2);
}

static void check_order(const struct ff_fork_hooks *used, const char *in_child, const char *in_parent)
{
    char clean = '-';
    pid_t pid;

    calls[0] = '\0';
    pid = ff_fork(used, clean_up, &clean);
    if (pid == 0)
        _exit(strcmp(calls, in_child));
    CHECK(pid > 0);
    CHECK_INT(await_status(pid), 0);
    CHECK_INT(strcmp(calls, in_parent), 0);
}

static void test_order(void)
{
    check_order(&hooks, "b-c", "bp");
}

static void test_without_hooks(void)
{
    check_order(NULL, "-", "");
}

/* The hook that undoes the first one runs all the same. */
static void test_failure(void)
{
    calls[0] = '\0';
    fork_error = EAGAIN;
    CHECK_INT(ff_fork(&hooks, clean_up, NULL), -EAGAIN);
    CHECK_INT(strcmp(calls, "bp"), 0);
}

static void on_signal(int signal_number)
{
    note(signal_number == SIGUSR1 ? 's' : '?');
}

static void signal_amid_clean_up(void *arg, sigset_t *mask)
{
    clean_up(arg, mask);
    raise(SIGUSR1);
    raise(SIGUSR2);
}

static bool is_blocked(int signal_number)
{
    sigset_t mask;

    CHECK_INT(pthread_sigmask(SIG_BLOCK, NULL, &mask), 0);
    return sigismember(&mask, signal_number);
}

/* What the hook forgets, or what it calls does not expect, comes after it; what the child is to block does not. */
static void test_signals_amid_a_fork(void)
{
    char clean = '-';
    pid_t pid;

    calls[0] = '\0';
    signal(SIGUSR1, on_signal);
    signal(SIGUSR2, on_signal);
    pid = ff_fork(&hooks, signal_amid_clean_up, &clean);
    if (pid == 0)
        _exit(strcmp(calls, "b-cs") != 0 || is_blocked(SIGUSR1) || !is_blocked(SIGUSR2));
    CHECK_INT(await_status(pid), 0);
    CHECK(!is_blocked(SIGUSR1));
    CHECK(!is_blocked(SIGUSR2));
    signal(SIGUSR1, SIG_DFL);
    signal(SIGUSR2, SIG_DFL);
}

static bool is_open(int fd)
{
    return fcntl(fd, F_GETFD) >= 0;
}

static void keep_all(void *arg, sigset_t *mask)
{
    (void)arg;
    (void)mask;
}

/* Fork as anybody may: whether the child has the descriptor. */
static bool is_open_in_fork(int fd)
{
    pid_t pid = fork();

    CHECK(pid >= 0);
    if (pid == 0)
        _exit(is_open(fd));
    return await_status(pid) != 0;
}

/* The core's own children close what they are not to have; theirs may have another descriptor of that number. */
static void test_what_is_kept_from_other_forks(void)
{
    int ends[2];
    pid_t pid;

    make_pipe(ends);
    CHECK(is_open_in_fork(ends[0]));
    for (int i = 0; i < 2; i++) {
        CHECK_INT(ff_fork_keep(ends[i]), 0);
        CHECK(!is_open_in_fork(ends[i]));
        CHECK(is_open_in_fork(ends[1 - i]));
        CHECK(is_open(ends[i]));
        pid = ff_fork(NULL, keep_all, NULL);
        if (pid == 0)
            _exit(!is_open(ends[i]) || !is_open_in_fork(ends[i]));
        CHECK_INT(await_status(pid), 0);
    }
    CHECK_INT(ff_fork_keep(-1), 0);
    CHECK(is_open_in_fork(ends[0]) && is_open_in_fork(ends[1]));
    close_both(ends);
}

static void test_floor(void)
{
    double seconds[4] = {0, 0, 0, -1};

    CHECK_INT(ff_measure_floor(3, seconds), 0);
    for (int i = 0; i < 3; i++)
        CHECK(seconds[i] > 0);
    CHECK(seconds[3] == -1);
    fork_error = ENOMEM;
    CHECK_INT(ff_measure_floor(1, seconds), -ENOMEM);
}

int main(void)
{
    RUN(test_order);
    RUN(test_without_hooks);
    RUN(test_failure);
    RUN(test_signals_amid_a_fork);
    RUN(test_what_is_kept_from_other_forks);
    RUN(test_floor);
    return 0;
}
