/* Tests of large objects: their pages go back to the system at death, though handles keep the block. */
#include "expect.h"
#include "fail_alloc.h"

#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <weakref/guard.h>
#include <weakref/object.h>
#include <weakref/queue.h>
#include <weakref/value_dict.h>
#include <weakref/watch.h>
#include <weakref/weak.h>

#define KIB ((size_t)1024)
#define LEAST (16 * KIB)

/* ---- what the library asks the kernel for ------------------------------------------------------------------ */

static unsigned n_advices; /* since the last look */
static int advice;
static int refusal; /* the errno with which the next are refused; 0: they are not */

/* In the place of the C library's. */
int madvise(void *memory, size_t size, int what)
{
    n_advices++;
    advice = what;
    if (refusal != 0) {
        errno = refusal;
        return -1;
    }
    return (int)syscall(SYS_madvise, memory, size, what);
}

static unsigned advices(void)
{
    unsigned n = n_advices;
    n_advices = 0;
    return n;
}

static size_t page(void)
{
    return (size_t)sysconf(_SC_PAGESIZE);
}

/* Of the pages wholly in these bytes, how many are there, and how many are in memory. */
static size_t pages_in(const void *bytes, size_t size, size_t *resident)
{
    uintptr_t begin = ((uintptr_t)bytes + page() - 1) & ~(page() - 1);
    uintptr_t end = ((uintptr_t)bytes + size) & ~(page() - 1);
    size_t n = end > begin ? (end - begin) / page() : 0;
    unsigned char *in_memory = calloc(n + 1, 1);
    cr_assert_not_null(in_memory);
    if (n > 0)
        cr_assert_eq(mincore((void *)begin, end - begin, in_memory), 0);
    *resident = 0;
    for (size_t i = 0; i < n; i++)
        *resident += in_memory[i] & 1;
    free(in_memory);
    return n;
}

static void *make(const wr_type *type, size_t size, int byte)
{
    void *obj = wr_new_sized(type, size);
    cr_assert_not_null(obj);
    memset(obj, byte, size);
    return obj;
}

static bool is_all(const void *bytes, size_t size, int byte)
{
    const unsigned char *p = bytes;
    for (size_t i = 0; i < size; i++)
        if (p[i] != (unsigned char)byte)
            return false;
    return true;
}

static void destroy_nothing(void *obj)
{
    (void)obj;
}

static const wr_type plain = {.name = "plain"};

/* ---- pages go ------------------------------------------------------------------------------------------------ */

static void check_pages_go(const wr_type *type, size_t size)
{
    void *obj = type->size == size ? wr_new(type) : wr_new_sized(type, size);
    cr_assert_not_null(obj);
    memset(obj, 0x5a, size);
    wr_weak *weak = wr_downgrade(obj);
    size_t resident, n = pages_in(obj, size, &resident);
    cr_assert_eq(resident, n);
    cr_assert_eq(advices(), 0);

    wr_release(obj);
    cr_assert_eq(advices(), 1);
    pages_in(obj, size, &resident);
    cr_assert_leq(resident, 1, "%zu of %zu pages are left", resident, n);
    cr_assert(wr_weak_is_dead(weak));
    cr_assert(wr_weak_is(weak, obj));
    cr_assert_null(wr_upgrade(weak));
    wr_weak_release(wr_weak_retain(weak));
    wr_weak_release(weak);
    cr_assert_eq(advices(), 0);
}

Test(large, pages_go_at_death)
{
    check_pages_go(&plain, LEAST);
    check_pages_go(&plain, 64 * KIB);
    check_pages_go(&plain, KIB * KIB);
}

Test(large, pages_go_whatever_the_type_is)
{
    static const wr_type fixed = {.name = "fixed", .size = 64 * KIB};
    static const wr_type aligned = {.name = "aligned", .size = 64 * KIB, .align = 4096};
    static const wr_type destroyed = {.name = "destroyed", .size = 64 * KIB, .destroy = destroy_nothing};
    check_pages_go(&fixed, fixed.size);
    check_pages_go(&aligned, aligned.size);
    check_pages_go(&aligned, 100 * KIB);
    check_pages_go(&destroyed, destroyed.size);
    check_pages_go(&destroyed, 100 * KIB + 1);
}

Test(large, smaller_ones_keep_theirs)
{
    void *obj = make(&plain, LEAST - 1, 0x5a);
    wr_weak *weak = wr_downgrade(obj);
    wr_release(obj);
    cr_assert_eq(advices(), 0);
    cr_assert(is_all(obj, LEAST - 1, 0x5a));
    wr_weak_release(weak);
}

