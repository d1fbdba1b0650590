/*
 * Death at every named point, without processes: the point raises a signal whose handler jumps out of the call, and
 * all that the dead one had in its own memory is thrown away. A successor knows shared memory and nothing else.
 *
 * Claimed, for random programs of pushes, batches and deaths of both sides: what a call accepted is handled; first
 * handlings per key keep the order of pushing; only rows of the batch in hand at a worker's death are handled twice;
 * the counters are exact; no two rows of a seat have the same sequence number; and after the last death every lane
 * drains to the end. In a third of the lives a full lane is told to drop its oldest events: then as many may be
 * missing as are counted as shed, and exactly as many where no worker died with a batch half recorded. In half of the
 * lives slots are held for a while, as they are at the target of a handoff: nothing of them is handled meanwhile.
 */
#include <setjmp.h>
#include <signal.h>

#include "harness.h"

enum {
    SHARDS = 2,
    KEYS = 8,
    BLOCK = 60,
    LARGEST = 1500,
    SLOTS = 64,
    NUMBERS = 3000,
    MOST_ROWS = 256,
    SEQUENCES = 2 * KEYS * NUMBERS,
    LONGEST_FRAME = LARGEST + 128
};

typedef struct row {
    uint64_t key, nth, check;
} row; /* an event: nth first, then whatever its length needs */
typedef struct name {
    uint64_t key, nth, sequence;
} name;

enum fate { REFUSED, DOUBTED, ACCEPTED }; /* doubted: its producer died in the call */

static const int producer_points[] = {SM_POINT_SEND_LOCKED,  SM_POINT_SEND_MARKED,    SM_POINT_SEND_ROUTED,
                                      SM_POINT_SEND_CLAIMED, SM_POINT_SEND_COPYING,   SM_POINT_SEND_COPIED,
                                      SM_POINT_SEND_COUNTED, SM_POINT_SEND_PUBLISHED, SM_POINT_SEND_UNMARKED,
                                      SM_POINT_SEND_WAITING};
static const int worker_points[] = {SM_POINT_POLL_TAKEN,     SM_POINT_COMMIT_ENTERED,  SM_POINT_COMMIT_MARKED,
                                    SM_POINT_COMMIT_COUNTED, SM_POINT_COMMIT_RELEASED, SM_POINT_ROOM_TAKEN,
                                    SM_POINT_PARK_RAISED};

/* Everything that lives across a jump is static: automatic variables would be indeterminate after it. */
static engine e;
static uint64_t rng;
static sigjmp_buf grave;
static int point, evicting, workers_die, holding;
static sm_sender *sender;
static sm_reader *readers[SHARDS];
static uint64_t deaths[SM_POINT_COUNT];
static uint64_t numbers[KEYS], highest[KEYS], first_handlings, total_shed;
static uint8_t fates[KEYS][NUMBERS], handled[KEYS][NUMBERS], in_hand[KEYS][NUMBERS];
static uint64_t owner[SEQUENCES];
static uint8_t held[SLOTS];
static uint32_t holds[SHARDS];

static uint32_t slot_of(uint64_t key) { return (uint32_t)sm_hash_int(key) & (SLOTS - 1); }

static void die(int number)
{
    (void)number;
    siglongjmp(grave, 1);
}

static void arm(const int *points, size_t n)
{
    point = below(&rng, 3) ? -1 : points[below(&rng, n)];
    sm_point_arm(point, 1 + below(&rng, 3), SIGUSR1);
}

/* mostly none: the shortest sleep of the kernel is longer than everything else here together */
static int64_t nap(void) { return below(&rng, 8) == 0; }

static void disarm(void) { sm_point_arm(-1, 1, SIGUSR1); }

/* ---- the producer ------------------------------------------------------------------------------------------------------ */

static row rows[BLOCK];
static uint64_t count, keys[BLOCK], offsets[BLOCK + 1];
static uint8_t data[BLOCK * LARGEST];
static sm_cursor cursor;

