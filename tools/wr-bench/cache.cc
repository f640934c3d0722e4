/* wr-bench, group cache: look-ups in a weak-value dictionary of 1,000 living objects. */
#include "maps.h"

#include <weakref/weakref.h>

namespace bench
{

static const wr_type type = WR_TYPE_INIT(.name = "cached", .size = sizeof(Payload));
static const wr_type deferred_type =
    WR_TYPE_INIT(.name = "cached, deferred", .size = sizeof(Payload), .flags = WR_TYPE_DEFERRED);

namespace
{

struct Ours : State {
    static constexpr unsigned batch = 1024;
    const Keys &keys = cache_keys();
    wr_value_dict *dict;
    std::vector<void *> objects;
    explicit Ours(const wr_type *of, const wr_value_dict_options *options = nullptr) : dict(wr_value_dict_new(options))
    {
        for (const std::string &key : keys.keys) {
            objects.push_back(wr_new(of));
            wr_value_dict_set(dict, key.data(), key.size(), objects.back());
        }
    }
    ~Ours()
    {
        for (void *obj : objects)
            wr_release(obj);
        wr_value_dict_free(dict);
    }
    struct Local {
        wr_value_dict *dict;
        const Keys &keys;
        uint64_t offset;
    };
    Local local(unsigned thread)
    {
        return {dict, keys, offset_of(thread)};
    }
};

struct OursGet : Ours {
    explicit OursGet(unsigned, const wr_value_dict_options *options = nullptr) : Ours(&type, options) {}
    static void op(const Local &local, uint64_t i)
    {
        const std::string &key = local.keys.at(local.offset + i);
        void *obj = wr_value_dict_get(local.dict, key.data(), key.size());
        keep(obj);
        wr_release(obj);
    }
};

/* The same in a dictionary that keeps all of them: each look-up is a hit of its cache. */
struct OursKept : OursGet {
    static const wr_value_dict_options *options()
    {
        static wr_value_dict_options keeping = {};
        keeping.struct_size = sizeof keeping;
        keeping.keep_objects = 1000;
        return &keeping;
    }
    explicit OursKept(unsigned n_threads) : OursGet(n_threads, options()) {}
};

struct OursPeek : Ours {
    explicit OursPeek(unsigned) : Ours(&deferred_type) {}
    static void op(const Local &local, uint64_t i)
    {
        const std::string &key = local.keys.at(local.offset + i);
        wr_guard_enter();
        keep(wr_value_dict_peek(local.dict, key.data(), key.size()));
        wr_guard_exit();
    }
};

} /* namespace */

Group cache_group()
{
    using contest::cache;
    return with_peers(
        {"cache",
         "look-ups of living objects by all threads in one map",
         {
             {cache, "weakref, owned", Role::ours, make<OursGet>, nullptr},
             {cache, "weakref, owned, kept", Role::ours, make<OursKept>, nullptr},
             {cache, "weakref, peek in a guard", Role::ours, make<OursPeek>, nullptr},
             {cache, "mutex + unordered_map<string, weak_ptr>", Role::peer, make<Cached<LockedMap>>, nullptr},
             {cache, "the same in 64 shards, shared_mutex", Role::peer, make<Cached<ShardedMap>>, nullptr},
         },
         {}});
}

} /* namespace bench */
