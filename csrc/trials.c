/* role: worker
 * The table of events on trial: each failed alone, and waits for its next try while all but its key flows on. It is kept in
 * shared memory for successors; this process goes by its own copy, because what is there may be damaged.
 *
 * An event that was set aside without a witness stays in the table: it may be taken back, is in the quarantine and in no lane
 * by then, and moves from count to count of its lane's ledger.
 */
#include "reader.h"

static int keeps_back(const sm_trial_view *t)
{
    return t->state == SM_TRIAL_WAITS || t->state == SM_TRIAL_DIED || t->state == SM_TRIAL_TAKEN;
}

/* Slots are of the low bits of the hash, and a shard has few of them. */
static uint32_t bit_of(uint64_t hash) { return (uint32_t)(hash >> 40) & 1023; }

static void count(sm_reader *r)
{
    memset(r->filter, 0, sizeof r->filter);
    r->kept_back = 0;
    for (uint32_t i = 0; i < SM_TRIALS; i++)
        if (keeps_back(&r->trial[i])) {
            uint32_t bit = bit_of(r->trial[i].hash);
            r->filter[bit / 64] |= UINT64_C(1) << (bit % 64);
            r->kept_back++;
        }
}

/* The state comes last, so that one with a state is whole; for the compiler, as nobody looks before this process is dead. */
static void store(sm_reader *r, uint32_t i)
{
    const sm_trial_view *t = &r->trial[i];
    sm_trial *s = &r->shard->trials[i];
    if (t->state == SM_TRIAL_NONE) {
        atomic_store_explicit(&s->trial_state, SM_TRIAL_NONE, memory_order_release);
        return;
    }
    atomic_store_explicit(&s->trial_seat, t->seat, memory_order_relaxed);
    atomic_store_explicit(&s->trial_position, t->position, memory_order_relaxed);
    atomic_store_explicit(&s->trial_row, t->row, memory_order_relaxed);
    atomic_store_explicit(&s->trial_tries, t->tries, memory_order_relaxed);
    atomic_store_explicit(&s->trial_hash, t->hash, memory_order_relaxed);
    atomic_store_explicit(&s->trial_seen, t->seen, memory_order_relaxed);
    atomic_store_explicit(&s->trial_number, t->number, memory_order_relaxed);
    atomic_store_explicit(&s->trial_due_ns, (uint64_t)t->due_ns, memory_order_relaxed);
    atomic_store_explicit(&s->trial_state, t->state, memory_order_release);
}

void sm_free_trial(sm_reader *r, uint32_t i)
{
    r->trial[i].state = SM_TRIAL_NONE;
    store(r, i);
    count(r);
}

const sm_trial_view *sm_trials(sm_reader *r)
{
    sm_find_open_lanes(r);
    sm_find_trials(r);
    /* What an earlier life left is of a lane that is there. A wild record waited for the first row of one that was opened
     * later, and its key with it, for ever: who asks now is told of it as of one that is set aside. */
    for (uint32_t i = 0; !r->trials_known && i < SM_TRIALS; i++)
        if (r->trial[i].state != SM_TRIAL_NONE && !r->ends[r->trial[i].seat].open)
            sm_free_trial(r, i);
    r->trials_known = 1;
    return r->trial;
}

void sm_set_trial(sm_reader *r, uint32_t i, uint32_t state, uint32_t tries, int64_t due_ns)
{
    r->trial[i].state = state;
    r->trial[i].tries = tries;
    r->trial[i].due_ns = due_ns;
    store(r, i);
    count(r);
}

int sm_is_kept_back(const sm_reader *r, uint32_t seat, uint64_t position, uint32_t row, uint64_t hash)
{
    uint32_t bit = bit_of(hash);
    if (likely(!(r->filter[bit / 64] >> (bit % 64) & 1)))
        return 0;
    for (uint32_t i = 0; i < SM_TRIALS; i++) {
        const sm_trial_view *t = &r->trial[i];
        if (keeps_back(t) && t->hash == hash && (hash || (t->seat == seat && t->position == position && t->row == row)))
            return 1;
    }
    return 0;
}

/* Its row lies in a lane that is read and is not done; *f: the frame. */
int sm_is_left(sm_reader *r, const sm_trial_view *t, sm_frame *f)
{
    if (t->seat >= r->max_producers || !r->ends[t->seat].open || r->ends[t->seat].broken)
        return 0;
    sm_end *e = &r->ends[t->seat];
    if (sm_refresh_tail(r, e) != SM_OK || t->position % SM_ALIGN || t->position < e->head || t->position >= e->tail ||
        sm_read_frame(r, e, t->position, f) != SM_OK || f->kind == SM_FRAME_PAD || t->row >= f->rows)
        return 0;
    return sm_next_row(sm_frame_at(r, e, t->position), f->rows, t->row, 0) == t->row;
}

int sm_row_left(sm_reader *r, uint32_t seat, uint64_t position, uint32_t row)
{
    sm_frame f;
    const sm_trial_view at = {.position = position, .seat = seat, .row = row};
    sm_find_open_lanes(r);
    return sm_is_left(r, &at, &f);
}

int sm_add_trial(sm_reader *r, const sm_span *span, uint32_t tries, int64_t due_ns)
{
    uint32_t i = 0;
    while (i < SM_TRIALS && r->trial[i].state != SM_TRIAL_NONE)
        i++;
    if (i == SM_TRIALS)
        return SM_FULL;
    sm_frame f = sm_frame_of(span);
    sm_hashes_in_frame(r, &f, sm_frame_at(r, &r->ends[span->seat], span->position), span->first, 1);
    r->trial[i] = (sm_trial_view){.position = span->position,
                                  .hash = r->hashes[0],
                                  .seen = r->total_rows,
                                  .number = ++r->trial_number,
                                  .due_ns = due_ns,
                                  .state = SM_TRIAL_WAITS,
                                  .seat = span->seat,
                                  .row = span->first,
                                  .tries = tries};
    sm_note_trial(r, i, &f);
    store(r, i);
    count(r);
    return (int)i;
}

