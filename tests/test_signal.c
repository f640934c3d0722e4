/* Tests of signals: life, contract in header order, handlers that do what they may, misuse, lack of memory; the races are in
 * race_signal.c. */
#include <weakref/signal.h>

#include <weakref/guard.h>
#include <weakref/watch.h>

#include "deaths.h"
#include "expect.h"
#include "fail_alloc.h"

static wr_signal *sig;

static void make_signal(void)
{
    sig = wr_signal_new("price");
    cr_assert_not_null(sig);
}

static void free_signal(void)
{
    wr_signal_free(sig);
}

TestSuite(signal, .init = make_signal, .fini = free_signal, .timeout = 60);
TestSuite(signal_bare, .timeout = 60);
TestSuite(signal_memory, .timeout = 60); /* the allocator is set before the first allocation */

/* Logs the receiver's number plus *arg. */
static int log_number(void *obj, void *arg)
{
    log_callback(NULL, (void *)(intptr_t)(((thing *)obj)->number + (arg != NULL ? *(int *)arg : 0)));
    return 0;
}

static void expect_log(int n, const long *numbers)
{
    cr_assert_eq(n_logged, n, "%d, not %d", (int)n_logged, n);
    for (int i = 0; i < n; i++)
        cr_assert_eq(callback_log[i], numbers[i], "at %d: %ld, not %ld", i, callback_log[i], numbers[i]);
    n_logged = 0;
}

#define EXPECT_LOG(...) expect_log(sizeof((long[]){__VA_ARGS__}) / sizeof(long), (const long[]){__VA_ARGS__})

/* ---- life ------------------------------------------------------------------------------------------ */

Test(signal, emit_calls_the_receivers_in_order_of_connection)
{
    thing *t[5];
    for (int i = 0; i < 5; i++) {
        t[i] = thing_new(i);
        cr_assert_eq(wr_signal_connect(sig, t[i], log_number, NULL), 0);
    }
    int ten = 10;
    cr_assert_eq(wr_signal_emit(sig, &ten), 5);
    EXPECT_LOG(10, 11, 12, 13, 14);
    for (int i = 0; i < 5; i++)
        wr_release(t[i]);
}

Test(signal, without_receivers_nothing_is_run)
{
    cr_assert_eq(wr_signal_emit(sig, NULL), 0);
    cr_assert_eq(wr_signal_len(sig), 0);
}

Test(signal, a_receiver_that_dies_is_disconnected_and_swept)
{
    thing *a = thing_new(1), *b = thing_new(2), *c = thing_new(3);
    wr_connection *connection;
    cr_assert_eq(wr_signal_connect(sig, a, log_number, NULL), 0);
    cr_assert_eq(wr_signal_connect(sig, b, log_number, &connection), 0);
    cr_assert_eq(wr_signal_connect(sig, c, log_number, NULL), 0);
    cr_assert_eq(wr_strong_count(b), 1);
    cr_assert_eq(wr_weak_count(b), 0);
    cr_assert(wr_connection_is_connected(connection));
    wr_release(b);
    cr_assert_eq(things_destroyed, 1);
    cr_assert_not(wr_connection_is_connected(connection));
    cr_assert_eq(wr_signal_len(sig), 2);
    cr_assert_eq(wr_signal_emit(sig, NULL), 2);
    EXPECT_LOG(1, 3);
    wr_release(c);
    wr_release(a);
    cr_assert_eq(wr_signal_len(sig), 0);
    cr_assert_eq(wr_signal_emit(sig, NULL), 0);
    wr_connection_release(connection);
}

Test(signal, a_deferred_receiver_is_disconnected_at_its_death)
{
    static const wr_type type = {
        .name = "deferred", .size = sizeof(thing), .destroy = thing_destroy, .flags = WR_TYPE_DEFERRED};
    void *t = wr_new(&type);
    cr_assert_eq(wr_signal_connect(sig, t, log_number, NULL), 0);
    wr_release(t);
    cr_assert_eq(wr_signal_len(sig), 0);
    cr_assert_eq(wr_signal_emit(sig, NULL), 0);
    cr_assert_eq(wr_barrier(), 0);
    cr_assert_eq(things_destroyed, 1);
}

/* ---- contract -------------------------------------------------------------------------------------- */

