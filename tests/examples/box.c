/* object.h: a box counts memory that another library made, and frees it with that library's function. */
#include "check.h"

#include <weakref/object.h>
#include <weakref/weak.h>

static int n_closed;

static void close_stream(void *stream)
{
    CHECK(fclose(stream) == 0);
    n_closed++;
}

int main(void)
{
    FILE *stream = tmpfile();
    CHECK(stream != NULL);
    wr_box *box = wr_box_new(stream, close_stream); /* takes the stream over */
    CHECK(box != NULL && box->ptr == stream);

    wr_weak *weak = wr_downgrade(box);
    wr_box *user = wr_upgrade(weak);
    CHECK(user == box && fputs("hello", user->ptr) >= 0);
    wr_release(user);

    wr_release(box);
    CHECK(n_closed == 1 && wr_upgrade(weak) == NULL);
    wr_weak_release(weak);
    return 0;
}
