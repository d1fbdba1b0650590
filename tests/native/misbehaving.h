/*
 * A producer that misbehaves: what it writes into its lane, at any moment at which another process could. hostile.c and
 * fuzz.c say what must hold all the same. Random numbers are the thread's own, so that a second thread may spoil, too.
 */
#ifndef MISBEHAVING_H
#define MISBEHAVING_H

#include "harness.h"

static engine e;
static _Thread_local uint64_t rng;
static sm_lane *lane; /* the rogue's */

static uint64_t strange(uint64_t now)
{
    uint64_t n = e.g.lane_bytes;
    const uint64_t values[] = {0,
                               1,
                               15,
                               16,
                               17,
                               32,
                               40,
                               47,
                               48,
                               63,
                               64,
                               n / 2 - 16,
                               n / 2,
                               n / 2 + 16,
                               n - 16,
                               n,
                               n + 16,
                               SM_CHUNK,
                               SM_CHUNK + 1,
                               INT32_MAX,
                               UINT64_C(1) << 31,
                               UINT32_MAX,
                               INT64_MAX,
                               UINT64_C(1) << 63,
                               UINT64_MAX,
                               now + 1,
                               now - 1,
                               now + 16,
                               now - 16,
                               now + n,
                               now - n,
                               now << 1,
                               now | 1,
                               draw(&rng),
                               draw(&rng) >> 32,
                               draw(&rng) >> 48,
                               draw(&rng) >> 56};
    return below(&rng, 4) ? values[below(&rng, sizeof values / sizeof *values)] : now ^ UINT64_C(1) << below(&rng, 64);
}

static void spoil64(_Atomic uint64_t *word)
{
    atomic_store_explicit(word, strange(atomic_load_explicit(word, memory_order_relaxed)), memory_order_relaxed);
}

static void spoil_word(void)
{
    _Atomic uint64_t *words[] = {&lane->tail,        &lane->tail,        &lane->tail,
                                 &lane->head,        &lane->evict,       &lane->waiting,
                                 &lane->accepted[0], &lane->accepted[1], &lane->ledger[0].ledger_handled};
    spoil64(words[below(&rng, sizeof words / sizeof *words)]);
}

/* mostly where a frame begins: at the head, or behind a frame that begins there */
static sm_frame *some_frame(void)
{
    uint64_t mask = e.g.lane_bytes - 1, at = sm_position(atomic_load_explicit(&lane->head, memory_order_relaxed));
    if (below(&rng, 8) == 0)
        at = below(&rng, e.g.lane_bytes) & ~UINT64_C(15);
    for (uint64_t hops = below(&rng, 6); hops; hops--) {
        uint32_t length = ((sm_frame *)(sm_lane_data(lane) + (at & mask)))->length;
        if (!length || length % 16 || length > e.g.lane_bytes - (at & mask))
            break;
        at += length;
    }
    return (sm_frame *)(sm_lane_data(lane) + (at & mask));
}

/* 16 bytes are always left behind a frame's address, its header may not be */
static int whole(const sm_frame *f) { return (uint8_t *)f + sizeof *f <= sm_lane_data(lane) + e.g.lane_bytes; }

static void spoil_frame(void)
{
    sm_frame *f = some_frame();
    switch (below(&rng, whole(f) ? 8 : 2)) {
    case 0:
        f->length = (uint32_t)strange(f->length);
        break;
    case 1:
        f->kind = below(&rng, 3) ? (uint16_t)(below(&rng, 2) ? SM_FRAME_PAD : SM_FRAME_DATA) : (uint16_t)draw(&rng);
        break;
    case 2:
        f->rows = (uint32_t)strange(f->rows);
        break;
    case 3:
        f->bytes = (uint32_t)strange(f->bytes);
        break;
    case 4:
        f->position = strange(f->position);
        break;
    case 5:
        f->sequence = strange(f->sequence);
        break;
    case 6:
        f->sent_ns = (int64_t)strange((uint64_t)f->sent_ns);
        break;
    case 7:
        f->length = (uint32_t)(f->length - 16 + 32 * below(&rng, 2));
        break;
    }
}

static void spoil_entry(void)
{
    sm_frame *f = some_frame();
    if (!whole(f) || f->rows > SM_CHUNK)
        return;
    sm_index *entry = (sm_index *)((uint8_t *)f + sm_prefix(f->rows)) + below(&rng, f->rows + 1);
    if ((uint8_t *)(entry + 1) > sm_lane_data(lane) + e.g.lane_bytes)
        return;
    switch (below(&rng, 4)) {
    case 0:
        entry->end = (uint32_t)strange(entry->end);
        break;
    case 3:
        entry->end = f->bytes = (uint32_t)strange(f->bytes);
        break; /* a lie that agrees with itself */
    case 1:
        entry->meta = (uint32_t)strange(entry->meta);
        break;
    case 2:
        entry->key = strange(entry->key);
        break;
    }
}

