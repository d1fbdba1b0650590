"""Two hosts: engines of two names in one group of a FakeBroker; faults that have to repeat events, and others."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import sqlite3
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

import shardmem
from shardmem.memory.segment import path_of
from shardmem.testing.broker import FakeBroker
from support.chaos import Daemons
from support.checker import EVENT, Logs, check, one_owner
from support.recorder import payload
from support.rig import Rig, segments_of, wait_until

PARTITIONS, KEYS, BLOCK = 8, 64, 200
SESSION = 2.0
LONG = 90.0  # seconds for whatever has to come about on a busy machine
PLANNED = ("kill_source", "kill_supervisor", "leave", "scale", "reload")
UNPLANNED = ("freeze", "kill_host", "kill_worker", "kill_source", "leave", "scale")


class Host:
    """One engine, all of its processes, and what its handlers wrote down."""

    def __init__(self, directory: Path, name: str, broker: str, number: int) -> None:
        directory.mkdir()
        self.name, self.number, self.rig = name, number, Rig(directory)
        self.frozen: list[tuple[int, int]] = []  # from, to: CLOCK_MONOTONIC
        source = (
            f"fake:{broker}?topics=t&group=hosts&session={SESSION}s&instance={name}&commit_interval=200ms"
            "&drain_timeout=60s"
        )
        self.daemons = Daemons(self.rig, name, "support.recorder:Recorder", source=source, retry_max_wait=1)

    def start(self) -> None:
        self.daemons.start()
        self.daemons.ready(LONG)

    @property
    def is_running(self) -> bool:
        return self.daemons.all[-1].poll() is None

    def client(self) -> shardmem.Client:
        return shardmem.Client(self.name)

    def source(self) -> dict[str, Any] | None:
        with contextlib.suppress(shardmem.ShardmemError), self.client() as client:
            return next(iter(client.status()["sources"]), None)  # type: ignore[return-value]
        return None

    def is_well(self) -> bool:
        source = self.source()
        return source is not None and source["alive"] and source["state"] == "running" and bool(source["partitions"])

    def signal(self, number: int) -> None:
        """To all of its processes: those of a supervisor that is gone are of its session still."""
        for process in self.daemons.all:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, number)

    def handled(self) -> np.ndarray:
        rows = self.rig.logs().handled
        rows["shard"] += 1000 * self.number
        return rows

    def handled_awake(self) -> np.ndarray:
        """Without what was in hand when it was frozen: that may be finished late."""
        rows = self.handled()
        for since, until in self.frozen:
            rows = rows[(rows["end"] < since) | (rows["start"] > until)]
        return rows


class Hosts:
    """One run. violations: sentences; none is a pass."""

    def __init__(self, directory: Path, name: str, seed: int, events: int, pace: float) -> None:
        """pace: events of a second."""
        self.path = str(directory / "broker")
        self.broker = FakeBroker(self.path)
        self.broker.create_topic("t", PARTITIONS)
        self.hosts = [Host(directory / each, f"{name}-{each}", self.path, i) for i, each in enumerate("ab")]
        self.chance, self._pace, self._events = random.Random(seed), pace, events
        self.violations: list[str] = []
        self.faults: Counter[str] = Counter()
        self.offered = np.empty(0, EVENT)
        self._numbers = [0] * KEYS
        self._fed = threading.Event()

    @contextlib.contextmanager
    def running(self) -> Iterator[Hosts]:
        with contextlib.ExitStack() as stack:
            for host in self.hosts:
                stack.enter_context(host.daemons)
                stack.callback(host.signal, signal.SIGCONT)
            for host in self.hosts:
                host.start()
            wait_until(lambda: all(host.is_well() for host in self.hosts), "both have partitions", LONG)
            yield self

    # ---- the run -----------------------------------------------------------------------------------------------------

    def phase(self, faults: tuple[str, ...], events: int, least: int) -> None:
        """So many events, and faults as long as they come; at least so many faults, each kind once at first."""
        self._fed.clear()
        feeder = threading.Thread(target=self._feed, args=(events,))
        feeder.start()
        left = list(faults)
        self.chance.shuffle(left)
        done = 0
        while done < least or not self._fed.is_set():
            kind = left.pop() if left else self.chance.choice(faults)
            host = self.chance.choice(self.hosts)
            wait_until(lambda: all(each.is_well() for each in self.hosts), f"both are well before {kind}", LONG)
            getattr(self, f"_{kind}")(host)
            self.faults[kind] += 1
            done += 1
            time.sleep(self.chance.uniform(0.0, 0.3))
        feeder.join()
        self.settle()

    def settle(self) -> None:
        """Until all that was produced is handled and committed."""
        names = [f"t/{number}" for number in range(PARTITIONS)]
        ends = {name: self.broker.end(name) for name in names}

        def is_done() -> bool:
            places = self.broker.committed("hosts", names)
            return all(ends[name] == (0 if (at := places[name]) is None else at.offset) for name in names)

        wait_until(is_done, "all is committed", 2 * LONG)

    def judge(self, duplicates: int | None) -> None:
        """duplicates: how many there may be; None: any number."""
        handled = np.concatenate([host.handled() for host in self.hosts])
        logs = Logs(self.offered, self.offered, np.empty(0, EVENT), handled)
        found = check(logs, len(handled) if duplicates is None else duplicates)
        awake = Logs(handled=np.concatenate([host.handled_awake() for host in self.hosts]))
        self.violations += [each for each in found if not each.startswith("owners")] + one_owner(awake)
        self.repeated = len(handled) - len(self.offered)

    def stop(self) -> None:
        for host in self.hosts:
            with host.client() as client:
                client.stop()
            if (code := host.daemons.all[-1].wait(LONG)) != 0:
                self.violations.append(f"{host.name} ended with {code}: {host.daemons.tail()}")
        if left := [entry for host in self.hosts for entry in segments_of(host.name)]:
            self.violations.append(f"left behind: {left}")

    def _feed(self, events: int) -> None:
        broker, chance, began, fed = FakeBroker(self.path), random.Random(self.chance.random()), time.monotonic(), 0
        while fed < events:
            count = min(BLOCK, events - fed)
            keys = [chance.randrange(KEYS) for _ in range(count)]
            rows = np.zeros(count, EVENT)
            for i, key in enumerate(keys):
                rows[i] = 1, key, self._numbers[key]
                self._numbers[key] += 1
            self.offered = np.concatenate([self.offered, rows])
            broker.produce("t", [(key, payload(1, key, int(number))) for key, number in zip(keys, rows["number"])])
            fed += count
            time.sleep(max(0.0, began + fed / self._pace - time.monotonic()))
        broker.close()
        self._fed.set()

    # ---- faults ------------------------------------------------------------------------------------------------------

    def _kill_source(self, host: Host) -> None:
        source = host.source()
        assert source is not None
        _kill(source["pid"])
        wait_until(
            lambda: host.is_well() and (host.source() or source)["incarnation"] > source["incarnation"],
            "the source is back",
            LONG,
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
        host.daemons.all[-1].terminate()
        if (code := host.daemons.all[-1].wait(LONG)) != 0:
            self.violations.append(f"{host.name} ended with {code}: {host.daemons.tail()}")
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
        for entry in segments_of(host.name):
            os.unlink(path_of(entry))
        host.start()

    def _freeze(self, host: Host) -> None:
        """Past its session, so that the other one takes over."""
        since = self._stop_outside_of_a_transaction(host)
        other = next(each for each in self.hosts if each is not host)
        mine = {name for name, owner in self.broker.owners("hosts").items() if owner and owner.startswith(host.name)}
        wait_until(
            lambda: all((owner or "").startswith(other.name) for owner in self.broker.owners("hosts").values()),
            f"{other.name} has {len(mine)} partitions more",
            LONG,
        )
        time.sleep(0.5)  # in which the other one handles some of it
        host.frozen.append((since, time.monotonic_ns()))
        host.signal(signal.SIGCONT)

    def _stop_outside_of_a_transaction(self, host: Host) -> int:
        """No broker is stopped by a client that is."""
        while True:
            since = time.monotonic_ns()
            host.signal(signal.SIGSTOP)
            probe = sqlite3.connect(self.path, timeout=0.3, isolation_level=None)
            try:
                probe.execute("begin immediate")
                probe.execute("rollback")
                return since
            except sqlite3.OperationalError:
                host.signal(signal.SIGCONT)
                time.sleep(0.01)
            finally:
                probe.close()


def _kill(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
