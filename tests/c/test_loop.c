/* test_loop.c: both backends of the event loop: descriptors, the death of children, signals given back. */
#define _GNU_SOURCE

#include "ff_fd.h"
#include "ff_loop.h"
#include "ff_util.h"
#include "io.h"

#include <pthread.h>
#include <signal.h>
#include <sys/time.h>

#define MANY 200 /* descriptors: more than three batches */

static long polled; /* descriptors, over all calls of poll() */

int __real_poll(struct pollfd *fds, nfds_t count, int ms);
int __wrap_poll(struct pollfd *fds, nfds_t count, int ms);
int __wrap_poll(struct pollfd *fds, nfds_t count, int ms)
{
    polled += (long)count;
    return __real_poll(fds, count, ms);
}

static struct ff_loop *open_loop(void)
{
    struct ff_loop *loop;

    CHECK_INT(ff_loop_open(check_wants_poll() ? FF_BACKEND_POLL : FF_BACKEND_AUTO, &loop), 0);
    return loop;
}

static void watch(struct ff_loop *loop, int fd, unsigned interest, void *tag)
{
    CHECK_INT(loop->backend->watch(loop, fd, interest, tag), 0);
}

static int wait_for(struct ff_loop *loop, int timeout_ms, struct ff_loop_event events[FF_LOOP_BATCH])
{
    pid_t died;

    return loop->backend->wait(loop, timeout_ms, events, &died);
}

/* Exactly one event, and which. */
static void check_event(struct ff_loop *loop, void *tag, unsigned ready)
{
    struct ff_loop_event events[FF_LOOP_BATCH];

    CHECK_INT(wait_for(loop, DEADLINE_MS, events), 1);
    CHECK(events[0].tag == tag);
    CHECK_INT(events[0].ready, ready);
}

static void check_no_event(struct ff_loop *loop)
{
    struct ff_loop_event events[FF_LOOP_BATCH];

    CHECK_INT(wait_for(loop, 0, events), 0);
}

static void test_readable(void)
{
    struct ff_loop *loop = open_loop();
    int ends[2];

    make_pipe(ends);
    watch(loop, ends[0], FF_READABLE, ends);
    check_no_event(loop);
    write_all(ends[1], "x", 1);
    check_event(loop, ends, FF_READABLE);
    check_event(loop, ends, FF_READABLE); /* until it has been read */
    loop->backend->close(loop);
    close_both(ends);
}

static void test_writable(void)
{
    struct ff_loop *loop = open_loop();
    int socks[2];

    make_pair(socks);
    watch(loop, socks[0], FF_WRITABLE, socks);
    check_event(loop, socks, FF_WRITABLE);
    write_all(socks[1], "x", 1);
    check_event(loop, socks, FF_WRITABLE);
    loop->backend->close(loop);
    close_both(socks);
}

static void test_change_of_interest_and_tag(void)
{
    struct ff_loop *loop = open_loop();
    int socks[2];

    make_pair(socks);
    write_all(socks[1], "x", 1);
    watch(loop, socks[0], FF_READABLE, &socks[0]);
    watch(loop, socks[0], FF_READABLE | FF_WRITABLE, &socks[1]);
    check_event(loop, &socks[1], FF_READABLE | FF_WRITABLE);
    watch(loop, socks[0], FF_WRITABLE, &socks[0]);
    check_event(loop, &socks[0], FF_WRITABLE);
    loop->backend->close(loop);
    close_both(socks);
}

static void test_unwatch(void)
{
    struct ff_loop *loop = open_loop();
    int first[2];
    int second[2];

    make_pair(first);
    make_pair(second);
    write_all(first[1], "x", 1);
    write_all(second[1], "x", 1);
    watch(loop, first[0], FF_READABLE, first);
    watch(loop, second[0], FF_READABLE, second);
    watch(loop, first[0], 0, NULL);
    check_event(loop, second, FF_READABLE);
    watch(loop, first[0], 0, NULL); /* once more does no harm */
    watch(loop, second[0], 0, NULL);
    check_no_event(loop);
    loop->backend->close(loop);
    close_both(first);
    close_both(second);
}

