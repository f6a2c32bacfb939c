/* test_fd.c: descriptors: flags, pipes, accepting, and closing in bulk. */
#define _GNU_SOURCE

#include "ff_fd.h"
#include "io.h"

#include <signal.h>
#include <sys/uio.h>
#include <sys/un.h>

#define MAX_TEST_FDS 300

static bool has_fd_flag(int fd, int flag)
{
    return fcntl(fd, F_GETFD) & flag;
}

static bool has_file_flag(int fd, int flag)
{
    return fcntl(fd, F_GETFL) & flag;
}

static void test_flags(void)
{
    int ends[2];

    make_pipe(ends);
    CHECK(!has_fd_flag(ends[0], FD_CLOEXEC) && !has_file_flag(ends[0], O_NONBLOCK));
    CHECK_INT(ff_fd_set_cloexec(ends[0]), 0);
    CHECK_INT(ff_fd_set_nonblock(ends[0]), 0);
    CHECK(has_fd_flag(ends[0], FD_CLOEXEC) && has_file_flag(ends[0], O_NONBLOCK));
    close_both(ends);
    CHECK_INT(ff_fd_set_cloexec(ends[0]), -EBADF);
    CHECK_INT(ff_fd_set_nonblock(ends[0]), -EBADF);
}

static void test_pipe(void)
{
    int ends[2];
    char byte = 0;

    CHECK_INT(ff_fd_pipe(ends), 0);
    for (int i = 0; i < 2; i++)
        CHECK(has_fd_flag(ends[i], FD_CLOEXEC) && has_file_flag(ends[i], O_NONBLOCK));
    write_all(ends[1], "x", 1);
    CHECK_INT(read(ends[0], &byte, 1), 1);
    CHECK_INT(byte, 'x');
    close_both(ends);
}

static void test_pipe_without_room(void)
{
    int ends[2] = {-7, -7};
    struct rlimit before = leave_fds(1);

    CHECK_INT(ff_fd_pipe(ends), -EMFILE);
    CHECK(ends[0] == -7 && ends[1] == -7);
    CHECK_INT(setrlimit(RLIMIT_NOFILE, &before), 0);
}

static void test_duplicate(void)
{
    int ends[2];
    int copy;

    make_pipe(ends);
    copy = ff_fd_duplicate(ends[1]);
    CHECK(copy >= 0 && has_fd_flag(copy, FD_CLOEXEC));
    CHECK_INT(close(ends[1]), 0);
    write_all(copy, "x", 1);
    CHECK(is_readable(ends[0]));
    CHECK_INT(close(copy), 0);
    CHECK_INT(close(ends[0]), 0);
    CHECK_INT(ff_fd_duplicate(copy), -EBADF);
}

/* A listener on an address of the kernel's choice would be Linux's own: this one has a path. */
static int listen_at(struct sockaddr_un *ret_address)
{
    char directory[] = "/tmp/ff-test-XXXXXX";
    int listener = socket(AF_UNIX, SOCK_STREAM, 0);

    CHECK(mkdtemp(directory) != NULL);
    *ret_address = (struct sockaddr_un){.sun_family = AF_UNIX};
    snprintf(ret_address->sun_path, sizeof ret_address->sun_path, "%s/s", directory);
    CHECK_INT(bind(listener, (struct sockaddr *)ret_address, sizeof *ret_address), 0);
    CHECK_INT(listen(listener, 8), 0);
    CHECK_INT(ff_fd_set_nonblock(listener), 0);
    return listener;
}

static void remove_address(struct sockaddr_un *address)
{
    CHECK_INT(unlink(address->sun_path), 0);
    *strrchr(address->sun_path, '/') = '\0';
    CHECK_INT(rmdir(address->sun_path), 0);
}

