/* F1 check: what happens when something must not be: panics, assertions, warnings, and their counters.
 *
 * Three tiers. wr_panic(): misuse that corrupts memory, in every build. WR_ASSERT: our own mistakes, in debug
 * builds (WR_DEBUG). WR_AUDIT: invariants that cost more than the operation, with WR_DEBUG above 1.
 * A warning goes to the program's hook, or to standard error; each kind warns once and is counted for ever.
 */
#ifndef WR_LIB_CHECK_H
#define WR_LIB_CHECK_H

#include "atomics.h"

#include <weakref/types.h>

#ifndef WR_DEBUG
#define WR_DEBUG 0
#endif

/* Prints "weakref: CALL: KIND NAME at ADDRESS: WHAT" and aborts. @kind: "object", "queue", ...; @name: the
 * type's or queue's name; NULL or empty: KIND stands alone. @address: NULL: so does NAME. Allocates nothing. */
_Noreturn WR_COLD void wr_panic(const char *call, const char *kind, const char *name, const void *address,
                                const char *what);

#if WR_DEBUG
#define WR_ASSERT(condition) \
    ((condition) ? (void)0 : wr_panic(__func__, "assertion", #condition, NULL, "does not hold"))
#else
#define WR_ASSERT(condition) ((void)sizeof(condition))
#endif

#if WR_DEBUG > 1
#define WR_AUDIT(condition) WR_ASSERT(condition)
#else
#define WR_AUDIT(condition) ((void)sizeof(condition))
#endif

enum wr_warning {
    WR_WARN_SATURATED,     /* a count reached its limit; the object is immortal */
    WR_WARN_LEAKED,        /* no memory to defer a release inside a guard: the reference is leaked */
    WR_WARN_STALLED_GUARD, /* a guard has been held for ten seconds */
    WR_WARN_NO_MEMBARRIER, /* membarrier(2) stopped working: nothing is reclaimed any more */
    WR_WARN_NO_RECLAIMER,  /* the reclaimer thread cannot be started */
    WR_N_WARNINGS
};

/* Counts one @warning; the first of its kind is also reported, as @message. */
WR_COLD void wr_warn(enum wr_warning warning, const char *message);
uint64_t wr_warning_count(enum wr_warning warning);

/* The program's hook, or NULL for standard error (public: wr_set_warn()). */
void wr_check_set_warn(void (*warn)(const char *message, void *ctx), void *ctx);

#endif
