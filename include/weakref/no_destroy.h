/* F3 no_destroy: a region of code in which nothing may be destroyed, for finding the release that ends an object under a lock.
 *
 * The classic deadlock of counted objects: somebody releases what happens to be the last reference while holding a mutex, and
 * the object's destroy, or a callback that runs at once, wants that mutex. It needs the unlucky thread to be the last one, so it
 * shows up in production. Put the region around the critical section: the first run in which anything is destroyed there
 * panics, whether or not it would have deadlocked.
 *
 * When not to use it: as a guarantee. It watches, it does not keep anything alive; release after the lock, or use
 * wr_release_later(), or let the type's destroy_on take the destroy elsewhere.
 *
 * Example:
 *     pthread_mutex_lock(&room->lock);
 *     WR_NO_DESTROY {
 *         wr_release(room->speaker);            // the last one: panic, with both places named
 *         room->speaker = wr_retain(next);
 *     }
 *     pthread_mutex_unlock(&room->lock);
 *
 * Guarantees:
 *   A. Inside the region, on its thread, running any destroy, any callback of WR_QUEUE_INLINE or any high-water hook is a panic
 *      that names the region's file and line, the object's type and address, and lists the calls on the stack.
 *   B. What dies there without anything to run, or is handed over (a queue's callback, a deferred type, destroy_on), is not
 *      meant. Nor is what is destroyed when an outer destroy, in which the region lies, has returned.
 *   C. Compiled with NDEBUG, and without WR_DEBUG=1, it is a plain block.
 *   D. Leaving it by longjmp() is not noticed: the region stands, at an address on the stack that is gone.
 * Progress: two stores at either end; one load per destroy elsewhere.
 */
#ifndef WEAKREF_NO_DESTROY_H
#define WEAKREF_NO_DESTROY_H

#include <weakref/detail/header.h>
#include <weakref/types.h>

WR_BEGIN_DECLS

/* A region that the thread is in; they nest. */
struct wr_no_destroy_region {
    const char *file;
    int line;
    bool once;
    struct wr_no_destroy_region *outer;
};

/* The innermost one, or NULL. */
extern WR_API __thread struct wr_no_destroy_region *WR_LAYOUT(wr_no_destroy) __attribute__((tls_model("initial-exec")));

WR_END_DECLS

/**
 * WR_NO_DESTROY { ... } - a block in which nothing may be destroyed; leaving it by return, break, goto or continue ends the
 * region. `break` and `continue` leave the block, not a loop around it.
 */
#if defined(NDEBUG) && !(defined(WR_DEBUG) && WR_DEBUG)
#define WR_NO_DESTROY_(scope) for (bool scope = true; scope; scope = false)
#elif defined(__cplusplus)
struct wr_no_destroy_scope : wr_no_destroy_region {
    wr_no_destroy_scope(const char *at_file, int at_line)
    {
        file = at_file;
        line = at_line;
        once = true;
        outer = WR_LAYOUT(wr_no_destroy);
        WR_LAYOUT(wr_no_destroy) = this;
    }
    ~wr_no_destroy_scope()
    {
        WR_LAYOUT(wr_no_destroy) = outer;
    }
    wr_no_destroy_scope(const wr_no_destroy_scope &) = delete;
    wr_no_destroy_scope &operator=(const wr_no_destroy_scope &) = delete;
};
#define WR_NO_DESTROY_(scope) for (wr_no_destroy_scope scope(__FILE__, __LINE__); scope.once; scope.once = false)
#else
/* The loop's condition: true, and in the region, once. */
static inline bool wr_no_destroy_enter(struct wr_no_destroy_region *region)
{
    if (region->once)
        WR_LAYOUT(wr_no_destroy) = region;
    return region->once;
}
static inline void wr_no_destroy_leave(struct wr_no_destroy_region *region)
{
    WR_LAYOUT(wr_no_destroy) = region->outer;
}
#define WR_NO_DESTROY_(scope)                                                                                  \
    for (struct wr_no_destroy_region scope                                                                     \
         __attribute__((cleanup(wr_no_destroy_leave))) = {__FILE__, __LINE__, true, WR_LAYOUT(wr_no_destroy)}; \
         wr_no_destroy_enter(&scope); scope.once = false)
#endif
#define WR_NO_DESTROY WR_NO_DESTROY_(WR_CONCAT_(wr_no_destroy_scope_, __COUNTER__)) /* a name of its own, for nesting */

#endif
