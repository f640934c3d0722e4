/* Dictionaries, with a thread standing before each schedule point in turn: freeing one that hears of deaths beside a death,
 * an object's only entry taken out beside its death, others that come back before that is closed, look-ups beside a
 * replacing, stopping the trims beside one that hands itself over again. */
#include <stdio.h>

#if defined(WR_SCHED_POINTS) && WR_SCHED_POINTS
#include <sys/ioctl.h>

#include <weakref/weakref.h>

#include "deaths.h"
#include "fail_alloc.h"
#include "park.h"

static struct park a, b;
static wr_queue *queue;
static unsigned n_schedules;

/* When it is over: whether its job had the point, though it may have gone on from there early. */
static bool had_point(struct park *p, bool stood)
{
    return stood || atomic_load(&p->early);
}

static uint64_t n_pending(void)
{
    struct wr_queue_stats stats;
    wr_queue_stats(queue, &stats);
    return stats.pending;
}

/* ---- what hears of a death holds the dictionary ------------------------------------------------------------- */

static unsigned n_heard;

static void hear(const void *key, size_t size, void *ctx)
{
    (void)key, (void)size, (void)ctx;
    n_heard++;
}

static void release(void *ctx)
{
    wr_release(ctx);
}

/* The last object dies; the callback, if it was not called off, is delivered when only it holds the dictionary. */
static void free_beside_death(void)
{
    unsigned n_heard_of = 0;
    for (unsigned at = 0, more = 1; more; at++) {
        struct wr_value_dict_options options = {
            .struct_size = sizeof options, .on_removal = hear, .queue = queue, .initial_size = 4};
        wr_value_dict *d = wr_value_dict_new(&options);
        thing *t = thing_new(1);
        n_heard = 0;
        PARK_CHECK(d != NULL && t != NULL && wr_value_dict_set_str(d, "k", t) == 0);
        bool stood = park_job(&a, release, t, PARK_ANY, at);
        wr_value_dict_free(d);
        park_end(&a);
        more = had_point(&a, stood);
        PARK_CHECK(wr_barrier() == 0);
        wr_queue_drain(queue, SIZE_MAX);
        PARK_CHECK(n_heard <= 1 && queue_is_balanced(queue) && n_pending() == 0);
        n_heard_of += n_heard;
        PARK_CHECK(wr_barrier() == 0);
        n_schedules++;
    }
    printf("the death first %u times: ", n_heard_of);
    PARK_CHECK(n_heard_of > 1 && n_heard_of < n_schedules); /* each was first, not only where it was over */
}

/* ---- an object's only entry ------------------------------------------------------------------------------------- */

/* With something to run at the death, and with nothing. */
static const wr_type plain_type = {.name = "plain", .size = sizeof(thing)};
static const wr_type *const kinds[] = {&thing_type, &plain_type};
enum { N_KINDS = 2 };

struct pair {
    wr_value_dict *d;
    thing *t;
    wr_weak *weak;
    bool removed;
};

static struct pair pair_new(const wr_type *type)
{
    struct pair p = {.d = wr_value_dict_new(NULL), .t = wr_new(type)};
    PARK_CHECK(p.d != NULL && p.t != NULL && wr_value_dict_set_u64(p.d, 1, p.t) == 0);
    p.weak = wr_downgrade(p.t);
    return p;
}

/* The object is dead and out, and nobody has a weak count but the handle. */
static void pair_end(struct pair *p)
{
    PARK_CHECK(wr_weak_is_dead(p->weak) && wr_value_dict_len(p->d) == 0);
    wr_value_dict_free(p->d);
    PARK_CHECK(wr_barrier() == 0);
    PARK_CHECK((wr_word_peek(&wr_header_of_weak(p->weak)->word) & WR_WORD_WEAK_MASK) == 1);
    wr_weak_release(p->weak);
}

static void remove_one(void *ctx)
{
    struct pair *p = ctx;
    p->removed = wr_value_dict_remove_u64(p->d, 1) == 0;
}

/* Of a verb and the death one takes the entry out, and one of them off its object. @job: that which stands. */
static void verb_beside_death(void (*job)(void *ctx), bool job_is_the_verb)
{
    unsigned n_removed = 0;
    for (unsigned kind = 0; kind < N_KINDS; kind++)
        for (unsigned at = 0, more = 1; more; at++) {
            struct pair p = pair_new(kinds[kind]);
            atomic_store(&things_destroyed, 0);
            bool stood = park_job(&a, job, job_is_the_verb ? (void *)&p : (void *)p.t, PARK_ANY, at);
            if (job_is_the_verb)
                wr_release(p.t);
            else
                remove_one(&p);
            park_end(&a);
            more = had_point(&a, stood);
            PARK_CHECK(atomic_load(&things_destroyed) == (kinds[kind] == &thing_type));
            n_removed += p.removed;
            pair_end(&p);
            n_schedules++;
        }
    printf("the verb first %u times: ", n_removed);
    PARK_CHECK(n_removed > 0 && n_removed < n_schedules);
}

