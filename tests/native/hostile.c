/*
 * A producer that misbehaves, on one thread and so the same run for the same seed: words and bytes of its lane change at
 * every moment at which another process could change them between two of our calls. Claimed: nothing outside the
 * lane is read or written (the lanes beside it are pages without access), nothing overflows, calls return OK or
 * SM_CORRUPT, and the lane of an honest producer in the same inbox goes on undisturbed.
 *
 * Then single lies, each of which has to be found, those of a worker's predecessor, too; the same for the words that a sender
 * reads of the control segment; and for segments found at attach.
 */
#include "misbehaving.h"

#include <signal.h>

enum { HONEST = 0, ROGUE = 2, SEATS = 4, ROUNDS = 6, MOST_ROWS = 100, LARGEST = 1900 };

typedef struct row {
    uint64_t key, nth, filler[2];
} row;

static uint64_t sink, reach, corrupt, batches, pushed, received;
static sm_sender *honest, *rogue;
static sm_reader *reader;

static uint64_t length_of(uint64_t nth) { return 8 + mix(nth) % 90; }

/* ---- what the others do ---------------------------------------------------------------------------------------------------- */

static int push(sm_sender *s, uint64_t key, uint64_t nth, uint64_t length)
{
    static uint8_t payload[LARGEST + 8];
    uint32_t shard = 0;
    if (e.g.row_bytes) {
        row rows[20] = {{key, nth, {mix(nth), 0}}};
        static sm_cursor c;
        memset(&c, 0, sizeof c);
        return sm_send(s, rows, s == rogue ? 1 + length % 20 : 1, &c);
    }
    memcpy(payload, &nth, 8);
    memset(payload + 8, (int)(mix(nth) & 0xff), length < LARGEST ? length : LARGEST);
    return sm_push(s, SM_KEY_INT, key, 0, NULL, 0, payload, (uint32_t)length, &shard);
}

static void push_honestly(void)
{
    for (uint64_t n = below(&rng, 4); n; n--) {
        int status = push(honest, 1, pushed, length_of(pushed));
        CHECK(status == SM_OK || status == SM_FULL, "the honest producer got %d", status);
        if (status == SM_FULL)
            return;
        pushed++;
    }
}

static void push_madly(void)
{
    for (uint64_t n = below(&rng, 6); n; n--) {
        int status = e.g.row_bytes || below(&rng, 2) ? push(rogue, 2, 0, below(&rng, below(&rng, 8) ? 60 : LARGEST))
                                                     : push_more(rogue, 2);
        CHECK(status == SM_OK || status == SM_FULL || status == SM_CORRUPT, "the rogue got %d", status);
    }
}

static void touch(const uint8_t *p, uint64_t n)
{
    for (uint64_t i = 0; i < n; i++)
        sink += p[i];
}

/* As decode.c does: each entry is read once and judged, because the rogue writes on while it is read. */
static void read_span(const sm_span *span, int is_honest)
{
    const sm_index *index = (const sm_index *)span->rows;
    uint32_t from = !e.g.row_bytes && span->first ? index[-1].end : 0;
    for (uint32_t i = 0; i < span->count; i++) {
        row r = {0};
        if (e.g.row_bytes) {
            touch(span->rows + i * sizeof r, sizeof r);
            memcpy(&r, span->rows + i * sizeof r, sizeof r);
        } else {
            sm_index entry = index[i];
            if (entry.end < from || entry.end > span->bytes_length || SM_META_LENGTH(entry.meta) > entry.end - from) {
                CHECK(!is_honest, "the honest producer's entry %u", i);
                return;
            }
            touch(span->bytes + from, entry.end - from);
            if (is_honest) {
                memcpy(&r.nth, span->bytes + from, 8);
                CHECK(entry.end - from == length_of(r.nth), "%u bytes", entry.end - from);
            }
            from = entry.end;
        }
        if (is_honest) {
            CHECK(r.nth == received, "the honest producer's event %llu where %llu was due", (unsigned long long)r.nth,
                  (unsigned long long)received);
            received++;
        }
    }
}

static void gather(const sm_batch *b)
{
    uint64_t bytes = e.g.row_bytes ? b->rows * e.g.row_bytes : b->rows * sizeof(sm_index) + b->bytes;
    uint8_t *out = malloc(bytes); /* exactly: AddressSanitizer watches its end */
    int status = sm_gather(b, e.g.row_bytes, out, bytes);
    CHECK(status == SM_OK || status == SM_CORRUPT, "gather: %d", status);
    if (status == SM_OK && e.g.row_bytes)
        touch(out, bytes);
    free(out);
    uint64_t less = below(&rng, bytes);
    out = malloc(less);
    CHECK(sm_gather(b, e.g.row_bytes, out, less) != SM_OK || !e.g.row_bytes, "%llu bytes gathered into %llu",
          (unsigned long long)bytes, (unsigned long long)less);
    free(out);
}