static void make_block(void)
{
    count = 1 + below(&rng, below(&rng, 3) ? 12 : BLOCK);
    for (uint64_t i = 0; i < count; i++) {
        uint64_t key = keys[i] = below(&rng, KEYS), nth = numbers[key]++;
        CHECK(nth < NUMBERS, "more events than there are numbers");
        rows[i] = (row){key, nth, mix(nth)};
        memcpy(data + offsets[i], &nth, sizeof nth);
        offsets[i + 1] = offsets[i] + sizeof nth + below(&rng, below(&rng, 16) ? 40 : LARGEST - sizeof nth);
    }
    memset(&cursor, 0, sizeof cursor);
}

static void settle_fates(int died)
{
    uint8_t open[BLOCK] = {0};
    for (uint32_t i = 0; i < cursor.pending_count; i++)
        open[cursor.chunk + cursor.pending[i]] = 1;
    for (uint64_t i = 0; i < count; i++)
        fates[rows[i].key][rows[i].nth] = i < cursor.next && !open[i] ? ACCEPTED : died ? DOUBTED : REFUSED;
}

/* What finds no room is refused for good after a few tries; it must never be seen then. */
static void offer(void)
{
    static int tries;
    make_block();
    if (sigsetjmp(grave, 1)) {
        deaths[point]++;
        memset(&cursor, 0, sizeof cursor); /* it died with its process */
        settle_fates(1);
        sm_sender_trylock(sender); /* its lock, too; ThreadSanitizer would count it as ours for ever */
        sm_sender_unlock(sender);
        sm_sender_free(sender);
        sender = take_seat(&e, 0);
        return;
    }
    sm_columns columns = {.n = count,
                          .key_kind = SM_KEY_INT,
                          .keys = keys,
                          .data = data,
                          .offsets = offsets,
                          .data_bytes = offsets[count]};
    for (tries = 0; tries < 3 + 2 * SHARDS; tries++) {
        arm(producer_points, sizeof producer_points / sizeof *producer_points);
        int status = e.g.row_bytes ? sm_send(sender, rows, count, &cursor) : sm_push_columns(sender, &columns, &cursor);
        if (status == SM_OK)
            break;
        if (status == SM_NEED_LANE)
            mend(&e, sender, status, cursor.shard, NULL);
        else
            CHECK(status == SM_FULL, "status %d", status);
        if (status == SM_FULL && evicting)
            CHECK(sm_evict(sender, cursor.shard) == SM_OK, "evict");
        if (status == SM_FULL)
            sm_wait_room(sender, cursor.shard, 0, nap());
    }
    disarm();
    settle_fates(0);
}

/* ---- the workers --------------------------------------------------------------------------------------------------------- */

static sm_batch batch;
static name hand[MOST_ROWS];

static void read_batch(void)
{
    uint64_t at = 0;
    for (uint32_t i = 0; i < batch.spans; i++) {
        const sm_span *span = &batch.span[i];
        const sm_index *index = (const sm_index *)span->rows;
        uint32_t from = !e.g.row_bytes && span->first ? index[-1].end : 0;
        for (uint32_t j = 0; j < span->count; j++, at++) {
            row r;
            if (e.g.row_bytes) {
                memcpy(&r, span->rows + j * sizeof r, sizeof r);
                CHECK(r.check == mix(r.nth), "torn row");
                hand[at] = (name){r.key, r.nth, span->sequence + j};
            } else {
                hand[at].key = index[j].key;
                hand[at].sequence = span->sequence + j;
                memcpy(&hand[at].nth, span->bytes + from, sizeof hand[at].nth);
                from = index[j].end;
            }
        }
    }
    CHECK(at == batch.rows && at <= MOST_ROWS, "%llu rows", (unsigned long long)at);
}

static void handle(uint32_t shard, const name *event)
{
    uint64_t key = event->key, nth = event->nth, whose = 1 + key * NUMBERS + nth;
    unsigned long long k = key, n = nth;
    CHECK(key < KEYS && nth < numbers[key], "key %llu, number %llu was never offered", k, n);
    CHECK(fates[key][nth] != REFUSED, "key %llu, number %llu was refused, and is here", k, n);
    CHECK(!handled[key][nth] || in_hand[key][nth], "key %llu, number %llu came again, and no death explains it", k, n);
    CHECK(handled[key][nth] || nth + 1 > highest[key], "key %llu: number %llu after %llu", k, n,
          (unsigned long long)highest[key] - 1);
    CHECK(event->sequence < SEQUENCES && (!owner[event->sequence] || owner[event->sequence] == whose),
          "sequence %llu was given twice", (unsigned long long)event->sequence);
    owner[event->sequence] = whose;
    CHECK(!held[slot_of(key)], "key %llu of shard %u was handled while its slot was held", k, shard);
    first_handlings += !handled[key][nth];
    handled[key][nth] = 1;
    highest[key] = nth + 1 > highest[key] ? nth + 1 : highest[key];
}

