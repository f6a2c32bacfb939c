/* ff_server.c: the server: its clients, its children, and the loop that serves them.
 *
 * All is non-blocking: no client can make another one wait. In a child ff_server_serve() returns, the
 * descriptors of the server are closed, and only the memory of the request is of any use.
 */
#define _GNU_SOURCE

#include "ff_server.h"

#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdbool.h>
#include <string.h>
#include <sys/resource.h>

#include "ff_address.h"
#include "ff_connection.h"
#include "ff_fd.h"
#include "ff_loop.h"
#include "ff_spare.h"
#include "ff_tree.h"
#include "ff_util.h"

#define SUSPICION_MS 50                    /* from a death without a corpse until each child is asked for */
#define TIME_CHECK_MS (FF_REQUEST_MS / 10) /* between two looks at who is amid a request for too long */

/* The loop's, listener, alive, reserve, status, the held one of the new child and its socket. */
#define OWN_FDS (FF_LOOP_MAX_FDS + 6)

struct ff_server {
    struct ff_config config;
    unsigned char authkey[FF_MAX_AUTHKEY];
    int reserve_fd;          /* given up for a moment when a client is to get the last descriptor */
    bool listening;          /* the loop watches the listener */
    bool has_place;          /* some client has gone since the listener came to rest */
    double next_accept;      /* when it is to be watched again without that */
    bool resting;            /* some connection waits for the system to have memory again */
    double next_retry;       /* when what rests is to be tried again */
    uint32_t missing;        /* modules that a client has loaded and this process has not */
    bool anyone_waits;       /* for these, or for room for a child; perhaps gone since */
    bool crowded;            /* there is room for children that wait, and no time was left for them */
    uint64_t tickets;        /* given to connections that wait */
    double next_check;       /* when children that somebody else may have reaped are looked for; 0: never */
    double next_kills;       /* when doomed children are to be seen to again */
    struct rlimit own_limit; /* of open descriptors, as it was before; children get it back */
    bool limit_is_raised;
    bool is_amid_requests;  /* some client is, or was: it has to come to an end */
    double next_time_check; /* when it is looked at whether each of them still has time */
    bool has_gone;          /* some client: its record is to be freed */
    bool leaving;           /* the alive descriptor has ended */
    bool done;              /* nobody is owed anything, and a last look has found nothing new */
    bool in_child; /* the descriptors of the records below are closed: their numbers mean others now */
    struct ff_loop *loop;
    const struct ff_fork_hooks *hooks;
    struct ff_connection *connections;
    size_t connection_count;
    struct ff_children children;
    struct ff_spares spares;
    size_t handed_count;        /* requests that spares, on demand or not, have and have not begun with */
    size_t looked_at_count;     /* of those spares, the ones that more than their sockets may tell of */
    double next_look;           /* at those */
    struct ff_spare spare;      /* what this process is, if it is one */
    bool is_unfit;              /* this is a child, and could not become what its request says */
    struct ff_applied applied;  /* otherwise: what it has become */
    struct sigaction spare_int; /* what SIGINT does to it once it has its request */
    struct ff_status_board status;
};

int ff_server_new(const struct ff_config *config, struct ff_server **ret_server)
{
    struct ff_server *server;
    int error;

    if (config->authkey_size == 0 || config->authkey_size > FF_MAX_AUTHKEY)
        return -EINVAL;
    server = calloc(1, sizeof *server);
    if (server == NULL)
        return -ENOMEM;
    server->config = *config;
    memcpy(server->authkey, config->authkey, config->authkey_size);
    server->config.authkey = server->authkey;
    server->reserve_fd = -1;
    error = ff_fd_set_nonblock(config->listener_fd);
    if (error == 0)
        error = ff_fd_set_cloexec(config->listener_fd);
    if (error == 0 && config->alive_fd >= 0)
        error = ff_fd_set_cloexec(config->alive_fd);
    if (error == 0 && config->alive_fd >= 0)
        error = ff_fd_set_nonblock(config->alive_fd);
    if (error < 0) {
        free(server);
        return error;
    }
    ff_spares_init(&server->spares, config);
    server->spare.sock = -1;
    ff_status_open(&server->status);
    *ret_server = server;
    return 0;
}

/* Say how many there are. Before a client is told of what has changed: it may look at once. */
static void publish_numbers(struct ff_server *server)
{
    server->status.counts.clients = (uint32_t)server->connection_count;
    server->status.counts.live_children = (uint32_t)(server->children.count - server->children.spare_count);
    server->status.counts.spares = (uint32_t)server->spares.count;
    ff_status_publish(&server->status);
}

/* ---- clients ---- */

/* The system had no memory to watch it for something else. What it was watched for until now would be taken for that: one
 * that waits for a child seems to have gone once it may be read. */
static void rest_connection(struct ff_server *server, struct ff_connection *connection)
{
    server->loop->backend->watch(server->loop, connection->sock, 0, NULL);
    connection->watched = 0;
    connection->stalled = server->resting = true;
}

/* After whatever has happened to a connection. The server knows by this what there is to be done about any of them: the
 * records of those to which nothing happens stay untouched, as each page that is written to is copied after each fork. */
static void watch_connection(struct ff_server *server, struct ff_connection *connection)
{
    unsigned interest = ff_connection_interest(connection);

    server->resting |= connection->stalled;
    server->is_amid_requests |= ff_connection_note_time(connection);
    server->has_gone |= connection->state == FF_CONNECTION_GONE;
    if (connection->state == FF_CONNECTION_GONE || interest == connection->watched)
        return;
    connection->watched = interest;
    if (server->loop->backend->watch(server->loop, connection->sock, interest, connection) < 0)
        rest_connection(server, connection);
}

