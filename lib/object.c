/* F4 object: making objects, and the one road that every death takes.
 *
 * In memory, in front of the header: for a sized object its size (16 bytes with padding); for a deferred type the
 * record with which it is retired (16 bytes); for a type with destroy_on what takes it to its queue (64 bytes). Behind the
 * payload, for types with destroy: one link.
 *
 *     base ... [size][destroy record][retire record] header payload [link]
 *
 * Deaths in order. A destroy that releases other objects does not run their destroys inside itself: they wait in the
 * thread's list of deaths (linked through what each type reserves for it, or the side record) and follow one by one.
 * So the stack stays flat whatever the depth of a structure, and callbacks are handed over in the order of death.
 */
#include "object.h"

#include "alloc.h"
#include "no_destroy.h"
#include "pool.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

/* The low bits of the meta word: what the rest points at. */
enum meta_tag {
    META_TYPE,  /* the type */
    META_SIDE,  /* the side record */
    META_SIZED, /* the type of a sized object */
    META_LONE,  /* the only watcher of an object that is not sized, which is there for good */
    META_GUEST, /* the same, of stage INTERNAL, and it may be taken off: see "guests" */
    META_LEFT,  /* the type of a large dead object whose guest the death took: that may have its weak count still */
    META_TAGS = 8
};

_Static_assert(_Alignof(wr_type) >= META_TAGS, "what a meta word points at has its low bits free");

#define DISCARD_FROM ((size_t)16384) /* bytes of payload; below, whole pages in it are few */
#define RECORD_SIZE sizeof(wr_retired)
#define SIZE_SIZE ((size_t)16)

_Static_assert(sizeof(wr_retired) == 16, "the record keeps the header aligned");

/* What an object needs that is watched: the list of watchers and its lock. Made by the first watcher, but for a lone one or
 * a guest: that stands in the meta word itself, until it leaves or another one comes. Freed with the header.
 * INV-1: between two calls, and while not detached, first..next are exactly the attached watchers. */
struct side {
    const wr_type *type;
    wr_spin lock;
    wr_atomic_u32 n_held; /* weak counts that belong to those on the list, for wr_weak_count(). Written under lock */
    bool sized;           /* the object is */
    bool detached;        /* it died: the list is the death's. Guarded by lock */
    uint32_t n_fired;     /* at the death, of stage INTERNAL: they may have their weak counts still. The death's */
    wr_watcher *first;    /* newest first. Guarded by lock, later owned by the death */
    wr_header *next_death;
};

/* Written by a constructor, before threads. */
static const wr_destroyer *destroyer;

void wr_object_set_destroyer(const wr_destroyer *given)
{
    destroyer = given;
}

/* ---- what a header tells -------------------------------------------------------------------------- */

static uintptr_t meta_of(const wr_header *h)
{
    /* Acquire [side]: sees what it points at as it was made. Pairs with the CAS in side_install() and
     * wr_watcher_attach_for_good(). */
    return wr_atomic_load_acquire(&h->meta);
}

static enum meta_tag meta_tag(uintptr_t meta)
{
    return (enum meta_tag)(meta & (META_TAGS - 1));
}

static void *meta_pointer(uintptr_t meta)
{
    return (void *)(meta & ~(uintptr_t)(META_TAGS - 1));
}

/* Or NULL. */
static struct side *meta_side(uintptr_t meta)
{
    return meta_tag(meta) == META_SIDE ? meta_pointer(meta) : NULL;
}

/* Or NULL. */
static wr_watcher *meta_lone(uintptr_t meta)
{
    return meta_tag(meta) == META_LONE ? meta_pointer(meta) : NULL;
}

/* Or NULL. */
static wr_watcher *meta_guest(uintptr_t meta)
{
    return meta_tag(meta) == META_GUEST ? meta_pointer(meta) : NULL;
}

static WR_OUT_OF_LINE const wr_type *meta_type_elsewhere(uintptr_t meta)
{
    switch (meta_tag(meta)) {
    case META_GUEST:
        /* Relaxed: set once, before the guest came. */
        return wr_atomic_load_relaxed(meta_guest(meta)->klass->usual_type);
    case META_SIDE:
        return ((struct side *)meta_pointer(meta))->type;
    case META_LONE:
        return ((wr_watcher *)meta_pointer(meta))->type;
    default:
        return meta_pointer(meta);
    }
}

/* Requires, for a lone watcher: the caller holds a strong reference, or is the death; for a guest: in a guard. */
static inline const wr_type *meta_type(uintptr_t meta)
{
    return wr_likely(meta_tag(meta) == META_TYPE) ? (const wr_type *)meta : meta_type_elsewhere(meta);
}

static bool meta_is_sized(uintptr_t meta)
{
    return meta_tag(meta) == META_SIZED || (meta_tag(meta) == META_SIDE && meta_side(meta)->sized);
}

