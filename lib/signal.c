/* F7 method: signals: a linked list that emitters read in guards, and whose nodes they pin while handlers run.
 *
 * A connection is a node of the signal's list and a watcher of its object. Its one word says who has it:
 *
 *     GONE      it is disconnected: nobody pins it any more. Set once, never cleared
 *     USER      its handle has not been released
 *     WATCHER   the object's list, or its death on the way to fire(), has it
 *     LISTED    the signal's list has it; it keeps the signal
 *     pins      emitters that stand on it (and run its handler), and who is disconnecting it at the moment
 *
 * States, and who moves them
 *
 *                      emit               disconnect, free     death (fire)             last pin goes
 *     CONNECTED        + pin              -> GONE, + pin       -> GONE, + pin           stays
 *     GONE, pinned     passes over it     answers (sync waits) gives WATCHER back       unlinks it: - LISTED
 *     GONE, unlinked   passes over it     answers              gives WATCHER back       cannot be
 *
 *     Who sets GONE takes a pin in the same step; since none is taken afterwards, the pins come to 0 exactly once after
 *     it, and whoever brings them there unlinks the node. So a pinned node is linked, and its `next` always leads on,
 *     though the emitter has left its guard meanwhile. From a node that is GONE an emitter leads itself on within its
 *     guard, as readers of such lists do: what was unlinked after the guard began is not freed in it.
 *     Who disconnects, other than the death, asks wr_watcher_detach() while it has its pin. If the death has the
 *     watcher already, fire() gives WATCHER back.
 *
 * Memory
 *     When WATCHER, LISTED and pins are gone, so goes the weak count of the header: only who has a pin looks at it. When USER
 *     is gone, too, the node is retired. The signal is counted: its owner, and each linked node. It is retired when
 *     all are gone; an emitter is in a guard or has a pin.
 *
 * Fork
 *     Pins of threads that a fork has left behind are never given back. The state carries the process in which its pins
 *     were counted; those of another one do not count (as_of_now()). In the child the pins of the forking thread's
 *     emissions are counted anew. A connection that was being disconnected elsewhere stays linked, and unseen.
 *
 * What guards what
 *     lock (a spinlock, WR_RANK_LIST) guards the links for writing, last, closed, and the numbering.
 *     INV-1: nodes are linked in ascending order of seq, and none is linked after `closed` was set.
 */
#include <weakref/signal.h>

#include <weakref/weak.h>

#include "alloc.h"
#include "event.h"
#include "fork.h"
#include "object.h"

#include <errno.h>
#include <string.h>

enum {
    GONE = 1,
    WAITED = 2, /* somebody sleeps until pins go */
    USER = 4,
    WATCHER = 8,
    LISTED = 16,
    PIN = 32 /* and all bits above, in the low half; the high half: in which process they were counted */
};
#define PINS ((uint64_t)(UINT32_MAX & ~(uint32_t)(PIN - 1)))
#define PROCESS_SHIFT 32

struct wr_connection {
    union {
        wr_watcher watcher;
        wr_retired retired; /* when all else is over */
    };
    WR_ATOMIC(wr_connection *) next; /* in the signal's list; stays when it is unlinked */
    wr_connection *prev;             /* Guarded by signal->lock */
    wr_signal *signal;               /* while it is linked */
    wr_header *header;               /* the object; with one weak count while WATCHER, LISTED or pins are there */
    wr_method_fn *fn;
    uint64_t seq; /* set before it is linked */
    wr_atomic_u64 state;
};

struct wr_signal {
    WR_ATOMIC(wr_connection *) first; /* linked, in order of connection */
    wr_atomic_u64 last_seq;           /* of the last that was linked */
    wr_atomic_u64 n_connected;
    wr_atomic_u64 refs; /* the owner's, and one of each linked node */
    wr_spin lock;
    bool closed;         /* freed: nothing is linked any more. Guarded by lock */
    wr_connection *last; /* Guarded by lock */
    wr_retired retired;
    char name[];
};

