/* ff_options.h: what a child is to be before it runs: its streams, its directory, its limits and the like. */
#ifndef FF_OPTIONS_H
#define FF_OPTIONS_H

#include <stddef.h>

#include "ff_abi.h"

/* Why a child could not become what it is to be. */
struct ff_unfit {
    int error;  /* errno; 0: it could */
    int option; /* ff_option_kind */
};

/* What has been made of a block. */
struct ff_applied {
    uint32_t size;  /* of the block, in the payload */
    uint32_t kinds; /* 1 << ff_option_kind for each, but for limits */
    const unsigned char *env;
    uint32_t env_size;
};

/* Check the block at the beginning of a payload, for a request with so many descriptors: its size in bytes, or -EINVAL. */
int ff_options_check(const unsigned char *payload, uint32_t payload_size, size_t fd_count);

/* Become what a block that has been checked says, in the order in which it says so, up to what cannot be had. The
 * descriptors of the streams are the first ones: they are closed and leave the array. */
struct ff_unfit ff_options_apply(const unsigned char *payload, int *fds, size_t *fd_count,
                                 struct ff_applied *ret_applied);

#endif