static WR_OUT_OF_LINE const wr_type *type_of_host(const wr_header *h)
{
    wr_guard_enter();
    const wr_type *type = meta_type(meta_of(h));
    wr_guard_exit();
    return type;
}

const wr_type *wr_header_type(const wr_header *h)
{
    uintptr_t meta = meta_of(h);
    return wr_likely(meta_guest(meta) == NULL) ? meta_type(meta) : type_of_host(h);
}

static const char *type_name(const wr_type *type)
{
    return type->name != NULL ? type->name : "object";
}

static size_t type_align(const wr_type *type)
{
    return type->align > _Alignof(max_align_t) ? type->align : _Alignof(max_align_t);
}

/* Whether destroy may run elsewhere. */
static inline bool type_is_remote(const wr_type *type)
{
    return type->destroy_on != NULL && type->destroy != NULL;
}

/* Of the records in front of the header. */
static size_t records_size(const wr_type *type)
{
    return ((type->flags & WR_TYPE_DEFERRED) ? RECORD_SIZE : 0) + (type_is_remote(type) ? WR_DESTROY_RECORD_SIZE : 0);
}

/* From the start of the memory to the payload. */
static size_t front_size(const wr_type *type, bool sized)
{
    size_t size = sizeof(wr_header) + (sized ? SIZE_SIZE : 0) + records_size(type);
    size_t align = type_align(type);
    return (size + align - 1) & ~(align - 1);
}

static wr_retired *header_record(wr_header *h)
{
    return (wr_retired *)((uintptr_t)h - RECORD_SIZE);
}

/* Of a remote type. */
static void *destroy_record(wr_header *h, const wr_type *type)
{
    return (void *)((uintptr_t)h - records_size(type));
}

static size_t *header_size(wr_header *h, const wr_type *type)
{
    return (size_t *)((uintptr_t)h - records_size(type) - SIZE_SIZE);
}

static size_t payload_size(wr_header *h, uintptr_t meta)
{
    const wr_type *type = meta_type(meta);
    return meta_is_sized(meta) ? *header_size(h, type) : type->size;
}

static size_t link_offset(size_t size)
{
    return (size + sizeof(void *) - 1) & ~(sizeof(void *) - 1);
}

/* Where the list of deaths goes on: in what the type reserved, in the side record, or in the lone watcher. */
static wr_header **next_death(wr_header *h, uintptr_t meta)
{
    struct side *side = meta_side(meta);
    if (side != NULL)
        return &side->next_death;
    wr_watcher *lone = meta_lone(meta);
    if (lone != NULL)
        return &lone->next_death;
    const wr_type *type = meta_type(meta);
    if (type->flags & WR_TYPE_DEFERRED)
        return (wr_header **)(void *)&header_record(h)->next;
    return (wr_header **)((uintptr_t)wr_payload_of(h) + link_offset(payload_size(h, meta)));
}

void wr_object_panic(const char *call, const wr_header *h, const char *what)
{
    wr_panic(call, "object", type_name(wr_header_type(h)), wr_payload_of(h), what);
}

void wr_object_no_destroy_check(const wr_header *h)
{
    if (wr_unlikely(WR_LAYOUT(wr_no_destroy) != NULL))
        wr_no_destroy_panic("object", type_name(wr_header_type(h)), wr_payload_of(h));
}

void wr_object_saturated(const wr_header *h)
{
    char message[256];
    snprintf(message, sizeof message, "object %s at %p: a count reached its limit; the object is never freed",
             type_name(wr_header_type(h)), wr_payload_of(h));
    wr_warn(WR_WARN_SATURATED, message);
}

/* ---- making -------------------------------------------------------------------------------------- */

static inline bool type_is_valid(const wr_type *type)
{
    if (wr_unlikely(type == NULL))
        return false;
    /* What has to be 0; in one test, for each object passes it. */
    uintptr_t odd = (type->align & (type->align - 1)) | (type->flags & ~WR_TYPE_DEFERRED) | (uintptr_t)type->traverse |
                    (uintptr_t)type->reserved[0] | (uintptr_t)type->reserved[1] | (uintptr_t)type->reserved[2] |
                    (uintptr_t)type->reserved[3] | ((uintptr_t)type & (META_TAGS - 1));
    return odd == 0 && (type->hash == NULL) == (type->equal == NULL);
}

/* Nothing in front but the header. Valid types only. */
static inline bool type_is_simple(const wr_type *type)
{
    return type->align <= _Alignof(max_align_t) && type->flags == 0 && type->destroy_on == NULL;
}

static inline void *object_init(char *base, size_t front, const wr_type *type, bool deferred, bool sized)
{
    wr_header *h = wr_header_of(base + front);
    wr_word_init(&h->word, deferred);
    wr_atomic_init(&h->meta, (uintptr_t)type | (sized ? META_SIZED : META_TYPE));
    return base + front;
}

