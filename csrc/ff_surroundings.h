/* ff_surroundings.h: what a process has from its parent at the fork, and others may change from outside since. */
#ifndef FF_SURROUNDINGS_H
#define FF_SURROUNDINGS_H

#include <stdbool.h>
#include <sys/resource.h>

#ifdef __linux__
#include <sched.h>
#endif

#define FF_RESOURCES 16 /* resource limits that are looked at: all of Linux's; elsewhere the first ones */

struct ff_surroundings {
    int niceness;
    struct rlimit limits[FF_RESOURCES];
#ifdef __linux__
    int policy;
    cpu_set_t cpus;
#endif
};

/* Look at this process's own: renice(1), prlimit(1), taskset(1) and chrt(1) change them at any time. */
void ff_surroundings_look(struct ff_surroundings *ret_surroundings);

bool ff_surroundings_equal(const struct ff_surroundings *a, const struct ff_surroundings *b);

#endif
