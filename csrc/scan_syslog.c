/* role: none
 * Syslog: RFC 5424, RFC 3164, and the lines of /var/log/syslog, which have no priority.
 */
#include "record.h"

static uint64_t token(const sm_record *r, uint64_t at)
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

static void put_number(sm_record *r, uint64_t position, unsigned value)
{
    uint64_t from = r->scratch;
    if (sm_wanted_at(r->scan, position) < 0)
        return;
    if (value >= 10)
        r->data[r->scratch++] = (uint8_t)('0' + value / 10);
    r->data[r->scratch++] = (uint8_t)('0' + value % 10);
    sm_put_position(r, position, from, r->scratch);
}

static int syslog_new(sm_record *r, uint64_t at)
{
    static const uint8_t order[] = {3, 4, 5, 6, 7};
    for (int i = 0; i < 5; i++) {
        uint64_t end = token(r, at);
        if (end == r->end)
            return sm_refuse(r, SM_BAD_FORM, order[i], at);
        sm_put_position(r, order[i], at, end);
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
                return sm_refuse(r, SM_BAD_FORM, 8, r->end);
            at++;
        }
    }
    if (at < r->end && r->data[at] != ' ')
        return sm_refuse(r, SM_BAD_FORM, 8, at);
    sm_put_position(r, 8, at < r->end ? at + 1 : at, r->end);
    return 1;
}

int sm_syslog_fields(sm_record *r)
{
    uint64_t at = r->start;
    if (at < r->end && r->data[at] == '<') {
        const uint8_t *close = memchr(r->data + at, '>', r->end - at < 5 ? r->end - at : 5);
        uint64_t end = close ? (uint64_t)(close - r->data) : 0;
        if (!close || !all_digits(r->data + at + 1, end - at - 1))
            return sm_refuse(r, SM_BAD_FORM, 0, at);
        unsigned priority = 0;
        for (uint64_t i = at + 1; i < end; i++)
            priority = priority * 10 + r->data[i] - '0';
        if (priority > 191)
            return sm_refuse(r, SM_BAD_FORM, 0, at + 1);
        sm_put_position(r, 0, at + 1, end);
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
        return sm_refuse(r, SM_BAD_FORM, 3, at);
    sm_put_position(r, 3, at, stamp);
    uint64_t host = token(r, stamp + 1);
    if (host == r->end)
        return sm_refuse(r, SM_BAD_FORM, 4, stamp + 1);
    sm_put_position(r, 4, stamp + 1, host);
    uint64_t tag = host + 1, end = tag;
    while (end < r->end && r->data[end] != ':' && r->data[end] != '[' && r->data[end] != ' ')
        end++;
    sm_put_position(r, 5, tag, end);
    if (end < r->end && r->data[end] == '[') {
        const uint8_t *close = memchr(r->data + end, ']', r->end - end);
        if (!close)
            return sm_refuse(r, SM_BAD_FORM, 6, end);
        sm_put_position(r, 6, end + 1, (uint64_t)(close - r->data));
        end = (uint64_t)(close - r->data) + 1;
    }
    end += end < r->end && r->data[end] == ':';
    end += end < r->end && r->data[end] == ' ';
    sm_put_position(r, 8, end, r->end);
    return 1;
}
