/* Tests of objects: making, counting, dying, and the watchers that hear of it. */
#include "expect.h"
#include "fail_alloc.h"
#include "object.h"
#include "race.h"

#include <stdalign.h>

#include <weakref/debug.h>
#include <weakref/slot.h>
#include <weakref/weak.h>

/* ---- a log of what happened, in order --------------------------------------------------------------------- */

static char events[4096];

static void note(const char *what)
{
    strcat(events, what);
    strcat(events, " ");
}

typedef struct named {
    char name[16];
    void *children[4]; /* released by destroy, in order */
} named;

static void named_destroy(void *obj)
{
    named *n = obj;
    note(n->name);
    for (unsigned i = 0; i < 4; i++)
        wr_release(n->children[i]);
}

static const wr_type named_type = {.name = "named", .size = sizeof(named), .destroy = named_destroy};

static named *named_new(const char *name)
{
    named *n = wr_new(&named_type);
    cr_assert_not_null(n);
    snprintf(n->name, sizeof n->name, "%s", name);
    return n;
}

static unsigned destroyed;

static void count_destroy(void *obj)
{
    (void)obj;
    destroyed++;
}

static const wr_type bare_type = {.name = "bare", .size = 24};
static const wr_type counted_type = {.name = "counted", .size = 24, .destroy = count_destroy};
static const wr_type deferred_type = {
    .name = "deferred", .size = 24, .destroy = count_destroy, .flags = WR_TYPE_DEFERRED};

/* ---- life ------------------------------------------------------------------------------------------------- */

Test(object, lives_from_new_to_the_last_release)
{
    void *obj = wr_new(&counted_type);
    cr_assert_not_null(obj);
    cr_assert_eq(wr_strong_count(obj), 1);
    cr_assert_eq(wr_weak_count(obj), 0);
    cr_assert_eq(wr_retain(obj), obj);
    cr_assert_eq(wr_strong_count(obj), 2);
    wr_release(obj);
    cr_assert_eq(destroyed, 0);
    cr_assert_eq(wr_strong_count(obj), 1);
    wr_release(obj);
    cr_assert_eq(destroyed, 1);
}

Test(object, memory_of_every_kind_of_object_comes_back)
{
    fail_alloc_install();
    const wr_type *types[] = {&bare_type, &counted_type, &deferred_type};
    for (unsigned t = 0; t < 3; t++)
        for (unsigned sized = 0; sized < 2; sized++)
            for (unsigned handles = 0; handles < 3; handles++) {
                void *obj = sized ? wr_new_sized(types[t], 100) : wr_new(types[t]);
                wr_weak *weak = NULL;
                for (unsigned i = 0; i < handles; i++)
                    weak = wr_downgrade(obj);
                wr_release(obj);
                cr_assert_eq(wr_barrier(), 0);
                cr_assert_eq(fail_alloc_live(), handles ? 1 : 0, "the header stays as long as a handle");
                for (unsigned i = 0; i < handles; i++)
                    wr_weak_release(weak);
                cr_assert_eq(fail_alloc_live(), 0, "type %u sized %u handles %u", t, sized, handles);
            }
}

/* ---- wr_new, wr_new_sized --------------------------------------------------------------------------------- */

static unsigned char *fill_from, *fill_to;

static void filled_destroy(void *obj)
{
    cr_assert_eq(obj, fill_from);
    for (unsigned char *p = fill_from; p < fill_to; p++)
        cr_assert_eq(*p, 0xa5, "byte %td of the payload was overwritten", p - fill_from);
    destroyed++;
}

Test(object, payload_is_zeroed_aligned_and_all_the_objects_own)
{
    const size_t aligns[] = {0, 1, 2, 4, 8, 16, 32, 64, 128, 4096, 65536};
    const size_t sizes[] = {0, 1, 2, 7, 8, 9, 15, 16, 17, 31, 64, 1000, 1024, 1025, 4096, 100001};
    unsigned made = 0;
    for (size_t a = 0; a < sizeof aligns / sizeof *aligns; a++)
        for (size_t s = 0; s < sizeof sizes / sizeof *sizes; s++)
            for (unsigned kind = 0; kind < 8; kind++) {
                wr_type type = {.name = "filled", .size = kind & 1 ? 3 : sizes[s], .align = aligns[a]};
                type.destroy = kind & 2 ? filled_destroy : NULL;
                type.flags = kind & 4 ? WR_TYPE_DEFERRED : 0;
                unsigned char *p = kind & 1 ? wr_new_sized(&type, sizes[s]) : wr_new(&type);
                cr_assert_not_null(p, "align %zu size %zu kind %u", aligns[a], sizes[s], kind);
                size_t align = aligns[a] > alignof(max_align_t) ? aligns[a] : alignof(max_align_t);
                cr_assert_eq((uintptr_t)p % align, 0, "align %zu size %zu kind %u: %p", aligns[a], sizes[s], kind,
                             (void *)p);
                for (size_t i = 0; i < sizes[s]; i++)
                    cr_assert_eq(p[i], 0, "byte %zu of %zu is not zero", i, sizes[s]);
                memset(p, 0xa5, sizes[s]);
                fill_from = p;
                fill_to = p + sizes[s];
                cr_assert_eq(wr_strong_count(p), 1);
                cr_assert_eq(wr_type_of(p), &type);
                wr_release(p);
                if (kind & 4)
                    cr_assert_eq(wr_barrier(), 0);
                made += (kind & 2) != 0;
                cr_assert_eq(destroyed, made);
            }
}

Test(object, payload_is_zeroed_again_after_use)
{
    for (size_t size = 1; size < 5000; size += 61)
        for (unsigned i = 0; i < 4; i++) {
            wr_type type = {.size = size, .align = i & 1 ? 64 : 0, .destroy = i & 2 ? count_destroy : NULL};
            unsigned char *p = wr_new(&type);
            for (size_t at = 0; at < size; at++)
                cr_assert_eq(p[at], 0);
            memset(p, 0xff, size);
            wr_release(p);
        }
}

