/*
 * Wake-ups that a sleep without a useful bound would show to be lost: each wait here may last FOREVER, and none does.
 * Claimed: threads of one producer that wait side by side are each woken when their own target is reached; a worker that
 * is killed between making room and saying so leaves nobody asleep once its successor has begun, nor does a producer
 * that is killed between publishing and ringing; nobody waits for a head beyond the tail; and orders that came before the
 * poll are not slept on.
 */
#include <inttypes.h>
#include <signal.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#include "harness.h"

#define FOREVER INT64_C(8000000000)

static engine e;
static sm_sender *s;

static void open_engine(uint32_t shards)
{
    e = engine_new(shards, 1, 4096, 0);
    s = take_seat(&e, 0);
    for (uint32_t shard = 0; shard < shards; shard++)
        mend(&e, s, SM_NEED_LANE, shard, NULL);
}

static void close_engine(void)
{
    leave_seat(&e, s, 0);
    engine_free(&e);
}

/* one frame into the lane of shard 0; returns the tail behind it */
static uint64_t push(uint32_t length)
{
    static const uint8_t payload[2048];
    uint64_t tail, head, key = 0;
    uint32_t shard;
    while (shard_of_int(&e, key) != 0)
        key++;
    CHECK(sm_push(s, SM_KEY_INT, key, 0, NULL, 0, payload, length, &shard) == SM_OK && shard == 0, "push");
    CHECK(sm_sender_position(s, 0, &tail, &head) == SM_OK, "position");
    return tail;
}

static void handle_one(sm_reader *r)
{
    sm_batch b;
    CHECK(sm_next(r, 0, 0, &b) == SM_OK && b.rows == 1 && sm_commit(r) == SM_OK, "one event");
}

/* ---- waiters ------------------------------------------------------------------------------------------------------------ */

typedef struct waiter {
    uint64_t target;
    _Atomic long id;
    pthread_t thread;
} waiter;

static void *wait_handled(void *argument)
{
    waiter *w = argument;
    atomic_store_explicit(&w->id, syscall(SYS_gettid), memory_order_release);
    int64_t from = sm_now_ns();
    int status = sm_wait_handled(s, 0, w->target, 0, FOREVER);
    CHECK(status == SM_OK && sm_now_ns() - from < FOREVER, "status %d: what was waited for came, and nobody said so",
          status);
    return NULL;
}

/* the kernel's word: the thread waits for that bell and no other */
static int asleep(_Atomic long *thread, const _Atomic uint32_t *bell)
{
    char path[64], text[256] = {0};
    long id = atomic_load_explicit(thread, memory_order_acquire), call = 0;
    uintptr_t word = 0;
    snprintf(path, sizeof path, "/proc/self/task/%ld/syscall", id);
    FILE *file = id ? fopen(path, "r") : NULL;
    if (!file)
        return 0;
    CHECK(fgets(text, sizeof text, file), "%s cannot be read", path);
    fclose(file);
    return sscanf(text, "%ld %" SCNxPTR, &call, &word) == 2 && call == SYS_futex && word == (uintptr_t)bell;
}

static int waits(waiter *w) { return asleep(&w->id, &sm_lane_at(e.inbox[0], e.g.lane_bytes, 0)->space_bell); }

static void start_waiter(waiter *w, uint64_t target)
{
    w->target = target;
    atomic_store_explicit(&w->id, 0, memory_order_relaxed);
    w->thread = start(wait_handled, w);
    while (!waits(w))
        sched_yield();
}

static void side_by_side(int larger_first)
{
    waiter near, far;
    open_engine(1);
    sm_reader *r = take_shard(&e, 0, 1);
    uint64_t first = push(100), second = push(100);
    start_waiter(larger_first ? &far : &near, larger_first ? second : first);
    start_waiter(larger_first ? &near : &far, larger_first ? first : second);
    handle_one(r);
    join(near.thread);
    while (!waits(&far)) /* woken too early, it lies down again */
        sched_yield();
    handle_one(r);
    join(far.thread);
    sm_reader_free(r);
    close_engine();
}

