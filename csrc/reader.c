/* role: worker
 * Choosing a batch, and sleeping while there is none. A batch is a list of spans; a span is a run of rows of one frame that are
 * not done yet and not held. Each lane is read in turn.
 */
#include "reader.h"

#include <stdlib.h>
#include <string.h>

enum {
    GATHER_BYTES = 1 << 20, /* small frames are gathered up to this: it stays in the second-level cache */
    SOLO_BYTES = 1 << 15    /* from here on a copy costs more than a batch does */
};

/* g: the copy that was checked when the segment was attached; the one in memory may say anything by now */
sm_reader *sm_reader_new(void *control, const sm_geometry *g, void *inbox, int inbox_fd, uint32_t shard,
                         uint32_t max_rows)
{
    sm_reader *r = calloc(1, sizeof *r);
    if (!r)
        return NULL;
    r->control = control;
    r->shard = sm_shard_at(control, shard);
    r->inbox = inbox;
    sm_file_of(r, inbox_fd);
    r->lane_bytes = g->lane_bytes;
    r->row_bytes = g->row_bytes;
    r->keying = sm_keying_of(g);
    r->number = shard;
    sm_orders(r);
    r->max_producers = g->max_producers;
    r->max_rows = max_rows;
    r->solo_rows = max_rows / 4 ? max_rows / 4 : 1;
    r->busy_ns = atomic_load_explicit(&r->shard->worker_busy_ns, memory_order_relaxed);
    r->batches = atomic_load_explicit(&r->shard->worker_batches, memory_order_relaxed);
    r->total_rows = atomic_load_explicit(&r->shard->worker_rows, memory_order_relaxed);
    r->waited_us = atomic_load_explicit(&r->shard->worker_waited_us, memory_order_relaxed);
    r->incarnation = atomic_load_explicit(&r->shard->worker_incarnation, memory_order_relaxed);
    r->ends = calloc(g->max_producers, sizeof *r->ends);
    r->open = calloc(g->max_producers, sizeof *r->open);
    r->skipped = calloc(g->slots, sizeof *r->skipped);
    r->spans = calloc(max_rows, sizeof *r->spans);
    r->spare = calloc(max_rows, sizeof *r->spare);
    r->range = calloc(SM_RANGES, sizeof *r->range);
    r->load = sm_load_new(g->slots);
    if (!r->ends || !r->open || !r->skipped || !r->spans || !r->spare || !r->range || !r->load) {
        sm_reader_free(r);
        return NULL;
    }
    sm_attempt_load(r);
    return r;
}

void sm_reader_free(sm_reader *r)
{
    free(r->ends);
    free(r->open);
    free(r->skipped);
    free(r->spans);
    free(r->spare);
    free(r->range);
    sm_load_free(r->load);
    free(r);
}

/* ---- dropping what the producer asks to be dropped -------------------------------------------------------------- */

static int is_done(const sm_frame *shared, uint32_t row)
{
    return atomic_load_explicit(&sm_done_bits(shared)[row / 64], memory_order_relaxed) >> (row % 64) & 1;
}

/* What the producer asks to be dropped (N2: pairs with N1 in sm_evict), if there is anything of it. */
static uint64_t evicted_until(const sm_end *e, uint64_t tail)
{
    uint64_t until = atomic_load_explicit(&e->lane->evict, memory_order_seq_cst);
    return until > e->head && e->head < tail && !e->in_hand ? until : 0;
}

/* The producer asked for the oldest frames to be dropped: from the head on, unless rows of this lane are in hand. Rows that
 * are held back are dropped like others, or a producer that does not want to wait would wait for a handoff. */
static int shed(sm_reader *r, sm_end *e)
{
    uint64_t until = evicted_until(e, e->tail);
    sm_frame f;
    if (likely(!until))
        return SM_OK;
    while (e->head < until && e->head < e->tail) {
        int status = sm_read_frame(r, e, e->head, &f);
        if (status != SM_OK)
            return status;
        if (f.kind != SM_FRAME_PAD) {
            const sm_frame *shared = sm_frame_at(r, e, e->head);
            uint32_t done = 0;
            for (uint32_t row = 0; row < f.rows; row++)
                done += (uint32_t)is_done(shared, row);
            done = done < f.quarantined ? f.quarantined : done;
            e->shed += f.rows - done;
            sm_count_done(e, &f, shared, done);
        }
        e->head += f.length;
    }
    e->cursor = e->cursor > e->head ? e->cursor : e->head;
    e->row = 0; /* nothing is in hand: rows that were taken of a frame that is left say so by their bits */
    sm_release(e);
    return SM_OK;
}

