/* Tests of slots: atomic strong and weak references. */
#include "expect.h"
#include "fail_alloc.h"
#include "race.h"

#include <weakref/debug.h>
#include <weakref/slot.h>
#include <weakref/weak.h>

static atomic_uint destroyed, destroyed_here;
static pthread_t here; /* the thread on which nothing may be destroyed */
static bool watch_here;

typedef struct number {
    int value, twin; /* twin is -value as long as it is whole */
} number;

static void number_destroy(void *obj)
{
    number *n = obj;
    n->value = n->twin = 99;
    if (watch_here && pthread_equal(here, pthread_self()))
        atomic_fetch_add(&destroyed_here, 1);
    atomic_fetch_add(&destroyed, 1);
}

static const wr_type number_type = {.name = "number", .size = sizeof(number), .destroy = number_destroy};
static const wr_type deferred_type = {
    .name = "deferred", .size = sizeof(number), .destroy = number_destroy, .flags = WR_TYPE_DEFERRED};

static number *number_new(int value)
{
    number *n = wr_new(&number_type);
    cr_assert_not_null(n);
    n->value = value;
    n->twin = -value;
    return n;
}

/* ---- strong slots ----------------------------------------------------------------------------------------- */

Test(slot, zeroed_is_empty)
{
    static wr_slot slot;
    static wr_weak_slot weak;
    cr_assert_null(wr_slot_load(&slot));
    cr_assert_null(wr_weak_slot_get(&weak));
    WR_GUARD {
        cr_assert_null(wr_slot_peek(&slot));
    }
    wr_slot_fini(&slot);
    wr_weak_slot_fini(&weak);
}

Test(slot, holds_a_reference_of_its_own_from_init_to_fini)
{
    wr_slot slot;
    number *n = number_new(1);
    wr_slot_init(&slot, n);
    cr_assert_eq(wr_strong_count(n), 2);
    wr_release(n);
    cr_assert_eq(atomic_load(&destroyed), 0);
    number *loaded = wr_slot_load(&slot);
    cr_assert_eq(loaded, n);
    cr_assert_eq(wr_strong_count(n), 2);
    wr_slot_fini(&slot);
    cr_assert_eq(wr_barrier(), 0);
    cr_assert_eq(wr_strong_count(n), 1);
    wr_release(loaded);
    cr_assert_eq(atomic_load(&destroyed), 1);
}

Test(slot, init_with_null_is_empty)
{
    wr_slot slot;
    memset(&slot, 0xff, sizeof slot);
    wr_slot_init(&slot, NULL);
    cr_assert_null(wr_slot_load(&slot));
    wr_slot_fini(&slot);
}

Test(slot, peek_does_not_count)
{
    wr_slot slot;
    number *n = number_new(1);
    wr_slot_init(&slot, n);
    WR_GUARD {
        cr_assert_eq(wr_slot_peek(&slot), n);
        cr_assert_eq(wr_strong_count(n), 2);
    }
    wr_slot_fini(&slot);
    wr_release(n);
}

Test(slot, store_replaces_and_releases_the_former_one_after_the_guards)
{
    wr_slot slot;
    number *a = number_new(1), *b = number_new(2);
    wr_slot_init(&slot, a);
    wr_release(a);
    WR_GUARD {
        number *seen = wr_slot_peek(&slot);
        wr_slot_store(&slot, b);
        cr_assert_eq(wr_strong_count(b), 2);
        cr_assert_eq(wr_slot_peek(&slot), b);
        uint64_t until = expect_now_ns() + 30000000u;
        while (expect_now_ns() < until)
            cr_assert_eq(seen->value + seen->twin, 0);
        cr_assert_eq(atomic_load(&destroyed), 0);
        cr_assert_eq(wr_retain(seen), seen, "what was peeked in a slot may be retained");
    }
    cr_assert_eq(wr_barrier(), 0);
    cr_assert_eq(wr_strong_count(a), 1);
    wr_release(a);
    cr_assert_eq(atomic_load(&destroyed), 1);
    wr_slot_store(&slot, NULL);
    cr_assert_null(wr_slot_load(&slot));
    cr_assert_eq(wr_barrier(), 0);
    cr_assert_eq(wr_strong_count(b), 1);
    wr_release(b);
    wr_slot_fini(&slot);
}

