/* ff_fork.c: the only fork() of the core. */
#include "ff_fork.h"

#include <stddef.h>
#include <sys/wait.h>

#include "ff_abi.h"
#include "ff_util.h"

pid_t ff_fork(const struct ff_fork_hooks *hooks, void (*clean_up)(void *arg, sigset_t *mask), void *arg)
{
    sigset_t all, mask;
    pid_t pid;
    int error;

    sigfillset(&all);
    if (hooks != NULL)
        hooks->before();
    pthread_sigmask(SIG_SETMASK, &all, &mask);
    pid = fork();
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
