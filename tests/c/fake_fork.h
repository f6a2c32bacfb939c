/* fake_fork.h: a fork() that can be told to fail; to be included by one file of a program.
 *
 * Limits on processes do not bind root, so the program brings a fork() of its own, which the core then calls.
 */
#ifndef FF_TEST_FAKE_FORK_H
#define FF_TEST_FAKE_FORK_H

#include <dlfcn.h>
#include <errno.h>
#include <sys/types.h>
#include <unistd.h>

static int fork_error; /* what the next fork fails with; 0: it does not */

pid_t fork(void)
{
    pid_t (*real)(void);

    if (fork_error != 0) {
        errno = fork_error;
        fork_error = 0;
        return -1;
    }
    *(void **)&real = dlsym(RTLD_NEXT, "fork");
    return real();
}

#endif
