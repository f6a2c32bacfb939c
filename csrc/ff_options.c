/* ff_options.c: what a child is to be before it runs: its streams, its directory, its limits and the like.
 *
 * A block is checked by the server, and applied by the child. Neither looks at what the options mean together: that is
 * for whoever makes the block.
 */
#define _GNU_SOURCE

#include "ff_options.h"

#include <fcntl.h>
#include <stdbool.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>

#include "ff_fd.h"
#include "ff_util.h"

#ifdef __linux__
#include <sched.h>
#endif

extern char **environ;

/* One option of a block. The value is at any address. */
struct option {
    struct ff_option head;
    const unsigned char *value;
};

/* Where a block is read; nothing beyond its end. */
struct cursor {
    const unsigned char *at;
    size_t left;
};

static bool take_bytes(struct cursor *cursor, void *ret_bytes, size_t size)
{
    if (size > cursor->left)
        return false;
    memcpy(ret_bytes, cursor->at, size);
    cursor->at += size;
    cursor->left -= size;
    return true;
}

static bool take_option(struct cursor *cursor, struct option *ret_option)
{
    if (!take_bytes(cursor, &ret_option->head, sizeof ret_option->head))
        return false;
    if (ret_option->head.size > cursor->left)
        return false;
    ret_option->value = cursor->at;
    cursor->at += ret_option->head.size;
    cursor->left -= ret_option->head.size;
    return true;
}

static int32_t number_in(const struct option *option)
{
    int32_t number;

    memcpy(&number, option->value, sizeof number);
    return number;
}

static bool is_stream(const struct option *option)
{
    return option->head.kind >= FF_OPTION_STDIN && option->head.kind <= FF_OPTION_STDERR;
}

static bool is_limit(const struct option *option)
{
    return option->head.kind >= FF_OPTION_RLIMIT && option->head.kind < FF_OPTION_RLIMIT + FF_MAX_RLIMITS;
}

static bool needs_fd(const struct option *option)
{
    return is_stream(option) && number_in(option) == FF_STREAM_FD;
}

/* ---- checking ---- */

static bool ends_by_null(const struct option *option)
{
    return option->head.size == 0 || option->value[option->head.size - 1] == '\0';
}

static bool is_string(const struct option *option)
{
    return option->head.size > 0 &&
           memchr(option->value, '\0', option->head.size) == option->value + option->head.size - 1;
}

static bool is_known_stream(const struct option *option)
{
    return option->head.size == sizeof(int32_t) && number_in(option) >= FF_STREAM_FD &&
           number_in(option) <= FF_STREAM_STDOUT;
}

static bool is_sound(const struct option *option)
{
    uint32_t size = option->head.size;

    switch (option->head.kind) {
    case FF_OPTION_STDIN:
    case FF_OPTION_STDOUT:
    case FF_OPTION_STDERR:
        return is_known_stream(option);
    case FF_OPTION_NEW_SESSION:
        return size == 0;
    case FF_OPTION_UMASK:
    case FF_OPTION_NICE:
        return size == sizeof(int32_t);
    case FF_OPTION_CWD:
        return is_string(option);
    case FF_OPTION_ENV:
        return ends_by_null(option);
    case FF_OPTION_AFFINITY:
        return size > 0 && size <= FF_MAX_CPUS / 8;
    default:
        return is_limit(option) && size == 2 * sizeof(uint64_t);
    }
}

int ff_options_check(const unsigned char *payload, uint32_t payload_size, size_t fd_count)
{
    struct cursor cursor = {payload, payload_size};
    struct option option;
    uint32_t size;

    if (!take_bytes(&cursor, &size, sizeof size) || size < sizeof size || size > payload_size)
        return -EINVAL;
    cursor.left = size - sizeof size;
    while (cursor.left > 0) {
        if (!take_option(&cursor, &option) || !is_sound(&option))
            return -EINVAL;
        if (needs_fd(&option) && fd_count-- == 0)
            return -EINVAL;
    }
    return (int)size;
}

/* ---- applying ---- */

/* The descriptors of the request, of which streams have taken some. */
struct supply {
    int *fds;
    size_t count;
    size_t taken;
};

static int result_of(int result)
{
    return result < 0 ? -errno : 0;
}

/* What a stream is to be a duplicate of; owned where it has been opened here. */
static int source_of(const struct option *option, struct supply *supply, int *ret_opened)
{
    if (number_in(option) == FF_STREAM_FD)
        return supply->fds[supply->taken++];
    if (number_in(option) == FF_STREAM_STDOUT)
        return STDOUT_FILENO;
    *ret_opened = open("/dev/null", O_RDWR | O_CLOEXEC);
    if (*ret_opened < 0)
        return -errno;
    return ff_fd_raise(ret_opened) < 0 ? -errno : *ret_opened;
}

