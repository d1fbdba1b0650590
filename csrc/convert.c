/* role: none
 * Fields of text and JSON as typed columns. What each dtype takes is the table of docs/getting-data-in.md; a value that is not
 * exactly of the dtype is refused with a reason, never rounded to fit, wrapped or cut short. A decimal fraction becomes the
 * nearest float, for that is what a float is.
 */
#include "internal.h" /* first: it asks for the functions that take a locale */

#include <locale.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "scan.h"

typedef struct text {
    const uint8_t *p;
    uint64_t n;
} text;

static int is(text t, const char *word) { return t.n == strlen(word) && !memcmp(t.p, word, t.n); }

static text stripped(text t)
{
    while (t.n && (t.p[0] == ' ' || t.p[0] == '\t'))
        t.p++, t.n--;
    while (t.n && (t.p[t.n - 1] == ' ' || t.p[t.n - 1] == '\t'))
        t.n--;
    return t;
}

static int is_digit(uint8_t c) { return c >= '0' && c <= '9'; }

/* ---- whole numbers ------------------------------------------------------------------------------------------------ */

/* [+-]digits, and then a fraction of zeros, as pandas writes a column with gaps */
static int whole(text t, uint64_t *value, int *negative)
{
    uint64_t i = 0, v = 0;
    int beyond = 0;
    *negative = t.n && t.p[0] == '-';
    i += t.n && (t.p[0] == '-' || t.p[0] == '+');
    if (i == t.n || !is_digit(t.p[i]))
        return SM_BAD_NUMBER;
    for (; i < t.n && is_digit(t.p[i]); i++)
        beyond |= __builtin_mul_overflow(v, 10u, &v) || __builtin_add_overflow(v, (uint64_t)(t.p[i] - '0'), &v);
    if (i < t.n && t.p[i] == '.') {
        for (i++; i < t.n && t.p[i] == '0'; i++)
            ;
        if (i < t.n && is_digit(t.p[i]))
            return SM_BAD_WHOLE;
    }
    if (i < t.n)
        return (t.p[i] | 32) == 'e' ? SM_BAD_WHOLE : SM_BAD_NUMBER;
    *value = v;
    return beyond ? SM_BAD_RANGE : SM_GOOD;
}

static int put_whole(text t, const sm_target *to, uint8_t *out)
{
    uint64_t v;
    int negative, reason = whole(stripped(t), &v, &negative);
    if (reason != SM_GOOD)
        return reason;
    unsigned bits = 8 * to->itemsize;
    if (to->kind == 'u') {
        if ((negative && v) || (bits < 64 && v >> bits))
            return SM_BAD_RANGE;
    } else {
        uint64_t most = UINT64_C(1) << (bits - 1);
        if (negative ? v > most : v >= most)
            return SM_BAD_RANGE;
        v = negative ? 0 - v : v;
    }
    memcpy(out, &v, to->itemsize); /* little-endian: its low bytes */
    return SM_GOOD;
}

/* ---- floats --------------------------------------------------------------------------------------------------------- */

static const double tens[] = {1e0,  1e1,  1e2,  1e3,  1e4,  1e5,  1e6,  1e7,  1e8,  1e9,  1e10, 1e11,
                              1e12, 1e13, 1e14, 1e15, 1e16, 1e17, 1e18, 1e19, 1e20, 1e21, 1e22};

static locale_t c_locale;
static void __attribute__((constructor)) make_locale(void) { c_locale = newlocale(LC_ALL_MASK, "C", (locale_t)0); }

typedef struct decimal {
    unsigned __int128 mantissa;
    int64_t exponent;
    int negative, is_whole,
        is_long; /* is_whole: no exponent, and no fraction but zeros; is_long: mantissa lacks digits */
} decimal;

static void add_digit(decimal *d, uint64_t *significant, unsigned digit)
{
    *significant += *significant || digit;
    if (*significant > 38) {
        d->is_long = 1;
        d->exponent++;
    } else {
        d->mantissa = d->mantissa * 10 + digit;
    }
}

