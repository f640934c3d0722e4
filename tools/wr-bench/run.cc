/* wr-bench: threads, the probe, the order of rounds. */
#include "run.h"

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstdarg>
#include <cstdio>
#include <mutex>
#include <pthread.h>
#include <sched.h>
#include <thread>

namespace bench
{

const char *regime_name(Regime regime)
{
    switch (regime) {
    case Regime::near:
        return "near";
    case Regime::middle:
        return "middle";
    case Regime::far:
        return "far";
    case Regime::mixed:
        return "mixed";
    default:
        return "-";
    }
}

/* ---- processors ---------------------------------------------------------------------------------- */

static std::vector<int> processors()
{
    cpu_set_t set;
    std::vector<int> list;
    if (sched_getaffinity(0, sizeof set, &set) == 0)
        for (int i = 0; i < CPU_SETSIZE; i++)
            if (CPU_ISSET(i, &set))
                list.push_back(i);
    if (list.empty())
        list.push_back(0);
    return list;
}

/* Asked once, before any thread is pinned. */
static const std::vector<int> allowed = processors();

unsigned n_processors()
{
    return unsigned(allowed.size());
}

void pin(unsigned i)
{
    cpu_set_t set;
    CPU_ZERO(&set);
    CPU_SET(size_t(allowed[i % allowed.size()]), &set);
    (void)pthread_setaffinity_np(pthread_self(), sizeof set, &set); /* refused: less steady figures */
}

/* ---- waiting ----------------------------------------------------------------------------------------- */

/* What this thread has had of its processor. */
static int64_t own_ns()
{
    struct timespec now;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
    return int64_t(now.tv_sec) * 1000000000 + now.tv_nsec;
}

template <class Done> static void spin_until(Done done)
{
    for (unsigned n = 0; !done();)
        if (++n > 20000) /* somebody else has the processor that we wait for */
            sched_yield();
}

/* Threads that have a processor each wait for the others awake, to start at once. More threads than that sleep. */
class Barrier
{
  public:
    /* Returns when the last one came. */
    int64_t wait(unsigned n_threads)
    {
        unsigned before = generation.load(std::memory_order_relaxed);
        if (arrived.fetch_add(1, std::memory_order_acq_rel) + 1 == n_threads) {
            arrived.store(0, std::memory_order_relaxed);
            std::lock_guard<std::mutex> hold(lock);
            complete_ns = now_ns();
            generation.store(before + 1, std::memory_order_release);
            wake.notify_all();
        } else if (n_threads <= n_processors()) {
            spin_until([&] { return generation.load(std::memory_order_acquire) != before; });
        } else {
            std::unique_lock<std::mutex> hold(lock);
            wake.wait(hold, [&] { return generation.load(std::memory_order_acquire) != before; });
        }
        return complete_ns;
    }

  private:
    alignas(64) std::atomic<unsigned> arrived{0};
    alignas(64) std::atomic<unsigned> generation{0};
    int64_t complete_ns = 0;
    std::mutex lock;
    std::condition_variable wake;
};

/* ---- the probe ---------------------------------------------------------------------------------------- */

static double median(std::vector<double> values)
{
    std::sort(values.begin(), values.end());
    size_t n = values.size();
    return n == 0 ? 0 : (values[(n - 1) / 2] + values[n / 2]) / 2;
}

/* One cache line that two threads pass to and fro. */
class Probe
{
  public:
    /* Both threads call it, with @side 0 and 1. Returns ns for a round trip, to side 0 alone. */
    double run(unsigned side)
    {
        constexpr int chunks = 15, trips = 48;
        std::vector<double> ns;
        uint32_t n = 0;
        for (int chunk = 0; chunk < chunks; chunk++) {
            int64_t begin = now_ns();
            for (int trip = 0; trip < trips; trip++, n += 2) {
                if (side == 0) {
                    ball.store(n + 1, std::memory_order_release);
                    spin_until([&] { return ball.load(std::memory_order_acquire) == n + 2; });
                } else {
                    spin_until([&] { return ball.load(std::memory_order_acquire) == n + 1; });
                    ball.store(n + 2, std::memory_order_release);
                }
            }
            ns.push_back(double(now_ns() - begin) / trips);
        }
        if (side == 0)
            ball.store(0, std::memory_order_release); /* the other side has seen its last ball */
        return median(ns);
    }

  private:
    alignas(64) std::atomic<uint32_t> ball{0};
};

static Regime regime_of(double probe_ns)
{
    return probe_ns <= 220 ? Regime::near : probe_ns < 800 ? Regime::middle : Regime::far;
}

/* ---- workers ------------------------------------------------------------------------------------------ */

class Workers
{
  public:
    explicit Workers(unsigned n)
    {
        threads.emplace_back([this] { sleep(); });
        for (unsigned i = 0; i < n; i++)
            threads.emplace_back([this, i] { work(i); });
    }

    ~Workers()
    {
        {
            std::lock_guard<std::mutex> hold(lock);
            ended = true;
        }
        wake.notify_all();
        for (std::thread &thread : threads)
            thread.join();
    }

    Sample round(Bench &bench, unsigned n, int64_t duration_ns)
    {
        std::unique_lock<std::mutex> hold(lock);
        job = Job{&bench, n, duration_ns, n > 1 && n_processors() > 1};
        n_running = n;
        total_ops = 0;
        longest_ns = 0;
        job_number++;
        wake.notify_all();
        done.wait(hold, [this] { return n_running == 0; });

        Sample sample = {0, probe_before, probe_after, Regime::none};
        sample.ns = total_ops == 0 ? 0 : double(longest_ns) * std::min(n, n_processors()) / double(total_ops);
        if (job.probes) {
            Regime before = regime_of(probe_before), after = regime_of(probe_after);
            sample.regime = before == after ? before : Regime::mixed;
        }
        return sample;
    }

