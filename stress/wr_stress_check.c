/* wr-stress: the laws, checked at the end of each round, when all workers stand still.
 *
 * First everything is taken out of the shared places, but for some survivors, and all that was deferred or pending is
 * run until nothing moves. Then
 *   1. each survivor's counts are what its holders add up to; nothing else is alive;
 *   2. each other object with a destroy was destroyed once;
 *   3. each watch is armed on a survivor, or was delivered or cancelled once; the queues' figures say the same;
 *   4. the dictionaries' len is what they hold.
 * Then the survivors go, and all of it must hold with nothing left, and the library's memory must be back.
 * The modes with things of their own are looked at before (struct part: quiet) and after (verify).
 */
#include "wr_stress.h"

#include <malloc.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { SETTLE_SECONDS = 120 };

/* The objects reachable from the survivors. */
static void **found;         /* by number */
static unsigned *holders;    /* by number */
static unsigned char *alive; /* by number */
static uint32_t *list;       /* numbers */
static unsigned n_list;

void check_start(void)
{
    size_t n = objects_left();
    found = calloc(n, sizeof *found);
    holders = calloc(n, sizeof *holders);
    alive = calloc(n, sizeof *alive);
    list = calloc(n, sizeof *list);
    CHECK(found != NULL && holders != NULL && alive != NULL && list != NULL);
}

void check_stop(void)
{
    free(found);
    free(holders);
    free(alive);
    free(list);
}

static uint64_t deferred_now(void)
{
    struct wr_stats stats;
    wr_stats(&stats);
    if (stats.saturated != 0 || stats.leaked != 0)
        violation("wr_stats: %llu counts saturated, %llu references leaked", (unsigned long long)stats.saturated,
                  (unsigned long long)stats.leaked);
    return stats.deferred;
}

/* Runs what is deferred and pending until nothing moves. @quiet: nothing may be alive then. */
static void settle(bool quiet)
{
    time_t limit = time(NULL) + SETTLE_SECONDS;
    for (;;) {
        uint64_t before = count_sum(COUNT_destroyed) + count_sum(COUNT_delivered) + watches_made();
        watchdog_kick("settling");
        bool moved = shared_empty();
        CHECK(wr_barrier() == 0);
        moved = wr_queue_drain(queues[Q_HAND], SIZE_MAX) > 0 || moved;
        for (unsigned i = 0; i < N_PARTS; i++)
            moved = (part_used(i) && parts[i]->settle()) || moved;
        CHECK(wr_queue_barrier(queues[Q_DEFAULT]) == 0);
        CHECK(wr_queue_barrier(queues[Q_POOL]) == 0);
        CHECK(wr_barrier() == 0);
        uint64_t after = count_sum(COUNT_destroyed) + count_sum(COUNT_delivered) + watches_made();
        if (!moved && before == after && deferred_now() == 0 && queues_verify(quiet))
            return;
        if (time(NULL) > limit) {
            struct wr_queue_stats s[N_QUEUES];
            for (unsigned q = 0; q < N_QUEUES; q++)
                wr_queue_stats(queues[q], &s[q]);
            violation("does not come to rest: deferred %llu; armed %llu %llu %llu %llu; pending %llu %llu %llu",
                      (unsigned long long)deferred_now(), (unsigned long long)s[0].armed,
                      (unsigned long long)s[1].armed, (unsigned long long)s[2].armed, (unsigned long long)s[3].armed,
                      (unsigned long long)s[0].pending, (unsigned long long)s[1].pending,
                      (unsigned long long)s[2].pending);
        }
    }
}

static void find(void *obj)
{
    if (obj == NULL)
        return;
    uint32_t number = object_check(obj)->number;
    holders[number]++;
    if (!alive[number]) {
        alive[number] = 1;
        found[number] = obj;
        list[n_list++] = number;
    }
}

static bool is_armed(struct watch *w)
{
    return atomic_load(&w->ran) + atomic_load(&w->cancelled) == 0;
}

