/* role: worker
 * Load is time: what each slot takes of its worker's time. Known are only the time of a batch and how many rows of each slot
 * it had. A split by rows would never tell costly slots from cheap ones, so the cost of a row of each slot is estimated, and
 * time is split by rows times cost.
 *
 * The estimate is a Kalman filter of the costs whose covariance is kept as a diagonal, with two observations a batch: the
 * batch, and its difference from the one measured before. The difference is what tells slots apart that are in every
 * batch: their counts are nearly parallel from batch to batch, and steps along them meet what distinguishes slots last.
 * Simulated, part of the time given to the wrong slots, after 30, 100 and 300 measured batches:
 *
 *                                                  by rows   least mean squares   affine projection of 2   here
 *     16 slots in every batch, two cost 50-fold,
 *       4 rows of each, 5 % noise                   0.75     0.66 0.51 0.25       0.41 0.13 0.05       0.23 0.07 0.04
 *     the same with 64 rows of each                 0.75     0.75 0.73 0.69       0.58 0.36 0.16       0.40 0.33 0.24
 *     64 slots, 4 rows by Zipf, four of 50,
 *       10 % noise, one batch in 100 ten-fold       0.58     0.57 0.52 0.49       0.58 0.56 0.47       0.50 0.37 0.19
 *
 * A full covariance would need fewer batches, and time by the square of the slots. Noise goes by the larger of time and
 * prediction, so that a batch in which the process was preempted says little.
 *
 * Not every batch is looked at: hashing its keys again costs 3 ns a row, and more goes into the estimate. One that took so
 * long that this is under MEASURING of its time always is, and stands for itself. Of the others one in so many that it is
 * under MEASURING too is a sample. Which one is random and chosen beforehand: chosen by time, it would be one of those that
 * follow a long one; in turn, always one of the same producer where producers take turns. A sample stands for others by its
 * own time: what was not measured is owed to the slots, and each gives away its part of BACKLOG usual batches of that.
 * If it gave all since the last one, a slot whose batches are four times as long would get no more than the others.
 */
#include "reader.h"

#include <stdlib.h>
#include <string.h>

#define MEASURING (1.0 / 200) /* of busy time: what may be spent here */
#define BACKLOG 16.0          /* samples whose time is owed at once; no batch counts for more */
#define SELDOM 2000.0         /* batches, at most, from one sample to the next */
#define NOISE 0.003           /* variance of a batch's time, as part of its square */
#define DRIFT 0.0001          /* what a cost may change between two batches; variance, as part of its square */
#define DOUBT 9.0             /* of a slot never seen: variance, in squares of the mean cost */
#define UNIT (1.0 / 4096)     /* ns: of slot_cost, whose 0 says that it is not known */
#define MOST 1e12             /* ns a row: what a damaged word may say and a batch may take */

typedef struct sm_tally { /* rows of a batch by slot; which it had is in `seen` */
    uint32_t *rows, *seen, count;
    double ns; /* what it took */
} sm_tally;

typedef struct sm_term { /* of an observation: so many rows of a slot, less those of the other batch */
    uint32_t slot;
    float rows;
} sm_term;

struct sm_load {
    sm_tally now, before;
    sm_term *terms;
    float *doubt;          /* by slot: variance of its cost; 0: never seen */
    double mean, keyless;  /* ns a row: of all rows, and of those without a slot, which count as one slot more */
    double typical_ns;     /* what a batch takes of those that are learned from */
    double row_ns;         /* what measuring a row costs */
    double usual_ns;       /* what a batch takes of those that are not all measured */
    uint32_t next, random; /* batches until the next sample of them */
};

/* ---- life ------------------------------------------------------------------------------------------------------- */

static int tally_new(sm_tally *t, uint32_t slots)
{
    t->rows = calloc(slots + 1, sizeof *t->rows);
    t->seen = calloc(slots + 1, sizeof *t->seen);
    return t->rows && t->seen;
}

sm_load *sm_load_new(uint32_t slots)
{
    sm_load *l = calloc(1, sizeof *l);
    if (!l)
        return NULL;
    l->doubt = calloc(slots + 1, sizeof *l->doubt);
    l->terms = calloc(2 * (slots + 1), sizeof *l->terms);
    l->row_ns = 10;
    l->next = l->random = 1;
    if (!tally_new(&l->now, slots) || !tally_new(&l->before, slots) || !l->doubt || !l->terms) {
        sm_load_free(l);
        return NULL;
    }
    return l;
}

