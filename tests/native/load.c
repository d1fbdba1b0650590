/*
 * What a worker says that each slot takes. Time is made up: a batch began as long ago as its rows cost, so a slow machine
 * changes nothing but noise. Claimed: the sum of all slots is the busy time to the nanosecond, however batches go; costly
 * slots are told from cheap ones although every batch has both; so they are where batches are too short to be measured
 * each, whoever takes turns with whom; one that moves brings what was learned of it.
 */
#include "harness.h"
#include "reader.h"

#define SLOTS 16
#define COSTLY 2

static engine e;
static uint64_t key_of[SLOTS]; /* one key of each slot */
static double took[SLOTS];     /* ns, what rows of it really cost so far */

static void find_keys(void)
{
    uint32_t left = SLOTS;
    for (uint64_t key = 1; left; key++) {
        uint32_t slot = (uint32_t)(sm_hash_int(key) & (SLOTS - 1));
        if (!key_of[slot]) {
            key_of[slot] = key;
            left--;
        }
    }
}

static double cost_of(uint32_t slot, double unit) { return slot < COSTLY ? 50 * unit : unit; }

static uint32_t poisson(uint64_t *random, double mean) /* [Knuth] */
{
    double limit = 1, product = 1;
    for (double x = mean; x > 0; x -= 0.125) /* exp(-mean), without libm */
        limit *= 0.8824969025845955;
    uint32_t n = 0;
    for (;; n++) {
        product *= (double)(draw(random) >> 11) / 9007199254740992.0;
        if (product <= limit)
            return n;
    }
}

static void push(sm_sender *s, uint64_t key)
{
    uint32_t shard;
    for (int status; (status = sm_push(s, SM_KEY_INT, key, 0, NULL, 0, &key, 8, &shard)) != SM_OK;)
        mend(&e, s, status, shard, NULL);
}

/* One batch: rows of each slot by chance, `mean` of each. It took what they cost, give or take 5 %. */
static void one_batch(sm_sender *s, sm_reader *r, uint64_t *random, double mean, double unit)
{
    double ns = 0;
    uint32_t rows = 0;
    for (uint32_t slot = 0; slot < SLOTS; slot++)
        for (uint32_t n = poisson(random, mean); n; n--, rows++) {
            push(s, key_of[slot]);
            ns += cost_of(slot, unit);
            took[slot] += cost_of(slot, unit);
        }
    if (!rows)
        return;
    sm_batch b;
    CHECK(sm_next(r, 0, 0, &b) == SM_OK && b.rows == rows, "%llu rows of %u", (unsigned long long)b.rows, rows);
    ns *= 0.95 + 0.1 * (double)below(random, 1000) / 1000;
    r->since_ns = sm_now_ns() - (int64_t)ns;
    CHECK(sm_commit(r) == SM_OK, "commit");
}

static uint64_t total(uint64_t *busy)
{
    uint64_t sum = 0;
    sm_view_busy(e.control, &e.g, busy);
    for (uint32_t slot = 0; slot < SLOTS; slot++)
        sum += busy[slot];
    return sum;
}

/* Part of the time between two looks that was given to the wrong slots. */
static double wrong(const uint64_t *from, const uint64_t *to, const double *true_from)
{
    double given = 0, taken = 0, off = 0;
    for (uint32_t slot = 0; slot < SLOTS; slot++) {
        given += (double)(to[slot] - from[slot]);
        taken += took[slot] - true_from[slot];
    }
    for (uint32_t slot = 0; slot < SLOTS; slot++) {
        double more = (double)(to[slot] - from[slot]) / given - (took[slot] - true_from[slot]) / taken;
        off += more > 0 ? more : 0;
    }
    return off;
}

/* Of so many batches, whose time is split as `most` allows at least. */
static void look(sm_sender *s, sm_reader *r, uint64_t *random, double mean, double unit, int batches, double most)
{
    uint64_t from[SLOTS], to[SLOTS];
    double true_from[SLOTS];
    total(from);
    memcpy(true_from, took, sizeof took);
    for (int i = 0; i < batches; i++)
        one_batch(s, r, random, mean, unit);
    total(to);
    double off = wrong(from, to, true_from);
    printf("rows of %.0f ns, about %.0f of each slot: %.1f %% of the time was given to other slots\n", unit, mean,
           100 * off);
    CHECK(off < most, "more than %.0f %%", 100 * most);
}

