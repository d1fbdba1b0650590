/* role: none
 * Records and fields in blocks of bytes: lines, CSV, JSON lines, logfmt, syslog and access logs.
 *
 * The bytes that matter (delimiter, quote, line ends) are found 64 at a time as bits of a word; what is between them is not
 * looked at. Quotes and line breaks in fields need no other code: inside quotes the bits are passed over.
 */
#include "scan.h"

#include <string.h>
#if defined(__SSE2__)
#include <emmintrin.h>
#endif

#include "internal.h"

#define SM_JOIN 0x1f      /* between the fields of a key of several */
#define SM_JSON_DEPTH 512 /* as deep as the parsers that handlers use go */

/* ---- bytes that matter -------------------------------------------------------------------------------------- */

typedef struct finder {
    const uint8_t *data;
    uint64_t base, bytes, mask;
    uint8_t byte[4];
} finder;

static uint64_t mask_at(const finder *f, uint64_t at)
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

static void find_from(finder *f, uint64_t at)
{
    f->base = at;
    f->mask = at < f->bytes ? mask_at(f, at) : 0;
}

/* the next such byte, or `bytes` */
static inline uint64_t find(finder *f)
{
    while (!f->mask) {
        f->base += 64;
        if (f->base >= f->bytes)
            return f->bytes;
        f->mask = mask_at(f, f->base);
    }
    uint64_t at = f->base + (uint64_t)__builtin_ctzll(f->mask);
    f->mask &= f->mask - 1;
    return at < f->bytes ? at : f->bytes;
}

/* ---- one record --------------------------------------------------------------------------------------------- */

typedef struct record {
    const sm_scan *scan;
    uint8_t *data;
    uint64_t start, end, scratch;
    uint64_t *fields;
    uint8_t *values;
    uint32_t reason, field;
    uint64_t at;
} record;

static int refuse(record *r, uint32_t reason, uint32_t field, uint64_t at)
{
    r->reason = reason;
    r->field = field;
    r->at = at;
    return 0;
}

static void put(record *r, uint32_t wanted, uint64_t from, uint64_t to, uint8_t value)
{
    r->fields[2 * wanted] = from;
    r->fields[2 * wanted + 1] = to;
    r->values[wanted] = value;
}

static int32_t wanted_at(const sm_scan *s, uint64_t number) { return number < s->positions ? s->position[number] : -1; }

static void put_position(record *r, uint64_t number, uint64_t from, uint64_t to)
{
    int32_t wanted = wanted_at(r->scan, number);
    if (wanted >= 0)
        put(r, (uint32_t)wanted, from, to, SM_VALUE_TEXT);
}

static int is_blank(uint8_t c) { return c == ' ' || (c >= '\t' && c <= '\r'); }

/* ---- lines: fields by number ---------------------------------------------------------------------------------- */

static int line_fields(record *r)
{
    const sm_scan *s = r->scan;
    uint64_t at = r->start;
    if (s->delimiter != SM_NOTHING) {
        for (uint64_t number = 0; number < s->positions; number++) {
            const uint8_t *stop = memchr(r->data + at, (int)s->delimiter, r->end - at);
            uint64_t end = stop ? (uint64_t)(stop - r->data) : r->end;
            put_position(r, number, at, end);
            if (!stop)
                return 1;
            at = end + 1;
        }
        return 1;
    }
    for (uint64_t number = 0; number < s->positions; number++) {
        while (at < r->end && is_blank(r->data[at]))
            at++;
        if (at == r->end)
            return 1;
        uint64_t from = at;
        while (at < r->end && !is_blank(r->data[at]))
            at++;
        put_position(r, number, from, at);
    }
    return 1;
}

/* ---- access logs: tokens between blanks, in quotes or in brackets ----------------------------------------------- */

