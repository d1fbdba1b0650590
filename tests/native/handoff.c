/*
 * Slots move between shards while events flow; a thread is the supervisor, with the protocol of control/handoffs.py and
 * runtime/moves.py. Claimed: per producer and key, events are handled once and in order across all moves; no two workers
 * have a slot in hand at the same time; every lane drains; every handoff comes to an end.
 *
 * What the workers know of a key (how many came) is plain memory without a lock: that it changes hands safely is for the
 * protocol to see to, and for ThreadSanitizer to check.
 */
#include "harness.h"

enum { PRODUCERS = 2, SHARDS = 3, KEYS = 48, SLOTS = 64, BLOCK = 300, MOST_ROWS = 4096 };

static engine e;
static int stateful;
static int64_t deadline;
static _Atomic int finished;
static uint64_t sent[PRODUCERS][KEYS], arrived[PRODUCERS][KEYS];
static _Atomic uint32_t in_hand[SLOTS];
static uint64_t moves, rounds;

static uint32_t slot_of(uint64_t key) { return (uint32_t)sm_hash_int(key) & (SLOTS - 1); }

/* ---- producers ------------------------------------------------------------------------------------------------------------- */

static void *produce(void *argument)
{
    uint32_t seat = (uint32_t)(uintptr_t)argument;
    uint64_t random = mix(seed * 600 + seat), keys[BLOCK], numbers[BLOCK], offsets[BLOCK + 1] = {0};
    sm_sender *s = take_seat(&e, seat);
    sm_cursor *c = malloc(sizeof *c);
    numbered rows[BLOCK];
    while (sm_now_ns() < deadline) {
        /* a few large blocks, so that a frame may be a batch of its own; some of one key, some of all */
        uint64_t n = 1 + below(&random, below(&random, 8) ? 10 : BLOCK),
                 only = below(&random, 3) ? KEYS : below(&random, KEYS);
        for (uint64_t i = 0; i < n; i++) {
            keys[i] = rows[i].key = only < KEYS ? only : below(&random, KEYS);
            numbers[i] = rows[i].nth = sent[seat][keys[i]]++;
            offsets[i + 1] = 8 * (i + 1);
        }
        sm_columns columns = {.n = n,
                              .key_kind = SM_KEY_INT,
                              .keys = keys,
                              .data = (uint8_t *)numbers,
                              .offsets = offsets,
                              .data_bytes = 8 * n};
        memset(c, 0, sizeof *c);
        for (int status; (status = e.g.row_bytes ? sm_send(s, rows, n, c) : sm_push_columns(s, &columns, c)) != SM_OK;)
            mend(&e, s, status, c->shard, NULL);
        if (below(&random, 20) == 0)
            usleep((useconds_t)below(&random, 2000)); /* lanes run empty: what is left behind then is left for ever */
        if (below(&random, 100) == 0)
            flush(&e, s);
    }
    flush(&e, s);
    leave_seat(&e, s, seat);
    free(c);
    return NULL;
}

/* ---- workers ---------------------------------------------------------------------------------------------------------------- */

typedef struct worker {
    uint32_t shard, seen, draining;
    uint32_t slots[SLOTS]; /* draining, and the numbers of their handoffs */
    uint64_t numbers[SLOTS], random;
    sm_reader *reader;
} worker;

static uint32_t find_moves(worker *w, uint32_t phase)
{
    uint32_t slots[SLOTS], left = 0;
    uint64_t numbers[SLOTS];
    uint32_t n = sm_moves_at(e.control, &e.g, w->shard, phase, slots, numbers, SLOTS);
    for (uint32_t i = 0; i < n; i++) {
        sm_move_view v;
        sm_view_move(e.control, slots[i], &v);
        if ((phase == SM_MOVE_DRAINING ? v.drained : v.restored) != numbers[i]) {
            w->slots[left] = slots[i];
            w->numbers[left++] = numbers[i];
        }
    }
    return left;
}

