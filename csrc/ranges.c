/* role: worker
 * Commits that wait for state: which rows of which lanes are handled and not committed yet.
 */
#include "reader.h"

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
        if ((f.kind != SM_FRAME_PAD && (first > f.rows || end > f.rows)) ||
            (at < range->to && f.length > range->to - at))
            return SM_CORRUPT;
        if (at == e->head && (f.kind == SM_FRAME_PAD || (!first && end == f.rows))) {
            if (f.kind != SM_FRAME_PAD)
                sm_count_done(e, &f, sm_frame_at(r, e, at), f.rows);
            e->head += f.length;
            e->moved = 1;
        } else if (f.kind != SM_FRAME_PAD && end > first) {
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
        if (ranges[i].rejected)
            continue; /* set aside by then: sm_set_aside_rows */
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
