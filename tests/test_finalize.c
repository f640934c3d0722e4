/* Tests of finalizers and of the shutdown: life, contract in header order, the exit in child processes, misuse, lack of
 * memory; CPython's FinalizeTestCase by name. The races are in race_finalize.c. */
#include <weakref/finalize.h>

#include <weakref/debug.h>
#include <weakref/guard.h>
#include <weakref/watch.h>
#include <weakref/weak.h>

#include "deaths.h"
#include "expect.h"
#include "fail_alloc.h"

static wr_queue *queue;

static void make_queue(void)
{
    queue = wr_queue_new("test");
    cr_assert_not_null(queue);
}

static void free_queue(void)
{
    cr_assert(queue_is_balanced(queue));
    wr_queue_free(queue);
}

TestSuite(finalize, .init = make_queue, .fini = free_queue, .timeout = 60);
TestSuite(finalize_exit, .timeout = 60);
TestSuite(finalize_memory, .timeout = 60); /* the allocator is set before the first allocation */
TestSuite(shutdown, .timeout = 60);

static void note(void *ctx)
{
    log_callback(NULL, ctx);
}

#define NOTE(number) note, (void *)(intptr_t)(number)

/* ---- life ------------------------------------------------------------------------------------------ */

Test(finalize, runs_once_on_its_queue_after_the_last_release)
{
    thing *t = thing_new(1);
    wr_finalizer *f = wr_finalize(t, queue, NOTE(7), 0);
    cr_assert_not_null(f);
    cr_assert_eq(wr_strong_count(t), 1);
    cr_assert_eq(wr_weak_count(t), 0);
    wr_release(t);
    cr_assert_eq(things_destroyed, 1, "it does not keep the object");
    cr_assert_eq(n_logged, 0, "not on the releasing thread");
    cr_assert_eq(wr_queue_drain(queue, SIZE_MAX), 1);
    cr_assert_eq(wr_queue_drain(queue, SIZE_MAX), 0);
    cr_assert_eq(n_logged, 1);
    cr_assert_eq(callback_log[0], 7);
    cr_assert_eq(wr_finalizer_call(f), -ESTALE);
    cr_assert_eq(n_logged, 1);
    wr_finalizer_release(f);
}

Test(finalize, lives_on_without_its_handle)
{
    thing *t = thing_new(1);
    for (int i = 0; i < 4; i++)
        wr_finalizer_release(wr_finalize(t, i % 2 ? queue : WR_QUEUE_INLINE, NOTE(i), i / 2 ? WR_FINALIZE_ATEXIT : 0));
    wr_release(t);
    cr_assert_eq(n_logged, 2);
    wr_queue_drain(queue, SIZE_MAX);
    cr_assert_eq(n_logged, 4);
    const long order[] = {2, 0, 3, 1};
    for (int i = 0; i < 4; i++)
        cr_assert_eq(callback_log[i], order[i]);
}

Test(finalize, null_queue_is_the_default_queue)
{
    thing *t = thing_new(1);
    wr_finalizer_release(wr_finalize(t, NULL, NOTE(1), 0));
    wr_release(t);
    cr_assert_eq(wr_queue_barrier(wr_queue_default()), 0);
    cr_assert_eq(n_logged, 1);
}

Test(finalize, many_of_one_object_go_over_together)
{
    enum { N = 1000 };
    wr_finalizer *f[N];
    thing *t = thing_new(1);
    for (int i = 0; i < N; i++)
        f[i] = wr_finalize(t, queue, NOTE(i), 0);
    for (int i = 0; i < N; i += 3)
        cr_assert_eq(wr_finalizer_detach(f[i]), 0);
    wr_release(t);
    for (int i = 1; i < N; i += 3)
        cr_assert_eq(wr_finalizer_detach(f[i]), 0);
    cr_assert_eq(wr_queue_drain(queue, SIZE_MAX), N / 3);
    cr_assert_eq(n_logged, N / 3);
    cr_assert_eq(callback_log[0], 998);
    for (int i = 0; i < N; i++)
        wr_finalizer_release(f[i]);
}

/* ---- contract -------------------------------------------------------------------------------------- */

Test(finalize, bad_arguments_are_refused)
{
    thing *t = thing_new(1);
    struct {
        void *obj;
        void (*fn)(void *);
        unsigned flags;
    } const bad[] = {{NULL, note, 0}, {t, NULL, 0}, {t, note, 2}, {t, note, UINT32_MAX}};
    for (int i = 0; i < 4; i++) {
        errno = 0;
        cr_assert_null(wr_finalize(bad[i].obj, queue, bad[i].fn, NULL, bad[i].flags));
        cr_assert_eq(errno, EINVAL);
    }
    cr_assert_eq(wr_finalizer_call(NULL), -EINVAL);
    cr_assert_eq(wr_finalizer_detach(NULL), -EINVAL);
    cr_assert_eq(wr_finalizer_detach_sync(NULL), -EINVAL);
    cr_assert_not(wr_finalizer_alive(NULL));
    void *obj = t, *ctx = t;
    void (*fn)(void *) = note;
    cr_assert_not(wr_finalizer_peek(NULL, &obj, &fn, &ctx));
    cr_assert(obj == NULL && fn == NULL && ctx == NULL);
    wr_finalizer_release(NULL);
    wr_release(t);
}

