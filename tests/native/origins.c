/*
 * Events of partitions. First deaths at every point that a source and a worker pass, without processes, as in crash.c: a
 * source begins and ends partitions, lets their leases run out, and is killed in pushes; workers are killed while they
 * handle, shed and skip. Claimed: what a killed source had pushed, its successor does not push again, and leaves nothing
 * out; of an epoch every event is handled once, but for a batch in hand at a worker's death; nothing is taken of an epoch
 * that is over, or while the lease is over; order per key holds; the counts are exact, and every lane drains.
 *
 * Then the same with threads, for the sanitizer: one source, a worker for each shard, an observer.
 */
#include <setjmp.h>
#include <signal.h>

#include "harness.h"

enum { SHARDS = 2, PARTITIONS = 3, OFFSETS = 3000, BLOCK = 50, KEYS = 16, ROWS = 64, SEAT = 1 };

static const int source_points[] = {SM_POINT_SEND_CLAIMED,   SM_POINT_SEND_COPYING,   SM_POINT_SEND_COPIED,
                                    SM_POINT_SEND_COUNTED,   SM_POINT_SEND_PUBLISHED, SM_POINT_SEND_UNMARKED,
                                    SM_POINT_ORIGIN_CALLING, SM_POINT_ORIGIN_PUSHED};
static const int worker_points[] = {SM_POINT_POLL_TAKEN,     SM_POINT_COMMIT_ENTERED,  SM_POINT_COMMIT_MARKED,
                                    SM_POINT_COMMIT_COUNTED, SM_POINT_COMMIT_RELEASED, SM_POINT_SHED_LOST,
                                    SM_POINT_ASIDE_STORED,   SM_POINT_ASIDE_ACTING,    SM_POINT_ASIDE_MARKED};

/* Everything that lives across a jump is static: automatic variables would be indeterminate after it. */
static engine e;
static uint64_t rng, deaths[SM_POINT_COUNT], recovered, lost, skipped;
static sigjmp_buf grave;
static int point, is_roomy; /* is_roomy: a lane holds what a source pushes before it comes to what was left */
static sm_sender *source;
static sm_reader *readers[SHARDS];
static uint8_t there[PARTITIONS][OFFSETS];                           /* of a killed source, in the lanes already */
static uint64_t until[PARTITIONS], newest[PARTITIONS][KEYS];         /* newest: offset + 1 handled in this epoch */
static uint8_t once[PARTITIONS][OFFSETS], ever[PARTITIONS][OFFSETS]; /* handled in this epoch, and in any */
static uint8_t in_hand[PARTITIONS][OFFSETS], is_over[PARTITIONS];

static void die(int number)
{
    (void)number;
    siglongjmp(grave, 1);
}

static void arm(const int *points, size_t n)
{
    point = below(&rng, 3) ? -1 : points[below(&rng, n)];
    sm_point_arm(point, 1 + below(&rng, 4), SIGUSR1);
}

static sm_partition_view row_of(uint32_t partition)
{
    sm_partition_view view;
    sm_view_partition(e.control, partition, &view);
    return view;
}

/* ---- the source -------------------------------------------------------------------------------------------------- */

static uint64_t lowest_unhandled(uint32_t p)
{
    uint64_t at = 0;
    while (at < OFFSETS && ever[p][at])
        at++;
    return at;
}

static void begin_partition(uint32_t p)
{
    sm_begin_partition(e.control, p, lowest_unhandled(p));
    memset(once[p], 0, sizeof once[p]);
    memset(newest[p], 0, sizeof newest[p]);
    memset(there[p], 0, sizeof there[p]);
    until[p] = is_over[p] = 0;
}

/* What the last one had pushed beyond what the table says: of one partition at most. */
static void take_over(void)
{
    static uint64_t offsets[SM_CHUNK];
    source = take_seat(&e, SEAT);
    for (uint32_t shard = 0; shard < SHARDS; shard++) {
        uint32_t p, epoch, n;
        for (uint64_t at = 0; (n = sm_recover(e.control, &e.g, e.inbox[shard], SEAT, &at, &p, &epoch, offsets));)
            for (uint32_t i = 0; i < n; i++) {
                CHECK(p < PARTITIONS && offsets[i] < OFFSETS, "partition %u, offset %llu", p,
                      (unsigned long long)offsets[i]);
                if (epoch != row_of(p).epoch || offsets[i] < row_of(p).pushed)
                    continue;
                recovered += !there[p][offsets[i]];
                there[p][offsets[i]] = 1;
                until[p] = offsets[i] + 1 > until[p] ? offsets[i] + 1 : until[p];
            }
    }
    for (uint32_t p = 0; p < PARTITIONS; p++)
        if (until[p])
            CHECK(sm_resume_call(source, p, row_of(p).epoch, until[p]) == SM_OK, "resume");
}

