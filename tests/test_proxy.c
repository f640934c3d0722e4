/* Tests of proxies, WR_WITH and WR_PROXY_METHOD. */
#include <weakref/proxy.h>

#include <criterion/criterion.h>
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>

#include "deaths.h"
#include "fail_alloc.h"

TestSuite(proxy, .timeout = 30);

struct conn {
    int fd, sent;
    thing *next;
};

static int conn_fd(struct conn *c)
{
    return c->fd;
}

static int conn_send(struct conn *c, const char *text, size_t size)
{
    c->sent += (int)size;
    return text[0];
}

static int conn_many(struct conn *c, int a, int b, int d, int e, int f, long g, double h, int (*apply)(int))
{
    return apply(c->fd + a + b + d + e + f + (int)g + (int)h);
}

static int conn_get(const struct conn *c, int *fd)
{
    *fd = c->fd;
    return 0;
}

static int add(struct conn *c, int a, int b, int d)
{
    return c->fd + a * b * d;
}

WR_PROXY_METHOD(peer_fd, struct conn, conn_fd)
WR_PROXY_METHOD(peer_send, struct conn, conn_send, const char *, size_t)
WR_PROXY_METHOD(peer_many, struct conn, conn_many, int, int, int, int, int, long, double, int (*)(int))
WR_PROXY_METHOD(peer_get, const struct conn, conn_get, int *)
WR_PROXY_METHOD(peer_add, struct conn, add, int, int, int)

static const wr_type conn_type = {.name = "conn", .size = sizeof(struct conn), .destroy = thing_destroy};

static struct conn *conn_new(int fd)
{
    struct conn *c = wr_new(&conn_type);
    c->fd = fd;
    return c;
}

static int twice(int x)
{
    return 2 * x;
}

static int get_fd(void *obj, void *ctx)
{
    *(int *)ctx += 1;
    return ((struct conn *)obj)->fd;
}

/* ---- life ------------------------------------------------------------------------------------------ */

Test(proxy, calls_the_object_while_it_lives_and_says_stale_after)
{
    struct conn *c = conn_new(5);
    wr_proxy *p = wr_proxy_new(c);
    int calls = 0;
    cr_assert_eq(wr_proxy_call(p, get_fd, &calls), 5);
    cr_assert_not(wr_proxy_is_dead(p));
    wr_release(c);
    cr_assert_eq(things_destroyed, 1, "a proxy keeps nothing alive");
    cr_assert(wr_proxy_is_dead(p));
    cr_assert_eq(wr_proxy_call(p, get_fd, &calls), -ESTALE);
    cr_assert_eq(calls, 1);
    wr_proxy_release(p);
}

Test(proxy, of_one_object_are_equal_and_are_its_handles)
{
    struct conn *c = conn_new(5);
    wr_proxy *a = wr_proxy_new(c), *b = wr_proxy_new(c);
    wr_weak *weak = wr_downgrade(c);
    cr_assert_eq(a, b);
    cr_assert_eq(wr_proxy_weak(a), weak);
    cr_assert_eq(wr_weak_count(c), 3);
    wr_release(c);
    cr_assert_eq(wr_proxy_weak(b), weak);
    cr_assert_null(wr_proxy_weak(NULL));
    wr_proxy_release(a);
    wr_proxy_release(b);
    wr_weak_release(weak);
}

static int drop_owner(void *obj, void *ctx)
{
    struct conn *c = obj, **owner = ctx;
    wr_release(*owner);
    *owner = NULL;
    cr_assert_eq(things_destroyed, 0, "the call holds it");
    return c->fd;
}

Test(proxy, the_object_lives_to_the_end_of_the_call_that_drops_it)
{
    struct conn *c = conn_new(6);
    wr_proxy *p = wr_proxy_new(c);
    cr_assert_eq(wr_proxy_call(p, drop_owner, &c), 6);
    cr_assert_eq(things_destroyed, 1);
    cr_assert(wr_proxy_is_dead(p));
    wr_proxy_release(p);
}

static wr_proxy *made_in_destroy;

static void make_proxy(void *obj)
{
    made_in_destroy = wr_proxy_new(obj);
}

Test(proxy, made_inside_destroy_is_dead)
{
    static const wr_type type = {.name = "dying", .size = 8, .destroy = make_proxy};
    wr_release(wr_new(&type));
    cr_assert_not_null(made_in_destroy);
    cr_assert(wr_proxy_is_dead(made_in_destroy));
    wr_proxy_release(made_in_destroy);
}

