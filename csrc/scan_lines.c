/* role: none
 * Lines, and the fields of a line by number.
 */
#include "record.h"

static int line_fields(sm_record *r)
{
    const sm_scan *s = r->scan;
    uint64_t at = r->start;
    if (s->delimiter != SM_NOTHING) {
        for (uint64_t number = 0; number < s->positions; number++) {
            const uint8_t *stop = memchr(r->data + at, (int)s->delimiter, r->end - at);
            uint64_t end = stop ? (uint64_t)(stop - r->data) : r->end;
            sm_put_position(r, number, at, end);
            if (!stop)
                return 1;
            at = end + 1;
        }
        return 1;
    }
    for (uint64_t number = 0; number < s->positions; number++) {
        while (at < r->end && sm_is_blank(r->data[at]))
            at++;
        if (at == r->end)
            return 1;
        uint64_t from = at;
        while (at < r->end && !sm_is_blank(r->data[at]))
            at++;
        sm_put_position(r, number, from, at);
    }
    return 1;
}

void sm_scan_lines(sm_scan *s, uint8_t *data, uint64_t bytes, int final, sm_found *found)
{
    static int (*const fields_of[])(sm_record *) = {
        line_fields, NULL, sm_json_fields, sm_logfmt_fields, sm_syslog_fields, sm_combined_fields};
    int (*fields)(sm_record *) = s->wanted || s->format == SM_FORMAT_JSON ? fields_of[s->format] : NULL;
    sm_finder f = {data, 0, bytes, 0, {'\n', s->cr ? '\r' : '\n', '\n', '\n'}};
    uint64_t start = 0;
    sm_find_from(&f, s->searched); /* a long line that comes in pieces is looked through once */
    while (start < bytes && !sm_full(found)) {
        uint64_t end = sm_find(&f), next = end + 1;
        if (end == bytes) {
            if (!final) {
                found->too_long = bytes - start > s->most + 1;
                s->searched = bytes - start;
                return;
            }
            next = end;
        }
        sm_record r = sm_begin(s, data, found, start);
        r.end = end - (!s->cr && next > end && end > start && data[end - 1] == '\r');
        int counts = s->blank || r.end > start;
        if (counts && s->format == SM_FORMAT_JSON) {
            uint64_t i = start;
            while (i < r.end && (data[i] == ' ' || data[i] == '\t' || data[i] == '\r'))
                i++;
            counts = i < r.end;
        }
        if (counts && s->comment != SM_NOTHING && data[start] == s->comment)
            counts = 0;
        if (counts) {
            if (fields)
                fields(&r);
            sm_take(found, &r, s->line, 1);
        }
        s->line++;
        found->consumed = start = next;
    }
    s->searched = 0;
}

int sm_skip_line(sm_scan *s, const uint8_t *data, uint64_t bytes, uint64_t *consumed)
{
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
