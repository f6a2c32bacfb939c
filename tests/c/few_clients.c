/* few_clients.c: the server, but that it holds few clients: see test_full.c. */
#include "few_clients.h"

#include "ff_server.c"
