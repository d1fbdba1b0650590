/* role: none
 * A worker frees arrays of one size with each batch and asks for them again with the next. As it comes, glibc gives what is
 * free at the end of its heap back to the system as soon as that is twice the largest block it ever freed, which three
 * arrays of 160 kB are, and the next batch pays for each page of it again.
 */
#include <stdlib.h>
#include <string.h>
#ifdef __GLIBC__
#include <malloc.h>
#endif

#include "internal.h"

/* What glibc would come to by itself once a block of the largest size that it keeps was freed (DEFAULT_MMAP_THRESHOLD_MAX). */
enum { KEPT_BLOCK = 32 << 20, KEPT_FREE = 64 << 20 };

int sm_keep_heap(void)
{
    const char *tunables = getenv("GLIBC_TUNABLES");
    if (getenv("MALLOC_TRIM_THRESHOLD_") || getenv("MALLOC_MMAP_THRESHOLD_") ||
        (tunables && strstr(tunables, "glibc.malloc.")))
        return 0;
#ifdef __GLIBC__
    return mallopt(M_MMAP_THRESHOLD, KEPT_BLOCK) && mallopt(M_TRIM_THRESHOLD, KEPT_FREE);
#else
    return 0;
#endif
}