Test(object, sized_objects_that_die_in_a_queue_keep_their_size)
{
    /* The hidden link stands behind the payload, wherever that ends. */
    named *head = named_new("head");
    for (unsigned i = 0; i < 4; i++) {
        named *child = wr_new_sized(&named_type, sizeof(named) + i * 1001);
        memset(child + 1, 0xff, i * 1001);
        snprintf(child->name, sizeof child->name, "%u", i);
        head->children[i] = child;
    }
    wr_release(head);
    cr_assert_str_eq(events, "head 0 1 2 3 ");
}

static void no_traverse(const void *obj, void (*visit)(void *ref, void *ctx), void *ctx)
{
    (void)obj, (void)visit, (void)ctx;
}

static uint64_t some_hash(const void *obj)
{
    return (uintptr_t)obj;
}

static bool some_equal(const void *a, const void *b)
{
    return a == b;
}

Test(object, new_refuses_types_that_are_none)
{
    const wr_type bad[] = {
        {.size = 8, .align = 3},           {.size = 8, .align = 24},
        {.size = 8, .align = SIZE_MAX},    {.size = 8, .flags = 2},
        {.size = 8, .flags = 0x80000001u}, {.size = 8, .hash = some_hash},
        {.size = 8, .equal = some_equal},  {.size = 8, .traverse = no_traverse},
    };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        errno = 0;
        cr_assert_null(wr_new(&bad[i]), "type %zu", i);
        cr_assert_eq(errno, EINVAL, "type %zu", i);
        errno = 0;
        cr_assert_null(wr_new_sized(&bad[i], 8), "type %zu", i);
        cr_assert_eq(errno, EINVAL, "type %zu", i);
    }
    errno = 0;
    cr_assert_null(wr_new(NULL));
    cr_assert_eq(errno, EINVAL);
    errno = 0;
    cr_assert_null(wr_new_sized(NULL, 8));
    cr_assert_eq(errno, EINVAL);

    const wr_type good = {.size = 8, .hash = some_hash, .equal = some_equal};
    void *obj = wr_new(&good);
    cr_assert_not_null(obj);
    wr_release(obj);
}

Test(object, sizes_that_overflow_are_enomem)
{
    const size_t huge[] = {SIZE_MAX,      SIZE_MAX - 1,     SIZE_MAX - 7,        SIZE_MAX - 8,    SIZE_MAX - 15,
                           SIZE_MAX - 16, SIZE_MAX - 31,    SIZE_MAX - 64,       SIZE_MAX - 4095, SIZE_MAX - 4096,
                           SIZE_MAX / 2,  SIZE_MAX / 2 + 1, SIZE_MAX / 2 + 4096, SIZE_MAX / 4 * 3};
    for (size_t i = 0; i < sizeof huge / sizeof *huge; i++)
        for (unsigned kind = 0; kind < 8; kind++) {
            wr_type type = {.size = huge[i], .align = kind & 1 ? 4096 : 0};
            type.destroy = kind & 2 ? count_destroy : NULL;
            type.flags = kind & 4 ? WR_TYPE_DEFERRED : 0;
            errno = 0;
            cr_assert_null(wr_new(&type), "size %zx kind %u", huge[i], kind);
            cr_assert_eq(errno, ENOMEM);
            errno = 0;
            cr_assert_null(wr_new_sized(&type, huge[i]), "size %zx kind %u", huge[i], kind);
            cr_assert_eq(errno, ENOMEM);
        }
    wr_type aligned = {.size = 8, .align = SIZE_MAX / 2 + 1};
    errno = 0;
    cr_assert_null(wr_new(&aligned));
    cr_assert_eq(errno, ENOMEM);
}

Test(object, every_allocation_of_making_failed_in_turn_is_enomem_and_changes_nothing)
{
    fail_alloc_install();
    static const wr_type aligned_type = {.name = "aligned", .size = 100, .align = 256, .destroy = count_destroy};
    const wr_type *types[] = {&bare_type, &counted_type, &deferred_type, &aligned_type};
    for (unsigned t = 0; t < 4; t++)
        for (unsigned verb = 0; verb < 3; verb++) {
            unsigned failures = 0;
            for (long n = 1;; n++) {
                fail_alloc_at(n);
                errno = 0;
                int adopted = 0;
                void *obj = verb == 0   ? wr_new(types[t])
                            : verb == 1 ? wr_new_sized(types[t], 5000)
                                        : (void *)wr_box_new(&adopted, NULL);
                if (fail_alloc_hit()) {
                    failures++;
                    cr_assert_null(obj);
                    cr_assert_eq(errno, ENOMEM);
                    cr_assert_eq(fail_alloc_live(), 0);
                    continue;
                }
                cr_assert_not_null(obj);
                wr_release(obj);
                break;
            }
            cr_assert_eq(failures, 1, "an object is one allocation");
            cr_assert_eq(wr_barrier(), 0);
            cr_assert_eq(fail_alloc_live(), 0);
        }
}

Test(object, everything_but_making_allocates_nothing)
{
    fail_alloc_install();
    named *a = named_new("a");
    a->children[0] = named_new("b");
    a->children[1] = wr_new(&bare_type);
    fail_alloc_all(true);
    wr_retain(a);
    wr_release(a);
    wr_weak *weak = wr_downgrade(a);
    wr_release(wr_upgrade(weak));
    wr_weak_release(wr_weak_retain(weak));
    char text[64];
    wr_describe(a, text, sizeof text);
    wr_weak_describe(weak, text, sizeof text);
    wr_release(a);
    wr_weak_release(weak);
    cr_assert_not(fail_alloc_hit());
    cr_assert_str_eq(events, "a b ");
    cr_assert_eq(fail_alloc_live(), 0);
}

#if !RACE_SANITIZED
static void *pause_main(void *unused)
{
    for (;;)
        pause();
    return unused;
}

static int new_without_threads(void *ctx)
{
    (void)ctx;
    /* No address space is left for a thread's stack; small blocks still come from what malloc has. */
    free(malloc(100000));
    unsigned long pages = 0;
    FILE *size = fopen("/proc/self/statm", "r");
    if (size == NULL || fscanf(size, "%lu", &pages) != 1)
        return 10;
    fclose(size);
    struct rlimit limit = {(pages + 64) * 4096, (pages + 64) * 4096};
    if (setrlimit(RLIMIT_AS, &limit) != 0)
        return 11;
    pthread_t thread;
    while (pthread_create(&thread, NULL, pause_main, NULL) == 0)
        ; /* stacks of threads that were, and are used again */
    errno = 0;
    if (wr_new(&deferred_type) != NULL)
        return 12;
    if (errno != EAGAIN)
        return 13;
    void *plain = wr_new(&counted_type);
    if (plain == NULL)
        return 14;
    wr_release_later(plain);
    if (wr_barrier() != 0 || destroyed != 1)
        return 15;
    return 0;
}

