/* ff_address.c: a template that SIGTERM or SIGHUP ends removes its socket first, with the folder around it.
 *
 * Its client would do so for it, but whoever ends a whole process group ends both of them. This is the one signal
 * handler that does any work: nothing runs after it.
 */
#define _GNU_SOURCE

#include "ff_address.h"

#include <limits.h>
#include <signal.h>
#include <stdbool.h>
#include <string.h>

#include "ff_abi.h"
#include "ff_util.h"

static const int ending_signals[] = {SIGTERM, SIGHUP};

#define ENDING_SIGNALS (sizeof ending_signals / sizeof *ending_signals)

static struct {
    char socket[PATH_MAX];
    char folder[PATH_MAX];
    pid_t owner; /* a child has this handler too for a moment, and may be told to end in it */
} address;

void ff_address_end(int signal_number)
{
    if (getpid() == address.owner) {
        unlink(address.socket);
        rmdir(address.folder);
    }
    signal(signal_number, SIG_DFL);
    raise(signal_number);
}

static bool has_handler(int signal_number, void (*handler)(int))
{
    struct sigaction current;

    return sigaction(signal_number, NULL, &current) == 0 && current.sa_handler == handler;
}

/* Change the handler of those of the signals that have a certain one: others are somebody else's. */
static void replace_handlers(void (*from)(int), void (*to)(int))
{
    struct sigaction action = {.sa_handler = to, .sa_flags = (int)SA_NODEFER};

    sigemptyset(&action.sa_mask);
    for (size_t i = 0; i < ENDING_SIGNALS; i++)
        if (has_handler(ending_signals[i], from))
            sigaction(ending_signals[i], &action, NULL);
}

int ff_address_remove_at_end(const char *path)
{
    const char *slash = strrchr(path, '/');

    if (slash == NULL || slash == path)
        return -EINVAL;
    if (strlen(path) >= sizeof address.socket)
        return -ENAMETOOLONG;
    memcpy(address.socket, path, strlen(path) + 1);
    memcpy(address.folder, path, (size_t)(slash - path));
    address.folder[slash - path] = '\0';
    address.owner = getpid();
    replace_handlers(SIG_DFL, ff_address_end);
    return 0;
}

void ff_address_forget(void)
{
    if (address.owner != 0)
        replace_handlers(ff_address_end, SIG_DFL);
}
