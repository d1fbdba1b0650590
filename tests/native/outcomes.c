/*
 * What two threads may see of each other, counted: tight loops over one handshake each, every outcome named, and one
 * that is not allowed fails the program. The allowed ones are printed, so that a handshake which never met in the
 * middle can be told from one that held.
 */
#include "harness.h"

#define FOREVER INT64_C(8000000000) /* a sleep as long as that was ended by nobody */

typedef struct outcome {
    const char *what;
    int allowed;
    uint64_t count;
} outcome;

static void report(const char *title, const outcome *outcomes, size_t n)
{
    int bad = 0;
    for (size_t i = 0; i < n; i++) {
        printf("  %-10s %9llu  %s\n", outcomes[i].allowed ? "" : "FORBIDDEN", (unsigned long long)outcomes[i].count,
               outcomes[i].what);
        bad |= outcomes[i].count && !outcomes[i].allowed;
    }
    CHECK(!bad, "%s: a forbidden outcome", title);
}

static engine e;
static int64_t deadline;
static _Atomic uint64_t offered, turn, stop;

static uint32_t bell(_Atomic uint32_t *word) { return atomic_load_explicit(word, memory_order_relaxed); }
static int stopped(void) { return atomic_load_explicit(&stop, memory_order_acquire) != 0; }
static void open_lane(sm_sender *s, uint32_t shard) { mend(&e, s, SM_NEED_LANE, shard, NULL); }

/* from nothing to longer than a wake takes, each order of magnitude as often as the others */
static void hesitate(uint64_t *random) { dawdle(below(random, UINT64_C(1) << below(random, 13))); }

static void push(sm_sender *s, uint64_t key, uint32_t *shard)
{
    for (int status; (status = sm_push(s, SM_KEY_INT, key, 0, NULL, 0, &key, 8, shard)) != SM_OK;)
        mend(&e, s, status, *shard, NULL);
}

/* ---- parking: P1/W1 and R1/S1 ----------------------------------------------------------------------------------------- */

/*
 * One event at a time there, its handling back. Who does not sleep in a turn waits awake, so that its store meets the
 * other side on its way to bed rather than in it: a wake takes longer than everything else here together.
 */
static int worker_sleeps(uint64_t i) { return i % 3 != 1; }
static int producer_sleeps(uint64_t i) { return i % 3 != 0; }

/* A bell that was rung for what had been found already ends the next sleep at once: then it is slept again. */
static void sleep_until_one(sm_reader *r, sm_batch *b, int64_t spin_ns, const char *what, uint64_t i)
{
    do {
        int64_t asleep = sm_now_ns();
        int status = sm_next(r, spin_ns, FOREVER, b);
        CHECK(status == SM_OK || status == SM_INTERRUPTED, "sm_next: %d", status);
        int pushed = atomic_load_explicit(&offered, memory_order_acquire) >= i; /* else it is the producer who sleeps */
        CHECK(!pushed || sm_now_ns() - asleep < FOREVER, "FORBIDDEN: %s %llu was pushed and the worker slept on", what,
              (unsigned long long)i);
    } while (!b->rows);
    CHECK(b->rows == 1, "%llu rows", (unsigned long long)b->rows);
}

static void sleep_until_handled(sm_sender *s, uint64_t tail, int64_t spin_ns, uint64_t i)
{
    for (int status = SM_TIMEOUT; status != SM_OK;) {
        int64_t asleep = sm_now_ns();
        status = sm_wait_handled(s, 0, tail, spin_ns, 2 * FOREVER);
        CHECK(sm_now_ns() - asleep < 2 * FOREVER, "FORBIDDEN: event %llu was handled and the producer slept on",
              (unsigned long long)i);
    }
}

