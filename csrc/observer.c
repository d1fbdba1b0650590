/* role: none
 * Reading only: the views behind `status`. Nothing here needs the supervisor to be alive.
 */
#include <string.h>

#include "internal.h"

#define GET(word) atomic_load_explicit(&(word), memory_order_acquire)

void sm_view_engine(const void *control, sm_engine_view *out)
{
    const sm_control *c = control;
    out->incarnation = GET(c->supervisor_incarnation);
    out->heartbeat_ns = GET(c->supervisor_heartbeat_ns);
    out->started_ns = GET(c->supervisor_started_ns);
    out->topology = GET(c->topology);
    out->pid = GET(c->supervisor_pid);
    out->state = GET(c->engine_state);
}

void sm_view_seat(const void *control, uint32_t seat, sm_seat_view *out)
{
    const sm_seat *s = sm_seat_at(control, seat);
    out->mark = GET(s->mark);
    out->incarnation = GET(s->seat_incarnation);
    out->entered_ns = GET(s->seat_entered_ns);
    out->sequence = GET(s->next_sequence);
    out->blocked_ns = GET(s->seat_blocked_ns);
    out->blocked_count = GET(s->seat_blocked_count);
    out->pid = GET(s->seat_pid);
    out->name = GET(s->seat_name);
    for (int i = 0; i < SM_CLIENT_BYTES / 8; i++) {
        uint64_t word = GET(s->seat_client[i]);
        memcpy(out->client + 8 * i, &word, 8);
    }
    for (int i = 0; i < SM_REASONS; i++)
        out->refused[i] = GET(s->seat_refused[i]);
}

/* B2: the copy in force, and when it was written (0: never). Pairs with B1 and X1: a word of a copy in the making was
 * stored after the count that made the other one current, so the second look finds that count. */
static uint32_t read_text(const _Atomic uint64_t *count, const _Atomic uint64_t *ns, const _Atomic uint32_t *bytes,
                          const _Atomic uint64_t *text, uint32_t most, char *out, uint64_t *when)
{
    uint64_t n;
    uint32_t used;
    do {
        n = GET(*count);
        used = n ? GET(bytes[n & 1]) : 0;
        used = used <= most ? used : 0;
        *when = n && ns ? GET(ns[n & 1]) : 0;
        for (uint32_t i = 0; i < used; i += 8) {
            uint64_t word = GET(text[(n & 1) * (most / 8) + i / 8]);
            memcpy(out + i, &word, used - i < 8 ? used - i : 8);
        }
    } while (GET(*count) != n);
    return used;
}

void sm_view_shard(const void *control, uint32_t shard, sm_shard_view *out)
{
    const sm_shard *s = sm_shard_at(control, shard);
    out->generation = GET(s->shard_generation);
    out->incarnation = GET(s->worker_incarnation);
    out->entered_ns = GET(s->worker_entered_ns);
    out->heartbeat_ns = GET(s->worker_heartbeat_ns);
    out->busy_ns = GET(s->worker_busy_ns);
    out->batch_since_ns = GET(s->worker_batch_since_ns);
    out->batches = GET(s->worker_batches);
    out->rows = GET(s->worker_rows);
    out->pid = GET(s->worker_pid);
    out->state = GET(s->shard_state);
    out->phase = GET(s->worker_phase);
    out->weight = GET(s->shard_weight);
    out->holds = GET(s->shard_holds);
    out->stateful = GET(s->worker_stateful);
    out->waited_us = GET(s->worker_waited_us);
    out->checkpoint_at_ns = GET(s->worker_checkpoint_at_ns); /* K2: pairs with K1 in shard.c: before what it is of */
    out->checkpoints = GET(s->worker_checkpoints);
    out->checkpoint_ns = GET(s->worker_checkpoint_ns);
    out->checkpoint_last_ns = GET(s->worker_checkpoint_last_ns);
    out->waiting_kind = GET(s->waiting_kind); /* B4: pairs with W2 in sm_worker_waits: before the rest */
    out->waiting_tries = GET(s->waiting_tries);
    out->waiting_since_ns = GET(s->waiting_since_ns);
    out->waiting_until_ns = GET(s->waiting_until_ns);
    out->on_trial = 0;
    for (int i = 0; i < SM_TRIALS; i++)
        out->on_trial += GET(s->trials[i].trial_state) != SM_TRIAL_NONE;
    uint64_t word;
    do { /* C2: pairs with C1; as in sm_view_lane */
        word = GET(s->retired_word);
        out->retired_generation = word >> 1;
        out->retired_accepted = GET(s->retired_accepted[word & 1]);
        out->retired_handled = GET(s->retired_handled[word & 1]);
        out->retired_quarantined = GET(s->retired_quarantined[word & 1]);
        out->retired_shed = GET(s->retired_shed[word & 1]);
        out->retired_skipped = GET(s->retired_skipped[word & 1]);
        out->retired_lost = GET(s->retired_lost[word & 1]);
    } while (GET(s->retired_word) != word);
    for (int i = 0; i < SM_HISTOGRAM; i++)
        out->latency[i] = GET(s->worker_latency[i]);
    for (int i = 0; i < SM_BATCH_SIZES; i++)
        out->batch_sizes[i] = GET(s->worker_batch_sizes[i]);
    char note[SM_NOTE_BYTES];
    uint64_t said, noted;
    out->error_bytes =
        read_text(&s->error_count, s->error_ns, s->error_bytes, s->error_text, SM_ERROR_BYTES, out->error, &said);
    uint32_t bytes = read_text(&s->note_count, s->note_ns, s->note_bytes, s->note_text, SM_NOTE_BYTES, note, &noted);
    if (noted > said)
        memcpy(out->error, note, out->error_bytes = bytes);
}

