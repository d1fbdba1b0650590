/*
 * Every byte of shared memory, and for each atomic word its one writer: the comment `writer: ROLE` is read by
 * tests/unit/test_csources.py, which looks up every store in the sources and fails if the role of the file
 * that stores is not the writer. Words without _Atomic are written once, before the version word, or before
 * the store that publishes them.
 *
 * Positions (tail, head) count bytes since the lane was made and never wrap; they are multiples of 16, so
 * bit 0 is free. It says which of two copies of the counters belongs to this position: the writer fills the
 * other copy first and then stores the word, so one store publishes bytes and counts together. A process
 * killed between the two leaves the old position with the old counts, and the accounting stays exact.
 */
#ifndef SHARDMEM_LAYOUT_H
#define SHARDMEM_LAYOUT_H

#include <assert.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>

#include "shardmem.h"

#define SM_MAGIC_CONTROL UINT64_C(0x314c5254434d4853) /* "SHMCTRL1" */
#define SM_MAGIC_INBOX UINT64_C(0x31584f424e4d4853)   /* "SHMNBOX1" */
#define SM_LINE 128 /* two cache lines: the adjacent-line prefetcher of x86 couples pairs */
#define SM_PAGE 4096
#define SM_ALIGN 16
#define SM_NO_SHARD 0xffffu
#define SM_SLOT_WORD(shard, epoch) ((uint64_t)(shard) | (uint64_t)(epoch) << 32)
#define SM_SLOT_SHARD(word) ((uint32_t)(word) & 0xffffu)
#define SM_SLOT_EPOCH(word) ((uint32_t)((word) >> 32))
#define SM_HOLD_WORD(phase, source, target) ((uint64_t)(phase) | (uint64_t)(source) << 16 | (uint64_t)(target) << 32)
#define SM_HOLD_PHASE(word) ((uint32_t)(word) & 0xffu)
#define SM_HOLD_SOURCE(word) ((uint32_t)((word) >> 16) & 0xffffu)
#define SM_HOLD_TARGET(word) ((uint32_t)((word) >> 32) & 0xffffu)

/* ---- control segment ---------------------------------------------------------------------------------- */

typedef struct sm_control {
    uint64_t magic;
    _Atomic uint32_t version; /* writer: supervisor (stored last: until then nothing here is valid) */
    uint32_t header_bytes;
    sm_geometry geometry;
    uint64_t geometry_check; /* of its bytes */

    _Alignas(SM_LINE) _Atomic uint32_t engine_state; /* writer: supervisor */
    _Atomic uint64_t topology;                       /* writer: supervisor (counts changes of shard states) */
    _Atomic int64_t supervisor_pid;                  /* writer: supervisor */
    _Atomic uint64_t supervisor_incarnation;         /* writer: supervisor */
    _Atomic uint64_t supervisor_started_ns;          /* writer: supervisor */
    _Atomic uint64_t supervisor_heartbeat_ns;        /* writer: supervisor */

    _Alignas(SM_LINE) _Atomic uint32_t partition_count; /* writer: source (P: slots go by partition; 0: they do not) */
    _Atomic uint32_t partition_rows;                    /* writer: source (rows of the table that are claimed) */
    _Atomic uint32_t topic_count;                       /* writer: source */
} sm_control;

typedef struct sm_seat {
    _Alignas(SM_LINE) _Atomic uint64_t mark;             /* writer: producer (odd: inside a send) */
    _Atomic uint64_t next_sequence;                      /* writer: producer */
    _Alignas(SM_LINE) _Atomic uint64_t seat_incarnation; /* writer: producer */
    _Atomic int64_t seat_pid;                            /* writer: producer (0: left in good order) */
    _Atomic uint64_t seat_entered_ns;                    /* writer: producer */
    _Atomic uint64_t seat_refused[SM_REASONS];           /* writer: producer */
    _Atomic uint64_t seat_blocked_ns;                    /* writer: producer */
    _Atomic uint64_t seat_blocked_count;                 /* writer: producer */
    _Atomic uint64_t seat_name;                          /* writer: producer (hash of its name; 0: it has none) */
    _Atomic uint64_t seat_call; /* writer: producer (sequence at which its last pass with an origin began) */
    _Atomic uint64_t seat_client[SM_CLIENT_BYTES / 8]; /* writer: producer (what it calls itself, zeros behind it) */
} sm_seat;

