/* F7 proxy: call an object through a handle that does not keep it alive.
 *
 * A proxy is a weak handle with a type of its own, for code that wants to call the object, not to hold it: each call takes
 * a strong reference for its duration and answers -ESTALE once the object is dead. Like a weak handle it costs 8 bytes and
 * no heap; proxies of one object are equal pointers. WR_WITH does the same for a block of code; WR_PROXY_METHOD makes
 * a typed function out of a method.
 *
 * When not to use it: for many calls in a row (upgrade once, or one WR_WITH around them), or where the caller must not be
 * the one on whose thread the object ends: a call may hold the last reference when it returns.
 *
 * Example:
 *     WR_PROXY_METHOD(peer_send, struct conn, conn_send, const char *, size_t)   // int conn_send(struct conn *, const char *, size_t)
 *
 *     wr_proxy *peer = wr_proxy_new(conn);
 *     if (peer_send(peer, "hello", 5) == -ESTALE)
 *         puts("gone");
 *     WR_WITH(struct conn, c, peer) {
 *         printf("fd %d\n", c->fd);               // c: strong until the block is left, in whatever way
 *     }
 *     wr_proxy_release(peer);
 *
 * Guarantees:
 *   A. A forwarded call runs on a living object, to its end, or not at all.
 *   B. Leaving a WR_WITH block by return, break, continue or goto gives the reference back.
 * Progress: as wr_upgrade() and wr_release() around the call.
 *
 * Idea: weakref.proxy of Python; the scoped block after Swift's `if let`.
 */
#ifndef WEAKREF_PROXY_H
#define WEAKREF_PROXY_H

#include <errno.h>

#include <weakref/object.h>
#include <weakref/weak.h>

WR_BEGIN_DECLS

/**
 * wr_proxy_new() - a proxy for an object.
 * @obj: [borrowed] of which the caller holds a strong reference; or the object whose destroy is running (a dead proxy).
 *
 * Returns: [owned] the proxy, for one wr_proxy_release(); NULL with errno set.
 * Errors:  EINVAL: no object. Allocates nothing.
 * Threads: any, beside any call on the object. Wait-free; runs no user code.
 * Order:   none.
 */
WR_API WR_NODISCARD wr_proxy *wr_proxy_new(void *obj);

/**
 * wr_proxy_release() - give a proxy back.
 * @proxy: [consumed] NULL does nothing.
 *
 * Returns: nothing.
 * Errors:  none; more releases than proxies: panic, where the memory still is.
 * Threads: any. Wait-free; runs no user code.
 * Order:   as wr_weak_release().
 */
WR_API void wr_proxy_release(wr_proxy *proxy);

/**
 * wr_proxy_call() - run a function on the object, if it lives.
 * @proxy: [borrowed] not NULL.
 * @fn:    called with the object [borrowed] and @ctx; not NULL. It may release the object's last other reference, and the proxy.
 * @ctx:   handed to @fn.
 *
 * Returns: what @fn returned; -ESTALE: the object is dead, @fn did not run.
 * Errors:  -EINVAL: no proxy or no function.
 * Threads: any. Runs @fn under no lock of the library; if meanwhile all other references went, the object's end too.
 * Order:   as wr_upgrade() before @fn, as wr_release() after it.
 */
WR_API int wr_proxy_call(wr_proxy *proxy, int (*fn)(void *obj, void *ctx), void *ctx);

/**
 * wr_proxy_weak() - the proxy as a weak handle.
 * @proxy: [borrowed] or NULL.
 *
 * Returns: [borrowed] as long as the proxy, equal to every other handle of the object; wr_weak_retain() keeps it. NULL for NULL.
 * Errors:  none.
 * Threads: any. Wait-free.
 * Order:   none.
 */
static inline wr_weak *wr_proxy_weak(const wr_proxy *proxy)
{
    return (wr_weak *)(uintptr_t)proxy;
}

/**
 * wr_proxy_is_dead() - whether calls answer -ESTALE from now on.
 * @proxy: [borrowed] NULL counts as dead.
 *
 * Returns: true: dead, for ever. false: it was alive a moment ago.
 * Errors:  none.
 * Threads: any. Wait-free, one load.
 * Order:   as wr_weak_is_dead().
 */
static inline bool wr_proxy_is_dead(const wr_proxy *proxy)
{
    return wr_weak_is_dead(wr_proxy_weak(proxy));
}

/**
 * wr_proxy_describe() - "<proxy at 0x...; to 'conn' at 0x...>" or "<proxy at 0x...; dead>".
 * @proxy: [borrowed] not NULL.
 * @buf:   [borrowed] at least @size bytes; may be NULL if @size is 0. Ends with a NUL if @size > 0.
 * @size:  bytes of @buf.
 *
 * Returns: the length that the whole text has, as snprintf.
 * Errors:  -EINVAL: no proxy, or no buffer with a size.
 * Threads: any. Holds the object meanwhile: if all others let go of it just then, it dies here.
 * Order:   none.
 */