/* One turn of the worker; with a spoiler between any two steps of it. Returns 0 when there was nothing. */
static int turn(int spoiled)
{
    sm_batch b;
    uint64_t tail = sm_position(atomic_load_explicit(&lane->tail, memory_order_relaxed));
    reach = tail > reach ? tail : reach;
    int status = sm_next(reader, 0, 0, &b);
    CHECK(status == SM_OK || (status == SM_CORRUPT && b.broken_seat == ROGUE), "sm_next: %d, seat %u", status,
          b.broken_seat);
    CHECK(b.rows <= MOST_ROWS && b.spans <= b.rows, "%llu rows in %u spans", (unsigned long long)b.rows, b.spans);
    for (uint32_t i = 0; i < b.spans; i++)
        CHECK(b.span[i].seat == HONEST || b.span[i].position + b.span[i].frame_length <= reach,
              "a frame beyond all tails");
    corrupt += status == SM_CORRUPT;
    if (!b.rows)
        return 0;
    batches++;
    if (spoiled)
        spoil();
    for (uint32_t i = 0; i < b.spans; i++)
        read_span(&b.span[i], b.span[i].seat == HONEST);
    if (spoiled)
        spoil();
    if (below(&rng, 2))
        gather(&b);
    if (!e.g.row_bytes)
        read_more(&b);
    if (spoiled)
        spoil();
    status = sm_commit(reader);
    CHECK(status == SM_OK || status == SM_CORRUPT, "sm_commit: %d", status);
    return 1;
}

static void new_reader(void)
{
    static const uint32_t sizes[] = {1, 7, 30, MOST_ROWS};
    sm_reader_free(reader);
    reader = take_shard(&e, 0, sizes[below(&rng, 4)]);
}

/* A fresh lane, somewhere along the endless positions; it is spoiled for some rounds; then it is left alone. */
static void episode(void)
{
    memset((void *)lane, 0, SM_PAGE + e.g.lane_bytes);
    uint64_t at = below(&rng, 4) ? below(&rng, 4 * e.g.lane_bytes) : UINT64_C(1) << (40 + below(&rng, 24));
    at = sm_position(at - below(&rng, 2) * e.g.lane_bytes / 2);
    atomic_store_explicit(&lane->tail, at, memory_order_relaxed);
    atomic_store_explicit(&lane->head, at, memory_order_relaxed);
    reach = at;
    rogue = take_seat(&e, ROGUE);
    CHECK(sm_sender_link(rogue, 0, 1, e.inbox[0]) >= 0, "link");
    new_reader();
    for (int i = 0; i < ROUNDS; i++) {
        sm_lane_view v;
        push_madly();
        push_honestly();
        spoil();
        turn(1);
        if (below(&rng, 8) == 0)
            new_reader(); /* as after a death: what it starts from is spoiled, too */
        sm_view_lane(e.inbox[0], &e.g, ROGUE, &v);
    }
    for (int i = 0; received < pushed || i < 3; i++) {
        CHECK(i < 10000, "the honest producer waits for ever: %llu of %llu", (unsigned long long)received,
              (unsigned long long)pushed);
        turn(0);
    }
    leave_seat(&e, rogue, ROGUE);
}

static void lanes(uint32_t row_bytes, double share)
{
    e = engine_new(1, SEATS, 4096, row_bytes);
    lane = sm_lane_at(e.inbox[0], e.g.lane_bytes, ROGUE);
    if (sysconf(_SC_PAGESIZE) == SM_PAGE)
        for (uint32_t seat = 1; seat < SEATS; seat += 2)
            CHECK(mprotect(sm_lane_at(e.inbox[0], e.g.lane_bytes, seat), e.g.lane_stride, PROT_NONE) == 0, "mprotect");
    begin_partitions();
    honest = take_seat(&e, HONEST);
    CHECK(sm_sender_link(honest, 0, 1, e.inbox[0]) >= 0, "link");
    reader = take_shard(&e, 0, MOST_ROWS);
    pushed = received = corrupt = batches = 0;
    uint64_t episodes = 0;
    int64_t until = sm_now_ns() + (int64_t)(seconds * share * 1e9);
    while (sm_now_ns() < until) {
        rng = mix(seed ^ ++episodes << 20 ^ row_bytes); /* a failure is found again from this number on */
        episode();
    }
    printf("rows of %2u: %llu episodes, %llu batches, %llu lanes found corrupt, %llu honest events\n", row_bytes,
           (unsigned long long)episodes, (unsigned long long)batches, (unsigned long long)corrupt,
           (unsigned long long)received);
    CHECK(corrupt > episodes / 20, "hardly any damage was found");
    sm_reader_free(reader);
    leave_seat(&e, honest, HONEST);
    engine_free(&e);
}

/* ---- single lies --------------------------------------------------------------------------------------------------------------- */

