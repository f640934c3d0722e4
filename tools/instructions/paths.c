/* wr-paths: the hot paths one by one, for tools/check_instructions, which counts their instructions under callgrind.
 *
 *     wr-paths --list              the names of the paths
 *     wr-paths --surroundings      what the counts depend on: compiler, processor, C library
 *     wr-paths PATH                runs it OPERATIONS times, and prints how many that was
 *
 * Each path is a loop in a function of its own, count_PATH(): callgrind counts inside it and nowhere else, and only the
 * thread that runs it. The loop's own few instructions are counted with it.
 */
#include <gnu/libc-version.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/types.h>
#include <weakref/weakref.h>

enum {
    OPERATIONS = 20480,
    N_KEYS = 1024,
    KEY_SIZE = 23,
    BATCH = 64 /* callbacks at once */
};

struct fixture {
    void *obj;
    wr_weak *weak;
    wr_slot slot;
    wr_queue *queue;
    wr_value_dict *dict, *cache;
    void *values[N_KEYS];
    char keys[N_KEYS][KEY_SIZE];
};

/* Instead of the kernel's: keys of hashes that are the same in each run, and so chains of the same lengths. */
ssize_t getrandom(void *buffer, size_t size, unsigned flags);
ssize_t getrandom(void *buffer, size_t size, unsigned flags)
{
    static unsigned char next = 1;
    (void)flags;
    for (size_t i = 0; i < size; i++, next = (unsigned char)(next * 5 + 77))
        ((unsigned char *)buffer)[i] = next;
    return (ssize_t)size;
}

static _Noreturn void die(const char *what)
{
    fprintf(stderr, "wr-paths: %s\n", what);
    exit(2);
}

/* The compiler has to make @pointer. */
static inline void keep(const void *pointer)
{
    __asm__ volatile("" : : "r"(pointer));
}

static void callback(wr_weak *dead, void *ctx)
{
    (void)dead;
    (void)ctx;
}

/* ---- what is counted -------------------------------------------------------------------------------- */

#define PATH(name)                                                                         \
    static inline __attribute__((always_inline)) void name(struct fixture *f, unsigned i); \
    void count_##name(struct fixture *f);                                                  \
    __attribute__((noinline)) void count_##name(struct fixture *f)                         \
    {                                                                                      \
        for (unsigned i = 0; i < OPERATIONS; i++)                                          \
            name(f, i);                                                                    \
    }                                                                                      \
    static inline void name(struct fixture *f, unsigned i)

PATH(retain)
{
    (void)i;
    keep(wr_retain(f->obj));
}

/* What retain_all() added. */
PATH(release)
{
    (void)i;
    wr_release(f->obj);
}

PATH(upgrade)
{
    (void)i;
    keep(wr_upgrade(f->weak));
}

/* What weak_retain_all() added. */
PATH(weak_release)
{
    (void)i;
    wr_weak_release(f->weak);
}

PATH(guard)
{
    (void)f, (void)i;
    wr_guard_enter();
    wr_guard_exit();
}

/* In one guard for all. */
PATH(peek)
{
    (void)i;
    keep(wr_peek(f->weak));
}

PATH(slot_load)
{
    (void)i;
    void *obj = wr_slot_load(&f->slot);
    keep(obj);
    wr_release(obj);
}

PATH(dict_get)
{
    void *obj = wr_value_dict_get(f->dict, f->keys[i % N_KEYS], KEY_SIZE);
    keep(obj);
    wr_release(obj);
}

PATH(dict_peek)
{
    wr_guard_enter();
    keep(wr_value_dict_peek(f->dict, f->keys[i % N_KEYS], KEY_SIZE));
    wr_guard_exit();
}

PATH(watch_cancel)
{
    (void)i;
    wr_watch *watch = wr_watch_new(f->obj, f->queue, callback, f);
    wr_watch_cancel(watch);
    wr_watch_release(watch);
}

static const wr_type plain = {.name = "plain", .size = 64};

PATH(create_release)
{
    (void)f, (void)i;
    wr_release(wr_new(&plain));
}

/* Made, watched, released, called back on the same thread. */
PATH(callback_life)
{
    void *obj = wr_new(&plain);
    wr_on_death(obj, f->queue, callback, f);
    wr_release(obj);
    if (i % BATCH == BATCH - 1)
        wr_queue_drain(f->queue, BATCH);
}

/* Into a dictionary, looked up, gone with its last reference. */
PATH(cache_life)
{
    const char *key = f->keys[i % N_KEYS];
    void *obj = wr_new(&plain);
    wr_value_dict_set(f->cache, key, KEY_SIZE, obj);
    wr_release(wr_value_dict_get(f->cache, key, KEY_SIZE));
    wr_release(obj);
}

/* ---- what they need ----------------------------------------------------------------------------------- */

static void retain_all(struct fixture *f)
{
    for (unsigned i = 0; i < OPERATIONS; i++)
        wr_retain(f->obj);
}

