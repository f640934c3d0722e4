/* Tests of where destroy runs: types with destroy_on, and regions in which nothing may be destroyed. */
#include <weakref/no_destroy.h>

#include <criterion/criterion.h>
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <weakref/debug.h>
#include <weakref/finalize.h>
#include <weakref/guard.h>
#include <weakref/value_dict.h>
#include <weakref/watch.h>

#include "deaths.h"
#include "expect.h"
#include "fail_alloc.h"
#include "object.h"

static wr_queue *queue;
static wr_queue *answer; /* of destroy_on */
static int asked;

static wr_queue *which_queue(void)
{
    asked++;
    return answer;
}

static void make_queue(void)
{
    answer = queue = wr_queue_new("test");
    cr_assert_not_null(queue);
}

static void free_queue(void)
{
    if (queue != NULL)
        cr_assert(queue_is_balanced(queue));
    wr_queue_free(queue);
}

TestSuite(destroy_on, .init = make_queue, .fini = free_queue, .timeout = 60);
TestSuite(destroy_on_memory, .timeout = 60); /* the allocator is set before the first allocation */
TestSuite(no_destroy, .init = make_queue, .fini = free_queue, .timeout = 60);

static struct wr_queue_stats stats_of(wr_queue *q)
{
    struct wr_queue_stats stats;
    wr_queue_stats(q, &stats);
    return stats;
}

/* Logs its number at its destroy, and then does what it was told. */
typedef struct far {
    int number;
    void (*then)(struct far *self);
    void *child; /* released by destroy */
} far;

static pthread_t destroyer_thread;

static void far_destroy(void *obj)
{
    far *f = obj;
    destroyer_thread = pthread_self();
    log_callback(NULL, (void *)(intptr_t)f->number);
    if (f->then != NULL)
        f->then(f);
    wr_release(f->child);
    errno = EILSEQ;
}

#define FAR .name = "far", .size = sizeof(far), .destroy = far_destroy, .destroy_on = which_queue

static const wr_type far_type = {FAR};
static const wr_type near_type = {.name = "near", .size = sizeof(far), .destroy = far_destroy};
static const wr_type far_aligned_type = {FAR, .align = 256};
static const wr_type far_deferred_type = {FAR, .flags = WR_TYPE_DEFERRED};
static const wr_type far_deferred_aligned_type = {FAR, .flags = WR_TYPE_DEFERRED, .align = 128};
static const wr_type no_destroy_type = {.name = "bare", .size = 8, .destroy_on = which_queue};

static far *made(far *f, int number)
{
    cr_assert_not_null(f);
    f->number = number;
    return f;
}

static far *far_new(int number)
{
    return made(wr_new(&far_type), number);
}

/* ---- where ------------------------------------------------------------------------------------------- */

Test(destroy_on, the_object_is_dead_at_once_and_destroyed_by_the_consumer)
{
    far *f = far_new(1);
    wr_weak *weak = wr_downgrade(f);
    cr_assert_eq(asked, 1, "when it is made");
    struct wr_queue_stats s = stats_of(queue);
    cr_assert_eq(s.watched, 1);
    cr_assert_eq(s.armed, 1);
    wr_release(f);
    cr_assert_eq(n_logged, 0);
    cr_assert(wr_weak_is_dead(weak));
    cr_assert_null(wr_upgrade(weak));
    cr_assert_eq(wr_strong_count(f), 0);
    s = stats_of(queue);
    cr_assert_eq(s.pending, 1);
    cr_assert_eq(s.armed, 0);
    cr_assert_eq(wr_queue_drain(queue, SIZE_MAX), 1);
    cr_assert_eq(n_logged, 1);
    s = stats_of(queue);
    cr_assert_eq(s.delivered, 1);
    cr_assert_eq(s.pending, 0);
    cr_assert_eq(asked, 1);
    wr_weak_release(weak);
}

Test(destroy_on, a_thread_of_the_queue_runs_it)
{
    cr_assert_eq(wr_queue_start(queue, 1), 0);
    for (int i = 0; i < 20; i++)
        wr_release(far_new(i));
    cr_assert_eq(wr_queue_barrier(queue), 0);
    cr_assert_eq(n_logged, 20);
    for (int i = 0; i < 20; i++)
        cr_assert_eq(callback_log[i], i, "in the order of death");
    cr_assert_not(pthread_equal(destroyer_thread, pthread_self()));
    cr_assert_eq(wr_queue_stop(queue), 0);
}

static void spin_a_millisecond(far *self)
{
    (void)self;
    uint64_t until = expect_now_ns() + 1000000;
    while (expect_now_ns() < until)
        ;
}