static int read_decimal(text t, decimal *d)
{
    uint64_t i = 0, digits = 0, significant = 0;
    *d = (decimal){0};
    d->is_whole = 1;
    d->negative = t.n && t.p[0] == '-';
    i += t.n && (t.p[0] == '-' || t.p[0] == '+');
    uint64_t zeros = 0; /* at the end of the fraction so far */
    for (int fraction = 0; i < t.n; i++) {
        if (t.p[i] == '.' && !fraction) {
            fraction = 1;
            continue;
        }
        if (!is_digit(t.p[i]))
            break;
        digits++;
        if (fraction && t.p[i] == '0') {
            zeros++;
            continue;
        }
        d->is_whole &= !fraction;
        d->exponent -= fraction * (int64_t)(zeros + 1);
        for (; zeros; zeros--)
            add_digit(d, &significant, 0);
        add_digit(d, &significant, (unsigned)(t.p[i] - '0'));
    }
    if (!digits)
        return SM_BAD_NUMBER;
    if (i < t.n && (t.p[i] | 32) == 'e') {
        int64_t e = 0;
        int minus = i + 1 < t.n && t.p[i + 1] == '-';
        d->is_whole = 0;
        i += 1 + (i + 1 < t.n && (t.p[i + 1] == '-' || t.p[i + 1] == '+'));
        if (i == t.n)
            return SM_BAD_NUMBER;
        for (; i < t.n && is_digit(t.p[i]); i++)
            e = e < 100000 ? e * 10 + t.p[i] - '0' : e;
        d->exponent += minus ? -e : e;
    }
    return i == t.n ? SM_GOOD : SM_BAD_NUMBER;
}

static int is_infinite(text t)
{
    if (t.n && (t.p[0] == '-' || t.p[0] == '+'))
        t.p++, t.n--;
    return is(t, "inf") || is(t, "Inf") || is(t, "Infinity") || is(t, "infinity");
}

static int absent(text t)
{
    return !t.n || is(t, "NA") || is(t, "NaN") || is(t, "nan") || is(t, "null") || is(t, "NaT");
}

static int slow_float(text t, const decimal *d, const sm_target *to, double *value)
{
    char copy[1024];
    if (t.n >= sizeof copy)
        return SM_BAD_NUMBER;
    memcpy(copy, t.p, t.n);
    copy[t.n] = 0;
    *value = to->itemsize == 4 ? (double)strtof_l(copy, NULL, c_locale) : strtod_l(copy, NULL, c_locale);
    if (isinf(*value) || (*value == 0 && (d->mantissa || d->is_long)))
        return SM_BAD_RANGE;
    return SM_GOOD;
}

/* whether these digits, with no fraction but zeros, say exactly this */
static int is_exactly(text t, double magnitude)
{
    char exact[320];
    while (t.n && (t.p[0] == '-' || t.p[0] == '+' || t.p[0] == '0'))
        t.p++, t.n--;
    uint64_t length = (uint64_t)snprintf(exact, sizeof exact, "%.0f", magnitude);
    return t.n >= length && !memcmp(t.p, exact, length) && (t.n == length || t.p[length] == '.');
}

/* how the digits compare with a magnitude that is so many 2^-25 */
static int compare(const decimal *d, uint64_t magnitude)
{
    unsigned __int128 ours = d->mantissa,
                      theirs = (unsigned __int128)magnitude * UINT64_C(298023223876953125); /* 5^25 */
    unsigned __int128 power = 1;
    for (int64_t k = d->exponent + 25; k > 0; k--) /* both are near each other: neither can overflow */
        ours *= 10;
    for (int64_t k = d->exponent + 25; k < 0; k++)
        power *= 10;
    if (ours / power != theirs)
        return ours / power > theirs ? 1 : -1;
    return ours % power || d->is_long;
}

/* The half nearest to the digits, of which value is the nearest double: between two halves, the double may hide on which
 * side the digits are. */
static double nearest_half(double value, const decimal *d)
{
    int exponent;
    double magnitude = fabs(value);
    frexp(magnitude, &exponent);
    const double step = ldexp(1, exponent > -13 ? exponent - 11 : -24);
    if (magnitude >= 0x1p17)
        return value;
    uint64_t down = (uint64_t)(magnitude / step);
    double rest = magnitude / step - (double)down;
    int side = rest == 0.5 ? compare(d, (uint64_t)(magnitude * 0x1p25)) : rest > 0.5 ? 1 : -1;
    magnitude = (double)(down + (side > 0 || (!side && down & 1))) * step;
    return signbit(value) ? -magnitude : magnitude;
}

