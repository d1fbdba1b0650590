/* role: producer
 * The life of a sender: its links to inboxes, its seat and what that counts, and waiting for room. What it sends: send.c.
 */
#include "sender.h"

#include <stdlib.h>
#include <string.h>

uint64_t sm_fork_count;
static void forked(void) { sm_fork_count++; }
static void __attribute__((constructor)) watch_forks(void) { pthread_atfork(NULL, NULL, forked); }

static uint64_t load_parity(_Atomic uint64_t *word, uint32_t *parity)
{
    uint64_t w = atomic_load_explicit(word, memory_order_acquire);
    *parity = w & 1;
    return sm_position(w);
}

/* ---- life ------------------------------------------------------------------------------------------------------- */

/* g: as of sm_reader_new */
sm_sender *sm_sender_new(void *control, const sm_geometry *g, uint32_t seat)
{
    sm_sender *s = calloc(1, sizeof *s);
    if (!s)
        return NULL;
    pthread_mutex_init(&s->lock, NULL);
    s->control = control;
    s->seat = sm_seat_at(control, seat);
    s->seat_number = seat;
    s->keying = sm_keying_of(g);
    s->lane_bytes = g->lane_bytes;
    s->half = g->lane_bytes / 2;
    s->eighth = g->lane_bytes / 8;
    s->max_shards = g->max_shards;
    s->forks = sm_fork_count;
    s->incarnation = atomic_load_explicit(&s->seat->seat_incarnation, memory_order_relaxed);
    s->mark = atomic_load_explicit(&s->seat->mark, memory_order_relaxed);
    s->sequence = atomic_load_explicit(&s->seat->next_sequence, memory_order_relaxed);
    s->random = sm_hash_int(g->engine_id ^ seat ^ (uint64_t)sm_clock()) | 1;
    s->active = calloc(g->max_shards, sizeof *s->active);
    s->weights = calloc(g->max_shards, sizeof *s->weights);
    s->pass_seen = calloc(g->max_shards, sizeof *s->pass_seen);
    s->routes = calloc(g->slots, sizeof *s->routes);
    s->group_of = calloc(g->max_shards, sizeof *s->group_of);
    s->links = calloc(g->max_shards, sizeof *s->links);
    s->groups = calloc(g->max_shards, sizeof *s->groups);
    s->topology = UINT64_MAX;
    if (!s->active || !s->weights || !s->pass_seen || !s->routes || !s->group_of || !s->links || !s->groups) {
        sm_sender_free(s);
        return NULL;
    }
    return s;
}

void sm_sender_free(sm_sender *s)
{
    pthread_mutex_destroy(&s->lock);
    free(s->active);
    free(s->weights);
    free(s->pass_seen);
    free(s->routes);
    free(s->group_of);
    free(s->links);
    free(s->groups);
    free(s);
}

sm_event *sm_sender_events(sm_sender *s) { return s->events; }
int sm_sender_trylock(sm_sender *s) { return pthread_mutex_trylock(&s->lock) == 0; }
void sm_sender_lock(sm_sender *s) { pthread_mutex_lock(&s->lock); }
void sm_sender_unlock(sm_sender *s) { pthread_mutex_unlock(&s->lock); }
int sm_sender_forked(const sm_sender *s) { return s->forks != sm_fork_count; }

void sm_sender_close(sm_sender *s)
{
    if (sm_lock_unforked(s) != SM_OK)
        return;
    s->closed = 1;
    sm_sender_unlock(s);
}

int sm_seat_enter(void *control, uint32_t seat, int64_t pid, uint64_t now_ns)
{
    sm_seat *s = sm_seat_at(control, seat);
    uint64_t mark = atomic_load_explicit(&s->mark, memory_order_relaxed);
    uint64_t lives = atomic_load_explicit(&s->seat_incarnation, memory_order_relaxed);
    atomic_store_explicit(&s->seat_pid, pid, memory_order_relaxed);
    atomic_store_explicit(&s->seat_entered_ns, now_ns, memory_order_relaxed);
    atomic_store_explicit(&s->seat_incarnation, lives + 1, memory_order_relaxed);
    if (mark & 1) /* the last holder died inside a send; it published all or nothing of each lane */
        atomic_store_explicit(&s->mark, mark + 1, memory_order_seq_cst);
    return SM_OK;
}

