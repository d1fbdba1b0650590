/* role: none
 * Frames judged, and what comes with their events read out of them: origins, times, headers. Everything is compared with
 * the frame's length as it was judged: a frame may be written over while it is read.
 */
#include <stddef.h>
#include <string.h>

#include "internal.h"

/* ---- one frame -------------------------------------------------------------------------------------------------- */

static uint64_t needed_bytes(const sm_frame *f, uint64_t row_bytes)
{
    uint32_t more = f->kind & SM_FRAME_MORE;
    if (row_bytes)
        return more ? UINT64_MAX : sm_prefix(f->rows) + f->rows * row_bytes;
    if (likely(!more))
        return sm_prefix(f->rows) + f->rows * sizeof(sm_index) + f->bytes;
    return sm_plain_bytes(f->rows, f->bytes) + sm_more_bytes(more, f->rows);
}

/* The header at `position`, copied and found possible. data: of the lane. position < tail, both multiples of 16. */
int sm_judge_frame(const uint8_t *data, uint64_t lane_bytes, uint64_t row_bytes, uint64_t position, uint64_t tail,
                   sm_frame *out)
{
    uint64_t at_end = lane_bytes - (position & (lane_bytes - 1)), there = tail - position;
    const sm_frame *f = (const sm_frame *)(data + (position & (lane_bytes - 1)));
    memset(out, 0, sizeof *out);
    out->length = f->length;
    out->kind = f->kind;
    if (out->length % SM_ALIGN || !out->length || out->length > at_end || out->length > there)
        return SM_CORRUPT;
    if (out->kind == SM_FRAME_PAD)
        return out->length == at_end && there > at_end ? SM_OK : SM_CORRUPT;
    if ((out->kind & ~SM_FRAME_MORE) != SM_FRAME_DATA || out->length < sizeof *out || out->length > lane_bytes / 2)
        return SM_CORRUPT;
    uint32_t length = out->length;
    uint16_t kind = out->kind;
    memcpy(out, f, sizeof *out);
    out->length = length; /* as judged, whatever it says by now */
    out->kind = kind;
    if (!out->rows || out->rows > SM_CHUNK || out->position != position || out->quarantined > out->rows)
        return SM_CORRUPT;
    return needed_bytes(out, row_bytes) <= length ? SM_OK : SM_CORRUPT;
}

/* ---- a batch ---------------------------------------------------------------------------------------------------- */

/* Where the parts of a span's frame lie; of what its frame lacks nothing may be read. */
typedef struct sm_parts {
    const sm_origin *origin;
    const uint32_t *deltas, *ends;
    const int64_t *times;
    const uint8_t *headers;
    uint64_t header_bytes; /* how many there may be */
} sm_parts;

static sm_parts parts_of(const sm_span *span)
{
    uint64_t rows = span->frame_rows, plain = sm_plain_bytes(rows, span->bytes_length);
    const uint8_t *at = span->bytes + (plain - sm_prefix(rows) - rows * sizeof(sm_index));
    sm_parts parts = {0};
    if (span->kind & SM_FRAME_ORIGIN) {
        parts.origin = (const sm_origin *)at;
        parts.deltas = (const uint32_t *)(at + sizeof(sm_origin));
    }
    parts.times = (const int64_t *)(at + sm_more_bytes(span->kind & SM_FRAME_ORIGIN, rows));
    parts.ends = (const uint32_t *)(at + sm_more_bytes(span->kind & (SM_FRAME_ORIGIN | SM_FRAME_TIMES), rows));
    parts.headers = at + sm_more_bytes(span->kind, rows);
    parts.header_bytes = span->frame_length - plain - sm_more_bytes(span->kind, rows);
    return parts;
}

static int any_has(const sm_batch *b, uint32_t kind)
{
    for (uint32_t s = 0; s < b->spans; s++)
        if (b->span[s].kind & kind)
            return 1;
    return 0;
}

int sm_batch_origins(const sm_batch *b, uint32_t *partitions, uint64_t *offsets)
{
    if (!any_has(b, SM_FRAME_ORIGIN))
        return 0;
    for (uint32_t s = 0; s < b->spans; s++) {
        const sm_span *span = &b->span[s];
        int known = (span->kind & SM_FRAME_ORIGIN) != 0;
        sm_parts parts = parts_of(span);
        for (uint32_t i = 0; i < span->count; i++) {
            *partitions++ = known ? parts.origin->partition : UINT32_MAX;
            *offsets++ = known ? parts.origin->base + parts.deltas[span->first + i] : 0;
        }
    }
    return 1;
}

int sm_batch_times(const sm_batch *b, int64_t *times)
{
    if (!any_has(b, SM_FRAME_TIMES))
        return 0;
    for (uint32_t s = 0; s < b->spans; s++) {
        const sm_span *span = &b->span[s];
        sm_parts parts = parts_of(span);
        for (uint32_t i = 0; i < span->count; i++)
            *times++ = span->kind & SM_FRAME_TIMES ? parts.times[span->first + i] : INT64_MIN;
    }
    return 1;
}

