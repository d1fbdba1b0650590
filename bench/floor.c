/* The C floor: what this machine allows before Python and before any feature.
 *
 *   floor ring  frame=64 ring=1048576 publish=256 touch=first|all events=N pool=4096 pairs=1 cpus=0,1
 *   floor wake  count=3000 rate=1000 pairs=1 cpus=0,1
 *
 * ring: the bare single-producer single-consumer ring, one per pair of processes: a frame is copied
 * in, the tail is published every `publish` frames, the consumer reads the first u64 of each frame or
 * every u64 of it, and gives its room back every `publish` frames. No keys, no headers, no parking, no
 * crash safety: a design that offers those can come near this figure, not past it by much.
 *
 * wake: the sleeper is parked in futex-wait; the time is taken from just before the waker's publishing
 * store to the sleeper's first instruction after the wait. No queue that parks its consumer delivers
 * the first event of a pause sooner.
 *
 * Prints one line of JSON. cpus= names one cpu per process, producers first; without it nothing is pinned.
 */
#define _GNU_SOURCE
#include <linux/futex.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { MAX_PAIRS = 32, WARM_WAKES = 100 };

static uint64_t now_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static void die(const char *what)
{
    perror(what);
    exit(1);
}

static void *shared(size_t bytes)
{
    /* Populated: a first touch costs more than a hundred frames and is nobody's throughput. */
    void *p = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
    if (p == MAP_FAILED)
        die("mmap");
    return p;
}

static void pin(int cpu)
{
    if (cpu < 0)
        return;
    cpu_set_t set;
    CPU_ZERO(&set);
    CPU_SET((size_t)cpu, &set);
    if (sched_setaffinity(0, sizeof set, &set))
        die("sched_setaffinity");
}

/* Spinning is right while every process has a core of its own and wrong as soon as it has not: then
 * the spinner burns the time slice of the very process that it waits for. */
static int spin_limit;

static void relax(int *spins)
{
    if (++*spins <= spin_limit) {
#if defined(__x86_64__)
        __builtin_ia32_pause();
#elif defined(__aarch64__)
        __asm__ __volatile__("isb");
#endif
    } else {
        *spins = 0;
        sched_yield();
    }
}

/* ---- ring ---- */

struct ring {
    _Alignas(128) _Atomic uint64_t tail;    /* written by the producer */
    _Alignas(128) _Atomic uint64_t head;    /* written by the consumer */
    _Alignas(128) uint64_t start, expected; /* the producer's report, read after its death */
    _Alignas(128) uint64_t end, sum;        /* the consumer's report, likewise */
    unsigned char *slots;
};

struct job {
    uint64_t capacity; /* frames in the ring, a power of two */
    uint64_t publish, events, warm, pool;
    const unsigned char *source; /* `pool` frames, a power of two */
    bool all;
};

/* `frame` is a constant in every call: the copy of a frame must compile to moves, not to a loop. */
#define INLINE static inline __attribute__((always_inline))

INLINE void produce(struct ring *r, const struct job *j, uint64_t n, const size_t frame)
{
    uint64_t tail = atomic_load_explicit(&r->tail, memory_order_relaxed);
    uint64_t head = atomic_load_explicit(&r->head, memory_order_acquire);
    int spins = 0;
    for (uint64_t sent = 0; sent < n;) {
        uint64_t take = n - sent < j->publish ? n - sent : j->publish;
        /* Wait for a whole period, not for one frame: or a full ring is published frame by frame. */
        while (j->capacity - (tail - head) < take) {
            head = atomic_load_explicit(&r->head, memory_order_acquire); /* pairs with consume's release */
            if (j->capacity - (tail - head) < take)
                relax(&spins);
        }
        for (uint64_t k = 0; k < take; k++)
            memcpy(r->slots + ((tail + k) & (j->capacity - 1)) * frame,
                   j->source + ((sent + k) & (j->pool - 1)) * frame, frame);
        tail += take;
        sent += take;
        atomic_store_explicit(&r->tail, tail, memory_order_release); /* pairs with consume's acquire */
    }
}