Test(proxy, describes_what_it_stands_for)
{
    struct conn *c = conn_new(5);
    wr_proxy *p = wr_proxy_new(c);
    char text[100], expected[100];
    int n = wr_proxy_describe(p, text, sizeof text);
    snprintf(expected, sizeof expected, "<proxy at %p; to 'conn' at %p>", (void *)p, (void *)c);
    cr_assert_str_eq(text, expected);
    cr_assert_eq(n, (int)strlen(expected));
    cr_assert_eq(wr_proxy_describe(p, NULL, 0), n);
    cr_assert_eq(wr_proxy_describe(p, text, 5), n);
    cr_assert_str_eq(text, "<pro");
    wr_release(c);
    wr_proxy_describe(p, text, sizeof text);
    snprintf(expected, sizeof expected, "<proxy at %p; dead>", (void *)p);
    cr_assert_str_eq(text, expected);
    cr_assert_eq(wr_proxy_describe(NULL, text, sizeof text), -EINVAL);
    cr_assert_eq(wr_proxy_describe(p, NULL, 1), -EINVAL);
    wr_proxy_release(p);
}

Test(proxy, bad_arguments_are_refused)
{
    void *none = NULL;
    errno = 0;
    cr_assert_null(wr_proxy_new(none));
    cr_assert_eq(errno, EINVAL);
    wr_proxy_release(NULL);
    int calls = 0;
    cr_assert_eq(wr_proxy_call(NULL, get_fd, &calls), -EINVAL);
    struct conn *c = conn_new(5);
    wr_proxy *p = wr_proxy_new(c);
    cr_assert_eq(wr_proxy_call(p, NULL, NULL), -EINVAL);
    cr_assert(wr_proxy_is_dead(NULL));
    cr_assert_eq(peer_fd(NULL), -EINVAL);
    wr_proxy_release(p);
    wr_release(c);
}

Test(proxy, released_more_often_than_made_panics, .signal = SIGABRT)
{
    struct conn *c = conn_new(5);
    wr_proxy *p = wr_proxy_new(c), *keep = wr_proxy_new(c);
    (void)keep;
    wr_proxy_release(p);
    wr_proxy_release(p);
    wr_proxy_release(p); /* what is left belongs to the living object */
}

Test(proxy, allocates_nothing)
{
    fail_alloc_install();
    struct conn *c = conn_new(5);
    fail_alloc_all(true);
    wr_proxy *p = wr_proxy_new(c);
    cr_assert_eq(peer_fd(p), 5);
    WR_WITH (struct conn, self, p) {
        cr_assert_eq(self, c);
    }
    wr_release(c);
    wr_proxy_release(p);
    cr_assert_not(fail_alloc_hit());
    fail_alloc_all(false);
    cr_assert_eq(fail_alloc_live(), 0);
}

/* ---- WR_WITH --------------------------------------------------------------------------------------- */

Test(proxy, with_runs_the_block_with_a_strong_reference_or_not_at_all)
{
    struct conn *c = conn_new(5);
    wr_proxy *p = wr_proxy_new(c);
    wr_weak *w = wr_downgrade(c);
    int runs = 0;
    WR_WITH (struct conn, self, p) {
        cr_assert_eq(self, c);
        cr_assert_eq(wr_strong_count(c), 2);
        runs++;
    }
    WR_WITH (struct conn, self, w) {
        cr_assert_eq(self->fd, 5);
        runs++;
    }
    WR_WITH (struct conn, self, (const wr_weak *)w)
        runs += self->fd == 5;
    WR_WITH (const struct conn, self, (const wr_proxy *)p)
        runs += self->fd == 5;
    cr_assert_eq(runs, 4);
    cr_assert_eq(wr_strong_count(c), 1);
    wr_release(c);
    WR_WITH (struct conn, self, p)
        cr_assert_fail("dead: %p", (void *)self);
    WR_WITH (struct conn, self, w)
        cr_assert_fail("dead: %p", (void *)self);
    wr_proxy *none = NULL;
    WR_WITH (struct conn, self, none)
        cr_assert_fail("nothing: %p", (void *)self);
    wr_proxy_release(p);
    wr_weak_release(w);
}

static int leave_by_return(wr_proxy *p)
{
    WR_WITH (struct conn, self, p)
        return self->fd;
    return -1;
}

