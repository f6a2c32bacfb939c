/* ff_status.c: what a server tells of itself: counters of its own, and a page with a copy of them. */
#define _GNU_SOURCE

#include "ff_status.h"

#include <fcntl.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>

#include "ff_util.h"

#define PAGE_MAGIC 0x32535441545346ffu /* changes with the layout */
#define READ_TRIES 1000                /* each is lost only to a change of the page within two system calls */

struct ff_status_page {
    uint64_t magic;
    _Atomic uint64_t turn; /* odd: slots[0] is being written, read slots[1]; even: read slots[0] */
    struct ff_status slots[2];
};

/* The same as a reader has copied it. */
struct page_copy {
    uint64_t magic;
    uint64_t turn;
    struct ff_status slots[2];
};
_Static_assert(sizeof(struct page_copy) == sizeof(struct ff_status_page), "the layouts are one");

/* ---- shared memory ---- */

/* A page on its way: for writing, and for reading alone. */
struct page_fds {
    int writable;
    int readable;
};

#if defined(__linux__) && defined(SYS_memfd_create)

#define MEMFD_CLOEXEC 1u
#define MEMFD_ALLOW_SEALING 2u
#define MEMFD_NOEXEC_SEAL 8u /* Linux 6.3; some systems allow no other */

#ifndef F_ADD_SEALS
#define F_ADD_SEALS 1033
#endif
#define SEALS_OF_SIZE 0x6      /* F_SEAL_SHRINK | F_SEAL_GROW */
#define SEAL_FUTURE_WRITE 0x10 /* Linux 5.1 */
#define SEAL_SEALS 0x1         /* F_SEAL_SEAL */

static int create_memfd(void)
{
    unsigned flags = MEMFD_CLOEXEC | MEMFD_ALLOW_SEALING;
    int fd = (int)syscall(SYS_memfd_create, "fastfork-status", flags | MEMFD_NOEXEC_SEAL);

    if (fd < 0 && errno == EINVAL)
        fd = (int)syscall(SYS_memfd_create, "fastfork-status", flags);
    return fd < 0 ? -errno : fd;
}

/* From now on the mapping that exists is the only way to write: even to those who open the file again. */
static bool seal(int fd)
{
    if (fcntl(fd, F_ADD_SEALS, SEALS_OF_SIZE | SEAL_FUTURE_WRITE | SEAL_SEALS) == 0)
        return true;
    fcntl(fd, F_ADD_SEALS, SEALS_OF_SIZE | SEAL_SEALS);
    return false;
}

static int open_pages(struct page_fds *ret_fds)
{
    int fd = create_memfd();

    if (fd < 0)
        return fd;
    *ret_fds = (struct page_fds){.writable = fd, .readable = -1};
    return 0;
}

/* A client gets the descriptor: it must not be one to write to. Without /proc only the seals prevent that. */
static int make_readable(struct page_fds *fds)
{
    char path[32];
    bool sealed = seal(fds->writable);
    int error;

    snprintf(path, sizeof path, "/proc/self/fd/%d", fds->writable);
    fds->readable = open(path, O_RDONLY | O_CLOEXEC);
    if (fds->readable >= 0)
        return 0;
    error = -errno;
    if (!sealed)
        return error;
    fds->readable = ff_steal_fd(&fds->writable);
    return 0;
}

#elif !defined(__linux__)

/* A name for a moment; whoever else has taken it keeps it. */
static int open_pages(struct page_fds *ret_fds)
{
    char name[32];
    struct page_fds fds;
    int error;

    snprintf(name, sizeof name, "/fastfork-%ld", (long)getpid());
    fds.writable = shm_open(name, O_RDWR | O_CREAT | O_EXCL, 0600);
    if (fds.writable < 0)
        return -errno;
    fds.readable = shm_open(name, O_RDONLY, 0);
    error = fds.readable < 0 ? -errno : 0;
    shm_unlink(name);
    if (error < 0)
        ff_close(&fds.writable);
    else
        *ret_fds = fds;
    return error;
}

static int make_readable(struct page_fds *fds)
{
    (void)fds; /* it was opened so */
    return 0;
}

#else

static int open_pages(struct page_fds *ret_fds)
{
    (void)ret_fds;
    return -ENOSYS;
}

static int make_readable(struct page_fds *fds)
{
    (void)fds;
    return -ENOSYS;
}

#endif

/* ---- the server's side ---- */