/* The bytes of all headers, one event's behind the other's. Each end is read once: what is checked is what is used. */
int64_t sm_batch_headers(const sm_batch *b, uint64_t *ends, uint8_t *out, uint64_t out_bytes)
{
    uint64_t used = 0;
    if (!any_has(b, SM_FRAME_HEADERS))
        return 0;
    for (uint32_t s = 0; s < b->spans; s++) {
        const sm_span *span = &b->span[s];
        sm_parts parts = parts_of(span);
        uint64_t from = span->kind & SM_FRAME_HEADERS && span->first ? parts.ends[span->first - 1] : 0;
        for (uint32_t i = 0; i < span->count; i++) {
            uint64_t end = span->kind & SM_FRAME_HEADERS ? parts.ends[span->first + i] : 0;
            if (end < from || end > parts.header_bytes || (out && end - from > out_bytes - used))
                return SM_CORRUPT;
            if (out) {
                memcpy(out + used, parts.headers + from, end - from);
                *ends++ = used + (end - from);
            }
            used += end - from;
            from = end;
        }
    }
    return (int64_t)used + 1;
}

/* ---- slots ------------------------------------------------------------------------------------------------------ */

sm_split sm_split_of(const void *control, uint32_t slots, uint32_t row)
{
    uint32_t count = atomic_load_explicit(&((const sm_control *)control)->partition_count, memory_order_acquire);
    uint32_t number = row < SM_MAX_PARTITIONS ? sm_partition_at(control, row)->partition_number : 0;
    return sm_split_by(slots, count, number);
}

void sm_origin_slots(const sm_index *index, const uint32_t *deltas, uint32_t count, uint64_t base, sm_split split,
                     uint32_t *slots)
{
    for (uint32_t i = 0; i < count; i++) {
        uint32_t kind = SM_META_KIND(index[i].meta);
        uint64_t hash = kind == SM_KEY_INT    ? sm_hash_int(index[i].key)
                        : kind == SM_KEY_NONE ? sm_hash_int(base + deltas[i])
                                              : index[i].key;
        slots[i] = split.base + ((uint32_t)hash & split.mask);
    }
}

/* The slot of each event, by its key or its origin; of one without either, 0. */
int sm_batch_slots(const sm_batch *b, const void *control, uint32_t slots_count, uint32_t *slots)
{
    for (uint32_t s = 0; s < b->spans; s++) {
        const sm_span *span = &b->span[s];
        const sm_index *index = (const sm_index *)span->rows;
        if (span->kind & SM_FRAME_ORIGIN) {
            sm_parts parts = parts_of(span);
            sm_origin_slots(index, parts.deltas + span->first, span->count, parts.origin->base,
                            sm_split_of(control, slots_count, parts.origin->partition), slots);
        } else {
            for (uint32_t i = 0; i < span->count; i++) {
                uint64_t hash = SM_META_KIND(index[i].meta) == SM_KEY_INT ? sm_hash_int(index[i].key) : index[i].key;
                slots[i] = (uint32_t)hash & (slots_count - 1); /* keyless: the key word is zero */
            }
        }
        slots += span->count;
    }
    return SM_OK;
}

/* ---- what a source that was killed had pushed last -------------------------------------------------------------- */

/* The next frame of the last call with an origin. The seat has said the sequence at which the call began, and the lane where
 * its tail was then; nobody has written there since. */
static const sm_origin *next_of_call(const sm_seat *seat, const sm_lane *lane, uint64_t lane_bytes, uint64_t *position,
                                     sm_frame *f)
{
    const uint8_t *data = sm_lane_data(lane);
    uint64_t call = atomic_load_explicit(&seat->seat_call, memory_order_acquire);
    uint64_t tail = sm_position(atomic_load_explicit(&lane->tail, memory_order_acquire));
    uint64_t began = sm_position(atomic_load_explicit(&lane->call_tail, memory_order_acquire));
    uint64_t at = sm_position(*position) > began ? sm_position(*position) : began;
    if (at > tail || tail - at > lane_bytes)
        return NULL;
    while (at < tail && sm_judge_frame(data, lane_bytes, 0, at, tail, f) == SM_OK) {
        at += f->length;
        if (f->kind == SM_FRAME_PAD)
            continue;
        if (f->sequence < call)
            return NULL;
        *position = at;
        if (f->kind & SM_FRAME_ORIGIN)
            return sm_origin_of((const sm_frame *)(data + (f->position & (lane_bytes - 1))), f);
    }
    return NULL;
}

int sm_is_of_call(const sm_seat *seat, const sm_lane *lane, uint64_t lane_bytes)
{
    sm_frame f;
    uint64_t position = 0;
    return next_of_call(seat, lane, lane_bytes, &position, &f) != NULL;
}

uint32_t sm_recover(const void *control, const sm_geometry *g, const void *inbox, uint32_t seat, uint64_t *position,
                    uint32_t *partition, uint32_t *epoch, uint64_t *offsets)
{
    sm_frame f;
    const sm_lane *lane = sm_lane_at(inbox, g->lane_bytes, seat);
    const sm_origin *o =
        g->row_bytes ? NULL : next_of_call(sm_seat_at(control, seat), lane, g->lane_bytes, position, &f);
    if (!o)
        return 0;
    const uint32_t *deltas = (const uint32_t *)(o + 1);
    *partition = o->partition;
    *epoch = o->epoch;
    for (uint32_t i = 0; i < f.rows; i++)
        offsets[i] = o->base + deltas[i];
    return f.rows;
}
