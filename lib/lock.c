/* F2 lock: spinlocks and mutexes with ranks, and what ThreadSanitizer must be told of them.
 *
 * The spin: try; then back off in doubling empty loops up to a ceiling of about a microsecond, looking before each
 * new try; then give the processor up between looks. The sections under these locks are some dozens of
 * instructions, so past the ceiling the owner is most likely not running at all.
 */
#include "lock.h"

#include <ck_backoff.h>
#include <errno.h>
#include <limits.h>
#include <linux/futex.h>
#include <linux/membarrier.h>
#include <sched.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

/* ---- ranks ------------------------------------------------------------------------------------- */

#if WR_DEBUG

/* How many locks of each rank this thread holds. */
static __thread unsigned char held[WR_N_RANKS];

/* A thread that would wait for @lock: all it holds ranks lower. Two locks of one rank would be a circle some day. */
void wr_rank_check(const void *lock, enum wr_rank rank)
{
    for (int higher = (int)rank; higher < WR_N_RANKS; higher++)
        if (held[higher] != 0)
            wr_panic(higher == (int)rank ? "same rank twice" : "wrong order", "lock", NULL, lock,
                     "taken while a lock of its rank or a higher one is held");
}

void wr_rank_enter(enum wr_rank rank)
{
    held[rank]++;
}

void wr_rank_leave(const void *lock, enum wr_rank rank)
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

#endif

/* ---- the gate ------------------------------------------------------------------------------------ */

__thread struct wr_gate_record wr_gate_self __attribute__((tls_model("initial-exec")));
wr_atomic_u32 wr_gate_closed;

/* How many without a listed record are inside: not registered yet, or after their teardown. */
static wr_atomic_u32 n_unlisted;

static void gate_wait(void)
{
    int saved = errno;
    (void)syscall(SYS_futex, &wr_gate_closed.v, FUTEX_WAIT_PRIVATE, 1, NULL, NULL, 0);
    errno = saved;
}

/* The outermost entry, of which wr_gate_enter() has made a note. */
void wr_gate_enter_cold(void)
{
    struct wr_gate_record *self = &wr_gate_self;
    if (self->closer)
        return;
    for (;;) {
        if (!self->listed) {
            /* Seq_cst [gate-dekker]: stands before the look at the gate, as in wr_gate_close() the store of the gate before the
             * look at this. */
            (void)wr_atomic_fetch_add_seq_cst(&n_unlisted, 1);
            self->shared = true;
        } else {
            /* Relaxed: the fence orders it. */
            wr_atomic_store_relaxed(&self->inside, 1);
            wr_atomic_fence_seq_cst(); /* [gate-dekker]: as above; where membarrier(2) is refused */
        }
        /* Seq_cst [gate-dekker]: either this sees the gate closed, or the closing thread sees the entry. */
        if (wr_atomic_load_seq_cst(&wr_gate_closed) == 0)
            return;
        if (self->shared)
            wr_gate_leave_cold();
        /* Release [gate]: as in wr_gate_leave(). */
        wr_atomic_store_release(&self->inside, 0);
        gate_wait();
        /* Relaxed: it is looked at again above. */
        wr_atomic_store_relaxed(&self->inside, 1);
    }
}

void wr_gate_leave_cold(void)
{
    wr_gate_self.shared = false;
    /* Release [gate]: as in wr_gate_leave(). */
    (void)wr_atomic_fetch_sub_release(&n_unlisted, 1);
}

void wr_gate_list(bool listed, bool asymmetric)
{
    wr_gate_self.listed = listed;
    wr_gate_self.fast = listed && asymmetric;
}

void wr_gate_close(bool asymmetric)
{
    uint32_t open = 0;
    /* Seq_cst [gate-dekker]: before the looks at who is inside. */
    while (!wr_atomic_cas_seq_cst(&wr_gate_closed, &open, 1)) {
        gate_wait();
        open = 0;
    }
    wr_gate_self.closer = true;
    wr_atomic_fence_seq_cst(); /* [gate-dekker]: pairs with the fence of those who enter */
    if (asymmetric && syscall(SYS_membarrier, MEMBARRIER_CMD_PRIVATE_EXPEDITED, 0, 0) != 0) {
        /* Refused after start, by a sandbox (guard.c warns of it). No order by the book then; but within this time every
         * processor's store buffer has been written out many thousand times. */
        (void)clock_nanosleep(CLOCK_MONOTONIC, 0, &(struct timespec){.tv_nsec = 20000000}, NULL);
    }
}

bool wr_gate_sees(const struct wr_gate_record *record)
{
    /* Acquire [gate]: whoever is out has written all that it wrote inside. Pairs with wr_gate_leave(). */
    return wr_atomic_load_acquire(&record->inside) != 0;
}

bool wr_gate_sees_unlisted(void)
{
    /* Acquire [gate]: as above. The caller is not counted: it goes through as the closer. */
    return wr_atomic_load_acquire(&n_unlisted) != 0;
}

void wr_gate_open(void)
{
    wr_gate_self.closer = false;
    /* Release [gate-dekker]: nothing was changed behind it but the gate. */
    wr_atomic_store_release(&wr_gate_closed, 0);
    (void)syscall(SYS_futex, &wr_gate_closed.v, FUTEX_WAKE_PRIVATE, INT_MAX, NULL, NULL, 0);
}

void wr_gate_open_in_child(void)
{
    wr_gate_self.closer = false;
    /* Relaxed, both: there is only this thread. Who waited at the gate may have been counted for a moment. */
    wr_atomic_store_relaxed(&n_unlisted, 0);
    wr_atomic_store_relaxed(&wr_gate_closed, 0);
}

/* ---- spinlocks --------------------------------------------------------------------------------- */

enum {
    SPIN_FIRST = 1 << 4,   /* empty iterations before the second try */
    SPIN_CEILING = 1 << 10 /* from here on: yield */
};

void wr_spin_init(wr_spin *spin)
{
    ck_spinlock_fas_init(&spin->lock);
}

void wr_spin_lock_cold(wr_spin *spin)
{
    ck_backoff_t backoff = SPIN_FIRST;
    do {
        if (backoff < SPIN_CEILING)
            ck_backoff_eb(&backoff);
        else
            sched_yield();
    } while (ck_spinlock_fas_locked(&spin->lock) || !ck_spinlock_fas_trylock(&spin->lock));
}

bool wr_spin_trylock(wr_spin *spin, enum wr_rank rank)
{
    wr_gate_enter();
    if (!ck_spinlock_fas_trylock(&spin->lock)) {
        wr_gate_leave();
        return false;
    }
    wr_tell_acquired_(spin);
    wr_rank_enter(rank);
    return true;
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
    wr_rank_check(mutex, rank);
    wr_gate_enter();
    if (pthread_mutex_lock(&mutex->lock) != 0)
        wr_panic("lock", "lock", NULL, mutex, "pthread_mutex_lock failed");
    wr_rank_enter(rank);
}

bool wr_mutex_trylock(wr_mutex *mutex, enum wr_rank rank)
{
    wr_gate_enter();
    if (pthread_mutex_trylock(&mutex->lock) != 0) {
        wr_gate_leave();
        return false;
    }
    wr_rank_enter(rank);
    return true;
}

void wr_mutex_unlock(wr_mutex *mutex, enum wr_rank rank)
{
    wr_rank_leave(mutex, rank);
    if (pthread_mutex_unlock(&mutex->lock) != 0)
        wr_panic("unlock", "lock", NULL, mutex, "pthread_mutex_unlock failed");
    wr_gate_leave();
}
