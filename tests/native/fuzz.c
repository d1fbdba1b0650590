/*
 * Hostile shared memory, everywhere at once: what a misbehaving producer writes (misbehaving.h), and the words of
 * workers, supervisor and observers, random, plausible or bent by a bit, between any two calls of a worker that
 * commits, defers, fails, sets aside, dies and comes again; then the same from a second thread, in the middle of the
 * calls. Claimed: nothing outside the mapped lanes and the used parts of the control segment is read or written (all
 * else is pages without access), every call comes back, and of the honest producer's events each arrives, in order, and
 * none that was committed comes again.
 *
 * Arguments: seed, episodes. An episode depends on nothing but both numbers, except the threaded ones.
 */
#include "misbehaving.h"

enum { HONEST = 0, ROGUE = 2, UNOPENED = 4, SEATS = 6 };
enum { ROUNDS = 12, MOST_ROWS = 100, LARGEST = 1900, TURNS = 20000, SAVED = 1100 };

typedef struct row {
    uint64_t key, nth, filler[2];
} row;

static uint64_t sink, corrupt, batches, pushed, received, expected, committed, deferred_to, saved_to;
static int is_resumed, is_deferring, is_threaded;
static uint32_t max_rows, saved_count;
static sm_range saved[SAVED];
static sm_sender *honest, *rogue;
static sm_reader *reader;
static uint8_t *pristine, *pristine_inbox;
static _Atomic int is_over;

static uint64_t length_of(uint64_t nth) { return 8 + mix(nth) % 90; }

/* ---- words of others than the producer --------------------------------------------------------------------------- */

static void put32(_Atomic uint32_t *word, uint64_t value)
{
    atomic_store_explicit(word, (uint32_t)value, memory_order_relaxed);
}
static void put64(_Atomic uint64_t *word, uint64_t value) { atomic_store_explicit(word, value, memory_order_relaxed); }
static uint64_t get64(_Atomic uint64_t *word) { return atomic_load_explicit(word, memory_order_relaxed); }

static uint64_t some_position(void)
{
    uint64_t head = sm_position(get64(&lane->head)), mask = e.g.lane_bytes - 1;
    uint64_t offset = (uint64_t)((uint8_t *)some_frame() - sm_lane_data(lane));
    return (head & ~mask) + offset + (offset < (head & mask) ? e.g.lane_bytes : 0);
}

static void spoil_words_of_worker(void)
{
    sm_ledger *l = &lane->ledger[below(&rng, 2)];
    _Atomic uint64_t *words[] = {&lane->head,  &l->ledger_handled, &l->ledger_quarantined, &l->ledger_shed,
                                 &lane->aside, &lane->aside_row,   &lane->suspect};
    switch (below(&rng, 5)) {
    case 0:
        spoil64(words[below(&rng, sizeof words / sizeof *words)]);
        break;
    case 1:
        put64(&lane->aside, some_position() | below(&rng, 4));
        put64(&lane->aside_row, below(&rng, 40) | below(&rng, 20) << 32);
        break;
    case 2:
        put64(&lane->suspect, below(&rng, 2) ? some_position() : draw(&rng));
        put32(&lane->suspect_row, strange(3));
        break;
    case 3:
        put32(&lane->broken, draw(&rng));
        break;
    case 4: {
        sm_frame *f = some_frame();
        if (!whole(f))
            return;
        f->quarantined = (uint16_t)strange(f->rows);
        put64(sm_done_bits(f), strange(get64(sm_done_bits(f))));
    }
    }
}

static void spoil_attempt(void)
{
    sm_shard *s = sm_shard_at(e.control, 0);
    put32(&s->attempt_rows, strange(below(&rng, 200)));
    put32(&s->attempt_limit, strange(below(&rng, 200)));
    put32(&s->attempt_tries, strange(3));
    put32(&s->attempt_seat, below(&rng, 2) ? ROGUE : draw(&rng));
    put64(&s->attempt_position, below(&rng, 2) ? some_position() : draw(&rng));
    put32(&s->attempt_row, strange(3));
}

