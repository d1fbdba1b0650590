/* role: worker
 * What a worker says of itself in its shard's words, what it is told there, and its side of a handoff.
 */
#include "reader.h"

#include <stdlib.h>
#include <string.h>

/* ---- what the worker says about itself -------------------------------------------------------------------------- */

int sm_worker_enter(void *control, uint32_t shard, int64_t pid, uint64_t now_ns)
{
    sm_shard *s = sm_shard_at(control, shard);
    uint64_t lives = atomic_load_explicit(&s->worker_incarnation, memory_order_relaxed);
    if (lives >=
        UINT32_MAX) /* damaged. It rises all the same, and no count of lives comes near the seconds since 1970 */
        lives = (uint64_t)time(NULL);
    atomic_store_explicit(&s->worker_pid, pid, memory_order_relaxed);
    atomic_store_explicit(&s->worker_entered_ns, now_ns, memory_order_relaxed);
    atomic_store_explicit(&s->worker_heartbeat_ns, now_ns, memory_order_relaxed);
    atomic_store_explicit(&s->worker_batch_since_ns, 0, memory_order_relaxed);
    sm_worker_error(control, shard, "", 0);
    atomic_store_explicit(&s->worker_incarnation, lives + 1, memory_order_relaxed);
    atomic_store_explicit(&s->worker_phase, SM_PHASE_BOOTING, memory_order_release);
    return SM_OK;
}

void sm_worker_phase(void *control, uint32_t shard, uint32_t phase)
{
    atomic_store_explicit(&sm_shard_at(control, shard)->worker_phase, phase, memory_order_release);
}

/* X1: release, the copy that is not in force; then the count that makes it so. Pairs with B2 in read_text. */
void sm_worker_error(void *control, uint32_t shard, const char *text, uint32_t bytes)
{
    sm_shard *s = sm_shard_at(control, shard);
    uint64_t count = atomic_load_explicit(&s->error_count, memory_order_relaxed) + 1;
    bytes = bytes < SM_ERROR_BYTES ? bytes : SM_ERROR_BYTES;
    for (uint32_t i = 0; i < bytes; i += 8)
        atomic_store_explicit(&s->error_text[(count & 1) * (SM_ERROR_BYTES / 8) + i / 8], sm_text_word(text, bytes, i),
                              memory_order_release);
    atomic_store_explicit(&s->error_bytes[count & 1], bytes, memory_order_release);
    atomic_store_explicit(&s->error_ns[count & 1], (uint64_t)sm_clock(), memory_order_release);
    atomic_store_explicit(&s->error_count, count, memory_order_seq_cst);
}

void sm_worker_beat(void *control, uint32_t shard)
{
    atomic_store_explicit(&sm_shard_at(control, shard)->worker_heartbeat_ns, (uint64_t)sm_clock(),
                          memory_order_relaxed);
}

/* W2: release, the kind comes last: who sees it sees of what it is. Pairs with B4 in sm_view_shard. */
void sm_worker_waits(void *control, uint32_t shard, uint32_t kind, uint32_t tries, uint64_t since_ns, uint64_t until_ns)
{
    sm_shard *s = sm_shard_at(control, shard);
    atomic_store_explicit(&s->waiting_tries, tries, memory_order_relaxed);
    atomic_store_explicit(&s->waiting_since_ns, since_ns, memory_order_relaxed);
    atomic_store_explicit(&s->waiting_until_ns, until_ns, memory_order_relaxed);
    atomic_store_explicit(&s->waiting_kind, kind, memory_order_release);
}

/* K1: release, when it ended comes last: who sees it sees of which one it is. Pairs with K2 in sm_view_shard. */
void sm_worker_checkpointed(void *control, uint32_t shard, uint64_t took_ns)
{
    sm_shard *s = sm_shard_at(control, shard);
    uint64_t count = atomic_load_explicit(&s->worker_checkpoints, memory_order_relaxed),
             sum = atomic_load_explicit(&s->worker_checkpoint_ns, memory_order_relaxed);
    atomic_store_explicit(&s->worker_checkpoints, count + 1, memory_order_relaxed);
    atomic_store_explicit(&s->worker_checkpoint_ns, sum + took_ns, memory_order_relaxed);
    atomic_store_explicit(&s->worker_checkpoint_last_ns, took_ns, memory_order_relaxed);
    atomic_store_explicit(&s->worker_checkpoint_at_ns, (uint64_t)sm_clock(), memory_order_release);
}

void sm_worker_stateful(void *control, uint32_t shard, uint32_t stateful)
{
    atomic_store_explicit(&sm_shard_at(control, shard)->worker_stateful, stateful, memory_order_relaxed);
}