static void finalize_in_destroy(void *obj)
{
    errno = 0;
    cr_assert_null(wr_finalize(obj, WR_QUEUE_INLINE, NOTE(1), WR_FINALIZE_ATEXIT));
    cr_assert_eq(errno, ESTALE);
}

Test(finalize, inside_destroy_is_too_late)
{
    static const wr_type type = {.name = "last", .size = 8, .destroy = finalize_in_destroy};
    wr_release(wr_new(&type));
    struct wr_stats stats;
    wr_stats(&stats);
    cr_assert_eq(stats.at_exit, 0);
}

Test(finalize, is_alive_until_it_begins)
{
    thing *t = thing_new(1);
    wr_finalizer *f = wr_finalize(t, queue, NOTE(1), 0);
    cr_assert(wr_finalizer_alive(f));
    wr_release(t);
    cr_assert(wr_finalizer_alive(f), "the delivery is pending");
    wr_queue_drain(queue, SIZE_MAX);
    cr_assert_not(wr_finalizer_alive(f));
    wr_finalizer_release(f);
}

Test(finalize, peek_shows_what_it_is_made_of)
{
    thing *t = thing_new(1);
    wr_finalizer *f = wr_finalize(t, queue, NOTE(5), 0);
    void *obj, *ctx;
    void (*fn)(void *);
    cr_assert(wr_finalizer_peek(f, &obj, &fn, &ctx));
    cr_assert_eq(obj, t);
    cr_assert(fn == note);
    cr_assert_eq(ctx, (void *)5);
    cr_assert_eq(wr_strong_count(t), 2);
    wr_release(obj);
    cr_assert(wr_finalizer_peek(f, NULL, NULL, NULL));
    cr_assert_eq(wr_strong_count(t), 1);

    wr_release(t);
    cr_assert(wr_finalizer_peek(f, &obj, &fn, &ctx));
    cr_assert_null(obj, "dead, and pending");
    cr_assert(fn == note && ctx == (void *)5);
    wr_queue_drain(queue, SIZE_MAX);
    cr_assert_not(wr_finalizer_peek(f, &obj, &fn, &ctx));
    cr_assert(obj == NULL && fn == NULL && ctx == NULL);
    wr_finalizer_release(f);
}

static void note_thread(void *ctx)
{
    *(pthread_t *)ctx = pthread_self();
    atomic_fetch_add(&n_logged, 1);
}

Test(finalize, call_runs_it_here_and_now)
{
    thing *t = thing_new(1);
    pthread_t where;
    wr_finalizer *f = wr_finalize(t, queue, note_thread, &where, 0);
    cr_assert_eq(wr_finalizer_call(f), 0);
    cr_assert_eq(n_logged, 1);
    cr_assert(pthread_equal(where, pthread_self()));
    cr_assert_not(wr_finalizer_alive(f));
    cr_assert_eq(wr_finalizer_call(f), -ESTALE);
    wr_release(t);
    cr_assert_eq(wr_queue_drain(queue, SIZE_MAX), 0);
    cr_assert_eq(n_logged, 1);
    struct wr_queue_stats stats;
    wr_queue_stats(queue, &stats);
    cr_assert_eq(stats.cancelled, 1);
    wr_finalizer_release(f);
}

Test(finalize, call_takes_a_pending_one_from_the_queue)
{
    thing *t = thing_new(1);
    wr_finalizer *f = wr_finalize(t, queue, NOTE(1), 0);
    wr_release(t);
    cr_assert_eq(wr_finalizer_call(f), 0);
    cr_assert_eq(n_logged, 1);
    struct wr_queue_stats stats;
    wr_queue_stats(queue, &stats);
    cr_assert_eq(stats.pending, 0);
    cr_assert_eq(stats.cancelled, 1);
    cr_assert_eq(wr_queue_drain(queue, SIZE_MAX), 0);
    cr_assert_eq(n_logged, 1);
    wr_finalizer_release(f);
}

struct own {
    wr_finalizer *f;
    thing *object; /* [owned] */
    int call, detach, detach_sync;
    bool alive;
};

static void try_itself(void *ctx)
{
    struct own *own = ctx;
    own->alive = wr_finalizer_alive(own->f);
    own->call = wr_finalizer_call(own->f);
    own->detach = wr_finalizer_detach(own->f);
    own->detach_sync = wr_finalizer_detach_sync(own->f);
    wr_release(own->object);
    own->object = NULL;
    atomic_fetch_add(&n_logged, 1);
}

static void check_own(const struct own *own)
{
    cr_assert_eq(n_logged, 1);
    cr_assert_not(own->alive);
    cr_assert_eq(own->call, -ESTALE);
    cr_assert_eq(own->detach, -ESTALE);
    cr_assert_eq(own->detach_sync, -EDEADLK);
    cr_assert_eq(things_destroyed, 1);
}

Test(finalize, its_function_finds_it_spent_when_called)
{
    struct own own = {.object = thing_new(1)};
    own.f = wr_finalize(own.object, WR_QUEUE_INLINE, try_itself, &own, 0);
    cr_assert_eq(wr_finalizer_call(own.f), 0); /* and the object dies in it */
    check_own(&own);
    wr_finalizer_release(own.f);
}

Test(finalize, its_function_finds_it_spent_when_delivered)
{
    struct own own = {0};
    thing *t = thing_new(1);
    own.f = wr_finalize(t, queue, try_itself, &own, 0);
    wr_release(t);
    wr_queue_drain(queue, SIZE_MAX);
    check_own(&own);
    wr_finalizer_release(own.f);
}

