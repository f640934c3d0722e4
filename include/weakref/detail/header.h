/* F2 header: the 16 bytes in front of every payload, and how to get from one to the other.
 *
 * A weak handle and a proxy are this header's address under another type, so that they cost 8 bytes
 * and no heap, compare equal when they mean the same object, and stay so after its death.
 */
#ifndef WEAKREF_DETAIL_HEADER_H
#define WEAKREF_DETAIL_HEADER_H

#include <weakref/detail/word.h>
#include <weakref/types.h>

/* Every symbol that the inline paths link to carries the layout's version: a program compiled against
 * another layout does not link. */
#define WR_LAYOUT(name) name##_layout2

typedef struct wr_header {
    wr_word word;
    wr_atomic_uptr meta; /* the type, the side record or the only watcher; its three low bits say which: see object.c */
} wr_header;

#ifdef __cplusplus
static_assert(sizeof(wr_header) == 16, "the header is 16 bytes");
#else
_Static_assert(sizeof(wr_header) == 16, "the header is 16 bytes");
#endif

static inline wr_header *wr_header_of(const void *obj)
{
    return (wr_header *)((uintptr_t)obj - sizeof(wr_header));
}

static inline wr_header *wr_header_of_weak(const wr_weak *weak)
{
    return (wr_header *)(uintptr_t)weak;
}

static inline wr_weak *wr_weak_of_header(const wr_header *h)
{
    return (wr_weak *)(uintptr_t)h;
}

static inline void *wr_payload_of(const wr_header *h)
{
    return (void *)((uintptr_t)h + sizeof(wr_header));
}

#endif
