/*
 * The C interface of shardmem, and word for word the text that cffi parses (build.py only drops the
 * preprocessor lines). Everything behind it that touches shared memory uses C11 atomics; nothing in front
 * of it does. Each function names the role that may call it: a word in shared memory has one writer, and
 * layout.h says which role that is.
 *
 * All functions return a status (SM_OK or a negative reason) or what their comment says. None of them
 * allocates after its *_new, none waits unless its name says so, and none trusts an offset, a count or a
 * length that it read from shared memory before it has compared it with the geometry.
 */
#ifndef SHARDMEM_H
#define SHARDMEM_H

#include <stdint.h>

#define SM_LAYOUT_VERSION 9
#define SM_CHUNK 4096
#define SM_MAX_SLOTS 65536
#define SM_MAX_SHARDS 1024
#define SM_MAX_PRODUCERS 512
#define SM_SCHEMA_BYTES 2048
#define SM_NAME_BYTES 96
#define SM_ERROR_BYTES 1536
#define SM_NOTE_BYTES 512
#define SM_BOARD_BYTES 16256
#define SM_HISTOGRAM 160
#define SM_BATCH_SIZES 32
#define SM_REASONS 4
#define SM_TRIALS 64
#define SM_MOST_TRIES 1000 /* max_attempts is at most that */
#define SM_MAX_PARTITIONS 1024
#define SM_MAX_TOPICS 16
#define SM_TOPIC_BYTES 256
#define SM_CLIENT_BYTES 32

enum sm_status {
    SM_OK = 0,
    SM_FULL = -1, /* a lane had no room; what was refused is in the cursor, nothing of it was written */
    SM_TIMEOUT = -2,
    SM_NEED_LANE = -3,   /* no lane to that shard is open yet (or its inbox was replaced): open it, call again */
    SM_STOPPED = -4,     /* the engine accepts nothing any more */
    SM_FORKED = -5,      /* this sender belongs to the parent process */
    SM_TOO_LARGE = -6,   /* a single event exceeds half a lane */
    SM_CORRUPT = -7,     /* a word in shared memory contradicts the geometry */
    SM_UNROUTED = -8,    /* a slot has no shard, or no shard is active */
    SM_INTERRUPTED = -9, /* a signal arrived while waiting */
    SM_CLOSED = -10,
    SM_SUPERSEDED = -16, /* the partition is in another epoch by now */
    SM_FENCED = -15,     /* another life of this shard, or of this seat, has begun: this process may not go on */
    SM_MAGIC = -11,
    SM_VERSION = -12,
    SM_GEOMETRY = -13,
    SM_UNREADY = -14, /* attach */
    SM_DAMAGED = -17  /* attach: what never changes there is not what was written */
};

enum sm_key_kind { SM_KEY_NONE = 0, SM_KEY_INT = 1, SM_KEY_BYTES = 2, SM_KEY_STR = 3 };
/* of columns: SM_KEY_INT of 2**63 and more */
#define SM_KEY_UNSIGNED 4
enum sm_engine_state { SM_ENGINE_STARTING = 0, SM_ENGINE_RUNNING = 1, SM_ENGINE_DRAINING = 2, SM_ENGINE_STOPPED = 3 };
enum sm_shard_state {
    SM_SHARD_NONE = 0,
    SM_SHARD_PROVISIONING = 1,
    SM_SHARD_ACTIVE = 2,
    SM_SHARD_DRAINING = 3,
    SM_SHARD_STOPPED = 4,
    SM_SHARD_FAILED = 5
};
enum sm_phase {
    SM_PHASE_NONE = 0,
    SM_PHASE_BOOTING = 1,
    SM_PHASE_READY = 2,
    SM_PHASE_STOPPED = 3,
    SM_PHASE_FAILED = 4,
    SM_PHASE_HALTED = 5 /* failed, and every life would: until somebody reloads */
};
/* of a slot's handoff; in between, HandoffState of shardmem/policy says the same in words */
enum sm_move_phase { SM_MOVE_NONE = 0, SM_MOVE_REROUTING = 1, SM_MOVE_DRAINING = 2, SM_MOVE_RELEASING = 3 };
/* of an event on trial: waits for its next try; was in hand when its worker died; set aside, and may be taken back; was */
enum sm_trial_state {
    SM_TRIAL_NONE = 0,
    SM_TRIAL_WAITS = 1,
    SM_TRIAL_DIED = 2,
    SM_TRIAL_ASIDE = 3,
    SM_TRIAL_TAKEN = 4
};
/* what a shard waits for: the handler said so; too many events failed in a row; the quarantine takes no more */
enum sm_waiting { SM_WAITING_NONE = 0, SM_WAITING_RETRY = 1, SM_WAITING_DOUBT = 2, SM_WAITING_QUARANTINE = 3 };
enum sm_partition_state {
    SM_PARTITION_NONE = 0,
    SM_PARTITION_RESTORING = 1,
    SM_PARTITION_OWNED = 2,
    SM_PARTITION_DRAINING = 3
};
enum sm_board_kind { SM_BOARD_DECISIONS = 0, SM_BOARD_EVENTS = 1, SM_BOARDS = 2 };
enum sm_reason { SM_REASON_FULL = 0, SM_REASON_TIMEOUT = 1, SM_REASON_SAMPLED = 2, SM_REASON_STOPPED = 3 };

