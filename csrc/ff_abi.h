/* ff_abi.h: the whole boundary between the C core and Python.
 *
 * cffi's cdef() reads what stands between the two "cdef:" markers; C reads the file as it is.
 * Every function that can fail returns zero or more, or -errno. Outputs are named ret_* and stay
 * untouched on failure. Descriptors are borrowed unless a comment says otherwise.
 */
#ifndef FF_ABI_H
#define FF_ABI_H

#include <stddef.h>
#include <stdint.h>

/* cdef: begin */

#define FF_MAX_FDS 264 /* descriptors in one request: 256 of the caller's and the few that go along */
#define FF_MAX_FDS_PER_MESSAGE 253 /* SCM_MAX_FD of Linux: what sendmsg() takes at once */
#define FF_MAX_PAYLOAD 65536       /* bytes of payload in one request; more goes through a pipe */
#define FF_MAX_CLIENTS 4096   /* connections that one server holds; beyond, clients queue in the backlog */
#define FF_MAX_OPEN_FDS 65536 /* descriptors that a server lets itself have, if the hard limit does */
#define FF_GRACE_MS 250 /* what a client that has not proved itself has before another may need its place */
#define FF_REQUEST_MS 10000 /* what a client has from the first byte of a request to its last */
#define FF_RETRY_MS 50      /* what a server rests before it asks again for what the system could not give */
#define FF_MAX_SPARES 16    /* children that wait for a request, forked ahead of it */
#define FF_SPARE_GAP_MS 100 /* requests that come faster than this, in the mean, have spares forked */
#define FF_HANDED_MS 20     /* between two looks at a spare that has a request and does not begin */
#define FF_HANDED_LIMIT_MS 2000 /* what it has to begin, before its request is for a fork */
#define FF_NURSERY_SIZE 262144  /* bytes of a child's first small objects */
#define FF_MAX_AUTHKEY 256      /* bytes */
#define FF_MAX_ERRNO 135        /* errnos below are counted each, the others as 0 */
#define FF_FIRST_MODULE 65536   /* the lowest bit of FF_FORK_MODULES */
#define FF_MAX_CPUS 8192        /* processors that a child may be told to keep to: what Linux knows */
#define FF_MAX_RLIMITS 32       /* numbers of resources that may be limited */

/* What a frame says. FORK and a client's STATUS are requests, the others come from the server. */
enum ff_frame_type {
    FF_FRAME_FORK = 1,    /* value: ff_fork_flags */
    FF_FRAME_STARTED = 2, /* value: the child's pid; one descriptor (a pidfd) where asked for and possible */
    FF_FRAME_FAILED = 3,  /* value: the errno of what failed; no child was forked */
    FF_FRAME_EXITED = 4,  /* value: the child's exit code, negative for a signal */
    FF_FRAME_REFUSED = 5, /* value: ff_refusal; the server closes the connection after it */
    FF_FRAME_STATUS = 6,  /* asks for the status page, and answers with its descriptor, for reading only */
};

enum ff_fork_flags {
    FF_FORK_PIDFD = 1,            /* send a pidfd with the reply */
    FF_FORK_HELD = 2,             /* the first descriptor is closed by the server once the child is dead */
    FF_FORK_STREAM = 4,           /* with HELD, a pipe or socket: pid and exit code go to it, each an int64 */
    FF_FORK_DIE_WITH_CLIENT = 8,  /* the child and all below it are killed once its client has gone */
    FF_FORK_OPTIONS = 16,         /* the payload begins with a block of options */
    FF_FORK_MODULES = 0x7fff0000, /* modules that the client has loaded: the caller's to number */
};

/* What a child is to be before it runs. A block of options is its size in bytes, as an uint32 that counts itself, and
 * then one struct ff_option and its value after another, in the order in which they are applied. */
struct ff_option {
    uint32_t kind; /* ff_option_kind */
    uint32_t size; /* of the value, in bytes */
};

enum ff_option_kind {
    FF_OPTION_STDIN = 1,       /* int32: ff_stream */
    FF_OPTION_STDOUT = 2,      /* likewise */
    FF_OPTION_STDERR = 3,      /* likewise */
    FF_OPTION_NEW_SESSION = 4, /* nothing: the child leads a session of its own */
    FF_OPTION_UMASK = 5,       /* int32 */
    FF_OPTION_CWD = 6,         /* a path, with its null */
    FF_OPTION_ENV = 7,         /* the whole environment: NAME=VALUE, each with its null */
    FF_OPTION_NICE = 8,        /* int32: the niceness, not what is added to it */
    FF_OPTION_AFFINITY = 9,    /* a bit for each processor, from the lowest one of the first byte on */
    FF_OPTION_RLIMIT = 32,     /* this plus the number of the resource; two uint64, UINT64_MAX for no limit */
};

