/* F3 thread: every thread's own record, in its thread-local storage, and the list of all of them.
 *
 * A record is registered at its thread's first need and leaves the list when the thread ends (a pthread key's
 * destructor); what the thread had retired is handed on then. Destructors of other keys that run later still
 * work: they use one shared fallback record, which never goes away. So registration cannot fail, there is no limit
 * on threads, and a thread that ends leaves nothing behind. One case is beyond help: a thread whose very first use of the
 * library falls into the last of the C library's PTHREAD_DESTRUCTOR_ITERATIONS rounds of key destructors, after which no
 * destructor of ours is called.
 */
#ifndef WR_LIB_THREAD_H
#define WR_LIB_THREAD_H

#include "lock.h"

#include <weakref/detail/thread.h>

#include <signal.h>

/* Something that waits for a grace period. Intrusive: whoever retires brings it, so that retiring cannot fail. */
typedef struct wr_retired {
    struct wr_retired *next;
    union {
        void (*reclaim)(struct wr_retired *retired); /* of memory */
        struct {
            uint32_t owner; /* whose work it is: of a thread's ordinal the low half, or WR_OWNER_ALL */
            uint32_t kind;  /* which function: see guard.c */
        } user;
    };
} wr_retired;

#define WR_OWNER_ALL UINT32_MAX

/* What was retired and is not yet taken by a collector: pushed by the owner, taken whole by anybody. */
typedef WR_ATOMIC(wr_retired *) wr_retired_stack;

struct wr_retired_stacks {
    wr_retired_stack memory; /* reclaim frees the library's memory only: runs on any thread */
    wr_retired_stack user;   /* reclaim runs user code */
};

/* Objects of one thread that died inside a destroy and wait for their own, in order of death; see object.c. */
struct wr_deaths {
    struct wr_header *first, *last;
    bool active; /* a destroy is running */
};

/* One link of the chain of callbacks that are on a thread's stack now; see queue.c. */
struct wr_frame;

/* What a thread keeps for its own reuse, see pool.c, whose struct starts with it. */
struct wr_thread_cache {
    void (*at_exit)(struct wr_thread_cache *cache); /* gives it back; the thread has none from then on */
};

#define WR_HANDED_AHEAD 4

typedef struct wr_thread {
    bool registered;                /* in the list of threads; false also after the thread's teardown */
    bool torn_down;                 /* its key's destructor has run: the fallback record serves */
    unsigned char fallback_section; /* the section of the fallback that this thread is in. On the stack record */
    struct wr_thread *next, *prev;  /* list of threads. Guarded by the threads lock */
    struct wr_guard_record *guard;  /* its read section */
    struct wr_gate_record *gate;    /* whether it is inside; NULL in the fallback */
    int tid;
    uint64_t ordinal; /* which thread of all that there ever were; 0: not given yet. On the stack's record */

    struct wr_retired_stacks fresh;
    unsigned n_fresh; /* since this thread last tried to collect. On the stack's record */

    unsigned deferred_depth;    /* > 0: inside the reclaim of deferred user code */
    uint32_t deferred_owner;    /* whose that code is */
    wr_retired *spawned_memory; /* what such code retires, latest first: goes with its own batch, see guard.c */
    wr_retired *spawned_user;

    struct wr_deaths deaths;
    const void
        *handed[WR_HANDED_AHEAD]; /* the tasks that it handed over last; addresses, never followed; see queue.c */
    unsigned n_handed;
    struct wr_frame *frames; /* callbacks that are running on this thread; see queue.c */
    unsigned n_calls;        /* handlers and finalizers that are running on it */

    struct wr_thread_cache *cache; /* or NULL. On the stack's record */

    uint64_t seen_epoch, seen_since_ns; /* how long its guard stands. Guarded by the reclaim lock */
} wr_thread;

extern __thread wr_thread wr_thread_record __attribute__((tls_model("initial-exec"), visibility("hidden")));

wr_thread *wr_thread_register(void); /* the cold half of wr_thread_self() */

/* The calling thread's record: its own, or the fallback, which others use at the same time. Never NULL. */
static inline wr_thread *wr_thread_self(void)
{
    return wr_likely(wr_thread_record.registered) ? &wr_thread_record : wr_thread_register();
}

/* What belongs to the thread's stack alone (deaths in progress, running callbacks): never the fallback. */
static inline wr_thread *wr_thread_stack(void)
{
    return &wr_thread_record;
}

/* Around a handler or finalizer: that a thread ends in it, or has left it without returning, is noticed at its end. */
static inline void wr_thread_call_begin(void)
{
    (void)wr_thread_self(); /* registered */
    wr_thread_stack()->n_calls++;
}

static inline void wr_thread_call_end(void)
{
    wr_thread_stack()->n_calls--;
}

/* The calling thread's ordinal. Not 0. */
uint64_t wr_thread_ordinal(void);

/* For threads of the library's own, around their making: they take no signals but those that they bring about themselves. */
void wr_signals_hold(sigset_t *before);
void wr_signals_restore(const sigset_t *before);

/* A thread that is cancelled in the middle of the library's work would take that work with it: no cancellation between
 * these two. @was: what the first returned. */
static inline int wr_cancel_hold(void)
{
    int was;
    (void)pthread_setcancelstate(PTHREAD_CANCEL_DISABLE, &was);
    return was;
}

static inline void wr_cancel_restore(int was)
{
    (void)pthread_setcancelstate(was, NULL);
}

/* Calls @visit for each record, the fallback included, with the threads lock held. @wait: whether to wait for
 * that lock. Returns false if it was not to be had. */
bool wr_thread_for_each(bool wait, void (*visit)(wr_thread *thread, void *ctx), void *ctx);

/* Whether guards, and the gate, rely on membarrier(2). */
bool wr_thread_is_asymmetric(void);

/* For fork.c, with the gate closed. Whether another thread is inside; whether there are others in the list; the ordinal that
 * will be given next; and, in the child, where those others are not: takes them off the list, and their guards away. */
bool wr_thread_others_inside(void);
bool wr_thread_others(void);
uint64_t wr_thread_next_ordinal(void);
void wr_thread_cut_others(void);

/* Read sections of threads without a record of their own. They share two: one begins afresh while the other drains, so
 * that sections that overlap without end do not hold up a grace period. */
void wr_thread_fallback_enter(void);
void wr_thread_fallback_exit(void);

/* What guard.c tells this file, from its constructor: how guards are entered, and what to do at a thread's end. */
struct wr_thread_hooks {
    uint32_t mode; /* enum wr_guard_mode of new records */
    /* Hands on to @heir what @thread retired. Requires: the threads lock held. */
    void (*at_exit)(wr_thread *thread, wr_thread *heir);
};
void wr_thread_set_hooks(const struct wr_thread_hooks *hooks);

#endif
