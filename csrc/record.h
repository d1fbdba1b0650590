/* What the scanners of the formats share: bytes that matter found 64 at a time as bits of a word, and one record whose fields
 * are looked for. */
#ifndef SHARDMEM_RECORD_H
#define SHARDMEM_RECORD_H

#include <string.h>
#if defined(__SSE2__)
#include <emmintrin.h>
#endif

#include "internal.h"
#include "scan.h"

/* ---- bytes that matter -------------------------------------------------------------------------------------- */

typedef struct sm_finder {
    const uint8_t *data;
    uint64_t base, bytes, mask;
    uint8_t byte[4];
} sm_finder;

static inline uint64_t sm_mask_at(const sm_finder *f, uint64_t at)
{
    const uint8_t *p = f->data + at;
    uint64_t mask = 0;
#if defined(__SSE2__)
    const __m128i a = _mm_set1_epi8((char)f->byte[0]), b = _mm_set1_epi8((char)f->byte[1]);
    const __m128i c = _mm_set1_epi8((char)f->byte[2]), d = _mm_set1_epi8((char)f->byte[3]);
    for (int i = 0; i < 4; i++) {
        __m128i v = _mm_loadu_si128((const __m128i *)(p + 16 * i));
        __m128i any = _mm_or_si128(_mm_or_si128(_mm_cmpeq_epi8(v, a), _mm_cmpeq_epi8(v, b)),
                                   _mm_or_si128(_mm_cmpeq_epi8(v, c), _mm_cmpeq_epi8(v, d)));
        mask |= (uint64_t)(uint16_t)_mm_movemask_epi8(any) << (16 * i);
    }
#else
    for (int i = 0; i < 64; i++)
        mask |= (uint64_t)(p[i] == f->byte[0] || p[i] == f->byte[1] || p[i] == f->byte[2] || p[i] == f->byte[3]) << i;
#endif
    return mask;
}

static inline void sm_find_from(sm_finder *f, uint64_t at)
{
    f->base = at;
    f->mask = at < f->bytes ? sm_mask_at(f, at) : 0;
}

/* the next such byte, or `bytes` */
static inline uint64_t sm_find(sm_finder *f)
{
    while (!f->mask) {
        f->base += 64;
        if (f->base >= f->bytes)
            return f->bytes;
        f->mask = sm_mask_at(f, f->base);
    }
    uint64_t at = f->base + (uint64_t)__builtin_ctzll(f->mask);
    f->mask &= f->mask - 1;
    return at < f->bytes ? at : f->bytes;
}

/* ---- one record --------------------------------------------------------------------------------------------- */

typedef struct sm_record {
    const sm_scan *scan;
    uint8_t *data;
    uint64_t start, end, scratch;
    uint64_t *fields;
    uint8_t *values;
    uint32_t reason, field;
    uint64_t at;
} sm_record;

static inline int sm_refuse(sm_record *r, uint32_t reason, uint32_t field, uint64_t at)
{
    r->reason = reason;
    r->field = field;
    r->at = at;
    return 0;
}

static inline void sm_put(sm_record *r, uint32_t wanted, uint64_t from, uint64_t to, uint8_t value)
{
    r->fields[2 * wanted] = from;
    r->fields[2 * wanted + 1] = to;
    r->values[wanted] = value;
}

static inline int32_t sm_wanted_at(const sm_scan *s, uint64_t number)
{
    return number < s->positions ? s->position[number] : -1;
}

static inline void sm_put_position(sm_record *r, uint64_t number, uint64_t from, uint64_t to)
{
    int32_t wanted = sm_wanted_at(r->scan, number);
    if (wanted >= 0)
        sm_put(r, (uint32_t)wanted, from, to, SM_VALUE_TEXT);
}

static inline int sm_is_blank(uint8_t c) { return c == ' ' || (c >= '\t' && c <= '\r'); }

static inline sm_record sm_begin(const sm_scan *s, uint8_t *data, sm_found *found, uint64_t start)
{
    uint64_t i = found->records;
    sm_record r = {
        s, data, start, start, found->scratch, found->fields + 2 * i * s->wanted, found->values + i * s->wanted,
        0, 0,    0};
    memset(r.values, 0, s->wanted);
    return r;
}

static inline int sm_full(const sm_found *found)
{
    return found->records == found->capacity || found->bads == found->bad_capacity;
}

/* text between quotes and members by name, in JSON and logfmt: where the reading is */
typedef struct sm_parser {
    sm_record *r;
    const uint8_t *p, *end;
} sm_parser;

static inline int sm_bad_text(sm_parser *j, uint32_t reason)
{
    return sm_refuse(j->r, reason, 0, (uint64_t)(j->p - j->r->data));
}

/* scan_member.c */
int sm_string(sm_parser *j);
uint32_t sm_member(sm_record *r, const uint8_t *name, const uint8_t *end, int escaped, uint32_t node, uint32_t *hint);
int sm_put_value(sm_parser *j, int32_t wanted, const uint8_t *from, const uint8_t *to, uint8_t value, int escaped);
uint32_t sm_field_below(const sm_scan *s, uint32_t node);

/* the fields of one record, of each format: 0 if it is refused */
int sm_json_fields(sm_record *r);
int sm_logfmt_fields(sm_record *r);
int sm_syslog_fields(sm_record *r);
int sm_combined_fields(sm_record *r);

/* scan_key.c: the key of an event, of one field or of several joined by a byte */
int sm_make_key(sm_record *r, uint8_t *kind, uint64_t *key, uint64_t *span);

/* blocks, and the rest of a record that is not wanted */
void sm_scan_csv(sm_scan *s, uint8_t *data, uint64_t bytes, int final, sm_found *found);
int sm_skip_csv(sm_scan *s, const uint8_t *data, uint64_t bytes, int first, uint64_t *consumed);
void sm_scan_lines(sm_scan *s, uint8_t *data, uint64_t bytes, int final, sm_found *found);
int sm_skip_line(sm_scan *s, const uint8_t *data, uint64_t bytes, uint64_t *consumed);

/* A byte order mark at the start of a record is that of a file that was put behind another. It would be part of a field. */
static inline void sm_check_mark(sm_record *r)
{
    if (r->reason || r->end - r->start < 3 || memcmp(r->data + r->start, "\xef\xbb\xbf", 3) != 0)
        return;
    for (uint32_t f = 0; f < r->scan->wanted; f++)
        if (r->values[f] && r->fields[2 * f] == r->start)
            sm_refuse(r, SM_BAD_MARK, f, r->start);
}

/* a record whose fields are known: into the columns, or among the bad ones */
static inline void sm_take(sm_found *found, sm_record *r, uint64_t line, uint64_t lines)
{
    const sm_scan *s = r->scan;
    uint64_t i = found->records, key_bytes = 0;
    if (unlikely(r->start < r->end && r->data[r->start] == 0xef))
        sm_check_mark(r);
    if (!r->reason && s->key_mode && s->wanted &&
        sm_make_key(r, &found->key_kinds[i], &found->keys[i], &found->key_spans[2 * i]))
        key_bytes = found->key_spans[2 * i + 1] - found->key_spans[2 * i];
    if (!r->reason && r->end - r->start + key_bytes > s->most)
        sm_refuse(r, SM_BAD_LONG, 0, r->start);
    if (r->reason) {
        found->bad[found->bads++] = (sm_bad){r->start, r->end, line, lines, r->at, r->reason, r->field};
        return;
    }
    found->spans[2 * i] = r->start;
    found->spans[2 * i + 1] = r->end;
    found->lines[i] = line;
    found->records = i + 1;
    found->scratch = r->scratch;
}

#endif
