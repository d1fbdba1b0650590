/*
 * Events: singly and as columns, of 0 bytes to half a lane, under int, bytes, str and no keys, read in place and
 * gathered. Claimed: each arrives once, byte for byte; in order per producer and key, where there is a key.
 *
 * Nothing in a payload says which event it is (it may be empty): length and bytes follow from producer, key and
 * how many the key has had, and the receiving side works them out again.
 */
#include "harness.h"

enum {
    PRODUCERS = 2,
    SHARDS = 2,
    INTS = 16,
    TEXTS = 10,
    KEYS = INTS + 2 * TEXTS,
    KEYLESS = KEYS,
    LOOSE = 1 << 20, /* keyless events of one producer at most: each is ticked off */
    BLOCK = 5000,    /* more than one chunk */
    LONGEST_KEY = 40,
    LARGEST_LANE = 65536
};

typedef struct text {
    uint8_t bytes[LONGEST_KEY];
    uint32_t length;
} text;

static engine e;
static int64_t deadline;
static uint64_t limit;
static _Atomic int finished;
static text texts[TEXTS];
static uint8_t expected[SHARDS][LARGEST_LANE / 2];
static uint64_t sent[PRODUCERS][KEYS + 1], arrived[SHARDS][PRODUCERS][KEYS];
static _Atomic uint8_t ticked[PRODUCERS][LOOSE];
static _Atomic uint64_t pushes;

/* ints from both ends of their range; texts of different lengths, the empty one among them */
static uint64_t int_key(uint32_t k) { return k % 4 == 3 ? UINT64_MAX - k : k % 4 == 2 ? UINT64_C(1) << 63 | k : k; }
static uint32_t kind_of(uint32_t k)
{
    return k == KEYLESS ? SM_KEY_NONE : k < INTS ? SM_KEY_INT : k < INTS + TEXTS ? SM_KEY_BYTES : SM_KEY_STR;
}

static const text *text_of(uint32_t k) { return &texts[(k - INTS) % TEXTS]; }

static uint32_t owner_of(uint32_t k)
{
    uint64_t hash = k < INTS ? sm_hash_int(int_key(k)) : sm_hash_bytes(text_of(k)->bytes, text_of(k)->length);
    return (uint32_t)(hash & (e.g.slots - 1)) % SHARDS;
}

/* a keyless payload begins with its number: nothing else tells which it is */
static uint32_t length_of(uint32_t producer, uint32_t k, uint64_t nth)
{
    uint64_t h = mix(mix(nth * 64 + k) ^ producer), most = limit - (k < INTS || k == KEYLESS ? 0 : text_of(k)->length);
    uint64_t shape = h % 32, length = h >> 8;
    length = shape == 0   ? 0
             : shape < 24 ? length % 64
             : shape < 29 ? length % 600
             : shape < 31 ? length % (most + 1)
                          : most;
    return (uint32_t)(k == KEYLESS && length < 8 ? 8 : length);
}

static uint8_t byte_of(uint64_t pattern, uint32_t i) { return (uint8_t)((pattern >> i % 8 * 8) + i / 8); }
static uint64_t pattern_of(uint32_t producer, uint32_t k, uint64_t nth) { return mix(nth ^ mix(k << 8 | producer)); }

static uint32_t fill(uint8_t *out, uint32_t producer, uint32_t k, uint64_t nth)
{
    uint32_t length = length_of(producer, k, nth), i = 0;
    uint64_t pattern = pattern_of(producer, k, nth);
    if (k == KEYLESS)
        for (; i < 8; i++)
            out[i] = (uint8_t)(nth >> i * 8);
    for (; i < length; i++)
        out[i] = byte_of(pattern, i);
    return length;
}

static uint64_t next_number(uint32_t seat, uint32_t k)
{
    CHECK(k != KEYLESS || sent[seat][k] < LOOSE, "more keyless events than there are ticks");
    return sent[seat][k]++;
}

/* ---- producers ------------------------------------------------------------------------------------------------------ */

