/* role: worker
 * What happens to batches that fail, and to batches whose commit waits for the state that they made.
 *
 * Before the handler is called the shard's record says how many rows are in hand and which is the first, and each lane how
 * far into it they reach. A handler that raises, or takes its worker with it, leaves that record. Then only rows up to there
 * are taken, in batches of half the size, until one row is left that fails alone, and is set aside at the limit.
 */
#include "reader.h"

/* The lease sees to it that no two processes are workers of a shard. This is for one that has lost its lease, by a handler
 * that closed descriptors it did not know: it may neither handle nor commit once a successor has entered. */
int sm_is_fenced(const sm_reader *r)
{
    return unlikely(atomic_load_explicit(&r->shard->worker_incarnation, memory_order_relaxed) != r->incarnation);
}

/* ---- the record ------------------------------------------------------------------------------------------------------- */

static void narrow(sm_reader *r, uint32_t rows, uint32_t tries, int again)
{
    r->tries = rows > 1 ? 0 : tries + 1;
    r->limit = again || rows < 2 ? rows : rows / 2;
    atomic_store_explicit(&r->shard->attempt_tries, r->tries, memory_order_relaxed);
    atomic_store_explicit(&r->shard->attempt_limit, r->limit, memory_order_relaxed);
}

/* Nothing orders these words: whoever reads them has the lease of a process that is dead, and the kernel was in between.
 * Its batches may have been larger than ours are, or the words be damaged: no batch is larger than max_rows for that. */
void sm_attempt_load(sm_reader *r)
{
    sm_shard *s = r->shard;
    uint32_t rows = atomic_load_explicit(&s->attempt_rows, memory_order_relaxed);
    r->limit = atomic_load_explicit(&s->attempt_limit, memory_order_relaxed);
    r->in_a_row = atomic_load_explicit(&s->attempt_aside, memory_order_relaxed);
    if (rows) {
        r->suspect_seat = atomic_load_explicit(&s->attempt_seat, memory_order_relaxed);
        r->suspect_position = atomic_load_explicit(&s->attempt_position, memory_order_relaxed);
        r->suspect_row = atomic_load_explicit(&s->attempt_row, memory_order_relaxed);
        narrow(r, rows, atomic_load_explicit(&s->attempt_tries, memory_order_relaxed), 0);
    }
    r->limit = r->limit < r->max_rows ? r->limit : r->max_rows;
    atomic_store_explicit(&s->attempt_rows, 0, memory_order_relaxed);
}

static void count_in_a_row(sm_reader *r, uint32_t events)
{
    r->in_a_row = events;
    atomic_store_explicit(&r->shard->attempt_aside, events, memory_order_relaxed);
}

/* The handler is another one by now, or was mended: nothing is held against an event that it has not been given yet. */
void sm_forgive(sm_reader *r)
{
    sm_cleared(r);
    count_in_a_row(r, 0);
    atomic_store_explicit(&r->shard->attempt_tries, 0, memory_order_relaxed);
}

void sm_attempt_begin(sm_reader *r, sm_batch *b)
{
    const sm_span *first = r->spans;
    sm_shard *s = r->shard;
    if (b->rows > 1 || first->seat != r->suspect_seat || first->position != r->suspect_position ||
        first->first != r->suspect_row)
        r->tries = 0;
    b->tries = r->tries;
    b->in_a_row = r->in_a_row;
    b->suspected = r->limit != 0;
    for (uint32_t i = 0; i < r->open_count; i++) {
        sm_end *e = &r->ends[r->open[i]];
        if (!e->chosen)
            continue;
        e->chosen = 0;
        if (r->limit)
            continue; /* the suspects end where the first failure left them */
        e->suspect = e->cursor;
        e->suspect_row = e->row;
        atomic_store_explicit(&e->lane->suspect, e->suspect, memory_order_relaxed);
        atomic_store_explicit(&e->lane->suspect_row, e->suspect_row, memory_order_relaxed);
    }
    atomic_store_explicit(&s->attempt_seat, first->seat, memory_order_relaxed);
    atomic_store_explicit(&s->attempt_position, first->position, memory_order_relaxed);
    atomic_store_explicit(&s->attempt_row, first->first, memory_order_relaxed);
    atomic_store_explicit(&s->attempt_tries, r->tries, memory_order_relaxed);
    atomic_store_explicit(&s->attempt_rows, (uint32_t)b->rows, memory_order_relaxed);
}

/* The batch in hand is no more. */
void sm_attempt_end(sm_reader *r)
{
    sm_shard *s = r->shard;
    r->span_count = 0;
    atomic_store_explicit(&s->attempt_rows, 0, memory_order_relaxed);
    atomic_store_explicit(&s->worker_busy_ns, r->busy_ns, memory_order_relaxed);
    atomic_store_explicit(&s->worker_batches, r->batches, memory_order_relaxed);
    atomic_store_explicit(&s->worker_rows, r->total_rows, memory_order_relaxed);
    atomic_store_explicit(&s->worker_waited_us, r->waited_us, memory_order_relaxed);
    atomic_store_explicit(&s->worker_batch_since_ns, 0, memory_order_relaxed);
}