/* Where a template has no standard stream, one of the request's descriptors may have its number. */
static int raise_all(const struct supply *supply)
{
    int error = 0;

    for (size_t i = 0; i < supply->count && error == 0; i++)
        error = ff_fd_raise(&supply->fds[i]);
    return error;
}

static int apply_stream(const struct option *option, struct supply *supply)
{
    FF_CLEANUP(ff_close) int opened = -1;
    int error = raise_all(supply);
    int source = error < 0 ? error : source_of(option, supply, &opened);

    if (source < 0)
        return source;
    return result_of(FF_RETRY_EINTR(dup2(source, (int)option->head.kind - FF_OPTION_STDIN)));
}

static size_t count_strings(const struct option *option)
{
    size_t count = 0;

    for (uint32_t i = 0; i < option->head.size; i++)
        count += option->value[i] == '\0';
    return count;
}

/* One piece of memory for the array and its strings. It is never freed: whoever has asked for a variable keeps it. */
static int replace_environment(const struct option *option)
{
    size_t count = count_strings(option);
    char **strings = malloc((count + 1) * sizeof *strings + option->head.size);
    char *next = (char *)(strings + count + 1);

    if (strings == NULL)
        return -ENOMEM;
    memcpy(next, option->value, option->head.size);
    for (size_t i = 0; i < count; i++) {
        strings[i] = next;
        next += strlen(next) + 1;
    }
    strings[count] = NULL;
    environ = strings;
    return 0;
}

#ifdef __linux__
static int apply_affinity(const struct option *option)
{
    unsigned long cpus[FF_MAX_CPUS / 8 / sizeof(unsigned long)] = {0};

    memcpy(cpus, option->value, option->head.size);
    return result_of(sched_setaffinity(0, sizeof cpus, (const cpu_set_t *)cpus));
}
#else
static int apply_affinity(const struct option *option)
{
    (void)option;
    return -ENOSYS;
}
#endif

static rlim_t limit_of(uint64_t number)
{
    return number == UINT64_MAX ? RLIM_INFINITY : (rlim_t)number;
}

static int apply_limit(const struct option *option)
{
    uint64_t numbers[2];
    struct rlimit limit;

    memcpy(numbers, option->value, sizeof numbers);
    limit = (struct rlimit){.rlim_cur = limit_of(numbers[0]), .rlim_max = limit_of(numbers[1])};
    return result_of(setrlimit((__typeof__(RLIMIT_NOFILE))(option->head.kind - FF_OPTION_RLIMIT), &limit));
}

static int apply(const struct option *option, struct supply *supply)
{
    switch (option->head.kind) {
    case FF_OPTION_STDIN:
    case FF_OPTION_STDOUT:
    case FF_OPTION_STDERR:
        return apply_stream(option, supply);
    case FF_OPTION_NEW_SESSION:
        return result_of(setsid());
    case FF_OPTION_UMASK:
        umask((mode_t)number_in(option));
        return 0;
    case FF_OPTION_NICE:
        return result_of(setpriority(PRIO_PROCESS, 0, number_in(option)));
    case FF_OPTION_CWD:
        return result_of(chdir((const char *)option->value));
    case FF_OPTION_ENV:
        return replace_environment(option);
    case FF_OPTION_AFFINITY:
        return apply_affinity(option);
    default:
        return apply_limit(option);
    }
}

static void note(struct ff_applied *applied, const struct option *option)
{
    if (is_limit(option))
        return;
    applied->kinds |= 1u << option->head.kind;
    if (option->head.kind != FF_OPTION_ENV)
        return;
    applied->env = option->value;
    applied->env_size = option->head.size;
}

static void close_taken(const struct supply *supply, size_t *ret_count)
{
    for (size_t i = 0; i < supply->taken; i++)
        ff_close(&supply->fds[i]);
    *ret_count = supply->count - supply->taken;
    memmove(supply->fds, supply->fds + supply->taken, *ret_count * sizeof *supply->fds);
}

struct ff_unfit ff_options_apply(const unsigned char *payload, int *fds, size_t *fd_count,
                                 struct ff_applied *ret_applied)
{
    struct supply supply = {.fds = fds, .count = *fd_count};
    struct cursor cursor = {payload, sizeof ret_applied->size};
    struct ff_unfit unfit = {0};
    struct option option;

    memset(ret_applied, 0, sizeof *ret_applied);
    take_bytes(&cursor, &ret_applied->size, sizeof ret_applied->size);
    cursor.left = ret_applied->size - sizeof ret_applied->size;
    while (unfit.error == 0 && take_option(&cursor, &option)) {
        unfit.error = -apply(&option, &supply);
        unfit.option = (int)option.head.kind;
        note(ret_applied, &option);
    }
    close_taken(&supply, fd_count);
    return unfit;
}
