/* role: worker
 * What happens to batches that fail.
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

/* ---- the record ------------------------------------------------------------------------------------------------- */

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
static void attempt_end(sm_reader *r)
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
    attempt_end(r);
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

static void count_failed(sm_reader *r, uint64_t rows)
{
    uint64_t took_ns = (uint64_t)(sm_clock() - r->since_ns);
    sm_load_count(r, rows, took_ns, 0);
    r->busy_ns += took_ns;
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
    count_failed(r, rows);
    sm_rescan(r);
    attempt_end(r);
    return SM_OK;
}

/* ---- one event set aside ---------------------------------------------------------------------------------------- */

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
    count_failed(r, 1);
    status = sm_advance_head(r, e);
    e->in_hand = (uint8_t)r->deferring;
    if (e->moved)
        sm_release(e);
    attempt_end(r);
    return status == SM_OK ? SM_OK : sm_give_up(e);
}