Test(destroy_on, a_budget_applies_to_destroys)
{
    far *f[3];
    for (int i = 0; i < 3; i++)
        (f[i] = far_new(i))->then = spin_a_millisecond;
    for (int i = 0; i < 3; i++)
        wr_release(f[i]);
    cr_assert_eq(wr_queue_drain_for(queue, 0), 1, "the first in any case");
    cr_assert_eq(wr_queue_drain_for(queue, 900000), 1, "the third would begin after it");
    cr_assert_eq(wr_queue_drain_for(queue, UINT64_MAX), 1);
}

Test(destroy_on, the_descriptor_and_the_mark_know_of_destroys)
{
    cr_assert_geq(wr_queue_fd(queue), 0);
    cr_assert_eq(wr_queue_set_high_water(queue, 3, NULL, NULL, 1), 0);
    for (int i = 0; i < 3; i++)
        wr_release(far_new(i));
    cr_assert_eq(n_logged, 1, "the releasing thread helps with destroys, too");
    cr_assert_eq(stats_of(queue).high_water, 3);
    cr_assert_eq(wr_queue_drain(queue, SIZE_MAX), 2);
}

Test(destroy_on, slow_destroys_are_counted)
{
    cr_assert_eq(wr_queue_set_slow_limit(queue, 1), 0);
    far *f = far_new(1);
    f->then = spin_a_millisecond;
    wr_release(f);
    cr_assert_eq(wr_queue_drain(queue, 1), 1);
    cr_assert_eq(stats_of(queue).slow, 1);
    cr_assert_gt(stats_of(queue).latency_max_ns, 0);
}

Test(destroy_on, null_and_inline_mean_where_it_is_released)
{
    wr_queue *const answers[] = {NULL, WR_QUEUE_INLINE};
    for (int i = 0; i < 2; i++) {
        answer = answers[i];
        struct wr_queue_stats before = stats_of(answers[i]);
        wr_release(far_new(i));
        cr_assert_eq(n_logged, i + 1);
        struct wr_queue_stats after = stats_of(answers[i]);
        cr_assert_eq(before.watched, after.watched);
        cr_assert_eq(before.delivered, after.delivered);
    }
    cr_assert_eq(asked, 2);
}

Test(destroy_on, the_queue_is_asked_for_by_each_new_object)
{
    wr_queue *other = wr_queue_new("other");
    far *a = far_new(1);
    answer = other;
    far *b = far_new(2);
    wr_release(a);
    wr_release(b);
    cr_assert_eq(stats_of(queue).pending, 1);
    cr_assert_eq(wr_queue_drain(other, SIZE_MAX), 1);
    cr_assert_eq(callback_log[0], 2);
    cr_assert_eq(wr_queue_drain(queue, SIZE_MAX), 1);
    wr_queue_free(other);
}

Test(destroy_on, a_type_without_destroy_asks_nobody)
{
    wr_release(wr_new(&no_destroy_type));
    cr_assert_eq(asked, 0);
    cr_assert_eq(stats_of(queue).watched, 0);
}

Test(destroy_on, the_default_queue_is_started_and_waited_for)
{
    answer = wr_queue_default();
    for (int i = 0; i < 10; i++)
        wr_release(far_new(i));
    cr_assert_eq(wr_queue_barrier(wr_queue_default()), 0);
    cr_assert_eq(n_logged, 10);
    for (int i = 0; i < 10; i++)
        wr_release(made(wr_new(&far_deferred_type), i));
    cr_assert_eq(wr_barrier(), 0, "the grace period");
    cr_assert_eq(wr_queue_barrier(wr_queue_default()), 0, "and the queue");
    cr_assert_eq(n_logged, 20);
    for (int i = 0; i < 10; i++)
        wr_release(far_new(i));
    cr_assert_eq(wr_shutdown(60000), 0);
    cr_assert_eq(n_logged, 30);
    cr_assert(queue_is_balanced(wr_queue_default()));
}

/* ---- order --------------------------------------------------------------------------------------------- */

Test(destroy_on, callbacks_come_after_the_destroy)
{
    wr_queue *other = wr_queue_new("other");
    far *f = far_new(1);
    cr_assert_eq(wr_on_death(f, queue, LOG(4)), 0);
    cr_assert_eq(wr_on_death(f, other, LOG(5)), 0);
    cr_assert_eq(wr_on_death(f, queue, LOG(3)), 0);
    cr_assert_eq(wr_on_death(f, WR_QUEUE_INLINE, LOG(2)), 0);
    wr_release(f);
    cr_assert_eq(n_logged, 0, "not even the inline one");
    cr_assert_eq(wr_queue_drain(other, SIZE_MAX), 0);
    cr_assert_eq(wr_queue_drain(queue, 1), 1);
    cr_assert_eq(n_logged, 2);
    cr_assert_eq(wr_queue_drain(other, SIZE_MAX), 1);
    cr_assert_eq(wr_queue_drain(queue, SIZE_MAX), 2);
    static const long order[] = {1, 2, 5, 3, 4};
    for (int i = 0; i < 5; i++)
        cr_assert_eq(callback_log[i], order[i], "%d: %ld", i, callback_log[i]);
    wr_queue_free(other);
}

