/* role: none
 * A lease is an open-file-description lock on one byte of the control segment, past its end. The kernel gives
 * it up with the description, which a SIGKILL ends; no PID is involved, so neither PID reuse nor PID namespaces can
 * mislead. F_OFD_GETLK says who else holds it without taking it.
 *
 * What keeps the description is a mapping and no descriptor: programs close descriptors that are not theirs (daemons
 * close all), and a producer went on writing into a seat that the next one had taken. A forked child does not get the
 * mapping (MADV_DONTFORK), so it cannot keep the lease of a parent that is dead.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>

#include "layout.h"

static struct flock lock_of(uint64_t byte)
{
    struct flock lock;
    memset(&lock, 0, sizeof lock);
    lock.l_type = F_WRLCK;
    lock.l_whence = SEEK_SET;
    lock.l_start = (off_t)byte;
    lock.l_len = 1;
    return lock;
}

int sm_lease_take(int fd, uint64_t byte)
{
    struct flock lock = lock_of(byte);
    if (fcntl(fd, F_OFD_SETLK, &lock) == 0)
        return 0;
    return errno == EAGAIN || errno == EACCES ? 1 : -errno;
}

void *sm_lease_keep(int fd, int *error)
{
    void *keeper = mmap(NULL, SM_PAGE, PROT_NONE, MAP_SHARED, fd, 0);
    if (keeper != MAP_FAILED && madvise(keeper, SM_PAGE, MADV_DONTFORK) == 0)
        return keeper;
    *error = errno;
    if (keeper != MAP_FAILED)
        munmap(keeper, SM_PAGE);
    return NULL;
}

void sm_lease_release(void *keeper) { munmap(keeper, SM_PAGE); }

int sm_lease_held(int fd, uint64_t byte)
{
    struct flock lock = lock_of(byte);
    if (fcntl(fd, F_OFD_GETLK, &lock) != 0)
        return -errno;
    return lock.l_type != F_UNLCK;
}
