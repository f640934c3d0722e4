/* key_dict.h: what is known of objects that somebody else owns. */
#include "check.h"

#include <weakref/guard.h>
#include <weakref/key_dict.h>
#include <weakref/object.h>

#include <errno.h>

struct conn {
    int fd;
};

struct note {
    int n_requests;
};

static const wr_type conn_type = {.name = "conn", .size = sizeof(struct conn)};
static const wr_type note_type = {.name = "note", .size = sizeof(struct note)};

int main(void)
{
    wr_key_dict *notes = wr_key_dict_new(NULL);
    struct conn *c = wr_new(&conn_type), *d = wr_new(&conn_type);
    struct note *n = wr_new(&note_type);
    CHECK(notes != NULL && c != NULL && d != NULL && n != NULL);

    CHECK(wr_key_dict_set(notes, c, n) == 0); /* c weakly, n strongly */
    n->n_requests = 3;
    wr_release(n);

    struct note *found = wr_key_dict_get(notes, c);
    CHECK(found != NULL && found->n_requests == 3);
    wr_release(found);
    CHECK(wr_key_dict_get(notes, d) == NULL);

    WR_GUARD {
        const struct note *peeked = wr_key_dict_peek(notes, c); /* borrowed, not counted */
        CHECK(peeked != NULL && peeked->n_requests == 3);
    }

    void *winner;
    n = wr_new(&note_type);
    CHECK(wr_key_dict_setdefault(notes, d, n, &winner) == 0 && winner == n);
    wr_release(winner);
    wr_release(n);

    int sum = 0;
    wr_key_dict_iter it;
    struct wr_key_dict_item item;
    wr_key_dict_iter_begin(&it, notes);
    while (wr_key_dict_iter_next(&it, &item)) {
        sum += ((struct note *)item.value)->n_requests;
        wr_release(item.key);
        wr_release(item.value);
    }
    wr_key_dict_iter_end(&it);
    CHECK(sum == 3 && wr_key_dict_len(notes) == 2);

    wr_release(c); /* dies: its entry leaves, and the note is released */
    CHECK(wr_key_dict_len(notes) == 1);
    CHECK(wr_key_dict_remove(notes, d) == 0 && wr_key_dict_remove(notes, d) == -ENOENT);
    wr_release(d);
    wr_key_dict_free(notes);
    CHECK(wr_barrier() == 0);
    return 0;
}
