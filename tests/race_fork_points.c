/* Forks, while a thread stands before each schedule point in turn, and signals whose handler forks at each point of a fork.
 * race_fork_steps leaves to chance where the fork comes; here each place has its turn, and its round. */
#include <stdio.h>

#if defined(WR_SCHED_POINTS) && WR_SCHED_POINTS
#include <dirent.h>
#include <signal.h>
#include <string.h>
#include <sys/wait.h>

#include <weakref/debug.h>
#include <weakref/signal.h>
#include <weakref/value_dict.h>
#include <weakref/watch.h>

#include "deaths.h"
#include "park.h"

#if defined(__SANITIZE_THREAD__)
#define THREADS_IN_CHILDREN 0 /* ThreadSanitizer does not allow them */
#define SIGNALS_AT_POINTS 0   /* nor a fork there */
#else
#define THREADS_IN_CHILDREN 1
#define SIGNALS_AT_POINTS 1
#endif

enum { CHILD_SECONDS = 20 };

static struct park worker, other_worker;

static void expect_good_end(pid_t child)
{
    int status = -1;
    PARK_CHECK(child > 0 && waitpid(child, &status, 0) == child);
    if (status != 0)
        fprintf(stderr, "the child ended with %#x\n", (unsigned)status);
    PARK_CHECK(status == 0);
}

static void fork_and_look(void (*look)(void *ctx), void *ctx)
{
    pid_t child = fork();
    if (child == 0) {
        alarm(CHILD_SECONDS);
        look(ctx);
        _exit(0);
    }
    expect_good_end(child);
}

static void nothing(wr_weak *dead, void *ctx)
{
    (void)dead, (void)ctx;
}

/* ---- what wr_queue_cancel_all() cancels is pending, or cancelled ----------------------------------------------- */

struct pending {
    wr_queue *queue;
    wr_watch *watches[3];
};

static void cancel_all(void *ctx)
{
    PARK_CHECK(wr_queue_cancel_all(((struct pending *)ctx)->queue) == 0);
}

static void look_at_cancelled(void *ctx)
{
    struct pending *p = ctx;
    struct wr_queue_stats s;
    for (int i = 0; i < 3; i++)
        PARK_CHECK(wr_watch_cancel(p->watches[i]) == WR_CANCELLED);
    wr_queue_stats(p->queue, &s);
    PARK_CHECK(s.watched == 3 && s.cancelled == 3 && s.pending == 0 && s.armed == 0);
}

static bool cut_cancel_all(unsigned at)
{
    struct pending p = {.queue = wr_queue_new("cut")};
    for (int i = 0; i < 3; i++) {
        thing *t = thing_new(i);
        p.watches[i] = wr_watch_new(t, p.queue, nothing, NULL);
        wr_release(t);
    }
    bool more = park_job(&worker, cancel_all, &p, PARK_OUTSIDE, at);
    fork_and_look(look_at_cancelled, &p);
    park_end(&worker);
    look_at_cancelled(&p);
    for (int i = 0; i < 3; i++)
        wr_watch_release(p.watches[i]);
    wr_queue_free(p.queue);
    return more;
}

/* ---- a connection to a freed signal is in no list --------------------------------------------------------------- */

struct connecting {
    wr_signal *signal;
    thing *object;
    unsigned at;
    bool more;
};

static int handler(void *obj, void *arg)
{
    (void)obj, (void)arg;
    return 0;
}

static void connect_to_freed(void *ctx)
{
    struct connecting *c = ctx;
    wr_connection *connection;
    PARK_CHECK(wr_signal_connect(c->signal, c->object, handler, &connection) == -ECANCELED);
}

static void look_at_connected(void *ctx)
{
    struct connecting *c = ctx;
    size_t n = wr_signal_len(c->signal);
    wr_release(c->object); /* it has no connection */
    PARK_CHECK(wr_signal_len(c->signal) == n);
}

/* Its emission holds the freed signal. */
static int free_and_cut(void *obj, void *arg)
{
    struct connecting *c = arg;
    (void)obj;
    wr_signal_free(c->signal);
    c->more = park_job(&worker, connect_to_freed, c, PARK_OUTSIDE, c->at);
    fork_and_look(look_at_connected, c);
    park_end(&worker);
    return 0;
}