void sm_attempt_succeeded(sm_reader *r)
{
    if (unlikely(r->in_a_row))
        count_in_a_row(r, 0);
    sm_attempt_end(r);
}

int sm_is_suspect(const sm_reader *r, const sm_end *e)
{
    return e->cursor < e->suspect || (e->cursor == e->suspect && e->row < e->suspect_row);
}

void sm_cleared(sm_reader *r)
{
    r->limit = r->tries = 0;
    atomic_store_explicit(&r->shard->attempt_limit, 0, memory_order_relaxed);
}

/* From what this process knows itself: the record in shared memory is for successors, and may be damaged. */
int sm_failed(sm_reader *r, int again)
{
    const sm_span *first = r->spans;
    uint32_t rows = 0;
    if (sm_is_fenced(r))
        return SM_FENCED;
    if (!r->span_count)
        return SM_OK;
    for (uint32_t i = 0; i < r->span_count; i++)
        rows += r->spans[i].count;
    r->suspect_seat = first->seat;
    r->suspect_position = first->position;
    r->suspect_row = first->first;
    narrow(r, rows, r->tries, again);
    r->busy_ns += (uint64_t)(sm_clock() - r->since_ns);
    sm_rescan(r);
    sm_attempt_end(r);
    return SM_OK;
}

/* ---- one event set aside ---------------------------------------------------------------------------------------------- */

/*
 * The frame counts its rows that were set aside, and the done bit says that the row needs no handler. Two words cannot be
 * stored at once, so the lane says first what both are to become: a successor does it again, and nothing is counted twice.
 */
int sm_set_aside(sm_reader *r)
{
    sm_frame f;
    const sm_span *span = r->spans;
    sm_end *e = &r->ends[span->seat];
    if (sm_is_fenced(r))
        return SM_FENCED;
    if (r->span_count != 1 || span->count != 1)
        return SM_TOO_LARGE;
    int status = sm_read_frame(r, e, span->position, &f);
    if (status != SM_OK)
        return sm_give_up(e);
    SM_POINT(ASIDE_STORED);
    sm_frame *shared = sm_frame_at(r, e, span->position);
    atomic_store_explicit(&e->lane->aside_row, span->first | (uint64_t)(f.quarantined + 1) << 32, memory_order_relaxed);
    atomic_store_explicit(&e->lane->aside, span->position | 1,
                          memory_order_release); /* after the row, for the compiler */
    SM_POINT(ASIDE_ACTING);
    shared->quarantined = (uint16_t)(f.quarantined + 1);
    sm_set_done(shared, span->first, 1);
    SM_POINT(ASIDE_MARKED);
    atomic_store_explicit(&e->lane->aside, 0, memory_order_release);
    r->tries = 0;
    count_in_a_row(r, r->in_a_row + 1);
    r->busy_ns += (uint64_t)(sm_clock() - r->since_ns);
    status = sm_advance_head(r, e);
    e->in_hand = (uint8_t)r->deferring;
    if (e->moved)
        sm_release(e);
    sm_attempt_end(r);
    return status == SM_OK ? SM_OK : sm_give_up(e);
}

void sm_attempt_open(sm_reader *r, sm_end *e)
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
    uint32_t row = (uint32_t)word, count = (uint32_t)(word >> 32);
    if (at >= e->head && status == SM_OK && at < e->tail && sm_read_frame(r, e, at, &f) == SM_OK && row < f.rows &&
        count <= f.rows) {
        sm_frame *shared = sm_frame_at(r, e, at);
        shared->quarantined = (uint16_t)count;
        sm_set_done(shared, row, 1);
    }
    atomic_store_explicit(&e->lane->aside, 0, memory_order_release);
}

/* ---- commits that wait for state ---------------------------------------------------------------------------------------- */

void sm_defer_commits(sm_reader *r) { r->deferring = 1; }

/* Called for each span that is taken. A range goes on until a held row is passed over: that one is not handled. */
void sm_take_range(sm_reader *r, sm_end *e, const sm_span *span)
{
    if (!e->range) {
        e->range = ++r->ranges;
        r->range[e->range - 1] = (sm_range){.position = span->position, .seat = span->seat, .row = span->first};
    }
    r->range[e->range - 1].to = e->cursor;
    r->range[e->range - 1].to_row = e->row;
}

int sm_defer(sm_reader *r)
{
    SM_POINT(COMMIT_ENTERED);
    if (sm_is_fenced(r))
        return SM_FENCED;
    r->deferred_rows += sm_count_deferred(r);
    sm_attempt_succeeded(r);
    return SM_OK;
}

