/* role: producer
 * What a sender sends. A pass is: mark odd, read the slot words, claim, fill, publish, mark even, wake. It never waits: rows
 * whose lane is full are left in the cursor, and so are later rows of that shard, so that order per key holds. The
 * caller waits for room with the mark even and comes again, and the slot words are read again.
 */
#include "sender.h"

#include <string.h>

/* ---- entering and leaving a pass -------------------------------------------------------------------------------- */

static int enter_send(sm_sender *s)
{
    SM_POINT(SEND_LOCKED);
    /* M1: seq_cst store, then seq_cst loads of the slot words and the engine's state. The supervisor stores
     * those seq_cst and then loads the marks (M2): if it saw an even mark, this pass sees the new words. */
    atomic_store_explicit(&s->seat->mark, ++s->mark, memory_order_seq_cst);
    SM_POINT(SEND_MARKED);
    uint32_t state = atomic_load_explicit(&s->control->engine_state, memory_order_seq_cst); /* E2 */
    return likely(state == SM_ENGINE_RUNNING) ? SM_OK : SM_STOPPED;
}

static void leave_send(sm_sender *s)
{
    /* M3: release, after the tails: who sees the even mark (M2) sees all that this pass published. */
    atomic_store_explicit(&s->seat->mark, ++s->mark, memory_order_release);
    SM_POINT(SEND_UNMARKED);
}

static uint32_t shard_of_slot(sm_sender *s, uint32_t slot)
{
    return SM_SLOT_SHARD(atomic_load_explicit(&sm_slot_at(s->control, slot)->slot_word, memory_order_seq_cst));
}

/* One answer for all rows of a pass. The word may change under a pass: rows of the slot that come before the change may be
 * refused (their lane is full) and pushed again after it, behind rows that came after it and were accepted. */
static uint32_t route(sm_sender *s, uint32_t slot)
{
    if (s->routes[slot] >> 16 != s->pass)
        s->routes[slot] = s->pass << 16 | shard_of_slot(s, slot);
    return s->routes[slot] & 0xffff;
}

/* ---- lanes ------------------------------------------------------------------------------------------------------ */

static int linked(sm_sender *s, uint32_t shard)
{
    if (unlikely(shard >= s->max_shards))
        return SM_UNROUTED;
    const sm_shard *there = sm_shard_at(s->control, shard);
    /* Only a damaged slot word names a shard that is gone, or going: what went there was lost with its inbox, six events of
     * a campaign under wild words. The supervisor sets the word right, and until then they wait. */
    uint32_t state = atomic_load_explicit(&there->shard_state, memory_order_relaxed);
    if (unlikely(state == SM_SHARD_NONE || state == SM_SHARD_STOPPED))
        return SM_UNROUTED;
    /* G2: pairs with G1. Another generation is another segment: the lane in hand belongs to a shard that ended. */
    uint64_t now = atomic_load_explicit(&there->shard_generation, memory_order_acquire);
    return likely(s->links[shard].lane && s->links[shard].generation == now) ? SM_OK : SM_NEED_LANE;
}

static int refresh_head(sm_sender *s, sm_link *l)
{
    /* A1: acquire; pairs with R0 in frames.c: bytes before the head are ours to overwrite. */
    uint64_t head = sm_position(atomic_load_explicit(&l->lane->head, memory_order_acquire));
    if (unlikely(head > l->tail || l->tail - head > s->lane_bytes || head < l->head_seen))
        return SM_CORRUPT;
    l->head_seen = head;
    return SM_OK;
}

/*
 * How many frame bytes may be written now, and whether a pad comes first. A frame is at most an eighth of the lane,
 * so that one side fills while the other empties, unless its first row alone is larger; half a lane is the limit.
 * Taking what is left at the end of the lane keeps frames large; skipping it is worth it only if the wish does not
 * fit there and the start has more. With an empty lane one of the two is half a lane, so this cannot wedge.
 */