/* ---- choosing a batch ------------------------------------------------------------------------------------------- */

/*
 * K2: pairs with K1: read after the tail that showed the row. A slot of which a row was passed over stays held here until
 * the lanes are gone over again from their heads, even if the hold falls meanwhile: a row that came later must not be
 * handled before the one that was passed over.
 */
static int is_held(sm_reader *r, uint32_t slot)
{
    if (slot == SM_NO_SLOT)
        return 0;
    if (r->skipped[slot])
        return 1;
    uint64_t word = atomic_load_explicit(&sm_hold_at(r->control, slot)->hold_word, memory_order_seq_cst);
    if (SM_HOLD_PHASE(word) == SM_MOVE_NONE || SM_HOLD_TARGET(word) != r->number)
        return 0;
    r->skipped[slot] = 1;
    r->skipping++;
    return 1;
}

/* With state by partition the same key may be in several slots, and what waits is the slot: a later offset of it that was
 * handled before would be taken for all of them. */
static int waits_for_trial(sm_reader *r, uint32_t seat, const sm_span *at, uint32_t n)
{
    if (r->following && r->slots[n] != SM_NO_SLOT)
        return sm_waits_for_trial(r, r->slots[n]);
    return sm_is_kept_back(r, seat, at->position, at->first + n, r->hashes[n]);
}

/* How many of the rows from `from` on, of `count` whose slots and hashes are known, are kept back, or are not. */
static uint32_t run_of(sm_reader *r, uint32_t seat, const sm_span *at, uint32_t holds, uint32_t from, int kept_back)
{
    uint32_t n = from;
    while (n < at->count &&
           ((holds && is_held(r, r->slots[n])) || (r->kept_back && waits_for_trial(r, seat, at, n))) == kept_back)
        n++;
    return n - from;
}

/* The first run, from `first` on, of rows that are not done and not kept back: slots are on their way here, keys are of
 * events on trial. *count 0: none is left in this frame. */
static uint32_t next_run(sm_reader *r, uint32_t seat, const sm_frame *f, const sm_frame *shared, uint32_t first,
                         uint32_t holds, uint32_t *count)
{
    sm_end *e = &r->ends[seat];
    first = sm_next_row(shared, f->rows, first, 0);
    while (first < f->rows) {
        *count = sm_next_row(shared, f->rows, first, 1) - first;
        if (likely(!holds && !r->kept_back))
            return first;
        if (holds || r->following)
            sm_slots_in_frame(r, f, shared, first, *count);
        if (r->kept_back)
            sm_hashes_in_frame(r, f, shared, first, *count);
        const sm_span at = {.position = e->cursor, .first = first, .count = *count};
        uint32_t skip = run_of(r, seat, &at, holds, 0, 1), run = run_of(r, seat, &at, holds, skip, 0);
        if (skip)
            e->range = 0; /* what comes now is not next to what was taken before */
        if (run) {
            *count = run;
            return first + skip;
        }
        first = sm_next_row(shared, f->rows, first + skip, 0);
    }
    *count = 0;
    return f->rows;
}

enum { MORE, COMPLETE, DEFERRED }; /* what take says: the batch can take more; is complete; and this lane is next */

/* Done to the last row while the head was behind it: by a worker that died since, or around a held row. If no more rows
 * come, no commit will move the head over it, and who waits for that would wait for ever. */
static int pass_done(sm_reader *r, sm_end *e, uint64_t length)
{
    e->cursor += length;
    e->row = 0;
    int status = sm_advance_head(r, e);
    if (e->moved)
        sm_release(e);
    return status;
}

/* So many rows, from row `first` of the frame at the cursor; the cursor passes them. */
static inline int take_span(sm_reader *r, sm_end *e, uint32_t seat, const sm_frame *f, uint32_t first, uint32_t count,
                            sm_batch *b)
{
    uint8_t *body = (uint8_t *)sm_frame_at(r, e, e->cursor) + sm_prefix(f->rows);
    sm_span *span = &r->spans[r->span_count];
    *span = (sm_span){.position = e->cursor,
                      .sequence = f->sequence + first,
                      .sent_ns = f->sent_ns,
                      .count = count,
                      .first = first,
                      .frame_rows = f->rows,
                      .frame_length = f->length,
                      .seat = seat,
                      .kind = f->kind & SM_FRAME_MORE};
    if (r->row_bytes) {
        span->rows = body + first * r->row_bytes;
        b->bytes += count * r->row_bytes;
    } else {
        span->rows = body + first * sizeof(sm_index);
        span->bytes = body + f->rows * sizeof(sm_index);
        span->bytes_length = f->bytes;
        if (unlikely(!sm_entries_hold(span)))
            return SM_CORRUPT;
        b->bytes += f->bytes;
    }
    r->span_count++;
    b->rows += count;
    e->in_hand = 1;
    e->row = first + count;
    e->chosen = 1;
    if (e->row == f->rows) {
        e->cursor += f->length;
        e->row = 0;
    }
    if (r->deferring)
        sm_take_range(r, e, span);
    return SM_OK;
}