static void release_handle(void *ctx)
{
    wr_finalizer_release(*(wr_finalizer **)ctx);
    atomic_fetch_add(&n_logged, 1);
}

Test(finalize, its_function_may_release_the_handle)
{
    for (int i = 0; i < 2; i++) {
        thing *t = thing_new(1);
        wr_finalizer *f = wr_finalize(t, WR_QUEUE_INLINE, release_handle, &f, 0);
        if (i == 0)
            cr_assert_eq(wr_finalizer_call(f), 0);
        wr_release(t);
        cr_assert_eq(n_logged, i + 1);
    }
}

Test(finalize, detached_it_never_runs)
{
    thing *t = thing_new(1);
    wr_finalizer *armed = wr_finalize(t, queue, NOTE(1), 0), *pending = wr_finalize(t, queue, NOTE(2), 0);
    cr_assert_eq(wr_finalizer_detach(armed), 0);
    cr_assert_eq(wr_finalizer_detach(armed), -ESTALE);
    cr_assert_eq(wr_finalizer_call(armed), -ESTALE);
    wr_release(t);
    cr_assert_eq(wr_finalizer_detach_sync(pending), 0);
    cr_assert_eq(wr_finalizer_detach_sync(pending), -ESTALE);
    cr_assert_not(wr_finalizer_alive(pending));
    cr_assert_eq(wr_queue_drain(queue, SIZE_MAX), 0);
    cr_assert_eq(n_logged, 0);
    wr_finalizer_release(armed);
    wr_finalizer_release(pending);
}

static void pass_gate(void *ctx)
{
    wait_at_gate(NULL, ctx);
    atomic_fetch_add(&n_logged, 1);
}

static void *detach_sync_thread(void *ctx)
{
    int answer = wr_finalizer_detach_sync(ctx);
    return (void *)(intptr_t)(n_logged == 1 ? answer : -1);
}

Test(finalize, detach_sync_waits_for_the_running_function)
{
    struct gate gate = {false, false};
    thing *t = thing_new(1);
    wr_finalizer *f = wr_finalize(t, queue, pass_gate, &gate, 0);
    cr_assert_eq(wr_queue_start(queue, 1), 0);
    wr_release(t);
    gate_wait(&gate.reached);
    cr_assert_eq(wr_finalizer_detach(f), -ESTALE, "it does not wait");
    pthread_t thread;
    cr_assert_eq(pthread_create(&thread, NULL, detach_sync_thread, f), 0);
    for (int i = 0; i < 1000; i++)
        sched_yield();
    atomic_store(&gate.open, true);
    void *answer;
    pthread_join(thread, &answer);
    cr_assert_eq((intptr_t)answer, -ESTALE);
    wr_finalizer_release(f);
    wr_queue_stop(queue);
}

Test(finalize, a_freed_queue_drops_what_is_armed_for_it)
{
    wr_queue *gone = wr_queue_new("gone");
    thing *t = thing_new(1);
    wr_finalizer *f = wr_finalize(t, gone, NOTE(1), WR_FINALIZE_ATEXIT), *called = wr_finalize(t, gone, NOTE(2), 0);
    wr_finalizer *detached = wr_finalize(t, gone, NOTE(3), 0);
    wr_queue_free(gone);
    cr_assert(wr_finalizer_alive(f));
    cr_assert_eq(wr_finalizer_call(called), 0, "a call needs no queue");
    cr_assert_eq(wr_finalizer_detach(detached), 0);
    wr_release(t);
    cr_assert_not(wr_finalizer_alive(f));
    cr_assert_eq(wr_finalizer_call(f), -ESTALE);
    cr_assert_eq(n_logged, 1);
    struct wr_stats stats;
    wr_stats(&stats);
    cr_assert_eq(stats.at_exit, 0);
    wr_finalizer_release(f);
    wr_finalizer_release(called);
    wr_finalizer_release(detached);
}

Test(finalize, a_queue_that_is_freed_delivers_what_is_pending)
{
    wr_queue *gone = wr_queue_new("gone");
    thing *t = thing_new(1);
    wr_finalizer *f = wr_finalize(t, gone, NOTE(1), 0);
    wr_release(t);
    wr_queue_free(gone);
    cr_assert_eq(n_logged, 1);
    cr_assert_not(wr_finalizer_alive(f));
    wr_finalizer_release(f);
}

Test(finalize, cancel_all_drops_what_is_pending)
{
    thing *t = thing_new(1);
    wr_finalizer *f = wr_finalize(t, queue, NOTE(1), WR_FINALIZE_ATEXIT);
    wr_release(t);
    cr_assert_eq(wr_queue_cancel_all(queue), 0);
    cr_assert_not(wr_finalizer_alive(f));
    cr_assert_eq(wr_finalizer_call(f), -ESTALE);
    cr_assert_eq(n_logged, 0);
    struct wr_stats stats;
    wr_stats(&stats);
    cr_assert_eq(stats.at_exit, 0);
    wr_finalizer_release(f);
}

/* ---- the exit -------------------------------------------------------------------------------------- */

/* In the children: what ran, in order, in a string that the last registered handler writes. */
static char story[256];

static void say(void *ctx)
{
    strcat(story, ctx);
}

