/* role: worker
 * Rows that are done and were not handled: in quarantine, applied already, or of an earlier epoch of their partition.
 *
 * The frame counts such rows, and the done bit says that the row needs no handler. Several words cannot be stored at once, so
 * the lane says first what all are to become: a successor does it again, and nothing is counted twice.
 */
#include "reader.h"

void sm_set_done(sm_frame *shared, uint32_t first, uint32_t count)
{
    for (uint32_t row = first, end = first + count; row < end;) {
        uint32_t shift = row % 64, n = end - row < 64 - shift ? end - row : 64 - shift;
        uint64_t bits = (n == 64 ? ~UINT64_C(0) : (UINT64_C(1) << n) - 1) << shift;
        _Atomic uint64_t *word = &sm_done_bits(shared)[row / 64];
        atomic_store_explicit(word, atomic_load_explicit(word, memory_order_relaxed) | bits, memory_order_relaxed);
        row += n;
    }
}

static void count(sm_frame *shared, const sm_frame *f, uint32_t why, uint32_t rows)
{
    if (why == SM_ASIDE_QUARANTINED)
        shared->quarantined = (uint16_t)rows;
    else
        sm_origin_of(shared, f)->aside[why - 1] = rows;
}

static uint32_t counted(const sm_frame *shared, const sm_frame *f, uint32_t why)
{
    return why == SM_ASIDE_QUARANTINED ? f->quarantined : sm_origin_of(shared, f)->aside[why - 1];
}

static void set_aside(sm_end *e, sm_frame *shared, const sm_frame *f, uint32_t row, uint32_t rows, uint32_t why)
{
    uint32_t all = counted(shared, f, why) + rows;
    SM_POINT(ASIDE_STORED);
    atomic_store_explicit(&e->lane->aside_row, row | (uint64_t)rows << 16 | (uint64_t)all << 32, memory_order_relaxed);
    /* release, after the row, for the compiler */
    atomic_store_explicit(&e->lane->aside, f->position | why << 1 | 1, memory_order_release);
    SM_POINT(ASIDE_ACTING);
    count(shared, f, why, all);
    sm_set_done(shared, row, rows);
    SM_POINT(ASIDE_MARKED);
    atomic_store_explicit(&e->lane->aside, 0, memory_order_release);
}

/* Those of `count` rows that are not done: others were set aside in an earlier life. */
int sm_set_run_aside(sm_reader *r, sm_end *e, uint64_t position, uint32_t row, uint32_t count, uint32_t why)
{
    sm_frame f;
    int status = sm_read_frame(r, e, position, &f);
    if (status != SM_OK)
        return status;
    if (f.kind == SM_FRAME_PAD || row >= f.rows || (why != SM_ASIDE_QUARANTINED && !(f.kind & SM_FRAME_ORIGIN)))
        return SM_OK;
    sm_frame *shared = sm_frame_at(r, e, position);
    uint32_t end = count < f.rows - row ? row + count : f.rows;
    while ((row = sm_next_row(shared, f.rows, row, 0)) < end) {
        uint32_t run = sm_next_row(shared, f.rows, row, 1) - row;
        run = run < end - row ? run : end - row;
        set_aside(e, shared, &f, row, run, why);
        f.quarantined += why == SM_ASIDE_QUARANTINED ? (uint16_t)run : 0;
        row += run;
    }
    return SM_OK;
}

/* What the last worker of this lane was about when it died; the tail is known. */
void sm_finish_aside(sm_reader *r, sm_end *e)
{
    sm_frame f;
    uint64_t aside = atomic_load_explicit(&e->lane->aside, memory_order_acquire), at = sm_position(aside);
    if (!(aside & 1))
        return;
    uint64_t word = atomic_load_explicit(&e->lane->aside_row, memory_order_relaxed);
    uint32_t row = (uint16_t)word, rows = (uint16_t)(word >> 16), all = (uint32_t)(word >> 32);
    uint32_t why = aside >> 1 & 3;
    if (at >= e->head && at < e->tail && sm_read_frame(r, e, at, &f) == SM_OK && f.kind != SM_FRAME_PAD &&
        row < f.rows && rows && rows <= f.rows - row && all <= f.rows && why < SM_ASIDES &&
        (why == SM_ASIDE_QUARANTINED || f.kind & SM_FRAME_ORIGIN)) {
        sm_frame *shared = sm_frame_at(r, e, at);
        count(shared, &f, why, all);
        sm_set_done(shared, row, rows);
    }
    atomic_store_explicit(&e->lane->aside, 0, memory_order_release);
}