static void source_died(void)
{
    deaths[point]++;
    sm_sender_trylock(source);
    sm_sender_unlock(source);
    sm_sender_free(source);
    memset(there, 0, sizeof there);
    memset(until, 0, sizeof until);
    take_over();
}

static void push_some(uint32_t p)
{
    static uint64_t keys[BLOCK], offsets[BLOCK + 1], origins[BLOCK], n;
    static uint8_t data[BLOCK * 40];
    static sm_cursor c;
    sm_partition_view row = row_of(p);
    n = 0;
    uint64_t end = row.pushed + 1 + below(&rng, BLOCK);
    end = until[p] > row.pushed ? until[p] : end < OFFSETS ? end : OFFSETS;
    for (uint64_t at = row.pushed; at < end && n < BLOCK; at++) {
        if (there[p][at])
            continue;
        origins[n] = at;
        keys[n] = mix(at) % KEYS;
        memcpy(data + offsets[n], &at, sizeof at);
        offsets[n + 1] = offsets[n] + sizeof at + below(&rng, 32);
        n++;
    }
    sm_columns in = {.n = n,
                     .key_kind = p ? SM_KEY_INT : SM_KEY_NONE,
                     .keys = keys,
                     .data = data,
                     .offsets = offsets,
                     .data_bytes = sizeof data,
                     .origins = origins,
                     .partition = p,
                     .epoch = row.epoch};
    memset(&c, 0, sizeof c);
    arm(source_points, sizeof source_points / sizeof *source_points);
    for (int tries = 0; n && tries < 6; tries++) {
        int status = sm_push_columns(source, &in, &c);
        if (status == SM_OK)
            break;
        CHECK(status == SM_NEED_LANE || status == SM_FULL, "status %d", status);
        CHECK(c.next == n || !c.pending_count, "chunk");
        if (status == SM_NEED_LANE)
            mend(&e, source, status, c.shard, NULL);
    }
    sm_point_arm(-1, 1, SIGUSR1);
    row = row_of(p);
    for (uint64_t i = 0; i + 1 < c.pending_count; i++)
        CHECK(c.pending[i] + 1 == c.pending[i + 1], "what is left is not all behind some offset");
    if (until[p] && (!n || (c.next == n && !c.pending_count)) && row.pushed < until[p] && end == until[p] && n < BLOCK)
        sm_set_pushed(e.control, p, until[p]);
    if (row_of(p).pushed >= until[p])
        until[p] = 0;
}

static void turn_of_source(void)
{
    static uint32_t p;
    if (sigsetjmp(grave, 1)) {
        source_died();
        return;
    }
    p = (uint32_t)below(&rng, PARTITIONS);
    for (uint32_t other = 0; other < PARTITIONS && (!is_roomy || below(&rng, 3)); other++)
        p = until[other] ? other : p; /* what was left first, or soon */
    switch (until[p] ? 9 : below(&rng, 12)) {
    case 0:
        sm_end_partition(e.control, p);
        begin_partition(p);
        break;
    case 1:
        is_over[p] = (uint8_t)below(&rng, 2);
        sm_renew_partition(e.control, p, is_over[p] ? 1 : below(&rng, 2) ? 0 : UINT64_MAX);
        break;
    default:
        push_some(p);
    }
}

/* ---- the workers ------------------------------------------------------------------------------------------------- */

static void new_worker(uint32_t shard)
{
    static const uint32_t sizes[] = {1, 5, 16, ROWS};
    sm_reader_free(readers[shard]);
    readers[shard] = take_shard(&e, shard, sizes[below(&rng, 4)]);
}

static void handle(uint32_t p, uint64_t offset, uint64_t key)
{
    CHECK(!once[p][offset] || in_hand[p][offset], "partition %u: offset %llu twice in epoch %u", p,
          (unsigned long long)offset, row_of(p).epoch);
    CHECK(!p || once[p][offset] || offset >= newest[p][key],
          /* those of 0 have no key */ "partition %u: offset %llu after %llu", p, (unsigned long long)offset,
          (unsigned long long)newest[p][key] - 1);
    newest[p][key] = offset + 1 > newest[p][key] ? offset + 1 : newest[p][key];
    once[p][offset] = ever[p][offset] = 1;
}

