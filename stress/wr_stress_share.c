/* wr-stress: the places that all threads share, and how they are emptied at the end of a round. */
#include "wr_stress.h"

#include <stdlib.h>

struct shared shared;

struct tenant *place_enter(struct place *place)
{
    pthread_mutex_lock(&place->lock);
    struct tenant *tenant = place->tenant;
    if (tenant != NULL)
        atomic_fetch_add_explicit(&tenant->users, 1, memory_order_relaxed);
    pthread_mutex_unlock(&place->lock);
    return tenant;
}

bool place_swap(struct place *place, struct tenant *old, struct tenant *new)
{
    pthread_mutex_lock(&place->lock);
    bool same = place->tenant == old;
    if (same)
        place->tenant = new;
    pthread_mutex_unlock(&place->lock);
    return same;
}

bool tenant_leave(struct tenant *tenant)
{
    return atomic_fetch_sub_explicit(&tenant->users, 1, memory_order_acq_rel) == 1;
}

bool tenant_leave_alone(struct tenant *tenant, unsigned own)
{
    return atomic_compare_exchange_strong_explicit(&tenant->users, &own, 0, memory_order_acq_rel, memory_order_relaxed);
}

void shared_start(void)
{
    shared.dict = wr_value_dict_new(NULL);
    /* A small one, so that it grows and shrinks all the time. */
    shared.dict_deferred = wr_value_dict_new(
        &(struct wr_value_dict_options){.struct_size = sizeof(struct wr_value_dict_options), .initial_size = 8});
    shared.dict_private = wr_value_dict_new(NULL);
    CHECK(shared.dict != NULL && shared.dict_deferred != NULL && shared.dict_private != NULL);
}

void shared_stop(void)
{
    wr_value_dict_free(shared.dict);
    wr_value_dict_free(shared.dict_deferred);
    wr_value_dict_free(shared.dict_private);
}

bool shared_empty(void)
{
    bool any = false;
    for (unsigned i = 0; i < N_SLOTS; i++) {
        void *obj = wr_slot_exchange(&shared.slots[i], NULL);
        any = any || obj != NULL;
        wr_release(obj);
        wr_weak_slot_set(&shared.weak_slots[i], NULL);
    }
    for (unsigned i = 0; i < N_CELLS; i++) {
        void *obj = atomic_exchange(&shared.strong[i], NULL);
        wr_weak *weak = atomic_exchange(&shared.weak[i], NULL);
        wr_weak *deferred = atomic_exchange(&shared.weak_deferred[i], NULL);
        struct watch *watch = atomic_exchange(&shared.watches[i], NULL);
        any = any || obj != NULL || weak != NULL || deferred != NULL || watch != NULL;
        wr_release(obj);
        wr_weak_release(weak);
        wr_weak_release(deferred);
        if (watch != NULL)
            watch_give_up(watch);
    }
    return any;
}

bool shared_release_survivors(void)
{
    bool any = false;
    for (unsigned i = 0; i < N_SURVIVORS; i++) {
        void *obj = atomic_exchange(&shared.survivors[i], NULL);
        any = any || obj != NULL;
        wr_release(obj);
    }
    return any;
}
