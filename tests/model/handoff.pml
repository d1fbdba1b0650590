/*
 * The handoff for Spin: reroute, drain, release, and a supervisor that takes over from a dead one. Shards A (0) and B (1),
 * slots s (0) and t (1) that change places and change back. Whoever may die dies between any two of its steps that others
 * can tell apart, and is followed by another. test_promela.py says in which sizes this is run and which faults it catches.
 *
 *   PRODUCERS, ROWS   each sends ROWS rows, one a pass; PLAN: bit r is the slot of row r
 *   MOVES, ROUNDS     bit s: slot s moves; to the other shard in the first round, back in the second, ...
 *   STATE             the handler has state, which travels through the store
 *   WORKERS_DIE, SUPERVISORS_DIE, PRODUCERS_DIE   how often; ADOPT: the workers outlive their supervisor
 *
 * Safety by assertions. Never stuck: nobody here polls, so whoever waits for what does not come is blocked, and all end
 * when the rounds are over and the rows are handled. No invalid end state says that none is blocked before; no cycle at
 * all (there is no progress label, so each would be one without progress) says that every run comes to its end.
 *
 * Memory is sequentially consistent: what the protocol rests on is seq_cst in csrc, or published by what is. Each atomic
 * and d_step below is one access of the real code to a word that others use, with whatever only this process can see, or
 * with the ghosts of the assertions. A row is a frame, so a commit is one store: of the head if the row is at the head, of
 * its done bit if not. A lane is a set of rows, because one producer's rows are in it in the order of their numbers.
 */
#ifndef PRODUCERS
#define PRODUCERS 1
#endif
#ifndef ROWS
#define ROWS 2
#endif
#ifndef PLAN
#define PLAN 0
#endif
#ifndef MOVES
#define MOVES 1
#endif
#ifndef ROUNDS
#define ROUNDS 1
#endif
#ifndef STATE
#define STATE 0
#endif
#ifndef ADOPT
#define ADOPT 0
#endif
#ifndef WORKERS_DIE
#define WORKERS_DIE 0
#endif
#ifndef SUPERVISORS_DIE
#define SUPERVISORS_DIE 0
#endif
#ifndef PRODUCERS_DIE
#define PRODUCERS_DIE 0
#endif

#define NONE 0
#define REROUTING 1
#define DRAINING 2
#define RELEASING 3
#define NOTHING 255
#define BIT(row) (1 << (row))
#define SLOT(row) (PLAN >> (row) & 1)
#define MASK(s) ((s) * PLAN | (1 - (s)) * (BIT(ROWS) - 1 ^ PLAN))
#define LANE(shard, p) ((shard) * PRODUCERS + (p))
#define STATE_OF(shard, s, p) (((shard) * 2 + (s)) * PRODUCERS + (p))
#define KEPT(s, p) ((s) * PRODUCERS + (p))
#define MOVING(s) (MOVES >> (s) & 1)
#define WANTED(s) ((s) ^ (round + 1 & 1))  /* where the slot is to be after this round */

/* what the supervisor writes, by slot; target is 1 - source */
byte word[2], phase[2], source[2], number[2];
byte holds[2];                          /* by shard */
bool news[2];                           /* by shard: orders that its worker has not seen */
/* what workers write */
byte drained[2], restored[2];           /* by slot */
byte done[2 * PRODUCERS];               /* by lane: rows */
/* lanes: tails are the producers', heads the workers'; here what is between them */
byte rows[2 * PRODUCERS];
/* what producers write */
byte mark[PRODUCERS];
/* leases: the kernel's word */
bool seated[PRODUCERS];
byte holders;                           /* of the supervisor's lease: at most one, if the kernel keeps its word */
/* files: state of a slot as of its owner's last commit, and what was handed over; which rows it has been through */
byte value[4 * PRODUCERS], store[2 * PRODUCERS];