static void tell_story(void)
{
    dprintf(STDERR_FILENO, "%s.", story);
    _exit(0); /* without Criterion's own exit */
}

/* Each story runs in this program, started anew: not in a forked child alone, where ThreadSanitizer knows the threads of the
 * parent and takes new ones for them. */
#define STORY "FINALIZE_STORY"

static int start_story(void *name)
{
    setenv(STORY, name, 1);
    execl("/proc/self/exe", "story", (char *)NULL);
    return 127;
}

static void expect_story(const char *name, const char *expected)
{
    char text[1024];
    int status = expect_child(start_story, (void *)(uintptr_t)name, text, sizeof text);
    cr_expect(WIFEXITED(status) && WEXITSTATUS(status) == 0, "status %#x: %s", (unsigned)status, text);
    cr_expect_str_eq(text, expected);
}

#define SAY(text) say, (char *)(text)

static void at_exit_say(void *obj, const char *text)
{
    wr_finalizer_release(wr_finalize(obj, WR_QUEUE_INLINE, SAY(text), WR_FINALIZE_ATEXIT));
}

static int exit_in_order(void)
{
    atexit(tell_story);
    thing *t = thing_new(1), *dies = thing_new(2);
    at_exit_say(t, "a");
    wr_finalizer_release(wr_finalize(t, WR_QUEUE_INLINE, SAY("never"), 0));
    wr_finalizer *detached = wr_finalize(t, WR_QUEUE_INLINE, SAY("detached"), WR_FINALIZE_ATEXIT);
    at_exit_say(dies, "died,");
    wr_finalizer *called = wr_finalize(t, WR_QUEUE_INLINE, SAY("called,"), WR_FINALIZE_ATEXIT);
    at_exit_say(t, "b");
    at_exit_say(t, "c");
    wr_finalizer_detach(detached);
    wr_finalizer_call(called);
    wr_release(dies);
    exit(0);
}

Test(finalize_exit, newest_first_and_only_those_with_the_flag)
{
    expect_story("exit_in_order", "called,died,cba.");
}

static int exit_pending(void)
{
    atexit(tell_story);
    wr_queue *q = wr_queue_new("nobody drains it");
    thing *t = thing_new(1);
    wr_finalizer_release(wr_finalize(t, q, SAY("pending"), WR_FINALIZE_ATEXIT));
    wr_finalizer_release(wr_finalize(t, q, SAY("never"), 0));
    wr_release(t);
    exit(0);
}

Test(finalize_exit, runs_what_is_pending_too)
{
    expect_story("exit_pending", "pending.");
}

static thing *kept;

static void say_and_make_another(void *ctx)
{
    say(ctx);
    at_exit_say(kept, "y");
    at_exit_say(kept, "z");
}

static int exit_makes_more(void)
{
    atexit(tell_story);
    kept = thing_new(1);
    at_exit_say(kept, "a");
    wr_finalizer_release(wr_finalize(kept, WR_QUEUE_INLINE, say_and_make_another, (char *)"x", WR_FINALIZE_ATEXIT));
    exit(0);
}

Test(finalize_exit, a_finalizer_may_make_others)
{
    expect_story("exit_makes_more", "xzya.");
}

static void make_one_late(void)
{
    at_exit_say(kept, "late");
}

static int exit_made_by_handler(void)
{
    atexit(tell_story);
    kept = thing_new(1);
    atexit(make_one_late); /* runs after the library's own */
    at_exit_say(kept, "a,");
    exit(0);
}

Test(finalize_exit, one_made_by_a_later_exit_handler_runs_too)
{
    expect_story("exit_made_by_handler", "a,late.");
}

static void say_and_exit(void *ctx)
{
    say(ctx);
    exit(0);
}

static int exit_in_finalizer(void)
{
    atexit(tell_story);
    thing *t = thing_new(1);
    at_exit_say(t, "a");
    wr_finalizer_release(wr_finalize(t, WR_QUEUE_INLINE, say_and_exit, (char *)"x", WR_FINALIZE_ATEXIT));
    at_exit_say(t, "b");
    wr_finalizer_release(wr_finalize(t, WR_QUEUE_INLINE, say_and_exit, (char *)"y", WR_FINALIZE_ATEXIT));
    at_exit_say(t, "c");
    exit(0);
}

Test(finalize_exit, a_finalizer_may_exit)
{
    expect_story("exit_in_finalizer", "cybxa.");
}

static void *exit_thread(void *unused)
{
    (void)unused;
    exit(0);
}

static int exit_on_thread(void)
{
    atexit(tell_story);
    thing *t = thing_new(1);
    at_exit_say(t, "a");
    at_exit_say(t, "b");
    pthread_t thread;
    pthread_create(&thread, NULL, exit_thread, NULL);
    pthread_join(thread, NULL);
    return 1; /* not reached */
}

Test(finalize_exit, on_a_secondary_thread)
{
    expect_story("exit_on_thread", "ba.");
}

static int exit_on_dispatcher(void)
{
    atexit(tell_story);
    thing *t = thing_new(1), *dies = thing_new(2);
    at_exit_say(t, "a");
    wr_finalizer_release(wr_finalize(dies, NULL, say_and_exit, (char *)"x", WR_FINALIZE_ATEXIT));
    at_exit_say(t, "b");
    wr_release(dies);
    wr_queue_barrier(wr_queue_default());
    return 1; /* not reached: that thread exits before the barrier is through */
}