Test(object, deferred_type_without_a_reclaimer_thread_is_eagain)
{
    char text[1024];
    int status = expect_child(new_without_threads, NULL, text, sizeof text);
    cr_assert(WIFEXITED(status) && WEXITSTATUS(status) == 0, "status %#x: %s", (unsigned)status, text);
    cr_assert_str_eq(text, "weakref: warning: the reclaimer thread cannot be started\n", "one warning: %s", text);
}
#endif

/* ---- retain, release, counts ------------------------------------------------------------------------------ */

Test(object, retain_and_release_of_null)
{
    errno = 0;
    cr_assert_null(wr_retain(NULL));
    cr_assert_eq(errno, EINVAL);
    wr_release(NULL);
    cr_assert_eq(wr_strong_count(NULL), 0);
    cr_assert_eq(wr_weak_count(NULL), 0);
    errno = 0;
    cr_assert_null(wr_type_of(NULL));
    cr_assert_eq(errno, EINVAL);
}

Test(object, counts_are_exact_when_quiet)
{
    void *obj = wr_new(&counted_type);
    wr_weak *weak[100];
    for (size_t i = 0; i < 100; i++) {
        cr_assert_eq(wr_strong_count(obj), i + 1);
        cr_assert_eq(wr_weak_count(obj), i);
        wr_retain(obj);
        weak[i] = wr_downgrade(obj);
    }
    for (size_t i = 100; i-- > 0;) {
        wr_release(obj);
        wr_weak_release(weak[i]);
        cr_assert_eq(wr_strong_count(obj), i + 1);
        cr_assert_eq(wr_weak_count(obj), i);
    }
    wr_weak_slot slot;
    wr_weak_slot_init(&slot, obj);
    cr_assert_eq(wr_weak_count(obj), 1);
    wr_weak_slot_fini(&slot);
    cr_assert_eq(wr_barrier(), 0);
    cr_assert_eq(wr_weak_count(obj), 0);
    wr_release(obj);
    cr_assert_eq(destroyed, 1);
}

/* ---- death ------------------------------------------------------------------------------------------------ */

static wr_weak *made_inside, *held_outside;
static bool with_handle;

static void curious_destroy(void *obj)
{
    destroyed++;
    cr_assert_eq(wr_strong_count(obj), 0);
    cr_assert_eq(wr_weak_count(obj), with_handle ? 1 : 0);
    made_inside = wr_downgrade(obj);
    cr_assert_not_null(made_inside);
    cr_assert(wr_weak_is_dead(made_inside));
    cr_assert(wr_weak_is(made_inside, obj));
    cr_assert_eq(wr_weak_count(obj), with_handle ? 2 : 1);
    for (unsigned i = 0; i < 10; i++)
        cr_assert_null(wr_upgrade(made_inside), "no path resurrects");
    if (with_handle) {
        cr_assert_eq(made_inside, held_outside);
        cr_assert_null(wr_upgrade(held_outside));
    }
    cr_assert_eq(wr_strong_count(obj), 0, "failed upgrades leave no trace");
    cr_assert_eq(wr_type_of(obj)->destroy, curious_destroy);
    char text[64];
    cr_assert_gt(wr_describe(obj, text, sizeof text), 0);
}

Test(object, inside_destroy_the_object_is_dead_and_handles_can_still_be_made)
{
    fail_alloc_install();
    for (unsigned flags = 0; flags <= WR_TYPE_DEFERRED; flags++)
        for (unsigned handle = 0; handle < 2; handle++) {
            const wr_type type = {.name = "curious", .size = 8, .destroy = curious_destroy, .flags = flags};
            void *obj = wr_new(&type);
            destroyed = 0;
            with_handle = handle != 0;
            if (with_handle)
                held_outside = wr_downgrade(obj);
            wr_release(obj);
            cr_assert_eq(wr_barrier(), 0);
            cr_assert_eq(destroyed, 1);
            cr_assert_null(wr_upgrade(made_inside));
            cr_assert(wr_weak_is_dead(made_inside));
            char text[64], wanted[64];
            wr_weak_describe(made_inside, text, sizeof text);
            snprintf(wanted, sizeof wanted, "<weakref at %p; dead>", (void *)made_inside);
            cr_assert_str_eq(text, wanted);
            cr_assert_eq(fail_alloc_live(), 1);
            wr_weak_release(made_inside);
            if (with_handle)
                wr_weak_release(held_outside);
            cr_assert_eq(fail_alloc_live(), 0);
        }
}

Test(object, nested_deaths_follow_in_order_and_not_inside_each_other)
{
    named *a = named_new("a"), *b = named_new("b"), *c = named_new("c"), *d = named_new("d");
    a->children[0] = b;
    a->children[1] = c;
    b->children[0] = d;
    b->children[1] = wr_retain(c);
    b->children[2] = wr_new(&bare_type);
    wr_release(a);
    cr_assert_str_eq(events, "a b d c ", "%s", events);
}

static wr_weak *child_handle;

static void parent_destroy(void *obj)
{
    void **child = obj;
    wr_release(*child);
    cr_assert(wr_weak_is_dead(child_handle), "death is at the release, though its destroy waits");
    cr_assert_null(wr_upgrade(child_handle));
    note("parent");
}

Test(object, child_released_in_destroy_is_dead_at_once_and_destroyed_after)
{
    static const wr_type parent_type = {.name = "parent", .size = sizeof(void *), .destroy = parent_destroy};
    void **parent = wr_new(&parent_type);
    *parent = named_new("child");
    child_handle = wr_downgrade(*parent);
    wr_release(parent);
    cr_assert_str_eq(events, "parent child ");
    wr_weak_release(child_handle);
}

/* ---- depth and width -------------------------------------------------------------------------------------- */

typedef struct link {
    struct link *next;
} link_;

static size_t links_destroyed;

