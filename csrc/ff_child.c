/* ff_child.c: the children that the server forked for requests, and their exit codes. */
#define _GNU_SOURCE

#include "ff_child.h"

#include <sys/wait.h>

#include "ff_fd.h"
#include "ff_util.h"

struct ff_child *ff_child_new(struct ff_connection *owner, uint32_t request_id)
{
    struct ff_child *child = calloc(1, sizeof *child);

    if (child == NULL)
        return NULL;
    child->owner = owner;
    child->request_id = request_id;
    child->held_fd = child->spare_sock = child->pidfd = -1;
    return child;
}

void ff_child_free(struct ff_child *child)
{
    ff_fd_drop(&child->held_fd);
    ff_close(&child->spare_sock);
    ff_close(&child->pidfd);
    free(child);
}

static struct ff_child **bucket_of(struct ff_children *children, pid_t pid)
{
    return &children->buckets[(size_t)pid % FF_CHILD_BUCKETS];
}

static struct ff_child **find(struct ff_children *children, pid_t pid)
{
    struct ff_child **link = bucket_of(children, pid);

    while (*link != NULL && (*link)->pid != pid)
        link = &(*link)->next;
    return *link == NULL ? NULL : link;
}

static void disown(struct ff_children *children, struct ff_child *child)
{
    child->owner = NULL;
    if (!child->dies_with_client)
        return;
    child->tree = (struct ff_tree){.root = child->pid};
    child->next_doomed = children->doomed;
    children->doomed = child;
}

void ff_children_disown(struct ff_children *children, const struct ff_connection *owner)
{
    for (size_t i = 0; i < FF_CHILD_BUCKETS; i++)
        for (struct ff_child *child = children->buckets[i]; child != NULL; child = child->next)
            if (child->owner == owner)
                disown(children, child);
}

/* Those that are not dead yet go to the end: none waits for another one's last round. */
void ff_children_kill_doomed(struct ff_children *children)
{
    struct ff_child *unfinished = NULL;
    struct ff_child **link;

    for (int i = 0; i < FF_CHILD_KILLS && children->doomed != NULL; i++) {
        struct ff_child *child = children->doomed;

        children->doomed = child->next_doomed;
        if (!ff_tree_kill(&child->tree)) {
            child->next_doomed = unfinished;
            unfinished = child;
        }
    }
    for (link = &children->doomed; *link != NULL; link = &(*link)->next_doomed)
        continue;
    *link = unfinished;
}

/* It has died before it was killed. */
static void forget_doomed(struct ff_children *children, const struct ff_child *child)
{
    struct ff_child **link = &children->doomed;

    while (*link != NULL && *link != child)
        link = &(*link)->next_doomed;
    if (*link != NULL)
        *link = child->next_doomed;
}

static int decode_status(int status)
{
    return WIFSIGNALED(status) ? -WTERMSIG(status) : WEXITSTATUS(status);
}

/* Its pid may be another's as soon as it is reaped, and by the sentinel its client knows whether it may signal it: so
 * that ends before. False where the child lives. */
static bool end_sentinel(struct ff_child *child)
{
    siginfo_t info = {0};

    if (child->held_fd < 0 || child->stream)
        return true;
    if (FF_RETRY_EINTR(waitid(P_PID, (id_t)child->pid, &info, WEXITED | WNOHANG | WNOWAIT)) < 0) {
        if (errno != ECHILD)
            return true; /* wait4() will say why */
    } else if (info.si_pid == 0) {
        return false;
    }
    ff_fd_end(&child->held_fd);
    return true;
}

/* Reap this child if it is dead: true, and its exit code is known. */
static bool reap_one(struct ff_children *children, struct ff_child *child)
{
    int status;
    pid_t pid = end_sentinel(child) ? FF_RETRY_EINTR(wait4(child->pid, &status, WNOHANG, &child->usage)) : 0;

    if (pid < 0 && errno != ECHILD)
        children->is_suspicious = true; /* to be asked for again: its signal has come already */
    if (pid == 0 || (pid < 0 && errno != ECHILD))
        return false;
    child->exit_code = pid < 0 ? FF_EXIT_CODE_LOST : decode_status(status);
    return true;
}

/* Move a child from its bucket to the end of the list of dead ones. */
static struct ff_child **move(struct ff_children *children, struct ff_child **link, struct ff_child **tail)
{
    struct ff_child *child = *link;

    *link = child->next;
    child->next = NULL;
    child->is_dead = true;
    children->count--;
    children->spare_count -= child->is_spare;
    forget_doomed(children, child);
    *tail = child;
    return &child->next;
}

/* A pid that is given away again is free: whoever had it is dead, and somebody else has reaped it. */
static void part_from_namesake(struct ff_children *children, pid_t pid)
{
    struct ff_child **link = find(children, pid);
    struct ff_child *others = children->lost;

    if (link == NULL)
        return;
    (*link)->exit_code = FF_EXIT_CODE_LOST;
    *move(children, link, &children->lost) = others;
    children->is_suspicious = true;
}

