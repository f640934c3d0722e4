/* F3 thread: what a fork does to the library.
 *
 * One handler of pthread_atfork() for all of it. Before: the gate is closed (lock.h), and once nobody else is inside, all locks
 * are free and all that they guard is whole. In the parent: the gate is opened. In the child the forking thread is the
 * only one; the others were cut off wherever they stood, outside of locks and of steps that the gate keeps whole. What they
 * leave half done there is each unit's own matter: it registers a function for the child, below.
 *
 * In the child, before the program's own handlers: so these may use the library. The functions allocate and free nothing,
 * for an allocator with handlers of its own is not ready yet, and they start no thread.
 *
 * Who is gone: every thread has an ordinal, never used again. What a thread was at carries it, and whoever comes by in a
 * child asks wr_thread_is_gone().
 */
#ifndef WR_LIB_FORK_H
#define WR_LIB_FORK_H

#include "thread.h"

/* In the child they are called in this order. */
enum wr_fork_place {
    WR_FORK_GUARD,
    WR_FORK_QUEUE,
    WR_FORK_FINALIZE,
    WR_FORK_SIGNAL,
    WR_FORK_KEEP,
    WR_FORK_DICT,
    WR_FORK_PRESSURE,
    WR_FORK_N_PLACES
};

/* From a constructor. Requires of @in_child: allocates, frees, waits for and starts nothing; runs no user code. */
void wr_fork_register(enum wr_fork_place place, void (*in_child)(void));

/* 1, and one more in each forked child: process ids come back, and in new pid namespaces at once. */
uint32_t wr_fork_process(void);

/* Whether the thread with this ordinal existed in a parent process and did not come along. */
bool wr_thread_is_gone(uint64_t ordinal);
/* The same by its low half, which is right for a few thousand million threads back. */
bool wr_thread_is_gone_low(uint32_t ordinal);

/* False where the library had better start no threads by itself: ThreadSanitizer ends a child that does so after a fork
 * from among several. */
bool wr_fork_may_start_threads(void);

#endif