static void link_destroy(void *obj)
{
    link_ *l = obj;
    links_destroyed++;
    wr_release(l->next);
}

static const wr_type link_type = {.name = "link", .size = sizeof(link_), .destroy = link_destroy};

static void *release_main(void *obj)
{
    wr_release(obj);
    return NULL;
}

static void on_a_small_stack(void *(*fn)(void *), void *arg)
{
    pthread_attr_t attr;
    pthread_attr_init(&attr);
    cr_assert_eq(pthread_attr_setstacksize(&attr, RACE_SIZE(64, 192) * 1024), 0);
    pthread_t thread;
    cr_assert_eq(pthread_create(&thread, &attr, fn, arg), 0);
    cr_assert_eq(pthread_join(thread, NULL), 0);
    pthread_attr_destroy(&attr);
}

static link_ *list_new(const wr_type *type, size_t length, bool sized)
{
    link_ *head = NULL;
    for (size_t i = 0; i < length; i++) {
        link_ *l = sized ? wr_new_sized(type, sizeof(link_) + i % 40) : wr_new(type);
        cr_assert_not_null(l);
        l->next = head;
        head = l;
    }
    return head;
}

Test(object, list_of_a_million_is_released_on_a_small_stack)
{
    on_a_small_stack(release_main, list_new(&link_type, 1000000, false));
    cr_assert_eq(links_destroyed, 1000000);
}

Test(object, list_of_sized_aligned_objects_is_released_on_a_small_stack)
{
    static const wr_type aligned_type = {.name = "link", .size = sizeof(link_), .align = 64, .destroy = link_destroy};
    on_a_small_stack(release_main, list_new(&aligned_type, 100000, true));
    cr_assert_eq(links_destroyed, 100000);
}

static size_t fired;

static wr_watcher *fire_and_free(wr_watcher *w)
{
    wr_watcher *next = w->next;
    fired++;
    wr_watcher_release_weak(w->header);
    free(w);
    return next;
}

static const wr_watcher_class user_class = {.stage = WR_WATCHER_USER, .fire = fire_and_free};
static const wr_watcher_class internal_class = {.stage = WR_WATCHER_INTERNAL, .fire = fire_and_free};

static wr_watcher *watcher_new(const wr_watcher_class *klass)
{
    wr_watcher *w = calloc(1, sizeof *w);
    w->klass = klass;
    return w;
}

Test(object, list_of_watched_objects_is_released_on_a_small_stack)
{
    enum { LONG = 50000 };
    link_ *head = list_new(&link_type, LONG, false);
    for (link_ *l = head; l != NULL; l = l->next) {
        cr_assert_eq(wr_watcher_attach(watcher_new(&user_class), l), 0);
        cr_assert_eq(wr_watcher_attach(watcher_new(&internal_class), l), 0);
    }
    on_a_small_stack(release_main, head);
    cr_assert_eq(links_destroyed, LONG);
    cr_assert_eq(fired, 2 * LONG);
}

typedef struct tree {
    size_t n;
    void *child[];
} tree;

static size_t trees_destroyed;

static void tree_destroy(void *obj)
{
    tree *t = obj;
    trees_destroyed++;
    for (size_t i = 0; i < t->n; i++)
        wr_release(t->child[i]);
}

static const wr_type tree_type = {.name = "tree", .size = sizeof(tree), .destroy = tree_destroy};

static tree *tree_new(size_t width, unsigned depth)
{
    size_t n = depth > 0 ? width : 0;
    tree *t = wr_new_sized(&tree_type, sizeof(tree) + n * sizeof(void *));
    cr_assert_not_null(t);
    t->n = n;
    for (size_t i = 0; i < n; i++)
        t->child[i] = tree_new(width, depth - 1);
    return t;
}

Test(object, trees_wide_and_deep_are_released_on_a_small_stack)
{
    on_a_small_stack(release_main, tree_new(300000, 1));
    cr_assert_eq(trees_destroyed, 300001);
    trees_destroyed = 0;
    on_a_small_stack(release_main, tree_new(2, 16));
    cr_assert_eq(trees_destroyed, 131071);
    trees_destroyed = 0;
    on_a_small_stack(release_main, tree_new(300, 2));
    cr_assert_eq(trees_destroyed, 90301);
}

static wr_weak *trash[1000];
static size_t trash_n;

static void trash_destroy(void *obj)
{
    link_ *l = obj;
    links_destroyed++;
    /* All those before are dead, all those behind alive. */
    for (size_t i = 0; i < trash_n; i++) {
        link_ *other = wr_upgrade(trash[i]);
        cr_assert_eq(other == NULL, i < links_destroyed, "number %zu in the destroy of %zu", i, links_destroyed);
        wr_release(other);
    }
    wr_release(l->next);
}

Test(object, upgrades_during_the_release_of_a_deep_chain_see_what_is_alive)
{
    static const wr_type trash_type = {.name = "trash", .size = sizeof(link_), .destroy = trash_destroy};
    trash_n = 1000;
    link_ *head = list_new(&trash_type, trash_n, false);
    size_t i = 0;
    for (link_ *l = head; l != NULL; l = l->next)
        trash[i++] = wr_downgrade(l);
    wr_release(head);
    cr_assert_eq(links_destroyed, trash_n);
    for (i = 0; i < trash_n; i++)
        wr_weak_release(trash[i]);
}

static void errno_destroy(void *obj)
{
    (void)obj;
    wr_synchronize();
    destroyed++;
}

Test(object, destroy_may_wait_for_readers)
{
    static const wr_type type = {.name = "waiter", .size = 8, .destroy = errno_destroy};
    for (unsigned i = 0; i < 3; i++)
        wr_release(wr_new(&type));
    cr_assert_eq(destroyed, 3);
}

/* ---- watchers --------------------------------------------------------------------------------------------- */

struct noting {
    wr_watcher watcher; /* first: fire() gets it */
    const char *name;
    wr_weak *object;
};

static wr_watcher *fire_noting(wr_watcher *w)
{
    struct noting *n = (struct noting *)w;
    wr_watcher *next = w->next;
    note(n->name);
    cr_assert(wr_weak_is_dead(n->object));
    cr_assert_null(wr_upgrade(n->object));
    wr_watcher_release_weak(w->header);
    return next;
}

