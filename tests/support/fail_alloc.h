/* Fails the library's allocations on demand: the n-th from now, or none.
 *
 * The usual loop, after fail_alloc_install() as the first thing in a test: fail_alloc_at(n); do the call; if fail_alloc_hit() it
 * must have failed cleanly, else it must have succeeded and the loop ends: each allocation of the call was failed in turn.
 */
#ifndef TESTS_FAIL_ALLOC_H
#define TESTS_FAIL_ALLOC_H

#include <malloc.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>

#include <weakref/alloc.h>

static atomic_long fail_alloc_countdown_; /* > 0: the allocation that takes it to 0 fails */
static atomic_bool fail_alloc_hit_;
static atomic_bool fail_alloc_all_;   /* every allocation fails */
static atomic_long fail_alloc_live_;  /* blocks outstanding */
static atomic_long fail_alloc_calls_; /* allocations asked for */
static atomic_long fail_alloc_bytes_; /* of the blocks outstanding */

static void *fail_alloc_alloc_(size_t size, size_t align, void *ctx)
{
    (void)ctx;
    atomic_fetch_add(&fail_alloc_calls_, 1);
    if (atomic_load(&fail_alloc_all_)) {
        atomic_store(&fail_alloc_hit_, true);
        return NULL;
    }
    if (atomic_load(&fail_alloc_countdown_) > 0 && atomic_fetch_sub(&fail_alloc_countdown_, 1) == 1) {
        atomic_store(&fail_alloc_hit_, true);
        return NULL;
    }
    size_t a = align < sizeof(void *) ? sizeof(void *) : align;
    void *memory = NULL;
    if (posix_memalign(&memory, a, size ? size : 1) != 0)
        return NULL;
    atomic_fetch_add(&fail_alloc_live_, 1);
    atomic_fetch_add(&fail_alloc_bytes_, (long)malloc_usable_size(memory));
    return memory;
}

static void fail_alloc_free_(void *memory, void *ctx)
{
    (void)ctx;
    atomic_fetch_sub(&fail_alloc_live_, 1);
    atomic_fetch_sub(&fail_alloc_bytes_, (long)malloc_usable_size(memory));
    free(memory);
}

/* First thing in a test: from here on the library's allocations pass through this file. */
static inline void fail_alloc_install(void)
{
    static const struct wr_allocator allocator = {fail_alloc_alloc_, fail_alloc_free_, NULL};
    if (wr_set_allocator(&allocator) != 0) {
        fprintf(stderr, "fail_alloc_install: the library has allocated already\n");
        abort();
    }
}

/* The @n-th allocation from now fails (1: the next); 0: none. Clears fail_alloc_hit(). */
static inline void fail_alloc_at(long n)
{
    atomic_store(&fail_alloc_hit_, false);
    atomic_store(&fail_alloc_countdown_, n);
}

/* From now on every allocation fails, or none does. */
static inline void fail_alloc_all(bool on)
{
    atomic_store(&fail_alloc_hit_, false);
    atomic_store(&fail_alloc_all_, on);
}

/* Whether one was failed since fail_alloc_at(); also ends the failing. */
static inline bool fail_alloc_hit(void)
{
    atomic_store(&fail_alloc_countdown_, 0);
    return atomic_load(&fail_alloc_hit_);
}

static inline long fail_alloc_live(void)
{
    return atomic_load(&fail_alloc_live_);
}

static inline long fail_alloc_calls(void)
{
    return atomic_load(&fail_alloc_calls_);
}

static inline long fail_alloc_bytes(void)
{
    return atomic_load(&fail_alloc_bytes_);
}

#endif
