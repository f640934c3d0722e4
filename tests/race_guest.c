/* Races of guests: an object's only entry stands in its meta word, while verbs take it off, second watchers make it one of a
 * list, the object dies, and others ask for its type. */
#include <weakref/guard.h>
#include <weakref/value_dict.h>
#include <weakref/watch.h>

#include "deaths.h"
#include "fail_alloc.h"
#include "object.h"
#include "race.h"

enum { TAG_SIDE = 1, TAG_GUEST = 4, TAGS = 7 };

static struct {
    wr_value_dict *one, *two;
    wr_queue *queue;
    thing *thing;
    wr_weak *weak;
    int answer;
    bool upgraded, guest_first;
} now;

static unsigned tag_of(const void *obj)
{
    return (unsigned)(wr_atomic_load_relaxed(&wr_header_of(obj)->meta) & TAGS);
}

/* In one dictionary, as a guest; @now.weak keeps the header. */
static void prepare(void *ctx)
{
    (void)ctx;
    now.thing = thing_new(1);
    now.weak = wr_downgrade(now.thing);
    now.answer = -1;
    RACE_CHECK(wr_value_dict_set_u64(now.one, 1, now.thing) == 0);
    RACE_CHECK(tag_of(now.thing) == TAG_GUEST);
}

static void prepare_none(void *ctx)
{
    (void)ctx;
    now.thing = thing_new(1);
    now.weak = wr_downgrade(now.thing);
}

static void take_off(void *ctx)
{
    (void)ctx;
    now.answer = wr_value_dict_remove_u64(now.one, 1);
}

static void set_one(void *ctx)
{
    (void)ctx;
    RACE_CHECK(wr_value_dict_set_u64(now.one, 1, now.thing) == 0);
}

static void set_two(void *ctx)
{
    (void)ctx;
    RACE_CHECK(wr_value_dict_set_u64(now.two, 2, now.thing) == 0);
}

static void watch(void *ctx)
{
    (void)ctx;
    RACE_CHECK(wr_on_death(now.thing, now.queue, log_callback, NULL) == 0);
}

static void ask(void *ctx)
{
    (void)ctx;
    for (unsigned i = 0; i < 8; i++)
        RACE_CHECK(wr_type_of(now.thing) == &thing_type);
}

static void release(void *ctx)
{
    (void)ctx;
    wr_release(now.thing);
}

/* The last one dies with whoever lets go last. */
static void set_two_if_alive(void *ctx)
{
    (void)ctx;
    void *obj = wr_upgrade(now.weak);
    now.upgraded = obj != NULL;
    if (obj != NULL) {
        RACE_CHECK(wr_value_dict_set_u64(now.two, 2, obj) == 0);
        wr_release(obj);
    }
}

/* All is gone with the object: no entry that nobody takes out, no weak count too many or too few. */
static void settle(bool held)
{
    if (held)
        wr_release(now.thing);
    RACE_CHECK(wr_value_dict_len(now.one) == 0 && wr_value_dict_len(now.two) == 0);
    (void)wr_queue_drain(now.queue, SIZE_MAX);
    wr_weak_release(now.weak);
}

static unsigned judge_second(void *ctx)
{
    (void)ctx;
    unsigned tag = tag_of(now.thing);
    RACE_CHECK(now.answer == 0 && wr_value_dict_len(now.one) == 0 && wr_value_dict_len(now.two) == 1);
    RACE_CHECK(tag == TAG_SIDE || tag == TAG_GUEST);
    settle(true);
    return tag == TAG_SIDE ? 0 : 1;
}

static unsigned judge_watch(void *ctx)
{
    (void)ctx;
    unsigned tag = tag_of(now.thing);
    RACE_CHECK(now.answer == 0);
    settle(true);
    return tag == TAG_SIDE ? 0 : 1;
}

static unsigned judge_both(void *ctx)
{
    (void)ctx;
    RACE_CHECK(tag_of(now.thing) == TAG_SIDE);
    RACE_CHECK(wr_value_dict_len(now.one) == 1 && wr_value_dict_len(now.two) == 1);
    void *one = wr_value_dict_get_u64(now.one, 1), *two = wr_value_dict_get_u64(now.two, 2);
    RACE_CHECK(one == now.thing && two == now.thing);
    wr_release(one);
    wr_release(two);
    settle(true);
    return 0;
}

static unsigned judge_death(void *ctx)
{
    (void)ctx;
    bool removed = now.answer == 0;
    RACE_CHECK(wr_weak_is_dead(now.weak));
    settle(false);
    return removed ? 0 : 1;
}

static unsigned judge_upgraded(void *ctx)
{
    (void)ctx;
    RACE_CHECK(wr_weak_is_dead(now.weak));
    settle(false);
    return now.upgraded ? 0 : 1;
}

int main(void)
{
    bool good = true;
    fail_alloc_install();
    now.one = wr_value_dict_new(NULL);
    now.two = wr_value_dict_new(NULL);
    now.queue = wr_queue_new("race");
    RACE_CHECK(now.one != NULL && now.two != NULL && now.queue != NULL);
    good &= race_run(&(struct race){
        .name = "a verb vs a second entry vs the type",
        .prepare = prepare,
        .sides = {take_off, set_two, ask},
        .judge = judge_second,
        .outcomes = {"one of a list", "alone"},
    });
    good &= race_run(&(struct race){
        .name = "a verb vs a watch",
        .prepare = prepare,
        .sides = {take_off, watch},
        .judge = judge_watch,
        .outcomes = {"one of a list", "gone before"},
    });
    good &= race_run(&(struct race){
        .name = "two first entries",
        .prepare = prepare_none,
        .sides = {set_one, set_two, ask},
        .judge = judge_both,
        .outcomes = {"both"},
    });
    good &= race_run(&(struct race){
        .name = "a verb vs death",
        .prepare = prepare,
        .sides = {take_off, release},
        .judge = judge_death,
        .outcomes = {"removed", "died"},
    });
    good &= race_run(&(struct race){
        .name = "a second entry vs death vs a verb",
        .prepare = prepare,
        .sides = {set_two_if_alive, release, take_off},
        .judge = judge_upgraded,
        .outcomes = {"upgraded", "dead"},
    });
    RACE_CHECK(wr_barrier() == 0);
    long live = fail_alloc_live();
    for (unsigned i = 0; i < 1000; i++) {
        prepare(NULL);
        take_off(NULL);
        watch(NULL);
        settle(true);
    }
    RACE_CHECK(wr_barrier() == 0);
    RACE_CHECK(fail_alloc_live() - live < 10);
    wr_value_dict_free(now.one);
    wr_value_dict_free(now.two);
    wr_queue_free(now.queue);
    RACE_CHECK(wr_barrier() == 0);
    return good ? 0 : 1;
}
