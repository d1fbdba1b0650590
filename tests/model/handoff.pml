/*
 * The handoff for Spin: one producer, shards A (0) and B (1), slots s (0) and t (1) that change places and change back,
 * state that travels with them, one worker killed and one supervisor killed, each at any step, each followed by another.
 *
 * Safety by assertions. Never stuck: every process ends once all rows are handled and all rounds are done, so an invalid
 * end state is a protocol that waits for something that does not come. test_promela.py runs this, and once more with each
 * of the macros that begin with FAULT_, which plant what their names say; handoff_model.py is finer and says more.
 *
 *   ROWS    rows of the producer, in turn of s and t; numbers of a slot begin with 1
 *   ROUNDS  1: the slots change places; 2: and back
 *   ADOPT   a supervisor that takes over goes on with the workers that live; else all begin anew
 *   KILL_WORKER, KILL_SUPERVISOR  how often
 */
#ifndef ROWS
#define ROWS 4
#endif
#ifndef ROUNDS
#define ROUNDS 1
#endif
#ifndef KILL_WORKER
#define KILL_WORKER 0
#endif
#ifndef KILL_SUPERVISOR
#define KILL_SUPERVISOR 0
#endif

#define NONE 0
#define REROUTING 1
#define DRAINING 2
#define RELEASING 3
#define ABSENT 255
#define SLOT(row) ((row) % 2)
#define NUMBER(row) ((row) / 2 + 1)
#define AT(shard, i) ((shard) * ROWS + (i))

byte word[2], phase[2], source[2], target[2];     /* by slot: what the supervisor writes */
byte number[2], drained[2], restored[2];
bool news[2];                                     /* by shard: orders that its worker has not seen */
byte mark;
byte lane[2 * ROWS], tail[2], head[2];            /* by shard */
bool done[2 * ROWS];
byte value[4], store[2];                          /* by shard and slot: state as of the last commit; what was handed over */

byte owner[2], last[2];                           /* for the assertions */
byte again;                                       /* 1 + the row that a killed worker had handled and not committed */
byte hand[2];                                     /* by shard: 1 + the row handled and not committed */
bool finished, produced;
bool kill_worker[2], kill_supervisor;
byte begun;                                       /* rounds that somebody has asked for and that are not over */

#define ALL_OVER (finished && produced && last[0] == (ROWS + 1) / 2 && last[1] == ROWS / 2 && \
                  head[0] == tail[0] && head[1] == tail[1])

proctype Producer()
{
    byte row, to;
    do
    :: row < ROWS ->
#ifdef FAULT_READS_BEFORE_MARK
        to = word[SLOT(row)];
        mark++;
#else
        mark++;
        to = word[SLOT(row)];
#endif
        d_step { lane[AT(to, tail[to])] = row; tail[to]++ }
        d_step { mark++; row++ }
    :: else -> break
    od;
    produced = true
}

/* any: a row of slot s in the lane of this worker is not done */
inline look_for(s, any)
{
    d_step {
        any = false;
        i = head[me];
        do
        :: i < tail[me] ->
            if
            :: SLOT(lane[AT(me, i)]) == s && !done[AT(me, i)] -> any = true
            :: else
            fi;
            i++
        :: else -> break
        od;
        i = 0
    }
}

/* over rows that are done, up to the cursor */
inline advance()
{
    do
    :: head[me] < cursor &&
#ifdef FAULT_HEAD_PASSES_HELD
       true
#else
       done[AT(me, head[me])]
#endif
       -> assert(done[AT(me, head[me])]); head[me]++
    :: else -> break
    od
}

/* what this worker is to give up, and its number, of the slots in a phase; not what it has acknowledged */
inline find(s)
{
#ifdef FAULT_NUMBER_AFTER_HOLD
    seen = (phase[s] == DRAINING && source[s] == me) || (phase[s] == RELEASING && target[s] == me);
    releases = phase[s] == RELEASING;
#endif
    d_step {
#ifndef FAULT_NUMBER_AFTER_HOLD
        seen = (phase[s] == DRAINING && source[s] == me) || (phase[s] == RELEASING && target[s] == me);
        releases = phase[s] == RELEASING;
#endif
        draining[s] = 0;
        restoring[s] = 0;
        if
        :: seen && !releases && drained[s] != number[s] -> draining[s] = number[s]
        :: seen && releases && restored[s] != number[s] -> restoring[s] = number[s]
        :: else
        fi;
        seen = false;
        releases = false
    }
}