static int room_for(sm_sender *s, sm_link *l, uint64_t wish, uint64_t first, uint64_t *pad, uint64_t *room)
{
    uint64_t offset = l->tail & (s->lane_bytes - 1), at_end = s->lane_bytes - offset;
    uint64_t most = first > s->eighth ? first : s->eighth;
    wish = wish < most ? wish : most;
    for (int fresh = 0;; fresh = 1) {
        uint64_t free_bytes = s->lane_bytes - (l->tail - l->head_seen);
        uint64_t straight = free_bytes < at_end ? free_bytes : at_end;
        uint64_t wrapped = free_bytes > at_end ? free_bytes - at_end : 0;
        straight = straight < most ? straight : most;
        wrapped = wrapped < most ? wrapped : most;
        int skip = straight < wish && wrapped > straight;
        *pad = skip ? at_end : 0;
        *room = skip ? wrapped : straight;
        if (*room >= wish || fresh)
            return SM_OK;
        int status = refresh_head(s, l); /* the cached head says too little: look at the shared one, once */
        if (status != SM_OK)
            return status;
    }
}

/* Nothing before this writes; from here on the frame lies beyond the tail, where nobody looks. */
static sm_frame *begin_frame(sm_sender *s, sm_link *l, uint64_t pad, uint64_t length, uint32_t rows, uint32_t bytes,
                             uint32_t kind, int64_t now)
{
    uint64_t at = l->tail + pad;
    if (pad) {
        sm_frame *gap = (sm_frame *)(l->data + (l->tail & (s->lane_bytes - 1)));
        gap->length = (uint32_t)pad;
        gap->kind = SM_FRAME_PAD;
    }
    sm_frame *f = (sm_frame *)(l->data + (at & (s->lane_bytes - 1)));
    f->length = (uint32_t)length;
    f->kind = (uint16_t)kind;
    f->quarantined = 0;
    f->rows = rows;
    f->bytes = bytes;
    f->position = at;
    f->sequence = s->sequence;
    f->sent_ns = now;
    memset((uint8_t *)f + sizeof *f, 0, (rows + 63) / 64 * 8); /* the done bits, the worker's from publishing on */
    SM_POINT(SEND_CLAIMED);
    /* numbers are used up before anybody can see them, so the next holder of the seat never repeats one */
    s->sequence += rows;
    atomic_store_explicit(&s->seat->next_sequence, s->sequence, memory_order_relaxed);
    return f;
}

/* Rows and length as they were claimed: in the frame another process may have changed them by now, and a tail that is led
 * astray by that takes the next frame out of the lane. */
static void publish(sm_link *l, uint32_t rows, uint64_t length)
{
    SM_POINT(SEND_COPIED);
    uint32_t other = l->parity ^ 1;
    l->accepted += rows;
    /* L1: release, for observers: see the worker's ledger */
    atomic_store_explicit(&l->lane->accepted[other], l->accepted, memory_order_release);
    SM_POINT(SEND_COUNTED);
    l->tail += length;
    l->parity = other;
    /* P0: publishes frame and counts (pairs with A2 in frames.c). seq_cst rather than release because the
     * sleeping flag is read next: see P1 in park.c. */
    atomic_store_explicit(&l->lane->tail, l->tail | other, memory_order_seq_cst);
    SM_POINT(SEND_PUBLISHED);
}

/* ---- keyless events: weight, then the emptier of two of this producer's own lanes --------------------------------- */

static void refresh_active(sm_sender *s)
{
    uint64_t topology = atomic_load_explicit(&s->control->topology, memory_order_seq_cst); /* T2 */
    if (likely(topology == s->topology))
        return;
    s->topology = topology;
    s->active_count = s->weight_sum = 0;
    for (uint32_t i = 0; i < s->max_shards; i++) {
        sm_shard *shard = sm_shard_at(s->control, i);
        if (atomic_load_explicit(&shard->shard_state, memory_order_seq_cst) != SM_SHARD_ACTIVE)
            continue;
        uint32_t weight = atomic_load_explicit(&shard->shard_weight, memory_order_relaxed) & 0xfffff;
        s->active[s->active_count] = i;
        s->weights[s->active_count++] = weight;
        s->weight_sum += weight;
    }
}