/* What lies in the same pages, and the same blocks' records in front. */
Test(large, neighbours_stay_as_they_are)
{
    enum { N = 60 };
    static void *objects[N];
    static wr_weak *handles[N];
    static size_t sizes[N];
    for (unsigned round = 0; round < 3; round++) {
        for (unsigned i = 0; i < N; i++) {
            sizes[i] = LEAST + i * (size_t)257 + round * 1009;
            objects[i] = make(&plain, sizes[i], (int)i + 1);
            handles[i] = wr_downgrade(objects[i]);
        }
        for (unsigned i = round % 2; i < N; i += 2)
            wr_release(objects[i]);
        cr_assert_eq(advices(), N / 2);
        for (unsigned i = 0; i < N; i++) {
            if (i % 2 == round % 2)
                continue;
            cr_assert(is_all(objects[i], sizes[i], (int)i + 1), "object %u of %zu bytes", i, sizes[i]);
            wr_release(objects[i]);
        }
        (void)advices();
        for (unsigned i = 0; i < N; i++)
            wr_weak_release(handles[i]);
    }
}

/* ---- when ---------------------------------------------------------------------------------------------------- */

Test(large, without_handles_nothing_is_asked_for)
{
    wr_release(make(&plain, 64 * KIB, 1));

    void *obj = make(&plain, 64 * KIB, 1);
    wr_weak_release(wr_downgrade(obj));
    wr_release(obj);
    cr_assert_eq(advices(), 0);
}

static void count_call(wr_weak *dead, void *ctx)
{
    (void)dead;
    ++*(int *)ctx;
}

Test(large, watchers_and_entries_are_no_handles)
{
    int calls = 0;
    wr_queue *queue = wr_queue_new("large");
    void *obj = make(&plain, 64 * KIB, 1);
    cr_assert_eq(wr_on_death(obj, queue, count_call, &calls), 0);
    wr_release(obj);
    cr_assert_eq(wr_queue_drain(queue, SIZE_MAX), 1);
    cr_assert_eq(calls, 1);

    wr_value_dict *d = wr_value_dict_new(NULL);
    for (int sized = 0; sized < 2; sized++) {
        static const wr_type fixed = {.name = "fixed", .size = 64 * KIB};
        obj = sized ? make(&plain, 64 * KIB, 1) : wr_new(&fixed);
        cr_assert_eq(wr_value_dict_set_u64(d, 1, obj), 0);
        WR_GUARD { /* so that the entry keeps its weak count */
            wr_release(obj);
        }
        cr_assert_eq(advices(), 0);
    }
    wr_value_dict_free(d);
    cr_assert_eq(wr_barrier(), 0);
    wr_queue_free(queue);
}

/* Before the callbacks, which get no payload. */
Test(large, pages_go_of_watched_ones_with_handles)
{
    wr_queue *queue = wr_queue_new("large");
    for (int n_watches = 1; n_watches <= 3; n_watches++)
        for (int sized = 0; sized < 2; sized++) {
            static const wr_type fixed = {.name = "fixed", .size = 64 * KIB};
            int calls = 0;
            void *obj = sized ? make(&plain, 64 * KIB, 1) : wr_new(&fixed);
            for (int i = 0; i < n_watches; i++)
                cr_assert_eq(wr_on_death(obj, queue, count_call, &calls), 0);
            wr_weak *weak = wr_downgrade(obj);
            wr_release(obj);
            cr_assert_eq(advices(), 1);
            wr_weak_release(weak);
            wr_queue_drain(queue, SIZE_MAX);
            cr_assert_eq(calls, n_watches);
        }
    wr_queue_free(queue);
}

static bool whole_in_destroy;
static wr_weak *made_in_destroy;

static void destroy_looks(void *obj)
{
    whole_in_destroy = is_all(obj, 64 * KIB, 7) && n_advices == 0;
    made_in_destroy = wr_downgrade(obj);
}

Test(large, destroy_finds_it_whole_and_may_make_handles)
{
    static const wr_type type = {.name = "looks", .size = 64 * KIB, .destroy = destroy_looks};
    void *obj = wr_new(&type);
    memset(obj, 7, type.size);
    wr_release(obj);
    cr_assert(whole_in_destroy);
    cr_assert_eq(advices(), 1);
    wr_weak_release(made_in_destroy);
}

typedef struct node {
    struct node *next;
    unsigned char bytes[64 * KIB];
} node;

static void node_destroy(void *obj)
{
    wr_release(((node *)obj)->next);
}