static int combined_fields(record *r)
{
    uint64_t at = r->start, number = 0;
    for (; at < r->end && number < 9; number++) {
        uint8_t first = r->data[at], last = first == '"' ? '"' : first == '[' ? ']' : ' ';
        uint64_t from = at + (last != ' '), to = from;
        while (to < r->end && r->data[to] != last)
            to += 1 + (last == '"' && r->data[to] == '\\');
        if (to > r->end || (to == r->end && last != ' '))
            return refuse(r, SM_BAD_FORM, (uint32_t)number, at);
        put_position(r, number, from, to);
        if (number == 4) { /* method, path and protocol, of which the path may have blanks in it */
            const uint8_t *blank = memchr(r->data + from, ' ', to - from);
            if (blank) {
                uint64_t path = (uint64_t)(blank - r->data) + 1, end = to;
                put_position(r, 9, from, path - 1);
                while (end > path && r->data[end - 1] != ' ')
                    end--;
                put_position(r, 10, path, end > path ? end - 1 : to);
                if (end > path)
                    put_position(r, 11, end, to);
            }
        }
        at = to + (last != ' ');
        if (at < r->end && r->data[at] != ' ')
            return refuse(r, SM_BAD_FORM, (uint32_t)number, at);
        at++;
    }
    return number >= 7 || refuse(r, SM_BAD_FORM, (uint32_t)number, r->end);
}

/* ---- syslog: RFC 5424, RFC 3164, and the lines of /var/log/syslog, which have no priority ------------------------ */

static uint64_t token(const record *r, uint64_t at)
{
    const uint8_t *blank = memchr(r->data + at, ' ', r->end - at);
    return blank ? (uint64_t)(blank - r->data) : r->end;
}

static int all_digits(const uint8_t *p, uint64_t n)
{
    for (uint64_t i = 0; i < n; i++)
        if (p[i] < '0' || p[i] > '9')
            return 0;
    return n > 0;
}

static void put_number(record *r, uint64_t position, unsigned value)
{
    uint64_t from = r->scratch;
    if (wanted_at(r->scan, position) < 0)
        return;
    if (value >= 10)
        r->data[r->scratch++] = (uint8_t)('0' + value / 10);
    r->data[r->scratch++] = (uint8_t)('0' + value % 10);
    put_position(r, position, from, r->scratch);
}

static int syslog_new(record *r, uint64_t at)
{
    static const uint8_t order[] = {3, 4, 5, 6, 7};
    for (int i = 0; i < 5; i++) {
        uint64_t end = token(r, at);
        if (end == r->end)
            return refuse(r, SM_BAD_FORM, order[i], at);
        put_position(r, order[i], at, end);
        at = end + 1;
    }
    if (r->data[at] == '-') {
        at++;
    } else {
        while (at < r->end && r->data[at] == '[') { /* structured data, in whose values "]" is escaped */
            int quoted = 0;
            for (at++; at < r->end && (quoted || r->data[at] != ']'); at++) {
                if (r->data[at] == '\\')
                    at++;
                else if (r->data[at] == '"')
                    quoted = !quoted;
            }
            if (at >= r->end)
                return refuse(r, SM_BAD_FORM, 8, r->end);
            at++;
        }
    }
    if (at < r->end && r->data[at] != ' ')
        return refuse(r, SM_BAD_FORM, 8, at);
    put_position(r, 8, at < r->end ? at + 1 : at, r->end);
    return 1;
}

