/* value_dict.h: entries that leave by themselves when their object dies. */
#include "check.h"

#include <weakref/guard.h>
#include <weakref/object.h>
#include <weakref/value_dict.h>

#include <errno.h>

struct user {
    int id;
};

/* Deferred, so that entries can be peeked at. */
static const wr_type user_type = {.name = "user", .size = sizeof(struct user), .flags = WR_TYPE_DEFERRED};

static struct user *new_user(int id)
{
    struct user *user = wr_new(&user_type);
    CHECK(user != NULL);
    user->id = id;
    return user;
}

int main(void)
{
    wr_value_dict *users = wr_value_dict_new(NULL);
    struct user *ann = new_user(1), *bob = new_user(2);
    CHECK(users != NULL);

    CHECK(wr_value_dict_set_str(users, "ann", ann) == 0);
    CHECK(wr_value_dict_set_str(users, "bob", bob) == 0);
    CHECK(wr_value_dict_len(users) == 2);
    CHECK(wr_strong_count(ann) == 1); /* the dictionary keeps nothing */

    struct user *found = wr_value_dict_get_str(users, "ann");
    CHECK(found == ann); /* [owned] */
    wr_release(found);
    CHECK(wr_value_dict_get_str(users, "eve") == NULL);

    WR_GUARD {
        const struct user *peeked = wr_value_dict_peek_str(users, "bob"); /* borrowed, not counted */
        CHECK(peeked != NULL && peeked->id == 2);
    }

    /* One object per key, whoever comes first. */
    void *winner;
    CHECK(wr_value_dict_setdefault_str(users, "ann", bob, &winner) == 0);
    CHECK(winner == ann);
    wr_release(winner);

    wr_release(ann); /* dies: its entry leaves */
    CHECK(!wr_value_dict_contains_str(users, "ann") && wr_value_dict_len(users) == 1);

    CHECK(wr_value_dict_remove_str(users, "ann") == -ENOENT);
    CHECK(wr_value_dict_remove_if_str(users, "bob", bob) == 0); /* only if it still is this one */

    /* Integers and any other bytes are keys too. */
    CHECK(wr_value_dict_set_u64(users, 2, bob) == 0);
    CHECK(wr_value_dict_set(users, "\0\1", 2, bob) == 0);
    found = wr_value_dict_pop_u64(users, 2); /* out, and [owned] */
    CHECK(found == bob && wr_value_dict_len(users) == 1);
    wr_release(found);
    wr_value_dict_clear(users);
    CHECK(wr_value_dict_len(users) == 0);

    wr_release(bob);
    wr_value_dict_free(users);
    CHECK(wr_barrier() == 0);
    return 0;
}
