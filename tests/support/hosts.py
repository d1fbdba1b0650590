"""Two hosts: engines of two names in one group of a broker, and what is done to one of them; held against what is
promised of many hosts."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import sqlite3
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

import shardmem
from shardmem.memory.segment import path_of
from support.chaos import Daemons
from support.checker import EVENT, HANDLED, Logs, check_apart, one_owner
from support.recorder import payload
from support.rig import Rig, segments_of, wait_until

PARTITIONS, KEYS, BLOCK = 8, 64, 500
LONG = 90.0  # seconds for whatever has to come about on a busy machine
MOST_BEHIND = 40_000  # events that are produced and not handled


class Group(Protocol):
    """The broker, and the group of the hosts. planned: faults after which nothing may be repeated. others: the rest.
    files: databases that no frozen process may have locked. said: what was found committed when it was last asked
    for."""

    planned: Sequence[str]
    others: Sequence[str]
    files: Sequence[str]
    said: str

    def daemon(self, host: str, directory: Path) -> Mapping[str, Any]:
        """How an engine of that name is run: what Daemons is given."""
        ...

    def produce(self, events: Sequence[tuple[int, bytes]]) -> None:
        """key and payload; returns when the broker has them."""
        ...

    def has_committed_all(self) -> bool: ...

    def cut(self, host: str, is_cut: bool) -> None: ...

    def kill_a_broker(self, chance: random.Random) -> None:
        """And bring it back."""
        ...


@dataclass
class Absence:
    """Of a host whose partitions another one has taken meanwhile; CLOCK_MONOTONIC. settled: when it had its share
    again."""

    host: Host
    since: int
    until: int
    settled: int = 1 << 62


class Host:
    """One engine, all of its processes, and what its handlers wrote down."""

    def __init__(self, directory: Path, name: str, group: Group, number: int) -> None:
        directory.mkdir()
        self.name, self.number, self.rig = name, number, Rig(directory)
        self.daemons = Daemons(self.rig, name, **group.daemon(name, directory))

    def start(self) -> None:
        self.daemons.start()
        self.daemons.ready(LONG)

    def client(self) -> shardmem.Client:
        return shardmem.Client(self.name)

    def source(self) -> Any:
        with contextlib.suppress(shardmem.ShardmemError), self.client() as client:
            return next(iter(client.status()["sources"]), None)
        return None

    def owned(self) -> set[str]:
        """None while its source does not run."""
        source = self.source()
        is_well = source is not None and source["alive"] and source["state"] == "running"
        return set(source["partitions"]) if is_well else set()

    def signal(self, number: int) -> None:
        """To all of its processes: those of a supervisor that is gone are of its session still."""
        for process in self.daemons.all:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, number)

    def forget(self) -> None:
        """What a run that failed left of it."""
        for entry in segments_of(self.name):
            os.unlink(path_of(entry))

    def recorded(self) -> int:
        size = sum(path.stat().st_size for path in self.rig.directory.glob("handled-*"))
        return size // HANDLED.itemsize

    def handled(self) -> np.ndarray:
        rows = self.rig.logs().handled
        rows["shard"] += 1000 * self.number
        return rows


class Hosts:
    """One run. violations: sentences; none is a pass. late: events that were in hand when their host was frozen and
    ended behind those of the next owner. stale: events that a host began to handle when another one had them, which
    may be of one batch of each worker."""

    def __init__(self, directory: Path, name: str, group: Group, seed: int, events: int, pace: float) -> None:
        """pace: events of a second."""
        self.group = group
        self.hosts = [Host(directory / each, f"{name}-{each}", group, i) for i, each in enumerate("ab")]
        self.chance, self._pace, self._events = random.Random(seed), pace, events
        self.violations: list[str] = []
        self.faults: Counter[str] = Counter()
        self.told: list[str] = []  # of the faults, when and of which host
        self.absences: list[Absence] = []
        self.repeated = self.late = self.stale = 0
        self.numbers = [0] * KEYS  # of each key: how many were produced
        self._offered: list[np.ndarray] = []
        self._done = 0  # faults of a phase
        self._fed = threading.Event()

    @contextlib.contextmanager
    def running(self) -> Iterator[Hosts]:
        with contextlib.ExitStack() as stack:
            for host in self.hosts:
                stack.callback(host.forget)
                stack.enter_context(host.daemons)
                stack.callback(host.signal, signal.SIGCONT)
            for host in self.hosts:
                host.start()
            self.share("they are started")
            yield self

    @property
    def offered(self) -> np.ndarray:
        return np.concatenate([np.empty(0, EVENT), *self._offered])

    # ---- the run -----------------------------------------------------------------------------------------------------

    def phase(self, faults: Sequence[str], events: int, least: int) -> None:
        """So many events, and faults as long as they come; at least so many faults, each kind once at first. Events
        are kept back for each of these."""
        self._fed.clear()
        self._done = 0
        feeder = threading.Thread(target=self._feed, args=(events, least), daemon=True)
        feeder.start()
        left = list(faults)
        self.chance.shuffle(left)
        while self._done < least or not self._fed.is_set():
            kind, host = left.pop() if left else self.chance.choice(faults), self.chance.choice(self.hosts)
            self.told.append(f"{time.strftime('%H:%M:%S')} {kind} {host.name[-1]}")
            getattr(self, f"_{kind}")(host)
            self.faults[kind] += 1
            self._done += 1
            self.share(kind)
            time.sleep(self.chance.uniform(0.0, 0.3))
        feeder.join()
        self.settle()

    def share(self, after: str) -> None:
        """Until each has a share of the partitions, and nobody another's."""

        deadline = time.monotonic() + 2 * LONG
        while not self._is_shared():
            assert time.monotonic() < deadline, f"not shared, after {after}: {self._said()}"
            time.sleep(0.02)
        for absence in self.absences:
            absence.settled = min(absence.settled, time.monotonic_ns())

    def _is_shared(self) -> bool:
        owned = [host.owned() for host in self.hosts]
        return all(owned) and sum(map(len, owned)) == PARTITIONS == len(set.union(*owned))

    def _said(self) -> str:
        return "\n".join([*self.told, *(f"{host.source()} {host.daemons.tail()}" for host in self.hosts)])

    def settle(self) -> None:
        """Until all that was produced is handled and committed."""
        before, deadline = -1, 0.0
        while not self.group.has_committed_all():
            if (now := self._recorded()) != before:
                before, deadline = now, time.monotonic() + LONG
            assert time.monotonic() < deadline, f"not all is committed: {self.group.said}\n{self._said()}"
            time.sleep(0.2)

    def judge(self, duplicates: int | None) -> None:
        """duplicates: how many there may be; None: any number."""
        handled = [host.handled() for host in self.hosts]
        every = np.concatenate(handled)
        logs = Logs(self.offered, self.offered, np.empty(0, EVENT), every)
        self.violations += check_apart(logs, len(every) if duplicates is None else duplicates)
        self.repeated = len(every) - len(self.offered)
        awake = every.copy()
        self.late = self.stale = 0
        for absence in self.absences:
            mine = absence.host.number
            in_hand = (awake["start"] < absence.until) & (awake["end"] > absence.since)
            in_hand &= awake["shard"] // 1000 == mine
            self.late += int(np.count_nonzero(in_hand & (awake["end"] > absence.until)))
            awake = awake[~in_hand]
            self.violations += self._judge_absence(absence, handled[mine], handled[1 - mine])
        self.violations += one_owner(Logs(handled=awake))

    def _judge_absence(self, absence: Absence, mine: np.ndarray, others: np.ndarray) -> list[str]:
        """Of what was in hand it may begin late. What it takes after that is nothing that the other one has had."""
        begun = mine[(mine["start"] > absence.since) & (mine["start"] < absence.settled)]
        old = begun[is_old(begun, others)]
        self.stale += len(old)
        batches = Counter(shard for shard, _ in {(int(row["shard"]), int(row["start"])) for row in old})
        return [
            f"shard {shard} of {absence.host.name} began {count} batches of what another host had handled"
            for shard, count in batches.items()
            if count > 1
        ]

    def stop(self) -> None:
        for host in self.hosts:
            with host.client() as client:
                client.stop()
            self._expect_good_end(host)
        if left := [entry for host in self.hosts for entry in segments_of(host.name)]:
            self.violations.append(f"left behind: {left}")

    def _expect_good_end(self, host: Host) -> None:
        if (code := host.daemons.all[-1].wait(LONG)) != 0:
            self.violations.append(f"{host.name} ended with {code}: {host.daemons.tail()}")

    # ---- events ------------------------------------------------------------------------------------------------------

    def _recorded(self) -> int:
        return sum(host.recorded() for host in self.hosts)

    def _feed(self, events: int, least: int) -> None:
        chance, began, fed = random.Random(self.chance.random()), time.monotonic(), 0
        while fed < events:
            count = min(BLOCK, events - fed)
            keys = [chance.randrange(KEYS) for _ in range(count)]
            rows = np.zeros(count, EVENT)
            for i, key in enumerate(keys):
                rows[i] = 1, key, self.numbers[key]
                self.numbers[key] += 1
            self._offered.append(rows)
            self.group.produce([(key, payload(1, key, int(number))) for key, number in zip(keys, rows["number"])])
            fed += count
            time.sleep(max(0.0, began + fed / self._pace - time.monotonic()))
            while sum(self.numbers) - self._recorded() > MOST_BEHIND or fed * (least + 1) > events * (self._done + 1):
                time.sleep(0.02)
                began = time.monotonic() - fed / self._pace
        self._fed.set()

    # ---- faults ------------------------------------------------------------------------------------------------------

    def _kill_source(self, host: Host) -> None:
        source = host.source()
        _kill(source["pid"])
        wait_until(
            lambda: host.owned() and host.source()["incarnation"] > source["incarnation"], "the source is back", LONG
        )

    def _kill_supervisor(self, host: Host) -> None:
        host.daemons.all[-1].kill()
        host.daemons.all[-1].wait()
        host.start()

    def _kill_worker(self, host: Host) -> None:
        with host.client() as client:
            shard = self.chance.choice([each for each in client.status()["shards"] if each["pid"]])
        _kill(shard["pid"])

    def _leave(self, host: Host) -> None:
        """And join: at once, or when the other one has it all."""
        host.daemons.all[-1].terminate()
        self._expect_good_end(host)
        if self.chance.random() < 0.5:
            self._await_taken_over(host)
        host.start()

    def _scale(self, host: Host) -> None:
        with contextlib.suppress(shardmem.ShardmemError), host.client() as client:
            client.command("scale", shards=self.chance.randint(1, 4))

    def _reload(self, host: Host) -> None:
        with contextlib.suppress(shardmem.ShardmemError), host.client() as client:
            client.command("reload")

    def _kill_host(self, host: Host) -> None:
        """With its shared memory."""
        host.signal(signal.SIGKILL)
        for process in host.daemons.all:
            process.wait()
        host.forget()
        host.start()

    def _freeze(self, host: Host) -> None:
        """Past its session, so that the other one takes over."""
        since = self._stop_outside_of_a_transaction(host)
        self._await_taken_over(host)
        time.sleep(0.5)  # in which the other one handles some of it
        self.absences.append(Absence(host, since, time.monotonic_ns()))
        host.signal(signal.SIGCONT)

    def _cut(self, host: Host) -> None:
        """Off the broker, past its session."""
        self.group.cut(host.name, True)
        since = time.monotonic_ns()
        try:
            self._await_taken_over(host)
            time.sleep(0.5)
        finally:
            self.group.cut(host.name, False)
        self.absences.append(Absence(host, since, since))

    def _kill_broker(self, host: Host) -> None:
        self.group.kill_a_broker(self.chance)

    def _await_taken_over(self, host: Host) -> None:
        other = next(each for each in self.hosts if each is not host)
        deadline = time.monotonic() + LONG
        while len(other.owned()) < PARTITIONS:
            assert time.monotonic() < deadline, f"{other.name} has not all partitions: {self._said()}"
            time.sleep(0.02)

    def _stop_outside_of_a_transaction(self, host: Host) -> int:
        """No database is stopped by a client that is."""
        while True:
            since = time.monotonic_ns()
            host.signal(signal.SIGSTOP)
            if not any(map(_is_locked, self.group.files)):
                return since
            host.signal(signal.SIGCONT)
            time.sleep(0.01)


def is_old(rows: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Which of these began when one of the others had been handled of the same key that is the same, or newer."""
    found = np.zeros(len(rows), bool)
    for key in np.unique(rows["key"]):
        of_key, here = others[others["key"] == key], np.flatnonzero(rows["key"] == key)
        of_key = of_key[np.argsort(of_key["end"], kind="stable")]
        newest = np.concatenate([[-1], np.maximum.accumulate(of_key["number"].astype("i8"))])
        before = np.searchsorted(of_key["end"], rows["start"][here])
        found[here] = rows["number"][here].astype("i8") <= newest[before]
    return found


def _is_locked(path: str) -> bool:
    probe = sqlite3.connect(path, timeout=0.3, isolation_level=None)
    try:
        probe.execute("begin immediate")
        probe.execute("rollback")
    except sqlite3.OperationalError:
        return True
    finally:
        probe.close()
    return False


def _kill(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
