/* role: none
 * Keys of events.
 */
#include "record.h"

#define SM_JOIN 0x1f /* between the fields of a key of several */

static int whole_number(const uint8_t *p, uint64_t n, uint64_t *value, int *negative)
{
    uint64_t i = 0, v = 0;
    *negative = n && p[0] == '-';
    i += n && (p[0] == '-' || p[0] == '+');
    if (i == n)
        return SM_BAD_NUMBER;
    for (; i < n; i++) {
        if (p[i] < '0' || p[i] > '9')
            return SM_BAD_NUMBER;
        if (__builtin_mul_overflow(v, 10u, &v) || __builtin_add_overflow(v, (uint64_t)(p[i] - '0'), &v)) {
            for (i++; i < n; i++)
                if (p[i] < '0' || p[i] > '9')
                    return SM_BAD_NUMBER;
            return SM_BAD_RANGE;
        }
    }
    *value = v;
    return *negative && v > UINT64_C(1) << 63 ? SM_BAD_RANGE : SM_GOOD;
}

static int key_part(sm_record *r, uint32_t f)
{
    switch (r->values[f]) {
    case SM_VALUE_TEXT:
    case SM_VALUE_STRING:
        return 1;
    case SM_VALUE_NUMBER:
        if (r->scan->key_mode == SM_KEY_AUTO && r->scan->wanted == 1)
            for (uint64_t i = r->fields[2 * f]; i < r->fields[2 * f + 1]; i++)
                if (r->data[i] != '-' && (r->data[i] < '0' || r->data[i] > '9'))
                    return sm_refuse(r, SM_BAD_WHOLE, f, r->fields[2 * f]);
        return 1;
    case SM_VALUE_MISSING:
        return sm_refuse(r, SM_BAD_MISSING, f, r->end);
    case SM_VALUE_NULL:
        return sm_refuse(r, SM_BAD_NULL, f, r->fields[2 * f]);
    case SM_VALUE_BROKEN:
        return sm_refuse(r, SM_BAD_SURROGATE, f, r->fields[2 * f]);
    default:
        return sm_refuse(r, SM_BAD_KIND, f, r->fields[2 * f]);
    }
}

/* the key of an event, of one field or of several joined by SM_JOIN */
int sm_make_key(sm_record *r, uint8_t *kind, uint64_t *key, uint64_t *span)
{
    const sm_scan *s = r->scan;
    *key = 0;
    for (uint32_t f = 0; f < s->wanted; f++)
        if (!key_part(r, f))
            return 0;
    span[0] = r->fields[0];
    span[1] = r->fields[1];
    if (s->wanted > 1) {
        span[0] = r->scratch;
        for (uint32_t f = 0; f < s->wanted; f++) {
            uint64_t from = r->fields[2 * f], length = r->fields[2 * f + 1] - from;
            if (memchr(r->data + from, SM_JOIN, length))
                return sm_refuse(r, SM_BAD_SEPARATOR, f, from);
            if (f)
                r->data[r->scratch++] = SM_JOIN;
            memcpy(r->data + r->scratch, r->data + from, length);
            r->scratch += length;
        }
        span[1] = r->scratch;
    } else if (s->key_mode == SM_KEY_NUMBER || (s->key_mode == SM_KEY_AUTO && r->values[0] == SM_VALUE_NUMBER)) {
        int negative, reason = whole_number(r->data + span[0], span[1] - span[0], key, &negative);
        if (reason != SM_GOOD)
            return sm_refuse(r, (uint32_t)reason, 0, span[0]);
        *kind = !negative && *key >> 63 ? SM_KEY_UNSIGNED : SM_KEY_INT;
        *key = negative ? 0 - *key : *key;
        span[1] = span[0];
        return 1;
    }
    *kind = SM_KEY_STR;
    return 1;
}
