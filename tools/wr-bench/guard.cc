/* wr-bench, group guard: a look without counting. */
#include "peers.h"

#include <atomic>
#include <weakref/weakref.h>

namespace bench
{

static const wr_type type = WR_TYPE_INIT(.name = "peeked", .size = sizeof(Payload), .flags = WR_TYPE_DEFERRED);

namespace
{

struct Load : State {
    Payload payload = {};
    std::atomic<Payload *> word{&payload};
    explicit Load(unsigned) {}
    std::atomic<Payload *> *local(unsigned)
    {
        return &word;
    }
    static void op(std::atomic<Payload *> *word, uint64_t)
    {
        keep(word->load(std::memory_order_acquire));
    }
};

struct Guard : State {
    explicit Guard(unsigned) {}
    int local(unsigned)
    {
        return 0;
    }
    static void op(int, uint64_t)
    {
        wr_guard_enter();
        keep_memory();
        wr_guard_exit();
    }
};

struct Peek : State {
    void *obj = wr_new(&type);
    wr_weak *weak = wr_downgrade(obj);
    explicit Peek(unsigned) {}
    ~Peek()
    {
        wr_weak_release(weak);
        wr_release(obj);
    }
    wr_weak *local(unsigned)
    {
        return weak;
    }
    static void op(wr_weak *weak, uint64_t)
    {
        wr_guard_enter();
        keep(wr_peek(weak));
        wr_guard_exit();
    }
};

struct SlotPeek : State {
    void *obj = wr_new(&type);
    wr_slot slot;
    explicit SlotPeek(unsigned)
    {
        wr_slot_init(&slot, obj);
    }
    ~SlotPeek()
    {
        wr_slot_fini(&slot);
        wr_release(obj);
    }
    wr_slot *local(unsigned)
    {
        return &slot;
    }
    static void op(wr_slot *slot, uint64_t)
    {
        wr_guard_enter();
        keep(wr_slot_peek(slot));
        wr_guard_exit();
    }
};

} /* namespace */

Group guard_group()
{
    const char *contest = contest::guard;
    return with_peers({"guard",
                       "borrowing instead of counting; threads share the object",
                       {
                           {contest, "weakref, weak handle", Role::ours, make<Peek>, nullptr},
                           {contest, "weakref, slot", Role::ours, make<SlotPeek>, nullptr},
                           {contest, "weakref, the guard alone", Role::ours, make<Guard>, nullptr},
                           {contest, "plain load", Role::limit, make<Load>, nullptr},
                           {contest, "CDRC snapshot", Role::peer, nullptr, "not packaged by Debian"},
                       },
                       {}});
}

} /* namespace bench */
