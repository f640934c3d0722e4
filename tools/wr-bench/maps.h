/* wr-bench: weak caches as one writes them by hand in C++, for the groups cache, churn and memory. */
#ifndef WR_BENCH_MAPS_H
#define WR_BENCH_MAPS_H

#include "bench.h"

#include <mutex>
#include <shared_mutex>
#include <unordered_map>

namespace bench
{

using WeakMap = std::unordered_map<std::string, std::weak_ptr<Payload>>;

/* One map under one lock. */
class LockedMap
{
  public:
    std::shared_ptr<Payload> get(const std::string &key)
    {
        std::lock_guard<std::mutex> hold(lock);
        auto found = map.find(key);
        return found == map.end() ? nullptr : found->second.lock();
    }
    void set(const std::string &key, const std::shared_ptr<Payload> &obj)
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
    WeakMap map;
};

/* 64 maps, readers beside each other. */
class ShardedMap
{
  public:
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
