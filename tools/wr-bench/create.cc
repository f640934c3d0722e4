/* wr-bench, group create: an object that comes and goes. */
#include "peers.h"

#include <cstdlib>
#include <weakref/weakref.h>

namespace bench
{

static const wr_type type = WR_TYPE_INIT(.name = "short-lived", .size = sizeof(Payload));

namespace
{

struct Alone : State {
    explicit Alone(unsigned) {}
    int local(unsigned)
    {
        return 0;
    }
};

struct Ours : Alone {
    using Alone::Alone;
    static void op(int, uint64_t)
    {
        void *obj = wr_new(&type);
        keep(obj);
        wr_release(obj);
    }
};

struct Malloc : Alone {
    using Alone::Alone;
    static void op(int, uint64_t)
    {
        void *memory = malloc(sizeof(Payload));
        keep(memory);
        free(memory);
    }
};

struct MakeShared : Alone {
    using Alone::Alone;
    static void op(int, uint64_t)
    {
        std::shared_ptr<Payload> obj = std::make_shared<Payload>();
        keep(obj.get());
    }
};

struct OursWeak : Alone {
    using Alone::Alone;
    static void op(int, uint64_t)
    {
        void *obj = wr_new(&type);
        wr_weak *weak = wr_downgrade(obj);
        keep(weak);
        wr_release(obj);
        wr_weak_release(weak);
    }
};

struct StdWeak : Alone {
    using Alone::Alone;
    static void op(int, uint64_t)
    {
        std::shared_ptr<Payload> obj = std::make_shared<Payload>();
        std::weak_ptr<Payload> weak = obj;
        keep(&weak);
        obj.reset();
        weak.reset();
    }
};

} /* namespace */

Group create_group()
{
    const char *plain = contest::create, *weak = contest::create_weak;
    return with_peers({"create",
                       "objects of 64 bytes; each thread its own",
                       {
                           {plain, "weakref", Role::ours, make<Ours>, nullptr},
                           {plain, "malloc + free", Role::limit, make<Malloc>, nullptr},
                           {plain, "std::make_shared", Role::peer, make<MakeShared>, nullptr},
                           {weak, "weakref", Role::ours, make<OursWeak>, nullptr},
                           {weak, "std::make_shared", Role::peer, make<StdWeak>, nullptr},
                       },
                       {}});
}

} /* namespace bench */