/* A new descriptor often has the number of one that has just been closed. */
static void test_number_used_again(void)
{
    struct ff_loop *loop = open_loop();
    int ends[2];
    int again[2];

    make_pipe(ends);
    watch(loop, ends[0], FF_READABLE, ends);
    watch(loop, ends[0], 0, NULL);
    close_both(ends);
    make_pipe(again);
    CHECK_INT(again[0], ends[0]);
    watch(loop, again[0], FF_READABLE, again);
    write_all(again[1], "x", 1);
    check_event(loop, again, FF_READABLE);
    loop->backend->close(loop);
    close_both(again);
}

/* Whatever was asked for: who reads or writes then finds out. */
static void test_hang_up(void)
{
    struct ff_loop *loop = open_loop();
    const unsigned interests[] = {FF_READABLE, FF_WRITABLE};

    for (int i = 0; i < 2; i++) {
        int socks[2];

        make_pair(socks);
        watch(loop, socks[0], interests[i], socks);
        CHECK_INT(close(socks[1]), 0);
        check_event(loop, socks, FF_READABLE | FF_WRITABLE);
        watch(loop, socks[0], 0, NULL);
        CHECK_INT(close(socks[0]), 0);
    }
    loop->backend->close(loop);
}

static void test_end_of_pipe(void)
{
    struct ff_loop *loop = open_loop();
    struct ff_loop_event events[FF_LOOP_BATCH];
    int ends[2];

    make_pipe(ends);
    watch(loop, ends[0], FF_READABLE, ends);
    CHECK_INT(close(ends[1]), 0);
    CHECK_INT(wait_for(loop, DEADLINE_MS, events), 1);
    CHECK(events[0].ready & FF_READABLE);
    loop->backend->close(loop);
    CHECK_INT(close(ends[0]), 0);
}

/* Descriptors that stay busy do not keep the others from being served: as few waits as batches are enough. */
static void test_no_one_starves(void)
{
    struct ff_loop *loop = open_loop();
    struct ff_loop_event events[FF_LOOP_BATCH];
    int socks[MANY][2];
    int served = 0;
    bool seen[MANY] = {false};

    for (int i = 0; i < MANY; i++) {
        make_pair(socks[i]);
        watch(loop, socks[i][0], FF_WRITABLE, &seen[i]);
    }
    for (int batch = 0; batch < (MANY + FF_LOOP_BATCH - 1) / FF_LOOP_BATCH; batch++) {
        int count = wait_for(loop, 0, events);

        for (int i = 0; i < count; i++) {
            served += !*(bool *)events[i].tag;
            *(bool *)events[i].tag = true;
        }
    }
    CHECK_INT(served, MANY);
    loop->backend->close(loop);
    for (int i = 0; i < MANY; i++)
        close_both(socks[i]);
}

/* A loop with MANY descriptors for which there is nothing to tell, after as many waits as it takes to be known. */
static struct ff_loop *open_with_quiet_ones(int socks[MANY][2])
{
    struct ff_loop *loop = open_loop();

    for (int i = 0; i < MANY; i++) {
        make_pair(socks[i]);
        watch(loop, socks[i][0], FF_READABLE, socks[i]);
    }
    for (int i = 0; i < MANY; i++)
        check_no_event(loop);
    return loop;
}

/* Have something to tell of one, and be told. */
static void check_is_heard(struct ff_loop *loop, int socks[2])
{
    char byte;

    write_all(socks[1], "x", 1);
    check_event(loop, socks, FF_READABLE);
    read_all(socks[0], &byte, 1);
}

static void close_quiet_ones(struct ff_loop *loop, int socks[MANY][2])
{
    loop->backend->close(loop);
    for (int i = 0; i < MANY; i++)
        close_both(socks[i]);
}

/* To wait for a busy one costs less than to wait for all, and yet those that were quiet are heard. */
static void test_quiet_beside_busy(void)
{
    struct ff_loop_event events[FF_LOOP_BATCH];
    int socks[MANY][2];
    struct ff_loop *loop = open_with_quiet_ones(socks);
    int busy[2];
    double begun;
    bool is_told = false;

    make_pair(busy);
    watch(loop, busy[0], FF_WRITABLE, busy);
    polled = 0;
    for (int i = 0; i < MANY; i++)
        check_event(loop, busy, FF_WRITABLE);
    CHECK(polled < MANY * MANY / 4);
    write_all(socks[MANY / 2][1], "x", 1);
    begun = ff_seconds_now();
    while (!is_told) {
        int count = wait_for(loop, 0, events);

        for (int i = 0; i < count; i++)
            is_told |= events[i].tag == socks[MANY / 2];
        CHECK(ff_seconds_now() - begun < 1e-3 * DEADLINE_MS);
    }
    close_both(busy);
    close_quiet_ones(loop, socks);
}