/* A connection that this thread has pinned for an emission, and whether its handler is running. */
struct frame {
    struct frame *below;
    const wr_connection *connection;
    bool running;
};
static __thread struct frame *frames __attribute__((tls_model("initial-exec")));

static struct wr_event unpinned = WR_EVENT_INIT; /* a pin of a connection that is WAITED for has gone */

static wr_watcher *fire(wr_watcher *first);
static const wr_watcher_class signal_watcher_class = {.stage = WR_WATCHER_INTERNAL, .fire = fire};

/* ---- memory ---------------------------------------------------------------------------------------- */

static void signal_reclaim(wr_retired *r)
{
    wr_free((char *)r - offsetof(wr_signal, retired));
}

static void signal_release(wr_signal *s)
{
    /* Acquire-release [signal-ref]: every holder's use happens before the free. Pairs with itself in other threads. */
    if (wr_atomic_fetch_sub_acq_rel(&s->refs, 1) == 1)
        wr_retire_memory(&s->retired, signal_reclaim);
}

static void connection_reclaim(wr_retired *r)
{
    wr_free((char *)r - offsetof(wr_connection, retired));
}

static uint64_t this_process(void)
{
    return (uint64_t)wr_fork_process() << PROCESS_SHIFT;
}

/* The state without what does not count any more. */
static uint64_t as_of_now(uint64_t state)
{
    if (wr_likely(state >> PROCESS_SHIFT == wr_fork_process()))
        return state;
    return this_process() | (state & (PIN - 1));
}

/* Gives @bits back: some of USER, WATCHER, LISTED and pins. Returns what is left. Requires: no wr lock held. */
static uint64_t drop(wr_connection *c, uint32_t bits)
{
    const uint64_t held = WATCHER | LISTED | PINS;
    wr_header *h = c->header;
    /* Acquire-release [connection]: every use of the node happens before the free, and a handler before who waits for it. */
    uint64_t old = as_of_now(wr_atomic_fetch_sub_acq_rel(&c->state, bits));
    uint64_t now = old - bits;
    if ((now & held) == 0) {
        if ((old & held) != 0)
            wr_watcher_release_weak(h);
        if (!(now & USER))
            wr_retire_memory(&c->retired, connection_reclaim);
    }
    return now;
}

/* ---- pins ------------------------------------------------------------------------------------------ */

/* False: it is disconnected. Requires: in a guard. */
static bool pin(wr_connection *c)
{
    /* Relaxed: the exchange orders. */
    uint64_t cur = wr_atomic_load_relaxed(&c->state);
    while (!(cur & GONE)) {
        /* Acquire [connection]: the last value there is: after GONE was set it fails, whoever asks. */
        if (wr_atomic_cas_acquire(&c->state, &cur, as_of_now(cur) + PIN))
            return true;
    }
    return false;
}

/* Takes: the signal's lock. */
static void unlink_node(wr_connection *c)
{
    wr_signal *s = c->signal;
    wr_spin_lock(&s->lock, WR_RANK_LIST);
    /* Relaxed: written under the lock. */
    wr_connection *next = wr_atomic_load_relaxed(&c->next);
    if (next != NULL)
        next->prev = c->prev;
    else
        s->last = c->prev;
    if (c->prev != NULL) {
        /* Release [signal-list]: who is led on by it sees the next one whole. Pairs with pin_next(). */
        wr_atomic_store_release(&c->prev->next, next);
    } else {
        /* Release [signal-list]: as above. */
        wr_atomic_store_release(&s->first, next);
    }
    wr_spin_unlock(&s->lock, WR_RANK_LIST);
    signal_release(s);
}

static void unpin(wr_connection *c)
{
    /* Before the pin goes: afterwards the node may be gone, too, unless this is the last. */
    uint64_t now = drop(c, PIN);
    if (wr_unlikely(now & WAITED))
        wr_event_signal(&unpinned);
    if (wr_unlikely((now & GONE) && (now & PINS) == 0)) {
        unlink_node(c);
        (void)drop(c, LISTED);
        wr_retire_relax();
    }
}