inline restore(s)
{
    if
    :: restoring[s] ->
#ifndef FAULT_SAYS_RESTORED_FIRST
        value[me * 2 + s] = store[s];
#endif
        d_step { restored[s] = restoring[s]; }
#ifdef FAULT_SAYS_RESTORED_FIRST
        value[me * 2 + s] = store[s];
#endif
        restoring[s] = 0
    :: else
    fi
}

inline give_up(s)
{
    look_for(s, any);
    if
#ifdef FAULT_NO_DRAIN
    :: true ->
#else
#ifdef FAULT_DRAIN_BY_HEADS
    :: head[me] == tail[me] ->
#else
    :: !any ->
#endif
#endif
        any = false;
        assert(value[me * 2 + s] != ABSENT);
#ifdef FAULT_DROPS_BEFORE_STORING
        d_step { keep = value[me * 2 + s]; value[me * 2 + s] = ABSENT }
        d_step { store[s] = keep; keep = 0 }
#else
        store[s] = value[me * 2 + s]; /* what it drops now is its own memory; another life loads it again */
#endif
        d_step {
            value[me * 2 + s] = ABSENT;
            assert(owner[s] == me && source[s] == me && draining[s] == number[s]);
            drained[s] = draining[s];
            owner[s] = target[s];
            draining[s] = 0
        }
    :: else -> any = false; looked[s] = true
    fi
}

proctype Worker(byte me)
{
    byte cursor, row, i, keep;
    byte draining[2], restoring[2];
    bool skipped[2], looked[2];
    bool any, seen, releases;
start:
    {
        d_step {
            cursor = head[me];
            row = 0; i = 0; keep = 0; any = false; seen = false; releases = false;
            skipped[0] = false; skipped[1] = false; looked[0] = false; looked[1] = false;
            draining[0] = 0; draining[1] = 0; restoring[0] = 0; restoring[1] = 0;
            news[me] = true
        }
        do
        :: news[me] ->
            d_step {
                news[me] = false;
#ifndef FAULT_NO_RESCAN
                cursor = head[me]; skipped[0] = false; skipped[1] = false;
#endif
                looked[0] = false; looked[1] = false
            }
            find(0);
            find(1);
            restore(0);
            restore(1)
        :: draining[0] && !looked[0] -> give_up(0)
        :: draining[1] && !looked[1] -> give_up(1)
        :: cursor < tail[me] ->
            d_step {
                row = lane[AT(me, cursor)];
                cursor++;
                if
                :: done[AT(me, cursor - 1)] ->
#ifndef FAULT_HEAD_MOVES_IN_COMMIT_ALONE
                    advance();
#endif
                    row = ABSENT
#ifndef FAULT_NO_HOLD
                :: !done[AT(me, cursor - 1)] &&
                   (skipped[SLOT(row)] || (phase[SLOT(row)] != NONE && target[SLOT(row)] == me)) ->
#ifndef FAULT_FORGETS_SKIPPED
                    skipped[SLOT(row)] = true;
#endif
                    row = ABSENT
#endif
                :: else
                fi
            }
            if
            :: row != ABSENT ->
                d_step {
                    assert(owner[SLOT(row)] == me);
                    if
                    :: again == row + 1 && NUMBER(row) == last[SLOT(row)] -> again = 0
                    :: else -> assert(NUMBER(row) == last[SLOT(row)] + 1); last[SLOT(row)] = NUMBER(row)
                    fi;
                    hand[me] = row + 1
                }
                d_step {
                    assert(value[me * 2 + SLOT(row)] == NUMBER(row) - 1);
                    value[me * 2 + SLOT(row)] = NUMBER(row);
                    done[AT(me, cursor - 1)] = true;
                    hand[me] = 0
                }
                d_step { advance(); looked[0] = false; looked[1] = false }
            :: else
            fi;
            row = 0
        :: atomic { ALL_OVER && !news[me] && !draining[0] && !draining[1] -> break }
        od
    } unless {
        atomic {
            kill_worker[me] ->
            kill_worker[me] = false;
            if
            :: hand[me] -> again = hand[me]; hand[me] = 0
            :: else
            fi;
            goto start
        }
    }
}

inline wait_for_marks()
{
#ifndef FAULT_NO_WAIT_FOR_MARKS
    seen = mark;
    (seen % 2 == 0 || mark != seen);
    seen = 0
#endif
}

