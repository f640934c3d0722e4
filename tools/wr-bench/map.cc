/* wr-bench, group map: look-ups in maps that threads share, which hold pointers and know nothing of lives.
 *
 * Nobody writes meanwhile. Ours are the weak dictionaries, whose entries leave with their objects all the same.
 */
#include "maps.h"

#include <cstdlib>
#include <weakref/weakref.h>

namespace bench
{

static const wr_type type = WR_TYPE_INIT(.name = "mapped", .size = sizeof(Payload), .flags = WR_TYPE_DEFERRED);

namespace
{

const void *key_data(const std::string &key)
{
    return key.data();
}

size_t key_size(const std::string &key)
{
    return key.size();
}

const void *key_data(const uint64_t &key)
{
    return &key;
}

size_t key_size(const uint64_t &)
{
    return sizeof(uint64_t);
}

/* By peek in a guard. */
template <class K> struct OursPeek {
    using Reader = NoReader;
    wr_value_dict *dict = wr_value_dict_new(nullptr);
    std::vector<void *> objects;
    explicit OursPeek(size_t) {}
    ~OursPeek()
    {
        for (void *obj : objects)
            wr_release(obj);
        wr_value_dict_free(dict);
    }
    void set(const K &key, Payload *)
    {
        objects.push_back(wr_new(&type));
        if (wr_value_dict_set(dict, key_data(key), key_size(key), objects.back()) != 0)
            abort();
    }
    void *get(Reader &, const K &key)
    {
        wr_guard_enter();
        void *obj = wr_value_dict_peek(dict, key_data(key), key_size(key));
        wr_guard_exit();
        return obj;
    }
};

/* Objects as keys: their addresses are the integers. */
template <size_t n> struct OursByKey : State {
    static constexpr unsigned batch = 1024;
    wr_key_dict *dict;
    std::vector<void *> objects, order;
    explicit OursByKey(unsigned)
    {
        const Ring<uint64_t> &ring = shared_ring<uint64_t, n>();
        wr_key_dict_options options = {};
        options.struct_size = sizeof options;
        options.flags = WR_VALUES_RAW;
        dict = wr_key_dict_new(&options);
        std::unordered_map<uint64_t, void *> objects_of;
        for (uint64_t key : ring.keys) {
            objects.push_back(wr_new(&type));
            objects_of[key] = objects.back();
            if (wr_key_dict_set(dict, objects.back(), objects.back()) != 0)
                abort();
        }
        for (uint64_t key : ring.order)
            order.push_back(objects_of[key]);
    }
    ~OursByKey()
    {
        for (void *obj : objects)
            wr_release(obj);
        wr_key_dict_free(dict);
    }
    struct Local {
        OursByKey &self;
        uint64_t offset;
    };
    Local local(unsigned thread)
    {
        return {*this, offset_of(thread)};
    }
    static void op(const Local &local, uint64_t i)
    {
        const std::vector<void *> &order = local.self.order;
        wr_guard_enter();
        keep(wr_key_dict_peek(local.self.dict, order[(local.offset + i) & (order.size() - 1)]));
        wr_guard_exit();
    }
};

template <class K> using LockedHash = Locked<std::unordered_map<K, Payload *>>;

template <class K, size_t n> Case ours(const char *contest)
{
    return {contest, "weakref, peek in a guard", Role::ours, make<Look<OursPeek<K>, K, n>>, nullptr};
}

template <size_t n> Case ours_by_key(const char *contest)
{
    return {contest, "weakref, key dictionary, peek", Role::ours, make<OursByKey<n>>, nullptr};
}

template <class K, size_t n> Case locked(const char *contest)
{
    return {contest, "mutex + unordered_map", Role::peer, make<Look<LockedHash<K>, K, n>>, nullptr};
}

} /* namespace */

Group map_group()
{
    return with_peers({"map",
                       "plain look-ups by all threads in one map of pointers",
                       {
                           ours<std::string, 1000>(looks[0]),
                           locked<std::string, 1000>(looks[0]),
                           ours<std::string, 100000>(looks[1]),
                           locked<std::string, 100000>(looks[1]),
                           ours<uint64_t, 1000>(looks[2]),
                           ours_by_key<1000>(looks[2]),
                           locked<uint64_t, 1000>(looks[2]),
                           ours<uint64_t, 100000>(looks[3]),
                           ours_by_key<100000>(looks[3]),
                           locked<uint64_t, 100000>(looks[3]),
                       },
                       {}});
}

} /* namespace bench */