static uint32_t draw(sm_sender *s)
{
    s->random ^= s->random << 13; /* xorshift64, Marsaglia 2003 */
    s->random ^= s->random >> 7;
    s->random ^= s->random << 17;
    uint32_t ticket = s->weight_sum ? (uint32_t)((s->random >> 32) * s->weight_sum >> 32) : 0;
    for (uint32_t i = 0; i + 1 < s->active_count; i++) {
        if (ticket < s->weights[i])
            return s->active[i];
        ticket -= s->weights[i];
    }
    return s->active[s->active_count - 1];
}

static uint64_t backlog(sm_sender *s, uint32_t shard)
{
    sm_link *l = &s->links[shard];
    if (!l->lane || refresh_head(s, l) != SM_OK)
        return 0;
    return l->tail - l->head_seen;
}

static uint32_t choose_shard(sm_sender *s)
{
    refresh_active(s);
    if (s->active_count <= 1)
        return s->active_count ? s->active[0] : SM_NO_SHARD;
    uint32_t a = draw(s), b = draw(s);
    return a == b || backlog(s, a) <= backlog(s, b) ? a : b;
}

/* ---- a pass over a chunk: group by shard, fit into the lanes, lay out, copy, publish ----------------------------- */

static sm_group *group_for(sm_sender *s, uint32_t shard, uint32_t *count)
{
    if (s->pass_seen[shard] != s->pass) {
        s->pass_seen[shard] = s->pass;
        s->group_of[shard] = *count;
        sm_group *g = &s->groups[(*count)++];
        memset(g, 0, sizeof *g);
        g->shard = shard;
    }
    return &s->groups[s->group_of[shard]];
}

/* The group that row i joins; NULL: no shard has its slot. */
static inline sm_group *join(sm_sender *s, uint32_t i, uint32_t shard, uint32_t *count)
{
    if (unlikely(shard >= s->max_shards))
        return NULL;
    if (unlikely(s->pass_seen[shard] != s->pass))
        group_for(s, shard, count);
    uint32_t at = s->group_of[shard];
    s->shard_of[i] = (uint16_t)at;
    s->groups[at].rows++;
    return &s->groups[at];
}

/* status of the first shard that cannot be written to, so that the caller can mend it before anything happens */
static int open_groups(sm_sender *s, uint32_t count, uint32_t *shard)
{
    SM_POINT(SEND_ROUTED);
    for (uint32_t i = 0; i < count; i++) {
        int status = linked(s, s->groups[i].shard);
        if (unlikely(status != SM_OK)) {
            *shard = s->groups[i].shard;
            return status;
        }
    }
    return SM_OK;
}

/* The frame of a group, beyond the tail; where what comes after its done bits begins. */
static inline uint8_t *begin_group(sm_sender *s, sm_group *g, uint64_t length, uint32_t kind, int64_t now)
{
    g->length = g->pad + length;
    g->frame = begin_frame(s, &s->links[g->shard], g->pad, length, g->rows, (uint32_t)g->bytes, kind, now);
    return (uint8_t *)g->frame + sm_prefix(g->rows);
}

static void publish_groups(sm_sender *s, uint32_t count)
{
    for (uint32_t i = 0; i < count; i++)
        if (s->groups[i].frame)
            publish(&s->links[s->groups[i].shard], s->groups[i].rows, s->groups[i].length);
}

static int leave_pass(sm_sender *s, uint32_t count, int status)
{
    leave_send(s);
    for (uint32_t i = 0; status == SM_OK && i < count; i++)
        if (s->groups[i].frame)
            sm_ring(s->links[s->groups[i].shard].inbox);
    return status;
}

