/* wr-bench, group churn: one life in a weak cache: insert, 3 gets, the last reference dropped, the entry gone.
 *
 * 1,000 other objects live in the cache throughout. Each thread has keys of its own. Our entries go with their object; the
 * peers' must be taken out by hand.
 */
#include "maps.h"

#include <cstdlib>
#include <weakref/weakref.h>

namespace bench
{

static const wr_type type = WR_TYPE_INIT(.name = "cached", .size = sizeof(Payload));

enum : size_t { n_living = 1000, n_keys = 1000 };

namespace
{

struct Common : State {
    static constexpr unsigned batch = batch_dear;
    Keys living{n_living, "live"};
    std::vector<Keys> keys;
    explicit Common(unsigned n_threads)
    {
        for (unsigned i = 0; i < n_threads; i++)
            keys.emplace_back(n_keys, ("t" + std::to_string(i) + "key").c_str());
    }
};

template <class Self> struct Liver {
    Self *self;
    const Keys *keys;
};

struct Ours : Common {
    wr_value_dict *dict = wr_value_dict_new(nullptr);
    std::vector<void *> objects;
    explicit Ours(unsigned n_threads) : Common(n_threads)
    {
        for (const std::string &key : living.keys) {
            objects.push_back(wr_new(&type));
            wr_value_dict_set(dict, key.data(), key.size(), objects.back());
        }
    }
    ~Ours()
    {
        for (void *obj : objects)
            wr_release(obj);
        wr_value_dict_free(dict);
    }
    Liver<Ours> local(unsigned thread)
    {
        return {this, &keys[thread]};
    }
    static void op(const Liver<Ours> &my, uint64_t i)
    {
        const std::string &key = my.keys->at(i);
        wr_value_dict *dict = my.self->dict;
        void *obj = wr_new(&type);
        if (wr_value_dict_set(dict, key.data(), key.size(), obj) != 0)
            abort();
        for (int k = 0; k < 3; k++) {
            void *again = wr_value_dict_get(dict, key.data(), key.size());
            keep(again);
            wr_release(again);
        }
        wr_release(obj);
    }
    void settle()
    {
        (void)wr_barrier();
    }
};

template <class Map> struct Std : Common {
    Map map;
    std::vector<std::shared_ptr<Payload>> objects;
    explicit Std(unsigned n_threads) : Common(n_threads)
    {
        for (const std::string &key : living.keys) {
            objects.push_back(std::make_shared<Payload>());
            map.set(key, objects.back());
        }
    }
    Liver<Std> local(unsigned thread)
    {
        return {this, &keys[thread]};
    }
    static void op(const Liver<Std> &my, uint64_t i)
    {
        const std::string &key = my.keys->at(i);
        Map &map = my.self->map;
        std::shared_ptr<Payload> obj = std::make_shared<Payload>();
        map.set(key, obj);
        for (int k = 0; k < 3; k++) {
            std::shared_ptr<Payload> again = map.get(key);
            keep(again.get());
        }
        obj.reset();
        map.purge(key);
    }
};

} /* namespace */

Group churn_group()
{
    const char *contest = "insert, 3 gets, drop, purge";
    return {"churn",
            "one life in a weak cache that all threads share, beside 1,000 living objects",
            {
                {contest, "weakref", Role::ours, make<Ours>, nullptr},
                {contest, "mutex + unordered_map<string, weak_ptr>", Role::peer, make<Std<LockedMap>>, nullptr},
                {contest, "the same in 64 shards, shared_mutex", Role::peer, make<Std<ShardedMap>>, nullptr},
                {contest, "boost::concurrent_flat_map", Role::peer, nullptr, "not built in yet"},
                {contest, "oneTBB", Role::peer, nullptr, "not built in yet"},
            },
            {}};
}

} /* namespace bench */