/* Of @size bytes of payload and the link that may follow it. */
static size_t back_size(const wr_type *type, size_t size)
{
    bool linked = type->destroy != NULL && !(type->flags & WR_TYPE_DEFERRED);
    return linked ? link_offset(size) + sizeof(void *) : size;
}

/* The memory of an object with @front bytes in front of @size bytes of payload and what follows it; or NULL. */
static inline char *object_alloc(const wr_type *type, size_t front, size_t size)
{
    size_t back = back_size(type, size);
    if (wr_unlikely(back < size || back >= SIZE_MAX / 2 || front >= SIZE_MAX / 4))
        return NULL;
    if (wr_unlikely(type->align > _Alignof(max_align_t))) {
        char *base = wr_alloc_aligned(type->align, front + back);
        if (base != NULL)
            memset(base, 0, front + back);
        return base;
    }
    if (wr_unlikely(front + back > WR_POOL_MAX))
        return wr_alloc_zero(front + back);
    char *base = wr_pool_alloc(front + back);
    if (wr_likely(base != NULL))
        memset(base + front, 0, back); /* what is in front is written by who makes it */
    return base;
}

/* Both counts are gone: nothing refers to the memory any more. */
static void header_free(wr_header *h)
{
    uintptr_t meta = meta_of(h);
    const wr_type *type = meta_type(meta);
    bool sized = meta_is_sized(meta);
    size_t front = wr_likely(!sized && type_is_simple(type)) ? sizeof(wr_header) : front_size(type, sized);
    size_t size = wr_likely(!sized) ? type->size : *header_size(h, type);
    char *base = (char *)wr_payload_of(h) - front;
    if (meta_side(meta) != NULL)
        wr_pool_free(meta_side(meta), sizeof(struct side));
    if (wr_likely(type->align <= _Alignof(max_align_t)))
        wr_pool_free(base, front + back_size(type, size));
    else
        wr_free(base);
}

/* Asks where @h is to be destroyed. 0, or a negative errno. */
static int admit_destroy(wr_header *h, const wr_type *type)
{
    wr_queue *queue = type->destroy_on();
    void *record = destroy_record(h, type);
    memset(record, 0, WR_DESTROY_RECORD_SIZE);
    /* Where the program has no queue at all, there is no destroyer, and no other answer than NULL. */
    return queue == NULL || destroyer == NULL ? 0 : destroyer->admit(record, h, queue);
}

static void *object_new(const wr_type *type, size_t size, bool sized)
{
    bool deferred = (type->flags & WR_TYPE_DEFERRED) != 0;
    if (wr_unlikely(deferred && wr_reclaimer_start() != 0)) {
        errno = EAGAIN;
        return NULL;
    }
    size_t front = front_size(type, sized);
    char *base = object_alloc(type, front, size);
    if (wr_unlikely(base == NULL)) {
        errno = ENOMEM;
        return NULL;
    }
    if (sized)
        *header_size(wr_header_of(base + front), type) = size;
    void *obj = object_init(base, front, type, deferred, sized);
    if (type_is_remote(type)) {
        int error = admit_destroy(wr_header_of(obj), type);
        if (wr_unlikely(error != 0)) {
            header_free(wr_header_of(obj));
            errno = -error;
            return NULL;
        }
    }
    return obj;
}

void *wr_new(const wr_type *type)
{
    if (wr_unlikely(!type_is_valid(type))) {
        errno = EINVAL;
        return NULL;
    }
    if (wr_unlikely(!type_is_simple(type)))
        return object_new(type, type->size, false);
    char *base = object_alloc(type, sizeof(wr_header), type->size);
    if (wr_unlikely(base == NULL)) {
        errno = ENOMEM;
        return NULL;
    }
    return object_init(base, sizeof(wr_header), type, false, false);
}

void *wr_new_sized(const wr_type *type, size_t size)
{
    if (wr_unlikely(!type_is_valid(type))) {
        errno = EINVAL;
        return NULL;
    }
    return object_new(type, size, true);
}

void wr_object_weak_released(const char *call, wr_header *h, enum wr_word_verdict verdict)
{
    if (wr_likely(verdict == WR_WORD_FREE))
        header_free(h);
    else if (verdict == WR_WORD_SATURATED)
        wr_object_saturated(h);
    else if (verdict == WR_WORD_UNDERFLOW)
        wr_object_panic(call, h, "released more weak references than there are");
}

/* ---- watchers --------------------------------------------------------------------------------------- */

/* Gives @h a side record, with the lone watcher or the guest on its list, if there is one. 0, also if another thread was faster;
 * or -ENOMEM. */