static void release_all(struct fixture *f)
{
    for (unsigned i = 0; i < OPERATIONS; i++)
        wr_release(f->obj);
}

static void weak_retain_all(struct fixture *f)
{
    for (unsigned i = 0; i < OPERATIONS; i++)
        wr_weak_retain(f->weak);
}

static void enter(struct fixture *f)
{
    (void)f;
    wr_guard_enter();
}

static void leave(struct fixture *f)
{
    (void)f;
    wr_guard_exit();
}

#define ENTRY(name, before, after)             \
    {                                          \
#name, count_##name, (before), (after) \
    }

static const struct path {
    const char *name;
    void (*count)(struct fixture *f);
    void (*before)(struct fixture *f); /* or NULL */
    void (*after)(struct fixture *f);  /* or NULL */
} paths[] = {
    ENTRY(retain, NULL, release_all),  ENTRY(release, retain_all, NULL),
    ENTRY(upgrade, NULL, release_all), ENTRY(weak_release, weak_retain_all, NULL),
    ENTRY(guard, NULL, NULL),          ENTRY(peek, enter, leave),
    ENTRY(slot_load, NULL, NULL),      ENTRY(dict_get, NULL, NULL),
    ENTRY(dict_peek, NULL, NULL),      ENTRY(watch_cancel, NULL, NULL),
    ENTRY(create_release, NULL, NULL), ENTRY(callback_life, NULL, NULL),
    ENTRY(cache_life, NULL, NULL),
};

/* Deferred, as what can be peeked at is. */
static void *new_obj(void)
{
    static const wr_type deferred = {.name = "deferred", .size = 64, .flags = WR_TYPE_DEFERRED};
    void *obj = wr_new(&deferred);
    if (obj == NULL)
        die("no object can be made");
    return obj;
}

static void setup(struct fixture *f)
{
    f->obj = new_obj();
    f->weak = wr_downgrade(f->obj);
    wr_slot_init(&f->slot, f->obj);
    f->queue = wr_queue_new("paths");
    f->dict = wr_value_dict_new(NULL);
    const struct wr_value_dict_options roomy = {.struct_size = sizeof roomy, .initial_size = N_KEYS};
    f->cache = wr_value_dict_new(&roomy);
    if (f->queue == NULL || f->dict == NULL || f->cache == NULL)
        die("no queue or dictionary can be made");
    for (unsigned i = 0; i < N_KEYS; i++) {
        char key[KEY_SIZE + 1];
        snprintf(key, sizeof key, "user-%08x-%09u", i * 2654435761u, i);
        memcpy(f->keys[i], key, KEY_SIZE);
        f->values[i] = new_obj();
        if (wr_value_dict_set(f->dict, key, KEY_SIZE, f->values[i]) != 0)
            die("no entry can be made");
    }
}

static void teardown(struct fixture *f)
{
    for (unsigned i = 0; i < N_KEYS; i++)
        wr_release(f->values[i]);
    wr_value_dict_free(f->dict);
    wr_value_dict_free(f->cache);
    wr_queue_free(f->queue);
    wr_slot_fini(&f->slot);
    wr_weak_release(f->weak);
    wr_release(f->obj);
}

/* Else guards take fences, which is not what most users run. */
static bool has_membarrier(void)
{
    struct wr_stats stats;
    wr_stats(&stats);
    return stats.membarrier != 0;
}

static void print_surroundings(void)
{
#ifdef __clang__
    printf("clang %d, ", __clang_major__);
#elif defined(__GNUC__)
    printf("gcc %d, ", __GNUC__);
#endif
#ifdef __x86_64__
    printf("x86_64, ");
#else
    printf("another processor, ");
#endif
    printf("glibc %s%s", gnu_get_libc_version(), has_membarrier() ? "" : ", no membarrier(2)");
#ifdef __OPTIMIZE__
    puts("");
#else
    puts(", not optimised");
#endif
}

int main(int argc, char **argv)
{
    const struct path *path = NULL;
    for (size_t i = 0; argc == 2 && i < sizeof paths / sizeof paths[0]; i++) {
        if (strcmp(argv[1], "--list") == 0)
            puts(paths[i].name);
        else if (strcmp(argv[1], paths[i].name) == 0)
            path = &paths[i];
    }
    if (argc == 2 && strcmp(argv[1], "--list") == 0)
        return 0;
    if (argc == 2 && strcmp(argv[1], "--surroundings") == 0) {
        print_surroundings();
        return 0;
    }
    if (path == NULL)
        die("usage: wr-paths --list | --surroundings | PATH");

    static struct fixture f;
    if (!has_membarrier())
        die("membarrier(2) is refused here: guards would be counted with fences");
    setup(&f);
    if (path->before != NULL)
        path->before(&f);
    path->count(&f);
    if (path->after != NULL)
        path->after(&f);
    teardown(&f);
    printf("%d\n", OPERATIONS);
    return 0;
}
