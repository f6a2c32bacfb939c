/* ff_huge.c: memory in huge pages.
 *
 * A fork copies an entry for each page, and the end of a process takes each back: of a large heap in huge pages
 * there is one for every 512.
 */
#define _GNU_SOURCE

#include <errno.h>
#include <sys/mman.h>

#include "ff_abi.h"
#include "ff_util.h"

#if defined(__linux__) && !defined(MADV_COLLAPSE)
#define MADV_COLLAPSE 25 /* Linux 6.1; the C library's headers may be older */
#endif

int ff_huge_collapse(uintptr_t begin, size_t size)
{
#ifdef MADV_COLLAPSE
    return madvise((void *)begin, size, MADV_COLLAPSE) < 0 ? -errno : 0;
#else
    (void)begin;
    (void)size;
    return -ENOSYS;
#endif
}
