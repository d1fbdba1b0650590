/* Finding records and their fields in a block of bytes, and making typed columns of fields. Ordinary memory only:
 * nothing here knows lanes. Read by cffi as shardmem.h is. */
#ifndef SHARDMEM_SCAN_H
#define SHARDMEM_SCAN_H

#include <stdint.h>

/* a delimiter, quote or comment that no byte is */
#define SM_NOTHING 256

enum sm_format {
    SM_FORMAT_LINES = 0, /* fields between white space (delimiter SM_NOTHING) or delimiters */
    SM_FORMAT_CSV = 1,
    SM_FORMAT_JSON = 2,
    SM_FORMAT_LOGFMT = 3,
    SM_FORMAT_SYSLOG = 4,  /* pri facility severity timestamp host app pid msgid message */
    SM_FORMAT_COMBINED = 5 /* host ident user time request status bytes referer agent method path protocol */
};

/* what stands in a field */
enum sm_value {
    SM_VALUE_MISSING = 0,
    SM_VALUE_TEXT = 1,   /* of a format without types */
    SM_VALUE_STRING = 2, /* JSON, its escapes resolved */
    SM_VALUE_NUMBER = 3,
    SM_VALUE_TRUE = 4,
    SM_VALUE_FALSE = 5,
    SM_VALUE_NULL = 6,
    SM_VALUE_NESTED = 7, /* an object or an array */
    SM_VALUE_BROKEN = 8  /* a string with half a surrogate pair, which no UTF-8 has */
};

enum sm_key_mode { SM_KEY_FIELDS = 0, SM_KEY_AUTO = 1, SM_KEY_TEXT = 2, SM_KEY_NUMBER = 3 };

/* why a record or a value is refused */
enum sm_bad_reason {
    SM_GOOD = 0,
    SM_BAD_LONG = 1,       /* more than half a lane */
    SM_BAD_OPEN = 2,       /* the input ended inside quotes; at: where they began */
    SM_BAD_QUOTE = 3,      /* text after a closing quote; at: that text */
    SM_BAD_COUNT = 4,      /* another number of fields than the header; field: how many */
    SM_BAD_SYNTAX = 5,     /* of JSON; at: the byte that does not fit */
    SM_BAD_DEPTH = 6,      /* JSON nested too deep */
    SM_BAD_UTF8 = 7,       /* JSON, or text for a field of characters, that is not UTF-8 */
    SM_BAD_OBJECT = 8,     /* JSON, but no object: it has no members */
    SM_BAD_TWICE = 9,      /* a wanted member occurs twice */
    SM_BAD_MISSING = 10,   /* no such field */
    SM_BAD_NULL = 11,      /* null, where there is no value for it */
    SM_BAD_KIND = 12,      /* a value of another kind than the key or field takes */
    SM_BAD_NUMBER = 13,    /* no number */
    SM_BAD_WHOLE = 14,     /* a number that is not whole */
    SM_BAD_RANGE = 15,     /* beyond the range of the key or field */
    SM_BAD_EXACT = 16,     /* a whole number that the float nearest to it is not */
    SM_BAD_WIDTH = 17,     /* longer than the field */
    SM_BAD_NUL = 18,       /* ends in NUL, which a field of bytes or characters cannot show */
    SM_BAD_BOOL = 19,      /* neither true nor false */
    SM_BAD_TIME = 20,      /* no date or time */
    SM_BAD_FINE = 21,      /* a time of finer resolution than the field */
    SM_BAD_SURROGATE = 22, /* half a surrogate pair */
    SM_BAD_FORM = 23,      /* a line that is not of the format */
    SM_BAD_SEPARATOR = 24, /* part of a key of several fields, with the byte between the parts in it */
    SM_BAD_MARK = 25       /* a field that is wanted begins with a byte order mark, behind the beginning of the file */
};

typedef struct sm_bad {
    uint64_t start, end; /* the record's bytes; end is where the block ended if reason says that the input did */
    uint64_t line, lines;
    uint64_t at; /* the byte that is meant, if one is */
    uint32_t reason, field;
} sm_bad;

typedef struct sm_path {     /* a name that is looked for in an object; children lie side by side; 0 is the root */
    uint32_t name, name_end; /* of `names` */
    uint32_t first, count;   /* children */
    int32_t wanted;          /* field number, or -1 */
} sm_path;

typedef struct sm_scan {
    uint32_t format, key_mode, delimiter, quote, comment;
    uint32_t cr;      /* lines end with CR alone, too; records of CSV always may */
    uint32_t columns; /* CSV: how many fields each record has; 0: any number */
    uint32_t wanted;  /* fields that are reported */
    uint64_t most;    /* bytes of payload and key */
    uint32_t positions;
    const int32_t *position; /* field number -> which wanted, or -1; fields from `positions` on are not wanted */
    uint32_t paths;
    const sm_path *path; /* JSON, logfmt */
    const uint8_t *names;
    uint32_t blank; /* lines: blank ones are events too */
    /* state, zero at the start of a file except line, which is 1 */
    uint64_t line, searched;
    uint32_t skip_mode, after_cr; /* CSV: what was scanned ends with CR, so a LF that comes is no line end of its own */
} sm_scan;

typedef struct sm_found {
    uint64_t capacity, bad_capacity;
    uint64_t *spans; /* payload i = data[spans[2i]:spans[2i+1]] */
    uint64_t *lines;
    uint64_t *fields; /* (i * wanted + f) * 2 */
    uint8_t *values;  /* enum sm_value, i * wanted + f */
    uint8_t *key_kinds;
    uint64_t *keys, *key_spans;
    sm_bad *bad;
    /* out */
    uint64_t records, bads, consumed, scratch;
    uint32_t too_long; /* the record at `consumed` is longer than may be held: skip it */
} sm_found;

/* Records that end within data[0:bytes]; final: the input ends there. Resolved escapes are written to data[scratch..], for
 * which there must be as many bytes as wanted fields have, and 64 bytes more after it all. */
void sm_scan_block(sm_scan *scan, uint8_t *data, uint64_t bytes, uint64_t scratch, int final, sm_found *found);
/* Goes on to the end of a record that is not wanted: 1 when it ended. first: from its beginning. */
int sm_scan_skip(sm_scan *scan, const uint8_t *data, uint64_t bytes, int first, uint64_t *consumed);

typedef struct sm_target { /* one field of a dtype */
    uint32_t kind;         /* 'i' 'u' 'f' 'b' 'S' 'U' 'M' 'm' */
    uint32_t itemsize;
    uint32_t unit; /* M, m: D h m s ms us ns as 0 to 6 */
    uint32_t wanted, field;
    uint64_t stride;
    uint8_t *out;
} sm_target;

/* Column `field` of n records as target says; bad[i] and bad_field[i] are set for the first that a record cannot have. */
void sm_convert(const uint8_t *data, const uint64_t *fields, const uint8_t *values, uint64_t n, const sm_target *target,
                uint8_t *bad, uint32_t *bad_field);

#endif
