/* F3 thread: the handlers of pthread_atfork(). */
#include "fork.h"

#include <errno.h>
#include <sched.h>
#include <time.h>

#if defined(__SANITIZE_THREAD__)
#define WR_TSAN 1
#elif defined(__has_feature)
#if __has_feature(thread_sanitizer)
#define WR_TSAN 1
#endif
#endif

static void (*in_child[WR_FORK_N_PLACES])(void); /* written by constructors */

/* Written in the child, while there is one thread; then only read. */
static uint32_t process = 1;
static uint64_t survivor;      /* the ordinal of the thread that forked this process */
static uint64_t first_ordinal; /* the least that was given in this process */
static bool lone_tsan_child;

/* From prepare() on, of the thread that forks: a signal's handler that forks would wait for the gate that its own thread holds. */
static sigset_t held_back;

void wr_fork_register(enum wr_fork_place place, void (*function)(void))
{
    in_child[place] = function;
}

uint32_t wr_fork_process(void)
{
    return process;
}

bool wr_thread_is_gone(uint64_t ordinal)
{
    return ordinal < first_ordinal && ordinal != survivor;
}

bool wr_thread_is_gone_low(uint32_t ordinal)
{
    return first_ordinal != 0 && (int32_t)(ordinal - (uint32_t)first_ordinal) < 0 && ordinal != (uint32_t)survivor;
}

bool wr_fork_may_start_threads(void)
{
    return !lone_tsan_child;
}

/* Looks again and again: the threads that are inside are done in some dozens of instructions, unless they do not run. */
static void wait_until_all_are_out(void)
{
    for (unsigned round = 0; wr_thread_others_inside(); round++) {
        if (round < 64)
            sched_yield();
        else
            (void)clock_nanosleep(CLOCK_MONOTONIC, 0, &(const struct timespec){.tv_nsec = 50000}, NULL);
    }
}

/* A thread that is inside can get here only by a signal's handler that calls fork(). It must not wait for itself, and its own
 * half-done work goes into the child: such a child may only exec or exit. */
static void prepare(void)
{
    if (wr_gate_is_inside())
        return;
    int saved = errno, cancel = wr_cancel_hold();
    sigset_t before;
    wr_signals_hold(&before);
    bool asymmetric = wr_thread_is_asymmetric();
    wr_gate_close(asymmetric);
    held_back = before; /* behind the gate: one thread at a time */
    wait_until_all_are_out();
    wr_cancel_restore(cancel);
    errno = saved;
}

static void after_in_parent(void)
{
    if (wr_gate_is_inside())
        return;
    int saved = errno;
    sigset_t before = held_back;
    wr_gate_open();
    wr_signals_restore(&before);
    errno = saved;
}

static void after_in_child(void)
{
    if (wr_gate_is_inside())
        return;
    int saved = errno;
    process++;
    survivor = wr_thread_ordinal();
    first_ordinal = wr_thread_next_ordinal();
#ifdef WR_TSAN
    lone_tsan_child = lone_tsan_child || wr_thread_others();
#endif
    for (int place = 0; place < WR_FORK_N_PLACES; place++)
        if (in_child[place] != NULL)
            in_child[place]();
    wr_thread_cut_others();
    wr_gate_open_in_child();
    wr_signals_restore(&held_back);
    errno = saved;
}

/* Early, so that the program's handlers run outside of these: before prepare(), and after the child's. */
__attribute__((constructor(101))) static void fork_start(void)
{
    (void)pthread_atfork(prepare, after_in_parent, after_in_child);
}