Test(signal, null_is_refused)
{
    thing *t = thing_new(1);
    wr_connection *connection = (wr_connection *)1;
    cr_assert_eq(wr_signal_connect(NULL, t, log_number, &connection), -EINVAL);
    cr_assert_eq(wr_signal_connect(sig, (void *)NULL, log_number, &connection), -EINVAL);
    cr_assert_eq(wr_signal_connect(sig, t, NULL, &connection), -EINVAL);
    cr_assert_eq(wr_signal_connect_method(sig, NULL, &connection), -EINVAL);
    cr_assert_eq(connection, (wr_connection *)1, "untouched");
    cr_assert_eq(wr_signal_disconnect(NULL), -EINVAL);
    cr_assert_eq(wr_signal_disconnect_sync(NULL), -EINVAL);
    cr_assert_not(wr_connection_is_connected(NULL));
    wr_connection_release(NULL);
    errno = 0;
    cr_assert_eq(wr_signal_emit(NULL, NULL), 0);
    cr_assert_eq(errno, EINVAL);
    errno = 0;
    cr_assert_eq(wr_signal_len(NULL), 0);
    cr_assert_eq(errno, EINVAL);
    cr_assert_null(wr_signal_name(NULL));
    wr_signal_free(NULL);
    wr_release(t);
}

Test(signal, has_a_name)
{
    cr_assert_str_eq(wr_signal_name(sig), "price");
    wr_signal *unnamed = wr_signal_new(NULL);
    cr_assert_str_eq(wr_signal_name(unnamed), "signal");
    wr_signal_free(unnamed);
}

static int connect_answer;

static void connect_in_destroy(void *obj)
{
    connect_answer = wr_signal_connect(sig, obj, log_number, NULL);
}

Test(signal, inside_destroy_it_is_too_late_to_connect)
{
    static const wr_type type = {.name = "last", .size = sizeof(thing), .destroy = connect_in_destroy};
    wr_release(wr_new(&type));
    cr_assert_eq(connect_answer, -ESTALE);
    cr_assert_eq(wr_signal_len(sig), 0);
}

Test(signal, one_pair_connected_twice_is_called_twice)
{
    thing *t = thing_new(4);
    wr_connection *first;
    cr_assert_eq(wr_signal_connect(sig, t, log_number, &first), 0);
    cr_assert_eq(wr_signal_connect(sig, t, log_number, NULL), 0);
    cr_assert_eq(wr_signal_emit(sig, NULL), 2);
    cr_assert_eq(wr_signal_disconnect(first), 1);
    cr_assert_eq(wr_signal_emit(sig, NULL), 1);
    wr_connection_release(first);
    wr_release(t);
}

Test(signal, a_method_can_be_connected)
{
    thing *t = thing_new(5);
    wr_method *method = wr_method_new(t, log_number);
    wr_connection *connection;
    cr_assert_eq(wr_signal_connect_method(sig, method, &connection), 0);
    wr_method_release(method);
    cr_assert_eq(wr_signal_emit(sig, NULL), 1);
    EXPECT_LOG(5);
    cr_assert_eq(wr_signal_disconnect(connection), 1);
    wr_connection_release(connection);

    method = wr_method_new(t, log_number);
    wr_release(t);
    cr_assert_eq(wr_signal_connect_method(sig, method, NULL), -ESTALE);
    wr_method_release(method);
}

Test(signal, a_disconnected_handler_is_not_called)
{
    thing *t[3];
    wr_connection *c[3];
    for (int i = 0; i < 3; i++) {
        t[i] = thing_new(i);
        cr_assert_eq(wr_signal_connect(sig, t[i], log_number, &c[i]), 0);
    }
    cr_assert_eq(wr_signal_disconnect(c[1]), 1);
    cr_assert_eq(wr_signal_disconnect(c[1]), 0, "it was so already");
    cr_assert_eq(wr_signal_disconnect_sync(c[1]), 0);
    cr_assert_not(wr_connection_is_connected(c[1]));
    cr_assert_eq(wr_signal_len(sig), 2);
    wr_signal_emit(sig, NULL);
    EXPECT_LOG(0, 2);
    cr_assert_eq(wr_signal_disconnect_sync(c[2]), 0);
    cr_assert_eq(wr_signal_disconnect(c[0]), 1);
    cr_assert_eq(wr_signal_emit(sig, NULL), 0);
    cr_assert_eq(wr_signal_connect(sig, t[1], log_number, NULL), 0, "it can be connected anew");
    wr_signal_emit(sig, NULL);
    EXPECT_LOG(1);
    for (int i = 0; i < 3; i++) {
        wr_connection_release(c[i]);
        wr_release(t[i]);
    }
}