static void check_survivors(void)
{
    unsigned n = watches_made();
    for (unsigned i = 0; i < N_SURVIVORS; i++)
        find(atomic_load(&shared.survivors[i]));
    for (unsigned i = 0; i < n; i++)
        if (is_armed(watch_at(i)))
            find(watch_at(i)->payload);
    for (unsigned i = 0; i < n_list; i++) {
        struct node *node = object_check(found[list[i]]);
        if (!kind_has_links((enum kind)node->kind))
            continue;
        find(node->child);
        WR_GUARD {
            find(wr_slot_peek(&node->link));
        }
    }
    for (unsigned i = 0; i < n_list; i++) {
        void *obj = found[list[i]];
        if (wr_strong_count(obj) != holders[list[i]] || wr_weak_count(obj) != 0)
            violation("object number %u: strong count %zu, held %u times; weak count %zu, no handle left",
                      (unsigned)list[i], wr_strong_count(obj), holders[list[i]], wr_weak_count(obj));
    }
    for (unsigned i = 0; i < n; i++)
        if (is_armed(watch_at(i)) && !alive[watch_at(i)->object])
            violation("watch %u was neither delivered nor cancelled, and its object %u is not alive", i,
                      (unsigned)watch_at(i)->object);
}

static void forget_survivors(void)
{
    for (unsigned i = 0; i < n_list; i++) {
        holders[list[i]] = 0;
        alive[list[i]] = 0;
        found[list[i]] = NULL;
    }
    n_list = 0;
}

/* Counts, to the one, of an object that nobody else knows. */
static void check_counts(void)
{
    void *obj = object_new(PLAIN, NO_KEY, NULL);
    if (obj == NULL)
        return;
    wr_weak *weak = wr_downgrade(obj);
    wr_weak_slot slot;
    wr_weak_slot_init(&slot, obj);
    void *same = wr_upgrade(weak), *got = wr_weak_slot_get(&slot);
    CHECK(same == obj && got == obj);
    CHECK(wr_strong_count(obj) == 3 && wr_weak_count(obj) == 2);
    wr_release(got);
    wr_release(same);
    CHECK(wr_strong_count(obj) == 1 && wr_weak_count(obj) == 2);
    wr_release(obj);
    CHECK(wr_upgrade(weak) == NULL && wr_weak_slot_get(&slot) == NULL);
    wr_weak_slot_fini(&slot);
    wr_weak_release(weak);
}

/* The memory at the end of a round, when the library should hold only what it holds for good. It may vary by what threads
 * keep at hand, but it does not grow. Under a sanitizer the library's blocks are counted, elsewhere the bytes of all. */
static void check_memory(void)
{
    enum { ROUNDS_TO_LEARN = 4 };
    const uint64_t slack = SANITIZED ? 4096 : 8u << 20;
    static uint64_t most;
#ifdef __GLIBC__
    uint64_t used = mallinfo2().uordblks;
#else
    uint64_t used = 0;
#endif
    if (SANITIZED) {
        used = count_sum(COUNT_blocks_freed);
        used = count_sum(COUNT_blocks_taken) - used;
    }
    if (atomic_load(&round_now) <= ROUNDS_TO_LEARN)
        most = used > most ? used : most;
    else if (used > most + slack)
        violation("%llu %s in use at the end of a round; earlier %llu were enough", (unsigned long long)used,
                  SANITIZED ? "blocks" : "bytes", (unsigned long long)most);
    if (getenv("WR_STRESS_MEMORY") != NULL)
        fprintf(stderr, "%llu\n", (unsigned long long)used);
}

void check_round(void)
{
    for (unsigned i = 0; i < N_PARTS; i++)
        if (part_used(i)) {
            watchdog_kick("things that stand still");
            parts[i]->quiet();
        }
    settle(false);
    check_survivors();
    objects_verify(alive);
    watches_verify(false);
    dict_verify(n_list);
    forget_survivors();

    shared_release_survivors();
    check_counts();
    settle(true);
    objects_verify(alive);
    watches_verify(true);
    dict_verify(0);
    for (unsigned i = 0; i < N_PARTS; i++)
        if (part_used(i))
            parts[i]->verify();
    CHECK(deferred_now() == 0);
    check_memory();
    watchdog_kick("starting a round");
}
