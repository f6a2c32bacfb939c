/* test_tree.c: a process is killed, and everything below it. */
#define _GNU_SOURCE

#include "ff_tree.h"
#include "io.h"

#include <pthread.h>
#include <signal.h>
#ifdef __linux__
#include <sys/prctl.h>
#endif

/* Everybody who lives below a root holds the write end of a pipe: at its end nobody is left. */
struct grove {
    struct ff_tree tree;
    int life[2];
    int ready[2];
};

/* What a process of a tree does once it has told that it is there. */
__attribute__((noreturn)) static void live(const struct grove *grove)
{
    write_all(grove->ready[1], "r", 1);
    for (;;)
        pause();
}

/* Start a root that does `grow`, which does not return, and wait until `count` processes are there. */
static void plant(struct grove *grove, void (*grow)(const struct grove *grove), int count)
{
    char byte;

    make_pipe(grove->life);
    make_pipe(grove->ready);
    grove->tree = (struct ff_tree){.root = fork()};
    CHECK(grove->tree.root >= 0);
    if (grove->tree.root == 0) {
        close(grove->life[0]);
        ff_tree_become_root();
        grow(grove);
        _exit(99);
    }
    CHECK_INT(close(grove->life[1]), 0);
    for (int i = 0; i < count; i++)
        read_all(grove->ready[0], &byte, 1);
}

static int fell(struct grove *grove)
{
    int rounds = 1;

    for (; !ff_tree_kill(&grove->tree); rounds++)
        poll(NULL, 0, FF_TREE_ROUND_MS);
    return rounds;
}

/* Nobody has survived; the root has died of SIGKILL and is left to be reaped. */
static void check_all_dead(struct grove *grove)
{
    await_end(grove->life[0]);
    CHECK_INT(WTERMSIG(await_status(grove->tree.root)), SIGKILL);
    CHECK_INT(close(grove->life[0]), 0);
    close_both(grove->ready);
}

static void check_felled(void (*grow)(const struct grove *grove), int count)
{
    struct grove grove;

    plant(&grove, grow, count);
    fell(&grove);
    check_all_dead(&grove);
}

static void live_alone(const struct grove *grove)
{
    live(grove);
}

static void test_one(void)
{
    check_felled(live_alone, 1);
}

/* The root ends before it is killed: nothing to be done, and its status is left. */
static void test_dead_root(void)
{
    struct ff_tree tree = {.root = fork()};
    siginfo_t info;

    if (tree.root == 0)
        _exit(7);
    CHECK_INT(waitid(P_PID, (id_t)tree.root, &info, WEXITED | WNOWAIT), 0);
    CHECK(ff_tree_kill(&tree));
    CHECK_INT(WEXITSTATUS(await_status(tree.root)), 7);
    CHECK(ff_tree_kill(&tree)); /* reaped: the pid means nobody, or somebody else */
}

/* Not a child of this process, whatever it is: it is not touched. */
static void test_process_of_others(void)
{
    struct ff_tree tree = {.root = getppid()};

    CHECK(ff_tree_kill(&tree));
    CHECK_INT(kill(getppid(), 0), 0);
}

/* Stopped or ignoring signals, it is killed all the same. */
static void ignore_and_stop(const struct grove *grove)
{
    signal(SIGTERM, SIG_IGN);
    signal(SIGTSTP, SIG_IGN);
    write_all(grove->ready[1], "r", 1);
    raise(SIGSTOP);
}

static void test_stopped(void)
{
    check_felled(ignore_and_stop, 1);
}

#ifdef __linux__

static void branch(const struct grove *grove, int depth, int width)
{
    for (int i = 0; depth > 0 && i < width; i++) {
        if (fork() == 0) {
            depth--;
            i = -1;
        }
    }
    live(grove);
}

static void grow_deep(const struct grove *grove)
{
    branch(grove, 20, 1);
}

static void grow_wide(const struct grove *grove)
{
    branch(grove, 1, 50);
}

static void grow_full(const struct grove *grove)
{
    branch(grove, 4, 3);
}

static void test_shapes(void)
{
    check_felled(grow_deep, 21);
    check_felled(grow_wide, 51);
    check_felled(grow_full, 1 + 3 + 9 + 27 + 81);
}

