/* ff_loop.c: the choice of a backend. */
#include "ff_loop.h"

#include <errno.h>

int ff_loop_open(enum ff_backend backend, struct ff_loop **ret_loop)
{
#ifdef __linux__
    if (backend == FF_BACKEND_AUTO) {
        int error = ff_loop_open_epoll(ret_loop);

        if (error != -ENOSYS)
            return error;
    }
#endif
    (void)backend;
    return ff_loop_open_poll(ret_loop);
}