/* An event on trial: it failed alone, and its key waits for its next try; or it was set aside and may be taken back. */
typedef struct sm_trial {
    _Atomic uint32_t trial_state;    /* writer: worker (SM_TRIAL_...) */
    _Atomic uint32_t trial_seat;     /* writer: worker */
    _Atomic uint64_t trial_position; /* writer: worker */
    _Atomic uint32_t trial_row;      /* writer: worker */
    _Atomic uint32_t trial_tries;    /* writer: worker (how often it failed, alone) */
    _Atomic uint64_t trial_hash;     /* writer: worker (of its key; 0: it has none) */
    _Atomic uint64_t trial_seen;     /* writer: worker (events of the shard handled when it first failed) */
    _Atomic uint64_t trial_number;   /* writer: worker (in this order they failed first) */
    _Atomic uint64_t trial_due_ns;   /* writer: worker */
} sm_trial;

typedef struct sm_shard {
    _Alignas(SM_LINE) _Atomic uint32_t shard_state; /* writer: supervisor */
    _Atomic uint32_t shard_weight;                  /* writer: supervisor */
    _Atomic uint64_t shard_generation;              /* writer: supervisor (which inbox segment is its) */
    _Atomic uint32_t shard_holds;            /* writer: supervisor (slots on their way here: rows of them wait) */
    _Atomic uint32_t shard_orders;           /* writer: supervisor (counts what the worker is to look at) */
    _Atomic uint64_t retired_word;           /* writer: supervisor (the last generation that is gone << 1 | copy) */
    _Atomic uint64_t retired_accepted[2];    /* writer: supervisor (what went through all that are gone) */
    _Atomic uint64_t retired_handled[2];     /* writer: supervisor */
    _Atomic uint64_t retired_quarantined[2]; /* writer: supervisor */
    _Atomic uint64_t retired_shed[2];        /* writer: supervisor */
    _Atomic uint64_t retired_skipped[2];     /* writer: supervisor */
    _Atomic uint64_t retired_lost[2];        /* writer: supervisor */
    _Alignas(SM_LINE) _Atomic uint32_t worker_phase; /* writer: worker */
    _Atomic int64_t worker_pid;                      /* writer: worker */
    _Atomic uint64_t worker_incarnation;             /* writer: worker */
    _Atomic uint64_t worker_entered_ns;              /* writer: worker */
    _Atomic uint64_t worker_heartbeat_ns;            /* writer: worker */
    _Atomic uint64_t worker_busy_ns;                 /* writer: worker */
    _Atomic uint64_t worker_batch_since_ns;          /* writer: worker (0: between batches) */
    _Atomic uint64_t worker_batches;                 /* writer: worker */
    _Atomic uint64_t worker_rows;                    /* writer: worker */
    _Atomic uint64_t worker_waited_us;               /* writer: worker (from push to handled, of all rows together) */
    _Atomic uint32_t worker_stateful;                /* writer: worker (it takes up slots itself: restore, gained) */
    _Atomic uint64_t worker_checkpoints;             /* writer: worker (of state and positions; the time they took) */
    _Atomic uint64_t worker_checkpoint_ns;           /* writer: worker (all together) */
    _Atomic uint64_t worker_checkpoint_last_ns;      /* writer: worker (the last one) */
    _Atomic uint64_t worker_checkpoint_at_ns;        /* writer: worker (when that had ended) */
    /* the attempt record: what a successor has to know of the batch that its predecessor died in */
    _Alignas(SM_LINE) _Atomic uint32_t attempt_rows; /* writer: worker (of the batch in hand; 0: none) */
    _Atomic uint32_t attempt_limit;                  /* writer: worker (most rows of a batch among suspects; 0: none) */
    _Atomic uint32_t attempt_tries;                  /* writer: worker (failures of the one row named here) */
    _Atomic uint32_t attempt_seat;                   /* writer: worker */
    _Atomic uint64_t attempt_position;               /* writer: worker (of its frame) */
    _Atomic uint32_t attempt_row;                    /* writer: worker */
    _Atomic uint32_t waiting_kind;                   /* writer: worker (SM_WAITING_..., of what; 0: it does not) */
    _Atomic uint32_t waiting_tries;                  /* writer: worker (in vain, since then) */
    _Atomic uint64_t waiting_since_ns;               /* writer: worker */
    _Atomic uint64_t waiting_until_ns;               /* writer: worker (the next try) */
    _Alignas(SM_LINE) sm_trial trials[SM_TRIALS];
    /* what becomes of a trial whose event is in no lane any more: both words of its lane's ledger, and then its state */
    _Atomic uint32_t amend_trial;       /* writer: worker (its number in the table, from 1; 0: nothing is amended) */
    _Atomic uint32_t amend_state;       /* writer: worker */
    _Atomic uint64_t amend_handled;     /* writer: worker */
    _Atomic uint64_t amend_quarantined; /* writer: worker */
    _Alignas(SM_LINE) _Atomic uint64_t worker_latency[SM_HISTOGRAM];       /* writer: worker */
    _Alignas(SM_LINE) _Atomic uint64_t worker_batch_sizes[SM_BATCH_SIZES]; /* writer: worker */
    _Alignas(SM_LINE) _Atomic uint64_t error_count;  /* writer: worker (what it said last; copies as on the board) */
    _Atomic uint64_t error_ns[2];                    /* writer: worker */
    _Atomic uint32_t error_bytes[2];                 /* writer: worker */
    _Atomic uint64_t error_text[SM_ERROR_BYTES / 4]; /* writer: worker */
    _Alignas(SM_LINE) _Atomic uint64_t note_count;   /* writer: supervisor (what it said of the worker, who cannot) */
    _Atomic uint64_t note_ns[2];                     /* writer: supervisor */
    _Atomic uint32_t note_bytes[2];                  /* writer: supervisor */
    _Atomic uint64_t note_text[SM_NOTE_BYTES / 4];   /* writer: supervisor */
} sm_shard;