static bool cut_connect(unsigned at)
{
    struct connecting c = {.signal = wr_signal_new("cut"), .object = thing_new(1), .at = at};
    thing *own = thing_new(2);
    PARK_CHECK(wr_signal_connect(c.signal, own, free_and_cut, NULL) == 0);
    PARK_CHECK(wr_signal_emit(c.signal, &c) == 1);
    wr_release(c.object);
    wr_release(own);
    return c.more;
}

/* ---- what is disconnected is not counted ------------------------------------------------------------------------- */

static void disconnect(void *connection)
{
    PARK_CHECK(wr_signal_disconnect(connection) == 1);
}

static void look_at_disconnected(void *signal)
{
    size_t n = wr_signal_len(signal);
    PARK_CHECK(n <= 1 && wr_signal_emit(signal, NULL) == n);
}

static bool cut_disconnect(unsigned at)
{
    wr_signal *signal = wr_signal_new("cut");
    thing *t = thing_new(1);
    wr_connection *connection;
    PARK_CHECK(wr_signal_connect(signal, t, handler, &connection) == 0);
    bool more = park_job(&worker, disconnect, connection, PARK_OUTSIDE, at);
    fork_and_look(look_at_disconnected, signal);
    park_end(&worker);
    PARK_CHECK(wr_signal_len(signal) == 0);
    wr_connection_release(connection);
    wr_signal_free(signal);
    wr_release(t);
    return more;
}

/* ---- no child looks at threads of a queue that are freed ------------------------------------------------------------ */

static void stop(void *queue)
{
    PARK_CHECK(wr_queue_stop(queue) == 0);
}

static void look_at_stopped(void *queue)
{
    struct wr_queue_stats s;
    wr_queue_stats(queue, &s);
    PARK_CHECK(s.watched == 0 && s.running == 0);
    PARK_CHECK(wr_queue_drain(queue, SIZE_MAX) == 0);
}

static bool cut_stop(unsigned at)
{
    wr_queue *queue = wr_queue_new("cut");
    PARK_CHECK(wr_queue_start(queue, 2) == 0);
    bool more = park_job(&worker, stop, queue, PARK_OUTSIDE, at);
    fork_and_look(look_at_stopped, queue);
    park_end(&worker);
    wr_queue_free(queue);
    return more;
}

/* ---- the default queue's thread, which another thread is about to start -------------------------------------------- */

#if THREADS_IN_CHILDREN
/* Until all other threads sleep: in a child of AddressSanitizer's that was forked beside a thread's start, no thread can start. */
static void wait_until_quiet(void)
{
    char path[64], stat[256];
    for (unsigned quiet = 0; quiet < 3; quiet++) {
        DIR *tasks = opendir("/proc/self/task");
        PARK_CHECK(tasks != NULL);
        for (struct dirent *task; (task = readdir(tasks)) != NULL;) {
            if (task->d_name[0] == '.' || atoi(task->d_name) == (int)getpid())
                continue;
            snprintf(path, sizeof path, "/proc/self/task/%.16s/stat", task->d_name);
            FILE *file = fopen(path, "r");
            size_t n = file != NULL ? fread(stat, 1, sizeof stat - 1, file) : 0;
            stat[n] = '\0';
            if (file != NULL)
                fclose(file);
            char *state = strrchr(stat, ')');
            if (state != NULL && state[2] != 'S')
                quiet = 0;
        }
        closedir(tasks);
        sched_yield();
    }
}

static atomic_int n_ran;

static void count_it(wr_weak *dead, void *ctx)
{
    (void)dead, (void)ctx;
    atomic_fetch_add(&n_ran, 1);
}

static void watch_one(void *object)
{
    PARK_CHECK(wr_on_death(object, NULL, count_it, NULL) == 0);
}

static void use_default_queue(void *object)
{
    int before = atomic_load(&n_ran);
    watch_one(object);
    wr_release(object);
    PARK_CHECK(wr_shutdown(10000) == 0);
    PARK_CHECK(atomic_load(&n_ran) == before + 1);
}

