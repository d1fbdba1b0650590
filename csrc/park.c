/* role: exception
 * Sleeping and waking, in both directions. Each is a Dekker handshake: one side stores its position and then
 * looks at the other's flag, the other raises its flag and then looks at the position. All four accesses are
 * seq_cst, so at least one of the two sees the other (C11 7.17.3); a standalone fence would do as well, but
 * ThreadSanitizer does not see fences. Waits are bounded by the caller, so that signals reach Python.
 */
#include "internal.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/futex.h>
#include <sched.h>
#include <stdio.h>
#include <sys/syscall.h>
#include <unistd.h>

/* shared futexes, never FUTEX_PRIVATE: the waiter is another process */
int sm_futex_wait(_Atomic uint32_t *word, uint32_t seen, int64_t timeout_ns)
{
    struct timespec t = {timeout_ns / 1000000000, timeout_ns % 1000000000};
    if (syscall(SYS_futex, word, FUTEX_WAIT, seen, &t, NULL, 0) == 0 || errno == EAGAIN)
        return SM_OK;
    return errno == EINTR ? SM_INTERRUPTED : SM_TIMEOUT;
}

void sm_futex_wake(_Atomic uint32_t *word, int count) { syscall(SYS_futex, word, FUTEX_WAKE, count, NULL, NULL, 0); }

/* P1: the caller stored a tail (seq_cst) before. Pairs with W1 in sm_next: sleeping up, then tails read.
 * The exchange lets one producer of many make the call: a wake across cores costs its caller 15 us. */
void sm_ring(sm_inbox *inbox)
{
    if (likely(atomic_load_explicit(&inbox->sleeping, memory_order_seq_cst) == 0))
        return;
    if (atomic_exchange_explicit(&inbox->sleeping, 0, memory_order_seq_cst) == 0)
        return;
    SM_POINT(RING_TAKEN);
    atomic_fetch_add_explicit(&inbox->doorbell, 1, memory_order_seq_cst);
    sm_futex_wake(&inbox->doorbell, 1);
}

/* R1: the caller stored the head (seq_cst) before. Pairs with S1 in want_head. A worker that is killed between that store and
 * the wake owes a ring that nothing in memory tells of: its successor rings every lane that it opens (sm_wake_waiters). */
void sm_room(sm_lane *lane, uint64_t head)
{
    uint64_t target = atomic_load_explicit(&lane->waiting, memory_order_seq_cst);
    if (likely(target == 0) || head < target)
        return;
    if (atomic_exchange_explicit(&lane->waiting, 0, memory_order_seq_cst) == 0)
        return;
    SM_POINT(ROOM_TAKEN);
    sm_wake_waiters(lane);
}

void sm_wake_waiters(sm_lane *lane)
{
    atomic_fetch_add_explicit(&lane->space_bell, 1, memory_order_seq_cst);
    sm_futex_wake(&lane->space_bell, INT32_MAX); /* threads of one producer may wait side by side */
}

static uint64_t head_of(sm_lane *lane) { return sm_position(atomic_load_explicit(&lane->head, memory_order_seq_cst)); }

/* The fourth field of /proc/loadavg is "runnable/all". Read at most every 50 ms: it costs some microseconds. */
static int crowded(void)
{
    char text[96];
    unsigned runnable = 0;
    cpu_set_t cpus;
    int file = open("/proc/loadavg", O_RDONLY | O_CLOEXEC);
    ssize_t n = file < 0 ? -1 : read(file, text, sizeof text - 1);
    if (file >= 0)
        close(file);
    if (n <= 0 || sched_getaffinity(0, sizeof cpus, &cpus) != 0)
        return 1; /* unknown: do not burn what may be somebody else's */
    text[n] = 0;
    return sscanf(text, "%*s %*s %*s %u/", &runnable) != 1 || runnable > (unsigned)CPU_COUNT(&cpus);
}

int64_t sm_spin_begin(sm_spin *spin, int64_t limit_ns, int64_t now_ns)
{
    if (spin->budget_ns <= 0 || limit_ns <= 0)
        return 0;
    if (now_ns - spin->checked_ns > 50000000) {
        spin->checked_ns = now_ns;
        spin->crowded = crowded();
    }
    if (spin->crowded)
        return 0;
    return spin->budget_ns < limit_ns ? spin->budget_ns : limit_ns;
}

void sm_spin_paid(sm_spin *spin, int64_t limit_ns)
{
    spin->budget_ns = spin->budget_ns * 2 < limit_ns ? spin->budget_ns * 2 : limit_ns;
}

/* Spinning did not pay if the sleep was longer than the most that may be spun. If it was shorter, it would have. */
void sm_spin_slept(sm_spin *spin, int64_t limit_ns, int64_t slept_ns)
{
    if (slept_ns > limit_ns)
        spin->budget_ns /= 2;
    else if (spin->budget_ns < limit_ns)
        spin->budget_ns += limit_ns / 4 + 1;
}

/*
 * S1: the target up, then the caller reads the head. Threads of one producer wait side by side and the word holds one
 * target, so the smallest stays: who waits for more is woken too early and comes here again. A thread that finds its own
 * target reached leaves the word as it is, for it may be another's by now; the worker takes it down, at the price of one
 * ring that nobody hears.
 */
static void want_head(sm_lane *lane, uint64_t target)
{
    uint64_t wanted = atomic_load_explicit(&lane->waiting, memory_order_seq_cst);
    while ((!wanted || wanted > target) &&
           !atomic_compare_exchange_strong_explicit(&lane->waiting, &wanted, target, memory_order_seq_cst,
                                                    memory_order_seq_cst))
        ;
}

int sm_wait_head(sm_lane *lane, uint64_t near, uint64_t target, sm_spin *spin, int64_t spin_ns, int64_t timeout_ns)
{
    if (head_of(lane) >= target)
        return SM_OK;
    int64_t start = sm_clock(), until = start + sm_spin_begin(spin, spin_ns, start);
    while (until > start && sm_clock() < until)
        for (int i = 0; i < 32; i++) {
            sm_pause();
            if (head_of(lane) >= near) {
                sm_spin_paid(spin, spin_ns);
                return SM_OK;
            }
        }
    int64_t asleep = sm_clock(), now = asleep;
    int status = SM_OK;
    while (status == SM_OK && (now == asleep || now - asleep < timeout_ns)) {
        uint32_t bell =
            atomic_load_explicit(&lane->space_bell, memory_order_seq_cst); /* before the head is looked at */
        want_head(lane, target);
        if (head_of(lane) >= target)
            break;
        SM_POINT(SEND_WAITING);
        status = sm_futex_wait(&lane->space_bell, bell, timeout_ns - (now - asleep));
        now = sm_clock();
    }
    if (now > asleep)
        sm_spin_slept(spin, spin_ns, now - asleep);
    if (head_of(lane) >= target)
        return SM_OK;
    return status == SM_OK ? SM_TIMEOUT : status;
}
