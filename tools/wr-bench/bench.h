/* wr-bench: what a case is, and how its loop is timed.
 *
 * A *contest* is one thing to do ("upgrade + release"), a *case* one subject that does it: the library, a peer, or the
 * bare operation that limits both. Cases of one contest are measured in turn, round by round; see run.h.
 * A group of contests is one file, named after it, with a table of cases.
 */
#ifndef WR_BENCH_BENCH_H
#define WR_BENCH_BENCH_H

#include "histogram.h"

#include <cstddef>
#include <cstdint>
#include <ctime>
#include <functional>
#include <memory>
#include <string>
#include <vector>

namespace bench
{

/* A case made ready for a number of threads: its objects, maps, helping threads. */
class Bench
{
  public:
    Bench() = default;
    Bench(const Bench &) = delete;
    Bench &operator=(const Bench &) = delete;
    virtual ~Bench() = default;

    /* One thread's part of a round: operations until the deadline. Returns how many. */
    virtual uint64_t run(unsigned thread, int64_t deadline_ns) = 0;

    /* Whether a round waits for other threads, the subject's own: then the clock on the wall counts, with one thread, too. */
    virtual bool waits() const
    {
        return false;
    }

    /* After each round, not timed: whatever would go on in the background and disturb the next case. */
    virtual void settle() {}
};

enum class Role {
    ours,
    peer,
    limit /* what the hardware takes for the least that could do it */
};

struct Case {
    const char *contest;
    const char *subject;
    Role role;
    /* NULL: the case was left out when this program was built, and absent says why. */
    std::function<std::unique_ptr<Bench>(unsigned n_threads)> make;
    const char *absent;
};

/* What is counted and not timed: bytes. */
struct Figure {
    const char *contest;
    const char *subject;
    Role role;
    double value; /* below 0: cannot be told here */
};

/* What is timed one by one, and not in rounds: each operation's time in nanoseconds. */
struct Spread {
    const char *contest;
    const char *subject;
    Role role;
    Histogram times;
};

struct Group {
    const char *name;
    const char *about;
    std::vector<Case> cases;
    std::function<std::vector<Figure>(double seconds)> figures;           /* may be empty */
    std::function<std::vector<Spread>(double seconds)> spreads = nullptr; /* the same; 0 seconds: as long as is usual */
};

Group counts_group();
Group weak_group();
Group guard_group();
Group slot_group();
Group create_group();
Group map_group();
Group cache_group();
Group churn_group();
Group callbacks_group();
Group memory_group();
Group latency_group();

inline int64_t now_ns()
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return int64_t(now.tv_sec) * 1000000000 + now.tv_nsec;
}

/* The compiler takes the value for used, and all memory for changed. */
template <class T> inline void keep(const T &value)
{
    asm volatile("" : : "r,m"(value) : "memory");
}

inline void keep_memory()
{
    asm volatile("" : : : "memory");
}

/* op(0), op(1), ... until the deadline, with a look at the clock after each batch. */
template <class Op> inline uint64_t repeat(int64_t deadline_ns, unsigned batch, Op op)
{
    uint64_t n = 0;
    do {
        for (unsigned k = 0; k < batch; k++)
            op(n + k);
        n += batch;
    } while (now_ns() < deadline_ns);
    return n;
}

/* Operations between two looks at the clock, which costs some 25 ns. */
enum : unsigned { batch_cheap = 4096, batch_dear = 256 };

/* A Bench around a plain struct S with
 *     S(unsigned n_threads); static constexpr unsigned batch; local(thread); static op(local, i); settle()
 * What local() returns lives on the thread's own stack while it runs. */
template <class S> class Simple final : public Bench
{
  public:
    explicit Simple(unsigned n_threads) : state(n_threads) {}
    uint64_t run(unsigned thread, int64_t deadline_ns) override
    {
        auto local = state.local(thread);
        return repeat(deadline_ns, S::batch, [&](uint64_t i) { S::op(local, i); });
    }
    void settle() override
    {
        state.settle();
    }

  private:
    S state;
};

template <class S> std::unique_ptr<Bench> make(unsigned n_threads)
{
    return std::make_unique<Simple<S>>(n_threads);
}

/* The same for subjects in another language, whose loop is in that language: ops(local, i, n) does the operations i to i + n - 1. */
template <class S> class Looped final : public Bench
{
  public:
    explicit Looped(unsigned n_threads) : state(n_threads) {}
    uint64_t run(unsigned thread, int64_t deadline_ns) override
    {
        auto local = state.local(thread);
        uint64_t n = 0;
        do {
            S::ops(local, n, S::batch);
            n += S::batch;
        } while (now_ns() < deadline_ns);
        return n;
    }

  private:
    S state;
};

template <class S> std::unique_ptr<Bench> make_looped(unsigned n_threads)
{
    return std::make_unique<Looped<S>>(n_threads);
}

struct State { /* base of such structs */
    static constexpr unsigned batch = batch_cheap;
    void settle() {}
};

/* What every subject counts, holds and maps to: 64 bytes. */
struct Payload {
    uint64_t words[8];
};

/* 23-byte keys, as strings, and an order in which to ask for them; the same for each subject. */
struct Keys {
    explicit Keys(size_t n, const char *prefix = "key");
    std::vector<std::string> keys;
    std::vector<const std::string *> order; /* a power of two of them, at random */

    const std::string &at(uint64_t i) const
    {
        return *order[i & (order.size() - 1)];
    }
};

/* Such strings, or 8-byte integers, copied in the order of asking: to read the next one costs no cache miss. */
template <class K> struct Ring {
    explicit Ring(size_t n);
    std::vector<K> keys;
    std::vector<K> order;

    const K &at(uint64_t i) const
    {
        return order[i & (order.size() - 1)];
    }
};
template <> Ring<std::string>::Ring(size_t n);
template <> Ring<uint64_t>::Ring(size_t n);

} /* namespace bench */

#endif