/* any word of the parts that this engine uses; the holds more often, because only they lead somewhere else */
static void spoil_control(void)
{
    uint64_t offsets[8], lengths[8];
    uint32_t n = sm_control_ranges(&e.g, offsets, lengths), which = (uint32_t)below(&rng, n);
    if (below(&rng, 4) == 0) {
        put64(&sm_hold_at(e.control, (uint32_t)below(&rng, e.g.slots))->hold_word,
              SM_HOLD_WORD(below(&rng, 5), below(&rng, 3), below(&rng, 3)));
        put32(&sm_shard_at(e.control, 0)->shard_holds, below(&rng, 3));
        return;
    }
    uint64_t room = which == 4 ? SM_LINE : lengths[which]; /* of the board: not its text */
    spoil64((_Atomic uint64_t *)((uint8_t *)e.control + offsets[which]) + below(&rng, room / 8));
}

static void spoil_doors(void)
{
    sm_inbox *b = e.inbox[0];
    switch (below(&rng, 3)) {
    case 0:
        put32(&b->lane_open[below(&rng, 2) ? ROGUE : UNOPENED], below(&rng, 3));
        break;
    case 1:
        put32(&b->doorbell, draw(&rng));
        put32(&b->sleeping, below(&rng, 2));
        break;
    case 2:
        spoil64((_Atomic uint64_t *)b + below(&rng, 6));
        break;
    }
}

static void spoil_anything(void)
{
    spoil();
    for (uint64_t n = below(&rng, 3); n; n--)
        switch (below(&rng, 8)) {
        case 0:
        case 1:
        case 2:
            spoil_words_of_worker();
            break;
        case 3:
            spoil_attempt();
            break;
        case 4:
        case 5:
            spoil_control();
            break;
        case 6:
            spoil_doors();
            break;
        case 7:
            break;
        }
}

/* What the supervisor says is true again; what workers and producers wrote stays as it is. */
static void heal(void)
{
    memcpy(e.control, pristine, SM_PAGE);
    memcpy(sm_slot_at(e.control, 0), pristine + SM_SLOTS_OFFSET, e.g.slots * sizeof(sm_slot));
    memcpy(sm_hold_at(e.control, 0), pristine + SM_HOLDS_OFFSET, e.g.slots * sizeof(sm_hold));
    memcpy(sm_shard_at(e.control, 0), pristine + SM_SHARDS_OFFSET, SM_LINE);
    memcpy(e.inbox[0], pristine_inbox, SM_LINE);
}

/* ---- producers and observers ------------------------------------------------------------------------------------- */

static int push(sm_sender *s, uint64_t key, uint64_t nth, uint64_t length)
{
    static uint8_t payload[LARGEST + 8];
    static sm_cursor c;
    uint32_t shard = 0;
    if (e.g.row_bytes) {
        row rows[20] = {{key, nth, {mix(nth), 0}}};
        memset(&c, 0, sizeof c);
        return sm_send(s, rows, s == rogue ? 1 + length % 20 : 1, &c);
    }
    memcpy(payload, &nth, 8);
    memset(payload + 8, (int)(mix(nth) & 0xff), length < LARGEST ? length : LARGEST);
    return sm_push(s, SM_KEY_INT, key, 0, NULL, 0, payload, (uint32_t)length, &shard);
}

/* its lane is whole, its route may not be: then nothing is accepted */
static void push_honestly(void)
{
    for (uint64_t n = below(&rng, 5); n; n--) {
        int status = push(honest, 1, pushed, length_of(pushed));
        if (status == SM_FENCED) { /* the seat's words were written over: as a producer does, it takes one anew */
            leave_seat(&e, honest, HONEST);
            honest = take_seat(&e, HONEST);
            CHECK(sm_sender_link(honest, 0, 1, e.inbox[0]) >= 0, "link");
            return;
        }
        CHECK(status == SM_OK || status == SM_FULL || status == SM_NEED_LANE || status == SM_UNROUTED ||
                  status == SM_STOPPED,
              "the honest producer got %d", status);
        if (status != SM_OK)
            return;
        pushed++;
    }
}

static void push_madly(void)
{
    for (uint64_t n = below(&rng, 6); n; n--)
        if (e.g.row_bytes || below(&rng, 2))
            push(rogue, 2, 0, below(&rng, below(&rng, 8) ? 60 : LARGEST));
        else
            push_more(rogue, 2);
    switch (below(&rng, 8)) {
    case 0:
        sm_evict(rogue, 0);
        break;
    case 1:
        sm_wait_room(rogue, 0, 0, 1);
        break;
    case 2:
        sm_wait_handled(rogue, 0, strange(0), 0, 1);
        break;
    }
}