Test(destroy_on, watches_can_be_cancelled_until_the_destroy_has_run)
{
    far *f = far_new(1);
    wr_watch *a = wr_watch_new(f, queue, LOG(2)), *b = wr_watch_new(f, WR_QUEUE_INLINE, LOG(3));
    wr_watch *c = wr_watch_new(f, queue, LOG(4));
    wr_release(f);
    cr_assert_eq(wr_watch_cancel(a), WR_CANCELLED);
    cr_assert_eq(wr_watch_cancel_sync(b), WR_CANCELLED);
    cr_assert_eq(wr_queue_drain(queue, SIZE_MAX), 2);
    cr_assert_eq(n_logged, 2);
    cr_assert_eq(callback_log[1], 4);
    cr_assert_eq(wr_watch_cancel(c), WR_DELIVERED);
    wr_watch_release(a);
    wr_watch_release(b);
    wr_watch_release(c);
}

Test(destroy_on, of_a_deferred_type_comes_after_the_grace_period)
{
    static const wr_type *const types[] = {&far_deferred_type, &far_deferred_aligned_type};
    for (int i = 0; i < 2; i++) {
        atomic_store(&n_logged, 0);
        far *f = made(wr_new(types[i]), 1);
        wr_weak *weak = wr_downgrade(f);
        cr_assert_eq(wr_on_death(f, queue, LOG(2)), 0);
        WR_GUARD {
            far *peeked = wr_peek(weak);
            wr_release(f);
            cr_assert(wr_weak_is_dead(weak));
            cr_assert_eq(stats_of(queue).pending, 0);
            cr_assert_eq(peeked->number, 1);
        }
        cr_assert_eq(wr_barrier(), 0);
        cr_assert_eq(n_logged, 0, "on its queue now");
        cr_assert_eq(wr_queue_drain(queue, SIZE_MAX), 2);
        cr_assert_eq(callback_log[0], 1);
        cr_assert_eq(callback_log[1], 2);
        wr_weak_release(weak);
    }
}

/* ---- shapes --------------------------------------------------------------------------------------------- */

Test(destroy_on, every_shape_of_object_keeps_its_payload_and_its_size)
{
    static const wr_type *const types[] = {&far_type, &far_aligned_type, &far_deferred_type,
                                           &far_deferred_aligned_type};
    static const size_t sizes[] = {0, 1, 8, 100, 300, 5000};
    for (int k = 0; k < 4; k++)
        for (int i = 0; i < 7; i++)
            for (int watched = 0; watched < 2; watched++) {
                atomic_store(&n_logged, 0);
                size_t size = i == 0 ? sizeof(far) : sizeof(far) + sizes[i - 1];
                far *f = i == 0 ? wr_new(types[k]) : wr_new_sized(types[k], size);
                cr_assert_not_null(f);
                if (types[k]->align != 0)
                    cr_assert_eq((uintptr_t)f % types[k]->align, 0);
                for (size_t b = 0; b < size; b++)
                    cr_assert_eq(((unsigned char *)f)[b], 0);
                memset(f, 0xa5, size); /* all of it is ours */
                *f = (far){.number = k * 7 + i};
                if (watched)
                    cr_assert_eq(wr_on_death(f, queue, LOG(100)), 0);
                wr_release(f);
                cr_assert_eq(wr_barrier(), 0);
                cr_assert_eq(wr_queue_drain(queue, SIZE_MAX), (size_t)(1 + watched));
                cr_assert_eq(callback_log[0], k * 7 + i);
            }
}

/* ---- what such a destroy may do ------------------------------------------------------------------------- */

static size_t seen_weak_count, seen_strong_count;
static int seen_watch, seen_barrier, seen_stop, seen_cancel_all;
static bool seen_resurrected;

static void look_around(far *self)
{
    wr_weak *a = wr_downgrade(self), *b = wr_downgrade(self);
    seen_weak_count = wr_weak_count(self);
    seen_strong_count = wr_strong_count(self);
    seen_resurrected = wr_upgrade(a) != NULL;
    seen_watch = wr_on_death(self, queue, LOG(99));
    seen_barrier = wr_queue_barrier(queue);
    seen_stop = wr_queue_stop(queue);
    seen_cancel_all = wr_queue_cancel_all(queue);
    wr_weak_release(a);
    wr_weak_release(b);
}

