/* role: worker
 * A lane as its worker sees it: opened, its frames read, their done bits set, its head moved and its room given back. What is
 * in front of the head is never looked at again; what is behind it and not done comes again after a crash.
 *
 * Everything read from a lane is compared with the geometry first, and frame headers are copied before they are
 * judged, so that a misbehaving producer can spoil its own lane and nothing else.
 */
#include "reader.h"

#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>

/* ---- frames ----------------------------------------------------------------------------------------------------- */

int sm_refresh_tail(sm_reader *r, sm_end *e)
{
    /* A2: pairs with P0: the frames before this tail are complete. Also the read half of W1 when parking. */
    uint64_t tail = sm_position(atomic_load_explicit(&e->lane->tail, memory_order_seq_cst));
    if (unlikely(tail < e->tail || tail - e->head > r->lane_bytes))
        return SM_CORRUPT;
    e->tail = tail;
    return SM_OK;
}

/* slots[i] of row first + i; SM_NO_SLOT for keyless events, which are never held and never drained by slot. f: as
 * sm_frame_of says it at least */
void sm_slots_in_frame(sm_reader *r, const sm_frame *f, const sm_frame *shared, uint32_t first, uint32_t count)
{
    const uint8_t *body = (const uint8_t *)shared + sm_prefix(f->rows);
    if (r->row_bytes && r->keying.kind != SM_KEY_NONE) {
        sm_slots_of(&r->keying, body + first * r->row_bytes, count, r->slots);
        return;
    }
    const sm_index *index = (const sm_index *)body + first;
    if (unlikely(f->kind & SM_FRAME_ORIGIN)) {
        const sm_origin *o = sm_origin_of(shared, f);
        sm_split split = sm_split_of(r->control, r->keying.slots, o->partition);
        sm_origin_slots(index, (const uint32_t *)(o + 1) + first, count, o->base, split, r->slots);
        return;
    }
    for (uint32_t i = 0; i < count; i++) {
        uint32_t kind = r->row_bytes ? SM_KEY_NONE : SM_META_KIND(index[i].meta);
        uint64_t hash = kind == SM_KEY_NONE ? 0 : kind == SM_KEY_INT ? sm_hash_int(index[i].key) : index[i].key;
        r->slots[i] = kind == SM_KEY_NONE ? SM_NO_SLOT : (uint32_t)hash & (r->keying.slots - 1);
    }
}

/* hashes[i] of the key of row first + i; 0 for keyless events */
void sm_hashes_in_frame(sm_reader *r, const sm_frame *f, const sm_frame *shared, uint32_t first, uint32_t count)
{
    const uint8_t *body = (const uint8_t *)shared + sm_prefix(f->rows);
    if (r->row_bytes && r->keying.kind != SM_KEY_NONE) {
        sm_hashes_of(&r->keying, body + first * r->row_bytes, count, r->hashes);
        return;
    }
    const sm_index *index = (const sm_index *)body + first;
    for (uint32_t i = 0; i < count; i++) {
        uint32_t kind = r->row_bytes ? SM_KEY_NONE : SM_META_KIND(index[i].meta);
        r->hashes[i] = kind == SM_KEY_NONE ? 0 : kind == SM_KEY_INT ? sm_hash_int(index[i].key) : index[i].key;
    }
}

/* Every entry of the span ends where the next begins, within the frame, and its key fits. */
int sm_entries_hold(const sm_span *span)
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

/* ---- moving the head -------------------------------------------------------------------------------------------- */