static void part_from_spare(struct ff_server *server, struct ff_connection *connection);

/* The record stays until the end of the batch, which may hold events of it. */
static void part_from(struct ff_server *server, struct ff_connection *connection)
{
    if (connection->spare != NULL)
        part_from_spare(server, connection);
    /* A child's copy would keep the socket in the epoll set after close(). */
    server->loop->backend->watch(server->loop, connection->sock, 0, NULL);
    ff_connection_shut(connection);
    server->has_place = true;
    server->connection_count--;
    if (connection->child_count > 0)
        ff_children_disown(&server->children, connection);
    publish_numbers(server);
}

/* Clients come first in, so the oldest one is the last of the list. */
static struct ff_connection *find_oldest_stranger(const struct ff_server *server)
{
    struct ff_connection *oldest = NULL;

    for (struct ff_connection *other = server->connections; other != NULL; other = other->next)
        if (ff_connection_is_stranger(other))
            oldest = other;
    return oldest;
}

/* Who does not prove that it knows the key keeps nobody else out. */
static bool evict_stranger(struct ff_server *server)
{
    struct ff_connection *oldest = find_oldest_stranger(server);

    if (oldest == NULL || ff_seconds_now() < oldest->opened + 1e-3 * FF_GRACE_MS)
        return false;
    ff_connection_dismiss(oldest, FF_REFUSED_CLIENTS);
    part_from(server, oldest);
    server->has_gone = true;
    return true;
}

static void rest_listener(struct ff_server *server)
{
    server->loop->backend->watch(server->loop, server->config.listener_fd, 0, NULL);
    server->listening = false;
    server->has_place = false;
    server->next_accept = ff_seconds_now() + 1e-3 * FF_RETRY_MS;
}

/* As soon as a client has left, and now and then. */
static void resume_listener(struct ff_server *server)
{
    if (server->listening || (!server->has_place && ff_seconds_now() < server->next_accept))
        return;
    server->listening = server->loop->backend->watch(server->loop, server->config.listener_fd, FF_READABLE,
                                                     &server->config.listener_fd) == 0;
}

/* Only processes of the same user come in. */
static bool may_come_in(struct ff_server *server, int sock)
{
    uid_t uid;
    int error = ff_fd_peer_uid(sock, &uid);

    if (error < 0)
        ff_status_count_accept_failure(&server->status, -error);
    else if (uid != geteuid())
        ff_status_count_refusal(&server->status, FF_REFUSED_USER);
    return error == 0 && uid == geteuid();
}

static void count_lack(struct ff_server *server, int error)
{
    if (error == -ENOMEM)
        ff_status_count_refusal(&server->status, FF_REFUSED_MEMORY);
    else
        ff_status_count_accept_failure(&server->status, -error);
}

static void take_client(struct ff_server *server, int sock)
{
    struct ff_connection *connection;
    int error;

    if (!may_come_in(server, sock)) {
        ff_close(&sock);
        return;
    }
    server->connection_count++;
    publish_numbers(server);
    error = ff_connection_open(sock, &server->status, &connection);
    if (error < 0) {
        server->connection_count--;
        count_lack(server, error);
        publish_numbers(server);
        ff_close(&sock);
        return;
    }
    connection->next = server->connections;
    server->connections = connection;
    watch_connection(server, connection);
}

/* 1 when there may be more, 0 when there is none, or -errno. */
static int accept_client(struct ff_server *server)
{
    int sock = server->connection_count < FF_MAX_CLIENTS ? ff_fd_accept(server->config.listener_fd) : -EUSERS;

    if (sock >= 0)
        take_client(server, sock);
    if (sock >= 0)
        return 1;
    if (sock == -EAGAIN || sock == -EWOULDBLOCK)
        return 0;
    /* Without a descriptor left accept() fails even where nobody is there. */
    return ff_wait_readable(server->config.listener_fd, 0) == 0 ? 0 : sock;
}

static bool is_lack_of_place(int error)
{
    return error == -EUSERS || error == -EMFILE || error == -ENFILE || error == -ENOMEM || error == -ENOBUFS;
}

/* Not more at once than other events: who connects again and again keeps nobody waiting. Where there is no room,
 * those who wait keep their place in the backlog. */
static void accept_clients(struct ff_server *server)
{
    for (int i = 0; i < FF_LOOP_BATCH; i++) {
        int result = accept_client(server);

        if (result == 0)
            return;
        if (result > 0)
            continue;
        ff_status_count_accept_failure(&server->status, -result);
        if (!is_lack_of_place(result) || !evict_stranger(server)) {
            rest_listener(server);
            return;
        }
    }
}

/* Now and then, while some client is amid a request. */
static void check_times(struct ff_server *server)
{
    if (!server->is_amid_requests || ff_seconds_now() < server->next_time_check)
        return;
    server->is_amid_requests = false;
    server->next_time_check = ff_seconds_now() + 1e-3 * TIME_CHECK_MS;
    for (struct ff_connection *other = server->connections; other != NULL; other = other->next) {
        if (ff_connection_check_time(other))
            watch_connection(server, other);
        server->is_amid_requests |= other->began > 0;
    }
}

static void drop_gone_clients(struct ff_server *server)
{
    struct ff_connection **link = &server->connections;

    if (!server->has_gone)
        return;
    server->has_gone = false;
    while (*link != NULL) {
        struct ff_connection *connection = *link;

        if (connection->state != FF_CONNECTION_GONE) {
            link = &connection->next;
            continue;
        }
        *link = connection->next;
        if (connection->sock >= 0)
            part_from(server, connection);
        ff_connection_free(connection);
    }
}

