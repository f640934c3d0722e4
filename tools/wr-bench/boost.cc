/* wr-bench: Boost's smart pointers and maps. */
#include "maps.h"

#ifdef WR_BENCH_NO_BOOST
#define CASE(...) nullptr, WR_BENCH_NO_BOOST
#define SIZER(run) nullptr, WR_BENCH_NO_BOOST
#else
#define CASE(...) make<__VA_ARGS__>, nullptr
#define SIZER(run) run

#include <boost/smart_ptr/atomic_shared_ptr.hpp>
#include <boost/smart_ptr/intrusive_ptr.hpp>
#include <boost/smart_ptr/intrusive_ref_counter.hpp>
#include <boost/smart_ptr/make_shared.hpp>
#include <boost/smart_ptr/shared_ptr.hpp>
#include <boost/smart_ptr/weak_ptr.hpp>
#include <boost/version.hpp>
#if BOOST_VERSION >= 108100
#include <boost/unordered/unordered_flat_map.hpp>
#endif
#if BOOST_VERSION >= 108300
#include <boost/unordered/concurrent_flat_map.hpp>
#endif
#endif

namespace bench
{

#ifndef WR_BENCH_NO_BOOST

namespace
{

boost::shared_ptr<Payload> make_boost()
{
    return boost::make_shared<Payload>();
}

struct Counted : boost::intrusive_ref_counter<Counted, boost::thread_safe_counter> {
    Payload payload = {};
};

template <class Pointer, Pointer make_object()> struct Copy : State {
    Pointer obj = make_object();
    explicit Copy(unsigned) {}
    Pointer local(unsigned)
    {
        return obj;
    }
    static void op(const Pointer &obj, uint64_t)
    {
        Pointer more = obj;
        keep(more.get());
    }
};

boost::intrusive_ptr<Counted> make_intrusive()
{
    return boost::intrusive_ptr<Counted>(new Counted);
}

template <bool alive> struct Weak : State {
    boost::shared_ptr<Payload> obj = make_boost();
    boost::weak_ptr<Payload> weak = obj;
    explicit Weak(unsigned)
    {
        if (!alive)
            obj.reset();
    }
    boost::weak_ptr<Payload> local(unsigned)
    {
        return weak;
    }
    static void op(const boost::weak_ptr<Payload> &weak, uint64_t)
    {
        boost::shared_ptr<Payload> obj = weak.lock();
        keep(obj.get());
    }
};

struct Slot : State {
    boost::atomic_shared_ptr<Payload> slot{make_boost()};
    explicit Slot(unsigned) {}
    boost::atomic_shared_ptr<Payload> *local(unsigned)
    {
        return &slot;
    }
    static void op(boost::atomic_shared_ptr<Payload> *slot, uint64_t)
    {
        boost::shared_ptr<Payload> obj = slot->load();
        keep(obj.get());
    }
};

struct Alone : State {
    explicit Alone(unsigned) {}
    int local(unsigned)
    {
        return 0;
    }
};

template <class Pointer, Pointer make_object()> struct Create : Alone {
    using Alone::Alone;
    static void op(int, uint64_t)
    {
        Pointer obj = make_object();
        keep(obj.get());
    }
};

struct CreateWeak : Alone {
    using Alone::Alone;
    static void op(int, uint64_t)
    {
        boost::shared_ptr<Payload> obj = make_boost();
        boost::weak_ptr<Payload> weak = obj;
        keep(&weak);
        obj.reset();
        weak.reset();
    }
};

using Shared = boost::shared_ptr<Payload>;
using Intrusive = boost::intrusive_ptr<Counted>;

void objects(size_t n, Meter &meter)
{
    std::vector<Shared> all(n);
    meter.begin();
    for (Shared &obj : all)
        obj = make_boost();
    meter.end();
}

void intrusive_objects(size_t n, Meter &meter)
{
    std::vector<Intrusive> all(n);
    meter.begin();
    for (Intrusive &obj : all)
        obj = make_intrusive();
    meter.end();
}

void handles(size_t n, Meter &meter)
{
    std::vector<Shared> all(n);
    for (Shared &obj : all)
        obj = make_boost();
    meter.begin();
    std::vector<boost::weak_ptr<Payload>> weak(all.begin(), all.end());
    meter.end();
}

#if BOOST_VERSION >= 108100
using FlatWeakMap = boost::unordered_flat_map<std::string, boost::weak_ptr<Payload>>;
using FlatMap = LockedWeakMap<FlatWeakMap, make_boost>;

void entries(size_t n, Meter &meter)
{
    Keys keys(n);
    std::vector<Shared> all(n);
    for (Shared &obj : all)
        obj = make_boost();
    FlatWeakMap map;
    meter.begin();
    for (size_t i = 0; i < n; i++)
        map[keys.keys[i]] = all[i];
    meter.end();
}

template <class K> using Flat = Locked<boost::unordered_flat_map<K, Payload *>>;
#endif

#if BOOST_VERSION >= 108300
class ConcurrentMap
{
  public:
    static Shared create()
    {
        return make_boost();
    }
    Shared get(const std::string &key)
    {
        Shared obj;
        map.cvisit(key, [&](const auto &entry) { obj = entry.second.lock(); });
        return obj;
    }
    void set(const std::string &key, const Shared &obj)
    {
        map.insert_or_assign(key, obj);
    }
    void purge(const std::string &key)
    {
        map.erase_if(key, [](const auto &entry) { return entry.second.expired(); });
    }