static void *answer(void *argument)
{
    uint64_t random = mix(seed + 7);
    sm_reader *r = take_shard(&e, 0, 16);
    (void)argument;
    for (uint64_t i = 1; !stopped(); i++) {
        sm_batch b;
        hesitate(&random);
        if (worker_sleeps(i))
            sleep_until_one(r, &b, below(&random, 4) ? 0 : SPIN_NS, "event", i);
        else
            while (sm_next(r, 0, 0, &b) == SM_OK && !b.rows)
                ;
        if (stopped())
            break;
        hesitate(&random);
        CHECK(sm_commit(r) == SM_OK, "commit");
        atomic_store_explicit(&turn, i, memory_order_release);
    }
    sm_reader_free(r);
    return NULL;
}

static void parking(double share)
{
    outcome outcomes[] = {{"no bell rung, both saw it for themselves", 1, 0},
                          {"the worker's bell rung", 1, 0},
                          {"the producer's bell rung", 1, 0},
                          {"both bells rung", 1, 0},
                          {"one event, two rings", 0, 0}};
    uint64_t random = mix(seed + 8);
    e = engine_new(1, 1, 4096, 0);
    atomic_store_explicit(&offered, 0, memory_order_relaxed);
    atomic_store_explicit(&turn, 0, memory_order_relaxed);
    atomic_store_explicit(&stop, 0, memory_order_relaxed);
    sm_sender *s = take_seat(&e, 0);
    open_lane(s, 0);
    pthread_t worker = start(answer, NULL);
    _Atomic uint32_t *door = &((sm_inbox *)e.inbox[0])->doorbell,
                     *space = &sm_lane_at(e.inbox[0], e.g.lane_bytes, 0)->space_bell;
    while (!bell(space)) /* a worker rings every lane that it opens */
        sched_yield();
    deadline = sm_now_ns() + (int64_t)(seconds * share * 1e9);
    for (uint64_t i = 1; sm_now_ns() < deadline; i++) {
        uint32_t shard, doors = bell(door), spaces = bell(space);
        uint64_t tail, head;
        hesitate(&random);
        push(s, i, &shard);
        atomic_store_explicit(&offered, i, memory_order_release);
        sm_sender_position(s, 0, &tail, &head);
        if (producer_sleeps(i))
            sleep_until_handled(s, tail, below(&random, 4) ? 0 : SPIN_NS, i);
        for (int tries = 0; atomic_load_explicit(&turn, memory_order_acquire) != i; tries++)
            tries < 2000 ? sm_pause() : (void)sched_yield(); /* the worker may have its bell still to ring */
        doors = bell(door) - doors;
        spaces = bell(space) - spaces;
        outcomes[doors > 1 || spaces > 1 ? 4 : doors + 2 * spaces].count++;
    }
    uint32_t shard;
    atomic_store_explicit(&stop, 1, memory_order_release);
    push(s, 0, &shard); /* a bell alone could ring before the worker lies down */
    join(worker);
    printf("parking\n");
    report("parking", outcomes, sizeof outcomes / sizeof *outcomes);
    leave_seat(&e, s, 0);
    engine_free(&e);
}

/* ---- opening a lane: O1/O2 beside P1/W1 ------------------------------------------------------------------------------- */

enum { NEW_SEATS = 128 };

static void *welcome(void *argument)
{
    sm_reader *r = take_shard(&e, 0, 16);
    uint64_t random = mix(seed + 9), *found = argument;
    for (uint64_t i = 1; i <= NEW_SEATS; i++) {
        sm_batch b;
        hesitate(&random);
        sleep_until_one(r, &b, 0, "the first event, of lane", i);
        CHECK(b.span[0].seat == i - 1, "seat %u", b.span[0].seat);
        CHECK(sm_commit(r) == SM_OK, "commit");
        ++*found;
        atomic_store_explicit(&turn, i, memory_order_release);
    }
    sm_reader_free(r);
    return NULL;
}

