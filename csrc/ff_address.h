/* ff_address.h: the socket's file of a process that a signal tells to end. */
#ifndef FF_ADDRESS_H
#define FF_ADDRESS_H

/* In a child, first of all: the signals have their default dispositions again. */
void ff_address_forget(void);

#endif
