/* The pool and what was made before it: constructors of a program that links the library statically run before the library's. */
#include <criterion/criterion.h>
#include <malloc.h>

#include "pool.h"

enum { SMALL = WR_POOL_STEP + 9, WHOLE = 2 * WR_POOL_STEP + 8 }; /* of one class */

static void *early;

__attribute__((constructor(101))) static void first(void)
{
    early = wr_pool_alloc(SMALL);
}

Test(pool, early_blocks_have_the_size_of_their_class)
{
    cr_assert_not_null(early);
    void *block = wr_pool_alloc(WHOLE);
    wr_pool_free(block, WHOLE); /* the pool is on from here on, if it ever is */
    wr_pool_free(early, SMALL);
    void *blocks[100];
    for (int i = 0; i < 100; i++) {
        blocks[i] = wr_pool_alloc(WHOLE);
        cr_assert_not_null(blocks[i]);
        cr_assert_geq(malloc_usable_size(blocks[i]), (size_t)WHOLE);
    }
    for (int i = 0; i < 100; i++)
        wr_pool_free(blocks[i], WHOLE);
    wr_pool_trim();
}