/* Of the frame of a partition at the cursor: SM_ORIGIN_WAITS, or SM_ORIGIN_TAKE, also when nothing of it is left to be taken.
 * Then what is behind it is looked at too; as ever the holds after the tail. */
static int judge(sm_reader *r, sm_end *e, const sm_frame *f, uint32_t *holds)
{
    int judged = sm_judge_origin(r, f, sm_frame_at(r, e, e->cursor), e);
    if (judged != SM_ORIGIN_LOST)
        return judged;
    int status = sm_shed_lost(r, e, f);
    if (status == SM_OK)
        status = sm_refresh_tail(r, e);
    *holds = atomic_load_explicit(&r->shard->shard_holds, memory_order_seq_cst);
    return status == SM_OK ? SM_ORIGIN_TAKE : status;
}

static int take(sm_reader *r, uint32_t seat, uint32_t quota, sm_batch *b)
{
    sm_end *e = &r->ends[seat];
    sm_frame f;
    int status = SM_OK;
    e->unleased = NULL;
    if (e->cursor == e->tail || e->head == e->cursor)
        status = sm_refresh_tail(r, e);
    if (status == SM_OK)
        status = shed(r, e);
    /* after the tail: a row of a held slot was published after its hold was set */
    uint32_t holds = atomic_load_explicit(&r->shard->shard_holds, memory_order_seq_cst);
    while (status == SM_OK && quota && e->cursor < e->tail && (r->kind != SM_KIND_SUSPECTS || sm_is_suspect(r, e))) {
        if (r->span_count == r->max_rows || (r->deferring && r->ranges == SM_RANGES))
            return COMPLETE;
        status = sm_read_frame(r, e, e->cursor, &f);
        if (status != SM_OK)
            break;
        if (f.kind == SM_FRAME_PAD) {
            e->cursor += f.length;
            continue;
        }
        sm_frame *shared = sm_frame_at(r, e, e->cursor);
        if (unlikely(f.kind & SM_FRAME_ORIGIN) && (status = judge(r, e, &f, &holds)) != SM_ORIGIN_TAKE) {
            if (status == SM_ORIGIN_WAITS) /* and all behind it: the order of the lane is that of its partitions */
                return MORE;
            break;
        }
        uint32_t count, first = next_run(r, seat, &f, shared, e->row, holds || r->skipping, &count);
        if (!count) {
            status = pass_done(r, e, f.length);
            continue;
        }
        uint32_t partition = r->following ? sm_partition_of(r, &f, shared, first, &count) : SM_NO_SLOT;
        if (r->span_count && partition != b->partition)
            return DEFERRED;
        b->partition = partition;
        /* A large frame travels alone, without a copy; so it waits for the next batch if this one has begun. */
        int solo = r->kind == SM_KIND_ALL && !r->probe &&
                   (count >= r->solo_rows || (f.length >= SOLO_BYTES && count == f.rows));
        if (solo && r->span_count)
            return DEFERRED;
        uint32_t limit = solo ? r->max_rows : quota;
        count = count < limit ? count : limit;
        if (r->kind == SM_KIND_SUSPECTS && e->cursor == e->suspect) {
            if (first >= e->suspect_row)
                break;
            count = count < e->suspect_row - first ? count : e->suspect_row - first;
        }
        status = take_span(r, e, seat, &f, first, count, b);
        if (status != SM_OK)
            break;
        if (solo || b->rows >= r->max_rows || b->bytes >= GATHER_BYTES)
            return COMPLETE;
        quota -= count;
    }
    if (status != SM_OK)
        sm_give_up(e);
    return MORE;
}

/* Of what was in the batch that failed, one lane at a time, the one of the last failure first. When nothing is left of it
 * the record is closed, and lanes are read as ever. */