typedef struct sm_geometry {
    uint64_t engine_id, created_ns, lane_bytes, control_bytes, inbox_bytes, lane_stride, lanes_offset;
    uint32_t slots, max_shards, max_producers;
    uint32_t row_bytes;                       /* 0: an events engine */
    uint32_t key_kind, key_offset, key_bytes; /* of a records engine */
    uint32_t key_signed;
    uint32_t schema_bytes, name_bytes;
    char schema[2048];
    char name[96];
} sm_geometry;

/* ---- segments: create [supervisor], check [any] ------------------------------------------------------- */
int sm_geometry_complete(sm_geometry *geometry); /* fills the derived sizes; SM_GEOMETRY if out of range */
uint32_t sm_control_ranges(const sm_geometry *geometry, uint64_t *offsets, uint64_t *lengths); /* what it uses */
int sm_control_format(void *control, const sm_geometry *geometry);
int sm_control_mend(void *control, const sm_geometry *geometry); /* 1: its header said something else, until now */
int sm_control_read(const void *control, uint64_t bytes, sm_geometry *out, uint32_t *version);
int sm_inbox_format(void *inbox, const sm_geometry *geometry, uint32_t shard, uint64_t generation);
int sm_inbox_mend(void *inbox, const sm_geometry *geometry, uint32_t shard, uint64_t generation); /* likewise */
/* SM_GEOMETRY: it says in good order that it is another one; SM_DAMAGED: it does not, or is cut short. inbox: its first
 * page, or a copy of that; bytes: of the whole */
int sm_inbox_check(const void *inbox, uint64_t bytes, const sm_geometry *geometry, uint32_t shard, uint64_t generation);

/* ---- memory of a worker [worker] ---------------------------------------------------------------------- */
int sm_keep_heap(void); /* what it frees stays its own, up to 64 MiB. 0: not here, or the environment says otherwise */

/* ---- files mapped [any] ------------------------------------------------------------------------------- */
void *sm_map(int fd, uint64_t bytes, int *error); /* NULL: errno */
void sm_unmap(void *address, uint64_t bytes);
int sm_is_readable(const void *address); /* 0: a touch would be a SIGBUS */
int sm_is_hole(int fd, uint64_t offset);
int sm_guard(void);                  /* this process outlives mapped files that are cut short; 0, or -errno */
int sm_is_lost(const void *address); /* it was, and what is read there is not what was written */

/* ---- leases: who lives is the kernel's word [any] ----------------------------------------------------- */
int sm_lease_take(int fd, uint64_t byte);        /* 0 taken, 1 somebody holds it, -errno */
void *sm_lease_keep(int fd, int *error);         /* what is locked by it stays so when it is closed; NULL: errno */
void sm_lease_release(void *keeper);             /* not in a forked child, which has no copy */
int sm_lease_held(int fd, uint64_t byte);        /* 0 free, 1 held by another description, -errno */
int sm_read_only(void *address, uint64_t bytes); /* from here on this process cannot write there; -1: errno */