/* What becomes a standard stream. The descriptors are the first of the request, behind the held one. */
enum ff_stream {
    FF_STREAM_FD = 0,     /* the next descriptor */
    FF_STREAM_NULL = 1,   /* /dev/null */
    FF_STREAM_STDOUT = 2, /* what standard output is by then */
};

enum ff_refusal {
    FF_REFUSED_MAGIC = 1,    /* not a fastfork frame */
    FF_REFUSED_VERSION = 2,  /* another version of the protocol */
    FF_REFUSED_TYPE = 3,     /* a frame type or flag that a client may not send */
    FF_REFUSED_PAYLOAD = 4,  /* payload over FF_MAX_PAYLOAD */
    FF_REFUSED_FDS = 5,      /* more or fewer descriptors than the header says, or over FF_MAX_FDS */
    FF_REFUSED_MEMORY = 6,   /* the server has no memory for the connection: closed without a word */
    FF_REFUSED_KEY = 7,      /* not the authkey: multiprocessing's challenge says so, not a frame */
    FF_REFUSED_USER = 8,     /* another uid: closed without a word */
    FF_REFUSED_CLIENTS = 9,  /* not authenticated yet when another client needed its place: closed likewise */
    FF_REFUSED_TIME = 10,    /* it began a request and did not end it within FF_REQUEST_MS */
    FF_REFUSED_OPTIONS = 11, /* a block of options that is none */
    FF_REFUSED_CAUSES        /* how many there are, and 0 */
};

enum ff_backend {
    FF_BACKEND_AUTO = 0, /* the best that the kernel has */
    FF_BACKEND_POLL = 1, /* poll and a self-pipe, no pidfd: what every POSIX system has */
};

struct ff_config {
    int listener_fd;              /* a listening AF_UNIX stream socket */
    int alive_fd;                 /* the server leaves when this reads end-of-file; -1: never */
    const unsigned char *authkey; /* both sides of every connection prove that they know it */
    uint32_t authkey_size;        /* bytes, 1 to FF_MAX_AUTHKEY */
    int backend;                  /* ff_backend */
    uint32_t max_children;        /* living at once; beyond, requests wait for one to die. 0: no limit */
    uint32_t max_spares;          /* children forked ahead of requests while these come fast; 0: none */
    uint32_t spare_quiet_ms;      /* without a request for so long, they go */
    uint32_t modules;             /* bits of FF_FORK_MODULES: what this process has loaded */
};

/* A request as the child that serves it sees it. The memory belongs to the server object. */
struct ff_request {
    const unsigned char *payload;
    uint32_t payload_size; /* bytes */
    const int *fds;        /* now owned by the child */
    uint32_t fd_count;
    uint32_t options;         /* 1 << ff_option_kind for each that has been applied, but for limits */
    const unsigned char *env; /* the environment as it came, if there is one among them */
    uint32_t env_size;        /* bytes */
    uint32_t modules;         /* of FF_SERVED_MODULES, which has nothing else: bits of FF_FORK_MODULES */
};

/* What a server tells of itself, on a page that it alone writes. Counts are since it was made. */
struct ff_status {
    int64_t pid;
    double started; /* seconds, CLOCK_MONOTONIC */
    uint64_t starts;
    uint64_t failures[FF_MAX_ERRNO];        /* starts that failed, by errno */
    uint64_t refused[FF_REFUSED_CAUSES];    /* connections that were refused, by ff_refusal */
    uint64_t accept_failures[FF_MAX_ERRNO]; /* times that a client had to wait or come again, by errno */
    uint32_t live_children;
    uint32_t clients;      /* connections open now */
    uint32_t spares;       /* children that were forked ahead and have no request yet */
    uint64_t spare_starts; /* starts that a spare has served */
};

/* A frame as it travels, in native byte order: both ends are on one machine. */
struct ff_frame {
    uint32_t magic;
    uint16_t version;
    uint16_t type; /* ff_frame_type */
    uint32_t id;   /* chosen by the client, returned in every answer */
    int32_t value; /* see ff_frame_type */
    union {
        uint32_t payload_size; /* bytes */
        uint32_t cpu_ms;       /* of EXITED: the time that the child and those it has waited for took */
        uint32_t option;       /* of FAILED: the ff_option_kind that could not be applied, or 0 */
        uint32_t unsent;       /* of STARTED: the errno for which the pidfd could not be sent, or 0 */
    };
    union {
        uint32_t fd_count;
        uint32_t peak_memory; /* of EXITED: the most that the child had resident, as getrusage(2) has it */
    };
};

struct ff_server;

/* Make a server. It takes listener_fd and alive_fd as its own; they are closed by ff_server_free(). */
int ff_server_new(const struct ff_config *config, struct ff_server **ret_server);