/* ---- forking ---- */

static size_t count_fds(const struct ff_server *server)
{
    size_t count = OWN_FDS + FF_CHILD_FDS * server->children.count;

    for (struct ff_connection *other = server->connections; other != NULL; other = other->next)
        count += 2 + other->reader.fd_count;
    return count;
}

static size_t add_fd(int *fds, size_t count, int fd)
{
    if (fd >= 0)
        fds[count++] = fd;
    return count;
}

struct fork_job {
    struct ff_server *server;
    struct ff_connection *connection; /* whose request it is for; NULL: a spare */
    struct ff_child *child;
    int spare_sock;    /* the spare's end of its socket, or -1 */
    int *fds_to_close; /* allocated before the fork: a child without memory could not clean up */
};

static size_t gather_fds(const struct fork_job *job)
{
    const struct ff_server *server = job->server;
    int *fds = job->fds_to_close;
    size_t count = server->loop->backend->own_fds(server->loop, fds);

    count = add_fd(fds, count, server->config.listener_fd);
    count = add_fd(fds, count, server->config.alive_fd);
    count = add_fd(fds, count, server->reserve_fd);
    count = add_fd(fds, count, server->status.fd);
    count = add_fd(fds, count, job->child->held_fd);
    count = add_fd(fds, count, job->child->spare_sock);
    count += ff_children_held_fds(&server->children, fds + count);
    for (struct ff_connection *other = server->connections; other != NULL; other = other->next) {
        count = add_fd(fds, count, other->sock);
        count = add_fd(fds, count, other->outbox.fd);
        if (other != job->connection)
            for (size_t i = 0; i < other->reader.fd_count; i++)
                count = add_fd(fds, count, other->reader.fds[i]);
    }
    return count;
}

/* A server has its clients' descriptors beside its own: it lets itself have as many as it may. */
static void raise_limit(struct ff_server *server)
{
    struct rlimit raised;

    if (getrlimit(RLIMIT_NOFILE, &server->own_limit) < 0)
        return;
    raised = server->own_limit;
    raised.rlim_cur = raised.rlim_max < FF_MAX_OPEN_FDS ? raised.rlim_max : FF_MAX_OPEN_FDS;
    server->limit_is_raised =
        raised.rlim_cur > server->own_limit.rlim_cur && setrlimit(RLIMIT_NOFILE, &raised) == 0;
}

static void restore_limit(struct ff_server *server)
{
    if (server->limit_is_raised)
        setrlimit(RLIMIT_NOFILE, &server->own_limit);
    server->limit_is_raised = false;
}

static void lower_fds(struct fork_job *job)
{
    rlim_t limit = job->server->own_limit.rlim_cur;

    if (!job->server->limit_is_raised)
        return;
    if (job->connection != NULL)
        ff_fd_lower_all(job->connection->reader.fds, job->connection->reader.fd_count, limit);
    else
        ff_fd_lower_all(&job->spare_sock, 1, limit);
}

static bool has_options(const struct ff_connection *connection)
{
    return (uint32_t)connection->header.value & FF_FORK_OPTIONS;
}

/* In a child on demand, as the last thing of the core's. One that is unfit keeps the socket as long as it lives: to the
 * server its end is that of the process. */
static void begin_with_options(struct fork_job *job)
{
    struct ff_connection *connection = job->connection;
    struct ff_server *server = job->server;

    server->spare.sock = job->spare_sock;
    server->is_unfit =
        ff_spare_begin(&server->spare, &connection->header, &connection->reader, &server->applied) < 0;
    if (!server->is_unfit)
        ff_close(&server->spare.sock);
}

/* Runs in the child: nothing of the server stays but the request, or the way that it will come. */
static void leave_server(void *arg, sigset_t *mask)
{
    struct fork_job *job = arg;
    struct ff_server *server = job->server;
    bool is_spare = job->connection == NULL;

    ff_fd_close_all(job->fds_to_close, gather_fds(job));
    lower_fds(job);
    restore_limit(server);
    if (job->child->dies_with_client)
        ff_tree_become_root();
    job->child->held_fd = job->child->spare_sock = -1;
    server->spare.sock = is_spare ? job->spare_sock : -1;
    server->spare.server = (pid_t)server->status.counts.pid;
    ff_reader_init(&server->spare.reader);
    ff_status_abandon(&server->status);
    /* ^C is not for a process that does nothing yet. */
    server->loop->backend->abandon(server->loop, mask, is_spare ? &server->spare_int : NULL);
    server->loop = NULL;
    ff_address_forget(); /* what the signals had before the server may be that */
    server->in_child = true;
    if (!is_spare && has_options(job->connection))
        begin_with_options(job);
}

/* The first descriptor of the request stays with the server when the client wants it held. */
static void take_wishes(struct ff_child *child, struct ff_connection *connection)
{
    uint32_t flags = (uint32_t)connection->header.value;
    struct ff_reader *reader = &connection->reader;

    child->dies_with_client = flags & FF_FORK_DIE_WITH_CLIENT;
    if (!(flags & FF_FORK_HELD))
        return;
    child->held_fd = reader->fds[0];
    child->stream = flags & FF_FORK_STREAM;
    reader->fd_count--;
    memmove(reader->fds, reader->fds + 1, reader->fd_count * sizeof *reader->fds);
}

/* A full or broken pipe is the client's own loss. It ends there, lest the next number be taken for this one. */
static void write_stream(struct ff_child *child, int64_t number)
{
    if (ff_fd_write_now(child->held_fd, &number, sizeof number) == 0)
        return;
    child->stream = false;
    ff_fd_drop(&child->held_fd);
}