/* slot words: shard in bits 0-15, epoch in bits 32-63. Dense, because every send reads them. */
typedef struct sm_slot {
    _Atomic uint64_t slot_word; /* writer: supervisor */
} sm_slot;

/* The hold: phase in bits 0-7, source in 16-31, target in 32-47. As long as the phase is not SM_MOVE_NONE, rows of
 * the slot wait in the target's lanes. Dense too: a target reads one for each row while it holds any. */
typedef struct sm_hold {
    _Atomic uint64_t hold_word; /* writer: supervisor */
} sm_hold;

typedef struct sm_move {               /* the handoff table: one entry per slot, of its last handoff */
    _Atomic uint64_t move_number;      /* writer: supervisor (counts the handoffs of this slot) */
    _Atomic uint64_t move_since_ns;    /* writer: supervisor (when its phase began) */
    _Atomic uint64_t move_deadline_ns; /* writer: supervisor (when that phase is late) */
    _Atomic uint64_t drained_number;   /* writer: worker (the source's: this handoff is drained) */
    _Atomic uint64_t restored_number;  /* writer: worker (the target's: its state is restored) */
    _Atomic uint64_t slot_busy_ns;     /* writer: worker (the owner's: what handling its rows took) */
    _Atomic uint64_t slot_cost;        /* writer: worker (the owner's: of one row, in 1/4096 ns; 0: not known) */
} sm_move;

/* A partition of a broker's topic. Topic and number are written once, before partition_rows says that the row is there. */
typedef struct sm_partition {
    _Alignas(64) _Atomic uint32_t partition_epoch; /* writer: source (rises with each begin and each end) */
    _Atomic uint32_t partition_state;              /* writer: source (SM_PARTITION_...) */
    uint32_t partition_topic, partition_number;
    _Atomic uint64_t partition_pushed; /* writer: source (all before this offset are in the lanes, of this epoch) */
    _Atomic uint64_t partition_safe;   /* writer: source (all before this offset need not be read again) */
    _Atomic uint64_t partition_until;  /* writer: source (ns of CLOCK_BOOTTIME; then workers wait. 0: no limit) */
} sm_partition;

typedef struct sm_topic { /* written once, before topic_count says that it is there */
    uint32_t bytes;
    char name[SM_TOPIC_BYTES - 4];
} sm_topic;

/* What the supervisor last said of its decisions, and what happened to the engine, as text: a board for each, because the
 * one is written at every tick and the other when something happens. Two copies, so that readers never meet one half
 * written. */
typedef struct sm_board {
    _Alignas(SM_LINE) _Atomic uint64_t board_count;  /* writer: supervisor (copy in force: count & 1; 0: none yet) */
    _Atomic uint32_t board_bytes[2];                 /* writer: supervisor */
    _Atomic uint64_t board_text[SM_BOARD_BYTES / 4]; /* writer: supervisor (one copy behind the other, in words) */
} sm_board;

