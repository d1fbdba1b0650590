/* role: producer
 * What sender.c and send.c share: one producer's end of all its lanes. It is ordinary memory of this process.
 */
#ifndef SHARDMEM_SENDER_H
#define SHARDMEM_SENDER_H

#include <pthread.h>

#include "internal.h"

typedef struct sm_link {
    sm_inbox *inbox;
    sm_lane *lane;
    uint8_t *data;
    uint64_t tail, head_seen, accepted, generation;
    uint32_t parity;
} sm_link;

typedef struct sm_group { /* the rows of one pass that go to one shard */
    uint32_t shard, rows, taken;
    uint64_t bytes, first; /* events: key and payload bytes of `rows`, and of the first of them */
    uint64_t headers, first_headers;
    uint64_t room;        /* frame bytes this pass may write */
    uint64_t pad, length; /* length: of the pad and the frame */
    sm_frame *frame;
    uint8_t *out;    /* records: the next row */
    sm_index *index; /* events: the next entry */
    uint8_t *bytes_out, *bytes_begin;
    uint32_t *deltas, *ends; /* what comes with events, behind their bytes */
    int64_t *times;
    uint8_t *headers_out, *headers_begin;
    uint32_t blocked;
} sm_group;

/* A partition of which a killed predecessor had pushed more than `pushed` says: all before `until` is to be pushed. */
typedef struct sm_resumed {
    uint64_t until;
    uint32_t partition, epoch;
} sm_resumed;

enum { RESUMED = 16 };

/* What comes with the events of the chunk in hand: of row `start` of the columns on. */
typedef struct sm_more {
    const sm_columns *columns;
    uint64_t start, base; /* base: the offset of the first of them */
    uint32_t kind;        /* SM_FRAME_ORIGIN, ... */
} sm_more;

struct sm_sender {
    pthread_mutex_t lock;
    uint64_t forks, incarnation;
    sm_control *control;
    sm_seat *seat;
    sm_keying keying;
    uint64_t lane_bytes, half, eighth;
    uint32_t max_shards, seat_number, closed, linked_count;
    uint64_t mark, sequence, random, topology, pass;
    uint32_t active_count, weight_sum;
    uint32_t *active, *weights; /* for keyless events */
    uint64_t *pass_seen;        /* shard -> the pass its group belongs to */
    uint64_t *routes;           /* slot -> shard of this pass in bits 0-15, the pass above */
    uint32_t *group_of;
    sm_link *links;
    sm_group *groups;
    uint32_t slots[SM_CHUNK];
    uint16_t shard_of[SM_CHUNK]; /* row of the chunk -> group, this pass */
    sm_event events[SM_CHUNK];
    const sm_more *more; /* NULL: nothing comes with them */
    sm_resumed resumed[RESUMED];
    uint32_t resumed_count;
};

/* send.c: what a call still has to do, and what it has done */
uint64_t sm_resume(const sm_cursor *c, uint64_t n, uint32_t limit, uint32_t *rows);
void sm_advance(sm_cursor *c, uint64_t start, uint32_t rows, int status);

/* partition.c, for the source that is this producer */
uint32_t sm_epoch_of(const void *control, uint32_t row);
uint64_t sm_pushed_of(const void *control, uint32_t row);
void sm_advance_pushed(void *control, uint32_t row, uint64_t offset);

extern uint64_t sm_fork_count; /* changes only in a child that has one thread yet */

/* Before every lock: in a forked child the thread that held the mutex may not exist, and nobody would unlock it. */
static inline int sm_lock_unforked(sm_sender *s)
{
    if (sm_sender_forked(s))
        return SM_FORKED;
    sm_sender_lock(s);
    return SM_OK;
}

/* Locked by the caller, before each pass, which may write: whether the seat is still this sender's. */
static inline int sm_sender_usable(const sm_sender *s)
{
    if (unlikely(s->forks != sm_fork_count))
        return SM_FORKED;
    if (unlikely(s->closed))
        return SM_CLOSED;
    uint64_t lives = atomic_load_explicit(&s->seat->seat_incarnation, memory_order_relaxed);
    return likely(lives == s->incarnation) ? SM_OK : SM_FENCED;
}

/* Lock it to write: SM_OK, or why not, and then it is not locked. */
static inline int sm_lock_usable(sm_sender *s)
{
    int status = sm_lock_unforked(s);
    if (status == SM_OK && (status = sm_sender_usable(s)) != SM_OK)
        sm_sender_unlock(s);
    return status;
}

#endif
