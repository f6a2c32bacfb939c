/* test_status.c: the counters of a server, and the page that tells them. */
#define _GNU_SOURCE

#include "ff_msg.h"
#include "ff_status.h"
#include "ff_util.h"
#include "io.h"

#include <signal.h>
#include <sys/mman.h>

static void open_board(struct ff_status_board *board)
{
    ff_status_open(board);
    CHECK_INT(board->error, 0);
    CHECK(board->page != NULL);
    CHECK(fcntl(board->fd, F_GETFD) & FD_CLOEXEC);
}

static struct ff_status look(int fd)
{
    struct ff_status status;

    CHECK_INT(ff_status_read(fd, &status), 0);
    return status;
}

static void test_first_look(void)
{
    struct ff_status_board board;
    struct ff_status expected = {.pid = getpid()};
    struct ff_status status;

    open_board(&board);
    status = look(board.fd);
    CHECK(status.started > 0);
    expected.started = status.started;
    CHECK_MEM(&status, &expected, sizeof status);
    ff_status_close(&board);
}

static void test_counts(void)
{
    struct ff_status_board board;
    struct ff_status status;

    open_board(&board);
    board.counts.starts = 7;
    ff_status_publish(&board);
    for (int cause = 1; cause < FF_REFUSED_CAUSES; cause++)
        ff_status_count_refusal(&board, (enum ff_refusal)cause);
    ff_status_count_refusal(&board, FF_REFUSED_USER);
    ff_status_count_failure(&board, EAGAIN);
    ff_status_count_failure(&board, FF_MAX_ERRNO - 1);
    ff_status_count_accept_failure(&board, EMFILE);
    status = look(board.fd);
    CHECK_INT(status.starts, 7);
    CHECK_INT(status.refused[0], 0);
    for (int cause = 1; cause < FF_REFUSED_CAUSES; cause++)
        CHECK_INT(status.refused[cause], cause == FF_REFUSED_USER ? 2 : 1);
    CHECK_INT(status.failures[EAGAIN], 1);
    CHECK_INT(status.failures[FF_MAX_ERRNO - 1], 1);
    CHECK_INT(status.accept_failures[EMFILE], 1);
    ff_status_close(&board);
}

/* No error counts beyond the arrays. */
static void test_errors_beyond(void)
{
    struct ff_status_board board;
    struct ff_status status;

    open_board(&board);
    ff_status_count_failure(&board, FF_MAX_ERRNO);
    ff_status_count_failure(&board, -1);
    ff_status_count_accept_failure(&board, 1 << 30);
    status = look(board.fd);
    CHECK_INT(status.failures[0], 2);
    CHECK_INT(status.accept_failures[0], 1);
    ff_status_close(&board);
}

/* Wherever a writer stops amid a change, the last sound state is read. */
static void test_writer_that_stops(void)
{
    struct ff_status_board board;
    uint64_t *turn;
    unsigned char *slots;

    open_board(&board);
    board.counts.starts = 5;
    ff_status_publish(&board);
    turn = (uint64_t *)board.page + 1;
    slots = (unsigned char *)(turn + 1);
    for (int i = 0; i < 2; i++) {
        *turn += 1;
        memset(slots + (*turn & 1 ? 0 : sizeof(struct ff_status)), 0xff, sizeof(struct ff_status));
        CHECK_INT(look(board.fd).starts, i == 0 ? 5 : -1);
    }
    ff_status_close(&board);
}

/* The page alone changes; the server's own counters are what it goes on with. */
static void test_nothing_is_read_back(void)
{
    struct ff_status_board board;

    open_board(&board);
    board.counts.starts = 5;
    memset(board.page, 0xff, sizeof(struct ff_status));
    ((uint64_t *)board.page)[1] = 0;
    CHECK_INT(board.counts.starts, 5);
    ff_status_publish(&board);
    ((uint64_t *)board.page)[0] = 0;
    CHECK_INT(ff_status_read(board.fd, &(struct ff_status){0}), -EINVAL);
    ff_status_close(&board);
}

