/* ff_surroundings.c: what a process has from its parent at the fork, and others may change from outside since. */
#define _GNU_SOURCE

#include "ff_surroundings.h"

#include <string.h>

void ff_surroundings_look(struct ff_surroundings *ret_surroundings)
{
    memset(ret_surroundings, 0, sizeof *ret_surroundings);
    ret_surroundings->niceness = getpriority(PRIO_PROCESS, 0);
    for (int i = 0; i < FF_RESOURCES; i++)
        getrlimit((__typeof__(RLIMIT_NOFILE))i, &ret_surroundings->limits[i]);
#ifdef __linux__
    ret_surroundings->policy = sched_getscheduler(0);
    sched_getaffinity(0, sizeof ret_surroundings->cpus, &ret_surroundings->cpus);
#endif
}

/* Padding is zero in both. */
bool ff_surroundings_equal(const struct ff_surroundings *a, const struct ff_surroundings *b)
{
    return memcmp(a, b, sizeof *a) == 0;
}