static void step(worker *w)
{
    uint32_t orders = sm_orders(w->reader);
    if (orders != w->seen) {
        w->seen = orders;
        sm_rescan(w->reader);
        for (uint32_t n = find_moves(w, SM_MOVE_RELEASING), i = 0; i < n; i++)
            sm_move_restored(e.control, w->slots[i], w->numbers[i]);
        w->draining = find_moves(w, SM_MOVE_DRAINING);
    }
    if (!w->draining)
        return;
    uint8_t present[SLOTS];
    uint32_t still = 0;
    CHECK(sm_undone(w->reader, w->slots, w->draining, present) >= 0, "sm_undone");
    for (uint32_t i = 0; i < w->draining; i++)
        if (present[i]) {
            w->slots[still] = w->slots[i];
            w->numbers[still++] = w->numbers[i];
        } else {
            sm_move_drained(e.control, w->slots[i], w->numbers[i]);
        }
    w->draining = still;
}

static void receive(uint32_t shard, uint32_t seat, const sm_index *entry, const uint8_t *bytes, uint32_t length)
{
    numbered got = numbered_at(entry, bytes, length);
    uint64_t key = got.key, nth = got.nth;
    CHECK(key < KEYS, "key %llu", (unsigned long long)key);
    uint32_t other = atomic_exchange_explicit(&in_hand[slot_of(key)], shard + 1, memory_order_relaxed);
    CHECK(!other || other == shard + 1, "slot %u is in the hands of shards %u and %u", slot_of(key), other - 1, shard);
    uint64_t due = arrived[seat][key]++;
    CHECK(nth == due, "producer %u, key %llu (slot %u) at shard %u: number %llu where %llu was due", seat,
          (unsigned long long)key, slot_of(key), shard, (unsigned long long)nth, (unsigned long long)due);
}

/* between batches nothing is in hand */
static void let_go(uint32_t shard)
{
    for (uint32_t slot = 0; slot < SLOTS; slot++)
        if (atomic_load_explicit(&in_hand[slot], memory_order_relaxed) == shard + 1)
            atomic_store_explicit(&in_hand[slot], 0, memory_order_relaxed);
}

static void *work(void *argument)
{
    static const uint32_t sizes[] = {1, 2, 8, 40, MOST_ROWS};
    worker w = {.shard = (uint32_t)(uintptr_t)argument};
    w.random = mix(seed * 700 + w.shard);
    w.reader = take_shard(&e, w.shard, sizes[below(&w.random, 5)]);
    w.seen = sm_orders(w.reader) - 1;
    for (uint64_t batches = 0;;) {
        int last = atomic_load_explicit(&finished, memory_order_acquire);
        sm_batch b;
        step(&w);
        int status = sm_next(w.reader, SPIN_NS, last ? 0 : w.draining ? 1000000 : PARK_NS, &b);
        CHECK(status == SM_OK || status == SM_INTERRUPTED, "sm_next: %d", status);
        if (!b.rows && last)
            break;
        if (!b.rows)
            continue;
        for_each_row(w.shard, &b, e.g.row_bytes, NULL, receive);
        let_go(w.shard); /* before the commit: from then on another may have them */
        CHECK(sm_commit(w.reader) == SM_OK, "commit");
        if (++batches % 256 == 0) { /* a new life, in the middle of whatever is under way */
            sm_reader_free(w.reader);
            w.reader = take_shard(&e, w.shard, sizes[below(&w.random, 5)]);
            w.seen--;
        }
    }
    sm_reader_free(w.reader);
    return NULL;
}

/* ---- the supervisor ----------------------------------------------------------------------------------------------------------- */

static uint32_t holds[SHARDS];

static void hold(uint32_t shard, int change)
{
    holds[shard] += (uint32_t)change;
    sm_set_holds(e.control, shard, holds[shard]);
}

static void settle_marks(void)
{
    uint64_t before[PRODUCERS], now[PRODUCERS];
    sm_marks(e.control, before, PRODUCERS);
    for (uint32_t seat = 0; seat < PRODUCERS; seat++)
        while (before[seat] & 1) {
            sm_marks(e.control, now, PRODUCERS);
            if (now[seat] != before[seat])
                break;
            sched_yield();
        }
}