/* ---- what an earlier life left ---------------------------------------------------------------------------------- */

void sm_trials_load(sm_reader *r)
{
    for (uint32_t i = 0; i < SM_TRIALS; i++) {
        const sm_trial *s = &r->shard->trials[i];
        sm_trial_view *t = &r->trial[i];
        t->state = atomic_load_explicit(&s->trial_state, memory_order_relaxed);
        t->seat = atomic_load_explicit(&s->trial_seat, memory_order_relaxed);
        t->position = atomic_load_explicit(&s->trial_position, memory_order_relaxed);
        t->row = atomic_load_explicit(&s->trial_row, memory_order_relaxed);
        t->tries = atomic_load_explicit(&s->trial_tries, memory_order_relaxed);
        t->hash = atomic_load_explicit(&s->trial_hash, memory_order_relaxed);
        t->seen = atomic_load_explicit(&s->trial_seen, memory_order_relaxed);
        t->number = atomic_load_explicit(&s->trial_number, memory_order_relaxed);
        t->due_ns = (int64_t)atomic_load_explicit(&s->trial_due_ns, memory_order_relaxed);
        if (t->state > SM_TRIAL_TAKEN || (t->state && t->seat >= r->max_producers))
            sm_free_trial(r, i);
        else if (t->state && t->number > r->trial_number)
            r->trial_number = t->number;
    }
    count(r);
}

/* The row that was in hand, alone, when the worker died. 1: it is on trial. */
int sm_died_in_trial(sm_reader *r, uint32_t seat, uint64_t position, uint32_t row, uint32_t tries)
{
    for (uint32_t i = 0; i < SM_TRIALS; i++) {
        const sm_trial_view *t = &r->trial[i];
        if (!keeps_back(t) || t->seat != seat || t->position != position || t->row != row)
            continue;
        sm_set_trial(r, i, t->state == SM_TRIAL_TAKEN ? SM_TRIAL_TAKEN : SM_TRIAL_DIED, tries, 0);
        return 1;
    }
    return 0;
}

/* The values are absolute: done again by a successor they change nothing. */
static void amend(sm_reader *r)
{
    sm_shard *s = r->shard;
    uint32_t i = atomic_load_explicit(&s->amend_trial, memory_order_relaxed) - 1;
    sm_end *e = &r->ends[r->trial[i].seat];
    e->handled = atomic_load_explicit(&s->amend_handled, memory_order_relaxed);
    e->quarantined = atomic_load_explicit(&s->amend_quarantined, memory_order_relaxed);
    sm_release(e);
    sm_set_trial(r, i, atomic_load_explicit(&s->amend_state, memory_order_relaxed), 0, 0);
    atomic_store_explicit(&s->amend_trial, 0, memory_order_release);
}

/* Of lanes that were opened since: trials whose row is not there, or is no longer left, are none. */
void sm_find_trials(sm_reader *r)
{
    sm_frame f;
    while (unlikely(r->lanes_checked < r->open_count)) {
        uint32_t seat = r->open[r->lanes_checked++];
        sm_end *e = &r->ends[seat];
        uint32_t amended = atomic_load_explicit(&r->shard->amend_trial, memory_order_relaxed);
        if (amended && amended <= SM_TRIALS && r->trial[amended - 1].state && r->trial[amended - 1].seat == seat)
            amend(r);
        for (uint32_t i = 0; i < SM_TRIALS; i++) {
            sm_trial_view *t = &r->trial[i];
            if (t->state == SM_TRIAL_NONE || t->seat != seat)
                continue;
            int is_left = sm_is_left(r, t, &f);
            if (is_left) {
                sm_hashes_in_frame(r, &f, sm_frame_at(r, e, t->position), t->row, 1);
                t->hash = r->hashes[0];
                sm_note_trial(r, i, &f);
            }
            if (t->state == SM_TRIAL_ASIDE || t->state == SM_TRIAL_TAKEN)
                sm_set_trial(r, i, is_left ? SM_TRIAL_WAITS : t->state, t->tries, t->due_ns);
            else if (!is_left)
                sm_free_trial(r, i);
        }
        count(r);
    }
}

/* ---- one that was set aside ------------------------------------------------------------------------------------- */

int sm_amend_trial(sm_reader *r, uint32_t i, uint32_t state, uint32_t handled)
{
    sm_shard *s = r->shard;
    sm_trial_view *t = &r->trial[i];
    sm_find_open_lanes(r);
    if (sm_is_fenced(r))
        return SM_FENCED;
    const sm_end *e = &r->ends[t->seat];
    if (!e->open)
        return SM_CLOSED;
    uint64_t quarantined = e->quarantined + (state == SM_TRIAL_NONE && !handled) - (state == SM_TRIAL_TAKEN);
    atomic_store_explicit(&s->amend_handled, e->handled + (state == SM_TRIAL_NONE && handled), memory_order_relaxed);
    atomic_store_explicit(&s->amend_quarantined, quarantined, memory_order_relaxed);
    atomic_store_explicit(&s->amend_state, state, memory_order_relaxed);
    atomic_store_explicit(&s->amend_trial, i + 1, memory_order_release); /* after what it is about, for the compiler */
    amend(r);
    return SM_OK;
}
