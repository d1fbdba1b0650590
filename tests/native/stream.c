/*
 * Records: producers of one seat each, one worker a shard, an observer. Claimed: every row arrives once, whole, at the
 * shard of its slot, in order per producer and key; counts and positions never contradict each other.
 *
 * Lanes are small, so that frames are cut, padded, wrapped and refused all the time.
 */
#include "harness.h"

enum { PRODUCERS = 2, SHARDS = 2, KEYS = 48, BLOCK = 9000, LONGEST_ROW = 64 };

typedef struct row { /* the rest of a row is filled from `check` */
    uint64_t key, nth;
    uint32_t producer, check;
} row;

static engine e;
static uint32_t row_bytes;
static int64_t deadline;
static _Atomic int finished;
static uint64_t sent[PRODUCERS][KEYS], arrived[SHARDS][PRODUCERS][KEYS];

static uint32_t check_of(uint32_t producer, uint64_t key, uint64_t nth)
{
    return (uint32_t)mix(mix(nth) ^ key << 8 ^ producer);
}

static void *produce(void *argument)
{
    uint32_t seat = (uint32_t)(uintptr_t)argument;
    uint64_t random = mix(seed * 100 + seat);
    sm_sender *s = take_seat(&e, seat);
    patience p = {0};
    sm_cursor *c = malloc(sizeof *c);
    uint8_t *block = malloc((size_t)BLOCK * row_bytes);
    while (sm_now_ns() < deadline) {
        uint64_t shape = below(&random, 64);
        uint64_t n = shape == 0 ? below(&random, BLOCK + 1) : shape < 8 ? below(&random, 400) : below(&random, 12);
        uint64_t one_key = below(&random, 4) ? KEYS : below(&random, KEYS); /* some blocks go to one shard whole */
        for (uint64_t i = 0; i < n; i++) {
            row r = {.key = one_key < KEYS ? one_key : below(&random, KEYS), .producer = seat};
            r.nth = sent[seat][r.key]++;
            r.check = check_of(seat, r.key, r.nth);
            memcpy(block + i * row_bytes, &r, sizeof r);
            memset(block + i * row_bytes + sizeof r, (int)(r.check & 0xff), row_bytes - sizeof r);
        }
        memset(c, 0, sizeof *c);
        for (int status; (status = sm_send(s, block, n, c)) != SM_OK;) {
            CHECK(c->pending_count <= SM_CHUNK && c->chunk <= c->next && c->next <= n, "cursor");
            CHECK(c->accepted == c->next - c->pending_count, "accepted %llu, next %llu, pending %u",
                  (unsigned long long)c->accepted, (unsigned long long)c->next, c->pending_count);
            mend(&e, s, status, c->shard, &p);
        }
        CHECK(c->accepted == n, "accepted %llu of %llu", (unsigned long long)c->accepted, (unsigned long long)n);
        sm_count_refused(s, SM_REASON_FULL, below(&random, 3));
    }
    flush(&e, s);
    leave_seat(&e, s, seat);
    free(block);
    free(c);
    return NULL;
}

static void receive(uint32_t shard, uint32_t seat, const sm_index *entry, const uint8_t *at, uint32_t length)
{
    row r;
    CHECK(!entry && length == row_bytes, "%u bytes", length);
    memcpy(&r, at, sizeof r);
    CHECK(r.producer == seat && r.key < KEYS, "producer %u, key %llu in the lane of %u", r.producer,
          (unsigned long long)r.key, seat);
    CHECK(r.check == check_of(seat, r.key, r.nth), "torn row");
    for (uint32_t i = sizeof r; i < row_bytes; i++)
        CHECK(at[i] == (r.check & 0xff), "torn row, byte %u", i);
    CHECK(shard_of_int(&e, r.key) == shard, "key %llu at shard %u", (unsigned long long)r.key, shard);
    uint64_t expected = arrived[shard][seat][r.key]++;
    CHECK(r.nth == expected, "producer %u, key %llu: number %llu where %llu was due", seat, (unsigned long long)r.key,
          (unsigned long long)r.nth, (unsigned long long)expected);
}

static void *work(void *argument)
{
    uint32_t shard = (uint32_t)(uintptr_t)argument, max_rows;
    uint64_t random = mix(seed * 200 + shard), batches = 0, last_sequence[PRODUCERS] = {0};
    uint8_t *scratch = malloc(4096 * LONGEST_ROW);
    static const uint32_t sizes[] = {1, 7, 64, 1000, 4096};
    sm_reader *r = take_shard(&e, shard, max_rows = sizes[below(&random, 5)]);
    for (sm_batch b; next_rows(r, &finished, &b);) {
        int gather = below(&random, 4) == 0;
        if (gather) {
            CHECK(b.rows * row_bytes <= 4096 * LONGEST_ROW && b.rows <= max_rows, "%llu rows",
                  (unsigned long long)b.rows);
            CHECK(sm_gather(&b, row_bytes, scratch, b.rows * row_bytes - 1) == SM_GEOMETRY, "gathered into too little");
            CHECK(sm_gather(&b, row_bytes, scratch, b.rows * row_bytes) == SM_OK, "gather");
        }
        for (uint32_t i = 0; i < b.spans; i++) {
            const sm_span *span = &b.span[i];
            CHECK(span->count && span->sequence >= last_sequence[span->seat], "sequence fell");
            last_sequence[span->seat] = span->sequence + span->count;
        }
        for_each_row(shard, &b, row_bytes, gather ? scratch : NULL, receive);
        if (below(&random, 200) == 0)
            usleep(300); /* lanes fill up, producers park */
        CHECK(sm_commit(r) == SM_OK, "commit");
        if (++batches % 1024 == 0) { /* the next life starts from what this one left in shared memory */
            sm_reader_free(r);
            r = take_shard(&e, shard, max_rows = sizes[below(&random, 5)]);
        }
    }
    sm_reader_free(r);
    free(scratch);
    return NULL;
}

static void run(uint64_t lane_bytes, uint32_t bytes_of_row, double share)
{
    row_bytes = bytes_of_row;
    e = engine_new(SHARDS, PRODUCERS, lane_bytes, row_bytes);
    memset(sent, 0, sizeof sent);
    memset(arrived, 0, sizeof arrived);
    atomic_store_explicit(&finished, 0, memory_order_relaxed);
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
    for (uint32_t p = 0; p < PRODUCERS; p++)
        for (uint64_t key = 0; key < KEYS; key++) {
            uint64_t there = arrived[shard_of_int(&e, key)][p][key];
            CHECK(there == sent[p][key], "producer %u, key %llu: %llu of %llu arrived", p, (unsigned long long)key,
                  (unsigned long long)there, (unsigned long long)sent[p][key]);
            total += there;
        }
    CHECK(settle(&e) == total, "the counters do not say %llu", (unsigned long long)total);
    printf("lane %6llu, row %2u: %llu rows, %llu looks\n", (unsigned long long)lane_bytes, row_bytes,
           (unsigned long long)total, (unsigned long long)o.looks);
    engine_free(&e);
}

int main(int argc, char **argv)
{
    begin(argc, argv);
    run(4096, 24, 0.4);
    run(8192, 41, 0.3); /* no size that the copy loop knows, and rows at odd addresses */
    run(65536, 64, 0.3);
    return 0;
}