static void new_worker(uint32_t shard)
{
    static const uint32_t sizes[] = {1, 3, 5, 16, MOST_ROWS};
    sm_reader_free(readers[shard]);
    readers[shard] = take_shard(&e, shard, sizes[below(&rng, 5)]);
}

/* returns how many rows were handled */
static uint64_t work(uint32_t on_shard, int may_die)
{
    static uint32_t shard;
    static uint64_t done;
    shard = on_shard;
    done = 0;
    if (sigsetjmp(grave, 1)) {
        deaths[point]++;
        new_worker(shard);
        return done; /* and in_hand stays as it was */
    }
    if (may_die) {
        arm(worker_points, sizeof worker_points / sizeof *worker_points);
        _Atomic uint64_t *waiting = &sm_lane_at(e.inbox[shard], e.g.lane_bytes, 0)->waiting;
        if (atomic_load_explicit(waiting, memory_order_relaxed) && below(&rng, 4) == 0)
            sm_point_arm(point = SM_POINT_ROOM_TAKEN, 1, SIGUSR1); /* passed only while somebody waits for room */
    } else if (below(&rng, 16) == 0)
        new_worker(shard); /* one that has left in good order, perhaps in the middle of a frame */
    sm_lane_view before, after;
    sm_view_lane(e.inbox[shard], &e.g, 0, &before);
    int status = sm_next(readers[shard], 0, may_die ? nap() : 0, &batch);
    CHECK(status == SM_OK || status == SM_TIMEOUT, "sm_next: %d", status);
    sm_view_lane(e.inbox[shard], &e.g, 0, &after);
    uint64_t until = atomic_load_explicit(&sm_lane_at(e.inbox[shard], e.g.lane_bytes, 0)->evict, memory_order_relaxed);
    CHECK(workers_die || holding || after.shed == before.shed || after.head < until + LONGEST_FRAME,
          "a frame more was dropped than was asked for");
    if (batch.rows) {
        read_batch();
        done = batch.rows;
        for (uint64_t i = 0; i < batch.rows; i++)
            handle(shard, &hand[i]);
        for (uint64_t i = 0; i < batch.rows; i++)
            in_hand[hand[i].key][hand[i].nth] = 1;
        CHECK(sm_commit(readers[shard]) == SM_OK, "commit");
        for (uint64_t i = 0; i < batch.rows; i++)
            in_hand[hand[i].key][hand[i].nth] = 0;
    }
    disarm();
    return done;
}

/* ---- a life of the engine --------------------------------------------------------------------------------------------------- */

/* the target's end of a handoff */
static void hold_or_release(uint32_t slot, uint8_t up)
{
    uint32_t shard = slot % SHARDS;
    if (held[slot] == up)
        return;
    held[slot] = up;
    if (up) {
        sm_set_holds(e.control, shard, ++holds[shard]);
        sm_move_begin(e.control, slot, SM_NO_SHARD, shard, 0);
    } else {
        sm_move_phase(e.control, slot, SM_MOVE_NONE, 0);
        sm_set_holds(e.control, shard, --holds[shard]);
        sm_rescan(readers[shard]);
    }
}

static sm_seat_view seat;

/* Between calls the mark is even, whoever died odd before; and nothing of a seat ever falls. */
static void look_at_seat(void)
{
    sm_seat_view before = seat;
    sm_view_seat(e.control, 0, &seat);
    CHECK(seat.mark % 2 == 0 && seat.mark >= before.mark, "mark %llu after %llu", (unsigned long long)seat.mark,
          (unsigned long long)before.mark);
    CHECK(seat.sequence >= before.sequence && seat.incarnation >= before.incarnation, "a count of the seat fell");
}