static uint16_t half_bits(double value)
{
    const uint16_t sign = signbit(value) ? 0x8000 : 0;
    double magnitude = fabs(value);
    int exponent;
    if (isnan(value))
        return 0x7e00;
    if (isinf(value))
        return sign | 0x7c00;
    if (magnitude < 0x1p-14)
        return sign | (uint16_t)(magnitude * 0x1p24);
    double part = frexp(magnitude, &exponent);
    return sign | (uint16_t)((exponent + 14) << 10) | (uint16_t)(part * 0x1p11 - 0x1p10);
}

static int nearest(text t, const decimal *d, const sm_target *to, double *value)
{
    const uint64_t m = d->mantissa >> 64 || d->is_long ? UINT64_MAX : (uint64_t)d->mantissa;
    const int64_t e = d->exponent;
    int reason = SM_GOOD;
    if (to->itemsize != 4 && m <= UINT64_C(1) << 53 && e >= -22 && e <= 22) { /* both exact, so one rounding */
        *value = e < 0 ? (double)m / tens[-e] : (double)m * tens[e];
        *value = d->negative ? -*value : *value;
    } else if (to->itemsize == 4 && m <= UINT64_C(1) << 24 && e >= -10 && e <= 10) {
        float exact = e < 0 ? (float)m / (float)tens[-e] : (float)m * (float)tens[e];
        *value = d->negative ? -exact : exact;
    } else if ((reason = slow_float(t, d, to, value)) != SM_GOOD) {
        return reason;
    }
    if (to->itemsize == 2) {
        *value = nearest_half(*value, d);
        if (fabs(*value) > 65504 || (*value == 0 && m))
            return SM_BAD_RANGE;
    }
    double magnitude = fabs(*value);
    const int bits = to->itemsize == 8 ? 53 : to->itemsize == 4 ? 24 : 11;
    if (d->is_whole && m > UINT64_C(1) << bits &&
        (d->is_long || magnitude >= 0x1p127 ? !is_exactly(t, magnitude) : (unsigned __int128)magnitude != d->mantissa))
        return SM_BAD_EXACT;
    return SM_GOOD;
}

static int put_float(text t, uint8_t value_kind, const sm_target *to, uint8_t *out)
{
    double value = NAN;
    t = stripped(t);
    if (value_kind == SM_VALUE_NULL || (value_kind == SM_VALUE_TEXT && absent(t))) {
        value = NAN;
    } else if (value_kind == SM_VALUE_TEXT && is_infinite(t)) {
        value = t.p[0] == '-' ? -INFINITY : INFINITY;
    } else {
        decimal d;
        int reason = read_decimal(t, &d);
        if (reason == SM_GOOD)
            reason = nearest(t, &d, to, &value);
        if (reason != SM_GOOD)
            return reason;
    }
    const float single = (float)value;
    const uint16_t half = to->itemsize == 2 ? half_bits(value) : 0;
    memcpy(out, to->itemsize == 8 ? (void *)&value : to->itemsize == 4 ? (void *)&single : (void *)&half, to->itemsize);
    return SM_GOOD;
}

/* ---- bytes and characters --------------------------------------------------------------------------------------------- */

static int put_bytes(text t, const sm_target *to, uint8_t *out)
{
    if (t.n > to->itemsize)
        return SM_BAD_WIDTH;
    if (t.n && !t.p[t.n - 1])
        return SM_BAD_NUL;
    memcpy(out, t.p, t.n);
    memset(out + t.n, 0, to->itemsize - t.n);
    return SM_GOOD;
}

static int put_characters(text t, const sm_target *to, uint8_t *out)
{
    uint32_t room = to->itemsize / 4, used = 0;
    for (uint64_t i = 0; i < t.n; used++) {
        uint32_t c = t.p[i], more = c < 0x80                ? 0
                                    : c >= 0xc2 && c < 0xe0 ? 1
                                    : c >= 0xe0 && c < 0xf0 ? 2
                                    : c >= 0xf0 && c < 0xf5 ? 3
                                                            : 9;
        if (more > 3 || i + more >= t.n)
            return SM_BAD_UTF8;
        c &= more ? 0x3fu >> more : 0x7f;
        for (uint32_t k = 1; k <= more; k++) {
            if ((t.p[i + k] & 0xc0) != 0x80)
                return SM_BAD_UTF8;
            c = c << 6 | (t.p[i + k] & 0x3f);
        }
        if ((more == 2 && (c < 0x800 || (c >= 0xd800 && c < 0xe000))) || (more == 3 && (c < 0x10000 || c > 0x10ffff)))
            return SM_BAD_UTF8;
        if (used == room)
            return SM_BAD_WIDTH;
        memcpy(out + 4 * used, &c, 4);
        i += more + 1;
    }
    if (t.n && !t.p[t.n - 1])
        return SM_BAD_NUL;
    memset(out + 4 * used, 0, 4 * (room - used));
    return SM_GOOD;
}

