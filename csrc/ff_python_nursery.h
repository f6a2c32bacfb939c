/* ff_python_nursery.h: a child's side of the nursery that ff_python_install_nursery() has put into this process. */
#ifndef FF_PYTHON_NURSERY_H
#define FF_PYTHON_NURSERY_H

/* Begin to put new small objects there, in a child where nothing else has run yet. */
void ff_python_use_nursery(void);

#endif