/* One round: some slots at once, through the phases each at its own pace. */
static void move_some(uint64_t *random)
{
    uint32_t owners[SLOTS], epochs[SLOTS], slots[SLOTS], sources[SLOTS], targets[SLOTS], phase[SLOTS], n = 0;
    uint64_t numbers[SLOTS];
    sm_view_slots(e.control, &e.g, owners, epochs);
    for (uint32_t slot = 0; slot < SLOTS && n < 12; slot++)
        if (below(random, 6) == 0) {
            slots[n] = slot;
            sources[n] = owners[slot];
            targets[n++] = (owners[slot] + 1 + (uint32_t)below(random, SHARDS - 1)) % SHARDS;
        }
    for (uint32_t i = 0; i < n; i++)
        hold(targets[i], 1);
    for (uint32_t i = 0; i < n; i++) {
        numbers[i] = sm_move_begin(e.control, slots[i], sources[i], targets[i], 0);
        CHECK(numbers[i], "slot %u cannot move", slots[i]);
    }
    settle_marks();
    for (uint32_t i = 0; i < n; i++)
        sm_move_phase(e.control, slots[i], phase[i] = SM_MOVE_DRAINING, 0);
    for (uint32_t shard = 0; shard < SHARDS; shard++)
        sm_give_orders(e.control, shard, e.inbox[shard]);
    int64_t from = sm_now_ns();
    for (uint32_t left = n; left;) {
        for (uint32_t i = 0; i < n; i++) {
            sm_move_view v;
            sm_view_move(e.control, slots[i], &v);
            int done = phase[i] == SM_MOVE_DRAINING ? v.drained == numbers[i]
                                                    : phase[i] == SM_MOVE_RELEASING && v.restored == numbers[i];
            CHECK(sm_now_ns() - from < 10 * INT64_C(1000000000), "slot %u does not get from %u to %u: phase %u",
                  slots[i], sources[i], targets[i], v.phase);
            if (!done)
                continue;
            phase[i] = stateful && phase[i] == SM_MOVE_DRAINING ? SM_MOVE_RELEASING : SM_MOVE_NONE;
            sm_move_phase(e.control, slots[i], phase[i], 0);
            if (phase[i] == SM_MOVE_NONE) {
                hold(targets[i], -1);
                left--;
            }
            sm_give_orders(e.control, targets[i], e.inbox[targets[i]]);
        }
        usleep(100);
    }
    moves += n;
    rounds++;
}

static void run(uint32_t row_bytes, int with_state, double share)
{
    e = engine_new(SHARDS, PRODUCERS, 8192, row_bytes);
    stateful = with_state;
    moves = rounds = 0;
    memset(sent, 0, sizeof sent);
    memset(arrived, 0, sizeof arrived);
    memset(holds, 0, sizeof holds);
    atomic_store_explicit(&finished, 0, memory_order_relaxed);
    deadline = sm_now_ns() + (int64_t)(seconds * share * 1e9);
    uint64_t random = mix(seed + 14);
    observer o = {.e = &e};
    pthread_t producers[PRODUCERS], workers[SHARDS], eye = start(observe, &o);
    for (uintptr_t i = 0; i < SHARDS; i++)
        workers[i] = start(work, (void *)i);
    for (uintptr_t i = 0; i < PRODUCERS; i++)
        producers[i] = start(produce, (void *)i);
    while (sm_now_ns() < deadline) {
        move_some(&random);
        if (below(&random, 4) == 0)
            usleep((useconds_t)below(&random, 3000));
    }
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
            CHECK(arrived[p][key] == sent[p][key], "producer %u, key %llu: %llu of %llu arrived", p,
                  (unsigned long long)key, (unsigned long long)arrived[p][key], (unsigned long long)sent[p][key]);
            total += sent[p][key];
        }
    CHECK(settle(&e) == total, "the counters do not say %llu", (unsigned long long)total);
    printf("%s, %s state: %llu rows, %llu moves in %llu rounds\n", row_bytes ? "records" : "events",
           with_state ? "with" : "without", (unsigned long long)total, (unsigned long long)moves,
           (unsigned long long)rounds);
    engine_free(&e);
}

