/* role: none
 * Text between quotes with its escapes, and members that are looked for by name: of JSON and logfmt.
 */
#include "record.h"

/* the length of the UTF-8 sequence at p, 0 if it is none (overlong, a surrogate, beyond U+10FFFF, cut off) */
static unsigned utf8_length(const uint8_t *p, const uint8_t *end)
{
    uint64_t left = (uint64_t)(end - p);
    if (p[0] < 0x80)
        return 1;
    if (p[0] < 0xc2 || left < 2 || (p[1] & 0xc0) != 0x80)
        return 0;
    if (p[0] < 0xe0)
        return 2;
    if (left < 3 || (p[2] & 0xc0) != 0x80)
        return 0;
    if (p[0] < 0xf0)
        return (p[0] == 0xe0 && p[1] < 0xa0) || (p[0] == 0xed && p[1] > 0x9f) ? 0 : 3;
    if (p[0] > 0xf4 || left < 4 || (p[3] & 0xc0) != 0x80)
        return 0;
    return (p[0] == 0xf0 && p[1] < 0x90) || (p[0] == 0xf4 && p[1] > 0x8f) ? 0 : 4;
}

/* After the opening quote, to behind the closing one; 1, or 2 if it has escapes. */
int sm_string(sm_parser *j)
{
    int kind = 1;
    for (;;) {
#if defined(__SSE2__)
        while (j->end - j->p >= 16) {
            __m128i v = _mm_loadu_si128((const __m128i *)j->p);
            __m128i odd = _mm_or_si128(
                _mm_or_si128(_mm_cmpeq_epi8(v, _mm_set1_epi8('"')), _mm_cmpeq_epi8(v, _mm_set1_epi8('\\'))),
                _mm_cmplt_epi8(v, _mm_set1_epi8(0x20))); /* signed: from 0x80 on too */
            int mask = _mm_movemask_epi8(odd);
            if (mask) {
                j->p += __builtin_ctz((unsigned)mask);
                break;
            }
            j->p += 16;
        }
#endif
        if (j->p >= j->end)
            return sm_bad_text(j, SM_BAD_SYNTAX);
        uint8_t c = *j->p;
        if (c == '"') {
            j->p++;
            return kind;
        }
        if (c == '\\') {
            kind = 2;
            if (j->end - j->p < 2)
                return sm_bad_text(j, SM_BAD_SYNTAX);
            uint8_t e = j->p[1];
            if (e == 'u') {
                for (int i = 2; i < 6; i++)
                    if (j->p + i >= j->end ||
                        !((j->p[i] >= '0' && j->p[i] <= '9') || ((j->p[i] | 32) >= 'a' && (j->p[i] | 32) <= 'f')))
                        return sm_bad_text(j, SM_BAD_SYNTAX);
                j->p += 6;
            } else if (strchr("\"\\/bfnrt", e) && e) {
                j->p += 2;
            } else {
                return sm_bad_text(j, SM_BAD_SYNTAX);
            }
        } else if (c < 0x20) {
            return sm_bad_text(j, SM_BAD_SYNTAX);
        } else {
            unsigned length = utf8_length(j->p, j->end);
            if (!length)
                return sm_bad_text(j, SM_BAD_UTF8);
            j->p += length;
        }
    }
}

static unsigned hex4(const uint8_t *p)
{
    unsigned value = 0;
    for (int i = 0; i < 4; i++)
        value = value << 4 | (unsigned)(p[i] <= '9' ? p[i] - '0' : (p[i] | 32) - 'a' + 10);
    return value;
}

static uint64_t put_utf8(uint8_t *out, unsigned c)
{
    if (c < 0x80) {
        out[0] = (uint8_t)c;
        return 1;
    }
    if (c < 0x800) {
        out[0] = (uint8_t)(0xc0 | c >> 6);
        out[1] = (uint8_t)(0x80 | (c & 63));
        return 2;
    }
    if (c < 0x10000) {
        out[0] = (uint8_t)(0xe0 | c >> 12);
        out[1] = (uint8_t)(0x80 | (c >> 6 & 63));
        out[2] = (uint8_t)(0x80 | (c & 63));
        return 3;
    }
    out[0] = (uint8_t)(0xf0 | c >> 18);
    out[1] = (uint8_t)(0x80 | (c >> 12 & 63));
    out[2] = (uint8_t)(0x80 | (c >> 6 & 63));
    out[3] = (uint8_t)(0x80 | (c & 63));
    return 4;
}

