/* wr-bench: GLib: GObject and GWeakRef, counted boxes, GHashTable. */
#include "callbacks.h"
#include "maps.h"

#ifdef WR_BENCH_NO_GLIB
#define CASE(...) nullptr, WR_BENCH_NO_GLIB
#define BENCH(...) nullptr, WR_BENCH_NO_GLIB
#define SIZER(run) nullptr, WR_BENCH_NO_GLIB
#define LOOKS(subject) absent_look_peers(subject, WR_BENCH_NO_GLIB)
#else
#define CASE(...) make<__VA_ARGS__>, nullptr
#define BENCH(...) make_bench<__VA_ARGS__>, nullptr
#define SIZER(run) run
#define LOOKS(subject) look_peers<Plain>(subject)

#include <glib-object.h>

#include <thread>

struct WrBenchKept {
    GObject parent;
    bench::Payload payload;
};
struct WrBenchKeptClass {
    GObjectClass parent;
};
G_DEFINE_TYPE(WrBenchKept, wr_bench_kept, G_TYPE_OBJECT)
static void wr_bench_kept_init(WrBenchKept *) {}
static void wr_bench_kept_class_init(WrBenchKeptClass *) {}
#endif

namespace bench
{

#ifndef WR_BENCH_NO_GLIB

namespace
{

struct Unref {
    void operator()(GObject *obj) const
    {
        g_object_unref(obj);
    }
};
using Held = std::unique_ptr<GObject, Unref>;

Held make_object()
{
    return Held(static_cast<GObject *>(g_object_new(wr_bench_kept_get_type(), nullptr)));
}

struct WeakRef {
    GWeakRef ref;
    explicit WeakRef(GObject *obj)
    {
        g_weak_ref_init(&ref, obj);
    }
    WeakRef(const WeakRef &) = delete;
    ~WeakRef()
    {
        g_weak_ref_clear(&ref);
    }
    Held get()
    {
        return Held(static_cast<GObject *>(g_weak_ref_get(&ref)));
    }
};

struct Ref : State {
    Held obj = make_object();
    explicit Ref(unsigned) {}
    GObject *local(unsigned)
    {
        return obj.get();
    }
    static void op(GObject *obj, uint64_t)
    {
        keep(g_object_ref(obj));
        g_object_unref(obj);
    }
};

struct Box : State {
    gpointer box = g_atomic_rc_box_alloc0(sizeof(Payload));
    explicit Box(unsigned) {}
    ~Box()
    {
        g_atomic_rc_box_release(box);
    }
    gpointer local(unsigned)
    {
        return box;
    }
    static void op(gpointer box, uint64_t)
    {
        keep(g_atomic_rc_box_acquire(box));
        g_atomic_rc_box_release(box);
    }
};

/* A handle for each thread. */
template <bool alive> struct Weak : State {
    Held obj = make_object();
    std::vector<std::unique_ptr<WeakRef>> refs;
    explicit Weak(unsigned n_threads)
    {
        for (unsigned i = 0; i < n_threads; i++)
            refs.push_back(std::make_unique<WeakRef>(obj.get()));
        if (!alive)
            obj.reset();
    }
    WeakRef *local(unsigned thread)
    {
        return refs[thread].get();
    }
    static void op(WeakRef *ref, uint64_t)
    {
        Held obj = ref->get();
        keep(obj.get());
    }
};

/* One for all. */
struct Slot : State {
    Held obj = make_object();
    WeakRef ref{obj.get()};
    explicit Slot(unsigned) {}
    WeakRef *local(unsigned)
    {
        return &ref;
    }
    static void op(WeakRef *ref, uint64_t)
    {
        Held obj = ref->get();
        keep(obj.get());
    }
};

struct Alone : State {
    explicit Alone(unsigned) {}
    int local(unsigned)
    {
        return 0;
    }
};

struct Create : Alone {
    using Alone::Alone;
    static void op(int, uint64_t)
    {
        Held obj = make_object();
        keep(obj.get());
    }
};

struct CreateBox : Alone {
    using Alone::Alone;
    static void op(int, uint64_t)
    {
        gpointer box = g_atomic_rc_box_alloc0(sizeof(Payload));
        keep(box);
        g_atomic_rc_box_release(box);
    }
};

struct CreateWeak : Alone {
    using Alone::Alone;
    static void op(int, uint64_t)
    {
        Held obj = make_object();
        WeakRef weak(obj.get());
        keep(&weak);
        obj.reset();
    }
};

class Lock
{
  public:
    explicit Lock(GMutex *mutex) : locked(mutex)
    {
        g_mutex_lock(locked);
    }
    Lock(const Lock &) = delete;
    ~Lock()
    {
        g_mutex_unlock(locked);
    }

