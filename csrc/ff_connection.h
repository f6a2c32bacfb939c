/* ff_connection.h: one client of the server: what it has sent so far and what it is still to be told.
 *
 *              accept                  authenticated             header             payload
 *   (listener) ------> AUTH_PREFIX <-> AUTH_MESSAGE --> HEADER --------> PAYLOAD ----------> (fork)
 *                                                        ^                                     |
 *                                                        +-------------------------------------+
 *
 *   event                        in every state
 *   -----                        --------------
 *   bytes or descriptors come    gathered by the reader until the state has what it expects
 *   a wrong frame, descriptors   CLOSING: the refusal is sent, nothing more is read
 *   end of stream, socket error  GONE: closed at the end of the batch of events
 *   a child of it has died       its exit is queued and sent as soon as the socket takes it
 *   the socket takes no more     nothing is read until all that is queued has been sent
 */
#ifndef FF_CONNECTION_H
#define FF_CONNECTION_H

#include <stdbool.h>

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
    struct ff_frame header; /* of the request that is being read */
    struct ff_outbox outbox;
    size_t child_count;    /* live ones */
    struct ff_child *dead; /* whose exits it has not been told yet, oldest first */
    unsigned watched;      /* what the loop was asked to watch it for */
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

/* The request has been dealt with: its descriptors are closed here, the next one may come. */
void ff_connection_next_request(struct ff_connection *connection);

/* Put a frame into the empty outbox, with a descriptor or -1, which is owned from now on. */
void ff_connection_post(struct ff_connection *connection, struct ff_frame frame, int fd);

/* Answer the request with FAILED; of a start it is counted. */
void ff_connection_post_failure(struct ff_connection *connection, int error);

/* Queue the exit of a dead child; owns it. */
void ff_connection_post_exit(struct ff_connection *connection, struct ff_child *child);

/* Send as much as the socket takes. */
void ff_connection_flush(struct ff_connection *connection);

/* Whether the client is still to be told something: of an exit, now or later, or the end of an answer. */
bool ff_connection_is_owed(const struct ff_connection *connection);

/* What the loop should watch the socket for: ff_interest. */
unsigned ff_connection_interest(const struct ff_connection *connection);

void ff_connection_free(struct ff_connection *connection);

#endif