static uint64_t work(uint32_t on_shard, int may_die)
{
    static sm_batch b;
    static uint32_t shard, partitions[ROWS];
    static uint64_t offsets[ROWS], done;
    static uint8_t gone[ROWS];
    static sm_range ranges[ROWS];
    shard = on_shard;
    done = 0;
    if (sigsetjmp(grave, 1)) {
        deaths[point]++;
        new_worker(shard);
        return done;
    }
    if (may_die)
        arm(worker_points, sizeof worker_points / sizeof *worker_points);
    CHECK(sm_next(readers[shard], 0, 0, &b) == SM_OK, "next");
    done = b.rows;
    if (b.rows) {
        CHECK(sm_batch_origins(&b, partitions, offsets), "origins");
        for (uint32_t s = 0, i = 0; s < b.spans; s++)
            for (uint32_t j = 0; j < b.span[s].count; j++, i++) {
                uint32_t p = partitions[i];
                CHECK(p < PARTITIONS && offsets[i] < OFFSETS && !is_over[p], "partition %u while its lease is over", p);
                handle(p, offsets[i], p ? mix(offsets[i]) % KEYS : 0);
                in_hand[p][offsets[i]] = 1;
                gone[i] = below(&rng, 8) == 0;
            }
        uint64_t before = b.rows;
        int n = below(&rng, 3) ? 0 : sm_skip_rows(readers[shard], gone, &b, ranges);
        CHECK(n >= 0 && sm_set_aside_rows(readers[shard], ranges, (uint32_t)n) == SM_OK, "skip");
        CHECK(sm_commit(readers[shard]) == SM_OK, "commit");
        for (uint64_t i = 0; i < before; i++)
            in_hand[partitions[i]][offsets[i]] = 0;
    }
    sm_point_arm(-1, 1, SIGUSR1);
    return done;
}

/* ---- lives ------------------------------------------------------------------------------------------------------- */

static uint64_t live(void)
{
    is_roomy = below(&rng, 2) == 0;
    e = engine_new(SHARDS, 2, is_roomy ? 16384 : 4096, 0);
    CHECK(sm_set_partition_count(e.control, &e.g, PARTITIONS) == SM_OK, "count");
    memset(ever, 0, sizeof ever);
    memset(in_hand, 0, sizeof in_hand);
    memset(there, 0, sizeof there);
    memset(until, 0, sizeof until);
    for (uint32_t p = 0; p < PARTITIONS; p++) {
        CHECK(sm_claim_partition(e.control, "clicks", 6, p) == (int)p, "row");
        begin_partition(p);
    }
    take_over();
    for (uint32_t shard = 0; shard < SHARDS; shard++)
        readers[shard] = take_shard(&e, shard, 16);
    for (uint64_t steps = 50 + below(&rng, 300); steps; steps--)
        if (below(&rng, 2))
            turn_of_source();
        else
            work((uint32_t)below(&rng, SHARDS), 1);
    for (uint32_t p = 0; p < PARTITIONS; p++) {
        is_over[p] = 0;
        sm_renew_partition(e.control, p, 0);
    }
    for (uint32_t p = 0; p < PARTITIONS; p++)
        for (int i = 0; until[p]; i++) { /* what the last of them left */
            CHECK(i < 1000, "partition %u is never pushed to %llu", p, (unsigned long long)until[p]);
            for (uint32_t shard = 0; shard < SHARDS; shard++)
                work(shard, 0);
            if (sigsetjmp(grave, 1))
                source_died();
            else
                push_some(p);
        }
    for (uint32_t shard = 0; shard < SHARDS; shard++)
        while (work(shard, 0))
            ;
    uint64_t accepted = settle(&e);
    for (uint32_t p = 0; p < PARTITIONS; p++)
        CHECK(lowest_unhandled(p) >= row_of(p).pushed, "partition %u: %llu of %llu are handled", p,
              (unsigned long long)lowest_unhandled(p), (unsigned long long)row_of(p).pushed);
    for (uint32_t shard = 0; shard < SHARDS; shard++) {
        sm_lane_view v;
        sm_view_lane(e.inbox[shard], &e.g, SEAT, &v);
        lost += v.lost;
        skipped += v.skipped;
        sm_reader_free(readers[shard]);
        readers[shard] = NULL;
    }
    leave_seat(&e, source, SEAT);
    engine_free(&e);
    return accepted;
}

