/* role: none
 * JSON (RFC 8259), checked as a whole.
 */
#include "record.h"

#define SM_JSON_DEPTH 512 /* as deep as the parsers that handlers use go */

static void blanks(sm_parser *j)
{
    while (j->p < j->end && (*j->p == ' ' || *j->p == '\t' || *j->p == '\r' || *j->p == '\n'))
        j->p++;
}

static int number(sm_parser *j)
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
    return sm_bad_text(j, SM_BAD_SYNTAX);
}

static int word(sm_parser *j, const char *text, uint64_t length)
{
    if ((uint64_t)(j->end - j->p) < length || memcmp(j->p, text, length))
        return sm_bad_text(j, SM_BAD_SYNTAX);
    j->p += length;
    return 1;
}

int sm_json_fields(sm_record *r)
{
    sm_parser parsing = {r, r->data + r->start, r->data + r->end}, *j = &parsing;
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
        sm_parser alone = {r, from, j->end};
        const sm_scan none = {.format = SM_FORMAT_JSON};
        r->scan = &none; /* whether it is JSON at all */
        int json = sm_json_fields(r);
        r->scan = s;
        return json ? sm_bad_text(&alone, SM_BAD_OBJECT) : 0;
    }
    for (;;) { /* a value begins here */
        blanks(j);
        if (j->p >= j->end)
            return sm_bad_text(j, SM_BAD_SYNTAX);
        const uint8_t *from = j->p;
        int kind, opened = 0;
        switch (*from) {
        case '{':
        case '[':
            if (depth == SM_JSON_DEPTH)
                return sm_bad_text(j, SM_BAD_DEPTH);
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
            if (!(kind = sm_string(j)) || !sm_put_value(j, wanted, from + 1, j->p - 1, SM_VALUE_STRING, kind == 2))
                return 0;
            break;
        case 't':
            if (!word(j, "true", 4) || !sm_put_value(j, wanted, from, j->p, SM_VALUE_TRUE, 0))
                return 0;
            break;
        case 'f':
            if (!word(j, "false", 5) || !sm_put_value(j, wanted, from, j->p, SM_VALUE_FALSE, 0))
                return 0;
            break;
        case 'n':
            if (!word(j, "null", 4) || !sm_put_value(j, wanted, from, j->p, SM_VALUE_NULL, 0))
                return 0;
            break;
        default:
            if (!number(j) || !sm_put_value(j, wanted, from, j->p, SM_VALUE_NUMBER, 0))
                return 0;
        }
        /* after a value: a comma, or the ends of what is open */
        while (!opened) {
            blanks(j);
            if (!depth)
                return j->p == j->end || sm_bad_text(j, SM_BAD_SYNTAX);
            if (j->p >= j->end)
                return sm_bad_text(j, SM_BAD_SYNTAX);
            uint8_t c = *j->p;
            if (c == (stack[depth - 1].array ? ']' : '}')) {
                depth--;
                j->p++;
                if (!sm_put_value(j, stack[depth].wanted, stack[depth].from, j->p, SM_VALUE_NESTED, 0))
                    return 0;
            } else if (c == ',') {
                j->p++;
                break;
            } else {
                return sm_bad_text(j, SM_BAD_SYNTAX);
            }
        }
        node = UINT32_MAX;
        wanted = -1;
        if (stack[depth - 1].array)
            continue;
        blanks(j);
        if (j->p >= j->end || *j->p != '"')
            return sm_bad_text(j, SM_BAD_SYNTAX);
        const uint8_t *name = ++j->p;
        if (!(kind = sm_string(j)))
            return 0;
        if (stack[depth - 1].node != UINT32_MAX && s->paths > 1) {
            node = sm_member(r, name, j->p - 1, kind == 2, stack[depth - 1].node, &stack[depth - 1].hint);
            wanted = node ? s->path[node].wanted : -1;
            if (node && node < 64 && s->path[node].count) { /* of two objects nobody can say which one counts */
                if (inner >> node & 1)
                    return sm_refuse(r, SM_BAD_TWICE, sm_field_below(s, node), (uint64_t)(name - r->data));
                inner |= UINT64_C(1) << node;
            }
            node = node ? node : UINT32_MAX;
        }
        blanks(j);
        if (j->p >= j->end || *j->p != ':')
            return sm_bad_text(j, SM_BAD_SYNTAX);
        j->p++;
    }
}