/* Takes all of one class at once. */
static wr_watcher *fire_all_noting(wr_watcher *w)
{
    const wr_watcher_class *klass = w->klass;
    note("{");
    while (w != NULL && w->klass == klass)
        w = fire_noting(w);
    note("}");
    return w;
}

static const wr_watcher_class noting_user = {.stage = WR_WATCHER_USER, .fire = fire_noting};
static const wr_watcher_class noting_internal = {.stage = WR_WATCHER_INTERNAL, .fire = fire_noting};
static const wr_watcher_class noting_batch = {.stage = WR_WATCHER_USER, .fire = fire_all_noting};

static struct noting notings[16];

static struct noting *attach(unsigned i, const wr_watcher_class *klass, const char *name, void *obj)
{
    struct noting *n = &notings[i];
    *n = (struct noting){.watcher.klass = klass, .name = name, .object = wr_weak_of_header(wr_header_of(obj))};
    cr_assert_eq(wr_watcher_attach(&n->watcher, obj), 0);
    return n;
}

Test(object, internal_watchers_fire_before_destroy_user_ones_after_newest_first)
{
    named *a = named_new("destroy");
    attach(0, &noting_user, "u0", a);
    attach(1, &noting_internal, "i1", a);
    attach(2, &noting_user, "u2", a);
    attach(3, &noting_internal, "i3", a);
    attach(4, &noting_user, "u4", a);
    wr_release(a);
    cr_assert_str_eq(events, "i3 i1 destroy u4 u2 u0 ");
}

Test(object, watcher_class_may_take_its_neighbours)
{
    named *a = named_new("destroy");
    attach(0, &noting_batch, "b0", a);
    attach(1, &noting_batch, "b1", a);
    attach(2, &noting_user, "u2", a);
    attach(3, &noting_batch, "b3", a);
    wr_release(a);
    cr_assert_str_eq(events, "destroy { b3 } u2 { b1 b0 } ");
}

Test(object, watchers_of_nested_deaths_fire_in_the_order_of_death)
{
    named *a = named_new("a"), *b = named_new("b"), *c = wr_new(&bare_type);
    a->children[0] = b;
    a->children[1] = (void *)c;
    attach(0, &noting_user, "ua", a);
    attach(1, &noting_user, "ub", b);
    attach(2, &noting_user, "uc", c);
    attach(3, &noting_internal, "ia", a);
    attach(4, &noting_internal, "ib", b);
    wr_release(a);
    cr_assert_str_eq(events, "ia a ib ua b ub uc ");
}

Test(object, deferred_death_fires_internal_watchers_at_once_and_user_ones_after_the_grace)
{
    static const wr_type type = {
        .name = "named", .size = sizeof(named), .destroy = named_destroy, .flags = WR_TYPE_DEFERRED};
    named *a = wr_new(&type);
    strcpy(a->name, "destroy");
    attach(0, &noting_user, "u", a);
    attach(1, &noting_internal, "i", a);
    WR_GUARD {
        wr_release(a);
        cr_assert_str_eq(events, "i ");
    }
    cr_assert_eq(wr_barrier(), 0);
    cr_assert_str_eq(events, "i destroy u ");
}

Test(object, detached_watchers_do_not_fire)
{
    named *a = named_new("destroy");
    struct noting *n[6];
    const char *names[] = {"0", "1", "2", "3", "4", "5"};
    for (unsigned i = 0; i < 6; i++)
        n[i] = attach(i, i % 2 ? &noting_user : &noting_internal, names[i], a);
    const unsigned gone[] = {5, 0, 2}; /* the newest, the oldest, one between */
    for (unsigned i = 0; i < 3; i++) {
        cr_assert(wr_watcher_detach(&n[gone[i]]->watcher));
        wr_watcher_release_weak(n[gone[i]]->watcher.header);
    }
    wr_release(a);
    cr_assert_str_eq(events, "4 destroy 3 1 ");
}

Test(object, watchers_do_not_count_as_weak_references)
{
    fail_alloc_install();
    void *obj = wr_new(&counted_type);
    wr_weak *weak = wr_downgrade(obj);
    struct noting *n = attach(0, &noting_user, "u", obj);
    cr_assert_eq(wr_weak_count(obj), 1);
    attach(1, &noting_internal, "i", obj);
    cr_assert_eq(wr_weak_count(obj), 1);
    cr_assert(wr_watcher_detach(&n->watcher));
    wr_watcher_release_weak(n->watcher.header);
    cr_assert_eq(wr_weak_count(obj), 1);
    wr_weak_release(weak);
    cr_assert_eq(wr_weak_count(obj), 0);
    wr_release(obj);
    cr_assert_str_eq(events, "i ");
    cr_assert_eq(fail_alloc_live(), 0, "the side record goes with the header");
}

Test(object, first_watcher_without_memory_is_enomem_and_changes_nothing)
{
    fail_alloc_install();
    void *obj = wr_new(&counted_type);
    wr_watcher w = {.klass = &noting_user};
    fail_alloc_at(1);
    cr_assert_eq(wr_watcher_attach(&w, obj), -ENOMEM);
    cr_assert(fail_alloc_hit());
    cr_assert_eq(wr_weak_count(obj), 0);
    cr_assert_eq(fail_alloc_live(), 1);
    fail_alloc_at(1);
    cr_assert_eq(wr_watcher_prepare(obj), -ENOMEM);
    cr_assert(fail_alloc_hit());
    cr_assert_eq(wr_watcher_prepare(obj), 0);
    fail_alloc_all(true);
    attach(0, &noting_user, "u", obj);
    cr_assert_not(fail_alloc_hit(), "prepared");
    fail_alloc_all(false);
    wr_release(obj);
    cr_assert_str_eq(events, "u ");
    cr_assert_eq(fail_alloc_live(), 0);
}

static int attached_in_destroy, prepared_in_destroy;

static void watching_destroy(void *obj)
{
    wr_watcher w = {.klass = &noting_user};
    prepared_in_destroy = wr_watcher_prepare(obj);
    attached_in_destroy = wr_watcher_attach(&w, obj);
    destroyed++;
}