/* Open a descriptor for a client. When there is none left, the reserve makes room. */
static int open_for_client(struct ff_server *server, int (*open_fd)(int), int argument)
{
    int fd = open_fd(argument);

    if (fd == -EMFILE && server->reserve_fd >= 0) {
        ff_close(&server->reserve_fd);
        fd = open_fd(argument);
    }
    return fd;
}

static void restore_reserve(struct ff_server *server)
{
    if (server->reserve_fd < 0)
        server->reserve_fd = ff_fd_duplicate(server->config.listener_fd);
}

static bool wants_pidfd(const struct ff_server *server, const struct ff_connection *connection)
{
    return connection->header.value & FF_FORK_PIDFD && server->config.backend == FF_BACKEND_AUTO;
}

/* While its pid is sure to be its own. */
static void open_pidfd(struct ff_server *server, const struct ff_connection *connection,
                       struct ff_child *child)
{
    if (wants_pidfd(server, connection))
        child->pidfd = open_for_client(server, ff_pidfd_open, (int)child->pid);
}

static void report_started(struct ff_server *server, struct ff_connection *connection, struct ff_child *child)
{
    int pidfd = ff_steal_fd(&child->pidfd);
    struct ff_frame frame = ff_frame_make(FF_FRAME_STARTED, connection->header.id, (int32_t)child->pid);

    if (child->stream)
        write_stream(child, child->pid);
    if (wants_pidfd(server, connection) && pidfd < 0 && pidfd != -ENOSYS) {
        /* Nobody could wait for it. */
        if (!child->is_dead)
            kill(child->pid, SIGKILL);
        child->owner = NULL;
        connection->child_count--;
        ff_connection_post_failure(connection, -pidfd);
    } else {
        ff_connection_post(connection, frame, pidfd < 0 ? -1 : pidfd);
    }
    restore_reserve(server);
}

/* A stream ends at once, even when the client reads nothing; a sentinel has ended already. */
static void report_exit(struct ff_server *server, struct ff_child *child)
{
    struct ff_connection *owner = child->owner;
    FF_CLEANUP(ff_fd_drop) int held_fd = -1;

    if (child->stream)
        write_stream(child, child->exit_code);
    if (owner == NULL) {
        ff_child_free(child);
        return;
    }
    held_fd = ff_steal_fd(&child->held_fd);
    owner->child_count--;
    ff_connection_post_exit(owner, child);
    ff_connection_flush(owner);
    watch_connection(server, owner);
}

/* ---- requests that spares have ---- */

/* Its client's from now on. */
static void enlist(struct ff_server *server, struct ff_connection *connection, struct ff_child *child)
{
    connection->child_count++;
    server->status.counts.starts++;
    publish_numbers(server);
    report_started(server, connection, child);
}

/* Whether more than its socket may tell of a spare that has a request: it is looked at now and then. */
static void set_looked_at(struct ff_server *server, struct ff_child *child, bool is_looked_at)
{
    if (is_looked_at && server->looked_at_count == 0)
        server->next_look = ff_seconds_now() + 1e-3 * FF_HANDED_MS;
    server->looked_at_count += is_looked_at;
    server->looked_at_count -= child->is_looked_at;
    child->is_looked_at = is_looked_at;
}

/* One that has been forked ahead may not begin for reasons of its own; one on demand says all by its socket, unless there
 * is no memory for a watch. */
static void watch_spare(struct ff_server *server, struct ff_connection *connection)
{
    struct ff_child *child = connection->spare;
    int error = server->loop->backend->watch(server->loop, child->spare_sock, FF_READABLE, connection);

    set_looked_at(server, child, !child->is_on_demand || error < 0);
}

/* The spare of a request is done with it, or the request with the spare: the socket is no longer watched. */
static struct ff_child *take_spare(struct ff_server *server, struct ff_connection *connection)
{
    struct ff_child *child = connection->spare;

    /* A child's copy would keep it in the epoll set after close(). */
    if (server->loop != NULL)
        server->loop->backend->watch(server->loop, child->spare_sock, 0, NULL);
    connection->spare = NULL;
    server->handed_count--;
    set_looked_at(server, child, false);
    return child;
}

/* It is a child like all others from now on, if perhaps a dead one. */
static void adopt(struct ff_server *server, struct ff_connection *connection, struct ff_child *child)
{
    ff_close(&child->spare_sock);
    ff_children_adopt_spare(&server->children, child);
    if (!child->is_on_demand)
        take_wishes(child, connection);
}

/* Nobody hears of it. */
static void discard(struct ff_child *child)
{
    child->owner = NULL;
    child->stream = false;
    ff_spare_dismiss(child);
}

/* The spare has said that it begins with its request, or why it cannot. */
static void begin(struct ff_server *server, struct ff_connection *connection)
{
    struct ff_child *child = take_spare(server, connection);

    if (child->unfit.error != 0) {
        discard(child);
        ff_connection_post_unfit(connection, child->unfit);
    } else {
        adopt(server, connection, child);
        server->status.counts.spare_starts += !child->is_on_demand;
        enlist(server, connection, child);
    }
    ff_connection_next_request(connection);
    watch_connection(server, connection);
}

/* It will not begin. Whether it has done so after all is looked up once it is dead: no request is served twice. */
static void condemn(struct ff_server *server, struct ff_child *child)
{
    server->loop->backend->watch(server->loop, child->spare_sock, 0, NULL);
    set_looked_at(server, child, false);
    child->is_condemned = true;
    ff_spare_kill(child);
}

/* Find out whether the spare has begun: whether the event was about that. */
static bool settle(struct ff_server *server, struct ff_connection *connection)
{
    int begun = connection->spare->is_condemned ? 0 : ff_spare_has_begun(connection->spare);

    if (begun > 0)
        begin(server, connection);
    else if (begun == -EPIPE)
        condemn(server, connection->spare);
    return begun != 0;
}