/* who may still be killed, and workers that are, with a supervisor whose workers do not outlive it */
byte worker_kills = WORKERS_DIE, supervisor_kills = SUPERVISORS_DIE, producer_kills = PRODUCERS_DIE;
bool doomed[2];
byte fallen, ended, round;              /* supervisors that died, producers that are through; the round that is wanted */
bool finished;

/* ghosts */
byte owner[2];
byte sent[PRODUCERS], handled[PRODUCERS];
byte again[PRODUCERS];                  /* rows handled by a worker that was killed before it committed them */

/* ---- producers ---------------------------------------------------------------------------------------------------- */

#define OR_PRODUCER_DIES :: d_step { producer_kills -> producer_kills--; seated[me] = false; to = 0 }; goto dead

proctype Producer(byte me)
{
    byte row, to;
send:
    do
    :: row < ROWS ->
#ifdef FAULT_READS_BEFORE_MARK
        to = word[SLOT(row)];
        mark[me]++;
#else
        mark[me]++;
        if
        :: to = word[SLOT(row)]
        OR_PRODUCER_DIES
        fi;
#endif
        if
        :: d_step {
            rows[LANE(to, me)] = rows[LANE(to, me)] | BIT(row);
            sent[me] = sent[me] | BIT(row);
            row++;
            to = 0
        }
        OR_PRODUCER_DIES
        fi;
        if
        :: mark[me]++
        OR_PRODUCER_DIES
        fi
    :: else -> break
    od;
    goto over;
dead:
    if
    :: seated[me] = true; /* another takes the seat, and makes its mark even before it sends: sm_seat_enter */
        if
        :: mark[me] % 2 -> mark[me]++
        :: else
        fi;
        goto send
    :: true /* nobody does: the mark stays odd for ever */
    fi;
over:
    ended++
}

/* ---- workers ------------------------------------------------------------------------------------------------------ */

/* Not where a worker has only read since it last could: a kill there leaves what a kill before the reading leaves. What is
 * in hand comes again. The next life begins at the heads, has passed over nothing and has seen no orders. */
#define OR_WORKER_DIES \
    :: d_step { \
        (worker_kills || doomed[me]) -> \
        if \
        :: doomed[me] -> doomed[me] = false \
        :: else -> worker_kills-- \
        fi; \
        if \
        :: in_hand -> again[lane] = again[lane] | BIT(row) \
        :: else \
        fi; \
        forget(); \
        news[me] = true \
    }; \
    goto start

inline forget()
{
    from[0] = 0; skipped[0] = false; draining[0] = 0; restoring[0] = 0;
    skipped[1] = false; draining[1] = 0; restoring[1] = 0;
#if PRODUCERS > 1
    from[1] = 0;
#endif
    lane = 0; row = NOTHING; in_hand = false; was = 0; i = 0
}

/* The rows of slot s in the lanes of this worker that are not done. Once the marks have settled no more can come, and
 * nobody else takes any away, so that this is one access however long it takes: sm_undone. */
#if PRODUCERS > 1
#define LEFT(s) (((rows[LANE(me, 0)] & ~done[LANE(me, 0)]) | (rows[LANE(me, 1)] & ~done[LANE(me, 1)])) & MASK(s))
#define EMPTY (!rows[LANE(me, 0)] && !rows[LANE(me, 1)])
#else
#define LEFT(s) (rows[me] & ~done[me] & MASK(s))
#define EMPTY (!rows[me])
#endif

/* what a hold word says that this worker is to do */
#define CALLS_FOR(s) (phase[s] == DRAINING && source[s] == me || phase[s] == RELEASING && source[s] != me -> phase[s] : NONE)

#ifdef FAULT_NUMBER_IS_NOT_READ_AGAIN
#define SAME(s) true
#else
#define SAME(s) (number[s] == was)
#endif

/* sm_moves_at, and Moves._found, which leaves out what this worker has acknowledged. The first look at the hold, for speed
 * alone, is left out: one that finds nothing is a look that finds nothing. */