Test(finalize_exit, from_a_delivered_finalizer)
{
    expect_story("exit_on_dispatcher", "xba.");
}

static struct gate exit_gate;

static void pass_exit_gate(void *ctx)
{
    atomic_store(&exit_gate.reached, true);
    gate_wait(&exit_gate.open);
    for (int i = 0; i < 1000; i++)
        sched_yield();
    say(ctx);
}

static void open_exit_gate(void *ctx)
{
    say(ctx);
    atomic_store(&exit_gate.open, true);
}

static int exit_beside_running(void)
{
    atexit(tell_story);
    thing *t = thing_new(1), *dies = thing_new(2);
    wr_finalizer_release(wr_finalize(t, NULL, open_exit_gate, (char *)"opened,", WR_FINALIZE_ATEXIT));
    wr_finalizer_release(wr_finalize(dies, NULL, pass_exit_gate, (char *)"passed", WR_FINALIZE_ATEXIT));
    wr_release(dies);
    gate_wait(&exit_gate.reached);
    exit(0);
}

Test(finalize_exit, waits_for_one_that_another_thread_runs)
{
    expect_story("exit_beside_running", "opened,passed.");
}

static int exit_in_forked_child(void)
{
    atexit(tell_story);
    thing *t = thing_new(1);
    at_exit_say(t, "parent");
    pid_t child = fork();
    if (child == 0) {
        at_exit_say(t, "child");
        struct wr_stats stats;
        wr_stats(&stats);
        if (stats.at_exit != 1)
            say((char *)"?");
        exit(0);
    }
    int status;
    waitpid(child, &status, 0);
    strcat(story, "/");
    exit(0);
}

Test(finalize_exit, a_forked_child_runs_only_its_own)
{
    expect_story("exit_in_forked_child", "child./parent.");
}

enum { EXIT_OBJECTS = 200 };
static atomic_int exit_runs[EXIT_OBJECTS];
static thing *exit_objects[EXIT_OBJECTS];
static atomic_int exit_released;

static void count_run(void *ctx)
{
    atomic_fetch_add((atomic_int *)ctx, 1);
}

static void *release_all(void *unused)
{
    (void)unused;
    for (int i = 0; i < EXIT_OBJECTS; i++) {
        wr_release(exit_objects[i]);
        atomic_fetch_add(&exit_released, 1);
    }
    return NULL;
}

static void check_runs(void)
{
    int wrong = 0;
    for (int i = 0; i < EXIT_OBJECTS; i++)
        wrong += atomic_load(&exit_runs[i]) != 1;
    dprintf(STDERR_FILENO, "%d wrong.", wrong);
    _exit(0);
}

static int exit_beside_deaths(void)
{
    atexit(check_runs);
    wr_queue *q = wr_queue_new("deaths");
    wr_queue_start(q, 2);
    for (int i = 0; i < EXIT_OBJECTS; i++) {
        exit_objects[i] = thing_new(i);
        wr_queue *where = i % 3 == 0 ? WR_QUEUE_INLINE : i % 3 == 1 ? q : NULL;
        wr_finalizer_release(wr_finalize(exit_objects[i], where, count_run, &exit_runs[i], WR_FINALIZE_ATEXIT));
    }
    pthread_t thread;
    pthread_create(&thread, NULL, release_all, NULL);
    pthread_detach(thread);
    while (atomic_load(&exit_released) < EXIT_OBJECTS / 3)
        sched_yield();
    exit(0);
}

Test(finalize_exit, beside_deaths_each_runs_exactly_once)
{
    for (int i = 0; i < 10; i++)
        expect_story("exit_beside_deaths", "0 wrong.");
}

/* ---- the shutdown ---------------------------------------------------------------------------------- */

Test(shutdown, of_a_library_at_rest_is_0_and_can_be_repeated)
{
    for (int i = 0; i < 3; i++)
        cr_assert_eq(wr_shutdown(10000), 0);
    cr_assert_eq(wr_shutdown(WR_NO_TIMEOUT), 0);
    cr_assert_eq(wr_shutdown(0), 0);
}

static const wr_type deferred_type = {
    .name = "deferred", .size = sizeof(thing), .destroy = thing_destroy, .flags = WR_TYPE_DEFERRED};

static void release_it(void *ctx)
{
    wr_release(ctx);
    atomic_fetch_add(&n_logged, 1);
}

Test(shutdown, brings_finalizers_callbacks_and_deferred_work_to_an_end)
{
    for (int round = 1; round <= 2; round++) {
        thing *t = thing_new(1);
        void *deferred = wr_new(&deferred_type);
        cr_assert_eq(wr_on_death(deferred, NULL, LOG(1)), 0);                          /* 3: after its grace period */
        wr_finalizer_release(wr_finalize(t, NULL, release_it, deferred, 0));           /* 2: the default queue */
        wr_finalizer_release(wr_finalize(t, NULL, release_it, t, WR_FINALIZE_ATEXIT)); /* 1: at exit */
        struct wr_stats stats;
        wr_stats(&stats);
        cr_assert_eq(stats.at_exit, 1);
        cr_assert_eq(wr_shutdown(WR_NO_TIMEOUT), 0);
        wr_stats(&stats);
        cr_assert_eq(stats.at_exit, 0);
        cr_assert_eq(stats.deferred, 0);
        cr_assert_eq(things_destroyed, 2 * round);
        cr_assert_eq(n_logged, 3 * round);
        cr_assert(queue_is_balanced(wr_queue_default()));
    }
}

