/* F8 intern: a value dictionary from bytes to the object that holds them; a pool is nothing else. */
#include <weakref/intern.h>

#include <weakref/object.h>
#include <weakref/value_dict.h>

#include <errno.h>

static const wr_type interned_type = {.name = "interned", .size = sizeof(wr_interned)};

static wr_value_dict *dict_of(const wr_intern_pool *pool)
{
    return (wr_value_dict *)(uintptr_t)pool;
}

wr_intern_pool *wr_intern_pool_new(void)
{
    return (wr_intern_pool *)wr_value_dict_new(NULL);
}

void wr_intern_pool_free(wr_intern_pool *pool)
{
    wr_value_dict_free(dict_of(pool));
}

size_t wr_intern_pool_len(const wr_intern_pool *pool)
{
    return wr_value_dict_len(dict_of(pool));
}

wr_interned *wr_intern(wr_intern_pool *pool, const void *bytes, size_t size)
{
    if (pool == NULL || (bytes == NULL && size > 0)) {
        errno = EINVAL;
        return NULL;
    }
    if (size > SIZE_MAX / 2) {
        errno = ENOMEM;
        return NULL;
    }
    void *there = wr_value_dict_get(dict_of(pool), bytes, size);
    if (there != NULL)
        return there;
    wr_interned *fresh = wr_new_sized(&interned_type, sizeof *fresh + size + 1); /* zeroed: the NUL is there */
    if (fresh == NULL)
        return NULL;
    fresh->size = size;
    if (size > 0)
        memcpy(fresh + 1, bytes, size);
    int err = wr_value_dict_setdefault(dict_of(pool), bytes, size, fresh, &there);
    wr_release(fresh);
    if (err == 0)
        return there;
    errno = -err;
    return NULL;
}
