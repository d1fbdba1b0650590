/* Whatever the bytes are, the scanner stays within the buffers that it was given: records, fields and keys that it reports lie in
 * the data or in the scratch behind it, in order and without overlap; records lie between what was consumed before and now; and
 * the same bytes in blocks of any size are the same events. The converters take whatever the fields are.
 *
 * Arguments: seed, seconds.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "scan.h"
#include "shardmem.h"

#define LONGEST 600
#define RECORDS 64
#define BAD 16
#define WANTED 3
#define SCRATCH(BYTES) (5 * (BYTES) + 1024)

static uint64_t state;

static uint64_t draw(uint64_t below)
{
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return state % below;
}

#define CHECK(CONDITION)                                                                                               \
    do {                                                                                                               \
        if (!(CONDITION)) {                                                                                            \
            printf("line %d: %s\n", __LINE__, #CONDITION);                                                             \
            exit(1);                                                                                                   \
        }                                                                                                              \
    } while (0)

static const char *const pieces[] = {
    "\n",
    "\r\n",
    "\r",
    ",",
    "\"",
    "\"\"",
    "\\",
    "{",
    "}",
    "[",
    "]",
    ":",
    "null",
    "true",
    "1",
    "-7",
    "1e400",
    "0.1",
    "\"a\"",
    "\"b\"",
    "\"a\":",
    "{\"a\":{\"b\":",
    "\\ud83d",
    "\\ude00",
    "\\u0041",
    "\xc3\xa9",
    "\xff",
    "\xf0\x9f\x98\x80",
    " ",
    "a=",
    "a=\"x",
    "<34>1 ",
    "<13>Oct 11 22:14:15 h app[1]: ",
    "1.2.3.4 - - [t] \"GET / H\" 200 1",
    "2024-01-01T00:00:00Z",
    "#",
    "x",
    "\x1f",
    "\0",
};

static uint64_t make(uint8_t *out, uint64_t most)
{
    uint64_t n = 0, wanted = draw(most);
    while (n < wanted) {
        const char *piece = pieces[draw(sizeof pieces / sizeof *pieces)];
        uint64_t length = *piece ? strlen(piece) : 1;
        if (n + length > most)
            break;
        memcpy(out + n, piece, length);
        n += length;
    }
    return n;
}

typedef struct {
    uint64_t spans[2 * RECORDS], lines[RECORDS], fields[2 * RECORDS * WANTED], keys[RECORDS], key_spans[2 * RECORDS];
    uint8_t values[RECORDS * WANTED], key_kinds[RECORDS];
    sm_bad bad[BAD];
} columns;

/* a hash of the events that came, whatever the blocks */
static uint64_t mix(uint64_t hash, const uint8_t *data, uint64_t from, uint64_t to)
{
    return (hash ^ sm_hash_bytes(data + from, to - from)) * UINT64_C(0x9E3779B97F4A7C15) + (to - from);
}

static void convert_all(const uint8_t *data, const sm_scan *scan, const columns *c, uint64_t records)
{
    static const struct {
        uint32_t kind, itemsize;
    } kinds[] = {{'i', 1}, {'i', 8}, {'u', 2}, {'u', 8}, {'f', 2}, {'f', 4},
                 {'f', 8}, {'b', 1}, {'S', 3}, {'U', 8}, {'M', 8}, {'m', 8}};
    for (unsigned k = 0; k < sizeof kinds / sizeof *kinds; k++) {
        uint8_t *out = malloc(records * kinds[k].itemsize + 1), bad[RECORDS] = {0};
        uint32_t field[RECORDS] = {0};
        for (uint32_t f = 0; f < scan->wanted; f++) {
            sm_target target = {
                kinds[k].kind, kinds[k].itemsize, (uint32_t)draw(7), scan->wanted, f, kinds[k].itemsize, out};
            sm_convert(data, c->fields, c->values, records, &target, bad, field);
        }
        free(out);
    }
}

static void check_block(const sm_found *found, const sm_scan *scan, uint64_t bytes, uint64_t scratch)
{
    uint64_t last = 0;
    CHECK(found->consumed <= bytes && found->scratch >= scratch && found->scratch <= SCRATCH(bytes));
    for (uint64_t i = 0; i < found->records; i++) {
        uint64_t from = found->spans[2 * i], to = found->spans[2 * i + 1];
        CHECK(last <= from && from <= to && to <= found->consumed);
        CHECK(to - from <= scan->most);
        last = to;
        for (uint32_t f = 0; f < scan->wanted; f++) {
            const uint64_t *field = found->fields + 2 * (i * scan->wanted + f);
            if (found->values[i * scan->wanted + f])
                CHECK(field[0] <= field[1] && field[1] <= found->scratch);
        }
        if (scan->key_mode) {
            CHECK(found->key_kinds[i] == SM_KEY_STR || found->key_kinds[i] == SM_KEY_INT ||
                  found->key_kinds[i] == SM_KEY_UNSIGNED);
            CHECK(found->key_spans[2 * i] <= found->key_spans[2 * i + 1] &&
                  found->key_spans[2 * i + 1] <= found->scratch);
        }
    }
    for (uint64_t i = 0; i < found->bads; i++) {
        const sm_bad *bad = &found->bad[i];
        CHECK(bad->start <= bad->end && bad->end <= bytes && bad->reason && bad->lines);
    }
}