static void verb_beside_its_death(void)
{
    verb_beside_death(release, false);
}

static void death_beside_its_verb(void)
{
    verb_beside_death(remove_one, true);
}

/* The verb stands where it has seen the object alive, the death where it has seen the entry; then the verb goes on first. */
static void both_at_once_of(const wr_type *type)
{
    unsigned n_removed = 0, n_stood = 0, n_before = n_schedules;
    long live = 0;
    for (unsigned on = 0, more_verbs = 1; more_verbs; on++) {
        more_verbs = 0;
        for (unsigned at = 0, more = 1; more; at++) {
            struct pair p = pair_new(type);
            bool first = park_job(&a, remove_one, &p, PARK_INSIDE, on);
            bool second = park_job(&b, release, p.t, PARK_INSIDE, at);
            park_end(&a);
            park_end(&b);
            more_verbs |= had_point(&a, first);
            more = had_point(&a, first) && had_point(&b, second);
            n_stood += first && second;
            n_removed += p.removed;
            pair_end(&p);
            live = n_schedules++ == n_before ? fail_alloc_live() : live;
            PARK_CHECK(fail_alloc_live() == live);
        }
    }
    printf("both stood %u times, the verb first %u times: ", n_stood, n_removed);
    PARK_CHECK(n_stood > 0 && n_removed > 0 && n_removed < n_schedules - n_before);
}

static void both_at_once(void)
{
    for (unsigned kind = 0; kind < N_KINDS; kind++)
        both_at_once_of(kinds[kind]);
}

static void ask_for_type(void *ctx)
{
    const struct pair *p = ctx;
    PARK_CHECK(wr_type_of(p->t) == &plain_type);
}

/* The type is told by the entry, which leaves, and is freed as soon as that may be. */
static void type_beside_verb(void)
{
    for (unsigned at = 0, more = 1; more; at++) {
        struct pair p = pair_new(&plain_type);
        bool stood = park_job(&a, ask_for_type, &p, PARK_ANY, at);
        remove_one(&p);
        PARK_CHECK(p.removed && wr_barrier() == 0);
        park_end(&a);
        more = had_point(&a, stood);
        wr_release(p.t);
        pair_end(&p);
        n_schedules++;
    }
}

/* ---- more watchers, between the last release and the close -------------------------------------------------------- */

static wr_value_dict *other;

static void come_to_nothing(struct pair *p)
{
    (void)p;
}

static void come_to_watch(struct pair *p)
{
    PARK_CHECK(wr_on_death(p->t, queue, log_callback, NULL) == 0);
}

static void come_to_enter(struct pair *p)
{
    PARK_CHECK(wr_value_dict_set_u64(other, 2, p->t) == 0);
}

static void come_to_remove(struct pair *p)
{
    remove_one(p);
}

static void come_to_remove_and_watch(struct pair *p)
{
    remove_one(p);
    come_to_watch(p);
}

static void come_to_remove_and_enter(struct pair *p)
{
    remove_one(p);
    come_to_enter(p);
}

/* The death stands; somebody upgrades, does what he came for, and lets go: standing, too. One of the two closes. */
static void come_beside_death(const wr_type *type, void (*come)(struct pair *p), bool watches, unsigned *n_back)
{
    long live = 0;
    for (unsigned at = 0, more_deaths = 1, n = 0; more_deaths; at++) {
        more_deaths = 0;
        for (unsigned on = 0, more = 1; more; on++) {
            struct pair p = pair_new(type);
            atomic_store(&n_logged, 0);
            bool first = park_job(&a, release, p.t, PARK_ANY, at), second = false;
            bool back = wr_upgrade(p.weak) != NULL;
            if (back) {
                come(&p);
                second = park_job(&b, release, p.t, PARK_ANY, on);
            }
            park_end(&a);
            if (back)
                park_end(&b);
            more_deaths |= had_point(&a, first);
            more = back && had_point(&a, first) && had_point(&b, second);
            wr_queue_drain(queue, SIZE_MAX);
            PARK_CHECK(atomic_load(&n_logged) == (back && watches) && wr_value_dict_len(other) == 0);
            *n_back += back;
            pair_end(&p);
            live = n++ == 0 ? fail_alloc_live() : live;
            PARK_CHECK(fail_alloc_live() - live < 4); /* the first side record of a class, say */
            n_schedules++;
        }
    }
}