/* The first connected one behind @after, which is pinned (NULL: of all), pinned; or NULL. Requires: in a guard. */
static wr_connection *pin_next(wr_signal *s, wr_connection *after, uint64_t last_seq)
{
    /* Acquire [signal-list]: sees the node as it was linked, or what the unlinked one led to. Pairs with link_node(), unlink_node(). */
    wr_connection *c = after != NULL ? wr_atomic_load_acquire(&after->next) : wr_atomic_load_acquire(&s->first);
    while (c != NULL && c->seq <= last_seq) {
        if (wr_likely(pin(c)))
            return c;
        /* Acquire [signal-list]: as above. */
        c = wr_atomic_load_acquire(&c->next);
    }
    return NULL;
}

/* ---- connecting ------------------------------------------------------------------------------------ */

/* False: the signal has been freed. Takes: the signal's lock. */
static bool link_node(wr_signal *s, wr_connection *c)
{
    wr_spin_lock(&s->lock, WR_RANK_LIST);
    bool open = !s->closed;
    if (open) {
        /* Relaxed: a count of those who hold it; the caller does. */
        (void)wr_atomic_fetch_add_relaxed(&s->refs, 1);
        /* Relaxed: a figure. Before it can be disconnected. */
        (void)wr_atomic_fetch_add_relaxed(&s->n_connected, 1);
        /* Relaxed: written under the lock. */
        c->seq = wr_atomic_load_relaxed(&s->last_seq) + 1;
        c->prev = s->last;
        if (s->last != NULL) {
            /* Release [signal-list]: who finds the node finds it whole. Pairs with pin_next(). */
            wr_atomic_store_release(&s->last->next, c);
        } else {
            /* Release [signal-list]: as above. */
            wr_atomic_store_release(&s->first, c);
        }
        s->last = c;
        /* Release [signal-list]: who knows the number finds the node. Pairs with wr_signal_emit(). */
        wr_atomic_store_release(&s->last_seq, c->seq);
    }
    wr_spin_unlock(&s->lock, WR_RANK_LIST);
    return open;
}

int(wr_signal_connect)(wr_signal *s, void *obj, wr_method_fn *fn, wr_connection **connection)
{
    if (s == NULL || obj == NULL || fn == NULL)
        return -EINVAL;
    wr_connection *c = wr_alloc(sizeof *c);
    if (c == NULL)
        return -ENOMEM;
    c->watcher.klass = &signal_watcher_class;
    wr_atomic_init(&c->next, NULL);
    c->signal = s;
    c->fn = fn;
    wr_atomic_init(&c->state, this_process() | WATCHER | LISTED | (connection != NULL ? USER : 0));
    c->header = wr_header_of(obj);
    int error = wr_watcher_prepare(obj);
    bool linked = false;
    if (error == 0) {
        wr_gate_enter(); /* no fork between the object's list and the signal's */
        error = wr_watcher_attach_prepared(&c->watcher, obj);
        /* The caller's reference keeps the death away, and so nobody else has it until it is linked. */
        linked = error == 0 && link_node(s, c);
        if (error == 0 && !linked)
            (void)wr_watcher_detach(&c->watcher);
        wr_gate_leave();
    }
    if (error != 0) {
        wr_free(c);
        return error;
    }
    if (!linked) {
        wr_watcher_release_weak(c->header);
        wr_free(c);
        return -ECANCELED;
    }
    if (connection != NULL)
        *connection = c;
    return 0;
}

int wr_signal_connect_method(wr_signal *s, wr_method *method, wr_connection **connection)
{
    if (s == NULL || method == NULL)
        return -EINVAL;
    void *obj = wr_upgrade(wr_method_weak(method));
    if (obj == NULL)
        return -ESTALE;
    int error = wr_signal_connect(s, obj, wr_method_function(method), connection);
    wr_release(obj);
    return error;
}

/* ---- disconnecting --------------------------------------------------------------------------------- */