/* what comes with the events, or what would be there */
static void spoil_more(void)
{
    sm_frame *f = some_frame();
    if (!whole(f) || f->rows > SM_CHUNK)
        return;
    if (below(&rng, 3) == 0)
        f->kind ^= (uint16_t)(SM_FRAME_ORIGIN << below(&rng, 3));
    uint8_t *at = (uint8_t *)f + sm_plain_bytes(f->rows, f->bytes) + 4 * below(&rng, 24);
    if (at < sm_lane_data(lane) || at + 4 > sm_lane_data(lane) + e.g.lane_bytes)
        return;
    uint32_t word;
    memcpy(&word, at, sizeof word);
    word = (uint32_t)strange(word);
    memcpy(at, &word, sizeof word);
}

static void spoil_bytes(void)
{
    uint8_t *from = below(&rng, 2) ? (uint8_t *)lane : (uint8_t *)some_frame();
    uint64_t room = (uint64_t)(sm_lane_data(lane) + e.g.lane_bytes - from), span = below(&rng, 2) ? 64 : 640;
    for (uint64_t n = 1 + below(&rng, 4); n; n--)
        from[below(&rng, span < room ? span : room)] ^= (uint8_t)(1 << below(&rng, 8));
}

static void spoil(void)
{
    for (uint64_t n = below(&rng, 3); n; n--)
        switch (below(&rng, 10)) {
        case 0:
        case 1:
            spoil_word();
            break;
        case 8:
        case 9:
            spoil_more();
            break;
        case 2:
        case 3:
        case 4:
            spoil_frame();
            break;
        case 5:
        case 6:
            spoil_entry();
            break;
        case 7:
            spoil_bytes();
            break;
        }
}

/* ---- events of a partition ------------------------------------------------------------------------------------------ */

enum { PARTITIONS = 3, FEW = 20, LONGEST = 90 };

static void begin_partitions(void)
{
    CHECK(sm_set_partition_count(e.control, &e.g, PARTITIONS) == SM_OK, "partitions");
    for (uint32_t number = 0; number < PARTITIONS; number++)
        sm_begin_partition(e.control, (uint32_t)sm_claim_partition(e.control, "t", 1, number), 0);
}

/* Some events with some of what may come with them. */
static int push_more(sm_sender *s, uint64_t key)
{
    static const uint8_t data[FEW * LONGEST], missing[FEW] = {0, 1};
    static uint64_t keys[FEW], offsets[FEW + 1], headers[FEW + 1], origins[FEW];
    static int64_t times[FEW];
    static sm_cursor c;
    uint64_t n = 1 + below(&rng, FEW), with = draw(&rng);
    origins[0] = draw(&rng) >> 20;
    for (uint64_t i = 0; i < n; i++) {
        keys[i] = key;
        origins[i] = i ? origins[i - 1] + 1 + below(&rng, 9) : origins[0];
        offsets[i + 1] = offsets[i] + below(&rng, LONGEST);
        headers[i + 1] = headers[i] + below(&rng, 2) * below(&rng, LONGEST);
    }
    uint32_t partition = (uint32_t)below(&rng, PARTITIONS);
    sm_partition_view view;
    sm_view_partition(e.control, partition, &view);
    sm_columns in = {.n = n,
                     .key_kind = with & 1 ? SM_KEY_INT : SM_KEY_NONE,
                     .keys = keys,
                     .data = data,
                     .offsets = offsets,
                     .data_bytes = sizeof data,
                     .missing = with & 2 ? missing : NULL,
                     .times = with & 4 ? times : NULL,
                     .header_data = data,
                     .header_offsets = with & 8 ? headers : NULL,
                     .header_bytes = sizeof data,
                     .origins = with & 16 ? origins : NULL,
                     .partition = partition,
                     .epoch = view.epoch};
    memset(&c, 0, sizeof c);
    return sm_push_columns(s, &in, &c);
}

/* All of what comes with a batch, into memory of just that size. */
static void read_more(const sm_batch *b)
{
    uint64_t rows = b->rows ? b->rows : 1;
    uint32_t *words = malloc(rows * sizeof *words);
    uint64_t *longs = malloc(rows * sizeof *longs);
    int64_t *times = malloc(rows * sizeof *times);
    sm_batch_origins(b, words, longs);
    sm_batch_times(b, times);
    int64_t status = sm_batch_slots(b, e.control, e.g.slots, words);
    for (uint64_t i = 0; i < b->rows; i++)
        CHECK(status == SM_OK && words[i] < e.g.slots, "slot %u of %u", words[i], e.g.slots);
    status = sm_batch_headers(b, NULL, NULL, 0);
    CHECK(status >= 0 || status == SM_CORRUPT, "headers: %lld", (long long)status);
    uint8_t *out = malloc(status > 1 ? (uint64_t)status - 1 : 1);
    if (status > 0)
        sm_batch_headers(b, longs, out, (uint64_t)status - 1);
    free(words);
    free(longs);
    free(times);
    free(out);
}

#endif