static void test_accept(void)
{
    struct sockaddr_un address;
    int listener = listen_at(&address);
    int client = socket(AF_UNIX, SOCK_STREAM, 0);
    uid_t uid;
    int sock;

    CHECK_INT(ff_fd_accept(listener), -EAGAIN);
    CHECK_INT(connect(client, (struct sockaddr *)&address, sizeof address), 0);
    sock = ff_fd_accept(listener);
    CHECK(sock >= 0);
    CHECK(has_fd_flag(sock, FD_CLOEXEC) && has_file_flag(sock, O_NONBLOCK));
    CHECK_INT(ff_fd_peer_uid(sock, &uid), 0);
    CHECK_INT(uid, geteuid());
    CHECK_INT(ff_fd_accept(listener), -EAGAIN);
    close_all((int[]){listener, client, sock}, 3);
    remove_address(&address);
    CHECK_INT(ff_fd_accept(listener), -EBADF);
}

/* Without a free descriptor the client keeps its place in the backlog. */
static void test_accept_without_room(void)
{
    struct sockaddr_un address;
    int listener = listen_at(&address);
    int client = socket(AF_UNIX, SOCK_STREAM, 0);
    struct rlimit before;
    int sock;

    CHECK_INT(connect(client, (struct sockaddr *)&address, sizeof address), 0);
    before = leave_fds(0);
    CHECK_INT(ff_fd_accept(listener), -EMFILE);
    CHECK_INT(setrlimit(RLIMIT_NOFILE, &before), 0);
    sock = ff_fd_accept(listener);
    CHECK(sock >= 0);
    close_all((int[]){listener, client, sock}, 3);
    remove_address(&address);
}

/* The kernel's word, not the peer's: another user's process is another user. */
static void test_peer_uid_of_another_user(void)
{
    int socks[2] = {-1, -1};
    uid_t uid = 12345;

    if (geteuid() != 0) {
        printf("# test_peer_uid_of_another_user: only root can become another user: skipped\n");
        return;
    }
    CHECK_INT(seteuid(uid), 0);
    CHECK_INT(socketpair(AF_UNIX, SOCK_STREAM, 0, socks), 0);
    CHECK_INT(seteuid(0), 0);
    uid = 0;
    CHECK_INT(ff_fd_peer_uid(socks[0], &uid), 0);
    CHECK_INT(uid, 12345);
    close_both(socks);
}

static void test_peer_uid_of_no_socket(void)
{
    int ends[2];
    uid_t uid;

    make_pipe(ends);
    CHECK_INT(ff_fd_peer_uid(ends[0], &uid), -ENOTSOCK);
    close_both(ends);
}

/* Open `count` descriptors of neighbouring numbers from `first` on, where none is open. */
static void open_run(int first, int count)
{
    for (int fd = first; fd < first + count; fd++) {
        CHECK(!check_fd_is_open(fd));
        CHECK_INT(dup2(0, fd), fd);
    }
}

static void check_all_closed(const int *fds, size_t count)
{
    int sorted[MAX_TEST_FDS];

    memcpy(sorted, fds, count * sizeof *fds);
    ff_fd_close_all(sorted, count);
    for (size_t i = 0; i < count; i++)
        CHECK(!check_fd_is_open(fds[i]));
}

static void test_close_none(void)
{
    int none = 0;

    ff_fd_close_all(&none, 0);
    CHECK(check_fd_is_open(0));
}

static void test_close_single(void)
{
    open_run(100, 3);
    check_all_closed((int[]){101}, 1);
    CHECK(check_fd_is_open(100) && check_fd_is_open(102));
    check_all_closed((int[]){102, 100}, 2);
}

/* Runs, singles and duplicates, in no order; the neighbours on both sides stay. */
static void test_close_runs(void)
{
    open_run(99, 5);
    open_run(110, 1);
    open_run(120, 2);
    check_all_closed((int[]){121, 101, 110, 100, 102, 110, 101, 120}, 8);
    CHECK(check_fd_is_open(99) && check_fd_is_open(103));
    check_all_closed((int[]){99, 103, 99}, 3);
}

static void test_close_one_long_run(void)
{
    int fds[MAX_TEST_FDS];

    open_run(200, MAX_TEST_FDS);
    for (int i = 0; i < MAX_TEST_FDS; i++)
        fds[i] = 200 + (i * 7) % MAX_TEST_FDS;
    check_all_closed(fds, MAX_TEST_FDS);
}