static void push_one(sm_sender *s, uint32_t seat, uint32_t k, uint8_t *payload, patience *p)
{
    uint32_t kind = kind_of(k), shard = 0;
    uint64_t key = k < INTS ? int_key(k) : 0;
    const text *t = kind == SM_KEY_BYTES || kind == SM_KEY_STR ? text_of(k) : NULL;
    uint32_t key_length = t ? t->length : 0, length = fill(payload, seat, k, next_number(seat, k));
    for (int status; (status = sm_push(s, kind, key, key >> 63, t ? t->bytes : NULL, key_length, payload, length,
                                       &shard)) != SM_OK;)
        mend(&e, s, status, shard, p);
    uint32_t too_long = (uint32_t)sm_max_payload(s, key_length) + 1;
    CHECK(sm_push(s, kind, key, key >> 63, t ? t->bytes : NULL, key_length, payload, too_long, &shard) == SM_TOO_LARGE,
          "%u bytes were not too many", too_long);
}

typedef struct block {
    uint8_t *data, *key_data;
    uint64_t keys[BLOCK], offsets[BLOCK + 1], key_offsets[BLOCK + 1];
    sm_cursor cursor;
} block;

static void push_block(sm_sender *s, uint32_t seat, uint64_t *random, block *b, patience *p)
{
    uint64_t n = below(random, 64) ? below(random, 40) : below(random, BLOCK + 1);
    uint32_t kind = (uint32_t)below(random, 4);
    for (uint64_t i = 0; i < n; i++) {
        uint32_t k = kind == SM_KEY_NONE    ? KEYLESS
                     : kind == SM_KEY_INT   ? (uint32_t)below(random, INTS)
                     : kind == SM_KEY_BYTES ? INTS + (uint32_t)below(random, TEXTS)
                                            : INTS + TEXTS + (uint32_t)below(random, TEXTS);
        uint32_t key_length = kind == SM_KEY_BYTES || kind == SM_KEY_STR ? text_of(k)->length : 0;
        b->keys[i] = k < INTS ? int_key(k) : 0;
        if (key_length)
            memcpy(b->key_data + b->key_offsets[i], text_of(k)->bytes, key_length);
        b->key_offsets[i + 1] = b->key_offsets[i] + key_length;
        b->offsets[i + 1] = b->offsets[i] + fill(b->data + b->offsets[i], seat, k, next_number(seat, k));
    }
    sm_columns columns = {.n = n,
                          .key_kind = kind,
                          .key_unsigned = 1,
                          .keys = b->keys,
                          .key_data = b->key_data,
                          .key_offsets = b->key_offsets,
                          .data = b->data,
                          .offsets = b->offsets,
                          .data_bytes = b->offsets[n],
                          .key_bytes = b->key_offsets[n]};
    sm_cursor *c = &b->cursor;
    memset(c, 0, sizeof *c);
    for (int status; (status = sm_push_columns(s, &columns, c)) != SM_OK;) {
        CHECK(c->accepted == c->next - c->pending_count && c->next <= n, "cursor");
        mend(&e, s, status, c->shard, p);
    }
    CHECK(c->accepted == n, "accepted %llu of %llu", (unsigned long long)c->accepted, (unsigned long long)n);
    atomic_fetch_add_explicit(&pushes, n, memory_order_relaxed);
}

static void *produce(void *argument)
{
    uint32_t seat = (uint32_t)(uintptr_t)argument;
    uint64_t random = mix(seed * 300 + seat);
    sm_sender *s = take_seat(&e, seat);
    patience p = {0};
    block *b = calloc(1, sizeof *b);
    b->data = malloc(BLOCK * limit);
    b->key_data = malloc(BLOCK * LONGEST_KEY);
    uint8_t *payload = malloc(limit + 1);
    while (sm_now_ns() < deadline) {
        if (below(&random, 4) == 0) {
            push_block(s, seat, &random, b, &p);
            continue;
        }
        push_one(s, seat, (uint32_t)below(&random, KEYS + 1), payload, &p);
        atomic_fetch_add_explicit(&pushes, 1, memory_order_relaxed);
    }
    flush(&e, s);
    leave_seat(&e, s, seat);
    free(payload);
    free(b->key_data);
    free(b->data);
    free(b);
    return NULL;
}

/* ---- workers --------------------------------------------------------------------------------------------------------- */

