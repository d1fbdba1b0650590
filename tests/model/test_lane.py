"""The lane: one producer, one consumer, either killed at any step and replaced, for ever.

Claimed, for every lane of the sizes below, every sequence of frame lengths, any number of frames and any
number of kills:

* what the worker reads is what the published frame put there: never torn, never overwritten, never
  unpublished, never outside the lane;
* frames are handled in the order published, none is skipped, and none twice unless a worker was killed,
  and then only those of the batch in progress;
* head <= tail <= head + capacity;
* a refused claim has written nothing;
* from every state, without any kill, the frame that the producer wants to send gets published: nobody is
  wedged by whoever died.

Abstracted: a unit stands for 16 bytes and is read and written whole. Memory is sequentially consistent:
payload stores need only be ordered before the release store of the tail, payload loads before the release
store of the head, so an order too weak shows up here as the fault of doing the two the wrong way round.
Neither side sleeps (test_parking.py), nobody counts (test_ledger.py), no row is held (the handoff model).
A successor exists only after the dead one stopped writing: that is what the kernel's lock is for, and
taking a seat or a shard from somebody alive is one of the faults.

The runs are endless, the state space is not: only differences matter to the algorithm, apart from the
offset in the lane, so positions are taken relative to the lap that the head is in, and frames are numbered
from the first not released. A cell that belongs to no frame that may be read is junk, whatever is in it:
reading it is a violation either way.
"""

from __future__ import annotations

from typing import NamedTuple

import pytest

from .explorer import explore, find_violation

PAD, HEADER, DATA = "pad", "header", "data"
DEAD = None


class Producer(NamedTuple):
    tail: int  # its own idea of the tail, equal to the shared one while it writes nothing
    want: int = 0  # length of the frame that it means to send; kept until it is published
    todo: tuple = ()  # what a granted claim still has to do, step by step
    frame: int = 0  # which frame that will be
    seen: int = 0  # the head as read last (used by a variant only)


class Worker(NamedTuple):
    at: str  # the step to take next
    pos: int  # where it reads
    seen: int  # the tail as read last
    frame: int = 0  # which frame it expects at `pos`
    taken: int = 0  # frames handled and not yet released
    bare: int = 0  # their length without padding (used by a fault only)
    length: int = 0
    unit: int = 0


class Lane(NamedTuple):
    cells: tuple
    head: int
    tail: int
    published: tuple  # (padding, length) of the frames between head and tail
    loose: int  # padding published with no frame after it: faults only
    producers: tuple  # of one, unless a fault says otherwise
    workers: tuple
    handled: int  # frames handled at least once, counted from the first not released
    redo: int  # how many of them a killed worker may have left to do again
    dropped: int = 0  # a dead holder's claim, or a tail read too early: faults only
    cursor: int = 0  # a dead worker's reading position: faults only
    wrong: str | None = None


