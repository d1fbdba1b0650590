/* role: none
 * Access logs: tokens between blanks, in quotes or in brackets.
 */
#include "record.h"

int sm_combined_fields(sm_record *r)
{
    uint64_t at = r->start, number = 0;
    for (; at < r->end && number < 9; number++) {
        uint8_t first = r->data[at], last = first == '"' ? '"' : first == '[' ? ']' : ' ';
        uint64_t from = at + (last != ' '), to = from;
        while (to < r->end && r->data[to] != last)
            to += 1 + (last == '"' && r->data[to] == '\\');
        if (to > r->end || (to == r->end && last != ' '))
            return sm_refuse(r, SM_BAD_FORM, (uint32_t)number, at);
        sm_put_position(r, number, from, to);
        if (number == 4) { /* method, path and protocol, of which the path may have blanks in it */
            const uint8_t *blank = memchr(r->data + from, ' ', to - from);
            if (blank) {
                uint64_t path = (uint64_t)(blank - r->data) + 1, end = to;
                sm_put_position(r, 9, from, path - 1);
                while (end > path && r->data[end - 1] != ' ')
                    end--;
                sm_put_position(r, 10, path, end > path ? end - 1 : to);
                if (end > path)
                    sm_put_position(r, 11, end, to);
            }
        }
        at = to + (last != ' ');
        if (at < r->end && r->data[at] != ' ')
            return sm_refuse(r, SM_BAD_FORM, (uint32_t)number, at);
        at++;
    }
    return number >= 7 || sm_refuse(r, SM_BAD_FORM, (uint32_t)number, r->end);
}
