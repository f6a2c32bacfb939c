/* ff_tree.c: kill a child of this process and everything below it. */
#define _GNU_SOURCE

#include "ff_tree.h"

#include <signal.h>
#include <sys/wait.h>

#include "ff_util.h"

#ifdef __linux__
#include <ctype.h>
#include <dirent.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/syscall.h>

#include "ff_abi.h"

#define PATH_SIZE 64  /* "/proc/PID/task/TID/children" */
#define STAT_SIZE 128 /* "PID (NAME) STATE PPID": the name has at most 64 bytes */

struct member {
    pid_t pid;
    pid_t parent;
};

/* The root and those below it, parents first. */
struct members {
    struct member list[FF_TREE_BATCH];
    size_t count;
    bool is_partial; /* the system could not tell of somebody: for want of a descriptor, say */
};

void ff_tree_become_root(void)
{
    prctl(PR_SET_CHILD_SUBREAPER, 1L, 0L, 0L, 0L);
}

/* ---- what /proc tells ---- */

struct process {
    char state;
    pid_t parent;
};

/* A name may hold anything, brackets too: what follows begins behind the last one. */
static bool parse_stat(const char *text, struct process *ret_process)
{
    const char *end = strrchr(text, ')');
    int parent;

    if (end == NULL || sscanf(end + 1, " %c %d", &ret_process->state, &parent) != 2)
        return false;
    ret_process->parent = parent;
    return true;
}

/* -ENOENT or -ESRCH: it is no more. */
static int read_process(const char *path, struct process *ret_process)
{
    char text[STAT_SIZE];
    FF_CLEANUP(ff_close) int fd = open(path, O_RDONLY | O_CLOEXEC);
    ssize_t size = fd < 0 ? -1 : FF_RETRY_EINTR(read(fd, text, sizeof text - 1));

    if (size < 0)
        return -errno;
    text[size] = '\0';
    return parse_stat(text, ret_process) ? 0 : -ESRCH;
}

static bool is_gone(int error)
{
    return error == -ENOENT || error == -ESRCH;
}

static bool is_dead(const struct process *process)
{
    return process->state == 'Z' || tolower(process->state) == 'x';
}

/* 1 or 0, or -errno where that cannot be told. */
static int is_live_child(pid_t pid, pid_t parent)
{
    char path[PATH_SIZE];
    struct process process;
    int error;

    snprintf(path, sizeof path, "/proc/%d/stat", (int)pid);
    error = read_process(path, &process);
    if (error < 0)
        return is_gone(error) ? 0 : error;
    return process.parent == parent && !is_dead(&process);
}

/* Some kernels are built without these files, and /proc may be missing or shut. What is wrong for a while, memory that
 * lacks, does not say so: then looking for the children fails too, and is tried again. */
static bool can_list_children(void)
{
    char path[PATH_SIZE];

    snprintf(path, sizeof path, "/proc/self/task/%ld/children", (long)syscall(SYS_gettid));
    return access(path, R_OK) == 0 ||
           (errno != ENOENT && errno != ENOTDIR && errno != EACCES && errno != EPERM);
}

/* Call visit(pid, tid, arg) for each thread of a process until it returns false: whether it never did, or -errno where
 * the system did not tell of all. */
static int each_thread(pid_t pid, bool (*visit)(pid_t pid, pid_t tid, void *arg), void *arg)
{
    char path[PATH_SIZE];
    DIR *threads;
    struct dirent *entry;
    int result = 1;

    snprintf(path, sizeof path, "/proc/%d/task", (int)pid);
    threads = opendir(path);
    if (threads == NULL)
        return -errno;
    for (errno = 0; result > 0 && (entry = readdir(threads)) != NULL; errno = 0) {
        int tid = atoi(entry->d_name);

        if (tid > 0)
            result = visit(pid, tid, arg);
    }
    if (result > 0 && errno != 0)
        result = -errno;
    closedir(threads);
    return result;
}

static bool thread_has_stopped(pid_t pid, pid_t tid, void *arg)
{
    char path[PATH_SIZE];
    struct process thread;
    int error;

    (void)arg;
    snprintf(path, sizeof path, "/proc/%d/task/%d/stat", (int)pid, (int)tid);
    error = read_process(path, &thread);
    return error < 0 ? is_gone(error) : is_dead(&thread) || tolower(thread.state) == 't';
}

