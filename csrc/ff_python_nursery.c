/* ff_python_nursery.c: the nursery in front of CPython's allocator for small objects.
 *
 * The template puts it there, and it hands everything on. In a child it keeps what is new and small, until that
 * has filled it once; from then on it only takes back what is its own.
 */
#include <Python.h>

#include <dlfcn.h>
#include <errno.h>
#include <string.h>

#include "ff_abi.h"
#include "ff_nursery.h"
#include "ff_python_nursery.h"

#ifndef Py_GIL_DISABLED

/* CPython's PyMemAllocatorEx and PyMemAllocatorDomain, and the type of the functions that get and set one for the
 * other. They are public and as they were in 3.6, but not in the stable ABI: hence they are looked up. */
struct allocator {
    void *ctx;
    void *(*malloc)(void *ctx, size_t size);
    void *(*calloc)(void *ctx, size_t count, size_t size);
    void *(*realloc)(void *ctx, void *object, size_t size);
    void (*free)(void *ctx, void *object);
};

enum domain { DOMAIN_RAW, DOMAIN_MEM, DOMAIN_OBJ, DOMAINS };

typedef void (*access_function)(int domain, struct allocator *allocator);

/* Whoever uses one of the two domains holds the GIL, which guards the nursery too. */
static struct ff_nursery *nursery;
static int is_in_use;
/* Interpreters may have a GIL each since 3.12: the nursery is for this one. NULL: all have the same. */
static PyInterpreterState *owner;
static struct allocator next[DOMAINS];

static void *take(size_t size)
{
    void *object;

    if (!is_in_use || size > FF_NURSERY_LARGEST || (owner != NULL && PyInterpreterState_Get() != owner))
        return NULL;
    object = ff_nursery_take(nursery, size);
    is_in_use = object != NULL;
    return object;
}

static void *nursery_malloc(void *ctx, size_t size)
{
    const struct allocator *other = ctx;
    void *object = take(size);

    return object != NULL ? object : other->malloc(other->ctx, size);
}

static void *nursery_calloc(void *ctx, size_t count, size_t size)
{
    const struct allocator *other = ctx;
    size_t total;
    void *object = __builtin_mul_overflow(count, size, &total) ? NULL : take(total);

    return object != NULL ? memset(object, 0, total) : other->calloc(other->ctx, count, size);
}

static void nursery_free(void *ctx, void *object)
{
    const struct allocator *other = ctx;

    if (ff_nursery_owns(nursery, object))
        ff_nursery_give_back(nursery, object);
    else
        other->free(other->ctx, object);
}

static void *move(void *ctx, void *object, size_t room, size_t size)
{
    void *moved = nursery_malloc(ctx, size);

    if (moved == NULL)
        return NULL;
    memcpy(moved, object, size < room ? size : room);
    ff_nursery_give_back(nursery, object);
    return moved;
}

static void *nursery_realloc(void *ctx, void *object, size_t size)
{
    const struct allocator *other = ctx;
    size_t room;

    if (object == NULL)
        return nursery_malloc(ctx, size);
    if (!ff_nursery_owns(nursery, object))
        return other->realloc(other->ctx, object, size);
    room = ff_nursery_room(nursery, object);
    return size <= room ? object : move(ctx, object, room, size);
}

/* Whether CPython's own allocators are the ones in use. What tracemalloc and the like put in front of them they take
 * away again: what the nursery holds would then be given back to those behind it. */
static int has_plain_allocators(void)
{
    const char *(*get_name)(void) =
        (const char *(*)(void))dlsym(RTLD_DEFAULT, "_PyMem_GetCurrentAllocatorName");
    const char *name = get_name == NULL ? NULL : get_name();

    return name != NULL && strcmp(name, "pymalloc") == 0;
}

static void put_in_front(access_function get, access_function set)
{
    struct allocator ours = {NULL, nursery_malloc, nursery_calloc, nursery_realloc, nursery_free};

    for (int domain = DOMAIN_MEM; domain < DOMAINS; domain++) {
        get(domain, &next[domain]);
        ours.ctx = &next[domain];
        set(domain, &ours);
    }
}

static int install(int guards_interpreters)
{
    access_function get = (access_function)dlsym(RTLD_DEFAULT, "PyMem_GetAllocator");
    access_function set = (access_function)dlsym(RTLD_DEFAULT, "PyMem_SetAllocator");

    if (nursery != NULL || get == NULL || set == NULL || !has_plain_allocators())
        return -EOPNOTSUPP;
    nursery = ff_nursery_new();
    if (nursery == NULL)
        return -ENOMEM;
    owner = guards_interpreters ? PyInterpreterState_Get() : NULL;
    put_in_front(get, set);
    return 0;
}

int ff_python_install_nursery(int guards_interpreters)
{
    PyGILState_STATE state = PyGILState_Ensure();
    int result = install(guards_interpreters);

    PyGILState_Release(state);
    return result;
}

void ff_python_use_nursery(void)
{
    is_in_use = nursery != NULL;
}

#else

int ff_python_install_nursery(int guards_interpreters)
{
    (void)guards_interpreters;
    return -EOPNOTSUPP;
}

void ff_python_use_nursery(void)
{
}

#endif
