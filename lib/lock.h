/* F2 lock: spinlocks and mutexes with ranks, and what ThreadSanitizer must be told of them.
 *
 * Spinlocks are ck_spinlock with ck_backoff, and yield the processor after a bounded spin, so that a preempted
 * owner never costs a time slice. No user code and no allocation runs under one. ThreadSanitizer does not see
 * CK's inline assembly: lock and unlock tell it.
 *
 * Ranks: a thread takes locks in ascending order of rank; debug builds panic otherwise.
 */
#ifndef WR_LIB_LOCK_H
#define WR_LIB_LOCK_H

#include "check.h"

#include <ck_spinlock.h>
#include <pthread.h>

enum wr_rank {
    WR_RANK_SHARD = 1, /* spin: one shard of a dictionary */
    WR_RANK_LIST,      /* spin: the finalizers that run at exit; one signal's connections */
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
void wr_spin_lock(wr_spin *spin, enum wr_rank rank);
bool wr_spin_trylock(wr_spin *spin, enum wr_rank rank);
void wr_spin_unlock(wr_spin *spin, enum wr_rank rank);

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