Test(object, watcher_inside_destroy_is_estale)
{
    static const wr_type type = {.name = "watching", .size = 8, .destroy = watching_destroy};
    for (unsigned watched = 0; watched < 2; watched++) {
        void *obj = wr_new(&type);
        if (watched)
            attach(0, &noting_user, "u", obj);
        attached_in_destroy = prepared_in_destroy = 1;
        wr_release(obj);
        cr_assert_eq(prepared_in_destroy, -ESTALE);
        cr_assert_eq(attached_in_destroy, -ESTALE);
    }
    cr_assert_eq(destroyed, 2);
    cr_assert_str_eq(events, "u ");
}

static struct {
    void *obj;
    struct noting *n;
    bool detached;
    atomic_uint fired;
} duel;

static wr_watcher *fire_duel(wr_watcher *w)
{
    wr_watcher *next = w->next;
    atomic_fetch_add_explicit(&duel.fired, 1, memory_order_relaxed);
    wr_watcher_release_weak(w->header);
    return next;
}

static const wr_watcher_class duel_class = {.stage = WR_WATCHER_INTERNAL, .fire = fire_duel};

static void duel_prepare(void *ctx)
{
    (void)ctx;
    duel.obj = wr_new(&counted_type);
    atomic_store(&duel.fired, 0);
    duel.n = attach(0, &duel_class, "d", duel.obj);
}

static void duel_detach(void *ctx)
{
    (void)ctx;
    wr_header *h = duel.n->watcher.header;
    /* As a dictionary does: what keeps the header beside the death is a weak count of its own. */
    duel.detached = wr_watcher_detach(&duel.n->watcher);
    if (duel.detached)
        wr_watcher_release_weak(h);
    wr_weak_release(wr_weak_of_header(h));
}

static void duel_die(void *ctx)
{
    (void)ctx;
    wr_release(duel.obj);
}

static void duel_prepare_held(void *ctx)
{
    duel_prepare(ctx);
    wr_downgrade(duel.obj);
}

static unsigned duel_judge(void *ctx)
{
    (void)ctx;
    unsigned n = atomic_load(&duel.fired);
    cr_assert_eq(n + duel.detached, 1, "fired %u, detached %d", n, duel.detached);
    return n;
}

Test(object, detach_and_death_race_and_exactly_one_owns_the_watcher)
{
    fail_alloc_install();
    const struct race race = {
        .name = "detach vs death",
        .prepare = duel_prepare_held,
        .sides = {duel_detach, duel_die},
        .judge = duel_judge,
        .outcomes = {"detached", "fired"},
        .rounds = RACE_SIZE(3000, 1000),
        .seconds = 30,
    };
    cr_assert(race_run(&race));
    cr_assert_eq(fail_alloc_live(), 0);
}

/* ---- text ------------------------------------------------------------------------------------------------- */

static int point_describe(const void *obj, char *buf, size_t size)
{
    const int *xy = obj;
    return snprintf(buf, size, "point(%d, %d)", xy[0], xy[1]);
}

static void check_describe(const void *obj, const char *wanted)
{
    int length = (int)strlen(wanted);
    char text[64];
    cr_assert_eq(wr_describe(obj, NULL, 0), length);
    for (size_t size = 1; size < sizeof text; size++) {
        memset(text, '#', sizeof text);
        cr_assert_eq(wr_describe(obj, text, size), length);
        size_t written = (size_t)length < size - 1 ? (size_t)length : size - 1;
        cr_assert_eq(strncmp(text, wanted, written), 0, "size %zu: %s", size, text);
        cr_assert_eq(text[written], '\0');
        for (size_t i = size; i < sizeof text; i++)
            cr_assert_eq(text[i], '#', "size %zu: wrote beyond", size);
    }
}

Test(object, describe_is_the_name_and_the_address_or_the_types_own)
{
    static const wr_type nameless_type = {.size = 8};
    static const wr_type point_type = {.name = "point", .size = 2 * sizeof(int), .describe = point_describe};
    char wanted[64];
    void *bare = wr_new(&bare_type), *nameless = wr_new(&nameless_type);
    int *point = wr_new(&point_type);
    point[0] = 3;
    point[1] = -4;
    snprintf(wanted, sizeof wanted, "<bare at %p>", bare);
    check_describe(bare, wanted);
    snprintf(wanted, sizeof wanted, "<object at %p>", nameless);
    check_describe(nameless, wanted);
    check_describe(point, "point(3, -4)");

    char text[8];
    cr_assert_eq(wr_describe(NULL, text, sizeof text), -EINVAL);
    cr_assert_eq(wr_describe(bare, NULL, 8), -EINVAL);
    wr_release(bare);
    wr_release(nameless);
    wr_release(point);
}

/* ---- boxes ------------------------------------------------------------------------------------------------ */

static void *unboxed;

static void unbox(void *ptr)
{
    unboxed = ptr;
    destroyed++;
}

Test(object, box_destroys_what_it_adopted_once)
{
    int foreign = 5;
    wr_box *box = wr_box_new(&foreign, unbox);
    cr_assert_not_null(box);
    cr_assert_eq(box->ptr, &foreign);
    cr_assert_str_eq(wr_type_of(box)->name, "box");
    wr_weak *weak = wr_downgrade(box);
    wr_box *again = wr_upgrade(weak);
    cr_assert_eq(again, box);
    wr_release(box);
    cr_assert_eq(destroyed, 0);
    wr_release(again);
    cr_assert_eq(destroyed, 1);
    cr_assert_eq(unboxed, &foreign);
    wr_weak_release(weak);
}

Test(object, box_of_null_and_without_destroy)
{
    unboxed = &destroyed;
    wr_release(wr_box_new(NULL, unbox));
    cr_assert_eq(destroyed, 1);
    cr_assert_null(unboxed);
    int foreign;
    wr_release(wr_box_new(&foreign, NULL));
    cr_assert_eq(destroyed, 1);
}

/* ---- misuse ----------------------------------------------------------------------------------------------- */

/* A dead object whose memory still is: somebody holds a handle. */
static void *dead(const wr_type *type)
{
    void *obj = wr_new(type);
    (void)wr_downgrade(obj);
    wr_release(obj);
    return obj;
}

static void release_dead(void *type)
{
    wr_release(dead(type));
}

static void retain_dead(void *type)
{
    wr_retain(dead(type));
}