/* ---- hash and routing [any] --------------------------------------------------------------------------- */
uint64_t sm_xxh64(const void *data, uint64_t bytes, uint64_t seed);
uint64_t sm_hash_int(uint64_t key); /* sm_xxh64 of the 8 little-endian bytes, shardmem's seed */
uint64_t sm_hash_bytes(const void *key, uint64_t bytes);
int sm_slots_of_rows(const sm_geometry *geometry, const void *rows, uint64_t n, uint32_t *slots);
int sm_slots_of_ints(const uint64_t *keys, uint64_t n, uint32_t slots_count, uint32_t *slots);

/* ---- the sender: one producer's end of all its lanes [producer] --------------------------------------- */
typedef struct sm_sender sm_sender;

typedef struct sm_cursor { /* how far one call has come; the caller keeps it between calls */
    uint64_t chunk, next;  /* rows before chunk are accepted; those from next on were not looked at */
    uint64_t accepted;
    uint32_t pending_count; /* between them, the ones not accepted, in order: rows[chunk + pending[i]] */
    uint32_t shard;         /* whose lane was full or missing */
    uint32_t pending[4096];
} sm_cursor;

typedef struct sm_columns { /* n events as columns; item i of one is data[offsets[i]:offsets[i + 1]] */
    uint64_t n;
    uint32_t key_kind, key_unsigned;
    uint32_t spans, key_spans; /* 1: offsets has a start and an end for each item, data[offsets[2i]:offsets[2i + 1]] */
    const uint8_t *key_kinds; /* NULL, or the kind of each key, which need not be one: SM_KEY_..., or SM_KEY_UNSIGNED */
    const uint64_t *keys;     /* SM_KEY_INT */
    const uint8_t *key_data;  /* SM_KEY_BYTES, SM_KEY_STR */
    const uint64_t *key_offsets;
    const uint8_t *data;
    const uint64_t *offsets;
    uint64_t data_bytes, key_bytes; /* how much there is of data and key_data */
    const uint8_t *missing;         /* NULL, or which payloads are None */
    const int64_t *times;           /* NULL, or of each: ms since 1970 */
    const uint8_t *header_data;     /* header_offsets NULL: they have none */
    const uint64_t *header_offsets; /* n + 1 of them */
    uint64_t header_bytes;
    const uint64_t *origins; /* NULL, or the offset of each in its partition, rising */
    uint32_t partition, epoch;
} sm_columns;

sm_sender *sm_sender_new(void *control, const sm_geometry *geometry, uint32_t seat); /* NULL: out of memory */
void sm_sender_free(sm_sender *sender);
void sm_sender_close(sm_sender *sender); /* later calls return SM_CLOSED */
int sm_sender_link(sm_sender *sender, uint32_t shard, uint64_t generation, void *inbox); /* 1: was linked already */
int sm_sender_forked(const sm_sender *sender);                                           /* 1: it is the parent's */
int sm_sender_broken(sm_sender *sender, uint32_t shard);          /* 1: the worker reads this lane no more */
uint64_t sm_sender_generation(sm_sender *sender, uint32_t shard); /* of the inbox it should be linked to */
int sm_sender_position(sm_sender *sender, uint32_t shard, uint64_t *tail, uint64_t *head);
uint64_t sm_max_payload(sm_sender *sender, uint64_t key_bytes);
int sm_send(sm_sender *sender, const void *rows, uint64_t n, sm_cursor *cursor);
/* SM_TOO_LARGE: next is the first event that does not lie within its data or does not fit; nothing was accepted */
int sm_push_columns(sm_sender *sender, const sm_columns *columns, sm_cursor *cursor);
/* payload NULL: None, a tombstone */
int sm_push(sm_sender *sender, uint32_t key_kind, uint64_t key, uint32_t key_unsigned, const void *key_bytes,
            uint32_t key_length, const void *payload, uint32_t payload_length, uint32_t *shard);
int sm_count_refused(sm_sender *sender, uint32_t reason, uint64_t rows); /* SM_OK, or why it was not counted */
int sm_count_blocked(sm_sender *sender, uint64_t nanoseconds);
int sm_evict(sm_sender *sender, uint32_t shard); /* ask the worker to drop the oldest half of the lane */
int sm_wait_room(sm_sender *sender, uint32_t shard, int64_t spin_ns, int64_t timeout_ns);
int sm_wait_handled(sm_sender *sender, uint32_t shard, uint64_t position, int64_t spin_ns, int64_t timeout_ns);