Test(slot, no_verb_runs_user_code_on_its_thread)
{
    wr_slot slot;
    wr_slot_init(&slot, NULL);
    here = pthread_self();
    watch_here = true;
    for (unsigned i = 0; i < 2000; i++) {
        number *n = number_new(1);
        wr_slot_store(&slot, n);
        wr_release(n);
        switch (i % 4) {
        case 0:
            wr_slot_store(&slot, NULL);
            break;
        case 1:
            n = number_new(2);
            wr_slot_store(&slot, n);
            wr_release(n);
            wr_slot_fini(&slot);
            break;
        case 2:
            n = wr_slot_load(&slot);
            cr_assert(wr_slot_compare_exchange(&slot, n, NULL));
            wr_release_later(n);
            break;
        default:
            wr_release_later(wr_slot_exchange(&slot, NULL));
        }
    }
    await(atomic_load(&destroyed) == 2500);
    cr_assert_eq(atomic_load(&destroyed_here), 0);
}

Test(slot, exchange_gives_the_former_one_owned)
{
    wr_slot slot;
    number *a = number_new(1), *b = number_new(2);
    wr_slot_init(&slot, a);
    number *former = wr_slot_exchange(&slot, b);
    cr_assert_eq(former, a);
    wr_release(a);
    wr_release(former); /* safe at once, whoever peeks */
    cr_assert_eq(wr_barrier(), 0);
    cr_assert_eq(atomic_load(&destroyed), 1);
    cr_assert_eq(wr_strong_count(b), 2);
    former = wr_slot_exchange(&slot, NULL);
    cr_assert_eq(former, b);
    cr_assert_eq(wr_barrier(), 0);
    cr_assert_eq(wr_strong_count(b), 2);
    cr_assert_null(wr_slot_exchange(&slot, NULL));
    wr_release(b);
    wr_release(b);
    cr_assert_eq(atomic_load(&destroyed), 2);
    wr_slot_fini(&slot);
}

Test(slot, former_one_of_an_exchange_stays_whole_for_the_guard_that_saw_it)
{
    wr_slot slot;
    number *a = number_new(1);
    wr_slot_init(&slot, a);
    wr_release(a);
    WR_GUARD {
        number *seen = wr_slot_peek(&slot);
        wr_release(wr_slot_exchange(&slot, NULL));
        cr_assert_eq(seen->value + seen->twin, 0);
        cr_assert_eq(wr_strong_count(seen), 1);
        cr_assert_eq(atomic_load(&destroyed), 0);
    }
    await(atomic_load(&destroyed) == 1);
    wr_slot_fini(&slot);
}

Test(slot, store_and_exchange_of_what_is_there_keep_the_count)
{
    wr_slot slot;
    number *a = number_new(1);
    wr_slot_init(&slot, a);
    for (unsigned i = 0; i < 100; i++) {
        wr_slot_store(&slot, a);
        number *former = wr_slot_exchange(&slot, a);
        cr_assert_eq(former, a);
        wr_release(former);
        cr_assert(wr_slot_compare_exchange(&slot, a, a));
    }
    cr_assert_eq(wr_barrier(), 0);
    cr_assert_eq(wr_strong_count(a), 2);
    wr_slot_fini(&slot);
    cr_assert_eq(wr_barrier(), 0);
    cr_assert_eq(wr_strong_count(a), 1);
    wr_release(a);
    cr_assert_eq(atomic_load(&destroyed), 1);
}

Test(slot, compare_exchange_replaces_only_what_was_expected)
{
    wr_slot slot;
    number *a = number_new(1), *b = number_new(2);
    wr_slot_init(&slot, NULL);

    cr_assert_not(wr_slot_compare_exchange(&slot, a, b), "it is empty");
    cr_assert_eq(wr_strong_count(a), 1);
    cr_assert_eq(wr_strong_count(b), 1);
    cr_assert(wr_slot_compare_exchange(&slot, NULL, a));
    cr_assert_eq(wr_strong_count(a), 2);
    cr_assert_not(wr_slot_compare_exchange(&slot, NULL, b));
    cr_assert_not(wr_slot_compare_exchange(&slot, b, NULL));
    cr_assert_not(wr_slot_compare_exchange(&slot, b, b));
    cr_assert_eq(wr_strong_count(b), 1);
    cr_assert_eq(wr_strong_count(a), 2);
    cr_assert(wr_slot_compare_exchange(&slot, a, b));
    cr_assert_eq(wr_barrier(), 0);
    cr_assert_eq(wr_strong_count(a), 1);
    cr_assert_eq(wr_strong_count(b), 2);
    cr_assert(wr_slot_compare_exchange(&slot, b, NULL));
    cr_assert_eq(wr_barrier(), 0);
    cr_assert_eq(wr_strong_count(b), 1);
    cr_assert(wr_slot_compare_exchange(&slot, NULL, NULL));
    cr_assert_null(wr_slot_load(&slot));
    wr_release(a);
    wr_release(b);
    cr_assert_eq(atomic_load(&destroyed), 2);
    wr_slot_fini(&slot);
}