static uint64_t run(uint32_t row_bytes)
{
    evicting = below(&rng, 3) == 0;
    workers_die = below(&rng, 4) != 0;
    e = engine_new(SHARDS, 1, 4096, row_bytes);
    memset(numbers, 0, sizeof numbers);
    memset(highest, 0, sizeof highest);
    memset(fates, 0, sizeof fates);
    memset(handled, 0, sizeof handled);
    memset(in_hand, 0, sizeof in_hand);
    memset(owner, 0, sizeof owner);
    memset(held, 0, sizeof held);
    memset(holds, 0, sizeof holds);
    holding = below(&rng, 2) == 0;
    first_handlings = 0;
    memset(&seat, 0, sizeof seat);
    sender = take_seat(&e, 0);
    for (uint32_t shard = 0; shard < SHARDS; shard++)
        readers[shard] = take_shard(&e, shard, 16);
    sm_lane_view last[SHARDS] = {{0}};
    uint64_t steps = 20 + below(&rng, 400), busy = below(&rng, steps); /* then nothing new comes, but death goes on */
    for (uint64_t step = 0; step < steps; step++) {
        if (step < busy && below(&rng, 3) == 0)
            offer();
        else
            work((uint32_t)below(&rng, SHARDS), workers_die);
        if (holding && below(&rng, 6) == 0)
            hold_or_release(slot_of(below(&rng, KEYS)), below(&rng, 2) == 0);
        look_at_seat();
        for (uint32_t shard = 0; shard < SHARDS; shard++)
            look_at_lane(&e, shard, 0, &last[shard]);
    }
    for (uint32_t slot = 0; slot < SLOTS; slot++)
        hold_or_release(slot, 0);
    for (uint32_t shard = 0; shard < SHARDS; shard++) {
        while (work(shard, 0))
            ;
        look_at_lane(&e, shard, 0, &last[shard]);
    }
    uint64_t missing = 0, counted = 0, shed = 0, accepted = settle(&e);
    for (uint64_t key = 0; key < KEYS; key++)
        for (uint64_t nth = 0; nth < numbers[key]; nth++)
            missing += fates[key][nth] == ACCEPTED && !handled[key][nth];
    for (uint32_t shard = 0; shard < SHARDS; shard++) {
        counted += last[shard].handled;
        shed += last[shard].shed;
    }
    CHECK(evicting || !shed, "%llu shed unasked", (unsigned long long)shed);
    CHECK((evicting && workers_die) || accepted == first_handlings + shed, "%llu accepted, %llu handled, %llu shed",
          (unsigned long long)accepted, (unsigned long long)first_handlings, (unsigned long long)shed);
    CHECK(missing <= shed, "%llu accepted events were lost, %llu counted as shed", (unsigned long long)missing,
          (unsigned long long)shed);
    CHECK(counted <= first_handlings, "%llu counted as handled, %llu were", (unsigned long long)counted,
          (unsigned long long)first_handlings);
    total_shed += shed;
    for (uint32_t shard = 0; shard < SHARDS; shard++) {
        sm_reader_free(readers[shard]);
        readers[shard] = NULL;
    }
    leave_seat(&e, sender, 0);
    engine_free(&e);
    return accepted;
}

int main(int argc, char **argv)
{
    begin(argc, argv);
    struct sigaction action = {.sa_handler = die};
    sigaction(SIGUSR1, &action, NULL);
    rng = mix(seed + 13);
    int64_t until = sm_now_ns() + (int64_t)(seconds * 1e9);
    uint64_t lives = 0, total = 0;
    for (; sm_now_ns() < until; lives++)
        total += run(lives % 2 ? 0 : sizeof(row));
    printf("%llu engines, %llu events, %llu shed\n", (unsigned long long)lives, (unsigned long long)total,
           (unsigned long long)total_shed);
    for (int i = 0; i < SM_POINT_COUNT; i++) {
        printf("  %7llu deaths at %s\n", (unsigned long long)deaths[i], sm_point_name(i));
        int elsewhere =
            i > SM_POINT_PARK_RAISED && i != SM_POINT_ROOM_TAKEN; /* copies.c, wakeups.c, tests/unit, tests/process */
        CHECK(deaths[i] || elsewhere, "nobody died at %s", sm_point_name(i));
    }
    return 0;
}