/* A look without a wait sees the quiet ones too, and so does one that lasts. */
static void test_quiet_after_busy(void)
{
    int socks[MANY][2];
    struct ff_loop *loop = open_with_quiet_ones(socks);
    int busy[2];

    make_pair(busy);
    for (int timeout_ms = -1; timeout_ms <= 1; timeout_ms++) {
        struct ff_loop_event events[FF_LOOP_BATCH];
        char byte;
        int *quiet = socks[MANY / 2 + timeout_ms];

        watch(loop, busy[0], FF_WRITABLE, busy);
        check_event(loop, busy, FF_WRITABLE);
        watch(loop, busy[0], 0, NULL);
        write_all(quiet[1], "x", 1);
        CHECK_INT(wait_for(loop, timeout_ms, events), 1);
        CHECK(events[0].tag == quiet);
        read_all(quiet[0], &byte, 1);
    }
    close_both(busy);
    close_quiet_ones(loop, socks);
}

/* A glance does not wait, and it leaves nobody out for long. */
static void test_glance(void)
{
    struct ff_loop_event events[FF_LOOP_BATCH];
    int socks[MANY][2];
    struct ff_loop *loop = open_with_quiet_ones(socks);
    double begun;

    CHECK_INT(wait_for(loop, FF_LOOP_GLANCE, events), 0);
    write_all(socks[MANY / 2][1], "x", 1);
    begun = ff_seconds_now();
    while (wait_for(loop, FF_LOOP_GLANCE, events) == 0)
        CHECK(ff_seconds_now() - begun < 1e-3 * DEADLINE_MS);
    CHECK(events[0].tag == socks[MANY / 2]);
    close_quiet_ones(loop, socks);
}

/* However many are watched, a wait in vain lasts as long as it is to. */
static void test_wait_in_vain(void)
{
    struct ff_loop_event events[FF_LOOP_BATCH];
    int socks[MANY][2];
    struct ff_loop *loop = open_with_quiet_ones(socks);
    double begun;

    begun = ff_seconds_now();
    CHECK_INT(wait_for(loop, 200, events), 0);
    CHECK(ff_seconds_now() - begun >= 0.199);
    close_quiet_ones(loop, socks);
}

/* Those that are no longer watched are not told, be they busy or quiet, and the others are. */
static void test_unwatch_among_many(void)
{
    int socks[MANY][2];
    struct ff_loop *loop = open_with_quiet_ones(socks);

    for (int i = 0; i < MANY; i += 3) /* these are busy */
        check_is_heard(loop, socks[i]);
    for (int i = 1; i < MANY; i += 2) {
        watch(loop, socks[i][0], 0, NULL);
        write_all(socks[i][1], "x", 1);
    }
    for (int i = 0; i < MANY; i += 2)
        check_is_heard(loop, socks[i]);
    check_no_event(loop);
    close_quiet_ones(loop, socks);
}

static void ignore_alarm(int signal_number)
{
    (void)signal_number;
}

/* A signal ends the wait, and that is told. The timer repeats, lest its one signal comes before the wait. */
static void test_interrupted(void)
{
    struct ff_loop *loop = open_loop();
    struct ff_loop_event events[FF_LOOP_BATCH];
    struct itimerval often = {{0, 10000}, {0, 10000}};
    struct itimerval never = {{0, 0}, {0, 0}};

    signal(SIGALRM, ignore_alarm);
    CHECK_INT(setitimer(ITIMER_REAL, &often, NULL), 0);
    CHECK_INT(wait_for(loop, -1, events), -EINTR);
    CHECK_INT(setitimer(ITIMER_REAL, &never, NULL), 0);
    signal(SIGALRM, SIG_DFL);
    loop->backend->close(loop);
}