/* As long as a server takes at least from one change to the next. */
static void pause_as_a_server(void)
{
    double end = ff_seconds_now() + 20e-6;

    while (ff_seconds_now() < end)
        continue;
}

/* One process changes two numbers together, over and over; another never sees them differ. */
static void test_reads_are_consistent(void)
{
    struct ff_status_board board;
    int status;
    pid_t pid;

    open_board(&board);
    pid = fork();
    CHECK(pid >= 0);
    if (pid == 0) {
        for (int i = 0; i < 20000; i++) {
            struct ff_status seen = look(board.fd);

            CHECK_INT(seen.starts, seen.accept_failures[FF_MAX_ERRNO - 1]);
            CHECK_INT(seen.starts, seen.failures[1]);
        }
        _exit(0);
    }
    while (waitpid(pid, &status, WNOHANG) == 0) {
        board.counts.starts++;
        board.counts.failures[1]++;
        board.counts.accept_failures[FF_MAX_ERRNO - 1]++;
        ff_status_publish(&board);
        pause_as_a_server();
    }
    CHECK_INT(status, 0);
    CHECK(board.counts.starts > 0);
    ff_status_close(&board);
}

/* Make a page in this process, give its descriptor away, and change two numbers together for ever. */
__attribute__((noreturn)) static void change_for_ever(int sock)
{
    struct ff_status_board board;

    open_board(&board);
    CHECK_INT(ff_msg_send(sock, "x", 1, &board.fd, 1), 1);
    for (;;) {
        board.counts.starts++;
        board.counts.accept_failures[FF_MAX_ERRNO - 1]++;
        ff_status_publish(&board);
    }
}

static int take_fd(int sock)
{
    FF_CLEANUP(ff_reader_clear) struct ff_reader reader;

    ff_reader_init(&reader);
    CHECK_INT(ff_reader_expect(&reader, 1), 0);
    await_readable(sock);
    CHECK_INT(ff_reader_fill(&reader, sock), 1);
    CHECK_INT(reader.fd_count, 1);
    return ff_steal_fd(&reader.fds[0]);
}

/* Stopped at any moment, amid a change as often as not, a writer leaves a sound state to be read. */
static void test_writer_stopped_anywhere(void)
{
    int socks[2];
    int status;
    pid_t pid;
    int fd;

    make_pair(socks);
    pid = fork();
    CHECK(pid >= 0);
    if (pid == 0)
        change_for_ever(socks[1]);
    fd = take_fd(socks[0]);
    for (int i = 0; i < 300; i++) {
        struct ff_status seen;

        poll(NULL, 0, 1); /* it runs for a while, or else is stopped where it was */
        CHECK_INT(kill(pid, SIGSTOP), 0);
        CHECK_INT(waitpid(pid, &status, WUNTRACED), pid);
        CHECK(WIFSTOPPED(status));
        seen = look(fd);
        CHECK_INT(seen.starts, seen.accept_failures[FF_MAX_ERRNO - 1]);
        CHECK_INT(kill(pid, SIGCONT), 0);
    }
    CHECK_INT(kill(pid, SIGKILL), 0);
    await_status(pid);
    close_both(socks);
    CHECK_INT(close(fd), 0);
}

/* Whoever has the descriptor reads, and that is all. */
static void test_read_only(void)
{
    struct ff_status_board board;

    open_board(&board);
    CHECK_INT(fcntl(board.fd, F_GETFL) & O_ACCMODE, O_RDONLY);
    CHECK(write(board.fd, "x", 1) < 0);
    CHECK(ftruncate(board.fd, 0) < 0);
    CHECK(mmap(NULL, 1, PROT_READ | PROT_WRITE, MAP_SHARED, board.fd, 0) == MAP_FAILED);
    ff_status_close(&board);
}

