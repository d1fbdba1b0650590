/* role: supervisor */
#include <string.h>

#include "internal.h"

static void put_header(sm_control *c, const sm_geometry *geometry)
{
    c->magic = SM_MAGIC_CONTROL;
    c->header_bytes = sizeof(sm_control);
    c->geometry = *geometry;
    c->geometry_check = sm_hash_bytes(geometry, sizeof *geometry);
    /* V1: everything above before the version. Pairs with V2 in sm_control_read. */
    atomic_store_explicit(&c->version, SM_LAYOUT_VERSION, memory_order_release);
}

/* The memory is fresh, so every word that is not named here is zero, and zero means "nothing yet". */
int sm_control_format(void *control, const sm_geometry *geometry)
{
    sm_control *c = control;
    for (uint32_t s = 0; s < geometry->slots; s++)
        atomic_store_explicit(&sm_slot_at(c, s)->slot_word, SM_SLOT_WORD(SM_NO_SHARD, 0), memory_order_relaxed);
    put_header(c, geometry);
    return SM_OK;
}

int sm_control_mend(void *control, const sm_geometry *geometry)
{
    sm_geometry found;
    uint32_t version;
    if (sm_control_read(control, geometry->control_bytes, &found, &version) == SM_OK &&
        memcmp(&found, geometry, sizeof found) == 0)
        return 0;
    put_header(control, geometry);
    return 1;
}

int sm_inbox_format(void *inbox, const sm_geometry *geometry, uint32_t shard, uint64_t generation)
{
    sm_inbox *b = inbox;
    b->magic = SM_MAGIC_INBOX;
    b->shard = shard;
    b->engine_id = geometry->engine_id;
    b->generation = generation;
    b->lane_bytes = geometry->lane_bytes;
    b->max_producers = geometry->max_producers;
    b->check = sm_inbox_sum(b);
    /* V1 again. Pairs with V2 in sm_inbox_check. */
    atomic_store_explicit(&b->inbox_version, SM_LAYOUT_VERSION, memory_order_release);
    return SM_OK;
}

int sm_inbox_mend(void *inbox, const sm_geometry *geometry, uint32_t shard, uint64_t generation)
{
    if (sm_inbox_check(inbox, geometry->inbox_bytes, geometry, shard, generation) == SM_OK)
        return 0;
    sm_inbox_format(inbox, geometry, shard, generation);
    return 1;
}

void sm_supervisor_enter(void *control, int64_t pid, uint64_t now_ns)
{
    sm_control *c = control;
    uint64_t lives = atomic_load_explicit(&c->supervisor_incarnation, memory_order_relaxed);
    atomic_store_explicit(&c->supervisor_pid, pid, memory_order_relaxed);
    atomic_store_explicit(&c->supervisor_started_ns, now_ns, memory_order_relaxed);
    atomic_store_explicit(&c->supervisor_heartbeat_ns, now_ns, memory_order_relaxed);
    atomic_store_explicit(&c->supervisor_incarnation, lives + 1, memory_order_release);
}

void sm_supervisor_beat(void *control, uint64_t now_ns)
{
    atomic_store_explicit(&((sm_control *)control)->supervisor_heartbeat_ns, now_ns, memory_order_relaxed);
}

/* E1: seq_cst, because producers read it between their odd and even marks (E2 in enter_send), and the
 * supervisor reads the marks after it: either the producer sees the new state, or the supervisor sees the odd
 * mark and waits for it. */
void sm_set_engine_state(void *control, uint32_t state)
{
    atomic_store_explicit(&((sm_control *)control)->engine_state, state, memory_order_seq_cst);
}

static int has_shard(const void *control, uint32_t shard)
{
    return shard < ((const sm_control *)control)->geometry.max_shards;
}

static void topology_changed(sm_control *c)
{
    uint64_t n = atomic_load_explicit(&c->topology, memory_order_relaxed);
    /* T1: after the state or weight that changed. Pairs with T2 in refresh_active. */
    atomic_store_explicit(&c->topology, n + 1, memory_order_seq_cst);
}

void sm_set_shard_state(void *control, uint32_t shard, uint32_t state)
{
    if (!has_shard(control, shard))
        return;
    atomic_store_explicit(&sm_shard_at(control, shard)->shard_state, state, memory_order_seq_cst);
    topology_changed(control);
}

void sm_set_shard_generation(void *control, uint32_t shard, uint64_t generation)
{
    if (!has_shard(control, shard))
        return;
    /* G1: the inbox segment exists and is formatted. Pairs with G2 in linked. */
    atomic_store_explicit(&sm_shard_at(control, shard)->shard_generation, generation, memory_order_release);
}

void sm_set_shard_weight(void *control, uint32_t shard, uint32_t weight)
{
    if (!has_shard(control, shard))
        return;
    atomic_store_explicit(&sm_shard_at(control, shard)->shard_weight, weight, memory_order_relaxed);
    topology_changed(control);
}