Test(signal, releasing_a_handle_disconnects_nothing)
{
    thing *t = thing_new(1);
    wr_connection *connection;
    cr_assert_eq(wr_signal_connect(sig, t, log_number, &connection), 0);
    wr_connection_release(connection);
    cr_assert_eq(wr_signal_emit(sig, NULL), 1);
    wr_release(t);
    cr_assert_eq(wr_signal_emit(sig, NULL), 0);
}

Test(signal_bare, freeing_a_signal_disconnects_all)
{
    make_signal();
    thing *t[3];
    wr_connection *c[3];
    for (int i = 0; i < 3; i++) {
        t[i] = thing_new(i);
        wr_signal_connect(sig, t[i], log_number, &c[i]);
    }
    wr_release(t[1]);
    wr_signal_free(sig);
    for (int i = 0; i < 3; i++) {
        cr_assert_not(wr_connection_is_connected(c[i]));
        cr_assert_eq(wr_signal_disconnect(c[i]), 0);
        wr_connection_release(c[i]);
    }
    wr_release(t[0]);
    wr_release(t[2]);
    cr_assert_eq(things_destroyed, 3);
}

Test(signal, many_come_and_go)
{
    enum { N = 5000 };
    static thing *t[N];
    static wr_connection *c[N];
    for (int i = 0; i < N; i++) {
        t[i] = thing_new(i);
        cr_assert_eq(wr_signal_connect(sig, t[i], log_number, &c[i]), 0);
    }
    for (int i = 0; i < N; i += 2)
        wr_signal_disconnect(c[i]);
    for (int i = 0; i < N; i += 3) {
        wr_release(t[i]);
        t[i] = NULL;
    }
    size_t left = 0;
    for (int i = 0; i < N; i++)
        left += i % 2 != 0 && i % 3 != 0;
    cr_assert_eq(wr_signal_len(sig), left);
    cr_assert_eq(wr_signal_emit(sig, NULL), left);
    for (int i = 0; i < N; i++) {
        wr_connection_release(c[i]);
        wr_release(t[i]);
    }
    cr_assert_eq(wr_signal_len(sig), 0);
}

/* ---- handlers that do what they may ---------------------------------------------------------------- */

static wr_connection *connections[4];
static thing *receivers[4];
static int answers[8];

static void connect_four(wr_method_fn *second)
{
    for (int i = 0; i < 4; i++) {
        receivers[i] = thing_new(i);
        cr_assert_eq(wr_signal_connect(sig, receivers[i], i == 1 ? second : log_number, &connections[i]), 0);
    }
}

static void drop_four(void)
{
    for (int i = 0; i < 4; i++) {
        wr_connection_release(connections[i]);
        wr_release(receivers[i]);
    }
}

static int disconnect_self_and_next(void *obj, void *arg)
{
    answers[0] = wr_signal_disconnect(connections[1]);
    answers[1] = wr_signal_disconnect_sync(connections[1]);
    answers[2] = wr_signal_disconnect(connections[0]);
    answers[3] = wr_signal_disconnect_sync(connections[2]);
    return log_number(obj, arg);
}

Test(signal, a_handler_disconnects_itself_and_others)
{
    connect_four(disconnect_self_and_next);
    cr_assert_eq(wr_signal_emit(sig, NULL), 3);
    EXPECT_LOG(0, 1, 3);
    cr_assert_eq(answers[0], 1);
    cr_assert_eq(answers[1], -EDEADLK);
    cr_assert_eq(answers[2], 1);
    cr_assert_eq(answers[3], 0);
    cr_assert_eq(wr_signal_disconnect_sync(connections[1]), 0, "now it is over");
    cr_assert_eq(wr_signal_emit(sig, NULL), 1);
    EXPECT_LOG(3);
    drop_four();
}

static int disconnect_self_and_emit(void *obj, void *arg)
{
    cr_assert(wr_connection_is_connected(connections[1]));
    log_number(obj, arg);
    wr_signal_disconnect(connections[1]);
    answers[0] = (int)wr_signal_emit(sig, arg);
    return 0;
}

Test(signal, a_disconnected_handler_that_still_runs_is_not_called_again)
{
    connect_four(disconnect_self_and_emit);
    cr_assert_eq(wr_signal_emit(sig, NULL), 4);
    EXPECT_LOG(0, 1, 0, 2, 3, 2, 3);
    cr_assert_eq(answers[0], 3);
    drop_four();
}

