/* wr-bench, group slot: an owned reference out of a shared variable. */
#include "peers.h"

#include <atomic>
#include <mutex>
#include <version>
#include <weakref/weakref.h>

namespace bench
{

static const wr_type type = WR_TYPE_INIT(.name = "slotted", .size = sizeof(Payload));

namespace
{

struct Ours : State {
    void *obj = wr_new(&type);
    wr_slot slot;
    explicit Ours(unsigned)
    {
        wr_slot_init(&slot, obj);
    }
    ~Ours()
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
        void *obj = wr_slot_load(slot);
        keep(obj);
        wr_release(obj);
    }
};

struct OursWeak : State {
    void *obj = wr_new(&type);
    wr_weak_slot slot;
    explicit OursWeak(unsigned)
    {
        wr_weak_slot_init(&slot, obj);
    }
    ~OursWeak()
    {
        wr_weak_slot_fini(&slot);
        wr_release(obj);
    }
    wr_weak_slot *local(unsigned)
    {
        return &slot;
    }
    static void op(wr_weak_slot *slot, uint64_t)
    {
        void *obj = wr_weak_slot_get(slot);
        keep(obj);
        wr_release(obj);
    }
};

#ifdef __cpp_lib_atomic_shared_ptr
using Atomic = std::atomic<std::shared_ptr<Payload>>;

struct StdAtomic : State {
    Atomic slot{std::make_shared<Payload>()};
    explicit StdAtomic(unsigned) {}
    Atomic *local(unsigned)
    {
        return &slot;
    }
    static void op(Atomic *slot, uint64_t)
    {
        std::shared_ptr<Payload> obj = slot->load(std::memory_order_acquire);
        keep(obj.get());
    }
};
#endif

/* What one writes by hand. */
struct Locked : State {
    std::mutex lock;
    std::shared_ptr<Payload> slot = std::make_shared<Payload>();
    explicit Locked(unsigned) {}
    Locked *local(unsigned)
    {
        return this;
    }
    static void op(Locked *self, uint64_t)
    {
        std::shared_ptr<Payload> obj;
        {
            std::lock_guard<std::mutex> hold(self->lock);
            obj = self->slot;
        }
        keep(obj.get());
    }
};

} /* namespace */

Group slot_group()
{
    const char *contest = contest::slot;
#if !defined(__cpp_lib_atomic_shared_ptr)
    Case std_atomic = {contest, "std::atomic<shared_ptr>", Role::peer, nullptr, "the C++ library has none"};
#elif defined(__SANITIZE_THREAD__)
    Case std_atomic = {contest, "std::atomic<shared_ptr>", Role::peer, nullptr, "ThreadSanitizer reports a race in it"};
#else
    Case std_atomic = {contest, "std::atomic<shared_ptr>", Role::peer, make<StdAtomic>, nullptr};
#endif
    return with_peers({"slot",
                       "an owned reference out of a shared variable",
                       {
                           {contest, "weakref", Role::ours, make<Ours>, nullptr},
                           {contest, "weakref, weak slot", Role::ours, make<OursWeak>, nullptr},
                           std_atomic,
                           {contest, "mutex + std::shared_ptr", Role::peer, make<Locked>, nullptr},
                       },
                       {}});
}

} /* namespace bench */
