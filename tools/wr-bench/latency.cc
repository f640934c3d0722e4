/* wr-bench, group latency: each operation's own time, since a median hides the one in a thousand that takes long.
 *
 * Callbacks: from right before the last release to the callback on its queue's thread; with nothing else to do, or with
 * others before it. Inserts: a map grows from nothing; a map that copies all of itself at once shows as few, very long inserts.
 * All times are by the clock on the wall, other programs' included: what the clock sees between two looks, when nothing
 * is done at all, stands beside them.
 */
#include "deque.h"
#include "maps.h"

#include <atomic>
#include <cstdlib>
#include <sched.h>
#include <thread>
#include <weakref/weakref.h>

namespace bench
{

static const wr_type type = WR_TYPE_INIT(.name = "timed", .size = sizeof(Payload));

namespace
{

enum : unsigned { N_TURNS = 4 }; /* of each subject, one after the other */

/* ---- callbacks -------------------------------------------------------------------------------------------- */

/* One death, and what becomes of it. */
struct Death {
    class Consumer *consumer;
    int64_t released_ns;
};

/* Whose callbacks are timed. The producer makes a burst of deaths, and waits until all have been heard of. */
class Consumer
{
  public:
    virtual ~Consumer() = default;
    /* Makes an object and lets it die; @death, whose time it sets, is what heard() gets on the consumer's thread. */
    virtual void kill(Death *death) = 0;

    void heard(const Death &death)
    {
        times->add(uint64_t(std::max<int64_t>(0, now_ns() - death.released_ns)));
        n_heard.store(n_heard.load(std::memory_order_relaxed) + 1, std::memory_order_release);
    }

    void measure(Histogram *into, size_t n, size_t burst)
    {
        std::vector<Death> deaths(burst, Death{this, 0});
        times = into;
        for (size_t done = 0; done < n; done += burst) {
            for (Death &death : deaths)
                kill(&death);
            n_killed += burst;
            while (n_heard.load(std::memory_order_acquire) != n_killed)
                sched_yield();
        }
    }

  private:
    Histogram *times = nullptr; /* the consumer's, while the producer waits in measure() */
    std::atomic<uint64_t> n_heard{0};
    uint64_t n_killed = 0;
};

class Ours final : public Consumer
{
  public:
    Ours()
    {
        if (queue == nullptr || wr_queue_start(queue, 1) != 0)
            abort();
        void *obj = wr_new(&type);
        if (wr_on_death(
                obj, queue, [](wr_weak *, void *) { pin(1); }, nullptr) != 0)
            abort();
        wr_release(obj);
        wr_queue_barrier(queue);
    }
    ~Ours() override
    {
        wr_queue_free(queue);
    }
    void kill(Death *death) override
    {
        void *obj = wr_new(&type);
        if (wr_on_death(obj, queue, on_death, death) != 0)
            abort();
        death->released_ns = now_ns();
        wr_release(obj);
    }

  private:
    static void on_death(wr_weak *, void *ctx)
    {
        const Death &death = *static_cast<Death *>(ctx);
        death.consumer->heard(death);
    }
    wr_queue *queue = wr_queue_new("bench");
};

class Deleters final : public Consumer
{
  public:
    void kill(Death *death) override
    {
        std::shared_ptr<Payload> obj(new Payload(), [this, death](Payload *dead) {
            delete dead;
            deque.push({[](void *ctx) {
                            const Death &heard = *static_cast<Death *>(ctx);
                            heard.consumer->heard(heard);
                        },
                        death});
        });
        death->released_ns = now_ns();
        obj.reset();
    }

  private:
    Deque deque{1};
};

/* ---- inserts ---------------------------------------------------------------------------------------------- */

/* insert(i) for i from 0 to n - 1, each timed. */
template <class Insert> void time_each(Histogram *times, size_t n, Insert insert)
{
    for (size_t i = 0; i < n; i++) {
        int64_t begin = now_ns();
        insert(i);
        times->add(uint64_t(now_ns() - begin));
    }
}

void insert_ours(Histogram *times, const Keys &keys)
{
    std::vector<void *> objects(keys.keys.size());
    for (void *&obj : objects)
        obj = wr_new(&type);
    wr_value_dict *dict = wr_value_dict_new(nullptr);
    time_each(times, objects.size(), [&](size_t i) {
        if (wr_value_dict_set(dict, keys.keys[i].data(), keys.keys[i].size(), objects[i]) != 0)
            abort();
    });
    for (void *obj : objects)
        wr_release(obj);
    wr_value_dict_free(dict);
    (void)wr_barrier();
}

template <class Map> void insert_std(Histogram *times, const Keys &keys)
{
    std::vector<std::shared_ptr<Payload>> objects(keys.keys.size());
    for (std::shared_ptr<Payload> &obj : objects)
        obj = std::make_shared<Payload>();
    auto map = std::make_unique<Map>();
    time_each(times, objects.size(), [&](size_t i) { map->set(keys.keys[i], objects[i]); });
}

void insert_nothing(Histogram *times, const Keys &keys)
{
    time_each(times, keys.keys.size(), [](size_t) { keep_memory(); });
}

} /* namespace */

/* A share of what is usual, which takes some ten seconds. */
static size_t share(double seconds, size_t usual, size_t least)
{
    return seconds <= 0 || seconds >= 10 ? usual : std::max(least, size_t(double(usual) * seconds / 10));
}

static std::vector<Spread> measure(double seconds)
{
    const char *alone = "release to callback, one at a time", *burst = "release to callback, bursts of 256";
    const char *insert = "insert while the map grows";
    const char *deleters = "shared_ptr deleter, mutex + condvar deque";
    std::vector<Spread> spreads = {
        {alone, "weakref", Role::ours, {}},
        {alone, deleters, Role::peer, {}},
        {burst, "weakref", Role::ours, {}},
        {burst, deleters, Role::peer, {}},
        {insert, "weakref", Role::ours, {}},
        {insert, "mutex + unordered_map<string, weak_ptr>", Role::peer, {}},
        {insert, "the same in 64 shards, shared_mutex", Role::peer, {}},
        {insert, "the clock alone", Role::limit, {}},
    };
    size_t n_alone = share(seconds, 20000, 100), n_burst = share(seconds, 200000, 1024);
    Keys keys(share(seconds, 1000000, 2000));

    /* On a thread of its own, which is pinned as the producers of other groups are. */
    std::thread([&] {
        pin(0);
        Ours ours;
        Deleters theirs;
        for (unsigned turn = 0; turn < N_TURNS; turn++) {
            ours.measure(&spreads[0].times, n_alone, 1);
            theirs.measure(&spreads[1].times, n_alone, 1);
            ours.measure(&spreads[2].times, n_burst, 256);
            theirs.measure(&spreads[3].times, n_burst, 256);
        }
        for (unsigned turn = 0; turn < N_TURNS / 2; turn++) {
            insert_ours(&spreads[4].times, keys);
            insert_std<LockedMap>(&spreads[5].times, keys);
            insert_std<ShardedMap>(&spreads[6].times, keys);
            insert_nothing(&spreads[7].times, keys);
        }
    }).join();
    return spreads;
}

Group latency_group()
{
    return {"latency",
            "single operations, in nanoseconds: callbacks after a release, inserts into a map that grows",
            {},
            {},
            measure};
}

} /* namespace bench */
