/* ff_spare.c: children that were forked ahead of any request, and wait for one. */
#define _GNU_SOURCE

#include "ff_spare.h"

#include <signal.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#ifdef __linux__
#include <linux/sockios.h>
#endif

#include "ff_fd.h"
#include "ff_util.h"

#define GAP_WEIGHT 0.125 /* of the latest gap between two requests in their mean */
#define LONGEST_GAP \
    1.0 /* what counts as one at the most, and at first: some seventeen requests make a pace */

void ff_spares_init(struct ff_spares *spares, const struct ff_config *config)
{
    memset(spares, 0, sizeof *spares);
    spares->wanted = config->max_spares < FF_MAX_SPARES ? config->max_spares : FF_MAX_SPARES;
    spares->quiet = 1e-3 * config->spare_quiet_ms;
    spares->mean_gap = LONGEST_GAP;
}

void ff_spares_note_request(struct ff_spares *spares)
{
    double now = ff_seconds_now();
    double gap = now - spares->last_request;

    spares->last_request = now;
    spares->mean_gap += GAP_WEIGHT * ((gap < LONGEST_GAP ? gap : LONGEST_GAP) - spares->mean_gap);
}

bool ff_spares_are_short(const struct ff_spares *spares)
{
    return spares->count < spares->wanted && 1e3 * spares->mean_gap < FF_SPARE_GAP_MS &&
           ff_seconds_now() >= spares->next_try;
}

void ff_spares_add(struct ff_spares *spares, struct ff_child *child)
{
    if (spares->count == 0)
        ff_surroundings_look(&spares->surroundings);
    spares->list[spares->count++] = child;
}

void ff_spares_rest(struct ff_spares *spares)
{
    spares->next_try = ff_seconds_now() + spares->quiet;
}

static void remove_at(struct ff_spares *spares, size_t index)
{
    spares->count--;
    memmove(&spares->list[index], &spares->list[index + 1], (spares->count - index) * sizeof spares->list[0]);
}

/* Whatever ends spares before their time may end the next ones as well. */
void ff_spares_forget(struct ff_spares *spares, const struct ff_child *child)
{
    for (size_t i = 0; i < spares->count; i++) {
        if (spares->list[i] != child)
            continue;
        remove_at(spares, i);
        ff_spares_rest(spares);
        return;
    }
}

/* What waitid() has to say of a spare: 1 that it is dead, or stopped where that is asked for; 0 that it is not; -1 that
 * it is no child of this process: somebody else has reaped it. A corpse is left for the reaping of all. */
static int look_at(const struct ff_child *child, int what)
{
    siginfo_t info = {0};

    if (FF_RETRY_EINTR(waitid(P_PID, (id_t)child->pid, &info, what | WNOHANG | WNOWAIT)) < 0)
        return -1;
    return info.si_pid != 0;
}

int ff_spare_has_begun(struct ff_child *child)
{
    struct ff_unfit unfit;
    ssize_t received = FF_RETRY_EINTR(recv(child->spare_sock, &unfit, sizeof unfit, MSG_DONTWAIT));

    if (received == sizeof unfit) {
        child->unfit = unfit;
        return 1;
    }
    if (received >= 0 || errno == ECONNRESET)
        return -EPIPE;
    return errno == EAGAIN || errno == EWOULDBLOCK ? 0 : -errno;
}

/* Linux keeps what has arrived before, and others need not. */
void ff_spare_refuse(const struct ff_child *child)
{
#ifdef __linux__
    shutdown(child->spare_sock, SHUT_RD);
#else
    (void)child;
#endif
}

bool ff_spare_is_stuck(const struct ff_child *child)
{
    return ff_seconds_now() >= child->handed + 1e-3 * FF_HANDED_LIMIT_MS || look_at(child, WSTOPPED) == 1;
}

void ff_spare_kill(const struct ff_child *child)
{
    if (look_at(child, WEXITED) == 0)
        kill(child->pid, SIGKILL);
}

/* The end of its socket ends it; SIGKILL ends one that is stopped, too. */
void ff_spare_dismiss(struct ff_child *child)
{
    ff_close(&child->spare_sock);
    ff_spare_kill(child);
}

static void dismiss_at(struct ff_spares *spares, size_t index)
{
    struct ff_child *child = spares->list[index];

    remove_at(spares, index);
    ff_spare_dismiss(child);
}

void ff_spares_dismiss(struct ff_spares *spares)
{
    while (spares->count > 0)
        dismiss_at(spares, spares->count - 1);
}

static bool have_old_surroundings(const struct ff_spares *spares)
{
    struct ff_surroundings now;

    ff_surroundings_look(&now);
    return !ff_surroundings_equal(&now, &spares->surroundings);
}