static pid_t fork_exiting(void)
{
    pid_t pid = fork();

    CHECK(pid >= 0);
    if (pid == 0)
        _exit(0);
    return pid;
}

/* The loop may tell of a death when there is none, but never the other way round. */
static pid_t await_death(struct ff_loop *loop)
{
    struct ff_loop_event events[FF_LOOP_BATCH];
    pid_t died = 0;

    while (died == 0) {
        int count = loop->backend->wait(loop, DEADLINE_MS, events, &died);

        CHECK(count == 0 || count == -EINTR); /* the handler of SIGCHLD may interrupt */
    }
    return died;
}

static void check_death_is_told(struct ff_loop *loop)
{
    pid_t pid = fork_exiting();
    pid_t died = await_death(loop);

    CHECK(died == pid || died == FF_SOME_CHILD);
    CHECK_INT(waitpid(pid, NULL, 0), pid);
}

static void test_deaths(void)
{
    struct ff_loop *loop = open_loop();

    for (int i = 0; i < 5; i++)
        check_death_is_told(loop);
    loop->backend->close(loop);
}

/* The death of a child and an event come together. */
static void test_death_beside_event(void)
{
    struct ff_loop *loop = open_loop();
    struct ff_loop_event events[FF_LOOP_BATCH];
    siginfo_t info;
    pid_t died;
    int ends[2];
    pid_t pid;

    make_pipe(ends);
    watch(loop, ends[0], FF_READABLE, ends);
    write_all(ends[1], "x", 1);
    pid = fork_exiting();
    CHECK_INT(waitid(P_PID, (id_t)pid, &info, WEXITED | WNOWAIT), 0);
    do
        CHECK_INT(loop->backend->wait(loop, DEADLINE_MS, events, &died), 1);
    while (died == 0);
    CHECK(events[0].tag == ends);
    CHECK_INT(waitpid(pid, NULL, 0), pid);
    loop->backend->close(loop);
    close_both(ends);
}

static void *read_until_end(void *fd)
{
    char byte;

    CHECK_INT(read(*(int *)fd, &byte, 1), 0);
    return NULL;
}

/* A thread that a preloaded module started has SIGCHLD unblocked, and the kernel gives it the signal. */
static void test_death_beside_thread(void)
{
    struct ff_loop *loop;
    pthread_t thread;
    int ends[2];

    make_pipe(ends);
    CHECK_INT(pthread_create(&thread, NULL, read_until_end, &ends[0]), 0);
    loop = open_loop();
    for (int i = 0; i < 5; i++)
        check_death_is_told(loop);
    loop->backend->close(loop);
    CHECK_INT(close(ends[1]), 0);
    CHECK_INT(pthread_join(thread, NULL), 0);
    CHECK_INT(close(ends[0]), 0);
}

static sigset_t block_only(int signal_number)
{
    sigset_t set;
    sigset_t before;

    sigemptyset(&set);
    sigaddset(&set, signal_number);
    CHECK_INT(pthread_sigmask(SIG_SETMASK, &set, &before), 0);
    return before;
}

static bool is_blocked(int signal_number)
{
    sigset_t mask;

    CHECK_INT(pthread_sigmask(SIG_SETMASK, NULL, &mask), 0);
    return sigismember(&mask, signal_number);
}

/* Whoever started this process may have blocked SIGCHLD; that is inherited. */
static void test_death_while_blocked_before(void)
{
    sigset_t before = block_only(SIGCHLD);
    struct ff_loop *loop = open_loop();

    check_death_is_told(loop);
    loop->backend->close(loop);
    CHECK(is_blocked(SIGCHLD));
    CHECK_INT(pthread_sigmask(SIG_SETMASK, &before, NULL), 0);
}

static volatile sig_atomic_t handled;

static void on_signal(int signal_number)
{
    handled = signal_number;
}

/* What a loop takes for itself. */
static const int taken_signals[] = {SIGCHLD, SIGPIPE, SIGINT};
#define TAKEN_SIGNALS (sizeof taken_signals / sizeof *taken_signals)

static void set_handlers(void (*handler)(int))
{
    for (size_t i = 0; i < TAKEN_SIGNALS; i++)
        signal(taken_signals[i], handler);
}