inline look(s)
{
#ifndef FAULT_NUMBER_AFTER_HOLD
    was = number[s];
#endif
    i = CALLS_FOR(s);
    d_step {
#ifdef FAULT_NUMBER_AFTER_HOLD
        was = number[s];
#endif
        draining[s] = (i == DRAINING && SAME(s) && drained[s] != was -> was : 0);
        restoring[s] = (i == RELEASING && SAME(s) && restored[s] != was -> was : 0);
#ifdef FAULT_DRAINED_BY_HEADS
        noted = (draining[s] -> rows[LANE(me, 0)] : noted);
#endif
        was = 0;
        i = NONE
    }
}

inline restore_state(s)
{
    d_step {
        value[STATE_OF(me, s, 0)] = store[KEPT(s, 0)];
#if PRODUCERS > 1
        value[STATE_OF(me, s, 1)] = store[KEPT(s, 1)];
#endif
    }
}

inline restore(s)
{
    if
    :: restoring[s] ->
#ifndef FAULT_RESTORED_IS_SAID_FIRST
        restore_state(s);
#endif
        if
        :: restored[s] = restoring[s]
        OR_WORKER_DIES
        fi;
#ifdef FAULT_RESTORED_IS_SAID_FIRST
        if
        :: restore_state(s)
        OR_WORKER_DIES
        fi;
#endif
        restoring[s] = 0
    :: else
    fi
}

inline hand_over(s)
{
    d_step {
        assert(value[STATE_OF(me, s, 0)] != NOTHING);
        store[KEPT(s, 0)] = value[STATE_OF(me, s, 0)];
#if PRODUCERS > 1
        store[KEPT(s, 1)] = value[STATE_OF(me, s, 1)];
#endif
    }
}

/* What is dropped is the worker's own; another life loads it again until drained is said. */
inline drop(s)
{
    value[STATE_OF(me, s, 0)] = NOTHING;
#if PRODUCERS > 1
    value[STATE_OF(me, s, 1)] = NOTHING;
#endif
}

inline give_up(s)
{
#if STATE && !defined FAULT_DRAINED_IS_SAID_FIRST
    hand_over(s);
#endif
    if
    :: d_step {
        assert(owner[s] == me && source[s] == me && draining[s] == number[s]);
        drained[s] = draining[s];
        owner[s] = 1 - me;
        draining[s] = 0;
#if STATE && !defined FAULT_DRAINED_IS_SAID_FIRST
        drop(s);
#endif
    }
    OR_WORKER_DIES
    fi;
#if STATE && defined FAULT_DRAINED_IS_SAID_FIRST
    hand_over(s);
    d_step { drop(s) }
#endif
}

/* one store of the head: over rows that are done, up to where this worker has looked: advance_head */
inline advance(at)
{
    i = 0;
    do
    :: i < from[lane] && (!(rows[at] & BIT(i)) || (done[at] & BIT(i))) ->
        rows[at] = rows[at] & ~BIT(i);
        done[at] = done[at] & ~BIT(i);
        i++
    :: else -> break
    od;
    i = 0
}

/* By the owner; the rows of a producer and slot in order; a second time only what a killed worker had in hand. */
inline handle()
{
    assert(owner[SLOT(row)] == me);
    if
    :: again[lane] & BIT(row) -> again[lane] = again[lane] & ~BIT(row)
    :: else -> assert(!(handled[lane] & BIT(row)))
    fi;
    handled[lane] = handled[lane] | BIT(row);
    assert((handled[lane] & MASK(SLOT(row))) == (MASK(SLOT(row)) & (BIT(row + 1) - 1)));
    in_hand = true
}