/* A number that is not open among the others does no harm. */
static void test_close_with_gap(void)
{
    open_run(100, 1);
    open_run(102, 1);
    check_all_closed((int[]){100, 101, 102}, 3);
}

/* Whatever the parent left open: the tests above choose their numbers. */
static void close_inherited(void)
{
    for (int fd = STDERR_FILENO + 1; fd < CHECK_FD_LIMIT; fd++)
        close(fd);
}

/* ---- writing without a wait ---- */

static bool is_nonblocking(int fd)
{
    return fcntl(fd, F_GETFL) & O_NONBLOCK;
}

static void fill(int fd)
{
    char bytes[4096] = {0};
    int flags = fcntl(fd, F_GETFL);

    CHECK_INT(fcntl(fd, F_SETFL, flags | O_NONBLOCK), 0);
    while (write(fd, bytes, sizeof bytes) > 0)
        continue;
    CHECK_INT(errno, EAGAIN);
    while (write(fd, bytes, 1) > 0)
        continue;
    CHECK_INT(fcntl(fd, F_SETFL, flags), 0);
}

static void check_write_now(int ends[2])
{
    char bytes[8];

    CHECK(ff_fd_is_stream(ends[1]));
    CHECK_INT(ff_fd_write_now(ends[1], "eight by", 8), 0);
    read_all(ends[0], bytes, 8);
    CHECK_MEM(bytes, "eight by", 8);
    fill(ends[1]);
    CHECK_INT(ff_fd_write_now(ends[1], "eight by", 8), -EAGAIN);
    CHECK_INT(close(ends[0]), 0);
    CHECK_INT(ff_fd_write_now(ends[1], "eight by", 8), -EPIPE);
#ifdef RWF_NOWAIT
    CHECK(!is_nonblocking(ends[1]));
#else
    (void)is_nonblocking;
#endif
    CHECK_INT(close(ends[1]), 0);
}

static void test_write_now(void)
{
    int ends[2];

    signal(SIGPIPE, SIG_IGN);
    make_pipe(ends);
    check_write_now(ends);
    make_pair(ends);
    check_write_now(ends);
    signal(SIGPIPE, SIG_DFL);
}

/* What may keep its writer waiting whatever one asks. */
static void test_write_now_to_a_file(void)
{
    FILE *file = tmpfile();

    CHECK(!ff_fd_is_stream(fileno(file)));
    CHECK(!ff_fd_is_stream(-1));
    CHECK(ff_fd_write_now(fileno(file), "x", 1) < 0);
    fclose(file);
}

/* ---- high numbers ---- */

static void test_lower_all(void)
{
    int ends[2];
    int fds[3];

    make_pipe(ends);
    fds[0] = fcntl(ends[1], F_DUPFD, 500);
    fds[1] = fcntl(ends[1], F_DUPFD, 10);
    fds[2] = fcntl(ends[1], F_DUPFD, 700);
    ff_fd_lower_all(fds, 3, 500);
    for (int i = 0; i < 3; i++)
        CHECK(fds[i] < 500 && check_fd_is_open(fds[i]));
    CHECK(!check_fd_is_open(500));
    CHECK(!check_fd_is_open(700));
    close_all(fds, 3);
    close_both(ends);
}

int main(void)
{
    RUN(test_write_now);
    RUN(test_write_now_to_a_file);
    RUN(test_lower_all);
    close_inherited();
    RUN(test_flags);
    RUN(test_pipe);
    RUN(test_pipe_without_room);
    RUN(test_duplicate);
    RUN(test_accept);
    RUN(test_accept_without_room);
    RUN(test_peer_uid_of_another_user);
    RUN(test_peer_uid_of_no_socket);
    RUN(test_close_none);
    RUN(test_close_single);
    RUN(test_close_runs);
    RUN(test_close_one_long_run);
    RUN(test_close_with_gap);
    return 0;
}