/* Sets GONE and takes a pin. False: it was set. */
static bool begin_disconnect(wr_connection *c)
{
    wr_gate_enter(); /* no fork between the state and the figure */
    /* Relaxed: the exchange orders. */
    uint64_t cur = wr_atomic_load_relaxed(&c->state);
    do {
        if (cur & GONE) {
            wr_gate_leave();
            return false;
        }
        /* Acquire-release [connection]: one party sets it; whoever pins afterwards fails. CONNECTED -> GONE. */
    } while (!wr_atomic_cas_acq_rel(&c->state, &cur, (as_of_now(cur) | GONE) + PIN));
    /* Relaxed: a figure. */
    (void)wr_atomic_fetch_sub_relaxed(&c->signal->n_connected, 1);
    wr_gate_leave();
    return true;
}

/* Returns whether it was this call. */
static bool disconnect(wr_connection *c)
{
    if (!begin_disconnect(c))
        return false;
    if (wr_watcher_detach(&c->watcher))
        (void)drop(c, WATCHER);
    unpin(c);
    return true;
}

/* The object died. INTERNAL stage: no lock held, no user code. */
static wr_watcher *fire(wr_watcher *first)
{
    wr_watcher *rest = first->next;
    wr_connection *c = (wr_connection *)((char *)first - offsetof(wr_connection, watcher));
    if (begin_disconnect(c))
        unpin(c);
    (void)drop(c, WATCHER);
    wr_retire_relax();
    return rest;
}

static void check_held(const char *call, const wr_connection *c)
{
    /* Relaxed: for a caller who holds the handle it does not change. */
    if (wr_unlikely(!(wr_atomic_load_relaxed(&c->state) & USER)))
        wr_panic(call, "connection", NULL, c, "its handle has been released");
}

int wr_signal_disconnect(wr_connection *c)
{
    if (c == NULL)
        return -EINVAL;
    check_held("wr_signal_disconnect", c);
    return disconnect(c);
}

/* How many pins of this thread's emissions it has; @running: whether its handler is among what runs here. */
static uint32_t own_pins(const wr_connection *c, bool *running)
{
    uint32_t n = 0;
    *running = false;
    for (struct frame *frame = frames; frame != NULL; frame = frame->below) {
        if (frame->connection != c)
            continue;
        n += PIN;
        *running = *running || frame->running;
    }
    return n;
}

int wr_signal_disconnect_sync(wr_connection *c)
{
    if (c == NULL)
        return -EINVAL;
    check_held("wr_signal_disconnect_sync", c);
    (void)disconnect(c);
    bool running;
    uint32_t own = own_pins(c, &running);
    if (running)
        return -EDEADLK;
    for (;;) {
        uint32_t value = wr_event_value(&unpinned);
        /* Acquire [connection]: what the handlers did is seen. Pairs with drop(). */
        uint64_t cur = wr_atomic_load_acquire(&c->state);
        if ((as_of_now(cur) & PINS) <= own)
            return 0;
        /* Acquire-release [connection]: who gives a pin back sees WAITED, or this fails. */
        if ((cur & WAITED) || wr_atomic_cas_acq_rel(&c->state, &cur, cur | WAITED))
            (void)wr_event_wait(&unpinned, value, WR_EVENT_FOREVER);
    }
}

bool wr_connection_is_connected(const wr_connection *c)
{
    /* Relaxed: an answer that may be old when it arrives. */
    return c != NULL && !(wr_atomic_load_relaxed(&c->state) & GONE);
}

void wr_connection_release(wr_connection *c)
{
    if (c == NULL)
        return;
    check_held("wr_connection_release", c);
    (void)drop(c, USER);
    wr_retire_relax();
}

/* ---- signals --------------------------------------------------------------------------------------- */