/* ---- a waker that is killed ------------------------------------------------------------------------------------------------ */

static void killed_waker(int point)
{
    waiter w;
    int ready[2], go[2], status;
    char byte = 0;
    open_engine(1);
    uint64_t target = push(100);
    CHECK(pipe(ready) == 0 && pipe(go) == 0, "pipe");
    pid_t worker = fork(); /* while there is one thread */
    if (worker == 0) {
        sm_batch b;
        sm_reader *r = take_shard(&e, 0, 1);
        if (sm_next(r, 0, 0, &b) != SM_OK || b.rows != 1 || write(ready[1], &byte, 1) != 1 ||
            read(go[0], &byte, 1) != 1)
            _exit(1);
        sm_point_arm(point, 1, SIGKILL);
        sm_commit(r);
        _exit(2);
    }
    CHECK(read(ready[0], &byte, 1) == 1, "the worker has no batch"); /* it has rung for its beginning by now */
    start_waiter(&w, target);
    CHECK(write(go[1], &byte, 1) == 1 && waitpid(worker, &status, 0) == worker, "the worker");
    CHECK(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL, "the worker was to be killed at %s: %d",
          sm_point_name(point), status);
    CHECK(waits(&w), "somebody woke the producer; nobody could");
    sm_reader *r = take_shard(&e, 0, 1);
    sm_batch b;
    CHECK(sm_next(r, 0, 0, &b) == SM_OK && !b.rows, "all was handled");
    join(w.thread);
    sm_reader_free(r);
    for (int i = 0; i < 2; i++) {
        close(ready[i]);
        close(go[i]);
    }
    close_engine();
}

/* ---- what cannot come is not waited for ----------------------------------------------------------------------------------------- */

/* A thread was refused; before it waits, the lane runs empty and another thread looks at it on its way to another shard. */
static void emptied_before_the_wait(void)
{
    uint64_t tail = 0, head = 0;
    uint32_t shard = 0;
    open_engine(2);
    sm_reader *readers[] = {take_shard(&e, 0, 64), take_shard(&e, 1, 64)};
    for (int in_a_row = 0; in_a_row < 10; in_a_row = shard ? in_a_row + 1 : 0) {
        /* keyless: half of those that go to lane 1 have looked at lane 0 before */
        CHECK(sm_push(s, SM_KEY_NONE, 0, 0, NULL, 0, "", 0, &shard) == SM_OK, "push");
        for (int i = 0; i < 2; i++) {
            sm_batch b;
            while (sm_next(readers[i], 0, 0, &b) == SM_OK && b.rows)
                sm_commit(readers[i]);
        }
    }
    sm_sender_position(s, 0, &tail, &head);
    CHECK(tail == head, "the lane is empty");
    int status = sm_wait_room(s, 0, 0, 500000000);
    CHECK(status == SM_OK, "status %d: all of the lane is free, and room was waited for", status);
    sm_reader_free(readers[0]);
    sm_reader_free(readers[1]);
    close_engine();
}

/* A flush has noted a tail; before it waits, the shard ends and another begins under its number. */
static void replaced_before_the_wait(void)
{
    open_engine(1);
    uint64_t tail = push(1000);
    sm_reader *r = take_shard(&e, 0, 64);
    handle_one(r);
    void *fresh = map_guarded(e.g.inbox_bytes);
    sm_inbox_format(fresh, &e.g, 0, 2);
    sm_set_shard_generation(e.control, 0, 2);
    CHECK(sm_sender_link(s, 0, 2, fresh) == SM_OK, "link");
    int status = sm_wait_handled(s, 0, tail, 0, 500000000);
    CHECK(status == SM_OK, "status %d: all was handled, and a position of the old lane was waited for in the new one",
          status);
    status = sm_wait_room(s, 0, 0, 500000000);
    CHECK(status == SM_OK, "status %d: the new lane is free", status);
    sm_reader_free(r);
    unmap_guarded(fresh, e.g.inbox_bytes);
    close_engine();
}