Test(destroy_on, inside_it_counts_are_exact_and_waiting_for_itself_is_refused)
{
    for (int handles = 0; handles < 3; handles++)
        for (int watches = 0; watches < 3; watches++) {
            far *f = far_new(1);
            f->then = look_around;
            wr_weak *weak[3];
            wr_watch *watch[3];
            for (int i = 0; i < handles; i++)
                weak[i] = wr_downgrade(f);
            for (int i = 0; i < watches; i++) {
                watch[i] = wr_watch_new(f, queue, LOG(2));
                cr_assert_eq(wr_on_death(f, queue, LOG(2)), 0);
            }
            wr_release(f);
            cr_assert_eq(wr_weak_count(f), (size_t)handles, "dead, not destroyed");
            cr_assert_eq(wr_queue_drain(queue, SIZE_MAX), (size_t)(1 + 2 * watches));
            cr_assert_eq(seen_weak_count, (size_t)handles + 2);
            cr_assert_eq(seen_strong_count, 0);
            cr_assert_not(seen_resurrected);
            cr_assert_eq(seen_watch, -ESTALE);
            cr_assert_eq(seen_barrier, -EDEADLK);
            cr_assert_eq(seen_stop, -EDEADLK);
            cr_assert_eq(seen_cancel_all, -EDEADLK);
            for (int i = 0; i < handles; i++)
                wr_weak_release(weak[i]);
            for (int i = 0; i < watches; i++)
                wr_watch_release(watch[i]);
        }
}

Test(destroy_on, what_it_releases_dies_in_turn_here_or_on_its_own_queue)
{
    far *a = far_new(1), *b = made(wr_new(&near_type), 2), *c = far_new(3), *d = made(wr_new(&near_type), 4);
    a->child = b;
    b->child = c;
    c->child = d;
    wr_release(a);
    cr_assert_eq(wr_queue_drain(queue, 1), 1);
    cr_assert_eq(n_logged, 2, "b with a, for it has no queue");
    cr_assert_eq(stats_of(queue).pending, 1);
    cr_assert_eq(wr_queue_drain(queue, SIZE_MAX), 1);
    for (int i = 0; i < 4; i++)
        cr_assert_eq(callback_log[i], i + 1);
}

static void *in_line[4];

static void release_in_line(far *self)
{
    (void)self;
    for (int i = 0; i < 4; i++)
        wr_release(in_line[i]);
    cr_assert_eq(n_logged, 1, "they wait for their turn");
}

Test(destroy_on, where_it_is_released_after_all_it_waits_for_its_turn)
{
    /* The line goes through each of them, whatever its shape: the link lies behind the payload, so its size must be known. */
    static const wr_type *const types[] = {&far_type, &far_aligned_type};
    for (int freed = 0; freed < 2; freed++)
        for (int k = 0; k < 2; k++) {
            atomic_store(&n_logged, 0);
            answer = freed ? wr_queue_new("freed") : NULL;
            for (int i = 0; i < 4; i++) {
                far *f = i % 2 ? wr_new(types[k]) : wr_new_sized(types[k], sizeof(far) + 50 * (size_t)i + 20);
                in_line[i] = made(f, 10 + i);
            }
            wr_queue_free(answer);
            answer = NULL;
            far *first = made(wr_new(&near_type), 9);
            first->then = release_in_line;
            wr_release(first);
            cr_assert_eq(n_logged, 5);
            for (int i = 0; i < 5; i++)
                cr_assert_eq(callback_log[i], 9 + i);
        }
}

Test(destroy_on, one_drain_ends_a_chain_of_a_hundred_thousand)
{
    enum { N = 100000 };
    far *head = NULL;
    for (int i = 0; i < N; i++) {
        far *f = far_new(i);
        f->child = head;
        head = f;
    }
    wr_release(head);
    cr_assert_eq(wr_queue_drain(queue, SIZE_MAX), N);
    cr_assert_eq(n_logged, N);
}

static void release_another_in_drain(far *self)
{
    wr_release(self->child);
    self->child = NULL;
    cr_assert_eq(wr_queue_drain(queue, SIZE_MAX), 1);
    cr_assert_eq(n_logged, 2, "nested");
}

Test(destroy_on, a_drain_inside_it_runs_what_is_pending)
{
    far *a = far_new(1);
    a->child = far_new(2);
    a->then = release_another_in_drain;
    wr_release(a);
    cr_assert_eq(wr_queue_drain(queue, SIZE_MAX), 1);
    cr_assert_eq(n_logged, 2);
}