/* ---- records: of one size, so what fits is known from their number ------------------------------------------------ */

static uint64_t records_length(uint64_t rows, uint64_t row_bytes)
{
    return sm_round(sm_prefix(rows) + rows * row_bytes, SM_ALIGN);
}

static uint32_t records_that_fit(uint64_t room, uint64_t row_bytes)
{
    if (room < records_length(1, row_bytes))
        return 0;
    uint64_t n = (room - sizeof(sm_frame)) * 64 / (row_bytes * 64 + 8);
    n = n < SM_CHUNK ? n : SM_CHUNK;
    while (n && records_length(n, row_bytes) > room)
        n--;
    return (uint32_t)n;
}

static int group_records(sm_sender *s, const uint32_t *pick, uint32_t n, uint32_t *count)
{
    if (s->keying.kind == SM_KEY_NONE) {
        uint32_t shard = choose_shard(s);
        if (unlikely(shard == SM_NO_SHARD))
            return SM_UNROUTED;
        group_for(s, shard, count)->rows = n;
        memset(s->shard_of, 0, n * sizeof *s->shard_of);
        return SM_OK;
    }
    for (uint32_t i = 0; i < n; i++)
        if (unlikely(!join(s, i, route(s, s->slots[pick ? pick[i] : i]), count)))
            return SM_UNROUTED;
    return SM_OK;
}

static int fit_records(sm_sender *s, uint32_t count, uint32_t *shard_out)
{
    const uint64_t row_bytes = s->keying.row_bytes;
    for (uint32_t i = 0; i < count; i++) {
        sm_group *g = &s->groups[i];
        int status = room_for(s, &s->links[g->shard], records_length(g->rows, row_bytes), records_length(1, row_bytes),
                              &g->pad, &g->room);
        if (unlikely(status != SM_OK)) {
            *shard_out = g->shard;
            return status;
        }
        uint32_t fit = records_that_fit(g->room, row_bytes);
        if (fit < g->rows) {
            *shard_out = g->shard;
            g->rows = fit;
        }
    }
    return SM_OK;
}

static void lay_out_records(sm_sender *s, uint32_t count)
{
    int64_t now = sm_clock();
    for (uint32_t i = 0; i < count; i++) {
        sm_group *g = &s->groups[i];
        if (g->rows)
            g->out = begin_group(s, g, records_length(g->rows, s->keying.row_bytes), SM_FRAME_DATA, now);
    }
}

#define COPY_ROWS(BYTES)                                                                                               \
    for (uint32_t i = 0; i < n; i++) {                                                                                 \
        sm_group *g = &s->groups[s->shard_of[i]];                                                                      \
        const uint8_t *row = rows + (uint64_t)(pick ? pick[i] : i) * (BYTES);                                          \
        if (likely(g->taken < g->rows)) {                                                                              \
            g->taken++;                                                                                                \
            memcpy(g->out, row, (BYTES));                                                                              \
            g->out += (BYTES);                                                                                         \
        } else {                                                                                                       \
            pending[left++] = pick ? pick[i] : i;                                                                      \
        }                                                                                                              \
    }

/* How many stay behind, written to pending (which may be pick: it only shrinks). */
static uint32_t copy_records(sm_sender *s, const uint8_t *rows, const uint32_t *pick, uint32_t n, uint32_t *pending)
{
    const uint64_t row_bytes = s->keying.row_bytes;
    uint32_t left = 0;
    if (!pick && s->groups[0].rows == n) { /* all go to one shard, and fit */
        memcpy(s->groups[0].out, rows, n / 2 * row_bytes);
        SM_POINT(SEND_COPYING);
        memcpy(s->groups[0].out + n / 2 * row_bytes, rows + n / 2 * row_bytes, (n - n / 2) * row_bytes);
        return 0;
    }
    SM_POINT(SEND_COPYING);
    switch (row_bytes) { /* sizes known to the compiler become moves instead of calls */
    case 16:
        COPY_ROWS(16) break;
    case 24:
        COPY_ROWS(24) break;
    case 32:
        COPY_ROWS(32) break;
    case 48:
        COPY_ROWS(48) break;
    case 64:
        COPY_ROWS(64) break;
    default:
        COPY_ROWS(row_bytes) break;
    }
    return left;
}

