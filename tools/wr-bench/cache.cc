/* wr-bench, group cache: look-ups in a weak-value dictionary of 1,000 living objects. */
#include "maps.h"

#include <weakref/weakref.h>

namespace bench
{

static const wr_type type = WR_TYPE_INIT(.name = "cached", .size = sizeof(Payload));
static const wr_type deferred_type =
    WR_TYPE_INIT(.name = "cached, deferred", .size = sizeof(Payload), .flags = WR_TYPE_DEFERRED);

static constexpr size_t n_keys = 1000;

namespace
{

struct Common : State {
    static constexpr unsigned batch = 1024;
    Keys keys{n_keys};
};

template <class Self> struct Asker { /* what a thread asks, and where it begins */
    Self *self;
    uint64_t offset;
    const std::string &key(uint64_t i) const
    {
        return self->keys.at(offset + i);
    }
};

struct OursBase : Common {
    wr_value_dict *dict;
    std::vector<void *> objects;
    explicit OursBase(const wr_type *of, const wr_value_dict_options *options = nullptr)
        : dict(wr_value_dict_new(options))
    {
        for (const std::string &key : keys.keys) {
            objects.push_back(wr_new(of));
            wr_value_dict_set(dict, key.data(), key.size(), objects.back());
        }
    }
    ~OursBase()
    {
        for (void *obj : objects)
            wr_release(obj);
        wr_value_dict_free(dict);
    }
    Asker<OursBase> local(unsigned thread)
    {
        return {this, thread * uint64_t(1371)};
    }
};

struct OursGet : OursBase {
    explicit OursGet(unsigned, const wr_value_dict_options *options = nullptr) : OursBase(&type, options) {}
    static void op(const Asker<OursBase> &ask, uint64_t i)
    {
        const std::string &key = ask.key(i);
        void *obj = wr_value_dict_get(ask.self->dict, key.data(), key.size());
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
        keeping.keep_objects = n_keys;
        return &keeping;
    }
    explicit OursKept(unsigned n_threads) : OursGet(n_threads, options()) {}
};

struct OursPeek : OursBase {
    explicit OursPeek(unsigned) : OursBase(&deferred_type) {}
    static void op(const Asker<OursBase> &ask, uint64_t i)
    {
        const std::string &key = ask.key(i);
        wr_guard_enter();
        keep(wr_value_dict_peek(ask.self->dict, key.data(), key.size()));
        wr_guard_exit();
    }
};

template <class Map> struct Std : Common {
    Map map;
    std::vector<std::shared_ptr<Payload>> objects;
    explicit Std(unsigned)
    {
        for (const std::string &key : keys.keys) {
            objects.push_back(std::make_shared<Payload>());
            map.set(key, objects.back());
        }
    }
    Asker<Std> local(unsigned thread)
    {
        return {this, thread * uint64_t(1371)};
    }
    static void op(const Asker<Std> &ask, uint64_t i)
    {
        std::shared_ptr<Payload> obj = ask.self->map.get(ask.key(i));
        keep(obj.get());
    }
};

} /* namespace */

Group cache_group()
{
    const char *contest = "get, 1k strings of 23 bytes";
    return {"cache",
            "look-ups of living objects by all threads in one map",
            {
                {contest, "weakref, owned", Role::ours, make<OursGet>, nullptr},
                {contest, "weakref, owned, kept", Role::ours, make<OursKept>, nullptr},
                {contest, "weakref, peek in a guard", Role::ours, make<OursPeek>, nullptr},
                {contest, "mutex + unordered_map<string, weak_ptr>", Role::peer, make<Std<LockedMap>>, nullptr},
                {contest, "the same in 64 shards, shared_mutex", Role::peer, make<Std<ShardedMap>>, nullptr},
                {contest, "boost::concurrent_flat_map", Role::peer, nullptr, "not built in yet"},
                {contest, "oneTBB", Role::peer, nullptr, "not built in yet"},
            },
            {}};
}

} /* namespace bench */
