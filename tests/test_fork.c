/* What a forked child finds: a working library, and of the parent's work what is its own. */
#include <fcntl.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <sys/resource.h>

#include <weakref/debug.h>
#include <weakref/finalize.h>
#include <weakref/guard.h>
#include <weakref/signal.h>
#include <weakref/value_dict.h>
#include <weakref/watch.h>

#include "begun.h"
#include "deaths.h"
#include "expect.h"
#include "fork.h"
#include "guard.h"

#if defined(__SANITIZE_THREAD__)
#define THREADS_IN_CHILDREN 0 /* ThreadSanitizer does not allow them */
#else
#define THREADS_IN_CHILDREN 1
#endif

/* In a child: says what does not hold, by the exit status too. */
#define CHECK(condition)                                                                                \
    do {                                                                                                \
        if (!(condition)) {                                                                             \
            fprintf(stderr, "%s:%d: in the child: %s does not hold\n", __FILE__, __LINE__, #condition); \
            _exit(1);                                                                                   \
        }                                                                                               \
    } while (0)

static void expect_good_end(pid_t child)
{
    int status = -1;
    cr_assert_gt(child, 0);
    cr_assert_eq(waitpid(child, &status, 0), child);
    cr_assert_eq(status, 0, "the child ended with %#x", (unsigned)status);
}

/* Forks; the child calls work(ctx) and exits with 0. */
static void in_child(void (*work)(void *ctx), void *ctx)
{
    pid_t child = fork();
    if (child == 0) {
        alarm(AWAIT_SECONDS);
        work(ctx);
        _exit(0);
    }
    expect_good_end(child);
}

/* A thread that does begin(ctx), lets the test go on, waits until it is told, and ends. */
struct helper {
    pthread_t thread;
    void (*begin)(struct helper *);
    void *ctx;
    atomic_bool begun, go_on;
};

static void helper_pause(struct helper *h)
{
    atomic_store(&h->begun, true);
    gate_wait(&h->go_on);
}

static void *helper_main(void *arg)
{
    struct helper *h = arg;
    h->begin(h);
    return NULL;
}

static void helper_start(struct helper *h, void (*begin)(struct helper *), void *ctx)
{
    *h = (struct helper){.begin = begin, .ctx = ctx};
    cr_assert_eq(pthread_create(&h->thread, NULL, helper_main, h), 0);
    gate_wait(&h->begun);
}

static void helper_end(struct helper *h)
{
    atomic_store(&h->go_on, true);
    pthread_join(h->thread, NULL);
}

static struct wr_queue_stats stats_of(wr_queue *queue)
{
    struct wr_queue_stats s;
    wr_queue_stats(queue, &s);
    return s;
}

static const wr_type deferred_type = {
    .name = "later", .size = sizeof(thing), .destroy = thing_destroy, .flags = WR_TYPE_DEFERRED};

/* ---- a working library ------------------------------------------------------------------------------------- */

static void stay_in_guard(struct helper *h)
{
    wr_guard_enter();
    helper_pause(h);
    wr_guard_exit();
}

static void finalizer(void *ctx)
{
    atomic_fetch_add((atomic_int *)ctx, 1);
}

static void use_everything(void *ctx)
{
    wr_value_dict *dict = ctx;
    atomic_int finalized = 0;
    wr_queue *queue = wr_queue_new("child");
    thing *t = thing_new(1), *u = thing_new(2);
    CHECK(queue != NULL && t != NULL && u != NULL);
    CHECK(wr_on_death(t, queue, LOG(1)) == 0);
    CHECK(wr_finalize(u, queue, finalizer, &finalized, WR_FINALIZE_ATEXIT) != NULL);
    CHECK(wr_value_dict_len(dict) == 1 && wr_value_dict_contains_str(dict, "parent"));
    CHECK(wr_value_dict_set_str(dict, "child", t) == 0);
    size_t n = 0;
    wr_value_dict_iter it;
    struct wr_value_dict_item item;
    wr_value_dict_iter_begin(&it, dict);
    for (; wr_value_dict_iter_next(&it, &item); n++)
        wr_release(item.value);
    wr_value_dict_iter_end(&it);
    CHECK(n == 2);
    wr_release(t);
    CHECK(wr_value_dict_len(dict) == 1);
    CHECK(wr_queue_drain(queue, SIZE_MAX) == 1 && n_logged == 1);
    wr_release_later(wr_new(&thing_type));
    wr_release(wr_new(&deferred_type));
    CHECK(wr_synchronize() == 0); /* another thread of the parent stays in a guard */
    CHECK(wr_barrier() == 0);
    CHECK(things_destroyed == 3);
    CHECK(wr_shutdown(10000) == 0);
    CHECK(finalized == 1);
    wr_release(u);
    wr_queue_free(queue);
    wr_value_dict_free(dict);
    CHECK(wr_barrier() == 0);
}

Test(fork, child_has_a_working_library)
{
    wr_value_dict *dict = wr_value_dict_new(NULL);
    thing *t = thing_new(0);
    struct helper guarded;
    helper_start(&guarded, stay_in_guard, NULL);
    cr_assert_eq(wr_value_dict_set_str(dict, "parent", t), 0);
    in_child(use_everything, dict);
    helper_end(&guarded);
    cr_assert_eq(wr_value_dict_len(dict), 1);
    wr_release(t);
    wr_value_dict_free(dict);
}

static void fork_again(void *ctx)
{
    pid_t child = fork();
    if (child == 0) {
        use_everything(ctx);
        _exit(0);
    }
    int status;
    CHECK(child > 0 && waitpid(child, &status, 0) == child && status == 0);
    use_everything(ctx);
}

Test(fork, grandchild_has_a_working_library)
{
    wr_value_dict *dict = wr_value_dict_new(NULL);
    thing *t = thing_new(0);
    cr_assert_eq(wr_value_dict_set_str(dict, "parent", t), 0);
    in_child(fork_again, dict);
    wr_release(t);
    wr_value_dict_free(dict);
}

static atomic_int whole;

static void be_inside(struct helper *h)
{
    wr_gate_enter();
    atomic_store(&h->begun, true);
    while (wr_atomic_load_seq_cst(&wr_gate_closed) == 0)
        sched_yield();
    atomic_store(&whole, 1);
    wr_gate_leave();
}

static void see_it_whole(void *ctx)
{
    (void)ctx;
    CHECK(atomic_load(&whole) == 1);
}

Test(fork, waits_until_unregistered_threads_are_out)
{
    for (unsigned i = 0; i < 20; i++) {
        struct helper h;
        atomic_store(&whole, 0);
        helper_start(&h, be_inside, NULL);
        in_child(see_it_whole, NULL);
        helper_end(&h);
    }
}

static void be_inside_registered(struct helper *h)
{
    (void)wr_thread_self();
    be_inside(h);
}

Test(fork, waits_until_registered_threads_are_out)
{
    for (unsigned i = 0; i < 20; i++) {
        struct helper h;
        atomic_store(&whole, 0);
        helper_start(&h, be_inside_registered, NULL);
        in_child(see_it_whole, NULL);
        helper_end(&h);
    }
}

static void fork_inside_the_gate(void *ctx)
{
    (void)ctx;
}

Test(fork, of_a_thread_that_is_inside_does_not_hang)
{
    /* As from a signal's handler: the child may only exec or exit. */
    wr_gate_enter();
    in_child(fork_inside_the_gate, NULL);
    wr_gate_leave();
    in_child(see_it_whole, (atomic_store(&whole, 1), NULL));
}

#if !defined(__SANITIZE_THREAD__) && !defined(__SANITIZE_ADDRESS__)
/* glibc asks for memory where a thread has its first value of a key beyond the 32nd. */
static atomic_bool allocates_inside;

void *__libc_calloc(size_t n, size_t size);

void *calloc(size_t n, size_t size)
{
    if (wr_gate_is_inside())
        atomic_store(&allocates_inside, true);
    return __libc_calloc(n, size);
}

static void *release_here(void *obj)
{
    wr_release(obj);
    return NULL;
}

Test(fork, threads_are_registered_outside_of_what_no_fork_may_cut)
{
    pthread_key_t key;
    for (int i = 0; i < 40; i++)
        cr_assert_eq(pthread_key_create(&key, NULL), 0);
    thing *t = thing_new(1);
    wr_value_dict *dict = wr_value_dict_new(NULL);
    pthread_t thread;
    cr_assert_eq(wr_value_dict_set_str(dict, "key", t), 0);
    cr_assert_eq(pthread_create(&thread, NULL, release_here, t), 0);
    pthread_join(thread, NULL);
    cr_assert_eq(wr_value_dict_len(dict), 0);
    cr_assert(!atomic_load(&allocates_inside), "an allocator that holds its lock across a fork would wait for ever");
    wr_value_dict_free(dict);
}
#endif

/* ---- callbacks --------------------------------------------------------------------------------------------- */

static void see_nothing_pending(void *ctx)
{
    wr_queue *queue = ctx;
    struct wr_queue_stats s = stats_of(queue);
    CHECK(s.watched == 3 && s.armed == 1 && s.pending == 0 && s.cancelled == 2 && s.delivered == 0);
    CHECK(wr_queue_drain(queue, SIZE_MAX) == 0 && n_logged == 0);
    CHECK(wr_queue_barrier(queue) == 0);
}

Test(fork, pending_is_the_parents)
{
    wr_queue *queue = wr_queue_new("q");
    thing *t = thing_new(1), *dead = thing_new(2);
    cr_assert_eq(wr_on_death(t, queue, LOG(1)), 0);
    cr_assert_eq(wr_on_death(dead, queue, LOG(2)), 0);
    wr_watch *watch = wr_watch_new(dead, queue, LOG(3));
    wr_release(dead);
    in_child(see_nothing_pending, queue);
    cr_assert_eq(wr_queue_drain(queue, SIZE_MAX), 2);
    cr_assert_eq(wr_watch_cancel(watch), WR_DELIVERED);
    wr_watch_release(watch);
    wr_release(t);
    cr_assert_eq(wr_queue_drain(queue, SIZE_MAX), 1);
    cr_assert(queue_is_balanced(queue));
    wr_queue_free(queue);
}

struct watched {
    wr_queue *queue;
    wr_watch *watch;
    thing *thing;
};

static void see_watches_cancelled(void *ctx)
{
    struct watched *w = ctx;
    CHECK(wr_watch_cancel(w->watch) == WR_CANCELLED);
    CHECK(wr_watch_cancel_sync(w->watch) == WR_CANCELLED);
    wr_watch_release(w->watch);
    wr_release(w->thing); /* its watch is armed, and is delivered here too */
    CHECK(wr_queue_drain(w->queue, SIZE_MAX) == 1 && n_logged == 1 && callback_log[0] == 7);
    CHECK(queue_is_balanced(w->queue));
    wr_queue_free(w->queue);
    CHECK(wr_barrier() == 0);
}

Test(fork, watches_that_were_pending_are_cancelled_and_armed_ones_stay)
{
    struct watched w = {.queue = wr_queue_new("q"), .thing = thing_new(1)};
    thing *dead = thing_new(2);
    w.watch = wr_watch_new(dead, w.queue, LOG(3));
    cr_assert_eq(wr_on_death(w.thing, w.queue, LOG(7)), 0);
    wr_release(dead);
    in_child(see_watches_cancelled, &w);
    cr_assert_eq(wr_queue_drain(w.queue, SIZE_MAX), 1);
    cr_assert_eq(wr_watch_cancel(w.watch), WR_DELIVERED);
    wr_watch_release(w.watch);
    wr_release(w.thing);
    wr_queue_free(w.queue);
}

static void stay_in_callback(wr_weak *dead, void *ctx)
{
    (void)dead;
    helper_pause(ctx);
}

static void drain_here(struct helper *h)
{
    wr_queue_drain(h->ctx, SIZE_MAX);
}

static void see_running_cancelled(void *ctx)
{
    struct watched *w = ctx;
    struct wr_queue_stats s = stats_of(w->queue);
    CHECK(s.running == 0 && s.cancelled == 1 && queue_is_balanced(w->queue));
    CHECK(wr_watch_cancel_sync(w->watch) == WR_CANCELLED);
    CHECK(wr_watch_cancel(w->watch) == WR_CANCELLED);
    wr_watch_release(w->watch);
    CHECK(wr_queue_barrier(w->queue) == 0);
    CHECK(wr_queue_cancel_all(w->queue) == 0);
    wr_queue_free(w->queue);
}

Test(fork, callbacks_that_run_elsewhere_are_cancelled)
{
    struct watched w = {.queue = wr_queue_new("q")};
    struct helper h;
    thing *dead = thing_new(1);
    w.watch = wr_watch_new(dead, w.queue, stay_in_callback, &h);
    wr_release(dead);
    helper_start(&h, drain_here, w.queue);
    cr_assert_eq(wr_watch_cancel(w.watch), WR_RUNNING);
    in_child(see_running_cancelled, &w);
    helper_end(&h);
    cr_assert_eq(wr_watch_cancel_sync(w.watch), WR_DELIVERED);
    wr_watch_release(w.watch);
    wr_queue_free(w.queue);
}

static wr_watch *own_watch;
static pid_t forked;

static void fork_in_callback(wr_weak *dead, void *ctx)
{
    (void)dead;
    forked = fork();
    if (forked == 0) {
        alarm(AWAIT_SECONDS);
        CHECK(wr_watch_cancel(own_watch) == WR_DELIVERED);
        CHECK(wr_watch_cancel_sync(own_watch) == -EDEADLK);
        CHECK(wr_queue_barrier(ctx) == -EDEADLK);
        CHECK(stats_of(ctx).running == 1 && stats_of(ctx).cancelled == 1);
    }
}

Test(fork, inside_a_callback_that_goes_on_in_both)
{
    wr_queue *queue = wr_queue_new("q");
    thing *dead = thing_new(1), *other = thing_new(2);
    own_watch = wr_watch_new(dead, queue, fork_in_callback, queue);
    cr_assert_eq(wr_on_death(other, queue, LOG(1)), 0);
    wr_release(dead);
    wr_release(other);
    size_t n = wr_queue_drain(queue, SIZE_MAX);
    if (forked == 0) {
        CHECK(n == 1 && n_logged == 0);
        CHECK(stats_of(queue).delivered == 1 && queue_is_balanced(queue) && stats_of(queue).running == 0);
        CHECK(wr_watch_cancel_sync(own_watch) == WR_DELIVERED);
        wr_watch_release(own_watch);
        wr_queue_free(queue);
        _exit(0);
    }
    expect_good_end(forked);
    cr_assert_eq(n, 2);
    wr_watch_release(own_watch);
    wr_queue_free(queue);
}

static bool is_readable(int fd)
{
    struct pollfd p = {.fd = fd, .events = POLLIN};
    return poll(&p, 1, 0) == 1;
}

static void see_own_descriptor(void *ctx)
{
    wr_queue *queue = ctx;
    int fd = wr_queue_fd(queue);
    CHECK(fd >= 0 && !is_readable(fd));
    CHECK(fcntl(fd, F_GETFD) & FD_CLOEXEC);
    thing *t = thing_new(1);
    CHECK(wr_on_death(t, queue, LOG(1)) == 0);
    wr_release(t);
    CHECK(is_readable(fd));
    CHECK(wr_queue_drain(queue, SIZE_MAX) == 1);
    CHECK(!is_readable(fd));
}

Test(fork, child_has_a_descriptor_of_its_own_under_the_same_number)
{
    wr_queue *queue = wr_queue_new("q");
    int fd = wr_queue_fd(queue);
    thing *dead = thing_new(1);
    cr_assert_eq(wr_on_death(dead, queue, LOG(1)), 0);
    wr_release(dead);
    cr_assert(is_readable(fd));
    in_child(see_own_descriptor, queue);
    cr_assert(is_readable(fd), "the child's drain reset the parent's");
    cr_assert_eq(wr_queue_fd(queue), fd);
    cr_assert_eq(wr_queue_drain(queue, SIZE_MAX), 1);
    cr_assert(!is_readable(fd));
    wr_queue_free(queue);
}

static void take_fds(int *first, int *end)
{
    *first = *end = dup(0);
    for (int fd = *first; fd >= 0; fd = dup(0))
        *end = fd;
}

static void see_own_descriptor_in_no_room(void *ctx)
{
    wr_queue *queue = ctx;
    int fd = wr_queue_fd(queue);
    CHECK(fd >= 0 && !is_readable(fd)); /* the parent's is */
    thing *t = thing_new(1);
    CHECK(wr_on_death(t, queue, LOG(1)) == 0);
    wr_release(t);
    CHECK(is_readable(fd));
    CHECK(wr_queue_drain(queue, SIZE_MAX) == 1);
    CHECK(!is_readable(fd));
}

Test(fork, child_has_a_descriptor_of_its_own_where_there_is_none_to_be_had)
{
    wr_queue *queue = wr_queue_new("q");
    int fd = wr_queue_fd(queue), first, end;
    thing *dead = thing_new(1);
    struct rlimit before, few;
    cr_assert_eq(wr_on_death(dead, queue, LOG(1)), 0);
    wr_release(dead);
    cr_assert_eq(getrlimit(RLIMIT_NOFILE, &before), 0);
    few = before;
    few.rlim_cur = (rlim_t)fd + 16;
    cr_assert_eq(setrlimit(RLIMIT_NOFILE, &few), 0);
    take_fds(&first, &end);
    in_child(see_own_descriptor_in_no_room, queue);
    for (int i = first; i <= end && i >= 0; i++)
        close(i);
    cr_assert_eq(setrlimit(RLIMIT_NOFILE, &before), 0);
    cr_assert(is_readable(fd));
    cr_assert_eq(wr_queue_drain(queue, SIZE_MAX), 1);
    wr_queue_free(queue);
}

static int n_storms;

static void storm_hook(wr_queue *queue, uint64_t pending, void *ctx)
{
    (void)queue, (void)pending, (void)ctx;
    n_storms++;
}

static void kill_many(wr_queue *queue, int n)
{
    for (int i = 0; i < n; i++) {
        thing *t = thing_new(i);
        CHECK(wr_on_death(t, queue, LOG(i)) == 0);
        wr_release(t);
    }
}

static void see_a_storm_of_its_own(void *ctx)
{
    kill_many(ctx, 20); /* nothing was pending: this is the next one */
    CHECK(n_storms == 2);
}

Test(fork, storms_begin_anew)
{
    wr_queue *queue = wr_queue_new("q");
    cr_assert_eq(wr_queue_set_high_water(queue, 10, storm_hook, NULL, 0), 0);
    kill_many(queue, 20);
    cr_assert_eq(n_storms, 1);
    in_child(see_a_storm_of_its_own, queue);
    kill_many(queue, 20);
    cr_assert_eq(n_storms, 1, "it goes on");
    wr_queue_free(queue);
}

#if THREADS_IN_CHILDREN
static void see_crew_come_back(void *ctx)
{
    wr_queue *queue = ctx;
    thing *t = thing_new(1);
    CHECK(wr_on_death(t, queue, LOG(1)) == 0);
    wr_release(t);
    CHECK(wr_queue_barrier(queue) == 0 && n_logged == 1);
    CHECK(wr_queue_start(queue, 1) == -EBUSY);
    CHECK(wr_queue_stop(queue) == 0);
    CHECK(wr_queue_start(queue, 1) == 0);
    wr_queue_free(queue);
}

Test(fork, threads_of_a_queue_come_back)
{
    wr_queue *queue = wr_queue_new("q");
    begun_start(queue, 3);
    in_child(see_crew_come_back, queue);
    wr_queue_free(queue);
}

static void release_watched(void *ctx)
{
    struct watched *w = ctx;
    wr_release(w->thing);
    while (atomic_load(&n_logged) == 0)
        sched_yield();
    CHECK(wr_queue_barrier(wr_queue_default()) == 0);
}

Test(fork, threads_come_back_for_a_death_alone)
{
    struct watched w = {.thing = thing_new(1)};
    begun_start(wr_queue_default(), 0);
    cr_assert_eq(wr_on_death(w.thing, NULL, LOG(1)), 0);
    in_child(release_watched, &w);
    release_watched(&w);
}

static void stop_at_once(void *ctx)
{
    CHECK(wr_queue_stop(ctx) == 0);
    wr_queue_free(ctx);
}

Test(fork, threads_that_did_not_come_along_are_not_waited_for)
{
    wr_queue *queue = wr_queue_new("q");
    begun_start(queue, 3);
    in_child(stop_at_once, queue);
    wr_queue_free(queue);
}

static atomic_bool forked_here;

static void fork_on_the_crew(wr_weak *dead, void *ctx)
{
    (void)dead;
    forked = fork();
    if (forked == 0) {
        alarm(AWAIT_SECONDS);
        thing *t = thing_new(1);
        CHECK(wr_on_death(t, ctx, LOG(1)) == 0);
        wr_release(t);
        while (atomic_load(&n_logged) == 0) /* by the other thread, which has come back */
            sched_yield();
        _exit(0);
    }
    atomic_store(&forked_here, true);
}

Test(fork, by_a_thread_of_a_queue)
{
    wr_queue *queue = wr_queue_new("q");
    begun_start(queue, 2);
    thing *t = thing_new(1);
    cr_assert_eq(wr_on_death(t, queue, fork_on_the_crew, queue), 0);
    wr_release(t);
    await(atomic_load(&forked_here));
    expect_good_end(forked);
    wr_queue_free(queue);
}

static void wait_for_the_reclaimer(void *ctx)
{
    (void)ctx;
    wr_release_later(wr_new(&thing_type));
    while (atomic_load(&things_destroyed) == 0)
        sched_yield();
}

Test(fork, reclaimer_comes_back)
{
    cr_assert_eq(wr_reclaimer_start(), 0);
    wait_for_the_reclaimer(NULL); /* it has begun: see begun_start() */
    atomic_store(&things_destroyed, 0);
    in_child(wait_for_the_reclaimer, NULL);
}
#endif

static wr_queue *destroy_queue;

static wr_queue *where(void)
{
    return destroy_queue;
}

static void see_no_destroy(void *ctx)
{
    CHECK(stats_of(ctx).pending == 0 && queue_is_balanced(ctx));
    CHECK(wr_queue_drain(ctx, SIZE_MAX) == 0 && things_destroyed == 0);
}

Test(fork, pending_destroys_are_the_parents)
{
    static const wr_type remote = {
        .name = "remote", .size = sizeof(thing), .destroy = thing_destroy, .destroy_on = where};
    destroy_queue = wr_queue_new("destroys");
    wr_release(wr_new(&remote));
    in_child(see_no_destroy, destroy_queue);
    cr_assert_eq(wr_queue_drain(destroy_queue, SIZE_MAX), 1);
    cr_assert_eq(things_destroyed, 1);
    wr_queue_free(destroy_queue);
}

/* ---- finalizers and signals ------------------------------------------------------------------------------ */

static void stay_in_finalizer(void *ctx)
{
    helper_pause(ctx);
}

static void call_finalizer(struct helper *h)
{
    wr_finalizer **f = h->ctx;
    (void)wr_finalizer_call(*f);
}

static void see_finalizer_spent(void *ctx)
{
    CHECK(!wr_finalizer_alive(ctx));
    CHECK(wr_finalizer_detach_sync(ctx) == -ESTALE);
    wr_finalizer_release(ctx);
    CHECK(wr_shutdown(10000) == 0);
}

Test(fork, finalizers_that_run_elsewhere_are_not_waited_for)
{
    struct helper h;
    thing *t = thing_new(1);
    wr_queue *queue = wr_queue_new("q");
    wr_finalizer *f = wr_finalize(t, queue, stay_in_finalizer, &h, WR_FINALIZE_ATEXIT);
    helper_start(&h, call_finalizer, &f);
    in_child(see_finalizer_spent, f);
    helper_end(&h);
    wr_finalizer_release(f);
    wr_release(t);
    wr_queue_free(queue);
}

static int stay_in_handler(void *obj, void *arg)
{
    (void)obj;
    if (arg != NULL)
        helper_pause(arg);
    return 0;
}

static void emit(struct helper *h)
{
    wr_signal_emit(h->ctx, h);
}

struct connected {
    wr_signal *signal;
    wr_connection *connection;
    bool in_handler;
};

static void see_handler_gone(void *ctx)
{
    struct connected *c = ctx;
    CHECK(wr_signal_len(c->signal) == 1);
    CHECK(wr_signal_emit(c->signal, NULL) == 1);
    CHECK(wr_signal_disconnect_sync(c->connection) == 0);
    CHECK(wr_signal_len(c->signal) == 0 && wr_signal_emit(c->signal, NULL) == 0);
    wr_connection_release(c->connection);
    wr_signal_free(c->signal);
    CHECK(wr_barrier() == 0);
}

Test(fork, handlers_that_run_elsewhere_are_not_waited_for)
{
    struct helper h;
    thing *t = thing_new(1);
    struct connected c = {.signal = wr_signal_new("s")};
    cr_assert_eq(wr_signal_connect(c.signal, t, stay_in_handler, &c.connection), 0);
    helper_start(&h, emit, c.signal);
    in_child(see_handler_gone, &c);
    helper_end(&h);
    cr_assert_eq(wr_signal_disconnect_sync(c.connection), 0);
    wr_connection_release(c.connection);
    wr_signal_free(c.signal);
    wr_release(t);
}

static int fork_in_handler(void *obj, void *arg)
{
    struct connected *c = arg;
    (void)obj;
    forked = fork();
    if (forked == 0) {
        alarm(AWAIT_SECONDS);
        CHECK(wr_signal_disconnect_sync(c->connection) == -EDEADLK);
    }
    return 0;
}

Test(fork, inside_a_handler_that_goes_on_in_both)
{
    thing *t = thing_new(1);
    struct connected c = {.signal = wr_signal_new("s")};
    cr_assert_eq(wr_signal_connect(c.signal, t, fork_in_handler, &c.connection), 0);
    cr_assert_eq(wr_signal_emit(c.signal, &c), 1);
    if (forked == 0) {
        CHECK(wr_signal_disconnect_sync(c.connection) == 0 && wr_signal_len(c.signal) == 0);
        wr_connection_release(c.connection);
        wr_signal_free(c.signal);
        CHECK(wr_barrier() == 0);
        _exit(0);
    }
    expect_good_end(forked);
    cr_assert_eq(wr_signal_len(c.signal), 1);
    wr_connection_release(c.connection);
    wr_signal_free(c.signal);
    wr_release(t);
}

/* ---- creates ----------------------------------------------------------------------------------------------- */

static int create(const void *key, size_t size, void *ctx, void **obj)
{
    (void)key, (void)size;
    if (ctx != NULL)
        helper_pause(ctx);
    *obj = thing_new(1);
    return 0;
}

static void create_here(struct helper *h)
{
    void *obj;
    cr_assert_eq(wr_value_dict_get_or_create_str(h->ctx, "key", create, h, &obj), 0);
    wr_release(obj);
}

static void create_in_its_place(void *ctx)
{
    void *obj;
    CHECK(wr_value_dict_get_or_create_str(ctx, "key", create, NULL, &obj) == 0 && obj != NULL);
    CHECK(wr_value_dict_len(ctx) == 1 && wr_strong_count(obj) == 1);
    wr_release(obj);
    CHECK(wr_value_dict_len(ctx) == 0);
    wr_value_dict_free(ctx);
    CHECK(wr_barrier() == 0);
}

Test(fork, creates_that_run_elsewhere_are_not_waited_for)
{
    struct helper h;
    wr_value_dict *dict = wr_value_dict_new(NULL);
    helper_start(&h, create_here, dict);
    in_child(create_in_its_place, dict);
    helper_end(&h);
    wr_value_dict_free(dict);
}

static struct helper joiner;

static void join_the_flight(struct helper *h)
{
    void *obj;
    atomic_store(&h->begun, true);
    cr_assert_eq(wr_value_dict_get_or_create_str(h->ctx, "key", create, NULL, &obj), 0);
    wr_release(obj);
}

static int fork_in_create(const void *key, size_t size, void *ctx, void **obj)
{
    (void)key, (void)size;
    helper_start(&joiner, join_the_flight, ctx);
    forked = fork(); /* the other thread waits for this flight, or is about to */
    if (forked == 0) {
        alarm(AWAIT_SECONDS);
        void *unused;
        CHECK(wr_value_dict_get_or_create_str(ctx, "key", create, NULL, &unused) == -EDEADLK);
    }
    *obj = thing_new(1);
    return 0;
}

Test(fork, inside_a_create_that_goes_on_in_both)
{
    wr_value_dict *dict = wr_value_dict_new(NULL);
    void *obj;
    int err = wr_value_dict_get_or_create_str(dict, "key", fork_in_create, dict, &obj);
    if (forked == 0) {
        CHECK(err == 0 && wr_strong_count(obj) == 1); /* none for those who waited in the parent */
        wr_release(obj);
        CHECK(things_destroyed == 1 && wr_value_dict_len(dict) == 0);
        wr_value_dict_free(dict);
        _exit(0);
    }
    expect_good_end(forked);
    cr_assert_eq(err, 0);
    helper_end(&joiner);
    wr_release(obj);
    wr_value_dict_free(dict);
}

/* ---- guards, deferred work, destroys --------------------------------------------------------------------- */

Test(fork, inside_a_guard_that_goes_on_in_both)
{
    thing *t = wr_new(&deferred_type);
    wr_weak *weak = wr_downgrade(t);
    wr_guard_enter();
    thing *seen = wr_peek(weak);
    wr_release(t);
    forked = fork();
    if (forked == 0)
        alarm(AWAIT_SECONDS);
    bool good = wr_synchronize() == -EDEADLK && seen->number == 0 && things_destroyed == 0;
    wr_guard_exit();
    good = good && wr_barrier() == 0 && things_destroyed == 1;
    wr_weak_release(weak);
    if (forked == 0)
        _exit(!good);
    expect_good_end(forked);
    cr_assert(good);
}

static atomic_int destroyed_of[2]; /* 0: by the thread that forks, 1: by another */

static void count_destroy(void *obj)
{
    atomic_fetch_add(&destroyed_of[((thing *)obj)->number], 1);
}

static const wr_type counted_type = {.name = "counted", .size = sizeof(thing), .destroy = count_destroy};

static thing *counted(const wr_type *type, int number)
{
    thing *t = wr_new(type);
    t->number = number;
    return t;
}

static void defer_much(struct helper *h)
{
    for (int i = 0; i < 3; i++)
        wr_release_later(counted(&counted_type, 1));
    helper_pause(h);
}

static void see_own_work_done(void *ctx)
{
    (void)ctx;
    CHECK(wr_barrier() == 0);
    CHECK(destroyed_of[0] == 5 && destroyed_of[1] == 0);
    struct wr_stats stats;
    wr_stats(&stats);
    CHECK(stats.deferred == 0);
}

Test(fork, deferred_work_of_others_is_the_parents)
{
    for (int batched = 0; batched <= 1; batched++) {
        struct helper guarded, busy;
        atomic_store(&destroyed_of[0], 0);
        atomic_store(&destroyed_of[1], 0);
        helper_start(&guarded, stay_in_guard, NULL); /* so that nothing is run before the fork */
        helper_start(&busy, defer_much, NULL);
        for (int i = 0; i < 5; i++)
            wr_release_later(counted(&counted_type, 0));
        struct wr_stats stats;
        if (batched)
            wr_stats(&stats); /* takes it all into one batch */
        in_child(see_own_work_done, NULL);
        helper_end(&busy);
        helper_end(&guarded);
        cr_assert_eq(wr_barrier(), 0);
        cr_assert_eq(destroyed_of[0], 5);
        cr_assert_eq(destroyed_of[1], 3);
    }
}

static pthread_t main_thread;

static void destroy_and_fork(void *obj)
{
    count_destroy(obj);
    if (forked >= 0)
        return;
    forked = fork();
    if (forked == 0 && !pthread_equal(main_thread, pthread_self()))
        _exit(0); /* on the reclaimer thread, which would go on as one */
}

static const wr_type forking_type = {.name = "forking", .size = sizeof(thing), .destroy = destroy_and_fork};

static void defer_one_more(struct helper *h)
{
    wr_release_later(counted(&counted_type, 1));
    helper_pause(h);
}

Test(fork, inside_deferred_work_goes_on_with_its_own)
{
    struct helper busy, guarded;
    helper_start(&guarded, stay_in_guard, NULL);
    forked = -1;
    main_thread = pthread_self();
    pid_t self = getpid();
    wr_release_later(counted(&forking_type, 0));
    wr_release_later(counted(&counted_type, 0));
    helper_start(&busy, defer_one_more, NULL);
    struct wr_stats stats;
    wr_stats(&stats);
    helper_end(&busy);
    helper_end(&guarded);
    int err = wr_barrier();
    if (getpid() != self) {
        CHECK(err == 0);
        CHECK(destroyed_of[0] == 2 && destroyed_of[1] <= 1);
        _exit(0);
    }
    cr_assert_eq(err, 0);
    cr_assert_eq(destroyed_of[0], 2);
    cr_assert_eq(destroyed_of[1], 1);
}

struct chain {
    struct chain *next;
};

static void chain_destroy(void *obj)
{
    struct chain *c = obj;
    bool last = c->next == NULL;
    wr_release(c->next);
    if (!last && forked < 0)
        forked = fork(); /* what was released waits for the end of this destroy */
    atomic_fetch_add(&things_destroyed, 1);
}

Test(fork, inside_a_destroy_that_goes_on_in_both)
{
    static const wr_type type = {.name = "chain", .size = sizeof(struct chain), .destroy = chain_destroy};
    struct chain *head = wr_new(&type);
    head->next = wr_new(&type);
    wr_queue *queue = wr_queue_new("q");
    cr_assert_eq(wr_on_death(head, queue, LOG(1)), 0);
    cr_assert_eq(wr_on_death(head->next, queue, LOG(2)), 0);
    forked = -1;
    wr_release(head);
    bool good = things_destroyed == 2 && wr_queue_drain(queue, SIZE_MAX) == 2 && queue_is_balanced(queue);
    wr_queue_free(queue);
    if (forked == 0)
        _exit(!good);
    cr_assert(good);
    expect_good_end(forked);
}