static int side_install(wr_header *h)
{
    struct side *side = wr_pool_alloc(sizeof *side);
    if (side == NULL)
        return -ENOMEM;
    wr_guard_enter(); /* a guest may leave at any moment */
    uintptr_t meta = meta_of(h);
    bool done = false;
    while (!done && meta_side(meta) == NULL) {
        wr_watcher *guest = meta_guest(meta);
        *side = (struct side){
            .type = meta_type(meta), .sized = meta_is_sized(meta), .first = guest != NULL ? guest : meta_lone(meta)};
        wr_spin_init(&side->lock);
        wr_atomic_init(&side->n_held, guest != NULL);
        /* Acquire-release [side]: the record is whole for whoever reads it in meta_of(); or another one was first. */
        done = wr_atomic_cas_acq_rel(&h->meta, &meta, (uintptr_t)side | META_SIDE);
    }
    wr_guard_exit();
    if (!done)
        wr_pool_free(side, sizeof *side);
    return 0;
}

/* Requires: the side lock held, or the list detached. */
static void count_held(struct side *side, int change)
{
    /* Relaxed, both: a figure, for those without the lock. */
    wr_atomic_store_relaxed(&side->n_held, wr_atomic_load_relaxed(&side->n_held) + (uint32_t)change);
}

/* Puts @w in front of the list. @held: the weak counts that it has, 0 or 1. Requires: the object lives. Takes: the side lock. */
static void side_push(struct side *side, wr_watcher *w, int held)
{
    w->prev = NULL;
    wr_spin_lock(&side->lock, WR_RANK_SIDE);
    count_held(side, held);
    WR_ASSERT(!side->detached); /* the caller's strong reference keeps the object alive */
    w->next = side->first;
    if (side->first != NULL)
        side->first->prev = w;
    side->first = w;
    wr_spin_unlock(&side->lock, WR_RANK_SIDE);
}

int wr_watcher_prepare(void *obj)
{
    wr_header *h = wr_header_of(obj);
    if (wr_word_peek(&h->word) & WR_WORD_CLOSED)
        return -ESTALE;
    return meta_side(meta_of(h)) != NULL ? 0 : side_install(h);
}

int wr_watcher_attach_prepared(wr_watcher *w, void *obj)
{
    wr_header *h = wr_header_of(obj);
    if (wr_word_peek(&h->word) & WR_WORD_CLOSED)
        return -ESTALE;
    struct side *side = meta_pointer(meta_of(h)); /* prepared */
    /* At its limit the count stays there; who holds no lock finds it and says so. */
    (void)wr_word_weak_retain(&h->word);
    w->header = h;
    side_push(side, w, 1);
    return 0;
}

int wr_watcher_attach_for_good(wr_watcher *w, void *obj)
{
    wr_header *h = wr_header_of(obj);
    if (wr_word_peek(&h->word) & WR_WORD_CLOSED)
        return -ESTALE;
    w->next = w->prev = NULL;
    uintptr_t meta = meta_of(h);
    if (wr_likely(meta_tag(meta) == META_TYPE)) {
        w->type = meta_type(meta);
        /* Acquire-release [side]: the watcher is whole for whoever reads it in meta_of(); or another one was first. */
        if (wr_likely(wr_atomic_cas_acq_rel(&h->meta, &meta, (uintptr_t)w | META_LONE)))
            return 0;
    }
    if (meta_side(meta) == NULL && side_install(h) != 0)
        return -ENOMEM;
    side_push(meta_pointer(meta_of(h)), w, 0); /* there is a side record now */
    return 0;
}

/* ---- guests: most entries of dictionaries
 *
 * A guest is an object's only watcher, an INTERNAL one. It comes, leaves, or goes on the list of a side record, each by
 * one CAS of the meta word from or to its address: of a verb that takes it off and who brings the second watcher, one wins.
 * Verb and death are told apart by the lock under which watchers of its class leave, its shard's: who unlinks it has it. So
 * the death writes the meta word with a plain store, which no CAS can meet: the verb that wants the guest waits for the lock or
 * has been there, and the second watcher comes with a strong reference.
 * While it is there its links are NULL and nobody writes to it; who reads its class to learn the object's type is in a guard,
 * as is the death that goes to its shard, since whoever took it off retires it. Types stand in the class, and not in each guest:
 * there is no room. So a dictionary's first object says which type may be host there; others have side records. */

/* Whether objects of @type may be hosts to watchers of the class with this @usual. */
static inline bool type_is_usual(wr_atomic_type *usual, const wr_type *type)
{
    /* Relaxed, both: whoever reads it by a guest sees it by the CAS that brought the guest. */
    const wr_type *is = wr_atomic_load_relaxed(usual);
    if (wr_unlikely(is == NULL) && wr_atomic_cas_relaxed(usual, &is, type))
        return true;
    return is == type;
}

static inline bool can_host(uintptr_t meta, const wr_watcher *w)
{
    return meta_tag(meta) == META_TYPE && ((uintptr_t)w & (META_TAGS - 1)) == 0 &&
           type_is_usual(w->klass->usual_type, meta_pointer(meta));
}