  private:
    struct Job {
        Bench *bench;
        unsigned n_threads;
        int64_t duration_ns;
        bool probes;
    };

    /* The third thread of every round. */
    void sleep()
    {
        std::unique_lock<std::mutex> hold(lock);
        wake.wait(hold, [this] { return ended; });
    }

    void work(unsigned self)
    {
        pin(self);
        for (uint64_t last = 0;;) {
            Job mine;
            {
                std::unique_lock<std::mutex> hold(lock);
                wake.wait(hold, [&] { return ended || (job_number != last && self < job.n_threads); });
                if (ended)
                    return;
                last = job_number;
                mine = job;
            }
            int64_t begin;
            double before = pass(mine, self, &begin);
            bool alone = mine.n_threads == 1 && !mine.bench->waits();
            int64_t own = own_ns();
            uint64_t ops = mine.bench->run(self, begin + mine.duration_ns);
            int64_t took = alone ? own_ns() - own : now_ns() - begin, end;
            double after = pass(mine, self, &end);

            std::lock_guard<std::mutex> hold(lock);
            total_ops += ops;
            longest_ns = std::max(longest_ns, took);
            if (self == 0) {
                probe_before = before;
                probe_after = after;
            }
            if (--n_running == 0)
                done.notify_one();
        }
    }

    /* All threads meet; two of them probe; all go on together, at the same time @on_ns. */
    double pass(const Job &mine, unsigned self, int64_t *on_ns)
    {
        double ns = 0;
        *on_ns = now_ns();
        if (mine.n_threads == 1)
            return ns;
        barrier.wait(mine.n_threads);
        if (mine.probes && self < 2)
            ns = probe.run(self);
        *on_ns = barrier.wait(mine.n_threads);
        return ns;
    }

    Barrier barrier;
    Probe probe;
    std::mutex lock;
    std::condition_variable wake, done;
    Job job = {nullptr, 0, 0, false};
    uint64_t job_number = 0;
    unsigned n_running = 0;
    bool ended = false;
    uint64_t total_ops = 0;
    int64_t longest_ns = 0;
    double probe_before = 0, probe_after = 0;
    std::vector<std::thread> threads;
};

/* ---- rounds ----------------------------------------------------------------------------------------------- */

Runner::Runner(const Plan &given)
    : plan(given), workers(std::make_unique<Workers>(*std::max_element(given.n_threads.begin(), given.n_threads.end())))
{
}

Runner::~Runner() = default;

void Runner::progress(const char *format, ...)
{
    if (!plan.progress)
        return;
    char line[160];
    va_list args;
    va_start(args, format);
    vsnprintf(line, sizeof line, format, args);
    va_end(args);
    std::string text = line;
    size_t width = text.size();
    text.resize(std::max(width, progress_width), ' '); /* over what stood there */
    fprintf(stderr, "\r%s", text.c_str());
    if (width == 0)
        fputc('\r', stderr);
    progress_width = width;
}

/* 20 to 50 ms a round and 5 to 9 rounds, where the budget allows. */
static void divide(double seconds, size_t n_series, unsigned *n_rounds, int64_t *round_ns)
{
    double share_ms = seconds <= 0 ? 7 * 30 : seconds * 1000 / double(n_series);
    unsigned n = share_ms >= 9 * 50 ? 9 : share_ms >= 7 * 20 ? 7 : share_ms >= 5 * 5 ? 5 : 3;
    double ms = std::min(50.0, std::max(0.1, share_ms / n));
    *n_rounds = n;
    *round_ns = int64_t(ms * 1e6);
}

Results Runner::run(const Group &group)
{
    Results results = {&group, {}, {}, {}};
    size_t n_present = 0;
    for (const Case &c : group.cases)
        n_present += c.make != nullptr;
    unsigned n_rounds = 0;
    int64_t round_ns = 0;
    divide(plan.seconds, std::max<size_t>(1, n_present * plan.n_threads.size()), &n_rounds, &round_ns);

    for (unsigned n_threads : plan.n_threads) {
        std::vector<std::unique_ptr<Bench>> benches;
        size_t first = results.series.size();
        for (const Case &c : group.cases) {
            if (c.make == nullptr)
                continue;
            benches.push_back(c.make(n_threads));
            results.series.push_back({&c, n_threads, {}});
        }
        /* The round before the first warms caches, allocator and processor up, and is not counted. */
        for (unsigned round = 0; round <= n_rounds; round++) {
            for (size_t i = 0; i < benches.size(); i++) {
                Series &series = results.series[first + i];
                progress("%s, %u thread%s, round %u of %u: %s, %s", group.name, n_threads, n_threads == 1 ? "" : "s",
                         round, n_rounds, series.of->contest, series.of->subject);
                Sample sample = workers->round(*benches[i], n_threads, round == 0 ? round_ns / 3 : round_ns);
                benches[i]->settle();
                if (round > 0)
                    series.rounds.push_back(sample);
            }
        }
    }
    if (group.figures) {
        progress("%s", group.name);
        results.figures = group.figures(plan.seconds);
    }
    if (group.spreads) {
        progress("%s", group.name);
        results.spreads = group.spreads(plan.seconds);
    }
    progress("%s", "");
    return results;
}

} /* namespace bench */
