/* F4 object: header and payload, death, and the watchers that hear of it (public half: <weakref/object.h>).
 *
 * A death flows so: the thread whose release closed the word detaches the watcher list (side lock), drops the
 * lock, fires the internal watchers; then `destroy` runs; then the user watchers fire, newest first; then the token
 * goes, and with the last weak count the memory. Deaths inside a `destroy` wait in a list of that thread, so
 * the stack stays flat. Whoever takes a watcher off the list owns it: the death, or wr_watcher_detach().
 */
#ifndef WR_LIB_OBJECT_H
#define WR_LIB_OBJECT_H

#include "guard.h"

#include <weakref/object.h>

typedef struct wr_watcher wr_watcher;

enum wr_watcher_stage {
    WR_WATCHER_INTERNAL, /* fires at death, before destroy: dictionary entries */
    WR_WATCHER_USER,     /* fires after destroy: user callbacks on their way to a queue */
    WR_WATCHER_FOR_GOOD  /* as USER, for wr_watcher_attach_for_good() */
};

typedef WR_ATOMIC(const wr_type *) wr_atomic_type;

/* What a higher floor hangs on an object. */
typedef struct wr_watcher_class {
    enum wr_watcher_stage stage;
    /* The object died; @first was detached by the death and is now the callee's, with its weak count. It may take
     * as many of the following ones of the same class as it likes (->next); returns the first it did not take.
     * Requires: no wr lock held. INTERNAL: runs no user code. */
    wr_watcher *(*fire)(wr_watcher *first);
    /* The same for an INTERNAL watcher that is alone (see "guests" in object.c), and has not been detached: under the lock under
     * which wr_watcher_detach() is called for it, if nobody has taken it off by then, wr_watcher_leave_dead() does.
     * Requires: in a guard. */
    void (*fire_guest)(wr_watcher *guest);
    /* INTERNAL: where the type of those objects is kept that need no side record for a watcher of this class, that of the
     * first one that wr_watcher_prepare_guest() meets; NULL there at first. Or NULL: all need one. Else with fire_guest. */
    wr_atomic_type *usual_type;
} wr_watcher_class;

struct wr_watcher {
    union {
        wr_watcher *next;      /* the object's list, newest first. Guarded by the side lock */
        wr_header *next_death; /* of a lone one, whose object is dead: see object.c */
    };
    union {
        wr_watcher *prev; /* Guarded by the side lock */
        /* Fired, for WR_WATCHER_FOR_GOOD: how many bytes wr_watcher_settle() may free; 0: it may not be used. */
        size_t block;
    };
    const wr_watcher_class *klass; /* set before wr_watcher_attach() */
    union {
        wr_header *header;   /* the object; set by wr_watcher_attach(), which takes one weak count for it */
        const wr_type *type; /* of the object; for WR_WATCHER_FOR_GOOD */
    };
};

/* Hangs @w on the object. Requires: the caller holds a strong reference for the duration of the call, or the object
 * is in its destroy. Takes one weak count on the header, which is the watcher's. Makes the side record where one is needed
 * and there is none. Returns 0; -ESTALE: the object is dead; -ENOMEM. Changes nothing on failure. Requires: no wr lock
 * held (may warn).
 * Under a shard lock: wr_watcher_prepare() before taking it, then wr_watcher_attach_prepared(), which allocates nothing,
 * says nothing, and fails only with -ESTALE. */
int wr_watcher_attach(wr_watcher *w, void *obj);
int wr_watcher_prepare(void *obj);
int wr_watcher_attach_prepared(wr_watcher *w, void *obj);

/* The same for an INTERNAL watcher that can do without a side record (see "guests" in object.c): prepare makes one only if the
 * object cannot be its host as things are; attach is -EAGAIN, and nothing has changed, if it cannot be that any more: then the
 * caller prepares again, out of its lock. */
int wr_watcher_prepare_guest(const wr_watcher *w, void *obj);
int wr_watcher_attach_guest(wr_watcher *w, void *obj);

/* The same for a watcher that only the death will take off: it takes its weak count at the death, which spares
 * most objects two read-modify-writes. */
int wr_watcher_attach_for_good(wr_watcher *w, void *obj);

/* Takes @w off the list. True: the caller owns it and its weak count now. False: the death detached it first and
 * fire() has been or will be called. Takes: the side lock. Call it at most once, and not after fire().
 * For one that may be a guest: under a lock of its own, which its fire_guest() takes, and its weak count is given back after
 * a grace period that begins when it is off. */
bool wr_watcher_detach(wr_watcher *w);

/* For fire_guest: the watcher and its weak count, as after wr_watcher_detach(), are the caller's now. */
void wr_watcher_leave_dead(const wr_watcher *guest);

/* Gives the weak count of a detached or fired watcher back: until then it counts in wr_weak_count(). */
void wr_watcher_release_weak(wr_header *h);

/* How a destroy is run elsewhere: what the queue, which is on a higher floor, does with the record that objects of types
 * with destroy_on have in front. All under no wr lock. */
#define WR_DESTROY_RECORD_SIZE 64
typedef struct wr_destroyer {
    /* Makes the zeroed @record of a new object ready for @queue. 0, or a negative errno. */
    int (*admit)(void *record, wr_header *h, wr_queue *queue);
    /* The object is dead and has no destroy before it any more. False: it is to be destroyed here. Allocates nothing. */
    bool (*hand_over)(void *record);
} wr_destroyer;
void wr_object_set_destroyer(const wr_destroyer *destroyer);

/* What hand_over() brings about: destroy, callbacks, and that the object, the record with it, is given up. */
void wr_object_destroy(wr_header *h);

/* Instead of wr_watcher_release_weak(), for a watcher that was fired with @block != 0: gives its weak count back without a
 * look at the object's type, so that it may be done at any later time. True: that was the last one, and the caller
 * gives the @block bytes at @h to wr_pool_free(). */
bool wr_watcher_settle(wr_header *h);

/* The type of the object, dead or alive. */
const wr_type *wr_header_type(const wr_header *h);

/* Acts on the verdict of a weak release: frees the memory after the last one. @call: for the panic at underflow. */
void wr_object_weak_released(const char *call, wr_header *h, enum wr_word_verdict verdict);

/* Warns (once) and counts that a count of @h was found at its limit. */
WR_COLD void wr_object_saturated(const wr_header *h);

/* Panics in a WR_NO_DESTROY region. Stands before user code that the death of @h runs on the releasing thread. */
void wr_object_no_destroy_check(const wr_header *h);

/* Panics with the object's type and address. */
_Noreturn WR_COLD void wr_object_panic(const char *call, const wr_header *h, const char *what);

#endif