WR_API int wr_proxy_describe(const wr_proxy *proxy, char *buf, size_t size);

/* ---- WR_WITH ------------------------------------------------------------------------------------- */

/* One WR_WITH block; not for direct use. */
struct wr_with_scope_ {
    void *obj; /* [owned] the strong reference, or NULL */
    bool once; /* the block has not been entered yet */
};

static inline struct wr_with_scope_ wr_with_weak_(const wr_weak *weak)
{
    struct wr_with_scope_ scope = {NULL, true};
    if (weak != NULL)
        scope.obj = wr_upgrade((wr_weak *)(uintptr_t)weak);
    return scope;
}

static inline struct wr_with_scope_ wr_with_proxy_(const wr_proxy *proxy)
{
    return wr_with_weak_(wr_proxy_weak(proxy));
}

static inline void wr_with_leave_(struct wr_with_scope_ *scope)
{
    wr_release(scope->obj);
}

WR_END_DECLS

#ifdef __cplusplus
extern "C++" {
static inline struct wr_with_scope_ wr_with_enter_(const wr_weak *weak)
{
    return wr_with_weak_(weak);
}
static inline struct wr_with_scope_ wr_with_enter_(const wr_proxy *proxy)
{
    return wr_with_proxy_(proxy);
}
}
#define WR_WITH_ENTER_(handle) wr_with_enter_(handle)
#else
#define WR_WITH_ENTER_(handle) \
    _Generic((handle), wr_weak *                                                                   \
             : wr_with_weak_, const wr_weak *                                                      \
             : wr_with_weak_, wr_proxy *                                                           \
             : wr_with_proxy_, const wr_proxy *                                                    \
             : wr_with_proxy_)(handle)
#endif

/**
 * WR_WITH() - WR_WITH(T, name, handle) { ... }: run a block on the object, if it lives.
 * @T:      the payload's type.
 * @name:   declared as `T *name` for the block: [borrowed] the object, strong until the block is left.
 * @handle: [borrowed] a wr_weak * or wr_proxy *, const or not, evaluated once; nothing else compiles. NULL: the block does not run.
 *
 * The block may be left by return, break, continue (both end the block only) or goto; longjmp leaks the reference.
 * The handle may be released inside. To learn that it did not run, set a variable in it, or use wr_upgrade().
 */
