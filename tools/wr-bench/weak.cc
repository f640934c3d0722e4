/* wr-bench, group weak: a weak handle made strong and let go; a dead one. */
#include "peers.h"

#include <atomic>
#include <weakref/weakref.h>

namespace bench
{

static const wr_type type = WR_TYPE_INIT(.name = "watched", .size = sizeof(Payload));

namespace
{

struct Bare : State {
    alignas(64) std::atomic<uint64_t> word{uint64_t(1) << 35};
    explicit Bare(unsigned) {}
    std::atomic<uint64_t> *local(unsigned)
    {
        return &word;
    }
    static void op(std::atomic<uint64_t> *word, uint64_t)
    {
        keep(word->fetch_add(uint64_t(1) << 35, std::memory_order_acquire));
        word->fetch_sub(uint64_t(1) << 35, std::memory_order_release);
    }
};

template <bool alive> struct Ours : State {
    void *obj = wr_new(&type);
    wr_weak *weak = wr_downgrade(obj);
    explicit Ours(unsigned)
    {
        if (!alive)
            wr_release(obj);
    }
    ~Ours()
    {
        wr_weak_release(weak);
        if (alive)
            wr_release(obj);
    }
    wr_weak *local(unsigned)
    {
        return weak;
    }
    static void op(wr_weak *weak, uint64_t)
    {
        void *obj = wr_upgrade(weak);
        keep(obj);
        wr_release(obj);
    }
};

template <bool alive> struct Std : State {
    std::shared_ptr<Payload> obj = std::make_shared<Payload>();
    std::weak_ptr<Payload> weak = obj;
    explicit Std(unsigned)
    {
        if (!alive)
            obj.reset();
    }
    std::weak_ptr<Payload> local(unsigned)
    {
        return weak;
    }
    static void op(const std::weak_ptr<Payload> &weak, uint64_t)
    {
        std::shared_ptr<Payload> obj = weak.lock();
        keep(obj.get());
    }
};

} /* namespace */

Group weak_group()
{
    const char *living = contest::weak, *dead = contest::weak_dead;
    return with_peers({"weak",
                       "a weak handle made strong and let go; threads share the object",
                       {
                           {living, "weakref", Role::ours, make<Ours<true>>, nullptr},
                           {living, "bare fetch_add + fetch_sub", Role::limit, make<Bare>, nullptr},
                           {living, "std::weak_ptr::lock", Role::peer, make<Std<true>>, nullptr},
                           {dead, "weakref", Role::ours, make<Ours<false>>, nullptr},
                           {dead, "std::weak_ptr::lock", Role::peer, make<Std<false>>, nullptr},
                       },
                       {}});
}

} /* namespace bench */
