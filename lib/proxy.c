/* F7 proxy: the cold half of calling through a handle. */
#include <weakref/proxy.h>

#include "object.h"

#include <inttypes.h>
#include <stdio.h>

static wr_proxy *of_weak(wr_weak *weak)
{
    return (wr_proxy *)(uintptr_t)weak;
}

wr_proxy *(wr_proxy_new)(void *obj)
{
    return of_weak(wr_downgrade(obj));
}

void wr_proxy_release(wr_proxy *proxy)
{
    wr_weak_release(wr_proxy_weak(proxy));
}

int wr_proxy_call(wr_proxy *proxy, int (*fn)(void *obj, void *ctx), void *ctx)
{
    if (proxy == NULL || fn == NULL)
        return -EINVAL;
    void *obj = wr_upgrade(wr_proxy_weak(proxy));
    if (obj == NULL)
        return -ESTALE;
    int result = fn(obj, ctx);
    wr_release(obj);
    return result;
}

int wr_proxy_describe(const wr_proxy *proxy, char *buf, size_t size)
{
    if (proxy == NULL || (buf == NULL && size != 0))
        return -EINVAL;
    wr_weak *weak = (wr_weak *)(uintptr_t)wr_proxy_weak(proxy);
    void *obj = wr_upgrade(weak);
    if (obj == NULL)
        return snprintf(buf, size, "<proxy at 0x%" PRIxPTR "; dead>", (uintptr_t)weak);
    const char *name = wr_type_of(obj)->name;
    int length = snprintf(buf, size, "<proxy at 0x%" PRIxPTR "; to '%s' at 0x%" PRIxPTR ">", (uintptr_t)weak,
                          name != NULL ? name : "object", (uintptr_t)obj);
    wr_release(obj);
    return length;
}