/* State and head are one transaction, or the state says how far it goes: it has been through each row once. */
inline commit(at)
{
#if STATE
    assert(value[STATE_OF(me, SLOT(row), lane)] == (handled[lane] & MASK(SLOT(row)) & ~BIT(row)));
    value[STATE_OF(me, SLOT(row), lane)] = value[STATE_OF(me, SLOT(row), lane)] | BIT(row);
#endif
    done[at] = done[at] | BIT(row);
#ifdef FAULT_HEAD_PASSES_HELD
    done[at] = done[at] | (rows[at] & (BIT(row) - 1));
#endif
    if
    :: rows[at] & (BIT(row) - 1) /* not at the head: its done bit is stored */
    :: else -> advance(at)
    fi
}

#define HELD(s) (phase[s] != NONE && source[s] != me)

inline pass_over()
{
#ifndef FAULT_FORGETS_WHAT_IT_PASSED_OVER
    skipped[SLOT(row)] = true;
#endif
    row = NOTHING
}

/* The next row of a lane is handled, or passed over because its slot is held here. In this order: the tail that shows the
 * row, the count of holds, the hold word (K2). Handling goes with the last of these reads, which if anything is earlier
 * than the real one: a slot that is this worker's by then still is later, because this worker alone gives it away. */
inline take(l)
{
    d_step {
        lane = l;
        row = from[l];
        do
        :: !(rows[LANE(me, l)] & BIT(row)) -> row++
        :: else -> break
        od;
        from[l] = row + 1;
        if
        :: done[LANE(me, l)] & BIT(row) -> advance(LANE(me, l)); row = NOTHING
        :: else
        fi
    }
    if
    :: row == NOTHING
#ifndef FAULT_NO_HOLD
    :: row != NOTHING && skipped[SLOT(row)] -> row = NOTHING
    :: row != NOTHING && !skipped[SLOT(row)] && (holds[me] || skipped[0] || skipped[1]) ->
        if
        :: d_step { HELD(SLOT(row)) -> pass_over() }
        :: d_step { !HELD(SLOT(row)) -> handle() }
        fi
    :: d_step { row != NOTHING && !skipped[SLOT(row)] && !holds[me] && !skipped[0] && !skipped[1] -> handle() }
#else
    :: d_step { row != NOTHING -> handle() }
#endif
    fi;
    if
    :: in_hand ->
        if
        :: d_step { commit(LANE(me, lane)); in_hand = false; row = NOTHING }
        OR_WORKER_DIES
        fi
    :: else
    fi;
    lane = 0
}

#ifdef FAULT_NO_DRAIN
#define DRAINED(s) draining[s]
#else
#ifdef FAULT_DRAINED_BY_HEADS
#define DRAINED(s) draining[s] && !(rows[LANE(me, 0)] & noted)
#else
#define DRAINED(s) draining[s] && !LEFT(s)
#endif
#endif

proctype Worker(byte me)
{
    byte lane, row = NOTHING, was, i;
    byte from[PRODUCERS];               /* rows below this one have been looked at */
    byte draining[2], restoring[2];     /* numbers of handoffs */
    bool skipped[2], in_hand;
#ifdef FAULT_DRAINED_BY_HEADS
    byte noted;                         /* rows that the heads have to pass */
#endif
start:
    holders; /* a supervisor that lives starts it */
    do
    :: d_step {
        news[me] ->
#ifndef FAULT_ORDERS_STAY_NEW
        news[me] = false;
#endif
#ifndef FAULT_NO_RESCAN
        from[0] = 0;
#if PRODUCERS > 1
        from[1] = 0;
#endif
        skipped[0] = false;
        skipped[1] = false
#endif
    }
        look(0);
#if MOVES > 1
        look(1);
#endif
#if STATE
        restore(0);
#if MOVES > 1
        restore(1)
#endif
#endif
    :: DRAINED(0) -> give_up(0)
#if MOVES > 1
    :: DRAINED(1) -> give_up(1)
#endif
    :: rows[LANE(me, 0)] >> from[0] -> take(0)
#if PRODUCERS > 1
    :: rows[LANE(me, 1)] >> from[1] -> take(1)
#endif
    :: finished && ended == PRODUCERS && EMPTY && !news[me] -> break
    OR_WORKER_DIES
    od
}