static void free_the_queue(far *self)
{
    (void)self;
    wr_queue_free(queue);
    queue = NULL;
}

Test(destroy_on, it_may_free_its_queue)
{
    far *a = far_new(1), *b = far_new(2), *c = far_new(3);
    wr_queue *q = queue;
    a->then = free_the_queue;
    wr_release(a);
    wr_release(b);
    cr_assert_eq(wr_queue_drain(q, 1), 1);
    cr_assert_eq(n_logged, 2, "freeing delivers the rest");
    wr_release(c);
    cr_assert_eq(n_logged, 3, "where it is released");
}

Test(destroy_on, errno_survives_the_release_and_the_drain)
{
    far *f = far_new(1);
    cr_assert_eq(wr_on_death(f, queue, LOG(2)), 0);
    errno = ENOTTY;
    wr_release(f);
    cr_assert_eq(errno, ENOTTY);
    wr_queue_drain(queue, SIZE_MAX);
    cr_assert_eq(errno, ENOTTY);
}

/* ---- the queue's end ------------------------------------------------------------------------------------- */

Test(destroy_on, cancel_all_cancels_the_callbacks_and_leaves_the_destroys)
{
    far *a = far_new(1), *b = far_new(2);
    thing *t = thing_new(1);
    cr_assert_eq(wr_on_death(t, queue, LOG(9)), 0);
    cr_assert_eq(wr_on_death(b, queue, LOG(8)), 0);
    wr_release(a);
    wr_release(t);
    wr_release(b);
    cr_assert_eq(stats_of(queue).pending, 3);
    cr_assert_eq(wr_queue_cancel_all(queue), 0);
    struct wr_queue_stats s = stats_of(queue);
    cr_assert_eq(s.pending, 2);
    cr_assert_eq(s.cancelled, 1);
    cr_assert_eq(s.armed, 1, "b's callback, until b is destroyed");
    cr_assert(queue_is_balanced(queue));
    cr_assert_eq(wr_queue_drain(queue, 2), 2);
    cr_assert_eq(callback_log[0], 1);
    cr_assert_eq(callback_log[1], 2);
    cr_assert_eq(wr_queue_cancel_all(queue), 0);
    cr_assert_eq(wr_queue_drain(queue, SIZE_MAX), 0);
    cr_assert_eq(stats_of(queue).cancelled, 2);
}

Test(destroy_on, free_destroys_what_is_pending)
{
    far *f[5];
    for (int i = 0; i < 5; i++) {
        f[i] = far_new(i);
        cr_assert_eq(wr_on_death(f[i], WR_QUEUE_INLINE, LOG(10 + i)), 0);
    }
    for (int i = 0; i < 5; i++)
        wr_release(f[i]);
    wr_queue_free(queue);
    queue = NULL;
    cr_assert_eq(n_logged, 10);
    cr_assert(pthread_equal(destroyer_thread, pthread_self()));
}

Test(destroy_on, after_the_end_of_the_queue_it_runs_where_it_is_released)
{
    far *f[4], *deferred = made(wr_new(&far_deferred_type), 9);
    for (int i = 0; i < 4; i++)
        f[i] = far_new(i);
    cr_assert_eq(wr_on_death(f[0], WR_QUEUE_INLINE, LOG(10)), 0);
    cr_assert_eq(wr_on_death(f[0], queue, LOG(11)), 0);
    thing *t = thing_new(1);
    wr_watch *w = wr_watch_new(t, queue, LOG(12)); /* keeps it, to be asked */
    wr_queue *q = queue;
    wr_queue_free(queue);
    queue = NULL;
    cr_assert_eq(stats_of(q).armed, 7);
    for (int i = 0; i < 4; i++)
        wr_release(f[i]);
    cr_assert_eq(n_logged, 5);
    cr_assert_eq(callback_log[0], 0);
    cr_assert_eq(callback_log[1], 10);
    wr_release(deferred);
    cr_assert_eq(wr_barrier(), 0);
    cr_assert_eq(n_logged, 6);
    struct wr_queue_stats s = stats_of(q);
    cr_assert_eq(s.watched, 7);
    cr_assert_eq(s.armed, 1);
    cr_assert_eq(s.cancelled, 6, "counted as cancelled there");
    cr_assert_eq(s.delivered + s.pending, 0);
    wr_release(t);
    wr_watch_release(w);
}

