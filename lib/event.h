/* F2 event: an event count (ck_ec): sleep until something changed, and wake without a syscall when nobody sleeps.
 *
 * The waiter reads the count, looks at its condition, and waits for the count to differ from what it read; the
 * other side changes the condition, then signals. No happens-before hangs on the event itself: the condition
 * is read and written with atomics or under a lock of its own.
 */
#ifndef WR_LIB_EVENT_H
#define WR_LIB_EVENT_H

#include "atomics.h"

#include <weakref/types.h>

#include <ck_ec.h>

typedef struct wr_event {
    struct ck_ec32 count;
} wr_event;

#define WR_EVENT_INIT     \
    {                     \
        CK_EC_INITIALIZER \
    }
#define WR_EVENT_FOREVER UINT64_MAX

void wr_event_init(wr_event *event);

/* The count before the condition is looked at; a full fence stands between. */
uint32_t wr_event_value(wr_event *event);

/* After the condition was changed (full fence between): wakes all who wait. */
void wr_event_signal(wr_event *event);

/* Until the count is no longer @value, or @timeout_ns passed. Returns false on time-out. May return early. */
bool wr_event_wait(wr_event *event, uint32_t value, uint64_t timeout_ns);

/* CLOCK_MONOTONIC in nanoseconds. */
uint64_t wr_clock_ns(void);

#endif