#define WR_WITH(T, name, handle)                                                                                       \
    for (struct wr_with_scope_ wr_with_scope_##name __attribute__((cleanup(wr_with_leave_))) = WR_WITH_ENTER_(handle); \
         wr_with_scope_##name.once && wr_with_scope_##name.obj != NULL; wr_with_scope_##name.once = false)             \
        for (T *name = (T *)wr_with_scope_##name.obj; name != NULL; name = NULL)

/* ---- WR_PROXY_METHOD ---------------------------------------------------------------------------- */

#define WR_PROXY_METHOD_(name, T, call, ...)                    \
    __attribute__((unused)) static inline int name(__VA_ARGS__) \
    {                                                           \
        int wr_result_ = wr_proxy_ == NULL ? -EINVAL : -ESTALE; \
        WR_WITH (T, wr_self_, wr_proxy_) {                      \
            wr_result_ = call;                                  \
        }                                                       \
        return wr_result_;                                      \
    }

/* One per count of argument types: `fn` is the method, a..h the types. */
#define WR_PROXY_P_ wr_proxy *wr_proxy_
#define WR_PROXY_A_(type, number) __typeof__(type) wr_arg##number##_
#define WR_PROXY_METHOD_0_(name, T, fn) WR_PROXY_METHOD_(name, T, fn(wr_self_), WR_PROXY_P_)
#define WR_PROXY_METHOD_1_(name, T, fn, a) \
    WR_PROXY_METHOD_(name, T, fn(wr_self_, wr_arg1_), WR_PROXY_P_, WR_PROXY_A_(a, 1))
#define WR_PROXY_METHOD_2_(name, T, fn, a, b) \
    WR_PROXY_METHOD_(name, T, fn(wr_self_, wr_arg1_, wr_arg2_), WR_PROXY_P_, WR_PROXY_A_(a, 1), WR_PROXY_A_(b, 2))
#define WR_PROXY_METHOD_3_(name, T, fn, a, b, c)                                                          \
    WR_PROXY_METHOD_(name, T, fn(wr_self_, wr_arg1_, wr_arg2_, wr_arg3_), WR_PROXY_P_, WR_PROXY_A_(a, 1), \
                     WR_PROXY_A_(b, 2), WR_PROXY_A_(c, 3))
#define WR_PROXY_METHOD_4_(name, T, fn, a, b, c, d)                                                                 \
    WR_PROXY_METHOD_(name, T, fn(wr_self_, wr_arg1_, wr_arg2_, wr_arg3_, wr_arg4_), WR_PROXY_P_, WR_PROXY_A_(a, 1), \
                     WR_PROXY_A_(b, 2), WR_PROXY_A_(c, 3), WR_PROXY_A_(d, 4))
#define WR_PROXY_METHOD_5_(name, T, fn, a, b, c, d, e)                                                     \
    WR_PROXY_METHOD_(name, T, fn(wr_self_, wr_arg1_, wr_arg2_, wr_arg3_, wr_arg4_, wr_arg5_), WR_PROXY_P_, \
                     WR_PROXY_A_(a, 1), WR_PROXY_A_(b, 2), WR_PROXY_A_(c, 3), WR_PROXY_A_(d, 4), WR_PROXY_A_(e, 5))
#define WR_PROXY_METHOD_6_(name, T, fn, a, b, c, d, e, f)                                                            \
    WR_PROXY_METHOD_(name, T, fn(wr_self_, wr_arg1_, wr_arg2_, wr_arg3_, wr_arg4_, wr_arg5_, wr_arg6_), WR_PROXY_P_, \
                     WR_PROXY_A_(a, 1), WR_PROXY_A_(b, 2), WR_PROXY_A_(c, 3), WR_PROXY_A_(d, 4), WR_PROXY_A_(e, 5),  \
                     WR_PROXY_A_(f, 6))
#define WR_PROXY_METHOD_7_(name, T, fn, a, b, c, d, e, f, g)                                                      \
    WR_PROXY_METHOD_(name, T, fn(wr_self_, wr_arg1_, wr_arg2_, wr_arg3_, wr_arg4_, wr_arg5_, wr_arg6_, wr_arg7_), \
                     WR_PROXY_P_, WR_PROXY_A_(a, 1), WR_PROXY_A_(b, 2), WR_PROXY_A_(c, 3), WR_PROXY_A_(d, 4),     \
                     WR_PROXY_A_(e, 5), WR_PROXY_A_(f, 6), WR_PROXY_A_(g, 7))
#define WR_PROXY_METHOD_8_(name, T, fn, a, b, c, d, e, f, g, h)                                                    \
    WR_PROXY_METHOD_(name, T,                                                                                      \
                     fn(wr_self_, wr_arg1_, wr_arg2_, wr_arg3_, wr_arg4_, wr_arg5_, wr_arg6_, wr_arg7_, wr_arg8_), \
                     WR_PROXY_P_, WR_PROXY_A_(a, 1), WR_PROXY_A_(b, 2), WR_PROXY_A_(c, 3), WR_PROXY_A_(d, 4),      \
                     WR_PROXY_A_(e, 5), WR_PROXY_A_(f, 6), WR_PROXY_A_(g, 7), WR_PROXY_A_(h, 8))
#define WR_PROXY_PICK_(_0, _1, _2, _3, _4, _5, _6, _7, _8, macro, ...) macro

/**
 * WR_PROXY_METHOD() - WR_PROXY_METHOD(name, T, fn, types...): make a function that forwards to a method.
 *
 * From `int fn(T *self, type1, type2, ...)`, with 0 to 8 argument types, it makes
 * `static inline int name(wr_proxy *proxy, type1, type2, ...)`, which returns fn's result, -ESTALE if the object is
 * dead, -EINVAL for a NULL proxy. Written at file scope, on a line of its own, without a semicolon.
 *
 * A method with another result gets it out through a pointer argument, or is called in a WR_WITH block, or by a function
 * for wr_proxy_call().
 */
#define WR_PROXY_METHOD(name, T, ...)                                                                                  \
    WR_PROXY_PICK_(__VA_ARGS__, WR_PROXY_METHOD_8_, WR_PROXY_METHOD_7_, WR_PROXY_METHOD_6_, WR_PROXY_METHOD_5_,        \
                   WR_PROXY_METHOD_4_, WR_PROXY_METHOD_3_, WR_PROXY_METHOD_2_, WR_PROXY_METHOD_1_, WR_PROXY_METHOD_0_, \
                   0)                                                                                                  \
    (name, T, __VA_ARGS__)

/* Handing what is no object to these calls does not compile: see types.h. */
#ifdef __cplusplus
WR_TAKES_OBJECT_(wr_proxy_new);
#else
#define wr_proxy_new(obj) wr_proxy_new(WR_OBJECT_(obj))
#endif

#endif