static void release_twice_in_destroy_of_another(void *ctx)
{
    (void)ctx;
    /* The child waits for its destroy when it is released once more. */
    named *a = named_new("a"), *b = named_new("b");
    a->children[0] = b;
    a->children[1] = b;
    wr_release(a);
}

static void retain_self(void *obj)
{
    wr_retain(obj);
}

static void release_self(void *obj)
{
    wr_release(obj);
}

static void release_with_destroy(void *destroy)
{
    wr_type type = {.name = "suicidal", .size = 8, .destroy = (void (*)(void *))(uintptr_t)destroy};
    wr_release(wr_new(&type));
}

static void release_watched_with_destroy(void *destroy)
{
    wr_type type = {.name = "suicidal", .size = 8, .destroy = (void (*)(void *))(uintptr_t)destroy};
    void *obj = wr_new(&type);
    attach(0, &noting_user, "u", obj);
    (void)wr_downgrade(obj);
    wr_release(obj);
}

static void release_deferred_with_destroy(void *destroy)
{
    static wr_type type = {.name = "suicidal", .size = 8, .flags = WR_TYPE_DEFERRED};
    type.destroy = (void (*)(void *))(uintptr_t)destroy;
    wr_release(wr_new(&type));
    wr_barrier();
}

static void weak_release_of_the_token(void *type)
{
    void *obj = wr_new(type);
    wr_weak *weak = wr_downgrade(obj);
    wr_weak_release(weak);
    wr_weak_release(weak);
}

#define DESTROY(fn) ((void *)(uintptr_t)(fn))

Test(object, release_of_a_dead_object_panics)
{
    const char *pattern = PANIC("wr_release", "(bare|counted|deferred)", "it is dead already");
    expect_panic(release_dead, (void *)(uintptr_t)&bare_type, pattern);
    expect_panic(release_dead, (void *)(uintptr_t)&counted_type, pattern);
    expect_panic(release_dead, (void *)(uintptr_t)&deferred_type, pattern);
    expect_panic(release_twice_in_destroy_of_another, NULL, PANIC("wr_release", "named", "it is dead already"));
}

Test(object, retain_of_a_dead_object_panics)
{
    const char *pattern = PANIC("wr_retain", "(bare|counted|deferred)", "it is dead");
    expect_panic(retain_dead, (void *)(uintptr_t)&bare_type, pattern);
    expect_panic(retain_dead, (void *)(uintptr_t)&counted_type, pattern);
    expect_panic(retain_dead, (void *)(uintptr_t)&deferred_type, pattern);
}

Test(object, retain_and_release_of_the_dying_object_inside_destroy_panic)
{
    void (*const ways[])(void *) = {release_with_destroy, release_watched_with_destroy, release_deferred_with_destroy};
    for (unsigned i = 0; i < 3; i++) {
        expect_panic(ways[i], DESTROY(retain_self), PANIC("wr_retain", "suicidal", "it is dead"));
        expect_panic(ways[i], DESTROY(release_self), PANIC("wr_release", "suicidal", "it is dead already"));
    }
}

Test(object, count_underflow_panics)
{
    /* As it looks between the last release and the closing of the word. */
    expect_panic(weak_release_of_the_token, (void *)(uintptr_t)&counted_type,
                 PANIC("wr_weak_release", "counted", "released more weak references than there are"));
}

static void set_word(void *obj, uint64_t bits)
{
    wr_atomic_store_relaxed(&wr_header_of(obj)->word.bits, bits);
}

static void release_at_zero(void *ctx)
{
    (void)ctx;
    void *obj = wr_new(&counted_type);
    set_word(obj, 3 * WR_WORD_WEAK);
    wr_release(obj);
}

static void retain_at_zero(void *ctx)
{
    (void)ctx;
    void *obj = wr_new(&counted_type);
    set_word(obj, 3 * WR_WORD_WEAK);
    wr_retain(obj);
}

static void downgrade_without_token(void *ctx)
{
    (void)ctx;
    void *obj = wr_new(&counted_type);
    set_word(obj, WR_WORD_CLOSED);
    (void)wr_downgrade(obj);
}

Test(object, use_without_a_reference_panics)
{
    expect_panic(release_at_zero, NULL, PANIC("wr_release", "counted", "released more often than retained"));
    expect_panic(retain_at_zero, NULL, PANIC("wr_retain", "counted", "the caller holds no reference"));
    expect_panic(downgrade_without_token, NULL, PANIC("wr_downgrade", "counted", "the caller holds no reference"));
}

Test(object, panic_aborts_the_program, .signal = SIGABRT)
{
    wr_release(dead(&bare_type));
}

/* ---- saturation ------------------------------------------------------------------------------------------- */

static unsigned warnings;
static char warning[256];

static void warn(const char *message, void *ctx)
{
    (void)ctx;
    snprintf(warning, sizeof warning, "%s", message);
    warnings++;
}

static uint64_t saturated(void)
{
    struct wr_stats stats;
    wr_stats(&stats);
    return stats.saturated;
}

static uint64_t word_of(void *obj)
{
    return wr_word_peek(&wr_header_of(obj)->word);
}

#define STRONG_FULL (UINT64_C(1) << 28)

Test(object, strong_count_at_its_limit_makes_the_object_immortal)
{
    wr_set_warn(warn, NULL);
    void *obj = wr_new(&counted_type);
    wr_weak *weak = wr_downgrade(obj);
    set_word(obj, (STRONG_FULL - 1) * WR_WORD_STRONG | 2 * WR_WORD_WEAK);
    wr_retain(obj);
    cr_assert_eq(wr_strong_count(obj), STRONG_FULL);
    cr_assert_eq(saturated(), 0, "not beyond the limit yet");
    cr_assert_eq(wr_retain(obj), obj);
    cr_assert_eq(saturated(), 1);
    cr_assert_eq(warnings, 1);
    char wanted[128];
    snprintf(wanted, sizeof wanted, "object counted at %p: ", obj);
    cr_assert_eq(strncmp(warning, wanted, strlen(wanted)), 0, "%s", warning);

    uint64_t middle = WR_WORD_STRONG_MIDDLE | 2 * WR_WORD_WEAK;
    cr_assert_eq(word_of(obj), middle);
    for (unsigned i = 0; i < 1000; i++) {
        cr_assert_eq(wr_upgrade(weak), obj);
        cr_assert_eq(wr_retain(obj), obj);
        wr_release(obj);
        wr_release(obj);
        wr_release(obj);
        cr_assert_eq(word_of(obj), middle);
    }
    cr_assert_eq(saturated(), 5001);
    cr_assert_eq(warnings, 1, "one warning");
    cr_assert_eq(destroyed, 0);
    cr_assert_not(wr_weak_is_dead(weak));
    wr_weak_release(weak);
    set_word(obj, WR_WORD_STRONG | WR_WORD_WEAK); /* for the leak checker */
    wr_release(obj);
}