/* Once it is dead. Where that cannot be told it counts as begun: no request is served twice. */
static bool may_have_begun(struct ff_child *child)
{
    return ff_spare_has_begun(child) != -EPIPE;
}

/* A child on demand is dead and has said nothing. Whatever has killed it, its client is told that as of any child; but one
 * that has ended by itself could not even say why it did not begin. */
static void lose_silent(struct ff_server *server, struct ff_child *child)
{
    if (child->exit_code >= 0)
        child->unfit.error = EPIPE;
    begin(server, child->owner);
}

/* A spare is dead. If it had begun with a request, that is told first; else the request is for a fork, unless it comes
 * from one. */
static void lose_spare(struct ff_server *server, struct ff_child *child)
{
    struct ff_connection *connection = child->owner;

    if (connection == NULL) {
        ff_spares_forget(&server->spares, child);
    } else if (may_have_begun(child)) {
        begin(server, connection);
    } else if (child->is_on_demand) {
        lose_silent(server, child);
    } else {
        take_spare(server, connection);
        child->owner = NULL;
        server->anyone_waits = true;
        ff_spares_rest(&server->spares);
    }
}

/* Its client has gone. One that has begun is like a child whose client went after it heard of it. */
static void part_from_spare(struct ff_server *server, struct ff_connection *connection)
{
    struct ff_child *child = take_spare(server, connection);

    if (ff_spare_has_begun(child) <= 0 || child->unfit.error != 0) {
        discard(child);
        return;
    }
    adopt(server, connection, child);
    server->status.counts.starts++;
    connection->child_count++;
}

/* Its time to begin is over, unless it has done so at the last moment: then it is left alone. */
static void give_up(struct ff_server *server, struct ff_connection *connection)
{
    ff_spare_refuse(connection->spare);
    if (!settle(server, connection))
        condemn(server, connection->spare);
}

/* Now and then, while some spare does not begin. */
static void look_at_handed(struct ff_server *server)
{
    if (server->looked_at_count == 0 || ff_seconds_now() < server->next_look)
        return;
    server->next_look = ff_seconds_now() + 1e-3 * FF_HANDED_MS;
    for (struct ff_connection *other = server->connections; other != NULL; other = other->next) {
        if (other->spare != NULL)
            settle(server, other);
        if (other->spare == NULL || !other->spare->is_looked_at)
            continue;
        if (other->spare->is_on_demand)
            watch_spare(server, other); /* there may be memory again */
        else if (ff_spare_is_stuck(other->spare))
            give_up(server, other);
    }
}

/* The spare has the request; its client hears of it when it begins. */
static void await_beginning(struct ff_server *server, struct ff_connection *connection,
                            struct ff_child *child)
{
    open_pidfd(server, connection, child);
    connection->spare = child;
    ff_connection_wait(connection, server->tickets++);
    server->handed_count++;
    publish_numbers(server);
    watch_spare(server, connection);
}

/* Whether a spare has got the request. */
static bool hand_to_spare(struct ff_server *server, struct ff_connection *connection)
{
    const struct ff_reader *reader = &connection->reader;
    size_t held = (uint32_t)connection->header.value & FF_FORK_HELD ? 1 : 0;
    struct ff_child *child = ff_spares_hand_over(&server->spares, &connection->header, reader->bytes,
                                                 reader->fds + held, reader->fd_count - held);

    if (child == NULL)
        return false;
    child->owner = connection;
    child->request_id = connection->header.id;
    await_beginning(server, connection, child);
    return true;
}

static void report_dead(struct ff_server *server, struct ff_child *dead)
{
    for (struct ff_child *child = dead; child != NULL; child = child->next)
        if (child->is_spare)
            lose_spare(server, child);
    if (dead != NULL)
        publish_numbers(server);
    while (dead != NULL) {
        struct ff_child *child = dead;

        dead = child->next;
        report_exit(server, child);
    }
}

/* Fork a child that can say when it begins. */
static pid_t fork_with_socket(struct fork_job *job)
{
    int ends[2];
    int error = ff_fd_socketpair(ends);
    pid_t pid;

    if (error < 0)
        return error;
    job->child->is_spare = true;
    job->child->spare_sock = ends[0];
    job->spare_sock = ends[1];
    pid = ff_fork(job->server->hooks, leave_server, job);
    if (pid != 0)
        ff_close(&job->spare_sock);
    return pid;
}

static pid_t fork_for(struct fork_job *job)
{
    if (job->child == NULL || job->fds_to_close == NULL)
        return -ENOMEM;
    take_wishes(job->child, job->connection);
    if (job->child->stream && !ff_fd_is_stream(job->child->held_fd))
        return -EINVAL;
    job->child->is_on_demand = has_options(job->connection);
    return job->child->is_on_demand ? fork_with_socket(job) : ff_fork(job->server->hooks, leave_server, job);
}

/* The child is there. One that has options to apply first has still to say that it begins. */
static void take_child(struct ff_server *server, struct ff_connection *connection, struct ff_child *child)
{
    ff_children_add(&server->children, child);
    if (child->is_on_demand) {
        await_beginning(server, connection, child);
    } else {
        open_pidfd(server, connection, child);
        enlist(server, connection, child);
        ff_connection_next_request(connection);
    }
    report_dead(server, ff_children_take_lost(&server->children)); /* whoever had that pid before */
}