static int syslog_fields(record *r)
{
    uint64_t at = r->start;
    if (at < r->end && r->data[at] == '<') {
        const uint8_t *close = memchr(r->data + at, '>', r->end - at < 5 ? r->end - at : 5);
        uint64_t end = close ? (uint64_t)(close - r->data) : 0;
        if (!close || !all_digits(r->data + at + 1, end - at - 1))
            return refuse(r, SM_BAD_FORM, 0, at);
        unsigned priority = 0;
        for (uint64_t i = at + 1; i < end; i++)
            priority = priority * 10 + r->data[i] - '0';
        if (priority > 191)
            return refuse(r, SM_BAD_FORM, 0, at + 1);
        put_position(r, 0, at + 1, end);
        put_number(r, 1, priority / 8);
        put_number(r, 2, priority % 8);
        at = end + 1;
        if (r->end - at > 2 && r->data[at] == '1' && r->data[at + 1] == ' ')
            return syslog_new(r, at + 2);
    }
    /* "Oct 11 22:14:15" or one word, as rsyslog and journald write it */
    uint64_t stamp = r->end - at > 15 && r->data[at + 3] == ' ' && r->data[at + 9] == ':' && r->data[at + 12] == ':' &&
                             r->data[at + 15] == ' '
                         ? at + 15
                         : token(r, at);
    if (stamp == r->end || (stamp - at != 15 && !(r->data[at] >= '0' && r->data[at] <= '9')))
        return refuse(r, SM_BAD_FORM, 3, at);
    put_position(r, 3, at, stamp);
    uint64_t host = token(r, stamp + 1);
    if (host == r->end)
        return refuse(r, SM_BAD_FORM, 4, stamp + 1);
    put_position(r, 4, stamp + 1, host);
    uint64_t tag = host + 1, end = tag;
    while (end < r->end && r->data[end] != ':' && r->data[end] != '[' && r->data[end] != ' ')
        end++;
    put_position(r, 5, tag, end);
    if (end < r->end && r->data[end] == '[') {
        const uint8_t *close = memchr(r->data + end, ']', r->end - end);
        if (!close)
            return refuse(r, SM_BAD_FORM, 6, end);
        put_position(r, 6, end + 1, (uint64_t)(close - r->data));
        end = (uint64_t)(close - r->data) + 1;
    }
    end += end < r->end && r->data[end] == ':';
    end += end < r->end && r->data[end] == ' ';
    put_position(r, 8, end, r->end);
    return 1;
}

/* ---- JSON (RFC 8259), checked as a whole ----------------------------------------------------------------------- */

typedef struct parser {
    record *r;
    const uint8_t *p, *end;
} parser;

static int bad_json(parser *j, uint32_t reason) { return refuse(j->r, reason, 0, (uint64_t)(j->p - j->r->data)); }

