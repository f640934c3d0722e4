/* A cache: what was used last stays, the rest goes when it is let go by everybody else. */
#include "check.h"

#include <weakref/object.h>
#include <weakref/pressure.h>
#include <weakref/value_dict.h>

#include <errno.h>
#include <string.h>

struct page {
    size_t size;
    char text[];
};

static const wr_type page_type = {.name = "page", .size = sizeof(struct page)};

static int loads;

/* Stands for what takes time: a file, a query, another server. */
static int load(const void *key, size_t size, void *ctx, void **obj)
{
    (void)ctx;
    struct page *page = wr_new_sized(&page_type, sizeof *page + size);
    if (page == NULL)
        return -ENOMEM;
    memcpy(page->text, key, size);
    page->size = size;
    loads++;
    *obj = page;
    return 0;
}

static size_t size_of(const void *obj, void *ctx)
{
    (void)ctx;
    return sizeof(struct page) + ((const struct page *)obj)->size;
}

static bool look_up(wr_value_dict *cache, const char *url)
{
    void *page;
    if (wr_value_dict_get_or_create_str(cache, url, load, NULL, &page) != 0)
        return false;
    /* ... use it; it is ours until: */
    wr_release(page);
    return true;
}

int main(void)
{
    const struct wr_value_dict_options options = {
        .struct_size = sizeof options,
        .keep_objects = 100, /* no more than these, ... */
        .keep_size = 4096,   /* ... and no more than so many bytes of them, ... */
        .size_of = size_of,
        .keep_ms = 60000, /* ... and none that nobody asked for in the last minute */
    };
    wr_value_dict *cache = wr_value_dict_new(&options);
    CHECK(cache != NULL);

    for (int i = 0; i < 10; i++)
        CHECK(look_up(cache, "/index.html") && look_up(cache, "/style.css"));
    CHECK(loads == 2); /* nobody holds them, but the cache keeps them */
    CHECK(wr_value_dict_kept(cache, NULL) == 2);

    /* Once memory runs short, on whatever queue suits (NULL: the default one): let go of a part. */
    int err = wr_pressure_start(NULL);
    CHECK(err == 0 || err == -ENOTSUP); /* there is no such news here: trim when you see fit */

    CHECK(wr_value_dict_trim(cache, 1) == 2); /* all of it */
    CHECK(wr_value_dict_len(cache) == 0);     /* and as nobody else held them, they have died */
    CHECK(look_up(cache, "/index.html") && loads == 3);

    CHECK(wr_pressure_stop() == 0);
    wr_value_dict_free(cache);
    return 0;
}