/* Returns true in the child. */
static bool fork_child(struct ff_server *server, struct ff_connection *connection)
{
    struct fork_job job = {
        .server = server,
        .connection = connection,
        .child = ff_child_new(connection, connection->header.id),
        .spare_sock = -1,
        .fds_to_close = malloc(count_fds(server) * sizeof *job.fds_to_close),
    };
    pid_t pid = fork_for(&job);

    free(job.fds_to_close);
    if (pid > 0) {
        job.child->pid = pid;
        take_child(server, connection, job.child);
        return false;
    }
    if (job.child != NULL)
        ff_child_free(job.child);
    if (pid < 0) {
        ff_connection_post_failure(connection, -(int)pid);
        ff_connection_next_request(connection);
    }
    return pid == 0;
}

/* Returns true in the child. */
static bool start_child(struct ff_server *server, struct ff_connection *connection)
{
    ff_spares_note_request(&server->spares);
    return !hand_to_spare(server, connection) && fork_child(server, connection);
}

static bool has_room(const struct ff_server *server)
{
    size_t count = server->children.count - server->children.spare_count + server->handed_count;

    return server->config.max_children == 0 || count < server->config.max_children;
}

/* ---- modules ---- */

/* What a client has loaded, its children are likely to need: each of them would load it anew. */
static void note_modules(struct ff_server *server, const struct ff_connection *connection)
{
    uint32_t modules = (uint32_t)connection->header.value & FF_FORK_MODULES;

    server->missing |= modules & ~server->config.modules;
}

/* No child before what is missing has been loaded. */
static bool may_start(const struct ff_server *server)
{
    return server->missing == 0 && has_room(server);
}

static int ask_for_modules(struct ff_server *server, struct ff_request *ret_request)
{
    ff_spares_dismiss(&server->spares); /* they lack them */
    *ret_request = (struct ff_request){.modules = server->missing};
    server->config.modules |= server->missing;
    server->missing = 0;
    server->crowded = true; /* the next look at events is not to wait for any */
    return FF_SERVED_MODULES;
}

/* ---- spares ---- */

/* Returns true in the spare. */
static bool fork_spare(struct ff_server *server)
{
    struct fork_job job = {
        .server = server,
        .child = ff_child_new(NULL, 0),
        .spare_sock = -1,
        .fds_to_close = malloc(count_fds(server) * sizeof *job.fds_to_close),
    };
    pid_t pid = job.child == NULL || job.fds_to_close == NULL ? -ENOMEM : fork_with_socket(&job);

    free(job.fds_to_close);
    if (pid > 0) {
        job.child->pid = pid;
        ff_children_add(&server->children, job.child);
        ff_spares_add(&server->spares, job.child);
        publish_numbers(server);
        report_dead(server, ff_children_take_lost(&server->children));
        return false;
    }
    if (job.child != NULL)
        ff_child_free(job.child);
    if (pid < 0)
        ff_spares_rest(&server->spares);
    return pid == 0;
}

static bool may_fork_spare(const struct ff_server *server)
{
    return !server->leaving && server->handed_count == 0 && ff_spares_are_short(&server->spares);
}

static void send_status(struct ff_server *server, struct ff_connection *connection)
{
    int error = server->status.error;
    int fd = error < 0 ? error : open_for_client(server, ff_fd_duplicate, server->status.fd);

    if (fd < 0)
        ff_connection_post_failure(connection, -fd);
    else
        ff_connection_post(connection, ff_frame_make(FF_FRAME_STATUS, connection->header.id, 0), fd);
    restore_reserve(server);
}

/* Returns true in a child, whose request the connection then holds. */
static bool read_client(struct ff_server *server, struct ff_connection *connection)
{
    switch (ff_connection_read(connection, &server->config)) {
    case FF_CONNECTION_IDLE:
        return false;
    case FF_CONNECTION_REQUEST:
        note_modules(server, connection);
        if (!may_start(server)) {
            ff_connection_wait(connection, server->tickets++);
            server->anyone_waits = true;
            return false;
        }
        return start_child(server, connection);
    case FF_CONNECTION_STATUS:
        send_status(server, connection);
        ff_connection_next_request(connection);
        break;
    }
    return false;
}

/* Serve what a client has sent. Returns true in a child, whose request the connection then holds. */
static bool serve_client(struct ff_server *server, struct ff_connection *connection, unsigned ready)
{
    connection->stalled = false;
    if (connection->spare != NULL && settle(server, connection)) {
        watch_connection(server, connection);
        return false;
    }
    /* An event of a spare that has nothing to say is no event of its client. */
    if (connection->spare != NULL && ready & FF_READABLE && !ff_fd_has_hung_up(connection->sock))
        ready &= ~(unsigned)FF_READABLE;
    if (ready & FF_READABLE)
        ff_connection_hang_up(connection);
    if (ready & FF_WRITABLE)
        ff_connection_flush(connection);
    if (ready & FF_READABLE && read_client(server, connection))
        return true;
    watch_connection(server, connection);
    return false;
}

/* ---- deaths ---- */

static void reap_children(struct ff_server *server, pid_t died)
{
    report_dead(server, ff_children_reap(&server->children, died));
    if (server->children.is_suspicious && server->next_check == 0)
        server->next_check = ff_seconds_now() + 1e-3 * SUSPICION_MS;
}

/* Now and then, and only after a death of which no corpse was found: each child costs a system call. */
static void look_for_lost(struct ff_server *server)
{
    if (server->next_check == 0 || ff_seconds_now() < server->next_check)
        return;
    report_dead(server, ff_children_reap_each(&server->children));
    server->next_check = server->children.is_suspicious ? ff_seconds_now() + 1e-3 * SUSPICION_MS : 0;
}

/* ---- the loop ---- */