/* ---- weak slots ------------------------------------------------------------------------------------------- */

Test(slot, weak_slot_gives_the_object_while_it_lives)
{
    fail_alloc_install();
    wr_weak_slot slot;
    number *a = number_new(1), *b = number_new(2);
    wr_weak_slot_init(&slot, a);
    cr_assert_eq(wr_strong_count(a), 1);
    cr_assert_eq(wr_weak_count(a), 1);
    number *got = wr_weak_slot_get(&slot);
    cr_assert_eq(got, a);
    cr_assert_eq(wr_strong_count(a), 2);
    wr_release(got);
    wr_weak_slot_set(&slot, b);
    cr_assert_eq(wr_weak_count(b), 1);
    cr_assert_eq(wr_barrier(), 0);
    cr_assert_eq(wr_weak_count(a), 0, "given back after a grace period");
    wr_release(b);
    cr_assert_eq(atomic_load(&destroyed), 1);
    cr_assert_null(wr_weak_slot_get(&slot), "dead");
    wr_weak_slot_set(&slot, a);
    got = wr_weak_slot_get(&slot);
    cr_assert_eq(got, a);
    wr_release(got);
    wr_weak_slot_set(&slot, NULL);
    cr_assert_null(wr_weak_slot_get(&slot), "empty");
    wr_release(a);
    wr_weak_slot_fini(&slot);
    cr_assert_eq(wr_barrier(), 0);
    cr_assert_eq(fail_alloc_live(), 0);
}

Test(slot, weak_slot_fini_gives_the_header_back)
{
    fail_alloc_install();
    wr_weak_slot slot;
    number *a = number_new(1);
    wr_weak_slot_init(&slot, a);
    wr_release(a);
    cr_assert_eq(fail_alloc_live(), 1);
    wr_weak_slot_fini(&slot);
    cr_assert_eq(wr_barrier(), 0);
    cr_assert_eq(fail_alloc_live(), 0);
}

/* ---- memory ----------------------------------------------------------------------------------------------- */

static unsigned warnings;

static void warn(const char *message, void *ctx)
{
    (void)message, (void)ctx;
    warnings++;
}

/* Each verb that defers, with no memory for the record. What it left is in a and b. */
static void every_verb(number *a, number *b, bool inside)
{
    wr_slot slot;
    wr_weak_slot weak;
    wr_slot_init(&slot, a);
    wr_weak_slot_init(&weak, a);
    if (inside)
        wr_guard_enter();
    fail_alloc_all(true);
    wr_slot_store(&slot, b);
    number *former = wr_slot_exchange(&slot, a);
    cr_assert_eq(former, b);
    cr_assert(wr_slot_compare_exchange(&slot, a, b));
    cr_assert_not(wr_slot_compare_exchange(&slot, a, b));
    cr_assert_eq(wr_slot_peek(&slot), b);
    wr_slot_fini(&slot);
    wr_weak_slot_set(&weak, b);
    number *got = wr_weak_slot_get(&weak);
    cr_assert_eq(got, b);
    wr_weak_slot_fini(&weak);
    cr_assert(fail_alloc_hit());
    fail_alloc_all(false);
    if (inside)
        wr_guard_exit();
    wr_release(former);
    wr_release(got);
    cr_assert_eq(wr_barrier(), 0);
}

