/* fake_system.h: the processes that a server believes it has, the memory that it shares with them, and its clock; to
 * be included by one file of a program.
 *
 * fork(), waitid(), wait4(), waitpid(), kill(), ff_pidfd_open() and ff_tree_kill() are replaced at link time while the
 * server serves, so that a child costs nothing, lives, stops and dies as the script wants, and no real process is
 * ever signalled. A spare, and a child that has options, has the other end of its socket, and says what the script
 * wants. What the server may not do ends the run: wait for a process that it has not killed, signal or reap one that
 * is not its own, have more spares than it may. Memory can be short in other calls.
 */
#ifndef FF_FUZZ_FAKE_SYSTEM_H
#define FF_FUZZ_FAKE_SYSTEM_H

#include <signal.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/types.h>
#include <sys/wait.h>

#include "ff_child.h"
#include "ff_connection.h"
#include "ff_options.h"
#include "ff_spare.h"
#include "ff_tree.h"
#include "invariant.h"

#define FAKE_MAX_CHILDREN 512
#define FAKE_MAX_MAPPINGS 4
#define FAKE_KILL_ROUNDS 2        /* that it takes until nobody is left below a child */
#define FAKE_FIRST_PID 0x40000000 /* beyond what the kernel gives out */

/* What the system may lack memory for, or room for descriptors on their way. */
enum fake_call {
    FAKE_ALLOCATION,
    FAKE_RECVMSG,
    FAKE_SENDMSG,
    FAKE_SENDMSG_FD,
    FAKE_EPOLL_CTL,
    FAKE_CALLS, /* how many there are */
};

struct fake_child {
    pid_t pid;
    enum { FAKE_ALIVE, FAKE_DEAD, FAKE_REAPED } state;
    int status;        /* as wait(2) gives it */
    bool is_stranger;  /* not forked by the server's own fork: a subprocess of a preloaded module */
    bool is_stolen;    /* reaped by somebody else */
    bool is_killed;    /* by the server */
    const void *owner; /* the target's: whom the server told of it */
    uint32_t id;       /* likewise: of the request */
    bool exit_is_told; /* likewise */
    bool is_on_demand; /* it has options to apply before it begins */
    bool is_spare;     /* forked ahead of any request */
    bool is_stopped;   /* it says nothing, and can be killed */
    bool has_request;  /* that of `id_to_serve` */
    bool has_begun;    /* with that */
    bool is_unfit;     /* it has said that it could not */
    uint32_t id_to_serve;
    bool is_for_pidfd;   /* of a spare: its request wants one */
    bool is_old;         /* likewise: it lacks what its server has loaded since */
    unsigned looks;      /* of the server, in vain, until it says something; 0: it does not */
    unsigned late_words; /* which is the target's */
    bool is_disowned;    /* it has said it after its client had gone */
    int sock;            /* on which one that is on demand or a spare says so, or -1 */
};

static struct fake_system {
    bool serving; /* else the calls are the kernel's */
    struct fake_child children[FAKE_MAX_CHILDREN];
    size_t count;
    size_t limit;
    size_t max_unreaped;         /* that the server may have; 0: no limit */
    size_t max_spares;           /* that it may have, and that have no request */
    unsigned tree_kills;         /* rounds of the server's, of all children */
    uint32_t id_to_favour;       /* of a request whose child may be the last one */
    uint32_t next_id;            /* of the request for which the next fork is */
    bool next_is_spare;          /* it is for none */
    void (*served)(uint32_t id); /* the target's: a child does from now on what this request asks for */
    void (*say)(struct fake_child *child, unsigned words); /* likewise: a child tells the server */
    int fork_error;                                        /* what the next fork fails with, or 0 */
    bool fork_as_child;                                    /* the next fork returns in the child */
    bool is_child;                                         /* it has done so */
    int sock;               /* of the child that is forked next, if it has options, or -1 */
    bool reuse_pid;         /* the next fork gets the pid of the last child that was reaped */
    long long milliseconds; /* what the clock says */
    struct fake_shortage {
        enum fake_call call;
        unsigned count; /* of calls to come that fail */
    } shortage;
    struct fake_mapping {
        void *start; /* NULL: none */
        size_t size;
    } mappings[FAKE_MAX_MAPPINGS];
} fake;

