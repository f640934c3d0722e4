/* F1 sched: schedule points, where a test build lets another thread run.
 *
 * A point counts down in thread-local storage and returns; at zero it does something and draws the next distance.
 * Off is a long distance, after which the thread looks whether it is on by now. The countdown is set before anything
 * else happens, so the points of this file's own atomics return at once: no recursion.
 *
 * Nothing here may order what the tests are about: the atomics are relaxed, and ThreadSanitizer looks at none of
 * them, nor counts the thread-local accesses that every point would cost it.
 */
#include "sched_points.h"

#include "atomics.h"

#include <errno.h>
#include <sched.h>
#include <stdlib.h>
#include <time.h>

#define UNSEEN __attribute__((no_sanitize("thread")))

enum {
    POINTS_OFF = 4096, /* between two looks at the seed while it is 0 */
    POINTS_MEAN = 48,  /* between two disturbances */
    SPIN_MOST = 255
};

struct sched_thread {
    int64_t left; /* points to pass before the next look */
    uint64_t seed, state;
};

static __thread struct sched_thread self __attribute__((tls_model("initial-exec")));

static wr_atomic_u64 sched_seed;   /* 0: off */
static wr_atomic_u64 sched_thread; /* ordinals given so far under this seed */

/* splitmix64 (Steele, Lea and Flood, 2014). */
UNSEEN static uint64_t draw(uint64_t *state)
{
    uint64_t z = (*state += UINT64_C(0x9e3779b97f4a7c15));
    z = (z ^ (z >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
    z = (z ^ (z >> 27)) * UINT64_C(0x94d049bb133111eb);
    return z ^ (z >> 31);
}

UNSEEN static void disturb(uint64_t random)
{
    int saved = errno;
    unsigned kind = (unsigned)(random & 0xff);
    unsigned size = (unsigned)(random >> 8 & SPIN_MOST);
    if (kind < 176) {
        for (unsigned i = 0; i < size; i++)
            wr_atomic_pause();
    } else if (kind < 254) {
        sched_yield();
    } else {
        const struct timespec pause = {.tv_nsec = (long)(1 + size) * 100};
        nanosleep(&pause, NULL);
    }
    errno = saved;
}

UNSEEN static __attribute__((noinline, cold)) void sched_look(void)
{
    self.left = POINTS_OFF;
    /* Relaxed: what is drawn from it is the only effect. */
    uint64_t seed = wr_atomic_load_relaxed(&sched_seed);
    if (seed == 0)
        return;
    if (self.seed != seed) {
        /* Relaxed: it only tells threads apart. */
        uint64_t ordinal = wr_atomic_fetch_add_relaxed(&sched_thread, 1);
        self.seed = seed;
        self.state = seed;
        self.state = draw(&self.state) + ordinal;
    } else {
        disturb(draw(&self.state));
    }
    self.left = (int64_t)(draw(&self.state) % (2 * POINTS_MEAN)) + 1;
}

UNSEEN void wr_sched_point(void)
{
    if (wr_unlikely(--self.left < 0))
        sched_look();
}

UNSEEN void wr_sched_seed(uint64_t seed)
{
    self.left = POINTS_OFF;
    /* Relaxed, both: threads made from here on come later by their creation, others when they look. */
    wr_atomic_store_relaxed(&sched_thread, 0);
    wr_atomic_store_relaxed(&sched_seed, seed);
    self.left = 0;
}

__attribute__((constructor)) static void sched_start(void)
{
    const char *seed = getenv("WR_SCHED_SEED");
    if (seed != NULL)
        wr_sched_seed(strtoull(seed, NULL, 0));
}
