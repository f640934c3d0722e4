/* wr-bench: a queue of callbacks as one writes it by hand in C++, for the groups callbacks and latency. */
#ifndef WR_BENCH_DEQUE_H
#define WR_BENCH_DEQUE_H

#include "run.h"

#include <condition_variable>
#include <deque>
#include <mutex>
#include <thread>

namespace bench
{

/* A deque under a mutex, whose consumer takes all of it at once. */
class Deque
{
  public:
    struct Task {
        void (*run)(void *ctx);
        void *ctx;
    };
    explicit Deque(unsigned processor) : consumer([this, processor] { consume(processor); }) {}
    ~Deque()
    {
        {
            std::lock_guard<std::mutex> hold(lock);
            ended = true;
        }
        wake.notify_one();
        consumer.join();
    }
    void push(const Task &task)
    {
        bool was_empty;
        {
            std::lock_guard<std::mutex> hold(lock);
            was_empty = tasks.empty();
            tasks.push_back(task);
        }
        if (was_empty)
            wake.notify_one();
    }

  private:
    void consume(unsigned processor)
    {
        if (processor < n_processors())
            pin(processor);
        for (;;) {
            std::deque<Task> taken;
            {
                std::unique_lock<std::mutex> hold(lock);
                wake.wait(hold, [this] { return ended || !tasks.empty(); });
                if (tasks.empty())
                    return;
                taken.swap(tasks);
            }
            for (const Task &task : taken)
                task.run(task.ctx);
        }
    }
    std::mutex lock;
    std::condition_variable wake;
    std::deque<Task> tasks;
    bool ended = false;
    std::thread consumer;
};

} /* namespace bench */

#endif
