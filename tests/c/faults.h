/* faults.h: calls of the core that fail as they are told; to be included by one file of a program.
 *
 * The program is linked with --wrap for each call in WRAPPED (see the Makefile). A fault is armed for a part of one
 * process: everything else, the tests' own calls too, goes through.
 */
#ifndef FF_TEST_FAULTS_H
#define FF_TEST_FAULTS_H

#include <poll.h>
#include <stdarg.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/syscall.h>

#include "check.h"

struct fault {
    const char *call;
    int error;
    int position;  /* calls that go through before */
    bool for_ever; /* all the calls from there on fail */
    bool is_armed;
    bool has_waited; /* this process has waited for events */
    bool *
        has_struck; /* shared with the test and among all processes: but for those for ever it strikes once */
    bool *was_waiting; /* likewise: it has struck a process that had waited for events; may be NULL */
};

static struct fault fault;

static inline bool fault_strikes(const char *call)
{
    fault.has_waited |= strcmp(call, "epoll_wait") == 0 || strcmp(call, "poll") == 0;
    if (!fault.is_armed || strcmp(call, fault.call) != 0 || fault.position-- > 0)
        return false;
    if (!fault.for_ever && *fault.has_struck)
        return false;
    *fault.has_struck = true;
    if (fault.was_waiting != NULL)
        *fault.was_waiting = fault.has_waited;
    errno = fault.error;
    return true;
}

#define FAULTY(type, name, parameters, arguments, failed) \
    type __real_##name parameters; \
    type __wrap_##name parameters; \
    type __wrap_##name parameters \
    { \
        return fault_strikes(#name) ? (failed) : __real_##name arguments; \
    }

#ifndef FAULTS_OF_CONNECTIONS_ALONE
FAULTY(pid_t, fork, (void), (), -1)
FAULTY(int, accept, (int fd, struct sockaddr *address, socklen_t *size), (fd, address, size), -1)
FAULTY(int, accept4, (int fd, struct sockaddr *address, socklen_t *size, int flags),
       (fd, address, size, flags), -1)
FAULTY(ssize_t, send, (int fd, const void *bytes, size_t size, int flags), (fd, bytes, size, flags), -1)
FAULTY(ssize_t, recv, (int fd, void *bytes, size_t size, int flags), (fd, bytes, size, flags), -1)
FAULTY(int, shutdown, (int fd, int how), (fd, how), -1)
FAULTY(int, kill, (pid_t pid, int number), (pid, number), -1)
FAULTY(int, socketpair, (int domain, int type, int protocol, int ends[2]), (domain, type, protocol, ends), -1)
FAULTY(int, epoll_create1, (int flags), (flags), -1)
int __real_epoll_ctl(int fd, int what, int other, struct epoll_event *event);
int __wrap_epoll_ctl(int fd, int what, int other, struct epoll_event *event);
int __wrap_epoll_ctl(int fd, int what, int other, struct epoll_event *event)
{
    bool may_strike = what != EPOLL_CTL_DEL; /* it takes no memory to forget one */

    return may_strike && fault_strikes("epoll_ctl") ? -1 : __real_epoll_ctl(fd, what, other, event);
}

FAULTY(int, epoll_wait, (int fd, struct epoll_event *events, int count, int ms), (fd, events, count, ms), -1)
FAULTY(int, poll, (struct pollfd * polled, nfds_t count, int ms), (polled, count, ms), -1)
FAULTY(int, pipe, (int *ends), (ends), -1)
FAULTY(int, pipe2, (int *ends, int flags), (ends, flags), -1)
FAULTY(int, signalfd, (int fd, const sigset_t *mask, int flags), (fd, mask, flags), -1)
FAULTY(int, waitid, (idtype_t type, id_t id, siginfo_t *info, int options), (type, id, info, options), -1)
FAULTY(pid_t, wait4, (pid_t pid, int *status, int options, struct rusage *usage),
       (pid, status, options, usage), -1)
FAULTY(void *, mmap, (void *address, size_t size, int access, int flags, int fd, off_t offset),
       (address, size, access, flags, fd, offset), MAP_FAILED)
FAULTY(int, madvise, (void *address, size_t size, int advice), (address, size, advice), -1)
FAULTY(int, ftruncate, (int fd, off_t size), (fd, size), -1)
FAULTY(int, getrlimit, (__rlimit_resource_t what, struct rlimit *limit), (what, limit), -1)
FAULTY(int, setrlimit, (__rlimit_resource_t what, const struct rlimit *limit), (what, limit), -1)
FAULTY(int, getentropy, (void *bytes, size_t size), (bytes, size), -1)
FAULTY(int, getsockopt, (int fd, int level, int name, void *value, socklen_t *size),
       (fd, level, name, value, size), -1)
FAULTY(ssize_t, read, (int fd, void *bytes, size_t size), (fd, bytes, size), -1)
FAULTY(ssize_t, write, (int fd, const void *bytes, size_t size), (fd, bytes, size), -1)
FAULTY(void *, calloc, (size_t count, size_t size), (count, size), NULL)
FAULTY(void *, realloc, (void *memory, size_t size), (memory, size), NULL)
FAULTY(int, shm_open, (const char *name, int flags, mode_t mode), (name, flags, mode), -1)

int __real_fcntl(int fd, int what, ...);
int __wrap_fcntl(int fd, int what, ...);
int __wrap_fcntl(int fd, int what, ...)
{
    va_list args;
    long argument;

    va_start(args, what);
    argument = va_arg(args, long);
    va_end(args);
    return fault_strikes("fcntl") ? -1 : __real_fcntl(fd, what, argument);
}

int __real_open(const char *path, int flags, ...);
int __wrap_open(const char *path, int flags, ...);
int __wrap_open(const char *path, int flags, ...)
{
    return fault_strikes("open") ? -1 : __real_open(path, flags, 0600);
}

/* Those without a function of their own. */
static inline const char *name_of_syscall(long number)
{
    switch (number) {
    case SYS_pidfd_open:
        return "pidfd_open";
    case SYS_memfd_create:
        return "memfd_create";
    case SYS_close_range:
        return "close_range";
    case SYS_pidfd_send_signal:
        return "pidfd_send_signal";
    case SYS_pwritev2:
        return "pwritev2";
    default:
        return "another";
    }
}

long __real_syscall(long number, ...);
long __wrap_syscall(long number, ...);
long __wrap_syscall(long number, ...)
{
    va_list args;
    long a[6];

    va_start(args, number);
    for (int i = 0; i < 6; i++)
        a[i] = va_arg(args, long);
    va_end(args);
    if (fault_strikes(name_of_syscall(number)))
        return -1;
    return __real_syscall(number, a[0], a[1], a[2], a[3], a[4], a[5]);
}
#endif

FAULTY(void *, malloc, (size_t size), (size), NULL)
FAULTY(ssize_t, recvmsg, (int fd, struct msghdr *message, int flags), (fd, message, flags), -1)
ssize_t __real_sendmsg(int fd, const struct msghdr *message, int flags);
ssize_t __wrap_sendmsg(int fd, const struct msghdr *message, int flags);
ssize_t __wrap_sendmsg(int fd, const struct msghdr *message, int flags)
{
    bool may_strike =
        fault.error != ETOOMANYREFS || message->msg_controllen > 0; /* it is about descriptors */

    return may_strike && fault_strikes("sendmsg") ? -1 : __real_sendmsg(fd, message, flags);
}

#endif
