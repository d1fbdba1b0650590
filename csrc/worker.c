/* role: worker
 * One worker's end of its inbox. A batch is a list of spans; a span is a run of rows of one frame that are not
 * done yet. Committing sets done bits where a frame is not finished by its span, and moves the head over the
 * frames that are all done. What is in front of the head is never looked at again; what is behind it and not
 * done comes again after a crash.
 *
 * Everything read from a lane is compared with the geometry first, and frame headers are copied before they are
 * judged, so that a producer gone mad can spoil its own lane and nothing else.
 */
#include "reader.h"

#include <stdlib.h>
#include <string.h>

enum {
    GATHER_BYTES = 1 << 20, /* small frames are gathered up to this: it stays in the second-level cache */
    SOLO_BYTES = 1 << 15    /* from here on a copy costs more than a batch does */
};

/* g: the copy that was checked when the segment was attached; the one in memory may say anything by now */
sm_reader *sm_reader_new(void *control, const sm_geometry *g, void *inbox, uint32_t shard, uint32_t max_rows)
{
    sm_reader *r = calloc(1, sizeof *r);
    if (!r)
        return NULL;
    r->control = control;
    r->shard = sm_shard_at(control, shard);
    r->inbox = inbox;
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
    r->range = calloc(SM_RANGES, sizeof *r->range);
    if (!r->ends || !r->open || !r->skipped || !r->spans || !r->range) {
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
    free(r->range);
    free(r);
}

/* ---- lanes ------------------------------------------------------------------------------------------------------- */

static void open_end(sm_reader *r, uint32_t seat)
{
    sm_end *e = &r->ends[seat];
    sm_lane *lane = sm_lane_at(r->inbox, r->lane_bytes, seat);
    uint64_t word = atomic_load_explicit(&lane->head, memory_order_acquire);
    const sm_ledger *l = &lane->ledger[word & 1];
    e->lane = lane;
    e->data = sm_lane_data(lane);
    e->parity = word & 1;
    e->head = e->cursor = e->tail = sm_position(word);
    e->handled = atomic_load_explicit(&l->ledger_handled, memory_order_relaxed);
    e->quarantined = atomic_load_explicit(&l->ledger_quarantined, memory_order_relaxed);
    e->shed = atomic_load_explicit(&l->ledger_shed, memory_order_relaxed);
    e->open = 1;
    atomic_store_explicit(&lane->broken, 0, memory_order_relaxed); /* a new life looks for itself */
    sm_attempt_open(r, e);
    sm_room_anyway(lane);
    r->open[r->open_count++] = seat;
}

void sm_find_open_lanes(sm_reader *r)
{
    for (uint32_t seat = 0; seat < r->max_producers; seat++)
        if (!r->ends[seat].open &&
            atomic_load_explicit(&r->inbox->lane_open[seat], memory_order_seq_cst)) /* O2: pairs with O1 */
            open_end(r, seat);
}

int sm_refresh_tail(sm_reader *r, sm_end *e)
{
    /* A2: pairs with P0: the frames before this tail are complete. Also the read half of W1 when parking. */
    uint64_t tail = sm_position(atomic_load_explicit(&e->lane->tail, memory_order_seq_cst));
    if (unlikely(tail < e->tail || tail - e->head > r->lane_bytes))
        return SM_CORRUPT;
    e->tail = tail;
    return SM_OK;
}

sm_frame *sm_frame_at(sm_reader *r, sm_end *e, uint64_t position)
{
    return (sm_frame *)(e->data + (position & (r->lane_bytes - 1)));
}

/* The header at `position`, copied and found possible. position < e->tail, both multiples of 16. */
int sm_read_frame(sm_reader *r, sm_end *e, uint64_t position, sm_frame *out)
{
    uint64_t at_end = r->lane_bytes - (position & (r->lane_bytes - 1)), there = e->tail - position;
    const sm_frame *f = sm_frame_at(r, e, position);
    memset(out, 0, sizeof *out);
    out->length = f->length;
    out->kind = f->kind;
    if (out->length % SM_ALIGN || !out->length || out->length > at_end || out->length > there)
        return SM_CORRUPT;
    if (out->kind == SM_FRAME_PAD)
        return out->length == at_end && there > at_end ? SM_OK : SM_CORRUPT;
    if (out->kind != SM_FRAME_DATA || out->length < sizeof *out || out->length > r->lane_bytes / 2)
        return SM_CORRUPT;
    uint32_t length = out->length;
    memcpy(out, f, sizeof *out);
    out->length = length; /* as judged, whatever it says by now */
    out->kind = SM_FRAME_DATA;
    if (!out->rows || out->rows > SM_CHUNK || out->position != position || out->quarantined > out->rows)
        return SM_CORRUPT;
    uint64_t need = sm_prefix(out->rows) +
                    (r->row_bytes ? out->rows * r->row_bytes : out->rows * sizeof(sm_index) + (uint64_t)out->bytes);
    return need <= length ? SM_OK : SM_CORRUPT;
}

/* ---- done bits ------------------------------------------------------------------------------------------------------ */

static int is_done(const sm_frame *shared, uint32_t row)
{
    return atomic_load_explicit(&sm_done_bits(shared)[row / 64], memory_order_relaxed) >> (row % 64) & 1;
}

static uint32_t next_with(const sm_frame *shared, uint32_t rows, uint32_t row, int done)
{
    while (row < rows) {
        uint64_t word = atomic_load_explicit(&sm_done_bits(shared)[row / 64], memory_order_relaxed);
        word = (done ? word : ~word) >> (row % 64);
        if (word) {
            row += (uint32_t)__builtin_ctzll(word);
            return row < rows ? row : rows;
        }
        row += 64 - row % 64;
    }
    return rows;
}

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

/* ---- moving the head -------------------------------------------------------------------------------------------------- */

void sm_release(sm_end *e)
{
    uint32_t other = e->parity ^ 1;
    sm_ledger *l = &e->lane->ledger[other];
    /* L1: release, so that an observer who sees one of these also sees the head that made the other copy current,
     * and notices on its second look that it had read a copy in the making (L2 in sm_view_lane) */
    atomic_store_explicit(&l->ledger_handled, e->handled, memory_order_release);
    atomic_store_explicit(&l->ledger_quarantined, e->quarantined, memory_order_release);
    atomic_store_explicit(&l->ledger_shed, e->shed, memory_order_release);
    SM_POINT(COMMIT_COUNTED);
    e->parity = other;
    e->moved = 0;
    /* R0: gives the bytes back (pairs with A1) and publishes the counts; seq_cst because `waiting` is read
     * next: see R1 in park.c. */
    atomic_store_explicit(&e->lane->head, e->head | other, memory_order_seq_cst);
    SM_POINT(COMMIT_RELEASED);
    sm_room(e->lane, e->head);
}

/* This lane is read no more; its producer is told, or it would wait for room for ever. */
int sm_give_up(sm_end *e)
{
    e->broken = 1;
    atomic_store_explicit(&e->lane->broken, 1, memory_order_release);
    return SM_CORRUPT;
}

/* over pads, and over frames that are done to the last row */
int sm_advance_head(sm_reader *r, sm_end *e)
{
    sm_frame f;
    while (e->head < e->cursor || (e->head == e->cursor && e->row)) {
        int status = sm_read_frame(r, e, e->head, &f);
        if (status != SM_OK)
            return status;
        if (f.kind == SM_FRAME_DATA) {
            if (next_with(sm_frame_at(r, e, e->head), f.rows, 0, 0) < f.rows)
                return SM_OK;
            e->handled += f.rows - f.quarantined;
            e->quarantined += f.quarantined;
        }
        e->head += f.length;
        e->moved = 1;
        if (e->cursor < e->head) {
            e->cursor = e->head;
            e->row = 0;
        }
    }
    return SM_OK;
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
        if (f.kind == SM_FRAME_DATA) {
            const sm_frame *shared = sm_frame_at(r, e, e->head);
            uint32_t done = 0;
            for (uint32_t row = 0; row < f.rows; row++)
                done += (uint32_t)is_done(shared, row);
            done = done < f.quarantined ? f.quarantined : done;
            e->handled += done - f.quarantined;
            e->quarantined += f.quarantined;
            e->shed += f.rows - done;
        }
        e->head += f.length;
    }
    e->cursor = e->cursor > e->head ? e->cursor : e->head;
    e->row = 0; /* nothing is in hand: rows that were taken of a frame that is left say so by their bits */
    sm_release(e);
    return SM_OK;
}