static void look(void)
{
    sm_engine_view engine;
    sm_seat_view seat;
    static sm_shard_view shard;
    sm_lane_view of_lane;
    sm_move_view move;
    uint32_t *slots = malloc(e.g.slots * sizeof *slots), *epochs = malloc(e.g.slots * sizeof *epochs);
    uint64_t *busy = malloc(e.g.slots * sizeof *busy);
    char *text = malloc(SM_BOARD_BYTES);
    sm_view_engine(e.control, &engine);
    sm_view_shard(e.control, 0, &shard);
    CHECK(shard.error_bytes <= SM_ERROR_BYTES, "%u bytes of error", shard.error_bytes);
    for (uint32_t i = 0; i < SEATS; i++) {
        sm_view_seat(e.control, i, &seat);
        sm_view_lane(e.inbox[0], &e.g, i, &of_lane);
    }
    uint32_t n = sm_view_moving(e.control, &e.g, slots, e.g.slots);
    for (uint32_t i = 0; i < n; i++)
        sm_view_move(e.control, slots[i], &move);
    for (uint32_t i = 0; i < SM_BOARDS; i++)
        CHECK(sm_view_board(e.control, i, text) <= SM_BOARD_BYTES, "board %u is longer than itself", i);
    sm_view_busy(e.control, &e.g, busy);
    sm_view_slots(e.control, &e.g, slots, epochs);
    sm_partition_view partition;
    for (uint32_t i = 0; i < sm_partition_rows(e.control); i++)
        sm_view_partition(e.control, i, &partition);
    for (uint32_t i = 0; i < SM_MAX_TOPICS; i++)
        CHECK(sm_view_topic(e.control, i, text) <= SM_TOPIC_BYTES, "topic %u is longer than itself", i);
    static uint64_t offsets[SM_CHUNK];
    uint64_t position = draw(&rng) >> below(&rng, 64);
    sm_recover(e.control, &e.g, e.inbox[0], ROGUE, &position, &partition.topic, &partition.epoch, offsets);
    free(slots);
    free(epochs);
    free(busy);
    free(text);
}

/* ---- the worker -------------------------------------------------------------------------------------------------- */

/* From here on the lanes are gone over again from what is committed. */
static void comes_again(void)
{
    is_resumed = 1;
    deferred_to = committed;
}

/* A range that its predecessor cannot have saved. The honest producer's own are left as they were. */
static sm_range strange_range(void)
{
    uint64_t at = some_position();
    sm_range range = {.position = at,
                      .to = at + 16 * below(&rng, 40),
                      .row = (uint32_t)below(&rng, 3),
                      .to_row = (uint32_t)below(&rng, 3)};
    range.seat = below(&rng, 3) ? ROGUE : below(&rng, 2) ? UNOPENED : SEATS + (uint32_t)(draw(&rng) >> below(&rng, 64));
    switch (below(&rng, 6)) {
    case 0:
        range.position = strange(at);
        break;
    case 1:
        range.to = strange(range.to);
        break;
    case 2:
        range.row = (uint32_t)strange(range.row);
        break;
    case 3:
        range.to_row = (uint32_t)strange(range.to_row);
        break;
    }
    return range;
}

static void new_life(void)
{
    static const uint32_t sizes[] = {1, 7, 30, MOST_ROWS};
    if (reader)
        sm_reader_free(reader);
    max_rows = sizes[below(&rng, 4)];
    reader = take_shard(&e, 0, max_rows);
    is_deferring = below(&rng, 2) == 0;
    if (is_deferring)
        sm_defer_commits(reader);
    if (saved_count || below(&rng, 2)) {
        uint32_t n = 0;
        sm_range *ranges = malloc((saved_count + 4) * sizeof *ranges);
        for (uint64_t more = below(&rng, 3); more; more--)
            ranges[n++] = strange_range();
        for (uint32_t i = 0; i < saved_count; i++)
            ranges[n++] = saved[i];
        ranges = realloc(ranges, n ? n * sizeof *ranges : 1);
        int status = sm_commit_ranges(reader, ranges, n);
        CHECK(status == SM_OK || status == SM_CORRUPT || (status == SM_FENCED && is_threaded), "sm_commit_ranges: %d",
              status);
        if (status != SM_FENCED && saved_to > committed)
            committed = saved_to;
        free(ranges);
    }
    comes_again();
}