static void come_back(void)
{
    unsigned n_back = 0;
    other = wr_value_dict_new(NULL);
    PARK_CHECK(other != NULL);
    for (unsigned kind = 0; kind < N_KINDS; kind++) {
        come_beside_death(kinds[kind], come_to_nothing, false, &n_back);
        come_beside_death(kinds[kind], come_to_watch, true, &n_back);
        come_beside_death(kinds[kind], come_to_enter, false, &n_back);
        come_beside_death(kinds[kind], come_to_remove, false, &n_back);
        come_beside_death(kinds[kind], come_to_remove_and_watch, true, &n_back);
        come_beside_death(kinds[kind], come_to_remove_and_enter, false, &n_back);
    }
    printf("back %u times: ", n_back);
    PARK_CHECK(n_back > 0 && n_back < n_schedules);
    wr_value_dict_free(other);
}

/* ---- a set that comes to nothing, beside those who look at its object ------------------------------------------------ */

static wr_value_dict *full;
static thing *its_value;

static void replace_in_vain(void *t)
{
    PARK_CHECK(wr_value_dict_replace_str(full, "none", its_value, t) == -ENOENT);
}

static int make_too_late(const void *key, size_t size, void *ctx, void **obj)
{
    *obj = wr_retain((thing *)ctx);
    return wr_value_dict_set(full, key, size, its_value); /* a set comes first */
}

static void create_in_vain(void *t)
{
    void *out = NULL;
    PARK_CHECK(wr_value_dict_get_or_create_str(full, "key", make_too_late, t, &out) == 0 && out == its_value);
    wr_release(out);
    PARK_CHECK(wr_value_dict_remove_str(full, "key") == 0);
}

static void ask_type(void *t)
{
    PARK_CHECK(wr_type_of(t) == &thing_type);
}

static void watch_it(void *t)
{
    wr_watch *w = wr_watch_new(t, queue, log_callback, NULL);
    PARK_CHECK(wr_watch_cancel(w) == WR_CANCELLED);
    wr_watch_release(w);
}

static void vain_beside(void (*vain)(void *t), void (*look)(void *t))
{
    for (unsigned i = 0, more = 1; more; i++)
        for (unsigned j = 0, next = 1; next; j++) {
            thing *t = thing_new(2);
            bool first = park_job(&a, vain, t, PARK_OUTSIDE, i);
            bool second = park_job(&b, look, t, PARK_OUTSIDE, j);
            park_end(&a);
            park_end(&b);
            more = had_point(&a, first);
            next = had_point(&b, second);
            wr_release(t);
            n_schedules++;
        }
}

static void vain_sets(void)
{
    full = wr_value_dict_new(NULL);
    its_value = thing_new(1);
    PARK_CHECK(full != NULL && wr_value_dict_set_str(full, "first", its_value) == 0);
    vain_beside(replace_in_vain, ask_type);
    vain_beside(replace_in_vain, watch_it);
    vain_beside(create_in_vain, ask_type);
    vain_beside(create_in_vain, watch_it);
    wr_value_dict_free(full);
    wr_release(its_value);
}

/* ---- a key that always has a living object ----------------------------------------------------------------------- */

static const char common_key[] = "a key of twenty-three b"; /* as the common look-up wants it */

static const wr_type deferred_type = {.name = "thing", .size = sizeof(thing), .flags = WR_TYPE_DEFERRED};

static void get_it(void *ctx)
{
    thing *t = wr_value_dict_get(ctx, common_key, sizeof common_key - 1);
    PARK_CHECK(t != NULL && (t->number == 1 || t->number == 2));
    wr_release(t);
}

static void peek_it(void *ctx)
{
    WR_GUARD {
        const thing *t = wr_value_dict_peek(ctx, common_key, sizeof common_key - 1);
        PARK_CHECK(t != NULL && (t->number == 1 || t->number == 2));
    }
}

/* It is replaced, and the old one dies, wherever the look-up stands. */
static void look_beside_replacing(void (*look)(void *ctx))
{
    wr_value_dict *d = wr_value_dict_new(NULL);
    PARK_CHECK(d != NULL);
    for (unsigned at = 0, more = 1; more; at++) {
        thing *one = wr_new(&deferred_type), *two = wr_new(&deferred_type);
        one->number = 1;
        two->number = 2;
        PARK_CHECK(wr_value_dict_set(d, common_key, sizeof common_key - 1, one) == 0);
        bool stood = park_job(&a, look, d, PARK_ANY, at);
        PARK_CHECK(wr_value_dict_set(d, common_key, sizeof common_key - 1, two) == 0);
        wr_release(one);
        park_end(&a);
        more = had_point(&a, stood);
        wr_release(two);
        PARK_CHECK(wr_value_dict_len(d) == 0 && wr_barrier() == 0);
        n_schedules++;
    }
    wr_value_dict_free(d);
}

