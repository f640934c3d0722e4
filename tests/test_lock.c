/* Tests of spinlocks, mutexes and their ranks. */
#include "lock.h"

#include <criterion/criterion.h>
#include <sched.h>
#include <signal.h>

#include "race.h"

TestSuite(lock, .timeout = 60);

static wr_spin spin = WR_SPIN_INIT;
static wr_mutex mutex = WR_MUTEX_INIT;
static long counter; /* plain: the lock under test is all that orders it */

Test(lock, spin_trylock_fails_while_it_is_held)
{
    wr_spin own;
    wr_spin_init(&own);
    wr_spin_lock(&own, WR_RANK_SHARD);
    cr_assert_not(wr_spin_trylock(&own, WR_RANK_SHARD));
    wr_spin_unlock(&own, WR_RANK_SHARD);
    cr_assert(wr_spin_trylock(&own, WR_RANK_SHARD));
    wr_spin_unlock(&own, WR_RANK_SHARD);
}

Test(lock, mutex_trylock_fails_while_it_is_held)
{
    wr_mutex own;
    wr_mutex_init(&own);
    wr_mutex_lock(&own, WR_RANK_THREADS);
    cr_assert_not(wr_mutex_trylock(&own, WR_RANK_THREADS));
    wr_mutex_unlock(&own, WR_RANK_THREADS);
    cr_assert(wr_mutex_trylock(&own, WR_RANK_THREADS));
    wr_mutex_unlock(&own, WR_RANK_THREADS);
    wr_mutex_fini(&own);
}

Test(lock, ascending_ranks_may_be_left_in_any_order)
{
    wr_spin side = WR_SPIN_INIT;
    wr_spin_lock(&spin, WR_RANK_SHARD);
    wr_spin_lock(&side, WR_RANK_SIDE);
    wr_mutex_lock(&mutex, WR_RANK_RECLAIM);
    wr_spin_unlock(&spin, WR_RANK_SHARD);
    wr_spin_unlock(&side, WR_RANK_SIDE);
    wr_mutex_unlock(&mutex, WR_RANK_RECLAIM);
    wr_lock_assert_none("test");
}

enum { ADDS = RACE_SIZE(20000, 4000) };

static void *add_with_spin(void *unused)
{
    for (int i = 0; i < ADDS; i++) {
        wr_spin_lock(&spin, WR_RANK_QUEUE);
        counter++;
        if (i % 1000 == 0)
            sched_yield(); /* an owner that is not running */
        wr_spin_unlock(&spin, WR_RANK_QUEUE);
    }
    return unused;
}

static void *add_with_mutex(void *unused)
{
    for (int i = 0; i < ADDS; i++) {
        wr_mutex_lock(&mutex, WR_RANK_THREADS);
        counter++;
        wr_mutex_unlock(&mutex, WR_RANK_THREADS);
    }
    return unused;
}

static void *add_with_trylock(void *unused)
{
    for (int i = 0; i < ADDS; i++) {
        while (!wr_spin_trylock(&spin, WR_RANK_QUEUE))
            sched_yield();
        counter++;
        wr_spin_unlock(&spin, WR_RANK_QUEUE);
    }
    return unused;
}

/* More threads than processors: owners are preempted, and it still ends soon. */
static void run_threads(void *(*body)(void *), int n)
{
    pthread_t threads[8];
    counter = 0;
    for (int i = 0; i < n; i++)
        cr_assert_eq(pthread_create(&threads[i], NULL, body, NULL), 0);
    for (int i = 0; i < n; i++)
        pthread_join(threads[i], NULL);
    cr_assert_eq(counter, (long)n * ADDS);
}

Test(lock, spin_keeps_two_threads_apart)
{
    run_threads(add_with_spin, 2);
}

Test(lock, spin_keeps_eight_threads_apart)
{
    run_threads(add_with_spin, 8);
}

Test(lock, trylock_keeps_eight_threads_apart)
{
    run_threads(add_with_trylock, 8);
}

Test(lock, mutex_keeps_eight_threads_apart)
{
    run_threads(add_with_mutex, 8);
}

/* ---- misuse: only debug builds see it ---------------------------------------------------------------- */

#if WR_DEBUG

Test(lock, descending_ranks_panic, .signal = SIGABRT)
{
    wr_mutex_lock(&mutex, WR_RANK_THREADS);
    wr_spin_lock(&spin, WR_RANK_SHARD);
}

Test(lock, the_same_rank_twice_panics, .signal = SIGABRT)
{
    wr_spin other = WR_SPIN_INIT;
    wr_spin_lock(&spin, WR_RANK_SHARD);
    wr_spin_lock(&other, WR_RANK_SHARD);
}

Test(lock, mutexes_and_spinlocks_share_the_order, .signal = SIGABRT)
{
    wr_spin_lock(&spin, WR_RANK_QUEUE);
    wr_mutex_lock(&mutex, WR_RANK_SHARD);
}

Test(lock, unlocking_what_is_not_held_panics, .signal = SIGABRT)
{
    wr_spin_unlock(&spin, WR_RANK_QUEUE);
}

Test(lock, user_code_under_a_lock_panics, .signal = SIGABRT)
{
    wr_spin_lock(&spin, WR_RANK_QUEUE);
    wr_lock_assert_none("test");
}

static void *takes_lower(void *unused)
{
    wr_spin other = WR_SPIN_INIT;
    wr_spin_lock(&other, WR_RANK_SHARD);
    wr_spin_unlock(&other, WR_RANK_SHARD);
    return unused;
}

Test(lock, ranks_are_each_threads_own)
{
    pthread_t thread;
    wr_mutex_lock(&mutex, WR_RANK_THREADS);
    cr_assert_eq(pthread_create(&thread, NULL, takes_lower, NULL), 0);
    pthread_join(thread, NULL);
    wr_mutex_unlock(&mutex, WR_RANK_THREADS);
}

#endif
