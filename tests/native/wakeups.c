/*
 * Wake-ups that a sleep without a useful bound would show to be lost: each wait here may last FOREVER, and none does.
 * Claimed: threads of one producer that wait side by side are each woken when their own target is reached; a worker that
 * is killed between making room and saying so leaves nobody asleep once its successor has begun, nor does a producer
 * that is killed between publishing and ringing.
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
    CHECK(status == SM_OK && sm_now_ns() - from < FOREVER, "status %d: what was waited for came, and nobody said so", status);
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
        if (sm_next(r, 0, 0, &b) != SM_OK || b.rows != 1 || write(ready[1], &byte, 1) != 1 || read(go[0], &byte, 1) != 1)
            _exit(1);
        sm_point_arm(point, 1, SIGKILL);
        sm_commit(r);
        _exit(2);
    }
    CHECK(read(ready[0], &byte, 1) == 1, "the worker has no batch"); /* it has rung for its beginning by now */
    start_waiter(&w, target);
    CHECK(write(go[1], &byte, 1) == 1 && waitpid(worker, &status, 0) == worker, "the worker");
    CHECK(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL, "the worker was to be killed at %s: %d", sm_point_name(point), status);
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

/* ---- a producer that is killed ------------------------------------------------------------------------------------------------ */

static _Atomic long sleeper;

static void *sleep_until_one(void *argument)
{
    sm_batch b;
    sm_reader *r = argument;
    atomic_store_explicit(&sleeper, syscall(SYS_gettid), memory_order_release);
    do {
        int64_t from = sm_now_ns();
        int status = sm_next(r, 0, FOREVER, &b);
        CHECK(status == SM_OK && sm_now_ns() - from < FOREVER, "status %d: an event waits, and the worker slept on", status);
    } while (!b.rows);
    CHECK(b.rows == 1 && sm_commit(r) == SM_OK, "one event");
    return NULL;
}

static void killed_ringer(int point)
{
    int status;
    open_engine(1);
    sm_reader *r = take_shard(&e, 0, 1);
    atomic_store_explicit(&sleeper, 0, memory_order_relaxed);
    pid_t producer = fork();
    if (producer == 0) {
        sm_sender *heir = sm_sender_new(e.control, &e.g, 0); /* the parent's is marked as the parent's */
        sm_inbox *inbox = e.inbox[0];
        sm_sender_link(heir, 0, 1, inbox);
        while (atomic_load_explicit(&inbox->sleeping, memory_order_acquire) == 0)
            sched_yield();
        uint32_t shard;
        sm_point_arm(point, 1, SIGKILL);
        sm_push(heir, SM_KEY_INT, 1, 0, NULL, 0, "", 0, &shard);
        _exit(2);
    }
    pthread_t worker = start(sleep_until_one, r);
    CHECK(waitpid(producer, &status, 0) == producer && WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL,
          "the producer was to be killed at %s: %d", sm_point_name(point), status);
    sm_sender_free(s);
    s = take_seat(&e, 0);
    mend(&e, s, SM_NEED_LANE, 0, NULL);
    join(worker);
    sm_reader_free(r);
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
    printf("nobody slept on\n");
    return 0;
}