uint64_t sm_deferred(const sm_reader *r, uint32_t *pressed, uint32_t *awaited)
{
    *pressed = r->ranges >= SM_RANGES - r->open_count;
    *awaited = 0;
    for (uint32_t i = 0; i < r->open_count; i++) {
        const sm_end *e = &r->ends[r->open[i]];
        if (e->broken)
            continue; /* its head moves no more: that is no reason to hurry, and its producer waits in vain */
        *pressed |= e->cursor - e->head >= r->lane_bytes / 2;
        *awaited |= atomic_load_explicit(&e->lane->waiting, memory_order_seq_cst) != 0;
    }
    return r->deferred_rows;
}

const sm_range *sm_ranges(const sm_reader *r, uint32_t *count)
{
    *count = r->ranges;
    SM_POINT(SAVE_BEGUN);
    return r->range;
}

static int before(uint64_t position, uint32_t row, uint64_t to, uint32_t to_row)
{
    return position < to || (position == to && row < to_row);
}

int sm_is_taken(const sm_reader *r, uint32_t seat, uint64_t position, uint32_t row)
{
    for (uint32_t i = 0; i < r->ranges; i++) {
        const sm_range *range = &r->range[i];
        if (range->seat == seat && !before(position, row, range->position, range->row) &&
            before(position, row, range->to, range->to_row))
            return 1;
    }
    return 0;
}

static int commit_range(sm_reader *r, sm_end *e, const sm_range *range)
{
    sm_frame f;
    if (sm_refresh_tail(r, e) != SM_OK || range->to > e->tail || range->position % SM_ALIGN || range->to % SM_ALIGN)
        return SM_CORRUPT;
    uint64_t at = range->position > e->head ? range->position : e->head;
    while (before(at, 0, range->to, range->to_row)) {
        if (at >= e->tail || sm_read_frame(r, e, at, &f) != SM_OK)
            return SM_CORRUPT;
        uint32_t first = at == range->position ? range->row : 0, end = at == range->to ? range->to_row : f.rows;
        if ((f.kind == SM_FRAME_DATA && (first > f.rows || end > f.rows)) ||
            (at < range->to && f.length > range->to - at))
            return SM_CORRUPT;
        if (at == e->head && (f.kind == SM_FRAME_PAD || (!first && end == f.rows))) {
            e->head += f.length;
            e->handled += f.rows - f.quarantined;
            e->quarantined += f.quarantined;
            e->moved = 1;
        } else if (f.kind == SM_FRAME_DATA && end > first) {
            sm_set_done(sm_frame_at(r, e, at), first, end - first);
        }
        at += f.length;
    }
    if (e->cursor < e->head) { /* a successor's, which begins behind what its predecessor handled */
        e->cursor = e->head;
        e->row = 0;
    }
    SM_POINT(SAVE_MARKED);
    return sm_advance_head(r, e);
}

int sm_commit_ranges(sm_reader *r, const sm_range *ranges, uint32_t count)
{
    int status = SM_OK;
    SM_POINT(SAVE_SAVED);
    if (sm_is_fenced(r))
        return SM_FENCED;
    sm_find_open_lanes(r);
    for (uint32_t i = 0; i < count; i++) {
        if (ranges[i].seat >= r->max_producers || !r->ends[ranges[i].seat].open) {
            status = SM_CORRUPT; /* the others are true all the same: left out, their rows would be handled twice */
            continue;
        }
        sm_end *e = &r->ends[ranges[i].seat];
        if (commit_range(r, e, &ranges[i]) !=
            SM_OK) /* of a broken lane, too: what was handled before the damage is handled */
            status = sm_give_up(e);
    }
    for (uint32_t i = 0; i < r->open_count; i++)
        if (r->ends[r->open[i]].moved)
            sm_release(&r->ends[r->open[i]]);
    return status;
}

int sm_commit_deferred(sm_reader *r)
{
    int status = sm_commit_ranges(r, r->range, r->ranges);
    for (uint32_t i = 0; i < r->open_count; i++)
        r->ends[r->open[i]].range = r->ends[r->open[i]].in_hand = 0;
    r->ranges = 0;
    r->deferred_rows = 0;
    return status;
}

uint32_t sm_touched(sm_reader *r, uint8_t *slots)
{
    uint32_t keyless = 0;
    for (uint32_t s = 0; s < r->span_count; s++) {
        const sm_span *span = &r->spans[s];
        sm_frame f = {.rows = span->frame_rows};
        sm_slots_in_frame(r, &f, sm_frame_at(r, &r->ends[span->seat], span->position), span->first, span->count);
        for (uint32_t i = 0; i < span->count; i++)
            if (r->slots[i] != SM_NO_SLOT)
                slots[r->slots[i]] = 1;
            else
                keyless++;
    }
    return keyless;
}