/* ---- choosing a batch ---------------------------------------------------------------------------------------------------- */

/* slots[i] of row first + i; SM_NO_SLOT for keyless events, which are never held and never drained by slot */
void sm_slots_in_frame(sm_reader *r, const sm_frame *f, const sm_frame *shared, uint32_t first, uint32_t count)
{
    const uint8_t *body = (const uint8_t *)shared + sm_prefix(f->rows);
    if (r->row_bytes && r->keying.kind != SM_KEY_NONE) {
        sm_slots_of(&r->keying, body + first * r->row_bytes, count, r->slots);
        return;
    }
    const sm_index *index = (const sm_index *)body + first;
    for (uint32_t i = 0; i < count; i++) {
        uint32_t kind = r->row_bytes ? SM_KEY_NONE : SM_META_KIND(index[i].meta);
        uint64_t hash = kind == SM_KEY_NONE ? 0 : kind == SM_KEY_INT ? sm_hash_int(index[i].key) : index[i].key;
        r->slots[i] = kind == SM_KEY_NONE ? SM_NO_SLOT : (uint32_t)hash & (r->keying.slots - 1);
    }
}

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

/* The first run, from `first` on, of rows that are not done and not held; *count 0: none is left in this frame. */
static uint32_t next_run(sm_reader *r, sm_end *e, const sm_frame *f, const sm_frame *shared, uint32_t first,
                         uint32_t holds, uint32_t *count)
{
    first = next_with(shared, f->rows, first, 0);
    while (first < f->rows) {
        *count = next_with(shared, f->rows, first, 1) - first;
        if (likely(!holds))
            return first;
        sm_slots_in_frame(r, f, shared, first, *count);
        uint32_t skip = 0, run = 0;
        while (skip < *count && is_held(r, r->slots[skip]))
            skip++;
        while (skip + run < *count && !is_held(r, r->slots[skip + run]))
            run++;
        if (skip)
            e->range = 0; /* what comes now is not next to what was taken before */
        if (run) {
            *count = run;
            return first + skip;
        }
        first = next_with(shared, f->rows, first + skip, 0);
    }
    *count = 0;
    return f->rows;
}

