/* The three programs that introduce weak references in Python, in C. */
#include "tutorial.h"

#include "text.h"

#include <weakref/weakref.h>

#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Prints a statement as an interpreter's prompt would, and runs it. */
#define STEP(...)                      \
    do {                               \
        puts(">>> " #__VA_ARGS__ ";"); \
        __VA_ARGS__;                   \
    } while (0)

/* ---- what all three use: an object with a name --------------------------------------------------------- */

struct thing {
    char name[16];
};

static void thing_destroy(void *obj)
{
    const struct thing *thing = obj;
    printf("(destroying '%s')\n", thing->name);
}

static int thing_describe(const void *obj, char *buf, size_t size)
{
    const struct thing *thing = obj;
    return snprintf(buf, size, "<thing '%s' at %p>", thing->name, obj);
}

static const wr_type thing_type = {
    .name = "thing",
    .size = sizeof(struct thing),
    .destroy = thing_destroy,
    .describe = thing_describe,
};

static struct thing *new_thing(const char *name)
{
    struct thing *thing = need(wr_new(&thing_type));
    snprintf(thing->name, sizeof thing->name, "%s", name);
    return thing;
}

static void show(struct thing *thing)
{
    char text[80];
    wr_describe(thing, text, sizeof text);
    printf("%s, strong count %zu\n", text, wr_strong_count(thing));
}

static void show_weak(const wr_weak *weak)
{
    char text[80];
    wr_weak_describe(weak, text, sizeof text);
    puts(text);
}

/* ---- 1 ------------------------------------------------------------------------------------------------- */

static void farewell(wr_weak *dead, void *ctx)
{
    printf("callback '%s': ", (const char *)ctx);
    show_weak(dead);
}

static void upgrade_and_show(wr_weak *weak)
{
    struct thing *thing = wr_upgrade(weak);
    if (thing == NULL) {
        puts("NULL");
        return;
    }
    puts(thing->name);
    wr_release(thing);
}

static int print_name(void *obj, void *ctx)
{
    (void)ctx;
    const struct thing *thing = obj;
    puts(thing->name);
    return 0;
}

static void ask_name(wr_proxy *proxy)
{
    int status = wr_proxy_call(proxy, print_name, NULL);
    if (status != 0)
        printf("%d: %s\n", status, strerror(-status));
}

static void show_pending(wr_queue *queue)
{
    struct wr_queue_stats stats;
    wr_queue_stats(queue, &stats);
    printf("%s waiting\n", count_of(stats.pending, "callback").text);
}

static void references(void)
{
    puts("1. Two references, a callback and a proxy\n");
    wr_queue *queue = need(wr_queue_new("tutorial"));
    struct thing *a, *b;
    wr_weak *r1, *r2;
    wr_proxy *proxy;

    STEP(a = new_thing("cat"));
    STEP(b = wr_retain(a));
    STEP(show(a));
    STEP(r1 = wr_downgrade(a));
    STEP(r2 = wr_downgrade(a));
    STEP(show_weak(r1));
    STEP(puts(r1 == r2 ? "the same" : "different"));
    STEP(proxy = need(wr_proxy_new(a)));
    STEP(ask_name(proxy));
    STEP(need_done(wr_on_death(a, queue, farewell, "the cat has gone")));

    puts("\nOne owner lets go, the other still holds it.");
    STEP(wr_release(a));
    STEP(upgrade_and_show(r1));
    STEP(ask_name(proxy));

    puts("\nThe last owner lets go.");
    STEP(wr_release(b));
    STEP(show_weak(r1));
    STEP(show_weak(r2));
    STEP(upgrade_and_show(r1));
    STEP(ask_name(proxy));
    STEP(show_pending(queue));
    STEP(wr_queue_drain(queue, SIZE_MAX));

    wr_weak_release(r1);
    wr_weak_release(r2);
    wr_proxy_release(proxy);
    wr_queue_free(queue);
}

/* ---- 2 ------------------------------------------------------------------------------------------------- */

enum { N_THINGS = 3 };
static const char *const names[N_THINGS] = {"one", "two", "three"};

/* A map from name to thing, in one of two kinds: only `strong` or only `weak` is used. */
struct cache {
    struct thing *strong[N_THINGS]; /* by place in `names`; owned */
    wr_value_dict *weak;
};

static void cache_put(struct cache *cache, int i, struct thing *thing)
{
    if (cache->weak == NULL)
        cache->strong[i] = wr_retain(thing);
    else
        need_done(wr_value_dict_set_str(cache->weak, names[i], thing));
}

/* [owned] or NULL */
static struct thing *cache_get(struct cache *cache, int i)
{
    if (cache->weak != NULL)
        return wr_value_dict_get_str(cache->weak, names[i]);
    return cache->strong[i] == NULL ? NULL : wr_retain(cache->strong[i]);
}

static void cache_show(struct cache *cache)
{
    bool empty = true;
    for (int i = 0; i < N_THINGS; i++) {
        struct thing *thing = cache_get(cache, i);
        if (thing == NULL)
            continue;
        char text[80];
        wr_describe(thing, text, sizeof text);
        printf("    %-5s  %s\n", names[i], text);
        wr_release(thing);
        empty = false;
    }
    if (empty)
        puts("    nothing");
}

static void cache_free(struct cache *cache)
{
    for (int i = 0; i < N_THINGS; i++)
        wr_release(cache->strong[i]);
    wr_value_dict_free(cache->weak);
}

static void show_cache_kind(const char *kind, struct cache *cache)
{
    printf("Cache: %s\n", kind);
    struct thing *owner[N_THINGS];
    for (int i = 0; i < N_THINGS; i++) {
        owner[i] = new_thing(names[i]);
        cache_put(cache, i, owner[i]);
    }
    puts("  before, it has");
    cache_show(cache);
    puts("  the owner lets go of all three");
    for (int i = 0; i < N_THINGS; i++)
        wr_release(owner[i]);
    puts("  after, it has");
    cache_show(cache);
    puts("  the cache is freed");
    cache_free(cache);
}

static void caches(void)
{
    puts("\n2. One cache, twice\n");
    struct cache strong = {.weak = NULL};
    show_cache_kind("a plain map, holding its values strongly", &strong);
    putchar('\n');
    struct cache weak = {.weak = need(wr_value_dict_new(NULL))};
    show_cache_kind("a weak-value dictionary", &weak);
}

/* ---- 3 ------------------------------------------------------------------------------------------------- */

static wr_weak_slot latest; /* what the factory made last, as long as somebody keeps it */

static struct thing *make(const char *name)
{
    struct thing *thing = new_thing(name);
    wr_weak_slot_set(&latest, thing);
    return thing;
}

static void show_latest(void)
{
    struct thing *thing = wr_weak_slot_get(&latest);
    if (thing == NULL) {
        puts("dead");
        return;
    }
    /* One of them is ours, to look. */
    printf("'%s' lives, strong count %zu\n", thing->name, wr_strong_count(thing) - 1);
    wr_release(thing);
}

static void factory(void)
{
    puts("\n3. What a factory returns lives as long as somebody keeps it\n");
    struct thing *mine, *yours;

    STEP(wr_release(make("nobody's")));
    STEP(show_latest());

    putchar('\n');
    STEP(mine = make("somebody's"));
    STEP(show_latest());
    STEP(yours = wr_retain(mine));
    STEP(show_latest());
    STEP(wr_release(mine));
    STEP(show_latest());
    STEP(wr_release(yours));
    STEP(show_latest());

    wr_weak_slot_fini(&latest);
}

void tutorial_run(void)
{
    references();
    caches();
    factory();
}