void sm_load_free(sm_load *l)
{
    if (!l)
        return;
    free(l->now.rows);
    free(l->now.seen);
    free(l->before.rows);
    free(l->before.seen);
    free(l->doubt);
    free(l->terms);
    free(l);
}

static void clear(sm_tally *t)
{
    for (uint32_t i = 0; i < t->count; i++)
        t->rows[t->seen[i]] = 0;
    t->count = 0;
}

/* A slot of the last batch may be another worker's by now, and so may be the word of its cost. */
void sm_load_forget(sm_load *l) { clear(&l->before); }

/* ---- costs ------------------------------------------------------------------------------------------------------ */

/* A slot that comes brings what its last owner has learned of it, and one that nobody knows is like the others here. */
static double cost_of(sm_reader *r, uint32_t slot)
{
    sm_load *l = r->load;
    if (slot == r->keying.slots)
        return l->keyless > 0 ? l->keyless : l->mean;
    uint64_t word = atomic_load_explicit(&sm_move_at(r->control, slot)->slot_cost, memory_order_relaxed);
    double cost = (double)word * UNIT;
    return !word ? l->mean : cost < MOST ? cost : MOST;
}

static void set_cost(sm_reader *r, uint32_t slot, double cost)
{
    cost = cost > MOST ? MOST : cost > UNIT ? cost : UNIT;
    if (slot == r->keying.slots)
        r->load->keyless = cost;
    else
        atomic_store_explicit(&sm_move_at(r->control, slot)->slot_cost, (uint64_t)(cost / UNIT), memory_order_relaxed);
}

/* What is expected of the batch in hand. */
static double predicted(sm_reader *r)
{
    const sm_tally *t = &r->load->now;
    double ns = 0;
    for (uint32_t i = 0; i < t->count; i++)
        ns += t->rows[t->seen[i]] * cost_of(r, t->seen[i]);
    return ns;
}

/* A process is interrupted for as long in a short batch as in a long one: taken by its own time alone, one of two rows that
 * was would outweigh hundreds, and of slots that are nearly always together one would have it all. */
static double noise(sm_reader *r)
{
    const sm_load *l = r->load;
    double size = predicted(r);
    size = size > l->now.ns ? size : l->now.ns;
    return NOISE * (size * size + l->typical_ns * l->typical_ns);
}

/* The terms took `ns`, which is known with the variance `noise`: each cost is corrected by its part of the doubt. */
static void observe(sm_reader *r, uint32_t count, double ns, double noise)
{
    sm_load *l = r->load;
    double spread = noise, error = ns;
    for (uint32_t i = 0; i < count; i++) {
        double rows = l->terms[i].rows;
        spread += rows * rows * l->doubt[l->terms[i].slot];
        error -= rows * cost_of(r, l->terms[i].slot);
    }
    if (!(spread > 0))
        return; /* batches that took no time at all */
    for (uint32_t i = 0; i < count; i++) {
        uint32_t slot = l->terms[i].slot;
        double gain = l->doubt[slot] * l->terms[i].rows / spread;
        set_cost(r, slot, cost_of(r, slot) + gain * error);
        l->doubt[slot] *= (float)(1 - gain * l->terms[i].rows);
    }
}

static void observe_difference(sm_reader *r)
{
    sm_load *l = r->load;
    const sm_tally *now = &l->now, *before = &l->before;
    uint32_t count = 0;
    for (uint32_t i = 0; i < now->count; i++) {
        uint32_t slot = now->seen[i];
        l->terms[count++] = (sm_term){slot, (float)now->rows[slot] - (float)before->rows[slot]};
    }
    for (uint32_t i = 0; i < before->count; i++)
        if (!now->rows[before->seen[i]])
            l->terms[count++] = (sm_term){before->seen[i], -(float)before->rows[before->seen[i]]};
    observe(r, count, now->ns - before->ns, noise(r) + NOISE * before->ns * before->ns);
}

static void observe_batch(sm_reader *r)
{
    sm_load *l = r->load;
    for (uint32_t i = 0; i < l->now.count; i++)
        l->terms[i] = (sm_term){l->now.seen[i], (float)l->now.rows[l->now.seen[i]]};
    observe(r, l->now.count, l->now.ns, noise(r));
}