static void opening(double share)
{
    outcome outcomes[] = {{"the first event of a new lane was found", 1, 0}};
    uint64_t random = mix(seed + 10);
    deadline = sm_now_ns() + (int64_t)(seconds * share * 1e9);
    do {
        e = engine_new(1, NEW_SEATS, 4096, 0);
        atomic_store_explicit(&offered, 0, memory_order_relaxed);
        atomic_store_explicit(&turn, 0, memory_order_relaxed);
        pthread_t worker = start(welcome, &outcomes[0].count);
        for (uint32_t i = 0; i < NEW_SEATS; i++) {
            uint32_t shard;
            sm_sender *s = take_seat(&e, i);
            hesitate(&random);
            push(s, i, &shard);
            atomic_store_explicit(&offered, i + 1, memory_order_release);
            while (atomic_load_explicit(&turn, memory_order_acquire) != i + 1)
                sched_yield();
            leave_seat(&e, s, i);
        }
        join(worker);
        engine_free(&e);
    } while (sm_now_ns() < deadline);
    printf("opening a lane\n");
    report("opening", outcomes, 1);
}

/* ---- counts and positions: P0/A2 and R0/A1 with their copies ----------------------------------------------------------- */

enum { STEPS = 1 << 19 };

typedef struct pair {
    uint64_t position, count;
} pair;
typedef struct history {
    pair *pairs;
    uint64_t n;
} history;

static history tails, heads, seen_tails, seen_heads;

static void remember(history *h, uint64_t position, uint64_t count)
{
    if (h->n < STEPS && (!h->n || h->pairs[h->n - 1].position != position || h->pairs[h->n - 1].count != count))
        h->pairs[h->n++] = (pair){position, count};
}

static void *produce(void *argument)
{
    sm_sender *s = take_seat(&e, 0);
    uint64_t head, tail, random = mix(seed + 11);
    uint32_t shard;
    uint8_t payload[1800] = {0};
    (void)argument;
    open_lane(s, 0);
    remember(&tails, 0, 0);
    for (uint64_t i = 1; i < STEPS && !stopped(); i++) {
        uint32_t length = (uint32_t)below(&random, below(&random, 16) ? 40 : sizeof payload);
        for (int status; (status = sm_push(s, SM_KEY_INT, i, 0, NULL, 0, payload, length, &shard)) != SM_OK;)
            mend(&e, s, status, shard, NULL);
        sm_sender_position(s, 0, &tail, &head);
        remember(&tails, tail, i);
    }
    flush(&e, s);
    atomic_store_explicit(&turn, 1, memory_order_release);
    leave_seat(&e, s, 0);
    return NULL;
}

static void *consume(void *argument)
{
    sm_reader *r = take_shard(&e, 0, 3);
    sm_lane_view v;
    (void)argument;
    remember(&heads, 0, 0);
    for (;;) {
        int last = atomic_load_explicit(&turn, memory_order_acquire) != 0;
        sm_batch b;
        sm_next(r, SPIN_NS, last ? 0 : PARK_NS / 10, &b);
        if (!b.rows && last)
            break;
        if (!b.rows)
            continue;
        CHECK(sm_commit(r) == SM_OK, "commit");
        sm_view_lane(e.inbox[0], &e.g, 0, &v); /* its own words: exact */
        remember(&heads, v.head, v.handled);
    }
    sm_reader_free(r);
    return NULL;
}

static void *look(void *argument)
{
    (void)argument;
    while (!atomic_load_explicit(&turn, memory_order_acquire)) {
        sm_lane_view v;
        sm_view_lane(e.inbox[0], &e.g, 0, &v);
        if (!v.open)
            continue;
        remember(&seen_tails, v.tail, v.accepted);
        remember(&seen_heads, v.head, v.handled);
    }
    return NULL;
}

static void judge(const history *truth, const history *seen, outcome *outcomes)
{
    for (uint64_t i = 0, at = 0; i < seen->n; i++) {
        const pair *p = &seen->pairs[i];
        while (at + 1 < truth->n && truth->pairs[at].position < p->position)
            at++;
        const pair *t = &truth->pairs[at];
        outcomes[t->position != p->position ? 3 : t->count == p->count ? 0 : t->count < p->count ? 1 : 2].count++;
    }
}

