/* ff_address.h: the socket's file of a process that a signal tells to end. */
#ifndef FF_ADDRESS_H
#define FF_ADDRESS_H

/* The handler of a signal that ends the process: it removes what ff_address_remove_at_end() was told, and is over. */
void ff_address_end(int signal_number);

/* In a child: the signals have their default dispositions again. */
void ff_address_forget(void);

#endif