pid_t __real_fork(void);
int __real_waitid(idtype_t type, id_t id, siginfo_t *info, int options);
pid_t __real_wait4(pid_t pid, int *status, int options, struct rusage *usage);
int __real_kill(pid_t pid, int number);
int __real_ff_pidfd_open(int pid);
int __real_clock_gettime(clockid_t clock, struct timespec *time);
pid_t __wrap_fork(void);
int __wrap_waitid(idtype_t type, id_t id, siginfo_t *info, int options);
pid_t __wrap_wait4(pid_t pid, int *status, int options, struct rusage *usage);
int __wrap_kill(pid_t pid, int number);
int __wrap_ff_pidfd_open(int pid);
bool __wrap_ff_tree_kill(struct ff_tree *tree);
void __wrap_ff_tree_become_root(void);
int __real_ff_fd_socketpair(int ends[2]);
int __wrap_ff_fd_socketpair(int ends[2]);
pid_t __real_waitpid(pid_t pid, int *status, int options);
pid_t __wrap_waitpid(pid_t pid, int *status, int options);
struct ff_child *__real_ff_child_new(struct ff_connection *owner, uint32_t request_id);
struct ff_child *__wrap_ff_child_new(struct ff_connection *owner, uint32_t request_id);
int __real_ff_spare_has_begun(struct ff_child *child);
int __wrap_ff_spare_has_begun(struct ff_child *child);
struct ff_unfit __wrap_ff_options_apply(const unsigned char *payload, int *fds, size_t *fd_count,
                                        struct ff_applied *ret_applied);
/* It is this process that would become what a child is to be: fuzz_options.c is about that. */
struct ff_unfit __wrap_ff_options_apply(const unsigned char *payload, int *fds, size_t *fd_count,
                                        struct ff_applied *ret_applied)
{
    (void)fds;
    (void)fd_count;
    HOLDS(fake.is_child);
    memset(ret_applied, 0, sizeof *ret_applied);
    memcpy(&ret_applied->size, payload, sizeof ret_applied->size);
    return (struct ff_unfit){0};
}

int __wrap_clock_gettime(clockid_t clock, struct timespec *time);
void *__real_mmap(void *start, size_t size, int protection, int flags, int fd, off_t offset);
int __real_munmap(void *start, size_t size);
void *__wrap_mmap(void *start, size_t size, int protection, int flags, int fd, off_t offset);
int __wrap_munmap(void *start, size_t size);

static struct fake_child *fake_find(pid_t pid)
{
    for (size_t i = fake.count; i-- > 0;)
        if (fake.children[i].pid == pid && fake.children[i].state != FAKE_REAPED)
            return &fake.children[i];
    return NULL;
}

/* The target must have told the children of one pid apart before the next one gets it. */
static bool fake_is_over(const struct fake_child *child)
{
    bool is_of_no_request = child->is_stranger || (child->is_spare && !child->has_begun);

    return child->state == FAKE_REAPED && (is_of_no_request || child->owner != NULL);
}

/* A server cannot know that a pid is free whose child somebody else has reaped, unless the next child gets it. If a
 * stranger got it, it would be at the mercy of that somebody. */
static bool fake_is_free(pid_t pid, bool for_stranger)
{
    for (size_t i = 0; i < fake.count; i++) {
        const struct fake_child *child = &fake.children[i];

        if (child->pid == pid && (!fake_is_over(child) || (for_stranger && child->is_stolen)))
            return false;
    }
    return true;
}

static pid_t fake_next_pid(bool for_stranger)
{
    for (size_t i = fake.count; fake.reuse_pid && i-- > 0;)
        if (fake_is_free(fake.children[i].pid, for_stranger))
            return fake.children[i].pid;
    return FAKE_FIRST_PID + (pid_t)fake.count;
}

static struct fake_child *fake_bear(bool is_stranger)
{
    struct fake_child *child;

    if (fake.count >= fake.limit)
        return NULL;
    child = &fake.children[fake.count];
    *child = (struct fake_child){.pid = fake_next_pid(is_stranger), .is_stranger = is_stranger, .sock = -1};
    fake.reuse_pid = false;
    fake.count++;
    return child;
}

static void fake_hang_up(int *sock)
{
    if (*sock >= 0)
        close(*sock);
    *sock = -1;
}

static void fake_die(struct fake_child *child, int status)
{
    if (child->state != FAKE_ALIVE)
        return;
    fake_hang_up(&child->sock);
    child->state = FAKE_DEAD;
    child->status = status;
    raise(SIGCHLD);
}