void ff_children_add(struct ff_children *children, struct ff_child *child)
{
    struct ff_child **bucket = bucket_of(children, child->pid);

    part_from_namesake(children, child->pid);
    child->next = *bucket;
    *bucket = child;
    children->count++;
    children->spare_count += child->is_spare;
}

void ff_children_adopt_spare(struct ff_children *children, struct ff_child *child)
{
    children->spare_count -= !child->is_dead;
    child->is_spare = false;
}

static struct ff_child **reap_all(struct ff_children *children, struct ff_child **tail)
{
    for (size_t i = 0; i < FF_CHILD_BUCKETS; i++) {
        struct ff_child **link = &children->buckets[i];

        while (*link != NULL) {
            if (reap_one(children, *link))
                tail = move(children, link, tail);
            else
                link = &(*link)->next;
        }
    }
    return tail;
}

/* The pid of a dead child of this process, which is left as it is; 0 when there is none, -1 when there are
 * no children at all: somebody else has reaped those in the table. */
static pid_t peek_dead(void)
{
    siginfo_t info = {0};

    if (FF_RETRY_EINTR(waitid(P_ALL, 0, &info, WEXITED | WNOHANG | WNOWAIT)) < 0)
        return -1;
    return info.si_pid;
}

/* waitpid(-1) would also take the exit status of a subprocess that a preloaded module started. So look
 * before reaping; only while such a stranger's corpse stands in front is each child asked by itself. */
struct ff_child *ff_children_reap(struct ff_children *children, pid_t likely)
{
    struct ff_child *dead = NULL;
    struct ff_child **tail = &dead;
    struct ff_child **link = find(children, likely);
    pid_t pid;

    if (link != NULL && reap_one(children, *link))
        tail = move(children, link, tail);
    while (children->count > 0 && (pid = peek_dead()) != 0) {
        link = find(children, pid);
        if (link == NULL || !reap_one(children, *link)) {
            tail = reap_all(children, tail);
            break;
        }
        tail = move(children, link, tail);
    }
    children->is_suspicious |= dead == NULL && children->count > 0;
    return dead;
}

struct ff_child *ff_children_reap_each(struct ff_children *children)
{
    struct ff_child *dead = NULL;
    struct ff_child **tail;

    children->is_suspicious = false;
    tail = reap_all(children, &dead);
    *tail = children->lost;
    children->lost = NULL;
    return dead;
}

void ff_children_await_spares(struct ff_children *children)
{
    for (size_t i = 0; i < FF_CHILD_BUCKETS && children->spare_count > 0; i++) {
        struct ff_child **link = &children->buckets[i];

        while (*link != NULL) {
            struct ff_child *child = *link;
            struct ff_child *removed = NULL;

            if (!child->is_spare || child->spare_sock >= 0) {
                link = &child->next;
                continue;
            }
            FF_RETRY_EINTR(waitpid(child->pid, NULL, 0));
            move(children, link, &removed);
            ff_child_free(child);
        }
    }
}

struct ff_child *ff_children_take_lost(struct ff_children *children)
{
    struct ff_child *lost = children->lost;

    children->lost = NULL;
    return lost;
}

static size_t add_fds_of(const struct ff_child *child, int *fds, size_t count)
{
    if (child->held_fd >= 0)
        fds[count++] = child->held_fd;
    if (child->spare_sock >= 0)
        fds[count++] = child->spare_sock;
    if (child->pidfd >= 0)
        fds[count++] = child->pidfd;
    return count;
}

size_t ff_children_held_fds(const struct ff_children *children, int *ret_fds)
{
    size_t count = 0;

    for (size_t i = 0; i < FF_CHILD_BUCKETS; i++)
        for (const struct ff_child *child = children->buckets[i]; child != NULL; child = child->next)
            count = add_fds_of(child, ret_fds, count);
    return count;
}

void ff_children_forget_fds(struct ff_children *children)
{
    for (size_t i = 0; i < FF_CHILD_BUCKETS; i++)
        for (struct ff_child *child = children->buckets[i]; child != NULL; child = child->next)
            child->held_fd = child->spare_sock = child->pidfd = -1;
}

void ff_children_clear(struct ff_children *children)
{
    for (size_t i = 0; i < FF_CHILD_BUCKETS; i++) {
        while (children->buckets[i] != NULL) {
            struct ff_child *child = children->buckets[i];

            children->buckets[i] = child->next;
            ff_child_free(child);
        }
    }
    while (children->lost != NULL) {
        struct ff_child *child = children->lost;

        children->lost = child->next;
        ff_child_free(child);
    }
    children->count = 0;
    children->doomed = NULL;
}
