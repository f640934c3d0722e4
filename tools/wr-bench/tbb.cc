/* wr-bench: oneTBB's concurrent_hash_map. */
#include "maps.h"

#ifdef WR_BENCH_NO_TBB
#define CASE(...) nullptr, WR_BENCH_NO_TBB
#define SIZER(run) nullptr, WR_BENCH_NO_TBB, true
#define LOOKS(subject) absent_look_peers(subject, WR_BENCH_NO_TBB)
#else
#define CASE(...) make<__VA_ARGS__>, nullptr
#define SIZER(run) run, nullptr, true
#define LOOKS(subject) look_peers<Plain>(subject)
#include <tbb/concurrent_hash_map.h>
#endif

namespace bench
{

#ifndef WR_BENCH_NO_TBB

namespace
{

using Map = tbb::concurrent_hash_map<std::string, std::weak_ptr<Payload>>;

class Weak
{
  public:
    static std::shared_ptr<Payload> create()
    {
        return make_std();
    }
    std::shared_ptr<Payload> get(const std::string &key)
    {
        Map::const_accessor found;
        return map.find(found, key) ? found->second.lock() : nullptr;
    }
    void set(const std::string &key, const std::shared_ptr<Payload> &obj)
    {
        Map::accessor at;
        map.insert(at, key);
        at->second = obj;
    }
    void purge(const std::string &key)
    {
        Map::accessor found;
        if (map.find(found, key) && found->second.expired())
            map.erase(found);
    }

  private:
    Map map;
};

template <class K> struct Plain {
    using Reader = NoReader;
    using Of = tbb::concurrent_hash_map<K, Payload *>;
    Of map;
    explicit Plain(size_t) {}
    void set(const K &key, Payload *payload)
    {
        map.insert({key, payload});
    }
    Payload *get(Reader &, const K &key)
    {
        typename Of::const_accessor found;
        return map.find(found, key) ? found->second : nullptr;
    }
};

/* With an allocator of its own for the nodes. */
void entries(size_t n, Meter &meter)
{
    Keys keys(n);
    std::vector<std::shared_ptr<Payload>> objects(n);
    for (std::shared_ptr<Payload> &obj : objects)
        obj = make_std();
    Weak map;
    meter.begin();
    for (size_t i = 0; i < n; i++)
        map.set(keys.keys[i], objects[i]);
    meter.end();
}

} /* namespace */

#endif

Peers tbb_peers()
{
    Peers peers = {
        {
            {"cache", {contest::cache, "TBB concurrent_hash_map", Role::peer, CASE(Cached<Weak>)}},
            {"churn", {contest::churn, "TBB concurrent_hash_map", Role::peer, CASE(Lived<Weak>)}},
        },
        {{kind::entry, "TBB concurrent_hash_map", Role::peer, SIZER(entries)}},
    };
    for (const PeerCase &look : LOOKS("TBB concurrent_hash_map"))
        peers.cases.push_back(look);
    return peers;
}

} /* namespace bench */