Test(slot, outside_a_guard_no_verb_loses_anything_for_want_of_memory)
{
    fail_alloc_install();
    wr_set_warn(warn, NULL);
    number *a = number_new(1), *b = number_new(2);
    every_verb(a, b, false);
    cr_assert_eq(wr_strong_count(a), 1);
    cr_assert_eq(wr_strong_count(b), 1);
    cr_assert_eq(wr_weak_count(a), 0);
    cr_assert_eq(wr_weak_count(b), 0);
    struct wr_stats stats;
    wr_stats(&stats);
    cr_assert_eq(stats.leaked, 0);
    cr_assert_eq(warnings, 0);
    wr_release(a);
    wr_release(b);
    cr_assert_eq(fail_alloc_live(), 0);
}

Test(slot, inside_a_guard_want_of_memory_leaks_what_was_replaced_and_counts_it)
{
    fail_alloc_install();
    wr_set_warn(warn, NULL);
    number *a = number_new(1), *b = number_new(2);
    every_verb(a, b, true);
    /* store: a's; exchange: b's; compare_exchange: a's; fini: b's; weak set: a's; weak fini: b's */
    cr_assert_eq(wr_strong_count(a), 3);
    cr_assert_eq(wr_strong_count(b), 3);
    cr_assert_eq(wr_weak_count(a), 1);
    cr_assert_eq(wr_weak_count(b), 1);
    struct wr_stats stats;
    wr_stats(&stats);
    cr_assert_eq(stats.leaked, 6);
    cr_assert_eq(warnings, 1);
    for (unsigned i = 0; i < 3; i++) {
        wr_weak *weak[] = {wr_weak_of_header(wr_header_of(a)), wr_weak_of_header(wr_header_of(b))};
        wr_release(a);
        wr_release(b);
        if (i == 2) {
            wr_weak_release(weak[0]);
            wr_weak_release(weak[1]);
        }
    }
    cr_assert_eq(atomic_load(&destroyed), 2);
    cr_assert_eq(fail_alloc_live(), 0);
}

/* ---- misuse ----------------------------------------------------------------------------------------------- */

static wr_slot the_slot;
static wr_weak_slot the_weak_slot;

static void init_self(void *obj)
{
    wr_slot_init(&the_slot, obj);
}
static void store_self(void *obj)
{
    wr_slot_store(&the_slot, obj);
}
static void exchange_self(void *obj)
{
    (void)!wr_slot_exchange(&the_slot, obj);
}
static void compare_exchange_self(void *obj)
{
    wr_slot_compare_exchange(&the_slot, NULL, obj);
}
static void weak_init_self(void *obj)
{
    wr_weak_slot_init(&the_weak_slot, obj);
}
static void weak_set_self(void *obj)
{
    wr_weak_slot_set(&the_weak_slot, obj);
}

struct dying {
    void (*destroy)(void *obj);
    uint32_t flags;
};

static void die_with(void *ctx)
{
    struct dying *d = ctx;
    wr_type type = {.name = "dying", .size = 8, .destroy = d->destroy, .flags = d->flags};
    wr_release(wr_new(&type));
    if (d->flags)
        wr_barrier();
}

Test(slot, storing_the_dying_object_panics)
{
    const struct {
        void (*destroy)(void *obj);
        const char *call;
    } verbs[] = {
        {init_self, "wr_slot_init"},           {store_self, "wr_slot_store"},
        {exchange_self, "wr_slot_exchange"},   {compare_exchange_self, "wr_slot_compare_exchange"},
        {weak_init_self, "wr_weak_slot_init"}, {weak_set_self, "wr_weak_slot_set"},
    };
    for (unsigned i = 0; i < sizeof verbs / sizeof *verbs; i++)
        for (uint32_t flags = 0; flags <= WR_TYPE_DEFERRED; flags++) {
            char pattern[128];
            snprintf(pattern, sizeof pattern, PANIC("%s", "dying", "it is being destroyed and cannot be stored"),
                     verbs[i].call);
            struct dying d = {verbs[i].destroy, flags};
            expect_panic(die_with, &d, pattern);
        }
}

/* ---- threads ---------------------------------------------------------------------------------------------- */

static struct {
    wr_slot slot;
    wr_weak_slot weak;
    atomic_uint bad, loads, stop;
} busy;

static void look_at(const number *n)
{
    if (n != NULL && n->value + n->twin != 0)
        atomic_fetch_add_explicit(&busy.bad, 1, memory_order_relaxed);
}