/* ---- inbox segment ------------------------------------------------------------------------------------ */

typedef struct sm_inbox {
    uint64_t magic;
    _Atomic uint32_t inbox_version; /* writer: supervisor (stored last) */
    uint32_t shard;
    uint64_t engine_id, generation, lane_bytes;
    uint32_t max_producers;
    uint64_t check; /* of shard to max_producers */

    _Alignas(SM_LINE) _Atomic uint32_t doorbell; /* writer: exception (any waker adds; futex word) */
    _Atomic uint32_t sleeping;                   /* writer: exception (worker raises, a waker takes it down) */

    _Alignas(1024) _Atomic uint32_t lane_open[SM_MAX_PRODUCERS]; /* writer: producer (each its own entry) */
} sm_inbox;

typedef struct sm_ledger {
    _Atomic uint64_t ledger_handled;     /* writer: worker */
    _Atomic uint64_t ledger_quarantined; /* writer: worker */
    _Atomic uint64_t ledger_shed;        /* writer: worker (dropped as the producer asked) */
    _Atomic uint64_t ledger_skipped;     /* writer: worker (of origins that were applied already) */
    _Atomic uint64_t ledger_lost;        /* writer: worker (of an earlier epoch of their partition) */
} sm_ledger;

typedef struct sm_lane {
    _Alignas(SM_LINE) _Atomic uint64_t tail; /* writer: producer */
    _Atomic uint64_t accepted[2];            /* writer: producer */
    _Atomic uint64_t evict;                  /* writer: producer (drop the frames before this position) */
    _Atomic uint64_t call_tail;              /* writer: producer (where its last pass with an origin began here) */
    _Alignas(SM_LINE) _Atomic uint64_t head; /* writer: worker */
    sm_ledger ledger[2];
    _Atomic uint32_t broken;      /* writer: worker (it found a contradiction and reads no more) */
    _Atomic uint32_t suspect_row; /* writer: worker (where in that frame its batch ended) */
    _Atomic uint64_t suspect;     /* writer: worker (the frame that its batch reached into) */
    _Atomic uint64_t aside_row;   /* writer: worker (row, rows << 16, count of its frame << 32) */
    _Atomic uint64_t aside; /* writer: worker (position | SM_ASIDE_... << 1 | 1: those rows are being set aside) */
    _Alignas(SM_LINE) _Atomic uint64_t waiting; /* writer: exception (producer raises, the worker takes it down) */
    _Atomic uint32_t space_bell;                /* writer: exception (worker adds; futex word) */
} sm_lane;

/* ---- frames --------------------------------------------------------------------------------------------- */

enum { SM_FRAME_DATA = 0x5d, SM_FRAME_PAD = 0x9a };
/* of data, events only: what follows the bytes */
enum { SM_FRAME_ORIGIN = 0x100, SM_FRAME_TIMES = 0x200, SM_FRAME_HEADERS = 0x400, SM_FRAME_MORE = 0x700 };
/* why rows are done and were not handled; each is counted in its frame, because its done bits do not say it */
enum { SM_ASIDE_QUARANTINED, SM_ASIDE_SKIPPED, SM_ASIDE_LOST, SM_ASIDES };

typedef struct sm_frame { /* then done bits, 16-aligned rows (records) or index and bytes (events), what kind says */
    uint32_t length;      /* whole frame, a multiple of 16. A pad has this and kind only: the 16 bytes */
    uint16_t kind;        /* that are always left at the end of a lane hold them */
    uint16_t quarantined; /* by the worker: how many of the rows whose done bit is set were not handled */
    uint32_t rows;
    uint32_t bytes;    /* events: how many bytes follow the index */
    uint64_t position; /* where this frame was put: a stale or misread frame says so itself */
    uint64_t sequence;
    int64_t sent_ns;
} sm_frame;

typedef struct sm_index { /* one event */
    uint64_t key;         /* SM_KEY_INT: the key itself, no bytes. Otherwise its hash */
    uint32_t meta;        /* kind in bits 30-31; the two flags below; then the length of the key bytes */
    uint32_t end;         /* its bytes are key then payload, up to here */
} sm_index;

#define SM_META_KIND(meta) ((meta) >> 30)
#define SM_META_UNSIGNED (UINT32_C(1) << 29) /* an int beyond int64 */
#define SM_META_MISSING (UINT32_C(1) << 28)  /* its payload is None: a tombstone */
#define SM_META_LENGTH(meta) ((meta) & 0x0fffffffu)

