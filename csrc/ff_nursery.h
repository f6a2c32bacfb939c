/* ff_nursery.h: where the first small objects of a process go, side by side on fresh pages. */
#ifndef FF_NURSERY_H
#define FF_NURSERY_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "ff_abi.h"

#define FF_NURSERY_GRAIN 16    /* bytes: what the size of an object is rounded up to, and its alignment */
#define FF_NURSERY_LARGEST 512 /* bytes: what is larger goes elsewhere, as in CPython's own allocator */
#define FF_NURSERY_CHUNK 1024  /* bytes: what objects of one size take at a time */
#define FF_NURSERY_CLASSES (FF_NURSERY_LARGEST / FF_NURSERY_GRAIN)
#define FF_NURSERY_CHUNKS (FF_NURSERY_SIZE / FF_NURSERY_CHUNK)

/* The beginning of the memory that it manages: its own state takes no page for itself. */
struct ff_nursery {
    void *given_back[FF_NURSERY_CLASSES];     /* for each size, linked, the last one first */
    unsigned char *fresh[FF_NURSERY_CLASSES]; /* for each size, what is left of its last chunk; or NULL */
    size_t chunks;                            /* how many are in use, those of this structure among them */
    uint8_t class_of_chunk[FF_NURSERY_CHUNKS];
};

/* Make an empty one. It takes address space, and memory only as it is used. NULL: there is none. */
struct ff_nursery *ff_nursery_new(void);

void ff_nursery_delete(struct ff_nursery *nursery);

/* Room for `size` bytes, at most FF_NURSERY_LARGEST; NULL when there is none left for that size. */
void *ff_nursery_take(struct ff_nursery *nursery, size_t size);

/* Give back what was taken: it is there for others of that size. */
void ff_nursery_give_back(struct ff_nursery *nursery, void *object);

/* How many bytes there are for what was taken. */
size_t ff_nursery_room(const struct ff_nursery *nursery, const void *object);

static inline bool ff_nursery_owns(const struct ff_nursery *nursery, const void *object)
{
    return (uintptr_t)object - (uintptr_t)nursery < FF_NURSERY_SIZE;
}

#endif