static void checkpoint(void)
{
    uint32_t n;
    const sm_range *ranges = sm_ranges(reader, &n);
    CHECK(n <= SAVED, "%u ranges", n);
    memcpy(saved, ranges, n * sizeof *saved);
    saved_count = n;
    saved_to = deferred_to;
    if (below(&rng, 8) == 0) {
        new_life(); /* killed between the save and the commit */
        return;
    }
    if (sm_commit_deferred(reader) == SM_FENCED)
        new_life();
    else
        committed = deferred_to;
}

static void read_span(const sm_span *span, int is_honest)
{
    const sm_index *index = (const sm_index *)span->rows;
    uint32_t from = !e.g.row_bytes && span->first ? index[-1].end : 0;
    for (uint32_t i = 0; i < span->count; i++) {
        row r = {0};
        if (e.g.row_bytes) {
            memcpy(&r, span->rows + i * sizeof r, sizeof r);
            sink += r.key;
        } else {
            sm_index entry = index[i];
            if (entry.end < from || entry.end > span->bytes_length || SM_META_LENGTH(entry.meta) > entry.end - from) {
                CHECK(!is_honest, "the honest producer's entry %u", i);
                return;
            }
            for (uint32_t at = from; at < entry.end; at++)
                sink += span->bytes[at];
            if (is_honest) {
                memcpy(&r.nth, span->bytes + from, 8);
                CHECK(entry.end - from == length_of(r.nth), "%u bytes", entry.end - from);
            }
            from = entry.end;
        }
        if (!is_honest)
            continue;
        if (is_resumed)
            CHECK(r.nth >= committed && r.nth <= expected,
                  "event %llu after a new beginning: %llu are committed, %llu were seen", (unsigned long long)r.nth,
                  (unsigned long long)committed, (unsigned long long)expected);
        else
            CHECK(r.nth == received, "event %llu where %llu was due", (unsigned long long)r.nth,
                  (unsigned long long)received);
        is_resumed = 0;
        received = r.nth + 1;
        expected = received > expected ? received : expected;
    }
}

static void gather(const sm_batch *b)
{
    uint64_t bytes = e.g.row_bytes ? b->rows * e.g.row_bytes : b->rows * sizeof(sm_index) + b->bytes;
    bytes = below(&rng, 4) ? bytes : below(&rng, bytes);
    uint8_t *out = malloc(bytes); /* exactly: AddressSanitizer watches its end */
    int status = sm_gather(b, e.g.row_bytes, out, bytes);
    CHECK(status == SM_OK || status == SM_CORRUPT || status == SM_GEOMETRY, "gather: %d", status);
    free(out);
}

static void touch_slots(void)
{
    uint8_t *touched = calloc(e.g.slots, 1);
    sm_touched(reader, touched);
    free(touched);
}

static void moves(void)
{
    uint32_t *slots = malloc(e.g.slots * sizeof *slots);
    uint64_t *numbers = malloc(e.g.slots * sizeof *numbers);
    uint8_t *present = malloc(e.g.slots);
    uint32_t n = sm_moves_at(e.control, &e.g, 0, (uint32_t)below(&rng, 5), slots, numbers, e.g.slots);
    for (uint32_t i = n; i < e.g.slots && i < 8; i++)
        slots[n++] = (uint32_t)below(&rng, e.g.slots);
    CHECK(sm_undone(reader, slots, n, present) <= (int)n, "more slots with rows than slots");
    for (uint32_t i = 0; i < n; i++)
        sm_move_drained(e.control, slots[i], i);
    free(slots);
    free(numbers);
    free(present);
}

/* Some of the rogue's events were applied already, it is found. */
static void skip_some(sm_batch *b)
{
    uint8_t *gone = calloc(b->rows, 1);
    sm_range *ranges = malloc(b->rows * sizeof *ranges);
    uint64_t at = 0, before = b->rows, n = 0;
    for (uint32_t i = 0; i < b->spans; at += b->span[i++].count)
        for (uint32_t j = 0; j < b->span[i].count; j++)
            n += gone[at + j] = b->span[i].seat == ROGUE && b->span[i].kind & SM_FRAME_ORIGIN && below(&rng, 2);
    int count = sm_skip_rows(reader, gone, b, ranges);
    CHECK(count >= 0 && b->rows == before - n, "%llu of %llu rows are left", (unsigned long long)b->rows,
          (unsigned long long)before);
    int status = sm_set_aside_rows(reader, ranges, (uint32_t)count);
    CHECK(status == SM_OK || status == SM_CORRUPT || status == SM_FENCED, "set aside: %d", status);
    free(gone);
    free(ranges);
}