static bool fake_is_own(const struct fake_child *child)
{
    return !child->is_stranger;
}

static bool fake_is_unreaped(const struct fake_child *child)
{
    return fake_is_own(child) && child->state != FAKE_REAPED;
}

/* Those that may not count as children yet, or any more, are not among them. */
static bool fake_is_surely_unreaped(const struct fake_child *child)
{
    return fake_is_unreaped(child) && !child->is_on_demand && !child->is_spare;
}

static bool fake_is_surely_own(const struct fake_child *child)
{
    return fake_is_own(child) && !child->is_on_demand && !child->is_spare;
}

static bool fake_is_unreaped_spare(const struct fake_child *child)
{
    return child->is_spare && child->state != FAKE_REAPED;
}

/* However long: its client waits for as long as it lives. */
static bool fake_is_silent(const struct fake_child *child)
{
    return child->is_on_demand && child->state == FAKE_ALIVE && child->sock >= 0;
}

/* Nobody has written to it, nor let go of it. */
static bool fake_is_idle_spare(const struct fake_child *child)
{
    char byte;

    return child->is_spare && child->sock >= 0 && !child->has_request &&
           recv(child->sock, &byte, 1, MSG_PEEK | MSG_DONTWAIT) < 0;
}

static bool fake_is_stolen(const struct fake_child *child)
{
    return child->is_stolen;
}

static size_t fake_count(bool (*counts)(const struct fake_child *child))
{
    size_t count = 0;

    for (size_t i = 0; i < fake.count; i++)
        count += counts(&fake.children[i]);
    return count;
}

/* A child that is to speak gets a duplicate of its end: the server closes the one that it has made. */
int __wrap_ff_fd_socketpair(int ends[2])
{
    int error;

    fake_hang_up(&fake.sock);
    error = __real_ff_fd_socketpair(ends);
    if (error == 0)
        fake.sock = fcntl(ends[1], F_DUPFD_CLOEXEC, 0);
    if (error == 0 && fake.sock < 0) {
        close(ends[0]);
        close(ends[1]);
        error = -EMFILE;
    }
    return error;
}

/* Its server has loaded something. */
static void fake_age(struct fake_child *child)
{
    child->is_old |= fake_is_idle_spare(child);
}

/* The server makes the record of a child right before it forks. */
struct ff_child *__wrap_ff_child_new(struct ff_connection *owner, uint32_t request_id)
{
    fake.next_is_spare = owner == NULL;
    fake.next_id = request_id;
    return __real_ff_child_new(owner, request_id);
}

static void fake_begin(struct fake_child *child)
{
    child->has_begun = true;
    fake.served(child->id_to_serve);
}

/* What a child is that has just been born. */
static void fake_raise(struct fake_child *child)
{
    child->sock = fake.sock;
    fake.sock = -1;
    child->is_spare = fake.next_is_spare;
    child->is_on_demand = !child->is_spare && child->sock >= 0;
    child->has_request = !child->is_spare;
    child->id_to_serve = fake.next_id;
    if (child->sock < 0)
        fake_begin(child);
}

/* Others run while the server does. */
int __wrap_ff_spare_has_begun(struct ff_child *looked_at)
{
    struct fake_child *child = fake_find(looked_at->pid);
    int begun = __real_ff_spare_has_begun(looked_at);

    if (begun == 0 && child != NULL && child->looks > 0 && --child->looks == 0) {
        child->is_disowned = looked_at->owner == NULL || looked_at->owner->state == FF_CONNECTION_GONE;
        fake.say(child, child->late_words);
    }
    return begun;
}

static void check_fork(void)
{
    if (fake.next_is_spare)
        HOLDS(fake_count(fake_is_idle_spare) < fake.max_spares);
    else
        HOLDS(fake.max_unreaped == 0 || fake_count(fake_is_surely_unreaped) < fake.max_unreaped);
}

pid_t __wrap_fork(void)
{
    struct fake_child *child = NULL;

    if (!fake.serving)
        return __real_fork();
    check_fork();
    if (fake.fork_as_child) {
        fake.is_child = true;
        return 0;
    }
    if (fake.fork_error == 0 && (fake.count + 1 < fake.limit || fake.next_id == fake.id_to_favour))
        child = fake_bear(false);
    errno = fake.fork_error != 0 ? fake.fork_error : EAGAIN;
    fake.fork_error = 0;
    if (child == NULL) {
        fake_hang_up(&fake.sock);
        return -1;
    }
    fake_raise(child);
    return child->pid;
}

