/* Races that are won: two or more sides start together, again and again, until each outcome has come about.
 *
 *     static void prepare(void *ctx);     // one thread, before each round
 *     static void upgrade(void *ctx);     // the sides: one thread each, at once
 *     static void release(void *ctx);
 *     static unsigned judge(void *ctx);   // one thread, after each round: which outcome; checks it, too
 *
 *     const struct race race = {
 *         .name = "upgrade vs last release",
 *         .prepare = prepare, .sides = {upgrade, release}, .judge = judge, .ctx = &table,
 *         .outcomes = {"upgrade won", "release won"},
 *     };
 *     return race_run(&race) ? 0 : 1;
 *
 * A run ends after `rounds` rounds (default RACE_ROUNDS) with every outcome seen `least` times (default 3), or after
 * `seconds` (default 20); it fails where one was then not seen at all: such a race tests nothing.
 *
 * Between the ends under test the helper puts nothing: sides meet at a barrier before and after, and each waits
 * a random moment of its own after the first.
 *
 * The seed is printed; where the library has schedule points they are switched on with it. From the environment:
 * RACE_SEED is the seed, RACE_ONLY runs only races whose name contains it, RACE_TIMES=N so many times the rounds.
 */
#ifndef TESTS_RACE_H
#define TESTS_RACE_H

#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#if defined(WR_SCHED_POINTS) && WR_SCHED_POINTS
#include "sched_points.h"
#endif

#if defined(__SANITIZE_THREAD__) || defined(__SANITIZE_ADDRESS__)
#define RACE_SANITIZED 1
#elif defined(__has_feature)
#if __has_feature(thread_sanitizer) || __has_feature(address_sanitizer)
#define RACE_SANITIZED 1
#endif
#endif
#ifndef RACE_SANITIZED
#define RACE_SANITIZED 0
#endif

/* A size for plain builds, and one for builds under a sanitizer. */
#define RACE_SIZE(plain, sanitized) (RACE_SANITIZED ? (sanitized) : (plain))
#define RACE_ROUNDS RACE_SIZE(20000, 4000)

enum { RACE_SIDES = 8, RACE_OUTCOMES = 8 };

/* What judge() answers for a round that counts for no outcome. */
#define RACE_NONE RACE_OUTCOMES

struct race {
    const char *name;
    void (*prepare)(void *ctx);           /* or NULL */
    void (*sides[RACE_SIDES])(void *ctx); /* NULL after the last */
    unsigned (*judge)(void *ctx);         /* index into outcomes, or RACE_NONE */
    const char *outcomes[RACE_OUTCOMES];  /* NULL after the last */
    void *ctx;
    unsigned rounds, least, seconds; /* 0: the defaults */
};

