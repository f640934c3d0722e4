/* wr-bench: producers of callbacks, for the group callbacks.
 *
 * Timed until the last callback of the round has run. A producer that is WINDOW callbacks ahead waits, so that what is
 * compared is a queue in use and not a heap that grows. The consumer is pinned to a processor of its own where
 * one is left.
 */
#ifndef WR_BENCH_CALLBACKS_H
#define WR_BENCH_CALLBACKS_H

#include "peers.h"
#include "run.h"

#include <atomic>
#include <sched.h>

namespace bench
{

enum : uint64_t { WINDOW = 4096 };

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

template <class B> std::unique_ptr<Bench> make_bench(unsigned n_threads)
{
    return std::make_unique<B>(n_threads);
}

} /* namespace bench */

#endif
