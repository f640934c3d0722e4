/* Queues, with a thread standing before each schedule point in turn: freeing beside late hand-overs, storms beside consumers,
 * stopping beside the shutdown. */
#include <stdio.h>

#if defined(WR_SCHED_POINTS) && WR_SCHED_POINTS
#include <string.h>
#include <sys/wait.h>

#include <weakref/debug.h>
#include <weakref/watch.h>

#include "deaths.h"
#include "park.h"

static struct park a, b;
static unsigned n_schedules;

static void release(void *ctx)
{
    wr_release(ctx);
}

static thing *watched(wr_queue *queue, wr_callback *callback, void *ctx)
{
    thing *t = thing_new(1);
    PARK_CHECK(t != NULL && wr_on_death(t, queue, callback, ctx) == 0);
    return t;
}

static void nothing(wr_weak *dead, void *ctx)
{
    (void)dead, (void)ctx;
}

/* ---- no callback begins after wr_queue_free() has returned ---------------------------------------------------- */

static atomic_bool freed;

static void not_after_free(wr_weak *dead, void *ctx)
{
    (void)dead, (void)ctx;
    PARK_CHECK(!atomic_load(&freed));
}

static void free_here(wr_queue *queue)
{
    wr_queue_free(queue);
    atomic_store(&freed, true);
}

/* Two late hand-overs: the first finds the queue freed and cancels; then the second pushes, and the first consumes. */
static void two_late_hand_overs(void)
{
    for (unsigned at = 0, more = 1; more; at++) {
        more = 0;
        for (unsigned on = 0, next = 1; next; on++) {
            next = 0;
            for (unsigned step = 0; step < 3; step++) {
                atomic_store(&freed, false);
                wr_queue *queue = wr_queue_new("late");
                thing *t = watched(queue, not_after_free, NULL), *u = watched(queue, not_after_free, NULL);
                bool good = park_job(&a, release, t, PARK_INSIDE, at);
                more |= good;
                good = park_job(&b, release, u, PARK_INSIDE, at) && good;
                free_here(queue);
                good = good && !a.early && !b.early;
                bool second = good && park_on(&a, PARK_OUTSIDE, on);
                next |= second;
                if (second)
                    (void)park_on(&b, PARK_INSIDE, step);
                park_end(&a);
                park_end(&b);
                n_schedules++;
                if (!second)
                    break;
            }
        }
    }
}

/* A late hand-over, and one that helps. */
static void late_hand_over_and_help(void)
{
    for (unsigned at = 0, more = 1; more; at++) {
        more = 0;
        for (unsigned late = 0, next = 1; next; late++) {
            next = 0;
            for (unsigned step = 0; step < 3; step++) {
                atomic_store(&freed, false);
                wr_queue *queue = wr_queue_new("late");
                PARK_CHECK(wr_queue_set_high_water(queue, 1, NULL, NULL, 1) == 0);
                thing *t = watched(queue, not_after_free, NULL), *u = watched(queue, not_after_free, NULL);
                bool helper = park_job(&a, release, t, PARK_OUTSIDE, at);
                more |= helper;
                bool good = park_job(&b, release, u, PARK_INSIDE, late);
                next |= good && helper;
                free_here(queue);
                good = good && helper && !a.early && !b.early;
                if (good)
                    (void)park_on(&b, PARK_INSIDE, step);
                park_end(&a);
                park_end(&b);
                n_schedules++;
                if (!good) {
                    next &= !a.early; /* the free waits for this callback, whatever else goes on */
                    break;
                }
            }
        }
    }
}

/* ---- no storm is missed ----------------------------------------------------------------------------------- */

static unsigned n_storms;

static void storm_hook(wr_queue *queue, uint64_t pending, void *ctx)
{
    (void)queue, (void)pending, (void)ctx;
    n_storms++; /* one call at a time */
}

static void one_more(wr_queue *queue)
{
    wr_release(watched(queue, nothing, NULL));
}

static void drain_one(void *queue)
{
    wr_queue_drain(queue, 1);
}

/* One is pending at the mark of 1, and told of. One is drained and one handed over beside it; then, whichever came first, the
 * storm goes on or was told of again: one more is no new one. */
