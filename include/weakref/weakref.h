/* F8 weakref: all public headers. */
#ifndef WEAKREF_WEAKREF_H
#define WEAKREF_WEAKREF_H

#include <weakref/debug.h>
#include <weakref/finalize.h>
#include <weakref/guard.h>
#include <weakref/intern.h>
#include <weakref/key_dict.h>
#include <weakref/method.h>
#include <weakref/no_destroy.h>
#include <weakref/object.h>
#include <weakref/pressure.h>
#include <weakref/proxy.h>
#include <weakref/queue.h>
#include <weakref/set.h>
#include <weakref/signal.h>
#include <weakref/slot.h>
#include <weakref/value_dict.h>
#include <weakref/version.h>
#include <weakref/watch.h>
#include <weakref/weak.h>

#endif