/* rows[pick[i]] or rows[i]; what stays behind is written to pending */
static int pass_records(sm_sender *s, const uint8_t *rows, const uint32_t *pick, uint32_t n, uint32_t *pending,
                        uint32_t *left_out, uint32_t *shard_out)
{
    uint32_t count = 0;
    s->pass++;
    int status = enter_send(s);
    if (likely(status == SM_OK))
        status = group_records(s, pick, n, &count);
    if (likely(status == SM_OK))
        status = open_groups(s, count, shard_out);
    if (likely(status == SM_OK))
        status = fit_records(s, count, shard_out);
    if (likely(status == SM_OK)) { /* nothing is written before all is known to fit */
        lay_out_records(s, count);
        *left_out = copy_records(s, rows, pick, n, pending);
        publish_groups(s, count);
    }
    return leave_pass(s, count, status);
}

/* memcpy of a length that is not known is a call; most keys and many payloads are smaller than what a call costs. */
static inline void copy_piece(uint8_t *to, const uint8_t *from, uint64_t n)
{
    if (n > 64) {
        memcpy(to, from, n);
    } else if (n >= 16) { /* the first and the last 16 bytes of each 32 overlap where it is less */
        memcpy(to, from, 16);
        memcpy(to + n - 16, from + n - 16, 16);
        if (n > 32) {
            memcpy(to + 16, from + 16, 16);
            memcpy(to + n - 32, from + n - 32, 16);
        }
    } else if (n >= 8) {
        memcpy(to, from, 8);
        memcpy(to + n - 8, from + n - 8, 8);
    } else {
        for (uint64_t i = 0; i < n; i++)
            to[i] = from[i];
    }
}

/* ---- events: their sizes differ, so a group ends at the first that its room does not hold --------------------------- */

static uint64_t event_bytes(const sm_event *e) { return (uint64_t)SM_META_LENGTH(e->meta) + e->length; }

static uint64_t events_length(uint64_t rows, uint64_t bytes)
{
    return sm_round(sm_prefix(rows) + rows * sizeof(sm_index) + bytes, SM_ALIGN);
}

/* of a frame with so many rows, whose bytes and bytes of headers are these */
static uint64_t frame_length(const sm_sender *s, uint64_t rows, uint64_t bytes, uint64_t headers)
{
    if (likely(!s->more))
        return events_length(rows, bytes);
    return sm_round(sm_plain_bytes(rows, bytes) + sm_more_bytes(s->more->kind, rows) + headers, SM_ALIGN);
}

static int group_events(sm_sender *s, const sm_event *events, const uint32_t *pick, uint32_t n, uint32_t *count)
{
    uint32_t keyless = SM_NO_SHARD;
    int by_slot = s->more && s->more->kind & SM_FRAME_ORIGIN;
    for (uint32_t i = 0; i < n; i++) {
        uint32_t from = pick ? pick[i] : i, shard;
        const sm_event *e = &events[from];
        if (SM_META_KIND(e->meta) == SM_KEY_NONE && !by_slot) {
            if (keyless == SM_NO_SHARD)
                keyless = choose_shard(s);
            shard = keyless;
        } else {
            shard = route(s, s->slots[from]);
        }
        sm_group *g = join(s, i, shard, count);
        if (unlikely(!g))
            return SM_UNROUTED;
        if (g->rows == 1)
            g->first = event_bytes(e);
        g->bytes += event_bytes(e);
        if (unlikely(s->more != NULL)) {
            if (g->rows == 1)
                g->first_headers = sm_headers_of(s->more, from);
            g->headers += sm_headers_of(s->more, from);
        }
    }
    return SM_OK;
}

