/* test_nursery.c: small objects lie side by side, apart from each other, and are used again. */
#include "check.h"
#include "ff_nursery.h"

#include <stdint.h>

#define OBJECTS (FF_NURSERY_SIZE / FF_NURSERY_GRAIN)

struct taken {
    unsigned char *object;
    size_t size;
};

static struct taken all[OBJECTS];

/* Sizes of all classes, in an order that repeats late. */
static size_t nth_size(size_t n)
{
    return (n * 2654435761u >> 7) % (FF_NURSERY_LARGEST + 1);
}

static size_t fill_up(struct ff_nursery *nursery)
{
    size_t count = 0;

    for (;;) {
        size_t size = nth_size(count);
        unsigned char *object = ff_nursery_take(nursery, size);

        if (object == NULL)
            return count;
        memset(object, (int)(count % 251), size);
        all[count++] = (struct taken){object, size};
    }
}

static void test_objects_are_apart(void)
{
    struct ff_nursery *nursery = ff_nursery_new();
    size_t count = fill_up(nursery);

    CHECK(count > FF_NURSERY_SIZE / FF_NURSERY_LARGEST);
    for (size_t i = 0; i < count; i++) {
        CHECK(ff_nursery_owns(nursery, all[i].object));
        CHECK(ff_nursery_owns(nursery, all[i].object + all[i].size - (all[i].size > 0)));
        CHECK((uintptr_t)all[i].object % FF_NURSERY_GRAIN == 0);
        CHECK(ff_nursery_room(nursery, all[i].object) >= all[i].size);
        for (size_t at = 0; at < all[i].size; at++)
            CHECK_INT(all[i].object[at], i % 251);
    }
    ff_nursery_delete(nursery);
}

static void test_what_is_given_back_is_used_again(void)
{
    struct ff_nursery *nursery = ff_nursery_new();
    size_t count = fill_up(nursery);

    for (int round = 0; round < 3; round++) {
        for (size_t i = 0; i < count; i++)
            ff_nursery_give_back(nursery, all[i].object);
        for (size_t i = 0; i < count; i++) {
            all[i].object = ff_nursery_take(nursery, all[i].size);
            CHECK(all[i].object != NULL);
        }
    }
    ff_nursery_delete(nursery);
}

static void test_few_objects_take_few_pages(void)
{
    struct ff_nursery *nursery = ff_nursery_new();

    for (size_t size = 0; size <= FF_NURSERY_LARGEST; size += FF_NURSERY_GRAIN)
        CHECK((uintptr_t)ff_nursery_take(nursery, size) - (uintptr_t)nursery < 36 * FF_NURSERY_CHUNK);
    ff_nursery_delete(nursery);
}

static void test_one_size_can_have_it_all(void)
{
    static const size_t sizes[] = {1, 16, 17, 48, 500, 512};

    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        struct ff_nursery *nursery = ff_nursery_new();
        size_t used = 0;

        while (ff_nursery_take(nursery, sizes[i]) != NULL)
            used += (sizes[i] + FF_NURSERY_GRAIN - 1) / FF_NURSERY_GRAIN * FF_NURSERY_GRAIN;
        CHECK(used > FF_NURSERY_SIZE * 9 / 10);
        ff_nursery_delete(nursery);
    }
}

static void test_what_lies_beside_it_is_not_its_own(void)
{
    struct ff_nursery *nursery = ff_nursery_new();

    CHECK(!ff_nursery_owns(nursery, (unsigned char *)nursery - 1));
    CHECK(!ff_nursery_owns(nursery, (unsigned char *)nursery + FF_NURSERY_SIZE));
    CHECK(!ff_nursery_owns(nursery, NULL));
    ff_nursery_delete(nursery);
}

int main(void)
{
    RUN(test_objects_are_apart);
    RUN(test_what_is_given_back_is_used_again);
    RUN(test_few_objects_take_few_pages);
    RUN(test_one_size_can_have_it_all);
    RUN(test_what_lies_beside_it_is_not_its_own);
    return 0;
}