enum {
    NO_LIE,
    TAIL_TOO_FAR,
    TAIL_FELL,
    LENGTH_NONE,
    LENGTH_ODD,
    LENGTH_BEYOND_TAIL,
    LENGTH_TOO_SHORT,
    KIND_UNKNOWN,
    ROWS_NONE,
    ROWS_TOO_MANY,
    ROWS_BEYOND_FRAME,
    BYTES_BEYOND_FRAME,
    BYTES_WRAP,
    POSITION_OF_ANOTHER,
    PAD_TOO_SHORT,
    PAD_AT_TAIL,
    END_BEYOND_BYTES,
    END_FELL,
    KEY_BEYOND_EVENT,
    LIES
};

/* A lane with two frames, of one and of two events; the second has been told the lie. */
static void lie(int which)
{
    uint32_t shard;
    static uint8_t data[64];
    static const uint64_t keys[] = {2, 2}, offsets[] = {0, 20, 50};
    static sm_cursor c;
    e = engine_new(1, SEATS, 4096, 0);
    lane = sm_lane_at(e.inbox[0], e.g.lane_bytes, ROGUE);
    rogue = take_seat(&e, ROGUE);
    mend(&e, rogue, SM_NEED_LANE, 0, NULL);
    CHECK(sm_push(rogue, SM_KEY_INT, 2, 0, NULL, 0, data, 10, &shard) == SM_OK, "push");
    sm_columns columns = {
        .n = 2, .key_kind = SM_KEY_INT, .keys = keys, .data = data, .offsets = offsets, .data_bytes = 50};
    memset(&c, 0, sizeof c);
    CHECK(sm_push_columns(rogue, &columns, &c) == SM_OK, "push");
    uint64_t tail = sm_position(atomic_load_explicit(&lane->tail, memory_order_relaxed)), put = tail;
    sm_frame *first = (sm_frame *)sm_lane_data(lane), *f = (sm_frame *)(sm_lane_data(lane) + first->length);
    sm_index *index = (sm_index *)((uint8_t *)f + sm_prefix(2));
    sm_reader *r = take_shard(&e, 0, 1); /* one row at a time: the first is in hand when the lie is told */
    sm_batch b;
    CHECK(sm_next(r, 0, 0, &b) == SM_OK && b.rows == 1 && sm_commit(r) == SM_OK, "the first event");
    switch (which) {
    case TAIL_TOO_FAR:
        put = first->length + e.g.lane_bytes + 16;
        break;
    case TAIL_FELL:
        put = 0;
        break;
    case LENGTH_NONE:
        f->length = 0;
        break;
    case LENGTH_ODD:
        f->length -= 8;
        break;
    case LENGTH_BEYOND_TAIL:
        f->length += 16;
        break;
    case LENGTH_TOO_SHORT:
        f->length = 32;
        break;
    case KIND_UNKNOWN:
        f->kind = 7;
        break;
    case ROWS_NONE:
        f->rows = 0;
        break;
    case ROWS_TOO_MANY:
        f->rows = UINT32_MAX;
        break;
    case ROWS_BEYOND_FRAME:
        f->rows = 6;
        break;
    case BYTES_BEYOND_FRAME:
        f->bytes += 100;
        break;
    case BYTES_WRAP:
        f->bytes = UINT32_MAX;
        break;
    case POSITION_OF_ANOTHER:
        f->position -= e.g.lane_bytes;
        break;
    case PAD_TOO_SHORT:
        f->kind = SM_FRAME_PAD;
        break;
    case PAD_AT_TAIL:
        f->kind = SM_FRAME_PAD;
        f->length = (uint32_t)(e.g.lane_bytes - first->length);
        put = e.g.lane_bytes;
        break;
    case END_BEYOND_BYTES:
        index[1].end = f->bytes + 1;
        break;
    case END_FELL:
        index[1].end = index[0].end - 1;
        break;
    case KEY_BEYOND_EVENT:
        index[0].meta = (uint32_t)SM_KEY_BYTES << 30 | 21;
        break;
    }
    atomic_store_explicit(&lane->tail, put, memory_order_relaxed);
    int status = SM_OK;
    for (int i = 0; i < 2 && status == SM_OK; i++) { /* a row that is true may come before the one that is not */
        status = sm_next(r, 0, 0, &b);
        CHECK((status == SM_OK && b.rows == 1) || (status == SM_CORRUPT && !b.rows && b.broken_seat == ROGUE),
              "lie %d: status %d, %llu rows", which, status, (unsigned long long)b.rows);
        if (b.rows)
            sm_commit(r);
    }
    CHECK((status == SM_OK) == (which == NO_LIE), "lie %d was believed", which);
    CHECK(sm_next(r, 0, 0, &b) == SM_OK && !b.rows, "lie %d is said once", which);
    CHECK(sm_sender_broken(rogue, 0) == (which != NO_LIE), "lie %d: its producer would wait for room for ever", which);
    sm_reader_free(r);
    leave_seat(&e, rogue, ROGUE);
    engine_free(&e);
}

/* What comes with the events of a frame does not lie in it, or says what cannot be. */
enum { MORE_IS_TRUE, MORE_THAN_FITS, NO_SUCH_PARTITION, HEADERS_BEYOND, HEADERS_FELL, COUNTS_BEYOND, LIES_ABOUT_MORE };