static uint32_t key_in(const sm_index *entry, const uint8_t *bytes)
{
    uint32_t kind = SM_META_KIND(entry->meta), length = SM_META_LENGTH(entry->meta);
    if (kind == SM_KEY_NONE)
        return KEYLESS;
    if (kind == SM_KEY_INT) {
        CHECK(!length && !!(entry->meta & SM_META_UNSIGNED) == entry->key >> 63, "int key, meta %x", entry->meta);
        for (uint32_t k = 0; k < INTS; k++)
            if (int_key(k) == entry->key)
                return k;
    }
    for (uint32_t i = 0; kind != SM_KEY_INT && i < TEXTS; i++)
        if (texts[i].length == length && memcmp(texts[i].bytes, bytes, length) == 0) {
            CHECK(entry->key == sm_hash_bytes(bytes, length), "hash of a key");
            return (kind == SM_KEY_BYTES ? INTS : INTS + TEXTS) + i;
        }
    CHECK(0, "no such key: kind %u, %u bytes", kind, length);
    return 0;
}

static void receive(uint32_t shard, uint32_t seat, const sm_index *entry, const uint8_t *bytes, uint32_t length)
{
    uint32_t k = key_in(entry, bytes), key_length = SM_META_LENGTH(entry->meta);
    CHECK(key_length <= length, "key of %u bytes in %u", key_length, length);
    bytes += key_length;
    length -= key_length;
    uint64_t nth = 0;
    if (k == KEYLESS) {
        CHECK(length >= 8, "keyless, %u bytes", length);
        memcpy(&nth, bytes, 8);
        CHECK(nth < LOOSE && !atomic_exchange_explicit(&ticked[seat][nth], 1, memory_order_relaxed),
              "keyless event %llu of producer %u came again", (unsigned long long)nth, seat);
    } else {
        CHECK(owner_of(k) == shard, "key %u at shard %u", k, shard);
        nth = arrived[shard][seat][k]++;
    }
    CHECK(length == length_of(seat, k, nth),
          "producer %u, key %u, number %llu: %u bytes, not %u: lost, repeated or out of "
          "order",
          seat, k, (unsigned long long)nth, length, length_of(seat, k, nth));
    fill(expected[shard], seat, k, nth);
    CHECK(memcmp(bytes, expected[shard], length) == 0,
          "producer %u, key %u, number %llu: not the bytes that were pushed", seat, k, (unsigned long long)nth);
}

static void *work(void *argument)
{
    uint32_t shard = (uint32_t)(uintptr_t)argument;
    uint64_t random = mix(seed * 400 + shard), batches = 0;
    static const uint32_t sizes[] = {1, 5, 64, 4096};
    uint64_t room = 4096 * sizeof(sm_index) + (2 << 20);
    uint8_t *scratch = malloc(room);
    sm_reader *r = take_shard(&e, shard, sizes[below(&random, 4)]);
    for (sm_batch b; next_rows(r, &finished, &b);) {
        uint64_t bytes = b.rows * sizeof(sm_index) + b.bytes;
        int gather = below(&random, 2) && bytes <= room;
        if (gather)
            CHECK(sm_gather(&b, 0, scratch, bytes) == SM_OK, "gather");
        for_each_row(shard, &b, 0, gather ? scratch : NULL, receive);
        if (below(&random, 200) == 0)
            usleep(300);
        CHECK(sm_commit(r) == SM_OK, "commit");
        if (++batches % 512 == 0) {
            sm_reader_free(r);
            r = take_shard(&e, shard, sizes[below(&random, 4)]);
        }
    }
    sm_reader_free(r);
    free(scratch);
    return NULL;
}

