"""Commits of a member, and with them the moment at which the broker last said that the member owns what it owns.

The broker refuses the commit of a member that it has given up. So each commit that it accepts confirms all that the
member owns, as of the moment at which it was sent: an answer that is read late, by a process that was frozen meanwhile,
confirms nothing newer.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Collection, Mapping
from typing import Protocol

from shardmem.errors import Superseded
from shardmem.sources.contract import BrokerUnavailable, Position
from shardmem.sources.kafka.words import AGAIN, SUPERSEDED

SYNC = 5.0  # seconds that a commit may take which is waited for
PAUSE = 0.1  # between two attempts

Partition = tuple[str, int]


def boottime_ns() -> int:
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)


class Committer(Protocol):
    def send_commit(self, positions: Mapping[Partition, Position], serial: int) -> int:
        """Returns an error at once, or 0: then the answer comes while it is served."""
        ...

    def serve_commits(self) -> None:
        """Answers that have come; nothing else."""
        ...

    def commit(self, positions: Mapping[Partition, Position], timeout: float) -> int:
        """Waits for the answer; 0, or an error."""
        ...

    def words(self, number: int) -> str: ...


class Commits:
    def __init__(self) -> None:
        self.confirmed_ns = 0
        self.known: dict[Partition, Position] = {}  # what is committed, as far as this member knows
        self._sent: dict[int, tuple[int, Mapping[Partition, Position]]] = {}  # not answered yet, and sent when
        self._serial = 0
        self._sent_at = time.monotonic()

    def confirm(self, at_ns: int) -> None:
        self.confirmed_ns = max(self.confirmed_ns, at_ns)

    def forget(self, partitions: Collection[Partition]) -> None:
        for each in partitions:
            self.known.pop(each, None)

    def send(self, member: Committer, positions: Mapping[Partition, Position]) -> None:
        self._serial += 1
        self._sent[self._serial] = boottime_ns(), positions
        self._sent_at = time.monotonic()
        if error := member.send_commit(positions, self._serial):
            self.answered(self._serial, error)

    def answered(self, serial: int, error: int) -> None:
        sent_ns, positions = self._sent.pop(serial, (0, {}))
        if not error:
            self._is_written(positions, sent_ns)

    def _is_written(self, positions: Mapping[Partition, Position], sent_ns: int) -> None:
        self.confirm(sent_ns)
        self.known.update(positions)

    def write(self, member: Committer, positions: Mapping[Partition, Position], stop: threading.Event) -> None:
        """Returns when they are committed. Raises Superseded, BrokerUnavailable."""
        deadline = time.monotonic() + SYNC
        while True:
            sent_ns, self._sent_at = boottime_ns(), time.monotonic()
            error = member.commit(positions, deadline - time.monotonic())
            if error not in AGAIN or time.monotonic() >= deadline:
                break
            stop.wait(PAUSE)
        if not error:
            self._is_written(positions, sent_ns)
        if error in SUPERSEDED:
            raise Superseded(f"the group has given this member up ({member.words(error)}); nothing was committed")
        if error:
            raise BrokerUnavailable(f"a commit has failed ({member.words(error)})")

    def keep_confirmed(self, member: Committer, owned: Collection[Partition], every: float) -> None:
        """Commits one position once more, where nothing else was committed for so long."""
        member.serve_commits()
        if time.monotonic() - self._sent_at < every:
            return
        for each in owned:
            if each in self.known:
                self._sent = {}  # what was not answered in all that time
                self.send(member, {each: self.known[each]})
                return