static int disconnect_all(void *obj, void *arg)
{
    for (int i = 3; i >= 0; i--)
        wr_signal_disconnect(connections[i]);
    return log_number(obj, arg);
}

Test(signal, an_emission_goes_on_where_everything_was_disconnected)
{
    connect_four(disconnect_all);
    cr_assert_eq(wr_signal_emit(sig, NULL), 2);
    EXPECT_LOG(0, 1);
    cr_assert_eq(wr_signal_len(sig), 0);
    drop_four();
}

static int connect_more(void *obj, void *arg)
{
    answers[0] += wr_signal_connect(sig, obj, connect_more, NULL);
    return log_number(obj, arg);
}

Test(signal, what_a_handler_connects_waits_for_the_next_emission)
{
    connect_four(connect_more);
    cr_assert_eq(wr_signal_emit(sig, NULL), 4);
    EXPECT_LOG(0, 1, 2, 3);
    cr_assert_eq(answers[0], 0);
    cr_assert_eq(wr_signal_len(sig), 5);
    cr_assert_eq(wr_signal_emit(sig, NULL), 5);
    EXPECT_LOG(0, 1, 2, 3, 1);
    cr_assert_eq(wr_signal_len(sig), 7);
    drop_four();
}

static int replace_self(void *obj, void *arg)
{
    wr_connection *old = connections[1];
    wr_signal_disconnect(old);
    wr_connection_release(old);
    answers[0] = wr_signal_connect(sig, obj, replace_self, &connections[1]);
    return log_number(obj, arg);
}

Test(signal, a_handler_may_replace_itself)
{
    connect_four(replace_self);
    for (int i = 0; i < 3; i++) {
        cr_assert_eq(wr_signal_emit(sig, NULL), 4);
        if (i == 0)
            EXPECT_LOG(0, 1, 2, 3);
        else
            EXPECT_LOG(0, 2, 3, 1);
    }
    cr_assert_eq(wr_signal_len(sig), 4);
    drop_four();
}

static int release_next(void *obj, void *arg)
{
    log_number(obj, arg);
    wr_release(receivers[1]); /* itself: lives to the end of the call */
    wr_release(receivers[2]);
    answers[0] = things_destroyed;
    answers[1] = (int)wr_signal_len(sig);
    receivers[1] = receivers[2] = NULL;
    return 0;
}

Test(signal, a_handler_may_release_itself_and_others)
{
    connect_four(release_next);
    cr_assert_eq(wr_signal_emit(sig, NULL), 3);
    EXPECT_LOG(0, 1, 3);
    cr_assert_eq(answers[0], 1, "the emission holds the one whose handler runs");
    cr_assert_eq(answers[1], 3);
    cr_assert_eq(things_destroyed, 2);
    cr_assert_eq(wr_signal_len(sig), 2);
    drop_four();
}

static int emit_again(void *obj, void *arg)
{
    static int depth;
    log_number(obj, arg);
    if (++depth < 3)
        answers[depth] = (int)wr_signal_emit(sig, arg);
    return 0;
}

Test(signal, a_handler_may_emit)
{
    connect_four(emit_again);
    cr_assert_eq(wr_signal_emit(sig, NULL), 4);
    EXPECT_LOG(0, 1, 0, 1, 0, 1, 2, 3, 2, 3, 2, 3);
    drop_four();
}

static int free_sig(void *obj, void *arg)
{
    log_number(obj, arg);
    wr_signal_free(sig);
    answers[0] = wr_signal_connect(sig, obj, log_number, NULL);
    answers[1] = wr_connection_is_connected(connections[1]);
    answers[2] = wr_signal_disconnect_sync(connections[3]);
    return 0;
}

Test(signal_bare, a_handler_may_free_the_signal)
{
    make_signal();
    connect_four(free_sig);
    cr_assert_eq(wr_signal_emit(sig, NULL), 2);
    EXPECT_LOG(0, 1);
    cr_assert_eq(answers[0], -ECANCELED);
    cr_assert_eq(answers[1], 0);
    cr_assert_eq(answers[2], 0);
    drop_four();
}

static int look_around(void *obj, void *arg)
{
    /* In no guard: what is retired now can be waited for. */
    answers[0] = wr_synchronize();
    answers[1] = wr_barrier();
    answers[2] = (int)wr_strong_count(obj);
    return log_number(obj, arg);
}

Test(signal, a_handler_runs_in_no_guard)
{
    connect_four(look_around);
    cr_assert_eq(wr_signal_emit(sig, NULL), 4);
    cr_assert_eq(answers[0], 0);
    cr_assert_eq(answers[1], 0);
    cr_assert_eq(answers[2], 2, "the test's and the emission's");
    drop_four();
}

