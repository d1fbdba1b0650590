/*
 * Named points at which a test may make this process kill or stop itself. They are always compiled in: what is
 * tested is what is shipped, and a point that is not armed costs one load and one branch that is never taken.
 */
#ifndef SHARDMEM_POINTS_H
#define SHARDMEM_POINTS_H

#include <stdint.h>

#define SM_POINTS(X)                                                                                              \
    X(SEND_LOCKED, "send.locked")         /* mutex taken, mark still even */                                      \
    X(SEND_MARKED, "send.marked")         /* mark odd, nothing read */                                            \
    X(SEND_ROUTED, "send.routed")         /* slot words read */                                                   \
    X(SEND_CLAIMED, "send.claimed")       /* room found, pad and header written */                                \
    X(SEND_COPYING, "send.copying")       /* some of the payload written */                                       \
    X(SEND_COPIED, "send.copied")         /* all of it written */                                                 \
    X(SEND_COUNTED, "send.counted")       /* new counts stored, tail not */                                       \
    X(SEND_PUBLISHED, "send.published")   /* tail stored, mark still odd, other lanes perhaps not published */    \
    X(SEND_UNMARKED, "send.unmarked")     /* mark even, sleeping workers not yet woken */                         \
    X(SEND_WAITING, "send.waiting")       /* about to wait for room */                                            \
    X(POLL_TAKEN, "poll.taken")           /* a batch was chosen, the handler not yet called */                    \
    X(COMMIT_ENTERED, "commit.entered")   /* the handler returned, nothing recorded */                            \
    X(COMMIT_MARKED, "commit.marked")     /* done bits set, head not moved */                                     \
    X(COMMIT_COUNTED, "commit.counted")   /* new counts stored, head not */                                       \
    X(COMMIT_RELEASED, "commit.released") /* head stored, a waiting producer not yet woken */                     \
    X(PARK_RAISED, "park.raised")         /* sleeping flag up, not yet asleep */                                  \
    X(RING_TAKEN, "ring.taken")           /* a worker's sleeping flag taken down, its bell not yet rung */           \
    X(ROOM_TAKEN, "room.taken")           /* a producer's wish for room taken down, its bell not yet rung */        \
    X(RETIRE_COUNTED, "retire.counted")   /* counts of a shard that is gone added up, not in force */

#define SM_POINT_ENUM(id, name) SM_POINT_##id,
enum sm_point_id { SM_POINTS(SM_POINT_ENUM) SM_POINT_COUNT };
#undef SM_POINT_ENUM

extern int sm_armed_point;
void sm_point_reached(void);

#define SM_POINT(id)                                                                                              \
    do {                                                                                                          \
        if (__builtin_expect(sm_armed_point == SM_POINT_##id, 0))                                                 \
            sm_point_reached();                                                                                   \
    } while (0)

#endif
