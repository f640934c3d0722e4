/* F1 ticks: the cheapest clock there is, for durations: a processor's counter where it runs evenly, else CLOCK_MONOTONIC.
 *
 * A tick is of no known length until wr_ticks_to_ns() says it, so hot paths subtract, and who reads the figures converts.
 * The counters of two processors may differ a little, and a processor may read its own early: a difference can come out
 * slightly negative, which wr_ticks_since() shows as 0.
 *
 * When not to use it: for deadlines (use CLOCK_MONOTONIC) and across a suspend of the machine, where some counters stop
 * and some go on.
 */
#ifndef WR_LIB_TICKS_H
#define WR_LIB_TICKS_H

#include <weakref/types.h>

/* True: the processor's counter. Chosen by a constructor, then only read: ticks of earlier constructors are not
 * comparable with later ones. */
extern __attribute__((visibility("hidden"))) bool wr_ticks_counter;

/* CLOCK_MONOTONIC in nanoseconds: what a tick is where there is no counter. */
uint64_t wr_ticks_clock_ns(void);

static inline uint64_t wr_ticks(void)
{
#if defined(__x86_64__)
    if (__builtin_expect(wr_ticks_counter, 1))
        return __builtin_ia32_rdtsc();
#elif defined(__aarch64__)
    if (__builtin_expect(wr_ticks_counter, 1)) {
        uint64_t ticks;
        __asm__ __volatile__("mrs %0, cntvct_el0" : "=r"(ticks));
        return ticks;
    }
#endif
    return wr_ticks_clock_ns();
}

/* Ticks from @then, an answer of wr_ticks(), until now; 0 where the clocks of two processors make that negative. */
static inline uint64_t wr_ticks_since(uint64_t then)
{
    uint64_t ticks = wr_ticks() - then;
    return (int64_t)ticks < 0 ? 0 : ticks;
}

/* A difference of ticks in nanoseconds, by how fast both clocks ran from the library's start until now. Reads both some
 * times, and spins until a millisecond has passed since the start: not for hot paths, not under a lock. */
uint64_t wr_ticks_to_ns(uint64_t ticks);

#endif