static int take_suspects(sm_reader *r, sm_batch *b)
{
    for (uint32_t i = 0; i < 2 * r->open_count; i++) {
        uint32_t seat = r->open[i % r->open_count];
        sm_end *e = &r->ends[seat];
        if ((seat == r->suspect_seat) != (i < r->open_count) || e->broken || !sm_is_suspect(r, e))
            continue;
        take(r, seat, r->limit, b);
        if (b->rows || (r->deferring && r->ranges == SM_RANGES))
            return 1;
        e->suspect = e->suspect_row = 0; /* what is left of it is done, or held */
    }
    sm_cleared(r);
    return 0;
}

/* Of lanes that events on trial are of, one at a time: a batch that fails takes no time of others. */
static void take_wary(sm_reader *r, sm_batch *b)
{
    for (uint32_t i = 0; i < r->open_count && !b->rows; i++) {
        uint32_t seat = r->open[r->wary_turn++ % r->open_count];
        sm_end *e = &r->ends[seat];
        if (e->wary && !e->broken && !(r->limit && sm_is_suspect(r, e)))
            take(r, seat, r->probe ? r->probe : e->wary, b);
    }
}

/* Each lane in turn, a quota at a time, so that none starves another. */
static void take_all(sm_reader *r, sm_batch *b)
{
    uint32_t most = r->probe ? r->probe : r->max_rows, quota = r->open_count ? most / r->open_count : 0;
    int full = 0, progress = 1;
    quota = quota ? quota : 1;
    while (!full && progress) {
        uint64_t before = b->rows;
        for (uint32_t i = 0; i < r->open_count && !full; i++) {
            uint32_t turn = (r->turn + i) % r->open_count, left = most - (uint32_t)b->rows;
            const sm_end *e = &r->ends[r->open[turn]];
            if (e->broken || e->wary || (r->limit && sm_is_suspect(r, e)))
                continue;
            int said = take(r, r->open[turn], quota < left ? quota : left, b);
            full = said != MORE || b->rows >= most;
            if (full) /* a frame that was put off comes first next time, or busy neighbours would put it off for ever */
                r->turn = said == DEFERRED ? turn : turn + 1;
        }
        progress = b->rows > before;
    }
}

/* Suspects, lanes of events on trial, and all others take turns, as far as there is something of each. */
static int choose(sm_reader *r, sm_batch *b)
{
    r->span_count = 0;
    *b = (sm_batch){.span = r->spans, .partition = SM_NO_SLOT};
    sm_find_open_lanes(r);
    sm_find_trials(r);
    int full = 0;
    for (uint32_t i = 0; i < SM_KINDS && !b->rows && !full; i++) {
        r->kind = (r->turn_of_kind + i) % SM_KINDS;
        if (r->kind == SM_KIND_ALL)
            take_all(r, b);
        else if (r->kind == SM_KIND_WARY)
            take_wary(r, b);
        else if (r->limit && !(full = take_suspects(r, b)))
            i = UINT32_MAX; /* none are left: their lanes are like others, and were passed over before */
    }
    if (b->rows)
        r->turn_of_kind = r->kind + 1;
    b->spans = r->span_count;
    for (uint32_t i = 0; i < r->open_count; i++) {
        sm_end *e = &r->ends[r->open[i]];
        if (unlikely(e->broken && !e->reported)) {
            e->reported = 1;
            b->broken_seat = r->open[i];
            return SM_CORRUPT; /* said once; what was chosen from other lanes is valid all the same */
        }
    }
    return unlikely(r->holes) && sm_next_hole(r, &b->broken_seat) ? SM_CORRUPT : SM_OK;
}

void sm_probe(sm_reader *r, uint32_t rows) { r->probe = rows; }

uint64_t sm_arrived(sm_reader *r)
{
    uint64_t bytes = 0;
    sm_find_open_lanes(r);
    for (uint32_t i = 0; i < r->open_count; i++)
        bytes += sm_position(atomic_load_explicit(&r->ends[r->open[i]].lane->tail, memory_order_seq_cst));
    return bytes;
}

static int anything_new(sm_reader *r)
{
    sm_find_open_lanes(r);
    for (uint32_t i = 0; i < r->open_count; i++) {
        sm_end *e = &r->ends[r->open[i]];
        if (e->broken)
            continue;
        uint64_t tail = sm_position(atomic_load_explicit(&e->lane->tail, memory_order_seq_cst));
        if ((tail != e->cursor && likely(!sm_is_unleased(e))) || evicted_until(e, tail))
            return 1;
    }
    return 0;
}

/* Something that the caller does not know of yet. D3: read after the doorbell; what is not seen here rings it later (D1 in
 * sm_give_orders; states are stored before sm_wake), and then the futex does not sleep on what was read of it. */