static void hand_over_beside_drain(void)
{
    for (unsigned at = 0, more = 1; more; at++) {
        wr_queue *queue = wr_queue_new("storm");
        n_storms = 0;
        PARK_CHECK(wr_queue_set_high_water(queue, 1, storm_hook, NULL, 0) == 0);
        one_more(queue);
        PARK_CHECK(n_storms == 1);
        more = park_job(&a, drain_one, queue, PARK_ANY, at);
        one_more(queue);
        park_end(&a);
        unsigned before = n_storms;
        one_more(queue);
        PARK_CHECK(n_storms == before);
        wr_queue_free(queue);
        n_schedules++;
    }
}

/* A mark of 2 is set, and one handed over, each beside a hand-over that looks at the mark: two are pending, and told of. */
static void marks_beside_hand_over(void)
{
    for (unsigned at = 0, more = 1; more; at++) {
        more = 0;
        for (unsigned on = 0, next = 1; next; on++) {
            wr_queue *queue = wr_queue_new("storm");
            n_storms = 0;
            for (unsigned i = 0; i < 20; i++)
                one_more(queue); /* from here on the most that was ever pending gives no alarm */
            wr_queue_drain(queue, SIZE_MAX);
            PARK_CHECK(wr_queue_set_high_water(queue, 1000, storm_hook, NULL, 0) == 0);
            bool first = park_job(&a, release, watched(queue, nothing, NULL), PARK_ANY, at);
            more |= first;
            PARK_CHECK(wr_queue_set_high_water(queue, 2, storm_hook, NULL, 0) == 0);
            next = first && !a.early && park_on(&a, PARK_ANY, on);
            one_more(queue);
            park_end(&a);
            PARK_CHECK(n_storms == 1);
            wr_queue_free(queue);
            n_schedules++;
        }
    }
}

/* ---- the threads of a queue are not looked at once they are freed --------------------------------------------- */

static void stop_default(void *ctx)
{
    (void)ctx;
    PARK_CHECK(wr_queue_stop(wr_queue_default()) == 0);
}

/* In a process of its own: there is one default queue, and one end. Returns whether the job had that point. */
static bool shutdown_in_child(unsigned at)
{
    int status = -1;
    pid_t child = fork();
    PARK_CHECK(child >= 0);
    if (child == 0) {
        alarm(60);
        wr_release(watched(NULL, nothing, NULL));
        park_start(&a);
        bool more = park_job(&a, stop_default, NULL, PARK_OUTSIDE, at);
        int answer = wr_shutdown(1);
        PARK_CHECK(answer == 0 || answer == -ETIMEDOUT);
        park_end(&a);
        park_stop(&a); /* ThreadSanitizer waits a second for threads that are left */
        _exit(more ? 1 : 0);
    }
    PARK_CHECK(waitpid(child, &status, 0) == child);
    PARK_CHECK(WIFEXITED(status) && WEXITSTATUS(status) <= 1);
    return WEXITSTATUS(status) == 1;
}

static void stop_beside_shutdown(void)
{
    for (unsigned at = 0; shutdown_in_child(at); at++)
        n_schedules++;
}

static void run(const char *name, void (*race)(void))
{
    const char *only = getenv("RACE_ONLY");
    if (only != NULL && strstr(name, only) == NULL)
        return;
    struct timespec begin, end;
    clock_gettime(CLOCK_MONOTONIC, &begin);
    n_schedules = 0;
    race();
    clock_gettime(CLOCK_MONOTONIC, &end);
    printf("%s: %u schedules, %ld ms\n", name, n_schedules,
           (long)(end.tv_sec - begin.tv_sec) * 1000 + (end.tv_nsec - begin.tv_nsec) / 1000000);
    fflush(stdout);
}

int main(void)
{
    park_fence();
    run("stop of the default queue vs shutdown", stop_beside_shutdown); /* before this process has threads */
    park_start(&a);
    park_start(&b);
    run("free vs two late hand-overs", two_late_hand_overs);
    run("free vs a late hand-over and help", late_hand_over_and_help);
    run("drain vs hand-over at the mark", hand_over_beside_drain);
    run("a new mark vs hand-overs", marks_beside_hand_over);
    park_stop(&a);
    park_stop(&b);
    return 0;
}
#else
int main(void)
{
    puts("no schedule points in this build");
    return 0;
}
#endif