static void lie_about_what_comes_with(int which)
{
    static const uint64_t keys[] = {2, 2}, offsets[] = {0, 20, 50}, headers[] = {0, 5, 9}, origins[] = {7, 9};
    static const int64_t times[] = {1, 2};
    static uint8_t data[64];
    static sm_cursor c;
    e = engine_new(1, SEATS, 4096, 0);
    begin_partitions();
    rogue = take_seat(&e, ROGUE);
    lane = sm_lane_at(e.inbox[0], e.g.lane_bytes, ROGUE);
    sm_columns columns = {.n = 2,
                          .key_kind = SM_KEY_INT,
                          .keys = keys,
                          .data = data,
                          .offsets = offsets,
                          .data_bytes = 50,
                          .times = times,
                          .header_data = data,
                          .header_offsets = headers,
                          .header_bytes = 9,
                          .origins = origins,
                          .epoch = 1};
    int status;
    memset(&c, 0, sizeof c);
    while ((status = sm_push_columns(rogue, &columns, &c)) != SM_OK)
        mend(&e, rogue, status, 0, NULL);
    sm_frame *f = (sm_frame *)sm_lane_data(lane);
    sm_origin *origin = sm_origin_of(f, f);
    uint32_t *ends = (uint32_t *)((uint8_t *)origin + sm_more_bytes(SM_FRAME_ORIGIN | SM_FRAME_TIMES, 2));
    switch (which) {
    case MORE_THAN_FITS:
        f->bytes += 32;
        break;
    case NO_SUCH_PARTITION:
        origin->partition = SM_MAX_PARTITIONS;
        break;
    case HEADERS_BEYOND:
        ends[1] = f->length;
        break;
    case HEADERS_FELL:
        ends[1] = ends[0] - 1;
        break;
    case COUNTS_BEYOND:
        origin->aside[0] = origin->aside[1] = UINT32_MAX;
        break;
    }
    sm_reader *r = take_shard(&e, 0, 16);
    sm_batch b;
    int is_broken = which == MORE_THAN_FITS || which == NO_SUCH_PARTITION;
    CHECK(sm_next(r, 0, 0, &b) == (is_broken ? SM_CORRUPT : SM_OK) && b.rows == (is_broken ? 0 : 2),
          "lie %d: %llu rows", which, (unsigned long long)b.rows);
    if (!is_broken) {
        int64_t bytes = sm_batch_headers(&b, NULL, NULL, 0);
        CHECK(bytes == (which == HEADERS_BEYOND || which == HEADERS_FELL ? SM_CORRUPT : 10), "lie %d: %lld", which,
              (long long)bytes);
        read_more(&b);
        CHECK(sm_commit(r) == SM_OK, "lie %d: commit", which);
    }
    sm_lane_view v;
    sm_view_lane(e.inbox[0], &e.g, ROGUE, &v);
    CHECK(v.handled + v.skipped + v.lost == (is_broken ? 0 : 2), "lie %d: %llu, %llu, %llu", which,
          (unsigned long long)v.handled, (unsigned long long)v.skipped, (unsigned long long)v.lost);
    sm_reader_free(r);
    leave_seat(&e, rogue, ROGUE);
    engine_free(&e);
}

/* More rows than any frame has, in a frame that is long enough for them: what is laid out by rows is laid out for SM_CHUNK. */
static void lie_in_a_long_frame(void)
{
    e = engine_new(1, SEATS, 1 << 18, 0);
    lane = sm_lane_at(e.inbox[0], e.g.lane_bytes, ROGUE);
    rogue = take_seat(&e, ROGUE);
    mend(&e, rogue, SM_NEED_LANE, 0, NULL);
    uint32_t rows = SM_CHUNK + 1, length = (uint32_t)sm_round(sm_prefix(rows) + rows * sizeof(sm_index), 16);
    *(sm_frame *)sm_lane_data(lane) = (sm_frame){.length = length, .kind = SM_FRAME_DATA, .rows = rows};
    atomic_store_explicit(&lane->tail, length, memory_order_relaxed);
    sm_reader *r = take_shard(&e, 0, 2 * SM_CHUNK);
    sm_batch b;
    CHECK(sm_next(r, 0, 0, &b) == SM_CORRUPT && !b.rows && b.broken_seat == ROGUE, "%llu rows in one frame",
          (unsigned long long)b.rows);
    sm_reader_free(r);
    leave_seat(&e, rogue, ROGUE);
    engine_free(&e);
}

