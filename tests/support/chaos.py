"""Chaos: an engine under load, random commands, random deaths of whatever runs; and figures and violations of it."""

from __future__ import annotations

import contextlib
import json
import os
import random
import select
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

import shardmem
from shardmem.memory.engine_segment import ControlSegment
from shardmem.runtime.state_reader import StateReader
from support.checker import Logs, accounting, check
from support.programs import sends
from support.rig import PATIENCE, TESTS, Program, Rig, drained, segments_of, wait_until
from support.state import kept

ROWS = 64  # of a batch: the most that one kill may repeat
SLOTS = 64
MOST_SHARDS = 4
SETTINGS = {
    "slots": SLOTS,
    "batch_rows": ROWS,
    "min_shards": 2,
    "max_shards": MOST_SHARDS,
    "lane_bytes": 1 << 14,
    "max_producers": 8,
    "checkpoint_interval": 0.05,
    "on_error": "stop",
    "max_attempts": 1000,  # a kill at random is not the fault of the event that was in hand
    "max_restarts": 1_000_000,
    "retry_max_wait": 1,
}


class Daemons:
    """`shardmem run` with these settings, again and again; what all of them say is in one file."""

    def __init__(self, rig: Rig, name: str, handler: str, prefix: Sequence[str] = (), **settings: Any) -> None:
        """handler: or a file of settings. prefix: of the command."""
        self.rig, self.name, self.said = rig, name, rig.directory / "supervisors"
        flags = [
            part
            for key, value in {**SETTINGS, "state_dir": rig.directory / "state", **settings}.items()
            for part in ("--" + key.replace("_", "-"), str(value))
        ]
        self._command = [
            *prefix,
            sys.executable,
            "-m",
            "shardmem",
            "run",
            handler,
            "--name",
            name,
            "--json",
            "--no-auto-scale",
            *flags,
        ]
        self.all: list[subprocess.Popen] = []
        self._ready: list[subprocess.Popen] = []

    def start(self, **environment: str) -> subprocess.Popen:
        with open(self.said, "ab") as said:
            process = subprocess.Popen(
                self._command,
                cwd=TESTS,
                env={**self.rig.environment, **environment},
                stderr=said,
                stdout=subprocess.PIPE,
                start_new_session=True,
            )
        self.all.append(process)
        return process

    def ready(self, timeout: float = PATIENCE) -> None:
        """Until the last one has said so."""
        assert self.is_ready(timeout), f"the supervisor did not get ready (code {self.all[-1].poll()}): {self.tail()}"

    def is_ready(self, timeout: float = 0.0) -> bool:
        process = self.all[-1]
        assert process.stdout is not None
        if process not in self._ready and select.select([process.stdout], [], [], timeout)[0]:
            if json.loads(process.stdout.readline() or "{}").get("event") == "ready":
                self._ready.append(process)
        return process in self._ready

    def tail(self) -> str:
        return "\n".join(self.said.read_text(errors="replace").splitlines()[-15:])

    def __enter__(self) -> Daemons:
        return self

    def __exit__(self, *_: object) -> None:
        for process in self.all:  # and its workers: they are of its session, and may have outlived it
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.communicate()