int wr_watcher_prepare_guest(const wr_watcher *w, void *obj)
{
    wr_header *h = wr_header_of(obj);
    uint64_t bits = wr_word_peek(&h->word);
    if (bits & WR_WORD_CLOSED)
        return -ESTALE;
    if (wr_unlikely(bits & WR_WORD_WEAK_SATURATED))
        wr_object_saturated(h);
    return wr_likely(can_host(meta_of(h), w)) ? 0 : wr_watcher_prepare(obj);
}

int wr_watcher_attach_guest(wr_watcher *w, void *obj)
{
    wr_header *h = wr_header_of(obj);
    uintptr_t meta = meta_of(h);
    if (wr_unlikely(!can_host(meta, w)))
        return meta_side(meta) != NULL ? wr_watcher_attach_prepared(w, obj) : -EAGAIN;
    if (wr_word_peek(&h->word) & WR_WORD_CLOSED)
        return -ESTALE;
    w->next = w->prev = NULL;
    w->header = h;
    /* At its limit the count stays there; who holds no lock finds it and says so. */
    (void)wr_word_weak_retain(&h->word);
    /* Acquire-release [side]: the watcher is whole for whoever reads it in meta_of(); or another one was first. */
    if (wr_likely(wr_atomic_cas_acq_rel(&h->meta, &meta, (uintptr_t)w | META_GUEST)))
        return 0;
    (void)wr_word_weak_release(&h->word); /* not the last one: the caller's strong reference has the token */
    return -EAGAIN;
}

/* True: @guest, which the meta word @meta points at, has left. False: it stands on a list now. Requires: its shard locked. */
static inline bool leave_alive(wr_header *h, uintptr_t meta, const wr_watcher *guest)
{
    const wr_type *type = wr_atomic_load_relaxed(guest->klass->usual_type); /* relaxed: set before the guest came */
    /* Acquire-release [side]: this or side_install() wins. */
    return wr_atomic_cas_acq_rel(&h->meta, &meta, (uintptr_t)type | META_TYPE);
}

void wr_watcher_leave_dead(const wr_watcher *guest)
{
    const wr_type *type = wr_atomic_load_relaxed(guest->klass->usual_type); /* relaxed: set before the guest came */
    enum meta_tag left = wr_unlikely(type->size >= DISCARD_FROM) ? META_LEFT : META_TYPE;
    /* Relaxed: it points at the type, which was there before the object. Who meets the guest's address later is in a guard. */
    wr_atomic_store_relaxed(&guest->header->meta, (uintptr_t)type | left);
}

int wr_watcher_attach(wr_watcher *w, void *obj)
{
    int error = wr_watcher_prepare(obj);
    if (error == 0)
        error = wr_watcher_attach_prepared(w, obj);
    wr_header *h = wr_header_of(obj);
    if (wr_unlikely(wr_word_peek(&h->word) & WR_WORD_WEAK_SATURATED))
        wr_object_saturated(h);
    return error;
}

bool wr_watcher_detach(wr_watcher *w)
{
    wr_header *h = w->header;
    uintptr_t meta = meta_of(h);
    if (wr_likely(meta_guest(meta) == w) && leave_alive(h, meta, w))
        return true;
    struct side *side = meta_side(meta_of(h)); /* a guest that no verb has taken off went there */
    WR_ASSERT(side != NULL);
    wr_spin_lock(&side->lock, WR_RANK_SIDE);
    bool ours = !side->detached;
    if (ours) {
        count_held(side, -1);
        if (w->next != NULL)
            w->next->prev = w->prev;
        if (w->prev != NULL)
            w->prev->next = w->next;
        else
            side->first = w->next;
    }
    wr_spin_unlock(&side->lock, WR_RANK_SIDE);
    return ours;
}

void wr_watcher_release_weak(wr_header *h)
{
    /* A dead object that nothing else remembers: no read-modify-write, as after destroy. */
    if (wr_likely(wr_word_peek(&h->word) == (WR_WORD_CLOSED | WR_WORD_WEAK))) {
        header_free(h);
        return;
    }
    wr_object_weak_released("wr_watcher_release_weak", h, wr_word_weak_release(&h->word));
}

bool wr_watcher_settle(wr_header *h)
{
    return wr_word_forget(&h->word) == WR_WORD_FREE;
}

/* ---- death ------------------------------------------------------------------------------------------ */

static void fire_all(wr_watcher *first)
{
    while (first != NULL)
        first = first->klass->fire(first);
}

/* Of an object that this thread has closed: takes the list from side, fires the internal watchers, and leaves the user ones in
 * side->first. */