/* ---- orders --------------------------------------------------------------------------------------------------------------------- */

/* The worker has looked at its orders; before it asks for a batch others come, and their ring is over by then. */
static void ordered_before_the_poll(int how, int64_t spin_ns)
{
    sm_batch b;
    open_engine(1);
    sm_reader *r = take_shard(&e, 0, 1);
    uint32_t orders = sm_orders(r);
    if (how == 0) {
        sm_give_orders(e.control, 0, e.inbox[0]);
    } else {
        how == 1 ? sm_set_shard_state(e.control, 0, SM_SHARD_STOPPED)
                 : sm_set_engine_state(e.control, SM_ENGINE_STOPPED);
        sm_wake(e.inbox[0]);
    }
    int64_t from = sm_now_ns();
    int status = sm_next(r, spin_ns, FOREVER, &b);
    CHECK(status == SM_OK && !b.rows && sm_now_ns() - from < FOREVER,
          "way %d, status %d: what came before the poll was slept on", how, status);
    CHECK(sm_orders(r) == orders + (how == 0), "the orders");
    sm_reader_free(r);
    close_engine();
}

static _Atomic uint32_t obeyed;
enum { ORDERS = 2000 };

static void *obey(void *argument)
{
    sm_reader *r = argument;
    uint64_t random = mix(seed + 40);
    for (uint32_t orders = 0; orders < ORDERS;) {
        sm_batch b;
        orders = sm_orders(r);
        atomic_store_explicit(&obeyed, orders, memory_order_release);
        dawdle(below(&random, UINT64_C(1) << below(&random, 13)));
        int64_t from = sm_now_ns();
        sm_next(r, 0, orders < ORDERS ? FOREVER : 0, &b);
        CHECK(sm_now_ns() - from < FOREVER, "orders %u were given and slept on", orders + 1);
    }
    return NULL;
}

static void ordered_at_any_moment(void)
{
    uint64_t random = mix(seed + 41);
    open_engine(1);
    sm_reader *r = take_shard(&e, 0, 1);
    atomic_store_explicit(&obeyed, 0, memory_order_relaxed);
    pthread_t worker = start(obey, r);
    for (uint32_t i = 0; i < ORDERS; i++) {
        while (atomic_load_explicit(&obeyed, memory_order_acquire) != i)
            sched_yield();
        dawdle(below(&random, UINT64_C(1) << below(&random, 13)));
        sm_give_orders(e.control, 0, e.inbox[0]);
    }
    join(worker);
    sm_reader_free(r);
    close_engine();
}

/* ---- the oldest are dropped --------------------------------------------------------------------------------------------------------- */

static _Atomic int finished;
static _Atomic long sleeper;

static void *hold_back(void *argument)
{
    sm_reader *r = argument;
    atomic_store_explicit(&sleeper, syscall(SYS_gettid), memory_order_release);
    while (!atomic_load_explicit(&finished, memory_order_acquire)) {
        sm_batch b;
        CHECK(sm_next(r, 0, FOREVER, &b) == SM_OK && !b.rows, "a row of a held slot was handed out");
    }
    return NULL;
}

