/* F3 thread: every thread's own record, in its thread-local storage, and the list of all of them.
 *
 * A record is registered at its thread's first need and leaves the list when the thread ends (a pthread key's
 * destructor); what the thread had retired is handed on then. Destructors of other keys that run later still
 * work: they use one shared fallback record, which never goes away. So registration cannot fail, there is no limit
 * on threads, and a thread that ends leaves nothing behind.
 */
#ifndef WR_LIB_THREAD_H
#define WR_LIB_THREAD_H

#include "lock.h"

#include <weakref/detail/thread.h>

/* Something that waits for a grace period. Intrusive: whoever retires brings it, so that retiring cannot fail. */
typedef struct wr_retired {
    struct wr_retired *next;
    void (*reclaim)(struct wr_retired *retired);
} wr_retired;

/* What was retired and is not yet taken by a reclaimer: stacks, pushed by the owner, taken whole by anybody. */
struct wr_retired_stacks {
    WR_ATOMIC(wr_retired *) memory; /* reclaim frees the library's memory only: runs on any thread */
    WR_ATOMIC(wr_retired *) user;   /* reclaim runs user code */
};

/* One link of the chain of callbacks that are on a thread's stack now; see queue.c. */
struct wr_frame;

typedef struct wr_thread {
    bool registered; /* in the list of threads; false also after the thread's teardown */
    bool torn_down;  /* its key's destructor has run: the fallback record serves */
    struct wr_thread *next, *prev; /* list of threads. Guarded by the threads lock */
    struct wr_guard_record *guard; /* its read section */
    int tid;

    struct wr_retired_stacks fresh;
    unsigned n_fresh; /* since this thread last tried to collect */

    unsigned deferred_depth;            /* > 0: inside the reclaim of deferred user code */
    wr_retired *spawned_memory;         /* what such code retires: goes with its own batch, see guard.c */
    wr_retired *spawned_user;

    wr_retired *reserve; /* blank records for slot stores and wr_release_later(); see guard.c */
    unsigned n_reserve;

    struct wr_header *dying, *dying_last; /* deaths that wait for the one in progress; see object.c */
    bool destroying;

    struct wr_frame *frames; /* callbacks that are running on this thread; see queue.c */

    uint64_t seen_epoch, seen_since_ns; /* how long its guard stands. Guarded by the reclaim lock */
} wr_thread;

/* The calling thread's record: its own, or the fallback. Never NULL, never fails. */
wr_thread *wr_thread_self(void);
wr_thread *wr_thread_register(void); /* its cold half */

/* What belongs to the thread's stack alone (deaths in progress, running callbacks): valid also after the teardown. */
wr_thread *wr_thread_stack(void);

/* Calls @visit for each record, the fallback included, with the threads lock held. */
void wr_thread_for_each(void (*visit)(wr_thread *thread, void *ctx), void *ctx);

/* The fallback record's guards: shared by all threads that are past their teardown. */
void wr_thread_fallback_enter(void);
void wr_thread_fallback_exit(void);

/* Called once, by the constructor of guard.c: how guards are entered, and what to do at a thread's end. */
struct wr_thread_hooks {
    uint32_t mode; /* enum wr_guard_mode for new records */
    void (*at_exit)(wr_thread *thread);
};
void wr_thread_set_hooks(const struct wr_thread_hooks *hooks);

#endif
