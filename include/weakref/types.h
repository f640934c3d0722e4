/* F1 types: the names of all public structs, and the attributes of public functions. */
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

typedef struct wr_type wr_type;             /* what an object is: object.h */
typedef struct wr_box wr_box;               /* an object around foreign memory: object.h */
typedef struct wr_weak wr_weak;             /* a weak handle: weak.h */
typedef struct wr_slot wr_slot;             /* an atomic strong reference: slot.h */
typedef struct wr_weak_slot wr_weak_slot;   /* an atomic weak reference: slot.h */
typedef struct wr_queue wr_queue;           /* where callbacks wait and run: queue.h */
typedef struct wr_watch wr_watch;           /* one callback at one object's death: watch.h */
typedef struct wr_finalizer wr_finalizer;   /* what is to be done when an object is gone: finalize.h */
typedef struct wr_proxy wr_proxy;           /* a weak handle to call through: proxy.h */
typedef struct wr_method wr_method;         /* a function bound to a weakly held object: method.h */
typedef struct wr_signal wr_signal;         /* methods that are called together: signal.h */
typedef struct wr_connection wr_connection; /* one method's place in a signal: signal.h */
typedef struct wr_value_dict wr_value_dict; /* keys to weakly held objects: value_dict.h */
typedef struct wr_key_dict wr_key_dict;     /* weakly held objects to what is known of them: key_dict.h */
typedef struct wr_set wr_set;               /* weakly held objects: set.h */

#endif