/* Every entry of the span ends where the next begins, within the frame, and its key fits. */
static int entries_hold(const sm_span *span)
{
    const sm_index *index = (const sm_index *)span->rows;
    uint32_t from = span->first ? index[-1].end : 0;
    for (uint32_t i = 0; i < span->count; i++) {
        uint32_t end = index[i].end;
        if (end < from || end > span->bytes_length || SM_META_LENGTH(index[i].meta) > end - from)
            return 0;
        from = end;
    }
    return 1;
}

enum { MORE, COMPLETE, DEFERRED }; /* what take says: the batch can take more; is complete; and this lane is next */

static int take(sm_reader *r, uint32_t seat, uint32_t quota, sm_batch *b)
{
    sm_end *e = &r->ends[seat];
    sm_frame f;
    int status = SM_OK;
    if (e->cursor == e->tail || e->head == e->cursor)
        status = sm_refresh_tail(r, e);
    if (status == SM_OK)
        status = shed(r, e);
    /* after the tail: a row of a held slot was published after its hold was set */
    uint32_t holds = atomic_load_explicit(&r->shard->shard_holds, memory_order_seq_cst);
    while (status == SM_OK && quota && e->cursor < e->tail && (!r->limit || sm_is_suspect(r, e))) {
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
        uint32_t count, first = next_run(r, e, &f, shared, e->row, holds || r->skipping, &count);
        if (!count) {
            e->cursor += f.length;
            e->row = 0;
            /* Done to the last row while the head was behind it: by a worker that died since, or around a held row. If no
             * more rows come, no commit will move the head over it, and who waits for that would wait for ever. */
            status = sm_advance_head(r, e);
            if (e->moved)
                sm_release(e);
            continue;
        }
        /* A large frame travels alone, without a copy; so it waits for the next batch if this one has begun. */
        int solo = !r->limit && (count >= r->solo_rows || (f.length >= SOLO_BYTES && count == f.rows));
        if (solo && r->span_count)
            return DEFERRED;
        uint32_t limit = solo ? r->max_rows : quota;
        count = count < limit ? count : limit;
        if (r->limit && e->cursor == e->suspect) {
            if (first >= e->suspect_row)
                break;
            count = count < e->suspect_row - first ? count : e->suspect_row - first;
        }
        uint8_t *body = (uint8_t *)shared + sm_prefix(f.rows);
        sm_span *span = &r->spans[r->span_count++];
        *span = (sm_span){.position = e->cursor,
                          .sequence = f.sequence + first,
                          .sent_ns = f.sent_ns,
                          .count = count,
                          .first = first,
                          .frame_rows = f.rows,
                          .frame_length = f.length,
                          .seat = seat};
        if (r->row_bytes) {
            span->rows = body + first * r->row_bytes;
            b->bytes += count * r->row_bytes;
        } else {
            span->rows = body + first * sizeof(sm_index);
            span->bytes = body + f.rows * sizeof(sm_index);
            span->bytes_length = f.bytes;
            if (unlikely(!entries_hold(span))) {
                r->span_count--;
                status = SM_CORRUPT;
                break;
            }
            b->bytes += f.bytes;
        }
        b->rows += count;
        e->in_hand = 1;
        e->row = first + count;
        e->chosen = 1;
        if (e->row == f.rows) {
            e->cursor += f.length;
            e->row = 0;
        }
        if (r->deferring)
            sm_take_range(r, e, span);
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

static int choose(sm_reader *r, sm_batch *b)
{
    r->span_count = 0;
    *b = (sm_batch){.span = r->spans};
    sm_find_open_lanes(r);
    uint32_t quota = r->open_count ? r->max_rows / r->open_count : 0;
    int full = r->limit && take_suspects(r, b), progress = 1;
    quota = quota ? quota : 1;
    while (!full && progress) { /* each lane in turn, a quota at a time, so that none starves another */
        uint64_t before = b->rows;
        for (uint32_t i = 0; i < r->open_count && !full; i++) {
            uint32_t turn = (r->turn + i) % r->open_count, left = r->max_rows - (uint32_t)b->rows;
            if (r->ends[r->open[turn]].broken)
                continue;
            int said = take(r, r->open[turn], quota < left ? quota : left, b);
            full = said != MORE;
            if (full) /* a frame that was put off comes first next time, or busy neighbours would put it off for ever */
                r->turn = said == DEFERRED ? turn : turn + 1;
        }
        progress = b->rows > before;
    }
    b->spans = r->span_count;
    for (uint32_t i = 0; i < r->open_count; i++) {
        sm_end *e = &r->ends[r->open[i]];
        if (unlikely(e->broken && !e->reported)) {
            e->reported = 1;
            b->broken_seat = r->open[i];
            return SM_CORRUPT; /* said once; what was chosen from other lanes is valid all the same */
        }
    }
    return SM_OK;
}

static int anything_new(sm_reader *r)
{
    sm_find_open_lanes(r);
    for (uint32_t i = 0; i < r->open_count; i++) {
        sm_end *e = &r->ends[r->open[i]];
        if (e->broken)
            continue;
        uint64_t tail = sm_position(atomic_load_explicit(&e->lane->tail, memory_order_seq_cst));
        if (tail != e->cursor || evicted_until(e, tail))
            return 1;
    }
    return 0;
}

/* Something that the caller does not know of yet. D3: read after the doorbell; what is not seen here rings it later (D1 in
 * sm_give_orders; states are stored before sm_wake), and then the futex does not sleep on what was read of it. */
static int called(const sm_reader *r)
{
    return atomic_load_explicit(&r->shard->shard_orders, memory_order_seq_cst) != r->orders ||
           atomic_load_explicit(&r->shard->shard_state, memory_order_seq_cst) == SM_SHARD_STOPPED ||
           atomic_load_explicit(&r->control->engine_state, memory_order_seq_cst) == SM_ENGINE_STOPPED;
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
                found = anything_new(r) || called(r);
            }
        if (found) {
            sm_spin_paid(&r->spin, spin_ns);
        } else {
            /* W1: the flag, then the tails. Pairs with P1 in sm_ring. */
            atomic_store_explicit(&inbox->sleeping, 1, memory_order_seq_cst);
            SM_POINT(PARK_RAISED);
            if (!anything_new(r) && !called(r)) {
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
    if (b->rows) {
        r->since_ns = now;
        sm_attempt_begin(r, b);
        atomic_store_explicit(&r->shard->worker_batch_since_ns, (uint64_t)now, memory_order_relaxed);
        SM_POINT(POLL_TAKEN);
    }
    return status;
}

/* ---- the batch in hand ------------------------------------------------------------------------------------------------------ */

/* Records: the rows, packed. Events: an index as in one frame, then the bytes; out_bytes bounds both. */
int sm_gather(const sm_batch *b, uint32_t row_bytes, void *out, uint64_t out_bytes)
{
    if (row_bytes) {
        uint8_t *to = out;
        if (b->rows * row_bytes > out_bytes)
            return SM_GEOMETRY;
        for (uint32_t s = 0; s < b->spans; s++) {
            uint64_t bytes = (uint64_t)b->span[s].count * row_bytes;
            memcpy(to, b->span[s].rows, bytes);
            to += bytes;
        }
        return SM_OK;
    }
    sm_index *to = out;
    uint8_t *bytes = (uint8_t *)out + b->rows * sizeof(sm_index);
    if (b->rows * sizeof(sm_index) > out_bytes)
        return SM_GEOMETRY;
    uint64_t used = 0, room = out_bytes - b->rows * sizeof(sm_index);
    for (uint32_t s = 0; s < b->spans; s++) {
        const sm_span *span = &b->span[s];
        const sm_index *index = (const sm_index *)span->rows;
        uint32_t from = span->first ? index[-1].end : 0, start = from;
        for (uint32_t i = 0; i < span->count; i++) {
            sm_index entry = index[i];
            if (entry.end < from || entry.end > span->bytes_length || entry.end - start > room - used)
                return SM_CORRUPT;
            from = entry.end;
            entry.end = (uint32_t)(used + entry.end - start);
            *to++ = entry;
        }
        memcpy(bytes + used, span->bytes + start, from - start);
        used += from - start;
    }
    return SM_OK;
}

/* After a handler has failed: was it the handler's fault, or did a frame change under it? Every lane is looked at. */
int sm_recheck(sm_reader *r)
{
    int status = SM_OK;
    for (uint32_t s = 0; s < r->span_count; s++) {
        const sm_span *span = &r->spans[s];
        sm_end *e = &r->ends[span->seat];
        sm_frame f;
        if (sm_read_frame(r, e, span->position, &f) != SM_OK || f.rows != span->frame_rows ||
            f.length != span->frame_length || (!r->row_bytes && (f.bytes != span->bytes_length || !entries_hold(span))))
            status = sm_give_up(e);
    }
    return status;
}

/* The sum is in microseconds, and what divides leaves over is kept: of nanoseconds, 64 bits are full after five hours of a
 * million rows a second that waited for a second each. */
static void count_latency(sm_reader *r, int64_t ns, uint64_t rows)
{
    uint32_t bucket = 0;
    if (ns > 0) {
        r->waited_us += (uint64_t)ns / 1000 * rows;
        r->waited_rest += (uint64_t)ns % 1000 * rows;
    }
    if (ns >= 4) {
        uint32_t top = 63 - (uint32_t)__builtin_clzll((uint64_t)ns);
        bucket = (top - 1) * 4 + ((uint64_t)ns >> (top - 2) & 3);
    } else if (ns > 0) {
        bucket = (uint32_t)ns;
    }
    if (bucket >= SM_HISTOGRAM)
        bucket = SM_HISTOGRAM - 1;
    _Atomic uint64_t *word = &r->shard->worker_latency[bucket];
    atomic_store_explicit(&r->shard->worker_latency[bucket], atomic_load_explicit(word, memory_order_relaxed) + rows,
                          memory_order_relaxed);
}

/*
 * How many rows of each slot are handled, for placement by load. One span in eight is counted, eight-fold: hashing keys
 * again costs 3 ns a row. A slot's word has one writer at a time, its owner; ownership changes hands by handoff.
 */
static void count_slots(sm_reader *r, const sm_span *span, const sm_frame *shared)
{
    enum { EVERY = 8 };
    if (++r->sampled % EVERY)
        return;
    sm_frame f = {.rows = span->frame_rows};
    sm_slots_in_frame(r, &f, shared, span->first, span->count);
    for (uint32_t i = 0; i < span->count; i++)
        if (r->slots[i] != SM_NO_SLOT) {
            _Atomic uint64_t *word = &sm_move_at(r->control, r->slots[i])->slot_rows;
            atomic_store_explicit(&sm_move_at(r->control, r->slots[i])->slot_rows,
                                  atomic_load_explicit(word, memory_order_relaxed) + EVERY, memory_order_relaxed);
        }
}

/* What is measured of rows that were handled; before their frame is given back. */
static uint32_t count_span(sm_reader *r, const sm_span *span, int64_t now)
{
    int64_t sent = span->sent_ns; /* it may say anything; no longer than since the host was started did anything wait */
    count_latency(r, sent >= 0 && sent <= now ? now - sent : 0, span->count);
    count_slots(r, span, sm_frame_at(r, &r->ends[span->seat], span->position));
    return span->count;
}

static void count_batch(sm_reader *r, uint64_t rows, int64_t now)
{
    r->busy_ns += (uint64_t)(now - r->since_ns);
    r->batches++;
    r->total_rows += rows;
    r->waited_us += r->waited_rest / 1000;
    r->waited_rest %= 1000;
    uint32_t bucket = rows > 1 ? 64 - (uint32_t)__builtin_clzll(rows - 1) : 0; /* at most 1, 2, 4, 8, ... rows */
    if (bucket >= SM_BATCH_SIZES)
        bucket = SM_BATCH_SIZES - 1;
    _Atomic uint64_t *word = &r->shard->worker_batch_sizes[bucket];
    atomic_store_explicit(&r->shard->worker_batch_sizes[bucket], atomic_load_explicit(word, memory_order_relaxed) + 1,
                          memory_order_relaxed);
}

uint64_t sm_count_deferred(sm_reader *r)
{
    int64_t now = sm_clock();
    uint64_t rows = 0;
    for (uint32_t s = 0; s < r->span_count; s++)
        rows += count_span(r, &r->spans[s], now);
    count_batch(r, rows, now);
    return rows;
}

int sm_commit(sm_reader *r)
{
    int status = SM_OK;
    int64_t now = sm_clock();
    uint64_t rows = 0;
    SM_POINT(COMMIT_ENTERED);
    if (sm_is_fenced(r))
        return SM_FENCED;
    for (uint32_t s = 0; s < r->span_count;
         s++) { /* once over all: a second look at many small frames costs 2 ns each */
        sm_span *span = &r->spans[s];
        sm_end *e = &r->ends[span->seat];
        rows += count_span(r, span, now);
        if (span->position == e->head && span->count == span->frame_rows) {
            e->head += span->frame_length; /* the whole frame at the head: no bits needed to say so */
            e->handled += span->frame_rows;
            e->moved = 1;
            continue;
        }
        sm_set_done(sm_frame_at(r, e, span->position), span->first, span->count);
        SM_POINT(COMMIT_MARKED);
        if (sm_advance_head(r, e) != SM_OK)
            status = sm_give_up(e);
    }
    for (uint32_t s = 0; s < r->span_count; s++) {
        sm_end *e = &r->ends[r->spans[s].seat];
        e->in_hand = 0;
        if (!e->moved)
            continue;
        if (sm_advance_head(r, e) != SM_OK) /* a pad behind the last frame, and frames done earlier */
            status = sm_give_up(e);
        sm_release(e);
    }
    count_batch(r, rows, now);
    sm_attempt_succeeded(r);
    return status;
}

/* ---- handoff ------------------------------------------------------------------------------------------------------------------- */

/* sm_next does not sleep while there are others than these. */
uint32_t sm_orders(sm_reader *r)
{
    r->orders = atomic_load_explicit(&r->shard->shard_orders, memory_order_seq_cst); /* D2: pairs with D1 */
    return r->orders;
}

static int concerns(uint64_t word, uint32_t shard, uint32_t phase)
{
    uint32_t mine = phase == SM_MOVE_DRAINING ? SM_HOLD_SOURCE(word) : SM_HOLD_TARGET(word);
    return SM_HOLD_PHASE(word) == phase && mine == shard;
}

/*
 * A worker looks whenever it has orders, also while a handoff that it has acknowledged ends and the next one of that slot
 * begins. The hold of the one with the number of the other would make it acknowledge a handoff of which it is not the
 * source (found with Spin: FAULT_NUMBER_AFTER_HOLD in tests/model/handoff.pml). So the number is read before the hold and
 * after it; where another handoff has begun in between, its orders are still to come.
 */
uint32_t sm_moves_at(const void *control, const sm_geometry *g, uint32_t shard, uint32_t phase, uint32_t *slots,
                     uint64_t *numbers, uint32_t limit)
{
    uint32_t n = 0;
    for (uint32_t s = 0; s < g->slots && n < limit; s++) {
        const sm_move *m = sm_move_at(control, s);
        const sm_hold *hold = sm_hold_at(control, s);
        if (likely(!concerns(atomic_load_explicit(&hold->hold_word, memory_order_seq_cst), shard, phase)))
            continue;
        uint64_t number = atomic_load_explicit(&m->move_number, memory_order_acquire); /* N2: pairs with N1 */
        uint64_t word = atomic_load_explicit(&hold->hold_word, memory_order_seq_cst);
        if (!concerns(word, shard, phase) || number != atomic_load_explicit(&m->move_number, memory_order_acquire))
            continue;
        numbers[n] = number;
        slots[n++] = s;
    }
    return n;
}

/*
 * Which of the slots still have rows here that are not done. Once the marks have settled no further row of them can come,
 * so a slot without rows is drained for good. Looks at rows, not at heads: with two shards giving slots to each other,
 * each head waits behind rows that the other's hold keeps back.
 */
int sm_undone(sm_reader *r, const uint32_t *slots, uint32_t n, uint8_t *present)
{
    int left = 0;
    sm_frame f;
    memset(present, 1, n);
    uint32_t all = r->keying.slots;
    uint32_t *where = calloc(all, sizeof *where); /* slot -> its place in the list, from 1 */
    if (!where)
        return SM_TIMEOUT; /* nothing was looked at, so nothing may be taken for drained */
    memset(present, 0, n);
    for (uint32_t i = 0; i < n; i++)
        where[slots[i]] = i + 1;
    sm_find_open_lanes(r);
    for (uint32_t i = 0; i < r->open_count; i++) {
        sm_end *e = &r->ends[r->open[i]];
        if (e->broken || sm_refresh_tail(r, e) != SM_OK)
            continue;
        for (uint64_t at = e->head; at < e->tail; at += f.length) {
            if (sm_read_frame(r, e, at, &f) != SM_OK)
                break;
            if (f.kind != SM_FRAME_DATA)
                continue;
            const sm_frame *shared = sm_frame_at(r, e, at);
            for (uint32_t row = next_with(shared, f.rows, 0, 0); row < f.rows;) {
                uint32_t count = next_with(shared, f.rows, row, 1) - row;
                sm_slots_in_frame(r, &f, shared, row, count);
                for (uint32_t k = 0; k < count; k++)
                    if (r->slots[k] != SM_NO_SLOT && where[r->slots[k]] && !present[where[r->slots[k]] - 1] &&
                        !(r->ranges && sm_is_taken(r, r->open[i], at, row + k))) {
                        present[where[r->slots[k]] - 1] = 1;
                        left++;
                    }
                row = next_with(shared, f.rows, row + count, 0);
            }
        }
    }
    free(where);
    return left;
}

void sm_rescan(sm_reader *r)
{
    for (uint32_t i = 0; i < r->open_count; i++) {
        sm_end *e = &r->ends[r->open[i]];
        e->cursor = e->head; /* rows that are done say so by their bits; deferred ones must have been committed */
        e->row = 0;
        e->range = 0;
        e->in_hand = 0;
    }
    r->ranges = 0;
    r->deferred_rows = 0;
    if (r->skipping)
        memset(r->skipped, 0, r->keying.slots);
    r->skipping = 0;
}

/* Y1: after the last row was handled and the state handed over. Pairs with the acquire in sm_view_move. */
void sm_move_drained(void *control, uint32_t slot, uint64_t number)
{
    atomic_store_explicit(&sm_move_at(control, slot)->drained_number, number, memory_order_release);
}

void sm_move_restored(void *control, uint32_t slot, uint64_t number)
{
    atomic_store_explicit(&sm_move_at(control, slot)->restored_number, number, memory_order_release);
}

/* ---- what the worker says about itself ---------------------------------------------------------------------------------------- */

int sm_worker_enter(void *control, uint32_t shard, int64_t pid, uint64_t now_ns)
{
    sm_shard *s = sm_shard_at(control, shard);
    uint64_t lives = atomic_load_explicit(&s->worker_incarnation, memory_order_relaxed);
    atomic_store_explicit(&s->worker_pid, pid, memory_order_relaxed);
    atomic_store_explicit(&s->worker_entered_ns, now_ns, memory_order_relaxed);
    atomic_store_explicit(&s->worker_heartbeat_ns, now_ns, memory_order_relaxed);
    atomic_store_explicit(&s->worker_batch_since_ns, 0, memory_order_relaxed);
    sm_worker_error(control, shard, "", 0);
    atomic_store_explicit(&s->worker_incarnation, lives + 1, memory_order_relaxed);
    atomic_store_explicit(&s->worker_phase, SM_PHASE_BOOTING, memory_order_release);
    return SM_OK;
}

void sm_worker_phase(void *control, uint32_t shard, uint32_t phase)
{
    atomic_store_explicit(&sm_shard_at(control, shard)->worker_phase, phase, memory_order_release);
}

/* X1: release, the copy that is not in force; then the count that makes it so. Pairs with B2 in read_text. */
void sm_worker_error(void *control, uint32_t shard, const char *text, uint32_t bytes)
{
    sm_shard *s = sm_shard_at(control, shard);
    uint64_t count = atomic_load_explicit(&s->error_count, memory_order_relaxed) + 1;
    bytes = bytes < SM_ERROR_BYTES ? bytes : SM_ERROR_BYTES;
    for (uint32_t i = 0; i < bytes; i += 8)
        atomic_store_explicit(&s->error_text[(count & 1) * (SM_ERROR_BYTES / 8) + i / 8], sm_text_word(text, bytes, i),
                              memory_order_release);
    atomic_store_explicit(&s->error_bytes[count & 1], bytes, memory_order_release);
    atomic_store_explicit(&s->error_ns[count & 1], (uint64_t)sm_clock(), memory_order_release);
    atomic_store_explicit(&s->error_count, count, memory_order_seq_cst);
}

void sm_worker_stateful(void *control, uint32_t shard, uint32_t stateful)
{
    atomic_store_explicit(&sm_shard_at(control, shard)->worker_stateful, stateful, memory_order_relaxed);
}

uint32_t sm_worker_orders(const void *control, uint32_t shard)
{
    return atomic_load_explicit(&((const sm_control *)control)->engine_state, memory_order_acquire) |
           atomic_load_explicit(&sm_shard_at(control, shard)->shard_state, memory_order_acquire) << 8;
}