/* What fits of the groups that do not fit whole: a prefix, counted before anything is laid out. With an origin a prefix of
 * all rows: what a partition has in the lanes is then told by one offset. */
static void fit_prefixes(sm_sender *s, const sm_event *events, const uint32_t *pick, uint32_t n, uint32_t *shard_out)
{
    for (uint32_t i = 0; i < n; i++) {
        sm_group *g = &s->groups[s->shard_of[i]];
        if (likely(!g->blocked))
            continue;
        uint32_t from = pick ? pick[i] : i;
        uint64_t bytes = g->bytes + event_bytes(&events[from]);
        uint64_t headers = g->headers + (s->more ? sm_headers_of(s->more, from) : 0);
        if (g->blocked == 1 && frame_length(s, g->rows + 1, bytes, headers) <= g->room) {
            g->rows++;
            g->bytes = bytes;
            g->headers = headers;
        } else {
            g->blocked = 2; /* this one and all later ones of the shard wait */
            *shard_out = g->shard;
            if (s->more && s->more->kind & SM_FRAME_ORIGIN)
                return;
        }
    }
}

static void begin_prefix(sm_group *g)
{
    g->blocked = 1; /* for now: it does not fit whole */
    g->rows = 0;
    g->bytes = g->headers = 0;
}

static int fit_events(sm_sender *s, const sm_event *events, const uint32_t *pick, uint32_t n, uint32_t count,
                      uint32_t *shard_out)
{
    uint32_t blocked = 0;
    for (uint32_t i = 0; i < count; i++) {
        sm_group *g = &s->groups[i];
        uint64_t wish = frame_length(s, g->rows, g->bytes, g->headers);
        uint64_t first = frame_length(s, 1, g->first, g->first_headers);
        int status = room_for(s, &s->links[g->shard], wish, first, &g->pad, &g->room);
        if (unlikely(status != SM_OK)) {
            *shard_out = g->shard;
            return status;
        }
        if (wish > g->room) {
            blocked = 1;
            begin_prefix(g);
        }
    }
    if (!blocked)
        return SM_OK;
    for (uint32_t i = 0; s->more && s->more->kind & SM_FRAME_ORIGIN && i < count; i++)
        begin_prefix(&s->groups[i]);
    fit_prefixes(s, events, pick, n, shard_out);
    return SM_OK;
}

static void lay_out_events(sm_sender *s, uint32_t count)
{
    int64_t now = sm_clock();
    uint32_t kind = SM_FRAME_DATA | (unlikely(s->more != NULL) ? s->more->kind : 0);
    for (uint32_t i = 0; i < count; i++) {
        sm_group *g = &s->groups[i];
        if (!g->rows)
            continue;
        g->index = (sm_index *)begin_group(s, g, frame_length(s, g->rows, g->bytes, g->headers), kind, now);
        g->bytes_out = g->bytes_begin = (uint8_t *)(g->index + g->rows);
        if (unlikely(s->more != NULL))
            sm_lay_out_more(s->more, g);
    }
}

static uint32_t copy_events(sm_sender *s, const sm_event *events, const uint32_t *pick, uint32_t n, uint32_t *pending)
{
    uint32_t left = 0;
    for (uint32_t i = 0; i < n; i++) {
        sm_group *g = &s->groups[s->shard_of[i]];
        uint32_t from = pick ? pick[i] : i;
        const sm_event *e = &events[from];
        if (unlikely(g->taken == g->rows)) {
            pending[left++] = from;
            continue;
        }
        g->taken++;
        uint32_t key_length = SM_META_LENGTH(e->meta);
        if (key_length) {
            copy_piece(g->bytes_out, e->key_bytes, key_length);
            g->bytes_out += key_length;
        }
        copy_piece(g->bytes_out, e->payload, e->length);
        g->bytes_out += e->length;
        *g->index++ = (sm_index){e->key, e->meta, (uint32_t)(g->bytes_out - g->bytes_begin)};
        if (unlikely(s->more != NULL))
            sm_copy_more(s->more, g, from);
        SM_POINT(SEND_COPYING);
    }
    return left;
}