static void counting(double share)
{
    outcome tail_outcomes[] = {{"tail with its count", 1, 0},
                               {"tail with a later count", 0, 0},
                               {"tail with an earlier count", 0, 0},
                               {"a tail that never was", 0, 0}};
    outcome head_outcomes[] = {{"head with its count", 1, 0},
                               {"head with a later count", 0, 0},
                               {"head with an earlier count", 0, 0},
                               {"a head that never was", 0, 0}};
    history *all[] = {&tails, &heads, &seen_tails, &seen_heads};
    for (int i = 0; i < 4; i++) {
        all[i]->n = 0;
        all[i]->pairs = malloc(STEPS * sizeof(pair));
    }
    e = engine_new(1, 1, 4096, 0);
    atomic_store_explicit(&turn, 0, memory_order_relaxed);
    atomic_store_explicit(&stop, 0, memory_order_relaxed);
    pthread_t threads[] = {start(look, NULL), start(consume, NULL), start(produce, NULL)};
    usleep((useconds_t)(seconds * share * 1e6));
    atomic_store_explicit(&stop, 1, memory_order_release);
    for (int i = 0; i < 3; i++)
        join(threads[i]);
    settle(&e);
    judge(&tails, &seen_tails, tail_outcomes);
    judge(&heads, &seen_heads, head_outcomes);
    printf("counts and positions, %llu frames\n", (unsigned long long)tails.n - 1);
    report("tail", tail_outcomes, 4);
    report("head", head_outcomes, 4);
    for (int i = 0; i < 4; i++)
        free(all[i]->pairs);
    engine_free(&e);
}

/* ---- marks: M1 beside H1, E1 and M2 ------------------------------------------------------------------------------------- */

static void *chatter(void *argument)
{
    sm_sender *s = take_seat(&e, 0);
    uint64_t key = *(uint64_t *)argument;
    uint32_t shard = 0;
    while (!stopped()) {
        int status = sm_push(s, SM_KEY_INT, key, 0, NULL, 0, &key, 8, &shard);
        if (status == SM_STOPPED)
            sched_yield();
        else if (status != SM_OK)
            mend(&e, s, status, shard, NULL);
    }
    leave_seat(&e, s, 0);
    return NULL;
}

static void *swallow(void *argument)
{
    uint32_t shard = (uint32_t)(uintptr_t)argument;
    sm_reader *r = take_shard(&e, shard, 64);
    while (!stopped()) {
        sm_batch b;
        sm_next(r, SPIN_NS, PARK_NS / 10, &b);
        if (b.rows)
            CHECK(sm_commit(r) == SM_OK, "commit");
    }
    sm_reader_free(r);
    return NULL;
}

/* returns 1 if somebody was inside a send and was waited for */
static int wait_for_marks(void)
{
    uint64_t before, now;
    sm_marks(e.control, &before, 1);
    if (!(before & 1))
        return 0;
    do {
        sched_yield();
        sm_marks(e.control, &now, 1);
    } while (now == before);
    return 1;
}

static uint64_t accepted_by(uint32_t shard)
{
    sm_lane_view v;
    sm_view_lane(e.inbox[shard], &e.g, 0, &v);
    return v.accepted;
}

