/* F8 intern: one living object for each distinct byte string.
 *
 * Who interns the same bytes gets the same object, for as long as anybody holds it; comparing two interned strings is comparing
 * two pointers, and a string that comes in by the thousand is kept once. When the last reference goes, the string is gone
 * from the pool, too: it needs no sweeping.
 *
 * When not to use it: for strings that are all different (each costs an entry in the pool, with a copy of its bytes).
 *
 * Example:
 *     wr_intern_pool *pool = wr_intern_pool_new();
 *     const wr_interned *a = wr_intern_str(pool, "example.org");   // owned
 *     const wr_interned *b = wr_intern_str(pool, "example.org");
 *     assert(a == b && strcmp(wr_interned_bytes(a), "example.org") == 0);
 *     wr_release((void *)a);
 *     wr_release((void *)b);                                       // the last one: it is gone
 *     wr_intern_pool_free(pool);
 *
 * Guarantees:
 *   A. While an interned string is alive, every wr_intern() of its bytes in that pool gives this one.
 *   B. Strings outlive their pool.
 * Progress: that of wr_value_dict_get() and, for a new string, of wr_value_dict_setdefault().
 *
 * Idea: sys.intern of Python and the weak interner of Guava.
 */
#ifndef WEAKREF_INTERN_H
#define WEAKREF_INTERN_H

#include <string.h>

#include <weakref/types.h>

WR_BEGIN_DECLS

/* An object: wr_retain(), wr_downgrade() and all others take it. Not to be changed. */
typedef struct wr_interned {
    size_t size; /* in bytes; as many follow, and a NUL */
} wr_interned;

static inline const char *wr_interned_bytes(const wr_interned *s)
{
    return (const char *)(s + 1);
}

/**
 * wr_intern_pool_new() - make an empty pool.
 *
 * Returns: [owned] the pool, for wr_intern_pool_free(); NULL on failure.
 * Errors:  errno ENOMEM; EAGAIN: the reclaimer thread cannot be started.
 * Threads: any.
 * Order:   handing the pool to other threads is the caller's own synchronisation.
 */
WR_API WR_NODISCARD wr_intern_pool *wr_intern_pool_new(void);

/**
 * wr_intern_pool_free() - give a pool back. Its strings are left alone.
 * @pool: [consumed] NULL allowed.
 *
 * Returns: nothing.
 * Errors:  none.
 * Threads: no other call on the pool may be running or follow. Does not wait.
 * Order:   none.
 */
WR_API void wr_intern_pool_free(wr_intern_pool *pool);

/**
 * wr_intern() - the one object with these bytes.
 * @pool:  [borrowed].
 * @bytes: [borrowed] copied if they are new; may be NULL if @size is 0.
 * @size:  how many.
 *
 * Returns: [owned] the string, for one wr_release(); NULL on failure.
 * Errors:  errno ENOMEM, EINVAL.
 * Threads: any. Lock-free if it is there; else blocking: briefly, for one part's lock. Runs no user code.
 * Order:   none: its bytes never change.
 */
WR_API WR_NODISCARD wr_interned *wr_intern(wr_intern_pool *pool, const void *bytes, size_t size);

/* The same with a C string; NULL is a bad argument. */
WR_NODISCARD static inline wr_interned *wr_intern_str(wr_intern_pool *pool, const char *string)
{
    return wr_intern(pool, string, string != NULL ? strlen(string) : 1);
}

/**
 * wr_intern_pool_len() - how many strings are alive.
 * @pool: [borrowed].
 *
 * Returns: as wr_value_dict_len().
 * Errors:  errno EINVAL (and 0).
 * Threads: any. Wait-free.
 * Order:   none.
 */
WR_API size_t wr_intern_pool_len(const wr_intern_pool *pool);

WR_END_DECLS

#endif