/* a seat: taken by its lease, then entered */
int sm_seat_enter(void *control, uint32_t seat, int64_t pid, uint64_t now_ns);
int sm_seat_leave(void *control, uint32_t seat);
void sm_name_seat(void *control, uint32_t seat, uint64_t name);                      /* it keeps that when it is left */
void sm_seat_client(void *control, uint32_t seat, const char *text, uint32_t bytes); /* what its holder calls itself */
/* Of the frames that this seat's last call with an origin has put into that lane, the next one's, from *position on (0 at
 * first): how many, 0 without one. offsets: SM_CHUNK */
uint32_t sm_recover(const void *control, const sm_geometry *geometry, const void *inbox, uint32_t seat,
                    uint64_t *position, uint32_t *partition, uint32_t *epoch, uint64_t *offsets);
/* it goes on in the call of the last holder of its seat, until all before that offset of this partition is pushed */
int sm_resume_call(sm_sender *sender, uint32_t partition, uint32_t epoch, uint64_t until);

/* ---- the partition table [source] ---------------------------------------------------------------------- */
int sm_set_partition_count(void *control, const sm_geometry *geometry, uint32_t count); /* SM_GEOMETRY: it is another */
int sm_claim_partition(void *control, const char *topic, uint32_t bytes, uint32_t number); /* its row, or SM_FULL */
uint32_t sm_begin_partition(void *control, uint32_t row, uint64_t offset);                 /* the new epoch */
void sm_end_partition(void *control, uint32_t row); /* frames that are in the lanes are passed over from here on */
void sm_set_partition_state(void *control, uint32_t row, uint32_t state);
void sm_set_pushed(void *control, uint32_t row, uint64_t offset);
void sm_set_safe(void *control, uint32_t row, uint64_t offset);
void sm_renew_partition(void *control, uint32_t row, uint64_t until_ns);

/* ---- the reader: one worker's end of its inbox [worker] ----------------------------------------------- */
typedef struct sm_reader sm_reader;

typedef struct sm_span {  /* contiguous rows of one frame */
    const uint8_t *rows;  /* records: the first row. events: the first index entry */
    const uint8_t *bytes; /* events: where the frame's bytes begin */
    uint64_t position;    /* of the frame in its lane */
    uint64_t sequence;    /* of the first row */
    int64_t sent_ns;
    uint32_t count, first, frame_rows, frame_length, bytes_length, seat, kind;
} sm_span;

typedef struct sm_batch {
    uint64_t rows, bytes; /* bytes: what gathering it takes */
    uint32_t spans;
    uint32_t broken_seat; /* SM_CORRUPT: whose lane */
    uint32_t tries;       /* one row: how often it failed, alone, before */
    uint32_t suspected;   /* rows are being tried apart from others, because one of them fails */
    uint32_t partition;   /* the number of all its rows, for a worker that follows; UINT32_MAX: they have none */
    sm_span *span;
} sm_batch;

typedef struct
    sm_range { /* rows of one lane from `row` of the frame at `position` to before `to_row` of that at `to` */
    uint64_t position, to;
    uint32_t seat, row, to_row, rejected; /* not 0: rows of one frame that were not handled but set aside; 2: skipped */
} sm_range;

typedef struct sm_trial_view {
    uint64_t position, hash, seen, number;
    int64_t due_ns;
    uint32_t state, seat, row, tries;
} sm_trial_view;

/* inbox_fd: of the inbox's file, to ask what of it has memory behind it; -1: not known */
sm_reader *sm_reader_new(void *control, const sm_geometry *geometry, void *inbox, int inbox_fd, uint32_t shard,
                         uint32_t max_rows);
void sm_reader_free(sm_reader *reader);
/* may wait: not while there are orders that sm_orders did not return yet, or the shard or the engine is stopped */
int sm_next(sm_reader *reader, int64_t spin_ns, int64_t timeout_ns, sm_batch *batch);
int sm_gather(const sm_batch *batch, uint32_t row_bytes, void *out, uint64_t out_bytes);
int sm_commit(sm_reader *reader);

