/* wr-stress: random work of many threads on few objects. What its parts share.
 *
 * A run is a row of rounds. In a round each worker does a fixed number of operations drawn from (seed, round, worker);
 * then all stop, and one thread takes everything out of the shared places and checks the laws (wr_stress_check.c).
 * Whatever can be checked on the spot is checked on the spot: each access verifies a magic word and a checksum,
 * each callback its watch, each answer what it promises.
 *
 * References go from younger objects to older ones only (by number), so that no circle can keep anything alive.
 */
#ifndef WR_STRESS_H
#define WR_STRESS_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

#include <weakref/debug.h>
#include <weakref/finalize.h>
#include <weakref/guard.h>
#include <weakref/method.h>
#include <weakref/object.h>
#include <weakref/queue.h>
#include <weakref/signal.h>
#include <weakref/slot.h>
#include <weakref/value_dict.h>
#include <weakref/watch.h>
#include <weakref/weak.h>

#if defined(__SANITIZE_THREAD__) || defined(__SANITIZE_ADDRESS__)
#define SANITIZED 1
#elif defined(__has_feature)
#if __has_feature(thread_sanitizer) || __has_feature(address_sanitizer)
#define SANITIZED 1
#endif
#endif
#ifndef SANITIZED
#define SANITIZED 0
#endif

/* ---- options, randomness, counts: wr_stress.c ------------------------------------------------------------ */

enum mode {
    MODE_COUNT = 1,
    MODE_WATCH = 2,
    MODE_DICT = 4,
    MODE_QUEUE = 8,
    MODE_CANCEL = 16,
    MODE_SIGNAL = 32,
    MODE_FORK = 64,                                     /* not among all: forks copy what the others have taken */
    MODE_OBJECTS = MODE_COUNT | MODE_WATCH | MODE_DICT, /* those that work on the objects of wr_stress_object.c */
    MODE_ALL = MODE_OBJECTS | MODE_QUEUE | MODE_CANCEL | MODE_SIGNAL
};

struct options {
    double seconds; /* 0: no limit */
    unsigned n_threads;
    uint64_t seed;
    uint64_t rounds; /* 0: no limit */
    unsigned mode;   /* bits of enum mode */
    unsigned n_ops;  /* each worker's in a round */
};
extern struct options options;

/* xoshiro256** (Blackman and Vigna, 2018), started by splitmix64. */
struct random {
    uint64_t s[4];
};
void random_start(struct random *r, uint64_t a, uint64_t b, uint64_t c);
uint64_t random_next(struct random *r);
unsigned random_below(struct random *r, unsigned n);
bool random_one_in(struct random *r, unsigned n);
uint64_t mix(uint64_t x);

