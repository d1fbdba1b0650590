"""What test_handoff.py explores: slots that move between two shards while events flow and processes are killed.

One step is one access to shared memory that another process could come before or after. Memory is sequentially
consistent: every word of the protocol is seq_cst in the code, and what is not is published by such a word. A row is a
frame of its own; that frames hold many rows matters to the commit alone, which has a model of its own (`Commit`).

A mark is odd or even. That one has changed since the supervisor read it stays true, so who is waited for is kept as a
set out of which a producer takes itself when it marks even.

The slot words of one pass are read one by one, each slot's once.
"""

from __future__ import annotations

from typing import NamedTuple

NONE, REROUTING, DRAINING, RELEASING = range(4)
S, T = 0, 1
A, B = 0, 1
SHARDS, SLOTS = (A, B), (S, T)
NAMES, SLOT_NAMES = "AB", "st"


class Producer(NamedTuple):
    at: str = "idle"  # idle, routing, publishing, leaving; stopped: killed
    odd: bool = False
    chunk: int = 0  # which chunk of its plan comes next
    rows: tuple = ()  # (slot, number) in hand, in order
    routes: tuple = ()  # shard of each row, as far as read
    left: tuple = ()  # rows that this pass could not publish
    full: int = -1  # the shard whose lane refused rows: room there is waited for


class Worker(NamedTuple):
    at: str = "idle"
    cursors: tuple = ()  # by lane, counted from the head
    skipped: frozenset = frozenset()
    draining: tuple = ()  # (slot, number of the handoff)
    doing: tuple = ()  # the same, of what is being given up or restored
    hand: tuple = ()  # (lane, index, slot, number)
    noted: tuple = ()  # by lane: rows that a drain by heads waits for (a fault)
    fresh: tuple = ()  # slots whose state would not outlive this worker (a fault)


class Supervisor(NamedTuple):
    todo: tuple = ()  # what it has decided to do, step by step
    watching: tuple = ()  # (slot, number) of the handoffs that it waits for
    marks: frozenset = frozenset()  # producers that were odd and have not changed
    round: int = 0  # the next one to begin
    finishing: bool = False  # taking up what a predecessor left


class State(NamedTuple):
    hold: tuple  # by slot: (phase, source, target)
    word: tuple  # by slot: shard
    number: tuple
    drained: tuple
    restored: tuple
    holds: tuple  # by shard
    news: tuple  # by shard: orders have been given since the worker looked
    lanes: tuple  # by shard and producer: rows from the head on, (slot, number, done)
    workers: tuple
    producers: tuple
    supervisor: Supervisor
    owner: tuple  # by slot; who may handle it, by the contract
    last: tuple  # by producer and slot: number of the row handled last
    published: tuple  # by producer and slot: how many
    again: frozenset  # rows whose worker was killed with them handled and in hand: (producer, slot, number)
    values: tuple  # by shard and slot: the state as of the last commit, None where there is none
    store: tuple  # by slot: what was handed over
    kills: tuple  # how many more of workers, supervisors, producers
    wrong: str | None = None


def put(values, at, value):
    return values[:at] + (value,) + values[at + 1 :]


