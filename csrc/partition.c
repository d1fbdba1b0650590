/* role: source
 * The partition table: which partitions of a broker's topics this engine takes events of, and how far it has come with
 * each. One source writes it; producers and workers compare what a frame says with it.
 *
 * A source that is killed leaves the table to its successor, so what is stored first matters. A row that is not in state
 * NONE is whole: its epoch, and `pushed`, belong together.
 */
#include "sender.h"

#include <string.h>

int sm_set_partition_count(void *control, const sm_geometry *g, uint32_t count)
{
    sm_control *c = control;
    uint32_t known = atomic_load_explicit(&c->partition_count, memory_order_relaxed);
    if (known)
        return known == count ? SM_OK : SM_GEOMETRY;
    if (!count || count > g->slots)
        return SM_GEOMETRY;
    atomic_store_explicit(&c->partition_count, count, memory_order_release);
    return SM_OK;
}

/* its number, or SM_FULL */
static int claim_topic(sm_control *c, const char *name, uint32_t bytes)
{
    uint32_t count = atomic_load_explicit(&c->topic_count, memory_order_relaxed);
    for (uint32_t i = 0; i < count && i < SM_MAX_TOPICS; i++)
        if (sm_topic_at(c, i)->bytes == bytes && memcmp(sm_topic_at(c, i)->name, name, bytes) == 0)
            return (int)i;
    if (count >= SM_MAX_TOPICS || bytes > sizeof sm_topic_at(c, 0)->name)
        return SM_FULL;
    sm_topic_at(c, count)->bytes = bytes;
    memcpy(sm_topic_at(c, count)->name, name, bytes);
    atomic_store_explicit(&c->topic_count, count + 1, memory_order_release);
    return (int)count;
}

int sm_claim_partition(void *control, const char *topic, uint32_t bytes, uint32_t number)
{
    sm_control *c = control;
    int t = claim_topic(c, topic, bytes);
    if (t < 0)
        return t;
    uint32_t rows = atomic_load_explicit(&c->partition_rows, memory_order_relaxed);
    for (uint32_t i = 0; i < rows && i < SM_MAX_PARTITIONS; i++)
        if (sm_partition_at(c, i)->partition_topic == (uint32_t)t && sm_partition_at(c, i)->partition_number == number)
            return (int)i;
    if (rows >= SM_MAX_PARTITIONS)
        return SM_FULL;
    sm_partition_at(c, rows)->partition_topic = (uint32_t)t;
    sm_partition_at(c, rows)->partition_number = number;
    /* S1: release, after the row. Pairs with S2 in sm_partition_rows. */
    atomic_store_explicit(&c->partition_rows, rows + 1, memory_order_release);
    return (int)rows;
}

/* Q1: release, and after the state, which says that nothing of the row is owned. Pairs with Q2 in origin.c: what a worker
 * has not taken by then, it sheds. */
static uint32_t next_epoch(sm_partition *p)
{
    uint32_t epoch = atomic_load_explicit(&p->partition_epoch, memory_order_relaxed) + 1;
    atomic_store_explicit(&p->partition_state, SM_PARTITION_NONE, memory_order_release);
    atomic_store_explicit(&p->partition_epoch, epoch, memory_order_release);
    return epoch;
}

/* The state comes last: a successor that finds NONE takes nothing of the row for true. With `pushed` of the last epoch and
 * the number of this one, it would go on behind events that nobody has. */
uint32_t sm_begin_partition(void *control, uint32_t row, uint64_t offset)
{
    sm_partition *p = sm_partition_at(control, row);
    uint32_t epoch = next_epoch(p);
    atomic_store_explicit(&p->partition_until, 0, memory_order_relaxed);
    atomic_store_explicit(&p->partition_pushed, offset, memory_order_relaxed);
    atomic_store_explicit(&p->partition_safe, offset, memory_order_relaxed);
    atomic_store_explicit(&p->partition_state, SM_PARTITION_OWNED, memory_order_release);
    return epoch;
}

void sm_end_partition(void *control, uint32_t row) { next_epoch(sm_partition_at(control, row)); }

void sm_set_partition_state(void *control, uint32_t row, uint32_t state)
{
    atomic_store_explicit(&sm_partition_at(control, row)->partition_state, state, memory_order_release);
}

void sm_set_pushed(void *control, uint32_t row, uint64_t offset)
{
    atomic_store_explicit(&sm_partition_at(control, row)->partition_pushed, offset, memory_order_release);
}

void sm_set_safe(void *control, uint32_t row, uint64_t offset)
{
    atomic_store_explicit(&sm_partition_at(control, row)->partition_safe, offset, memory_order_release);
}

void sm_renew_partition(void *control, uint32_t row, uint64_t until_ns)
{
    atomic_store_explicit(&sm_partition_at(control, row)->partition_until, until_ns, memory_order_release);
}

uint32_t sm_epoch_of(const void *control, uint32_t row)
{
    return atomic_load_explicit(&sm_partition_at(control, row)->partition_epoch, memory_order_acquire);
}

uint64_t sm_pushed_of(const void *control, uint32_t row)
{
    return atomic_load_explicit(&sm_partition_at(control, row)->partition_pushed, memory_order_relaxed);
}

/* By the sender, when a pass is in the lanes. It never falls: what is pushed again was pushed. */
void sm_advance_pushed(void *control, uint32_t row, uint64_t offset)
{
    if (offset > sm_pushed_of(control, row))
        sm_set_pushed(control, row, offset);
}