#define COUNTS(X)                                                       \
    X(operations, "operations")                                         \
    X(objects, "objects made")                                          \
    X(destroyed, "destroys run")                                        \
    X(upgrades_won, "upgrades won")                                     \
    X(upgrades_lost, "upgrades lost")                                   \
    X(slot_loads, "slot loads")                                         \
    X(slot_stores, "slot stores and exchanges")                         \
    X(cas_won, "slot compare_exchanges won")                            \
    X(cas_lost, "slot compare_exchanges lost")                          \
    X(weak_gets_won, "weak slot gets won")                              \
    X(weak_gets_lost, "weak slot gets lost")                            \
    X(peeks, "peeks")                                                   \
    X(peeks_dead, "peeks at the dead")                                  \
    X(died_in_guard, "deaths seen from inside a guard")                 \
    X(retain_live_won, "retain_live won")                               \
    X(retain_live_lost, "retain_live lost")                             \
    X(released_later, "released later")                                 \
    X(grace_periods, "synchronize and barrier calls")                   \
    X(watches, "watches")                                               \
    X(delivered, "callbacks delivered")                                 \
    X(cancelled, "cancel: cancelled")                                   \
    X(running, "cancel: running")                                       \
    X(too_late, "cancel: delivered")                                    \
    X(deadlk, "cancel_sync: own callback")                              \
    X(stale, "refused: dying object")                                   \
    X(dict_hits, "dictionary hits")                                     \
    X(dict_misses, "dictionary misses")                                 \
    X(dict_dead_hits, "dictionary entries that died on the way")        \
    X(dict_writes, "dictionary sets and removes")                       \
    X(created, "get_or_create: created")                                \
    X(shared, "get_or_create: found or shared")                         \
    X(create_failed, "get_or_create: failed as meant")                  \
    X(create_timed_out, "get_or_create: had enough of waiting")         \
    X(creators_exited, "threads that exited in a create")               \
    X(dict_deaths, "own members that died with their entries")          \
    X(dict_popped, "members popped")                                    \
    X(dict_walks, "iterators of dictionaries and sets")                 \
    X(dict_steps, "their steps")                                        \
    X(dict_copies, "copies, updates, unions")                           \
    X(dicts_freed, "dictionaries freed under an iterator")              \
    X(dicts_freed_inside, "dictionaries freed by their own removal")    \
    X(queues_made, "queues made")                                       \
    X(queues_freed, "queues freed")                                     \
    X(queues_freed_full, "queues freed with callbacks pending")         \
    X(queues_freed_inside, "queues freed from a callback")              \
    X(hand_overs, "deaths with watches on many queues")                 \
    X(storms, "deaths with 1,000 watches or more")                      \
    X(nested, "drains inside callbacks")                                \
    X(looped, "callbacks on the event loop")                            \
    X(crews, "starts of a queue's threads")                             \
    X(stops, "stops of a queue's threads")                              \
    X(barriers, "queue barriers")                                       \
    X(sweeps, "cancel_all calls")                                       \
    X(swept, "callbacks cancelled by cancel_all or free")               \
    X(quiet_pending, "callbacks pending at quiet moments")              \
    X(quiet_armed, "watches armed at quiet moments")                    \
    X(quiet_readable, "used descriptors readable at quiet moments")     \
    X(quiet_unreadable, "used descriptors unreadable at quiet moments") \
    X(marks, "high-water hooks called")                                 \
    X(destroyed_there, "destroys run on a queue")                       \
    X(churned, "watched and cancelled beside 100,000 others")           \
    X(siblings, "siblings cancelled by a callback")                     \
    X(fin_ran, "finalizers run by a death")                             \
    X(fin_called, "finalizers run by a call")                           \
    X(fin_detached, "finalizers detached")                              \
    X(fin_late, "finalizers found spent")                               \
    X(method_calls, "method calls")                                     \
    X(method_dead, "method calls of the dead")                          \
    X(emissions, "emissions")                                           \
    X(handlers, "handlers run")                                         \
    X(connects, "connections")                                          \
    X(disconnects, "disconnects that found it connected")               \
    X(disconnects_late, "disconnects that came late")                   \
    X(disconnects_sync, "disconnect_sync returned")                     \
    X(disconnects_own, "disconnect_sync inside its handler")            \
    X(signals_freed, "signals freed")                                   \
    X(signals_freed_inside, "signals freed by a handler")               \
    X(signals_freed_beside, "signals freed beside an emission")         \
    X(forks, "forks, whose children did their work")                    \
    X(blocks_taken, "memory blocks taken")                              \
    X(blocks_freed, "memory blocks given back")

enum count {
#define X(name, text) COUNT_##name,
    COUNTS(X)
#undef X
        N_COUNTS
};

/* A worker, or (one for all of them) the library's own threads. */
struct worker {
    _Atomic uint64_t counts[N_COUNTS];
    _Atomic(const char *) doing; /* for the watchdog */
    unsigned index;
    struct random random;
    struct hands *hands; /* what it holds: wr_stress_work.c */
};
struct worker *worker_self(void);
void worker_become(struct worker *w);
void count(enum count what);
void count_many(enum count what, uint64_t n);
uint64_t count_sum(enum count what);
const char *count_text(enum count what);
/* Tells which of these never happened; after @many operations, each must have. */
void races_verify(const enum count *races, unsigned n, bool many);

extern _Atomic uint64_t round_now;
extern atomic_bool interrupted;
extern struct worker *workers;

