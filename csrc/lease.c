/* role: none
 * A lease is an open-file-description lock on one byte of the control segment, past its end. The kernel gives
 * it up when the last descriptor of the description is closed, which a SIGKILL does; no PID is involved, so
 * neither PID reuse nor PID namespaces can mislead. F_OFD_GETLK says who else holds it without taking it.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <string.h>

#include "shardmem.h"

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

int sm_lease_held(int fd, uint64_t byte)
{
    struct flock lock = lock_of(byte);
    if (fcntl(fd, F_OFD_GETLK, &lock) != 0)
        return -errno;
    return lock.l_type != F_UNLCK;
}
