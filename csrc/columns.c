/* role: producer
 * Events as columns, and what comes with them: a whole call, in chunks.
 */
#include "sender.h"

/* ---- one event -------------------------------------------------------------------------------------------------- */

static int piece_fits(const uint64_t *ends, uint64_t bytes, uint64_t most)
{
    return ends[0] <= ends[1] && ends[1] <= bytes && ends[1] - ends[0] <= most;
}

static uint32_t column_kind(const sm_columns *in, uint64_t i)
{
    return in->key_kinds ? in->key_kinds[i] : in->key_kind;
}

/* Whether row i of the columns lies within what was handed in, and half a lane holds it. */
static int column_fits(const sm_columns *in, uint64_t i, uint64_t most)
{
    uint32_t kind = column_kind(in, i);
    if (kind == SM_KEY_BYTES || kind == SM_KEY_STR) {
        const uint64_t *key = in->key_offsets + (i << in->key_spans);
        if (!piece_fits(key, in->key_bytes, most < SM_META_MISSING ? most : SM_META_MISSING - 1))
            return 0;
        most -= key[1] - key[0];
    }
    if (in->header_offsets) {
        const uint64_t *headers = in->header_offsets + i;
        if (!piece_fits(headers, in->header_bytes, most))
            return 0;
        most -= headers[1] - headers[0];
    }
    return kind <= SM_KEY_UNSIGNED && piece_fits(in->offsets + (i << in->spans), in->data_bytes, most);
}

static int column_event(const sm_columns *in, uint64_t at, uint64_t most, sm_event *e)
{
    if (unlikely(!column_fits(in, at, most)))
        return SM_TOO_LARGE;
    const uint64_t *payload = in->offsets + (at << in->spans);
    uint32_t kind = column_kind(in, at), is_unsigned = in->key_unsigned;
    if (kind == SM_KEY_UNSIGNED) {
        kind = SM_KEY_INT;
        is_unsigned = 1;
    }
    e->payload = in->data + payload[0];
    e->length = (uint32_t)(payload[1] - payload[0]);
    e->meta = kind << 30;
    e->key = 0;
    if (in->missing && in->missing[at]) {
        e->meta |= SM_META_MISSING;
        e->length = 0;
    }
    if (kind == SM_KEY_INT) {
        e->key = in->keys[at];
        if (is_unsigned && e->key >> 63)
            e->meta |= SM_META_UNSIGNED;
    } else if (kind != SM_KEY_NONE) {
        const uint64_t *key = in->key_offsets + (at << in->key_spans);
        uint32_t length = (uint32_t)(key[1] - key[0]);
        e->key_bytes = in->key_data + key[0];
        e->key = sm_hash_bytes(e->key_bytes, length);
        e->meta |= length;
    }
    return SM_OK;
}

/* ---- a call ----------------------------------------------------------------------------------------------------- */

static uint32_t more_of(const sm_columns *in)
{
    return (in->origins ? SM_FRAME_ORIGIN : 0) | (in->times ? SM_FRAME_TIMES : 0) |
           (in->header_offsets ? SM_FRAME_HEADERS : 0);
}

/* key, payload and headers of the largest event */
static uint64_t most_of(sm_sender *s, uint32_t more)
{
    uint64_t most = sm_max_payload(s, 0), taken = more ? sm_more_bytes(more, 1) + 8 : 0; /* 8: the bytes are rounded */
    return most > taken ? most - taken : 0;
}

/* A frame says how far each event is beyond the first of its chunk, in 32 bits. */
static uint32_t near_offsets(const sm_columns *in, uint64_t start, uint32_t n)
{
    while (n > 1 && in->origins[start + n - 1] - in->origins[start] > UINT32_MAX)
        n = (n + 1) / 2;
    return n;
}

int sm_push_columns_locked(sm_sender *s, const sm_columns *in, sm_cursor *c)
{
    const uint32_t kind = more_of(in);
    const uint64_t most = most_of(s, kind);
    int status = sm_sender_usable(s);
    /* all or nothing: what the first chunk does not show is looked at before that is pushed */
    for (uint64_t i = SM_CHUNK; status == SM_OK && !c->next && i < in->n; i++)
        if (unlikely(!column_fits(in, i, most))) {
            c->next = i;
            status = SM_TOO_LARGE;
        }
    while (status == SM_OK && (c->pending_count || c->next < in->n)) {
        uint32_t n;
        uint64_t start = sm_resume(c, in->n, SM_CHUNK, &n);
        if (unlikely(in->origins && !c->pending_count))
            n = near_offsets(in, start, n);
        for (uint32_t i = 0; i < n; i++)
            if (unlikely((status = column_event(in, start + i, most, &s->events[i])) != SM_OK)) {
                c->next = start + i;
                return status;
            }
        const sm_more more = {in, start, in->origins ? in->origins[start] : 0, kind};
        s->more = kind ? &more : NULL;
        status = sm_push_chunk(s, s->events, n, c);
        s->more = NULL;
        sm_advance(c, start, n, status);
    }
    return status;
}

int sm_push_columns(sm_sender *s, const sm_columns *in, sm_cursor *c)
{
    int status = sm_lock_unforked(s);
    if (status != SM_OK)
        return status;
    status = sm_push_columns_locked(s, in, c);
    sm_sender_unlock(s);
    return status;
}