/* All in one message, so that it arrives whole or not at all. */
static int send_request(int sock, struct ff_frame header, const unsigned char *payload, const int *fds,
                        size_t fd_count)
{
    unsigned char bytes[sizeof header + FF_MAX_PAYLOAD];
    size_t size = sizeof header + header.payload_size;
    ssize_t sent;

    header.fd_count = (uint32_t)fd_count;
    memcpy(bytes, &header, sizeof header);
    memcpy(bytes + sizeof header, payload, header.payload_size);
    sent = ff_msg_send(sock, bytes, size, fds, fd_count);
    if (sent < 0)
        return (int)sent;
    return (size_t)sent == size ? 0 : -EAGAIN;
}

/* What takes the exit code is looked at by the fork alone, and more descriptors are no single message. */
static bool is_for_spares(const struct ff_frame *header, size_t fd_count)
{
    return !((uint32_t)header->value & FF_FORK_STREAM) && fd_count <= FF_MAX_FDS_PER_MESSAGE;
}

struct ff_child *ff_spares_hand_over(struct ff_spares *spares, const struct ff_frame *header,
                                     const unsigned char *payload, const int *fds, size_t fd_count)
{
    if (spares->count == 0 || !is_for_spares(header, fd_count))
        return NULL;
    if (have_old_surroundings(spares))
        ff_spares_dismiss(spares);
    while (spares->count > 0) {
        struct ff_child *child = spares->list[0];

        if (look_at(child, WEXITED | WSTOPPED) == 0 &&
            send_request(child->spare_sock, *header, payload, fds, fd_count) == 0) {
            remove_at(spares, 0);
            child->handed = ff_seconds_now();
            return child;
        }
        dismiss_at(spares, 0);
    }
    return NULL;
}

int ff_spares_timeout(const struct ff_spares *spares)
{
    double left;

    if (spares->count == 0)
        return -1;
    left = spares->last_request + spares->quiet - ff_seconds_now();
    return left <= 0 ? 0 : 1 + (int)(1e3 * left);
}

void ff_spares_check_quiet(struct ff_spares *spares)
{
    if (ff_spares_timeout(spares) != 0)
        return;
    ff_spares_dismiss(spares);
    spares->mean_gap = LONGEST_GAP;
}

/* ---- in a spare ---- */

static int receive_part(struct ff_spare *spare, size_t size)
{
    int result = ff_reader_expect(&spare->reader, size);

    while (result == 0) {
        result = ff_reader_fill(&spare->reader, spare->sock);
        if (result == 0)
            ff_wait_readable(spare->sock, -1);
    }
    return result;
}

static int tell(int sock, struct ff_unfit unfit)
{
    return ff_msg_send(sock, &unfit, sizeof unfit, NULL, 0) == sizeof unfit && unfit.error == 0 ? 0 : -EPIPE;
}

/* Whether what was told lies there unread, or was thrown away so. */
static bool is_unread(int sock)
{
#ifdef SIOCOUTQ
    int unread = 0;
    int error = 0;
    socklen_t size = sizeof error;

    return (ioctl(sock, SIOCOUTQ, &unread) == 0 && unread > 0) ||
           (getsockopt(sock, SOL_SOCKET, SO_ERROR, &error, &size) == 0 && error == ECONNRESET);
#else
    (void)sock;
    return false;
#endif
}

/* The server's end of the socket need not end with the server: a process that it has just forked holds it, too, until
 * that has run a little. */
static bool is_lost(int sock, pid_t server)
{
    return getppid() != server && is_unread(sock);
}

int ff_spare_begin(struct ff_spare *spare, const struct ff_frame *header, struct ff_reader *reader,
                   struct ff_applied *ret_applied)
{
    struct ff_unfit unfit = {0};

    memset(ret_applied, 0, sizeof *ret_applied);
    if ((uint32_t)header->value & FF_FORK_OPTIONS) {
        unfit.error = -ff_fd_raise(&spare->sock); /* no stream takes its place */
        if (unfit.error == 0)
            unfit = ff_options_apply(reader->bytes, reader->fds, &reader->fd_count, ret_applied);
    }
    return tell(spare->sock, unfit) < 0 || is_lost(spare->sock, spare->server) ? -EPIPE : 0;
}

int ff_spare_receive(struct ff_spare *spare, int timeout_ms, struct ff_applied *ret_applied)
{
    int ready = ff_wait_readable(spare->sock, timeout_ms);
    const struct ff_unfit lack_of_fds = {.error = EMFILE};

    if (ready == 0 || ready == -EINTR)
        return -EAGAIN;
    if (receive_part(spare, sizeof spare->header) < 0)
        return 0;
    memcpy(&spare->header, spare->reader.bytes, sizeof spare->header);
    ff_reader_restart(&spare->reader);
    if (receive_part(spare, spare->header.payload_size) < 0)
        return 0;
    if (spare->reader.fd_count != spare->header.fd_count) {
        tell(spare->sock, lack_of_fds);
        return 0;
    }
    return ff_spare_begin(spare, &spare->header, &spare->reader, ret_applied) == 0;
}