Test(shutdown, drains_a_default_queue_without_threads_itself)
{
    cr_assert_eq(wr_queue_stop(wr_queue_default()), 0);
    thing *t = thing_new(1);
    cr_assert_eq(wr_on_death(t, NULL, LOG(1)), 0);
    wr_release(t);
    cr_assert_eq(wr_shutdown(10000), 0);
    cr_assert_eq(n_logged, 1);
}

Test(shutdown, gives_up_at_a_callback_that_does_not_end)
{
    static struct gate gate;
    thing *t = thing_new(1);
    cr_assert_eq(wr_on_death(t, NULL, wait_at_gate, &gate), 0);
    wr_release(t);
    gate_wait(&gate.reached);
    cr_assert_eq(wr_shutdown(20), -ETIMEDOUT);
    struct wr_queue_stats stats;
    wr_queue_stats(wr_queue_default(), &stats);
    cr_assert_eq(stats.running, 1);
    atomic_store(&gate.open, true);
    cr_assert_eq(wr_shutdown(WR_NO_TIMEOUT), 0);
}

static void *call_thread(void *ctx)
{
    wr_finalizer_call(ctx);
    return NULL;
}

Test(shutdown, gives_up_at_a_finalizer_that_does_not_end)
{
    static struct gate gate;
    thing *t = thing_new(1);
    wr_finalizer *f = wr_finalize(t, WR_QUEUE_INLINE, pass_gate, &gate, WR_FINALIZE_ATEXIT);
    pthread_t thread;
    pthread_create(&thread, NULL, call_thread, f);
    gate_wait(&gate.reached);
    cr_assert_eq(wr_shutdown(20), -ETIMEDOUT);
    atomic_store(&gate.open, true);
    pthread_join(thread, NULL);
    cr_assert_eq(wr_shutdown(10000), 0);
    wr_finalizer_release(f);
    wr_release(t);
}

Test(shutdown, begins_nothing_after_its_time)
{
    thing *t = thing_new(1);
    wr_finalizer_release(wr_finalize(t, WR_QUEUE_INLINE, NOTE(1), WR_FINALIZE_ATEXIT));
    cr_assert_eq(wr_shutdown(0), -ETIMEDOUT);
    cr_assert_eq(n_logged, 0);
    cr_assert_eq(wr_shutdown(10000), 0);
    cr_assert_eq(n_logged, 1);
    wr_release(t);
}

static void *hold_guard(void *ctx)
{
    struct gate *gate = ctx;
    wr_guard_enter();
    atomic_store(&gate->reached, true);
    gate_wait(&gate->open);
    wr_guard_exit();
    return NULL;
}

Test(shutdown, gives_up_at_a_guard_that_does_not_end)
{
    static struct gate gate;
    pthread_t thread;
    pthread_create(&thread, NULL, hold_guard, &gate);
    gate_wait(&gate.reached);
    wr_release(wr_new(&deferred_type));
    cr_assert_eq(wr_shutdown(20), -ETIMEDOUT);
    struct wr_stats stats;
    wr_stats(&stats);
    cr_assert_gt(stats.deferred, 0);
    atomic_store(&gate.open, true);
    pthread_join(thread, NULL);
    cr_assert_eq(wr_shutdown(WR_NO_TIMEOUT), 0);
    cr_assert_eq(things_destroyed, 1);
}

static int answer;

static void shutdown_inside(void *ctx)
{
    (void)ctx;
    answer = wr_shutdown(1000);
}

static void shutdown_in_callback(wr_weak *dead, void *ctx)
{
    (void)dead;
    shutdown_inside(ctx);
}

static void shutdown_in_destroy(void *obj)
{
    shutdown_inside(obj);
}

Test(shutdown, where_it_would_wait_for_itself_is_refused)
{
    WR_GUARD {
        cr_assert_eq(wr_shutdown(1000), -EDEADLK);
    }
    thing *t = thing_new(1);
    cr_assert_eq(wr_on_death(t, NULL, shutdown_in_callback, NULL), 0);
    wr_release(t);
    wr_queue_barrier(wr_queue_default());
    cr_assert_eq(answer, -EDEADLK);

    answer = 0;
    static const wr_type type = {.name = "last", .size = 8, .destroy = shutdown_in_destroy, .flags = WR_TYPE_DEFERRED};
    wr_release(wr_new(&type));
    cr_assert_eq(wr_barrier(), 0);
    cr_assert_eq(answer, -EDEADLK);
}

Test(shutdown, from_a_finalizer_runs_the_others)
{
    thing *t = thing_new(1);
    wr_finalizer_release(wr_finalize(t, WR_QUEUE_INLINE, NOTE(1), WR_FINALIZE_ATEXIT));
    wr_finalizer *f = wr_finalize(t, WR_QUEUE_INLINE, shutdown_inside, NULL, WR_FINALIZE_ATEXIT);
    answer = 1;
    cr_assert_eq(wr_finalizer_call(f), 0);
    cr_assert_eq(answer, 0);
    cr_assert_eq(n_logged, 1);
    wr_finalizer_release(f);
    wr_release(t);
}

/* ---- misuse ---------------------------------------------------------------------------------------- */