static int map_page(int fd, struct ff_status_page **ret_page)
{
    struct ff_status_page *page;

    if (ftruncate(fd, sizeof *page) < 0)
        return -errno;
    page = mmap(NULL, sizeof *page, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (page == MAP_FAILED)
        return -errno;
#ifdef MADV_DONTFORK
    /* What no child has mapped no child can write to. */
    if (madvise(page, sizeof *page, MADV_DONTFORK) < 0) {
        int error = -errno;

        munmap(page, sizeof *page);
        return error;
    }
#endif
    page->magic = PAGE_MAGIC;
    *ret_page = page;
    return 0;
}

static int open_page(struct ff_status_board *board)
{
    struct page_fds fds;
    int error = open_pages(&fds);

    if (error < 0)
        return error;
    error = map_page(fds.writable, &board->page);
    if (error == 0)
        error = make_readable(&fds);
    ff_close(&fds.writable);
    if (error == 0)
        board->fd = fds.readable;
    else
        ff_close(&fds.readable);
    return error;
}

static void unmap_page(struct ff_status_board *board)
{
    if (board->page != NULL)
        munmap(board->page, sizeof *board->page);
    board->page = NULL;
}

void ff_status_open(struct ff_status_board *board)
{
    *board = (struct ff_status_board){.fd = -1};
    board->counts.pid = getpid();
    board->counts.started = ff_seconds_now();
    board->error = open_page(board);
    if (board->error < 0)
        unmap_page(board);
    ff_status_publish(board);
}

void ff_status_publish(struct ff_status_board *board)
{
    struct ff_status_page *page = board->page;

    if (page == NULL)
        return;
    for (int i = 0; i < 2; i++) {
        atomic_fetch_add(&page->turn, 1);
        atomic_thread_fence(memory_order_seq_cst);
        page->slots[i] = board->counts;
        atomic_thread_fence(memory_order_seq_cst);
    }
}

static size_t index_of_error(int error)
{
    return error > 0 && error < FF_MAX_ERRNO ? (size_t)error : 0;
}

void ff_status_count_failure(struct ff_status_board *board, int error)
{
    board->counts.failures[index_of_error(error)]++;
    ff_status_publish(board);
}

void ff_status_count_accept_failure(struct ff_status_board *board, int error)
{
    board->counts.accept_failures[index_of_error(error)]++;
    ff_status_publish(board);
}

void ff_status_count_refusal(struct ff_status_board *board, enum ff_refusal cause)
{
    board->counts.refused[cause]++;
    ff_status_publish(board);
}

void ff_status_close(struct ff_status_board *board)
{
    unmap_page(board);
    ff_close(&board->fd);
}

void ff_status_abandon(struct ff_status_board *board)
{
#ifdef MADV_DONTFORK
    board->page = NULL; /* it was not mapped here: something else may be there now */
#else
    unmap_page(board);
#endif
    board->fd = -1;
}

/* ---- the client's side ---- */

static int read_at(int fd, void *ret_bytes, size_t size, size_t offset)
{
    ssize_t received = FF_RETRY_EINTR(pread(fd, ret_bytes, size, (off_t)offset));

    if (received < 0)
        return -errno;
    return (size_t)received == size ? 0 : -EINVAL;
}

/* 1 and the page, 0 when it has changed meanwhile, or -errno. The head is read before what it speaks of. */
static int read_page(int fd, struct page_copy *copy)
{
    uint64_t turn;
    int error = read_at(fd, copy, offsetof(struct page_copy, slots), 0);

    if (error == 0 && copy->magic != PAGE_MAGIC)
        error = -EINVAL;
    atomic_thread_fence(memory_order_seq_cst);
    if (error == 0)
        error = read_at(fd, copy->slots, sizeof copy->slots, offsetof(struct page_copy, slots));
    atomic_thread_fence(memory_order_seq_cst);
    if (error == 0)
        error = read_at(fd, &turn, sizeof turn, offsetof(struct page_copy, turn));
    return error < 0 ? error : turn == copy->turn;
}

int ff_status_read(int fd, struct ff_status *ret_status)
{
    struct page_copy copy;
    int result = 0;

    for (int i = 0; i < READ_TRIES && result == 0; i++)
        result = read_page(fd, &copy);
    if (result < 0)
        return result;
    if (result == 0)
        return -EAGAIN;
    *ret_status = copy.slots[copy.turn & 1];
    return 0;
}