/* The receiver's end runs on the emitting thread, after its handler, and disconnects it and the next one. */
static void disconnect_in_destroy(void *obj)
{
    thing_destroy(obj);
    answers[1] = wr_signal_disconnect_sync(connections[1]);
    answers[2] = wr_signal_disconnect_sync(connections[2]);
}

static int release_self(void *obj, void *arg)
{
    answers[0] = wr_signal_disconnect_sync(connections[1]);
    wr_release(obj); /* the test's; the emission's follows */
    return log_number(obj, arg);
}

Test(signal, a_destroy_after_the_handler_may_wait_for_it)
{
    static const wr_type type = {.name = "last", .size = sizeof(thing), .destroy = disconnect_in_destroy};
    connect_four(log_number);
    wr_signal_disconnect(connections[1]);
    wr_signal_disconnect(connections[2]);
    wr_signal_disconnect(connections[3]);
    wr_connection_release(connections[1]);
    wr_connection_release(connections[2]);
    thing *t = wr_new(&type);
    t->number = 7;
    wr_signal_connect(sig, t, release_self, &connections[1]);
    wr_signal_connect(sig, receivers[2], log_number, &connections[2]);
    answers[1] = answers[2] = 1;
    cr_assert_eq(wr_signal_emit(sig, NULL), 2);
    EXPECT_LOG(0, 7);
    cr_assert_eq(answers[0], -EDEADLK);
    cr_assert_eq(answers[1], 0, "its handler has returned");
    cr_assert_eq(answers[2], 0);
    drop_four();
}

static int pass_gate(void *obj, void *arg)
{
    wait_at_gate(NULL, arg);
    return log_number(obj, NULL);
}

static void *emit_thread(void *gate)
{
    wr_signal_emit(sig, gate);
    return NULL;
}

static void *sync_thread(void *connection)
{
    int answer = wr_signal_disconnect_sync(connection);
    return (void *)(intptr_t)(n_logged == 1 ? answer : -1);
}

Test(signal, disconnect_sync_waits_for_a_running_handler_and_disconnect_does_not)
{
    struct gate gate = {false, false};
    thing *t = thing_new(1);
    wr_connection *connection;
    cr_assert_eq(wr_signal_connect(sig, t, pass_gate, &connection), 0);
    pthread_t emitter, waiter;
    pthread_create(&emitter, NULL, emit_thread, &gate);
    gate_wait(&gate.reached);
    cr_assert_eq(wr_signal_disconnect(connection), 1);
    cr_assert_eq(wr_signal_len(sig), 0);
    pthread_create(&waiter, NULL, sync_thread, connection);
    for (int i = 0; i < 1000; i++)
        sched_yield();
    cr_assert_eq(n_logged, 0);
    atomic_store(&gate.open, true);
    void *answer;
    pthread_join(waiter, &answer);
    cr_assert_eq((intptr_t)answer, 0);
    pthread_join(emitter, NULL);
    wr_connection_release(connection);
    wr_release(t);
}

Test(signal, a_blocked_handler_does_not_hold_up_reclamation)
{
    struct gate gate = {false, false};
    thing *t = thing_new(1);
    cr_assert_eq(wr_signal_connect(sig, t, pass_gate, NULL), 0);
    pthread_t emitter;
    pthread_create(&emitter, NULL, emit_thread, &gate);
    gate_wait(&gate.reached);
    cr_assert_eq(wr_barrier(), 0);
    atomic_store(&gate.open, true);
    pthread_join(emitter, NULL);
    wr_release(t);
}

/* ---- misuse ---------------------------------------------------------------------------------------- */

static wr_connection *released_handle(void)
{
    make_signal();
    wr_connection *connection;
    wr_signal_connect(sig, thing_new(1), log_number, &connection); /* stays connected: its memory is there */
    wr_connection_release(connection);
    return connection;
}

static void release_twice(void *ctx)
{
    (void)ctx;
    wr_connection_release(released_handle());
}

static void disconnect_released(void *ctx)
{
    (void)ctx;
    wr_signal_disconnect(released_handle());
}

static void disconnect_sync_released(void *ctx)
{
    (void)ctx;
    wr_signal_disconnect_sync(released_handle());
}

static int free_twice(void *obj, void *arg)
{
    (void)obj, (void)arg;
    wr_signal_free(sig);
    wr_signal_free(sig);
    return 0;
}

