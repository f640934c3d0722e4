/* A heap that a fork never finds half changed, for programs under sanitizers. Their own allocators take locks that no fork
 * waits for, so that a child in which another thread held one hangs at its first malloc() or free(), whoever's code it runs.
 * Here memory comes straight from mmap(), by powers of two, under one mutex that handlers of pthread_atfork() hold. */
#ifndef TESTS_FORK_HEAP_H
#define TESTS_FORK_HEAP_H

#include <pthread.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define FORK_HEAP_NEEDED 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer)
#define FORK_HEAP_NEEDED 1
#endif
#endif
#ifndef FORK_HEAP_NEEDED
#define FORK_HEAP_NEEDED 0
#endif

#define FORK_HEAP_CHUNK ((size_t)1 << 20)

struct fork_heap_block_ {
    struct fork_heap_block_ *next; /* in the list of its class */
    size_t class;                  /* its size is 1 << class */
};

static pthread_mutex_t fork_heap_mutex_ = PTHREAD_MUTEX_INITIALIZER;
static struct fork_heap_block_ *fork_heap_free_[64]; /* by class */

static void fork_heap_lock_(void)
{
    if (pthread_mutex_lock(&fork_heap_mutex_) != 0)
        abort();
}

static void fork_heap_unlock_(void)
{
    if (pthread_mutex_unlock(&fork_heap_mutex_) != 0)
        abort();
}

/* A chunk of blocks of one class, or a single big one; the mutex is held. False: no memory. */
static int fork_heap_refill_(size_t class)
{
    const size_t size = (size_t)1 << class, total = size < FORK_HEAP_CHUNK ? FORK_HEAP_CHUNK : size;
    char *chunk = mmap(NULL, total, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (chunk == MAP_FAILED)
        return 0;
    for (size_t at = 0; at + size <= total; at += size) {
        struct fork_heap_block_ *block = (void *)(chunk + at);
        block->next = fork_heap_free_[class];
        fork_heap_free_[class] = block;
    }
    return 1;
}

static void *fork_heap_alloc(size_t size, size_t align, void *ctx)
{
    (void)ctx;
    size_t class = 6;
    /* In front of the payload: the block's own fields, then its address. */
    const size_t head = sizeof(struct fork_heap_block_) + sizeof(void *), slack = align > 16 ? align : 16;
    while (class < 47 && (size_t)1 << class < size + head + slack)
        class ++;
    fork_heap_lock_();
    struct fork_heap_block_ *block =
        fork_heap_free_[class] != NULL || fork_heap_refill_(class) ? fork_heap_free_[class] : NULL;
    if (block != NULL)
        fork_heap_free_[class] = block->next;
    fork_heap_unlock_();
    if (block == NULL)
        return NULL;
    block->class = class;
    struct fork_heap_block_ **payload = (void *)(((uintptr_t)block + head + slack - 1) & ~(uintptr_t)(slack - 1));
    payload[-1] = block;
    return payload;
}

static void fork_heap_free(void *memory, void *ctx)
{
    (void)ctx;
    if (memory == NULL)
        return;
    struct fork_heap_block_ *block = ((struct fork_heap_block_ **)memory)[-1];
    fork_heap_lock_();
    block->next = fork_heap_free_[block->class];
    fork_heap_free_[block->class] = block;
    fork_heap_unlock_();
}

/* Once, before the first allocation. */
static void fork_heap_start(void)
{
    if (pthread_atfork(fork_heap_lock_, fork_heap_unlock_, fork_heap_unlock_) != 0)
        abort();
}

#endif
