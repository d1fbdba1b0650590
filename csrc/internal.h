/* What the C sources share among themselves; nothing here is seen by Python. */
#ifndef SHARDMEM_INTERNAL_H
#define SHARDMEM_INTERNAL_H

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif

#include <stdint.h>
#include <string.h>
#include <time.h>

#include "layout.h"
#include "points.h"

#define SM_SEED UINT64_C(0x73686172646d656d) /* "shardmem", read as a big-endian number */

#define likely(x) __builtin_expect(!!(x), 1)
#define unlikely(x) __builtin_expect(!!(x), 0)

typedef struct sm_keying {
    uint32_t kind, offset, bytes, is_signed, row_bytes, slots;
} sm_keying;

sm_keying sm_keying_of(const sm_geometry *geometry);
void sm_slots_of(const sm_keying *keying, const uint8_t *rows, uint64_t n, uint32_t *slots);
void sm_hashes_of(const sm_keying *keying, const uint8_t *rows, uint64_t n, uint64_t *hashes);

/* more.c */
int sm_judge_frame(const uint8_t *data, uint64_t lane_bytes, uint64_t row_bytes, uint64_t position, uint64_t tail,
                   sm_frame *out);

/* whether the lane has a frame of the call that its seat is in, or was in when it died */
int sm_is_of_call(const sm_seat *seat, const sm_lane *lane, uint64_t lane_bytes);

/* slots by partition: those from `base` on, of which the hash chooses one */
typedef struct sm_split {
    uint32_t base, mask;
} sm_split;

/* count, number: as a damaged table may say */
static inline sm_split sm_split_by(uint32_t slots, uint32_t count, uint32_t number)
{
    uint32_t bits = count > 1 ? 32 - (uint32_t)__builtin_clz(count - 1) : 0;
    uint32_t each = bits < 32 && slots >> bits ? slots >> bits : 1;
    return (sm_split){number * each & (slots - 1), each - 1};
}

sm_split sm_split_of(const void *control, uint32_t slots, uint32_t row);
void sm_origin_slots(const sm_index *index, const uint32_t *deltas, uint32_t count, uint64_t base, sm_split split,
                     uint32_t *slots);

/* What is checked of an inbox's header: not its bytes, some of which are between fields. */
static inline uint64_t sm_inbox_sum(const sm_inbox *b)
{
    const uint64_t words[] = {b->shard, b->engine_id, b->generation, b->lane_bytes, b->max_producers};
    return sm_hash_bytes(words, sizeof words);
}

/* park.c */
int sm_futex_wait(_Atomic uint32_t *word, uint32_t seen, int64_t timeout_ns);
void sm_futex_wake(_Atomic uint32_t *word, int count);
void sm_ring(sm_inbox *inbox);              /* wake the worker if it sleeps */
void sm_room(sm_lane *lane, uint64_t head); /* wake a producer that waits for this head */
void sm_wake_waiters(sm_lane *lane);        /* whatever the last worker of this lane may owe */

/* How long to spin before sleeping: learnt from whether it would have paid, never more than the limit, and zero
 * while more processes want to run than there are cores. */
typedef struct sm_spin {
    int64_t budget_ns, checked_ns;
    int crowded;
} sm_spin;

int64_t sm_spin_begin(sm_spin *spin, int64_t limit_ns, int64_t now_ns);
void sm_spin_paid(sm_spin *spin, int64_t limit_ns);
void sm_spin_slept(sm_spin *spin, int64_t limit_ns, int64_t slept_ns);
/* returns when the head has reached `near` if that happens while spinning, else when it has reached `target` */
int sm_wait_head(sm_lane *lane, uint64_t near, uint64_t target, sm_spin *spin, int64_t spin_ns, int64_t timeout_ns);

/* the sender's lock, for the calls that hold the interpreter's lock already */
int sm_sender_trylock(sm_sender *sender);
void sm_sender_lock(sm_sender *sender);
void sm_sender_unlock(sm_sender *sender);

/* events of one chunk, gathered from wherever they lie */
typedef struct sm_event {
    uint64_t key; /* SM_KEY_INT: the key; else its hash */
    const uint8_t *key_bytes, *payload;
    uint32_t meta, length; /* of the payload */
} sm_event;

sm_event *sm_sender_events(sm_sender *sender);                                               /* room for SM_CHUNK */
int sm_push_one(sm_sender *sender, const sm_event *event, uint32_t *shard);                  /* locked by the caller */
int sm_push_chunk(sm_sender *sender, const sm_event *events, uint32_t n, sm_cursor *cursor); /* likewise */
int sm_push_columns_locked(sm_sender *sender, const sm_columns *columns, sm_cursor *cursor);

/* Texts that are read while they are written anew are kept in words: plain bytes could not be read at the same time, and
 * the second look at their count would be in no order with them. */
static inline uint64_t sm_text_word(const char *text, uint32_t bytes, uint32_t at)
{
    uint64_t word = 0;
    memcpy(&word, text + at, bytes - at < 8 ? bytes - at : 8);
    return word;
}

static inline int64_t sm_clock(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

static inline void sm_pause(void)
{
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ __volatile__("yield");
#endif
}

#endif