/* ---- supervisors -------------------------------------------------------------------------------------------------- */

#define OR_SUPERVISOR_DIES :: d_step { supervisor_kills -> supervisor_kills--; fallen++; holders-- }; goto dead
#define STORE(...) \
    if \
    :: __VA_ARGS__ \
    OR_SUPERVISOR_DIES \
    fi

#ifdef FAULT_DEAD_MARK_IS_WAITED_FOR
#define GONE(p) (!seen[p] || mark[p] != seen[p])
#else
#define GONE(p) (!seen[p] || mark[p] != seen[p] || !seated[p])
#endif

/* Handoffs.settle_marks: each mark that was odd has changed, or its producer is dead. All are read before one is awaited. */
inline settle_marks()
{
    d_step { seen[0] = mark[0]; seen[0] = (seen[0] % 2 -> seen[0] : 0) }
#if PRODUCERS > 1
    d_step { seen[1] = mark[1]; seen[1] = (seen[1] % 2 -> seen[1] : 0) }
#endif
    STORE(d_step { GONE(0) -> seen[0] = 0 });
#if PRODUCERS > 1
    STORE(d_step { GONE(1) -> seen[1] = 0 })
#endif
}

/* sm_move_begin. The count of holds comes before it: a worker looks at hold words only if it has some. */
inline begin(s)
{
    if
    :: d_step { MOVING(s) && word[s] != WANTED(s) -> watching[s] = true; have[WANTED(s)]++ }
#ifndef FAULT_HOLDS_COUNTED_AFTER_HOLD
        STORE(holds[WANTED(s)] = have[WANTED(s)]);
#endif
#ifdef FAULT_WORD_BEFORE_HOLD
        STORE(word[s] = WANTED(s));
#endif
        STORE(number[s]++);
        STORE(d_step { source[s] = 1 - WANTED(s); phase[s] = REROUTING });
#ifndef FAULT_WORD_BEFORE_HOLD
        STORE(word[s] = WANTED(s));
#endif
#ifdef FAULT_HOLDS_COUNTED_AFTER_HOLD
        STORE(holds[WANTED(s)] = have[WANTED(s)]);
#endif
    :: else
    fi
}

inline drain(s)
{
    if
    :: atomic { watching[s] && phase[s] == REROUTING -> STORE(phase[s] = DRAINING) }
    :: else
    fi
}

inline order_source(s)
{
    if
    :: atomic { watching[s] -> STORE(news[source[s]] = true) }
    :: else
    fi
}

inline release(s)
{
    STORE(d_step { have[1 - source[s]]--; holds[1 - source[s]] = have[1 - source[s]] });
#ifndef FAULT_NO_ORDERS_WHEN_A_HOLD_FALLS
    STORE(news[1 - source[s]] = true);
#endif
    watching[s] = false
}

#ifdef FAULT_EARLIER_DRAINED_IS_TAKEN
#define HAS_DRAINED(s) (watching[s] && phase[s] == DRAINING && drained[s])
#else
#define HAS_DRAINED(s) (watching[s] && phase[s] == DRAINING && drained[s] == number[s])
#endif
#define HAS_RESTORED(s) (watching[s] && phase[s] == RELEASING && restored[s] == number[s])

inline take_over(s)
{
    watching[s] = phase[s] != NONE;
#ifndef FAULT_SUCCESSOR_FORGETS_HOLDS
    if
    :: watching[s] -> have[1 - source[s]]++
    :: else
    fi
#endif
}

inline word_again(s)
{
    if
    :: atomic { phase[s] == REROUTING -> STORE(word[s] = 1 - source[s]) }
    :: else
    fi
}