static void blanks(parser *j)
{
    while (j->p < j->end && (*j->p == ' ' || *j->p == '\t' || *j->p == '\r' || *j->p == '\n'))
        j->p++;
}

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
static int string(parser *j)
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
            return bad_json(j, SM_BAD_SYNTAX);
        uint8_t c = *j->p;
        if (c == '"') {
            j->p++;
            return kind;
        }
        if (c == '\\') {
            kind = 2;
            if (j->end - j->p < 2)
                return bad_json(j, SM_BAD_SYNTAX);
            uint8_t e = j->p[1];
            if (e == 'u') {
                for (int i = 2; i < 6; i++)
                    if (j->p + i >= j->end ||
                        !((j->p[i] >= '0' && j->p[i] <= '9') || ((j->p[i] | 32) >= 'a' && (j->p[i] | 32) <= 'f')))
                        return bad_json(j, SM_BAD_SYNTAX);
                j->p += 6;
            } else if (strchr("\"\\/bfnrt", e) && e) {
                j->p += 2;
            } else {
                return bad_json(j, SM_BAD_SYNTAX);
            }
        } else if (c < 0x20) {
            return bad_json(j, SM_BAD_SYNTAX);
        } else {
            unsigned length = utf8_length(j->p, j->end);
            if (!length)
                return bad_json(j, SM_BAD_UTF8);
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
static int resolve(record *r, const uint8_t *p, const uint8_t *end, uint64_t *length)
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

static int number(parser *j)
{
    const uint8_t *p = j->p, *end = j->end;
    p += p < end && *p == '-';
    if (p < end && *p == '0') {
        p++;
    } else {
        const uint8_t *digits = p;
        while (p < end && *p >= '0' && *p <= '9')
            p++;
        if (p == digits)
            goto bad;
    }
    if (p < end && *p == '.') {
        const uint8_t *digits = ++p;
        while (p < end && *p >= '0' && *p <= '9')
            p++;
        if (p == digits)
            goto bad;
    }
    if (p < end && (*p | 32) == 'e') {
        p++;
        p += p < end && (*p == '+' || *p == '-');
        const uint8_t *digits = p;
        while (p < end && *p >= '0' && *p <= '9')
            p++;
        if (p == digits)
            goto bad;
    }
    j->p = p;
    return 1;
bad:
    j->p = p;
    return bad_json(j, SM_BAD_SYNTAX);
}

static int word(parser *j, const char *text, uint64_t length)
{
    if ((uint64_t)(j->end - j->p) < length || memcmp(j->p, text, length))
        return bad_json(j, SM_BAD_SYNTAX);
    j->p += length;
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

static uint32_t member(record *r, const uint8_t *name, const uint8_t *end, int escaped, uint32_t node, uint32_t *hint)
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

static int put_value(parser *j, int32_t wanted, const uint8_t *from, const uint8_t *to, uint8_t value, int escaped)
{
    record *r = j->r;
    if (wanted < 0)
        return 1;
    if (r->values[wanted] != SM_VALUE_MISSING)
        return refuse(r, SM_BAD_TWICE, (uint32_t)wanted, (uint64_t)(from - r->data));
    uint64_t start = (uint64_t)(from - r->data), length = (uint64_t)(to - from);
    if (escaped) {
        if (resolve(r, from, to, &length)) {
            start = r->scratch;
            r->scratch += length;
        } else {
            value = SM_VALUE_BROKEN;
        }
    }
    put(r, (uint32_t)wanted, start, start + length, value);
    return 1;
}

static uint32_t field_below(const sm_scan *s, uint32_t node)
{
    while (s->path[node].wanted < 0 && s->path[node].count)
        node = s->path[node].first;
    return (uint32_t)s->path[node].wanted;
}

static int json_fields(record *r)
{
    parser parsing = {r, r->data + r->start, r->data + r->end}, *j = &parsing;
    const sm_scan *s = r->scan;
    struct {
        const uint8_t *from;
        uint32_t node, hint; /* node: whose children the members are; UINT32_MAX: nobody wants them */
        int32_t wanted;
        uint8_t array;
    } stack[SM_JSON_DEPTH];
    uint32_t depth = 0, node = 0; /* node: of the value that comes */
    uint64_t inner = 0;           /* nodes with members that were seen */
    int32_t wanted = -1;
    blanks(j);
    if (s->paths > 1 && (j->p >= j->end || *j->p != '{')) {
        const uint8_t *from = j->p;
        parser alone = {r, from, j->end};
        const sm_scan none = {.format = SM_FORMAT_JSON};
        r->scan = &none; /* whether it is JSON at all */
        int json = json_fields(r);
        r->scan = s;
        return json ? bad_json(&alone, SM_BAD_OBJECT) : 0;
    }
    for (;;) { /* a value begins here */
        blanks(j);
        if (j->p >= j->end)
            return bad_json(j, SM_BAD_SYNTAX);
        const uint8_t *from = j->p;
        int kind, opened = 0;
        switch (*from) {
        case '{':
        case '[':
            if (depth == SM_JSON_DEPTH)
                return bad_json(j, SM_BAD_DEPTH);
            stack[depth].from = from;
            stack[depth].array = *from == '[';
            stack[depth].node =
                *from == '{' && node != UINT32_MAX && (!node || s->path[node].count) ? node : UINT32_MAX;
            stack[depth].hint = 0;
            stack[depth].wanted = wanted;
            depth++;
            j->p++;
            blanks(j);
            opened = !(j->p < j->end && *j->p == (*from == '{' ? '}' : ']'));
            break;
        case '"':
            j->p++;
            if (!(kind = string(j)) || !put_value(j, wanted, from + 1, j->p - 1, SM_VALUE_STRING, kind == 2))
                return 0;
            break;
        case 't':
            if (!word(j, "true", 4) || !put_value(j, wanted, from, j->p, SM_VALUE_TRUE, 0))
                return 0;
            break;
        case 'f':
            if (!word(j, "false", 5) || !put_value(j, wanted, from, j->p, SM_VALUE_FALSE, 0))
                return 0;
            break;
        case 'n':
            if (!word(j, "null", 4) || !put_value(j, wanted, from, j->p, SM_VALUE_NULL, 0))
                return 0;
            break;
        default:
            if (!number(j) || !put_value(j, wanted, from, j->p, SM_VALUE_NUMBER, 0))
                return 0;
        }
        /* after a value: a comma, or the ends of what is open */
        while (!opened) {
            blanks(j);
            if (!depth)
                return j->p == j->end || bad_json(j, SM_BAD_SYNTAX);
            if (j->p >= j->end)
                return bad_json(j, SM_BAD_SYNTAX);
            uint8_t c = *j->p;
            if (c == (stack[depth - 1].array ? ']' : '}')) {
                depth--;
                j->p++;
                if (!put_value(j, stack[depth].wanted, stack[depth].from, j->p, SM_VALUE_NESTED, 0))
                    return 0;
            } else if (c == ',') {
                j->p++;
                break;
            } else {
                return bad_json(j, SM_BAD_SYNTAX);
            }
        }
        node = UINT32_MAX;
        wanted = -1;
        if (stack[depth - 1].array)
            continue;
        blanks(j);
        if (j->p >= j->end || *j->p != '"')
            return bad_json(j, SM_BAD_SYNTAX);
        const uint8_t *name = ++j->p;
        if (!(kind = string(j)))
            return 0;
        if (stack[depth - 1].node != UINT32_MAX && s->paths > 1) {
            node = member(r, name, j->p - 1, kind == 2, stack[depth - 1].node, &stack[depth - 1].hint);
            wanted = node ? s->path[node].wanted : -1;
            if (node && node < 64 && s->path[node].count) { /* of two objects nobody can say which one counts */
                if (inner >> node & 1)
                    return refuse(r, SM_BAD_TWICE, field_below(s, node), (uint64_t)(name - r->data));
                inner |= UINT64_C(1) << node;
            }
            node = node ? node : UINT32_MAX;
        }
        blanks(j);
        if (j->p >= j->end || *j->p != ':')
            return bad_json(j, SM_BAD_SYNTAX);
        j->p++;
    }
}

/* ---- logfmt: name=value, name="value", name ------------------------------------------------------------------------ */

static int logfmt_fields(record *r)
{
    parser parsing = {r, r->data + r->start, r->data + r->end}, *j = &parsing;
    uint32_t hint = 0;
    for (;;) {
        while (j->p < j->end && is_blank(*j->p))
            j->p++;
        if (j->p == j->end)
            return 1;
        const uint8_t *name = j->p;
        while (j->p < j->end && !is_blank(*j->p) && *j->p != '=' && *j->p != '"')
            j->p++;
        if (j->p == name || (j->p < j->end && *j->p == '"'))
            return bad_json(j, SM_BAD_FORM);
        uint32_t node = r->scan->paths > 1 ? member(r, name, j->p, 0, 0, &hint) : 0;
        int32_t wanted = node ? r->scan->path[node].wanted : -1;
        const uint8_t *from = j->p, *to = j->p;
        int escaped = 0;
        if (j->p < j->end && *j->p == '=') {
            from = ++j->p;
            if (j->p < j->end && *j->p == '"') {
                from = ++j->p;
                if (!(escaped = string(j)))
                    return 0;
                to = j->p - 1;
                if (j->p < j->end && !is_blank(*j->p))
                    return bad_json(j, SM_BAD_FORM);
            } else {
                while (j->p < j->end && !is_blank(*j->p))
                    j->p++;
                to = j->p;
            }
        }
        if (!put_value(j, wanted, from, to, SM_VALUE_TEXT, escaped == 2))
            return 0;
    }
}

/* ---- CSV ------------------------------------------------------------------------------------------------------------- */

enum csv_mode { AT_START = 0, PLAIN = 1, QUOTED = 2, CLOSED = 3 };

typedef struct csv {
    uint32_t mode, escaped, reason, bad_field;
    uint64_t from, close, opened, bad_at; /* from: of the field; close: its closing quote */
    uint64_t number, lines;
} csv;

static void csv_field(const sm_scan *s, record *r, csv *c, uint64_t end)
{
    uint64_t from = c->from, to = end;
    if (c->mode == CLOSED) {
        if (c->close + 1 != end && !c->reason) {
            c->reason = SM_BAD_QUOTE;
            c->bad_field = (uint32_t)c->number;
            c->bad_at = c->close + 1;
        }
        from++;
        to = c->close;
    }
    int32_t wanted = r ? wanted_at(s, c->number) : -1;
    if (wanted >= 0) {
        if (c->escaped) { /* each pair of quotes is one */
            uint64_t out = r->scratch;
            for (uint64_t i = from; i < to; i++) {
                r->data[r->scratch++] = r->data[i];
                i += r->data[i] == s->quote;
            }
            from = out;
            to = r->scratch;
        }
        put(r, (uint32_t)wanted, from, to, SM_VALUE_TEXT);
    }
    c->number++;
    c->mode = AT_START;
    c->escaped = 0;
}

/* Goes on with a record: 1, with its end (before the line end) and the next record's start; 0 where the data ends first. */
static int csv_record(const sm_scan *s, finder *f, csv *c, record *r, int final, uint64_t *end, uint64_t *next)
{
    for (;;) {
        uint64_t at = find(f);
        if (at == f->bytes) {
            if (!final || c->mode == QUOTED)
                return 0;
            *end = *next = at;
            csv_field(s, r, c, at);
            return 1;
        }
        uint8_t b = f->data[at];
        if (c->mode == QUOTED) {
            c->lines += s->cr ? b == '\r' : b == '\n';
            if (b != s->quote)
                continue;
            if (at + 1 < f->bytes && f->data[at + 1] == s->quote) {
                c->escaped = 1;
                find(f);
            } else if (at + 1 == f->bytes && !final) {
                return 0;
            } else {
                c->mode = CLOSED;
                c->close = at;
            }
            continue;
        }
        if (b == s->quote) {
            if (c->mode == AT_START && at == c->from) {
                c->mode = QUOTED;
                c->opened = at;
            }
        } else if (b == s->delimiter) {
            csv_field(s, r, c, at);
            c->from = at + 1;
        } else if (b == (s->cr ? '\r' : '\n')) {
            *end = at - (!s->cr && at > (r ? r->start : 0) && f->data[at - 1] == '\r');
            *next = at + 1;
            if (*end < c->from)
                *end = at;
            csv_field(s, r, c, *end);
            c->lines++;
            return 1;
        }
    }
}

/* ---- keys --------------------------------------------------------------------------------------------------------------- */

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

static int key_part(record *r, uint32_t f)
{
    switch (r->values[f]) {
    case SM_VALUE_TEXT:
    case SM_VALUE_STRING:
        return 1;
    case SM_VALUE_NUMBER:
        if (r->scan->key_mode == SM_KEY_AUTO && r->scan->wanted == 1)
            for (uint64_t i = r->fields[2 * f]; i < r->fields[2 * f + 1]; i++)
                if (r->data[i] != '-' && (r->data[i] < '0' || r->data[i] > '9'))
                    return refuse(r, SM_BAD_WHOLE, f, r->fields[2 * f]);
        return 1;
    case SM_VALUE_MISSING:
        return refuse(r, SM_BAD_MISSING, f, r->end);
    case SM_VALUE_NULL:
        return refuse(r, SM_BAD_NULL, f, r->fields[2 * f]);
    case SM_VALUE_BROKEN:
        return refuse(r, SM_BAD_SURROGATE, f, r->fields[2 * f]);
    default:
        return refuse(r, SM_BAD_KIND, f, r->fields[2 * f]);
    }
}

/* the key of an event, of one field or of several joined by SM_JOIN */
static int make_key(record *r, uint8_t *kind, uint64_t *key, uint64_t *span)
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
                return refuse(r, SM_BAD_SEPARATOR, f, from);
            if (f)
                r->data[r->scratch++] = SM_JOIN;
            memcpy(r->data + r->scratch, r->data + from, length);
            r->scratch += length;
        }
        span[1] = r->scratch;
    } else if (s->key_mode == SM_KEY_NUMBER || (s->key_mode == SM_KEY_AUTO && r->values[0] == SM_VALUE_NUMBER)) {
        int negative, reason = whole_number(r->data + span[0], span[1] - span[0], key, &negative);
        if (reason != SM_GOOD)
            return refuse(r, (uint32_t)reason, 0, span[0]);
        *kind = !negative && *key >> 63 ? SM_KEY_UNSIGNED : SM_KEY_INT;
        *key = negative ? 0 - *key : *key;
        span[1] = span[0];
        return 1;
    }
    *kind = SM_KEY_STR;
    return 1;
}

