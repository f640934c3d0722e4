/* F2 lock: spinlocks and mutexes with ranks, and what ThreadSanitizer must be told of them.
 *
 * The spin: try; then back off in doubling empty loops up to a ceiling of about a microsecond, looking before each
 * new try; then give the processor up between looks. The sections under these locks are some dozens of
 * instructions, so past the ceiling the owner is most likely not running at all.
 */
#include "lock.h"

#include <ck_backoff.h>
#include <sched.h>

#if defined(__SANITIZE_THREAD__)
#define WR_TSAN 1
#elif defined(__has_feature)
#if __has_feature(thread_sanitizer)
#define WR_TSAN 1
#endif
#endif

#ifdef WR_TSAN
#include <sanitizer/tsan_interface.h>
#define tell_acquired(address) __tsan_acquire(address)
#define tell_releases(address) __tsan_release(address)
#else
#define tell_acquired(address) ((void)(address))
#define tell_releases(address) ((void)(address))
#endif

/* ---- ranks ------------------------------------------------------------------------------------- */

#if WR_DEBUG

/* How many locks of each rank this thread holds. */
static __thread unsigned char held[WR_N_RANKS];

/* A thread that would wait for @lock: all it holds ranks lower. Two locks of one rank would be a circle some day. */
static void rank_check(const void *lock, enum wr_rank rank)
{
    for (int higher = (int)rank; higher < WR_N_RANKS; higher++)
        if (held[higher] != 0)
            wr_panic(higher == (int)rank ? "same rank twice" : "wrong order", "lock", NULL, lock,
                     "taken while a lock of its rank or a higher one is held");
}

static void rank_enter(enum wr_rank rank)
{
    held[rank]++;
}

static void rank_leave(const void *lock, enum wr_rank rank)
{
    if (held[rank] == 0)
        wr_panic("unlock", "lock", NULL, lock, "unlocked by a thread that does not hold it");
    held[rank]--;
}

void wr_lock_assert_none(const char *where)
{
    for (int rank = 0; rank < WR_N_RANKS; rank++)
        if (held[rank] != 0)
            wr_panic(where, "thread", NULL, NULL, "runs user code with a lock of the library held");
}

#else

static void rank_check(const void *lock, enum wr_rank rank)
{
    (void)lock, (void)rank;
}

static void rank_enter(enum wr_rank rank)
{
    (void)rank;
}

static void rank_leave(const void *lock, enum wr_rank rank)
{
    (void)lock, (void)rank;
}

#endif

/* ---- spinlocks --------------------------------------------------------------------------------- */

enum {
    SPIN_FIRST = 1 << 4,   /* empty iterations before the second try */
    SPIN_CEILING = 1 << 10 /* from here on: yield */
};

void wr_spin_init(wr_spin *spin)
{
    ck_spinlock_fas_init(&spin->lock);
}

static WR_COLD void spin_wait(wr_spin *spin)
{
    ck_backoff_t backoff = SPIN_FIRST;
    do {
        if (backoff < SPIN_CEILING)
            ck_backoff_eb(&backoff);
        else
            sched_yield();
    } while (ck_spinlock_fas_locked(&spin->lock) || !ck_spinlock_fas_trylock(&spin->lock));
}

void wr_spin_lock(wr_spin *spin, enum wr_rank rank)
{
    rank_check(spin, rank);
    if (wr_unlikely(!ck_spinlock_fas_trylock(&spin->lock)))
        spin_wait(spin);
    tell_acquired(spin);
    rank_enter(rank);
}

bool wr_spin_trylock(wr_spin *spin, enum wr_rank rank)
{
    if (!ck_spinlock_fas_trylock(&spin->lock))
        return false;
    tell_acquired(spin);
    rank_enter(rank);
    return true;
}

void wr_spin_unlock(wr_spin *spin, enum wr_rank rank)
{
    rank_leave(spin, rank);
    tell_releases(spin);
    ck_spinlock_fas_unlock(&spin->lock);
}

/* ---- mutexes ----------------------------------------------------------------------------------- */

/* pthread calls on a mutex that is used rightly do not fail; ThreadSanitizer knows them. */

void wr_mutex_init(wr_mutex *mutex)
{
    if (pthread_mutex_init(&mutex->lock, NULL) != 0)
        wr_panic("init", "lock", NULL, mutex, "pthread_mutex_init failed");
}

void wr_mutex_fini(wr_mutex *mutex)
{
    if (pthread_mutex_destroy(&mutex->lock) != 0)
        wr_panic("fini", "lock", NULL, mutex, "destroyed while it is held");
}

void wr_mutex_lock(wr_mutex *mutex, enum wr_rank rank)
{
    rank_check(mutex, rank);
    if (pthread_mutex_lock(&mutex->lock) != 0)
        wr_panic("lock", "lock", NULL, mutex, "pthread_mutex_lock failed");
    rank_enter(rank);
}

bool wr_mutex_trylock(wr_mutex *mutex, enum wr_rank rank)
{
    if (pthread_mutex_trylock(&mutex->lock) != 0)
        return false;
    rank_enter(rank);
    return true;
}

void wr_mutex_unlock(wr_mutex *mutex, enum wr_rank rank)
{
    rank_leave(mutex, rank);
    if (pthread_mutex_unlock(&mutex->lock) != 0)
        wr_panic("unlock", "lock", NULL, mutex, "pthread_mutex_unlock failed");
}
