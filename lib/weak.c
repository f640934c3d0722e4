/* F5 weak: the cold halves of weak handles and borrowed pointers, and their descriptions. */
#include "check.h"
#include "object.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>

#include <weakref/guard.h>
#include <weakref/weak.h>

wr_weak *WR_LAYOUT(wr_weak_retain_cold)(wr_header *h, uint64_t old, const char *call)
{
    if (h == NULL) {
        errno = EINVAL;
        return NULL;
    }
    enum wr_word_verdict verdict = wr_word_weak_retain_settle(&h->word, old);
    if (verdict == WR_WORD_UNDERFLOW)
        wr_object_panic(call, h, "the caller holds no reference");
    if (verdict == WR_WORD_SATURATED)
        wr_object_saturated(h);
    return wr_weak_of_header(h);
}

void WR_LAYOUT(wr_weak_release_cold)(wr_header *h, uint64_t old)
{
    wr_object_weak_released("wr_weak_release", h, wr_word_weak_release_settle(&h->word, old));
}

void *WR_LAYOUT(wr_upgrade_cold)(wr_header *h, uint64_t old)
{
    if (h == NULL) {
        errno = EINVAL;
        return NULL;
    }
    enum wr_word_verdict verdict = wr_word_upgrade_settle(&h->word, old);
    if (verdict == WR_WORD_DEAD)
        return NULL;
    if (verdict == WR_WORD_SATURATED)
        wr_object_saturated(h);
    return wr_payload_of(h);
}

void *WR_LAYOUT(wr_retain_live_settle)(void *borrowed)
{
    wr_header *h = wr_header_of(borrowed);
    if (wr_unlikely(!wr_guard_is_inside()))
        wr_panic("wr_retain_live", "object", NULL, borrowed, "called outside a guard, where it may be gone");
    enum wr_word_verdict verdict = wr_word_retain_live(&h->word);
    switch (verdict) {
    case WR_WORD_OK:
        return borrowed;
    case WR_WORD_SATURATED:
        wr_object_saturated(h);
        /* Whether it was the strong or, of a dead object, the weak half: a dead one stays dead. */
        return (wr_word_peek(&h->word) & WR_WORD_CLOSED) ? NULL : borrowed;
    case WR_WORD_DEAD:
        return NULL;
    default:
        wr_object_panic("wr_retain_live", h, "it was not borrowed in a guard that still runs");
    }
}

void *WR_LAYOUT(wr_peek_cold)(const wr_weak *weak)
{
    if (weak == NULL) {
        errno = EINVAL;
        return NULL;
    }
    const wr_header *h = wr_header_of_weak(weak);
    if (!(wr_word_peek(&h->word) & WR_WORD_DEFERRED))
        wr_object_panic("wr_peek", h, "its type is not WR_TYPE_DEFERRED, so its memory would not wait");
    if (!(wr_word_peek(&h->word) & WR_WORD_CLOSED))
        wr_object_panic("wr_peek", h, "called outside a guard, where it may be gone");
    return NULL;
}

int wr_weak_describe(const wr_weak *weak, char *buf, size_t size)
{
    if (weak == NULL || (buf == NULL && size > 0))
        return -EINVAL;
    void *obj = wr_upgrade((wr_weak *)(uintptr_t)weak);
    if (obj == NULL)
        return snprintf(buf, size, "<weakref at 0x%" PRIxPTR "; dead>", (uintptr_t)weak);
    const char *name = wr_type_of(obj)->name;
    int length = snprintf(buf, size, "<weakref at 0x%" PRIxPTR "; to '%s' at 0x%" PRIxPTR ">", (uintptr_t)weak,
                          name != NULL ? name : "object", (uintptr_t)obj);
    wr_release(obj);
    return length;
}