/* ---- blocks -------------------------------------------------------------------------------------------------------------- */

static void put_bad(sm_found *found, const record *r, uint64_t line, uint64_t lines)
{
    found->bad[found->bads++] = (sm_bad){r->start, r->end, line, lines, r->at, r->reason, r->field};
}

/* a record whose fields are known: into the columns, or among the bad ones */
static void take(sm_found *found, record *r, uint64_t line, uint64_t lines)
{
    const sm_scan *s = r->scan;
    uint64_t i = found->records, key_bytes = 0;
    if (!r->reason && s->key_mode && s->wanted &&
        make_key(r, &found->key_kinds[i], &found->keys[i], &found->key_spans[2 * i]))
        key_bytes = found->key_spans[2 * i + 1] - found->key_spans[2 * i];
    if (!r->reason && r->end - r->start + key_bytes > s->most)
        refuse(r, SM_BAD_LONG, 0, r->start);
    if (r->reason) {
        put_bad(found, r, line, lines);
        return;
    }
    found->spans[2 * i] = r->start;
    found->spans[2 * i + 1] = r->end;
    found->lines[i] = line;
    found->records = i + 1;
    found->scratch = r->scratch;
}

static record begin(const sm_scan *s, uint8_t *data, sm_found *found, uint64_t start)
{
    uint64_t i = found->records;
    record r = {s, data, start, start, found->scratch, found->fields + 2 * i * s->wanted, found->values + i * s->wanted,
                0, 0,    0};
    memset(r.values, 0, s->wanted);
    return r;
}

