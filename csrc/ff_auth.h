/* ff_auth.h: the server's side of multiprocessing.connection's mutual challenge, with SHA-256.
 *
 *   server                               client
 *   #CHALLENGE#{sha256}<40 random>  ->
 *                                   <-   {sha256}<HMAC of what followed #CHALLENGE#>
 *   #WELCOME# (or #FAILURE#)        ->
 *                                   <-   #CHALLENGE#{sha256}<random>
 *   {sha256}<HMAC>                  ->
 *                                   <-   #WELCOME#
 *
 * Each message is preceded by its length, four bytes, big-endian. This is the protocol of CPython 3.12
 * and later, so that a plain multiprocessing.connection.Client can talk to the server.
 */
#ifndef FF_AUTH_H
#define FF_AUTH_H

#include <stddef.h>
#include <stdint.h>

#include "ff_abi.h"

#define FF_AUTH_MAX_MESSAGE 256 /* bytes; multiprocessing rejects larger ones too */
#define FF_AUTH_PREFIX_SIZE 4

enum ff_auth_stage {
    FF_AUTH_AWAITS_ANSWER,
    FF_AUTH_AWAITS_CHALLENGE,
    FF_AUTH_AWAITS_WELCOME,
    FF_AUTH_DONE,
};

struct ff_auth {
    enum ff_auth_stage stage;
    unsigned char challenge[48]; /* "{sha256}" and 40 random bytes */
};

/* An outgoing message, its length prefix included. */
struct ff_auth_message {
    unsigned char bytes[FF_AUTH_PREFIX_SIZE + FF_AUTH_MAX_MESSAGE];
    size_t size;
};

/* Begin: the challenge to send. Fails with the errno of the system's random source. */
int ff_auth_begin(struct ff_auth *auth, struct ff_auth_message *ret_message);

/* Take one message of the client's; ret_message is what to send back (size 0: nothing). -EACCES when the
 * client does not know the key or does not speak the protocol: send the message, then close. */
int ff_auth_take(struct ff_auth *auth, const struct ff_config *config, const unsigned char *message,
                 size_t size, struct ff_auth_message *ret_message);

uint32_t ff_auth_read_prefix(const unsigned char prefix[FF_AUTH_PREFIX_SIZE]);

#endif