class Model:
    """`plans`: of each producer, its chunks, each a tuple of slots. `rounds`: each a tuple of (slot, source, target).

    `kills`: how often a worker, the supervisor, a producer may be killed. `adopts`: a supervisor that takes over goes
    on with workers that live; otherwise it starts when all of them have ended, and starts new ones. `fine`: stores that
    nobody can act on before the next one of the same process are steps of their own all the same.

    A kill and the start of the successor are one step: a successor that has not done anything yet is as good as none.
    """

    def __init__(
        self, plans, rounds, *, stateful=False, capacity=9, kills=(0, 0, 0), adopts=False, fine=False, fault=""
    ):
        self.plans, self.rounds, self.stateful, self.capacity = plans, rounds, stateful, capacity
        self.kills, self.adopts, self.fine, self.fault = kills, adopts, fine, fault
        self.lanes = range(len(plans))
        self.chunks = []
        for plan in plans:
            counts, chunks = [0, 0], []
            for chunk in plan:
                rows = []
                for slot in chunk:
                    counts[slot] += 1
                    rows.append((slot, counts[slot]))
                chunks.append(tuple(rows))
            self.chunks.append(tuple(chunks))

    def initial(self):
        lanes, nothing = len(self.plans), tuple((0, 0) for _ in self.plans)
        zero = (0,) * lanes
        values = ((zero, None), (None, zero)) if self.stateful else ()
        return State(
            hold=((NONE, 0, 0),) * 2,
            word=(A, B),
            number=(0, 0),
            drained=(0, 0),
            restored=(0, 0),
            holds=(0, 0),
            news=(False, False),
            lanes=(((),) * lanes,) * 2,
            workers=(Worker(cursors=zero),) * 2,
            producers=(Producer(),) * lanes,
            supervisor=Supervisor(),
            owner=(A, B),
            last=nothing,
            published=nothing,
            again=frozenset(),
            values=values,
            store=(None, None) if self.stateful else (),
            kills=self.kills,
        )

    def final(self, state):
        supervisor = state.supervisor
        return (
            not supervisor.todo
            and not supervisor.watching
            and not supervisor.finishing
            and supervisor.round == len(self.rounds)
            and state.last == state.published
            and not any(rows for lanes in state.lanes for rows in lanes)
            and all(w.at == "idle" and not w.draining for w in state.workers)
            and not any(state.news)
            and all(
                p.at == "stopped" or (p.at == "idle" and not p.rows and p.chunk == len(chunks))
                for p, chunks in zip(state.producers, self.chunks, strict=True)
            )
        )

    def invariant(self, state):
        return state.wrong

    def steps(self, state):
        if state.wrong:
            return
        for lane in self.lanes:
            yield from self.producer_steps(state, lane)
        for shard in SHARDS:
            yield from self.worker_steps(state, shard)
        yield from self.supervisor_steps(state)

    # -- producers -----------------------------------------------------------------------------------

    def producer_steps(self, state, lane):
        me, fault, name = state.producers[lane], self.fault, f"producer {lane}"

        def become(producer, **changes):
            return state._replace(producers=put(state.producers, lane, producer), **changes)

        def settled():
            supervisor = state.supervisor
            return supervisor._replace(marks=supervisor.marks - {lane})

        if me.at == "stopped":
            return
        idle = me.at == "idle" and not me.rows and me.chunk == len(self.chunks[lane])
        if state.kills[2] and not idle:
            yield (
                f"kill {name}",
                become(
                    Producer("stopped", me.odd),
                    kills=put(state.kills, 2, state.kills[2] - 1),
                    supervisor=state.supervisor if fault == "the mark of the dead is waited for" else settled(),
                ),
            )
        early = fault == "slot word read before the mark"
        if me.at == "idle":
            if not me.rows:
                if me.chunk == len(self.chunks[lane]):
                    return
                me = me._replace(chunk=me.chunk + 1, rows=self.chunks[lane][me.chunk])
            elif len(state.lanes[me.full][lane]) >= self.capacity:
                return
            me = me._replace(at="routing", odd=not early, full=-1)
            if me.routes:  # a fault: where refused rows went is remembered
                me = me._replace(at="publishing")
            yield f"{name}: begins a pass" if early else f"{name}: marks odd", become(me)
        elif me.at == "routing":
            at = len(me.routes)
            if at == len(me.rows):  # a fault: only now
                yield f"{name}: marks odd", become(me._replace(at="publishing", odd=True))
                return
            slot = me.rows[at][0]
            shard = state.word[slot]
            routes = me.routes + (shard,)
            if fault != "slot word read anew for each row of a pass":
                while len(routes) < len(me.rows) and (known := self._known(me.rows, routes)) is not None:
                    routes += (known,)
            on = len(routes) == len(me.rows) and not early
            label = f"{name}: reads slot {SLOT_NAMES[slot]}: {NAMES[shard]}"
            yield label, become(me._replace(at="publishing" if on else "routing", routes=routes))
        elif me.at == "publishing":
            # one store of one tail; what the lane has no room for is left, and all behind it of that shard
            shard = next(route for route in me.routes if route is not None)
            room = self.capacity - len(state.lanes[shard][lane])
            mine = [i for i, route in enumerate(me.routes) if route == shard]
            going, left = mine[:room], mine[room:]
            rows = tuple((*me.rows[i], False) for i in going)
            lanes = put(state.lanes, shard, put(state.lanes[shard], lane, state.lanes[shard][lane] + rows))
            published = list(state.published[lane])
            for slot, _, _ in rows:
                published[slot] += 1
            routes = tuple(None if route == shard else route for route in me.routes)
            after = me._replace(
                routes=routes, left=tuple(sorted(me.left + tuple(left))), full=shard if left else me.full
            )
            if all(route is None for route in routes):
                kept = tuple(me.rows[i] for i in after.left)
                memory = (after.full,) * len(kept) if fault == "refused rows keep the shard they were routed to" else ()
                after = after._replace(at="leaving", rows=kept, routes=memory, left=())
            changes = {"lanes": lanes, "published": put(state.published, lane, tuple(published))}
            label = f"{name}: publishes {len(going)} of {len(mine)} rows to {NAMES[shard]}"
            if after.at == "leaving" and not self.fine:
                after, changes["supervisor"] = after._replace(at="idle", odd=False), settled()
                label += ", marks even"
            yield label, become(after, **changes)
        else:
            yield f"{name}: marks even", become(me._replace(at="idle", odd=False), supervisor=settled())

    @staticmethod
    def _known(rows, routes):
        slot = rows[len(routes)][0]
        for row, route in zip(rows, routes, strict=False):
            if row[0] == slot:
                return route
        return None

    # -- workers -------------------------------------------------------------------------------------

    def worker_steps(self, state, shard):
        me, fault, name = state.workers[shard], self.fault, NAMES[shard]

        def become(worker, **changes):
            return state._replace(workers=put(state.workers, shard, worker), **changes)

        if state.kills[0]:
            after = self.reborn(state, shard)
            yield f"kill {name}", after._replace(kills=put(state.kills, 0, state.kills[0] - 1))

        if me.at == "scanning":  # the moves table: what is to be given up, what to be taken up
            seen = self.concerns(state, shard)
            if fault == "number of a handoff read after its hold" and seen:
                yield f"{name}: reads the holds", become(me._replace(at="numbering", doing=seen))
            else:
                label, after = self.found(state, shard, seen)
                yield f"{name}: {label}", after
        elif me.at == "numbering":
            label, after = self.found(state, shard, me.doing)
            yield f"{name}: {label}", after
        elif me.at == "restoring":
            (slot, number), rest = me.doing[0], me.doing[1:]
            said = ("restored", slot, number)
            after = me._replace(at="saying", doing=(said,) + rest)
            values, fresh = state.values, me.fresh
            if fault == "restored is said before the state is there":
                after = me._replace(at="late", doing=me.doing)
                yield (
                    f"{name}: says {SLOT_NAMES[slot]} restored",
                    become(after, restored=put(state.restored, slot, number)),
                )
                return
            values = put(values, shard, put(values[shard], slot, state.store[slot]))
            if fault == "restored state is not kept until the next commit":
                fresh = tuple(sorted({*fresh, slot}))
            yield f"{name}: restores {SLOT_NAMES[slot]}", become(after._replace(fresh=fresh), values=values)
        elif me.at == "late":
            (slot, _), rest = me.doing[0], me.doing[1:]
            values = put(state.values, shard, put(state.values[shard], slot, state.store[slot]))
            after = me._replace(at="restoring" if rest else "idle", doing=rest)
            yield f"{name}: restores {SLOT_NAMES[slot]}", become(after, values=values)
        elif me.at == "saying":
            (what, slot, number), rest = me.doing[0], me.doing[1:]
            at = "idle"
            if rest:
                at = "restoring" if what == "restored" else "giving"
            after = become(me._replace(at=at, doing=rest))
            if what == "restored":
                after = after._replace(restored=put(state.restored, slot, number))
            else:
                source, target = state.hold[slot][1:]
                after = after._replace(drained=put(state.drained, slot, number))
                if state.owner[slot] != shard or source != shard or number != state.number[slot]:
                    after = after._replace(wrong=f"{name} said {SLOT_NAMES[slot]} drained and does not own it")
                else:
                    after = after._replace(owner=put(state.owner, slot, target))
            yield f"{name}: says {SLOT_NAMES[slot]} {what}", after
        elif me.at == "giving":
            (slot, number), rest = me.doing[0], me.doing[1:]
            changes = {"at": "saying", "doing": (("drained", slot, number),) + rest}
            if not self.stateful:
                yield f"{name}: drops {SLOT_NAMES[slot]}", become(me._replace(**changes))
                return
            value, nothing = state.values[shard][slot], put(state.values, shard, put(state.values[shard], slot, None))
            if value is None:
                yield (
                    f"{name}: hands over {SLOT_NAMES[slot]}",
                    state._replace(wrong=f"{name} has no state to hand over"),
                )
            elif fault == "state dropped before it is stored":
                yield (
                    f"{name}: drops {SLOT_NAMES[slot]}",
                    become(me._replace(at="storing", doing=((slot, number, value),) + rest), values=nothing),
                )
            else:  # what it drops is the worker's own; a new incarnation loads it again as of the last commit
                after = become(me._replace(**changes), store=put(state.store, slot, value))
                yield f"{name}: stores the state of {SLOT_NAMES[slot]}", after
        elif me.at == "storing":
            (slot, number, value), rest = me.doing[0], me.doing[1:]
            after = me._replace(at="saying", doing=(("drained", slot, number),) + rest)
            yield (
                f"{name}: stores the state of {SLOT_NAMES[slot]}",
                become(after, store=put(state.store, slot, value)),
            )
        elif me.at == "taken":
            yield self.handle(state, shard)
        elif me.at == "handled":
            lane, index, slot, number = me.hand
            rows = state.lanes[shard][lane]
            rows = put(rows, index, (slot, number, True))
            after = become(
                me._replace(at="marked", fresh=tuple(each for each in me.fresh if each != slot)),
                lanes=put(state.lanes, shard, put(state.lanes[shard], lane, rows)),
            )
            if self.stateful:
                value = state.values[shard][slot]
                if value is None or value[lane] != number - 1:
                    after = after._replace(wrong=f"row {number} of {SLOT_NAMES[slot]} meets state {value} at {name}")
                else:
                    value = put(value, lane, number)
                    after = after._replace(values=put(state.values, shard, put(state.values[shard], slot, value)))
            if self.fine or state.kills[0] or after.wrong:
                yield f"{name}: sets the done bit", after
            else:
                yield f"{name}: sets the done bit, moves the head", self.advance(after, shard, lane)
        elif me.at == "marked":
            yield f"{name}: moves the head", self.advance(state, shard, me.hand[0])

        unfinished = fault == "drained is said with a row in hand" and me.at in ("taken", "handled")
        if me.at != "idle" and not unfinished:
            return
        if state.news[shard] and me.at == "idle":
            after = me._replace(at="scanning")
            if fault != "orders do not make the worker look again":
                after = after._replace(cursors=(0,) * len(self.plans), skipped=frozenset())
            seen = become(after, news=put(state.news, shard, False))
            if self.fine or fault == "number of a handoff read after its hold":
                yield f"{name}: sees orders, begins at the heads", seen
            else:
                label, after = self.found(seen, shard, self.concerns(seen, shard))
                yield f"{name}: sees orders, begins at the heads, {label}", after
        empty = [move for move in me.draining if not self.left(state, shard, move[0], me)]
        if empty:
            rest = tuple(move for move in me.draining if move not in empty)
            if unfinished:  # one store, so that the row in hand stays in hand
                slot, number = empty[0]
                target = state.hold[slot][2]
                yield (
                    f"{name}: says {SLOT_NAMES[slot]} drained",
                    become(
                        me._replace(draining=tuple(move for move in me.draining if move[0] != slot)),
                        drained=put(state.drained, slot, number),
                        owner=put(state.owner, slot, target),
                    ),
                )
            else:
                after = become(me._replace(at="giving", draining=rest, doing=tuple(empty)))
                yield f"{name}: nothing left of {'+'.join(SLOT_NAMES[slot] for slot, _ in empty)}", after
        if me.at == "idle":
            for lane in self.lanes:
                yield from self.take(state, shard, lane)

    @staticmethod
    def concerns(state, shard):
        """(slot, phase) of the handoffs that a worker has something to do for."""
        return tuple(
            (slot, phase)
            for slot, (phase, source, target) in enumerate(state.hold)
            if (phase == DRAINING and source == shard) or (phase == RELEASING and target == shard)
        )

    def found(self, state, shard, seen):
        """What is not acknowledged yet, with the number of its handoff. seen: (slot, phase) as read."""
        me, draining, releasing = state.workers[shard], [], []
        for slot, phase in seen:
            number = state.number[slot]
            if phase == DRAINING:
                if state.drained[slot] != number:
                    draining.append((slot, number))
            elif state.restored[slot] != number:
                releasing.append((slot, number))
        after = me._replace(at="restoring" if releasing else "idle", draining=tuple(draining), doing=tuple(releasing))
        if self.fault == "drained by heads":
            after = after._replace(noted=tuple(map(len, state.lanes[shard])) if draining else ())
        what = [f"{SLOT_NAMES[slot]} draining" for slot, _ in draining]
        what += [f"{SLOT_NAMES[slot]} releasing" for slot, _ in releasing]
        label = f"finds {', '.join(what) or 'nothing to do'}"
        return label, state._replace(workers=put(state.workers, shard, after))

    def left(self, state, shard, slot, me):
        if self.fault == "no drain":
            return False
        if self.fault == "drained by heads":
            return any(me.noted)
        return any(
            each == slot and not done and not (me.hand and me.hand[:2] == (lane, index))
            for lane, rows in enumerate(state.lanes[shard])
            for index, (each, _, done) in enumerate(rows)
        )

    def take(self, state, shard, lane):
        me, rows, name = state.workers[shard], state.lanes[shard][lane], NAMES[shard]
        cursor = me.cursors[lane]
        while cursor < len(rows) and rows[cursor][2]:
            cursor += 1
        if cursor and rows[0][2] and self.fault != "the head moves in a commit alone":
            # done while the head was behind: by an earlier life, or around a held row. No commit may come after it
            after = state._replace(
                workers=put(state.workers, shard, me._replace(cursors=put(me.cursors, lane, cursor)))
            )
            yield f"{name}: passes rows that are done, moves the head", self.advance(after, shard, lane)
            return
        if cursor == len(rows):
            return
        slot, number, _ = rows[cursor]
        phase, _, target = state.hold[slot]
        held = slot in me.skipped or (
            (state.holds[shard] or me.skipped) and phase != NONE and target == shard and self.fault != "no hold"
        )
        cursors = put(me.cursors, lane, cursor + 1)
        if held:
            skipped = me.skipped if self.fault == "what was passed over is forgotten" else me.skipped | {slot}
            after = me._replace(cursors=cursors, skipped=skipped)
            label = f"{name}: passes over {SLOT_NAMES[slot]}{number} of {lane}"
        else:
            after = me._replace(at="taken", cursors=cursors, hand=(lane, cursor, slot, number))
            label = f"{name}: takes {SLOT_NAMES[slot]}{number} of {lane}"
        yield label, state._replace(workers=put(state.workers, shard, after))

    def handle(self, state, shard):
        me = state.workers[shard]
        lane, _, slot, number = me.hand
        row, last = (lane, slot, number), state.last[lane][slot]
        after = state._replace(workers=put(state.workers, shard, me._replace(at="handled")))
        what = f"{SLOT_NAMES[slot]}{number} of {lane}"
        if state.owner[slot] != shard:
            after = after._replace(wrong=f"{NAMES[shard]} handles {what}, which {NAMES[state.owner[slot]]} owns")
        elif number == last and row in state.again:
            after = after._replace(again=state.again - {row})
        elif number != last + 1:
            after = after._replace(wrong=f"{what} is handled after number {last}")
        else:
            after = after._replace(last=put(state.last, lane, put(state.last[lane], slot, number)))
        return f"{NAMES[shard]}: handles {what}", after

    def advance(self, state, shard, lane):
        """One store of the head: over rows that are done, up to the cursor."""
        me, rows = state.workers[shard], state.lanes[shard][lane]
        end, over = me.cursors[lane], 0
        past = self.fault == "head past a held row" and me.cursors[lane]
        while over < end and (rows[over][2] or over < past):
            over += 1
        wrong = state.wrong
        if any(not done for _, _, done in rows[:over]):
            wrong = f"the head of lane {lane} of {NAMES[shard]} is past a row that is not done"
        noted = me.noted and put(me.noted, lane, max(me.noted[lane] - over, 0))
        after = me._replace(
            at="idle", hand=(), cursors=put(me.cursors, lane, max(me.cursors[lane] - over, 0)), noted=noted
        )
        return state._replace(
            workers=put(state.workers, shard, after),
            lanes=put(state.lanes, shard, put(state.lanes[shard], lane, rows[over:])),
            wrong=wrong,
        )

    def reborn(self, state, shard):
        """Killed, and a new incarnation begins: from the heads; it has seen no orders."""
        me = state.workers[shard]
        again, values = state.again, state.values
        if me.at == "handled":
            lane, _, slot, number = me.hand
            again |= {(lane, slot, number)}
        for slot in me.fresh:
            values = put(values, shard, put(values[shard], slot, None))
        return state._replace(
            again=again,
            values=values,
            workers=put(state.workers, shard, Worker(cursors=(0,) * len(self.plans))),
            news=put(state.news, shard, True),
        )

    # -- supervisor ----------------------------------------------------------------------------------

    def supervisor_steps(self, state):
        me = state.supervisor
        busy = me.todo or me.watching or me.finishing or me.round < len(self.rounds)
        if state.kills[1] and busy:
            after = state._replace(kills=put(state.kills, 1, state.kills[1] - 1))
            if not self.adopts:
                for shard in SHARDS:
                    after = self.reborn(after, shard)
            yield "kill supervisor, another takes over", self.take_over(after)
        if me.marks:
            return
        if me.todo:
            label, after = self.act(state, me._replace(todo=me.todo[1:]), *me.todo[0])
            if me.todo[0][0] == "holds" and len(me.todo) > 1 and not self.fine:  # nobody acts on the count alone
                more, after = self.act(after, me._replace(todo=me.todo[2:]), *me.todo[1])
                label += more.removeprefix("supervisor").replace(": ", ", ", 1)
            yield label, after
        elif me.watching:
            todo, watching = self.look(state, me)
            if todo:
                yield "supervisor: hears of it", state._replace(supervisor=me._replace(todo=todo, watching=watching))
        elif me.finishing:
            yield "supervisor: has finished what was begun", state._replace(supervisor=me._replace(finishing=False))
        elif me.round < len(self.rounds):
            moves = [move for move in self.rounds[me.round] if state.word[move[0]] == move[1]]
            yield (
                f"supervisor: round {me.round + 1}",
                state._replace(
                    supervisor=me._replace(
                        todo=self.begin(state, moves),
                        watching=tuple((slot, state.number[slot] + 1) for slot, _, _ in moves),
                        round=me.round + 1,
                    )
                ),
            )

    def begin(self, state, moves):
        fault = self.fault
        todo, holds, words = [], [], []
        for shard in SHARDS:
            coming = sum(target == shard for _, _, target in moves)
            if coming:
                holds.append(("holds", shard, self.held_at(state, shard) + coming))
        for slot, source, target in moves:
            hold, word = ("hold", slot, REROUTING, source, target), ("word", slot, target)
            words += (word, hold) if fault == "slot word before hold" else (hold, word)
        todo = words + holds if fault == "holds counted after the hold word" else holds + words
        if fault == "draining is said before the marks have settled":
            todo += [("phase", slot, DRAINING) for slot, _, _ in moves]
            todo += [("orders", shard) for shard in sorted({source for _, source, _ in moves})]
        if fault != "no wait for marks":
            todo += [("marks",)]
        phases = [("phase", slot, DRAINING) for slot, _, _ in moves]
        orders = [("orders", shard) for shard in sorted({source for _, source, _ in moves})]
        todo += orders + phases if fault == "orders before what they are about" else phases + orders
        return tuple(todo)

    @staticmethod
    def held_at(state, shard, without=()):
        return sum(
            phase != NONE and target == shard and slot not in without
            for slot, (phase, _, target) in enumerate(state.hold)
        )

    def look(self, state, me):
        """What is to be done about what the workers have said, and what is still waited for after that."""
        todo, orders, arrived = [], [], []
        for slot, number in me.watching:
            phase, _, target = state.hold[slot]
            drained = state.drained[slot] == number
            if self.fault == "the drained of an earlier handoff is taken for this one's":
                drained = state.drained[slot] > 0
            through = self.stateful and self.fault != "hold falls before the state is restored"
            if phase == DRAINING and drained and through:
                todo.append(("phase", slot, RELEASING))
                orders.append(("orders", target))
            elif (phase == DRAINING and drained) or (phase == RELEASING and state.restored[slot] == number):
                arrived.append(slot)
        todo += dict.fromkeys(orders)
        falling, counts, orders = [("phase", slot, NONE) for slot in arrived], [], []
        for shard in SHARDS:
            if any(state.hold[slot][2] == shard for slot in arrived):
                counts.append(("holds", shard, self.held_at(state, shard, arrived)))
                orders.append(("orders", shard))
        if self.fault == "orders before what they are about":
            todo += orders + falling + counts
        elif self.fault == "no orders when a hold falls":
            todo += falling + counts
        else:
            todo += falling + [each for pair in zip(counts, orders, strict=True) for each in pair]
        return tuple(todo), tuple(move for move in me.watching if move[0] not in arrived)

    def act(self, state, me, what, *how):
        after = state._replace(supervisor=me)
        if what == "holds":
            shard, count = how
            return f"supervisor: holds of {NAMES[shard]}: {count}", after._replace(holds=put(state.holds, shard, count))
        if what == "hold":
            slot, phase, source, target = how
            return f"supervisor: hold of {SLOT_NAMES[slot]}, {NAMES[source]} to {NAMES[target]}", after._replace(
                hold=put(state.hold, slot, (phase, source, target)),
                number=put(state.number, slot, state.number[slot] + 1),
            )
        if what == "word":
            slot, target = how
            return f"supervisor: slot {SLOT_NAMES[slot]} to {NAMES[target]}", after._replace(
                word=put(state.word, slot, target)
            )
        if what == "phase":
            slot, phase = how
            text = ("none", "rerouting", "draining", "releasing")[phase]
            return f"supervisor: phase of {SLOT_NAMES[slot]}: {text}", after._replace(
                hold=put(state.hold, slot, (phase, *state.hold[slot][1:]))
            )
        if what == "marks":
            odd = frozenset(
                lane
                for lane, producer in enumerate(state.producers)
                if producer.odd and (producer.at != "stopped" or self.fault == "the mark of the dead is waited for")
            )
            return f"supervisor: reads the marks, odd: {sorted(odd)}", after._replace(supervisor=me._replace(marks=odd))
        (shard,) = how
        return f"supervisor: orders for {NAMES[shard]}", after._replace(news=put(state.news, shard, True))

    def take_over(self, state):
        """finish_what_was_begun, from the table alone. The round that was under way is asked for again after it."""
        fault = self.fault
        left = [(slot, *state.hold[slot]) for slot in SLOTS if state.hold[slot][0] != NONE]
        todo = []
        for shard in SHARDS:
            if any(target == shard for _, _, _, target in left):
                todo.append(("holds", shard, self.held_at(state, shard)))
        rerouting = [(slot, target) for slot, phase, _, target in left if phase == REROUTING]
        if fault != "a successor does not set the slot word":
            todo += [("word", slot, target) for slot, target in rerouting]
        if left and fault != "a successor does not wait for marks":
            todo += [("marks",)]
        todo += [("phase", slot, DRAINING) for slot, _ in rerouting]
        concerned = {shard for _, _, source, target in left for shard in (source, target)}
        if self.adopts and fault != "an adopting successor gives orders only where something moves":
            concerned = set(SHARDS)
        todo += [("orders", shard) for shard in sorted(concerned)]
        begun = next((at for at, moves in enumerate(self.rounds) if self._ahead(state, at)), len(self.rounds))
        watching = tuple((slot, state.number[slot]) for slot, *_ in left)
        return state._replace(supervisor=Supervisor(tuple(todo), watching, frozenset(), begun, True))

    def _ahead(self, state, at):
        """Whether something of a round has not been begun: slots count their handoffs."""
        return any(
            state.number[slot] < sum(each == slot for round in self.rounds[: at + 1] for each, _, _ in round)
            for slot, _, _ in self.rounds[at]
        )