uint32_t sm_open_lanes(const void *inbox, const sm_geometry *g, uint32_t *seats)
{
    const sm_inbox *b = inbox;
    uint32_t n = 0;
    for (uint32_t seat = 0; seat < g->max_producers; seat++)
        if (GET(b->lane_open[seat]))
            seats[n++] = seat;
    return n;
}

/*
 * The counts that belong to a position: read the word, the copy its bit 0 names, the word again. The writer
 * fills the other copy before it stores the next word, so the copy can only change after the word has.
 * L2: the copies are stored with release and read with acquire, so a count from beyond the word that was read
 * brings the newer word with it, and the second read differs.
 */
int sm_view_lane(const void *inbox, const sm_geometry *g, uint32_t seat, sm_lane_view *out)
{
    const sm_inbox *b = inbox;
    memset(out, 0, sizeof *out);
    out->open = GET(b->lane_open[seat]);
    if (!out->open)
        return SM_OK;
    const sm_lane *lane = sm_lane_at(inbox, g->lane_bytes, seat);
    /* The tail is read while the head stands still: then both are of one moment, and never a lane apart. A worker that
     * moves the head all the time is not waited for: two near moments will do, if they could be one. */
    uint64_t head, tail;
    for (int tries = 0;; tries++) {
        head = GET(lane->head);
        const sm_ledger *l = &lane->ledger[head & 1];
        out->handled = GET(l->ledger_handled);
        out->quarantined = GET(l->ledger_quarantined);
        if (out->quarantined > INT64_MAX) /* taken back before its frame was done, which will count it */
            out->quarantined = 0;
        out->shed = GET(l->ledger_shed);
        out->skipped = GET(l->ledger_skipped);
        out->lost = GET(l->ledger_lost);
        if (GET(lane->head) != head)
            continue;
        do {
            tail = GET(lane->tail);
            out->accepted = GET(lane->accepted[tail & 1]);
        } while (GET(lane->tail) != tail);
        if (GET(lane->head) == head || (tries > 32 && sm_position(tail) - sm_position(head) <= g->lane_bytes))
            break;
    }
    out->head = sm_position(head);
    out->tail = sm_position(tail);
    out->broken = GET(lane->broken);
    return SM_OK;
}

/*
 * The frame at the head is read while its worker may be done with it and its producer put another one there. That one does
 * not say that it is at this position, so it is not taken for the one that was; the next look will find an older moment or a
 * newer one, and either is true.
 */
