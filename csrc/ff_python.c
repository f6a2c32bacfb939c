/* ff_python.c: the core inside a Python process; its forks.
 *
 * cffi releases the GIL around a call. CPython's fork hooks need it, so each fork takes it for its length;
 * in the child ff_python_serve() then returns into Python as from any other call.
 */
#include <Python.h>

#include "ff_abi.h"
#include "ff_python_nursery.h"
#include "ff_server.h"
#include "ff_util.h"

/* One server serves at a time in a process, from one thread, and a fork does not nest. */
static PyGILState_STATE gil_state;

static int closed_at_fork = -1;

int ff_python_close_at_fork(int fd)
{
    int earlier = closed_at_fork;

    closed_at_fork = fd;
    return earlier;
}

static void before_fork(void)
{
    ff_close(&closed_at_fork);
    gil_state = PyGILState_Ensure();
    PyOS_BeforeFork();
}

static void after_fork_in_parent(void)
{
    PyOS_AfterFork_Parent();
    PyGILState_Release(gil_state);
}

static void after_fork_in_child(void)
{
    ff_python_use_nursery();
    PyOS_AfterFork_Child();
    PyGILState_Release(gil_state);
}

static const struct ff_fork_hooks python_hooks = {
    .before = before_fork,
    .after_in_parent = after_fork_in_parent,
    .after_in_child = after_fork_in_child,
};

int ff_python_serve(struct ff_server *server, struct ff_request *ret_request)
{
    return ff_server_serve_hooked(server, &python_hooks, ret_request);
}