static int leave_by_goto(wr_proxy *p)
{
    int fd = -1;
    WR_WITH (struct conn, self, p) {
        fd = self->fd;
        goto out;
    }
    fd = -2;
out:
    return fd;
}

Test(proxy, with_gives_the_reference_back_however_the_block_is_left)
{
    struct conn *c = conn_new(5);
    wr_proxy *p = wr_proxy_new(c);
    int runs = 0;
    for (int i = 0; i < 3; i++) {
        WR_WITH (struct conn, self, p) {
            runs += self->fd == 5;
            if (i == 1)
                break;
            if (i == 2)
                continue;
            runs += 10;
        }
    }
    cr_assert_eq(runs, 13, "break and continue end the block, not the loop around it");
    cr_assert_eq(wr_strong_count(c), 1);
    cr_assert_eq(leave_by_return(p), 5);
    cr_assert_eq(leave_by_goto(p), 5);
    cr_assert_eq(wr_strong_count(c), 1);
    wr_proxy_release(p);
    wr_release(c);
}

Test(proxy, with_nests_and_evaluates_its_handle_once)
{
    struct conn *a = conn_new(1), *b = conn_new(2);
    wr_proxy *handles[] = {wr_proxy_new(a), wr_proxy_new(b)}, **next = handles;
    WR_WITH (struct conn, x, *next++)
        WR_WITH (struct conn, y, *next++)
            cr_assert_eq(x->fd + y->fd, 3);
    cr_assert_eq(next, handles + 2);
    WR_WITH (struct conn, self, handles[0]) {
        wr_release(a);
        cr_assert_eq(things_destroyed, 0);
        wr_proxy_release(handles[0]); /* the handle may go inside */
        self = NULL;                  /* the name is the block's own */
    }
    cr_assert_eq(things_destroyed, 1);
    wr_proxy_release(handles[1]);
    wr_release(b);
}

/* ---- WR_PROXY_METHOD ------------------------------------------------------------------------------- */

Test(proxy, every_declared_method_forwards_its_arguments)
{
    struct conn *c = conn_new(5);
    wr_proxy *p = wr_proxy_new(c);
    int fd = 0;
    cr_assert_eq(peer_fd(p), 5);
    cr_assert_eq(peer_send(p, "hello", 5), 'h');
    cr_assert_eq(c->sent, 5);
    cr_assert_eq(peer_many(p, 1, 2, 3, 4, 5, 6L, 7.0, twice), 2 * 33);
    cr_assert_eq(peer_get(p, &fd), 0);
    cr_assert_eq(fd, 5);
    cr_assert_eq(peer_add(p, 2, 3, 4), 29);
    wr_release(c);
    cr_assert_eq(peer_fd(p), -ESTALE);
    cr_assert_eq(peer_send(p, "x", 1), -ESTALE);
    cr_assert_eq(peer_many(p, 1, 2, 3, 4, 5, 6L, 7.0, twice), -ESTALE);
    cr_assert_eq(peer_get(p, &fd), -ESTALE);
    cr_assert_eq(peer_add(p, 2, 3, 4), -ESTALE);
    wr_proxy_release(p);
}

/* ---- CPython's test_weakref, by name ---------------------------------------------------------------- */

Test(proxy, cpython_proxy_ref)
{
    struct conn *c = conn_new(1);
    wr_proxy *a = wr_proxy_new(c), *b = wr_proxy_new(c);
    wr_release(c);
    cr_assert_eq(peer_fd(a), -ESTALE);
    cr_assert_eq(peer_fd(b), -ESTALE);
    wr_proxy_release(a);
    wr_proxy_release(b);
}

Test(proxy, cpython_proxy_reuse)
{
    struct conn *c = conn_new(1);
    wr_proxy *a = wr_proxy_new(c);
    wr_proxy_release(a);
    wr_proxy *b = wr_proxy_new(c);
    cr_assert_eq(a, b);
    cr_assert_eq(wr_weak_count(c), 1);
    wr_proxy_release(b);
    wr_release(c);
}

Test(proxy, cpython_basic_proxy)
{
    /* What is done through the proxy is done to the object, and seen there. */
    struct conn *c = conn_new(1);
    wr_proxy *p = wr_proxy_new(c);
    peer_send(p, "abc", 3);
    cr_assert_eq(c->sent, 3);
    c->fd = 9;
    cr_assert_eq(peer_fd(p), 9);
    wr_proxy_release(p);
    wr_release(c);
}

