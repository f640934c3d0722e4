/* F2 lock: spinlocks and mutexes with ranks, and what ThreadSanitizer must be told of them.
 *
 * Spinlocks are ck_spinlock with ck_backoff, and yield the processor after a bounded spin, so that a preempted
 * owner never costs a time slice. No user code and no allocation runs under one. ThreadSanitizer does not see
 * CK's inline assembly: lock and unlock tell it.
 *
 * Ranks: a thread takes locks in ascending order of rank; debug builds panic otherwise.
 *
 * The gate: who takes a lock goes through it and is *inside* until its last lock is left; so is who has begun a step of
 * several writes that a forked child must not find half done (wr_gate_enter()). A forking thread closes the gate and
 * waits until nobody else is inside: then every lock is free, and what locks guard is whole. Going in is a store, a compiler
 * barrier and a load; the closing thread pays for it with membarrier(2), as in read sections (guard.h). Who
 * is inside already may take more locks: only the outermost entry looks at the gate, so whoever is inside comes out.
 */
#ifndef WR_LIB_LOCK_H
#define WR_LIB_LOCK_H

#include "atomics.h"
#include "check.h"

#include <ck_spinlock.h>
#include <pthread.h>

#if defined(__SANITIZE_THREAD__)
#define WR_LOCK_TSAN 1
#elif defined(__has_feature)
#if __has_feature(thread_sanitizer)
#define WR_LOCK_TSAN 1
#endif
#endif

#ifdef WR_LOCK_TSAN
#include <sanitizer/tsan_interface.h>
#define wr_tell_acquired_(address) __tsan_acquire(address)
#define wr_tell_releases_(address) __tsan_release(address)
#else
#define wr_tell_acquired_(address) ((void)(address))
#define wr_tell_releases_(address) ((void)(address))
#endif

enum wr_rank {
    WR_RANK_SHARD = 1, /* spin: one shard of a dictionary */
    WR_RANK_LIST,      /* spin: the finalizers that run at exit; one signal's connections; what a dictionary keeps */
    WR_RANK_SIDE,      /* spin: one object's watcher list */
    WR_RANK_QUEUE,     /* spin: the consumer's side of a queue */
    WR_RANK_RECLAIM,   /* mutex: taking and freeing what was deferred */
    WR_RANK_THREADS,   /* mutex: the list of thread records */
    WR_RANK_POOL,      /* spin: the depot's magazines of one class of blocks */
    WR_N_RANKS
};

typedef struct wr_spin {
    ck_spinlock_fas_t lock;
} wr_spin;

#define WR_SPIN_INIT                \
    {                               \
        CK_SPINLOCK_FAS_INITIALIZER \
    }

void wr_spin_init(wr_spin *spin);
bool wr_spin_trylock(wr_spin *spin, enum wr_rank rank);
static inline void wr_spin_lock(wr_spin *spin, enum wr_rank rank);
static inline void wr_spin_unlock(wr_spin *spin, enum wr_rank rank);

typedef struct wr_mutex {
    pthread_mutex_t lock;
} wr_mutex;

#define WR_MUTEX_INIT             \
    {                             \
        PTHREAD_MUTEX_INITIALIZER \
    }

void wr_mutex_init(wr_mutex *mutex);
void wr_mutex_fini(wr_mutex *mutex);
void wr_mutex_lock(wr_mutex *mutex, enum wr_rank rank);
bool wr_mutex_trylock(wr_mutex *mutex, enum wr_rank rank);
void wr_mutex_unlock(wr_mutex *mutex, enum wr_rank rank);

/* ---- the gate ------------------------------------------------------------------------------------ */

/* A thread's own, in its thread-local storage. */
struct wr_gate_record {
    wr_atomic_u32 inside; /* locks that it holds, and steps that it is in. Closing threads read it */
    bool fast;            /* closing threads find this record, and issue membarrier(2) */
    bool listed;          /* they find it */
    bool shared;          /* this time it is counted among those without a listed record */
    bool closer;          /* it has closed the gate, and goes through */
};

