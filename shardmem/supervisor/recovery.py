"""Words of the control segment that make no sense, set right before an engine is taken over.

Any process of this user can have damaged them. What the files of the inboxes say themselves (shard, generation, lanes)
is believed before what the words say of them: a word that names a file that is not there must not make a supervisor
sweep the one that is, and one shard's damage must not keep the others from being taken over.
"""

from __future__ import annotations

from shardmem.errors import SegmentCorrupt
from shardmem.memory.engine_segment import ControlSegment
from shardmem.memory.inbox_segment import InboxSegment
from shardmem.memory.native import MOVE_PHASES, SHARD_STATES
from shardmem.memory.segment import GENERATIONS, inboxes_of
from shardmem.memory.words import NOBODY
from shardmem.text import plural

FULL_WEIGHT = 1000
TAKES = 20


def next_generation(control: ControlSegment, shard: int) -> int:
    """Of an inbox. A word that was damaged may say any number, and files have names of their own."""
    view, files = control.view_shard(shard), inboxes_of(control.engine, shard)
    known = [number for number in (view.generation, view.retired_generation) if number < GENERATIONS]
    return max([*known, *files, 0]) + 1


def take_words(control: ControlSegment) -> list[tuple[int | None, str]]:
    """By the holder of the supervisor's lease, before it looks at anything: they are set right, and from here on what
    somebody else writes there is believed no more. What was done, each of a shard or of none. Raises OutOfMemory,
    SegmentError."""
    done = []
    for _ in range(TAKES):
        done += _mend_headers(control) + _mend_words(control)
        control.remember()
        if control.are_known and all(_has_its_inbox(control, shard) for shard in control.known_shards()):
            return done
        control.forget()  # between the two somebody has changed one: a supervisor ended for an inbox that never was
    raise SegmentCorrupt(
        f"somebody writes to the memory of engine {control.engine!r} all the time: its words were set right {TAKES} "
        f"times, and each time they were something else at once"
    )


def _has_inbox(control: ControlSegment, shard: int, generation: int) -> bool:
    """Also with a header that is damaged, which somebody may do again and again."""
    return control.inbox_condition(shard, generation) in ("whole", "damaged")


def _has_its_inbox(control: ControlSegment, shard: int) -> bool:
    generation = control.shard_generation(shard)
    is_removed = control.shard_state(shard) == "stopped" and generation <= control.view_shard(shard).retired_generation
    return is_removed or _has_inbox(control, shard, generation)


def _mend_headers(control: ControlSegment) -> list[tuple[int | None, str]]:
    done: list[tuple[int | None, str]] = []
    for shard in range(control.room):
        for generation in inboxes_of(control.engine, shard):
            if control.inbox_condition(shard, generation) == "damaged":
                control.take_inbox(shard, generation).close()
                done.append((shard, f"the header of its inbox {generation} was damaged, and is written again"))
    return done


def _mend_words(control: ControlSegment) -> list[tuple[int | None, str]]:
    done: list[tuple[int | None, str]] = []
    owners = set(control.slot_table()[0].tolist())
    for shard in range(control.room):
        if text := _mend_shard(control, shard, shard in owners):
            done.append((shard, text))
    return done + _mend_moves(control) + _mend_slots(control)


def _mend_shard(control: ControlSegment, shard: int, has_slots: bool) -> str:
    view = control.view_shard(shard)
    state = SHARD_STATES[view.state] if view.state < len(SHARD_STATES) else None
    if state == "stopped" and view.generation <= view.retired_generation:
        if not any(_has_unread(control, shard, number) for number in _files_of(control, shard)):
            return ""  # its removal had begun, and goes on
        state = None  # no removal begins while there are events
    if state == "none" and not inboxes_of(control.engine, shard):
        return ""
    if state not in ("none", None) and view.retired_generation < view.generation:
        if _has_inbox(control, shard, view.generation):
            return ""
    files = _files_of(control, shard)
    newest = files[-1] if files else 0
    if state in ("none", None):
        # An inbox that nobody was told of has no lanes and no slots: it is no damage, and is swept.
        if not has_slots and not (newest and _has_unread(control, shard, newest)):
            if state is None:
                control.set_shard_state(shard, "none")
            return "" if state else f"its state was {view.state}, and it has no inbox and no slots: it is none"
        if not newest:
            return ""  # its slots are given to others
        control.set_shard_state(shard, "active" if has_slots else "draining")
        control.set_shard_weight(shard, FULL_WEIGHT if has_slots else 0)
    if newest:
        if view.retired_generation >= newest:
            control.forget_retired(shard, newest - 1)
        control.set_shard_generation(shard, newest)
        return (
            f"its words were damaged (state {view.state}, generation {view.generation}); its inbox {newest} is taken up"
        )
    generation = next_generation(control, shard)
    if view.retired_generation >= generation:
        control.forget_retired(shard, generation - 1)
    InboxSegment.create(control, shard, generation).close()
    control.set_shard_generation(shard, generation)
    return f"its inbox {view.generation} is gone; what it held is lost, and it has a new one"


def _files_of(control: ControlSegment, shard: int) -> list[int]:
    """Generations of the inboxes of a shard that are here, and nobody else's."""
    return [number for number in inboxes_of(control.engine, shard) if _has_inbox(control, shard, number)]


def _has_unread(control: ControlSegment, shard: int, generation: int) -> bool:
    inbox = control.take_inbox(shard, generation)
    try:
        return any(lane.head != lane.tail for lane in inbox.lanes())
    finally:
        inbox.close()


def _mend_moves(control: ControlSegment) -> list[tuple[int | None, str]]:
    """A handoff that cannot be is given up: of shards that are not, of one to itself, which would wait for rows that it
    keeps back, or of a slot that is neither's. What a slot word alone contradicts begins again, or goes on."""
    here, owners, wrong = set(control.known_shards()), control.slot_table()[0].tolist(), []
    for move in control.moves():
        owner = owners[move.slot]
        can_be = move.phase in MOVE_PHASES and {move.source, move.target} <= here and move.source != move.target
        if can_be and owner not in here:
            control.set_slot(move.slot, move.target)
        elif can_be and owner == move.source and move.phase in ("rerouting", "draining"):
            control.set_move_phase(move.slot, "rerouting")
        elif not can_be or owner != move.target:
            control.set_move_phase(move.slot, "none")
            wrong.append(move.slot)
    return [(None, f"damaged, and given up: the handoff of {plural(len(wrong), 'slot')}")] if wrong else []


def _mend_slots(control: ControlSegment) -> list[tuple[int | None, str]]:
    """A slot of a shard that is not, or that is being removed, goes to one that is. Slots that were never given to any
    shard are left. In an engine that has ended all shards are stopped, and have theirs."""
    gone = "stopped" if control.state == "running" else "none"
    known = {shard for shard in control.known_shards() if control.shard_state(shard) != gone}
    here = [shard for shard in sorted(known) if control.shard_state(shard) in ("active", "failed", "stopped")]
    wrong = 0
    for slot, owner in enumerate(control.slot_table()[0].tolist()):
        if owner != NOBODY and owner not in known and here:
            control.set_slot(slot, here[slot % len(here)])
            wrong += 1
    return [(None, f"given to others: {plural(wrong, 'slot')} of shards that are gone")] if wrong else []