/* ---- signals to who is meant ---- */

/* A pidfd, opened before the look at /proc, cannot come to mean another process after it. */
static bool signal_by_pidfd(int pidfd, int signal_number)
{
#ifdef SYS_pidfd_send_signal
    return pidfd >= 0 &&
           (syscall(SYS_pidfd_send_signal, pidfd, signal_number, NULL, 0u) == 0 || errno == ESRCH);
#else
    (void)pidfd;
    (void)signal_number;
    return false;
#endif
}

/* Without pidfds the pid may become another's between look and signal. What has stopped keeps its pid, so a
 * second look tells; whoever was stopped by mistake goes on. */
static bool signal_by_pid(struct member member, int signal_number)
{
    if (kill(member.pid, signal_number) < 0)
        return false;
    if (signal_number != SIGSTOP || is_live_child(member.pid, member.parent) > 0)
        return true;
    kill(member.pid, SIGCONT);
    return false;
}

/* Whether it was there to be told, or -errno where that cannot be known. */
static int signal_member(struct member member, int signal_number)
{
    FF_CLEANUP(ff_close) int pidfd = ff_pidfd_open((int)member.pid);
    int is_there = pidfd == -ESRCH ? 0 : is_live_child(member.pid, member.parent);

    if (is_there <= 0)
        return is_there;
    return signal_by_pidfd(pidfd, signal_number) || signal_by_pid(member, signal_number);
}

/* ---- a round ---- */

static bool add_children(pid_t pid, pid_t tid, void *arg)
{
    struct members *members = arg;
    char path[PATH_SIZE];
    FILE *file;
    int child;

    snprintf(path, sizeof path, "/proc/%d/task/%d/children", (int)pid, (int)tid);
    file = fopen(path, "re");
    if (file == NULL)
        return is_gone(-errno); /* the thread has just ended: its children are another thread's now */
    while (members->count < FF_TREE_BATCH && fscanf(file, "%d", &child) == 1) {
        struct member member = {.pid = child, .parent = pid};
        int is_told = signal_member(member, SIGSTOP);

        members->is_partial |= is_told < 0;
        if (is_told > 0)
            members->list[members->count++] = member;
    }
    members->is_partial |= ferror(file) != 0;
    fclose(file);
    return true;
}

/* Each is stopped before those below it are looked for. */
static void stop_all(pid_t root, struct members *members)
{
    members->list[0] = (struct member){.pid = root, .parent = getpid()};
    members->count = 1;
    members->is_partial = false;
    for (size_t i = 0; i < members->count; i++) {
        int result = each_thread(members->list[i].pid, add_children, members);

        members->is_partial |= result <= 0 && !is_gone(result);
    }
}

static bool kill_those_below(pid_t root)
{
    struct members members;
    bool had_stopped = each_thread(root, thread_has_stopped, NULL) > 0;

    stop_all(root, &members);
    for (size_t i = members.count; i-- > 1;)
        signal_member(members.list[i], SIGKILL);
    return had_stopped && members.count == 1 && !members.is_partial;
}

#else

void ff_tree_become_root(void)
{
}

static bool can_list_children(void)
{
    return false;
}

static bool kill_those_below(pid_t root)
{
    (void)root;
    return true;
}

#endif

/* A child of this process keeps its pid until this process reaps it. */
static bool is_live_own_child(pid_t pid)
{
    siginfo_t info = {0};

    if (FF_RETRY_EINTR(waitid(P_PID, (id_t)pid, &info, WEXITED | WNOHANG | WNOWAIT)) < 0)
        return errno != ECHILD;
    return info.si_pid == 0;
}

bool ff_tree_kill(struct ff_tree *tree)
{
    if (!is_live_own_child(tree->root) || ++tree->rounds > FF_TREE_ROUNDS)
        return true;
    if (!tree->is_bare && tree->rounds < FF_TREE_ROUNDS && can_list_children()) {
        kill(tree->root, SIGSTOP);
        tree->is_bare = kill_those_below(tree->root);
    } else {
        tree->is_bare = true;
    }
    if (tree->is_bare)
        kill(tree->root, SIGKILL);
    return false;
}
