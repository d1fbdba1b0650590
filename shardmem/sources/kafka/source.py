"""Kafka as a source: a member of a consumer group, whose partitions are handed to the engine as columns."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping, Sequence

from shardmem.errors import Superseded
from shardmem.sources.contract import BrokerUnavailable, Columns, Position, SourceContext, SourceError, partition_of
from shardmem.sources.kafka.client import Client, Member, Partition
from shardmem.sources.kafka.commits import Commits, boottime_ns
from shardmem.sources.kafka.groups import CONSUMER, SESSION, Group
from shardmem.sources.kafka.messages import Messages
from shardmem.sources.kafka.sessions import session_of
from shardmem.sources.kafka.words import Sort, Trouble, refusal

ASK = 10.0  # seconds for the broker to answer a question of the user
AGAIN_AFTER = 1.0  # between two attempts to join under a name that the group still holds
ASK_SESSION = 2.0  # for the broker to say how long it keeps a member that says nothing
ASK_ENDS = 5.0  # between two questions for the ends of partitions that are paused
SHARE = 0.8  # of the time that the group gives for a rebalance, to drain in
CONFIRM = 8  # times in a session
ALL_AWAY = (-187,)  # all brokers down; of one the others take the work
PIN = "shardmem: begins here"  # metadata of a commit that stands for none


class KafkaSource:
    """A BrokerSource, and the Listener of its member."""

    ended = False

    def __init__(self, client: Client, topics: Sequence[str], group: Group, *, start: str, headers: bool) -> None:
        """Raises ConfigError: what the library says of its settings."""
        self.topics, self.group = tuple(topics), group.name
        self._client, self._group, self._headers = client, group, headers
        self._start = start
        client.check(group.settings(1))
        self._partitions = 0
        self._asked_session = False
        self._member: Member | None = None
        self._lock = threading.Lock()  # a member is not closed while another thread asks it
        self._is_held = self._has_told = False
        self._join_at = 0.0
        self._failed: SourceError | None = None
        self._away: str | None = None
        self._owned: set[Partition] = set()
        self._paused: set[Partition] = set()
        self._next: dict[Partition, int] = {}  # where each goes on
        self._begun: dict[Partition, int] = {}  # where it was to begin, until it has delivered something
        self._started: dict[Partition, int | None] = {}  # where; None: as the setting says. Until it is so
        self._pins: dict[Partition, int] = {}
        self._ends: dict[Partition, int] = {}  # of what is paused
        self._asked_ends = 0.0
        self._commits = Commits()
        self._served_ns = boottime_ns()

    @property
    def session(self) -> float:
        return self._group.session

    def confirmed_ns(self) -> int:
        """It is asked for while partitions are drained, too, when nothing is polled."""
        if self._member is not None:
            self._commits.keep_confirmed(self._member, self._owned, self.session / CONFIRM)
        return self._commits.confirmed_ns

    # ---- reading ----------------------------------------------------------------------------------------------------

    def open(self, context: SourceContext) -> None:
        self._context = context

    def partition_counts(self, timeout: float) -> dict[str, int]:
        broker = self._client.look(self._group.settings_outside(), self.topics, timeout)
        self._partitions = sum(broker.counts.values())
        if self._group.falls_back(broker):
            self._context.log.warning(
                "the broker does not have the new protocol of groups, which came with Kafka 4.0; joining by the old one"
            )
        if self._group.protocol == CONSUMER and not self._asked_session:
            self._asked_session = True
            outside = self._group.settings_outside()
            self._group.of_broker = session_of(outside, self._group.name, min(timeout, ASK_SESSION))
            if self._group.of_broker is None:
                self._context.log.info(
                    "the broker does not say how long it keeps a member that says nothing; taking %g s for it", SESSION
                )
        return broker.counts

    def poll(self, max_events: int, timeout: float) -> Columns | None:
        deadline = time.monotonic() + timeout
        while True:
            member = self._member or self._join()
            if member is not None:
                self._serve(member)
                if self._is_held:
                    self._replace()
                    continue
                if self._has_told:
                    self._has_told = False
                    return None
                if (messages := member.read(max_events)) is not None and (columns := self._columns(messages)):
                    return columns
                self.confirmed_ns()
                self._ask_ends(member)
            left = deadline - time.monotonic()
            if left <= 0 and self._away is not None:
                raise BrokerUnavailable(self._away)
            if left <= 0:
                return None
            if member is not None:
                member.wait(left)
            else:
                self._context.stop.wait(min(left, max(0.0, self._join_at - time.monotonic())))

    def _serve(self, member: Member) -> None:
        member.serve()
        self._served_ns = boottime_ns()
        if self._failed is not None:
            failed, self._failed = self._failed, None
            raise failed
        if self._started:
            self._begin(member)

    def _begin(self, member: Member) -> None:
        """All are asked for before any is fetched: answers wait behind a fetch."""
        places = {
            each: self._pinned(member, each) if offset is None else offset for each, offset in self._started.items()
        }
        for partition, place in places.items():
            if place is not None and member.begin(partition, place):
                del self._started[partition]
                self._next[partition] = place
                if partition in self._paused:
                    member.pause([partition])

    def _pinned(self, member: Member, partition: Partition) -> int | None:
        """Where a partition begins of which nothing was committed, None: the broker does not say now.

        It is committed, with a word that says so: whoever begins at the latest event begins there again after a crash,
        and a group that has handled nothing yet has something to be confirmed with.
        """
        if partition not in self._pins:
            try:
                first, last = member.bounds(partition, ASK)
            except BrokerUnavailable as error:
                self._away = str(error)
                return None
            self._pins[partition] = first if self._start == "earliest" else last
            self._commits.send(member, {partition: Position(self._pins[partition], PIN)})
        return self._pins[partition]

    def _columns(self, messages: Messages) -> Columns | None:
        partition = messages.topic, messages.number
        if partition not in self._owned:
            return None
        first, last = int(messages.offsets[0]), int(messages.offsets[-1])
        if (begun := self._begun.pop(partition, first)) < first:
            self._say_what_is_gone(partition, begun)
        elif begun > first:
            self._context.log.warning(
                "%s: was to go on at offset %d, and the broker has no such offset: going on at %d. If the topic was "
                "made anew, begin with an empty state_dir and another group, or state passes over its first events",
                partition_of(*partition), begun, first,
            )  # fmt: skip
        self._next[partition] = last + 1
        self._answers()
        keys = messages.keys
        return Columns(
            partition_of(*partition),
            messages.offsets,
            Position(last + 1),
            messages.payloads,
            keys,
            timestamps=messages.timestamps,
            headers=messages.headers,
            missing=messages.missing,
            bytes=len(messages.payloads[0]) + (0 if keys is None else len(keys.data)),
        )

    def _say_what_is_gone(self, partition: Partition, begun: int) -> None:
        """Offsets may be missing within a topic, but not before the first that it still has."""
        assert self._member is not None
        low, _ = self._member.bounds_known(partition)
        if low is not None and low > begun:
            self._context.log.warning(
                "%s: the broker does not have the events from offset %d to %d any more",
                partition_of(*partition), begun, low - 1,
            )  # fmt: skip

    # ---- membership -------------------------------------------------------------------------------------------------

    def _join(self) -> Member | None:
        if time.monotonic() < self._join_at:
            return None
        self._served_ns = boottime_ns()
        self._member = self._client.join(
            self._group.settings(self._partitions, len(self.topics)), self.topics, self, self._headers
        )
        return self._member

    def _replace(self) -> None:
        """The name of a static member is held by one that was killed: the new protocol lets nobody else have it."""
        self._is_held = False
        if not self._join_at:
            self._context.log.warning(
                "group %s still holds member %s, whose process has ended; waiting until its session is over",
                self._group.name, self._group.instance,
            )  # fmt: skip
        self._join_at = time.monotonic() + AGAIN_AFTER
        self._drop(list(self._owned), lost=True)
        self._close(leave=False)

    def assigned(self, partitions: Sequence[Partition]) -> None:
        self._commits.confirm(self._served_ns)  # it has come since then, so the broker said it later
        self._owned.update(partitions)
        self._answers()
        self._join_at = 0.0
        self._has_told = bool(partitions)
        self._context.assigned([partition_of(*each) for each in partitions])

    def start(self, partition: str, offset: int | None) -> None:
        wanted = _named(partition)
        if wanted not in self._owned:
            return
        self._started[wanted] = offset
        if offset is not None:
            self._begun[wanted] = self._next[wanted] = offset
        elif self._member is not None:
            self._pinned(self._member, wanted)

    def revoked(self, partitions: Sequence[Partition], lost: bool) -> None:
        self._drop(partitions, lost)

    def _drop(self, partitions: Sequence[Partition], lost: bool) -> None:
        names = [partition_of(*each) for each in partitions]
        try:
            if names and lost:
                self._context.lost(names)
            elif names:
                self._context.revoking(names, time.monotonic() + SHARE * self._group.rebalance)
        finally:
            self._owned.difference_update(partitions)
            self._paused.difference_update(partitions)
            self._commits.forget(partitions)
            for each in partitions:
                for kept in (self._next, self._begun, self._started, self._ends, self._pins):
                    kept.pop(each, None)

    def close(self, drained: bool) -> None:
        """It leaves the group: what was not drained has been given up before."""
        self._close(leave=True)

    def _close(self, leave: bool) -> None:
        with self._lock:
            member, self._member = self._member, None
            if member is not None:
                member.close(leave)

    # ---- what a member says -----------------------------------------------------------------------------------------

    def trouble(self, trouble: Trouble) -> None:
        if trouble.sort is Sort.HELD:
            self._is_held = True
        elif trouble.sort is Sort.REFUSED:
            self._away = refusal(trouble.text)
        elif trouble.sort is Sort.AWAY and trouble.number in ALL_AWAY:
            self._away = f"Kafka: {trouble.text}"
        elif trouble.sort is Sort.AWAY:
            self._context.log.info("Kafka: %s", trouble.text)
        elif trouble.sort is Sort.NOTE:
            self._context.log.warning("Kafka: %s", trouble.text)
        else:
            self._failed = SourceError(f"Kafka: {trouble.text}")

    def _answers(self) -> None:
        self._away = None

    def logged(self, level: int, text: str) -> None:
        self._context.log.debug("librdkafka: %s", text)

    def commit_answered(self, serial: int, error: int) -> None:
        self._commits.answered(serial, error)
        if not error:
            self._answers()

    # ---- what the runner and people wish ----------------------------------------------------------------------------

    def pause(self, partitions: Sequence[str]) -> None:
        wanted = self._held(partitions)
        self._paused.update(wanted)
        if self._member is not None:
            self._member.pause(wanted)

    def resume(self, partitions: Sequence[str]) -> None:
        wanted = self._held(partitions)
        self._paused.difference_update(wanted)
        if self._member is not None:
            self._member.resume(wanted)

    def _held(self, partitions: Sequence[str]) -> list[Partition]:
        return [each for each in map(_named, partitions) if each in self._owned]

    def seek(self, partition: str, to: str | int) -> Position:
        wanted = _named(partition)
        if self._member is None or wanted not in self._owned:
            raise SourceError(f"{partition} is not read here")
        low, high = self._member.bounds(wanted, ASK)
        place = {"start": low, "end": high}.get(to) if isinstance(to, str) else to
        if place is None or not low <= place <= high:
            raise SourceError(f"{partition} has no offset {to}; it has {low:,} to {high:,}")
        if wanted in self._started:
            self._started[wanted] = place
        elif not self._member.seek(wanted, place):
            raise SourceError(f"{partition} is being assigned; nothing was changed")
        self._next[wanted] = self._begun[wanted] = place
        return Position(place)

    def lag(self) -> dict[str, int | None]:
        with self._lock:
            owned, member = sorted(self._owned), self._member
            if member is None:
                return {}
            positions = member.positions(owned)
            found: dict[str, int | None] = {}
            for each in owned:
                place = max(positions.get(each, -1), self._next.get(each, -1))
                _, end = member.bounds_known(each)
                end = max(-1 if end is None else end, self._ends.get(each, -1))
                found[partition_of(*each)] = max(0, end - place) if min(end, place) >= 0 else None
            return found

    def _ask_ends(self, member: Member) -> None:
        """Nothing is fetched of a partition that is paused, so its end has to be asked for."""
        waiting = self._paused | self._started.keys()
        if not waiting or self._away is not None or time.monotonic() - self._asked_ends < ASK_ENDS:
            return
        try:
            for each in waiting:
                _, self._ends[each] = member.bounds(each, 1.0)
        except BrokerUnavailable:
            pass
        self._asked_ends = time.monotonic()

    # ---- commits ----------------------------------------------------------------------------------------------------

    def committed(self, partitions: Sequence[str], timeout: float) -> dict[str, Position | None]:
        if self._member is None:
            raise BrokerUnavailable("the group has not been joined yet")
        found = self._member.committed([_named(each) for each in partitions], timeout)
        self._answers()
        self._commits.known.update({each: at for each, at in found.items() if at is not None and each in self._owned})
        pins = {each: at.offset for each, at in found.items() if at is not None and at.metadata == PIN}
        self._pins.update(pins)
        return {partition_of(*each): None if each in pins else position for each, position in found.items()}

    def commit(self, positions: Mapping[str, Position], sync: bool) -> None:
        wanted = {_named(name): position for name, position in positions.items()}
        foreign = sorted(wanted.keys() - self._owned)
        if foreign and sync:
            names = ", ".join(partition_of(*each) for each in foreign)
            raise Superseded(f"{names}: another member may own it now; nothing was committed")
        wanted = {each: position for each, position in wanted.items() if each in self._owned}
        if self._member is None or not wanted:
            return
        if sync:
            self._commits.write(self._member, wanted, self._context.stop)
            self._answers()
        else:
            self._commits.send(self._member, wanted)


def _named(partition: str) -> Partition:
    topic, _, number = partition.rpartition("/")
    try:
        return topic, int(number)
    except ValueError:
        raise SourceError(f"{partition} is not a partition: write TOPIC/NUMBER") from None
