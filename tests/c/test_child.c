/* test_child.c: the table of children: reaping ours alone, exit codes, what is held for each. */
#include "ff_child.h"
#include "io.h"

#include <signal.h>

/* Only its address matters here: the table compares owners and never looks into them. */
static char owners[2];
#define OWNER(i) ((struct ff_connection *)&owners[i])

static void wait_on(int fd)
{
    char byte;

    CHECK_INT(read(fd, &byte, 1), 0);
}

/* A child that ends by a signal or with a code as soon as the write end of the gate is closed. */
static pid_t fork_waiting(const int gate[2], int code)
{
    pid_t pid = fork();

    CHECK(pid >= 0);
    if (pid != 0)
        return pid;
    if (gate != NULL) {
        close(gate[1]);
        wait_on(gate[0]);
    }
    if (code < 0)
        raise(-code);
    _exit(code);
}

static void await_zombie(pid_t pid)
{
    siginfo_t info;

    CHECK_INT(waitid(P_PID, (id_t)pid, &info, WEXITED | WNOWAIT), 0);
}

static struct ff_child *add(struct ff_children *children, pid_t pid, uint32_t request_id)
{
    struct ff_child *child = ff_child_new(OWNER(0), request_id);

    CHECK(child != NULL);
    CHECK_INT(child->held_fd, -1);
    child->pid = pid;
    ff_children_add(children, child);
    return child;
}

/* Exactly one has been reaped, and which. */
static void check_reaped(struct ff_children *children, uint32_t request_id, int exit_code)
{
    struct ff_child *child = ff_children_reap(children, -1);

    CHECK(child != NULL && child->next == NULL);
    CHECK_INT(child->request_id, request_id);
    CHECK_INT(child->exit_code, exit_code);
    ff_child_free(child);
}

static void test_exit_codes(void)
{
    static const int codes[] = {0, 1, 77, 127, 128, 255, -SIGKILL, -SIGTERM, -SIGUSR1, -SIGABRT};
    struct ff_children children = {.count = 0};

    for (size_t i = 0; i < sizeof codes / sizeof *codes; i++) {
        pid_t pid = fork_waiting(NULL, codes[i]);

        add(&children, pid, (uint32_t)i);
        await_zombie(pid);
        check_reaped(&children, (uint32_t)i, codes[i]);
        CHECK_INT(children.count, 0);
    }
}

/* A process that has touched `size` bytes of its own. */
static pid_t fork_touching(size_t size)
{
    pid_t pid = fork();
    char *memory;

    CHECK(pid >= 0);
    if (pid != 0)
        return pid;
    memory = malloc(size);
    if (memory == NULL)
        _exit(1);
    for (size_t i = 0; i < size; i += 1024)
        *(volatile char *)(memory + i) = 1;
    _exit(0);
}

static void test_usage(void)
{
    struct ff_children children = {.count = 0};
    const size_t size = (size_t)16 << 20;
    pid_t pid = fork_touching(size);
    struct ff_child *child;

    add(&children, pid, 1);
    await_zombie(pid);
    child = ff_children_reap(&children, -1);
    CHECK(child != NULL);
    CHECK_INT(child->exit_code, 0);
    CHECK((size_t)child->usage.ru_maxrss >= size / 1024);
    ff_child_free(child);
}

static void test_nobody_to_reap(void)
{
    struct ff_children children = {.count = 0};

    CHECK(ff_children_reap(&children, -1) == NULL);
}

static void test_live_ones_stay(void)
{
    struct ff_children children = {.count = 0};
    int gate[2];
    pid_t waiting;
    pid_t dead;

    make_pipe(gate);
    waiting = fork_waiting(gate, 4);
    dead = fork_waiting(NULL, 3);
    add(&children, waiting, 1);
    add(&children, dead, 2);
    await_zombie(dead);
    check_reaped(&children, 2, 3);
    CHECK_INT(children.count, 1);
    CHECK(ff_children_reap(&children, -1) == NULL);
    close_both(gate);
    await_zombie(waiting);
    check_reaped(&children, 1, 4);
}