  private:
    GMutex *locked;
};

void free_weak_ref(gpointer ref)
{
    delete static_cast<WeakRef *>(ref);
}

GHashTable *weak_table()
{
    return g_hash_table_new_full(g_str_hash, g_str_equal, g_free, free_weak_ref);
}

class WeakTable
{
  public:
    WeakTable()
    {
        g_mutex_init(&mutex);
    }
    ~WeakTable()
    {
        g_hash_table_destroy(table);
        g_mutex_clear(&mutex);
    }
    static Held create()
    {
        return make_object();
    }
    Held get(const std::string &key)
    {
        Lock hold(&mutex);
        auto *ref = static_cast<WeakRef *>(g_hash_table_lookup(table, key.c_str()));
        return ref == nullptr ? nullptr : ref->get();
    }
    void set(const std::string &key, const Held &obj)
    {
        Lock hold(&mutex);
        g_hash_table_replace(table, g_strdup(key.c_str()), new WeakRef(obj.get()));
    }
    void purge(const std::string &key)
    {
        Held obj; /* released after the lock is */
        Lock hold(&mutex);
        auto *ref = static_cast<WeakRef *>(g_hash_table_lookup(table, key.c_str()));
        if (ref == nullptr)
            return;
        obj = ref->get();
        if (obj == nullptr)
            g_hash_table_remove(table, key.c_str());
    }

  private:
    GMutex mutex;
    GHashTable *table = weak_table();
};

template <class K> class Plain
{
  public:
    using Reader = NoReader;
    explicit Plain(size_t)
    {
        g_mutex_init(&mutex);
        if constexpr (std::is_same_v<K, std::string>)
            table = g_hash_table_new_full(g_str_hash, g_str_equal, g_free, nullptr);
        else
            table = g_hash_table_new(g_direct_hash, g_direct_equal);
    }
    ~Plain()
    {
        g_hash_table_destroy(table);
        g_mutex_clear(&mutex);
    }
    void set(const K &key, Payload *payload)
    {
        if constexpr (std::is_same_v<K, std::string>)
            g_hash_table_insert(table, g_strdup(key.c_str()), payload);
        else
            g_hash_table_insert(table, pointer(key), payload);
    }
    Payload *get(Reader &, const K &key)
    {
        Lock hold(&mutex);
        return static_cast<Payload *>(g_hash_table_lookup(table, pointer(key)));
    }

  private:
    static gpointer pointer(const std::string &key)
    {
        return const_cast<char *>(key.c_str());
    }
    static gpointer pointer(const uint64_t &key)
    {
        return GSIZE_TO_POINTER(key);
    }
    GMutex mutex;
    GHashTable *table;
};

/* A weak notification each: it runs at once, before the object is freed. */
class Notified final : public Produced<Notified>
{
  public:
    using Produced::Produced;
    void produce(Count &count)
    {
        Held obj = make_object();
        g_object_weak_ref(
            obj.get(), [](gpointer to, GObject *) { static_cast<Count *>(to)->add(); }, &count);
    }
};

/* It sends a message, which a thread receives. */
class Queued final : public Produced<Queued>
{
  public:
    explicit Queued(unsigned n_threads)
        : Produced(n_threads), queue(g_async_queue_new()), consumer([this, n_threads] { consume(n_threads); })
    {
        for (Count &count : counts)
            posts.push_back({queue, &count});
    }
    ~Queued() override
    {
        g_async_queue_push(queue, this); /* the last message */
        consumer.join();
        g_async_queue_unref(queue);
    }
    void produce(Count &count)
    {
        Held obj = make_object();
        g_object_weak_ref(
            obj.get(),
            [](gpointer to, GObject *) {
                const Post *post = static_cast<Post *>(to);
                g_async_queue_push(post->queue, post->count);
            },
            &posts[size_t(&count - counts.data())]);
    }

