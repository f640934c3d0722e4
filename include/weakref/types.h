/* F1 types: the names of all public structs, the attributes of public functions, and what is refused where an object is wanted. */
#ifndef WEAKREF_TYPES_H
#define WEAKREF_TYPES_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
#define WR_BEGIN_DECLS extern "C" {
#define WR_END_DECLS }
#else
#define WR_BEGIN_DECLS
#define WR_END_DECLS
#endif

#define WR_API __attribute__((visibility("default")))
#define WR_COLD __attribute__((cold, noinline))  /* hardly ever called: small, and far away */
#define WR_OUT_OF_LINE __attribute__((noinline)) /* not inline, yet called in the life of each object */
#define WR_CONCAT_(a, b) WR_CONCAT_2_(a, b)
#define WR_CONCAT_2_(a, b) a##b
#define WR_NODISCARD __attribute__((warn_unused_result))

typedef struct wr_type wr_type;               /* what an object is: object.h */
typedef struct wr_box wr_box;                 /* an object around foreign memory: object.h */
typedef struct wr_weak wr_weak;               /* a weak handle: weak.h */
typedef struct wr_slot wr_slot;               /* an atomic strong reference: slot.h */
typedef struct wr_weak_slot wr_weak_slot;     /* an atomic weak reference: slot.h */
typedef struct wr_queue wr_queue;             /* where callbacks wait and run: queue.h */
typedef struct wr_watch wr_watch;             /* one callback at one object's death: watch.h */
typedef struct wr_finalizer wr_finalizer;     /* what is to be done when an object is gone: finalize.h */
typedef struct wr_proxy wr_proxy;             /* a weak handle to call through: proxy.h */
typedef struct wr_method wr_method;           /* a function bound to a weakly held object: method.h */
typedef struct wr_signal wr_signal;           /* methods that are called together: signal.h */
typedef struct wr_connection wr_connection;   /* one method's place in a signal: signal.h */
typedef struct wr_value_dict wr_value_dict;   /* keys to weakly held objects: value_dict.h */
typedef struct wr_key_dict wr_key_dict;       /* weakly held objects to what is known of them: key_dict.h */
typedef struct wr_set wr_set;                 /* weakly held objects: set.h */
typedef struct wr_intern_pool wr_intern_pool; /* shared byte strings: intern.h */

/* ---- what is no object --------------------------------------------------------------------------------------------
 *
 * Objects go by `void *`, to which every pointer converts; what these types' pointers point at is none. Each call that takes an
 * object refuses them when it is compiled: in C by a macro of its name, so that the function itself is defined and
 * can be called as `(wr_release)(obj)`; in C++ by deleted overloads. */

/* clang-format off */
#define WR_NO_OBJECTS_(each) \
    each(wr_weak) each(wr_proxy) each(wr_watch) each(wr_finalizer) each(wr_method) each(wr_signal) each(wr_connection) \
    each(wr_queue) each(wr_slot) each(wr_weak_slot) each(wr_value_dict) each(wr_key_dict) each(wr_set) \
    each(wr_intern_pool) each(wr_type)
/* clang-format on */

#ifdef __cplusplus
extern "C++" {
template <class T> struct wr_no_object_ {
};
template <class T> struct wr_no_object_<const T> : wr_no_object_<T> {
};
#define WR_NO_OBJECT_(type)                  \
    template <> struct wr_no_object_<type> { \
        typedef void refused;                \
    };
WR_NO_OBJECTS_(WR_NO_OBJECT_)
}

/* @call takes an object as its first argument; or after arguments of these types. */
#define WR_TAKES_OBJECT_(call) \
    extern "C++" template <class T, class... R> typename wr_no_object_<T>::refused call(T *, R...) = delete
#define WR_TAKES_OBJECT_AFTER_(call, ...) \
    extern "C++" template <class T, class... R> typename wr_no_object_<T>::refused call(__VA_ARGS__, T *, R...) = delete
#else
extern struct wr_not_an_object {
    char unused;
} wr_this_is_not_an_object; /* declared, never defined */

/* clang-format off */
#define WR_NO_OBJECT_(type) type *: wr_this_is_not_an_object, const type *: wr_this_is_not_an_object,
#define WR_OBJECT_(p) _Generic((p), WR_NO_OBJECTS_(WR_NO_OBJECT_) default: (p))
/* clang-format on */
#endif

#endif