static void test_many_at_once(void)
{
    struct ff_children children = {.count = 0};
    pid_t pids[30];
    int reaped = 0;

    for (int i = 0; i < 30; i++) {
        pids[i] = fork_waiting(NULL, i);
        add(&children, pids[i], (uint32_t)i);
    }
    for (int i = 0; i < 30; i++)
        await_zombie(pids[i]);
    for (struct ff_child *child = ff_children_reap(&children, -1); child != NULL; reaped++) {
        struct ff_child *next = child->next;

        CHECK_INT(child->exit_code, child->request_id);
        ff_child_free(child);
        child = next;
    }
    CHECK_INT(reaped, 30);
    CHECK_INT(children.count, 0);
}

/* The likely one comes first if it is dead, and the others are found all the same. */
static void test_likely_one_first(void)
{
    struct ff_children children = {.count = 0};
    struct ff_child *dead;
    int gate[2];
    pid_t pids[3];

    make_pipe(gate);
    for (uint32_t i = 0; i < 3; i++) {
        pids[i] = fork_waiting(i == 2 ? gate : NULL, (int)i);
        add(&children, pids[i], i);
    }
    await_zombie(pids[0]);
    await_zombie(pids[1]);
    dead = ff_children_reap(&children, pids[1]);
    CHECK(dead != NULL && dead->next != NULL && dead->next->next == NULL);
    CHECK_INT(dead->request_id, 1);
    CHECK_INT(dead->next->request_id, 0);
    ff_child_free(dead->next);
    ff_child_free(dead);
    CHECK(ff_children_reap(&children, pids[2]) == NULL);
    CHECK_INT(children.count, 1);
    close_both(gate);
    await_zombie(pids[2]);
    check_reaped(&children, 2, 2);
}

/* A subprocess of a preloaded module keeps its exit status, whether it died before our child or after it. */
static void check_stranger_is_left(bool stranger_first)
{
    struct ff_children children = {.count = 0};
    pid_t first = fork_waiting(NULL, stranger_first ? 5 : 3);
    pid_t second = fork_waiting(NULL, stranger_first ? 3 : 5);
    pid_t stranger = stranger_first ? first : second;

    add(&children, stranger_first ? second : first, 7);
    await_zombie(first);
    await_zombie(second);
    check_reaped(&children, 7, 3);
    CHECK(ff_children_reap(&children, -1) == NULL);
    CHECK_INT(WEXITSTATUS(await_status(stranger)), 5);
}

static void test_strangers_are_left(void)
{
    check_stranger_is_left(true);
    check_stranger_is_left(false);
}

/* The stranger's corpse stands in front, ours are found all the same, and the live one stays. */
static void test_several_behind_a_stranger(void)
{
    struct ff_children children = {.count = 0};
    int gate[2];
    pid_t stranger = fork_waiting(NULL, 5);
    pid_t waiting;

    make_pipe(gate);
    await_zombie(stranger);
    waiting = fork_waiting(gate, 0);
    add(&children, waiting, 1);
    for (uint32_t i = 2; i < 5; i++) {
        pid_t pid = fork_waiting(NULL, (int)i);

        add(&children, pid, i);
        await_zombie(pid);
        check_reaped(&children, i, (int)i);
    }
    close_both(gate);
    await_zombie(waiting);
    check_reaped(&children, 1, 0);
    CHECK_INT(WEXITSTATUS(await_status(stranger)), 5);
}

/* Somebody in the process waited for any child, and took ours. */
static void test_lost(void)
{
    struct ff_children children = {.count = 0};
    pid_t pid = fork_waiting(NULL, 3);

    add(&children, pid, 9);
    CHECK_INT(WEXITSTATUS(await_status(pid)), 3);
    check_reaped(&children, 9, FF_EXIT_CODE_LOST);
    CHECK_INT(children.count, 0);
}

/* A lost child is missed at the latest when the last other one dies. */
static void test_lost_beside_live(void)
{
    struct ff_children children = {.count = 0};
    int gate[2];
    pid_t waiting;
    pid_t lost;
    struct ff_child *dead;

    make_pipe(gate);
    waiting = fork_waiting(gate, 4);
    lost = fork_waiting(NULL, 3);
    add(&children, waiting, 1);
    add(&children, lost, 2);
    CHECK_INT(WEXITSTATUS(await_status(lost)), 3);
    close_both(gate);
    await_zombie(waiting);
    dead = ff_children_reap(&children, -1);
    CHECK(dead != NULL && dead->next != NULL && dead->next->next == NULL);
    CHECK_INT(dead->exit_code, 4);
    CHECK_INT(dead->next->exit_code, FF_EXIT_CODE_LOST);
    ff_child_free(dead->next);
    ff_child_free(dead);
}

