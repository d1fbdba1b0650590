/* role: worker
 * What the files of the worker share: one worker's end of its inbox.
 */
#ifndef SHARDMEM_READER_H
#define SHARDMEM_READER_H

#include "internal.h"

enum { SM_RANGES = 1024 }; /* of rows that are handled and not committed; held rows in between make them many */

typedef struct sm_end { /* one lane, seen from here */
    sm_lane *lane;
    uint8_t *data;
    uint64_t head, cursor, tail; /* head <= cursor <= tail */
    uint64_t handled, quarantined, shed, skipped, lost;
    uint64_t suspect;            /* until here, and suspect_row of the frame there, lay the batch that failed */
    uint32_t row;                /* of the frame at the cursor: rows before it have been taken */
    uint32_t suspect_row, range; /* range: place of the open one, from 1; 0: none is open */
    uint32_t parity, moved;
    uint32_t wary; /* rows of a batch, which is of this lane alone, since one of it was put on trial; 0: as ever */
    uint8_t open, broken, reported, chosen;
    uint8_t in_hand;              /* rows were taken and not yet committed */
    uint8_t hole;                 /* it is said to be open, and has no memory: nothing of it is touched */
    int64_t look_again_ns;        /* then: its producer may come yet */
    const sm_partition *unleased; /* of the frame at the cursor, and its lease is over; NULL: the lane waits for none */
    uint64_t until_seen;
    uint32_t epoch_seen;
} sm_end;

typedef struct sm_load sm_load;

struct sm_reader {
    sm_control *control;
    sm_shard *shard;
    sm_inbox *inbox;
    int inbox_fd; /* -1: what of the inbox has memory cannot be asked */
    uint64_t inbox_device, inbox_inode;
    uint32_t holes; /* lanes that were found to be */
    uint64_t lane_bytes, row_bytes;
    sm_keying keying;
    uint32_t number, skipping, orders;
    uint8_t *skipped; /* by slot: a row of it was passed over since the last rescan */
    uint32_t max_producers, max_rows, solo_rows, turn, span_count, open_count;
    uint64_t batches, busy_ns, total_rows, incarnation;
    uint64_t unmeasured_ns;          /* of busy_ns, what no slot has yet: the next sample stands for it */
    uint64_t waited_us, waited_rest; /* of all rows handled; rest: in ns, less than a microsecond between batches */
    uint64_t deferred_rows;          /* handled, and not committed before the state that they made is safe */
    int64_t since_ns;
    uint32_t limit, tries;                          /* limit: rows of a batch among suspects; 0: nothing is suspected */
    uint32_t kind, turn_of_kind, wary_turn, streak; /* kind: of the batch in hand; streak: of suspects that succeeded */
    uint32_t probe, rejected;
    uint32_t trials_known;        /* somebody has been told what an earlier life left */
    uint32_t kept_back, in_trial; /* trials whose key waits; the one in hand, from 1 */
    uint64_t trial_number;
    uint32_t lanes_checked; /* of the open ones: their trials are known to be true */
    uint64_t filter[16];    /* of the keys that wait: a bit for each; a hash whose bit is 0 is of none */
    sm_trial_view trial[SM_TRIALS];
    uint32_t suspect_seat, ranges, deferring;
    uint64_t suspect_position; /* tries is the number of failures of exactly this row */
    uint32_t suspect_row;
    sm_range *range;
    sm_spin spin;
    sm_load *load;
    sm_end *ends;       /* by seat */
    uint32_t *open;     /* seats whose lanes are open */
    uint32_t following; /* it takes nothing of an epoch that its state is not ready for, and one partition at a time */
    uint64_t version;   /* of the table, as of when it looked */
    uint32_t followed[SM_MAX_PARTITIONS]; /* the epoch that the state is ready for */
    uint32_t trial_slot[SM_TRIALS];
    sm_span *spans, *spare;    /* spare: for those of a batch that loses rows */
    uint32_t slots[SM_CHUNK];  /* of the rows of one frame, when somebody asks */
    uint64_t hashes[SM_CHUNK]; /* likewise */
};

/* of a batch: from all lanes but those of the others; of what was in one that failed; of a lane that events on trial are of;
 * one event on trial */
enum { SM_KIND_ALL, SM_KIND_SUSPECTS, SM_KIND_WARY, SM_KINDS, SM_KIND_TRIAL = SM_KINDS };

enum { SM_NO_SLOT = UINT32_MAX };

/* The lease sees to it that no two processes are workers of a shard. This is for one that has lost its lease, by a handler
 * that closed descriptors it did not know: it may neither handle nor commit once a successor has entered. */
static inline int sm_is_fenced(const sm_reader *r)
{
    return unlikely(atomic_load_explicit(&r->shard->worker_incarnation, memory_order_relaxed) != r->incarnation);
}

static inline sm_frame *sm_frame_at(sm_reader *r, sm_end *e, uint64_t position)
{
    return (sm_frame *)(e->data + (position & (r->lane_bytes - 1)));
}