static void free_twice_in_handler(void *ctx)
{
    (void)ctx;
    make_signal();
    wr_signal_connect(sig, thing_new(1), free_twice, NULL);
    wr_signal_emit(sig, NULL);
}

#define RELEASED(call) "^weakref: " call ": connection at 0x[0-9a-f]+: its handle has been released\n$"

Test(signal_bare, misuse_panics)
{
    expect_panic(release_twice, NULL, RELEASED("wr_connection_release"));
    expect_panic(disconnect_released, NULL, RELEASED("wr_signal_disconnect"));
    expect_panic(disconnect_sync_released, NULL, RELEASED("wr_signal_disconnect_sync"));
    expect_panic(free_twice_in_handler, NULL,
                 "^weakref: wr_signal_free: signal price at 0x[0-9a-f]+: it has been freed\n$");
}

/* ---- lack of memory -------------------------------------------------------------------------------- */

Test(signal_memory, every_allocation_failed_in_turn)
{
    fail_alloc_install();
    sig = NULL;
    for (long n = 1; sig == NULL; n++) {
        fail_alloc_at(n);
        errno = 0;
        sig = wr_signal_new("price");
        if (fail_alloc_hit()) {
            cr_assert_null(sig);
            cr_assert_eq(errno, ENOMEM);
            cr_assert_eq(fail_alloc_live(), 0);
        }
    }
    wr_connection *connection = NULL;
    for (long n = 1; connection == NULL; n++) {
        thing *t = thing_new(1);
        long live = fail_alloc_live();
        fail_alloc_at(n);
        int error = wr_signal_connect(sig, t, log_number, &connection);
        if (fail_alloc_hit()) {
            cr_assert_eq(error, -ENOMEM);
            cr_assert_null(connection);
            cr_assert_eq(fail_alloc_live(), live);
            cr_assert_eq(wr_signal_len(sig), 0);
        } else {
            cr_assert_eq(error, 0);
            cr_assert_gt(n, 2, "it allocates at all");
        }
        wr_release(t);
    }
    wr_connection_release(connection);
    wr_signal_free(sig);
    cr_assert_eq(wr_barrier(), 0);
    cr_assert_eq(fail_alloc_live(), 0);
}

Test(signal_memory, emission_death_disconnect_and_free_allocate_nothing)
{
    fail_alloc_install();
    make_signal();
    connect_four(log_number);
    fail_alloc_all(true);
    cr_assert_eq(wr_signal_emit(sig, NULL), 4);
    wr_release(receivers[0]);
    cr_assert_eq(wr_signal_disconnect(connections[1]), 1);
    cr_assert_eq(wr_signal_disconnect_sync(connections[2]), 0);
    cr_assert_eq(wr_signal_emit(sig, NULL), 1);
    wr_signal_free(sig);
    cr_assert_not(fail_alloc_hit());
    fail_alloc_all(false);
    receivers[0] = NULL;
    drop_four();
    cr_assert_eq(wr_barrier(), 0);
    cr_assert_eq(fail_alloc_live(), 0);
}

Test(signal_memory, a_handle_does_not_keep_the_dead_object)
{
    fail_alloc_install();
    make_signal();
    thing *t = thing_new(1);
    wr_connection *connection;
    cr_assert_eq(wr_signal_connect(sig, t, log_number, &connection), 0);
    long live = fail_alloc_live();
    wr_release(t);
    cr_assert_eq(fail_alloc_live(), live - 2, "object and side record are gone");
    wr_connection_release(connection);
    wr_signal_free(sig);
    cr_assert_eq(wr_barrier(), 0);
    cr_assert_eq(fail_alloc_live(), 0);
}

Test(signal_memory, connecting_again_and_again_leaves_no_memory_behind)
{
    fail_alloc_install();
    make_signal();
    thing *t = thing_new(1);
    cr_assert_eq(wr_signal_connect(sig, t, log_number, NULL), 0);
    for (int i = 0; i < 200000; i++) {
        wr_connection *connection;
        wr_signal_connect(sig, t, log_number, &connection);
        wr_signal_disconnect(connection);
        wr_connection_release(connection);
        if (i % 1000 == 0) {
            cr_assert_eq(wr_barrier(), 0);
            cr_assert_lt(fail_alloc_live(), 10);
        }
    }
    wr_release(t);
    wr_signal_free(sig);
    cr_assert_eq(wr_barrier(), 0);
    cr_assert_eq(fail_alloc_live(), 0);
}