# -- the commit of a batch ---------------------------------------------------------------------------------------------


class Reader(NamedTuple):
    row: int  # rows before it have been taken
    hand: tuple = ()  # (frame, first row, rows) of the batch
    handling: int = -1  # which row of the batch is next; -1: no batch
    todo: tuple = ()  # stores of a commit


class Batches(NamedTuple):
    head: int  # frames before it are released
    done: tuple  # by row
    values: tuple  # by key, the row written last: what a handler that overwrites leaves behind
    reader: Reader | None
    kills: int


class Commit:
    """One lane of frames of several rows, batches of at most `limit` rows, kills between any two stores.

    `frames`: of each, the keys of its rows. If a row comes again after a kill, those of its key that were handled after
    it must come again too: then what a handler writes last is what was sent last. A whole frame needs no done bits,
    because the head moves over it.
    """

    def __init__(self, frames, limit, kills, fault=""):
        self.keys, self.limit, self.kills, self.fault = "".join(frames), limit, kills, fault
        self.names, self.frames = sorted(set(self.keys)), list(map(len, frames))
        frames = self.frames
        self.starts = [sum(frames[:at]) for at in range(len(frames) + 1)]

    def initial(self):
        return Batches(0, (False,) * self.starts[-1], (-1,) * len(self.names), Reader(0), self.kills)

    def final(self, state):
        return state.head == len(self.frames)

    def invariant(self, state):
        if self.final(state):
            for key, row in zip(self.names, state.values, strict=True):
                if row != self.keys.rindex(key):
                    return (
                        f"all is handled and row {row} is what was written last of {key}, not {self.keys.rindex(key)}"
                    )
        return None

    def steps(self, state):
        me = state.reader
        if me is None:
            head = state.head
            while head < len(self.frames) and all(state.done[self.starts[head] : self.starts[head + 1]]):
                head += 1
            yield "new incarnation", state._replace(head=head, reader=Reader(self.starts[head]))
            return
        if self.final(state):
            return
        if state.kills:
            yield "kill", state._replace(reader=None, kills=state.kills - 1)
        if me.todo:
            (what, *how), todo = me.todo[0], me.todo[1:]
            after = me._replace(todo=todo)
            if what == "done":
                first, count = how
                done = state.done[:first] + (True,) * count + state.done[first + count :]
                yield f"done bits of rows {first} to {first + count - 1}", state._replace(done=done, reader=after)
            else:
                yield f"head {how[0]}", state._replace(head=how[0], reader=after)
        elif me.handling < 0:
            for limit in range(1, self.limit + 1):
                rows, row = [], me.row
                while row < self.starts[-1] and len(rows) < limit:
                    if not state.done[row]:
                        rows.append(row)
                    row += 1
                if len(rows) == limit:
                    yield f"takes rows {rows}", state._replace(reader=Reader(row, tuple(rows), 0))
        elif me.handling < len(me.hand):
            row = me.hand[me.handling]
            values = put(state.values, self.names.index(self.keys[row]), row)
            yield f"handles row {row}", state._replace(values=values, reader=me._replace(handling=me.handling + 1))
        else:
            yield "begins to commit", state._replace(reader=Reader(me.row, (), -1, self.commit(state, me.hand)))

    def commit(self, state, rows):
        head, moved, todo, done = state.head, False, [], list(state.done)

        def over(head):
            while head < len(self.frames) and all(done[self.starts[head] : self.starts[head + 1]]):
                head += 1
            return head

        for frame in range(len(self.frames)):
            first, end = self.starts[frame], self.starts[frame + 1]
            mine = [row for row in rows if first <= row < end]
            if not mine:
                continue
            for row in mine:
                done[row] = True
            if frame == head and len(mine) == end - first:
                head, moved = head + 1, True
                continue
            if moved and self.fault != "bits are set before the head is past earlier frames of the batch":
                todo.append(("head", head))
                moved = False
            todo.append(("done", mine[0], len(mine)))
            if over(head) != head:
                head, moved = over(head), True
        if moved or over(head) != state.head:
            todo.append(("head", over(head)))
        return tuple(todo)