/* A row of a held slot, and behind it one that is handled around it. When the hold has fallen and the first is handled,
 * nothing of the second is left to hand out; the head must move over it all the same. */
static void handled_around_a_hold(void)
{
    uint64_t held = 1, other = 2, tail, head;
    uint32_t shard;
    sm_batch b;
    while (slot_of(other) == slot_of(held))
        other++;
    e = engine_new(1, 1, 4096, 0);
    sm_sender *s = take_seat(&e, 0);
    sm_reader *r = take_shard(&e, 0, 1);
    mend(&e, s, SM_NEED_LANE, 0, NULL);
    sm_set_holds(e.control, 0, 1);
    sm_move_begin(e.control, slot_of(held), SM_NO_SHARD, 0, 0);
    CHECK(sm_push(s, SM_KEY_INT, held, 0, NULL, 0, "", 0, &shard) == SM_OK, "push");
    CHECK(sm_push(s, SM_KEY_INT, other, 0, NULL, 0, "", 0, &shard) == SM_OK, "push");
    CHECK(sm_next(r, 0, 0, &b) == SM_OK && b.rows == 1 && ((sm_index *)b.span->rows)->key == other,
          "the row behind the held one");
    CHECK(sm_commit(r) == SM_OK && sm_next(r, 0, 0, &b) == SM_OK && !b.rows, "the held row stays");
    sm_move_phase(e.control, slot_of(held), SM_MOVE_NONE, 0);
    sm_set_holds(e.control, 0, 0);
    CHECK(sm_next(r, 0, 0, &b) == SM_OK && !b.rows,
          "what was passed over stays held until the lanes are gone over again");
    sm_rescan(r);
    CHECK(sm_next(r, 0, 0, &b) == SM_OK && b.rows == 1 && ((sm_index *)b.span->rows)->key == held,
          "the row that was held");
    CHECK(sm_commit(r) == SM_OK && sm_next(r, 0, 0, &b) == SM_OK && !b.rows, "nothing is left");
    sm_sender_position(s, 0, &tail, &head);
    CHECK(head == tail, "all is handled, and the head is %llu of %llu", (unsigned long long)head,
          (unsigned long long)tail);
    settle(&e);
    sm_reader_free(r);
    leave_seat(&e, s, 0);
    engine_free(&e);
}

/* Whoever drains every slot there is finds the rows of the last one, too. */
static void every_slot_at_once(void)
{
    uint32_t shard;
    engine_slots = SM_MAX_SLOTS;
    e = engine_new(1, 1, 4096, 0);
    sm_sender *s = take_seat(&e, 0);
    sm_reader *r = take_shard(&e, 0, 1);
    mend(&e, s, SM_NEED_LANE, 0, NULL);
    CHECK(sm_push(s, SM_KEY_INT, 1, 0, NULL, 0, "", 0, &shard) == SM_OK, "push");
    uint32_t *slots = malloc(SM_MAX_SLOTS * sizeof *slots), used = (uint32_t)sm_hash_int(1) & (SM_MAX_SLOTS - 1);
    uint8_t *present = malloc(SM_MAX_SLOTS);
    for (uint32_t i = 0; i < SM_MAX_SLOTS; i++)
        slots[i] = (used + 1 + i) & (SM_MAX_SLOTS - 1);
    CHECK(sm_undone(r, slots, SM_MAX_SLOTS, present) == 1 && present[SM_MAX_SLOTS - 1], "slot %u was called drained",
          used);
    free(slots);
    free(present);
    sm_reader_free(r);
    leave_seat(&e, s, 0);
    engine_free(&e);
    engine_slots = SLOTS;
}

int main(int argc, char **argv)
{
    begin(argc, argv);
    every_slot_at_once();
    handled_around_a_hold();
    run(sizeof(numbered), 0, 0.35);
    run(0, 0, 0.35);
    run(sizeof(numbered), 1, 0.3);
    return 0;
}