wr_signal *wr_signal_new(const char *name)
{
    if (name == NULL)
        name = "signal";
    size_t length = strlen(name) + 1;
    /* Who retires few connections, and then ends, leaves them to the reclaimer. */
    if (wr_reclaimer_start() != 0) {
        errno = EAGAIN;
        return NULL;
    }
    wr_signal *s = wr_alloc_zero(sizeof *s + length);
    if (s == NULL) {
        errno = ENOMEM;
        return NULL;
    }
    wr_atomic_init(&s->refs, 1);
    wr_spin_init(&s->lock);
    memcpy(s->name, name, length);
    return s;
}

void wr_signal_free(wr_signal *s)
{
    if (s == NULL)
        return;
    wr_spin_lock(&s->lock, WR_RANK_LIST);
    bool twice = s->closed;
    s->closed = true;
    wr_spin_unlock(&s->lock, WR_RANK_LIST);
    if (twice)
        wr_panic("wr_signal_free", "signal", s->name, s, "it has been freed");

    wr_connection *c = NULL;
    do {
        wr_guard_enter();
        wr_connection *next = pin_next(s, c, UINT64_MAX);
        wr_guard_exit();
        if (c != NULL)
            unpin(c);
        c = next;
        if (c != NULL)
            (void)disconnect(c);
    } while (c != NULL);
    signal_release(s);
    wr_retire_relax();
}

const char *wr_signal_name(const wr_signal *s)
{
    return s == NULL ? NULL : s->name;
}

size_t wr_signal_len(const wr_signal *s)
{
    if (s == NULL) {
        errno = EINVAL;
        return 0;
    }
    /* Relaxed: a figure. */
    return (size_t)wr_atomic_load_relaxed(&s->n_connected);
}

size_t wr_signal_emit(wr_signal *s, void *arg)
{
    if (s == NULL) {
        errno = EINVAL;
        return 0;
    }
    size_t n = 0;
    int cancel = wr_cancel_hold(); /* else pins and a reference would stay for ever */
    wr_guard_enter();
    /* Acquire [signal-list]: all that were connected before this call are found. Pairs with link_node(). */
    uint64_t last_seq = wr_atomic_load_acquire(&s->last_seq);
    wr_connection *c = pin_next(s, NULL, last_seq);
    wr_guard_exit();
    while (c != NULL) {
        struct frame frame = {frames, c, true};
        frames = &frame;
        /* Acquire [connection]: it may have been disconnected since it was pinned: leaving the one before may take its time. */
        void *obj = (wr_atomic_load_acquire(&c->state) & GONE) ? NULL : wr_upgrade(wr_weak_of_header(c->header));
        if (obj != NULL) {
            wr_lock_assert_none("handler");
            wr_thread_call_begin();
            (void)c->fn(obj, arg);
            wr_thread_call_end();
            frame.running = false; /* a destroy that runs now may wait for other calls of this handler */
            n++;
            wr_release(obj);
        }
        wr_guard_enter();
        wr_connection *next = pin_next(s, c, last_seq);
        wr_guard_exit();
        frames = frame.below;
        unpin(c);
        c = next;
    }
    wr_cancel_restore(cancel);
    return n;
}

/* ---- fork ------------------------------------------------------------------------------------------ */

/* In the child: what this thread's emissions stand on has as many pins as they have. */
static void signal_in_child(void)
{
    /* Relaxed, all: there is one thread. */
    for (struct frame *frame = frames; frame != NULL; frame = frame->below) {
        wr_atomic_u64 *state = (wr_atomic_u64 *)(uintptr_t)&frame->connection->state;
        wr_atomic_store_relaxed(state, as_of_now(wr_atomic_load_relaxed(state)));
    }
    for (struct frame *frame = frames; frame != NULL; frame = frame->below) {
        wr_atomic_u64 *state = (wr_atomic_u64 *)(uintptr_t)&frame->connection->state;
        /* Relaxed: as above. */
        wr_atomic_store_relaxed(state, wr_atomic_load_relaxed(state) + PIN);
    }
}

__attribute__((constructor(101))) static void signal_start(void)
{
    wr_fork_register(WR_FORK_SIGNAL, signal_in_child);
}
