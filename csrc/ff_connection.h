/* ff_connection.h: one client of the server: what it has sent so far and what it is still to be told.
 *
 *  accept             authenticated             header           whole, and there is room for a child
 *  -----> AUTH_PREFIX <-> AUTH_MESSAGE ---> HEADER ------> PAYLOAD -------------------------------> (fork)
 *                                            ^ ^             | |                                       |
 *                                            | | no memory   | | no room                               |
 *                                            | +- SKIPPING <-+ +--------> WAITING ---- room ---------->|
 *                                            |                                                         |
 *                                            +---------------------------------------------------------+
 *
 * Nor is there room while the server's process is to load modules that the client has told of.
 *
 * Where there are spares, or the request has options, it waits likewise until the child that has got it begins: see
 * ff_spare.h; what comes of it is ff_server.c's to find out. Exits then wait, too: its answer, which may be due at any
 * moment, finds the outbox empty.
 *
 *  event                  AUTH_PREFIX, AUTH_MESSAGE   HEADER, PAYLOAD, SKIPPING   WAITING      CLOSING      GONE
 *  -----                  -------------------------   -------------------------   -------      -------      ----
 *  bytes                  gathered until the state has what it expects            not read     not read     not read
 *  a wrong message        #FAILURE#, CLOSING          REFUSED, CLOSING            -            -            -
 *  a wrong length         GONE                        REFUSED, CLOSING            -            -            -
 *  too many descriptors   GONE                        REFUSED, CLOSING            -            -            -
 *  end of stream, error   GONE                        GONE                        GONE         GONE         -
 *  a child has died       -                           its exit is queued, and sent in turn     kept unsent  kept unsent
 *  the socket is full     nothing is read until all that is queued has been sent               waits        -
 *  the outbox is empty    goes on                     goes on                     may fork     GONE         -
 *  descriptors come       GONE                        gathered with the bytes             not read     not read     not read
 *  FF_REQUEST_MS are over -                           REFUSED, CLOSING once begun         -            -            -
 *  its spare has begun    -                           -                           HEADER       -            -
 *  its spare cannot begin -                           -                           HEADER       -            -
 *  its spare has died     -                           -                           see below    -            -
 *  no memory in a call    tried again after a while: nothing is lost                                        -
 *  its place is needed    GONE                        -                           -            -            -
 *
 *  CLOSING: the refusal is sent, nothing more is read. GONE: closed at the end of the batch of events.
 *  A spare is what has the request of one that waits, on demand or not. When it has begun STARTED is sent, FAILED when it
 *  cannot. When it has died without a word the request may be forked for; one on demand is answered as if it had begun
 *  where a signal has killed it, else with FAILED, and HEADER follows. One that does not begin in time is killed first.
 */
#ifndef FF_CONNECTION_H
#define FF_CONNECTION_H

#include <stdbool.h>
#include <stdint.h>

#include "ff_abi.h"
#include "ff_auth.h"
#include "ff_child.h"
#include "ff_msg.h"
#include "ff_status.h"

enum ff_connection_state {
    FF_CONNECTION_AUTH_PREFIX,
    FF_CONNECTION_AUTH_MESSAGE,
    FF_CONNECTION_HEADER,
    FF_CONNECTION_PAYLOAD,
    FF_CONNECTION_SKIPPING, /* a payload for which there is no memory: read and forgotten */
    FF_CONNECTION_WAITING, /* holds a whole request until another child may live, or a spare begins with it */
    FF_CONNECTION_CLOSING, /* as soon as the outbox is empty */
    FF_CONNECTION_GONE,
};

/* One message on its way out; the socket may take it in parts. */
struct ff_outbox {
    unsigned char bytes[sizeof(struct ff_auth_message)];
    size_t size;
    size_t sent;
    int fd; /* travels with the first byte; owned; -1 for none */
};