static void get_beside_replacing(void)
{
    look_beside_replacing(get_it);
}

static void peek_beside_replacing(void)
{
    look_beside_replacing(peek_it);
}

/* ---- a stop waits for no drain -------------------------------------------------------------------------------- */

static char fifo[64];
static int fifo_fd;
static atomic_bool stopping;

/* Until the trims' thread has read it, unless that may have ended. */
static void press(void)
{
    int unread = 1;
    PARK_CHECK(write(fifo_fd, "!", 1) == 1);
    while (!atomic_load(&stopping) && ioctl(fifo_fd, FIONREAD, &unread) == 0 && unread > 0)
        sched_yield();
}

static unsigned park_after_destroy;

/* Memory is short again, and that is settled: the second one is read after the first one was acted on. From here on
 * the points count. */
static void destroy_pressed(void *obj)
{
    (void)obj;
    press();
    press();
    if (park_self_ != NULL) {
        park_self_->left = park_after_destroy;
        park_self_->where = PARK_OUTSIDE;
    }
}

static const wr_type pressed_type = {.name = "pressed", .size = 8, .destroy = destroy_pressed};

static void drain_one(void *ctx)
{
    (void)ctx;
    wr_queue_drain(queue, 1);
}

static void stop(void *ctx)
{
    (void)ctx;
    atomic_store(&stopping, true);
    PARK_CHECK(wr_pressure_stop() == 0);
}

/* A trim, the last that is drained, stands on its way to be handed over again; the stop stands on its way to wait for it. Then
 * the one goes on, and then the other: it ends. */
static void stop_beside_again(void)
{
    struct wr_value_dict_options options = {.struct_size = sizeof options, .keep_objects = 4};
    struct wr_pressure_options pressure = {
        .struct_size = sizeof pressure, .path = fifo, .percent = 100, .window_ms = 1};
    wr_value_dict *d = wr_value_dict_new(&options);
    unsigned n_again = 0;
    PARK_CHECK(d != NULL);
    for (unsigned at = 0, more = 1; more; at++) {
        more = 0;
        for (unsigned on = 0, next = 1; next; on++) {
            void *obj = wr_new(&pressed_type);
            PARK_CHECK(obj != NULL && wr_value_dict_set_str(d, "k", obj) == 0);
            wr_release(obj);
            atomic_store(&stopping, false);
            PARK_CHECK(wr_pressure_start_with(queue, &pressure) == 0);
            press();
            while (n_pending() == 0)
                sched_yield();
            park_after_destroy = at;
            bool first = park_job(&a, drain_one, NULL, PARK_NOWHERE, 0);
            bool second = park_job(&b, stop, NULL, PARK_OUTSIDE, on);
            park_end(&a);
            n_again += n_pending() > 0;
            park_end(&b);
            more |= had_point(&a, first);
            next =
                first && !a.early && had_point(&b, second); /* where it waited for the first, further ones would, too */
            wr_queue_drain(queue, SIZE_MAX);
            PARK_CHECK(queue_is_balanced(queue) && n_pending() == 0);
            n_schedules++;
        }
    }
    PARK_CHECK(n_again > 0);
    wr_value_dict_free(d);
}

static void run(const char *name, void (*race)(void))
{
    n_schedules = 0;
    race();
    printf("%s: %u schedules\n", name, n_schedules);
    fflush(stdout);
}

int main(void)
{
    int ends[2];
    PARK_CHECK(pipe(ends) == 0);
    snprintf(fifo, sizeof fifo, "/proc/self/fd/%d", ends[0]);
    fifo_fd = ends[1];
    park_fence();
    fail_alloc_install();
    queue = wr_queue_new("points");
    PARK_CHECK(queue != NULL);
    park_start(&a);
    park_start(&b);
    run("free vs a death that is heard of", free_beside_death);
    run("a death vs a verb", verb_beside_its_death);
    run("a verb vs a death", death_beside_its_verb);
    run("a verb and a death", both_at_once);
    run("the type vs a verb", type_beside_verb);
    run("more watchers vs a death", come_back);
    run("sets in vain vs looks", vain_sets);
    run("get vs replacing and a death", get_beside_replacing);
    run("peek vs replacing and a death", peek_beside_replacing);
    run("stop vs a trim that begins again", stop_beside_again);
    park_stop(&a);
    park_stop(&b);
    wr_queue_free(queue);
    close(ends[0]);
    close(ends[1]);
    return 0;
}
#else
int main(void)
{
    puts("no schedule points in this build");
    return 0;
}
#endif