static void check_handlers(void (*handler)(int))
{
    for (size_t i = 0; i < TAKEN_SIGNALS; i++) {
        struct sigaction action;

        CHECK_INT(sigaction(taken_signals[i], NULL, &action), 0);
        CHECK(action.sa_handler == handler);
    }
}

static void test_signals_are_given_back(void)
{
    sigset_t before = block_only(SIGUSR1);
    struct ff_loop *loop;

    set_handlers(on_signal);
    handled = 0;
    loop = open_loop();
    CHECK_INT(kill(getpid(), SIGPIPE), 0);
    CHECK_INT(kill(getpid(), SIGINT), 0);
    loop->backend->close(loop);
    CHECK_INT(handled, 0);
    check_handlers(on_signal);
    CHECK(!is_blocked(SIGCHLD));
    CHECK(is_blocked(SIGUSR1));
    set_handlers(SIG_DFL);
    CHECK_INT(pthread_sigmask(SIG_SETMASK, &before, NULL), 0);
}

/* What a server does in a child: the descriptors are closed by number, the rest is given up. */
static void abandon_in_child(struct ff_loop *loop, int fds_before)
{
    int own[FF_LOOP_MAX_FDS];
    sigset_t mask;

    ff_fd_close_all(own, loop->backend->own_fds(loop, own));
    loop->backend->abandon(loop, &mask, NULL);
    CHECK_INT(check_count_fds(), fds_before);
    check_handlers(on_signal);
    CHECK_INT(sigismember(&mask, SIGCHLD), 0);
    _exit(0);
}

static void test_abandon(void)
{
    int fds_before = check_count_fds();
    struct ff_loop *loop;
    pid_t pid;

    set_handlers(on_signal);
    loop = open_loop();
    pid = fork();
    CHECK(pid >= 0);
    if (pid == 0)
        abandon_in_child(loop, fds_before);
    await_death(loop);
    CHECK_INT(await_status(pid), 0);
    check_death_is_told(loop); /* the parent's loop has lost nothing */
    loop->backend->close(loop);
    set_handlers(SIG_DFL);
}

static void test_own_fds(void)
{
    int fds_before = check_count_fds();
    struct ff_loop *loop = open_loop();
    int own[FF_LOOP_MAX_FDS];
    size_t count = loop->backend->own_fds(loop, own);

    CHECK(count <= FF_LOOP_MAX_FDS);
    CHECK_INT(check_count_fds(), fds_before + (int)count);
    for (size_t i = 0; i < count; i++)
        CHECK(fcntl(own[i], F_GETFD) & FD_CLOEXEC);
    loop->backend->close(loop);
}

/* Whichever descriptor is the one too many: nothing is left behind, and the signals are as before. */
static void test_open_without_room(void)
{
    for (int room = 0; room < (check_wants_poll() ? 2 : 4); room++) {
        struct ff_loop *loop;
        struct rlimit before = leave_fds(room);

        CHECK_INT(ff_loop_open(check_wants_poll() ? FF_BACKEND_POLL : FF_BACKEND_AUTO, &loop), -EMFILE);
        CHECK_INT(setrlimit(RLIMIT_NOFILE, &before), 0);
        check_handlers(SIG_DFL);
        CHECK(!is_blocked(SIGCHLD));
    }
}

int main(void)
{
    set_handlers(SIG_DFL); /* a shell has what it runs in the background ignore SIGINT */
    RUN(test_readable);
    RUN(test_writable);
    RUN(test_change_of_interest_and_tag);
    RUN(test_unwatch);
    RUN(test_number_used_again);
    RUN(test_hang_up);
    RUN(test_end_of_pipe);
    RUN(test_no_one_starves);
    RUN(test_quiet_beside_busy);
    RUN(test_quiet_after_busy);
    RUN(test_glance);
    RUN(test_wait_in_vain);
    RUN(test_unwatch_among_many);
    RUN(test_interrupted);
    RUN(test_deaths);
    RUN(test_death_beside_event);
    RUN(test_death_beside_thread);
    RUN(test_death_while_blocked_before);
    RUN(test_signals_are_given_back);
    RUN(test_abandon);
    RUN(test_own_fds);
    RUN(test_open_without_room);
    return 0;
}
