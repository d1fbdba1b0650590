/*
 * Workers that keep state follow the partition table. One source begins, ends and pushes partitions, another producer pushes
 * events of none, and each worker brings its state up to an epoch before it takes events of it; some events fail alone, and
 * wait for their next try. Claimed: nothing is taken of an epoch that the state is not ready for; a batch is of one partition;
 * the events of a slot come in their order, also behind one that waits; and every lane drains.
 */
#include "harness.h"

enum { SHARDS = 2, PARTITIONS = 3, NUMBERS = 4, BLOCK = 50, ROWS = 64, PLAIN_SEAT = 0, SEAT = 1, SLOTS = 64 };
enum { WIDTH = SLOTS / NUMBERS, NONE = UINT32_MAX };

typedef struct worker {
    pthread_t thread;
    uint32_t shard, epochs[PARTITIONS], partitions[ROWS];
    uint64_t random, handled, followed, tried, offsets[ROWS];
    uint64_t plain[SLOTS], last[SLOTS]; /* of each slot: the newest of none, and of a partition: its epoch and offset */
    sm_reader *reader;
    const sm_batch *batch;
    uint64_t row;
} worker;

static engine e;
static uint64_t rng;
static _Atomic int fed, finished; /* producers are to end; they have ended */
static worker workers[SHARDS];

static uint32_t epoch_of(uint32_t partition)
{
    sm_partition_view view;
    sm_view_partition(e.control, partition, &view);
    return view.epoch;
}

/* ---- the workers ------------------------------------------------------------------------------------------------- */

static void follow(worker *w)
{
    uint64_t version = sm_partition_version(e.control);
    for (uint32_t p = 0; p < PARTITIONS; p++)
        w->epochs[p] = epoch_of(p);
    sm_follow(w->reader, version, w->epochs, PARTITIONS);
    w->followed++;
}

static void handle(uint32_t shard, uint32_t seat, const sm_index *entry, const uint8_t *bytes, uint32_t length)
{
    worker *w = &workers[shard];
    uint64_t said[2], *newest, hash = sm_hash_int(entry->key);
    uint32_t p = w->partitions[w->row], slot = (uint32_t)hash & (SLOTS - 1);
    CHECK(length == sizeof said && (seat == SEAT) == (p != NONE), "%u bytes, seat %u, partition %u", length, seat, p);
    memcpy(said, bytes, sizeof said);
    if (p == NONE) {
        newest = &w->plain[slot];
        p = slot / WIDTH;
    } else {
        CHECK(said[0] >> 32 == w->epochs[p], "partition %u: epoch %llu is taken, and the state is of epoch %u", p,
              (unsigned long long)(said[0] >> 32), w->epochs[p]);
        newest = &w->last[slot = p * WIDTH + ((uint32_t)hash & (WIDTH - 1))];
    }
    CHECK(p == w->batch->partition, "an event of partition %u in a batch of partition %u", p, w->batch->partition);
    CHECK(said[0] + said[1] > *newest, "slot %u: %llx after %llx", slot, (unsigned long long)(said[0] + said[1]),
          (unsigned long long)*newest);
    *newest = said[0] + said[1];
    w->row++;
}

static void work(worker *w, const sm_batch *b)
{
    if (!sm_batch_origins(b, w->partitions, w->offsets))
        memset(w->partitions, 0xff, sizeof w->partitions);
    w->batch = b;
    w->row = 0;
    for_each_row(w->shard, b, 0, NULL, handle);
    w->handled += b->rows;
    CHECK(sm_commit(w->reader) == SM_OK, "commit");
}

/* Whether some wait still. */
static int try_again(worker *w)
{
    int waiting = 0;
    for (uint32_t i = 0; i < SM_TRIALS; i++) {
        sm_batch b;
        if (sm_trials(w->reader)[i].state == SM_TRIAL_NONE)
            continue;
        if (sm_trial_waits(w->reader, i) || below(&w->random, 4)) {
            waiting = 1;
            continue;
        }
        CHECK(sm_next_trial(w->reader, i, &b) == SM_OK, "next trial");
        if (b.rows) /* else it was of an epoch that is over */
            work(w, &b);
        sm_end_trial(w->reader, i);
        w->tried++;
    }
    return waiting;
}

static void *run(void *argument)
{
    worker *w = argument;
    for (;;) {
        int last = atomic_load_explicit(&finished, memory_order_acquire), alone = below(&w->random, 8) == 0;
        if (below(&w->random, 4) == 0 || last) /* not at once: meanwhile it takes what its state is ready for */
            follow(w);
        int waiting = try_again(w);
        sm_batch b;
        sm_probe(w->reader, alone);
        int status = sm_next(w->reader, SPIN_NS, last || waiting ? 0 : PARK_NS, &b);
        CHECK(status == SM_OK || status == SM_INTERRUPTED, "sm_next: %d", status);
        if (!b.rows && last && !waiting)
            return NULL;
        if (!b.rows) {
            follow(w);
            continue;
        }
        if (b.rows == 1 && below(&w->random, 3) == 0 && sm_put_on_trial(w->reader, 1, 0) >= 0)
            continue;
        work(w, &b);
    }
}