class Model:
    def __init__(self, capacity, lengths=None, batch=1, fault="", kills=True):
        self.capacity, self.batch, self.fault, self.kills = capacity, batch, fault, kills
        longest = capacity // 2 + (fault == "frames longer than half a lane")
        self.lengths = lengths or range(1, longest + 1)

    def initial(self):
        producers = 2 if self.fault == "seat taken from a live producer" else 1
        workers = 2 if self.fault == "shard taken from a live worker" else 1
        return Lane(
            cells=(None,) * self.capacity,
            head=0,
            tail=0,
            published=(),
            loose=0,
            producers=(Producer(0),) * producers,
            workers=(Worker("look", 0, 0),) * workers,
            handled=0,
            redo=0,
        )

    # -- producer ------------------------------------------------------------------------------------

    def claim(self, lane, me, pad_anyway=False):
        """The steps that a claim of `me.want` units leads to, or None where it is refused."""
        C, fault = self.capacity, self.fault
        offset = me.tail % C
        remaining = C - offset
        pad = remaining if pad_anyway or me.want > remaining else 0
        need = pad + me.want
        head = me.seen if fault == "the producer keeps the head that it read" else lane.head
        used = me.tail - head
        limit = C
        if fault == "claim forgets the padding":
            used -= pad
        if fault == "claim is one unit too generous":
            limit = C + 1
        if fault == "positions kept modulo the lane":
            used %= C
        if fault == "a refused claim has padded already" and pad and used + pad <= C:
            return ((PAD, offset, pad), ("publish", pad, pad, 0))
        if used + need > limit:
            return None
        start = (offset + pad) % C
        if fault == "a frame is split at the end of the lane":
            pad, need, start = 0, me.want, offset
        padding = ((PAD, offset, pad),) if pad else ()
        if fault == "no header on the padding":
            padding = ()
        if fault == "padding gets a header of full size" and pad:
            padding += ((DATA, offset + 1, 1),)
        header = ((HEADER, start, me.want),)
        payload = tuple((DATA, start + unit, unit) for unit in range(1, me.want))
        publish = (("publish", need, pad, me.want),)
        if fault == "published before the padding":
            return header + payload + publish + padding
        if fault == "published before the header":
            return padding + publish + header + payload
        if fault == "published before the payload":
            return padding + header + publish + payload
        if fault == "published before the last unit":
            return padding + header + payload[:-1] + publish + payload[-1:]
        if fault == "padding published by a store of its own":
            alone = (("publish", pad, pad, 0),) if pad else ()
            return padding + alone + header + payload + (("publish", me.want, 0, me.want),)
        return padding + header + payload + publish

    def producer_steps(self, lane, number):
        me = lane.producers[number]

        def become(producer, **changes):
            producers = lane.producers[:number] + (producer,) + lane.producers[number + 1 :]
            return lane._replace(producers=producers, **changes)

        if me is DEAD:
            tail = lane.tail
            if self.fault == "new holder starts at zero":
                tail = 0
            elif self.fault == "new holder starts at the head":
                tail = lane.head
            elif self.fault == "new holder carries on behind the dead one's claim":
                tail = lane.dropped
            seen = lane.head if self.fault == "the producer keeps the head that it read" else 0
            yield "producer: new holder reads the tail", become(Producer(tail, seen=seen), dropped=0)
            return
        if self.kills:
            claimed = me.tail + sum(step[1] for step in me.todo if step[0] == "publish")
            dropped = claimed if self.fault == "new holder carries on behind the dead one's claim" else 0
            yield "kill producer", self.normal(become(DEAD, dropped=dropped))
        if self.fault == "a second thread links the lane with a tail that it read before" and not me.todo:
            if lane.dropped:
                yield "producer: second thread links the lane", become(me._replace(tail=lane.dropped - 1), dropped=0)
            else:
                yield f"producer: second thread reads tail {lane.tail}", lane._replace(dropped=lane.tail + 1)
        if not me.want:
            for length in self.lengths:
                yield f"producer: means to send {length} units", become(me._replace(want=length))
        elif not me.todo:
            todo = self.claim(lane, me)
            if todo is None and self.fault == "the producer keeps the head that it read" and me.seen != lane.head:
                yield "producer: reads the head again", become(me._replace(seen=lane.head))
            elif todo is None and self.fault == "a refused claim has padded already" and lane.loose:
                yield "producer: claim refused", lane._replace(wrong="a refused claim moved the tail")
            elif todo is not None:
                frame = len(lane.published)
                yield f"producer: claims {me.want} units at {me.tail}", become(me._replace(todo=todo, frame=frame))
            if self.fault == "padding although the frame would fit" and me.tail % self.capacity:
                todo = self.claim(lane, me, pad_anyway=True)
                if todo is not None:
                    after = become(me._replace(todo=todo, frame=len(lane.published)))
                    yield f"producer: claims {me.want} units behind padding", after
        else:
            (what, where, *rest), todo = me.todo[0], me.todo[1:]
            if what == "publish":
                tail, (pad, length) = me.tail + where, rest
                want = 0 if length and not todo else me.want
                producer = me._replace(tail=tail, want=want, todo=todo, frame=me.frame if todo else 0)
                if tail <= lane.tail:
                    after = lane._replace(wrong="the tail did not advance")
                elif length:
                    published = lane.published + ((lane.loose + pad, length),)
                    after = become(producer, tail=tail, published=published, loose=0)
                else:
                    after = become(producer, tail=tail, loose=pad)
                yield f"producer: publishes tail {tail}" + ("" if length else " (padding)"), after
            else:
                after = become(me._replace(todo=todo, want=me.want if todo else 0))
                if where >= self.capacity:
                    after = after._replace(wrong="written outside the lane")
                else:
                    cells = list(lane.cells)
                    cells[where] = (what, me.frame, rest[0])
                    after = after._replace(cells=tuple(cells))
                yield f"producer: writes {what} at offset {where}", after

    # -- worker --------------------------------------------------------------------------------------

    def worker_steps(self, lane, number):
        me = lane.workers[number]
        fault = self.fault

        def become(worker, **changes):
            workers = lane.workers[:number] + (worker,) + lane.workers[number + 1 :]
            return lane._replace(workers=workers, **changes)

        if me is DEAD:
            pos, frame = lane.head, 0
            if fault == "new incarnation starts at the tail":
                pos, frame = lane.tail, len(lane.published)
            elif fault == "new incarnation starts where the dead one was reading":
                pos, frame = lane.cursor, sum(1 for end in self.ends(lane) if end <= lane.cursor)
            elif lane.handled < 0:
                lane = lane._replace(wrong="a published frame was released and never handled")
            seen = lane.cursor if fault == "new incarnation keeps the dead one's tail" else pos
            yield "worker: new incarnation reads the head", become(Worker("look", pos, seen, frame), cursor=0)
            return
        if self.kills:
            cursor = 0
            if fault == "new incarnation starts where the dead one was reading":
                cursor = me.pos + me.length
            elif fault == "new incarnation keeps the dead one's tail":
                cursor = me.seen
            redo = max(lane.redo, lane.handled)
            yield "kill worker", self.normal(become(DEAD, redo=redo, cursor=cursor))

        if me.at == "look":
            if me.seen != lane.tail:
                yield f"worker: reads tail {lane.tail}", become(me._replace(seen=lane.tail))
            available = me.seen - me.pos
            if fault == "positions kept modulo the lane":
                available %= self.capacity
            if available or fault == "worker does not look at the tail":
                yield from self.read_header(lane, me, become)
        elif me.at == "header":
            yield from self.read_header(lane, me, become)
        elif me.at == "payload":
            offset = (me.pos + me.unit) % self.capacity
            after = become(self.next_unit(me))
            if lane.cells[offset] != (DATA, me.frame, me.unit):
                after = after._replace(wrong=f"unit {me.unit} of a frame reads {lane.cells[offset]}")
            yield f"worker: reads payload at offset {offset}", after
        elif me.at == "handle":
            taken = me.taken + 1
            pos = me.pos + me.length
            at = "look" if fault == "released before handled" else "release"
            bare = me.bare + me.length if self.fault == "release forgets the padding" else 0
            worker = Worker(at, pos, me.seen, me.frame + 1, taken, bare)
            if fault in ("released before handled", "released before read"):
                worker = Worker("look", pos, me.seen, me.frame + 1)
            after = become(worker, handled=max(lane.handled, me.frame + 1))
            if me.frame > lane.handled:
                after = after._replace(wrong="a frame was skipped")
            elif me.frame < lane.handled and me.frame >= lane.redo:
                after = after._replace(wrong="a frame was handled twice and no worker died of it")
            yield f"worker: handles frame {me.frame}", after
            if taken < self.batch and pos < me.seen:
                yield (
                    f"worker: handles frame {me.frame}, takes one more",
                    after._replace(workers=become(worker._replace(at="header")).workers),
                )
        elif me.at == "release":
            yield from self.release(lane, me, become)

    def read_header(self, lane, me, become):
        offset = me.pos % self.capacity
        kind, frame, length = lane.cells[offset] or ("junk", None, 0)
        label = f"worker: reads {kind} at offset {offset}"
        if me.pos >= me.seen and self.fault != "positions kept modulo the lane":
            if self.fault == "a refused claim has padded already":  # its worker knows that this happens
                yield "worker: padding and nothing behind it", become(me._replace(at="release"))
            else:
                yield label, lane._replace(wrong="read past the tail")
        elif frame != me.frame or kind not in (PAD, HEADER):
            yield label, lane._replace(wrong=f"where frame {me.frame} should begin it reads {lane.cells[offset]}")
        elif kind == PAD:
            yield label, become(me._replace(at="header", pos=me.pos + length))
        else:
            worker = self.next_unit(me._replace(length=length))
            if self.fault in ("released before read", "released before handled"):
                worker = me._replace(at="release", length=length)
            yield label, become(worker)

    def next_unit(self, me):
        unit = me.unit + 1
        if unit < me.length:
            return me._replace(at="payload", unit=unit)
        return me._replace(at="handle", unit=0)

    def release(self, lane, me, become):
        """One store of the head, and the ghost's count of what that gave back to the producer."""
        fault, head = self.fault, me.pos
        worker = Worker("look", me.pos, me.seen, me.frame)
        if fault in ("released before read", "released before handled"):
            head = me.pos + me.length
            worker = self.next_unit(me)
        elif fault == "releases all that is published":
            head = lane.tail
            worker = worker._replace(pos=head, seen=head, frame=len(lane.published))
        elif fault == "release forgets the padding":
            head = lane.head + me.bare
            worker = worker._replace(pos=head)
        released, loose = 0, lane.loose
        reached = lane.head
        for end in self.ends(lane):
            if end > head:
                break
            reached, released = end, released + 1
        if loose and head == lane.tail:
            reached, loose = head, 0
        after = become(worker, head=head, published=lane.published[released:], loose=loose)
        if reached != head:
            after = after._replace(wrong="the head is not between two frames")
        yield f"worker: stores head {head}", self.normal(self.renumber(after, released))

    def ends(self, lane):
        end = lane.head
        for pad, length in lane.published:
            end += pad + length
            yield end

    # -- both ----------------------------------------------------------------------------------------

    def renumber(self, lane, released):
        def later(cell):
            return cell and (cell[0], cell[1] - released, cell[2])

        return lane._replace(
            cells=tuple(map(later, lane.cells)),
            producers=tuple(p and (p._replace(frame=p.frame - released) if p.todo else p) for p in lane.producers),
            workers=tuple(w and w._replace(frame=w.frame - released) for w in lane.workers),
            handled=lane.handled - released,
            redo=max(lane.redo - released, 0),
        )

    def normal(self, lane):
        """The same state with what cannot matter any more taken out."""
        lap = lane.head // self.capacity * self.capacity
        if lap:
            seen = lap if self.fault == "the producer keeps the head that it read" else 0
            lane = lane._replace(
                head=lane.head - lap,
                tail=lane.tail - lap,
                producers=tuple(p and p._replace(tail=p.tail - lap, seen=p.seen - seen) for p in lane.producers),
                workers=tuple(w and w._replace(pos=w.pos - lap, seen=w.seen - lap) for w in lane.workers),
                dropped=max(lane.dropped - lap, 0),
                cursor=max(lane.cursor - lap, 0),
            )
        oldest = min((w.frame for w in lane.workers if w), default=0)
        writing = {p.frame for p in lane.producers if p and p.todo}
        count = len(lane.published)

        def readable(cell):
            keep = cell and (min(oldest, 0) <= cell[1] < count or cell[1] in writing)
            return cell if keep else None

        return lane._replace(cells=tuple(map(readable, lane.cells)))

    def steps(self, lane):
        for number in range(len(lane.producers)):
            yield from self.producer_steps(lane, number)
        for number in range(len(lane.workers)):
            yield from self.worker_steps(lane, number)

    def invariant(self, lane):
        if lane.wrong:
            return lane.wrong
        if not lane.head <= lane.tail <= lane.head + self.capacity:
            return f"head {lane.head}, tail {lane.tail} in a lane of {self.capacity}"
        if lane.handled > self.batch:
            return "more frames handled and not released than one batch"
        return None