/* the first row from `row` on that is done, or is not; rows: there is none */
static inline uint32_t sm_next_row(const sm_frame *shared, uint32_t rows, uint32_t row, int done)
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

static inline int sm_read_frame(const sm_reader *r, const sm_end *e, uint64_t position, sm_frame *out)
{
    return sm_judge_frame(e->data, r->lane_bytes, r->row_bytes, position, e->tail, out);
}

/* of a span's frame, what sm_read_frame found of it then */
static inline sm_frame sm_frame_of(const sm_span *span)
{
    return (sm_frame){.length = span->frame_length,
                      .kind = (uint16_t)(SM_FRAME_DATA | span->kind),
                      .rows = span->frame_rows,
                      .bytes = span->bytes_length};
}

/* Of a frame that is behind the head now, so many rows are done: what became of them. */
static inline void sm_count_done(sm_end *e, const sm_frame *f, const sm_frame *shared, uint32_t done)
{
    uint64_t handled = done - f->quarantined;
    e->quarantined += f->quarantined;
    if (unlikely(f->kind & SM_FRAME_ORIGIN)) {
        const sm_origin *o = sm_origin_of(shared, f);
        uint64_t skipped = o->aside[0] < handled ? o->aside[0] : handled; /* they may say anything */
        uint64_t lost = o->aside[1] < handled - skipped ? o->aside[1] : handled - skipped;
        e->skipped += skipped;
        e->lost += lost;
        handled -= skipped + lost;
    }
    e->handled += handled;
}

/* frames.c */
int sm_refresh_tail(sm_reader *r, sm_end *e);
void sm_slots_in_frame(sm_reader *r, const sm_frame *f, const sm_frame *shared, uint32_t first, uint32_t count);
void sm_hashes_in_frame(sm_reader *r, const sm_frame *f, const sm_frame *shared, uint32_t first, uint32_t count);
int sm_entries_hold(const sm_span *span);
int sm_advance_head(sm_reader *r, sm_end *e);
void sm_release(sm_end *e);
int sm_give_up(sm_end *e);
void sm_find_open_lanes(sm_reader *r);
void sm_file_of(sm_reader *r, int inbox_fd);
int sm_next_hole(sm_reader *r, uint32_t *seat); /* one that nobody has been told of */

/* origin.c */
enum { SM_ORIGIN_TAKE, SM_ORIGIN_WAITS, SM_ORIGIN_LOST }; /* or SM_CORRUPT */
/* waits: the lane whose cursor is at that frame; NULL: it is looked at for another reason */
int sm_judge_origin(sm_reader *r, const sm_frame *f, const sm_frame *shared, sm_end *waits);
int sm_is_unleased(const sm_end *e);
int sm_shed_lost(sm_reader *r, sm_end *e, const sm_frame *f);

/* follow.c */
int sm_has_followed(const sm_reader *r);
uint32_t sm_partition_of(sm_reader *r, const sm_frame *f, const sm_frame *shared, uint32_t first, uint32_t *count);
void sm_note_trial(sm_reader *r, uint32_t trial, const sm_frame *f);
int sm_waits_for_trial(const sm_reader *r, uint32_t slot);

/* aside.c */
void sm_set_done(sm_frame *shared, uint32_t first, uint32_t count);
int sm_set_run_aside(sm_reader *r, sm_end *e, uint64_t position, uint32_t row, uint32_t count, uint32_t why);
void sm_finish_aside(sm_reader *r, sm_end *e);

/* attempt.c */
void sm_attempt_load(sm_reader *r);
void sm_attempt_begin(sm_reader *r, sm_batch *batch);
void sm_attempt_succeeded(sm_reader *r);
int sm_is_suspect(const sm_reader *r, const sm_end *e);
void sm_cleared(sm_reader *r);
void sm_attempt_end(sm_reader *r);
void sm_count_failed(sm_reader *r, uint64_t rows);

/* trials.c */
void sm_trials_load(sm_reader *r);
void sm_find_trials(sm_reader *r);
int sm_is_kept_back(const sm_reader *r, uint32_t seat, uint64_t position, uint32_t row, uint64_t hash);
int sm_died_in_trial(sm_reader *r, uint32_t seat, uint64_t position, uint32_t row, uint32_t tries);
int sm_is_left(sm_reader *r, const sm_trial_view *t, sm_frame *f);
int sm_add_trial(sm_reader *r, const sm_span *span, uint32_t tries, int64_t due_ns);
void sm_free_trial(sm_reader *r, uint32_t trial);

/* load.c */
sm_load *sm_load_new(uint32_t slots);
void sm_load_free(sm_load *l);
void sm_load_forget(sm_load *l);
void sm_load_count(sm_reader *r, uint64_t rows, uint64_t took_ns, int whole);

/* ranges.c */
int sm_is_taken(const sm_reader *r, uint32_t seat, uint64_t position, uint32_t row);
void sm_take_range(sm_reader *r, sm_end *e, const sm_span *span);

#endif