int sm_seat_leave(void *control, uint32_t seat)
{
    atomic_store_explicit(&sm_seat_at(control, seat)->seat_pid, 0, memory_order_relaxed);
    return SM_OK;
}

void sm_name_seat(void *control, uint32_t seat, uint64_t name)
{
    atomic_store_explicit(&sm_seat_at(control, seat)->seat_name, name, memory_order_release);
}

void sm_seat_client(void *control, uint32_t seat, const char *text, uint32_t bytes)
{
    uint64_t words[SM_CLIENT_BYTES / 8] = {0};
    memcpy(words, text, bytes < SM_CLIENT_BYTES ? bytes : SM_CLIENT_BYTES);
    for (int i = 0; i < SM_CLIENT_BYTES / 8; i++)
        atomic_store_explicit(&sm_seat_at(control, seat)->seat_client[i], words[i], memory_order_relaxed);
}

int sm_resume_call(sm_sender *s, uint32_t partition, uint32_t epoch, uint64_t until)
{
    int status = sm_lock_usable(s);
    if (status != SM_OK)
        return status;
    if (s->resumed_count < RESUMED)
        s->resumed[s->resumed_count++] = (sm_resumed){until, partition, epoch};
    sm_sender_unlock(s);
    return SM_OK;
}

/* All of it under the lock: another thread may link the same lane at the same time, and push through it at once. */
int sm_sender_link(sm_sender *s, uint32_t shard, uint64_t generation, void *inbox)
{
    if (shard >= s->max_shards)
        return SM_CORRUPT;
    int status = sm_lock_usable(s);
    if (status != SM_OK)
        return status;
    sm_link *l = &s->links[shard];
    if (l->lane && l->generation == generation) {
        sm_sender_unlock(s);
        return 1;
    }
    sm_lane *lane = sm_lane_at(inbox, s->lane_bytes, s->seat_number);
    sm_link link = {.inbox = inbox, .lane = lane, .data = sm_lane_data(lane), .generation = generation};
    uint32_t ignored;
    link.tail = load_parity(&lane->tail, &link.parity);
    link.head_seen = load_parity(&lane->head, &ignored);
    link.accepted = atomic_load_explicit(&lane->accepted[link.parity], memory_order_relaxed);
    if (link.head_seen > link.tail || link.tail - link.head_seen > s->lane_bytes) {
        status = SM_CORRUPT;
    } else {
        /* O1: the lane is reserved, and open before anything is published in it. Pairs with O2 in frames.c: a worker
         * touches a lane only if it is open; seq_cst, because a lane that opens is news to a worker that parks. */
        atomic_store_explicit(&((sm_inbox *)inbox)->lane_open[s->seat_number], 1, memory_order_seq_cst);
        sm_wake(
            inbox); /* whatever the last holder of this seat may owe: it may have died between its tail and its ring */
        s->linked_count += l->lane == NULL;
        *l = link;
    }
    sm_sender_unlock(s);
    return status;
}

static sm_lane *lane_to(sm_sender *s, uint32_t shard, uint64_t *tail, uint64_t *head_seen)
{
    if (shard >= s->max_shards || sm_lock_unforked(s) != SM_OK)
        return NULL;
    sm_link *l = &s->links[shard];
    sm_lane *lane = l->lane;
    *tail = l->tail;
    *head_seen = l->head_seen;
    sm_sender_unlock(s);
    return lane;
}

int sm_sender_broken(sm_sender *s, uint32_t shard)
{
    uint64_t ignored;
    sm_lane *lane = lane_to(s, shard, &ignored, &ignored);
    return lane && atomic_load_explicit(&lane->broken, memory_order_acquire);
}

uint64_t sm_sender_generation(sm_sender *s, uint32_t shard)
{
    return shard < s->max_shards
               ? atomic_load_explicit(&sm_shard_at(s->control, shard)->shard_generation, memory_order_acquire)
               : 0;
}

