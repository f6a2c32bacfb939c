/* ff_fork.h: the only fork() of the core. */
#ifndef FF_FORK_H
#define FF_FORK_H

#include <signal.h>
#include <sys/types.h>

/* What a language runtime wants to do around a fork; all three or none (NULL for a plain C program). */
struct ff_fork_hooks {
    void (*before)(void);
    void (*after_in_parent)(void);
    void (*after_in_child)(void);
};

/* Fork. In the child, clean_up(arg, mask) runs before the hook: whatever the hook calls finds the descriptors and the
 * handlers of signals of an ordinary process. A signal that comes amid all this waits for its end (CPython's hook forgets
 * those that have come): only then the mask is set, that of the caller unless clean_up() has changed it.
 * Returns the pid, 0 in the child, or -errno. */
pid_t ff_fork(const struct ff_fork_hooks *hooks, void (*clean_up)(void *arg, sigset_t *mask), void *arg);

#endif
