/* wr-bench: maps as subjects, for the groups map, cache, churn and memory, and what the C++ library has of them. */
#ifndef WR_BENCH_MAPS_H
#define WR_BENCH_MAPS_H

#include "peers.h"

#include <array>
#include <mutex>
#include <shared_mutex>
#include <type_traits>
#include <unordered_map>

namespace bench
{

/* ---- plain look-ups ------------------------------------------------------------------------------------ */

/* The same keys for each subject, in the same place. */
template <class K, size_t n> const Ring<K> &shared_ring()
{
    static const Ring<K> ring(n);
    return ring;
}

/* Where a thread begins to ask. */
inline uint64_t offset_of(unsigned thread)
{
    return thread * uint64_t(1371);
}

/* Look-ups in a Map, which has
 *     Map(size_t n): for so many keys
 *     set(key, payload); get(reader, key); class Reader: made from it on each thread that reads, and living as long */
template <class Map, class K, size_t n> struct Look : State {
    static constexpr unsigned batch = 1024;
    const Ring<K> &ring = shared_ring<K, n>();
    std::vector<Payload> payloads = std::vector<Payload>(n);
    Map map{n};
    explicit Look(unsigned)
    {
        for (size_t i = 0; i < n; i++)
            map.set(ring.keys[i], &payloads[i]);
    }
    struct Local {
        Look &self;
        uint64_t offset;
        typename Map::Reader reader;
    };
    Local local(unsigned thread)
    {
        return {*this, offset_of(thread), typename Map::Reader(map)};
    }
    static void op(Local &local, uint64_t i)
    {
        keep(local.self.map.get(local.reader, local.self.ring.at(local.offset + i)));
    }
};

struct NoReader {
    template <class Map> explicit NoReader(const Map &) {}
};

/* Any map of one thread's, under a mutex. */
template <class Plain> struct Locked {
    using Reader = NoReader;
    std::mutex lock;
    Plain map;
    explicit Locked(size_t) {}
    void set(const typename Plain::key_type &key, Payload *payload)
    {
        map[key] = payload;
    }
    Payload *get(Reader &, const typename Plain::key_type &key)
    {
        std::lock_guard<std::mutex> hold(lock);
        auto found = map.find(key);
        return found == map.end() ? nullptr : found->second;
    }
};

inline constexpr const char *looks[] = {"look-up, 1k strings of 23 bytes", "look-up, 100k strings of 23 bytes",
                                        "look-up, 1k integers", "look-up, 100k integers"};

/* A peer's cases of all four contests; without a way to make them where @absent says why. */
using Made = std::function<std::unique_ptr<Bench>(unsigned n_threads)>;
inline std::vector<PeerCase> look_peers(const char *subject, const std::array<Made, 4> &made,
                                        const char *absent = nullptr)
{
    std::vector<PeerCase> cases;
    for (size_t i = 0; i < made.size(); i++)
        cases.push_back({"map", {looks[i], subject, Role::peer, made[i], absent}});
    return cases;
}

template <template <class> class Map> std::vector<PeerCase> look_peers(const char *subject)
{
    return look_peers(
        subject, {make<Look<Map<std::string>, std::string, 1000>>, make<Look<Map<std::string>, std::string, 100000>>,
                  make<Look<Map<uint64_t>, uint64_t, 1000>>, make<Look<Map<uint64_t>, uint64_t, 100000>>});
}

inline std::vector<PeerCase> absent_look_peers(const char *subject, const char *why)
{
    return look_peers(subject, {}, why);
}

/* ---- weak caches --------------------------------------------------------------------------------------- */

/* Those of the group cache. */
inline const Keys &cache_keys()
{
    static const Keys keys(1000);
    return keys;
}

/* Look-ups of living objects in a Map, which has
 *     static create(): an owning pointer with get() and reset()
 *     set(key, object), get(key): an owning pointer; purge(key): out with it if its object is dead */
template <class Map> struct Cached : State {
    static constexpr unsigned batch = 1024;
    const Keys &keys = cache_keys();
    Map map;
    std::vector<decltype(Map::create())> objects;
    explicit Cached(unsigned)
    {
        for (const std::string &key : keys.keys) {
            objects.push_back(Map::create());
            map.set(key, objects.back());
        }
    }
    struct Local {
        Cached &self;
        uint64_t offset;
    };
    Local local(unsigned thread)
    {
        return {*this, offset_of(thread)};
    }
    static void op(const Local &local, uint64_t i)
    {
        auto obj = local.self.map.get(local.self.keys.at(local.offset + i));
        keep(obj.get());
    }
};

/* The keys of the group churn: those of 1,000 objects that live throughout, and those of each thread. */
struct Lives : State {
    static constexpr unsigned batch = batch_dear;
    static constexpr size_t n_living = 1000, n_keys = 1000;
    Keys living{n_living, "live"};
    std::vector<Keys> keys;
    explicit Lives(unsigned n_threads)
    {
        for (unsigned i = 0; i < n_threads; i++)
            keys.emplace_back(n_keys, ("t" + std::to_string(i) + "key").c_str());
    }
};

/* One life in such a Map. */
template <class Map> struct Lived : Lives {
    Map map;
    std::vector<decltype(Map::create())> objects;
    explicit Lived(unsigned n_threads) : Lives(n_threads)
    {
        for (const std::string &key : living.keys) {
            objects.push_back(Map::create());
            map.set(key, objects.back());
        }
    }
    struct Local {
        Map &map;
        const Keys &keys;
    };
    Local local(unsigned thread)
    {
        return {map, keys[thread]};
    }
    static void op(const Local &local, uint64_t i)
    {
        const std::string &key = local.keys.at(i);
        auto obj = Map::create();
        local.map.set(key, obj);
        for (int k = 0; k < 3; k++) {
            auto again = local.map.get(key);
            keep(again.get());
        }
        obj.reset();
        local.map.purge(key);
    }
};

/* One map of weak pointers under one lock; make_object() makes an owning pointer. */
template <class Map, auto make_object> class LockedWeakMap
{
  public:
    using Owner = decltype(make_object());
    static Owner create()
    {
        return make_object();
    }
    Owner get(const std::string &key)
    {
        std::lock_guard<std::mutex> hold(lock);
        auto found = map.find(key);
        return found == map.end() ? nullptr : found->second.lock();
    }
    void set(const std::string &key, const Owner &obj)
    {
        std::lock_guard<std::mutex> hold(lock);
        map[key] = obj;
    }
    void purge(const std::string &key)
    {
        std::lock_guard<std::mutex> hold(lock);
        auto found = map.find(key);
        if (found != map.end() && found->second.expired())
            map.erase(found);
    }

  private:
    std::mutex lock;
    Map map;
};

inline std::shared_ptr<Payload> make_std()
{
    return std::make_shared<Payload>();
}

using WeakMap = std::unordered_map<std::string, std::weak_ptr<Payload>>;
using LockedMap = LockedWeakMap<WeakMap, make_std>;

/* 64 maps, readers beside each other. */
class ShardedMap
{
  public:
    static std::shared_ptr<Payload> create()
    {
        return make_std();
    }
    std::shared_ptr<Payload> get(const std::string &key)
    {
        Shard &shard = of(key);
        std::shared_lock<std::shared_mutex> hold(shard.lock);
        auto found = shard.map.find(key);
        return found == shard.map.end() ? nullptr : found->second.lock();
    }
    void set(const std::string &key, const std::shared_ptr<Payload> &obj)
    {
        Shard &shard = of(key);
        std::lock_guard<std::shared_mutex> hold(shard.lock);
        shard.map[key] = obj;
    }
    void purge(const std::string &key)
    {
        Shard &shard = of(key);
        std::lock_guard<std::shared_mutex> hold(shard.lock);
        auto found = shard.map.find(key);
        if (found != shard.map.end() && found->second.expired())
            shard.map.erase(found);
    }

  private:
    struct alignas(64) Shard {
        std::shared_mutex lock;
        WeakMap map;
    };
    Shard &of(const std::string &key)
    {
        return shards[std::hash<std::string>()(key) >> 58];
    }
    Shard shards[64];
};

} /* namespace bench */

#endif
