/* ff_python_nursery.h: the nursery in front of CPython's allocator for small objects. */
#ifndef FF_PYTHON_NURSERY_H
#define FF_PYTHON_NURSERY_H

/* In a child, where the GIL is held: keep new small objects in the nursery, if there is one. */
void ff_python_use_nursery(void);

#endif