proctype Supervisor(byte me)
{
    byte seen[PRODUCERS], have[2];
    bool watching[2];
#ifdef FAULT_NO_LEASE
    atomic { holders++ };
#else
    atomic { (finished || (!holders && me == fallen)) -> /* who waits is in order, which loses nothing: they are alike */
        if
        :: finished -> goto over
        :: else -> holders++
        fi
    };
#endif
    if
    :: me > 0 ->
#if !ADOPT
        d_step { doomed[0] = true; doomed[1] = true };
        !doomed[0] && !doomed[1];
#endif
        d_step {
            take_over(0);
            take_over(1)
        };
#ifndef FAULT_SUCCESSOR_FORGETS_HOLDS
        if
        :: have[0] -> STORE(holds[0] = have[0])
        :: else
        fi;
        if
        :: have[1] -> STORE(holds[1] = have[1])
        :: else
        fi;
#endif
#ifndef FAULT_SUCCESSOR_SETS_NO_WORD
        word_again(0);
        word_again(1);
#endif
#ifndef FAULT_SUCCESSOR_SETTLES_NOT
        if
        :: watching[0] || watching[1] -> settle_marks()
        :: else
        fi;
#endif
        drain(0);
        drain(1);
#if ADOPT
#ifdef FAULT_SUCCESSOR_ORDERS_ONLY_WHERE_SOMETHING_MOVES
        if
        :: watching[0] || watching[1] -> STORE(news[0] = true); STORE(news[1] = true)
        :: else
        fi;
#else
        STORE(news[0] = true);
        STORE(news[1] = true);
#endif
#else
        order_source(0);
        order_source(1);
#endif
#ifdef FAULT_SUCCESSOR_TAKES_RELEASING_FOR_DONE
        if
        :: atomic { phase[0] == RELEASING -> STORE(phase[0] = NONE) }; release(0)
        :: else
        fi;
        if
        :: atomic { phase[1] == RELEASING -> STORE(phase[1] = NONE) }; release(1)
        :: else
        fi;
#endif
        goto watch
    :: else
    fi;
next:
    if
    :: round == ROUNDS -> finished = true; goto over
    :: else
    fi;
    begin(0);
    begin(1);
#ifndef FAULT_NO_WAIT_FOR_MARKS
    settle_marks();
#endif
    drain(0);
    drain(1);
    order_source(0);
    order_source(1);
watch:
    do
#if STATE
    :: atomic { HAS_DRAINED(0) -> STORE(phase[0] = RELEASING) }; STORE(news[1 - source[0]] = true)
    :: atomic { HAS_DRAINED(1) -> STORE(phase[1] = RELEASING) }; STORE(news[1 - source[1]] = true)
    :: atomic { HAS_RESTORED(0) -> STORE(phase[0] = NONE) }; release(0)
    :: atomic { HAS_RESTORED(1) -> STORE(phase[1] = NONE) }; release(1)
#else
    :: atomic { HAS_DRAINED(0) -> STORE(phase[0] = NONE) }; release(0)
    :: atomic { HAS_DRAINED(1) -> STORE(phase[1] = NONE) }; release(1)
#endif
    :: !watching[0] && !watching[1] -> break
    OR_SUPERVISOR_DIES
    od;
    /* what a successor finds not begun is asked for again */
    if
    :: (!MOVING(0) || word[0] == WANTED(0)) && (!MOVING(1) || word[1] == WANTED(1)) -> round++
    :: else
    fi;
    goto next;
dead:
    skip;
over:
    skip
}

init
{
    atomic {
        byte i;
        word[1] = 1; owner[1] = 1;
        for (i : 0 .. PRODUCERS - 1) {
            seated[i] = true;
            value[STATE_OF(0, 1, i)] = NOTHING; /* A has none of t, B none of s */
            value[STATE_OF(1, 0, i)] = NOTHING;
            run Producer(i)
        }
        run Worker(0);
        run Worker(1);
        for (i : 0 .. SUPERVISORS_DIE) {
            run Supervisor(i)
        }
    };
    _nr_pr == 1;
    assert(handled[0] == sent[0] && !done[0] && !done[1]);
#if PRODUCERS > 1
    assert(handled[1] == sent[1] && !done[2] && !done[3]);
#endif
}