/* Prints what is wrong and the line that replays it, and ends the program with status 1. */
_Noreturn void violation(const char *format, ...) __attribute__((format(printf, 1, 2)));
#define CHECK(condition) ((condition) ? (void)0 : violation("%s:%d: %s does not hold", __FILE__, __LINE__, #condition))
void watchdog_kick(const char *checking);
void doing(struct worker *w, const char *what);

/* ---- objects: wr_stress_object.c ------------------------------------------------------------------------------- */

enum kind { PLAIN, DEFERRED, SIZED, BOX, PLAIN_BARE, DEFERRED_BARE, N_KINDS };
enum { TOUCHERS = 16 };
#define NO_KEY UINT32_MAX

struct node {
    uint64_t magic, check;
    uint32_t number, kind, key, acts;
    void *child;  /* strong, older; set before the node is shared */
    wr_slot link; /* strong, older */
    /* Written by its worker alone while it holds a strong reference, read by destroy: no atomics, so that nothing
     * but the library orders them. */
    uint64_t touched[TOUCHERS];
};

void objects_start(void);
void objects_stop(void);
void objects_reset(void); /* for a new round */
unsigned objects_left(void);
unsigned objects_made(void);

/* An owned object, or NULL when the round has made all it may. Its place in dictionaries is @key. */
void *object_new(enum kind kind, uint32_t key, void *child);
enum kind object_kind_random(struct random *r);
static inline bool kind_is_deferred(enum kind kind)
{
    return kind == DEFERRED || kind == DEFERRED_BARE;
}
static inline bool kind_has_destroy(enum kind kind)
{
    return kind < PLAIN_BARE;
}
static inline bool kind_has_links(enum kind kind)
{
    return kind <= SIZED;
}

/* Verifies an object that may be read now; returns what is in it. */
struct node *object_check(void *obj);
/* The same, and leaves a trace; for objects held strongly by this worker. */
struct node *object_touch(void *obj);
unsigned object_destroyed(uint32_t number);
enum kind object_kind(uint32_t number);
/* Which destroys are due: all but those of the numbers in @alive (bytes, by number). */
void objects_verify(const unsigned char *alive);

/* ---- shared places: wr_stress_share.c ----------------------------------------------------------------------- */

enum { N_SLOTS = 12, N_CELLS = 12, N_SURVIVORS = 24 };

struct shared {
    wr_slot slots[N_SLOTS];
    wr_weak_slot weak_slots[N_SLOTS];
    _Atomic(void *) strong[N_CELLS]; /* owned by the cell; taken and put by exchange */
    _Atomic(wr_weak *) weak[N_CELLS];
    _Atomic(wr_weak *) weak_deferred[N_CELLS];
    _Atomic(struct watch *) watches[N_CELLS];
    _Atomic(void *) survivors[N_SURVIVORS]; /* held over the end of the round */
    wr_value_dict *dict;                    /* any kind */
    wr_value_dict *dict_deferred;           /* deferred types only: may be peeked */
    wr_value_dict *dict_private;            /* keys that only one worker uses; never cleared */
};
extern struct shared shared;

void shared_start(void);
void shared_stop(void);
/* Takes everything out but the survivors; returns whether there was anything. */
bool shared_empty(void);
bool shared_release_survivors(void);

/* A place in which threads find a thing that is replaced meanwhile. Who enters may name the thing until it leaves; who
 * leaves last ends it. Workers stay for many operations, so that the places themselves order little. */
struct tenant {
    _Atomic unsigned users; /* with the place's own */
};
struct place {
    pthread_mutex_t lock;
    struct tenant *tenant; /* guarded by lock */
};
struct tenant *place_enter(struct place *place); /* NULL: it is empty */
bool place_swap(struct place *, struct tenant *old,
                struct tenant *new);                            /* true: the place's part of @old is the caller's */
bool tenant_leave(struct tenant *tenant);                       /* true: the caller was the last */
bool tenant_leave_alone(struct tenant *tenant, unsigned parts); /* true: the caller's @parts were all there were */

/* ---- watches: wr_stress_watch.c -------------------------------------------------------------------------------- */