Test(destroy_on, a_freed_queue_makes_new_fail_and_change_nothing)
{
    thing *t = thing_new(1);
    wr_watch *w = wr_watch_new(t, queue, LOG(1)); /* keeps it */
    wr_queue *q = queue;
    wr_queue_free(queue);
    queue = NULL;
    errno = 0;
    cr_assert_null(wr_new(&far_type));
    cr_assert_eq(errno, ECANCELED);
    errno = 0;
    cr_assert_null(wr_new_sized(&far_aligned_type, 1000));
    cr_assert_eq(errno, ECANCELED);
    errno = 0;
    cr_assert_null(wr_new(&far_deferred_type));
    cr_assert_eq(errno, ECANCELED);
    cr_assert_eq(stats_of(q).watched, 1);
    wr_release(t);
    wr_watch_release(w);
}

/* ---- memory ------------------------------------------------------------------------------------------------ */

Test(destroy_on_memory, every_allocation_of_every_shape_failed_in_turn)
{
    static const wr_type *const types[] = {&far_type, &far_aligned_type, &far_deferred_type,
                                           &far_deferred_aligned_type};
    fail_alloc_install();
    make_queue();
    for (int k = 0; k < 4; k++)
        for (int sized = 0; sized < 2; sized++) {
            far *f = NULL;
            for (long n = 1; f == NULL; n++) {
                uint64_t watched = stats_of(queue).watched;
                long live = fail_alloc_live();
                fail_alloc_at(n);
                errno = 0;
                f = sized ? wr_new_sized(types[k], 500) : wr_new(types[k]);
                bool hit = fail_alloc_hit();
                cr_assert_eq(hit, f == NULL);
                cr_assert(f != NULL || errno == ENOMEM || errno == EAGAIN);
                cr_assert(f != NULL || fail_alloc_live() == live);
                cr_assert_eq(stats_of(queue).watched, watched + (f != NULL));
            }
            wr_release(f);
            cr_assert_eq(wr_barrier(), 0);
            cr_assert_eq(wr_queue_drain(queue, SIZE_MAX), 1);
        }
    free_queue();
}

Test(destroy_on_memory, the_first_object_of_the_default_queue_every_allocation_failed)
{
    fail_alloc_install();
    answer = wr_queue_default();
    far *f = NULL;
    for (long n = 1; f == NULL; n++) {
        long live = fail_alloc_live();
        fail_alloc_at(n);
        errno = 0;
        f = wr_new(&far_type);
        cr_assert_eq(fail_alloc_hit(), f == NULL);
        cr_assert(f != NULL || errno == ENOMEM || errno == EAGAIN);
        cr_assert(f != NULL || fail_alloc_live() == live);
    }
    wr_release(f);
    cr_assert_eq(wr_queue_barrier(wr_queue_default()), 0);
    cr_assert_eq(n_logged, 1);
}

Test(destroy_on_memory, all_the_memory_comes_back_and_dying_allocates_none)
{
    static const wr_type *const types[] = {&far_type, &far_aligned_type, &far_deferred_type,
                                           &far_deferred_aligned_type};
    fail_alloc_install();
    make_queue();
    wr_release(made(wr_new(&far_deferred_type), 0)); /* the reclaimer's own */
    cr_assert_eq(wr_barrier(), 0);
    cr_assert_eq(wr_queue_drain(queue, SIZE_MAX), 1);
    long live = fail_alloc_live();
    for (int end = 0; end < 3; end++) { /* drained; freed while pending; freed before */
        for (int k = 0; k < 4; k++) {
            far *f[6];
            wr_weak *weak[6];
            for (int i = 0; i < 6; i++) {
                f[i] = i % 2 ? wr_new_sized(types[k], sizeof(far) + 100) : wr_new(types[k]);
                made(f[i], i);
                weak[i] = i < 3 ? wr_downgrade(f[i]) : NULL;
                if (i != 5)
                    cr_assert_eq(wr_on_death(f[i], queue, LOG(9)), 0);
            }
            fail_alloc_all(true);
            wr_queue *q = queue;
            if (end == 2) {
                wr_queue_free(q);
                q = NULL;
            }
            for (int i = 0; i < 6; i++)
                wr_release(f[i]);
            (void)wr_barrier();
            if (end == 1) {
                wr_queue_free(q);
                q = NULL;
            } else if (end == 0) {
                cr_assert_eq(wr_queue_drain(q, SIZE_MAX), 11);
            }
            for (int i = 0; i < 6; i++)
                wr_weak_release(weak[i]);
            cr_assert_not(fail_alloc_hit());
            fail_alloc_all(false);
            if (q == NULL) {
                cr_assert_eq(fail_alloc_live(), live - 1, "end %d, shape %d", end, k);
                make_queue();
            }
            cr_assert_eq(fail_alloc_live(), live, "end %d, shape %d", end, k);
        }
    }
    free_queue();
}

/* ---- WR_NO_DESTROY -------------------------------------------------------------------------------------------- */

