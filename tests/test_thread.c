/* Tests of thread records: registration, the end of threads, and use of the library after it. */
#include "expect.h"
#include "fail_alloc.h"
#include "guard.h"
#include "race.h"
#include "thread.h"

#include <weakref/debug.h>
#include <weakref/object.h>
#include <weakref/slot.h>
#include <weakref/weak.h>

static atomic_uint destroyed;

static void count_destroy(void *obj)
{
    (void)obj;
    atomic_fetch_add(&destroyed, 1);
}

static const wr_type plain_type = {.name = "plain", .size = 8, .destroy = count_destroy};
static const wr_type deferred_type = {
    .name = "deferred", .size = 8, .destroy = count_destroy, .flags = WR_TYPE_DEFERRED};

static void count_one(wr_thread *thread, void *ctx)
{
    (void)thread;
    ++*(unsigned *)ctx;
}

static unsigned records(void)
{
    unsigned n = 0;
    cr_assert(wr_thread_for_each(true, count_one, &n));
    return n;
}

static unsigned base; /* the fallback records */

static void count_base(void)
{
    base = records();
}

TestSuite(thread, .init = count_base);

static void run_thread(void *(*fn)(void *), void *arg)
{
    pthread_t thread;
    cr_assert_eq(pthread_create(&thread, NULL, fn, arg), 0);
    cr_assert_eq(pthread_join(thread, NULL), 0);
}

/* ---- registration ----------------------------------------------------------------------------------------- */

static void *same_record_main(void *main_record)
{
    cr_assert_neq(wr_thread_self(), main_record);
    cr_assert_eq(wr_thread_self(), wr_thread_self());
    cr_assert_eq(wr_thread_self(), wr_thread_stack());
    return NULL;
}

Test(thread, record_is_the_threads_own_and_made_at_the_first_use)
{
    cr_assert_geq(base, 1, "the fallback");
    wr_guard_enter();
    wr_guard_exit();
    cr_assert_eq(records(), base + 1);
    cr_assert_eq(wr_thread_self(), wr_thread_stack());
    run_thread(same_record_main, wr_thread_self());
    cr_assert_eq(records(), base + 1, "it leaves with its thread");
}

static void *plain_use_main(void *unused)
{
    wr_release(wr_new(&plain_type));
    return unused;
}

Test(thread, registration_cannot_fail)
{
    fail_alloc_install();
    fail_alloc_all(true);
    WR_GUARD {
        cr_assert_eq(records(), base + 1);
    }
    cr_assert_eq(fail_alloc_calls(), 0);
}

static atomic_uint n_inside;
static atomic_bool leave;

static void *stay_main(void *unused)
{
    wr_guard_enter();
    atomic_fetch_add(&n_inside, 1);
    while (!atomic_load(&leave))
        nanosleep(&(const struct timespec){.tv_nsec = 500000}, NULL);
    wr_guard_exit();
    return unused;
}

Test(thread, hundreds_of_threads_have_a_record_at_once)
{
    enum { N = 300 };
    pthread_t threads[N];
    pthread_attr_t attr;
    pthread_attr_init(&attr);
    pthread_attr_setstacksize(&attr, 256 * 1024);
    for (unsigned i = 0; i < N; i++)
        cr_assert_eq(pthread_create(&threads[i], &attr, stay_main, NULL), 0);
    await(atomic_load(&n_inside) == N);
    cr_assert_eq(records(), base + N);
    atomic_store(&leave, true);
    for (unsigned i = 0; i < N; i++)
        pthread_join(threads[i], NULL);
    cr_assert_eq(records(), base);
    pthread_attr_destroy(&attr);
}

/* ---- the end of a thread ---------------------------------------------------------------------------------- */

static void *many_main(void *slot)
{
    for (unsigned i = 0; i < 10; i++) {
        wr_release(wr_new(&deferred_type));
        wr_release_later(wr_new(&plain_type));
        void *obj = wr_new(&plain_type);
        wr_slot_store(slot, obj);
        wr_release(obj);
    }
    wr_slot_store(slot, NULL);
    return NULL;
}

Test(thread, pending_work_of_a_thread_that_ends_is_handed_on)
{
    enum { ROUNDS = 50 };
    wr_slot slot = {.obj = {NULL}};
    for (unsigned i = 1; i <= ROUNDS; i++) {
        WR_GUARD {
            run_thread(many_main, &slot); /* this guard holds it back beyond the thread's end */
        }
        await(atomic_load(&destroyed) == 30 * i);
    }
    cr_assert_eq(wr_barrier(), 0);
    struct wr_stats stats;
    wr_stats(&stats);
    cr_assert_eq(stats.deferred, 0);
}