class Chaos:
    """One run. After `run`: violations (sentences; none is a pass) and figures."""

    def __init__(self, rig: Rig, name: str, handler: str, *, stateful: bool, seed: int, seconds: float) -> None:
        self.rig, self.name, self.stateful, self.seed, self.seconds = rig, name, stateful, seed, seconds
        self.daemons = Daemons(rig, name, handler)
        self.violations: list[str] = []
        self.kills: dict[str, int] = {"worker": 0, "producer": 0, "supervisor": 0, "stopped": 0, "at once": 0}
        self.kills["outages"] = 0
        self.outages: list[tuple[int, int]] = []  # of the sink: from, to
        self._back_at: float | None = None
        self.lives: list[tuple[int, int, int, int]] = []  # killed: when, shard, incarnation, generation
        self.commands: dict[str, int] = {}
        self._producers: dict[int, Program] = {}
        self._number = 0
        self._continue: list[tuple[float, int, int]] = []  # at, pidfd, pid
        self._restart_at: float | None = None
        self._booting: set[int] = set()  # shards whose worker was killed before it was ready; see _worker
        self._generations: list[tuple[int, int, int]] = []
        self._unled: list[tuple[int, int]] = []
        self._over = threading.Event()

    # ---- the run -----------------------------------------------------------------------------------------------------

    def run(self) -> None:
        with self.daemons, contextlib.ExitStack() as stack:
            self.daemons.start()
            self.daemons.ready()
            self.client = stack.enter_context(shardmem.Client(self.name))
            self.control = ControlSegment.attach(self.name)
            stack.callback(self.control.close)
            stack.callback(lambda: [program.__exit__() for program in self._producers.values()])
            for _ in range(3):
                self._new_producer()
            threads = [threading.Thread(target=self._guarded, args=(work,)) for work in (self._command, self._watch)]
            for thread in threads:
                thread.start()
            try:
                self._kill()
            finally:
                self._over.set()
                self._continue_all(float("inf"))
                self._bring_sink_back(float("inf"))
                for thread in threads:
                    thread.join(2 * PATIENCE)
            self._settle()
        self._judge()

    def _guarded(self, work: Callable[[], None]) -> None:
        try:
            work()
        except Exception as error:
            self.violations.append(f"{work.__name__} of the test failed: {type(error).__name__}: {error}")

    def _new_producer(self) -> None:
        self._number += 1
        self._producers[self._number] = Program(
            sends.push_at_a_pace, self.rig, engine=self.name, producer=self._number, pause=0.02, patience=2 * PATIENCE
        )

    def _kill(self) -> None:
        chance, until = random.Random(f"{self.seed} kills"), time.monotonic() + self.seconds
        while (now := time.monotonic()) < until and not self.violations:
            self._continue_all(now)
            self._replace(now, chance)
            kinds = {"worker": 50, "producer": 22, "supervisor": 4, "stop": 16, "several": 8, "outage": 3}
            kind = chance.choices(list(kinds), list(kinds.values()))[0]
            if kind == "outage":
                self._take_sink_away(now + chance.uniform(0.2, 4.0))
            elif kind == "stop":
                victim = chance.choice([self._worker, self._worker, self._producer, self._supervisor])
                self._one(chance, victim, signal.SIGSTOP)
            elif kind == "several":
                victims = chance.sample(
                    [*3 * [self._worker], *2 * [self._producer], self._supervisor], chance.randint(2, 4)
                )
                self.kills["at once"] += sum([self._one(chance, victim, signal.SIGKILL) for victim in victims]) > 1
            else:
                self._one(chance, getattr(self, f"_{kind}"), signal.SIGKILL)
            pause = chance.uniform(0.05, 0.5)
            while (left := now + pause - time.monotonic()) > 0 and not self._over.wait(min(left, 0.02)):
                self._continue_all(time.monotonic())
                self._bring_sink_back(time.monotonic())
                self._replace(time.monotonic(), chance)

    def _take_sink_away(self, until: float) -> None:
        if self._back_at is None:
            self._back_at = until
            self.kills["outages"] += 1
            self.outages.append((time.monotonic_ns(), 1 << 63))
            self.rig.tell("away", "yes")

    def _bring_sink_back(self, now: float) -> None:
        if self._back_at is not None and now >= self._back_at:
            self._back_at = None
            (self.rig.directory / "away").unlink()
            self.outages[-1] = self.outages[-1][0], time.monotonic_ns()

    def _one(self, chance: random.Random, who: Callable[..., tuple[str, int] | None], number: int) -> bool:
        """Through a pidfd that was opened while it lived: numbers are given again."""
        if (found := who(chance, number)) is None:
            return False
        kind, pid = found
        try:
            pidfd = os.pidfd_open(pid)
        except ProcessLookupError:
            return False
        if number == signal.SIGSTOP:
            self._continue.append((time.monotonic() + chance.uniform(0.05, 1.0), pidfd, pid))
            self.kills["stopped"] += 1
        else:
            self.kills[kind] += 1
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(pidfd, number)
        if number == signal.SIGKILL:
            os.close(pidfd)
        return True

    def _worker(self, chance: random.Random, number: int) -> tuple[str, int] | None:
        """A shard is given up, as it should be, when three lives in a row end before they are ready. So one that boots
        is killed only once in a row."""
        control, ready, booting = self.control, [], []
        for shard in control.known_shards():
            if control.worker_alive(shard):
                (ready if control.worker_phase(shard) == "ready" else booting).append(shard)
        self._booting -= set(ready)
        shards = ready * 3 + [shard for shard in booting if shard not in self._booting]
        if not shards:
            return None
        shard = chance.choice(shards)
        view = control.view_shard(shard)
        if number == signal.SIGKILL:
            if shard in booting:
                self._booting.add(shard)
            self.lives.append((time.monotonic_ns(), shard, view.incarnation, view.generation))
        return "worker", view.pid

    def _producer(self, chance: random.Random, number: int) -> tuple[str, int] | None:
        key = chance.choice(list(self._producers))
        return "producer", self._producers[key].pid

    def _supervisor(self, chance: random.Random, number: int) -> tuple[str, int] | None:
        """One that boots is killed too, but seldom: without a supervisor for long, little would happen to an engine."""
        process = self.daemons.all[-1]
        if process.poll() is None and (self.daemons.is_ready() or chance.random() < 0.2):
            return "supervisor", process.pid
        return None

    def _continue_all(self, now: float) -> None:
        for entry in [entry for entry in self._continue if entry[0] <= now]:
            self._continue.remove(entry)
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(entry[1], signal.SIGCONT)
            os.close(entry[1])

    def _replace(self, now: float, chance: random.Random) -> None:
        for key, program in list(self._producers.items()):
            if (code := program.process.poll()) is not None:
                if code != -signal.SIGKILL:
                    said = program.process.stderr.read().decode()
                    self.violations.append(f"producer {key} ended with code {code}: {said}")
                program.__exit__()
                del self._producers[key]
                self._new_producer()
        code = self.daemons.all[-1].poll()
        if code is None:
            return
        if code != -signal.SIGKILL:
            self.violations.append(f"the supervisor ended with code {code}: {self.daemons.tail()}")
        elif self._restart_at is None:
            self._restart_at = now + chance.random()
        elif now >= self._restart_at:
            self._restart_at = None
            self.daemons.start()

    def _command(self) -> None:
        chance = random.Random(f"{self.seed} commands")
        while not self._over.wait(chance.expovariate(5)):
            if not self.control.supervisor_alive() and chance.random() < 0.9:
                continue
            active = [shard for shard in self.control.known_shards() if self.control.shard_state(shard) == "active"]
            one, slots = chance.choice(active or [0]), chance.sample(range(SLOTS), chance.randint(1, SLOTS // 2))
            kind, wanted = chance.choice(
                [
                    ("scale", {"shards": chance.randint(1, MOST_SHARDS)}),
                    ("rebalance", {}),
                    ("reload", {}),
                    *2 * [("move", {"slots": slots, "to": one})],
                    ("drain", {"shard": one}),
                ]
            )
            try:
                self.client.command(kind, **wanted)
                came = kind
            except shardmem.NotRunning:
                came = f"{kind}: no supervisor"
            except (shardmem.ConfigError, shardmem.ShardmemError) as error:
                came = f"{kind}: {type(error).__name__}: {''.join('n' if c.isdigit() else c for c in str(error))[:60]}"
            self.commands[came] = self.commands.get(came, 0) + 1

    def _watch(self) -> None:
        """The books are right at every moment; and what has to be known of a kill to say how long its recovery took."""
        led = time.monotonic_ns()
        while not self._over.wait(0.02):
            document = self.client.status()
            self.violations += accounting(document, removed=True)
            if failed := [shard for shard in document["shards"] if shard["state"] == "failed"]:
                self.violations += [f"shard {shard['id']} failed: {shard['error']}" for shard in failed]
            now = time.monotonic_ns()
            if document["supervisor"]["alive"]:
                led = now
            else:
                self._unled.append((led, now))
            for shard in document["shards"]:
                generation = self.control.view_shard(shard["id"]).generation
                if not any(each[1:] == (shard["id"], generation) for each in self._generations):
                    self._generations.append((now, shard["id"], generation))

    def _settle(self) -> None:
        """After the last fault everything accepted is handled, whatever was begun is finished, and all ends well."""
        if self.daemons.all[-1].poll() is not None:
            self.daemons.start()
        try:
            self.daemons.ready()
            for key, program in self._producers.items():
                if program.process.poll() is None:
                    self._end(key, program)
            document = drained(self.client)
            wait_until(lambda: not self.client.status()["handoffs"], "handoffs are finished")
            wait_until(
                lambda: {shard["state"] for shard in self.client.status()["shards"]} == {"active"},
                "all shards are active",
            )
            self.violations += accounting(document, drained=True, removed=True)
            self.accounts = self.client.status()["accounting"]
            self.daemons.all[-1].terminate()
            code = self.daemons.all[-1].wait(PATIENCE)
            if code != 0:
                self.violations.append(f"the stop ended with code {code}: {self.daemons.tail()}")
            if left := segments_of(self.name):
                self.violations.append(f"left behind: {left}")
        except Exception as error:
            with contextlib.suppress(Exception):
                (self.rig.directory / "status.json").write_text(json.dumps(self.client.status(), indent=1))
            self.violations.append(f"after the last fault: {type(error).__name__}: {error}\n{self.daemons.tail()}")

    def _end(self, key: int, program: Program) -> None:
        program.say(stop=True)
        while "pushed" not in program.hear(3 * PATIENCE):
            pass
        if (code := program.end()) != 0:
            self.violations.append(f"producer {key} ended with code {code}")

    # ---- the judgement -----------------------------------------------------------------------------------------------

    def _judge(self) -> None:
        logs = self.rig.logs()
        repeats, foreign = repeated(logs.handled, {life[1:3] for life in self.lives})
        found = check(logs, duplicates=len(logs.handled))
        if not self.stateful:
            found += foreign
        exact = None
        if self.stateful:
            path = self.rig.directory / "state" / f"{self.name}.state"
            wrong = inexact(logs, path) + unequal_by_key(path)
            exact = not wrong
            found += wrong
        self.violations += found
        all_of_them, led = self.recoveries(logs.handled)
        self.figures = {
            "seed": self.seed,
            "seconds": self.seconds,
            "handler": "stateful" if self.stateful else "stateless",
            "events": len(logs.accepted),
            "handlings": len(logs.handled),
            "producers": self._number,
            "supervisors": len(self.daemons.all),
            "kills": self.kills,
            "lost": sum("never handled" in text for text in found),
            "duplicates": repeats,
            "worker_kills": len(self.lives),
            "recovery_ms": spread(all_of_them),
            "recovery_led_ms": spread(led),
            "outage_s": round(sum(to - since for since, to in self.outages) / 1e9, 1),
            "resumed_ms": spread(self.resumptions(logs.handled)),
            "state_exact": exact,
            "commands": self.commands,
            "violations": len(self.violations),
        }
        (self.rig.directory / "figures.json").write_text(json.dumps(self.figures, indent=1))

    def recoveries(self, handled: np.ndarray) -> tuple[list[float], list[float]]:
        """Milliseconds from each kill of a worker to the first event that its shard handled again; and the same without
        those during which there was no supervisor, or no sink. A shard that was removed instead does not count."""
        everything, led = [], []
        for when, shard, incarnation, generation in self.lives:
            later = handled[
                (handled["shard"] == shard) & (handled["incarnation"] > incarnation) & (handled["end"] > when)
            ]
            if not len(later):
                continue
            back = int(later["end"].min())
            if any(at < back and other == shard and new > generation for at, other, new in self._generations):
                continue
            everything.append((back - when) / 1e6)
            if not any(began < back and when < ended for began, ended in [*self._unled, *self.outages]):
                led.append(everything[-1])
        return everything, led

    def resumptions(self, handled: np.ndarray) -> list[float]:
        """Milliseconds from the return of the sink to the first event that was handled."""
        ends = np.sort(handled["end"])
        first = [ends[np.searchsorted(ends, back) :][:1] for _, back in self.outages]
        return [float(end[0] - back) / 1e6 for end, (_, back) in zip(first, self.outages) if len(end)]


def repeated(handled: np.ndarray, killed: set[tuple[int, int]]) -> tuple[int, list[str]]:
    """How many handlings were not the last of their event, and those of them that no kill explains: it may repeat the
    last batch of the life that it ended, and nothing else."""
    last: dict[tuple[int, int], int] = {}
    rows = handled[np.argsort(handled["start"], kind="stable")]
    lives = list(zip(rows["shard"].tolist(), rows["incarnation"].tolist()))
    last.update(zip(lives, rows["start"].tolist()))
    seen: set[tuple[int, int, int]] = set()
    repeats, foreign = 0, []
    for row, life in zip(reversed(rows.tolist()), reversed(lives)):
        event = row[:3]
        if event not in seen:
            seen.add(event)
            continue
        repeats += 1
        if life not in killed or row[7] != last[life]:
            foreign.append(
                f"duplicates: event {event[2]} of producer {event[0]}, key {event[1]}, was handled again after "
                f"shard {life[0]}, incarnation {life[1]}, had handled it, in a batch that no kill ended"
            )
    return repeats, foreign[:5]


def inexact(logs: Logs, path: Path) -> list[str]:
    """The counts in the state files of handlers.counting.Counting: of each producer and key at least what was accepted,
    and at most what was offered."""
    counts: dict[str, int] = {}
    with contextlib.closing(StateReader(str(path))) as reader:
        for value in reader.snapshots().values():
            counts.update(json.loads(value))

    def sums(rows: np.ndarray) -> dict[str, int]:
        pairs, found = np.unique(rows[["producer", "key"]], return_counts=True)
        return {f"{pair['producer']}/{pair['key']}": int(count) for pair, count in zip(pairs, found)}

    accepted, offered = sums(logs.accepted), sums(logs.offered)
    return [
        f"state: producer/key {name}: counted {counts.get(name, 0)}, accepted {accepted.get(name, 0)}, offered "
        f"{offered.get(name, 0)}"
        for name in sorted({*counts, *offered})
        if not accepted.get(name, 0) <= counts.get(name, 0) <= offered.get(name, 0)
    ][:5]


def unequal_by_key(path: Path) -> list[str]:
    """The counts of handlers.counting.CountingByKey: what has fired and what is still to fire, what has expired and
    what has not, are what was counted, for each key."""
    names = ("counted", "fired", "recent", "expired")
    counted, fired, recent, expired = (kept(str(path), name) for name in names)
    with contextlib.closing(StateReader(str(path))) as reader:
        pending = Counter(key for _, name, key, _ in reader.timers() if name.startswith(":"))
    return [
        f"state by key: key {key}: counted {count}, fired {fired.get(key, 0)} and to fire {pending[key]}, expired "
        f"{expired.get(key, 0)} and to expire {recent.get(key, 0)}"
        for key, count in counted.items()
        if not count == fired.get(key, 0) + pending[key] == expired.get(key, 0) + recent.get(key, 0)
    ][:5]


def spread(values: list[float]) -> dict[str, float | int] | None:
    if not values:
        return None
    p50, p99 = np.percentile(values, [50, 99])
    return {"count": len(values), "p50": round(p50), "p99": round(p99), "max": round(max(values))}