/* Whose links stand behind the payload while they wait for their turn. */
Test(large, pages_of_a_chain_go_one_after_the_other)
{
    enum { N = 50 };
    static const wr_type type = {.name = "node", .size = sizeof(node), .destroy = node_destroy};
    static wr_weak *handles[2 * N];
    node *first = NULL;
    for (unsigned i = 0; i < 2 * N; i++) {
        node *n = wr_new(&type);
        cr_assert_not_null(n);
        memset(n->bytes, 7, sizeof n->bytes);
        n->next = first;
        first = n;
        handles[i] = i % 2 == 0 ? wr_downgrade(n) : NULL;
    }
    wr_release(first);
    cr_assert_eq(advices(), N);
    for (unsigned i = 0; i < 2 * N; i++)
        wr_weak_release(handles[i]);
}

static wr_queue *far_queue;

static wr_queue *on_far_queue(void)
{
    return far_queue;
}

Test(large, destroys_on_a_queue_come_first)
{
    static const wr_type type = {.name = "far", .size = 64 * KIB, .destroy = destroy_looks, .destroy_on = on_far_queue};
    far_queue = wr_queue_new("far");
    void *obj = wr_new(&type);
    memset(obj, 7, type.size);
    wr_weak *weak = wr_downgrade(obj);
    wr_release(obj);
    cr_assert_eq(advices(), 0);
    cr_assert_eq(wr_queue_drain(far_queue, SIZE_MAX), 1);
    cr_assert(whole_in_destroy);
    cr_assert_eq(advices(), 1);
    wr_weak_release(weak);
    wr_weak_release(made_in_destroy);
    wr_queue_free(far_queue);
}

Test(large, readers_in_a_guard_find_it_whole)
{
    static const wr_type type = {.name = "deferred", .size = 64 * KIB, .flags = WR_TYPE_DEFERRED};
    void *obj = wr_new(&type);
    memset(obj, 7, type.size);
    wr_weak *weak = wr_downgrade(obj);
    wr_guard_enter();
    const void *seen = wr_peek(weak);
    cr_assert_eq(seen, obj);
    wr_release(obj);
    cr_assert(wr_weak_is_dead(weak));
    cr_assert(is_all(seen, type.size, 7));
    cr_assert_eq(advices(), 0);
    wr_guard_exit();
    cr_assert_eq(wr_barrier(), 0);
    cr_assert_eq(advices(), 1);
    wr_weak_release(weak);
}

/* ---- whose memory it is ---------------------------------------------------------------------------------------- */

Test(large, a_refusal_is_not_seen)
{
    void *obj = make(&plain, 64 * KIB, 7);
    wr_weak *weak = wr_downgrade(obj);
    refusal = ENOMEM;
    errno = 4711;
    wr_release(obj);
    cr_assert_eq(errno, 4711);
    cr_assert_eq(advices(), 1);
    cr_assert_null(wr_upgrade(weak));
    wr_weak_release(weak);
}

Test(large, of_malloc_they_go_at_once)
{
    check_pages_go(&plain, LEAST);
    cr_assert_eq(advice, MADV_DONTNEED);
}

Test(large, the_block_comes_back_with_the_last_handle)
{
    fail_alloc_install();
    void *obj = make(&plain, 64 * KIB, 7);
    wr_weak *weak = wr_downgrade(obj);
    wr_release(obj);
    cr_assert_eq(advices(), 1);
    cr_assert_eq(advice, MADV_FREE);
    cr_assert_eq(fail_alloc_live(), 1);
    wr_weak_release(weak);
    cr_assert_eq(fail_alloc_live(), 0);
}

static unsigned n_mapped;

static void *map_shared(size_t size, size_t align, void *ctx)
{
    (void)align;
    *(size_t *)ctx = size;
    void *memory = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    n_mapped += memory != MAP_FAILED;
    return memory != MAP_FAILED ? memory : NULL;
}

static void unmap(void *memory, void *ctx)
{
    n_mapped--;
    munmap(memory, *(size_t *)ctx);
}

/* Which may be a file, or known to a device. */
Test(large, mapped_memory_of_a_program_is_left_alone)
{
    static size_t size;
    static const struct wr_allocator shared = {map_shared, unmap, &size};
    cr_assert_eq(wr_set_allocator(&shared), 0);
    void *obj = make(&plain, 64 * KIB, 7);
    wr_weak *weak = wr_downgrade(obj);
    errno = 4711;
    wr_release(obj);
    cr_assert_eq(errno, 4711);
    cr_assert_eq(advices(), 1);
    cr_assert(is_all(obj, 64 * KIB, 7));
    wr_weak_release(weak);
    cr_assert_eq(n_mapped, 0);
}
