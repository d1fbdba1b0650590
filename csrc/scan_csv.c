/* role: none
 * CSV: quotes and line breaks in fields need no other code, inside quotes the bits are passed over. Records end with LF, CR LF
 * or CR, in one file too, as they do for the readers of spreadsheets and of Python.
 */
#include "record.h"

enum csv_mode { AT_START = 0, PLAIN = 1, QUOTED = 2, CLOSED = 3, COMMENT = 4 };

static int is_line_end(uint8_t c) { return c == '\n' || c == '\r'; }

/* whether a line ends with data[at]: CR LF is one end */
static int ends_line(const uint8_t *data, uint64_t start, uint64_t at)
{
    return data[at] == '\r' || (data[at] == '\n' && (at == start || data[at - 1] != '\r'));
}

typedef struct csv {
    uint32_t mode, escaped, reason, bad_field;
    uint64_t from, close, opened, bad_at; /* from: of the field; close: its closing quote */
    uint64_t number, lines;
} csv;

static void csv_field(const sm_scan *s, sm_record *r, csv *c, uint64_t end)
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
    int32_t wanted = r ? sm_wanted_at(s, c->number) : -1;
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
        sm_put(r, (uint32_t)wanted, from, to, SM_VALUE_TEXT);
    }
    c->number++;
    c->mode = AT_START;
    c->escaped = 0;
}

/* Goes on with a record: 1, with its end (before the line end) and the next record's start; 0 where the data ends first. */
static int csv_record(const sm_scan *s, sm_finder *f, csv *c, sm_record *r, int final, uint64_t *end, uint64_t *next)
{
    for (;;) {
        uint64_t at = sm_find(f);
        if (at == f->bytes) {
            if (!final || c->mode == QUOTED)
                return 0;
            *end = *next = at;
            csv_field(s, r, c, at);
            return 1;
        }
        uint8_t b = f->data[at];
        if (c->mode == QUOTED) {
            if (b != s->quote) {
                c->lines += (uint64_t)ends_line(f->data, c->opened, at);
                continue;
            }
            if (at + 1 < f->bytes && f->data[at + 1] == s->quote) {
                c->escaped = 1;
                sm_find(f);
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
        } else if (is_line_end(b)) {
            *end = at;
            *next = at + 1;
            if (b == '\r' && *next < f->bytes && f->data[*next] == '\n') {
                ++*next;
                sm_find(f);
            }
            csv_field(s, r, c, at);
            c->lines++;
            return 1;
        }
    }
}

/* behind the comment that begins here, or 0 if it does not end within the data */
static uint64_t behind_comment(const uint8_t *data, uint64_t start, uint64_t bytes, int final)
{
    while (start < bytes && !is_line_end(data[start]))
        start++;
    if (start == bytes)
        return final ? bytes : 0;
    return start + 1 + (data[start] == '\r' && start + 1 < bytes && data[start + 1] == '\n');
}

static void csv_records(sm_scan *s, uint8_t *data, uint64_t start, uint64_t bytes, int final, sm_found *found)
{
    sm_finder f = {data, 0, bytes, 0, {(uint8_t)s->delimiter, '\r', '\n', '\n'}};
    f.byte[3] = s->quote == SM_NOTHING ? '\n' : (uint8_t)s->quote;
    uint64_t end = 0, next = 0;
    sm_find_from(&f, start);
    while (start < bytes && !sm_full(found)) {
        sm_record r = sm_begin(s, data, found, start);
        csv c = {.from = start};
        if (s->comment != SM_NOTHING && data[start] == s->comment) {
            if (!(next = behind_comment(data, start, bytes, final))) {
                found->too_long = bytes - start > s->most;
                return;
            }
            found->consumed = start = next;
            s->line++;
            sm_find_from(&f, start);
            continue;
        }
        if (!csv_record(s, &f, &c, &r, final, &end, &next)) {
            if (!final) {
                found->too_long = bytes - start > s->most;
                return;
            }
            r.end = next = bytes;
            sm_refuse(&r, SM_BAD_OPEN, (uint32_t)c.number, c.opened);
            c.lines += bytes > start && !is_line_end(data[bytes - 1]);
        } else {
            r.end = end;
            if (c.reason)
                sm_refuse(&r, c.reason, c.bad_field, c.bad_at);
            else if (s->columns && c.number != s->columns)
                sm_refuse(&r, SM_BAD_COUNT, (uint32_t)c.number, r.end);
        }
        if (r.end != start) /* not blank */
            sm_take(found, &r, s->line, c.lines ? c.lines : 1);
        s->line += c.lines ? c.lines : 1;
        found->consumed = start = next;
    }
}

void sm_scan_csv(sm_scan *s, uint8_t *data, uint64_t bytes, int final, sm_found *found)
{
    if (!bytes)
        return;
    found->consumed = s->after_cr && data[0] == '\n'; /* the second half of a line end */
    csv_records(s, data, found->consumed, bytes, final, found);
    if (found->consumed)
        s->after_cr = data[found->consumed - 1] == '\r';
}

/* byte by byte, for it has to be left and taken up anywhere; such records are rare */
int sm_skip_csv(sm_scan *s, const uint8_t *data, uint64_t bytes, int first, uint64_t *consumed)
{
    if (first)
        s->skip_mode = s->comment != SM_NOTHING && bytes && data[0] == s->comment ? COMMENT : AT_START;
    for (uint64_t i = 0; i < bytes; i++) {
        uint8_t b = data[i];
        int ends = b == '\r' || (b == '\n' && !s->after_cr);
        s->after_cr = b == '\r';
        s->line += (uint64_t)ends;
        if (s->skip_mode == QUOTED) {
            if (b == s->quote)
                s->skip_mode = CLOSED;
        } else if (s->skip_mode == CLOSED && b == s->quote) {
            s->skip_mode = QUOTED;
        } else if (b == s->quote && s->skip_mode == AT_START) {
            s->skip_mode = QUOTED;
        } else if (is_line_end(b)) {
            *consumed = i + 1;
            return 1;
        } else if (s->skip_mode != COMMENT) {
            s->skip_mode = b == s->delimiter ? AT_START : PLAIN;
        }
    }
    return 0;
}
