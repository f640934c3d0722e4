/* F7 finalize: what the exit and wr_shutdown() run (public half: <weakref/finalize.h>). */
#ifndef WR_LIB_FINALIZE_H
#define WR_LIB_FINALIZE_H

#include <weakref/finalize.h>

/* Runs the finalizers with WR_FINALIZE_ATEXIT that this process made, newest first, those included that they make, and
 * waits for those that other threads are running. False: @until_ns (WR_EVENT_FOREVER: no limit) came first.
 * Requires: no wr lock held (runs user code). */
bool wr_finalize_flush(uint64_t until_ns);

/* How many finalizers with WR_FINALIZE_ATEXIT are alive. */
uint64_t wr_finalize_count(void);

#endif