/* In a process of its own: the thread is started once. */
static bool cut_first_use(unsigned at)
{
    int status = -1;
    pid_t child = fork();
    PARK_CHECK(child >= 0);
    if (child == 0) {
        alarm(3 * CHILD_SECONDS);
        thing *first = thing_new(1), *other = thing_new(2);
        park_start(&worker);
        bool more = park_job(&worker, watch_one, first, PARK_OUTSIDE, at);
        wait_until_quiet();
        if (more)
            fork_and_look(use_default_queue, other);
        _exit(more ? 1 : 0);
    }
    PARK_CHECK(waitpid(child, &status, 0) == child);
    PARK_CHECK(WIFEXITED(status) && WEXITSTATUS(status) <= 1);
    return WEXITSTATUS(status) == 1;
}

/* ---- threads of a queue that did not come along, and that are stopped in the child when it forks again ---------------- */

static void use_stopped(void *queue)
{
    int before = atomic_load(&n_ran);
    thing *t = thing_new(1);
    PARK_CHECK(wr_on_death(t, queue, count_it, NULL) == 0);
    wr_release(t);
    (void)wr_queue_drain(queue, SIZE_MAX); /* or its threads, if they were started again before the stop */
    PARK_CHECK(wr_queue_stop(queue) == 0);
    (void)wr_queue_drain(queue, SIZE_MAX);
    PARK_CHECK(atomic_load(&n_ran) == before + 1);
}

static bool cut_stop_of_lost(unsigned at)
{
    int status = -1;
    wr_queue *queue = wr_queue_new("cut");
    PARK_CHECK(wr_queue_start(queue, 2) == 0);
    wait_until_quiet();
    pid_t child = fork();
    PARK_CHECK(child >= 0);
    if (child == 0) {
        alarm(3 * CHILD_SECONDS);
        park_start(&worker);
        bool more = park_job(&worker, stop, queue, PARK_OUTSIDE, at);
        wait_until_quiet();
        if (more)
            fork_and_look(use_stopped, queue);
        _exit(more ? 1 : 0);
    }
    PARK_CHECK(waitpid(child, &status, 0) == child);
    PARK_CHECK(WIFEXITED(status) && WEXITSTATUS(status) <= 1);
    wr_queue_free(queue);
    return WEXITSTATUS(status) == 1;
}
#endif

/* ---- an object has its entry where the table has it --------------------------------------------------------------- */

enum way { SET, SETDEFAULT, REPLACE, CREATE, ENTER_ALL };

static struct entering {
    enum way way;
    wr_value_dict *d;
    wr_queue *queue; /* which hears of removals, or NULL */
    thing *there, *entering;
} entering;

static void hear(const void *key, size_t size, void *ctx)
{
    (void)key, (void)size, (void)ctx;
}

static int make(const void *key, size_t size, void *ctx, void **obj)
{
    (void)key, (void)size;
    *obj = wr_retain((thing *)ctx);
    return 0;
}

static void enter(void *ctx)
{
    struct entering *e = ctx;
    void *out = NULL;
    switch (e->way) {
    case SET:
        PARK_CHECK(wr_value_dict_set_str(e->d, "key", e->entering) == 0);
        break;
    case SETDEFAULT:
        PARK_CHECK(wr_value_dict_setdefault_str(e->d, "key", e->entering, &out) == 0);
        break;
    case REPLACE:
        PARK_CHECK(wr_value_dict_replace_str(e->d, "other", e->there, e->entering) == 0);
        break;
    default:
        PARK_CHECK(wr_value_dict_get_or_create_str(e->d, "key", make, e->entering, &out) == 0);
    }
    wr_release(out);
}

