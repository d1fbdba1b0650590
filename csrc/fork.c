/* role: none
 * A forked child of a worker shares its memory, and is no worker.
 */
#include <sys/mman.h>

#include "internal.h"

int sm_read_only(void *address, uint64_t bytes) { return mprotect(address, bytes, PROT_READ); }
