/* role: none
 * Files mapped, and what of them has memory behind it. Not by Python's mmap module, which keeps a second descriptor for each
 * mapping.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <sys/mman.h>
#include <unistd.h>

#include "internal.h"

/* ---- the guard --------------------------------------------------------------------------------------------------
 * A mapping whose file is cut short by somebody else is a SIGBUS at the next touch. The supervisor and those who only look
 * must outlive that: the page becomes an empty one of this process's own, and the mapping is lost, which is asked for
 * before anything that was read of it is believed. (systemd's journald reads files of others in the same way.)
 */
enum { GUARDED = 4096 };

static struct {
    uint8_t *from, *to;
    int lost;
} guarded[GUARDED];
static int guarded_count, is_guarding;
static uintptr_t page_bytes;
static struct sigaction before;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER; /* two threads may map at once; the handler only reads */

static void on_bus_error(int number, siginfo_t *info, void *context)
{
    uint8_t *page = (uint8_t *)((uintptr_t)info->si_addr & ~(page_bytes - 1));
    int kept = errno;
    for (int i = 0; i < guarded_count; i++)
        if (page >= guarded[i].from && page < guarded[i].to &&
            mmap(page, page_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) == page) {
            guarded[i].lost = 1;
            errno = kept;
            return;
        }
    sigaction(SIGBUS, &before, NULL); /* not ours: the instruction comes again, and finds whoever was here before */
}

int sm_guard(void)
{
    struct sigaction action = {.sa_sigaction = on_bus_error, .sa_flags = SA_SIGINFO | SA_ONSTACK};
    if (is_guarding)
        return 0;
    page_bytes = (uintptr_t)sysconf(_SC_PAGESIZE);
    sigemptyset(&action.sa_mask);
    if (sigaction(SIGBUS, &action, &before) != 0)
        return -errno;
    is_guarding = 1;
    return 0;
}

static void watch(void *address, uint64_t bytes)
{
    pthread_mutex_lock(&lock);
    int i = 0;
    while (i < guarded_count && guarded[i].from)
        i++;
    if (i < GUARDED) {
        guarded[i].lost = 0;
        guarded[i].to = (uint8_t *)address + bytes;
        guarded[i].from = address;
        guarded_count = i == guarded_count ? i + 1 : guarded_count;
    }
    pthread_mutex_unlock(&lock);
}

/* its place in the table; -1: it has none */
static int watched(const void *address)
{
    for (int i = 0; i < guarded_count; i++)
        if (guarded[i].from == address)
            return i;
    return -1;
}

int sm_is_lost(const void *address)
{
    int i = address ? watched(address) : -1;
    return i >= 0 && guarded[i].lost;
}

/* ---- mapping ---------------------------------------------------------------------------------------------------- */

void *sm_map(int fd, uint64_t bytes, int *error)
{
    void *at = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (at == MAP_FAILED) {
        *error = errno;
        return NULL;
    }
    watch(at, bytes);
    return at;
}

/* Asked of the kernel, which says EFAULT where a touch would be a SIGBUS: it takes what lies there for the name of a file. */
int sm_is_readable(const void *address) { return access(address, F_OK) == 0 || errno != EFAULT; }

void sm_unmap(void *address, uint64_t bytes)
{
    pthread_mutex_lock(&lock);
    int i = watched(address);
    if (i >= 0)
        guarded[i].from = guarded[i].to = NULL;
    pthread_mutex_unlock(&lock);
    munmap(address, bytes);
}

/* Whether the page there was ever reserved and touched. On tmpfs a page that is reserved and was never touched looks like a
 * hole too; the header of a lane is read by its producer before the lane is said to be open. */
int sm_is_hole(int fd, uint64_t offset)
{
    off_t at = lseek(fd, (off_t)offset, SEEK_DATA);
    return at < 0 ? errno == ENXIO : (uint64_t)at > offset;
}