static int pass_events(sm_sender *s, const sm_event *events, const uint32_t *pick, uint32_t n, uint32_t *pending,
                       uint32_t *left_out, uint32_t *shard_out)
{
    uint32_t count = 0, last = pick ? pick[n - 1] : n - 1;
    int is_call = s->more && s->more->kind & SM_FRAME_ORIGIN;
    uint64_t sequence = s->sequence;
    s->pass++;
    int status = enter_send(s);
    if (unlikely(is_call) && status == SM_OK && sm_is_superseded(s))
        status = SM_SUPERSEDED;
    if (likely(status == SM_OK))
        status = group_events(s, events, pick, n, &count);
    if (likely(status == SM_OK))
        status = open_groups(s, count, shard_out);
    if (likely(status == SM_OK))
        status = fit_events(s, events, pick, n, count, shard_out);
    if (likely(status == SM_OK)) {
        lay_out_events(s, count);
        *left_out = copy_events(s, events, pick, n, pending);
        if (unlikely(is_call))
            sm_begin_call(s, sequence, count);
        publish_groups(s, count);
        if (unlikely(is_call))
            sm_end_call(s, last, pending, *left_out);
    }
    return leave_pass(s, count, status);
}

/* ---- whole calls ------------------------------------------------------------------------------------------------ */

/* What a call still has to do starts at the chunk that left rows behind, or else at the next one. */
uint64_t sm_resume(const sm_cursor *c, uint64_t n, uint32_t limit, uint32_t *rows)
{
    uint64_t start = c->pending_count ? c->chunk : c->next;
    uint64_t end = c->pending_count ? c->next : (n - start < limit ? n : start + limit);
    *rows = (uint32_t)(end - start);
    return start;
}

void sm_advance(sm_cursor *c, uint64_t start, uint32_t rows, int status)
{
    if (status == SM_OK || c->pending_count) { /* otherwise not one row of it was taken */
        c->chunk = start;
        c->next = start + rows;
    }
}

/* as many rows as one frame for each shard holds, if they spread evenly: larger chunks would be gone over twice */
static uint32_t chunk_rows(const sm_sender *s)
{
    uint64_t rows =
        (uint64_t)records_that_fit(s->eighth, s->keying.row_bytes) * (s->linked_count ? s->linked_count : 1);
    return rows < 64 ? 64 : rows < SM_CHUNK ? (uint32_t)rows : SM_CHUNK;
}

int sm_send(sm_sender *s, const void *rows, uint64_t n, sm_cursor *c)
{
    int status = sm_lock_unforked(s);
    if (status != SM_OK)
        return status;
    const uint32_t limit = chunk_rows(s);
    while (status == SM_OK && (c->pending_count || c->next < n)) {
        status = sm_sender_usable(s);
        if (unlikely(status != SM_OK))
            break;
        uint32_t chunk;
        uint64_t start = sm_resume(c, n, limit, &chunk);
        const uint8_t *at = (const uint8_t *)rows + start * s->keying.row_bytes;
        if (s->keying.kind != SM_KEY_NONE)
            sm_slots_of(&s->keying, at, chunk, s->slots);
        do {
            uint32_t before = c->pending_count ? c->pending_count : chunk, left = 0;
            status = pass_records(s, at, c->pending_count ? c->pending : NULL, before, c->pending, &left, &c->shard);
            if (status != SM_OK)
                break;
            c->accepted += before - left;
            c->pending_count = left;
            if (left == before)
                status = SM_FULL;
        } while (status == SM_OK && c->pending_count);
        sm_advance(c, start, chunk, status);
    }
    sm_sender_unlock(s);
    return status;
}