/* A checked string with its escapes resolved, at data[scratch]; 0: it has half a surrogate pair. */
static int resolve(sm_record *r, const uint8_t *p, const uint8_t *end, uint64_t *length)
{
    uint8_t *out = r->data + r->scratch;
    while (p < end) {
        const uint8_t *slash = memchr(p, '\\', (uint64_t)(end - p)), *stop = slash ? slash : end;
        memcpy(out, p, (uint64_t)(stop - p));
        out += stop - p;
        if (!slash)
            break;
        p = slash + 2;
        switch (slash[1]) {
        case 'b':
            *out++ = '\b';
            break;
        case 'f':
            *out++ = '\f';
            break;
        case 'n':
            *out++ = '\n';
            break;
        case 'r':
            *out++ = '\r';
            break;
        case 't':
            *out++ = '\t';
            break;
        case 'u': {
            unsigned c = hex4(p), low = 0;
            p += 4;
            if (c >= 0xd800 && c < 0xe000) {
                if (c >= 0xdc00 || end - p < 6 || p[0] != '\\' || p[1] != 'u' ||
                    ((low = hex4(p + 2)) & 0xfc00) != 0xdc00)
                    return 0;
                c = 0x10000 + ((c & 0x3ff) << 10 | (low & 0x3ff));
                p += 6;
            }
            out += put_utf8(out, c);
            break;
        }
        default:
            *out++ = slash[1];
        }
    }
    *length = (uint64_t)(out - (r->data + r->scratch));
    return 1;
}

/* the child of `node` by that name; members mostly come in one order, so the search begins after the last one that was met */
static uint32_t child(const sm_scan *s, uint32_t node, const uint8_t *name, uint64_t length, uint32_t *hint)
{
    const sm_path *parent = &s->path[node];
    for (uint32_t i = 0; i < parent->count; i++) {
        uint32_t at = *hint + i;
        at = parent->first + (at < parent->count ? at : at - parent->count);
        const sm_path *each = &s->path[at];
        if (each->name_end - each->name == length && !memcmp(s->names + each->name, name, length)) {
            *hint = at - parent->first + 1 < parent->count ? at - parent->first + 1 : 0;
            return at;
        }
    }
    return 0;
}

uint32_t sm_member(sm_record *r, const uint8_t *name, const uint8_t *end, int escaped, uint32_t node, uint32_t *hint)
{
    uint64_t length = (uint64_t)(end - name);
    if (!node && !r->scan->paths)
        return 0;
    if (escaped) {
        if (!resolve(r, name, end, &length))
            return 0;
        name = r->data + r->scratch; /* not kept: only compared */
    }
    return child(r->scan, node, name, length, hint);
}

int sm_put_value(sm_parser *j, int32_t wanted, const uint8_t *from, const uint8_t *to, uint8_t value, int escaped)
{
    sm_record *r = j->r;
    if (wanted < 0)
        return 1;
    if (r->values[wanted] != SM_VALUE_MISSING)
        return sm_refuse(r, SM_BAD_TWICE, (uint32_t)wanted, (uint64_t)(from - r->data));
    uint64_t start = (uint64_t)(from - r->data), length = (uint64_t)(to - from);
    if (escaped) {
        if (resolve(r, from, to, &length)) {
            start = r->scratch;
            r->scratch += length;
        } else {
            value = SM_VALUE_BROKEN;
        }
    }
    sm_put(r, (uint32_t)wanted, start, start + length, value);
    return 1;
}

uint32_t sm_field_below(const sm_scan *s, uint32_t node)
{
    while (s->path[node].wanted < 0 && s->path[node].count)
        node = s->path[node].first;
    return (uint32_t)s->path[node].wanted;
}
