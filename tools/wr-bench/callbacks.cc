/* wr-bench, group callbacks: create an object, ask for a callback at its death, release it; another thread runs the callbacks. */
#include "callbacks.h"
#include "deque.h"

#include <cstdlib>
#include <weakref/weakref.h>

namespace bench
{

static const wr_type type = WR_TYPE_INIT(.name = "mortal", .size = sizeof(Payload));

namespace
{

void count_death(wr_weak *, void *ctx)
{
    static_cast<Count *>(ctx)->add();
}

/* Runs once on the queue's thread, before anything else. */
void pin_consumer(wr_weak *, void *ctx)
{
    if (*static_cast<unsigned *>(ctx) < n_processors())
        pin(*static_cast<unsigned *>(ctx));
}

class Ours final : public Produced<Ours>
{
  public:
    explicit Ours(unsigned n_threads) : Produced(n_threads), consumer(n_threads)
    {
        if (queue == nullptr || wr_queue_start(queue, 1) != 0)
            abort();
        void *obj = wr_new(&type);
        if (wr_on_death(obj, queue, pin_consumer, &consumer) != 0)
            abort();
        wr_release(obj);
        wr_queue_barrier(queue);
    }
    ~Ours() override
    {
        wr_queue_free(queue);
    }
    void produce(Count &count)
    {
        void *obj = wr_new(&type);
        if (wr_on_death(obj, queue, count_death, &count) != 0)
            abort();
        wr_release(obj);
    }
    void settle() override
    {
        (void)wr_barrier();
    }

  private:
    wr_queue *queue = wr_queue_new("bench");
    unsigned consumer;
};

class Deleters final : public Produced<Deleters>
{
  public:
    explicit Deleters(unsigned n_threads) : Produced(n_threads), deque(n_threads) {}
    void produce(Count &count)
    {
        Deque *to = &deque;
        std::shared_ptr<Payload> obj(new Payload(), [to, &count](Payload *dead) {
            delete dead;
            to->push({[](void *ctx) { static_cast<Count *>(ctx)->add(); }, &count});
        });
        keep(obj.get());
    }

  private:
    Deque deque;
};

class OursInline final : public Produced<OursInline>
{
  public:
    using Produced::Produced;
    void produce(Count &count)
    {
        void *obj = wr_new(&type);
        if (wr_on_death(obj, WR_QUEUE_INLINE, count_death, &count) != 0)
            abort();
        wr_release(obj);
    }
};

class DeletersInline final : public Produced<DeletersInline>
{
  public:
    using Produced::Produced;
    void produce(Count &count)
    {
        std::shared_ptr<Payload> obj(new Payload(), [&count](Payload *dead) {
            delete dead;
            count.add();
        });
        keep(obj.get());
    }
};

} /* namespace */

Group callbacks_group()
{
    using contest::queued, contest::at_once;
    return with_peers(
        {"callbacks",
         "one callback each; its thread is another one, and each other thread creates and releases",
         {
             {queued, "weakref", Role::ours, make_bench<Ours>, nullptr},
             {queued, "shared_ptr deleter, mutex + condvar deque", Role::peer, make_bench<Deleters>, nullptr},
             {at_once, "weakref, WR_QUEUE_INLINE", Role::ours, make_bench<OursInline>, nullptr},
             {at_once, "shared_ptr deleter", Role::peer, make_bench<DeletersInline>, nullptr},
         },
         {}});
}

} /* namespace bench */