/* A batch that failed comes again in parts, until one row is left. It is put on trial or set aside, which takes the place of
 * its commit. A worker that dies leaves the same record, and its successor goes on with it. */
int sm_recheck(
    sm_reader *reader); /* SM_CORRUPT: a frame of the batch in hand is not what it was, its lane is broken now */
void sm_forgive(sm_reader *reader);               /* before the first batch: attempts of earlier lives do not count */
int sm_failed(sm_reader *reader, uint32_t limit); /* limit: rows of the next batch of it; 0: half of them */
int sm_try_later(sm_reader *reader);              /* the batch in hand was never taken */
int sm_set_aside(sm_reader *reader);
int sm_row_in_hand(const sm_reader *reader, uint32_t row,
                   sm_range *out); /* the row of the batch in hand, as rejected */
int sm_set_aside_rows(sm_reader *reader, const sm_range *rows, uint32_t count); /* before the rest is committed */
int sm_row_left(sm_reader *reader, uint32_t seat, uint64_t position,
                uint32_t row); /* 1: it is in its lane, and is handed out again */
/* Rows of the batch in hand, a byte for each, that were applied already: it goes on without them, and they are committed by
 * sm_set_aside_rows of these ranges. How many ranges; ranges: room for one per row. SM_GEOMETRY: one has no origin */
int sm_skip_rows(sm_reader *reader, const uint8_t *rows, sm_batch *batch, sm_range *ranges);
/* For state: from here on no event is taken of an epoch but these, of the rows of the partition table, and a batch is of one
 * partition. version: as it was before the epochs were read; when it is another, sm_next returns at once. */
void sm_follow(sm_reader *reader, uint64_t version, const uint32_t *epochs, uint32_t rows);
uint64_t sm_partition_version(const void *control);
void sm_probe(sm_reader *reader, uint32_t rows); /* no batch is larger, whatever it is of; 0: they are as ever */

/* Events on trial. While one waits, rows of its key stay in their lanes and all others are taken. */
const sm_trial_view *sm_trials(sm_reader *reader); /* SM_TRIALS of them, as this process knows them */
int sm_put_on_trial(sm_reader *reader, uint32_t tries, int64_t due_ns); /* the row in hand: its number, or SM_FULL */
int sm_next_trial(sm_reader *reader, uint32_t trial, sm_batch *batch);  /* no rows: it is in no lane any more */
int sm_trial_waits(sm_reader *reader, uint32_t trial); /* 1: its partition may not be handled for now */
void sm_set_trial(sm_reader *reader, uint32_t trial, uint32_t state, uint32_t tries, int64_t due_ns);
void sm_end_trial(sm_reader *reader, uint32_t trial); /* its key is free; nothing may be deferred */
/* of one that was set aside: SM_TRIAL_TAKEN back; then SM_TRIAL_NONE, handled or in quarantine again */
int sm_amend_trial(sm_reader *reader, uint32_t trial, uint32_t state, uint32_t handled);
void sm_begin_taken(sm_reader *reader, uint32_t trial); /* it is in the handler's hands, from the quarantine */
void sm_end_taken(sm_reader *reader, uint32_t handled);
uint64_t sm_handled(const sm_reader *reader); /* events that the shard has handled, ever */
void sm_worker_beat(void *control, uint32_t shard);
void sm_worker_waits(void *control, uint32_t shard, uint32_t kind, uint32_t tries, uint64_t since_ns,
                     uint64_t until_ns);
uint64_t sm_arrived(sm_reader *reader); /* bytes, ever, in all lanes */

/* Stateful handlers: batches are deferred, and committed together when the state that they made has been saved together with
 * the ranges. A successor that finds saved ranges beyond its heads commits them first. */
void sm_defer_commits(sm_reader *reader);
int sm_defer(sm_reader *reader);
/* how many rows; pressed: lanes or ranges run full; awaited: a producer waits */
uint64_t sm_deferred(const sm_reader *reader, uint32_t *pressed, uint32_t *awaited);
const sm_range *sm_ranges(const sm_reader *reader, uint32_t *count);
int sm_commit_deferred(sm_reader *reader);
int sm_commit_ranges(sm_reader *reader, const sm_range *ranges, uint32_t count);
uint32_t sm_touched(sm_reader *reader,
                    uint8_t *slots); /* slots of the batch in hand: their bytes become 1; rows without */