/* ---- times ------------------------------------------------------------------------------------------------------------- */

static int two(text *t, int most, int64_t *value)
{
    if (t->n < 2 || !is_digit(t->p[0]) || !is_digit(t->p[1]))
        return 0;
    *value = (t->p[0] - '0') * 10 + t->p[1] - '0';
    t->p += 2, t->n -= 2;
    return *value <= most;
}

static int skip(text *t, uint8_t c)
{
    if (!t->n || t->p[0] != c)
        return 0;
    t->p++, t->n--;
    return 1;
}

/* days since 1970-01-01 in the proleptic Gregorian calendar */
static int64_t days_of(int64_t y, int64_t m, int64_t d)
{
    y -= m <= 2;
    int64_t era = (y >= 0 ? y : y - 399) / 400, of_era = y - era * 400;
    int64_t of_year = (153 * (m + (m > 2 ? -3 : 9)) + 2) / 5 + d - 1;
    return era * 146097 + of_era * 365 + of_era / 4 - of_era / 100 + of_year - 719468;
}

static int month_days(int64_t y, int64_t m)
{
    static const int days[] = {31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31};
    return days[m - 1] + (m == 2 && y % 4 == 0 && (y % 100 != 0 || y % 400 == 0));
}

/* YYYY-MM-DD, then T or a blank and hh:mm[:ss[.fraction]], then Z or +hh:mm; without a zone it is UTC */
static int put_time(text t, const sm_target *to, int64_t *out)
{
    static const int64_t in_day[] = {1, 24, 1440, 86400, 86400000, INT64_C(86400000000), INT64_C(86400000000000)};
    int64_t century, year, month, day, hour = 0, minute = 0, second = 0, nanos = 0, zone_hour = 0, zone_minute = 0;
    int zone = 0;
    if (!two(&t, 99, &century) || !two(&t, 99, &year) || !skip(&t, '-') || !two(&t, 12, &month) || !skip(&t, '-') ||
        !two(&t, 31, &day))
        return SM_BAD_TIME;
    year += 100 * century;
    if (!month || !day || day > month_days(year, month))
        return SM_BAD_TIME;
    if (t.n) {
        if (!(skip(&t, 'T') || skip(&t, ' ')) || !two(&t, 23, &hour) || !skip(&t, ':') || !two(&t, 59, &minute))
            return SM_BAD_TIME;
        if (skip(&t, ':')) {
            if (!two(&t, 59, &second))
                return SM_BAD_TIME;
            if (skip(&t, '.')) {
                int64_t scale = 100000000;
                if (!t.n || !is_digit(t.p[0]))
                    return SM_BAD_TIME;
                for (; t.n && is_digit(t.p[0]); t.p++, t.n--, scale /= 10) {
                    if (!scale && t.p[0] != '0')
                        return SM_BAD_FINE;
                    nanos += (t.p[0] - '0') * scale;
                }
            }
        }
        if (t.n && (t.p[0] == '+' || t.p[0] == '-')) {
            zone = t.p[0] == '+' ? 1 : -1;
            t.p++, t.n--;
            if (!two(&t, 23, &zone_hour))
                return SM_BAD_TIME;
            skip(&t, ':');
            if (!two(&t, 59, &zone_minute))
                return SM_BAD_TIME;
        } else {
            skip(&t, 'Z');
        }
        if (t.n)
            return SM_BAD_TIME;
    }
    int64_t seconds = days_of(year, month, day) * 86400 + hour * 3600 + minute * 60 + second -
                      zone * (zone_hour * 3600 + zone_minute * 60);
    if (to->unit <= 3) {
        int64_t each = 86400 / in_day[to->unit];
        if (nanos || seconds % each)
            return SM_BAD_FINE;
        *out = seconds / each;
        return SM_GOOD;
    }
    int64_t per_second = in_day[to->unit] / 86400, each = 1000000000 / per_second;
    if (nanos % each)
        return SM_BAD_FINE;
    __int128 ticks = (__int128)seconds * per_second + nanos / each; /* the first second of the range begins before it */
    *out = (int64_t)ticks;
    return ticks == *out ? SM_GOOD : SM_BAD_RANGE;
}