/* all of it, in blocks of at most so many bytes; each in memory of exactly the size that the header asks for */
static uint64_t scan_all(sm_scan *scan, const uint8_t *text, uint64_t length, uint64_t block, columns *c)
{
    uint64_t hash = 1, at = 0, have = block < length ? block : length;
    int skipping = 0, first = 0;
    scan->line = 1;
    scan->searched = scan->after_cr = 0;
    for (;;) {
        uint64_t bytes = have - at;
        int final = have == length;
        uint8_t *data = malloc(SCRATCH(bytes) + 64);
        memcpy(data, text + at, bytes);
        memset(data + bytes, 0xaa, SCRATCH(bytes) + 64 - bytes);
        uint64_t consumed = 0;
        if (skipping) {
            skipping = !sm_scan_skip(scan, data, bytes, first, &consumed);
            first = 0;
        } else {
            sm_found found = {RECORDS,   BAD,          c->spans, c->lines,     c->fields,
                              c->values, c->key_kinds, c->keys,  c->key_spans, c->bad};
            sm_scan_block(scan, data, bytes, bytes, final, &found);
            check_block(&found, scan, bytes, bytes);
            for (uint64_t i = 0; i < found.records; i++) {
                hash = mix(hash, data, found.spans[2 * i], found.spans[2 * i + 1]) + found.lines[i];
                if (scan->key_mode)
                    hash = mix(hash, data, found.key_spans[2 * i], found.key_spans[2 * i + 1]) + found.keys[i];
            }
            convert_all(data, scan, c, found.records);
            consumed = found.consumed;
            if (found.too_long)
                skipping = first = 1;
            else if (found.records < RECORDS && found.bads < BAD && final)
                consumed = bytes; /* nothing more comes of it */
        }
        free(data);
        at += consumed;
        if (at == length)
            return hash;
        if (final && skipping && !first)
            return hash;
        if (!(skipping && first))
            have = have + block < length ? have + block : length;
    }
}

int main(int argc, char **argv)
{
    static const char names[] = "ab";
    static const int32_t positions[] = {2, -1, 0, 1};
    static const sm_path plain[] = {{0, 0, 1, 2, -1}, {0, 1, 3, 1, 0}, {1, 2, 0, 0, 1}, {1, 2, 0, 0, 2}};
    uint64_t seed = argc > 1 ? strtoull(argv[1], NULL, 10) : 1, seconds = argc > 2 ? strtoull(argv[2], NULL, 10) : 2;
    time_t until = time(NULL) + (time_t)seconds;
    uint8_t text[LONGEST];
    columns *c = malloc(sizeof *c);
    uint64_t rounds = 0;
    state = seed * UINT64_C(0x9E3779B97F4A7C15) | 1;
    alarm(100);
    for (; time(NULL) < until || rounds < 2000; rounds++) {
        uint64_t length = make(text, LONGEST);
        sm_scan scan = {
            .format = (uint32_t)draw(6),
            .key_mode = (uint32_t)draw(4),
            .delimiter = draw(4) ? ',' : ' ',
            .quote = draw(4) ? '"' : SM_NOTHING,
            .comment = draw(4) ? SM_NOTHING : '#',
            .cr = !draw(4),
            .columns = (uint32_t)draw(4),
            .most = draw(2) ? LONGEST : 20 + draw(60),
            .blank = (uint32_t)draw(2),
            .positions = 4,
            .position = positions,
            .paths = 4,
            .path = plain,
            .names = (const uint8_t *)names,
        };
        scan.wanted = draw(4) ? WANTED : 0;
        if (!scan.wanted)
            scan.positions = scan.paths = scan.key_mode = 0;
        if (scan.format == SM_FORMAT_LINES && draw(2))
            scan.delimiter = SM_NOTHING;
        uint64_t whole = scan_all(&scan, text, length, length + 1, c);
        uint64_t pieces_of = scan_all(&scan, text, length, 1 + draw(64), c);
        CHECK(whole == pieces_of);
    }
    free(c);
    printf("%llu inputs\n", (unsigned long long)rounds);
    return 0;
}
