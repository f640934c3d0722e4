/* object.h: an object is destroyed once, when its last strong reference goes. */
#include "check.h"

#include <weakref/object.h>

#include <string.h>

struct conn {
    int fd;
    char peer[16];
};

static int n_closed;

static void conn_destroy(void *obj)
{
    struct conn *c = obj;
    CHECK(c->fd == 7 && wr_strong_count(c) == 0);
    n_closed++;
}

static int conn_describe(const void *obj, char *buf, size_t size)
{
    const struct conn *c = obj;
    return snprintf(buf, size, "<conn to %s>", c->peer);
}

static const wr_type conn_type = {
    .name = "conn",
    .size = sizeof(struct conn),
    .destroy = conn_destroy,
    .describe = conn_describe,
};

/* A payload whose size is known only at run time. */
struct text {
    size_t size;
    char bytes[];
};

static const wr_type text_type = {.name = "text", .size = sizeof(struct text)};

int main(void)
{
    struct conn *c = wr_new(&conn_type); /* one strong reference, zeroed */
    CHECK(c != NULL && c->fd == 0 && wr_strong_count(c) == 1);
    CHECK(wr_type_of(c) == &conn_type);
    c->fd = 7;
    strcpy(c->peer, "localhost");

    struct conn *kept = wr_retain(c); /* the same pointer, one reference more */
    CHECK(kept == c && wr_strong_count(c) == 2);

    char text[32];
    CHECK(wr_describe(c, text, sizeof text) == 19);
    CHECK(strcmp(text, "<conn to localhost>") == 0);

    wr_release(c);
    CHECK(n_closed == 0); /* `kept` is left */
    wr_release(kept);
    CHECK(n_closed == 1);
    wr_release(NULL); /* allowed, like free(NULL) */

    struct text *t = wr_new_sized(&text_type, sizeof *t + 100);
    CHECK(t != NULL);
    memset(t->bytes, 'x', 100);
    wr_release(t);
    return 0;
}