/* H1: seq_cst, the other half of the mark: see M1 in enter_send. */
void sm_set_slot(void *control, uint32_t slot, uint32_t shard)
{
    if (slot >= ((sm_control *)control)->geometry.slots || !has_shard(control, shard))
        return;
    _Atomic uint64_t *word = &sm_slot_at(control, slot)->slot_word;
    uint32_t epoch = SM_SLOT_EPOCH(atomic_load_explicit(word, memory_order_relaxed)) + 1;
    atomic_store_explicit(word, SM_SLOT_WORD(shard, epoch), memory_order_seq_cst);
}

/*
 * The order of these three stores is the handoff's first half. The table's entry, so that a supervisor that takes over
 * finds it; the hold, so that the target keeps rows of the slot back; then the slot word, after which producers send
 * them there. A target that sees such a row has seen the tail that was stored after the word was read, so it sees the
 * hold (K1 pairs with K2 in is_held). The word before the hold would let it handle rows that the source still has
 * elders of.
 */
uint64_t sm_move_begin(void *control, uint32_t slot, uint32_t source, uint32_t target, uint64_t deadline_ns)
{
    if (slot >= ((sm_control *)control)->geometry.slots || !has_shard(control, target))
        return 0;
    sm_move *m = sm_move_at(control, slot);
    uint64_t number = atomic_load_explicit(&m->move_number, memory_order_relaxed) + 1;
    /* N1: release, so that who reads this number sees that the hold of the last handoff has fallen. Pairs with N2 */
    atomic_store_explicit(&m->move_number, number, memory_order_release);
    atomic_store_explicit(&m->move_since_ns, (uint64_t)sm_clock(), memory_order_relaxed);
    atomic_store_explicit(&m->move_deadline_ns, deadline_ns, memory_order_relaxed);
    atomic_store_explicit(&sm_hold_at(control, slot)->hold_word, SM_HOLD_WORD(SM_MOVE_REROUTING, source, target),
                          memory_order_seq_cst); /* K1 */
    sm_set_slot(control, slot, target);
    return number;
}

void sm_move_phase(void *control, uint32_t slot, uint32_t phase, uint64_t deadline_ns)
{
    if (slot >= ((sm_control *)control)->geometry.slots)
        return;
    sm_move *m = sm_move_at(control, slot);
    _Atomic uint64_t *word = &sm_hold_at(control, slot)->hold_word;
    uint64_t now = atomic_load_explicit(word, memory_order_relaxed);
    atomic_store_explicit(&m->move_since_ns, (uint64_t)sm_clock(), memory_order_relaxed);
    atomic_store_explicit(&m->move_deadline_ns, deadline_ns, memory_order_relaxed);
    atomic_store_explicit(&sm_hold_at(control, slot)->hold_word,
                          SM_HOLD_WORD(phase, SM_HOLD_SOURCE(now), SM_HOLD_TARGET(now)), memory_order_seq_cst);
}

void sm_set_holds(void *control, uint32_t shard, uint32_t holds)
{
    if (has_shard(control, shard))
        atomic_store_explicit(&sm_shard_at(control, shard)->shard_holds, holds, memory_order_seq_cst);
}

/* D1: after the words that the orders are about, before the ring. Pairs with D2 in sm_orders and D3 in called. */
void sm_give_orders(void *control, uint32_t shard, void *inbox)
{
    if (!has_shard(control, shard))
        return;
    _Atomic uint32_t *word = &sm_shard_at(control, shard)->shard_orders;
    uint32_t n = atomic_load_explicit(word, memory_order_relaxed);
    atomic_store_explicit(&sm_shard_at(control, shard)->shard_orders, n + 1, memory_order_seq_cst);
    if (inbox)
        sm_wake(inbox);
}

/*
 * Counts of inboxes that are gone. One word says which is the last of them and which copy holds their sums: its store ends
 * the one way of counting an inbox (by its lanes) and begins the other. Whenever this process is killed, the copy in force
 * is whole, and a successor that comes again with the same generation counts it once. Not the generation's own parity: a
 * generation may be skipped, and then the copy in force would be the one that is written.
 */