/* The alive descriptor ends when the last process that could ask for a child has gone, or lets go of the server. */
static void check_alive(struct ff_server *server)
{
    char byte;
    ssize_t received = FF_RETRY_EINTR(read(server->config.alive_fd, &byte, 1));

    if (received > 0 || (received < 0 && !(ff_wait_readable(server->config.alive_fd, 0) & ~POLLIN)))
        return;
    server->leaving = true;
    ff_spares_dismiss(&server->spares);
    server->loop->backend->watch(server->loop, server->config.alive_fd, 0, NULL);
}

/* Whoever is still connected is told of the exits of all its children first; whoever is to die dies. What clients
 * had sent before is served: that is known when there is nothing more to be read, of one that waits for memory not yet. */
static bool may_leave(const struct ff_server *server)
{
    if (!server->leaving || server->children.doomed != NULL)
        return false;
    for (struct ff_connection *other = server->connections; other != NULL; other = other->next)
        if (ff_connection_is_owed(other) || (other->stalled && other->state != FF_CONNECTION_GONE))
            return false;
    return true;
}

static int choose_timeout(const struct ff_server *server)
{
    if (may_leave(server))
        return 0;
    if (server->crowded || server->has_gone || may_fork_spare(server))
        return FF_LOOP_GLANCE;
    if (server->children.doomed != NULL)
        return FF_TREE_ROUND_MS;
    if (server->looked_at_count > 0)
        return FF_HANDED_MS;
    if (server->next_check > 0)
        return SUSPICION_MS;
    if (!server->listening || server->resting)
        return FF_RETRY_MS;
    if (server->is_amid_requests)
        return TIME_CHECK_MS;
    return ff_spares_timeout(&server->spares);
}

/* However many events there are, those who are killed get their time to die between two rounds. */
static void kill_doomed(struct ff_server *server)
{
    double now;

    if (server->children.doomed == NULL)
        return;
    now = ff_seconds_now();
    if (now < server->next_kills)
        return;
    ff_children_kill_doomed(&server->children);
    server->next_kills = now + 1e-3 * FF_TREE_ROUND_MS;
}

static struct ff_request request_of(const struct ff_frame *header, const struct ff_reader *reader,
                                    const struct ff_applied *applied)
{
    return (struct ff_request){
        .payload = reader->bytes + applied->size,
        .payload_size = header->payload_size - applied->size,
        .fds = reader->fds,
        .fd_count = (uint32_t)reader->fd_count,
        .options = applied->kinds,
        .env = applied->env,
        .env_size = applied->env_size,
    };
}

static void hand_over(const struct ff_server *server, const struct ff_connection *connection,
                      struct ff_request *ret_request)
{
    *ret_request = request_of(&connection->header, &connection->reader, &server->applied);
}

static bool serve_event(struct ff_server *server, const struct ff_loop_event *event,
                        struct ff_request *ret_request)
{
    struct ff_connection *connection = event->tag;

    if (event->tag == &server->config.listener_fd) {
        accept_clients(server);
    } else if (event->tag == &server->config.alive_fd) {
        check_alive(server);
    } else if (connection->state != FF_CONNECTION_GONE && serve_client(server, connection, event->ready)) {
        hand_over(server, connection, ret_request);
        return true;
    }
    return false;
}

/* Who has waited longest among those whose children may be forked now. */
static struct ff_connection *find_first_waiting(struct ff_server *server)
{
    struct ff_connection *first = NULL;

    if (!server->anyone_waits || !may_start(server))
        return NULL;
    server->anyone_waits = false;
    for (struct ff_connection *other = server->connections; other != NULL; other = other->next) {
        server->anyone_waits |= other->state == FF_CONNECTION_WAITING;
        if (ff_connection_may_go_on(other) && (first == NULL || other->ticket < first->ticket))
            first = other;
    }
    return first;
}

/* Fork for those that have waited, as far as there is room now. Returns true in a child. */
static bool admit_waiting(struct ff_server *server, struct ff_request *ret_request)
{
    struct ff_connection *connection = find_first_waiting(server);

    for (int i = 0; i < FF_LOOP_BATCH && connection != NULL; i++) {
        if (start_child(server, connection)) {
            hand_over(server, connection, ret_request);
            return true;
        }
        watch_connection(server, connection);
        connection = find_first_waiting(server);
    }
    server->crowded = connection != NULL;
    return false;
}

/* Try again what the system had no memory for. Returns true in a child. */
static bool retry_stalled(struct ff_server *server, struct ff_request *ret_request)
{
    double now = server->resting ? ff_seconds_now() : 0;

    if (!server->resting || now < server->next_retry)
        return false;
    server->resting = false;
    server->next_retry = now + 1e-3 * FF_RETRY_MS;
    for (struct ff_connection *other = server->connections; other != NULL; other = other->next) {
        if (!other->stalled || other->state == FF_CONNECTION_GONE)
            continue;
        if (serve_client(server, other,
                         other->state == FF_CONNECTION_WAITING ? FF_WRITABLE : FF_READABLE | FF_WRITABLE)) {
            hand_over(server, other, ret_request);
            return true;
        }
    }
    return false;
}

/* The wait itself has failed for want of memory: it is not asked for all the time. */
static void nap(void)
{
    struct timespec time = {.tv_nsec = FF_RETRY_MS * 1000000L};

    nanosleep(&time, NULL);
}

