/* Messages of Kafka as columns. librdkafka is not linked: whoever has loaded it hands over where its calls are. Read by cffi
 * as shardmem.h is. */
#ifndef SHARDMEM_KAFKA_H
#define SHARDMEM_KAFKA_H

#include <stdint.h>

typedef struct sm_kafka sm_kafka;

typedef struct sm_kafka_calls { /* addresses of the calls of these names, without rd_kafka_ */
    uint64_t consume_batch_queue, message_destroy, message_timestamp, message_headers, header_get_all;
} sm_kafka_calls;

typedef struct sm_kafka_taken { /* what sm_kafka_take has in hand */
    uint64_t rows, key_bytes, payload_bytes, header_bytes;
    uint64_t keyless, tombstones; /* rows without a key, rows without a payload */
    uint32_t queue;               /* which of the queues */
    int32_t error;                /* of the queue, 0: none; and what the library says of it, which ends with NUL */
    char reason[256];
} sm_kafka_taken;

typedef struct sm_kafka_columns { /* item i of one is data[offsets[i]:offsets[i + 1]] */
    uint8_t *keys;
    uint64_t *key_ends; /* rows + 1, as the other ends */
    uint8_t *payloads;
    uint64_t *payload_ends;
    uint64_t *offsets;
    uint64_t *timestamps; /* int64: ms since 1970; -1: none */
    uint8_t *key_kinds;   /* NULL, or of each row SM_KEY_NONE or SM_KEY_BYTES */
    uint8_t *missing;     /* NULL, or of each row whether it is a tombstone */
    uint8_t *headers; /* NULL, or count, then of each header: length and name, length and value (0xffffffff: none) */
    uint64_t *header_ends;
} sm_kafka_columns;

/* most: messages at once. NULL: out of memory */
sm_kafka *sm_kafka_new(const sm_kafka_calls *calls, uint32_t most);
void sm_kafka_free(sm_kafka *reader);
/* Takes what is at hand in the first of the queues, from number `first` on and around, that has anything; 0: none has. What
 * was taken has to be put down before more is taken. */
int sm_kafka_take(sm_kafka *reader, const uint64_t *queues, uint32_t count, uint32_t first, uint32_t most, int headers,
                  sm_kafka_taken *taken);
void sm_kafka_put(sm_kafka *reader, const sm_kafka_columns *columns);

#endif