static void run(uint64_t lane_bytes, double share)
{
    e = engine_new(SHARDS, PRODUCERS, lane_bytes, 0);
    limit = lane_bytes / 2 - sm_prefix(1) - sizeof(sm_index);
    memset(sent, 0, sizeof sent);
    memset(arrived, 0, sizeof arrived);
    memset((void *)ticked, 0, sizeof ticked);
    atomic_store_explicit(&finished, 0, memory_order_relaxed);
    atomic_store_explicit(&pushes, 0, memory_order_relaxed);
    deadline = sm_now_ns() + (int64_t)(seconds * share * 1e9);
    observer o = {.e = &e};
    pthread_t producers[PRODUCERS], workers[SHARDS], eye = start(observe, &o);
    for (uintptr_t i = 0; i < SHARDS; i++)
        workers[i] = start(work, (void *)i);
    for (uintptr_t i = 0; i < PRODUCERS; i++)
        producers[i] = start(produce, (void *)i);
    for (int i = 0; i < PRODUCERS; i++)
        join(producers[i]);
    atomic_store_explicit(&finished, 1, memory_order_release);
    for (int i = 0; i < SHARDS; i++) {
        sm_wake(e.inbox[i]);
        join(workers[i]);
    }
    stop_observer(&o, eye);
    uint64_t total = 0;
    for (uint32_t p = 0; p < PRODUCERS; p++) {
        for (uint32_t k = 0; k < KEYS; k++) {
            CHECK(arrived[owner_of(k)][p][k] == sent[p][k], "producer %u, key %u: %llu of %llu arrived", p, k,
                  (unsigned long long)arrived[owner_of(k)][p][k], (unsigned long long)sent[p][k]);
            total += sent[p][k];
        }
        for (uint64_t i = 0; i < sent[p][KEYLESS]; i++)
            CHECK(atomic_load_explicit(&ticked[p][i], memory_order_relaxed), "keyless event %llu was lost",
                  (unsigned long long)i);
        total += sent[p][KEYLESS];
    }
    uint64_t counted = atomic_load_explicit(&pushes, memory_order_relaxed);
    CHECK(settle(&e) == total && counted == total, "the counters do not say %llu", (unsigned long long)total);
    printf("lane %6llu: %llu events, %llu looks\n", (unsigned long long)lane_bytes, (unsigned long long)total,
           (unsigned long long)o.looks);
    engine_free(&e);
}

static void drop_all(sm_reader *r)
{
    sm_batch b;
    while (sm_next(r, 0, 0, &b) == SM_OK && b.rows)
        CHECK(sm_commit(r) == SM_OK, "commit");
}

/* What is checked before the first event of a block is accepted agrees with what pushing says, or a block that can never
 * be finished is begun. */
static void sizes(void)
{
    enum { LANE = 4096 };
    uint8_t bytes[LANE] = {0};
    e = engine_new(1, 1, LANE, 0);
    limit = LANE / 2 - sm_prefix(1) - sizeof(sm_index);
    sm_sender *s = take_seat(&e, 0);
    sm_reader *r = take_shard(&e, 0, 64);
    static sm_cursor c;
    mend(&e, s, SM_NEED_LANE, 0, NULL);
    for (uint64_t key = 0; key <= LANE / 2 + 8; key += key < limit - 8 ? 64 : 1)
        for (uint64_t payload = 0; payload <= LANE / 2; payload += payload ? 500 : 1) {
            uint64_t offsets[] = {0, payload}, key_offsets[] = {0, key};
            uint32_t shard;
            sm_columns columns = {.n = 1,
                                  .key_kind = SM_KEY_BYTES,
                                  .key_data = bytes,
                                  .key_offsets = key_offsets,
                                  .data = bytes,
                                  .offsets = offsets,
                                  .data_bytes = payload,
                                  .key_bytes = key};
            memset(&c, 0, sizeof c);
            int checked = sm_push_columns(s, &columns, &c);
            drop_all(r);
            int pushed = sm_push(s, SM_KEY_BYTES, 0, 0, bytes, (uint32_t)key, bytes, (uint32_t)payload, &shard);
            int fits = key + payload <= limit;
            drop_all(r);
            CHECK(checked == (fits ? SM_OK : SM_TOO_LARGE), "key of %llu, payload of %llu: checked %d",
                  (unsigned long long)key, (unsigned long long)payload, checked);
            CHECK(pushed == (fits ? SM_OK : SM_TOO_LARGE), "key of %llu, payload of %llu: pushed %d",
                  (unsigned long long)key, (unsigned long long)payload, pushed);
            CHECK(sm_max_payload(s, key) == (key < limit ? limit - key : 0), "key of %llu", (unsigned long long)key);
        }
    sm_reader_free(r);
    leave_seat(&e, s, 0);
    engine_free(&e);
}

int main(int argc, char **argv)
{
    begin(argc, argv);
    for (uint32_t i = 0; i < TEXTS; i++) {
        texts[i].length = i * 7 % LONGEST_KEY;
        for (uint32_t j = 0; j < texts[i].length; j++)
            texts[i].bytes[j] = (uint8_t)mix(i * 64 + j);
    }
    sizes();
    run(4096, 0.6);
    run(LARGEST_LANE, 0.4);
    return 0;
}