/* Long batches, each of which is measured; then another shard's, which knows what the first has learned. */
static void told_apart(void)
{
    uint64_t random = seed;
    e = engine_new(2, 1, 1 << 20, 0);
    sm_sender *s = take_seat(&e, 0);
    sm_reader *first = take_shard(&e, 0, 4096), *second = take_shard(&e, 1, 4096);
    for (uint32_t slot = 0; slot < SLOTS; slot++)
        sm_set_slot(e.control, slot, 0);
    for (int i = 0; i < 100; i++)
        one_batch(s, first, &random, 4, 1e5);
    look(s, first, &random, 4, 1e5, 100, 0.05);
    for (uint32_t slot = 0; slot < SLOTS; slot++)
        sm_set_slot(e.control, slot, 1);
    look(s, second, &random, 4, 1e5, 10, 0.1);
    sm_reader_free(first);
    sm_reader_free(second);
    leave_seat(&e, s, 0);
    engine_free(&e);
}

/* Batches too short to be measured each. */
static void told_apart_by_samples(void)
{
    uint64_t random = seed;
    e = engine_new(1, 1, 1 << 20, 0);
    sm_sender *s = take_seat(&e, 0);
    sm_reader *r = take_shard(&e, 0, 4096);
    for (int i = 0; i < 20000; i++)
        one_batch(s, r, &random, 4, 100);
    look(s, r, &random, 4, 100, 20000, 0.1);
    sm_reader_free(r);
    leave_seat(&e, s, 0);
    engine_free(&e);
}

/* Two producers, as it were, who take turns: every second batch is of one slot, every other of another. */
static void in_turn(void)
{
    uint64_t busy[SLOTS], each[] = {16000, 4000};
    sm_batch b;
    e = engine_new(1, 1, 1 << 20, 0);
    sm_sender *s = take_seat(&e, 0);
    sm_reader *r = take_shard(&e, 0, 64);
    for (int i = 0; i < 50000; i++) {
        for (int n = 0; n < 64; n++)
            push(s, key_of[i % 2]);
        CHECK(sm_next(r, 0, 0, &b) == SM_OK && b.rows == 64, "64 rows");
        r->since_ns = sm_now_ns() - (int64_t)each[i % 2];
        CHECK(sm_commit(r) == SM_OK, "commit");
    }
    total(busy);
    double share = (double)busy[0] / (double)(busy[0] + busy[1]);
    printf("in turn, 4 to 1: %.2f\n", share);
    CHECK(share > 0.7 && share < 0.9, "4 of 5 parts are not %.2f", share);
    sm_reader_free(r);
    leave_seat(&e, s, 0);
    engine_free(&e);
}

/* Batches short and long, handled and failed, one event set aside: the slots have all of it, but what waits for a sample. */
static void all_of_it(void)
{
    uint64_t random = seed, busy[SLOTS], lengths[] = {50, 3000, 1000000};
    sm_batch b;
    sm_shard_view view;
    e = engine_new(1, 1, 1 << 20, 0);
    sm_sender *s = take_seat(&e, 0);
    sm_reader *r = take_shard(&e, 0, 64);
    for (int i = 0; i < 20000; i++) {
        for (uint64_t n = 1 + below(&random, 20); n; n--)
            push(s, key_of[below(&random, SLOTS)]);
        CHECK(sm_next(r, 0, 0, &b) == SM_OK && b.rows, "rows");
        r->since_ns = sm_now_ns() - (int64_t)below(&random, lengths[below(&random, 3)]);
        if (b.rows == 1 && below(&random, 8) == 0)
            CHECK(sm_set_aside(r) == SM_OK, "set aside");
        else if (below(&random, 16) == 0)
            CHECK(sm_failed(r, 0) == SM_OK, "failed");
        else
            CHECK(sm_commit(r) == SM_OK, "commit");
    }
    sm_view_shard(e.control, 0, &view);
    unsigned long long all = view.busy_ns, slots = total(busy), waits = r->unmeasured_ns;
    printf("of %llu ns the slots have %llu, %llu wait\n", all, slots, waits);
    CHECK(slots + waits == all && waits < all / 20, "the slots have %llu ns of %llu, %llu wait", slots, all, waits);
    sm_reader_free(r);
    leave_seat(&e, s, 0);
    engine_free(&e);
}

int main(int argc, char **argv)
{
    begin(argc, argv);
    engine_slots = SLOTS;
    find_keys();
    told_apart();
    told_apart_by_samples();
    in_turn();
    all_of_it();
    return 0;
}
