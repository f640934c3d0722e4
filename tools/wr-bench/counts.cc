/* wr-bench, group counts: a reference more and a reference less. */
#include "peers.h"

#include <atomic>
#include <weakref/weakref.h>

namespace bench
{

static const wr_type type = WR_TYPE_INIT(.name = "counted", .size = sizeof(Payload));

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
        word->fetch_add(uint64_t(1) << 35, std::memory_order_relaxed);
        word->fetch_sub(uint64_t(1) << 35, std::memory_order_release);
    }
};

struct Ours : State {
    void *obj = wr_new(&type);
    explicit Ours(unsigned) {}
    ~Ours()
    {
        wr_release(obj);
    }
    void *local(unsigned)
    {
        return obj;
    }
    static void op(void *obj, uint64_t)
    {
        void *more = wr_retain(obj);
        keep(more);
        wr_release(more);
    }
};

struct Shared : State {
    std::shared_ptr<Payload> obj = std::make_shared<Payload>();
    explicit Shared(unsigned) {}
    std::shared_ptr<Payload> local(unsigned)
    {
        return obj;
    }
    static void op(const std::shared_ptr<Payload> &obj, uint64_t)
    {
        std::shared_ptr<Payload> more = obj;
        keep(more.get());
    }
};

} /* namespace */

Group counts_group()
{
    using contest::counts;
    return with_peers({"counts",
                       "one more strong reference and one less; threads share the object",
                       {
                           {counts, "weakref", Role::ours, make<Ours>, nullptr},
                           {counts, "bare fetch_add + fetch_sub", Role::limit, make<Bare>, nullptr},
                           {counts, "std::shared_ptr copy", Role::peer, make<Shared>, nullptr},
                       },
                       {}});
}

} /* namespace bench */
