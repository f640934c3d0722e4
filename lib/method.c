/* F7 method: an object and a function on it, bound, without keeping the object alive.
 *
 * The object's weak handle and the function, in a counted block that never changes.
 */
#include <weakref/method.h>

#include "alloc.h"
#include "check.h"
#include "hash.h"
#include "thread.h"

#include <errno.h>

struct wr_method {
    wr_weak *weak; /* [owned] */
    wr_method_fn *fn;
    wr_atomic_u64 refs;
};

wr_method *(wr_method_new)(void *obj, wr_method_fn *fn)
{
    if (obj == NULL || fn == NULL) {
        errno = EINVAL;
        return NULL;
    }
    wr_method *m = wr_alloc(sizeof *m);
    if (m == NULL) {
        errno = ENOMEM;
        return NULL;
    }
    m->weak = wr_downgrade(obj);
    m->fn = fn;
    wr_atomic_init(&m->refs, 1);
    return m;
}

static _Noreturn WR_COLD void released(const char *call, const wr_method *m)
{
    wr_panic(call, "method", NULL, m, "it has been released");
}

wr_method *wr_method_retain(wr_method *m)
{
    if (m == NULL) {
        errno = EINVAL;
        return NULL;
    }
    /* Relaxed: the caller's own handle orders. */
    if (wr_unlikely(wr_atomic_fetch_add_relaxed(&m->refs, 1) == 0))
        released("wr_method_retain", m);
    return m;
}

void wr_method_release(wr_method *m)
{
    if (m == NULL)
        return;
    /* Acquire-release [method-ref]: every use of the method happens before the free. Pairs with itself in other threads. */
    uint64_t old = wr_atomic_fetch_sub_acq_rel(&m->refs, 1);
    if (wr_unlikely(old == 0))
        released("wr_method_release", m);
    if (old == 1) {
        wr_weak_release(m->weak);
        wr_free(m);
    }
}

int wr_method_call(wr_method *m, void *arg)
{
    if (m == NULL)
        return -EINVAL;
    void *obj = wr_upgrade(m->weak);
    if (obj == NULL)
        return -ESTALE;
    int cancel = wr_cancel_hold();
    int result = m->fn(obj, arg); /* @m may be gone from here on */
    wr_release(obj);
    wr_cancel_restore(cancel);
    return result;
}

bool wr_method_is_dead(const wr_method *m)
{
    return m == NULL || wr_weak_is_dead(m->weak);
}

wr_weak *wr_method_weak(const wr_method *m)
{
    return m == NULL ? NULL : m->weak;
}

wr_method_fn *wr_method_function(const wr_method *m)
{
    return m == NULL ? NULL : m->fn;
}

bool wr_method_equal(const wr_method *a, const wr_method *b)
{
    if (a == NULL || b == NULL)
        return a == b;
    return a->weak == b->weak && a->fn == b->fn;
}

uint64_t wr_method_hash(const wr_method *m)
{
    if (m == NULL)
        return 0;
    /* Addresses of this process: nobody outside chooses them, so a fixed key does. */
    static const wr_hash_key key = {{WR_HASH_PHI, WR_HASH_E}};
    const uint64_t words[2] = {(uint64_t)(uintptr_t)m->weak, (uint64_t)(uintptr_t)m->fn};
    return wr_hash_bytes(&key, words, sizeof words);
}

wr_watch *wr_method_watch_new(wr_method *m, wr_queue *queue, wr_callback *fn, void *ctx)
{
    if (m == NULL) {
        errno = EINVAL;
        return NULL;
    }
    void *obj = wr_upgrade(m->weak);
    if (obj == NULL) {
        errno = ESTALE;
        return NULL;
    }
    wr_watch *watch = wr_watch_new(obj, queue, fn, ctx);
    int saved = errno; /* the release may run user code */
    wr_release(obj);
    errno = saved;
    return watch;
}

int wr_method_on_death(wr_method *m, wr_queue *queue, wr_callback *fn, void *ctx)
{
    if (m == NULL)
        return -EINVAL;
    void *obj = wr_upgrade(m->weak);
    if (obj == NULL)
        return -ESTALE;
    int error = wr_on_death(obj, queue, fn, ctx);
    wr_release(obj);
    return error;
}