/* The death is told, the corpse is not there: asking for each finds the lost one and leaves the other. */
static void test_lost_beside_live_at_once(void)
{
    struct ff_children children = {.count = 0};
    int gate[2];
    pid_t waiting;
    pid_t lost;
    struct ff_child *dead;

    make_pipe(gate);
    waiting = fork_waiting(gate, 4);
    lost = fork_waiting(NULL, 3);
    add(&children, waiting, 1);
    add(&children, lost, 2);
    CHECK(!children.is_suspicious);
    CHECK_INT(WEXITSTATUS(await_status(lost)), 3);
    CHECK(ff_children_reap(&children, -1) == NULL);
    CHECK(children.is_suspicious);
    dead = ff_children_reap_each(&children);
    CHECK(dead != NULL && dead->next == NULL);
    CHECK_INT(dead->request_id, 2);
    CHECK_INT(dead->exit_code, FF_EXIT_CODE_LOST);
    CHECK(!children.is_suspicious);
    ff_child_free(dead);
    close_both(gate);
    await_zombie(waiting);
    check_reaped(&children, 1, 4);
    CHECK(!children.is_suspicious);
}

/* Somebody else has reaped a child, and its pid has been given to another: each has its own end. */
static void test_pid_used_again(void)
{
    struct ff_children children = {.count = 0};
    pid_t pid = fork_waiting(NULL, 3);
    struct ff_child *old = add(&children, pid, 1);
    struct ff_child *dead;

    old->dies_with_client = true;
    ff_children_disown(&children, OWNER(0));
    CHECK(children.doomed == old);
    add(&children, pid, 2);
    CHECK(children.doomed == NULL); /* it is not its pid any more */
    CHECK_INT(children.count, 1);
    await_zombie(pid);
    check_reaped(&children, 2, 3);
    CHECK(children.is_suspicious);
    dead = ff_children_reap_each(&children);
    CHECK(dead == old && dead->next == NULL);
    CHECK_INT(dead->exit_code, FF_EXIT_CODE_LOST);
    ff_child_free(dead);
    add(&children, 0x7f000001, 3);
    add(&children, 0x7f000001, 4);
    ff_children_clear(&children);
}

/* Process ids that fall into one bucket; nobody has such a high one. */
static void test_one_bucket(void)
{
    struct ff_children children = {.count = 0};
    int reaped = 0;

    for (uint32_t i = 0; i < 3; i++)
        add(&children, (pid_t)(0x7f000000 + i * FF_CHILD_BUCKETS), i);
    CHECK_INT(children.count, 3);
    for (struct ff_child *child = ff_children_reap(&children, -1); child != NULL; reaped++) {
        struct ff_child *next = child->next;

        CHECK_INT(child->exit_code, FF_EXIT_CODE_LOST);
        ff_child_free(child);
        child = next;
    }
    CHECK_INT(reaped, 3);
    CHECK_INT(children.count, 0);
}

static void test_disown(void)
{
    struct ff_children children = {.count = 0};
    struct ff_child *mine = add(&children, 0x7f000001, 1);
    struct ff_child *other = add(&children, 0x7f000002, 2);

    other->owner = OWNER(1);
    ff_children_disown(&children, OWNER(0));
    CHECK(mine->owner == NULL);
    CHECK(other->owner == OWNER(1));
    ff_children_clear(&children);
}

static void test_held_fds(void)
{
    struct ff_children children = {.count = 0};
    int gone[2];
    int held[2];
    int found[3];

    make_pipe(held);
    make_pipe(gone);
    add(&children, 0x7f000001, 1)->held_fd = held[1];
    add(&children, 0x7f000002, 2);
    CHECK_INT(ff_children_held_fds(&children, found), 1);
    CHECK_INT(found[0], held[1]);
    ff_children_clear(&children);
    await_end(held[0]);

    add(&children, 0x7f000001, 1)->held_fd = gone[1];
    ff_children_forget_fds(&children);
    ff_children_clear(&children);
    CHECK(check_fd_is_open(gone[1]));
    close_both(gone);
    CHECK_INT(close(held[0]), 0);
}