void sm_release(sm_end *e)
{
    uint32_t other = e->parity ^ 1;
    sm_ledger *l = &e->lane->ledger[other];
    /* L1: release, so that an observer who sees one of these also sees the head that made the other copy current,
     * and notices on its second look that it had read a copy in the making (L2 in sm_view_lane) */
    atomic_store_explicit(&l->ledger_handled, e->handled, memory_order_release);
    atomic_store_explicit(&l->ledger_quarantined, e->quarantined, memory_order_release);
    atomic_store_explicit(&l->ledger_shed, e->shed, memory_order_release);
    atomic_store_explicit(&l->ledger_skipped, e->skipped, memory_order_release);
    atomic_store_explicit(&l->ledger_lost, e->lost, memory_order_release);
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
        if (f.kind != SM_FRAME_PAD) {
            if (sm_next_row(sm_frame_at(r, e, e->head), f.rows, 0, 0) < f.rows)
                return SM_OK;
            sm_count_done(e, &f, sm_frame_at(r, e, e->head), f.rows);
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

void sm_rescan(sm_reader *r)
{
    for (uint32_t i = 0; i < r->open_count; i++) {
        sm_end *e = &r->ends[r->open[i]];
        e->cursor = e->head; /* rows that are done say so by their bits; deferred ones must have been committed */
        e->row = 0;
        e->range = 0;
        e->in_hand = 0;
        e->unleased = NULL;
    }
    r->ranges = 0;
    r->deferred_rows = 0;
    if (r->skipping)
        memset(r->skipped, 0, r->keying.slots);
    r->skipping = 0;
}

/* ---- opening ---------------------------------------------------------------------------------------------------- */

static void look_up_suspects(sm_reader *r, sm_end *e)
{
    e->suspect = sm_position(atomic_load_explicit(&e->lane->suspect, memory_order_relaxed));
    e->suspect_row = atomic_load_explicit(&e->lane->suspect_row, memory_order_relaxed);
    int status = sm_refresh_tail(r, e);
    if (e->suspect >
        e->tail) /* nobody had that in hand; and a lane of suspects without an end is the only one that is read */
        e->suspect = e->suspect_row = 0;
    if (status == SM_OK)
        sm_finish_aside(r, e);
}

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
    e->skipped = atomic_load_explicit(&l->ledger_skipped, memory_order_relaxed);
    e->lost = atomic_load_explicit(&l->ledger_lost, memory_order_relaxed);
    e->open = 1;
    atomic_store_explicit(&lane->broken, 0, memory_order_relaxed); /* a new life looks for itself */
    look_up_suspects(r, e);
    sm_wake_waiters(lane);
    r->open[r->open_count++] = seat;
}

/* ---- a hole is not a lane ---------------------------------------------------------------------------------------- */

enum { HOLE_AGAIN_NS = 100000000 };

void sm_file_of(sm_reader *r, int inbox_fd)
{
    struct stat file;
    r->inbox_fd = inbox_fd >= 0 && fstat(inbox_fd, &file) == 0 ? inbox_fd : -1;
    if (r->inbox_fd >= 0) {
        r->inbox_device = file.st_dev;
        r->inbox_inode = file.st_ino;
    }
}

/* The flag is a word that anybody may have damaged, and its lane may never have been reserved: touching it would take memory,
 * or be a SIGBUS where there is none. Its producer has reserved it and read its header before it raised the flag. What lies
 * behind the header is reserved once more, which does nothing to what is there. A handler may have closed the descriptor, and
 * its number be another file's by now: then the flag is believed. */
static int is_hole(sm_reader *r, uint32_t seat)
{
    struct stat file;
    off_t offset = (off_t)(SM_LANES_OFFSET + (SM_PAGE + r->lane_bytes) * seat);
    if (r->inbox_fd < 0 || fstat(r->inbox_fd, &file) != 0 || file.st_dev != r->inbox_device ||
        file.st_ino != r->inbox_inode)
        return 0;
    return sm_is_hole(r->inbox_fd, (uint64_t)offset) ||
           posix_fallocate(r->inbox_fd, offset, (off_t)(SM_PAGE + r->lane_bytes)) != 0;
}

static void open_if_lane(sm_reader *r, uint32_t seat)
{
    sm_end *e = &r->ends[seat];
    int64_t now = e->hole ? sm_clock() : 0;
    if (now < e->look_again_ns)
        return;
    if (is_hole(r, seat)) {
        r->holes += !e->hole;
        e->hole = 1;
        e->look_again_ns = sm_clock() + HOLE_AGAIN_NS;
        return;
    }
    r->holes -= e->hole;
    e->hole = e->reported = 0;
    open_end(r, seat);
}

int sm_next_hole(sm_reader *r, uint32_t *seat)
{
    for (uint32_t i = 0; i < r->max_producers; i++) {
        sm_end *e = &r->ends[i];
        if (e->hole && !e->reported) {
            e->reported = 1;
            *seat = i;
            return 1;
        }
    }
    return 0;
}

void sm_find_open_lanes(sm_reader *r)
{
    for (uint32_t seat = 0; seat < r->max_producers; seat++)
        if (!r->ends[seat].open &&
            atomic_load_explicit(&r->inbox->lane_open[seat], memory_order_seq_cst)) /* O2: pairs with O1 */
            open_if_lane(r, seat);
}
