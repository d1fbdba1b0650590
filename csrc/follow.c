/* role: worker
 * A worker whose handler keeps state follows the partition table: state is by partition, and is brought up to an epoch
 * before events of that epoch are taken. Its batches are of one partition each. Offsets that were applied are known by the
 * highest of each slot, so events of a slot are handled in their order: one on trial keeps its whole slot back.
 */
#include "reader.h"

#include <string.h>

/* Changes whenever the table does; of what a damaged one says, the first SM_MAX_PARTITIONS rows. */
uint64_t sm_partition_version(const void *control)
{
    const sm_control *c = control;
    uint64_t version = atomic_load_explicit(&c->partition_count, memory_order_acquire);
    uint32_t rows = sm_partition_rows(control);
    for (uint32_t i = 0; i < rows; i++) {
        const sm_partition *p = sm_partition_at(control, i);
        uint64_t epoch = atomic_load_explicit(&p->partition_epoch, memory_order_acquire);
        uint64_t state = atomic_load_explicit(&p->partition_state, memory_order_acquire);
        version = (version ^ (epoch << 8 | state)) * UINT64_C(0x9E3779B97F4A7C15) + 1;
    }
    return version;
}

/* epochs: of each row, the one that the state is ready for. version: of the table when that was found out. */
void sm_follow(sm_reader *r, uint64_t version, const uint32_t *epochs, uint32_t rows)
{
    rows = rows < SM_MAX_PARTITIONS ? rows : SM_MAX_PARTITIONS;
    r->following = 1;
    r->version = version;
    memset(r->followed, 0, sizeof r->followed);
    memcpy(r->followed, epochs, rows * sizeof *epochs);
}

int sm_has_followed(const sm_reader *r) { return !r->following || sm_partition_version(r->control) == r->version; }

/* Of `count` rows from `first` on, *count that are of one partition; its number. SM_NO_SLOT: of none. */
uint32_t sm_partition_of(sm_reader *r, const sm_frame *f, const sm_frame *shared, uint32_t first, uint32_t *count)
{
    uint32_t all = atomic_load_explicit(&r->control->partition_count, memory_order_acquire);
    if (likely(!all))
        return SM_NO_SLOT;
    uint32_t width = sm_split_by(r->keying.slots, all, 0).mask + 1;
    if (f->kind & SM_FRAME_ORIGIN)
        return sm_split_of(r->control, r->keying.slots, sm_origin_of(shared, f)->partition).base / width;
    uint32_t n = 1;
    sm_slots_in_frame(r, f, shared, first, *count);
    while (n < *count && r->slots[n] != SM_NO_SLOT && r->slots[n] / width == r->slots[0] / width)
        n++;
    *count = n;
    return r->slots[0] == SM_NO_SLOT ? SM_NO_SLOT : r->slots[0] / width;
}

/* The event on trial is of a row of a lane: which slot waits for it. */
void sm_note_trial(sm_reader *r, uint32_t trial, const sm_frame *f)
{
    const sm_trial_view *t = &r->trial[trial];
    sm_slots_in_frame(r, f, sm_frame_at(r, &r->ends[t->seat], t->position), t->row, 1);
    r->trial_slot[trial] = r->slots[0];
}

int sm_waits_for_trial(const sm_reader *r, uint32_t slot)
{
    for (uint32_t i = 0; i < SM_TRIALS && slot != SM_NO_SLOT; i++)
        if ((r->trial[i].state == SM_TRIAL_WAITS || r->trial[i].state == SM_TRIAL_DIED) && r->trial_slot[i] == slot)
            return 1;
    return 0;
}
