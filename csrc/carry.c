/* role: producer
 * What comes with events that are pushed: where it lies in a frame, by which slot they go, and what a pass with an origin
 * leaves behind for a successor.
 */
#include "sender.h"

/* ---- in a frame --------------------------------------------------------------------------------------------------- */

uint64_t sm_headers_of(const sm_more *more, uint32_t from)
{
    const uint64_t *offsets = more->columns->header_offsets;
    return offsets ? offsets[more->start + from + 1] - offsets[more->start + from] : 0;
}

/* Where what comes with the events of a group lies: as sm_more_bytes says. */
void sm_lay_out_more(const sm_more *more, sm_group *g)
{
    uint8_t *at = (uint8_t *)g->frame + sm_plain_bytes(g->rows, g->bytes);
    if (more->kind & SM_FRAME_ORIGIN) {
        *(sm_origin *)at = (sm_origin){more->columns->partition, more->columns->epoch, more->base, {0, 0}, 0};
        g->deltas = (uint32_t *)(at + sizeof(sm_origin));
    }
    g->times = (int64_t *)(at + sm_more_bytes(more->kind & SM_FRAME_ORIGIN, g->rows));
    g->ends = (uint32_t *)(at + sm_more_bytes(more->kind & (SM_FRAME_ORIGIN | SM_FRAME_TIMES), g->rows));
    g->headers_out = g->headers_begin = at + sm_more_bytes(more->kind, g->rows);
}

void sm_copy_more(const sm_more *more, sm_group *g, uint32_t from)
{
    const sm_columns *in = more->columns;
    uint64_t at = more->start + from;
    if (more->kind & SM_FRAME_ORIGIN)
        *g->deltas++ = (uint32_t)(in->origins[at] - more->base);
    if (more->kind & SM_FRAME_TIMES)
        *g->times++ = in->times[at];
    if (more->kind & SM_FRAME_HEADERS) {
        uint64_t bytes = sm_headers_of(more, from);
        memcpy(g->headers_out, in->header_data + in->header_offsets[at], bytes);
        g->headers_out += bytes;
        *g->ends++ = (uint32_t)(g->headers_out - g->headers_begin);
    }
}

/* Of an event without a key, by its offset: pushed again it has the slot that it had, and a partition is done when its slots
 * are. */
void sm_slots_by_partition(sm_sender *s, const sm_event *events, uint32_t n)
{
    const sm_columns *in = s->more->columns;
    sm_split split = sm_split_of(s->control, s->keying.slots, in->partition);
    for (uint32_t i = 0; i < n; i++) {
        const sm_event *e = &events[i];
        uint32_t kind = SM_META_KIND(e->meta);
        uint64_t hash = kind == SM_KEY_INT    ? sm_hash_int(e->key)
                        : kind == SM_KEY_NONE ? sm_hash_int(in->origins[s->more->start + i])
                                              : e->key;
        s->slots[i] = split.base + ((uint32_t)hash & split.mask);
    }
}

/* ---- a pass with an origin ---------------------------------------------------------------------------------------- */

/* Whether something that a killed predecessor had left of its last call is still to be pushed, and all of what this call has
 * in the lanes of the pass will still be there when the pass is published. */
static int resumes(sm_sender *s, uint32_t count)
{
    uint32_t left = 0;
    for (uint32_t i = 0; i < s->resumed_count; i++) {
        const sm_resumed *r = &s->resumed[i];
        if (sm_epoch_of(s->control, r->partition) == r->epoch && sm_pushed_of(s->control, r->partition) < r->until)
            s->resumed[left++] = *r;
    }
    for (uint32_t i = 0; left && i < count; i++) {
        const sm_link *l = &s->links[s->groups[i].shard];
        uint64_t from = sm_is_of_call(s->seat, l->lane, s->lane_bytes)
                            ? atomic_load_explicit(&l->lane->call_tail, memory_order_relaxed)
                            : l->tail;
        if (s->groups[i].frame && l->tail + s->groups[i].length - from > s->lane_bytes)
            left = 0;
    }
    s->resumed_count = left;
    return left != 0;
}

/* Before anything is published: where the pass begins, so that a successor finds what it has published (sm_recover). The
 * sequence first, which no frame has yet: with it the places in the lanes are of no pass, and then of this one. Until the
 * rest of what a killed predecessor had pushed in part is pushed, passes are of one call with it: a successor of both finds
 * what either has left. */
void sm_begin_call(sm_sender *s, uint64_t sequence, uint32_t count)
{
    int goes_on = s->resumed_count && resumes(s, count);
    if (!goes_on)
        atomic_store_explicit(&s->seat->seat_call, sequence, memory_order_release);
    for (uint32_t i = 0; i < count; i++) {
        const sm_link *l = &s->links[s->groups[i].shard];
        if (s->groups[i].frame && !(goes_on && sm_is_of_call(s->seat, l->lane, s->lane_bytes)))
            atomic_store_explicit(&l->lane->call_tail, l->tail, memory_order_release);
    }
    SM_POINT(ORIGIN_CALLING);
}

/* All rows before the first that is left are in the lanes. */
void sm_end_call(sm_sender *s, uint32_t last, const uint32_t *pending, uint32_t left)
{
    const uint64_t *origins = s->more->columns->origins + s->more->start;
    SM_POINT(ORIGIN_PUSHED);
    sm_advance_pushed(s->control, s->more->columns->partition, left ? origins[pending[0]] : origins[last] + 1);
}

int sm_is_superseded(const sm_sender *s)
{
    const sm_columns *in = s->more->columns;
    return in->partition >= SM_MAX_PARTITIONS || !sm_partition_count(s->control) ||
           sm_epoch_of(s->control, in->partition) != in->epoch;
}
