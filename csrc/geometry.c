/* role: none
 * What never changes in a segment: sizes and places that follow from the geometry, and whether headers say them.
 */
#include <string.h>

#include "internal.h"

static int power_of_two(uint64_t n) { return n && (n & (n - 1)) == 0; }

int sm_geometry_complete(sm_geometry *g)
{
    if (!power_of_two(g->slots) || g->slots > SM_MAX_SLOTS || !g->max_shards || g->max_shards > SM_MAX_SHARDS ||
        !g->max_producers || g->max_producers > SM_MAX_PRODUCERS || !power_of_two(g->lane_bytes) ||
        g->lane_bytes < SM_PAGE || g->lane_bytes > UINT64_C(1) << 31 || g->schema_bytes > SM_SCHEMA_BYTES ||
        g->name_bytes > SM_NAME_BYTES)
        return SM_GEOMETRY;
    if (g->row_bytes) {
        if (sm_prefix(1) + g->row_bytes > g->lane_bytes / 2)
            return SM_GEOMETRY;
        if (g->key_kind != SM_KEY_NONE && (uint64_t)g->key_offset + g->key_bytes > g->row_bytes)
            return SM_GEOMETRY;
        if (g->key_kind == SM_KEY_INT && (!power_of_two(g->key_bytes) || g->key_bytes > 8))
            return SM_GEOMETRY;
        if (g->key_kind > SM_KEY_BYTES)
            return SM_GEOMETRY;
    } else if (g->key_kind != SM_KEY_NONE) {
        return SM_GEOMETRY;
    }
    g->control_bytes = sm_round(SM_SHARDS_OFFSET + g->max_shards * sizeof(sm_shard), SM_PAGE);
    g->lane_stride = SM_PAGE + g->lane_bytes;
    g->lanes_offset = SM_LANES_OFFSET;
    g->inbox_bytes = SM_LANES_OFFSET + g->lane_stride * g->max_producers;
    return SM_OK;
}

uint32_t sm_control_ranges(const sm_geometry *g, uint64_t *offsets, uint64_t *lengths)
{
    const uint64_t used[][2] = {
        {0, SM_SEATS_OFFSET + g->max_producers * sizeof(sm_seat)},
        {SM_SLOTS_OFFSET, g->slots * sizeof(sm_slot)},
        {SM_HOLDS_OFFSET, g->slots * sizeof(sm_hold)},
        {SM_MOVES_OFFSET, g->slots * sizeof(sm_move)},
        {SM_BOARD_OFFSET, SM_BOARDS * sizeof(sm_board)},
        {SM_PARTITIONS_OFFSET, SM_SHARDS_OFFSET - SM_PARTITIONS_OFFSET},
        {SM_SHARDS_OFFSET, g->max_shards * sizeof(sm_shard)},
    };
    const uint32_t n = sizeof used / sizeof *used;
    for (uint32_t i = 0; i < n; i++) {
        offsets[i] = used[i][0];
        lengths[i] = used[i][1];
    }
    return n;
}

/* control: its first page, or a copy of that. bytes: of the whole */
int sm_control_read(const void *control, uint64_t bytes, sm_geometry *out, uint32_t *version)
{
    const sm_control *c = control;
    *version = 0;
    if (bytes < sizeof(sm_control))
        return SM_GEOMETRY; /* it is given its whole size in one step */
    /* V2: pairs with V1 in put_header. */
    *version = atomic_load_explicit(&c->version, memory_order_acquire);
    if (*version == 0)
        return SM_UNREADY;
    if (c->magic != SM_MAGIC_CONTROL)
        return SM_MAGIC;
    if (*version != SM_LAYOUT_VERSION || c->header_bytes != sizeof(sm_control))
        return SM_VERSION;
    *out = c->geometry;
    if (c->geometry_check != sm_hash_bytes(out, sizeof *out))
        return SM_DAMAGED;
    sm_geometry derived = *out;
    if (sm_geometry_complete(&derived) != SM_OK || memcmp(&derived, out, sizeof derived) != 0 ||
        bytes < derived.control_bytes)
        return SM_GEOMETRY;
    return SM_OK;
}

int sm_inbox_check(const void *inbox, uint64_t bytes, const sm_geometry *g, uint32_t shard, uint64_t generation)
{
    const sm_inbox *b = inbox;
    if (bytes < sizeof(sm_inbox))
        return SM_DAMAGED;
    uint32_t version = atomic_load_explicit(&b->inbox_version, memory_order_acquire); /* V2 */
    if (version == 0)
        return SM_UNREADY;
    if (b->magic != SM_MAGIC_INBOX)
        return SM_MAGIC;
    if (version != SM_LAYOUT_VERSION)
        return SM_VERSION;
    if (b->check != sm_inbox_sum(b))
        return SM_DAMAGED;
    if (b->engine_id != g->engine_id || b->lane_bytes != g->lane_bytes || b->max_producers != g->max_producers ||
        b->shard != shard || b->generation != generation)
        return SM_GEOMETRY;
    return bytes < g->inbox_bytes ? SM_DAMAGED : SM_OK;
}
