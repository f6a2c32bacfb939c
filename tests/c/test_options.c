/* test_options.c: what a child is to be before it runs: blocks of options, and children with them. */
#define _GNU_SOURCE

#include "serving.h"

#include <sched.h>
#include <sys/resource.h>
#include <sys/stat.h>

#include "ff_options.h"

extern char **environ;

/* ---- blocks ---- */

struct block {
    unsigned char bytes[2 * FF_MAX_CPUS];
    uint32_t size;
};

static void seal(struct block *block)
{
    memcpy(block->bytes, &block->size, sizeof block->size);
}

static struct block empty_block(void)
{
    struct block block = {.size = sizeof block.size};

    seal(&block);
    return block;
}

static void add(struct block *block, uint32_t kind, const void *value, uint32_t size)
{
    struct ff_option head = {kind, size};

    memcpy(block->bytes + block->size, &head, sizeof head);
    memcpy(block->bytes + block->size + sizeof head, value, size);
    block->size += (uint32_t)sizeof head + size;
    seal(block);
}

static void add_number(struct block *block, uint32_t kind, int32_t number)
{
    add(block, kind, &number, sizeof number);
}

static void add_limit(struct block *block, int resource, uint64_t soft, uint64_t hard)
{
    add(block, FF_OPTION_RLIMIT + (uint32_t)resource, (uint64_t[]){soft, hard}, 2 * sizeof soft);
}

static void add_string(struct block *block, uint32_t kind, const char *text)
{
    add(block, kind, text, (uint32_t)strlen(text) + 1);
}

static int check(const struct block *block, size_t fd_count)
{
    return ff_options_check(block->bytes, block->size, fd_count);
}

/* ---- checking ---- */

static void test_sound_blocks(void)
{
    struct block block = empty_block();

    CHECK_INT(check(&block, 0), sizeof block.size);
    CHECK_INT(ff_options_check(block.bytes, 100, 0),
              sizeof block.size); /* what is behind it is not its matter */
    add_number(&block, FF_OPTION_STDIN, FF_STREAM_FD);
    add_number(&block, FF_OPTION_STDOUT, FF_STREAM_NULL);
    add_number(&block, FF_OPTION_STDERR, FF_STREAM_STDOUT);
    add(&block, FF_OPTION_NEW_SESSION, "", 0);
    add_number(&block, FF_OPTION_UMASK, 0);
    add_string(&block, FF_OPTION_CWD, "/");
    add(&block, FF_OPTION_ENV, "", 0);
    add(&block, FF_OPTION_ENV, "A=1\0B=2", 8);
    add_number(&block, FF_OPTION_NICE, -20);
    add(&block, FF_OPTION_AFFINITY, "\xff", 1);
    add_limit(&block, 0, 0, UINT64_MAX);
    add_limit(&block, FF_MAX_RLIMITS - 1, 0, 0);
    CHECK_INT(check(&block, 1), block.size);
    CHECK_INT(check(&block, 7), block.size);
    CHECK_INT(check(&block, 0), -EINVAL);
}

static void test_blocks_of_a_wrong_size(void)
{
    struct block block = empty_block();

    for (uint32_t size = 0; size < sizeof size; size++)
        CHECK_INT(ff_options_check(block.bytes, size, 0), -EINVAL);
    for (uint32_t size = 0; size < sizeof size; size++) {
        memcpy(block.bytes, &size, sizeof size);
        CHECK_INT(ff_options_check(block.bytes, 100, 0), -EINVAL);
    }
    memcpy(block.bytes, &(uint32_t){101}, sizeof(uint32_t));
    CHECK_INT(ff_options_check(block.bytes, 100, 0), -EINVAL);
}

/* Whatever is cut off, it is no block any more. */
static void test_blocks_that_end_amid_an_option(void)
{
    struct block whole = empty_block();

    add_number(&whole, FF_OPTION_UMASK, 0);
    for (uint32_t size = sizeof size + 1; size < whole.size; size++) {
        struct block part = whole;

        part.size = size;
        seal(&part);
        CHECK_INT(check(&part, 0), -EINVAL);
    }
}

