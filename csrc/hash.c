/* role: none
 * XXH64, written from its specification (github.com/Cyan4973/xxHash, doc/xxhash_spec.md), and the mapping of
 * keys to slots. The seed is shardmem's own: a host that owns partition p of a Kafka topic sees only keys of
 * one residue of the hash that chose the partition, and reusing that hash would leave most slots empty.
 */
#include <string.h>

#include "internal.h"

#define P1 UINT64_C(0x9E3779B185EBCA87)
#define P2 UINT64_C(0xC2B2AE3D27D4EB4F)
#define P3 UINT64_C(0x165667B19E3779F9)
#define P4 UINT64_C(0x85EBCA77C2B2AE63)
#define P5 UINT64_C(0x27D4EB2F165667C5)

static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "the layout and the hash are little-endian");

static inline uint64_t rotl(uint64_t x, int r) { return (x << r) | (x >> (64 - r)); }

static inline uint64_t load64(const uint8_t *p)
{
    uint64_t v;
    memcpy(&v, p, 8);
    return v;
}

static inline uint32_t load32(const uint8_t *p)
{
    uint32_t v;
    memcpy(&v, p, 4);
    return v;
}

static inline uint64_t stripe(uint64_t acc, uint64_t lane) { return rotl(acc + lane * P2, 31) * P1; }

static inline uint64_t merge(uint64_t acc, uint64_t lane) { return (acc ^ stripe(0, lane)) * P1 + P4; }

static inline uint64_t avalanche(uint64_t h)
{
    h ^= h >> 33;
    h *= P2;
    h ^= h >> 29;
    h *= P3;
    return h ^ h >> 32;
}

uint64_t sm_xxh64(const void *data, uint64_t bytes, uint64_t seed)
{
    const uint8_t *p = data, *end = p + bytes;
    uint64_t h;
    if (bytes >= 32) {
        uint64_t a = seed + P1 + P2, b = seed + P2, c = seed, d = seed - P1;
        for (; p + 32 <= end; p += 32) {
            a = stripe(a, load64(p));
            b = stripe(b, load64(p + 8));
            c = stripe(c, load64(p + 16));
            d = stripe(d, load64(p + 24));
        }
        h = rotl(a, 1) + rotl(b, 7) + rotl(c, 12) + rotl(d, 18);
        h = merge(merge(merge(merge(h, a), b), c), d);
    } else {
        h = seed + P5;
    }
    h += bytes;
    for (; p + 8 <= end; p += 8)
        h = rotl(h ^ stripe(0, load64(p)), 27) * P1 + P4;
    if (p + 4 <= end) {
        h = rotl(h ^ load32(p) * P1, 23) * P2 + P3;
        p += 4;
    }
    for (; p < end; p++)
        h = rotl(h ^ *p * P5, 11) * P1;
    return avalanche(h);
}

uint64_t sm_hash_int(uint64_t key)
{
    uint64_t h = SM_SEED + P5 + 8;
    return avalanche(rotl(h ^ stripe(0, key), 27) * P1 + P4);
}

uint64_t sm_hash_bytes(const void *key, uint64_t bytes) { return sm_xxh64(key, bytes, SM_SEED); }

/* A numeric key has one slot whatever the width of its field: sign- or zero-extended to 64 bits. */
static inline uint64_t widen(const uint8_t *p, uint32_t bytes, int is_signed)
{
    switch (bytes) {
    case 1:
        return is_signed ? (uint64_t)(int64_t)(int8_t)*p : *p;
    case 2: {
        uint16_t v;
        memcpy(&v, p, 2);
        return is_signed ? (uint64_t)(int64_t)(int16_t)v : v;
    }
    case 4:
        return is_signed ? (uint64_t)(int64_t)(int32_t)load32(p) : load32(p);
    default:
        return load64(p);
    }
}

/* numpy pads bytes fields with zeros and strips them on the way out, so they are not part of the key */
static inline uint64_t stripped(const uint8_t *p, uint64_t bytes)
{
    while (bytes && p[bytes - 1] == 0)
        bytes--;
    return bytes;
}

void sm_slots_of(const sm_keying *k, const uint8_t *rows, uint64_t n, uint32_t *slots)
{
    const uint8_t *key = rows + k->offset;
    const uint64_t stride = k->row_bytes;
    const uint32_t mask = k->slots - 1;
    if (k->kind == SM_KEY_INT && k->bytes == 8)
        for (uint64_t i = 0; i < n; i++, key += stride)
            slots[i] = (uint32_t)sm_hash_int(load64(key)) & mask;
    else if (k->kind == SM_KEY_INT)
        for (uint64_t i = 0; i < n; i++, key += stride)
            slots[i] = (uint32_t)sm_hash_int(widen(key, k->bytes, k->is_signed)) & mask;
    else
        for (uint64_t i = 0; i < n; i++, key += stride)
            slots[i] = (uint32_t)sm_hash_bytes(key, stripped(key, k->bytes)) & mask;
}

void sm_hashes_of(const sm_keying *k, const uint8_t *rows, uint64_t n, uint64_t *hashes)
{
    const uint8_t *key = rows + k->offset;
    for (uint64_t i = 0; i < n; i++, key += k->row_bytes)
        hashes[i] = k->kind == SM_KEY_INT ? sm_hash_int(widen(key, k->bytes, k->is_signed))
                                          : sm_hash_bytes(key, stripped(key, k->bytes));
}

sm_keying sm_keying_of(const sm_geometry *g)
{
    return (sm_keying){g->key_kind, g->key_offset, g->key_bytes, g->key_signed, g->row_bytes, g->slots};
}

int sm_slots_of_rows(const sm_geometry *g, const void *rows, uint64_t n, uint32_t *slots)
{
    sm_keying k = sm_keying_of(g);
    if (k.kind == SM_KEY_NONE)
        return SM_UNROUTED;
    sm_slots_of(&k, rows, n, slots);
    return SM_OK;
}

int sm_slots_of_ints(const uint64_t *keys, uint64_t n, uint32_t slots_count, uint32_t *slots)
{
    for (uint64_t i = 0; i < n; i++)
        slots[i] = (uint32_t)sm_hash_int(keys[i]) & (slots_count - 1);
    return SM_OK;
}