Test(thread, short_lived_threads_leave_nothing_behind)
{
    enum { N = RACE_SANITIZED ? 300 : 3000 };
    wr_slot slot = {.obj = {NULL}};
    for (unsigned i = 0; i < N; i++)
        run_thread(i % 10 ? plain_use_main : many_main, &slot);
    cr_assert_eq(wr_barrier(), 0);
    cr_assert_leq(records(), base + 2, "this one and the reclaimer");
    cr_assert_eq(atomic_load(&destroyed), N - N / 10 + N / 10 * 30);
}

/* ---- after the teardown ----------------------------------------------------------------------------------- */

/* Keys made after the library's have their destructors run after its own, in one round and in later rounds. */
static pthread_key_t late_key;
static atomic_uint late_runs, late_bad;
static wr_slot late_slot;
static wr_weak *late_weak;

static void check_late(bool ok)
{
    if (!ok)
        atomic_fetch_add(&late_bad, 1);
}

static void use_everything(void)
{
    void *obj = wr_new(&plain_type);
    check_late(obj != NULL);
    wr_weak *weak = wr_downgrade(obj);
    wr_release(wr_upgrade(weak));
    wr_slot_store(&late_slot, obj);
    wr_guard_enter();
    WR_GUARD {
        check_late(wr_guard_is_inside());
        void *seen = wr_slot_peek(&late_slot);
        check_late(seen != NULL);
        void *peeked = wr_peek(late_weak);
        check_late(peeked != NULL);
        wr_release(wr_retain_live(peeked));
        check_late(wr_synchronize() == -EDEADLK);
    }
    check_late(wr_guard_is_inside());
    wr_guard_exit();
    check_late(!wr_guard_is_inside());
    wr_release_later(obj);
    wr_weak_release(weak);
    wr_release(wr_new(&deferred_type));
    check_late(wr_synchronize() == 0);
}

static void late_destructor(void *value)
{
    uintptr_t round = (uintptr_t)value;
    use_everything();
    if (round == 2)
        check_late(wr_barrier() == 0);
    atomic_fetch_add(&late_runs, 1);
    if (round > 1)
        pthread_setspecific(late_key, (void *)(round - 1));
}

static void *late_main(void *rounds)
{
    pthread_setspecific(late_key, rounds);
    wr_guard_enter(); /* registers: its own destructor will run first */
    wr_guard_exit();
    return NULL;
}

/* Uses the library for the first time when the thread is about to end. */
static void *late_first_main(void *rounds)
{
    pthread_setspecific(late_key, rounds);
    return NULL;
}

static void late_prepare(void)
{
    wr_guard_enter(); /* makes the library's key, which is so the first */
    wr_guard_exit();
    cr_assert_eq(pthread_key_create(&late_key, late_destructor), 0);
    void *obj = wr_new(&deferred_type);
    late_weak = wr_downgrade(obj);
}

static void late_finish(unsigned runs)
{
    cr_assert_eq(atomic_load(&late_bad), 0);
    cr_assert_eq(atomic_load(&late_runs), runs);
    wr_slot_fini(&late_slot);
    cr_assert_eq(wr_barrier(), 0);
    cr_assert_eq(atomic_load(&destroyed), 2 * runs);
    struct wr_stats stats;
    wr_stats(&stats);
    cr_assert_eq(stats.deferred, 0);
    wr_weak_release(late_weak);
}

Test(thread, library_works_in_key_destructors_that_run_after_its_own)
{
    late_prepare();
    for (unsigned i = 0; i < 5; i++)
        run_thread(late_main, (void *)(uintptr_t)3);
    cr_assert_leq(records(), base + 2);
    late_finish(15);
}

Test(thread, many_threads_work_after_their_teardown_at_once)
{
    enum { N = 24 };
    late_prepare();
    pthread_t threads[N];
    for (unsigned i = 0; i < N; i++)
        cr_assert_eq(pthread_create(&threads[i], NULL, late_main, (void *)(uintptr_t)3), 0);
    for (unsigned i = 0; i < N; i++)
        cr_assert_eq(pthread_join(threads[i], NULL), 0);
    late_finish(3 * N);
}

Test(thread, first_use_in_a_key_destructor_leaves_no_record_behind)
{
    late_prepare();
    for (unsigned i = 0; i < 5; i++)
        run_thread(late_first_main, (void *)(uintptr_t)1);
    cr_assert_leq(records(), base + 2);
    late_finish(5);
}