static int full(const sm_found *found)
{
    return found->records == found->capacity || found->bads == found->bad_capacity;
}

static void scan_csv(sm_scan *s, uint8_t *data, uint64_t bytes, int final, sm_found *found)
{
    finder f = {data, 0, bytes, 0, {(uint8_t)s->delimiter, s->cr ? '\r' : '\n', 0, 0}};
    f.byte[2] = f.byte[3] = s->quote == SM_NOTHING ? f.byte[1] : (uint8_t)s->quote;
    uint64_t start = 0, end = 0, next = 0;
    find_from(&f, 0);
    while (start < bytes && !full(found)) {
        record r = begin(s, data, found, start);
        csv c = {.from = start};
        if (s->comment != SM_NOTHING && data[start] == s->comment) {
            const uint8_t *stop = memchr(data + start, s->cr ? '\r' : '\n', bytes - start);
            if (!stop && !final)
                break;
            found->consumed = start = stop ? (uint64_t)(stop - data) + 1 : bytes;
            s->line++;
            find_from(&f, start);
            continue;
        }
        if (!csv_record(s, &f, &c, &r, final, &end, &next)) {
            if (!final) {
                found->too_long = bytes - start > s->most;
                return;
            }
            r.end = next = bytes;
            refuse(&r, SM_BAD_OPEN, (uint32_t)c.number, c.opened);
            c.lines += bytes > start && data[bytes - 1] != (s->cr ? '\r' : '\n');
        } else {
            r.end = end;
            if (c.reason)
                refuse(&r, c.reason, c.bad_field, c.bad_at);
            else if (s->columns && c.number != s->columns)
                refuse(&r, SM_BAD_COUNT, (uint32_t)c.number, r.end);
        }
        if (r.end != start) /* not blank */
            take(found, &r, s->line, c.lines ? c.lines : 1);
        s->line += c.lines ? c.lines : 1;
        found->consumed = start = next;
    }
}

