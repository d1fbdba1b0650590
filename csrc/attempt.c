/* role: worker
 * What happens to batches that fail.
 *
 * Before the handler is called the shard's record says how many rows are in hand and which is the first, and each lane how
 * far into it they reach. A handler that raises, or takes its worker with it, leaves that record. Then rows up to there are
 * taken in smaller batches, in turn with those of other lanes, until one row is left that fails alone. It is put on trial:
 * trials.c.
 */
#include "reader.h"

/* ---- the record ------------------------------------------------------------------------------------------------- */

static void narrow(sm_reader *r, uint32_t rows, uint32_t tries, uint32_t limit)
{
    r->tries = rows > 1 ? 0 : tries;
    r->limit = limit && limit < rows ? limit : rows > 1 ? rows / 2 : 1;
    r->streak = 0;
    atomic_store_explicit(&r->shard->attempt_tries, r->tries, memory_order_relaxed);
    atomic_store_explicit(&r->shard->attempt_limit, r->limit, memory_order_relaxed);
}

/* Nothing orders these words: whoever reads them has the lease of a process that is dead, and the kernel was in between.
 * Its batches may have been larger than ours are, or the words be damaged: no batch is larger than max_rows for that. */
void sm_attempt_load(sm_reader *r)
{
    sm_shard *s = r->shard;
    uint32_t rows = atomic_load_explicit(&s->attempt_rows, memory_order_relaxed);
    sm_trials_load(r);
    r->limit = atomic_load_explicit(&s->attempt_limit, memory_order_relaxed);
    if (rows) {
        uint32_t tries = atomic_load_explicit(&s->attempt_tries, memory_order_relaxed) + 1;
        tries = tries && tries <= SM_MOST_TRIES ? tries : 1; /* damaged */
        r->suspect_seat = atomic_load_explicit(&s->attempt_seat, memory_order_relaxed);
        r->suspect_position = atomic_load_explicit(&s->attempt_position, memory_order_relaxed);
        r->suspect_row = atomic_load_explicit(&s->attempt_row, memory_order_relaxed);
        if (rows > 1 || !sm_died_in_trial(r, r->suspect_seat, r->suspect_position, r->suspect_row, tries))
            narrow(r, rows, tries, 0);
        /* It was alone, and is judged before anything else: a batch of others is another attempt, and what this one has
         * had would be forgotten. Beside steady traffic one event killed a worker three hundred times in a minute. */
        if (r->tries)
            r->turn_of_kind = SM_KIND_SUSPECTS;
    }
    r->limit = r->limit < r->max_rows ? r->limit : r->max_rows;
    atomic_store_explicit(&s->attempt_rows, 0, memory_order_relaxed);
}

/* The handler is another one by now, or was mended: nothing is held against an event that it has not been given yet. */
void sm_forgive(sm_reader *r)
{
    sm_cleared(r);
    atomic_store_explicit(&r->shard->attempt_tries, 0, memory_order_relaxed);
    sm_worker_waits(r->control, r->number, SM_WAITING_NONE, 0, 0, 0);
    for (uint32_t i = 0; i < SM_TRIALS; i++)
        if (r->trial[i].state == SM_TRIAL_TAKEN)
            sm_set_trial(r, i, SM_TRIAL_TAKEN, 0, 0);
        else
            sm_free_trial(r, i);
}