static void test_unsound_options(void)
{
    static const unsigned char zeros[FF_MAX_CPUS / 8 + 1];
    static const struct {
        uint32_t kind;
        const void *value;
        uint32_t size;
    } unsound[] = {
        {0, zeros, 4},
        {FF_OPTION_AFFINITY + 1, zeros, 4},
        {FF_OPTION_RLIMIT - 1, zeros, 16},
        {FF_OPTION_RLIMIT + FF_MAX_RLIMITS, zeros, 16},
        {UINT32_MAX, zeros, 4},
        {FF_OPTION_RLIMIT, zeros, 8},
        {FF_OPTION_STDIN, zeros, 3},
        {FF_OPTION_STDOUT, "\3\0\0", 4},
        {FF_OPTION_STDERR, "\xff\xff\xff\xff", 4},
        {FF_OPTION_NEW_SESSION, zeros, 1},
        {FF_OPTION_UMASK, zeros, 8},
        {FF_OPTION_NICE, zeros, 0},
        {FF_OPTION_CWD, zeros, 0},
        {FF_OPTION_CWD, "/x", 2},
        {FF_OPTION_CWD, "/\0x", 4},
        {FF_OPTION_ENV, "A=1", 3},
        {FF_OPTION_AFFINITY, zeros, 0},
        {FF_OPTION_AFFINITY, zeros, sizeof zeros},
    };

    for (size_t i = 0; i < sizeof unsound / sizeof *unsound; i++) {
        struct block block = empty_block();

        add_number(&block, FF_OPTION_UMASK, 0);
        add(&block, unsound[i].kind, unsound[i].value, unsound[i].size);
        CHECK_INT(check(&block, 9), -EINVAL);
    }
}

/* ---- applying, in a child of the test ---- */

static void in_child(void (*work)(void))
{
    pid_t pid = fork();

    if (pid == 0) {
        work();
        _exit(0);
    }
    CHECK_INT(await_status(pid), 0);
}

static struct ff_applied become(const struct block *block, int *fds, size_t *fd_count)
{
    struct ff_applied applied;
    struct ff_unfit unfit;

    CHECK_INT(check(block, *fd_count), block->size);
    unfit = ff_options_apply(block->bytes, fds, fd_count, &applied);
    CHECK_INT(unfit.error, 0);
    CHECK_INT(applied.size, block->size);
    return applied;
}

static struct ff_applied become_alone(const struct block *block)
{
    return become(block, (int[1]){-1}, &(size_t){0});
}

static void apply_streams(void)
{
    struct block block = empty_block();
    int in[2], out[2], other[2];
    size_t count = 3;
    struct ff_applied applied;
    char byte;

    make_pipe(in);
    make_pipe(out);
    make_pipe(other);
    add_number(&block, FF_OPTION_STDIN, FF_STREAM_FD);
    add_number(&block, FF_OPTION_STDOUT, FF_STREAM_FD);
    add_number(&block, FF_OPTION_STDERR, FF_STREAM_STDOUT);
    int fds[] = {in[0], out[1], other[1]};

    applied = become(&block, fds, &count);
    CHECK_INT(applied.kinds, 1 << FF_OPTION_STDIN | 1 << FF_OPTION_STDOUT | 1 << FF_OPTION_STDERR);
    CHECK_INT(count, 1);
    CHECK_INT(fds[0], other[1]);
    CHECK(!check_fd_is_open(in[0]) && !check_fd_is_open(out[1]));
    write_all(in[1], "i", 1);
    CHECK_INT(read(STDIN_FILENO, &byte, 1), 1);
    CHECK_INT(byte, 'i');
    write_all(STDOUT_FILENO, "o", 1);
    write_all(STDERR_FILENO, "e", 1);
    read_all(out[0], &byte, 1);
    CHECK_INT(byte, 'o');
    read_all(out[0], &byte, 1);
    CHECK_INT(byte, 'e');
    for (int fd = 0; fd <= STDERR_FILENO; fd++)
        CHECK_INT(fcntl(fd, F_GETFD), 0); /* a program that is executed has them, too */
}