/* More than one round takes. */
static void grow_beyond_a_batch(const struct grove *grove)
{
    branch(grove, 1, FF_TREE_BATCH + 20);
}

static void test_more_than_a_batch(void)
{
    check_felled(grow_beyond_a_batch, 1 + FF_TREE_BATCH + 20);
}

/* A daemon: its parent has died, its session is another one. */
static void make_daemon(const struct grove *grove)
{
    if (fork() == 0) {
        setsid();
        if (fork() == 0)
            live(grove);
        _exit(0);
    }
    live(grove);
}

static void test_daemon(void)
{
    check_felled(make_daemon, 2);
}

static void *fork_in_thread(void *arg)
{
    if (fork() == 0)
        live(arg);
    live(arg);
}

/* Children of a thread that is not the first. */
static void use_threads(const struct grove *grove)
{
    pthread_t thread;

    pthread_create(&thread, NULL, fork_in_thread, (void *)(uintptr_t)grove);
    live(grove);
}

static void test_threads(void)
{
    check_felled(use_threads, 3);
}

/* A name that looks like the rest of the line. */
static void take_odd_name(const struct grove *grove)
{
    if (fork() == 0) {
        prctl(PR_SET_NAME, ") Z 1 (");
        live(grove);
    }
    live(grove);
}

static void test_odd_names(void)
{
    check_felled(take_odd_name, 2);
}

static void *fork_for_ever(void *arg)
{
    (void)arg;
    for (;;) {
        pid_t pid = fork();

        if (pid == 0 && fork() != 0)
            _exit(0);
        if (pid == 0)
            for (;;)
                pause();
        if (pid > 0)
            waitpid(pid, NULL, 0);
        else
            poll(NULL, 0, 1);
    }
    return NULL;
}

/* Several threads that leave orphans as quickly as they can. */
static void fork_as_fast_as_possible(const struct grove *grove)
{
    pthread_t thread;

    signal(SIGCHLD, SIG_DFL);
    for (int i = 0; i < 3; i++)
        pthread_create(&thread, NULL, fork_for_ever, NULL);
    live(grove);
}

static void test_forks_meanwhile(void)
{
    for (int i = 0; i < 5; i++)
        check_felled(fork_as_fast_as_possible, 1);
}

/* Zombies that nobody reaps keep nobody. */
static void leave_zombies(const struct grove *grove)
{
    for (int i = 0; i < 5; i++)
        if (fork() == 0)
            _exit(0);
    live(grove);
}

static void test_zombies(void)
{
    check_felled(leave_zombies, 1);
}

/* While the killer is short of descriptors, by however many, it cannot see who is below: nobody is left for that. */
static void test_too_few_descriptors(void)
{
    for (int room = 0; room < 4; room++) {
        struct rlimit limit;
        struct grove grove;

        plant(&grove, make_daemon, 2);
        CHECK_INT(getrlimit(RLIMIT_NOFILE, &limit), 0);
        leave_fds(room);
        for (int i = 0; i < 3; i++) {
            ff_tree_kill(&grove.tree);
            poll(NULL, 0, 50);
        }
        CHECK_INT(setrlimit(RLIMIT_NOFILE, &limit), 0);
        fell(&grove);
        check_all_dead(&grove);
    }
}

/* Only what is below: neither a sibling nor this process. */
static void test_siblings_live(void)
{
    struct grove sibling;
    int status;

    plant(&sibling, live_alone, 1);
    check_felled(grow_wide, 51);
    CHECK_INT(waitpid(sibling.tree.root, &status, WNOHANG | WUNTRACED), 0);
    fell(&sibling);
    check_all_dead(&sibling);
}

#endif

int main(void)
{
    RUN(test_one);
    RUN(test_dead_root);
    RUN(test_process_of_others);
    RUN(test_stopped);
#ifdef __linux__
    RUN(test_shapes);
    RUN(test_more_than_a_batch);
    RUN(test_daemon);
    RUN(test_threads);
    RUN(test_odd_names);
    RUN(test_forks_meanwhile);
    RUN(test_zombies);
    RUN(test_siblings_live);
    RUN(test_too_few_descriptors);
#endif
    return 0;
}