static void look_at_entered(void *ctx)
{
    struct entering *e = ctx;
    struct wr_value_dict_item item;
    wr_value_dict_iter it;
    size_t n = 0;
    if (e->way == CREATE) { /* the flight of the thread that did not come along is dropped */
        void *out = NULL;
        PARK_CHECK(wr_value_dict_get_or_create_str(e->d, "key", make, e->there, &out) == 0);
        wr_release(out);
    }
    wr_release(e->entering);
    PARK_CHECK(wr_barrier() == 0);
    if (e->queue != NULL)
        (void)wr_queue_drain(e->queue, SIZE_MAX);
    void *there = wr_value_dict_get_str(e->d, "first");
    PARK_CHECK(there == e->there);
    wr_release(there);
    wr_value_dict_iter_begin(&it, e->d);
    for (; wr_value_dict_iter_next(&it, &item); wr_release(item.value))
        n++;
    wr_value_dict_iter_end(&it);
    PARK_CHECK(wr_value_dict_len(e->d) == n && n >= 1 && n <= 3);
    wr_value_dict_free(e->d);
    PARK_CHECK(wr_barrier() == 0);
    PARK_CHECK(wr_type_of(e->there) == &thing_type);
    wr_release(e->there);
    PARK_CHECK(wr_barrier() == 0);
}

/* The dictionary goes before the object. */
static void look_at_left(void *ctx)
{
    struct entering *e = ctx;
    wr_value_dict_free(e->d);
    PARK_CHECK(wr_barrier() == 0);
    PARK_CHECK(wr_type_of(e->entering) == &thing_type);
    wr_release(e->entering);
    wr_release(e->there);
    PARK_CHECK(wr_barrier() == 0);
}

static bool cut_enter(unsigned at)
{
    struct wr_value_dict_options options = {.struct_size = sizeof options,
                                            .queue = entering.queue,
                                            .on_removal = entering.queue != NULL ? hear : NULL,
                                            .initial_size = 4};
    entering.d = wr_value_dict_new(&options);
    entering.there = thing_new(1);
    entering.entering = thing_new(2);
    PARK_CHECK(entering.d != NULL && wr_value_dict_set_str(entering.d, "first", entering.there) == 0);
    PARK_CHECK(wr_value_dict_set_str(entering.d, "other", entering.there) == 0);
    bool more = park_job(&worker, enter, &entering, PARK_OUTSIDE, at);
    fork_and_look(look_at_entered, &entering);
    fork_and_look(look_at_left, &entering);
    park_end(&worker);
    wr_release(entering.entering);
    wr_release(entering.there);
    PARK_CHECK(wr_value_dict_len(entering.d) == 0);
    wr_value_dict_free(entering.d);
    PARK_CHECK(wr_barrier() == 0);
    if (entering.queue != NULL)
        (void)wr_queue_drain(entering.queue, SIZE_MAX);
    return more;
}

/* ---- a death of what came back in between ---------------------------------------------------------------------------- */

static struct late {
    wr_value_dict *d;
    wr_weak *weak;
} late;

static void let_go(void *ctx)
{
    wr_release(ctx);
}

/* It is dead and in no table, or lives and is in one: of who was about to close it a fork leaves nothing by half. */
static void look_at_late(void *ctx)
{
    (void)ctx;
    PARK_CHECK(wr_barrier() == 0);
    void *obj = wr_upgrade(late.weak);
    PARK_CHECK(obj != NULL || wr_value_dict_len(late.d) == 0);
}

/* It comes back, into a dictionary, and goes again. */
static void bring_back(void *ctx)
{
    (void)ctx;
    void *again = wr_upgrade(late.weak);
    if (again != NULL) {
        PARK_CHECK(wr_value_dict_set_str(late.d, "key", again) == 0);
        wr_release(again);
    }
}

/* A thread's release finds no other reference. Before it closes the object another brings that back, and stands itself before it
 * closes it: so the first one does, which had seen no entry. The fork comes when that stands the next time. */
static bool cut_late_death(unsigned at)
{
    bool more = false, another = true;
    for (unsigned k = 0; another; k++)
        for (unsigned on = 0, stands = 1; stands; on++) {
            thing *t = thing_new(1);
            late = (struct late){.d = wr_value_dict_new(NULL), .weak = wr_downgrade(t)};
            PARK_CHECK(late.d != NULL);
            more = park_job(&worker, let_go, t, PARK_OUTSIDE, at);
            another = park_job(&other_worker, bring_back, NULL, PARK_OUTSIDE, k) || atomic_load(&other_worker.early);
            stands = more && park_on(&worker, PARK_OUTSIDE, on);
            fork_and_look(look_at_late, NULL);
            park_end(&worker);
            park_end(&other_worker);
            wr_weak_release(late.weak);
            PARK_CHECK(wr_value_dict_len(late.d) == 0);
            wr_value_dict_free(late.d);
            PARK_CHECK(wr_barrier() == 0);
        }
    return more;
}