/* 0: there was nothing */
static int turn(void (*meanwhile)(void))
{
    sm_batch b;
    uint32_t pressed, awaited;
    int status = sm_next(reader, 0, 0, &b);
    if (status == SM_FENCED) {
        new_life();
        return 1;
    }
    CHECK(status == SM_OK || (status == SM_CORRUPT && (b.broken_seat == ROGUE || b.broken_seat == UNOPENED)),
          "sm_next: %d, seat %u", status, b.broken_seat);
    CHECK(b.rows <= max_rows && b.spans <= b.rows, "%llu rows in %u spans, of at most %u", (unsigned long long)b.rows,
          b.spans, max_rows);
    corrupt += status == SM_CORRUPT;
    batches += b.rows != 0;
    meanwhile();
    for (uint32_t i = 0; i < b.spans; i++)
        read_span(&b.span[i], b.span[i].seat == HONEST);
    meanwhile();
    if (b.rows && below(&rng, 2))
        gather(&b);
    touch_slots();
    if (!e.g.row_bytes)
        read_more(&b);
    meanwhile();
    uint64_t rows = b.rows;
    if (rows && !e.g.row_bytes && below(&rng, 4) == 0)
        skip_some(&b);
    if (rows) {
        uint64_t how = below(&rng, 8);
        if (how == 0 && b.rows && meanwhile == spoil_anything) {
            status = sm_failed(reader, below(&rng, 2) == 0);
            comes_again();
        } else if (how < 4 && b.rows == 1 && b.span[0].seat == ROGUE) {
            status = sm_set_aside(reader);
            if (is_deferring) {
                sm_rescan(reader);
                comes_again();
            }
        } else if (is_deferring) {
            status = sm_defer(reader);
            deferred_to = is_resumed || status != SM_OK ? deferred_to : received;
        } else {
            status = sm_commit(reader);
            if (!is_resumed && status != SM_FENCED)
                committed = received > committed ? received : committed;
        }
        CHECK(status == SM_OK || status == SM_CORRUPT || status == SM_FENCED, "the end of a batch: %d", status);
        if (status == SM_FENCED)
            new_life();
    }
    if (is_deferring && sm_deferred(reader, &pressed, &awaited) && (pressed || awaited || !rows || below(&rng, 4) == 0))
        checkpoint();
    return rows != 0;
}

/* ---- episodes ---------------------------------------------------------------------------------------------------- */

static void nothing(void) {}

static void settle_honestly(void)
{
    heal();
    if (below(&rng, 2)) {
        sm_rescan(reader);
        comes_again();
    } else {
        new_life();
    }
    for (int i = 0; committed < pushed || i < 3; i++) {
        CHECK(i < TURNS, "the honest producer waits for ever: %llu of %llu, %llu committed",
              (unsigned long long)expected, (unsigned long long)pushed, (unsigned long long)committed);
        turn(nothing);
    }
}

static void *spoil_along(void *argument)
{
    rng = mix(*(uint64_t *)argument);
    while (!atomic_load_explicit(&is_over, memory_order_relaxed)) {
        spoil();
        spoil_words_of_worker();
        put64(&sm_hold_at(e.control, (uint32_t)below(&rng, e.g.slots))->hold_word, SM_HOLD_WORD(below(&rng, 4), 0, 0));
        put32(&sm_shard_at(e.control, 0)->shard_holds, below(&rng, 2));
    }
    return NULL;
}

