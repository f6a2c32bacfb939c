/* ff_fork.c: the only fork() of the core, and what others in the process may not hand on by theirs. */
#define _GNU_SOURCE

#include "ff_fork.h"

#include <pthread.h>
#include <stdbool.h>
#include <stddef.h>
#include <sys/wait.h>

#include "ff_abi.h"
#include "ff_util.h"

static __thread bool is_forking; /* this thread, by ff_fork() */

static struct {
    int fd;
    pid_t owner; /* in children of its children the number may be that of another descriptor */
} own = {.fd = -1};

static void close_own_in_child(void)
{
    if (!is_forking && own.owner == getppid())
        ff_close(&own.fd);
}

int ff_fork_keep(int fd)
{
    static bool has_handler;

    if (!has_handler) {
        int error = pthread_atfork(NULL, NULL, close_own_in_child);

        if (error != 0)
            return -error;
        has_handler = true;
    }
    own.fd = fd;
    own.owner = getpid();
    return 0;
}

pid_t ff_fork(const struct ff_fork_hooks *hooks, void (*clean_up)(void *arg, sigset_t *mask), void *arg)
{
    sigset_t all, mask;
    pid_t pid;
    int error;

    sigfillset(&all);
    if (hooks != NULL)
        hooks->before();
    pthread_sigmask(SIG_SETMASK, &all, &mask);
    is_forking = true;
    pid = fork();
    is_forking = false;
    error = pid < 0 ? -errno : 0;
    if (pid == 0) {
        clean_up(arg, &mask);
        if (hooks != NULL)
            hooks->after_in_child();
        pthread_sigmask(SIG_SETMASK, &mask, NULL);
        return 0;
    }
    pthread_sigmask(SIG_SETMASK, &mask, NULL);
    if (hooks != NULL)
        hooks->after_in_parent();
    return error < 0 ? error : pid;
}

int ff_measure_floor(int rounds, double *ret_seconds)
{
    for (int i = 0; i < rounds; i++) {
        double start = ff_seconds_now();
        pid_t pid = fork();

        if (pid == 0)
            _exit(0);
        if (pid < 0 || FF_RETRY_EINTR(waitpid(pid, NULL, 0)) < 0)
            return -errno;
        ret_seconds[i] = ff_seconds_now() - start;
    }
    return 0;
}
