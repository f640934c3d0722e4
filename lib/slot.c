/* F5 slot: atomic strong and weak references; what is replaced is released after a grace period.
 *
 * A reader finds the pointer in a guard, so the slot's own reference still counts while it retains. For weak slots the
 * same holds for the weak count, and with it the header.
 */
#include "check.h"
#include "object.h"

#include <weakref/slot.h>

/* Takes the slot's reference on @obj; panics if it is dying, since a slot holds living objects. */
static void *slot_retain(const char *call, void *obj)
{
    if (obj == NULL)
        return NULL;
    const wr_header *h = wr_header_of(obj);
    if (wr_word_peek(&h->word) & WR_WORD_CLOSED)
        wr_object_panic(call, h, "it is being destroyed and cannot be stored");
    return wr_retain(obj);
}

static void *slot_swap(const char *call, wr_slot *slot, void *obj)
{
    slot_retain(call, obj);
    /* Acquire-release [slot]: the object is whole for who loads it in wr_slot_peek(); the former one is whole for us.
     * The exchange is the unlink that the deferred release follows. */
    return wr_atomic_exchange_acq_rel(&slot->obj, obj);
}

void(wr_slot_init)(wr_slot *slot, void *obj)
{
    wr_atomic_init(&slot->obj, slot_retain("wr_slot_init", obj));
}

void wr_slot_fini(wr_slot *slot)
{
    wr_release_later(slot_swap("wr_slot_fini", slot, NULL));
}

void(wr_slot_store)(wr_slot *slot, void *obj)
{
    wr_release_later(slot_swap("wr_slot_store", slot, obj));
}

void *(wr_slot_exchange)(wr_slot *slot, void *obj)
{
    void *former = slot_swap("wr_slot_exchange", slot, obj);
    if (former == NULL)
        return NULL;
    wr_retain(former); /* the caller's own: the slot's is still owed to the guards */
    wr_release_later(former);
    return former;
}

bool(wr_slot_compare_exchange)(wr_slot *slot, void *expected, void *desired)
{
    slot_retain("wr_slot_compare_exchange", desired);
    void *seen = expected;
    /* Acquire-release [slot]: as slot_swap(). A recycled address cannot be mistaken: the caller holds @expected. */
    if (wr_atomic_cas_acq_rel(&slot->obj, &seen, desired)) {
        wr_release_later(expected);
        return true;
    }
    wr_release(desired); /* never the last: the caller has one */
    return false;
}

/* ---- weak slots ----------------------------------------------------------------------------------- */

static void release_weak_pointer(void *header)
{
    wr_header *h = header;
    wr_object_weak_released("wr_weak_slot_set", h, wr_word_weak_release(&h->word));
}

static wr_header *weak_slot_downgrade(const char *call, void *obj)
{
    if (obj == NULL)
        return NULL;
    wr_header *h = wr_header_of(obj);
    if (wr_word_peek(&h->word) & WR_WORD_CLOSED)
        wr_object_panic(call, h, "it is being destroyed and cannot be stored");
    if (wr_word_weak_retain(&h->word) == WR_WORD_SATURATED)
        wr_object_saturated(h);
    return h;
}

static void weak_slot_replace(wr_weak_slot *slot, wr_header *h)
{
    /* Acquire-release [weak-slot]: the object is whole for who finds it in wr_weak_slot_get(). The exchange is the unlink
     * that the deferred weak release follows. */
    wr_header *former = wr_atomic_exchange_acq_rel(&slot->header, h);
    if (former != NULL && !wr_defer(release_weak_pointer, former, false))
        wr_warn(WR_WARN_LEAKED, "no memory to defer a weak release: the reference is leaked");
}

void(wr_weak_slot_init)(wr_weak_slot *slot, void *obj)
{
    wr_atomic_init(&slot->header, weak_slot_downgrade("wr_weak_slot_init", obj));
}

void(wr_weak_slot_set)(wr_weak_slot *slot, void *obj)
{
    weak_slot_replace(slot, weak_slot_downgrade("wr_weak_slot_set", obj));
}

void wr_weak_slot_fini(wr_weak_slot *slot)
{
    weak_slot_replace(slot, NULL);
}

static WR_OUT_OF_LINE void *upgrade_settle(wr_header *h, uint64_t old)
{
    enum wr_word_verdict verdict = wr_word_upgrade_settle(&h->word, old);
    if (verdict == WR_WORD_SATURATED)
        wr_object_saturated(h);
    return verdict == WR_WORD_DEAD ? NULL : wr_payload_of(h);
}

void *wr_weak_slot_get(wr_weak_slot *slot)
{
    void *obj = NULL;
    wr_guard_enter();
    /* Acquire [weak-slot]: sees the object as it was when it was set. Pairs with weak_slot_replace(). */
    wr_header *h = wr_atomic_load_acquire(&slot->header);
    if (h != NULL) {
        /* A branch, so that what is returned does not wait for the count. */
        uint64_t old = wr_word_upgrade_begin(&h->word);
        obj = wr_likely(wr_word_is_plain(old, 1)) ? wr_payload_of(h) : upgrade_settle(h, old);
    }
    wr_guard_exit();
    return obj;
}