struct ff_connection {
    int sock;
    struct ff_status_board *status; /* where refusals are counted, before the client hears of them */
    enum ff_connection_state state;
    struct ff_auth auth;
    struct ff_reader reader;
    double opened;          /* ff_seconds_now() */
    double began;           /* when the request that is being read did; 0 for none */
    struct ff_frame header; /* of the request that is being read */
    size_t to_skip;         /* bytes of a payload that are still to come */
    uint64_t ticket;        /* the order of those that wait */
    struct ff_child *spare; /* has the request of one that waits, and has not begun yet: see ff_spare.h */
    struct ff_outbox outbox;
    size_t child_count;    /* live ones */
    struct ff_child *dead; /* whose exits it has not been told yet, oldest first */
    struct ff_child *last_dead;
    bool stalled;     /* the system had no memory for a call: to be tried again */
    unsigned watched; /* what the loop was asked to watch it for */
    struct ff_connection *next;
};

/* What ff_connection_read() found. */
enum ff_connection_event {
    FF_CONNECTION_IDLE,    /* nothing to be done now */
    FF_CONNECTION_REQUEST, /* a whole FORK request: header, reader.bytes, reader.fds */
    FF_CONNECTION_STATUS,  /* a whole STATUS request */
};

/* Make a connection of an accepted socket and send its challenge. It owns the socket on success. */
int ff_connection_open(int sock, struct ff_status_board *status, struct ff_connection **ret_connection);

/* Read and answer what the client has sent, up to one request. */
enum ff_connection_event ff_connection_read(struct ff_connection *connection, const struct ff_config *config);

/* Keep the request until ff_connection_may_go_on() and there is room for its child, or its spare begins. */
void ff_connection_wait(struct ff_connection *connection, uint64_t ticket);

/* Whether it waits for a fork, and its answer could be sent. */
bool ff_connection_may_go_on(const struct ff_connection *connection);

/* Whether its client has not proved yet that it knows the key. */
bool ff_connection_is_stranger(const struct ff_connection *connection);

/* Its client has gone. One that does not wait is read, and learns of it there, behind what was sent before. */
void ff_connection_hang_up(struct ff_connection *connection);

/* Take down since when a request is being read, after whatever has happened to the connection: whether one is. Its time goes
 * on while it could be read. */
bool ff_connection_note_time(struct ff_connection *connection);

/* Refuse a request that began too long ago: whether it did. A client may have sent its own end of the connection along:
 * whoever holds that waits for the end of the stream in vain. */
bool ff_connection_check_time(struct ff_connection *connection);

/* The end, without a word. */
void ff_connection_dismiss(struct ff_connection *connection, enum ff_refusal cause);

/* The request has been dealt with: its descriptors are closed here, the next one may come. Without a request nothing
 * happens. */
void ff_connection_next_request(struct ff_connection *connection);

/* Put a frame into the empty outbox, with a descriptor or -1, which is owned from now on. */
void ff_connection_post(struct ff_connection *connection, struct ff_frame frame, int fd);

/* Answer the request with FAILED; of a start it is counted. */
void ff_connection_post_failure(struct ff_connection *connection, int error);

/* The same where the child could not become what an option of the request says. */
void ff_connection_post_unfit(struct ff_connection *connection, struct ff_unfit unfit);

/* Queue the exit of a dead child; owns it. */
void ff_connection_post_exit(struct ff_connection *connection, struct ff_child *child);

/* Send as much as the socket takes. */
void ff_connection_flush(struct ff_connection *connection);

/* Whether the client is still to be told something: of an exit, now or later, or the end of an answer. */
bool ff_connection_is_owed(const struct ff_connection *connection);

/* What the loop should watch the socket for: ff_interest. */
unsigned ff_connection_interest(const struct ff_connection *connection);

/* Close all that it holds, at once. */
void ff_connection_shut(struct ff_connection *connection);

void ff_connection_free(struct ff_connection *connection);

#endif