  private:
    boost::concurrent_flat_map<std::string, boost::weak_ptr<Payload>> map;
};

template <class K> struct Concurrent {
    using Reader = NoReader;
    boost::concurrent_flat_map<K, Payload *> map;
    explicit Concurrent(size_t) {}
    void set(const K &key, Payload *payload)
    {
        map.insert_or_assign(key, payload);
    }
    Payload *get(Reader &, const K &key)
    {
        Payload *payload = nullptr;
        map.cvisit(key, [&](const auto &entry) { payload = entry.second; });
        return payload;
    }
};
#endif

} /* namespace */

#endif

#if !defined(WR_BENCH_NO_BOOST) && BOOST_VERSION >= 108100
#define FLAT(...) CASE(__VA_ARGS__)
#define FLAT_SIZER(run) SIZER(run)
#define FLAT_LOOKS(subject) look_peers<Flat>(subject)
#else
#ifdef WR_BENCH_NO_BOOST
#define NO_FLAT WR_BENCH_NO_BOOST
#else
#define NO_FLAT "Boost is older than 1.81"
#endif
#define FLAT(...) nullptr, NO_FLAT
#define FLAT_SIZER(run) nullptr, NO_FLAT
#define FLAT_LOOKS(subject) absent_look_peers(subject, NO_FLAT)
#endif

#if !defined(WR_BENCH_NO_BOOST) && BOOST_VERSION >= 108300
#define CONCURRENT(...) CASE(__VA_ARGS__)
#define CONCURRENT_LOOKS(subject) look_peers<Concurrent>(subject)
#else
#ifdef WR_BENCH_NO_BOOST
#define NO_CONCURRENT WR_BENCH_NO_BOOST
#else
#define NO_CONCURRENT "Boost is older than 1.83"
#endif
#define CONCURRENT(...) nullptr, NO_CONCURRENT
#define CONCURRENT_LOOKS(subject) absent_look_peers(subject, NO_CONCURRENT)
#endif

Peers boost_peers()
{
    const Role peer = Role::peer;
    const char *flat = "mutex + boost::unordered_flat_map", *concurrent = "boost::concurrent_flat_map";
    Peers peers = {
        {
            {"counts", {contest::counts, "boost::shared_ptr copy", peer, CASE(Copy<Shared, make_boost>)}},
            {"counts", {contest::counts, "boost::intrusive_ptr copy", peer, CASE(Copy<Intrusive, make_intrusive>)}},
            {"weak", {contest::weak, "boost::weak_ptr::lock", peer, CASE(Weak<true>)}},
            {"weak", {contest::weak_dead, "boost::weak_ptr::lock", peer, CASE(Weak<false>)}},
            {"slot", {contest::slot, "boost::atomic_shared_ptr", peer, CASE(Slot)}},
            {"create", {contest::create, "boost::make_shared", peer, CASE(Create<Shared, make_boost>)}},
            {"create", {contest::create, "boost::intrusive_ptr(new)", peer, CASE(Create<Intrusive, make_intrusive>)}},
            {"create", {contest::create_weak, "boost::make_shared", peer, CASE(CreateWeak)}},
            {"cache", {contest::cache, flat, peer, FLAT(Cached<FlatMap>)}},
            {"cache", {contest::cache, concurrent, peer, CONCURRENT(Cached<ConcurrentMap>)}},
            {"churn", {contest::churn, flat, peer, FLAT(Lived<FlatMap>)}},
            {"churn", {contest::churn, concurrent, peer, CONCURRENT(Lived<ConcurrentMap>)}},
        },
        {
            {kind::object, "boost::make_shared", peer, SIZER(objects)},
            {kind::object, "boost::intrusive_ptr(new)", peer, SIZER(intrusive_objects)},
            {kind::handle, "boost::weak_ptr", peer, SIZER(handles)},
            {kind::entry, "boost::unordered_flat_map", peer, FLAT_SIZER(entries)},
        },
    };
    for (const PeerCase &look : FLAT_LOOKS(flat))
        peers.cases.push_back(look);
    for (const PeerCase &look : CONCURRENT_LOOKS(concurrent))
        peers.cases.push_back(look);
    return peers;
}

} /* namespace bench */
