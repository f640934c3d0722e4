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

namespace
{

struct Ours : Lives {
    wr_value_dict *dict = wr_value_dict_new(nullptr);
    std::vector<void *> objects;
    explicit Ours(unsigned n_threads) : Lives(n_threads)
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
    struct Local {
        wr_value_dict *dict;
        const Keys &keys;
    };
    Local local(unsigned thread)
    {
        return {dict, keys[thread]};
    }
    static void op(const Local &local, uint64_t i)
    {
        const std::string &key = local.keys.at(i);
        void *obj = wr_new(&type);
        if (wr_value_dict_set(local.dict, key.data(), key.size(), obj) != 0)
            abort();
        for (int k = 0; k < 3; k++) {
            void *again = wr_value_dict_get(local.dict, key.data(), key.size());
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

} /* namespace */

Group churn_group()
{
    using contest::churn;
    return with_peers(
        {"churn",
         "one life in a weak cache that all threads share, beside 1,000 living objects",
         {
             {churn, "weakref", Role::ours, make<Ours>, nullptr},
             {churn, "mutex + unordered_map<string, weak_ptr>", Role::peer, make<Lived<LockedMap>>, nullptr},
             {churn, "the same in 64 shards, shared_mutex", Role::peer, make<Lived<ShardedMap>>, nullptr},
         },
         {}});
}

} /* namespace bench */
