/* wr-bench: Rust's Arc and Weak; the loops are in rust.rs. */
#include "peers.h"

#ifdef WR_BENCH_NO_RUST
#define LOOPED(...) nullptr, WR_BENCH_NO_RUST
#define SIZER(run) nullptr, WR_BENCH_NO_RUST
#else
#define LOOPED(...) make_looped<__VA_ARGS__>, nullptr
#define SIZER(run) run

extern "C" {
struct wr_bench_rust;
struct wr_bench_rust_objects;
wr_bench_rust *wr_bench_rust_new(bool alive);
void wr_bench_rust_free(wr_bench_rust *shared);
void wr_bench_rust_clone(const wr_bench_rust *shared, size_t n);
void wr_bench_rust_upgrade(const wr_bench_rust *shared, size_t n);
void wr_bench_rust_slot(const wr_bench_rust *shared, size_t n);
void wr_bench_rust_create(size_t n);
void wr_bench_rust_create_weak(size_t n);
wr_bench_rust_objects *wr_bench_rust_reserve(size_t n);
void wr_bench_rust_fill(wr_bench_rust_objects *objects, size_t n);
void wr_bench_rust_downgrade(const wr_bench_rust_objects *objects);
}
#endif

namespace bench
{

#ifndef WR_BENCH_NO_RUST

namespace
{

template <bool alive, void loop(const wr_bench_rust *shared, size_t n)> struct Loop : State {
    wr_bench_rust *shared = wr_bench_rust_new(alive);
    explicit Loop(unsigned) {}
    ~Loop()
    {
        wr_bench_rust_free(shared);
    }
    const wr_bench_rust *local(unsigned)
    {
        return shared;
    }
    static void ops(const wr_bench_rust *shared, uint64_t, unsigned n)
    {
        loop(shared, n);
    }
};

template <void loop(size_t n)> struct Alone : State {
    explicit Alone(unsigned) {}
    int local(unsigned)
    {
        return 0;
    }
    static void ops(int, uint64_t, unsigned n)
    {
        loop(n);
    }
};

void objects(size_t n, Meter &meter)
{
    wr_bench_rust_objects *all = wr_bench_rust_reserve(n);
    meter.begin();
    wr_bench_rust_fill(all, n);
    meter.end();
}

void handles(size_t n, Meter &meter)
{
    wr_bench_rust_objects *all = wr_bench_rust_reserve(n);
    wr_bench_rust_fill(all, n);
    meter.begin();
    wr_bench_rust_downgrade(all);
    meter.end();
}

} /* namespace */

#endif

Peers rust_peers()
{
    const Role peer = Role::peer;
    return {
        {
            {"counts", {contest::counts, "Rust Arc", peer, LOOPED(Loop<true, wr_bench_rust_clone>)}},
            {"weak", {contest::weak, "Rust Weak", peer, LOOPED(Loop<true, wr_bench_rust_upgrade>)}},
            {"weak", {contest::weak_dead, "Rust Weak", peer, LOOPED(Loop<false, wr_bench_rust_upgrade>)}},
            {"slot", {contest::slot, "Rust Mutex<Arc>", peer, LOOPED(Loop<true, wr_bench_rust_slot>)}},
            {"create", {contest::create, "Rust Arc", peer, LOOPED(Alone<wr_bench_rust_create>)}},
            {"create", {contest::create_weak, "Rust Arc, Weak", peer, LOOPED(Alone<wr_bench_rust_create_weak>)}},
        },
        {
            {kind::object, "Rust Arc", peer, SIZER(objects)},
            {kind::handle, "Rust Weak", peer, SIZER(handles)},
        },
    };
}

} /* namespace bench */