static int has_news(const sm_reader *r)
{
    return atomic_load_explicit(&r->shard->shard_orders, memory_order_seq_cst) != r->orders ||
           atomic_load_explicit(&r->shard->shard_state, memory_order_seq_cst) == SM_SHARD_STOPPED ||
           atomic_load_explicit(&r->control->engine_state, memory_order_seq_cst) == SM_ENGINE_STOPPED ||
           !sm_has_followed(r);
}

static void begin(sm_reader *r, sm_batch *b, int64_t now)
{
    r->since_ns = now;
    sm_attempt_begin(r, b);
    atomic_store_explicit(&r->shard->worker_batch_since_ns, (uint64_t)now, memory_order_relaxed);
    SM_POINT(POLL_TAKEN);
}

int sm_next(sm_reader *r, int64_t spin_ns, int64_t timeout_ns, sm_batch *b)
{
    sm_inbox *inbox = r->inbox;
    uint32_t bell = atomic_load_explicit(&inbox->doorbell, memory_order_seq_cst); /* before the poll */
    if (sm_is_fenced(r)) {
        *b = (sm_batch){.span = r->spans};
        return SM_FENCED;
    }
    int status = choose(r, b);
    int64_t now = sm_clock();
    if (status == SM_OK && !b->rows && timeout_ns > 0) {
        int64_t until = now + sm_spin_begin(&r->spin, spin_ns, now);
        int found = 0;
        while (!found && until > now && sm_clock() < until)
            for (int i = 0; i < 16 && !found; i++) {
                sm_pause();
                found = anything_new(r) || has_news(r);
            }
        if (found) {
            sm_spin_paid(&r->spin, spin_ns);
        } else {
            /* W1: the flag, then the tails. Pairs with P1 in sm_ring. */
            atomic_store_explicit(&inbox->sleeping, 1, memory_order_seq_cst);
            SM_POINT(PARK_RAISED);
            if (!anything_new(r) && !has_news(r)) {
                int64_t asleep = sm_clock();
                status = sm_futex_wait(&inbox->doorbell, bell, timeout_ns);
                sm_spin_slept(&r->spin, spin_ns, sm_clock() - asleep);
            }
            atomic_store_explicit(&inbox->sleeping, 0, memory_order_seq_cst);
        }
        if (status != SM_INTERRUPTED)
            status = choose(r, b);
        now = sm_clock();
    }
    atomic_store_explicit(&r->shard->worker_heartbeat_ns, (uint64_t)now, memory_order_relaxed);
    if (b->rows)
        begin(r, b, now);
    return status;
}

/* The cursor is set to it, so nothing else may be taken before all is gone over again: whatever comes of it does that. */
int sm_next_trial(sm_reader *r, uint32_t trial, sm_batch *b)
{
    const sm_trial_view *t = &r->trial[trial];
    sm_frame f;
    int judged;
    *b = (sm_batch){.span = r->spans};
    r->span_count = 0;
    if (sm_is_fenced(r))
        return SM_FENCED;
    sm_find_open_lanes(r);
    sm_find_trials(r);
    if (!sm_is_left(r, t, &f)) { /* dropped as its producer asked, or its lane is broken */
        sm_free_trial(r, trial);
        return SM_OK;
    }
    sm_end *e = &r->ends[t->seat];
    if (f.kind & SM_FRAME_ORIGIN && (judged = sm_judge_origin(r, &f, sm_frame_at(r, e, t->position), NULL)) != 0) {
        if (judged == SM_ORIGIN_LOST)
            sm_set_run_aside(r, e, t->position, t->row, 1, SM_ASIDE_LOST);
        return SM_OK;
    }
    e->cursor = t->position;
    e->row = t->row;
    e->range = 0;
    if (take_span(r, e, t->seat, &f, t->row, 1, b) != SM_OK) {
        *b = (sm_batch){.span = r->spans};
        sm_free_trial(r, trial);
        return sm_give_up(e);
    }
    e->range = 0;
    uint32_t one = 1;
    b->partition = r->following ? sm_partition_of(r, &f, sm_frame_at(r, e, t->position), t->row, &one) : SM_NO_SLOT;
    b->spans = r->span_count;
    r->kind = SM_KIND_TRIAL;
    r->in_trial = trial + 1;
    r->suspect_seat = t->seat;
    r->suspect_position = t->position;
    r->suspect_row = t->row;
    r->tries = t->tries;
    begin(r, b, sm_clock());
    return SM_OK;
}