  private:
    struct Post {
        GAsyncQueue *queue;
        Count *count;
    };
    void consume(unsigned processor)
    {
        if (processor < n_processors())
            pin(processor);
        for (gpointer message; (message = g_async_queue_pop(queue)) != this;)
            static_cast<Count *>(message)->add();
    }
    GAsyncQueue *queue;
    std::vector<Post> posts;
    std::thread consumer;
};

void objects(size_t n, Meter &meter)
{
    std::vector<Held> all(n);
    meter.begin();
    for (Held &obj : all)
        obj = make_object();
    meter.end();
}

void boxes(size_t n, Meter &meter)
{
    std::vector<gpointer> all(n);
    meter.begin();
    for (gpointer &box : all)
        box = g_atomic_rc_box_alloc0(sizeof(Payload));
    meter.end();
}

std::vector<Held> make_objects(size_t n)
{
    std::vector<Held> all;
    for (size_t i = 0; i < n; i++)
        all.push_back(make_object());
    return all;
}

void handles(size_t n, Meter &meter)
{
    std::vector<Held> all = make_objects(n);
    meter.begin();
    auto *refs = g_new(GWeakRef, n);
    for (size_t i = 0; i < n; i++)
        g_weak_ref_init(&refs[i], all[i].get());
    meter.end();
}

void notifications(size_t n, Meter &meter)
{
    std::vector<Held> all = make_objects(n);
    meter.begin();
    for (const Held &obj : all)
        g_object_weak_ref(
            obj.get(), [](gpointer, GObject *) {}, nullptr);
    meter.end();
}

void entries(size_t n, Meter &meter)
{
    Keys keys(n);
    std::vector<Held> all = make_objects(n);
    GHashTable *table = weak_table();
    meter.begin();
    for (size_t i = 0; i < n; i++)
        g_hash_table_replace(table, g_strdup(keys.keys[i].c_str()), new WeakRef(all[i].get()));
    meter.end();
}

} /* namespace */

#endif

Peers glib_peers()
{
    const Role peer = Role::peer;
    const char *weak_map = "GMutex + GHashTable of GWeakRef";
    Peers peers = {
        {
            {"counts", {contest::counts, "g_object_ref + g_object_unref", peer, CASE(Ref)}},
            {"counts", {contest::counts, "g_atomic_rc_box", peer, CASE(Box)}},
            {"weak", {contest::weak, "GWeakRef", peer, CASE(Weak<true>)}},
            {"weak", {contest::weak_dead, "GWeakRef", peer, CASE(Weak<false>)}},
            {"slot", {contest::slot, "GWeakRef", peer, CASE(Slot)}},
            {"create", {contest::create, "g_object_new", peer, CASE(Create)}},
            {"create", {contest::create, "g_atomic_rc_box", peer, CASE(CreateBox)}},
            {"create", {contest::create_weak, "g_object_new, GWeakRef", peer, CASE(CreateWeak)}},
            {"cache", {contest::cache, weak_map, peer, CASE(Cached<WeakTable>)}},
            {"churn", {contest::churn, weak_map, peer, CASE(Lived<WeakTable>)}},
            {"callbacks", {contest::queued, "g_object_weak_ref, GAsyncQueue", peer, BENCH(Queued)}},
            {"callbacks", {contest::at_once, "g_object_weak_ref", peer, BENCH(Notified)}},
        },
        {
            {kind::object, "g_object_new", peer, SIZER(objects)},
            {kind::object, "g_atomic_rc_box", peer, SIZER(boxes)},
            {kind::handle, "GWeakRef", peer, SIZER(handles)},
            {kind::watch, "g_object_weak_ref", peer, SIZER(notifications)},
            {kind::entry, "GHashTable of GWeakRef", peer, SIZER(entries)},
        },
    };
    for (const PeerCase &look : LOOKS("GMutex + GHashTable"))
        peers.cases.push_back(look);
    return peers;
}

} /* namespace bench */
