/* interpose.c: a library for LD_PRELOAD that makes chosen calls of chosen processes fail.
 *
 * What fails is said in a page that its file's name in the environment lets every process share; interposing.py writes
 * it. Each call that may fail is defined here once more, before the C library's own, which it then goes on to.
 */
#define _GNU_SOURCE

#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#define MAX_FAULTS 8
#define MAX_NAME 24

/* As interposing.py packs it. */
struct fault {
    char call[MAX_NAME];
    char caller[MAX_NAME]; /* what the file's name contains that the call comes from; empty: any */
    int32_t armed;         /* written last */
    int32_t pid;           /* 0: every process */
    int32_t of_children;   /* not pid itself, but its children */
    int32_t error;         /* negative: the process sends itself that signal, and then the call goes well */
    int32_t skip;          /* calls that go well before the first one that fails */
    int32_t times;         /* calls that fail then */
    int32_t made;          /* calls so far */
    int32_t failed;        /* those of them that failed */
};

static struct fault *faults;

__attribute__((constructor)) static void open_page(void)
{
    const char *path = getenv("FASTFORK_TESTS_FAULTS");
    int fd = path == NULL ? -1 : open(path, O_RDWR | O_CLOEXEC);
    void *page;

    if (fd < 0)
        return;
    page = mmap(NULL, MAX_FAULTS * sizeof *faults, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    close(fd);
    if (page != MAP_FAILED)
        faults = page;
}

static bool is_about_this_process(const struct fault *fault)
{
    return fault->pid == 0 || fault->pid == (fault->of_children ? getppid() : getpid());
}

static bool is_from(const struct fault *fault, const void *address)
{
    Dl_info info;

    return fault->caller[0] == '\0' ||
           (dladdr(address, &info) != 0 && strstr(info.dli_fname, fault->caller) != NULL);
}

static bool strikes(struct fault *fault)
{
    int32_t turn = __atomic_fetch_add(&fault->made, 1, __ATOMIC_SEQ_CST);

    if (turn < fault->skip || turn - fault->skip >= fault->times)
        return false;
    __atomic_fetch_add(&fault->failed, 1, __ATOMIC_SEQ_CST);
    return true;
}

static bool has_failed(int32_t error)
{
    if (error < 0)
        raise(-error);
    else
        errno = error;
    return error >= 0;
}

/* Whether this call is to fail; then errno says how. */
static bool fails(const char *call, const void *address)
{
    int saved_errno = errno;

    for (size_t i = 0; faults != NULL && i < MAX_FAULTS; i++) {
        struct fault *fault = &faults[i];

        if (__atomic_load_n(&fault->armed, __ATOMIC_SEQ_CST) && strcmp(fault->call, call) == 0 &&
            is_about_this_process(fault) && is_from(fault, address) && strikes(fault)) {
            errno = saved_errno;
            return has_failed(fault->error);
        }
    }
    errno = saved_errno;
    return false;
}

static const intptr_t FAILURE = -1; /* as a number or a pointer */

/* Define a call that fails under the name of `call` (open64() is open() to who tells what fails). */
#define INTERPOSE_RETURNING(failure, call, type, name, parameters, arguments) \
    type name parameters \
    { \
        static type(*next) parameters; \
\
        if (fails(call, __builtin_return_address(0))) \
            return failure; \
        if (next == NULL) \
            next = (type(*) parameters)dlsym(RTLD_NEXT, #name); \
        return next arguments; \
    }

#define INTERPOSE_AS(call, type, name, parameters, arguments) \
    INTERPOSE_RETURNING((type)FAILURE, call, type, name, parameters, arguments)

#define INTERPOSE(type, name, parameters, arguments) INTERPOSE_AS(#name, type, name, parameters, arguments)

INTERPOSE(pid_t, fork, (void), ())
INTERPOSE(pid_t, waitpid, (pid_t pid, int *status, int options), (pid, status, options))
INTERPOSE_AS("waitpid", pid_t, wait4, (pid_t pid, int *status, int options, struct rusage *usage),
             (pid, status, options, usage))
INTERPOSE(int, waitid, (idtype_t type, id_t id, siginfo_t *info, int options), (type, id, info, options))
INTERPOSE(int, kill, (pid_t pid, int number), (pid, number))

INTERPOSE(int, chdir, (const char *path), (path))
INTERPOSE(int, dup2, (int fd, int number), (fd, number))
INTERPOSE(pid_t, setsid, (void), ())
INTERPOSE(int, setpriority, (__priority_which_t which, id_t who, int priority), (which, who, priority))
INTERPOSE(int, getpriority, (__priority_which_t which, id_t who), (which, who))
INTERPOSE(int, sched_setaffinity, (pid_t pid, size_t size, const cpu_set_t *cpus), (pid, size, cpus))
INTERPOSE(int, sched_getaffinity, (pid_t pid, size_t size, cpu_set_t *cpus), (pid, size, cpus))

INTERPOSE(int, socket, (int domain, int type, int protocol), (domain, type, protocol))
INTERPOSE(int, socketpair, (int domain, int type, int protocol, int ends[2]), (domain, type, protocol, ends))
INTERPOSE(int, bind, (int fd, const struct sockaddr *address, socklen_t size), (fd, address, size))
INTERPOSE(int, listen, (int fd, int backlog), (fd, backlog))
INTERPOSE(int, connect, (int fd, const struct sockaddr *address, socklen_t size), (fd, address, size))
INTERPOSE(int, accept, (int fd, struct sockaddr *address, socklen_t *size), (fd, address, size))
INTERPOSE(int, accept4, (int fd, struct sockaddr *address, socklen_t *size, int flags),
          (fd, address, size, flags))
INTERPOSE(int, getsockopt, (int fd, int level, int option, void *value, socklen_t *size),
          (fd, level, option, value, size))
INTERPOSE(int, setsockopt, (int fd, int level, int option, const void *value, socklen_t size),
          (fd, level, option, value, size))
INTERPOSE(ssize_t, recvmsg, (int fd, struct msghdr *message, int flags), (fd, message, flags))
INTERPOSE(ssize_t, sendmsg, (int fd, const struct msghdr *message, int flags), (fd, message, flags))
INTERPOSE(ssize_t, recv, (int fd, void *bytes, size_t size, int flags), (fd, bytes, size, flags))
INTERPOSE(ssize_t, send, (int fd, const void *bytes, size_t size, int flags), (fd, bytes, size, flags))
INTERPOSE(ssize_t, read, (int fd, void *bytes, size_t size), (fd, bytes, size))
INTERPOSE(ssize_t, write, (int fd, const void *bytes, size_t size), (fd, bytes, size))

INTERPOSE(int, epoll_create1, (int flags), (flags))
INTERPOSE(int, epoll_ctl, (int epoll_fd, int operation, int fd, struct epoll_event *event),
          (epoll_fd, operation, fd, event))
INTERPOSE(int, epoll_wait, (int epoll_fd, struct epoll_event *events, int size, int timeout),
          (epoll_fd, events, size, timeout))
INTERPOSE(int, poll, (struct pollfd * polled, nfds_t count, int timeout), (polled, count, timeout))
INTERPOSE(int, signalfd, (int fd, const sigset_t *signals, int flags), (fd, signals, flags))
INTERPOSE(int, pipe, (int ends[2]), (ends))
INTERPOSE(int, pipe2, (int ends[2], int flags), (ends, flags))
INTERPOSE(int, ftruncate, (int fd, off_t size), (fd, size))
INTERPOSE_AS("ftruncate", int, ftruncate64, (int fd, off64_t size), (fd, size))
INTERPOSE(int, memfd_create, (const char *name, unsigned flags), (name, flags))
INTERPOSE(int, mkdir, (const char *path, mode_t mode), (path, mode))
INTERPOSE(int, rename, (const char *from, const char *to), (from, to))
INTERPOSE(int, chmod, (const char *path, mode_t mode), (path, mode))
INTERPOSE(int, access, (const char *path, int mode), (path, mode))
INTERPOSE_RETURNING(NULL, "opendir", DIR *, opendir, (const char *path), (path))
INTERPOSE_RETURNING(NULL, "readdir", struct dirent *, readdir, (DIR * folder), (folder))
INTERPOSE_RETURNING(NULL, "fopen", FILE *, fopen, (const char *path, const char *mode), (path, mode))
INTERPOSE(int, getentropy, (void *bytes, size_t size), (bytes, size))
INTERPOSE(int, getrlimit, (__rlimit_resource_t resource, struct rlimit *limit), (resource, limit))
INTERPOSE_AS("getrlimit", int, getrlimit64, (__rlimit_resource_t resource, struct rlimit64 *limit),
             (resource, limit))
INTERPOSE(int, setrlimit, (__rlimit_resource_t resource, const struct rlimit *limit), (resource, limit))
INTERPOSE_AS("setrlimit", int, setrlimit64, (__rlimit_resource_t resource, const struct rlimit64 *limit),
             (resource, limit))
INTERPOSE(int, prlimit,
          (pid_t pid, __rlimit_resource_t resource, const struct rlimit *limit, struct rlimit *old),
          (pid, resource, limit, old))
INTERPOSE_AS("prlimit", int, prlimit64,
             (pid_t pid, __rlimit_resource_t resource, const struct rlimit64 *limit, struct rlimit64 *old),
             (pid, resource, limit, old))
INTERPOSE(void *, mmap, (void *address, size_t size, int protection, int flags, int fd, off_t offset),
          (address, size, protection, flags, fd, offset))
INTERPOSE_AS("mmap", void *, mmap64,
             (void *address, size_t size, int protection, int flags, int fd, off64_t offset),
             (address, size, protection, flags, fd, offset))

INTERPOSE(int, madvise, (void *address, size_t size, int advice), (address, size, advice))

/* vfork() cannot be gone on to: its child would return from here, and leave its parent a stack that is no more. */
pid_t vfork(void)
{
    return fails("vfork", __builtin_return_address(0)) ? -1 : fork();
}

/* Whatever it says, the descriptor is closed. */
int close(int fd)
{
    static int (*next)(int);
    int result;

    if (next == NULL)
        next = (int (*)(int))dlsym(RTLD_NEXT, "close");
    result = next(fd);
    return result == 0 && fails("close", __builtin_return_address(0)) ? -1 : result;
}

/* The C library's own names, for dlsym() allocates memory itself. */
extern void *__libc_malloc(size_t size);
extern void *__libc_calloc(size_t count, size_t size);
extern void *__libc_realloc(void *memory, size_t size);

void *malloc(size_t size)
{
    return fails("malloc", __builtin_return_address(0)) ? NULL : __libc_malloc(size);
}

void *calloc(size_t count, size_t size)
{
    return fails("calloc", __builtin_return_address(0)) ? NULL : __libc_calloc(count, size);
}

void *realloc(void *memory, size_t size)
{
    return fails("realloc", __builtin_return_address(0)) ? NULL : __libc_realloc(memory, size);
}

/* What takes one more argument or none: whatever it is, it travels as a long. */
#define INTERPOSE_OPEN_ENDED(call, name, type_a, type_b) \
    int name(type_a a, type_b b, ...) \
    { \
        static int (*next)(type_a, type_b, ...); \
        va_list list; \
        long last; \
\
        va_start(list, b); \
        last = va_arg(list, long); \
        va_end(list); \
        if (fails(call, __builtin_return_address(0))) \
            return -1; \
        if (next == NULL) \
            next = (int (*)(type_a, type_b, ...))dlsym(RTLD_NEXT, #name); \
        return next(a, b, last); \
    }

INTERPOSE_OPEN_ENDED("fcntl", fcntl, int, int)
INTERPOSE_OPEN_ENDED("fcntl", fcntl64, int, int)
INTERPOSE_OPEN_ENDED("ioctl", ioctl, int, unsigned long)
INTERPOSE_OPEN_ENDED("open", open, const char *, int)
INTERPOSE_OPEN_ENDED("open", open64, const char *, int)

int prctl(int what, ...)
{
    static int (*next)(int, ...);
    unsigned long arguments[4];
    va_list list;

    va_start(list, what);
    for (size_t i = 0; i < 4; i++)
        arguments[i] = va_arg(list, unsigned long);
    va_end(list);
    if (fails("prctl", __builtin_return_address(0)))
        return -1;
    if (next == NULL)
        next = (int (*)(int, ...))dlsym(RTLD_NEXT, "prctl");
    return next(what, arguments[0], arguments[1], arguments[2], arguments[3]);
}

static const char *name_of(long number)
{
    switch (number) {
#ifdef SYS_pidfd_open
    case SYS_pidfd_open:
        return "pidfd_open";
#endif
#ifdef SYS_pidfd_send_signal
    case SYS_pidfd_send_signal:
        return "pidfd_send_signal";
#endif
#ifdef SYS_close_range
    case SYS_close_range:
        return "close_range";
#endif
    case SYS_memfd_create:
        return "memfd_create";
#ifdef SYS_pwritev2
    case SYS_pwritev2:
        return "pwritev2";
#endif
    default:
        return "syscall";
    }
}

long syscall(long number, ...)
{
    static long (*next)(long, ...);
    long arguments[6];
    va_list list;

    va_start(list, number);
    for (size_t i = 0; i < 6; i++)
        arguments[i] = va_arg(list, long);
    va_end(list);
    if (fails(name_of(number), __builtin_return_address(0)))
        return -1;
    if (next == NULL)
        next = (long (*)(long, ...))dlsym(RTLD_NEXT, "syscall");
    return next(number, arguments[0], arguments[1], arguments[2], arguments[3], arguments[4], arguments[5]);
}