static int call_function(void *obj, void *ctx)
{
    return ((int (*const *)(int))obj)[0](*(int *)ctx);
}

Test(proxy, cpython_callable_proxy)
{
    /* An object that is a function is called through its proxy. */
    static const wr_type type = {.name = "callable", .size = sizeof(int (*)(int))};
    int (**f)(int) = wr_new(&type);
    f[0] = twice;
    wr_proxy *p = wr_proxy_new(f);
    int argument = 21;
    cr_assert_eq(wr_proxy_call(p, call_function, &argument), 42);
    wr_release(f);
    cr_assert_eq(wr_proxy_call(p, call_function, &argument), -ESTALE);
    wr_proxy_release(p);
}

Test(proxy, cpython_shared_proxy_without_callback)
{
    struct conn *c = conn_new(1);
    wr_proxy *a = wr_proxy_new(c), *b = wr_proxy_new(c);
    cr_assert_eq(a, b);
    cr_assert_eq(wr_weak_count(c), 2);
    wr_proxy_release(a);
    cr_assert_eq(peer_fd(b), 1, "one released proxy does not take the other along");
    wr_proxy_release(b);
    wr_release(c);
}

Test(proxy, cpython_proxy_deletion)
{
    /* There: deleting an item through the proxy. Here: a forwarded call that drops what the object holds. */
    struct conn *c = conn_new(1);
    c->next = thing_new(1);
    wr_proxy *p = wr_proxy_new(c);
    WR_WITH (struct conn, self, p) {
        wr_release(self->next);
        self->next = NULL;
    }
    cr_assert_eq(things_destroyed, 1);
    cr_assert_null(c->next);
    wr_proxy_release(p);
    wr_release(c);
}

Test(proxy, cpython_proxy_bool)
{
    /* The truth of a proxy is that its object lives. */
    struct conn *c = conn_new(0);
    wr_proxy *p = wr_proxy_new(c);
    cr_assert_not(wr_proxy_is_dead(p));
    wr_release(c);
    cr_assert(wr_proxy_is_dead(p));
    wr_proxy_release(p);
}

static struct conn *iterated;

static int iterate(struct conn *c)
{
    wr_release(iterated); /* the last reference but the call's own */
    iterated = NULL;
    return c->fd;
}

WR_PROXY_METHOD(peer_iterate, struct conn, iterate)

Test(proxy, cpython_proxy_iter)
{
    /* The object dies inside the forwarded call: the call ends well, the next is stale. */
    iterated = conn_new(7);
    wr_proxy *p = wr_proxy_new(iterated);
    cr_assert_eq(peer_iterate(p), 7);
    cr_assert_eq(things_destroyed, 1);
    cr_assert_eq(peer_iterate(p), -ESTALE);
    wr_proxy_release(p);
}

static int next_number(struct conn *c, int *out)
{
    if (c->sent == 3)
        return -ENOENT;
    *out = c->sent++;
    return 0;
}

WR_PROXY_METHOD(peer_next, struct conn, next_number, int *)

Test(proxy, cpython_proxy_next)
{
    struct conn *c = conn_new(1);
    wr_proxy *p = wr_proxy_new(c);
    int value = -1, n = 0;
    while (peer_next(p, &value) == 0)
        cr_assert_eq(value, n++);
    cr_assert_eq(n, 3);
    cr_assert_eq(peer_next(p, &value), -ENOENT, "the method's own end, not a stale one");
    wr_release(c);
    cr_assert_eq(peer_next(p, &value), -ESTALE);
    wr_proxy_release(p);
}

Test(proxy, cpython_proxy_bad_next)
{
    /* There: an object without the method. Here: a call without a function. */
    struct conn *c = conn_new(1);
    wr_proxy *p = wr_proxy_new(c);
    cr_assert_eq(wr_proxy_call(p, NULL, c), -EINVAL);
    cr_assert_eq(wr_strong_count(c), 1);
    wr_proxy_release(p);
    wr_release(c);
}

Test(proxy, cpython_proxy_repr)
{
    struct conn *c = conn_new(1);
    wr_proxy *p = wr_proxy_new(c);
    char text[100];
    cr_assert_gt(wr_proxy_describe(p, text, sizeof text), 0);
    cr_assert_not_null(strstr(text, "conn"));
    wr_release(c);
    wr_proxy_describe(p, text, sizeof text);
    cr_assert_not_null(strstr(text, "dead"));
    wr_proxy_release(p);
}
