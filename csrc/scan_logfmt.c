/* role: none
 * logfmt: name=value, name="value", name.
 */
#include "record.h"

int sm_logfmt_fields(sm_record *r)
{
    sm_parser parsing = {r, r->data + r->start, r->data + r->end}, *j = &parsing;
    uint32_t hint = 0;
    for (;;) {
        while (j->p < j->end && sm_is_blank(*j->p))
            j->p++;
        if (j->p == j->end)
            return 1;
        const uint8_t *name = j->p;
        while (j->p < j->end && !sm_is_blank(*j->p) && *j->p != '=' && *j->p != '"')
            j->p++;
        if (j->p == name || (j->p < j->end && *j->p == '"'))
            return sm_bad_text(j, SM_BAD_FORM);
        uint32_t node = r->scan->paths > 1 ? sm_member(r, name, j->p, 0, 0, &hint) : 0;
        int32_t wanted = node ? r->scan->path[node].wanted : -1;
        const uint8_t *from = j->p, *to = j->p;
        int escaped = 0;
        if (j->p < j->end && *j->p == '=') {
            from = ++j->p;
            if (j->p < j->end && *j->p == '"') {
                from = ++j->p;
                if (!(escaped = sm_string(j))) {
                    r->reason = r->reason == SM_BAD_SYNTAX ? SM_BAD_FORM : r->reason;
                    return 0;
                }
                to = j->p - 1;
                if (j->p < j->end && !sm_is_blank(*j->p))
                    return sm_bad_text(j, SM_BAD_FORM);
            } else {
                while (j->p < j->end && !sm_is_blank(*j->p))
                    j->p++;
                to = j->p;
            }
        }
        if (!sm_put_value(j, wanted, from, to, SM_VALUE_TEXT, escaped == 2))
            return 0;
    }
}
