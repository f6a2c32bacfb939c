/* ff_server.h: what ff_python.c needs of the server beside ff_abi.h. */
#ifndef FF_SERVER_H
#define FF_SERVER_H

#include "ff_abi.h"
#include "ff_fork.h"

/* ff_server_serve() with hooks around each fork. */
int ff_server_serve_hooked(struct ff_server *server, const struct ff_fork_hooks *hooks,
                           struct ff_request *ret_request);

#endif