static inline uint64_t race_draw(uint64_t *state)
{
    uint64_t z = (*state += UINT64_C(0x9e3779b97f4a7c15));
    z = (z ^ (z >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
    z = (z ^ (z >> 27)) * UINT64_C(0x94d049bb133111eb);
    return z ^ (z >> 31);
}

/* Once per program: the seed, printed and given to the schedule points. */
static inline uint64_t race_seed(void)
{
    static uint64_t seed;
    if (seed == 0) {
        const char *given = getenv("RACE_SEED");
        struct timespec now;
        clock_gettime(CLOCK_REALTIME, &now);
        seed = (uint64_t)now.tv_sec * 1000003u ^ (uint64_t)now.tv_nsec ^ (uint64_t)getpid() << 40;
        seed = given != NULL ? strtoull(given, NULL, 0) : race_draw(&seed) >> 32;
        seed += seed == 0;
        printf("RACE_SEED=%llu\n", (unsigned long long)seed);
        fflush(stdout);
#if defined(WR_SCHED_POINTS) && WR_SCHED_POINTS
        wr_sched_seed(seed);
#endif
    }
    return seed;
}

static inline void race_pause(void)
{
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#endif
}

/* Until *@word is at least @value. */
static inline void race_wait(_Atomic unsigned *word, unsigned value)
{
    for (unsigned i = 0; (int)(atomic_load_explicit(word, memory_order_acquire) - value) < 0; i++)
        if (i < 400)
            race_pause();
        else
            sched_yield();
}

struct race_run_;

struct race_side_ {
    struct race_run_ *run;
    void (*side)(void *ctx);
    uint64_t random;
    _Atomic unsigned lean; /* how long this side waits at most: the log of it */
    pthread_t thread;
};

struct race_run_ {
    const struct race *race;
    _Atomic unsigned round;       /* begun so far */
    _Atomic unsigned ready, done; /* sides that arrived before and after it, over all rounds */
    _Atomic bool over;
    unsigned n_sides;
    struct race_side_ sides[RACE_SIDES];
};

static inline void race_one_(struct race_side_ *s, unsigned round)
{
    struct race_run_ *run = s->run;
    atomic_fetch_add_explicit(&run->ready, 1, memory_order_acq_rel);
    race_wait(&run->ready, round * run->n_sides);
    uint64_t random = race_draw(&s->random);
    unsigned lean = atomic_load_explicit(&s->lean, memory_order_relaxed);
    unsigned log = (unsigned)(random >> 32) % (lean + 1);
    for (uint64_t n = random & ((UINT64_C(1) << log) - 1); n > 0; n--)
        race_pause();
    if (lean > 8 && (random >> 63) != 0)
        sched_yield(); /* where the sides share a processor */
    s->side(run->race->ctx);
    atomic_fetch_add_explicit(&run->done, 1, memory_order_release);
}

static inline void *race_thread_(void *arg)
{
    struct race_side_ *s = (struct race_side_ *)arg;
    for (unsigned round = 1;; round++) {
        race_wait(&s->run->round, round);
        if (atomic_load_explicit(&s->run->over, memory_order_relaxed))
            return NULL;
        race_one_(s, round);
    }
}

/* Runs the race, prints the wins. Returns whether each outcome was seen. */
static inline bool race_run(const struct race *race)
{
    const char *only = getenv("RACE_ONLY");
    if (only != NULL && strstr(race->name, only) == NULL)
        return true;
    static struct race_run_ runs;
    struct race_run_ *run = &runs;
    const char *more = getenv("RACE_TIMES");
    unsigned rounds = (race->rounds ? race->rounds : RACE_ROUNDS) * (more != NULL ? (unsigned)atoi(more) : 1);
    unsigned least = race->least ? race->least : 3;
    unsigned seconds = race->seconds ? race->seconds : 20;
    unsigned long won[RACE_OUTCOMES + 1] = {0};
    unsigned n_outcomes = 0;
    uint64_t random = race_seed();
    struct timespec start, now;

    run->race = race;
    run->n_sides = 0;
    atomic_store(&run->round, 0);
    atomic_store(&run->ready, 0);
    atomic_store(&run->done, 0);
    atomic_store(&run->over, false);
    while (n_outcomes < RACE_OUTCOMES && race->outcomes[n_outcomes] != NULL)
        n_outcomes++;
    for (unsigned i = 0; i < RACE_SIDES && race->sides[i] != NULL; i++) {
        struct race_side_ *s = &run->sides[run->n_sides++];
        s->run = run;
        s->side = race->sides[i];
        s->random = race_draw(&random);
        atomic_store(&s->lean, 8);
    }
    /* The caller's thread is side 0. */
    for (unsigned i = 1; i < run->n_sides; i++)
        if (pthread_create(&run->sides[i].thread, NULL, race_thread_, &run->sides[i]) != 0) {
            perror("race: pthread_create");
            abort();
        }

    clock_gettime(CLOCK_MONOTONIC, &start);
    unsigned round = 0;
    for (;;) {
        bool all = true;
        for (unsigned i = 0; i < n_outcomes; i++)
            all = all && won[i] >= least;
        clock_gettime(CLOCK_MONOTONIC, &now);
        if ((all && round >= rounds) || now.tv_sec - start.tv_sec >= (time_t)seconds)
            break;
        round++;
        if (race->prepare != NULL)
            race->prepare(race->ctx);
        /* Each side leads now and then, so that one that tends to be late also comes first. */
        unsigned leads = (unsigned)(race_draw(&random) >> 32) % (run->n_sides + 2);
        for (unsigned i = 0; i < run->n_sides; i++)
            atomic_store_explicit(&run->sides[i].lean,
                                  leads >= run->n_sides ? 5
                                  : leads == i          ? 2
                                                        : 11,
                                  memory_order_relaxed);
        atomic_store_explicit(&run->round, round, memory_order_release);
        race_one_(&run->sides[0], round);
        race_wait(&run->done, round * run->n_sides);
        unsigned outcome = race->judge(race->ctx);
        won[outcome < n_outcomes ? outcome : RACE_OUTCOMES]++;
    }
    atomic_store_explicit(&run->over, true, memory_order_relaxed);
    atomic_store_explicit(&run->round, round + 1, memory_order_release);
    for (unsigned i = 1; i < run->n_sides; i++)
        pthread_join(run->sides[i].thread, NULL);

    bool good = true;
    printf("%s: %u rounds", race->name, round);
    for (unsigned i = 0; i < n_outcomes; i++) {
        printf(", %s %lu", race->outcomes[i], won[i]);
        good = good && won[i] > 0;
    }
    printf("%s\n", good ? "" : ": FAILED, an outcome was never seen");
    fflush(stdout);
    return good;
}

/* A check inside a race: prints what and where, and ends the program. */
#define RACE_CHECK(condition)                                                                                    \
    ((condition) ? (void)0                                                                                       \
                 : (fprintf(stderr, "%s:%d: %s does not hold; RACE_SEED=%llu\n", __FILE__, __LINE__, #condition, \
                            (unsigned long long)race_seed()),                                                    \
                    abort()))

#endif