/* The read end of the sentinel of a child that is about to be reaped, or -1. */
static int watched = -1;
static int reaps;

pid_t __real_wait4(pid_t pid, int *status, int options, struct rusage *usage);
pid_t __wrap_wait4(pid_t pid, int *status, int options, struct rusage *usage);

pid_t __wrap_wait4(pid_t pid, int *status, int options, struct rusage *usage)
{
    CHECK(watched < 0 || is_readable(watched));
    reaps++;
    return __real_wait4(pid, status, options, usage);
}

/* Who looks at the sentinel before a signal never sends it to another process that has got the pid. */
static void test_sentinel_ends_before_its_pid_is_free(void)
{
    struct ff_children children = {.count = 0};
    int gate[2];
    int held[2];
    pid_t pid;

    make_pipe(gate);
    make_pipe(held);
    pid = fork_waiting(gate, 3);
    add(&children, pid, 1)->held_fd = held[1];
    watched = held[0];
    reaps = 0;
    CHECK(ff_children_reap_each(&children) == NULL);
    CHECK(!is_readable(held[0]));
    CHECK_INT(reaps, 0);
    close_both(gate);
    await_zombie(pid);
    check_reaped(&children, 1, 3);
    CHECK_INT(reaps, 1);
    watched = -1;
    CHECK_INT(close(held[0]), 0);
}

/* A process that has just been forked has not closed yet what is not its own. */
static void test_sentinel_ends_whoever_else_holds_it(void)
{
    struct ff_children children = {.count = 0};
    int gate[2];
    int held[2];
    pid_t pid;
    pid_t holder;

    make_pipe(gate);
    make_pair(held);
    holder = fork_waiting(gate, 0);
    pid = fork_waiting(NULL, 3);
    add(&children, pid, 1)->held_fd = held[1];
    await_zombie(pid);
    watched = held[0];
    check_reaped(&children, 1, 3);
    watched = -1;
    close_both(gate);
    CHECK_INT(await_status(holder), 0);
    CHECK_INT(close(held[0]), 0);
}

/* Somebody in the process has reaped the child, and a process that was forked while it lived still holds a copy. */
static void test_sentinel_of_a_lost_child_ends_whoever_else_holds_it(void)
{
    struct ff_children children = {.count = 0};
    int gate[2];
    int held[2];
    pid_t pid = fork_waiting(NULL, 3);
    pid_t holder;
    struct ff_child *lost;

    make_pipe(gate);
    make_pair(held);
    holder = fork_waiting(gate, 0);
    add(&children, pid, 1)->held_fd = held[1];
    CHECK_INT(WEXITSTATUS(await_status(pid)), 3);
    lost = ff_children_reap_each(&children);
    CHECK_INT(lost->exit_code, FF_EXIT_CODE_LOST);
    ff_child_free(lost);
    CHECK(is_readable(held[0]));
    close_both(gate);
    CHECK_INT(await_status(holder), 0);
    CHECK_INT(close(held[0]), 0);
}

int main(void)
{
    RUN(test_exit_codes);
    RUN(test_usage);
    RUN(test_nobody_to_reap);
    RUN(test_live_ones_stay);
    RUN(test_many_at_once);
    RUN(test_likely_one_first);
    RUN(test_strangers_are_left);
    RUN(test_several_behind_a_stranger);
    RUN(test_lost);
    RUN(test_lost_beside_live);
    RUN(test_lost_beside_live_at_once);
    RUN(test_pid_used_again);
    RUN(test_one_bucket);
    RUN(test_disown);
    RUN(test_held_fds);
    RUN(test_sentinel_ends_before_its_pid_is_free);
    RUN(test_sentinel_ends_whoever_else_holds_it);
    RUN(test_sentinel_of_a_lost_child_ends_whoever_else_holds_it);
    return 0;
}
