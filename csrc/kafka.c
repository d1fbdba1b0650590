/* role: none
 * Messages of Kafka as columns.
 *
 * A message costs the library one allocation that its reader has to give back; a Python object for each would cost five
 * times as much. They are taken from a queue in one call, measured, and copied into columns whose memory is the caller's.
 * The declarations are those of librdkafka's documented interface, which it keeps from version to version.
 */
#include <stdlib.h>
#include <string.h>
#include <sys/types.h>

#include "kafka.h"
#include "shardmem.h"

typedef struct message { /* rd_kafka_message_t */
    int32_t error;
    void *topic;
    int32_t partition;
    const void *payload; /* NULL: a tombstone. Of an error: what it is, in words */
    size_t length;
    const void *key; /* NULL: none */
    size_t key_length;
    int64_t offset;
    void *own;
} message;

struct sm_kafka {
    ssize_t (*consume)(void *queue, int timeout_ms, message **messages, size_t most);
    void (*destroy)(message *);
    int64_t (*timestamp)(const message *, int *kind);
    int (*headers)(const message *, void **headers);
    int (*header)(const void *headers, size_t index, const char **name, const void **value, size_t *length);
    uint32_t most, rows;
    message *message[];
};

sm_kafka *sm_kafka_new(const sm_kafka_calls *calls, uint32_t most)
{
    sm_kafka *k = calloc(1, sizeof *k + most * sizeof k->message[0]);
    if (!k)
        return NULL;
    memcpy(&k->consume, &calls->consume_batch_queue, sizeof k->consume);
    memcpy(&k->destroy, &calls->message_destroy, sizeof k->destroy);
    memcpy(&k->timestamp, &calls->message_timestamp, sizeof k->timestamp);
    memcpy(&k->headers, &calls->message_headers, sizeof k->headers);
    memcpy(&k->header, &calls->header_get_all, sizeof k->header);
    k->most = most;
    return k;
}

static void give_back(sm_kafka *k)
{
    for (uint32_t i = 0; i < k->rows; i++)
        k->destroy(k->message[i]);
    k->rows = 0;
}

void sm_kafka_free(sm_kafka *k)
{
    give_back(k);
    free(k);
}

/* ---- headers of one message --------------------------------------------------------------------------------------- */

static uint8_t *put_word(uint8_t *out, uint32_t word)
{
    memcpy(out, &word, 4); /* little-endian */
    return out + 4;
}

/* How many bytes they take; written to `out` if it is not NULL. */
static uint64_t put_headers(const sm_kafka *k, const message *m, uint8_t *out)
{
    void *headers = NULL;
    const char *name;
    const void *value;
    size_t length;
    uint64_t bytes = 4;
    uint32_t count = 0;
    uint8_t *p = out ? out + 4 : NULL;
    if (k->headers(m, &headers) == 0)
        for (; k->header(headers, count, &name, &value, &length) == 0; count++) {
            uint32_t name_length = (uint32_t)strlen(name), kept = value ? (uint32_t)length : 0;
            bytes += 8 + name_length + kept;
            if (!p)
                continue;
            p = put_word(p, name_length);
            memcpy(p, name, name_length);
            p = put_word(p + name_length, value ? kept : UINT32_MAX);
            if (kept)
                memcpy(p, value, kept);
            p += kept;
        }
    if (out)
        put_word(out, count);
    return bytes;
}

/* ---- a block ------------------------------------------------------------------------------------------------------ */

static void note_error(const message *m, sm_kafka_taken *t)
{
    size_t length = m->payload ? m->length : 0;
    if (length > sizeof t->reason - 1)
        length = sizeof t->reason - 1;
    t->error = m->error;
    if (length)
        memcpy(t->reason, m->payload, length);
    t->reason[length] = 0;
}

/* Errors lie between messages: they are no rows. */
static void measure(sm_kafka *k, int headers, sm_kafka_taken *t)
{
    uint32_t kept = 0;
    for (uint32_t i = 0; i < k->rows; i++) {
        message *m = k->message[i];
        if (m->error) {
            note_error(m, t);
            k->destroy(m);
            continue;
        }
        k->message[kept++] = m;
        t->keyless += !m->key;
        t->tombstones += !m->payload;
        t->key_bytes += m->key_length;
        t->payload_bytes += m->length;
        if (headers)
            t->header_bytes += put_headers(k, m, NULL);
    }
    t->rows = k->rows = kept;
}

int sm_kafka_take(sm_kafka *k, const uint64_t *queues, uint32_t count, uint32_t first, uint32_t most, int headers,
                  sm_kafka_taken *t)
{
    memset(t, 0, sizeof *t);
    give_back(k);
    if (most > k->most)
        most = k->most;
    for (uint32_t i = 0; i < count; i++) {
        uint32_t number = (first + i) % count;
        ssize_t got = k->consume((void *)(uintptr_t)queues[number], 0, k->message, most);
        if (got <= 0)
            continue;
        k->rows = (uint32_t)got;
        t->queue = number;
        measure(k, headers, t);
        return 1;
    }
    return 0;
}

void sm_kafka_put(sm_kafka *k, const sm_kafka_columns *c)
{
    uint64_t key_at = 0, payload_at = 0, header_at = 0;
    c->key_ends[0] = c->payload_ends[0] = 0;
    if (c->headers)
        c->header_ends[0] = 0;
    for (uint32_t i = 0; i < k->rows; i++) {
        const message *m = k->message[i];
        int kind;
        if (m->key_length)
            memcpy(c->keys + key_at, m->key, m->key_length);
        if (m->length)
            memcpy(c->payloads + payload_at, m->payload, m->length);
        c->key_ends[i + 1] = key_at += m->key_length;
        c->payload_ends[i + 1] = payload_at += m->length;
        c->offsets[i] = (uint64_t)m->offset;
        c->timestamps[i] = (uint64_t)k->timestamp(m, &kind);
        if (c->key_kinds)
            c->key_kinds[i] = m->key ? SM_KEY_BYTES : SM_KEY_NONE;
        if (c->missing)
            c->missing[i] = !m->payload;
        if (c->headers) {
            header_at += put_headers(k, m, c->headers + header_at);
            c->header_ends[i + 1] = header_at;
        }
    }
    give_back(k);
}