void sm_retire(void *control, uint32_t shard, uint64_t generation, uint64_t accepted, uint64_t handled,
               uint64_t quarantined, uint64_t shed, uint64_t skipped, uint64_t lost)
{
    if (!has_shard(control, shard))
        return;
    sm_shard *s = sm_shard_at(control, shard);
    uint64_t last = atomic_load_explicit(&s->retired_word, memory_order_relaxed);
    uint32_t from = last & 1, to = from ^ 1;
    if (generation <= last >> 1)
        return;
    accepted += atomic_load_explicit(&s->retired_accepted[from], memory_order_relaxed);
    handled += atomic_load_explicit(&s->retired_handled[from], memory_order_relaxed);
    quarantined += atomic_load_explicit(&s->retired_quarantined[from], memory_order_relaxed);
    shed += atomic_load_explicit(&s->retired_shed[from], memory_order_relaxed);
    skipped += atomic_load_explicit(&s->retired_skipped[from], memory_order_relaxed);
    lost += atomic_load_explicit(&s->retired_lost[from], memory_order_relaxed);
    /* C1: release, so that an observer who sees one of these also sees the word that made the other copy current, and
     * notices on its second look. Pairs with C2 in sm_view_shard. */
    atomic_store_explicit(&s->retired_accepted[to], accepted, memory_order_release);
    atomic_store_explicit(&s->retired_handled[to], handled, memory_order_release);
    atomic_store_explicit(&s->retired_quarantined[to], quarantined, memory_order_release);
    atomic_store_explicit(&s->retired_shed[to], shed, memory_order_release);
    atomic_store_explicit(&s->retired_skipped[to], skipped, memory_order_release);
    atomic_store_explicit(&s->retired_lost[to], lost, memory_order_release);
    SM_POINT(RETIRE_COUNTED);
    atomic_store_explicit(&s->retired_word, generation << 1 | to, memory_order_seq_cst);
}

void sm_mend_slot(void *control, uint32_t slot, uint32_t shard)
{
    if (slot >= ((sm_control *)control)->geometry.slots)
        return;
    _Atomic uint64_t *word = &sm_slot_at(control, slot)->slot_word;
    uint32_t epoch = SM_SLOT_EPOCH(atomic_load_explicit(word, memory_order_relaxed)) + 1;
    atomic_store_explicit(word, SM_SLOT_WORD(shard & 0xffff, epoch), memory_order_seq_cst); /* H1 */
}

void sm_mend_hold(void *control, uint32_t slot, uint32_t phase, uint32_t source, uint32_t target)
{
    if (slot < ((sm_control *)control)->geometry.slots)
        atomic_store_explicit(&sm_hold_at(control, slot)->hold_word, SM_HOLD_WORD(phase, source, target),
                              memory_order_seq_cst);
}

void sm_forget_retired(void *control, uint32_t shard, uint64_t generation)
{
    if (!has_shard(control, shard))
        return;
    _Atomic uint64_t *word = &sm_shard_at(control, shard)->retired_word;
    uint64_t copy = atomic_load_explicit(word, memory_order_relaxed) & 1;
    atomic_store_explicit(word, generation << 1 | copy, memory_order_seq_cst);
}

/* B1: release, the copy that is not in force; then the count that makes it so. Pairs with B2 in read_text. */
void sm_post(void *control, uint32_t board, const char *text, uint32_t bytes)
{
    if (board >= SM_BOARDS)
        return;
    sm_board *b = sm_board_at(control, board);
    uint64_t count = atomic_load_explicit(&b->board_count, memory_order_relaxed) + 1;
    bytes = bytes < SM_BOARD_BYTES ? bytes : SM_BOARD_BYTES;
    for (uint32_t i = 0; i < bytes; i += 8)
        atomic_store_explicit(&b->board_text[(count & 1) * (SM_BOARD_BYTES / 8) + i / 8], sm_text_word(text, bytes, i),
                              memory_order_release);
    atomic_store_explicit(&b->board_bytes[count & 1], bytes, memory_order_release);
    atomic_store_explicit(&b->board_count, count, memory_order_seq_cst);
}

/* X1: release, as B1. Pairs with B2 in read_text. */
void sm_shard_note(void *control, uint32_t shard, const char *text, uint32_t bytes)
{
    if (!has_shard(control, shard))
        return;
    sm_shard *s = sm_shard_at(control, shard);
    uint64_t count = atomic_load_explicit(&s->note_count, memory_order_relaxed) + 1;
    bytes = bytes < SM_NOTE_BYTES ? bytes : SM_NOTE_BYTES;
    for (uint32_t i = 0; i < bytes; i += 8)
        atomic_store_explicit(&s->note_text[(count & 1) * (SM_NOTE_BYTES / 8) + i / 8], sm_text_word(text, bytes, i),
                              memory_order_release);
    atomic_store_explicit(&s->note_bytes[count & 1], bytes, memory_order_release);
    atomic_store_explicit(&s->note_ns[count & 1], (uint64_t)sm_clock(), memory_order_release);
    atomic_store_explicit(&s->note_count, count, memory_order_seq_cst);
}

/* M2: pairs with M1 and M3 in send.c. seq_cst after the word that was changed. */
int sm_marks(const void *control, uint64_t *marks, uint32_t n)
{
    for (uint32_t i = 0; i < n; i++)
        marks[i] = atomic_load_explicit(&sm_seat_at(control, i)->mark, memory_order_seq_cst);
    return SM_OK;
}

/* Wakes the worker whatever its flag says: something changed that is not in a lane, or a ring may have been lost. */
void sm_wake(void *inbox)
{
    sm_inbox *b = inbox;
    atomic_fetch_add_explicit(&b->doorbell, 1, memory_order_seq_cst);
    sm_futex_wake(&b->doorbell, 1);
}
