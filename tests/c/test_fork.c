/* test_fork.c: the only fork() of the core: the order of what happens around it. */
#define _GNU_SOURCE

#include "fake_fork.h"
#include "ff_abi.h"
#include "ff_fork.h"
#include "io.h"

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

static void clean_up(void *arg)
{
    note(*(char *)arg);
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
    RUN(test_floor);
    return 0;
}