/* All that is in the lane waits for a handoff, and the worker sleeps. A producer that drops the oldest does not wait. */
static void dropped_from_a_worker_that_holds_back(void)
{
    static const uint8_t payload[500];
    uint32_t shard;
    sm_lane_view v;
    open_engine(1);
    uint32_t slot = (uint32_t)sm_hash_int(0) & (e.g.slots - 1);
    sm_set_holds(e.control, 0, 1);
    sm_move_begin(e.control, slot, SM_NO_SHARD, 0, 0);
    sm_reader *r = take_shard(&e, 0, 64);
    atomic_store_explicit(&finished, 0, memory_order_relaxed);
    atomic_store_explicit(&sleeper, 0, memory_order_relaxed);
    pthread_t worker = start(hold_back, r);
    for (int i = 0; i < 200; i++) {
        int status;
        while ((status = sm_push(s, SM_KEY_INT, 0, 0, NULL, 0, payload, sizeof payload, &shard)) == SM_OK)
            ;
        CHECK(status == SM_FULL, "push: %d", status);
        while (i % 2 && !asleep(&sleeper, &((sm_inbox *)e.inbox[0])->doorbell))
            sched_yield();
        CHECK(sm_evict(s, 0) == SM_OK, "evict");
        status = sm_wait_room(s, 0, 0, FOREVER);
        CHECK(status == SM_OK, "status %d: the worker was asked to drop what it holds back, and slept on", status);
    }
    atomic_store_explicit(&finished, 1, memory_order_release);
    sm_give_orders(e.control, 0, e.inbox[0]);
    join(worker);
    sm_view_lane(e.inbox[0], &e.g, 0, &v);
    CHECK(v.shed > 200 && v.handled == 0 && v.head < v.tail, "%llu shed, %llu handled", (unsigned long long)v.shed,
          (unsigned long long)v.handled);
    sm_reader_free(r);
    close_engine();
}

/* ---- a producer that is killed ------------------------------------------------------------------------------------------------ */

static void *sleep_until_one(void *argument)
{
    sm_batch b;
    sm_reader *r = argument;
    atomic_store_explicit(&sleeper, syscall(SYS_gettid), memory_order_release);
    do {
        int64_t from = sm_now_ns();
        int status = sm_next(r, 0, FOREVER, &b);
        CHECK(status == SM_OK && sm_now_ns() - from < FOREVER, "status %d: an event waits, and the worker slept on",
              status);
    } while (!b.rows);
    CHECK(b.rows == 1 && sm_commit(r) == SM_OK, "one event");
    return NULL;
}

static void killed_ringer(int point)
{
    int go[2], status;
    char byte = 0;
    open_engine(1);
    sm_reader *r = take_shard(&e, 0, 1);
    atomic_store_explicit(&sleeper, 0, memory_order_relaxed);
    CHECK(pipe(go) == 0, "pipe");
    pid_t producer = fork();
    if (producer == 0) {
        sm_sender *heir = sm_sender_new(e.control, &e.g, 0); /* the parent's is marked as the parent's */
        sm_sender_link(heir, 0, 1, e.inbox[0]);
        uint32_t shard;
        if (read(go[0], &byte, 1) != 1)
            _exit(1);
        sm_point_arm(point, 1, SIGKILL);
        sm_push(heir, SM_KEY_INT, 1, 0, NULL, 0, "", 0, &shard);
        _exit(2);
    }
    pthread_t worker = start(sleep_until_one, r);
    /* `sleeping` alone is not enough: a worker that has set it and not yet lain down sees the event, and is not rung for */
    while (!asleep(&sleeper, &((sm_inbox *)e.inbox[0])->doorbell))
        sched_yield();
    CHECK(write(go[1], &byte, 1) == 1, "the producer");
    CHECK(waitpid(producer, &status, 0) == producer && WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL,
          "the producer was to be killed at %s: %d", sm_point_name(point), status);
    sm_sender_free(s);
    s = take_seat(&e, 0);
    mend(&e, s, SM_NEED_LANE, 0, NULL);
    join(worker);
    sm_reader_free(r);
    close(go[0]);
    close(go[1]);
    close_engine();
}

int main(int argc, char **argv)
{
    begin(argc, argv);
    killed_waker(SM_POINT_COMMIT_RELEASED);
    killed_waker(SM_POINT_ROOM_TAKEN);
    killed_ringer(SM_POINT_SEND_PUBLISHED);
    killed_ringer(SM_POINT_RING_TAKEN);
    side_by_side(0);
    side_by_side(1);
    for (int how = 0; how < 3; how++) {
        ordered_before_the_poll(how, 0);
        ordered_before_the_poll(how, SPIN_NS);
    }
    ordered_at_any_moment();
    dropped_from_a_worker_that_holds_back();
    emptied_before_the_wait();
    replaced_before_the_wait();
    printf("nobody slept on\n");
    return 0;
}
