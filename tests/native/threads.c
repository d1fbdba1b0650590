/*
 * Many threads, one sender. Claimed: each thread's events arrive once and in the order in which that thread pushed
 * them, and what the seat counts adds up, whatever the threads do at the same time: push, send, wait, flush, open
 * the same lane.
 *
 * Rounds are short, each with a seat and inboxes of its own, because lanes are opened only once.
 */
#include "harness.h"

enum { THREADS = 4, SHARDS = 2, KEYS = 6, MOST = 40 };

static engine e;
static sm_sender *sender;
static int64_t deadline;
static _Atomic int finished;
static pthread_barrier_t gate;
static uint64_t sent[THREADS][KEYS], arrived[SHARDS][THREADS][KEYS], refused[THREADS], waits[THREADS];

/* Another thread may open the lane, and may use the room: both are no reason to fail. */
static void mend_ours(uint32_t thread, int status, uint32_t shard)
{
    mend(&e, sender, status, shard, NULL);
    if (status == SM_FULL) {
        sm_count_blocked(sender, 1);
        waits[thread]++;
    }
}

static void push_events(uint32_t thread, uint64_t *random, sm_cursor *c)
{
    uint64_t keys[MOST], numbers[MOST], offsets[MOST + 1] = {0}, n = below(random, MOST) + 1;
    for (uint64_t i = 0; i < n; i++) {
        uint32_t k = (uint32_t)below(random, KEYS), shard = 0;
        keys[i] = thread * KEYS + k;
        numbers[i] = sent[thread][k]++;
        offsets[i + 1] = (i + 1) * sizeof *numbers;
        if (n > 4)
            continue;
        for (int status; (status = sm_push(sender, SM_KEY_INT, keys[i], 0, NULL, 0, &numbers[i], 8, &shard)) != SM_OK;)
            mend_ours(thread, status, shard);
    }
    if (n <= 4)
        return;
    sm_columns columns = {.n = n,
                          .key_kind = SM_KEY_INT,
                          .keys = keys,
                          .data = (uint8_t *)numbers,
                          .offsets = offsets,
                          .data_bytes = offsets[n]};
    memset(c, 0, sizeof *c);
    for (int status; (status = sm_push_columns(sender, &columns, c)) != SM_OK;)
        mend_ours(thread, status, c->shard);
    CHECK(c->accepted == n, "accepted %llu of %llu", (unsigned long long)c->accepted, (unsigned long long)n);
}

static void send_rows(uint32_t thread, uint64_t *random, sm_cursor *c)
{
    numbered rows[MOST];
    uint64_t n = below(random, MOST) + 1;
    for (uint64_t i = 0; i < n; i++) {
        uint32_t k = (uint32_t)below(random, KEYS);
        rows[i] = (numbered){thread * KEYS + k, sent[thread][k]++};
    }
    memset(c, 0, sizeof *c);
    for (int status; (status = sm_send(sender, rows, n, c)) != SM_OK;)
        mend_ours(thread, status, c->shard);
    CHECK(c->accepted == n, "accepted %llu of %llu", (unsigned long long)c->accepted, (unsigned long long)n);
}

static void *produce(void *argument)
{
    uint32_t thread = (uint32_t)(uintptr_t)argument;
    uint64_t random = mix(seed * 500 + thread) ^ (uint64_t)deadline;
    sm_cursor *c = malloc(sizeof *c);
    pthread_barrier_wait(&gate); /* all find no lane, and open it at once */
    while (sm_now_ns() < deadline) {
        (e.g.row_bytes ? send_rows : push_events)(thread, &random, c);
        sm_count_refused(sender, SM_REASON_FULL, 1);
        refused[thread]++;
        if (below(&random, 500) == 0)
            flush(&e, sender);
    }
    flush(&e, sender);
    free(c);
    return NULL;
}

