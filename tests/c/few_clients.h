/* few_clients.h: the core's boundary, but that a server holds few clients. */
#ifndef FF_TEST_FEW_CLIENTS_H
#define FF_TEST_FEW_CLIENTS_H

#include "ff_abi.h"

#undef FF_MAX_CLIENTS
#define FF_MAX_CLIENTS 8

#endif