/* The lie is told between choosing a batch of two frames and gathering it: the first now claims bytes of the second. */
static void lie_while_gathering(void)
{
    uint32_t shard;
    uint8_t data[64] = {0}, *out = malloc(2 * sizeof(sm_index) + 72);
    e = engine_new(1, SEATS, 4096, 0);
    rogue = take_seat(&e, ROGUE);
    mend(&e, rogue, SM_NEED_LANE, 0, NULL);
    for (uint32_t length = 8; length <= 64; length += 56)
        CHECK(sm_push(rogue, SM_KEY_INT, 2, 0, NULL, 0, data, length, &shard) == SM_OK, "push");
    sm_reader *r = take_shard(&e, 0, 64);
    sm_batch b;
    CHECK(sm_next(r, 0, 0, &b) == SM_OK && b.rows == 2 && b.spans == 2 && b.bytes == 72, "two frames");
    CHECK(sm_gather(&b, 0, out, 2 * sizeof(sm_index) + 72) == SM_OK, "gather");
    ((sm_index *)b.span[0].rows)->end = 70;
    CHECK(sm_gather(&b, 0, out, 2 * sizeof(sm_index) + 72) == SM_CORRUPT,
          "an event that ends in the next frame was gathered");
    free(out);
    sm_reader_free(r);
    leave_seat(&e, rogue, ROGUE);
    engine_free(&e);
}

/* The lie is told with half of the frame in hand, and found by the commit: the same must follow from it. */
static void lie_before_the_commit(void)
{
    static const uint64_t keys[] = {2, 2}, offsets[] = {0, 20, 50};
    static uint8_t data[64];
    static sm_cursor c;
    e = engine_new(1, SEATS, 4096, 0);
    rogue = take_seat(&e, ROGUE);
    mend(&e, rogue, SM_NEED_LANE, 0, NULL);
    sm_columns columns = {
        .n = 2, .key_kind = SM_KEY_INT, .keys = keys, .data = data, .offsets = offsets, .data_bytes = 50};
    memset(&c, 0, sizeof c);
    CHECK(sm_push_columns(rogue, &columns, &c) == SM_OK, "push");
    sm_reader *r = take_shard(&e, 0, 1);
    sm_batch b;
    CHECK(sm_next(r, 0, 0, &b) == SM_OK && b.rows == 1, "the first of two rows");
    ((sm_frame *)sm_lane_data(sm_lane_at(e.inbox[0], e.g.lane_bytes, ROGUE)))->length = 0;
    CHECK(sm_commit(r) == SM_CORRUPT, "a frame without a length was committed");
    CHECK(sm_next(r, 0, 0, &b) == SM_CORRUPT && b.broken_seat == ROGUE && !b.rows,
          "the lane goes on, or is broken in silence");
    CHECK(sm_sender_broken(rogue, 0) == 1, "its producer would wait for room for ever");
    sm_reader_free(r);
    leave_seat(&e, rogue, ROGUE);
    engine_free(&e);
}

/* A worker that misbehaves: the producer does not follow a head that cannot be. */
static void lie_about_the_head(void)
{
    for (int which = 0; which < 3; which++) {
        int status = SM_OK;
        uint64_t tail = 0, head;
        e = engine_new(1, SEATS, 4096, 0);
        lane = sm_lane_at(e.inbox[0], e.g.lane_bytes, ROGUE);
        rogue = take_seat(&e, ROGUE);
        mend(&e, rogue, SM_NEED_LANE, 0, NULL);
        while (push(rogue, 2, 0, 500) == SM_OK)
            ;
        CHECK(sm_sender_position(rogue, 0, &tail, &head) == SM_OK, "position");
        atomic_store_explicit(&lane->head, 1024, memory_order_relaxed);
        while (which == 2 && push(rogue, 2, 0, 500) == SM_OK) /* it has now seen this head */
            ;
        atomic_store_explicit(&lane->head,
                              which == 0   ? tail + 16
                              : which == 1 ? tail - e.g.lane_bytes - 16
                                           : 512,
                              memory_order_relaxed);
        while ((status = push(rogue, 2, 0, 500)) == SM_OK)
            ;
        CHECK(status == SM_CORRUPT, "head lie %d was believed: %d", which, status);
        leave_seat(&e, rogue, ROGUE);
        engine_free(&e);
    }
}

static void lie_in_the_frame_being_filled(int number)
{
    (void)number;
    for (uint64_t at = 0; at < e.g.lane_bytes / 2; at += 16) { /* whichever it is */
        sm_frame *f = (sm_frame *)(sm_lane_data(lane) + at);
        if (f->kind == SM_FRAME_DATA && f->position == at)
            f->length += 13, f->rows = 77;
    }
}

/* Somebody writes into a frame before it is published: the producer goes by what it claimed, or its tail would lead it astray
 * and its next frame out of the lane. */