extern __thread struct wr_gate_record wr_gate_self __attribute__((tls_model("initial-exec"), visibility("hidden")));
extern wr_atomic_u32 wr_gate_closed __attribute__((visibility("hidden")));

WR_COLD void wr_gate_enter_cold(void);
WR_COLD void wr_gate_leave_cold(void);

/* Until wr_gate_leave() no other thread forks. In between: some dozens of instructions, no wait for anything but locks of the
 * library, no allocation, no user code. Nests. */
static inline void wr_gate_enter(void)
{
    struct wr_gate_record *self = &wr_gate_self;
    /* Relaxed, both: its own thread's; the barrier below, with the closing thread's membarrier, orders the store. */
    uint32_t inside = wr_atomic_load_relaxed(&self->inside);
    wr_atomic_store_relaxed(&self->inside, inside + 1);
    if (inside > 0)
        return;
    wr_atomic_compiler_barrier();
    /* Relaxed: as just said; if the gate was closed, this sees it, or the closing thread sees that we are inside. */
    if (wr_unlikely(!self->fast || wr_atomic_load_relaxed(&wr_gate_closed) != 0))
        wr_gate_enter_cold();
}

static inline void wr_gate_leave(void)
{
    struct wr_gate_record *self = &wr_gate_self;
    /* Relaxed: its own thread's. */
    uint32_t inside = wr_atomic_load_relaxed(&self->inside) - 1;
    if (wr_unlikely(self->shared && inside == 0))
        wr_gate_leave_cold();
    /* Release [gate]: all that was written inside is in the memory that is copied. Pairs with the closing thread's look. */
    wr_atomic_store_release(&self->inside, inside);
}

static inline bool wr_gate_is_inside(void)
{
    /* Relaxed: its own thread's. */
    return wr_atomic_load_relaxed(&wr_gate_self.inside) != 0;
}

/* The calling thread's record is found from now on (@listed), or no longer. @asymmetric: by threads that issue membarrier(2). */
void wr_gate_list(bool listed, bool asymmetric);

/* Closes the gate, once another thread that has closed it has opened it again; from here on the caller alone goes
 * through. What follows sees who is inside. Requires: not inside. @asymmetric: as in wr_gate_list(). */
void wr_gate_close(bool asymmetric);

/* Whether that thread, or any without a listed record but the caller, is inside. Requires: the gate closed by the caller. */
bool wr_gate_sees(const struct wr_gate_record *record);
bool wr_gate_sees_unlisted(void);

void wr_gate_open(void);
void wr_gate_open_in_child(void); /* where nobody else is inside, or waits */

/* ---- the hot halves ------------------------------------------------------------------------------ */

#if WR_DEBUG
void wr_rank_check(const void *lock, enum wr_rank rank); /* panics at a wrong order; before a wait */
void wr_rank_enter(enum wr_rank rank);
void wr_rank_leave(const void *lock, enum wr_rank rank);
#else
static inline void wr_rank_check(const void *lock, enum wr_rank rank)
{
    (void)lock, (void)rank;
}
static inline void wr_rank_enter(enum wr_rank rank)
{
    (void)rank;
}
static inline void wr_rank_leave(const void *lock, enum wr_rank rank)
{
    (void)lock, (void)rank;
}
#endif

WR_COLD void wr_spin_lock_cold(wr_spin *spin);

static inline void wr_spin_lock(wr_spin *spin, enum wr_rank rank)
{
    wr_rank_check(spin, rank);
    wr_gate_enter();
    if (wr_unlikely(!ck_spinlock_fas_trylock(&spin->lock)))
        wr_spin_lock_cold(spin);
    wr_tell_acquired_(spin);
    wr_rank_enter(rank);
}

static inline void wr_spin_unlock(wr_spin *spin, enum wr_rank rank)
{
    wr_rank_leave(spin, rank);
    wr_tell_releases_(spin);
    ck_spinlock_fas_unlock(&spin->lock);
    wr_gate_leave();
}

/* Panics in debug builds if the calling thread holds any lock of the library; stands before user code. */
#if WR_DEBUG
void wr_lock_assert_none(const char *where);
#else
static inline void wr_lock_assert_none(const char *where)
{
    (void)where;
}
#endif

#endif