static void scan_lines(sm_scan *s, uint8_t *data, uint64_t bytes, int final, sm_found *found)
{
    static int (*const fields_of[])(record *) = {line_fields,   NULL,          json_fields,
                                                 logfmt_fields, syslog_fields, combined_fields};
    int (*fields)(record *) = s->wanted || s->format == SM_FORMAT_JSON ? fields_of[s->format] : NULL;
    finder f = {data, 0, bytes, 0, {'\n', s->cr ? '\r' : '\n', '\n', '\n'}};
    uint64_t start = 0;
    find_from(&f, s->searched); /* a long line that comes in pieces is looked through once */
    while (start < bytes && !full(found)) {
        uint64_t end = find(&f), next = end + 1;
        if (end == bytes) {
            if (!final) {
                found->too_long = bytes - start > s->most + 1;
                s->searched = bytes - start;
                return;
            }
            next = end;
        }
        record r = begin(s, data, found, start);
        r.end = end - (!s->cr && next > end && end > start && data[end - 1] == '\r');
        int counts = s->blank || r.end > start;
        if (counts && s->format == SM_FORMAT_JSON) {
            uint64_t i = start;
            while (i < r.end && is_blank(data[i]))
                i++;
            counts = i < r.end;
        }
        if (counts && s->comment != SM_NOTHING && data[start] == s->comment)
            counts = 0;
        if (counts) {
            if (fields)
                fields(&r);
            take(found, &r, s->line, 1);
        }
        s->line++;
        found->consumed = start = next;
    }
    s->searched = 0;
}