/* A template that has no standard streams gets the descriptors of requests there. */
static void apply_streams_that_stand_in_each_others_way(void)
{
    struct block block = empty_block();
    int out[2];
    size_t count = 3;
    char text[3];

    make_pipe(out);
    for (int fd = 0; fd <= STDERR_FILENO; fd++)
        CHECK_INT(close(fd), 0);
    int fds[] = {dup(out[1]), open("/dev/zero", O_RDONLY), dup(out[1])}; /* 0, 1, 2 */

    add_number(&block, FF_OPTION_STDOUT, FF_STREAM_FD);
    add_number(&block, FF_OPTION_STDIN, FF_STREAM_FD);
    become(&block, fds, &count);
    CHECK_INT(count, 1);
    CHECK(fds[0] > STDERR_FILENO);
    CHECK(!check_fd_is_open(STDERR_FILENO));
    CHECK_INT(read(STDIN_FILENO, text, 1), 1);
    CHECK_INT(text[0], 0);
    write_all(fds[0], "r", 1);
    write_all(STDOUT_FILENO, "o", 1);
    read_all(out[0], text, 2);
    CHECK_MEM(text, "ro", 2);
}

static void apply_null_streams(void)
{
    struct block block = empty_block();
    char byte;

    CHECK_INT(close(STDIN_FILENO), 0);
    for (uint32_t kind = FF_OPTION_STDIN; kind <= FF_OPTION_STDERR; kind++)
        add_number(&block, kind, FF_STREAM_NULL);
    become_alone(&block);
    CHECK_INT(read(STDIN_FILENO, &byte, 1), 0);
    CHECK_INT(write(STDERR_FILENO, "x", 1), 1);
    for (int fd = 0; fd <= STDERR_FILENO; fd++)
        CHECK_INT(fcntl(fd, F_GETFD), 0);
    CHECK(!check_fd_is_open(STDERR_FILENO + 1));
}

static void apply_surroundings(void)
{
    struct block block = empty_block();
    char directory[100];
    struct ff_applied applied;

    add(&block, FF_OPTION_NEW_SESSION, "", 0);
    add_number(&block, FF_OPTION_UMASK, 027);
    add_string(&block, FF_OPTION_CWD, "/usr");
    add_number(&block, FF_OPTION_NICE, 7);
    applied = become_alone(&block);
    CHECK_INT(applied.kinds,
              1 << FF_OPTION_NEW_SESSION | 1 << FF_OPTION_UMASK | 1 << FF_OPTION_CWD | 1 << FF_OPTION_NICE);
    CHECK_INT(getsid(0), getpid());
    CHECK_INT(umask(0), 027);
    CHECK_INT(strcmp(getcwd(directory, sizeof directory), "/usr"), 0);
    CHECK_INT(getpriority(PRIO_PROCESS, 0), 7);
}

static void apply_limits(void)
{
    struct block block = empty_block();
    struct rlimit core, files;

    add_limit(&block, RLIMIT_CORE, 0, 4096);
    add_limit(&block, RLIMIT_NOFILE, 64, 65);
    CHECK_INT(become_alone(&block).kinds, 0);
    CHECK_INT(getrlimit(RLIMIT_CORE, &core), 0);
    CHECK_INT(getrlimit(RLIMIT_NOFILE, &files), 0);
    CHECK_INT(core.rlim_cur, 0);
    CHECK_INT(core.rlim_max, 4096);
    CHECK_INT(files.rlim_cur, 64);
    CHECK_INT(files.rlim_max, 65);
}