static void lives(double share)
{
    uint64_t n = 0, total = 0;
    for (int64_t end = sm_now_ns() + (int64_t)(seconds * share * 1e9); sm_now_ns() < end; n++)
        total += live();
    printf("%llu engines, %llu events, %llu recovered, %llu lost, %llu skipped\n", (unsigned long long)n,
           (unsigned long long)total, (unsigned long long)recovered, (unsigned long long)lost,
           (unsigned long long)skipped);
    for (size_t i = 0; i < sizeof source_points / sizeof *source_points; i++)
        CHECK(deaths[source_points[i]], "no source died at %s", sm_point_name(source_points[i]));
    for (size_t i = 0; i < sizeof worker_points / sizeof *worker_points; i++)
        CHECK(deaths[worker_points[i]], "no worker died at %s", sm_point_name(worker_points[i]));
    CHECK(recovered && lost && skipped, "nothing was recovered, lost or skipped");
}

/* ---- threads ------------------------------------------------------------------------------------------------------- */

static _Atomic int finished;
static uint64_t taken[SHARDS];

static void *worker(void *argument)
{
    uint32_t shard = *(uint32_t *)argument, partitions[ROWS];
    uint64_t offsets[ROWS];
    sm_batch b;
    while (next_rows(readers[shard], &finished, &b)) {
        CHECK(sm_batch_origins(&b, partitions, offsets), "origins");
        for (uint64_t i = 0; i < b.rows; i++)
            CHECK(partitions[i] < PARTITIONS && offsets[i] < UINT64_C(1) << 40, "partition %u", partitions[i]);
        taken[shard] += b.rows;
        CHECK(sm_commit(readers[shard]) == SM_OK, "commit");
    }
    return NULL;
}

static void push_along(double share)
{
    static uint64_t keys[BLOCK], offsets[BLOCK + 1], origins[BLOCK];
    static uint8_t data[BLOCK * 16];
    static sm_cursor c;
    uint64_t next[PARTITIONS] = {0};
    for (int64_t end = sm_now_ns() + (int64_t)(seconds * share * 1e9); sm_now_ns() < end;) {
        uint32_t p = (uint32_t)below(&rng, PARTITIONS);
        if (below(&rng, 8) == 0)
            sm_begin_partition(e.control, p, next[p]);
        if (below(&rng, 8) == 0)
            sm_renew_partition(e.control, p, below(&rng, 2) ? UINT64_MAX : 0);
        for (uint64_t i = 0; i < BLOCK; i++) {
            origins[i] = next[p]++;
            keys[i] = draw(&rng);
            offsets[i + 1] = 16 * (i + 1);
        }
        sm_columns in = {.n = BLOCK,
                         .key_kind = SM_KEY_INT,
                         .keys = keys,
                         .data = data,
                         .offsets = offsets,
                         .data_bytes = sizeof data,
                         .origins = origins,
                         .partition = p,
                         .epoch = row_of(p).epoch};
        memset(&c, 0, sizeof c);
        for (int status; (status = sm_push_columns(source, &in, &c)) != SM_OK;)
            mend(&e, source, status, c.shard, NULL);
        CHECK(row_of(p).pushed == next[p], "pushed %llu", (unsigned long long)row_of(p).pushed);
    }
}

static void together(double share)
{
    e = engine_new(SHARDS, 2, 16384, 0);
    CHECK(sm_set_partition_count(e.control, &e.g, PARTITIONS) == SM_OK, "count");
    for (uint32_t p = 0; p < PARTITIONS; p++)
        sm_begin_partition(e.control, (uint32_t)sm_claim_partition(e.control, "clicks", 6, p), 0);
    source = take_seat(&e, SEAT);
    static uint32_t numbers[SHARDS];
    pthread_t workers[SHARDS];
    observer o = {.e = &e};
    pthread_t eyes = start(observe, &o);
    for (uint32_t shard = 0; shard < SHARDS; shard++) {
        numbers[shard] = shard;
        readers[shard] = take_shard(&e, shard, ROWS);
        workers[shard] = start(worker, &numbers[shard]);
    }
    push_along(share);
    atomic_store_explicit(&finished, 1, memory_order_release);
    for (uint32_t shard = 0; shard < SHARDS; shard++)
        sm_wake(e.inbox[shard]);
    for (uint32_t shard = 0; shard < SHARDS; shard++) {
        join(workers[shard]);
        sm_reader_free(readers[shard]);
    }
    stop_observer(&o, eyes);
    printf("threads: %llu events, %llu handled\n", (unsigned long long)settle(&e),
           (unsigned long long)(taken[0] + taken[1]));
    leave_seat(&e, source, SEAT);
    engine_free(&e);
}

int main(int argc, char **argv)
{
    begin(argc, argv);
    struct sigaction action = {.sa_handler = die};
    sigaction(SIGUSR1, &action, NULL);
    rng = mix(seed + 41);
    lives(0.6);
    together(0.4);
    return 0;
}