static wr_finalizer *released_handle(void)
{
    thing *t = thing_new(1); /* it lives, and so does the finalizer's memory */
    wr_finalizer *f = wr_finalize(t, WR_QUEUE_INLINE, NOTE(1), 0);
    wr_finalizer_release(f);
    return f;
}

static void release_twice(void *ctx)
{
    (void)ctx;
    wr_finalizer_release(released_handle());
}

static void call_released(void *ctx)
{
    (void)ctx;
    wr_finalizer_call(released_handle());
}

static void detach_released(void *ctx)
{
    (void)ctx;
    wr_finalizer_detach(released_handle());
}

static void peek_released(void *ctx)
{
    (void)ctx;
    wr_finalizer_peek(released_handle(), NULL, NULL, NULL);
}

#define RELEASED(call) "^weakref: " call ": finalizer at 0x[0-9a-f]+: its handle has been released\n$"

Test(finalize_exit, a_released_handle_panics)
{
    expect_panic(release_twice, NULL, RELEASED("wr_finalizer_release"));
    expect_panic(call_released, NULL, RELEASED("wr_finalizer_call"));
    expect_panic(detach_released, NULL, RELEASED("wr_finalizer_detach"));
    expect_panic(peek_released, NULL, RELEASED("wr_finalizer_peek"));
}

/* ---- lack of memory -------------------------------------------------------------------------------- */

Test(finalize_memory, every_allocation_failed_in_turn)
{
    for (unsigned flags = 0; flags <= WR_FINALIZE_ATEXIT; flags++) {
        if (flags == 0)
            fail_alloc_install();
        wr_finalizer *f = NULL;
        for (long n = 1; f == NULL; n++) {
            thing *t = thing_new(1);
            long live = fail_alloc_live();
            fail_alloc_at(n);
            errno = 0;
            f = wr_finalize(t, WR_QUEUE_INLINE, NOTE(1), flags);
            if (fail_alloc_hit()) {
                cr_assert_null(f);
                cr_assert_eq(errno, ENOMEM);
                cr_assert_eq(fail_alloc_live(), live);
            } else {
                cr_assert_gt(n, 2, "it allocates at all");
            }
            wr_release(t);
        }
        wr_finalizer_release(f);
    }
    cr_assert_eq(n_logged, 2);
    struct wr_stats stats;
    wr_stats(&stats);
    cr_assert_eq(stats.at_exit, 0);
    cr_assert_eq(fail_alloc_live(), 0);
}

Test(finalize_memory, death_call_detach_and_exit_allocate_nothing)
{
    fail_alloc_install();
    make_queue();
    thing *t = thing_new(1);
    wr_finalizer *f[6];
    for (int i = 0; i < 6; i++)
        f[i] = wr_finalize(t, i % 2 ? queue : WR_QUEUE_INLINE, NOTE(i), i / 2 == 2 ? WR_FINALIZE_ATEXIT : 0);
    fail_alloc_all(true);
    cr_assert_eq(wr_finalizer_call(f[0]), 0);
    cr_assert_eq(wr_finalizer_detach(f[1]), 0);
    cr_assert_eq(wr_shutdown(WR_NO_TIMEOUT), 0); /* 4 and 5 */
    wr_release(t);                               /* 2, and 3 goes to the queue */
    cr_assert_eq(wr_queue_drain(queue, SIZE_MAX), 1);
    cr_assert_not(fail_alloc_hit());
    fail_alloc_all(false);
    cr_assert_eq(n_logged, 5);
    for (int i = 0; i < 6; i++)
        wr_finalizer_release(f[i]);
    free_queue();
    cr_assert_eq(fail_alloc_live(), 0);
}

Test(finalize_memory, a_spent_handle_does_not_keep_the_dead_object)
{
    fail_alloc_install();
    make_queue();
    thing *t = thing_new(1);
    wr_finalizer *f = wr_finalize(t, queue, NOTE(1), 0), *g = wr_finalize(t, queue, NOTE(2), 0);
    long live = fail_alloc_live();
    cr_assert_eq(wr_finalizer_detach(g), 0);
    wr_release(t);
    wr_queue_drain(queue, SIZE_MAX);
    cr_assert_eq(fail_alloc_live(), live - 2, "object and side record are gone");
    wr_finalizer_release(f);
    wr_finalizer_release(g);
    free_queue();
    cr_assert_eq(fail_alloc_live(), 0);
}

/* ---- CPython's FinalizeTestCase, by name -------------------------------------------------------------- */

struct sum {
    int a, b, result;
};

static void add(void *ctx)
{
    struct sum *sum = ctx;
    sum->result = sum->a + sum->b;
}

