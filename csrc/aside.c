/* role: worker
 * Rows that are done and were not handled: in quarantine, applied already, or of an earlier epoch of their partition.
 *
 * The frame counts such rows, and the done bit says that the row needs no handler. Several words cannot be stored at once, so
 * the lane says first what all are to become: a successor does it again, and nothing is counted twice.
 */
#include "reader.h"

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

/* What the last worker of this lane was about when it died. */
void sm_finish_aside(sm_reader *r, sm_end *e)
{
    sm_frame f;
    uint64_t aside = atomic_load_explicit(&e->lane->aside, memory_order_acquire), at = sm_position(aside);
    e->suspect = sm_position(atomic_load_explicit(&e->lane->suspect, memory_order_relaxed));
    e->suspect_row = atomic_load_explicit(&e->lane->suspect_row, memory_order_relaxed);
    int status = sm_refresh_tail(r, e);
    if (e->suspect >
        e->tail) /* nobody had that in hand; and a lane of suspects without an end is the only one that is read */
        e->suspect = e->suspect_row = 0;
    if (!(aside & 1))
        return;
    uint64_t word = atomic_load_explicit(&e->lane->aside_row, memory_order_relaxed);
    uint32_t row = (uint16_t)word, rows = (uint16_t)(word >> 16), all = (uint32_t)(word >> 32);
    uint32_t why = aside >> 1 & 3;
    if (at >= e->head && status == SM_OK && at < e->tail && sm_read_frame(r, e, at, &f) == SM_OK &&
        f.kind != SM_FRAME_PAD && row < f.rows && rows && rows <= f.rows - row && all <= f.rows && why < SM_ASIDES &&
        (why == SM_ASIDE_QUARANTINED || f.kind & SM_FRAME_ORIGIN)) {
        sm_frame *shared = sm_frame_at(r, e, at);
        count(shared, &f, why, all);
        sm_set_done(shared, row, rows);
    }
    atomic_store_explicit(&e->lane->aside, 0, memory_order_release);
}

int sm_set_aside(sm_reader *r)
{
    const sm_span *span = r->spans;
    sm_end *e = &r->ends[span->seat];
    if (sm_is_fenced(r))
        return SM_FENCED;
    if (r->span_count != 1 || span->count != 1)
        return SM_TOO_LARGE;
    int status = sm_set_run_aside(r, e, span->position, span->first, 1, SM_ASIDE_QUARANTINED);
    if (status != SM_OK)
        return sm_give_up(e);
    r->tries = 0;
    sm_count_failed(r, 1);
    status = sm_advance_head(r, e);
    e->in_hand = (uint8_t)r->deferring;
    if (e->moved)
        sm_release(e);
    sm_attempt_end(r);
    return status == SM_OK ? SM_OK : sm_give_up(e);
}

int sm_row_in_hand(const sm_reader *r, uint32_t row, sm_range *out)
{
    for (uint32_t i = 0; i < r->span_count; row -= r->spans[i].count, i++) {
        const sm_span *span = &r->spans[i];
        if (row >= span->count)
            continue;
        *out = (sm_range){.position = span->position,
                          .to = span->position,
                          .seat = span->seat,
                          .row = span->first + row,
                          .to_row = span->first + row + 1,
                          .rejected = 1};
        return SM_OK;
    }
    return SM_TOO_LARGE;
}

/* Rows whose done bits are set before the others' are: the commit has to look at them. */
int sm_set_aside_rows(sm_reader *r, const sm_range *rows, uint32_t count)
{
    int status = SM_OK;
    if (sm_is_fenced(r))
        return SM_FENCED;
    sm_find_open_lanes(r);
    for (uint32_t i = 0; i < count; i++) {
        sm_end *e = rows[i].seat < r->max_producers ? &r->ends[rows[i].seat] : NULL;
        if (!e || !e->open || rows[i].position < e->head || rows[i].position >= e->tail)
            continue; /* saved, and committed before the worker died */
        uint32_t why = rows[i].rejected == 1 + SM_ASIDE_SKIPPED ? SM_ASIDE_SKIPPED : SM_ASIDE_QUARANTINED;
        uint32_t count = rows[i].to_row > rows[i].row ? rows[i].to_row - rows[i].row : 0;
        if (sm_set_run_aside(r, e, rows[i].position, rows[i].row, count, why) != SM_OK)
            status = sm_give_up(e);
    }
    r->rejected = 1;
    return status;
}
