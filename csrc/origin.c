/* role: worker
 * Frames of a partition: whether they may be taken now, those of an earlier epoch shed, and rows that were applied already.
 */
#include "reader.h"

static int is_over(uint64_t until_ns)
{
    struct timespec t;
    if (!until_ns)
        return 0;
    clock_gettime(CLOCK_BOOTTIME, &t);
    return until_ns <= (uint64_t)t.tv_sec * 1000000000 + (uint64_t)t.tv_nsec;
}

/* Q2: pairs with Q1 in partition.c. The epoch is looked at for each frame that is taken, and then the lease: a host that was
 * frozen finds that it is over before it finds that the partition is another's. */
int sm_judge_origin(sm_reader *r, const sm_frame *f, const sm_frame *shared, sm_end *waits)
{
    const sm_origin *origin = sm_origin_of(shared, f);
    uint32_t row = origin->partition;
    if (unlikely(row >= SM_MAX_PARTITIONS))
        return SM_CORRUPT;
    const sm_partition *p = sm_partition_at(r->control, row);
    uint32_t epoch = atomic_load_explicit(&p->partition_epoch, memory_order_acquire);
    if (unlikely(epoch != origin->epoch))
        return SM_ORIGIN_LOST;
    uint64_t until = atomic_load_explicit(&p->partition_until, memory_order_acquire);
    if (likely(!is_over(until) && (!r->following || r->followed[row] == epoch)))
        return SM_ORIGIN_TAKE;
    if (waits) {
        waits->unleased = p;
        waits->epoch_seen = epoch;
        waits->until_seen = until;
    }
    return SM_ORIGIN_WAITS;
}

/* Whether the lease that this lane waits for is still the one that was over: without a look at the clock, so that a worker
 * that looks for news finds none. */
int sm_is_unleased(const sm_end *e)
{
    return e->unleased && atomic_load_explicit(&e->unleased->partition_until, memory_order_acquire) == e->until_seen &&
           atomic_load_explicit(&e->unleased->partition_epoch, memory_order_acquire) == e->epoch_seen;
}

/* Of the frame at the cursor, the rows that nobody has taken yet: rows in hand, or deferred, go their way. */
int sm_shed_lost(sm_reader *r, sm_end *e, const sm_frame *f)
{
    const sm_frame *shared = sm_frame_at(r, e, e->cursor);
    SM_POINT(SHED_LOST);
    for (uint32_t row = sm_next_row(shared, f->rows, e->row, 0); row < f->rows;) {
        uint32_t count = sm_next_row(shared, f->rows, row, 1) - row;
        int status = sm_set_run_aside(r, e, e->cursor, row, count, SM_ASIDE_LOST);
        if (status != SM_OK)
            return status;
        row = sm_next_row(shared, f->rows, row + count, 0);
    }
    return SM_OK;
}

int sm_trial_waits(sm_reader *r, uint32_t trial)
{
    sm_frame f;
    const sm_trial_view *t = &r->trial[trial];
    if (!sm_is_left(r, t, &f) || !(f.kind & SM_FRAME_ORIGIN))
        return 0;
    sm_end *e = &r->ends[t->seat];
    return sm_judge_origin(r, &f, sm_frame_at(r, e, t->position), NULL) == SM_ORIGIN_WAITS;
}

/* ---- rows that were applied already ----------------------------------------------------------------------------- */

static sm_span part_of(const sm_span *span, uint32_t from, uint32_t count)
{
    sm_span part = *span;
    part.rows += from * sizeof(sm_index);
    part.first += from;
    part.sequence += from;
    part.count = count;
    return part;
}

/* rows[from...] that all stay, or all go, as the first of them does */
static uint32_t run_from(const uint8_t *rows, uint32_t from, uint32_t count)
{
    uint32_t end = from + 1;
    while (end < count && !rows[end] == !rows[from])
        end++;
    return end - from;
}

int sm_skip_rows(sm_reader *r, const uint8_t *rows, sm_batch *b, sm_range *ranges)
{
    uint32_t stay = 0, gone = 0;
    uint64_t left = 0;
    for (uint32_t s = 0; s < r->span_count; s++) {
        const sm_span *span = &r->spans[s];
        for (uint32_t from = 0, n; from < span->count; from += n) {
            n = run_from(rows, from, span->count);
            if (!rows[from]) {
                r->spare[stay++] = part_of(span, from, n);
                left += n;
                continue;
            }
            if (!(span->kind & SM_FRAME_ORIGIN))
                return SM_GEOMETRY;
            ranges[gone++] = (sm_range){.position = span->position,
                                        .to = span->position,
                                        .seat = span->seat,
                                        .row = span->first + from,
                                        .to_row = span->first + from + n,
                                        .rejected = 1 + SM_ASIDE_SKIPPED};
        }
        rows += span->count;
    }
    sm_span *spans = r->spans;
    r->spans = r->spare;
    r->spare = spans;
    r->span_count = b->spans = stay;
    b->span = r->spans;
    b->rows = left;
    return (int)gone;
}