/* a slot is moved, or the engine drained, under a producer that does not stop pushing into it */
static void marking(double share)
{
    outcome outcomes[] = {{"slot moved, no send under way", 1, 0},
                          {"slot moved, a send waited for", 1, 0},
                          {"slot moved, and an event still entered the old lane", 0, 0},
                          {"draining, no send under way", 1, 0},
                          {"draining, a send waited for", 1, 0},
                          {"draining, and an event was still accepted", 0, 0}};
    uint64_t random = mix(seed + 12), key = 5;
    e = engine_new(2, 1, 4096, 0);
    uint32_t slot = (uint32_t)sm_hash_int(key) & (e.g.slots - 1), owner = shard_of_int(&e, key);
    atomic_store_explicit(&stop, 0, memory_order_relaxed);
    pthread_t threads[] = {start(swallow, (void *)0), start(swallow, (void *)1), start(chatter, &key)};
    deadline = sm_now_ns() + (int64_t)(seconds * share * 1e9);
    while (sm_now_ns() < deadline) {
        hesitate(&random);
        int drain = below(&random, 2) == 0;
        uint32_t old = owner, from = drain ? 0 : old, to = drain ? 1 : old; /* lanes that must stand still */
        if (drain)
            sm_set_engine_state(e.control, SM_ENGINE_DRAINING);
        else
            sm_set_slot(e.control, slot, owner = 1 - owner);
        int waited = wait_for_marks();
        uint64_t before = accepted_by(from) + accepted_by(to);
        hesitate(&random);
        int entered = accepted_by(from) + accepted_by(to) != before;
        outcomes[3 * drain + (entered ? 2 : waited)].count++;
        if (drain)
            sm_set_engine_state(e.control, SM_ENGINE_RUNNING);
    }
    atomic_store_explicit(&stop, 1, memory_order_release);
    join(threads[2]);
    for (int i = 0; i < 2; i++) {
        sm_wake(e.inbox[i]);
        join(threads[i]);
    }
    printf("marks\n");
    report("marks", outcomes, sizeof outcomes / sizeof *outcomes);
    engine_free(&e);
}

/* ---- handoffs: N1/N2 -------------------------------------------------------------------------------------------------- */

/* Which way a slot goes says whether its handoff has an odd number. Shard 1 only looks. */
static void *look_for_moves(void *argument)
{
    outcome *outcomes = argument;
    uint32_t slots[1];
    uint64_t numbers[1];
    while (!stopped()) {
        int gives = sm_moves_at(e.control, &e.g, 1, SM_MOVE_DRAINING, slots, numbers, 1) == 1;
        outcomes[!gives ? 0 : numbers[0] & 1 ? 1 : 2].count++;
        int takes = sm_moves_at(e.control, &e.g, 1, SM_MOVE_RELEASING, slots, numbers, 1) == 1;
        outcomes[!takes ? 3 : numbers[0] & 1 ? 5 : 4].count++;
    }
    return NULL;
}

static void numbering(double share)
{
    outcome outcomes[] = {{"nothing is given up", 1, 0},
                          {"a slot is given up", 1, 0},
                          {"a slot is given up, with the number of a handoff to here", 0, 0},
                          {"nothing is taken up", 1, 0},
                          {"a slot is taken up", 1, 0},
                          {"a slot is taken up, with the number of a handoff from here", 0, 0}};
    uint64_t random = mix(seed + 13);
    e = engine_new(2, 1, 4096, 0);
    atomic_store_explicit(&stop, 0, memory_order_relaxed);
    pthread_t thread = start(look_for_moves, outcomes);
    deadline = sm_now_ns() + (int64_t)(seconds * share * 1e9);
    for (uint32_t source = 1; sm_now_ns() < deadline; source = 1 - source) {
        sm_move_begin(e.control, 0, source, 1 - source, 0);
        sm_move_phase(e.control, 0, SM_MOVE_DRAINING, 0);
        dawdle(below(&random, UINT64_C(1) << below(&random, 7)));
        sm_move_phase(e.control, 0, SM_MOVE_RELEASING, 0);
        dawdle(below(&random, UINT64_C(1) << below(&random, 7)));
        sm_move_phase(e.control, 0, SM_MOVE_NONE, 0);
    }
    atomic_store_explicit(&stop, 1, memory_order_release);
    join(thread);
    printf("numbers\n");
    report("numbers", outcomes, sizeof outcomes / sizeof *outcomes);
    engine_free(&e);
}

int main(int argc, char **argv)
{
    begin(argc, argv);
    parking(0.4);
    opening(0.1);
    counting(0.15);
    marking(0.25);
    numbering(0.1);
    return 0;
}
