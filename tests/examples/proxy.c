/* proxy.h: calling an object that may be gone. */
#include "check.h"

#include <weakref/object.h>
#include <weakref/proxy.h>

#include <errno.h>
#include <string.h>

struct counter {
    int value;
};

static const wr_type counter_type = {.name = "counter", .size = sizeof(struct counter)};

static int counter_add(struct counter *counter, int amount)
{
    counter->value += amount;
    return counter->value;
}

/* int remote_add(wr_proxy *, int): forwards to counter_add(), or returns -ESTALE. */
WR_PROXY_METHOD(remote_add, struct counter, counter_add, int)

static int double_it(void *obj, void *ctx)
{
    (void)ctx;
    struct counter *counter = obj;
    counter->value *= 2;
    return counter->value;
}

int main(void)
{
    struct counter *counter = wr_new(&counter_type);
    CHECK(counter != NULL);
    wr_proxy *proxy = wr_proxy_new(counter);
    CHECK(proxy != NULL && !wr_proxy_is_dead(proxy));

    CHECK(remote_add(proxy, 20) == 20);
    CHECK(wr_proxy_call(proxy, double_it, NULL) == 40);

    int seen = 0;
    WR_WITH (struct counter, c, proxy) {
        CHECK(wr_strong_count(c) == 2); /* strong until the block is left, in whatever way */
        seen = c->value;
    }
    CHECK(seen == 40 && wr_strong_count(counter) == 1);

    wr_release(counter);
    CHECK(remote_add(proxy, 1) == -ESTALE);
    CHECK(wr_proxy_call(proxy, double_it, NULL) == -ESTALE);
    WR_WITH (struct counter, c, proxy)
        seen = c->value + 1; /* does not run */
    CHECK(seen == 40);

    char text[80];
    wr_proxy_describe(proxy, text, sizeof text);
    CHECK(strstr(text, "; dead>") != NULL);
    wr_proxy_release(proxy);
    return 0;
}