static void apply_environment(void)
{
    struct block block = empty_block();
    struct ff_applied applied;

    add(&block, FF_OPTION_ENV, "A=1\0B=x=y", 10);
    applied = become_alone(&block);
    CHECK_INT(applied.env_size, 10);
    CHECK_MEM(applied.env, "A=1\0B=x=y", 10);
    memset(block.bytes, 0, sizeof block.bytes); /* it does not live on that */
    CHECK_INT(strcmp(getenv("A"), "1"), 0);
    CHECK_INT(strcmp(getenv("B"), "x=y"), 0);
    CHECK(environ[2] == NULL);
    CHECK_INT(setenv("C", "3", 1), 0);
    CHECK_INT(unsetenv("A"), 0);
    CHECK(getenv("A") == NULL);
    CHECK_INT(strcmp(getenv("C"), "3"), 0);
}

static void apply_no_environment(void)
{
    struct block block = empty_block();

    add(&block, FF_OPTION_ENV, "", 0);
    CHECK_INT(become_alone(&block).kinds, 1 << FF_OPTION_ENV);
    CHECK(environ[0] == NULL);
}

#ifdef __linux__
static void apply_affinity(void)
{
    struct block block = empty_block();
    cpu_set_t allowed, now;
    int cpu = 0;

    CHECK_INT(sched_getaffinity(0, sizeof allowed, &allowed), 0);
    while (!CPU_ISSET(cpu, &allowed))
        cpu++;
    unsigned char bits[FF_MAX_CPUS / 8] = {0};

    bits[cpu / 8] = (unsigned char)(1 << cpu % 8);
    add(&block, FF_OPTION_AFFINITY, bits, (uint32_t)cpu / 8 + 1);
    become_alone(&block);
    CHECK_INT(sched_getaffinity(0, sizeof now, &now), 0);
    CHECK_INT(CPU_COUNT(&now), 1);
    CHECK(CPU_ISSET(cpu, &now));
}

static void apply_no_processor(void)
{
    struct block block = empty_block();
    struct ff_applied applied;
    struct ff_unfit unfit;

    add(&block, FF_OPTION_AFFINITY, "", 1);
    unfit = ff_options_apply(block.bytes, (int[1]){-1}, &(size_t){0}, &applied);
    CHECK_INT(unfit.error, EINVAL);
    CHECK_INT(unfit.option, FF_OPTION_AFFINITY);
}
#endif

static void fail_amid_options(void)
{
    struct block block = empty_block();
    struct ff_applied applied;
    struct ff_unfit unfit;
    size_t count = 2;
    int ends[2];

    make_pipe(ends);
    umask(0);
    add_number(&block, FF_OPTION_STDIN, FF_STREAM_FD);
    add_string(&block, FF_OPTION_CWD, "/nowhere/at/all");
    add_number(&block, FF_OPTION_UMASK, 077);
    unfit = ff_options_apply(block.bytes, ends, &count, &applied);
    CHECK_INT(unfit.error, ENOENT);
    CHECK_INT(unfit.option, FF_OPTION_CWD);
    CHECK_INT(umask(0), 0);
    CHECK_INT(count, 1);
}

static void fail_for_want_of_descriptors(void)
{
    struct block block = empty_block();
    struct ff_applied applied;
    struct ff_unfit unfit;

    add_number(&block, FF_OPTION_STDOUT, FF_STREAM_NULL);
    leave_only_fds(0);
    unfit = ff_options_apply(block.bytes, (int[1]){-1}, &(size_t){0}, &applied);
    CHECK_INT(unfit.error, EMFILE);
    CHECK_INT(unfit.option, FF_OPTION_STDOUT);
}

static void test_applying(void)
{
    in_child(apply_streams);
    in_child(apply_streams_that_stand_in_each_others_way);
    in_child(apply_null_streams);
    in_child(apply_surroundings);
    in_child(apply_limits);
    in_child(apply_environment);
    in_child(apply_no_environment);
#ifdef __linux__
    in_child(apply_affinity);
    in_child(apply_no_processor);
#endif
}

