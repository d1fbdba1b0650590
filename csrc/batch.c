/* role: worker
 * The batch in hand: gathered, checked again, measured, and committed, or deferred until its state is saved. Committing sets
 * done bits where a frame is not finished by its span, and moves the head over the frames that are all done.
 */
#include "reader.h"

#include <string.h>

/* ---- what is in it ---------------------------------------------------------------------------------------------- */

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
            f.length != span->frame_length || (f.kind & SM_FRAME_MORE) != span->kind ||
            (!r->row_bytes && (f.bytes != span->bytes_length || !sm_entries_hold(span))))
            status = sm_give_up(e);
    }
    return status;
}

uint32_t sm_touched(sm_reader *r, uint8_t *slots)
{
    uint32_t keyless = 0;
    for (uint32_t s = 0; s < r->span_count; s++) {
        const sm_span *span = &r->spans[s];
        sm_frame f = sm_frame_of(span);
        sm_slots_in_frame(r, &f, sm_frame_at(r, &r->ends[span->seat], span->position), span->first, span->count);
        for (uint32_t i = 0; i < span->count; i++)
            if (r->slots[i] != SM_NO_SLOT)
                slots[r->slots[i]] = 1;
            else
                keyless++;
    }
    return keyless;
}

/* ---- what is measured of it ------------------------------------------------------------------------------------- */

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

static uint32_t count_span(sm_reader *r, const sm_span *span, int64_t now)
{
    int64_t sent = span->sent_ns; /* it may say anything; no longer than since the host was started did anything wait */
    count_latency(r, sent >= 0 && sent <= now ? now - sent : 0, span->count);
    return span->count;
}

/* before frames are given back */
static void count_batch(sm_reader *r, uint64_t rows, int64_t now)
{
    uint64_t took_ns = (uint64_t)(now - r->since_ns);
    sm_load_count(r, rows, took_ns, 1);
    r->busy_ns += took_ns;
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

/* ---- its end ---------------------------------------------------------------------------------------------------- */

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
        if (likely(!r->rejected) && span->position == e->head && span->count == span->frame_rows) {
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
    count_batch(r, rows, now);
    uint32_t lanes = unlikely(r->rejected) ? r->open_count : r->span_count; /* a lane may have no other rows in hand */
    for (uint32_t s = 0; s < lanes; s++) {
        sm_end *e = &r->ends[unlikely(r->rejected) ? r->open[s] : r->spans[s].seat];
        e->in_hand = 0;
        if (!e->moved && (likely(!r->rejected) || e->broken))
            continue;
        if (sm_advance_head(r, e) != SM_OK) /* a pad behind the last frame, and frames done earlier */
            status = sm_give_up(e);
        if (e->moved)
            sm_release(e);
    }
    sm_attempt_succeeded(r);
    return status;
}

static uint64_t count_deferred(sm_reader *r)
{
    int64_t now = sm_clock();
    uint64_t rows = 0;
    for (uint32_t s = 0; s < r->span_count; s++)
        rows += count_span(r, &r->spans[s], now);
    count_batch(r, rows, now);
    return rows;
}

int sm_defer(sm_reader *r)
{
    SM_POINT(COMMIT_ENTERED);
    if (sm_is_fenced(r))
        return SM_FENCED;
    r->deferred_rows += count_deferred(r);
    sm_attempt_succeeded(r);
    return SM_OK;
}