static int put_ticks(text t, uint8_t value, const sm_target *to, uint8_t *out)
{
    int64_t ticks = INT64_MIN; /* not a time */
    int reason = SM_GOOD;
    t = stripped(t);
    if (value != SM_VALUE_NULL && !(value == SM_VALUE_TEXT && absent(t))) {
        if (to->kind == 'M' && value != SM_VALUE_NUMBER) {
            reason = put_time(t, to, &ticks);
        } else { /* a count of the field's unit */
            const sm_target count = {.kind = 'i', .itemsize = 8};
            reason = put_whole(t, &count, (uint8_t *)&ticks);
        }
        if (reason == SM_GOOD && ticks == INT64_MIN)
            reason = SM_BAD_RANGE;
    }
    memcpy(out, &ticks, 8);
    return reason;
}

static int put_bool(text t, uint8_t value, uint8_t *out)
{
    t = stripped(t);
    if (value == SM_VALUE_TRUE || is(t, "1") ||
        (value == SM_VALUE_TEXT && (is(t, "true") || is(t, "True") || is(t, "TRUE"))))
        *out = 1;
    else if (value == SM_VALUE_FALSE || is(t, "0") ||
             (value == SM_VALUE_TEXT && (is(t, "false") || is(t, "False") || is(t, "FALSE"))))
        *out = 0;
    else
        return SM_BAD_BOOL;
    return SM_GOOD;
}

/* ---- columns -------------------------------------------------------------------------------------------------------------- */

static int kind_fits(uint8_t value, uint32_t kind)
{
    switch (value) {
    case SM_VALUE_TEXT:
        return SM_GOOD;
    case SM_VALUE_BROKEN:
        return SM_BAD_SURROGATE;
    case SM_VALUE_STRING:
        return kind == 'S' || kind == 'U' || kind == 'M' ? SM_GOOD : SM_BAD_KIND;
    case SM_VALUE_NUMBER:
        return kind == 'S' || kind == 'U' ? SM_BAD_KIND : SM_GOOD;
    case SM_VALUE_TRUE:
    case SM_VALUE_FALSE:
        return kind == 'b' ? SM_GOOD : SM_BAD_KIND;
    case SM_VALUE_NULL:
        return kind == 'f' || kind == 'M' || kind == 'm' ? SM_GOOD : SM_BAD_NULL;
    default:
        return SM_BAD_KIND;
    }
}

static int convert(text t, uint8_t value, const sm_target *to, uint8_t *out)
{
    int reason = kind_fits(value, to->kind);
    if (reason != SM_GOOD)
        return reason;
    switch (to->kind) {
    case 'i':
    case 'u':
        return put_whole(t, to, out);
    case 'f':
        return put_float(t, value, to, out);
    case 'S':
        return put_bytes(t, to, out);
    case 'U':
        return put_characters(t, to, out);
    case 'M':
    case 'm':
        return put_ticks(t, value, to, out);
    default:
        return put_bool(t, value, out);
    }
}

void sm_convert(const uint8_t *data, const uint64_t *fields, const uint8_t *values, uint64_t n, const sm_target *to,
                uint8_t *bad, uint32_t *bad_field)
{
    uint8_t *out = to->out;
    for (uint64_t i = 0; i < n; i++, out += to->stride) {
        const uint64_t at = i * to->wanted + to->field;
        int reason = SM_BAD_MISSING;
        if (values[at] != SM_VALUE_MISSING) { /* else its span was never written */
            text t = {data + fields[2 * at], fields[2 * at + 1] - fields[2 * at]};
            reason = convert(t, values[at], to, out);
        }
        if (unlikely(reason != SM_GOOD) && !bad[i]) {
            bad[i] = (uint8_t)reason;
            bad_field[i] = to->field;
        }
    }
}