static void episode(int threaded)
{
    alarm(60);
    memset((void *)lane, 0, SM_PAGE + e.g.lane_bytes);
    uint64_t at = below(&rng, 4) ? below(&rng, 4 * e.g.lane_bytes) : UINT64_C(1) << (40 + below(&rng, 24));
    at = sm_position(at - below(&rng, 2) * e.g.lane_bytes / 2);
    put64(&lane->tail, at);
    put64(&lane->head, at);
    rogue = take_seat(&e, ROGUE);
    sm_sender_link(rogue, 0, 1, e.inbox[0]);
    new_life();
    pthread_t thread = 0;
    uint64_t other = rng;
    is_threaded = threaded;
    atomic_store_explicit(&is_over, 0, memory_order_relaxed);
    if (threaded)
        thread = start(spoil_along, &other);
    void (*meanwhile)(void) = threaded ? nothing : spoil_anything;
    for (int i = 0; i < (threaded ? 10 * ROUNDS : ROUNDS); i++) {
        push_madly();
        push_honestly();
        meanwhile();
        turn(meanwhile);
        look();
        switch (below(&rng, 10)) {
        case 0:
            new_life();
            break;
        case 1:
            moves();
            break;
        case 2:
            sm_rescan(reader);
            comes_again();
            break;
        case 3:
            sm_orders(reader);
            sm_worker_orders(e.control, 0);
            break;
        }
    }
    atomic_store_explicit(&is_over, 1, memory_order_relaxed);
    if (threaded)
        join(thread);
    settle_honestly();
    leave_seat(&e, rogue, ROGUE);
}

/* All of the control segment that an engine of this geometry does not use; its parts begin at pages. */
static void guard_control(int access)
{
    uint64_t offsets[8], lengths[8], at = 0;
    uint32_t n = sm_control_ranges(&e.g, offsets, lengths);
    for (uint32_t i = 0; i < n; at = sm_round(offsets[i] + lengths[i], SM_PAGE), i++) {
        uint64_t to = offsets[i] / SM_PAGE * SM_PAGE;
        if (to > at)
            CHECK(mprotect((uint8_t *)e.control + at, to - at, access) == 0, "mprotect");
    }
}

static void episodes(uint32_t row_bytes, uint64_t lane_bytes, uint64_t count, int threaded)
{
    e = engine_new(1, SEATS, lane_bytes, row_bytes);
    lane = sm_lane_at(e.inbox[0], e.g.lane_bytes, ROGUE);
    if (sysconf(_SC_PAGESIZE) == SM_PAGE) {
        guard_control(PROT_NONE);
        for (uint32_t seat = 1; seat < SEATS; seat += 2)
            CHECK(mprotect(sm_lane_at(e.inbox[0], e.g.lane_bytes, seat), e.g.lane_stride, PROT_NONE) == 0, "mprotect");
    }
    begin_partitions();
    honest = take_seat(&e, HONEST);
    CHECK(sm_sender_link(honest, 0, 1, e.inbox[0]) >= 0, "link");
    pristine = malloc(SM_SHARDS_OFFSET + SM_LINE);
    pristine_inbox = malloc(SM_LINE);
    memcpy(pristine, e.control, SM_PAGE);
    memcpy(pristine + SM_SLOTS_OFFSET, sm_slot_at(e.control, 0), e.g.slots * sizeof(sm_slot));
    memcpy(pristine + SM_HOLDS_OFFSET, sm_hold_at(e.control, 0), e.g.slots * sizeof(sm_hold));
    memcpy(pristine + SM_SHARDS_OFFSET, sm_shard_at(e.control, 0), SM_LINE);
    memcpy(pristine_inbox, e.inbox[0], SM_LINE);
    reader = NULL;
    pushed = received = expected = committed = deferred_to = saved_to = corrupt = batches = saved_count = 0;
    for (uint64_t i = 0; i < count; i++) {
        rng = mix(seed ^ i << 20 ^ row_bytes ^ lane_bytes << 40);
        episode(threaded);
    }
    printf("rows of %2u, lanes of %5llu%s: %llu episodes, %llu batches, %llu lanes found corrupt, %llu honest events\n",
           row_bytes, (unsigned long long)lane_bytes, threaded ? ", threaded" : "", (unsigned long long)count,
           (unsigned long long)batches, (unsigned long long)corrupt, (unsigned long long)committed);
    CHECK(corrupt > count / 20, "hardly any damage was found");
    sm_reader_free(reader);
    leave_seat(&e, honest, HONEST);
    free(pristine);
    free(pristine_inbox);
    engine_free(&e);
}

int main(int argc, char **argv)
{
    uint64_t count = argc > 2 ? strtoull(argv[2], NULL, 0) : 1000;
    begin(argc < 2 ? argc : 2, argv); /* each episode sets the alarm anew */
    episodes(0, 4096, count, 0);
    episodes(0, 16384, count / 2, 0);
    episodes(sizeof(row), 4096, count, 0);
    episodes(0, 4096, count / 50, 1);
    episodes(sizeof(row), 4096, count / 50, 1);
    return sink == 42;
}
