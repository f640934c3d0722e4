/* Races without chance: a thread stands before a schedule point of its, as long as the test likes, while others act.
 *
 *     struct park p;
 *     park_start(&p);                                     // a thread that waits for jobs
 *     for (unsigned at = 0;; at++) {
 *         ... prepare ...
 *         if (!park_job(&p, job, ctx, PARK_OUTSIDE, at))  // job(ctx) stands before its point number at
 *             break;                                      // or it has none, and is over
 *         ... act ...
 *         park_end(&p);                                   // job(ctx) goes on, and is over
 *         ... judge ...
 *     }
 *
 * So each point of the job gets its turn, however the library changes. What acts may have to wait for the one that stands, for a
 * lock, say: then that one goes on after a while, and p.early is set. A judge must be content with any order; that a round
 * takes another one than was meant is no failure.
 *
 * Only where there are schedule points. This file's wr_sched_point() stands in for the library's: a program that includes it
 * must not call wr_sched_seed(), nor include race.h, which does. */
#ifndef TESTS_PARK_H
#define TESTS_PARK_H

#include <errno.h>
#include <linux/futex.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include <weakref/alloc.h>

#include "lock.h"

#define PARK_CHECK(condition) \
    ((condition) ? (void)0 : (fprintf(stderr, "%s:%d: %s does not hold\n", __FILE__, __LINE__, #condition), abort()))

enum { PARK_PATIENCE_MS = 10 };

/* Which points count. Inside the gate are those under a lock or in a step that no fork may cut. */
enum park_where { PARK_ANY, PARK_INSIDE, PARK_OUTSIDE, PARK_NOWHERE };

enum park_state { PARK_RUNS, PARK_STANDS, PARK_OVER };

struct park {
    pthread_t thread;
    void (*job)(void *ctx); /* NULL: the thread ends */
    void *ctx;
    enum park_where where;
    unsigned left;     /* such points to pass */
    atomic_bool early; /* it went on without being told */
    _Atomic uint32_t state;
    _Atomic uint32_t told; /* changed to make it go on */
};

static __thread struct park *park_self_;

/* Until *@word is not @value any more; false: that took too long (@limited). */
static bool park_wait_(_Atomic uint32_t *word, uint32_t value, bool limited)
{
    const struct timespec patience = {.tv_nsec = PARK_PATIENCE_MS * 1000000L};
    int saved = errno;
    bool changed = true;
    while (changed && atomic_load(word) == value)
        changed = syscall(SYS_futex, word, FUTEX_WAIT_PRIVATE, value, limited ? &patience : NULL, NULL, 0) == 0 ||
                  errno != ETIMEDOUT;
    errno = saved;
    return changed || atomic_load(word) != value;
}

static void park_set_(_Atomic uint32_t *word, uint32_t value)
{
    atomic_store(word, value);
    (void)syscall(SYS_futex, word, FUTEX_WAKE_PRIVATE, 1, NULL, NULL, 0);
}

static bool park_move_(struct park *p, uint32_t from, uint32_t to)
{
    return atomic_compare_exchange_strong(&p->state, &from, to);
}

/* What is done at a point instead; for the including file, which sets it where it has one thread. */
static void (*park_at_point)(void);

void wr_sched_point(void)
{
    struct park *p = park_self_;
    if (park_at_point != NULL) {
        park_at_point();
        return;
    }
    if (p == NULL || p->where == PARK_NOWHERE)
        return;
    enum park_where where = p->where;
    p->where = PARK_NOWHERE; /* the question below has points */
    if ((where == PARK_ANY || wr_gate_is_inside() == (where == PARK_INSIDE)) && p->left-- == 0) {
        uint32_t told = atomic_load(&p->told);
        park_set_(&p->state, PARK_STANDS);
        if (!park_wait_(&p->told, told, true)) {
            if (park_move_(p, PARK_STANDS, PARK_RUNS))
                atomic_store(&p->early, true);
            else
                (void)park_wait_(&p->told, told, false); /* it is being told: not to be taken for the next job */
        }
        return;
    }
    p->where = where;
}

static void *park_main_(void *arg)
{
    struct park *p = arg;
    for (uint32_t told = 0;;) {
        (void)park_wait_(&p->told, told, false);
        if (p->job == NULL)
            return NULL;
        park_self_ = p;
        p->job(p->ctx);
        park_self_ = NULL;
        told = atomic_load(&p->told);
        park_set_(&p->state, PARK_OVER);
    }
}

static void park_start(struct park *p)
{
    *p = (struct park){.state = PARK_OVER};
    PARK_CHECK(pthread_create(&p->thread, NULL, park_main_, p) == 0);
}

static void park_tell_(struct park *p)
{
    park_set_(&p->told, atomic_load(&p->told) + 1);
}

/* Until it stands before the @n-th such point from here. False: it has ended, or went on early. (If it waits for another one that stands,
 * that one goes on early.) */
static bool park_on(struct park *p, enum park_where where, unsigned n)
{
    if (!park_move_(p, PARK_STANDS, PARK_RUNS))
        return false;
    p->where = where;
    p->left = n;
    park_tell_(p);
    (void)park_wait_(&p->state, PARK_RUNS, false);
    return atomic_load(&p->state) == PARK_STANDS;
}

/* Begins with job(ctx). As park_on(). */
static bool park_job(struct park *p, void (*job)(void *ctx), void *ctx, enum park_where where, unsigned n)
{
    p->job = job;
    p->ctx = ctx;
    atomic_store(&p->early, false);
    atomic_store(&p->state, PARK_STANDS);
    return park_on(p, where, n);
}

/* It goes on until its job is over. */
static void park_end(struct park *p)
{
    if (park_move_(p, PARK_STANDS, PARK_RUNS))
        park_tell_(p);
    for (uint32_t state; (state = atomic_load(&p->state)) != PARK_OVER;)
        (void)park_wait_(&p->state, state, false);
}

static void park_stop(struct park *p)
{
    p->job = NULL;
    park_tell_(p);
    pthread_join(p->thread, NULL);
}

/* ---- memory of which no freed byte can be read, nor written ---------------------------------------------- */

enum { PARK_PAGE = 4096, PARK_FRONT = 64 };

static void *park_alloc_(size_t size, size_t align, void *ctx)
{
    (void)ctx;
    size_t front = align > PARK_FRONT ? align : PARK_FRONT;
    size_t total = (front + size + PARK_PAGE - 1) & ~(size_t)(PARK_PAGE - 1);
    char *base = mmap(NULL, total, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (base == MAP_FAILED)
        return NULL;
    *(size_t *)(void *)base = total;
    return base + front;
}

static void park_free_(void *memory, void *ctx)
{
    (void)ctx;
    if (memory == NULL)
        return;
    char *base = (char *)((uintptr_t)memory & ~(uintptr_t)(PARK_PAGE - 1));
    size_t total = *(size_t *)(void *)base;
    PARK_CHECK(mmap(base, total, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED | MAP_NORESERVE, -1, 0) == base);
}

/* Before the library's first allocation. Under sanitizers it also keeps their allocators, which a fork may cut, out of it. */
static inline void park_fence(void)
{
    static const struct wr_allocator fence = {.alloc = park_alloc_, .free = park_free_};
    PARK_CHECK(wr_set_allocator(&fence) == 0);
}

#endif