static uint32_t slot_of_event(const sm_sender *s, const sm_event *e)
{
    uint64_t hash = SM_META_KIND(e->meta) == SM_KEY_INT ? sm_hash_int(e->key) : e->key;
    return (uint32_t)hash & (s->keying.slots - 1);
}

int sm_push_chunk(sm_sender *s, const sm_event *events, uint32_t n, sm_cursor *c)
{
    int status = sm_sender_usable(s);
    if (status != SM_OK)
        return status;
    if (unlikely(s->more && s->more->kind & SM_FRAME_ORIGIN))
        sm_slots_by_partition(s, events, n);
    else
        for (uint32_t i = 0; i < n; i++)
            s->slots[i] = slot_of_event(s, &events[i]);
    do {
        uint32_t before = c->pending_count ? c->pending_count : n, left = 0;
        status = pass_events(s, events, c->pending_count ? c->pending : NULL, before, c->pending, &left, &c->shard);
        if (status != SM_OK)
            return status;
        c->accepted += before - left;
        c->pending_count = left;
        if (left == before)
            status = SM_FULL;
    } while (status == SM_OK && c->pending_count);
    return status;
}

int sm_push_one(sm_sender *s, const sm_event *e, uint32_t *shard_out)
{
    int status = sm_sender_usable(s);
    if (unlikely(status != SM_OK))
        return status;
    uint64_t bytes = event_bytes(e), length = events_length(1, bytes);
    if (unlikely(bytes > s->half || length > s->half))
        return SM_TOO_LARGE;
    uint32_t slot = slot_of_event(s, e), shard;
    sm_link *l = NULL;
    status = enter_send(s);
    if (unlikely(status != SM_OK))
        goto leave;
    shard = SM_META_KIND(e->meta) == SM_KEY_NONE ? choose_shard(s) : shard_of_slot(s, slot);
    SM_POINT(SEND_ROUTED);
    *shard_out = shard;
    status = linked(s, shard);
    if (unlikely(status != SM_OK))
        goto leave;
    l = &s->links[shard];
    uint64_t pad, room;
    status = room_for(s, l, length, length, &pad, &room);
    if (unlikely(status != SM_OK))
        goto leave;
    if (unlikely(room < length)) {
        status = SM_FULL;
        goto leave;
    }
    sm_frame *f = begin_frame(s, l, pad, length, 1, (uint32_t)bytes, SM_FRAME_DATA, sm_clock());
    sm_index *index = (sm_index *)((uint8_t *)f + sm_prefix(1));
    uint8_t *out = (uint8_t *)(index + 1);
    uint32_t key_length = SM_META_LENGTH(e->meta);
    *index = (sm_index){e->key, e->meta, (uint32_t)bytes};
    if (key_length)
        copy_piece(out, e->key_bytes, key_length);
    SM_POINT(SEND_COPYING);
    copy_piece(out + key_length, e->payload, e->length);
    publish(l, 1, pad + length);
leave:
    leave_send(s);
    if (likely(status == SM_OK))
        sm_ring(l->inbox);
    return status;
}

int sm_push(sm_sender *s, uint32_t key_kind, uint64_t key, uint32_t key_unsigned, const void *key_bytes,
            uint32_t key_length, const void *payload, uint32_t payload_length, uint32_t *shard)
{
    if (key_length >= SM_META_MISSING)
        return SM_TOO_LARGE; /* it would run into the bits beside the length */
    sm_event e = {key, key_bytes, payload ? payload : "", key_kind << 30 | key_length, payload ? payload_length : 0};
    if (!payload)
        e.meta |= SM_META_MISSING;
    if (key_unsigned)
        e.meta |= SM_META_UNSIGNED;
    if (key_kind == SM_KEY_BYTES || key_kind == SM_KEY_STR)
        e.key = sm_hash_bytes(key_bytes, key_length);
    int status = sm_lock_unforked(s);
    if (status != SM_OK)
        return status;
    status = sm_push_one(s, &e, shard);
    sm_sender_unlock(s);
    return status;
}