static void test_failing(void)
{
    in_child(fail_amid_options);
    in_child(fail_for_want_of_descriptors);
}

/* ---- children of a server ---- */

/* Two directories in which a child does not arrive. */
#define DEADLY "/deadly"
#define ENDLESS "/endless"

int __real_chdir(const char *path);
int __wrap_chdir(const char *path);

int __wrap_chdir(const char *path)
{
    if (strcmp(path, DEADLY) == 0)
        raise(SIGKILL);
    if (strcmp(path, ENDLESS) == 0)
        write_all(STDOUT_FILENO, "w", 1);
    while (strcmp(path, ENDLESS) == 0)
        pause();
    return __real_chdir(path);
}

/* Its exit code is its umask and a byte of the payload; it tells its descriptors that it runs. */
static int tell_mask(const struct ff_request *request)
{
    CHECK_INT(request->payload_size, 1);
    CHECK_INT(request->options, 1 << FF_OPTION_UMASK);
    for (uint32_t i = 0; i < request->fd_count; i++)
        write_all(request->fds[i], "r", 1);
    return (int)umask(0) + request->payload[0];
}

static const struct service telling = {.child = tell_mask};

static void add_payload(struct block *block, unsigned char byte)
{
    block->bytes[block->size++] = byte;
}

/* A request whose child is to have this umask, and after that this directory, if any; the byte of the payload is 1. */
static struct block request_for(int mask, const char *directory)
{
    struct block block = empty_block();

    add_number(&block, FF_OPTION_UMASK, mask);
    if (directory != NULL)
        add_string(&block, FF_OPTION_CWD, directory);
    add_payload(&block, 1);
    return block;
}

static void send_request(int sock, uint32_t id, uint32_t flags, const struct block *block, const int *fds,
                         uint32_t fd_count)
{
    CHECK_INT(ff_client_send(sock, id, flags | FF_FORK_OPTIONS, block->bytes, block->size, fds, fd_count), 0);
}

static void check_runs(int sock, uint32_t id, int mask)
{
    struct block block = request_for(mask, NULL);
    int ends[2];
    char byte;

    make_pipe(ends);
    send_request(sock, id, 0, &block, &ends[1], 1);
    CHECK(await_frame(sock, FF_FRAME_STARTED, id) > 0);
    CHECK_INT(close(ends[1]), 0);
    check_exit(sock, id, mask + 1);
    read_all(ends[0], &byte, 1);
    await_end(ends[0]);
    CHECK_INT(close(ends[0]), 0);
}

static void check_fails(int sock, uint32_t id, uint32_t flags)
{
    struct block block = request_for(0, "/nowhere/at/all");
    struct ff_frame frame;
    int ends[2];
    int fd;

    make_pipe(ends);
    send_request(sock, id, flags, &block, (int[]){ends[1], ends[1]}, 2);
    CHECK_INT(close(ends[1]), 0);
    frame = await_frame_with_fd(sock, FF_FRAME_FAILED, id, &fd);
    CHECK_INT(frame.value, ENOENT);
    CHECK_INT(frame.option, FF_OPTION_CWD);
    await_end(ends[0]); /* nor has anything been written to it */
    CHECK_INT(close(ends[0]), 0);
}

/* Ask for a child that never begins, and wait until it is there: a descriptor that ends when it does. */
static int start_endless(int sock, uint32_t id)
{
    struct block block = empty_block();
    int ends[2];
    char byte;

    make_pipe(ends);
    add_number(&block, FF_OPTION_STDOUT, FF_STREAM_FD);
    add_string(&block, FF_OPTION_CWD, ENDLESS);
    send_request(sock, id, 0, &block, &ends[1], 1);
    CHECK_INT(close(ends[1]), 0);
    read_all(ends[0], &byte, 1);
    return ends[0];
}

static void await_no_child(int status)
{
    for (int waited = 0; look(status).live_children > 0; waited++) {
        CHECK(waited < DEADLINE_MS);
        poll(NULL, 0, 1);
    }
}

