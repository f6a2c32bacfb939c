/* ff_nursery.c: small objects side by side, whatever their sizes.
 *
 * An allocator that keeps a run of pages for each size spreads the few objects of a short-lived process over as
 * many pages, and after a fork the kernel copies each of them. Here they share a few fresh ones.
 */
#include "ff_nursery.h"

#include <sys/mman.h>

struct ff_nursery *ff_nursery_new(void)
{
    void *memory = mmap(NULL, FF_NURSERY_SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

    return memory == MAP_FAILED ? NULL : memory;
}

void ff_nursery_delete(struct ff_nursery *nursery)
{
    munmap(nursery, FF_NURSERY_SIZE);
}

static size_t chunk_of(const struct ff_nursery *nursery, const void *object)
{
    return ((uintptr_t)object - (uintptr_t)nursery) / FF_NURSERY_CHUNK;
}

static size_t class_of(size_t size)
{
    return size == 0 ? 0 : (size - 1) / FF_NURSERY_GRAIN;
}

static size_t room_of(size_t class)
{
    return (class + 1) * FF_NURSERY_GRAIN;
}

static unsigned char *take_chunk(struct ff_nursery *nursery, size_t class)
{
    if (nursery->chunks == 0) /* not used yet: nothing has been written to it */
        nursery->chunks = (sizeof *nursery + FF_NURSERY_CHUNK - 1) / FF_NURSERY_CHUNK;
    if (nursery->chunks == FF_NURSERY_CHUNKS)
        return NULL;
    nursery->class_of_chunk[nursery->chunks] = (uint8_t)class;
    return (unsigned char *)nursery + nursery->chunks++ * FF_NURSERY_CHUNK;
}

static void *take_fresh(struct ff_nursery *nursery, size_t class)
{
    unsigned char *object = nursery->fresh[class];
    size_t left;

    if (object == NULL)
        object = take_chunk(nursery, class);
    if (object == NULL)
        return NULL;
    left = FF_NURSERY_CHUNK - ((uintptr_t)object - (uintptr_t)nursery) % FF_NURSERY_CHUNK - room_of(class);
    nursery->fresh[class] = left < room_of(class) ? NULL : object + room_of(class);
    return object;
}

void *ff_nursery_take(struct ff_nursery *nursery, size_t size)
{
    size_t class = class_of(size);
    void *object = nursery->given_back[class];

    if (object == NULL)
        return take_fresh(nursery, class);
    nursery->given_back[class] = *(void **)object;
    return object;
}

void ff_nursery_give_back(struct ff_nursery *nursery, void *object)
{
    void **list = &nursery->given_back[nursery->class_of_chunk[chunk_of(nursery, object)]];

    *(void **)object = *list;
    *list = object;
}

size_t ff_nursery_room(const struct ff_nursery *nursery, const void *object)
{
    return room_of(nursery->class_of_chunk[chunk_of(nursery, object)]);
}