/* Behind the bytes, each part 8-aligned: the origin, and a uint32 for each event that its offset is beyond the base;
 * an int64 for each, its time in ms since 1970; a uint32 for each, where its headers end, then their bytes. */
typedef struct sm_origin {
    uint32_t partition, epoch; /* row of the table, and what its epoch was */
    uint64_t base;
    uint32_t aside[2]; /* by the worker: rows that were skipped, and that were lost */
    uint64_t reserved;
} sm_origin;

/* ---- the bytes are where they are said to be ------------------------------------------------------------ */

static_assert(sizeof(_Atomic uint64_t) == 8 && sizeof(_Atomic uint32_t) == 4, "atomics without a hidden lock");
static_assert(offsetof(sm_control, version) == 8, "control: version");
static_assert(offsetof(sm_control, geometry) == 16, "control: geometry");
static_assert(offsetof(sm_control, engine_state) % SM_LINE == 0, "control: state on a line of its own");
static_assert(offsetof(sm_control, partition_count) % SM_LINE == 0, "control: the source on a line of its own");
static_assert(sizeof(sm_control) <= SM_PAGE, "control: header fits its page");
static_assert(sizeof(sm_partition) == 64 && sizeof(sm_topic) == SM_TOPIC_BYTES, "partitions and topics: sizes");
static_assert(offsetof(sm_seat, next_sequence) == 8, "seat: sequence beside the mark, both written per send");
static_assert(offsetof(sm_seat, seat_incarnation) == SM_LINE, "seat: what others read is off the hot line");
static_assert(sizeof(sm_seat) == 2 * SM_LINE, "seat: size");
static_assert(sizeof(sm_board) % SM_LINE == 0, "board: what follows is aligned");
static_assert(sizeof(sm_hold) == 8 && sizeof(sm_move) == 56, "holds and moves: sizes");
static_assert(offsetof(sm_shard, worker_phase) == SM_LINE, "shard: supervisor and worker on lines of their own");
static_assert(offsetof(sm_shard, attempt_rows) == 2 * SM_LINE, "shard: attempt record");
static_assert(offsetof(sm_shard, trials) == 3 * SM_LINE, "shard: trials");
static_assert(sizeof(sm_trial) == 56, "trial: size");
static_assert(SM_ERROR_BYTES % 8 == 0 && SM_NOTE_BYTES % 8 == 0 && SM_BOARD_BYTES % 8 == 0, "texts: whole words");
static_assert(SM_NOTE_BYTES <= SM_ERROR_BYTES, "shard: a view holds either text");
static_assert(sizeof(sm_shard) % SM_LINE == 0, "shard: size");
static_assert(sizeof(sm_slot) == 8, "slot: one word");
static_assert(offsetof(sm_inbox, doorbell) == SM_LINE, "inbox: doorbell");
static_assert(offsetof(sm_inbox, lane_open) == 1024, "inbox: lane flags");
static_assert(sizeof(sm_inbox) <= SM_PAGE, "inbox: header fits its page");
static_assert(offsetof(sm_lane, tail) == 0, "lane: tail");
static_assert(offsetof(sm_lane, head) == SM_LINE, "lane: head");
static_assert(offsetof(sm_lane, waiting) == 2 * SM_LINE, "lane: waiting");
static_assert(sizeof(sm_lane) <= SM_PAGE, "lane: header fits its page");
static_assert(sizeof(sm_frame) == 40, "frame: size");
static_assert(offsetof(sm_frame, kind) + 2 <= SM_ALIGN, "frame: a pad fits the smallest gap");
static_assert(sizeof(sm_index) == 16, "index: size");
static_assert(sizeof(sm_origin) == 32, "origin: size");
static_assert(SM_FRAME_DATA < 0x100 && SM_FRAME_PAD < 0x100, "frame: flags beside the kind");

/* ---- addresses -------------------------------------------------------------------------------------------
 * Constants, so that no offset has to be read from memory that another process could have overwritten. Only
 * the shards' part grows with the geometry; it comes last.
 */