static int region_line;

static void release_in_region(void *obj)
{
    region_line = __LINE__ + 1;
    WR_NO_DESTROY {
        wr_release(obj);
    }
}

/* In a release build of this file a region is a plain block; in any other it panics. */
#if defined(NDEBUG) && !(defined(WR_DEBUG) && WR_DEBUG)
#define REGIONS 0
#else
#define REGIONS 1
#endif

/* Runs fn(obj), which is to panic, naming a region of this file and @what, a regular expression. */
static void expect_stopped(void (*fn)(void *obj), void *obj, const char *what)
{
#if REGIONS
    char pattern[256];
    snprintf(pattern, sizeof pattern,
             "weakref: WR_NO_DESTROY: %s: destroyed, or run, inside the region at .*test_destroy\\.c:[0-9]+, by the "
             "calls listed above\n$",
             what);
    expect_panic(fn, obj, pattern);
#else
    (void)what;
    fn(obj);
#endif
}

#define OBJECT(name) "object " name " at 0x[0-9a-f]+"

Test(no_destroy, a_destroy_inside_panics_with_the_regions_place_the_type_and_the_address)
{
    thing *t = thing_new(1);
    expect_stopped(release_in_region, t, OBJECT("thing"));
#if REGIONS
    /* To the letter. */
    char pattern[256];
    region_line = 0;
    wr_retain(t);
    release_in_region(t);
    snprintf(pattern, sizeof pattern, "WR_NO_DESTROY: object thing at %p: .*test_destroy\\.c:%d, by", (void *)t,
             region_line);
    expect_panic(release_in_region, t, pattern);
    wr_release(t);
#endif
}

static void run_inline_in_region(void *obj)
{
    wr_on_death(obj, WR_QUEUE_INLINE, LOG(1));
    release_in_region(obj);
}

static const wr_type plain_type = {.name = "plain", .size = 8};

Test(no_destroy, an_inline_callback_inside_panics_too)
{
    void *obj = wr_new(&plain_type);
    expect_stopped(run_inline_in_region, obj, OBJECT("plain"));
#if REGIONS
    wr_release(obj);
#endif
}

static void log_removal(const void *key, size_t size, void *ctx)
{
    (void)key, (void)size;
    log_callback(NULL, ctx);
}

static void remove_inline_in_region(void *obj)
{
    const struct wr_value_dict_options options = {
        .struct_size = sizeof options, .on_removal = log_removal, .queue = WR_QUEUE_INLINE};
    wr_value_dict *dict = wr_value_dict_new(&options);
    cr_assert_eq(wr_value_dict_set_str(dict, "key", obj), 0);
    release_in_region(obj);
    wr_value_dict_free(dict);
}

Test(no_destroy, an_inline_removal_inside_panics_too)
{
    void *obj = wr_new(&plain_type);
    expect_stopped(remove_inline_in_region, obj, OBJECT("plain"));
#if REGIONS
    wr_release(obj);
#endif
}

static void log_finalizer(void *ctx)
{
    log_callback(NULL, ctx);
}

static void finalize_inline_in_region(void *obj)
{
    wr_finalizer_release(wr_finalize(obj, WR_QUEUE_INLINE, log_finalizer, NULL, 0));
    release_in_region(obj);
}

Test(no_destroy, an_inline_finalizer_inside_panics_too)
{
    void *obj = wr_new(&plain_type);
    expect_stopped(finalize_inline_in_region, obj, OBJECT("plain"));
#if REGIONS
    wr_release(obj);
#endif
}

static void hook(wr_queue *q, uint64_t pending, void *ctx)
{
    (void)q, (void)pending;
    log_callback(NULL, ctx);
}

static void storm_in_region(void *obj)
{
    wr_on_death(obj, queue, LOG(1));
    release_in_region(obj);
}

Test(no_destroy, a_high_water_hook_or_help_inside_panics_too)
{
    void *obj = wr_new(&plain_type);
    cr_assert_eq(wr_queue_set_high_water(queue, 1, hook, NULL, 0), 0);
    expect_stopped(storm_in_region, obj, "high-water hook of queue test at 0x[0-9a-f]+");
#if REGIONS
    cr_assert_eq(wr_queue_set_high_water(queue, 1, NULL, NULL, 1), 0);
    expect_stopped(storm_in_region, obj, "help with queue test at 0x[0-9a-f]+");
    wr_release(obj);
#else
    cr_assert_eq(n_logged, 1);
#endif
}

static void leave_inner(void *obj)
{
    WR_NO_DESTROY {
        WR_NO_DESTROY {
            cr_assert_not_null(obj);
        }
        wr_release(obj);
    }
}