static void detach_listed(struct side *side)
{
    wr_spin_lock(&side->lock, WR_RANK_SIDE);
    side->detached = true;
    wr_spin_unlock(&side->lock, WR_RANK_SIDE);

    wr_watcher *internal = NULL, **internal_end = &internal;
    wr_watcher *user = NULL, **user_end = &user;
    int n_internal = 0;
    for (wr_watcher *w = side->first; w != NULL; w = w->next) {
        n_internal += w->klass->stage == WR_WATCHER_INTERNAL;
        wr_watcher ***end = w->klass->stage == WR_WATCHER_INTERNAL ? &internal_end : &user_end;
        **end = w;
        *end = &w->next;
    }
    *internal_end = NULL;
    *user_end = NULL;
    side->first = user;
    side->n_fired = (uint32_t)n_internal;
    count_held(side, -n_internal);
    fire_all(internal);
}

/* What wr_watcher_settle() may free of a dead object that a single watcher alone remembers; 0: it may not be used. */
static inline size_t block_to_settle(const wr_type *type)
{
    return type_is_simple(type) ? sizeof(wr_header) + back_size(type, type->size) : 0;
}

/* Nobody has a handle: whoever gets at the header from now on is a watcher that was there for good. */
static inline bool is_forgotten(const wr_header *h)
{
    return wr_word_peek(&h->word) == (WR_WORD_CLOSED | WR_WORD_WEAK);
}

/* Of a dead object whose token the caller has. What entries that have fired hold is not counted, nor, if they are gone already, so
 * many handles. */
static bool has_handles(const wr_header *h, uintptr_t meta)
{
    uint32_t fired = meta_side(meta) != NULL ? meta_side(meta)->n_fired : meta_tag(meta) == META_LEFT;
    return wr_weak_count(wr_payload_of(h)) > fired;
}

/* The object is over: if handles remember it, a large payload's pages go back now, the block with the last weak count. Nobody
 * reads them: destroy has run, upgrades fail, and who peeked at a deferred object has left the guard. The caller's token keeps
 * the block. Only pages that lie wholly in the payload are touched: no header, record, link, neighbour or word of the allocator.
 * Not for watchers alone, dictionary entries among them: they give all of it back soon. */
static void discard_payload(wr_header *h)
{
    uintptr_t meta = meta_of(h);
    size_t size = payload_size(h, meta);
    if (size >= DISCARD_FROM && has_handles(h, meta))
        wr_alloc_discard(wr_payload_of(h), size);
}

/* Gives the token up, where no watcher takes it. */
static WR_OUT_OF_LINE void leave_to_others(wr_header *h)
{
    discard_payload(h);
    wr_object_weak_released("wr_release", h, wr_word_weak_release(&h->word));
}

static inline void give_token_up(wr_header *h)
{
    if (is_forgotten(h))
        header_free(h);
    else
        leave_to_others(h);
}

static WR_OUT_OF_LINE void fire_lone_remembered(wr_header *h, wr_watcher *lone)
{
    lone->block = 0;
    discard_payload(h);
    fire_all(lone);
}

/* Fires the lone watcher, which gets the token for its weak count. */
static inline void fire_lone(wr_header *h, wr_watcher *lone)
{
    const wr_type *type = lone->type;
    /* Relaxed: who frees the header sees it by the weak count that the watcher gives back; others do not look. */
    wr_atomic_store_relaxed(&h->meta, (uintptr_t)type);
    lone->next = NULL;
    if (wr_unlikely(!is_forgotten(h))) {
        fire_lone_remembered(h, lone);
        return;
    }
    lone->block = block_to_settle(type);
    fire_all(lone);
}

/* Fires the user watchers and gives the token up. Those that were attached for good get their weak counts here; the last of
 * them gets the token. */
static WR_OUT_OF_LINE void fire_user(wr_header *h, struct side *side)
{
    wr_watcher *user = side->first;
    uint32_t n = 0;
    for (wr_watcher *w = user; w != NULL; w = w->next) {
        if (w->klass->stage != WR_WATCHER_FOR_GOOD)
            continue;
        w->block = 0;
        n++;
    }
    side->first = NULL;
    if (n > 0 && is_forgotten(h)) {
        /* Whoever gets at the watchers now gets at them by their queue. (Watchers that are not for good hold weak counts.)
         * Relaxed, both: as in fire_lone(). */
        wr_atomic_store_relaxed(&h->meta, (uintptr_t)side->type | (side->sized ? META_SIZED : META_TYPE));
        wr_atomic_store_relaxed(&h->word.bits, WR_WORD_CLOSED | n * WR_WORD_WEAK);
        if (n == 1 && !side->sized)
            user->block = block_to_settle(side->type);
        wr_pool_free(side, sizeof *side);
        fire_all(user);
        return;
    }
    discard_payload(h);
    for (uint32_t i = 1; i < n; i++)
        (void)wr_word_weak_retain(&h->word);
    fire_all(user);
    if (n == 0)
        wr_object_weak_released("wr_release", h, wr_word_forget(&h->word));
}