static void lie_before_publishing(uint32_t row_bytes, int many)
{
    static uint8_t data[64];
    static const uint64_t keys[] = {2, 2}, offsets[] = {0, 20, 50};
    sm_columns columns = {
        .n = 2, .key_kind = SM_KEY_INT, .keys = keys, .data = data, .offsets = offsets, .data_bytes = sizeof data};
    static sm_cursor c;
    uint64_t tail[2], head;
    sm_lane_view v;
    e = engine_new(1, SEATS, 4096, row_bytes);
    lane = sm_lane_at(e.inbox[0], e.g.lane_bytes, ROGUE);
    rogue = take_seat(&e, ROGUE);
    mend(&e, rogue, SM_NEED_LANE, 0, NULL);
    signal(SIGUSR1, lie_in_the_frame_being_filled);
    for (int i = 0; i < 2; i++) {
        memset(&c, 0, sizeof c);
        if (i)
            sm_point_arm(SM_POINT_SEND_COPIED, 1, SIGUSR1);
        CHECK((many ? sm_push_columns(rogue, &columns, &c) : push(rogue, 2, 0, 8)) == SM_OK, "push");
        CHECK(sm_sender_position(rogue, 0, &tail[i], &head) == SM_OK, "position");
    }
    sm_view_lane(e.inbox[0], &e.g, ROGUE, &v);
    CHECK(tail[1] == 2 * tail[0] && v.tail == tail[1], "two equal frames end at %llu and %llu, the lane at %llu",
          (unsigned long long)tail[0], (unsigned long long)tail[1], (unsigned long long)v.tail);
    CHECK(v.accepted < 77, "%llu rows were never pushed", (unsigned long long)v.accepted);
    leave_seat(&e, rogue, ROGUE);
    engine_free(&e);
}

/* A predecessor gone rogue: its record says that all that is to come in one lane is suspect. The other lanes flow. */
static void lie_about_suspects(void)
{
    e = engine_new(1, SEATS, 4096, 0);
    rogue = take_seat(&e, ROGUE);
    honest = take_seat(&e, HONEST);
    mend(&e, rogue, SM_NEED_LANE, 0, NULL);
    mend(&e, honest, SM_NEED_LANE, 0, NULL);
    CHECK(push(rogue, 2, 0, 8) == SM_OK && push(honest, 1, 0, 8) == SM_OK, "push");
    atomic_store_explicit(&sm_lane_at(e.inbox[0], e.g.lane_bytes, ROGUE)->suspect, UINT64_MAX, memory_order_relaxed);
    atomic_store_explicit(&sm_shard_at(e.control, 0)->attempt_limit, 1000, memory_order_relaxed);
    sm_reader *r = take_shard(&e, 0, 4);
    sm_batch b;
    for (int i = 0, is_there = 0; !is_there; i++) {
        CHECK(i < 100, "one lane of suspects without an end keeps the others waiting");
        CHECK(sm_next(r, 0, 0, &b) == SM_OK && b.rows <= 4, "%llu rows in a batch of at most 4",
              (unsigned long long)b.rows);
        for (uint32_t k = 0; k < b.spans; k++)
            is_there |= b.span[k].seat == HONEST;
        CHECK(sm_commit(r) == SM_OK && push(rogue, 2, 0, 8) == SM_OK, "commit and push");
    }
    sm_reader_free(r);
    leave_seat(&e, honest, HONEST);
    leave_seat(&e, rogue, ROGUE);
    engine_free(&e);
}

/* The record of the batch in hand is emptied under it. The batch failed all the same, and comes before what is behind it. */
static void lie_about_the_batch_in_hand(void)
{
    e = engine_new(1, SEATS, 4096, 0);
    honest = take_seat(&e, HONEST);
    mend(&e, honest, SM_NEED_LANE, 0, NULL);
    for (uint64_t nth = 0; nth < 24; nth++)
        CHECK(push(honest, 1, nth, 8) == SM_OK, "push");
    sm_reader *r = take_shard(&e, 0, 16);
    sm_batch b;
    CHECK(sm_next(r, 0, 0, &b) == SM_OK && b.rows == 16, "16 of 24");
    atomic_store_explicit(&sm_shard_at(e.control, 0)->attempt_rows, 0, memory_order_relaxed);
    CHECK(sm_failed(r, 0) == SM_OK && sm_next(r, 0, 0, &b) == SM_OK, "failed");
    CHECK(b.rows == 8 && b.span[0].sequence == 0, "%llu rows from %llu on", (unsigned long long)b.rows,
          (unsigned long long)b.span[0].sequence);
    sm_reader_free(r);
    leave_seat(&e, honest, HONEST);
    engine_free(&e);
}