/* What ff_server_serve() returns. */
enum ff_served {
    FF_SERVED_ALL = 0,     /* the alive descriptor has ended */
    FF_SERVED_CHILD = 1,   /* this is a child, and has its request */
    FF_SERVED_SPARE = 2,   /* this is a child without a request: ff_spare_await() gets one */
    FF_SERVED_UNFIT = 3,   /* this is a child that could not become what its options say, and is to end */
    FF_SERVED_MODULES = 4, /* modules of a client are to be loaded, and then it is to be called again */
};

/* Serve until the alive descriptor ends and, in each child, return: ff_served, or -errno. A module is asked for once,
 * whatever comes of it; whoever has it waits until this is called again. */
int ff_server_serve(struct ff_server *server, struct ff_request *ret_request);

/* The same for a Python process: the fork runs CPython's own hooks. */
int ff_python_serve(struct ff_server *server, struct ff_request *ret_request);

/* Have the next fork of ff_python_serve() close this descriptor first; -1: none. The one that it was to close and has
 * not is the caller's again: it is returned, or -1. */
int ff_python_close_at_fork(int fd);

/* In a spare: wait for its request. 1 when it has come; 0 when none will, or this process cannot do what it asks for and
 * its client has been told so: it is to end; -EAGAIN when none came within timeout_ms (negative: no limit). */
int ff_spare_await(struct ff_server *server, int timeout_ms, struct ff_request *ret_request);

/* Give back everything that the server holds. In a child: the memory, the request's too, and no descriptor. */
void ff_server_free(struct ff_server *server);

/* Have every process that somebody else than the core forks in this one be without this descriptor: it would keep a
 * socket listening that nobody serves any more. -1: none. -ENOMEM. */
int ff_fork_keep(int fd);

/* Have SIGTERM and SIGHUP, where nobody has changed what they do, remove the socket at this path and the folder that it
 * lies in before they end this process; children of it are not concerned. -EINVAL: in no folder; -ENAMETOOLONG. */
int ff_address_remove_at_end(const char *path);

/* Send one FORK frame, whole, on a blocking socket. After -EBADF or -EMSGSIZE nothing has been sent; after another
 * error that may be so only up to FF_MAX_FDS_PER_MESSAGE descriptors. */
int ff_client_send(int sock, uint32_t id, uint32_t flags, const void *payload, uint32_t payload_size,
                   const int *fds, uint32_t fd_count);

/* Ask for the status page on a blocking socket: the answer is a STATUS frame with a descriptor for ff_status_read(),
 * or FAILED. */
int ff_client_ask_status(int sock, uint32_t id);

/* Receive one frame: 1 and the frame (with the descriptor that came along, or -1); 0 when none began
 * within timeout_ms (negative: no limit); -EPIPE at the end of the stream, -ECONNRESET where the
 * server has left something unread; -EINTR on a signal. */
int ff_client_receive(int sock, int timeout_ms, struct ff_frame *ret_frame, int *ret_fd);

/* Wait until fd is readable or its peer is gone: the poll(2) events, 0 on timeout, -EINTR on a signal (but not
 * where timeout_ms is 0). */
int ff_wait_readable(int fd, int timeout_ms);

/* Read the status page that came with a STATUS frame, consistently, even while the server writes it, stopped or after
 * its end. -EINVAL: fd is no such page; -EAGAIN: it changed too often to be read. */
int ff_status_read(int fd, struct ff_status *ret_status);

/* Open a pidfd: -ENOSYS where the kernel has none. */
int ff_pidfd_open(int pid);

/* The exit code of a dead process that somebody has reaped, from its pidfd alone (Linux 6.15 and later);
 * -EAGAIN while it is alive or not reaped, -ENOSYS where the kernel does not tell. */
int ff_pidfd_exit_code(int pidfd, int *ret_code);

/* Make every object of this process immortal that the collector tracks, and what they refer to: how many
 * were not. count: what this CPython, 3.12 or later, gives immortal objects as the lower 32 bits of their
 * reference count. -ENOSYS for builds that count references otherwise. */
long long ff_python_immortalize(uint32_t count);

/* Have the children of this process put their first new small objects side by side, on FF_NURSERY_SIZE bytes of
 * fresh pages. guards_interpreters: whether interpreters may have a GIL each (3.12 and later). -EOPNOTSUPP where
 * other allocators than CPython's are in use, and for builds without a GIL. */
int ff_python_install_nursery(int guards_interpreters);

/* Move a range of this process's memory into huge pages, as far as they fit in: the kernel gives them whether or not it
 * has been asked before for this range. -ENOSYS where no kernel can, -EINVAL where this one cannot or is not to. */
int ff_huge_collapse(uintptr_t begin, size_t size);

/* Time `rounds` bare fork + _exit + waitpid cycles of this process, in seconds each. */
int ff_measure_floor(int rounds, double *ret_seconds);

/* HMAC-SHA-256, for the tests' known vectors. */
void ff_hmac_sha256(const unsigned char *key, uint32_t key_size, const unsigned char *text,
                    uint32_t text_size, unsigned char *ret_digest);

/* cdef: end */

#endif