#ifdef __linux__
/* /proc gives the owner of a file a second chance to open it for writing: the seals hold there, too. */
static void test_opened_again(void)
{
    struct ff_status_board board;
    char path[64];
    int fd;

    open_board(&board);
    snprintf(path, sizeof path, "/proc/self/fd/%d", board.fd);
    fd = open(path, O_RDWR);
    if (fd >= 0) {
        CHECK_INT(write(fd, "x", 1), -1);
        CHECK_INT(ftruncate(fd, 0), -1);
        CHECK_INT(ftruncate(fd, 1 << 20), -1);
        CHECK(mmap(NULL, 1, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0) == MAP_FAILED);
        CHECK_INT(fcntl(fd, F_ADD_SEALS, F_SEAL_WRITE), -1);
        CHECK_INT(close(fd), 0);
    }
    CHECK_INT(look(board.fd).pid, getpid());
    ff_status_close(&board);
}
#endif

/* In a child the page is not there to be written, and what has taken its place stays. */
static void test_fork(void)
{
    struct ff_status_board board;
    pid_t pid;

    open_board(&board);
    pid = fork();
    CHECK(pid >= 0);
    if (pid == 0) {
        struct ff_status_page *page = board.page;
        unsigned char residency[2];

        CHECK_INT(mincore(page, 4096, residency), -1);
        CHECK_INT(errno, ENOMEM);
        close(board.fd);
        ff_status_abandon(&board);
        ff_status_count_failure(&board, 1);
        ff_status_close(&board);
        _exit(0);
    }
    CHECK_INT(await_status(pid), 0);
    CHECK_INT(look(board.fd).failures[1], 0);
    ff_status_close(&board);
}

/* After the end of the server the descriptor still tells. */
static void test_after_the_end(void)
{
    struct ff_status_board board;
    int fd;

    open_board(&board);
    board.counts.starts = 3;
    ff_status_publish(&board);
    fd = dup(board.fd);
    ff_status_close(&board);
    CHECK_INT(look(fd).starts, 3);
    CHECK_INT(close(fd), 0);
}

static void test_no_page(void)
{
    struct ff_status status = {.starts = 42};
    int ends[2];
    int zeros = open("/dev/zero", O_RDONLY);

    make_pipe(ends);
    CHECK_INT(ff_status_read(ends[0], &status), -ESPIPE);
    CHECK_INT(ff_status_read(-1, &status), -EBADF);
    CHECK_INT(ff_status_read(zeros, &status), -EINVAL);
    CHECK_INT(status.starts, 42);
    close_all((int[]){ends[0], ends[1], zeros}, 3);
}

/* Without a descriptor to spare there is no page, and why is known. */
static void test_page_that_cannot_be_had(void)
{
    struct ff_status_board board;
    struct rlimit before = leave_fds(0);

    ff_status_open(&board);
    CHECK_INT(setrlimit(RLIMIT_NOFILE, &before), 0);
    CHECK_INT(board.error, -EMFILE);
    CHECK_INT(board.fd, -1);
    ff_status_count_failure(&board, EMFILE);
    CHECK_INT(board.counts.failures[EMFILE], 1);
    ff_status_close(&board);

    before = leave_fds(1);
    ff_status_open(&board);
    CHECK_INT(setrlimit(RLIMIT_NOFILE, &before), 0);
    CHECK(board.error == 0 || board.error == -EMFILE);
    ff_status_close(&board);
}

int main(void)
{
    RUN(test_first_look);
    RUN(test_counts);
    RUN(test_errors_beyond);
    RUN(test_writer_that_stops);
    RUN(test_nothing_is_read_back);
    RUN(test_reads_are_consistent);
    RUN(test_writer_stopped_anywhere);
    RUN(test_read_only);
#ifdef __linux__
    RUN(test_opened_again);
#endif
    RUN(test_fork);
    RUN(test_after_the_end);
    RUN(test_no_page);
    RUN(test_page_that_cannot_be_had);
    return 0;
}