/* What there is to be known of one child, which stays as it is. */
static int fake_look_at(pid_t pid, siginfo_t *info, int what)
{
    const struct fake_child *child = fake_find(pid);
    bool is_dead;

    errno = ECHILD;
    if (child == NULL || child->is_stranger)
        return -1;
    is_dead = child->state == FAKE_DEAD;
    if (is_dead && !(what & WEXITED))
        return -1;
    info->si_pid = is_dead || (what & WSTOPPED && child->is_stopped) ? pid : 0;
    return 0;
}

int __wrap_waitid(idtype_t type, id_t id, siginfo_t *info, int options)
{
    bool any = false;

    if (!fake.serving)
        return __real_waitid(type, id, info, options);
    if (type == P_PID) {
        EQUAL(options & ~(WEXITED | WSTOPPED), WNOHANG | WNOWAIT);
        return fake_look_at((pid_t)id, info, options);
    }
    EQUAL(type, P_ALL);
    EQUAL(options, WEXITED | WNOHANG | WNOWAIT);
    for (size_t i = 0; i < fake.count; i++) {
        any |= fake.children[i].state != FAKE_REAPED;
        if (fake.children[i].state != FAKE_DEAD)
            continue;
        info->si_pid = fake.children[i].pid;
        return 0;
    }
    errno = ECHILD;
    return any ? 0 : -1;
}

pid_t __wrap_wait4(pid_t pid, int *status, int options, struct rusage *usage)
{
    struct fake_child *child;

    if (!fake.serving)
        return __real_wait4(pid, status, options, usage);
    HOLDS(pid > 0);
    EQUAL(options, WNOHANG);
    child = fake_find(pid);
    if (child == NULL) {
        errno = ECHILD;
        return -1;
    }
    HOLDS(!child->is_stranger);
    if (child->state == FAKE_ALIVE)
        return 0;
    child->state = FAKE_REAPED;
    *status = child->status;
    *usage = (struct rusage){0};
    return pid;
}

/* Of a spare that it has killed. */
pid_t __wrap_waitpid(pid_t pid, int *status, int options)
{
    struct fake_child *child;

    if (!fake.serving)
        return __real_waitpid(pid, status, options);
    HOLDS(pid > 0);
    child = fake_find(pid);
    if (child == NULL) {
        errno = ECHILD;
        return -1;
    }
    EQUAL(child->state, FAKE_DEAD);
    HOLDS(child->is_spare || child->is_on_demand);
    child->state = FAKE_REAPED;
    return pid;
}

/* Whether somebody else has reaped it: the server cannot know. */
static bool fake_was_stolen(pid_t pid)
{
    for (size_t i = 0; i < fake.count; i++)
        if (fake.children[i].pid == pid && fake.children[i].is_stolen)
            return true;
    return false;
}

int __wrap_kill(pid_t pid, int number)
{
    struct fake_child *child;

    if (!fake.serving)
        return __real_kill(pid, number);
    child = fake_find(pid);
    if (child == NULL && fake_was_stolen(pid)) {
        errno = ESRCH;
        return -1;
    }
    if (child == NULL || child->is_stranger)
        broken(__FILE__, __LINE__, "signal %d for %d, which is no child of the server", number, (int)pid);
    HOLDS(!child->is_spare || !child->has_begun || child->is_for_pidfd || child->is_disowned);
    if (number == SIGKILL)
        fake_die(child, SIGKILL);
    return 0;
}

/* One round, as ff_tree.h draws it. */
bool __wrap_ff_tree_kill(struct ff_tree *tree)
{
    struct fake_child *child = fake_find(tree->root);

    HOLDS(fake.serving);
    HOLDS(child != NULL || fake_was_stolen(tree->root));
    if (child == NULL || child->state == FAKE_DEAD)
        return true;
    HOLDS(!child->is_stranger);
    child->is_killed = true;
    fake.tree_kills++;
    if (++tree->rounds == FAKE_KILL_ROUNDS)
        fake_die(child, SIGKILL);
    return false;
}

void __wrap_ff_tree_become_root(void)
{
    HOLDS(fake.is_child);
}

