/* F1 ticks: which clock, and how long a tick is. */
#include "ticks.h"

#include <time.h>

#if defined(__x86_64__)
#include <cpuid.h>
#include <sys/prctl.h>
#endif

/* Until so much has passed since the start, a tick's length is not known well enough. */
#define LEAST_NS 1000000

bool wr_ticks_counter;

/* One moment, by both clocks. */
struct moment {
    uint64_t ticks, ns;
};

static struct moment start; /* written by the constructor, then only read */

uint64_t wr_ticks_clock_ns(void)
{
    struct timespec now;
    (void)clock_gettime(CLOCK_MONOTONIC, &now); /* cannot fail: the clock exists, the pointer is good */
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

/* Of some tries the one that took least: the thread was not preempted between the two clocks. */
static struct moment moment_now(void)
{
    struct moment best = {0, 0};
    uint64_t least = UINT64_MAX;
    for (int i = 0; i < 5; i++) {
        uint64_t before = wr_ticks(), ns = wr_ticks_clock_ns(), took = wr_ticks_since(before);
        if (took <= least) {
            least = took;
            best = (struct moment){before + took / 2, ns};
        }
    }
    return best;
}

uint64_t wr_ticks_to_ns(uint64_t ticks)
{
    if (!wr_ticks_counter)
        return ticks;
    struct moment now;
    do
        now = moment_now();
    while (now.ns - start.ns < LEAST_NS);
    uint64_t passed = now.ticks - start.ticks;
    if ((int64_t)passed <=
        0) /* a counter that went back, by a suspend or a move to another machine: no better answer */
        return ticks;
    double ns = (double)ticks * ((double)(now.ns - start.ns) / (double)passed);
    return ns < 0x1p64 ? (uint64_t)ns : UINT64_MAX;
}

/* Whether the counter runs at one rate in all states of the processor, and may be read. */
static bool counter_is_even(void)
{
#if defined(__x86_64__)
    unsigned a, b, c, d;
    int mode = PR_TSC_ENABLE;
    if (__get_cpuid(0x80000007, &a, &b, &c, &d) == 0 || (d & 1u << 8) == 0) /* "invariant TSC" */
        return false;
    return prctl(PR_GET_TSC, &mode) != 0 || mode == PR_TSC_ENABLE; /* a sandbox can make reading it a SIGSEGV */
#elif defined(__aarch64__)
    return true; /* by the architecture; Linux lets programs read it */
#else
    return false;
#endif
}

__attribute__((constructor(101))) static void ticks_start(void)
{
    wr_ticks_counter = counter_is_even();
    start = moment_now();
}