/* ---- a signal at each point of a fork, whose handler forks --------------------------------------------------------- */

#if SIGNALS_AT_POINTS
static int points_left;
static atomic_int n_handled;

static void raise_at_point(void)
{
    if (points_left >= 0 && points_left-- == 0)
        raise(SIGUSR1);
}

static void fork_in_handler(int signal)
{
    (void)signal;
    alarm(CHILD_SECONDS); /* in children, too */
    pid_t child = fork();
    if (child == 0)
        _exit(0);
    int status;
    PARK_CHECK(child > 0 && waitpid(child, &status, 0) == child && status == 0);
    atomic_fetch_add(&n_handled, 1);
}

static bool cut_fork(unsigned at)
{
    int before = atomic_load(&n_handled);
    alarm(CHILD_SECONDS);
    points_left = (int)at;
    park_at_point = raise_at_point;
    pid_t child = fork();
    park_at_point = NULL;
    if (child == 0)
        _exit(0);
    expect_good_end(child);
    alarm(0);
    bool in_time = points_left < 0; /* else the point is one of the child's, or there is none */
    PARK_CHECK(atomic_load(&n_handled) == before + in_time);
    return in_time;
}

#endif

/* The library knows the worker, and so that a child of ThreadSanitizer's must not start threads. */
static void be_registered(void *ctx)
{
    (void)ctx;
    wr_queue_drain(wr_queue_default(), 1);
}

static void run(const char *name, bool (*round)(unsigned at))
{
    const char *only = getenv("RACE_ONLY");
    if (only != NULL && strstr(name, only) == NULL)
        return;
    struct timespec begin, end;
    clock_gettime(CLOCK_MONOTONIC, &begin);
    unsigned n = 0;
    while (round(n))
        n++;
    clock_gettime(CLOCK_MONOTONIC, &end);
    printf("%s: %u points, %ld ms\n", name, n,
           (long)(end.tv_sec - begin.tv_sec) * 1000 + (end.tv_nsec - begin.tv_nsec) / 1000000);
    fflush(stdout);
}

static void cut_all_enters(void)
{
    for (unsigned i = 0; i < 2 * ENTER_ALL; i++) {
        static const char *const names[] = {"set", "setdefault", "replace", "get_or_create"};
        char name[80];
        snprintf(name, sizeof name, "fork vs %s%s", names[i % ENTER_ALL], i < ENTER_ALL ? "" : ", heard of");
        entering = (struct entering){.way = i % ENTER_ALL, .queue = i < ENTER_ALL ? NULL : wr_queue_new("heard")};
        run(name, cut_enter);
        wr_queue_free(entering.queue);
    }
}

int main(void)
{
    park_fence();
#if THREADS_IN_CHILDREN
    run("fork vs first use of the default queue", cut_first_use); /* before this process has threads */
    run("fork vs stop of threads that a fork left behind", cut_stop_of_lost);
#endif
#if SIGNALS_AT_POINTS
    struct sigaction action = {.sa_handler = fork_in_handler};
    PARK_CHECK(sigaction(SIGUSR1, &action, NULL) == 0);
    run("fork vs a signal whose handler forks", cut_fork);
#endif
    park_start(&worker);
    park_start(&other_worker);
    (void)park_job(&worker, be_registered, NULL, PARK_NOWHERE, 0);
    (void)park_job(&other_worker, be_registered, NULL, PARK_NOWHERE, 0);
    run("fork vs cancel_all", cut_cancel_all);
    run("fork vs connect to a freed signal", cut_connect);
    run("fork vs disconnect", cut_disconnect);
    run("fork vs stop", cut_stop);
    run("fork vs a death of what came back", cut_late_death);
    cut_all_enters();
    park_stop(&worker);
    park_stop(&other_worker);
    return 0;
}
#else
int main(void)
{
    puts("no schedule points in this build");
    return 0;
}
#endif