int __wrap_clock_gettime(clockid_t clock, struct timespec *time)
{
    if (!fake.serving)
        return __real_clock_gettime(clock, time);
    *time = (struct timespec){
        .tv_sec = fake.milliseconds / 1000,
        .tv_nsec = fake.milliseconds % 1000 * 1000000,
    };
    return 0;
}

/* A descriptor like another; nobody can do harm with it. */
int __wrap_ff_pidfd_open(int pid)
{
    int fd;

    if (!fake.serving)
        return __real_ff_pidfd_open(pid);
    if (fake_find(pid) == NULL)
        return -ESRCH;
    fd = eventfd(0, EFD_CLOEXEC);
    return fd < 0 ? -errno : fd;
}

/* ---- shortages ---- */

static bool fake_fails(enum fake_call call, int error)
{
    if (!fake.serving || fake.shortage.call != call || fake.shortage.count == 0)
        return false;
    fake.shortage.count--;
    errno = error;
    return true;
}

void *__real_malloc(size_t size);
void *__real_calloc(size_t count, size_t size);
void *__real_realloc(void *memory, size_t size);
ssize_t __real_recvmsg(int sock, struct msghdr *message, int flags);
ssize_t __real_sendmsg(int sock, const struct msghdr *message, int flags);
int __real_epoll_ctl(int epoll_fd, int operation, int fd, struct epoll_event *event);
void *__wrap_malloc(size_t size);
void *__wrap_calloc(size_t count, size_t size);
void *__wrap_realloc(void *memory, size_t size);
ssize_t __wrap_recvmsg(int sock, struct msghdr *message, int flags);
ssize_t __wrap_sendmsg(int sock, const struct msghdr *message, int flags);
int __wrap_epoll_ctl(int epoll_fd, int operation, int fd, struct epoll_event *event);

void *__wrap_malloc(size_t size)
{
    return fake_fails(FAKE_ALLOCATION, ENOMEM) ? NULL : __real_malloc(size);
}

void *__wrap_calloc(size_t count, size_t size)
{
    return fake_fails(FAKE_ALLOCATION, ENOMEM) ? NULL : __real_calloc(count, size);
}

void *__wrap_realloc(void *memory, size_t size)
{
    return fake_fails(FAKE_ALLOCATION, ENOMEM) ? NULL : __real_realloc(memory, size);
}

ssize_t __wrap_recvmsg(int sock, struct msghdr *message, int flags)
{
    return fake_fails(FAKE_RECVMSG, ENOMEM) ? -1 : __real_recvmsg(sock, message, flags);
}

ssize_t __wrap_sendmsg(int sock, const struct msghdr *message, int flags)
{
    if (fake_fails(FAKE_SENDMSG, ENOBUFS))
        return -1;
    if (message->msg_controllen > 0 && fake_fails(FAKE_SENDMSG_FD, ETOOMANYREFS))
        return -1;
    return __real_sendmsg(sock, message, flags);
}

int __wrap_epoll_ctl(int epoll_fd, int operation, int fd, struct epoll_event *event)
{
    if (operation != EPOLL_CTL_DEL && fake_fails(FAKE_EPOLL_CTL, ENOMEM))
        return -1;
    return __real_epoll_ctl(epoll_fd, operation, fd, event);
}

/* ---- mappings ---- */

static struct fake_mapping *fake_find_mapping(const void *start)
{
    size_t i = 0;

    while (i < FAKE_MAX_MAPPINGS && fake.mappings[i].start != start)
        i++;
    HOLDS(i < FAKE_MAX_MAPPINGS);
    return &fake.mappings[i];
}

void *__wrap_mmap(void *start, size_t size, int protection, int flags, int fd, off_t offset)
{
    void *mapped = __real_mmap(start, size, protection, flags, fd, offset);

    if (mapped != MAP_FAILED)
        *fake_find_mapping(NULL) = (struct fake_mapping){mapped, size};
    return mapped;
}

int __wrap_munmap(void *start, size_t size)
{
    struct fake_mapping *mapping = fake_find_mapping(start);

    EQUAL(size, mapping->size);
    mapping->start = NULL;
    return __real_munmap(start, size);
}

/* A child has none of what its server has mapped, but here they are one process. */
static void fake_unmap(void)
{
    for (size_t i = 0; i < FAKE_MAX_MAPPINGS; i++) {
        if (fake.mappings[i].start == NULL)
            continue;
        HOLDS(fake.is_child);
        __real_munmap(fake.mappings[i].start, fake.mappings[i].size);
    }
}

#endif