INLINE uint64_t consume(struct ring *r, const struct job *j, uint64_t n, const size_t frame)
{
    uint64_t head = atomic_load_explicit(&r->head, memory_order_relaxed), tail = head, sum = 0;
    int spins = 0;
    for (uint64_t left = n; left;) {
        if (tail == head) {
            tail = atomic_load_explicit(&r->tail, memory_order_acquire); /* pairs with produce's release */
            if (tail == head) {
                relax(&spins);
                continue;
            }
        }
        uint64_t take = tail - head < j->publish ? tail - head : j->publish;
        for (uint64_t k = 0; k < take; k++) {
            const uint64_t *w = (const void *)(r->slots + ((head + k) & (j->capacity - 1)) * frame);
            if (j->all)
                for (size_t i = 0; i < frame / 8; i++)
                    sum += w[i];
            else
                sum += w[0];
        }
        head += take;
        left -= take;
        atomic_store_explicit(&r->head, head, memory_order_release); /* pairs with produce's acquire */
    }
    return sum;
}

static void run_producer(struct ring *r, const struct job *j, uint64_t n, size_t frame)
{
    if (frame == 64)
        produce(r, j, n, 64);
    else
        produce(r, j, n, 1024);
}

static uint64_t run_consumer(struct ring *r, const struct job *j, uint64_t n, size_t frame)
{
    return frame == 64 ? consume(r, j, n, 64) : consume(r, j, n, 1024);
}

/* ---- processes ---- */

static void meet(_Atomic uint32_t *arrived, uint32_t everybody)
{
    atomic_fetch_add(arrived, 1);
    while (atomic_load(arrived) < everybody)
        sched_yield();
}

static void reap(int n)
{
    bool bad = false;
    for (int i = 0; i < n; i++) {
        int status;
        if (wait(&status) < 0 || status)
            bad = true;
    }
    if (bad)
        exit(1);
}

/* ---- wake ---- */

struct parked {
    _Alignas(128) _Atomic uint32_t word; /* written by the waker; the sleeper waits on it */
    uint64_t *sent;                      /* written by the waker before the word says so: when it published wake i */
    uint64_t *latency;                   /* written by the sleeper */
};

static void wake(struct parked *p, uint32_t n, uint64_t gap)
{
    uint64_t next = now_ns();
    for (uint32_t i = 0; i < n; i++) {
        next += gap;
        struct timespec t = {(time_t)(next / 1000000000u), (long)(next % 1000000000u)};
        while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &t, NULL)) {
        }
        p->sent[i] = now_ns();
        atomic_store_explicit(&p->word, i + 1, memory_order_release); /* pairs with sleep_through's acquire */
        syscall(SYS_futex, &p->word, FUTEX_WAKE, 1, NULL, NULL, 0);
    }
}

static void sleep_through(struct parked *p, uint32_t n)
{
    for (uint32_t seen = 0; seen < n;) {
        syscall(SYS_futex, &p->word, FUTEX_WAIT, seen, NULL, NULL, 0);
        uint64_t at = now_ns();
        uint32_t word = atomic_load_explicit(&p->word, memory_order_acquire); /* pairs with wake's release */
        /* More than one when this process was kept off its cpu: all of them count, as they would in a
         * queue. The last may have been published after the clock was read. */
        for (; seen < word; seen++)
            p->latency[seen] = (at >= p->sent[seen] ? at : now_ns()) - p->sent[seen];
    }
}

/* ---- arguments ---- */

static const char *given(int argc, char **argv, const char *name)
{
    size_t n = strlen(name);
    for (int i = 2; i < argc; i++)
        if (!strncmp(argv[i], name, n) && argv[i][n] == '=')
            return argv[i] + n + 1;
    return NULL;
}

static uint64_t number(int argc, char **argv, const char *name, uint64_t otherwise)
{
    const char *text = given(argc, argv, name);
    return text ? strtoull(text, NULL, 10) : otherwise;
}

static bool power_of_two(uint64_t n) { return n && !(n & (n - 1)); }

