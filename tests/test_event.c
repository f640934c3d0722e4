/* Tests of event counts and the clock. */
#include "event.h"

#include <criterion/criterion.h>
#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdlib.h>

#include "race.h"

TestSuite(event, .timeout = 60);

Test(event, clock_does_not_go_back)
{
    uint64_t last = wr_clock_ns();
    cr_assert_gt(last, 0);
    for (int i = 0; i < 10000; i++) {
        uint64_t now = wr_clock_ns();
        cr_assert_geq(now, last);
        last = now;
    }
}

Test(event, wait_returns_at_once_after_a_signal)
{
    struct wr_event event;
    wr_event_init(&event);
    uint32_t value = wr_event_value(&event);
    wr_event_signal(&event);
    cr_assert_neq(wr_event_value(&event), value);
    cr_assert(wr_event_wait(&event, value, WR_EVENT_FOREVER));
    cr_assert(wr_event_wait(&event, value, 0));
}

Test(event, wait_times_out_without_a_signal)
{
    wr_event event = WR_EVENT_INIT;
    uint64_t start = wr_clock_ns();
    errno = EDOM;
    cr_assert_not(wr_event_wait(&event, wr_event_value(&event), 20000000));
    cr_assert_geq(wr_clock_ns() - start, 20000000);
    cr_assert_eq(errno, EDOM, "errno is left alone");
    cr_assert_not(wr_event_wait(&event, wr_event_value(&event), 0));
}

struct ping {
    wr_event events[2];
    atomic_uint turn;
    unsigned rounds;
};

/* Each side waits for its turn and passes it on: a lost wake-up stops both. */
static void play(struct ping *p, unsigned me)
{
    for (unsigned i = 0; i < p->rounds; i++) {
        for (;;) {
            uint32_t value = wr_event_value(&p->events[me]);
            if (atomic_load_explicit(&p->turn, memory_order_acquire) % 2 == me)
                break;
            wr_event_wait(&p->events[me], value, WR_EVENT_FOREVER);
        }
        atomic_fetch_add_explicit(&p->turn, 1, memory_order_release);
        wr_event_signal(&p->events[!me]);
    }
}

static void *second(void *ctx)
{
    play(ctx, 1);
    return NULL;
}

Test(event, no_wake_up_is_lost_between_two_threads)
{
    static struct ping p = {.events = {WR_EVENT_INIT, WR_EVENT_INIT}, .rounds = RACE_SIZE(20000, 4000)};
    pthread_t thread;
    cr_assert_eq(pthread_create(&thread, NULL, second, &p), 0);
    play(&p, 0);
    pthread_join(thread, NULL);
    cr_assert_eq(p.turn, 2 * p.rounds);
}

struct crowd {
    wr_event event;
    atomic_int tickets; /* what producers make and consumers take */
    atomic_int taken;
    int total;
};

static void *consume(void *ctx)
{
    struct crowd *c = ctx;
    for (;;) {
        uint32_t value = wr_event_value(&c->event);
        if (atomic_load_explicit(&c->taken, memory_order_relaxed) >= c->total)
            return NULL;
        int tickets = atomic_load_explicit(&c->tickets, memory_order_relaxed);
        if (tickets == 0) {
            wr_event_wait(&c->event, value, WR_EVENT_FOREVER);
        } else if (atomic_compare_exchange_strong(&c->tickets, &tickets, tickets - 1)) {
            atomic_fetch_add_explicit(&c->taken, 1, memory_order_relaxed);
            wr_event_signal(&c->event);
        }
    }
}

static void *produce(void *ctx)
{
    struct crowd *c = ctx;
    for (int i = 0; i < c->total / 2; i++) {
        atomic_fetch_add_explicit(&c->tickets, 1, memory_order_relaxed);
        wr_event_signal(&c->event);
    }
    return NULL;
}

Test(event, no_wake_up_is_lost_in_a_crowd)
{
    static struct crowd c = {.event = WR_EVENT_INIT, .total = RACE_SIZE(10000, 2000)};
    pthread_t threads[8];
    for (int i = 0; i < 8; i++)
        cr_assert_eq(pthread_create(&threads[i], NULL, i < 6 ? consume : produce, &c), 0);
    for (int i = 0; i < 8; i++)
        pthread_join(threads[i], NULL);
    cr_assert_eq(c.taken, c.total);
}