static void learn(sm_reader *r, uint64_t rows)
{
    sm_load *l = r->load;
    double each = l->now.ns / (double)rows;
    each = each < MOST ? each : MOST;
    l->mean += l->mean > 0 ? (each - l->mean) / 16 : each;
    l->typical_ns += l->typical_ns > 0 ? (l->now.ns - l->typical_ns) / 16 : l->now.ns;
    for (uint32_t i = 0; i < l->now.count; i++) {
        uint32_t slot = l->now.seen[i];
        double cost = cost_of(r, slot), most = DOUBT * l->mean * l->mean + cost * cost;
        double doubt = l->doubt[slot] + DRIFT * most;
        l->doubt[slot] = (float)(l->doubt[slot] > 0 && doubt < most ? doubt : most);
    }
    if (l->before.count)
        observe_difference(r);
    observe_batch(r);
}

/* ---- splitting time --------------------------------------------------------------------------------------------- */

static uint64_t tally(sm_reader *r, sm_tally *t)
{
    uint64_t rows = 0;
    for (uint32_t s = 0; s < r->span_count; s++) {
        const sm_span *span = &r->spans[s];
        sm_frame f = sm_frame_of(span);
        sm_slots_in_frame(r, &f, sm_frame_at(r, &r->ends[span->seat], span->position), span->first, span->count);
        for (uint32_t i = 0; i < span->count; i++) {
            uint32_t slot = r->slots[i] == SM_NO_SLOT ? r->keying.slots : r->slots[i];
            if (!t->rows[slot]++)
                t->seen[t->count++] = slot;
        }
        rows += span->count;
    }
    return rows;
}

/* To the last nanosecond: each slot gets what is between two sums, rounded. Its word has one writer at a time, its owner:
 * ownership changes hands by handoff. */
static void split(sm_reader *r, const sm_tally *t, uint64_t ns)
{
    double all = predicted(r), sum = 0;
    uint64_t given = 0;
    for (uint32_t i = 0; i < t->count; i++) {
        uint32_t slot = t->seen[i];
        sum += t->rows[slot] * cost_of(r, slot);
        uint64_t until = i + 1 == t->count ? ns : all > 0 ? (uint64_t)((double)ns * (sum / all)) : 0;
        until = until < given ? given : until > ns ? ns : until;
        if (slot < r->keying.slots) {
            _Atomic uint64_t *word = &sm_move_at(r->control, slot)->slot_busy_ns;
            atomic_store_explicit(&sm_move_at(r->control, slot)->slot_busy_ns,
                                  atomic_load_explicit(word, memory_order_relaxed) + until - given,
                                  memory_order_relaxed);
        }
        given = until;
    }
}

/* ---- which batches ---------------------------------------------------------------------------------------------- */

/* xorshift [Marsaglia 2003]; at least 1, and `mean` in the mean */
static uint32_t in_about(sm_load *l, double mean)
{
    l->random ^= l->random << 13;
    l->random ^= l->random >> 17;
    l->random ^= l->random << 5;
    double most = 2 * mean - 1;
    return 1 + (uint32_t)((most < SELDOM ? most : SELDOM) * ((double)l->random / 4294967296.0));
}

static void measure(sm_reader *r, uint64_t took_ns, uint64_t stands_ns, int whole)
{
    sm_load *l = r->load;
    int64_t from = sm_clock();
    uint64_t rows = tally(r, &l->now);
    l->now.ns = (double)took_ns;
    if (whole)
        learn(r, rows);
    split(r, &l->now, stands_ns);
    if (whole) {
        sm_tally before = l->before;
        l->before = l->now;
        l->now = before;
    }
    clear(&l->now);
    double cost = (double)(sm_clock() - from) / (double)rows;
    l->row_ns += ((cost < 1000 ? cost : 1000) - l->row_ns) / 16;
}

/* Before a head is moved, because frames are looked at again. whole: it was handled; otherwise it failed somewhere. */
void sm_load_count(sm_reader *r, uint64_t rows, uint64_t took_ns, int whole)
{
    sm_load *l = r->load;
    if (!rows)
        return;
    if (!whole || (double)took_ns * MEASURING > (double)rows * l->row_ns) {
        measure(r, took_ns, took_ns, whole);
        return;
    }
    r->unmeasured_ns += took_ns;
    l->usual_ns += l->usual_ns > 0 ? ((double)took_ns - l->usual_ns) / 256 : (double)took_ns + 1;
    if (likely(--l->next))
        return;
    double part = (double)took_ns / (l->usual_ns * BACKLOG);
    uint64_t ns = part < 1 ? (uint64_t)((double)r->unmeasured_ns * part) : r->unmeasured_ns;
    measure(r, took_ns, ns, whole);
    r->unmeasured_ns -= ns;
    l->next = in_about(l, (double)rows * l->row_ns / (MEASURING * l->usual_ns));
}
