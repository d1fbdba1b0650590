"""Shared memory that somebody else removes or cuts short while the engine runs: a cleaning script, RemoveIPC= of
systemd, a container that shares /dev/shm.

    control segment   cut short: nothing can go on, all is stopped at once. Removed: whoever has it mapped goes on, and
                      nobody can join, so the engine handles what it holds and ends with an error.
    inbox             cut short: its worker is killed, which the next touch would do, and the shard gets a new inbox;
                      what the old one held is lost. Removed: while its worker lives, a successor takes its slots and
                      nothing is lost; without one, as above.

And words of it that somebody else changes: those of the supervisor are set right (own_words.py).
"""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass

from shardmem.errors import SegmentCorrupt, ShardmemError
from shardmem.memory.inbox_segment import InboxSegment, LaneView
from shardmem.policy import ShardState
from shardmem.settings import some
from shardmem.supervisor.background import Background
from shardmem.supervisor.fleet import Fleet
from shardmem.supervisor.life import Life, Stage
from shardmem.supervisor.replacements import Replacements

SAY_EVERY = 10.0  # seconds
AGAIN = 30.0  # seconds until a shard whose memory was removed is replaced again, if that failed

log = logging.getLogger("shardmem.supervisor")


@dataclass
class _Case:
    inbox: InboxSegment
    said: str = ""
    replace_at: float = 0.0


class SegmentWatch:
    """`look` is called at the pace of the supervisor, as long as there are workers."""

    def __init__(self, fleet: Fleet, life: Life, replacements: Replacements, background: Background) -> None:
        self._fleet, self._life, self._replacements, self._background = fleet, life, replacements, background
        self._cases: dict[int, _Case] = {}
        self._mended, self._say_at = dict[str, None](), 0.0
        self._last: dict[int, tuple[InboxSegment, list[LaneView]]] = {}  # as each inbox was before anything was wrong

    def look(self) -> None:
        if not self._control_is_there():
            return
        for shard, inbox in list(self._fleet.inboxes.items()):
            if trouble := inbox.segment.trouble():
                case = self._cases.get(shard)
                if case is None or case.inbox is not inbox:
                    case = self._cases[shard] = _Case(inbox)
                self._proceed(shard, case, trouble)
            else:
                is_mended, lanes = inbox.repair(), inbox.lanes()
                if not inbox.segment.trouble():  # of one that was cut short meanwhile all words are zero
                    self._last[shard] = inbox, lanes
                    if is_mended:
                        self._mended[f"the header of inbox {shard}"] = None
        for shard in set(self._last) - set(self._fleet.inboxes):
            del self._last[shard]
        self._mend_words()

    def _control_is_there(self) -> bool:
        segment = self._fleet.control.segment
        if self._life.error is not None or self._life.stage >= Stage.STOPPING:
            return segment.is_whole
        if not segment.is_whole:
            self._life.fail(SegmentCorrupt(f"{segment.trouble()}; the engine cannot go on, and what it held is lost"))
            self._life.wake()
            return False
        if not segment.is_current():
            text = f"{segment.trouble()}: nobody finds the engine any more; it ends when it has handled what it holds"
            self._fleet.history.note("memory_lost", text)
            self._life.end(
                ShardmemError(text, hint="Look for what removes files of /dev/shm, and run the engine again")
            )
        return True

    def _mend_words(self) -> None:
        """Said at most once in ten seconds: who damages words may go on doing so."""
        if mended := self._fleet.control.repair():
            self._mended |= dict.fromkeys(mended)
            for shard in self._fleet.inboxes:
                self._fleet.give_orders(shard)  # what a wild hold kept back is looked at again
        if self._mended and time.monotonic() >= self._say_at:
            self._say_at = time.monotonic() + SAY_EVERY
            text = f"changed by somebody else, and set right: {', '.join(self._mended)}"
            self._fleet.history.note("memory_damaged", text)
            self._mended.clear()

    def _proceed(self, shard: int, case: _Case, trouble: str) -> None:
        fleet = self._fleet
        if case.said != trouble:
            case.said = trouble
            fleet.history.note("memory_lost", trouble, shard)
        if not fleet.control.worker_alive(shard):
            self._renew(shard, case)
        elif not case.inbox.segment.is_whole:
            worker = fleet.workers.of(shard)
            if worker is not None and not worker.killed:
                worker.kill()
        elif self._may_replace(shard) and time.monotonic() >= case.replace_at:
            case.replace_at = time.monotonic() + AGAIN
            work = self._replacements.recycle(shard, "its inbox was removed from /dev/shm")
            self._background.start(f"replacing shard {shard}", work)

    def _may_replace(self, shard: int) -> bool:
        return (
            self._life.stage is Stage.RUNNING
            and not self._life.is_stopping
            and self._fleet.planner.mapper.shard_state(shard) is ShardState.ACTIVE
        )

    def _renew(self, shard: int, case: _Case) -> None:
        inbox, lanes = self._last.get(shard, (case.inbox, []))
        lanes = lanes if inbox is case.inbox else []
        try:
            lost = self._fleet.shards.renew_inbox(shard, lanes)
        except ShardmemError as error:  # no room for another one: the next look tries again
            text = f"shard {shard} needs a new inbox: {error}"
            if case.said != text:
                case.said = text
                log.error("%s", text, extra={"shard": shard})
            return
        del self._cases[shard]
        known = f"{some(lost, 'event')} when it was last looked at" if lost else "nothing, when it was last looked at"
        text = f"it has a new inbox; what only the old one held is lost: {known}"
        self._fleet.history.note("memory_lost", text, shard)