static void test_children_begin_or_fail(void)
{
    struct serving serving;
    int sock, status;

    start_server(&serving, &telling);
    sock = connect_client(&serving);
    status = ask_status(sock);
    check_runs(sock, 1, 3);
    check_fails(sock, 2, 0);
    check_fails(sock, 3, FF_FORK_HELD);
    check_fails(sock, 4, FF_FORK_HELD | FF_FORK_STREAM);
    check_fails(sock, 5, FF_FORK_DIE_WITH_CLIENT);
    check_runs(sock, 6, 4);
    await_no_child(status);
    CHECK_INT(look(status).starts, 2);
    CHECK_INT(look(status).failures[ENOENT], 4);
    close_all((int[]){sock, status}, 2);
    stop_server(&serving);
}

static void test_pid_and_exit_code_on_a_stream(void)
{
    struct block block = request_for(2, NULL);
    struct serving serving;
    int64_t numbers[2];
    int ends[2];
    int sock;

    make_pipe(ends);
    start_server(&serving, &telling);
    sock = connect_client(&serving);
    send_request(sock, 1, FF_FORK_HELD | FF_FORK_STREAM, &block, &ends[1], 1);
    CHECK_INT(close(ends[1]), 0);
    read_all(ends[0], numbers, sizeof numbers);
    CHECK_INT(await_frame(sock, FF_FRAME_STARTED, 1), numbers[0]);
    CHECK_INT(numbers[1], 3);
    check_exit(sock, 1, 3);
    await_end(ends[0]);
    close_all((int[]){sock, ends[0]}, 2);
    stop_server(&serving);
}

static void test_a_child_that_dies_before_it_begins_has_been_started(void)
{
    struct block block = request_for(0, DEADLY);
    struct serving serving;
    int sock;

    start_server(&serving, &telling);
    sock = connect_client(&serving);
    send_request(sock, 1, 0, &block, NULL, 0);
    CHECK(await_frame(sock, FF_FRAME_STARTED, 1) > 0);
    check_exit(sock, 1, -SIGKILL);
    check_runs(sock, 2, 5);
    CHECK_INT(close(sock), 0);
    stop_server(&serving);
}

/* The server ends with no child left, as its own check says. */
static void test_a_child_that_does_not_begin_ends_with_its_client(void)
{
    struct serving serving;
    int sock, other, endless;

    start_server(&serving, &telling);
    sock = connect_client(&serving);
    other = connect_client(&serving);
    endless = start_endless(sock, 1);
    check_runs(other, 1, 5); /* nobody waits for it */
    CHECK(!is_readable(sock));
    CHECK_INT(close(sock), 0);
    await_end(endless);
    close_all((int[]){other, endless}, 2);
    stop_server(&serving);
}

static long count_sleeps(pid_t pid)
{
    char path[64], line[256];
    long count = -1;
    FILE *file;

    snprintf(path, sizeof path, "/proc/%d/status", (int)pid);
    file = fopen(path, "r");
    CHECK(file != NULL);
    while (count < 0 && fgets(line, sizeof line, file) != NULL)
        sscanf(line, "voluntary_ctxt_switches: %ld", &count);
    CHECK_INT(fclose(file), 0);
    CHECK(count >= 0);
    return count;
}

static void test_the_server_rests_while_a_child_does_not_begin(void)
{
    struct serving serving;
    int sock, endless;
    long before, after;

    start_server(&serving, &telling);
    sock = connect_client(&serving);
    endless = start_endless(sock, 1);
    after = count_sleeps(serving.pid);
    do {
        before = after;
        poll(NULL, 0, 5 * FF_HANDED_MS);
        after = count_sleeps(serving.pid);
    } while (after > before);
    close_all((int[]){sock, endless}, 2);
    stop_server(&serving);
}

