/* wr-bench, group memory: bytes that the allocator says are in use, by 10,000 of a kind. */
#include "maps.h"

#include <malloc.h>
#include <weakref/weakref.h>

namespace bench
{

static const wr_type type = WR_TYPE_INIT(.name = "kept", .size = sizeof(Payload));

static constexpr size_t N = 10000;

static double in_use()
{
    struct mallinfo2 info = mallinfo2();
    return double(info.uordblks) + double(info.hblkhd);
}

static double each(double bytes)
{
    return bytes > 0 ? bytes / double(N) : -1; /* another allocator than the C library's */
}

static std::vector<Figure> measure()
{
    const char *object = "object, beside its 64 bytes", *entry = "entry with a key of 23 bytes";
    std::vector<Figure> figures;
    Keys keys(N);
    {
        std::vector<void *> objects(N);
        wr_value_dict *dict = wr_value_dict_new(nullptr);
        double before = in_use();
        for (void *&obj : objects)
            obj = wr_new(&type);
        double made = in_use();
        for (size_t i = 0; i < N; i++)
            (void)wr_value_dict_set(dict, keys.keys[i].data(), keys.keys[i].size(), objects[i]);
        (void)wr_barrier(); /* arrays that were outgrown */
        double mapped = in_use();
        for (void *obj : objects)
            wr_release(obj);
        wr_value_dict_free(dict);
        (void)wr_barrier();
        double bytes = each(made - before);
        figures.push_back({object, "weakref", Role::ours, bytes < 0 ? -1 : bytes - sizeof(Payload)});
        figures.push_back({entry, "weakref", Role::ours, each(mapped - made)});
    }
    {
        std::vector<std::shared_ptr<Payload>> objects(N);
        WeakMap map;
        double before = in_use();
        for (std::shared_ptr<Payload> &obj : objects)
            obj = std::make_shared<Payload>();
        double made = in_use();
        for (size_t i = 0; i < N; i++)
            map[keys.keys[i]] = objects[i];
        double mapped = in_use();
        double bytes = each(made - before);
        figures.push_back({object, "std::make_shared", Role::peer, bytes < 0 ? -1 : bytes - sizeof(Payload)});
        figures.push_back({entry, "unordered_map<string, weak_ptr>", Role::peer, each(mapped - made)});
    }
    return figures;
}

Group memory_group()
{
    return {"memory", "bytes in use for each of 10,000", {}, measure};
}

} /* namespace bench */