def _explore(model, run=explore, limit=600_000):
    return run(
        model.initial(),
        model.steps,
        invariant=model.invariant,
        progress=lambda step: step.startswith("producer: publishes") and "padding" not in step,
        unhelpful=lambda step: step.startswith("kill"),
        limit=limit,
    )


# capacity in units, frame lengths, frames in a batch; the length 2 is left out twice, to save time alone
SIZES = [
    (2, (1,), 1, 200),
    (4, (1, 2), 1, 4_000),
    (4, (1, 2), 2, 7_000),
    (6, (1, 2, 3), 1, 45_000),
    (6, (1, 3), 3, 37_000),
    (8, (1, 3, 4), 1, 85_000),
]


@pytest.mark.parametrize("capacity, lengths, batch, at_least", SIZES)
def test_no_kill_of_either_side_tears_loses_reorders_or_wedges(capacity, lengths, batch, at_least):
    found = _explore(Model(capacity, lengths, batch))
    print(f"lane of {capacity} units, frames of {lengths}, batches of {batch}: {found}")
    assert found.states >= at_least, found


def test_without_a_kill_every_frame_is_handled_exactly_once():
    """`redo` stays 0 without a kill, so the model's own check allows no second handling at all."""
    model = Model(8, (1, 3, 4), batch=2, kills=False)

    def steps(lane):
        for label, after in model.steps(lane):
            assert after.redo == 0
            yield label, after

    found = explore(
        model.initial(), steps, invariant=model.invariant, progress=lambda step: step.startswith("producer: publishes")
    )
    print(f"lane of 8 units without kills: {found}")
    assert found.states >= 50_000, found