static WR_OUT_OF_LINE void run_destroy(wr_header *h, const wr_type *type)
{
    (void)wr_thread_self(); /* registered, its end in a destroy is noticed */
    wr_lock_assert_none("destroy");
    wr_object_no_destroy_check(h);
    type->destroy(wr_payload_of(h));
}

/* destroy, then callbacks, then the token. */
static inline void finish_death(wr_header *h)
{
    uintptr_t meta = meta_of(h);
    const wr_type *type = meta_type(meta);
    if (type->destroy != NULL)
        run_destroy(h, type);
    if (meta_lone(meta) != NULL)
        fire_lone(h, meta_lone(meta));
    else if (meta_side(meta) != NULL)
        fire_user(h, meta_side(meta));
    else
        give_token_up(h);
}

/* Finishes what waits in the list. */
static WR_OUT_OF_LINE void finish_others(struct wr_deaths *deaths)
{
    for (wr_header *h = deaths->first; h != NULL; h = deaths->first) {
        deaths->first = *next_death(h, meta_of(h));
        finish_death(h);
    }
}

/* Finishes @h, and after it all deaths that this brings about on this thread; or leaves it to the call that is at it. */
static void finish_in_turn(wr_header *h)
{
    struct wr_deaths *deaths = &wr_thread_stack()->deaths;
    if (deaths->active) {
        *next_death(h, meta_of(h)) = NULL;
        if (deaths->first == NULL)
            deaths->first = h;
        else
            *next_death(deaths->last, meta_of(deaths->last)) = h;
        deaths->last = h;
        return;
    }
    deaths->active = true;
    finish_death(h);
    if (wr_unlikely(deaths->first != NULL))
        finish_others(deaths);
    deaths->active = false;
}

/* The same, on the queue that the type names. */
static inline void finish(wr_header *h)
{
    const wr_type *type = wr_header_type(h);
    if (wr_unlikely(type_is_remote(type)) && destroyer != NULL && destroyer->hand_over(destroy_record(h, type)))
        return;
    finish_in_turn(h);
}

void wr_object_destroy(wr_header *h)
{
    finish_in_turn(h);
}

static void finish_deferred(wr_retired *record)
{
    finish((wr_header *)((uintptr_t)record + RECORD_SIZE));
}

/* The word was closed by this thread, and internal watchers are off. LIVE -> DEAD has happened; this is what follows. */
static void die(wr_header *h)
{
    uintptr_t meta = meta_of(h);
    const wr_type *type = meta_type(meta);
    struct side *side = meta_side(meta);
    if (type->flags & WR_TYPE_DEFERRED) {
        wr_retire_user(header_record(h), finish_deferred);
        wr_retire_relax();
    } else if (type->destroy == NULL && meta_lone(meta) == NULL && (side == NULL || side->first == NULL)) {
        /* Nothing to run: nothing to wait for. */
        if (wr_unlikely(type->size >= DISCARD_FROM || meta_is_sized(meta)))
            leave_to_others(h);
        else
            wr_object_weak_released("wr_release", h, wr_word_forget(&h->word));
    } else {
        finish(h);
    }
}

/* The common end: the only reference of an object without handles, and so in no dictionary, that is not deferred. */
static inline void die_alone(wr_header *h)
{
    uintptr_t meta = meta_of(h);
    if (wr_unlikely(meta_type(meta)->destroy != NULL))
        finish(h);
    else if (wr_likely(meta_tag(meta) == META_TYPE) || (meta_lone(meta) == NULL && meta_side(meta) == NULL))
        header_free(h);
    else
        finish_in_turn(h);
}

/* Whether the leaving of a guest is all that there is to its object's death. Requires: in a guard. */
static inline bool dies_lightly(uintptr_t meta)
{
    if (meta_guest(meta) == NULL)
        return false;
    const wr_type *type = meta_type(meta);
    return type->destroy == NULL && type->size < DISCARD_FROM && (type->flags & WR_TYPE_DEFERRED) == 0;
}

/* A light death has no use for the token, which goes with the close: one read-modify-write less. What keeps the header is
 * the weak count of a guest that was met in this guard: whoever takes it off retires it, and gives its count back after
 * the grace period, so after the guard. If more watchers came between that look and the close, which their owners' strong
 * references delayed, the same count keeps the header until the token is taken back. */