void sm_attempt_begin(sm_reader *r, sm_batch *b)
{
    const sm_span *first = r->spans;
    sm_shard *s = r->shard;
    if (b->rows > 1 || first->seat != r->suspect_seat || first->position != r->suspect_position ||
        first->first != r->suspect_row)
        r->tries = 0;
    b->tries = r->tries;
    b->suspected = r->kind != SM_KIND_ALL;
    for (uint32_t i = 0; i < r->open_count; i++) {
        sm_end *e = &r->ends[r->open[i]];
        if (!e->chosen)
            continue;
        e->chosen = 0;
        if (r->kind == SM_KIND_SUSPECTS || r->kind == SM_KIND_TRIAL)
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
    r->span_count = r->rejected = r->in_trial = 0;
    atomic_store_explicit(&s->attempt_rows, 0, memory_order_relaxed);
    atomic_store_explicit(&s->worker_busy_ns, r->busy_ns, memory_order_relaxed);
    atomic_store_explicit(&s->worker_batches, r->batches, memory_order_relaxed);
    atomic_store_explicit(&s->worker_rows, r->total_rows, memory_order_relaxed);
    atomic_store_explicit(&s->worker_waited_us, r->waited_us, memory_order_relaxed);
    atomic_store_explicit(&s->worker_batch_since_ns, 0, memory_order_relaxed);
}

/* What comes next of suspects, and of a lane that events on trial are of, may be more: one of many that fail must not make
 * batches of one row of all the others. Twice as many after two, so that a failure still costs what halving does. */
void sm_attempt_succeeded(sm_reader *r)
{
    if (unlikely(r->kind == SM_KIND_SUSPECTS && ++r->streak >= 2)) {
        r->limit = r->limit < r->max_rows / 2 ? r->limit * 2 : r->max_rows;
        r->streak = 0;
        atomic_store_explicit(&r->shard->attempt_limit, r->limit, memory_order_relaxed);
    }
    if (unlikely(r->kind == SM_KIND_WARY && r->span_count)) {
        sm_end *e = &r->ends[r->spans[0].seat];
        e->wary = e->wary < r->max_rows / 2 ? e->wary * 2 : 0;
    }
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

void sm_count_failed(sm_reader *r, uint64_t rows)
{
    uint64_t took_ns = (uint64_t)(sm_clock() - r->since_ns);
    sm_load_count(r, rows, took_ns, 0);
    r->busy_ns += took_ns;
}

/* From what this process knows itself: the record in shared memory is for successors, and may be damaged. */
int sm_failed(sm_reader *r, uint32_t limit)
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
    narrow(r, rows, 0, limit);
    sm_count_failed(r, rows);
    sm_rescan(r);
    sm_attempt_end(r);
    return SM_OK;
}

/* What it took is counted for nobody: waiting for what is away is no load. */
int sm_try_later(sm_reader *r)
{
    if (sm_is_fenced(r))
        return SM_FENCED;
    sm_rescan(r);
    sm_attempt_end(r);
    return SM_OK;
}

/* ---- one event on trial ----------------------------------------------------------------------------------------- */

enum { WARY_ROWS = 32 };

int sm_put_on_trial(sm_reader *r, uint32_t tries, int64_t due_ns)
{
    const sm_span *span = r->spans;
    if (sm_is_fenced(r))
        return SM_FENCED;
    if (r->span_count != 1 || span->count != 1)
        return SM_TOO_LARGE;
    int trial = (int)r->in_trial - 1;
    if (trial >= 0)
        sm_set_trial(r, (uint32_t)trial, SM_TRIAL_WAITS, tries, due_ns);
    else if ((trial = sm_add_trial(r, span, tries, due_ns)) < 0)
        return trial;
    r->ends[span->seat].wary = WARY_ROWS < r->max_rows ? WARY_ROWS : r->max_rows;
    sm_cleared(r);
    sm_count_failed(r, 1);
    sm_rescan(r);
    sm_attempt_end(r);
    return trial;
}

void sm_end_trial(sm_reader *r, uint32_t trial)
{
    sm_free_trial(r, trial);
    sm_rescan(r);
}

/* The handler gets it from the quarantine: it is in no lane, and what a successor has to know is the same. */
void sm_begin_taken(sm_reader *r, uint32_t trial)
{
    const sm_trial_view *t = &r->trial[trial];
    sm_shard *s = r->shard;
    r->since_ns = sm_clock();
    atomic_store_explicit(&s->attempt_seat, t->seat, memory_order_relaxed);
    atomic_store_explicit(&s->attempt_position, t->position, memory_order_relaxed);
    atomic_store_explicit(&s->attempt_row, t->row, memory_order_relaxed);
    atomic_store_explicit(&s->attempt_tries, t->tries, memory_order_relaxed);
    atomic_store_explicit(&s->attempt_rows, 1, memory_order_relaxed);
    atomic_store_explicit(&s->worker_batch_since_ns, (uint64_t)r->since_ns, memory_order_relaxed);
}

void sm_end_taken(sm_reader *r, uint32_t handled)
{
    r->kind = SM_KIND_TRIAL;
    r->total_rows += handled;
    r->batches += handled;
    sm_attempt_end(r);
}

uint64_t sm_handled(const sm_reader *r) { return r->total_rows; }

/* ---- events set aside ------------------------------------------------------------------------------------------- */

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