/* One that has failed leaves its room to the next; one that has still to begin does not. */
static void test_room_for_one(void)
{
    static const struct service narrow = {.child = tell_mask, .max_children = 1};
    struct block block = request_for(6, NULL);
    struct serving serving;
    int sock, other, third, endless, status;

    start_server(&serving, &narrow);
    sock = connect_client(&serving);
    other = connect_client(&serving);
    for (uint32_t id = 1; id < 4; id++)
        check_fails(sock, id, 0);
    endless = start_endless(sock, 4);
    send_request(other, 1, 0, &block, NULL, 0);
    third = connect_client(&serving);
    status = ask_status(third); /* by then the other's request has been read */
    CHECK_INT(look(status).starts, 0);
    CHECK(!is_readable(other));
    CHECK_INT(close(sock), 0);
    CHECK(await_frame(other, FF_FRAME_STARTED, 1) > 0);
    check_exit(other, 1, 7);
    close_all((int[]){other, third, endless, status}, 4);
    stop_server(&serving);
}

static void test_unsound_blocks_are_refused(void)
{
    struct block block = request_for(0, NULL);
    struct serving serving;
    int sock, other;

    block.bytes[0] = 3;
    start_server(&serving, &telling);
    sock = connect_client(&serving);
    other = connect_client(&serving);
    send_request(sock, 77, 0, &block, NULL, 0);
    CHECK_INT(await_frame(sock, FF_FRAME_REFUSED, 77), FF_REFUSED_OPTIONS);
    await_end(sock);
    check_runs(other, 1, 5);
    close_all((int[]){sock, other}, 2);
    stop_server(&serving);
}

/* The held descriptor is none for a stream. */
static void test_a_held_descriptor_is_not_for_a_stream(void)
{
    struct block block = empty_block();
    struct serving serving;
    int sock;

    add_number(&block, FF_OPTION_STDIN, FF_STREAM_FD);
    start_server(&serving, &telling);
    sock = connect_client(&serving);
    send_request(sock, 77, FF_FORK_HELD, &block, &(int){STDIN_FILENO}, 1);
    CHECK_INT(await_frame(sock, FF_FRAME_REFUSED, 77), FF_REFUSED_OPTIONS);
    CHECK_INT(close(sock), 0);
    stop_server(&serving);
}

static void await_spare(int status)
{
    for (int waited = 0; look(status).spares == 0; waited++) {
        CHECK(waited < DEADLINE_MS);
        poll(NULL, 0, 1);
    }
}

static void test_spares_apply_them(void)
{
    static const struct service spared = {.child = tell_mask, .max_spares = 1, .spare_quiet_ms = 600000};
    struct serving serving;
    int sock, status;
    uint64_t before;

    start_server(&serving, &spared);
    sock = connect_client(&serving);
    status = ask_status(sock);
    for (uint32_t id = 0; id < 40; id++)
        check_runs(sock, id, (int)id);
    await_spare(status);
    before = look(status).spare_starts;
    check_runs(sock, 100, 9);
    CHECK_INT(look(status).spare_starts, before + 1);
    await_spare(status);
    check_fails(sock, 101, 0);
    check_runs(sock, 102, 7);
    CHECK_INT(look(status).starts, 42);
    close_all((int[]){sock, status}, 2);
    stop_server(&serving);
}

int main(void)
{
    RUN(test_sound_blocks);
    RUN(test_blocks_of_a_wrong_size);
    RUN(test_blocks_that_end_amid_an_option);
    RUN(test_unsound_options);
    RUN(test_applying);
    RUN(test_failing);
    RUN(test_children_begin_or_fail);
    RUN(test_pid_and_exit_code_on_a_stream);
    RUN(test_a_child_that_dies_before_it_begins_has_been_started);
    RUN(test_a_child_that_does_not_begin_ends_with_its_client);
    RUN(test_the_server_rests_while_a_child_does_not_begin);
    RUN(test_room_for_one);
    RUN(test_unsound_blocks_are_refused);
    RUN(test_a_held_descriptor_is_not_for_a_stream);
    RUN(test_spares_apply_them);
    return 0;
}