inline begin(s, from)
{
    if
    :: word[s] == from ->
#ifdef FAULT_WORD_BEFORE_HOLD
        word[s] = 1 - from;
#endif
        d_step { number[s]++; source[s] = from; target[s] = 1 - from; phase[s] = REROUTING; watching[s] = true }
#ifndef FAULT_WORD_BEFORE_HOLD
        word[s] = 1 - from
#endif
    :: else
    fi
}

inline drain(s)
{
    if
    :: phase[s] == REROUTING -> phase[s] = DRAINING
    :: else
    fi
}

proctype Supervisor()
{
    byte seen, round;
    bool watching[2], taking_over;
start:
    {
        if
        :: taking_over ->
            d_step { watching[0] = phase[0] != NONE; watching[1] = phase[1] != NONE; seen = 0 }
#ifndef FAULT_SUCCESSOR_SETS_NO_WORD
            if :: phase[0] == REROUTING -> word[0] = target[0] :: else fi;
            if :: phase[1] == REROUTING -> word[1] = target[1] :: else fi;
#endif
#ifndef FAULT_SUCCESSOR_WAITS_NOT
            wait_for_marks();
#endif
            drain(0);
            drain(1);
#ifdef FAULT_SUCCESSOR_ORDERS_ONLY_WHERE_SOMETHING_MOVES
            if :: watching[0] || watching[1] -> news[0] = true; news[1] = true :: else fi;
#else
            news[0] = true;
            news[1] = true;
#endif
            taking_over = false;
            goto watch
        :: else
        fi;
next:
        if
        :: begun == ROUNDS -> goto over
        :: else
        fi;
        begin(0, begun % 2);
        begin(1, 1 - begun % 2);
        wait_for_marks();
#ifdef FAULT_ORDERS_BEFORE_PHASE
        news[0] = true;
        news[1] = true;
#endif
        drain(0);
        drain(1);
#ifndef FAULT_ORDERS_BEFORE_PHASE
        news[0] = true;
        news[1] = true;
#endif
watch:
        do
        :: watching[0] && phase[0] == DRAINING && drained[0] == number[0] ->
#ifdef FAULT_FALLS_BEFORE_RESTORED
            phase[0] = NONE; news[target[0]] = true; watching[0] = false
#else
            phase[0] = RELEASING; news[target[0]] = true
#endif
        :: watching[1] && phase[1] == DRAINING && drained[1] == number[1] ->
#ifdef FAULT_FALLS_BEFORE_RESTORED
            phase[1] = NONE; news[target[1]] = true; watching[1] = false
#else
            phase[1] = RELEASING; news[target[1]] = true
#endif
        :: watching[0] && phase[0] == RELEASING && restored[0] == number[0] ->
            phase[0] = NONE;
#ifndef FAULT_NO_ORDERS_WHEN_IT_FALLS
            news[target[0]] = true;
#endif
            watching[0] = false
        :: watching[1] && phase[1] == RELEASING && restored[1] == number[1] ->
            phase[1] = NONE;
#ifndef FAULT_NO_ORDERS_WHEN_IT_FALLS
            news[target[1]] = true;
#endif
            watching[1] = false
        :: !watching[0] && !watching[1] -> break
        od;
        if /* one that took over may find the round not begun for every slot: it is asked for again */
        :: word[0] == 1 - begun % 2 && word[1] == begun % 2 -> begun++
        :: else
        fi;
        goto next
    } unless {
        atomic {
            kill_supervisor ->
            kill_supervisor = false;
            taking_over = true;
#ifndef ADOPT
            kill_worker[0] = true;
            kill_worker[1] = true;
#endif
            goto start
        }
    };
over:
    finished = true
}

proctype Killer()
{
    byte workers = KILL_WORKER, supervisors = KILL_SUPERVISOR;
    do
    :: workers && !finished -> atomic { workers--; kill_worker[0] = true }
    :: workers && !finished -> atomic { workers--; kill_worker[1] = true }
    :: supervisors && !finished -> atomic { supervisors--; kill_supervisor = true }
    :: break
    od
}

init
{
    atomic {
        word[1] = 1; owner[1] = 1;
        value[1] = ABSENT; value[2] = ABSENT; /* A has none of t, B none of s */
        run Producer();
        run Worker(0);
        run Worker(1);
        run Supervisor();
        run Killer()
    }
}
