/* wr-bench, group callbacks: create an object, ask for a callback at its death, release it; another thread runs the callbacks.
 *
 * Timed until the last callback of the round has run. A producer that is WINDOW callbacks ahead waits, so that what is
 * compared is a queue in use and not a heap that grows. The consumer is pinned to a processor of its own where
 * one is left.
 */
#include "deque.h"

#include <atomic>
#include <cstdlib>
#include <sched.h>
#include <weakref/weakref.h>

namespace bench
{

static const wr_type type = WR_TYPE_INIT(.name = "mortal", .size = sizeof(Payload));

enum : uint64_t { WINDOW = 4096 };

namespace
{

/* How many of one producer's callbacks have run. One consumer writes it, the producer looks now and then. */
struct alignas(64) Count {
    std::atomic<uint64_t> delivered{0};
    uint64_t produced = 0;

    void add()
    {
        delivered.store(delivered.load(std::memory_order_relaxed) + 1, std::memory_order_release);
    }
    void wait(uint64_t ahead)
    {
        while (produced - delivered.load(std::memory_order_acquire) > ahead)
            sched_yield();
    }
};

template <class Self> class Produced : public Bench
{
  public:
    explicit Produced(unsigned n_threads) : counts(n_threads) {}
    uint64_t run(unsigned thread, int64_t deadline_ns) override
    {
        Count &count = counts[thread];
        uint64_t n = 0;
        do {
            for (unsigned k = 0; k < batch_dear; k++)
                static_cast<Self *>(this)->produce(count);
            n += batch_dear;
            count.produced += batch_dear;
            count.wait(WINDOW);
        } while (now_ns() < deadline_ns);
        count.wait(0);
        return n;
    }

    bool waits() const override
    {
        return true;
    }

  protected:
    std::vector<Count> counts;
};

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

template <class B> std::unique_ptr<Bench> make_bench(unsigned n_threads)
{
    return std::make_unique<B>(n_threads);
}

} /* namespace */

Group callbacks_group()
{
    const char *queued = "create, callback on a queue, release";
    const char *at_once = "create, callback at once, release";
    return {"callbacks",
            "one callback each; its thread is another one, and each other thread creates and releases",
            {
                {queued, "weakref", Role::ours, make_bench<Ours>, nullptr},
                {queued, "shared_ptr deleter, mutex + condvar deque", Role::peer, make_bench<Deleters>, nullptr},
                {at_once, "weakref, WR_QUEUE_INLINE", Role::ours, make_bench<OursInline>, nullptr},
                {at_once, "shared_ptr deleter", Role::peer, make_bench<DeletersInline>, nullptr},
            },
            {}};
}

} /* namespace bench */
