/* role: none */
#include "points.h"

#include <signal.h>
#include <stddef.h>
#include <unistd.h>

#include "shardmem.h"

int sm_armed_point = -1; /* set before the threads that pass points start; only tests set it */
static uint64_t passes_left;
static int signal_to_send;

void sm_point_reached(void)
{
    if (passes_left > 1) {
        passes_left--;
        return;
    }
    sm_armed_point = -1;
    kill(getpid(), signal_to_send);
}

#define SM_POINT_NAME(id, name) name,
static const char *const names[] = {SM_POINTS(SM_POINT_NAME)};
#undef SM_POINT_NAME

int sm_point_count(void) { return SM_POINT_COUNT; }

const char *sm_point_name(int point) { return point >= 0 && point < SM_POINT_COUNT ? names[point] : NULL; }

void sm_point_pass(int point)
{
    if (point == sm_armed_point)
        sm_point_reached();
}

void sm_point_arm(int point, uint64_t passes, int signal_number)
{
    passes_left = passes;
    signal_to_send = signal_number;
    sm_armed_point = point;
}