int sm_worker_enter(void *control, uint32_t shard, int64_t pid, uint64_t now_ns);
void sm_worker_phase(void *control, uint32_t shard, uint32_t phase);
void sm_worker_error(void *control, uint32_t shard, const char *text, uint32_t bytes);
void sm_worker_checkpointed(void *control, uint32_t shard, uint64_t took_ns);
void sm_worker_stateful(void *control, uint32_t shard, uint32_t stateful); /* before the phase says ready */
uint32_t sm_worker_orders(const void *control, uint32_t shard);            /* engine state, shard state << 8 */

/* ---- what only the supervisor writes [supervisor] ------------------------------------------------------ */
void sm_supervisor_enter(void *control, int64_t pid, uint64_t now_ns);
void sm_supervisor_beat(void *control, uint64_t now_ns);
void sm_set_engine_state(void *control, uint32_t state);
void sm_set_shard_state(void *control, uint32_t shard, uint32_t state);
void sm_set_shard_generation(void *control, uint32_t shard, uint64_t generation);
void sm_set_shard_weight(void *control, uint32_t shard, uint32_t weight);
void sm_set_slot(void *control, uint32_t slot, uint32_t shard);
int sm_marks(const void *control, uint64_t *marks, uint32_t n);
void sm_wake(void *inbox); /* [producer] too, when it takes up a lane */

/* handoff. begin: the hold, then the slot word; the caller then waits for the marks and goes through the phases. */
uint64_t sm_move_begin(void *control, uint32_t slot, uint32_t source, uint32_t target, uint64_t deadline_ns);
void sm_move_phase(void *control, uint32_t slot, uint32_t phase, uint64_t deadline_ns);
void sm_set_holds(void *control, uint32_t shard, uint32_t holds);
void sm_give_orders(void *control, uint32_t shard, void *inbox); /* the worker looks at its handoffs; inbox: woken */
void sm_retire(void *control, uint32_t shard, uint64_t generation, uint64_t accepted, uint64_t handled,
               uint64_t quarantined, uint64_t shed, uint64_t skipped, uint64_t lost);
/* words that somebody else has changed: as they were. Any shard, SM_NO_SHARD too */
void sm_mend_slot(void *control, uint32_t slot, uint32_t shard);
void sm_mend_hold(void *control, uint32_t slot, uint32_t phase, uint32_t source, uint32_t target);
void sm_forget_retired(void *control, uint32_t shard, uint64_t generation); /* the word was damaged: it was this one */

void sm_post(void *control, uint32_t board, const char *text, uint32_t bytes); /* what it decided, or what happened */
void sm_shard_note(void *control, uint32_t shard, const char *text,
                   uint32_t bytes); /* of a worker that cannot say it */

/* ---- the worker's side of a handoff [worker] ------------------------------------------------------------ */
uint32_t sm_orders(sm_reader *reader); /* how many were given; the reader remembers that they are known */
uint32_t sm_moves_at(const void *control, const sm_geometry *geometry, uint32_t shard, uint32_t phase, uint32_t *slots,
                     uint64_t *numbers,
                     uint32_t limit); /* handoffs of this shard: as source in DRAINING, else as target */
int sm_undone(sm_reader *reader, const uint32_t *slots, uint32_t n, uint8_t *present); /* rows of a slot left here? */
void sm_rescan(sm_reader *reader); /* from the heads: a hold has fallen */
void sm_move_drained(void *control, uint32_t slot, uint64_t number);
void sm_move_restored(void *control, uint32_t slot, uint64_t number);

/* ---- what anybody may read [any] ----------------------------------------------------------------------- */
typedef struct sm_engine_view {
    uint64_t incarnation, heartbeat_ns, started_ns, topology;
    int64_t pid;
    uint32_t state;
} sm_engine_view;

typedef struct sm_seat_view {
    uint64_t mark, incarnation, entered_ns, sequence, blocked_ns, blocked_count, name;
    uint64_t refused[4];
    int64_t pid;
    char client[32]; /* SM_CLIENT_BYTES, zeros behind it */
} sm_seat_view;

