/* role: none
 * Records and fields in blocks of bytes: lines, CSV, JSON lines, logfmt, syslog and access logs.
 *
 * The bytes that matter (delimiter, quote, line ends) are found 64 at a time as bits of a word; what is between them is not
 * looked at.
 */
#include "record.h"

void sm_scan_block(sm_scan *s, uint8_t *data, uint64_t bytes, uint64_t scratch, int final, sm_found *found)
{
    found->records = found->bads = found->consumed = 0;
    found->too_long = 0;
    found->scratch = scratch;
    if (s->format == SM_FORMAT_CSV)
        sm_scan_csv(s, data, bytes, final, found);
    else
        sm_scan_lines(s, data, bytes, final, found);
}

int sm_scan_skip(sm_scan *s, const uint8_t *data, uint64_t bytes, int first, uint64_t *consumed)
{
    s->searched = 0;
    *consumed = bytes;
    return s->format == SM_FORMAT_CSV ? sm_skip_csv(s, data, bytes, first, consumed)
                                      : sm_skip_line(s, data, bytes, consumed);
}