/* Rows are deferred when their lane turns out to be damaged further on: they are committed, and nothing hurries for its sake. */
static void lie_behind_deferred_rows(int about_their_tail)
{
    uint32_t pressed, awaited, n;
    sm_lane_view v;
    e = engine_new(1, SEATS, 4096, 0);
    lane = sm_lane_at(e.inbox[0], e.g.lane_bytes, ROGUE);
    rogue = take_seat(&e, ROGUE);
    honest = take_seat(&e, HONEST);
    mend(&e, rogue, SM_NEED_LANE, 0, NULL);
    mend(&e, honest, SM_NEED_LANE, 0, NULL);
    for (int i = 0; i < 5; i++)
        CHECK(push(rogue, 2, 0, 440) == SM_OK, "push");
    sm_reader *r = take_shard(&e, 0, 64);
    sm_batch b;
    sm_defer_commits(r);
    CHECK(sm_next(r, 0, 0, &b) == SM_OK && b.rows == 5 && sm_defer(r) == SM_OK, "five events");
    CHECK(sm_deferred(r, &pressed, &awaited) == 5 && pressed, "half a lane is handled and not committed");
    CHECK(push(rogue, 2, 0, 440) == SM_OK, "push");
    ((sm_frame *)(sm_lane_data(lane) + (sm_position(atomic_load_explicit(&lane->tail, memory_order_relaxed)) - 512)))
        ->rows = 0;
    if (about_their_tail)
        atomic_store_explicit(&lane->tail, 16, memory_order_relaxed);
    CHECK(sm_next(r, 0, 0, &b) == SM_CORRUPT && b.broken_seat == ROGUE, "the sixth event");
    sm_ranges(r, &n);
    CHECK(n == 1 && sm_commit_deferred(r) == (about_their_tail ? SM_CORRUPT : SM_OK), "commit of %u ranges", n);
    sm_view_lane(e.inbox[0], &e.g, ROGUE, &v);
    CHECK(v.handled == (about_their_tail ? 0 : 5), "%llu events of the broken lane count as handled",
          (unsigned long long)v.handled);
    CHECK(push(honest, 1, 0, 8) == SM_OK && sm_next(r, 0, 0, &b) == SM_OK && b.rows == 1 && sm_defer(r) == SM_OK,
          "another lane");
    atomic_store_explicit(&lane->waiting, 99, memory_order_relaxed);
    CHECK(sm_deferred(r, &pressed, &awaited) == 1 && !pressed && !awaited,
          "each batch is a checkpoint because of a broken lane");
    sm_reader_free(r);
    leave_seat(&e, honest, HONEST);
    leave_seat(&e, rogue, ROGUE);
    engine_free(&e);
}

/* Ranges of one lane that cannot be do not keep those of another from being committed. */
static void lie_among_ranges(void)
{
    e = engine_new(1, SEATS, 4096, 0);
    honest = take_seat(&e, HONEST);
    mend(&e, honest, SM_NEED_LANE, 0, NULL);
    CHECK(push(honest, 1, 0, 8) == SM_OK && push(honest, 1, 1, 8) == SM_OK, "push");
    sm_reader *r = take_shard(&e, 0, 1);
    sm_batch b;
    uint32_t n;
    sm_defer_commits(r);
    CHECK(sm_next(r, 0, 0, &b) == SM_OK && b.rows == 1 && sm_defer(r) == SM_OK, "one of two");
    sm_range ranges[] = {{.seat = ROGUE, .to = 64}, {.seat = UINT32_MAX}, *sm_ranges(r, &n)};
    sm_reader_free(r);
    r = take_shard(&e, 0, 1);
    CHECK(sm_commit_ranges(r, ranges, 3) == SM_CORRUPT, "lanes that nobody opened were believed");
    CHECK(sm_next(r, 0, 0, &b) == SM_OK && b.rows == 1 && b.span[0].sequence == 1, "what was saved is handled twice");
    sm_reader_free(r);
    leave_seat(&e, honest, HONEST);
    engine_free(&e);
}

/* ---- the control segment ----------------------------------------------------------------------------------------------------- */

/* A slot that names no shard, a shard that is not there, weights beyond all bounds: a push says so and writes nothing. */
static void routes(double share)
{
    e = engine_new(2, 1, 4096, 0);
    sm_sender *s = take_seat(&e, 0);
    sm_reader *readers[] = {take_shard(&e, 0, 64), take_shard(&e, 1, 64)};
    uint64_t attempts = 0, counts[16] = {0}, sum = 0;
    for (uint32_t shard = 0; shard < 2; shard++)
        mend(&e, s, SM_NEED_LANE, shard, NULL);
    int64_t until = sm_now_ns() + (int64_t)(seconds * share * 1e9);
    rng = mix(seed + 21);
    for (; sm_now_ns() < until; attempts++) {
        sm_shard *shard = sm_shard_at(e.control, (uint32_t)below(&rng, 2));
        switch (below(&rng, 6)) {
        case 0:
            spoil64(&sm_slot_at(e.control, (uint32_t)below(&rng, e.g.slots))->slot_word);
            break;
        case 1:
            sm_set_slot(e.control, (uint32_t)below(&rng, e.g.slots), (uint32_t)below(&rng, 2));
            break;
        case 2:
            sm_set_shard_weight(e.control, (uint32_t)below(&rng, 2), (uint32_t)strange(1000));
            break;
        case 3:
            sm_set_shard_state(e.control, (uint32_t)below(&rng, 2),
                               below(&rng, 2) ? SM_SHARD_ACTIVE : (uint32_t)draw(&rng));
            break;
        case 4:
            atomic_store_explicit(&shard->shard_generation, below(&rng, 4) ? 1 : draw(&rng), memory_order_relaxed);
            break;
        case 5:
            sm_set_engine_state(e.control, below(&rng, 4) ? SM_ENGINE_RUNNING : (uint32_t)draw(&rng));
            break;
        }
        uint32_t to = 0, kind = below(&rng, 2) ? SM_KEY_INT : SM_KEY_NONE;
        int status = sm_push(s, kind, below(&rng, 64), 0, NULL, 0, &attempts, 8, &to);
        CHECK(status == SM_OK || status == SM_STOPPED || status == SM_UNROUTED || status == SM_NEED_LANE ||
                  status == SM_FULL,
              "push: %d", status);
        counts[-status]++;
        sm_lane_view v[2];
        uint64_t now = 0;
        for (uint32_t i = 0; i < 2; i++) {
            sm_view_lane(e.inbox[i], &e.g, 0, &v[i]);
            now += v[i].accepted;
        }
        CHECK(now == sum + (status == SM_OK), "status %d, and %llu events were accepted", status,
              (unsigned long long)(now - sum));
        sum = now;
        sm_batch b;
        for (uint32_t i = 0; i < 2 && attempts % 16 == 0; i++)
            while (sm_next(readers[i], 0, 0, &b) == SM_OK && b.rows)
                sm_commit(readers[i]);
    }
    printf("routes: %llu pushes, %llu accepted, %llu without a route, %llu without a lane, %llu stopped\n",
           (unsigned long long)attempts, (unsigned long long)counts[0], (unsigned long long)counts[-SM_UNROUTED],
           (unsigned long long)counts[-SM_NEED_LANE], (unsigned long long)counts[-SM_STOPPED]);
    for (int i = 0; i < 2; i++)
        sm_reader_free(readers[i]);
    leave_seat(&e, s, 0);
    engine_free(&e);
}