int64_t sm_lane_oldest_ns(const void *inbox, const sm_geometry *g, uint32_t seat)
{
    const sm_lane *lane = sm_lane_at(inbox, g->lane_bytes, seat);
    /* A2: pairs with P0: what is before this tail was whole */
    uint64_t at = sm_position(GET(lane->head)), tail = sm_position(GET(lane->tail));
    sm_frame f;
    while (at < tail && tail - at <= g->lane_bytes &&
           sm_judge_frame(sm_lane_data(lane), g->lane_bytes, g->row_bytes, at, tail, &f) == SM_OK) {
        if (f.kind != SM_FRAME_PAD)
            return f.sent_ns;
        at += f.length;
    }
    return 0;
}

void sm_view_move(const void *control, uint32_t slot, sm_move_view *out)
{
    const sm_move *m = sm_move_at(control, slot);
    uint64_t word = GET(sm_hold_at(control, slot)->hold_word);
    out->phase = SM_HOLD_PHASE(word);
    out->source = SM_HOLD_SOURCE(word);
    out->target = SM_HOLD_TARGET(word);
    out->number = GET(m->move_number);
    out->since_ns = GET(m->move_since_ns);
    out->deadline_ns = GET(m->move_deadline_ns);
    out->drained = GET(m->drained_number);
    out->restored = GET(m->restored_number);
}

uint32_t sm_view_moving(const void *control, const sm_geometry *g, uint32_t *slots, uint32_t limit)
{
    uint32_t n = 0;
    for (uint32_t s = 0; s < g->slots && n < limit; s++)
        if (SM_HOLD_PHASE(GET(sm_hold_at(control, s)->hold_word)) != SM_MOVE_NONE)
            slots[n++] = s;
    return n;
}

/* S2: pairs with S1 in sm_claim_partition: the row, or the topic, is whole. */
uint32_t sm_partition_rows(const void *control)
{
    uint32_t rows = GET(((const sm_control *)control)->partition_rows);
    return rows < SM_MAX_PARTITIONS ? rows : SM_MAX_PARTITIONS;
}

uint32_t sm_partition_count(const void *control) { return GET(((const sm_control *)control)->partition_count); }

void sm_view_partition(const void *control, uint32_t row, sm_partition_view *out)
{
    const sm_partition *p = sm_partition_at(control, row);
    out->epoch = GET(p->partition_epoch);
    out->state = GET(p->partition_state);
    out->pushed = GET(p->partition_pushed);
    out->safe = GET(p->partition_safe);
    out->until_ns = GET(p->partition_until);
    out->topic = p->partition_topic;
    out->number = p->partition_number;
}

uint32_t sm_view_topic(const void *control, uint32_t topic, char *name)
{
    uint32_t topics = GET(((const sm_control *)control)->topic_count); /* S2 */
    if (topic >= topics || topic >= SM_MAX_TOPICS)
        return 0;
    const sm_topic *t = sm_topic_at(control, topic);
    uint32_t bytes = t->bytes < sizeof t->name ? t->bytes : sizeof t->name;
    memcpy(name, t->name, bytes);
    return bytes;
}

uint32_t sm_view_board(const void *control, uint32_t board, char *text)
{
    if (board >= SM_BOARDS)
        return 0;
    const sm_board *b = sm_board_at(control, board);
    uint64_t ignored;
    return read_text(&b->board_count, NULL, b->board_bytes, b->board_text, SM_BOARD_BYTES, text, &ignored);
}

void sm_view_busy(const void *control, const sm_geometry *g, uint64_t *busy_ns)
{
    for (uint32_t s = 0; s < g->slots; s++)
        busy_ns[s] = GET(sm_move_at(control, s)->slot_busy_ns);
}

void sm_view_slots(const void *control, const sm_geometry *g, uint32_t *shards, uint32_t *epochs)
{
    for (uint32_t s = 0; s < g->slots; s++) {
        uint64_t word = GET(sm_slot_at(control, s)->slot_word);
        shards[s] = SM_SLOT_SHARD(word);
        epochs[s] = SM_SLOT_EPOCH(word);
    }
}

/* four equal buckets an octave: a quantile read from them is at most a quarter too low */
int64_t sm_histogram_floor_ns(uint32_t bucket)
{
    return bucket < 4 ? (int64_t)bucket : (int64_t)(4 + bucket % 4) << (bucket / 4 - 1);
}

int64_t sm_now_ns(void) { return sm_clock(); }