static void *reader_main(void *unused)
{
    while (!atomic_load_explicit(&busy.stop, memory_order_relaxed)) {
        number *n = wr_slot_load(&busy.slot);
        look_at(n);
        wr_release(n);
        WR_GUARD {
            look_at(wr_slot_peek(&busy.slot));
        }
        n = wr_weak_slot_get(&busy.weak);
        look_at(n);
        wr_release(n);
        atomic_fetch_add_explicit(&busy.loads, 1, memory_order_relaxed);
    }
    return unused;
}

static void *writer_main(void *arg)
{
    int base = *(int *)arg;
    for (int i = 0; i < 500; i++) {
        number *n = wr_new(i % 2 ? &number_type : &deferred_type);
        n->value = base + i;
        n->twin = -n->value;
        switch (i % 3) {
        case 0:
            wr_slot_store(&busy.slot, n);
            break;
        case 1: {
            number *former = wr_slot_exchange(&busy.slot, n);
            look_at(former);
            wr_release(former);
            break;
        }
        default: {
            number *seen = wr_slot_load(&busy.slot);
            wr_slot_compare_exchange(&busy.slot, seen, n);
            wr_release(seen);
        }
        }
        wr_weak_slot_set(&busy.weak, n);
        wr_release(n);
    }
    return NULL;
}

Test(slot, readers_and_writers_at_once_see_whole_objects_and_lose_none)
{
    enum { READERS = 3, WRITERS = 3 };
    pthread_t readers[READERS], writers[WRITERS];
    int bases[WRITERS];
    for (unsigned i = 0; i < READERS; i++)
        cr_assert_eq(pthread_create(&readers[i], NULL, reader_main, NULL), 0);
    for (int i = 0; i < WRITERS; i++) {
        bases[i] = i * 1000;
        cr_assert_eq(pthread_create(&writers[i], NULL, writer_main, &bases[i]), 0);
    }
    for (unsigned i = 0; i < WRITERS; i++)
        cr_assert_eq(pthread_join(writers[i], NULL), 0);
    wr_slot_fini(&busy.slot); /* with readers still there */
    wr_weak_slot_fini(&busy.weak);
    unsigned loads = atomic_load(&busy.loads);
    await(atomic_load(&busy.loads) > loads + 100);
    atomic_store(&busy.stop, 1);
    for (unsigned i = 0; i < READERS; i++)
        cr_assert_eq(pthread_join(readers[i], NULL), 0);
    cr_assert_eq(atomic_load(&busy.bad), 0);
    cr_assert_eq(wr_barrier(), 0);
    cr_assert_eq(atomic_load(&destroyed), WRITERS * 500);
}

static struct {
    wr_slot slot;
    number *a, *b;
    bool won[2];
} duel;

static void duel_prepare(void *ctx)
{
    (void)ctx;
    duel.a = number_new(1);
    duel.b = number_new(2);
    wr_slot_init(&duel.slot, NULL);
}

static void duel_a(void *ctx)
{
    (void)ctx;
    duel.won[0] = wr_slot_compare_exchange(&duel.slot, NULL, duel.a);
}

static void duel_b(void *ctx)
{
    (void)ctx;
    duel.won[1] = wr_slot_compare_exchange(&duel.slot, NULL, duel.b);
}

static unsigned duel_judge(void *ctx)
{
    (void)ctx;
    cr_assert_neq(duel.won[0], duel.won[1], "exactly one");
    cr_assert_eq(wr_slot_load(&duel.slot), duel.won[0] ? duel.a : duel.b);
    wr_release(duel.won[0] ? duel.a : duel.b);
    cr_assert_eq(wr_strong_count(duel.a), duel.won[0] ? 2 : 1);
    cr_assert_eq(wr_strong_count(duel.b), duel.won[1] ? 2 : 1);
    wr_release(duel.a);
    wr_release(duel.b);
    wr_slot_fini(&duel.slot);
    return duel.won[1];
}

Test(slot, two_compare_exchanges_race_and_one_wins)
{
    const struct race race = {
        .name = "compare_exchange twice",
        .prepare = duel_prepare,
        .sides = {duel_a, duel_b},
        .judge = duel_judge,
        .outcomes = {"first", "second"},
        .rounds = RACE_SIZE(3000, 1000),
        .seconds = 30,
    };
    cr_assert(race_run(&race));
    cr_assert_eq(wr_barrier(), 0);
}