ALLOWED = [
    # A stale head is a smaller head: the lane looks fuller than it is. Only a refusal must look again.
    "the producer keeps the head that it read",
    # A stale tail is a smaller tail, as long as it is looked at again before the worker calls the lane empty.
    "new incarnation keeps the dead one's tail",
    # To cut a large frame at the end of the lane or to begin it at the start is a matter of taste while both fit.
    "padding although the frame would fit",
]


@pytest.mark.parametrize("variant", ALLOWED)
def test_a_stale_view_and_needless_padding_are_harmless(variant):
    found = _explore(Model(4, fault=variant))
    print(f"{variant}: {found}")
    assert found.states >= 4_000, found


# fault: the kind of violation that must be found
FAULTS = {
    "claim forgets the padding": "invariant",
    "claim is one unit too generous": "invariant",
    "positions kept modulo the lane": "invariant",
    "a frame is split at the end of the lane": "invariant",
    "a refused claim has padded already": "invariant",
    "frames longer than half a lane": "trap",
    "no header on the padding": "invariant",
    "padding gets a header of full size": "invariant",
    "padding published by a store of its own": "invariant",
    "published before the padding": "invariant",
    "published before the header": "invariant",
    "published before the payload": "invariant",
    "published before the last unit": "invariant",
    "new holder starts at zero": "invariant",
    "new holder starts at the head": "invariant",
    "new holder carries on behind the dead one's claim": "invariant",
    "seat taken from a live producer": "invariant",
    "a second thread links the lane with a tail that it read before": "invariant",
    "worker does not look at the tail": "invariant",
    "released before read": "invariant",
    "released before handled": "invariant",
    "releases all that is published": "invariant",
    "release forgets the padding": "invariant",
    "new incarnation starts at the tail": "invariant",
    "new incarnation starts where the dead one was reading": "invariant",
    "shard taken from a live worker": "invariant",
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_in_the_lane_is_caught(fault):
    found = _explore(Model(4 if FAULTS[fault] == "trap" else 6, fault=fault), find_violation)
    assert found is not None, f"{fault}: not caught"
    print(f"{fault}: caught in {len(found.trace)} steps: {found.what}")
    assert found.trace and found.kind == FAULTS[fault], found


@pytest.mark.parametrize("fault", ["published before the payload", "released before read", "claim forgets the padding"])
def test_a_fault_in_the_order_of_accesses_needs_no_kill_to_show(fault):
    found = _explore(Model(6, fault=fault, kills=False), find_violation)
    assert found is not None and found.trace, fault
    print(f"{fault}, nobody killed: caught in {len(found.trace)} steps: {found.what}")