void sm_scan_block(sm_scan *s, uint8_t *data, uint64_t bytes, uint64_t scratch, int final, sm_found *found)
{
    found->records = found->bads = found->consumed = 0;
    found->too_long = 0;
    found->scratch = scratch;
    if (s->format == SM_FORMAT_CSV)
        scan_csv(s, data, bytes, final, found);
    else
        scan_lines(s, data, bytes, final, found);
}

int sm_scan_skip(sm_scan *s, const uint8_t *data, uint64_t bytes, int first, uint64_t *consumed)
{
    s->searched = 0;
    *consumed = bytes;
    if (s->format != SM_FORMAT_CSV) {
        const uint8_t *stop = memchr(data, '\n', bytes);
        if (s->cr) {
            const uint8_t *cr = memchr(data, '\r', stop ? (uint64_t)(stop - data) : bytes);
            stop = cr ? cr : stop;
        }
        if (!stop)
            return 0;
        *consumed = (uint64_t)(stop - data) + 1;
        s->line++;
        return 1;
    }
    if (first)
        s->skip_mode = AT_START;
    /* byte by byte, for it has to be left and taken up anywhere; such records are rare */
    for (uint64_t i = 0; i < bytes; i++) {
        uint8_t b = data[i];
        int line_end = b == (s->cr ? '\r' : '\n');
        s->line += line_end;
        if (s->skip_mode == QUOTED) {
            if (b == s->quote)
                s->skip_mode = CLOSED;
        } else if (s->skip_mode == CLOSED && b == s->quote) {
            s->skip_mode = QUOTED;
        } else if (b == s->quote && s->skip_mode == AT_START) {
            s->skip_mode = QUOTED;
        } else if (line_end) {
            *consumed = i + 1;
            return 1;
        } else {
            s->skip_mode = b == s->delimiter ? AT_START : PLAIN;
        }
    }
    return 0;
}