static void receive(uint32_t shard, uint32_t seat, const sm_index *entry, const uint8_t *bytes, uint32_t length)
{
    numbered got = numbered_at(entry, bytes, length);
    uint64_t key = got.key, nth = got.nth, thread = key / KEYS; /* key = thread * KEYS + k */
    CHECK(seat == 0, "seat %u", seat);
    CHECK(thread < THREADS && shard_of_int(&e, key) == shard, "key %llu at shard %u", (unsigned long long)key, shard);
    uint64_t due = arrived[shard][thread][key % KEYS]++;
    CHECK(nth == due, "thread %llu, key %llu: number %llu where %llu was due", (unsigned long long)thread,
          (unsigned long long)key, (unsigned long long)nth, (unsigned long long)due);
}

static void *work(void *argument)
{
    uint32_t shard = (uint32_t)(uintptr_t)argument;
    sm_reader *r = take_shard(&e, shard, shard ? 512 : 9);
    for (sm_batch b; next_rows(r, &finished, &b);) {
        for_each_row(shard, &b, e.g.row_bytes, NULL, receive);
        CHECK(sm_commit(r) == SM_OK, "commit");
    }
    sm_reader_free(r);
    return NULL;
}

static uint64_t run(uint32_t row_bytes)
{
    e = engine_new(SHARDS, 1, 4096, row_bytes);
    sender = take_seat(&e, 0);
    memset(sent, 0, sizeof sent);
    memset(arrived, 0, sizeof arrived);
    memset(refused, 0, sizeof refused);
    memset(waits, 0, sizeof waits);
    atomic_store_explicit(&finished, 0, memory_order_relaxed);
    pthread_barrier_init(&gate, NULL, THREADS);
    deadline = sm_now_ns() + 40000000;
    observer o = {.e = &e};
    pthread_t threads[THREADS], workers[SHARDS], eye = start(observe, &o);
    for (uintptr_t i = 0; i < SHARDS; i++)
        workers[i] = start(work, (void *)i);
    for (uintptr_t i = 0; i < THREADS; i++)
        threads[i] = start(produce, (void *)i);
    uint64_t counts[2] = {0, 0}, total = 0;
    for (int i = 0; i < THREADS; i++) {
        join(threads[i]);
        counts[0] += refused[i];
        counts[1] += waits[i];
    }
    sm_seat_view seat;
    sm_view_seat(e.control, 0, &seat);
    CHECK(seat.refused[SM_REASON_FULL] == counts[0] && seat.blocked_count == counts[1] && seat.blocked_ns == counts[1],
          "refused %llu, blocked %llu", (unsigned long long)seat.refused[SM_REASON_FULL],
          (unsigned long long)seat.blocked_count);
    CHECK(seat.mark % 2 == 0, "mark %llu with nobody inside", (unsigned long long)seat.mark);
    atomic_store_explicit(&finished, 1, memory_order_release);
    for (int i = 0; i < SHARDS; i++) {
        sm_wake(e.inbox[i]);
        join(workers[i]);
    }
    stop_observer(&o, eye);
    for (uint64_t t = 0; t < THREADS; t++)
        for (uint64_t k = 0; k < KEYS; k++) {
            uint64_t there = arrived[shard_of_int(&e, t * KEYS + k)][t][k];
            CHECK(there == sent[t][k], "thread %llu, key %llu: %llu of %llu arrived", (unsigned long long)t,
                  (unsigned long long)k, (unsigned long long)there, (unsigned long long)sent[t][k]);
            total += there;
        }
    CHECK(settle(&e) == total && seat.sequence == total, "the counters do not say %llu", (unsigned long long)total);
    leave_seat(&e, sender, 0);
    pthread_barrier_destroy(&gate);
    engine_free(&e);
    return total;
}

int main(int argc, char **argv)
{
    begin(argc, argv);
    int64_t until = sm_now_ns() + (int64_t)(seconds * 1e9);
    uint64_t rounds = 0, events = 0, rows = 0;
    for (; sm_now_ns() < until; rounds++) {
        events += run(0);
        rows += run(sizeof(numbered));
    }
    printf("%llu rounds: %llu events, %llu rows\n", (unsigned long long)rounds, (unsigned long long)events,
           (unsigned long long)rows);
    return 0;
}