/* One batch of events, deaths last. 0 to go on, or ff_served, or -errno. */
static int serve_batch(struct ff_server *server, struct ff_request *ret_request)
{
    struct ff_loop_event events[FF_LOOP_BATCH];
    bool is_last_look = may_leave(server);
    pid_t died;
    int count;

    if (may_fork_spare(server))
        sched_yield(); /* whoever has just been answered may go on first */
    count = server->loop->backend->wait(server->loop, choose_timeout(server), events, &died);

    if (count == -EINTR)
        return 0;
    if (count == -ENOMEM) {
        nap();
        return 0;
    }
    if (count < 0)
        return count;
    /* Before the events: a listener that comes to rest in this batch stays so for the next wait. */
    resume_listener(server);
    for (int i = 0; i < count; i++)
        if (serve_event(server, &events[i], ret_request))
            return FF_SERVED_CHILD;
    if (died != 0)
        reap_children(server, died);
    look_for_lost(server);
    look_at_handed(server);
    check_times(server);
    drop_gone_clients(server);
    /* In this order: an exit that has been sent at last leaves room for what its client has waited for. */
    if (retry_stalled(server, ret_request) || admit_waiting(server, ret_request))
        return FF_SERVED_CHILD;
    kill_doomed(server);
    if (server->missing != 0)
        return ask_for_modules(server, ret_request);
    ff_spares_check_quiet(&server->spares);
    if (count == 0 && died == 0 && may_fork_spare(server) && fork_spare(server))
        return FF_SERVED_SPARE;
    server->done = is_last_look && count == 0 && died == 0;
    return 0;
}

static void watch_again(struct ff_server *server, struct ff_connection *connection)
{
    watch_connection(server, connection);
    if (connection->spare != NULL && !connection->spare->is_condemned)
        watch_spare(server, connection);
}

static int start(struct ff_server *server)
{
    int alive_fd = server->config.alive_fd;
    int error = ff_loop_open((enum ff_backend)server->config.backend, &server->loop);

    if (error < 0)
        return error;
    server->leaving = server->done = false;
    raise_limit(server);
    if (server->own_limit.rlim_cur < 2 * FF_MAX_FDS_PER_MESSAGE)
        server->spares.wanted = 0; /* one could not take the descriptors of any request */
    restore_reserve(server);
    if (alive_fd >= 0)
        error = server->loop->backend->watch(server->loop, alive_fd, FF_READABLE, &server->config.alive_fd);
    resume_listener(server);
    for (struct ff_connection *other = server->connections; other != NULL; other = other->next)
        watch_again(server, other);
    reap_children(server, FF_SOME_CHILD); /* those that died while nobody served */
    return error;
}

/* The process is as it was before; clients stay connected, and another call may serve them. */
static void stop(struct ff_server *server)
{
    ff_spares_dismiss(&server->spares);
    ff_children_await_spares(&server->children);
    publish_numbers(server);
    for (struct ff_connection *other = server->connections; other != NULL; other = other->next)
        other->watched = 0;
    server->listening = false;
    server->next_accept = 0;
    restore_limit(server);
    if (server->loop != NULL)
        server->loop->backend->close(server->loop);
    server->loop = NULL;
}

/* The loop cannot wait: somebody may have closed its descriptors, or the system lacks something. Others cannot be
 * told, so it is tried as long as there is anybody. */
static int start_again(struct ff_server *server)
{
    int error;

    do {
        stop(server);
        nap();
        error = start(server);
    } while (error < 0 && ff_wait_readable(server->config.alive_fd, 0) <= 0);
    return error;
}

int ff_server_serve_hooked(struct ff_server *server, const struct ff_fork_hooks *hooks,
                           struct ff_request *ret_request)
{
    int result = 0;

    if (server->in_child)
        result = -EINVAL;
    else if (server->loop == NULL) /* else the caller has loaded what was missing */
        result = start(server);
    server->hooks = hooks;
    while (result == 0 && !server->done) {
        result = serve_batch(server, ret_request);
        if (result < 0)
            result = start_again(server);
    }
    if (result <= 0)
        stop(server);
    return result == FF_SERVED_CHILD && server->is_unfit ? FF_SERVED_UNFIT : result;
}

int ff_server_serve(struct ff_server *server, struct ff_request *ret_request)
{
    return ff_server_serve_hooked(server, NULL, ret_request);
}

int ff_spare_await(struct ff_server *server, int timeout_ms, struct ff_request *ret_request)
{
    struct ff_spare *spare = &server->spare;
    int result = spare->sock < 0 ? -EINVAL : ff_spare_receive(spare, timeout_ms, &server->applied);

    if (result <= 0)
        return result;
    ff_close(&spare->sock);
    sigaction(SIGINT, &server->spare_int, NULL);
    if ((uint32_t)spare->header.value & FF_FORK_DIE_WITH_CLIENT)
        ff_tree_become_root();
    *ret_request = request_of(&spare->header, &spare->reader, &server->applied);
    return 1;
}

/* In a child the request's descriptors are the caller's, all others are closed. */
static void forget_fds(struct ff_server *server)
{
    for (struct ff_connection *connection = server->connections; connection != NULL;
         connection = connection->next) {
        connection->sock = connection->outbox.fd = -1;
        connection->reader.fd_count = 0;
    }
    ff_children_forget_fds(&server->children);
    server->reserve_fd = server->config.alive_fd = server->config.listener_fd = -1;
}

void ff_server_free(struct ff_server *server)
{
    if (server->in_child)
        forget_fds(server);
    else if (server->loop != NULL)
        stop(server);
    while (server->connections != NULL) {
        struct ff_connection *connection = server->connections;

        server->connections = connection->next;
        ff_connection_free(connection);
    }
    ff_children_clear(&server->children);
    ff_status_close(&server->status);
    ff_close(&server->spare.sock);
    ff_close(&server->reserve_fd);
    ff_close(&server->config.alive_fd);
    ff_close(&server->config.listener_fd);
    free(server);
}
