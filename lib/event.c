/* F2 event: an event count (ck_ec): sleep until something changed, and wake without a syscall when nobody sleeps. */
#include "event.h"

#include <errno.h>
#include <linux/futex.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

static const uint64_t NS_PER_S = 1000000000;

/* ---- what ck_ec asks of the system ------------------------------------------------------------- */

static int ec_gettime(const struct ck_ec_ops *ops, struct timespec *now)
{
    (void)ops;
    return clock_gettime(CLOCK_MONOTONIC, now);
}

/* May return early, for whatever reason: the caller looks again. errno is left alone, for callers between user code. */
static void ec_wait32(const struct ck_ec_wait_state *state, const uint32_t *address, uint32_t expected,
                      const struct timespec *deadline)
{
    (void)state;
    int saved = errno;
    /* WAIT_BITSET: its deadline is absolute and in CLOCK_MONOTONIC. */
    (void)syscall(SYS_futex, address, FUTEX_WAIT_BITSET_PRIVATE, expected, deadline, NULL, FUTEX_BITSET_MATCH_ANY);
    errno = saved;
}

static void ec_wake32(const struct ck_ec_ops *ops, const uint32_t *address)
{
    (void)ops;
    int saved = errno;
    (void)syscall(SYS_futex, address, FUTEX_WAKE_PRIVATE, INT32_MAX, NULL, NULL, 0);
    errno = saved;
}

/* A waiter spins for some hundred nanoseconds, then sleeps: on few processors a spinning waiter would keep the one
 * that it waits for from running. */
static const struct ck_ec_ops ec_ops = {
    .gettime = ec_gettime,
    .wait32 = ec_wait32,
    .wake32 = ec_wake32,
    .busy_loop_iter = 20,
};
static const struct ck_ec_mode ec_mode = {.ops = &ec_ops, .single_producer = false};

/* ---- events ------------------------------------------------------------------------------------ */

void wr_event_init(wr_event *event)
{
    ck_ec32_init(&event->count, 0);
}

uint32_t wr_event_value(wr_event *event)
{
    uint32_t value = ck_ec32_value(&event->count);
    /* Full fence [event]: the caller's look at its condition stays behind the read of the count. Pairs with the
     * fence of wr_event_signal(): either the look sees the change, or the wait sees the new count. */
    wr_atomic_fence_seq_cst();
    return value;
}

void wr_event_signal(wr_event *event)
{
    /* Full fence [event]: the caller's change of its condition stands before the new count. Pairs with the fence
     * of wr_event_value(). */
    wr_atomic_fence_seq_cst();
    ck_ec32_inc(&event->count, &ec_mode);
}

bool wr_event_wait(wr_event *event, uint32_t value, uint64_t timeout_ns)
{
    if (timeout_ns == WR_EVENT_FOREVER)
        return ck_ec32_wait(&event->count, &ec_mode, value, NULL) == 0;

    uint64_t now = wr_clock_ns();
    uint64_t until = timeout_ns < UINT64_MAX / 2 ? now + timeout_ns : UINT64_MAX / 2;
    struct timespec deadline = {.tv_sec = (time_t)(until / NS_PER_S), .tv_nsec = (long)(until % NS_PER_S)};
    return ck_ec32_wait(&event->count, &ec_mode, value, &deadline) == 0;
}

uint64_t wr_clock_ns(void)
{
    struct timespec now;
    (void)clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * NS_PER_S + (uint64_t)now.tv_nsec;
}