Test(finalize, cpython_finalize)
{
    thing *t = thing_new(1);
    struct sum sum = {67, 43, 0};
    wr_finalizer *f = wr_finalize(t, queue, add, &sum, 0);
    cr_assert(wr_finalizer_alive(f));
    void *obj, *ctx;
    void (*fn)(void *);
    cr_assert(wr_finalizer_peek(f, &obj, &fn, &ctx));
    cr_assert(obj == t && fn == add && ctx == &sum);
    wr_release(obj);
    cr_assert(wr_finalizer_alive(f));
    cr_assert_eq(wr_finalizer_call(f), 0);
    cr_assert_eq(sum.result, 110);
    for (int i = 0; i < 2; i++) {
        cr_assert_eq(wr_finalizer_call(f), -ESTALE);
        cr_assert_not(wr_finalizer_peek(f, NULL, NULL, NULL));
        cr_assert_eq(wr_finalizer_detach(f), -ESTALE);
        cr_assert_not(wr_finalizer_alive(f));
    }
    wr_finalizer_release(f);

    f = wr_finalize(t, queue, add, &sum, 0);
    sum.result = 0;
    cr_assert_eq(wr_finalizer_detach(f), 0);
    cr_assert_eq(wr_finalizer_call(f), -ESTALE);
    cr_assert_eq(sum.result, 0);
    wr_finalizer_release(f);

    f = wr_finalize(t, queue, add, &sum, 0);
    wr_release(t);
    wr_queue_drain(queue, SIZE_MAX);
    cr_assert_eq(sum.result, 110);
    cr_assert_eq(wr_finalizer_call(f), -ESTALE);
    wr_finalizer_release(f);
}

Test(finalize, cpython_arg_errors)
{
    /* There: too few arguments, keywords. Here: what the compiler lets through. */
    errno = 0;
    cr_assert_null(wr_finalize((void *)NULL, queue, NULL, NULL, 0));
    cr_assert_eq(errno, EINVAL);
}

Test(finalize, cpython_order)
{
    thing *t = thing_new(1);
    wr_finalizer *f[6];
    for (intptr_t i = 1; i <= 5; i++)
        f[i] = wr_finalize(t, WR_QUEUE_INLINE, NOTE(i), 0);
    wr_finalizer_release(f[1]); /* they live on without their handles */
    wr_finalizer_release(f[4]);
    cr_assert(wr_finalizer_alive(f[2]) && wr_finalizer_alive(f[3]) && wr_finalizer_alive(f[5]));

    cr_assert_eq(wr_finalizer_detach(f[5]), 0);
    cr_assert_not(wr_finalizer_alive(f[5]));
    wr_finalizer_call(f[5]);
    note((void *)'A');
    wr_finalizer_call(f[3]);
    cr_assert_not(wr_finalizer_alive(f[3]));
    note((void *)'B');
    wr_finalizer_call(f[3]);
    note((void *)'C');
    wr_release(t); /* 4, 2, 1 */
    cr_assert_not(wr_finalizer_alive(f[2]));
    note((void *)'D');
    wr_finalizer_call(f[2]);

    const long expected[] = {'A', 3, 'B', 'C', 4, 2, 1, 'D'};
    cr_assert_eq(n_logged, 8);
    for (int i = 0; i < 8; i++)
        cr_assert_eq(callback_log[i], expected[i], "at %d", i);
    wr_finalizer_release(f[2]);
    wr_finalizer_release(f[3]);
    wr_finalizer_release(f[5]);
}

static void release_ctx(void *ctx)
{
    wr_release(ctx);
}

Test(finalize_memory, cpython_all_freed)
{
    fail_alloc_install();
    for (int i = 0; i < 3; i++) {
        thing *t = thing_new(1), *callback = thing_new(2);
        wr_finalizer *f = wr_finalize(t, WR_QUEUE_INLINE, release_ctx, callback, WR_FINALIZE_ATEXIT);
        if (i == 0)
            wr_finalizer_call(f);
        if (i == 1) {
            wr_finalizer_detach(f);
            wr_release(callback);
        }
        wr_release(t);
        wr_finalizer_release(f);
        cr_assert_eq(things_destroyed, 2 * (i + 1));
    }
    cr_assert_eq(fail_alloc_live(), 0);
}

/* f1 without the flag is not run; f2 and f4 are, f3 made f4 and was called before; the newest first. */
static thing *script_object;

static void script_f3(void *ctx)
{
    say(ctx);
    at_exit_say(script_object, "f4 ");
}

static int script(void)
{
    atexit(tell_story);
    script_object = thing_new(1);
    wr_finalizer_release(wr_finalize(script_object, WR_QUEUE_INLINE, SAY("f1 "), 0));
    at_exit_say(script_object, "f2 ");
    wr_finalizer_release(wr_finalize(script_object, WR_QUEUE_INLINE, script_f3, (char *)"f3 ", WR_FINALIZE_ATEXIT));
    at_exit_say(script_object, "g ");
    exit(0);
}

Test(finalize_exit, cpython_atexit)
{
    expect_story("script", "g f3 f4 f2 .");
}

/* Before Criterion's main(): in a story, tells it. */
__attribute__((constructor)) static void tell(void)
{
    static const struct {
        const char *name;
        int (*story)(void);
    } stories[] = {
        {"exit_in_order", exit_in_order},
        {"exit_pending", exit_pending},
        {"exit_makes_more", exit_makes_more},
        {"exit_made_by_handler", exit_made_by_handler},
        {"exit_in_finalizer", exit_in_finalizer},
        {"exit_on_thread", exit_on_thread},
        {"exit_on_dispatcher", exit_on_dispatcher},
        {"exit_beside_running", exit_beside_running},
        {"exit_in_forked_child", exit_in_forked_child},
        {"exit_beside_deaths", exit_beside_deaths},
        {"script", script},
    };
    const char *name = getenv(STORY);
    for (size_t i = 0; name != NULL && i < sizeof stories / sizeof stories[0]; i++)
        if (strcmp(name, stories[i].name) == 0)
            _exit(stories[i].story());
}