uint32_t sm_worker_orders(const void *control, uint32_t shard)
{
    return atomic_load_explicit(&((const sm_control *)control)->engine_state, memory_order_acquire) |
           atomic_load_explicit(&sm_shard_at(control, shard)->shard_state, memory_order_acquire) << 8;
}

/* ---- handoff ---------------------------------------------------------------------------------------------------- */

/* sm_next does not sleep while there are others than these. */
uint32_t sm_orders(sm_reader *r)
{
    r->orders = atomic_load_explicit(&r->shard->shard_orders, memory_order_seq_cst); /* D2: pairs with D1 */
    return r->orders;
}

static int concerns(uint64_t word, uint32_t shard, uint32_t phase)
{
    uint32_t mine = phase == SM_MOVE_DRAINING ? SM_HOLD_SOURCE(word) : SM_HOLD_TARGET(word);
    return SM_HOLD_PHASE(word) == phase && mine == shard;
}

/*
 * A worker looks whenever it has orders, also while a handoff that it has acknowledged ends and the next one of that slot
 * begins. The hold of the one with the number of the other would make it acknowledge a handoff of which it is not the
 * source (found with Spin: FAULT_NUMBER_AFTER_HOLD in tests/model/handoff.pml). So the number is read before the hold and
 * after it; where another handoff has begun in between, its orders are still to come.
 */
uint32_t sm_moves_at(const void *control, const sm_geometry *g, uint32_t shard, uint32_t phase, uint32_t *slots,
                     uint64_t *numbers, uint32_t limit)
{
    uint32_t n = 0;
    for (uint32_t s = 0; s < g->slots && n < limit; s++) {
        const sm_move *m = sm_move_at(control, s);
        const sm_hold *hold = sm_hold_at(control, s);
        if (likely(!concerns(atomic_load_explicit(&hold->hold_word, memory_order_seq_cst), shard, phase)))
            continue;
        uint64_t number = atomic_load_explicit(&m->move_number, memory_order_acquire); /* N2: pairs with N1 */
        uint64_t word = atomic_load_explicit(&hold->hold_word, memory_order_seq_cst);
        if (!concerns(word, shard, phase) || number != atomic_load_explicit(&m->move_number, memory_order_acquire))
            continue;
        numbers[n] = number;
        slots[n++] = s;
    }
    return n;
}

/*
 * Which of the slots still have rows here that are not done. Once the marks have settled no further row of them can come,
 * so a slot without rows is drained for good. Looks at rows, not at heads: with two shards giving slots to each other,
 * each head waits behind rows that the other's hold keeps back.
 */
int sm_undone(sm_reader *r, const uint32_t *slots, uint32_t n, uint8_t *present)
{
    int left = 0;
    sm_frame f;
    memset(present, 1, n);
    uint32_t all = r->keying.slots;
    uint32_t *where = calloc(all, sizeof *where); /* slot -> its place in the list, from 1 */
    if (!where)
        return SM_TIMEOUT; /* nothing was looked at, so nothing may be taken for drained */
    memset(present, 0, n);
    sm_load_forget(r->load);
    for (uint32_t i = 0; i < n; i++)
        where[slots[i]] = i + 1;
    sm_find_open_lanes(r);
    for (uint32_t i = 0; i < r->open_count; i++) {
        sm_end *e = &r->ends[r->open[i]];
        if (e->broken || sm_refresh_tail(r, e) != SM_OK)
            continue;
        for (uint64_t at = e->head; at < e->tail; at += f.length) {
            if (sm_read_frame(r, e, at, &f) != SM_OK)
                break;
            if (f.kind == SM_FRAME_PAD)
                continue;
            const sm_frame *shared = sm_frame_at(r, e, at);
            for (uint32_t row = sm_next_row(shared, f.rows, 0, 0); row < f.rows;) {
                uint32_t count = sm_next_row(shared, f.rows, row, 1) - row;
                sm_slots_in_frame(r, &f, shared, row, count);
                for (uint32_t k = 0; k < count; k++)
                    if (r->slots[k] != SM_NO_SLOT && where[r->slots[k]] && !present[where[r->slots[k]] - 1] &&
                        !(r->ranges && sm_is_taken(r, r->open[i], at, row + k))) {
                        present[where[r->slots[k]] - 1] = 1;
                        left++;
                    }
                row = sm_next_row(shared, f.rows, row + count, 0);
            }
        }
    }
    free(where);
    return left;
}

/* Y1: after the last row was handled and the state handed over. Pairs with the acquire in sm_view_move. */
void sm_move_drained(void *control, uint32_t slot, uint64_t number)
{
    atomic_store_explicit(&sm_move_at(control, slot)->drained_number, number, memory_order_release);
}

void sm_move_restored(void *control, uint32_t slot, uint64_t number)
{
    atomic_store_explicit(&sm_move_at(control, slot)->restored_number, number, memory_order_release);
}