#if REGIONS
static void inner_in_another(void *obj)
{
    WR_NO_DESTROY
        release_in_region(obj);
}
#endif

static void drain_in_region(void *unused)
{
    (void)unused;
    wr_release(far_new(1)); /* here: what was pending at a fork is the parent's */
    WR_NO_DESTROY {
        wr_queue_drain(queue, SIZE_MAX);
    }
}

Test(no_destroy, regions_nest)
{
    thing *t = thing_new(1);
    expect_stopped(leave_inner, t, OBJECT("thing"));
#if REGIONS
    expect_stopped(inner_in_another, t, OBJECT("thing"));
    wr_release(t);
#endif
}

Test(no_destroy, a_destroy_that_was_left_to_a_queue_is_found_where_it_runs)
{
    expect_stopped(drain_in_region, NULL, OBJECT("far"));
}

static int leave_by(int how)
{
    for (int i = 0; i < 3; i++) {
        WR_NO_DESTROY {
            if (how == 0)
                return 10;
            if (how == 1)
                break;
            if (how == 2)
                continue;
            if (how == 3)
                goto out;
            WR_NO_DESTROY {
                if (how == 4)
                    return 20;
                if (how == 5)
                    goto out;
            }
        }
    }
    return 30;
out:
    return 40;
}

Test(no_destroy, every_way_out_ends_the_region)
{
    static const int answers[] = {10, 30, 30, 40, 20, 40, 30};
    for (int how = 0; how < 7; how++) {
        cr_assert_eq(leave_by(how), answers[how]);
        int before = things_destroyed;
        wr_release(thing_new(1));
        cr_assert_eq(things_destroyed, before + 1);
    }
}

Test(no_destroy, the_body_runs_once)
{
    int n = 0;
    for (int i = 0; i < 3; i++)
        WR_NO_DESTROY
            n++;
    cr_assert_eq(n, 3);
}

/* All that may die in a region. */
Test(no_destroy, deaths_with_nothing_to_run_here_are_allowed)
{
    static const wr_type deferred = {.name = "late", .size = 8, .destroy = thing_destroy, .flags = WR_TYPE_DEFERRED};
    void *plain = wr_new(&plain_type), *watched = wr_new(&plain_type), *weakly = wr_new(&plain_type);
    wr_weak *weak = wr_downgrade(weakly);
    cr_assert_eq(wr_on_death(watched, queue, LOG(1)), 0);
    void *late = wr_new(&deferred), *later = thing_new(1);
    far *f = far_new(2);
    cr_assert_eq(wr_on_death(f, WR_QUEUE_INLINE, LOG(3)), 0);
    thing *kept = thing_new(1);
    wr_retain(kept);
    WR_NO_DESTROY {
        wr_release(plain);
        wr_release(watched);
        wr_release(weakly);
        wr_release(late);
        wr_release(f);
        wr_release(kept);
        wr_release_later(later);
        wr_release(NULL);
    }
    wr_weak_release(weak);
    cr_assert_eq(wr_barrier(), 0);
    cr_assert_eq(things_destroyed, 2);
    cr_assert_eq(wr_queue_drain(queue, SIZE_MAX), 2);
    wr_release(kept);
    cr_assert_eq(things_destroyed, 3);
}

Test(no_destroy, callbacks_drained_inside_are_the_drains_business)
{
    void *obj = wr_new(&plain_type);
    cr_assert_eq(wr_on_death(obj, queue, LOG(1)), 0);
    wr_release(obj);
    WR_NO_DESTROY {
        cr_assert_eq(wr_queue_drain(queue, SIZE_MAX), 1);
    }
}

static void *destroy_elsewhere(void *obj)
{
    wr_release(obj);
    return NULL;
}

Test(no_destroy, other_threads_destroy_what_they_like)
{
    thing *t = thing_new(1);
    WR_NO_DESTROY {
        pthread_t thread;
        cr_assert_eq(pthread_create(&thread, NULL, destroy_elsewhere, t), 0);
        cr_assert_eq(pthread_join(thread, NULL), 0);
    }
    cr_assert_eq(things_destroyed, 1);
}

static void release_child_in_region(far *self)
{
    WR_NO_DESTROY {
        wr_release(self->child); /* its turn comes when this destroy has returned */
    }
    self->child = NULL;
    cr_assert_eq(n_logged, 1);
}

Test(no_destroy, what_waits_for_the_end_of_an_outer_destroy_is_not_meant)
{
    far *outer = made(wr_new(&near_type), 1), *inner = made(wr_new(&near_type), 2);
    outer->then = release_child_in_region;
    outer->child = inner;
    wr_release(outer);
    cr_assert_eq(n_logged, 2);
}
