/* Tests of interned strings. */
#include <weakref/intern.h>

#include <weakref/guard.h>
#include <weakref/object.h>

#include <criterion/criterion.h>
#include <errno.h>
#include <pthread.h>
#include <stdlib.h>

#include "fail_alloc.h"
#include "race.h"

static wr_intern_pool *pool_new(void)
{
    wr_intern_pool *pool = wr_intern_pool_new();
    cr_assert_not_null(pool);
    return pool;
}

Test(intern, equal_bytes_are_one_object_while_somebody_holds_it)
{
    wr_intern_pool *pool = pool_new(), *other = pool_new();
    wr_interned *a = wr_intern_str(pool, "example.org"), *b = wr_intern(pool, "example.org!", 11);
    wr_interned *c = wr_intern_str(other, "example.org");
    cr_assert_eq(a, b);
    cr_assert_neq(a, c, "another pool");
    cr_assert_eq(a->size, 11);
    cr_assert_str_eq(wr_interned_bytes(a), "example.org");
    cr_assert_eq(wr_strong_count(a), 2);
    cr_assert_eq(wr_intern_pool_len(pool), 1);
    wr_release(a);
    cr_assert_eq(wr_intern_pool_len(pool), 1);
    wr_intern_pool_free(other);
    cr_assert_str_eq(wr_interned_bytes(c), "example.org", "it outlives its pool");
    wr_release(c);
    wr_release(b);
    cr_assert_eq(wr_intern_pool_len(pool), 0);
    a = wr_intern_str(pool, "example.org");
    cr_assert_str_eq(wr_interned_bytes(a), "example.org");
    wr_release(a);
    wr_intern_pool_free(pool);
    wr_intern_pool_free(NULL);
}

Test(intern, strings_of_all_lengths_and_with_zero_bytes)
{
    wr_intern_pool *pool = pool_new();
    static char bytes[600];
    wr_interned *held[600];
    for (size_t size = 0; size < 600; size++) {
        held[size] = wr_intern(pool, size > 0 ? bytes : NULL, size);
        cr_assert_not_null(held[size]);
        cr_assert_eq(held[size]->size, size);
        cr_assert_eq(memcmp(wr_interned_bytes(held[size]), bytes, size), 0);
        cr_assert_eq(wr_interned_bytes(held[size])[size], '\0');
    }
    cr_assert_eq(wr_intern_pool_len(pool), 600);
    for (size_t size = 0; size < 600; size++)
        wr_release(held[size]);
    wr_intern_pool_free(pool);
}

Test(intern, bad_arguments_are_refused)
{
    wr_intern_pool *pool = pool_new();
    errno = 0;
    cr_assert_null(wr_intern(NULL, "a", 1));
    cr_assert_eq(errno, EINVAL);
    errno = 0;
    cr_assert_null(wr_intern_str(pool, NULL));
    cr_assert_eq(errno, EINVAL);
    errno = 0;
    cr_assert_null(wr_intern(pool, "a", SIZE_MAX));
    cr_assert(errno == ENOMEM);
    cr_assert_eq(wr_intern_pool_len(NULL), 0);
    wr_intern_pool_free(pool);
}

Test(intern, each_allocation_failed_in_turn_changes_nothing)
{
    fail_alloc_install();
    for (long n = 1;; n++) {
        wr_intern_pool *pool = pool_new();
        fail_alloc_at(n);
        wr_interned *s = wr_intern_str(pool, "s");
        bool hit = fail_alloc_hit();
        cr_assert_eq(s == NULL, hit);
        cr_assert(!hit || errno == ENOMEM);
        cr_assert_eq(wr_intern_pool_len(pool), !hit);
        wr_release(s);
        wr_intern_pool_free(pool);
        if (!hit)
            break;
    }
    cr_assert_eq(wr_barrier(), 0);
    cr_assert_eq(fail_alloc_live(), 0);
}

static wr_intern_pool *shared;

static void *user(void *ctx)
{
    uint64_t random = race_seed() + (uint64_t)(uintptr_t)ctx;
    for (unsigned i = 0; i < RACE_SIZE(100000, 10000); i++) {
        char text[2] = {(char)('a' + race_draw(&random) % 4), '\0'};
        wr_interned *a = wr_intern_str(shared, text), *b = wr_intern_str(shared, text);
        RACE_CHECK(a != NULL && a == b && wr_interned_bytes(a)[0] == text[0]);
        wr_release(a);
        wr_release(b);
    }
    return NULL;
}

Test(intern, a_crowd_agrees_on_each_string)
{
    pthread_t threads[3];
    (void)race_seed();
    shared = pool_new();
    for (uintptr_t i = 0; i < 3; i++)
        cr_assert_eq(pthread_create(&threads[i], NULL, user, (void *)i), 0);
    for (unsigned i = 0; i < 3; i++)
        pthread_join(threads[i], NULL);
    cr_assert_eq(wr_intern_pool_len(shared), 0);
    wr_intern_pool_free(shared);
}
