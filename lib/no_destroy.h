/* F3 no_destroy: whether the calling thread is in a region where nothing may be destroyed (public half:
 * <weakref/no_destroy.h>). */
#ifndef WR_LIB_NO_DESTROY_H
#define WR_LIB_NO_DESTROY_H

#include "check.h"

#include <weakref/no_destroy.h>

/* @kind, @name, @address: of what is about to be run. */
_Noreturn WR_COLD void wr_no_destroy_panic(const char *kind, const char *name, const void *address);

/* Stands before user code that a release runs on its own thread. */
static inline void wr_no_destroy_check(const char *kind, const char *name, const void *address)
{
    if (wr_unlikely(WR_LAYOUT(wr_no_destroy) != NULL))
        wr_no_destroy_panic(kind, name, address);
}

#endif