enum queue { Q_DEFAULT, Q_HAND, Q_POOL, Q_INLINE, N_QUEUES };

struct watch {
    _Atomic unsigned ran, cancelled;
    _Atomic(wr_watch *) handle; /* owned by who takes it */
    uint32_t object;            /* number */
    uint8_t queue, acts;
    void *payload;  /* strong, older than the object: released by the callback, or by who cancelled it */
    uint64_t wrote; /* by the callback, plain: read after cancel_sync */
};

extern wr_queue *queues[N_QUEUES];

/* Callbacks counted by those who made them; of the library's own queues, those that are not a struct watch. */
struct tally {
    _Atomic uint64_t watched, delivered, cancelled;
};
extern struct tally elsewhere[N_QUEUES];
void tally_add(_Atomic uint64_t *figure, uint64_t n);

void watches_start(void);
void watches_stop(void);
void watches_reset(void);
unsigned watches_made(void);
struct watch *watch_at(unsigned i);

/* Watches @obj, whose node is @node; @payload [consumed, may be NULL]. Returns the record if there is a handle. */
struct watch *watch_new(void *obj, const struct node *node, struct random *r, void *payload);
/* Cancels or lets go of the handle, if it is still there. @sync: with cancel_sync. */
void watch_end(struct watch *w, struct random *r, bool sync_allowed);
void watch_give_up(struct watch *w); /* releases the handle only */
void watch_refused(void *dying, struct random *r);
size_t queues_drain(struct random *r);
/* Compares the queues' figures with ours; @quiet: nothing may be armed. Returns false where work is pending. */
bool queues_verify(bool quiet);
void watches_verify(bool quiet);

/* ---- dictionaries: wr_stress_dict.c --------------------------------------------------------------------------- */

enum { N_KEYS = 64 };

struct key {
    uint8_t bytes[64];
    size_t size;
};
void key_make(struct key *key, uint32_t id);

void dict_op(struct worker *w, unsigned which);
enum { N_DICT_OPS = 10 };
void *dict_look(wr_value_dict *d, uint32_t id);
void dict_peek_in_guard(struct worker *w, void **keep);
void dict_refuses(void *dying, uint32_t id);
void dict_own_op(struct worker *w, void **own, unsigned n);
void dict_burst(struct worker *w);
void dict_verify(unsigned alive);

/* ---- modes with things of their own --------------------------------------------------------------------- */

struct op {
    void (*run)(struct worker *w);
    const char *name;
    unsigned weight;
    unsigned modes; /* in any of these */
};

struct part {
    unsigned mode;
    const struct op *ops;
    unsigned n_ops;
    void (*start)(void);
    void (*enter)(struct worker *w); /* a worker begins a round */
    void (*leave)(struct worker *w); /* and lets go of all it holds */
    void (*quiet)(void);             /* no worker moves, but things are armed, pending, connected: the laws of that */
    bool (*settle)(void);            /* lets everything go; returns whether anything moved */
    void (*verify)(void);            /* nothing is left: the laws of that */
    void (*stop)(void);
};
extern const struct part keyed_part;  /* wr_stress_keyed.c */
extern const struct part queue_part;  /* wr_stress_queue.c */
extern const struct part cancel_part; /* wr_stress_cancel.c */
extern const struct part signal_part; /* wr_stress_signal.c */
extern const struct part fork_part;   /* wr_stress_fork.c */
enum { N_PARTS = 5 };
extern const struct part *const parts[N_PARTS];
/* For those in use: if (part_used(i)) parts[i]->... */
bool part_used(unsigned i);

/* A callback of the library on this thread's stack, for the modes with things of their own. */
extern _Thread_local unsigned callback_depth;

/* ---- the workers' operations: wr_stress_work.c -------------------------------------------------------------- */

void work_prepare(void);
void work_round(struct worker *w); /* leaves nothing in its hands */
void worker_keep(struct worker *w, void *obj);
void *worker_held(struct worker *w);

/* ---- the laws: wr_stress_check.c ------------------------------------------------------------------------------- */

void check_round(void);
void check_start(void);
void check_stop(void);

#endif