int sm_sender_position(sm_sender *s, uint32_t shard, uint64_t *tail, uint64_t *head)
{
    uint64_t ignored;
    sm_lane *lane = lane_to(s, shard, tail, &ignored);
    if (!lane)
        return SM_NEED_LANE;
    *head = sm_position(atomic_load_explicit(&lane->head, memory_order_acquire));
    return SM_OK;
}

uint64_t sm_max_payload(sm_sender *s, uint64_t key_bytes)
{
    uint64_t most = s->half - sm_prefix(1) - sizeof(sm_index);
    return key_bytes < most ? most - key_bytes : 0;
}

int sm_count_refused(sm_sender *s, uint32_t reason, uint64_t rows)
{
    int status = sm_lock_usable(s);
    if (status != SM_OK)
        return status;
    _Atomic uint64_t *word = &s->seat->seat_refused[reason % SM_REASONS];
    atomic_store_explicit(&s->seat->seat_refused[reason % SM_REASONS],
                          atomic_load_explicit(word, memory_order_relaxed) + rows, memory_order_relaxed);
    sm_sender_unlock(s);
    return SM_OK;
}

int sm_count_blocked(sm_sender *s, uint64_t nanoseconds)
{
    int status = sm_lock_usable(s);
    if (status != SM_OK)
        return status;
    uint64_t ns = atomic_load_explicit(&s->seat->seat_blocked_ns, memory_order_relaxed) + nanoseconds;
    uint64_t count = atomic_load_explicit(&s->seat->seat_blocked_count, memory_order_relaxed) + 1;
    atomic_store_explicit(&s->seat->seat_blocked_ns, ns, memory_order_relaxed);
    atomic_store_explicit(&s->seat->seat_blocked_count, count, memory_order_relaxed);
    sm_sender_unlock(s);
    return SM_OK;
}

/* ---- waiting (mark even, lock released) ------------------------------------------------------------------------- */

static _Thread_local sm_spin spin; /* of the waiting thread: two threads of one producer learn apart */

int sm_wait_room(sm_sender *s, uint32_t shard, int64_t spin_ns, int64_t timeout_ns)
{
    uint64_t tail, head;
    sm_lane *lane = lane_to(s, shard, &tail, &head);
    if (!lane)
        return SM_NEED_LANE;
    /* Awake, a little room is worth going back for. Asleep, half a lane: one wake for many frames, not one for each.
     * In any case more than there was when it was found too little, or waiting would return at once; and never more than
     * there is: another thread may have seen the lane empty since (backlog), or linked another inbox in its place, and the
     * head never passes the tail. */
    uint64_t near = tail > s->lane_bytes - s->eighth ? tail - (s->lane_bytes - s->eighth) : 0;
    uint64_t target = tail > s->half ? tail - s->half : 0;
    near = near > head ? near : head + 1;
    near = near < tail ? near : tail;
    target = target > near ? target : near;
    return sm_wait_head(lane, near, target, &spin, spin_ns, timeout_ns);
}

int sm_wait_handled(sm_sender *s, uint32_t shard, uint64_t position, int64_t spin_ns, int64_t timeout_ns)
{
    uint64_t tail, ignored;
    sm_lane *lane = lane_to(s, shard, &tail, &ignored);
    if (!lane)
        return SM_NEED_LANE;
    /* A position beyond the tail was of an inbox that is gone since; it was empty then, or it would not be. */
    position = position < tail ? position : tail;
    return sm_wait_head(lane, position, position, &spin, spin_ns, timeout_ns);
}

int sm_evict(sm_sender *s, uint32_t shard)
{
    if (shard >= s->max_shards)
        return SM_NEED_LANE;
    int status = sm_lock_usable(s);
    if (status != SM_OK)
        return status;
    sm_link *l = &s->links[shard];
    if (l->lane && l->tail > s->half) {
        /* N1: seq_cst, because the sleeping flag is read next (P1): a worker may sleep over a lane that is full of rows
         * which it holds back. Pairs with N2 in evicted_until. */
        atomic_store_explicit(&l->lane->evict, l->tail - s->half, memory_order_seq_cst);
        sm_ring(l->inbox);
    }
    sm_sender_unlock(s);
    return SM_OK;
}