static WR_OUT_OF_LINE void release_shared(wr_header *h, uint64_t old)
{
    /* No fork between the death and the leaving of dictionaries: a child would count entries for ever that nobody takes out. */
    (void)wr_thread_self(); /* registered before, which may allocate */
    wr_gate_enter();
    wr_guard_enter(); /* a verb may take a guest off */
    bool lightly = dies_lightly(meta_of(h));
    enum wr_word_verdict verdict = wr_word_release_settle_giving_up(&h->word, old, lightly ? WR_WORD_WEAK : 0);
    if (verdict == WR_WORD_DIES) {
        wr_watcher *guest = meta_guest(meta_of(h));
        if (wr_likely(guest != NULL))
            guest->klass->fire_guest(guest);
        if (lightly && wr_likely(meta_tag(meta_of(h)) == META_TYPE))
            verdict = WR_WORD_OK;
        else if (lightly)
            (void)wr_word_weak_retain(&h->word);
    }
    wr_guard_exit();
    if (verdict == WR_WORD_DIES && meta_side(meta_of(h)) != NULL)
        detach_listed(meta_side(meta_of(h)));
    wr_gate_leave();
    wr_retire_relax();
    switch (verdict) {
    case WR_WORD_DIES:
        die(h);
        break;
    case WR_WORD_FREE:
        header_free(h);
        break;
    case WR_WORD_SATURATED:
        wr_object_saturated(h);
        break;
    case WR_WORD_IS_DEAD:
        wr_object_panic("wr_release", h, "it is dead already");
    case WR_WORD_UNDERFLOW:
        wr_object_panic("wr_release", h, "released more often than retained");
    case WR_WORD_OK:
    case WR_WORD_DEAD:
    case WR_WORD_DIES_ALONE: /* not here */
        break;
    }
}

void WR_LAYOUT(wr_release_cold)(void *obj, uint64_t old)
{
    wr_header *h = wr_header_of(obj);
    if (wr_unlikely(old != (WR_WORD_STRONG | WR_WORD_WEAK))) {
        release_shared(h, old);
        return;
    }
    (void)wr_word_release_settle(&h->word, old); /* WR_WORD_DIES_ALONE */
    die_alone(h);
}

void *WR_LAYOUT(wr_retain_cold)(void *obj, uint64_t old)
{
    if (obj == NULL) {
        errno = EINVAL;
        return NULL;
    }
    wr_header *h = wr_header_of(obj);
    switch (wr_word_retain_settle(&h->word, old)) {
    case WR_WORD_IS_DEAD:
        wr_object_panic("wr_retain", h, "it is dead");
    case WR_WORD_UNDERFLOW:
        wr_object_panic("wr_retain", h, "the caller holds no reference");
    case WR_WORD_SATURATED:
        wr_object_saturated(h);
        break;
    default:
        break;
    }
    return obj;
}

static void release_pointer(void *obj)
{
    wr_release(obj);
}

void(wr_release_later)(void *obj)
{
    if (obj == NULL)
        return;
    wr_header *h = wr_header_of(obj);
    if (wr_unlikely(wr_word_strong(wr_word_peek(&h->word)) == 0))
        wr_object_panic("wr_release_later", h, "it is dead already");
    if (!wr_defer(release_pointer, obj, true))
        wr_warn(WR_WARN_LEAKED, "no memory to defer a release: the reference is leaked");
}

/* ---- looking ---------------------------------------------------------------------------------------- */

size_t(wr_strong_count)(const void *obj)
{
    return obj == NULL ? 0 : (size_t)wr_word_strong(wr_word_peek(&wr_header_of(obj)->word));
}

size_t(wr_weak_count)(const void *obj)
{
    if (obj == NULL)
        return 0;
    const wr_header *h = wr_header_of(obj);
    uintptr_t meta = meta_of(h);
    struct side *side = meta_side(meta);
    /* Relaxed: a figure. */
    uint32_t held = side != NULL ? wr_atomic_load_relaxed(&side->n_held) : meta_guest(meta) != NULL;
    uint32_t others = held + 1; /* the token */
    uint32_t weak = wr_word_weak(wr_word_peek(&h->word));
    return weak > others ? weak - others : 0;
}

const wr_type *(wr_type_of)(const void *obj)
{
    if (obj == NULL) {
        errno = EINVAL;
        return NULL;
    }
    return wr_header_type(wr_header_of(obj));
}

int(wr_describe)(const void *obj, char *buf, size_t size)
{
    if (obj == NULL || (buf == NULL && size > 0))
        return -EINVAL;
    const wr_type *type = wr_type_of(obj);
    if (type->describe != NULL)
        return type->describe(obj, buf, size);
    return snprintf(buf, size, "<%s at 0x%" PRIxPTR ">", type_name(type), (uintptr_t)obj);
}

/* ---- boxes ---------------------------------------------------------------------------------------- */

static void box_destroy(void *obj)
{
    wr_box *box = obj;
    if (box->destroy != NULL)
        box->destroy(box->ptr);
}

wr_box *wr_box_new(void *ptr, void (*destroy)(void *ptr))
{
    static const wr_type type = {.name = "box", .size = sizeof(wr_box), .destroy = box_destroy};
    wr_box *box = wr_new(&type);
    if (box != NULL) {
        box->ptr = ptr;
        box->destroy = destroy;
    }
    return box;
}