int main(int argc, char **argv)
{
    const char *what = argc > 1 ? argv[1] : "";
    int pairs = (int)number(argc, argv, "pairs", 1), cpus[2 * MAX_PAIRS];
    if (pairs < 1 || pairs > MAX_PAIRS)
        return fprintf(stderr, "pairs: 1 to %d\n", MAX_PAIRS), 2;
    const char *list = given(argc, argv, "cpus");
    for (int i = 0; i < 2 * pairs; i++) {
        cpus[i] = list && *list ? (int)strtol(list, (char **)&list, 10) : -1;
        if (list && *list == ',')
            list++;
    }
    spin_limit = cpus[0] >= 0 ? 2000 : 0;
    _Atomic uint32_t *arrived = shared(4096);

    if (!strcmp(what, "wake")) {
        uint32_t count = (uint32_t)number(argc, argv, "count", 3000) + WARM_WAKES;
        uint64_t gap = 1000000000u / number(argc, argv, "rate", 1000);
        struct parked *parked = shared(sizeof *parked * (size_t)pairs);
        for (int i = 0; i < 2 * pairs; i++) {
            struct parked *p = &parked[i % pairs];
            if (i < pairs)
                p->sent = shared(count * sizeof(uint64_t)), p->latency = shared(count * sizeof(uint64_t));
            if (fork())
                continue;
            pin(cpus[i]);
            meet(arrived, 2u * (uint32_t)pairs);
            if (i < pairs)
                wake(p, count, gap);
            else
                sleep_through(p, count);
            _exit(0);
        }
        reap(2 * pairs);
        printf("{\"latencies\": [");
        for (int i = 0, first = 1; i < pairs; i++)
            for (uint32_t k = WARM_WAKES; k < count; k++, first = 0)
                printf("%s%llu", first ? "" : ", ", (unsigned long long)parked[i].latency[k]);
        printf("]}\n");
        return 0;
    }
    if (strcmp(what, "ring"))
        return fprintf(stderr, "floor ring|wake name=value ...\n"), 2;

    size_t frame = number(argc, argv, "frame", 64), bytes = number(argc, argv, "ring", 1 << 20);
    const char *touch = given(argc, argv, "touch");
    struct job job = {.capacity = bytes / frame,
                      .publish = number(argc, argv, "publish", 256),
                      .events = number(argc, argv, "events", 1 << 20),
                      .pool = number(argc, argv, "pool", 4096),
                      .all = touch && !strcmp(touch, "all")};
    if (frame != 64 && frame != 1024)
        return fprintf(stderr, "frame: 64 or 1024\n"), 2;
    if (!power_of_two(job.capacity) || !power_of_two(job.pool))
        return fprintf(stderr, "ring and pool: powers of two\n"), 2;
    if (!job.publish || job.publish > job.capacity / 2)
        return fprintf(stderr, "publish: 1 to half the ring (%llu frames)\n", (unsigned long long)job.capacity / 2), 2;
    job.warm = 4 * job.capacity;

    /* The same pool as the Python contenders have: 4096 different events, so that the source is as warm
     * or as cold for everybody (256 KiB of 64 bytes, 4 MiB of 1024). */
    unsigned char *source = shared(job.pool * frame);
    uint64_t x = 88172645463325252u;
    for (uint64_t i = 0; i < job.pool * frame / 8; i++) {
        x ^= x << 13, x ^= x >> 7, x ^= x << 17;
        ((uint64_t *)(void *)source)[i] = x;
    }
    job.source = source;
    uint64_t lap = 0, expected = 0;
    for (uint64_t i = 0; i < job.pool; i++)
        for (size_t k = 0; k < (job.all ? frame / 8 : 1); k++)
            lap += ((uint64_t *)(void *)source)[i * frame / 8 + k];
    expected = lap * (job.events / job.pool);
    for (uint64_t i = 0; i < job.events % job.pool; i++)
        for (size_t k = 0; k < (job.all ? frame / 8 : 1); k++)
            expected += ((uint64_t *)(void *)source)[i * frame / 8 + k];

    struct ring *rings = shared(sizeof *rings * (size_t)pairs);
    for (int i = 0; i < 2 * pairs; i++) {
        struct ring *r = &rings[i % pairs];
        if (i < pairs)
            r->slots = shared(bytes);
        if (fork())
            continue;
        pin(cpus[i]);
        if (i < pairs) {
            run_producer(r, &job, job.warm, frame);
            meet(arrived, 2u * (uint32_t)pairs);
            r->start = now_ns();
            run_producer(r, &job, job.events, frame);
        } else {
            run_consumer(r, &job, job.warm, frame);
            meet(arrived, 2u * (uint32_t)pairs);
            r->sum = run_consumer(r, &job, job.events, frame);
            r->end = now_ns();
        }
        _exit(0);
    }
    reap(2 * pairs);
    uint64_t start = UINT64_MAX, end = 0;
    bool right = true;
    for (int i = 0; i < pairs; i++) {
        if (rings[i].start < start)
            start = rings[i].start;
        if (rings[i].end > end)
            end = rings[i].end;
        right = right && rings[i].sum == expected;
    }
    printf("{\"events\": %llu, \"ns\": %llu, \"right\": %s}\n", (unsigned long long)(job.events * (uint64_t)pairs),
           (unsigned long long)(end - start), right ? "true" : "false");
    return 0;
}
