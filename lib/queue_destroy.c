/* F5 queue: destroys of types with destroy_on, as tasks that cannot be cancelled.
 *
 * The record lies in front of the object's header, so that nothing is allocated at the death. It is admitted when the object
 * is made: that is when a queue can still be refused, and its thread started; and by it the queue's memory stays.
 */
#include "object.h"
#include "queue.h"

struct destroy_record {
    wr_task task;    /* first */
    wr_queue *queue; /* NULL: destroyed where it is released */
    wr_header *header;
};

_Static_assert(sizeof(struct destroy_record) <= WR_DESTROY_RECORD_SIZE, "it has room in front of the header");

static bool destroy_begin(wr_task *task)
{
    (void)task;
    return true;
}

static void destroy_run(wr_task *task)
{
    wr_object_destroy(((struct destroy_record *)task)->header);
}

static void destroy_finish(wr_task *task)
{
    (void)task; /* gone, most likely */
}

static const wr_task_class destroy_task_class = {
    .begin = destroy_begin,
    .run = destroy_run,
    .finish = destroy_finish,
};

static int admit(void *memory, wr_header *h, wr_queue *queue)
{
    struct destroy_record *record = memory;
    wr_queue *q;
    int error = wr_queue_resolve(queue, &q);
    if (error != 0)
        return error;
    if (wr_queue_is_inline(q))
        return 0;
    record->task.klass = &destroy_task_class;
    record->header = h;
    record->queue = q;
    wr_queue_admit(q, false);
    return 0;
}

static bool hand_over(void *memory)
{
    struct destroy_record *record = memory;
    wr_queue *q = record->queue;
    if (q == NULL)
        return false;
    wr_handover h;
    if (!wr_handover_begin(&h, q, 1)) {
        wr_queue_count_cancelled(q, 1);
        return false;
    }
    wr_handover_add(&h, &record->task);
    wr_handover_end(&h);
    return true;
}

const wr_destroyer wr_queue_destroyer = {.admit = admit, .hand_over = hand_over};