typedef struct sm_shard_view {
    uint64_t generation, incarnation, entered_ns, heartbeat_ns, busy_ns, batch_since_ns, batches, rows;
    int64_t pid;
    uint64_t retired_generation, retired_accepted, retired_handled, retired_quarantined, retired_shed, retired_skipped;
    uint64_t retired_lost;
    uint32_t state, phase, weight, holds, error_bytes, stateful;
    uint32_t waiting_kind, waiting_tries, on_trial; /* on_trial: events */
    uint64_t waiting_since_ns, waiting_until_ns;
    uint64_t waited_us; /* the sum of what latency counts */
    uint64_t checkpoints, checkpoint_ns, checkpoint_last_ns,
        checkpoint_at_ns; /* _ns: together; at: when the last ended */
    uint64_t latency[160];
    uint64_t
        batch_sizes[32]; /* batches of at most 1, 2, 4, 8, ... rows, and more than half of that; rows is their sum */
    char error[1536];    /* the later of what the worker said and what was noted of it */
} sm_shard_view;

typedef struct sm_lane_view {
    uint64_t tail, head, accepted, handled, quarantined, shed, skipped, lost;
    uint32_t open, broken;
} sm_lane_view;

void sm_view_engine(const void *control, sm_engine_view *out);
void sm_view_seat(const void *control, uint32_t seat, sm_seat_view *out);
void sm_view_shard(const void *control, uint32_t shard, sm_shard_view *out);
uint32_t sm_open_lanes(const void *inbox, const sm_geometry *geometry, uint32_t *seats); /* how many */
int sm_view_lane(const void *inbox, const sm_geometry *geometry, uint32_t seat, sm_lane_view *out);
/* when the first event of an open lane was sent that is not handled; 0: there is none, or it went at this moment */
int64_t sm_lane_oldest_ns(const void *inbox, const sm_geometry *geometry, uint32_t seat);
typedef struct sm_move_view {
    uint64_t number, since_ns, deadline_ns, drained, restored;
    uint32_t phase, source, target;
} sm_move_view;

typedef struct sm_partition_view {
    uint64_t pushed, safe, until_ns;
    uint32_t epoch, state, topic, number;
} sm_partition_view;

void sm_view_partition(const void *control, uint32_t row, sm_partition_view *out);
uint32_t sm_partition_count(const void *control);                        /* 0: slots do not go by partition */
uint32_t sm_partition_rows(const void *control);                         /* how many rows are claimed */
uint32_t sm_view_topic(const void *control, uint32_t topic, char *name); /* bytes of the name; 0: there is none */
/* What came with the events of a batch. 1: some of them have it; 0: none, and nothing was written. SM_CORRUPT */
int sm_batch_origins(const sm_batch *batch, uint32_t *partitions, uint64_t *offsets); /* UINT32_MAX: it has none */
int sm_batch_times(const sm_batch *batch, int64_t *times);                            /* INT64_MIN: it has none */
int64_t sm_batch_headers(const sm_batch *batch, uint64_t *ends, uint8_t *out,
                         uint64_t out_bytes); /* out NULL: how many */
int sm_batch_slots(const sm_batch *batch, const void *control, uint32_t slots_count, uint32_t *slots);
void sm_view_move(const void *control, uint32_t slot, sm_move_view *out);
uint32_t sm_view_moving(const void *control, const sm_geometry *geometry, uint32_t *slots, uint32_t limit);
uint32_t sm_view_board(const void *control, uint32_t board, char *text); /* text: SM_BOARD_BYTES; how many are used */
void sm_view_busy(const void *control, const sm_geometry *geometry, uint64_t *busy_ns); /* by slot */
void sm_view_slots(const void *control, const sm_geometry *geometry, uint32_t *shards, uint32_t *epochs);
int64_t sm_histogram_floor_ns(uint32_t bucket);
int64_t sm_now_ns(void);

/* ---- named points at which a test may kill, stop or break this process [tests] ------------------------- */
int sm_point_count(void);
const char *sm_point_name(int point);
void sm_point_arm(int point, uint64_t passes, int signal_number); /* fires on the passes-th time */
void sm_point_pass(int point);                                    /* for points that are not in C */

/* adds the calls that are made once per event (push, push_many, decode) to the extension module */
int sm_install_fastcalls(void);

#endif
