/* ff_msg.h: bytes and descriptors on a stream socket; frames. No globals, no state but the reader's. */
#ifndef FF_MSG_H
#define FF_MSG_H

#include <stdbool.h>
#include <stddef.h>
#include <sys/types.h>

#include "ff_abi.h"

#define FF_MAGIC 0x4b524646u /* "FFRK" in memory on a little-endian machine */
#define FF_PROTOCOL_VERSION 1

#define FF_READER_SMALL 256 /* bytes that a reader takes without allocating: all but a payload */

/* Gathers a known number of bytes, and the descriptors that come with them, from a non-blocking socket. */
struct ff_reader {
    unsigned char *bytes; /* `small`, or allocated while that does not do */
    size_t capacity;
    size_t have;
    size_t need;
    unsigned char small[FF_READER_SMALL];
    int fds[FF_MAX_FDS];
    size_t fd_count;
    bool lost_fds; /* the kernel dropped some: this process has no descriptor left to receive them with */
};

void ff_reader_init(struct ff_reader *reader);

/* Expect `size` bytes more than what is there: -ENOMEM, but never up to FF_READER_SMALL altogether. */
int ff_reader_expect(struct ff_reader *reader, size_t size);

/* Read what there is: 1 when all that was expected is there, 0 when more must come. -EPIPE at the end of
 * the stream, -E2BIG for too many descriptors, else recvmsg's. */
int ff_reader_fill(struct ff_reader *reader, int sock);

/* Forget the bytes and give back their memory; descriptors that were received stay. */
void ff_reader_restart(struct ff_reader *reader);

/* Close every descriptor that was received, without waiting for any. */
void ff_reader_drop_fds(struct ff_reader *reader);

/* Close those that a child has too: what they are about is its matter now. */
void ff_reader_hand_over_fds(struct ff_reader *reader);

/* Free the memory and close the descriptors. */
void ff_reader_clear(struct ff_reader *reader);

/* One sendmsg(), at most FF_MAX_FDS_PER_MESSAGE descriptors: the number of bytes sent. */
ssize_t ff_msg_send(int sock, const void *bytes, size_t size, const int *fds, size_t fd_count);

struct ff_frame ff_frame_make(enum ff_frame_type type, uint32_t id, int32_t value);

/* Check the header of a request: 0, or the ff_refusal that it deserves. */
int ff_frame_check_request(const struct ff_frame *frame);

#endif
