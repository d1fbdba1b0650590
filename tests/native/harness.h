/*
 * One engine inside one process, whose threads play producers, workers, supervisor and observer: ThreadSanitizer
 * cannot see across processes, and the sources do not know the difference. Arguments: seed, seconds.
 */
#ifndef SHARDMEM_HARNESS_H
#define SHARDMEM_HARNESS_H

#include <pthread.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "internal.h"

#define MAX_SHARDS 4
#define MAX_SEATS 4
#define GUARD (64 * 1024)
#define SPIN_NS 20000
#define PARK_NS 100000000

/* _exit: the other threads must not go on and bury the message */
#define CHECK(condition, ...)                                                                                          \
    do {                                                                                                               \
        if (!(condition)) {                                                                                            \
            fprintf(stderr, "%s:%d: not so: %s: ", __FILE__, __LINE__, #condition);                                    \
            fprintf(stderr, __VA_ARGS__);                                                                              \
            fputc('\n', stderr);                                                                                       \
            _exit(1);                                                                                                  \
        }                                                                                                              \
    } while (0)

static uint64_t seed = 1;
static double seconds = 2;

/* A hang is a failure like any other; SIGALRM's default action ends the program with a status of its own. */
static inline void begin(int argc, char **argv)
{
    seed = argc > 1 ? strtoull(argv[1], NULL, 0) : seed;
    seconds = argc > 2 ? atof(argv[2]) : seconds;
    setvbuf(stdout, NULL, _IOLBF, 0);
    printf("seed %llu, %.1f s\n", (unsigned long long)seed, seconds);
    alarm(45 + (unsigned)seconds);
}

/* splitmix64: the state may be any number, so also a hash of what identifies an event */
static inline uint64_t mix(uint64_t x)
{
    x += UINT64_C(0x9e3779b97f4a7c15);
    x = (x ^ x >> 30) * UINT64_C(0xbf58476d1ce4e5b9);
    x = (x ^ x >> 27) * UINT64_C(0x94d049bb133111eb);
    return x ^ x >> 31;
}

static inline uint64_t draw(uint64_t *state) { return mix((*state)++); }
static inline uint64_t below(uint64_t *state, uint64_t n) { return draw(state) % n; }

static inline void dawdle(uint64_t turns)
{
    while (turns--)
        sm_pause();
}

/* ---- the engine ------------------------------------------------------------------------------------------------ */

typedef struct engine {
    sm_geometry g;
    void *control, *inbox[MAX_SHARDS];
    uint32_t shards;
} engine;

/* between pages that nobody may touch: one byte too far ends the program */
static inline void *map_guarded(uint64_t bytes)
{
    uint8_t *p = mmap(NULL, bytes + 2 * GUARD, PROT_NONE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    CHECK(p != MAP_FAILED, "mmap of %llu bytes", (unsigned long long)bytes);
    CHECK(mprotect(p + GUARD, bytes, PROT_READ | PROT_WRITE) == 0, "mprotect");
    return p + GUARD;
}

static inline void unmap_guarded(void *p, uint64_t bytes) { munmap((uint8_t *)p - GUARD, bytes + 2 * GUARD); }

static uint32_t engine_slots = 64;

/* row_bytes 0: events. The key of a row is the uint64 at its start. Slots go to the shards in turn. */
static inline engine engine_new(uint32_t shards, uint32_t seats, uint64_t lane_bytes, uint32_t row_bytes)
{
    engine e = {.shards = shards};
    e.g = (sm_geometry){.engine_id = seed,
                        .lane_bytes = lane_bytes,
                        .slots = engine_slots,
                        .max_shards = shards,
                        .max_producers = seats,
                        .row_bytes = row_bytes};
    if (row_bytes) {
        e.g.key_kind = SM_KEY_INT;
        e.g.key_bytes = 8;
    }
    CHECK(sm_geometry_complete(&e.g) == SM_OK, "geometry");
    e.control = map_guarded(e.g.control_bytes);
    sm_control_format(e.control, &e.g);
    sm_supervisor_enter(e.control, getpid(), (uint64_t)sm_now_ns());
    for (uint32_t i = 0; i < shards; i++) {
        e.inbox[i] = map_guarded(e.g.inbox_bytes);
        sm_inbox_format(e.inbox[i], &e.g, i, 1);
        sm_set_shard_generation(e.control, i, 1);
        sm_set_shard_weight(e.control, i, 1000);
        sm_set_shard_state(e.control, i, SM_SHARD_ACTIVE);
    }
    for (uint32_t slot = 0; slot < e.g.slots; slot++)
        sm_set_slot(e.control, slot, slot % shards);
    sm_set_engine_state(e.control, SM_ENGINE_RUNNING);
    return e;
}

static inline void engine_free(engine *e)
{
    for (uint32_t i = 0; i < e->shards; i++)
        unmap_guarded(e->inbox[i], e->g.inbox_bytes);
    unmap_guarded(e->control, e->g.control_bytes);
}

static inline uint32_t shard_of_int(const engine *e, uint64_t key)
{
    return (uint32_t)(sm_hash_int(key) & (e->g.slots - 1)) % e->shards;
}

static inline sm_sender *take_seat(engine *e, uint32_t seat)
{
    sm_seat_enter(e->control, seat, getpid(), (uint64_t)sm_now_ns());
    sm_sender *s = sm_sender_new(e->control, &e->g, seat);
    CHECK(s, "no memory for a sender");
    return s;
}

static inline void leave_seat(engine *e, sm_sender *s, uint32_t seat)
{
    sm_sender_close(s);
    sm_sender_free(s);
    sm_seat_leave(e->control, seat);
}

static inline sm_reader *take_shard(engine *e, uint32_t shard, uint32_t max_rows)
{
    sm_worker_enter(e->control, shard, getpid(), (uint64_t)sm_now_ns());
    sm_reader *r = sm_reader_new(e->control, &e->g, e->inbox[shard], -1, shard, max_rows);
    CHECK(r, "no memory for a reader");
    sm_worker_phase(e->control, shard, SM_PHASE_READY);
    return r;
}

/* How often in a row a lane refused at the same tail and head although the wait in between said that there is room. */
typedef struct patience {
    uint64_t tail[MAX_SHARDS], head[MAX_SHARDS], repeats[MAX_SHARDS];
} patience;

/*
 * What the producer in Python does about a status before it calls again. A wait that ends at once although the lane
 * has no room for what was refused makes the two of them a spin without a limit, so that is a failure (of a sender
 * with one thread; p is NULL where others may use the room). Once is none: the head may have moved in between.
 */
static inline void mend(engine *e, sm_sender *s, int status, uint32_t shard, patience *p)
{
    if (status == SM_NEED_LANE) {
        CHECK(sm_sender_link(s, shard, sm_sender_generation(s, shard), e->inbox[shard]) >= 0, "shard %u", shard);
        return;
    }
    CHECK(status == SM_FULL, "status %d, shard %u", status, shard);
    uint64_t tail, head;
    if (p) {
        CHECK(sm_sender_position(s, shard, &tail, &head) == SM_OK, "shard %u", shard);
        p->repeats[shard] = tail == p->tail[shard] && head == p->head[shard] ? p->repeats[shard] + 1 : 0;
        CHECK(p->repeats[shard] < 3,
              "sm_wait_room sees room in lane %u with tail %llu and head %llu, the push does not", shard,
              (unsigned long long)tail, (unsigned long long)head);
    }
    status = sm_wait_room(s, shard, SPIN_NS, PARK_NS);
    CHECK(status == SM_OK || status == SM_TIMEOUT || status == SM_INTERRUPTED, "sm_wait_room: %d", status);
    if (p) {
        p->tail[shard] = status == SM_OK ? tail : UINT64_MAX; /* it has slept: whatever it finds then is no spin */
        p->head[shard] = head;
    }
}

static inline void flush(engine *e, sm_sender *s)
{
    for (uint32_t shard = 0; shard < e->shards; shard++) {
        uint64_t tail, head;
        if (sm_sender_position(s, shard, &tail, &head) != SM_OK)
            continue;
        for (int64_t from = sm_now_ns(); sm_wait_handled(s, shard, tail, SPIN_NS, PARK_NS) != SM_OK;)
            CHECK(sm_now_ns() - from < 10 * INT64_C(1000000000), "lane %u is not handled: tail %llu, head %llu", shard,
                  (unsigned long long)tail, (unsigned long long)head);
    }
}

/* ---- threads ------------------------------------------------------------------------------------------------------ */

static inline pthread_t start(void *(*run)(void *), void *argument)
{
    pthread_t thread;
    CHECK(pthread_create(&thread, NULL, run, argument) == 0, "pthread_create");
    return thread;
}

static inline void *join(pthread_t thread)
{
    void *result = NULL;
    CHECK(pthread_join(thread, &result) == 0, "pthread_join");
    return result;
}

/* ---- what a worker is given --------------------------------------------------------------------------------------- */

/* The next batch that has rows. 0: there was nothing left in the lanes after `finished` had been set. */
static inline int next_rows(sm_reader *r, _Atomic int *finished, sm_batch *b)
{
    for (;;) {
        int last = atomic_load_explicit(finished, memory_order_acquire);
        int status = sm_next(r, SPIN_NS, last ? 0 : PARK_NS, b);
        CHECK(status == SM_OK || status == SM_INTERRUPTED, "sm_next: %d", status);
        if (b->rows || last)
            return b->rows != 0;
    }
}

/* entry: of an event, whose key and payload the bytes are; NULL: they are a row. */
typedef void receiver(uint32_t shard, uint32_t seat, const sm_index *entry, const uint8_t *bytes, uint32_t length);

/* gathered: where sm_gather has put the batch; NULL: the rows are taken from the lanes. */
static inline void for_each_row(uint32_t shard, const sm_batch *b, uint32_t row_bytes, const uint8_t *gathered,
                                receiver *receive)
{
    uint64_t size = row_bytes ? row_bytes : sizeof(sm_index), rows = 0;
    uint32_t from = 0;
    for (uint32_t i = 0; i < b->spans; i++) {
        const sm_span *span = &b->span[i];
        const uint8_t *at = gathered ? gathered + rows * size : span->rows;
        const uint8_t *bytes = gathered ? gathered + b->rows * size : span->bytes;
        const sm_index *entry = (const sm_index *)at;
        if (!row_bytes && !gathered)
            from = span->first ? entry[-1].end : 0;
        for (uint32_t j = 0; j < span->count; j++) {
            if (row_bytes) {
                receive(shard, span->seat, NULL, at + j * size, row_bytes);
            } else {
                receive(shard, span->seat, &entry[j], bytes + from, entry[j].end - from);
                from = entry[j].end;
            }
        }
        rows += span->count;
    }
    CHECK(rows == b->rows, "%llu rows in the spans, %llu in the batch", (unsigned long long)rows,
          (unsigned long long)b->rows);
}

/* A record whose order can be told; an event has the number as its payload. */
typedef struct numbered {
    uint64_t key, nth;
} numbered;

static inline numbered numbered_at(const sm_index *entry, const uint8_t *bytes, uint32_t length)
{
    numbered n;
    CHECK(length == (entry ? sizeof n.nth : sizeof n), "%u bytes", length);
    if (!entry) {
        memcpy(&n, bytes, sizeof n);
        return n;
    }
    n.key = entry->key;
    memcpy(&n.nth, bytes, sizeof n.nth);
    return n;
}

/* ---- the observer -------------------------------------------------------------------------------------------------- */

typedef struct observer {
    engine *e;
    _Atomic int stop;
    uint64_t looks;
} observer;

static inline void look_at_lane(engine *e, uint32_t shard, uint32_t seat, sm_lane_view *last)
{
    sm_lane_view v;
    sm_view_lane(e->inbox[shard], &e->g, seat, &v);
    CHECK(v.open >= last->open, "lane %u/%u closed again", shard, seat);
    if (!v.open)
        return;
    CHECK(v.handled + v.quarantined + v.shed + v.skipped + v.lost <= v.accepted,
          "lane %u/%u: handled %llu of %llu accepted", shard, seat, (unsigned long long)v.handled,
          (unsigned long long)v.accepted);
    CHECK(v.accepted >= last->accepted && v.handled >= last->handled && v.quarantined >= last->quarantined &&
              v.shed >= last->shed && v.skipped >= last->skipped && v.lost >= last->lost && v.tail >= last->tail &&
              v.head >= last->head,
          "lane %u/%u: a count or a position fell", shard, seat);
    CHECK((v.tail == last->tail) == (v.accepted == last->accepted), "lane %u/%u: a tail without its count", shard,
          seat);
    CHECK(v.head != last->head || v.handled == last->handled, "lane %u/%u: a count without its head", shard, seat);
    CHECK(v.head <= v.tail && v.tail - v.head <= e->g.lane_bytes, "lane %u/%u: tail %llu, head %llu, %llu bytes", shard,
          seat, (unsigned long long)v.tail, (unsigned long long)v.head, (unsigned long long)e->g.lane_bytes);
    *last = v;
}

static inline void *observe(void *argument)
{
    observer *o = argument;
    engine *e = o->e;
    sm_lane_view last[MAX_SHARDS][MAX_SEATS];
    memset(last, 0, sizeof last);
    for (int stopping = 0; !stopping; o->looks++) {
        stopping = atomic_load_explicit(&o->stop, memory_order_acquire); /* so that the end is looked at, too */
        sm_engine_view whole;
        sm_view_engine(e->control, &whole);
        for (uint32_t shard = 0; shard < e->shards; shard++) {
            sm_shard_view worker;
            sm_view_shard(e->control, shard, &worker);
            for (uint32_t seat = 0; seat < e->g.max_producers; seat++)
                look_at_lane(e, shard, seat, &last[shard][seat]);
        }
        for (uint32_t seat = 0; seat < e->g.max_producers; seat++) {
            sm_seat_view producer;
            sm_view_seat(e->control, seat, &producer);
        }
        sched_yield();
    }
    return NULL;
}

static inline void stop_observer(observer *o, pthread_t thread)
{
    atomic_store_explicit(&o->stop, 1, memory_order_release);
    join(thread);
}

/* The identity that must hold when nothing is under way; returns how many rows went through. */
static inline uint64_t settle(engine *e)
{
    uint64_t accepted = 0;
    for (uint32_t shard = 0; shard < e->shards; shard++)
        for (uint32_t seat = 0; seat < e->g.max_producers; seat++) {
            sm_lane_view v;
            sm_view_lane(e->inbox[shard], &e->g, seat, &v);
            CHECK(v.accepted == v.handled + v.quarantined + v.shed + v.skipped + v.lost && v.head == v.tail,
                  "lane %u/%u: accepted %llu, handled %llu, shed %llu, head %llu, tail %llu", shard, seat,
                  (unsigned long long)v.accepted, (unsigned long long)v.handled, (unsigned long long)v.shed,
                  (unsigned long long)v.head, (unsigned long long)v.tail);
            accepted += v.accepted;
        }
    return accepted;
}

#endif