/* ---- the source, and another producer ------------------------------------------------------------------------------ */

static void renew_all(void)
{
    for (uint32_t p = 0; p < PARTITIONS; p++)
        sm_renew_partition(e.control, p, 0);
}

static void push(sm_sender *s, uint32_t partition, uint64_t *next)
{
    static _Thread_local uint64_t keys[BLOCK], offsets[BLOCK + 1], origins[BLOCK], data[2 * BLOCK];
    static _Thread_local sm_cursor c;
    uint32_t epoch = partition == NONE ? 0 : epoch_of(partition);
    for (uint64_t i = 0; i < BLOCK; i++) {
        origins[i] = ++*next;
        keys[i] = mix(*next) % 500;
        data[2 * i] = (uint64_t)epoch << 32;
        data[2 * i + 1] = *next;
        offsets[i + 1] = 16 * (i + 1);
    }
    sm_columns in = {.n = BLOCK,
                     .key_kind = SM_KEY_INT,
                     .keys = keys,
                     .data = (const uint8_t *)data,
                     .offsets = offsets,
                     .data_bytes = sizeof data,
                     .origins = partition == NONE ? NULL : origins,
                     .partition = partition,
                     .epoch = epoch};
    memset(&c, 0, sizeof c);
    for (int status; (status = sm_push_columns(s, &in, &c)) != SM_OK;) {
        if (partition != NONE)
            renew_all(); /* a lane waits for the lease of whatever is at its head */
        mend(&e, s, status, c.shard, NULL);
    }
}

static void *push_plain(void *argument)
{
    sm_sender *s = argument;
    uint64_t next = 0, random = mix(seed + 51);
    while (!atomic_load_explicit(&fed, memory_order_acquire)) {
        push(s, NONE, &next);
        dawdle(below(&random, 20000));
    }
    return NULL;
}

static void feed(sm_sender *s)
{
    uint64_t next[PARTITIONS] = {0};
    for (int64_t end = sm_now_ns() + (int64_t)(seconds * 1e9); sm_now_ns() < end;) {
        uint32_t p = (uint32_t)below(&rng, PARTITIONS);
        if (below(&rng, 16) == 0)
            sm_begin_partition(e.control, p, next[p] = 0);
        if (below(&rng, 16) == 0)
            sm_renew_partition(e.control, p, below(&rng, 2) ? 1 : 0);
        push(s, p, &next[p]);
        dawdle(below(&rng, 20000));
    }
    renew_all();
}

int main(int argc, char **argv)
{
    begin(argc, argv);
    rng = mix(seed + 50);
    e = engine_new(SHARDS, 2, 65536, 0);
    CHECK(sm_set_partition_count(e.control, &e.g, PARTITIONS) == SM_OK, "count");
    for (uint32_t p = 0; p < PARTITIONS; p++)
        sm_begin_partition(e.control, (uint32_t)sm_claim_partition(e.control, "clicks", 6, p), 0);
    sm_sender *plain = take_seat(&e, PLAIN_SEAT), *source = take_seat(&e, SEAT);
    observer o = {.e = &e};
    pthread_t eyes = start(observe, &o);
    for (uint32_t shard = 0; shard < SHARDS; shard++) {
        workers[shard] = (worker){.shard = shard, .random = mix(seed + shard), .reader = take_shard(&e, shard, ROWS)};
        follow(&workers[shard]);
        workers[shard].thread = start(run, &workers[shard]);
    }
    pthread_t other = start(push_plain, plain);
    feed(source);
    atomic_store_explicit(&fed, 1, memory_order_release);
    join(other);
    atomic_store_explicit(&finished, 1, memory_order_release);
    uint64_t handled = 0, followed = 0, tried = 0, lost = 0;
    for (uint32_t shard = 0; shard < SHARDS; shard++) {
        join(workers[shard].thread);
        sm_lane_view v;
        sm_view_lane(e.inbox[shard], &e.g, SEAT, &v);
        lost += v.lost;
        handled += workers[shard].handled;
        followed += workers[shard].followed;
        tried += workers[shard].tried;
        sm_reader_free(workers[shard].reader);
    }
    stop_observer(&o, eyes);
    uint64_t accepted = settle(&e);
    printf("%llu events, %llu handled, %llu lost, %llu tried again, %llu times followed\n",
           (unsigned long long)accepted, (unsigned long long)handled, (unsigned long long)lost,
           (unsigned long long)tried, (unsigned long long)followed);
    CHECK(accepted == handled + lost && handled && lost && tried, "%llu events", (unsigned long long)accepted);
    leave_seat(&e, plain, PLAIN_SEAT);
    leave_seat(&e, source, SEAT);
    engine_free(&e);
    return 0;
}