/* What attach accepts follows from its geometry and fits the mapping, whatever was in the file. */
static void attaching(double share)
{
    e = engine_new(1, 1, 4096, 24);
    uint8_t *copy = map_guarded(SM_PAGE), *original = malloc(SM_PAGE);
    uint64_t attempts = 0, accepted = 0;
    memcpy(original, e.control, SM_PAGE);
    int64_t until = sm_now_ns() + (int64_t)(seconds * share * 1e9);
    rng = mix(seed + 22);
    for (; sm_now_ns() < until; attempts++) {
        memcpy(copy, original, SM_PAGE);
        for (uint64_t n = below(&rng, 3); n; n--) {
            uint64_t sizes = offsetof(sm_control, geometry) + offsetof(sm_geometry, schema);
            uint64_t at = below(&rng, below(&rng, 2) ? sizes : SM_PAGE);
            if (below(&rng, 2)) {
                copy[at] ^= (uint8_t)(1 << below(&rng, 8));
            } else {
                uint32_t word;
                memcpy(&word, copy + (at & ~UINT64_C(3)), 4);
                word = (uint32_t)strange(word);
                memcpy(copy + (at & ~UINT64_C(3)), &word, 4);
            }
        }
        sm_control *header = (sm_control *)copy;
        if (below(&rng, 2))
            header->geometry_check = sm_hash_bytes(&header->geometry, sizeof header->geometry);
        uint64_t bytes = below(&rng, 4) ? e.g.control_bytes : below(&rng, 2 * e.g.control_bytes);
        sm_geometry g;
        uint32_t version;
        int status = sm_control_read(copy, bytes, &g, &version);
        CHECK(status == SM_OK || status == SM_DAMAGED || (status <= SM_MAGIC && status >= SM_UNREADY),
              "sm_control_read: %d", status);
        if (status == SM_OK) {
            sm_geometry again = g;
            CHECK(sm_geometry_complete(&again) == SM_OK && memcmp(&g, &again, sizeof g) == 0 &&
                      g.control_bytes <= bytes,
                  "geometry");
            accepted++;
        }
        bytes = below(&rng, 2) ? e.g.inbox_bytes : below(&rng, e.g.inbox_bytes);
        status = sm_inbox_check(e.inbox[0], bytes, &e.g, (uint32_t)below(&rng, 2), below(&rng, 2));
        CHECK(status == SM_OK || status == SM_GEOMETRY || status == SM_DAMAGED, "sm_inbox_check: %d", status);
        CHECK(status != SM_OK || bytes == e.g.inbox_bytes, "an inbox cut short");
    }
    printf("attaching: %llu attempts, %llu accepted\n", (unsigned long long)attempts, (unsigned long long)accepted);
    free(original);
    unmap_guarded(copy, SM_PAGE);
    engine_free(&e);
}

int main(int argc, char **argv)
{
    begin(argc, argv);
    lanes(0, 0.4);
    lanes(sizeof(row), 0.3);
    for (int which = NO_LIE; which < LIES; which++)
        lie(which);
    for (int which = MORE_IS_TRUE; which < LIES_ABOUT_MORE; which++)
        lie_about_what_comes_with(which);
    lie_in_a_long_frame();
    lie_while_gathering();
    lie_before_the_commit();
    lie_about_the_head();
    lie_before_publishing(0, 0);
    lie_before_publishing(0, 1);
    lie_before_publishing(sizeof(row), 0);
    lie_about_suspects();
    lie_about_the_batch_in_hand();
    lie_behind_deferred_rows(0);
    lie_behind_deferred_rows(1);
    lie_among_ranges();
    routes(0.15);
    attaching(0.15);
    return sink == 42; /* so that nothing is read for nothing */
}
