/*
 * Named points at which a test may make this process kill or stop itself. They are always compiled in: what is
 * tested is what is shipped, and a point that is not armed costs one load and one branch that is never taken.
 */
#ifndef SHARDMEM_POINTS_H
#define SHARDMEM_POINTS_H

#include <stdint.h>

#define SM_POINTS(X)                                                                                                   \
    X(SEND_LOCKED, "send.locked")         /* mutex taken, mark still even */                                           \
    X(SEND_MARKED, "send.marked")         /* mark odd, nothing read */                                                 \
    X(SEND_ROUTED, "send.routed")         /* slot words read */                                                        \
    X(SEND_CLAIMED, "send.claimed")       /* room found, pad and header written */                                     \
    X(SEND_COPYING, "send.copying")       /* some of the payload written */                                            \
    X(SEND_COPIED, "send.copied")         /* all of it written */                                                      \
    X(SEND_COUNTED, "send.counted")       /* new counts stored, tail not */                                            \
    X(SEND_PUBLISHED, "send.published")   /* tail stored, mark still odd, other lanes perhaps not published */         \
    X(SEND_UNMARKED, "send.unmarked")     /* mark even, sleeping workers not yet woken */                              \
    X(SEND_WAITING, "send.waiting")       /* about to wait for room */                                                 \
    X(POLL_TAKEN, "poll.taken")           /* a batch was chosen, the handler not yet called */                         \
    X(COMMIT_ENTERED, "commit.entered")   /* the handler returned, nothing recorded */                                 \
    X(COMMIT_MARKED, "commit.marked")     /* done bits set, head not moved */                                          \
    X(COMMIT_COUNTED, "commit.counted")   /* new counts stored, head not */                                            \
    X(COMMIT_RELEASED, "commit.released") /* head stored, a waiting producer not yet woken */                          \
    X(PARK_RAISED, "park.raised")         /* sleeping flag up, not yet asleep */                                       \
    X(ASIDE_STORED, "aside.stored")       /* the event is in the quarantine file, its lane does not know */            \
    X(ASIDE_ACTING, "aside.acting")       /* the lane says which row, its frame does not */                            \
    X(ASIDE_MARKED, "aside.marked")       /* the row is done, the lane still says that it is being set aside */        \
    X(ORIGIN_CALLING, "origin.calling")   /* the seat says where its pass with an origin began, nothing published */   \
    X(ORIGIN_PUSHED, "origin.pushed")     /* all of the pass published, the partition's `pushed` as before */          \
    X(SHED_LOST, "shed.lost")             /* rows of an earlier epoch were found, nothing is done about them yet */    \
    X(SAVE_BEGUN, "save.begun")           /* batches are deferred, their state is about to be saved */                 \
    X(SAVE_SAVED, "save.saved")           /* state and ranges are saved, no head has moved */                          \
    X(SAVE_MARKED, "save.marked")         /* rows of one range done, the head not stored */                            \
    X(MOVE_SAVED, "move.saved")           /* the state of a slot that goes is saved, its source has not said so */     \
    X(MOVE_COPIED, "move.copied")         /* the target has its rows, and has not said so */                           \
    /* the supervisor's, passed by Python */                                                                           \
    X(SPAWN_CREATED, "spawn.created")         /* a new shard has its inbox and its state */                            \
    X(SPAWN_STARTED, "spawn.started")         /* its worker runs and is not ready */                                   \
    X(HANDOFF_BEGUN, "handoff.begun")         /* holds and slot words stored, marks not waited for */                  \
    X(HANDOFF_REROUTED, "handoff.rerouted")   /* marks settled, phases still rerouting */                              \
    X(HANDOFF_DRAINING, "handoff.draining")   /* phases draining, sources not told */                                  \
    X(HANDOFF_DRAINED, "handoff.drained")     /* a source has drained, phase still draining */                         \
    X(HANDOFF_RELEASING, "handoff.releasing") /* phase releasing, target not told */                                   \
    X(HANDOFF_RELEASED, "handoff.released")   /* phase none, hold counts and orders not yet given */                   \
    X(REMOVE_RETIRED, "remove.retired")       /* counts of a removed shard kept, its inbox still there */              \
    X(REMOVE_UNLINKED, "remove.unlinked")     /* inbox gone, state still stopped */                                    \
    X(TAKEOVER_LOCKED, "takeover.locked")     /* role taken, nothing looked at */                                      \
    X(TAKEOVER_ADOPTED, "takeover.adopted")   /* live workers adopted, dead ones not started, nothing finished */      \
    X(RING_TAKEN, "ring.taken")               /* a worker's sleeping flag taken down, its bell not yet rung */         \
    X(ROOM_TAKEN, "room.taken")               /* a producer's wish for room taken down, its bell not yet rung */       \
    X(RETIRE_COUNTED, "retire.counted")       /* counts of a shard that is gone added up, not in force */              \
    X(OUTBOX_CONFIRMED, "outbox.confirmed")   /* the broker has messages, and the outbox has them still */

#define SM_POINT_ENUM(id, name) SM_POINT_##id,
enum sm_point_id { SM_POINTS(SM_POINT_ENUM) SM_POINT_COUNT };
#undef SM_POINT_ENUM

extern int sm_armed_point;
void sm_point_reached(void);

#define SM_POINT(id)                                                                                                   \
    do {                                                                                                               \
        if (__builtin_expect(sm_armed_point == SM_POINT_##id, 0))                                                      \
            sm_point_reached();                                                                                        \
    } while (0)

#endif