#define SM_SEATS_OFFSET SM_PAGE
#define SM_SLOTS_OFFSET (SM_SEATS_OFFSET + SM_MAX_PRODUCERS * sizeof(sm_seat))
#define SM_HOLDS_OFFSET (SM_SLOTS_OFFSET + SM_MAX_SLOTS * sizeof(sm_slot))
#define SM_MOVES_OFFSET (SM_HOLDS_OFFSET + SM_MAX_SLOTS * sizeof(sm_hold))
#define SM_BOARD_OFFSET (SM_MOVES_OFFSET + SM_MAX_SLOTS * sizeof(sm_move))
#define SM_PARTITIONS_OFFSET (SM_BOARD_OFFSET + SM_BOARDS * sizeof(sm_board))
#define SM_TOPICS_OFFSET (SM_PARTITIONS_OFFSET + SM_MAX_PARTITIONS * sizeof(sm_partition))
#define SM_SHARDS_OFFSET (SM_TOPICS_OFFSET + SM_MAX_TOPICS * sizeof(sm_topic))
#define SM_LANES_OFFSET SM_PAGE

static inline sm_seat *sm_seat_at(const void *control, uint32_t seat)
{
    return (sm_seat *)((uint8_t *)control + SM_SEATS_OFFSET) + seat;
}

static inline sm_slot *sm_slot_at(const void *control, uint32_t slot)
{
    return (sm_slot *)((uint8_t *)control + SM_SLOTS_OFFSET) + slot;
}

static inline sm_hold *sm_hold_at(const void *control, uint32_t slot)
{
    return (sm_hold *)((uint8_t *)control + SM_HOLDS_OFFSET) + slot;
}

static inline sm_move *sm_move_at(const void *control, uint32_t slot)
{
    return (sm_move *)((uint8_t *)control + SM_MOVES_OFFSET) + slot;
}

static inline sm_board *sm_board_at(const void *control, uint32_t board)
{
    return (sm_board *)((uint8_t *)control + SM_BOARD_OFFSET) + board;
}

static inline sm_partition *sm_partition_at(const void *control, uint32_t row)
{
    return (sm_partition *)((uint8_t *)control + SM_PARTITIONS_OFFSET) + row;
}

static inline sm_topic *sm_topic_at(const void *control, uint32_t topic)
{
    return (sm_topic *)((uint8_t *)control + SM_TOPICS_OFFSET) + topic;
}

static inline sm_shard *sm_shard_at(const void *control, uint32_t shard)
{
    return (sm_shard *)((uint8_t *)control + SM_SHARDS_OFFSET) + shard;
}

static inline sm_lane *sm_lane_at(const void *inbox, uint64_t lane_bytes, uint32_t seat)
{
    return (sm_lane *)((uint8_t *)inbox + SM_LANES_OFFSET + (SM_PAGE + lane_bytes) * seat);
}

static inline uint8_t *sm_lane_data(const sm_lane *lane) { return (uint8_t *)lane + SM_PAGE; }

/* ---- sizes ------------------------------------------------------------------------------------------------ */

static inline uint64_t sm_round(uint64_t n, uint64_t to) { return (n + to - 1) / to * to; }

/* header and done bits; what follows is 16-aligned */
static inline uint64_t sm_prefix(uint64_t rows) { return sm_round(sizeof(sm_frame) + (rows + 63) / 64 * 8, SM_ALIGN); }

/* of events: the frame up to what follows its bytes */
static inline uint64_t sm_plain_bytes(uint64_t rows, uint64_t bytes)
{
    return sm_round(sm_prefix(rows) + rows * sizeof(sm_index) + bytes, 8);
}

/* what follows them, without the bytes of headers */
static inline uint64_t sm_more_bytes(uint32_t kind, uint64_t rows)
{
    return (kind & SM_FRAME_ORIGIN ? sizeof(sm_origin) + sm_round(rows * 4, 8) : 0) +
           (kind & SM_FRAME_TIMES ? rows * 8 : 0) + (kind & SM_FRAME_HEADERS ? sm_round(rows * 4, 8) : 0);
}

/* of a frame whose kind, rows and bytes were found possible */
static inline sm_origin *sm_origin_of(const sm_frame *shared, const sm_frame *f)
{
    return (sm_origin *)((uint8_t *)shared + sm_plain_bytes(f->rows, f->bytes));
}

static inline _Atomic uint64_t *sm_done_bits(const sm_frame *frame)
{
    return (_Atomic uint64_t *)((uint8_t *)frame + sizeof(sm_frame));
}

static inline uint64_t sm_position(uint64_t word) { return word & ~UINT64_C(15); }

#endif