Test(object, strong_saturation_is_found_by_upgrade_and_retain_live_and_release)
{
    wr_set_warn(warn, NULL);
    void *obj = wr_new(&deferred_type);
    wr_weak *weak = wr_downgrade(obj);
    uint64_t full = STRONG_FULL * WR_WORD_STRONG | WR_WORD_DEFERRED | 2 * WR_WORD_WEAK;
    uint64_t middle = WR_WORD_STRONG_MIDDLE | WR_WORD_DEFERRED | 2 * WR_WORD_WEAK;

    set_word(obj, full);
    cr_assert_eq(wr_upgrade(weak), obj);
    cr_assert_eq(word_of(obj), middle);
    cr_assert_eq(saturated(), 1);

    set_word(obj, full);
    WR_GUARD {
        cr_assert_eq(wr_retain_live(wr_peek(weak)), obj);
    }
    cr_assert_eq(word_of(obj), middle);
    cr_assert_eq(saturated(), 2);

    set_word(obj, full + WR_WORD_STRONG);
    wr_release(obj);
    cr_assert_eq(word_of(obj), middle);
    cr_assert_eq(saturated(), 3);

    wr_weak_slot slot = {.header.v = wr_header_of(obj)};
    set_word(obj, full);
    cr_assert_eq(wr_weak_slot_get(&slot), obj);
    cr_assert_eq(word_of(obj), middle);
    cr_assert_eq(saturated(), 4);
    cr_assert_eq(warnings, 1);

    wr_weak_release(weak);
    set_word(obj, WR_WORD_STRONG | WR_WORD_DEFERRED | WR_WORD_WEAK);
    wr_release(obj);
    wr_barrier();
}

Test(object, weak_count_at_its_limit_makes_the_header_immortal)
{
    fail_alloc_install();
    wr_set_warn(warn, NULL);
    void *obj = wr_new(&counted_type);
    wr_weak *weak = wr_downgrade(obj);
    set_word(obj, WR_WORD_STRONG | (WR_WORD_WEAK_SATURATED - 1));
    cr_assert_eq(wr_downgrade(obj), weak);
    cr_assert_eq(saturated(), 0);
    cr_assert_eq(wr_downgrade(obj), weak);
    cr_assert_eq(saturated(), 1);
    cr_assert_eq(warnings, 1);
    cr_assert_eq(word_of(obj), WR_WORD_STRONG | WR_WORD_WEAK_MIDDLE);
    cr_assert_eq(wr_weak_retain(weak), weak);
    wr_weak_release(weak);
    wr_weak_release(weak);
    cr_assert_eq(word_of(obj), WR_WORD_STRONG | WR_WORD_WEAK_MIDDLE);
    cr_assert_eq(saturated(), 4);

    /* The object still dies as it should; only the memory stays. */
    void *again = wr_upgrade(weak);
    wr_release(again);
    wr_release(obj);
    cr_assert_eq(destroyed, 1);
    cr_assert_eq(word_of(obj) & ~WR_WORD_STRONG_MASK, WR_WORD_CLOSED | WR_WORD_WEAK_MIDDLE);
    cr_assert_null(wr_upgrade(weak));
    for (unsigned i = 0; i < 1000; i++)
        wr_weak_release(weak);
    cr_assert(wr_weak_is_dead(weak));
    cr_assert_eq(fail_alloc_live(), 1, "never freed");
    cr_assert_eq(warnings, 1);
    set_word(obj, WR_WORD_CLOSED | WR_WORD_WEAK);
    wr_weak_release(weak);
    cr_assert_eq(fail_alloc_live(), 0);
}

Test(object, weak_saturation_is_found_by_slots_and_watchers)
{
    wr_set_warn(warn, NULL);
    void *obj = wr_new(&counted_type);
    const uint64_t full = WR_WORD_STRONG | WR_WORD_WEAK_SATURATED, middle = WR_WORD_STRONG | WR_WORD_WEAK_MIDDLE;
    set_word(obj, full);
    wr_weak_slot slot;
    wr_weak_slot_init(&slot, obj);
    cr_assert_eq(word_of(obj), middle);
    cr_assert_eq(saturated(), 1);
    set_word(obj, full);
    attach(0, &noting_internal, "i", obj);
    cr_assert_eq(word_of(obj), middle);
    cr_assert_eq(saturated(), 2);
    wr_release(obj);
    cr_assert_str_eq(events, "i ");
    cr_assert_null(wr_weak_slot_get(&slot));
    set_word(obj, WR_WORD_CLOSED | WR_WORD_WEAK);
    wr_weak_slot_fini(&slot);
    cr_assert_eq(wr_barrier(), 0);
}

/* ---- races ------------------------------------------------------------------------------------------------ */

enum { SHARERS = 4 };

static void *sharer_main(void *obj)
{
    for (unsigned i = 0; i < 20000; i++) {
        wr_retain(obj);
        *(volatile char *)obj;
        wr_release(obj);
    }
    wr_release(obj);
    return NULL;
}

Test(object, many_threads_count_one_object_and_it_dies_once)
{
    for (unsigned round = 1; round <= 10; round++) {
        void *obj = wr_new(&counted_type);
        pthread_t threads[SHARERS];
        for (unsigned i = 0; i < SHARERS; i++)
            cr_assert_eq(pthread_create(&threads[i], NULL, sharer_main, wr_retain(obj)), 0);
        wr_release(obj);
        for (unsigned i = 0; i < SHARERS; i++)
            cr_assert_eq(pthread_join(threads[i], NULL), 0);
        cr_assert_eq(destroyed, round);
    }
}
