"""One document about an engine, read from shared memory. Reading it changes nothing and needs nobody alive."""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
import time
from collections import deque
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote

import numpy as np

from shardmem.config import quarantine_file
from shardmem.errors import NotRunning
from shardmem.memory.engine_segment import ControlSegment
from shardmem.memory.inbox_segment import InboxSegment, LaneView
from shardmem.memory.native import PHASES, SHARD_STATES
from shardmem.memory.words import FLOORS_NS, batch_sizes_of, latency_of, name_of, now_ns, refused_by_reason
from shardmem.policy import Facts, Limits, condition_of
from shardmem.status.findings import Lately, findings

RATES_OVER = 0.2  # seconds at least, if a reading is that old: whoever reads at short intervals would see noise
LATELY = 10.0  # seconds over which refusals are news
COUNTED = 1.0  # seconds for which a count of the quarantine file stands


def quantile_us(counts: np.ndarray, share: float) -> float | None:
    """A quantile of a latency histogram in microseconds, at most a quarter too low; None when nothing was counted."""
    total = int(counts.sum())
    return floor_ns(counts, max(1, share * total)) / 1000 if total else None


def quantile_rows(sizes: np.ndarray, share: float) -> int | None:
    """A quantile of a histogram of batch sizes, at most twice too high; None when nothing was counted."""
    sums = np.cumsum(sizes)
    return 1 << min(int(np.searchsorted(sums, max(1, share * int(sums[-1])))), len(sums) - 1) if sums[-1] else None


@dataclass(frozen=True)
class Histograms:
    """Of one shard, what is too long for the document. latency: events from push to handled, in the buckets whose floors are
    FLOORS_NS; they waited so many seconds together. batches: of at most 1, 2, 4, 8, ... events, which are so many together."""

    latency: np.ndarray
    waited_s: float
    batches: np.ndarray
    events: int


def floor_ns(counts: np.ndarray, rank: float) -> int:
    """Where the bucket begins that holds the event of this rank. The last one, if damaged counts have no such event."""
    return FLOORS_NS[min(int(np.searchsorted(np.cumsum(counts), rank)), len(FLOORS_NS) - 1)]


def fullest(lanes: list[LaneView], lane_bytes: int) -> float:
    """How full the fullest lane is, 0 to 1; lanes that are read no more stay as full as they are, and need no more workers."""
    return min(1.0, max((max(0, lane.tail - lane.head) for lane in lanes if not lane.broken), default=0) / lane_bytes)


@dataclass
class Reading:
    """What rates are differences of."""

    at: float
    shards: dict[int, dict[str, Any]] = field(default_factory=dict)
    sequences: dict[int, int] = field(default_factory=dict)
    blocked_ns: dict[int, int] = field(default_factory=dict)


class Observer:
    """Reads an engine again and again; keeps its inboxes mapped and remembers earlier readings for rates."""

    def __init__(self, control: ControlSegment) -> None:
        self.control = control
        self._inboxes: dict[tuple[int, int], InboxSegment] = {}
        self._readings: deque[Reading] = deque()
        self._losses: deque[tuple[float, dict[str, int], int]] = deque()
        self._held: tuple[float, Any, int | None] = (-COUNTED, None, None)
        self._usage: Any = None

    def close(self) -> None:
        for inbox in self._inboxes.values():
            inbox.close()
        self._inboxes = {}

    def inbox(self, shard: int, generation: int) -> InboxSegment | None:
        """The mapped inbox, or None when it is gone."""
        found = self._inboxes.get((shard, generation))
        if found is None:
            try:
                found = self._inboxes[shard, generation] = self.control.open_inbox(shard, generation)
            except NotRunning:
                return None
        return found

    def forget(self, shard: int) -> None:
        """The shard's inbox has been removed."""
        for key in [key for key in self._inboxes if key[0] == shard]:
            self._inboxes.pop(key).close()

    def in_flight(self) -> dict[int, int]:
        """Accepted and not yet handled events of each shard, in lanes that its worker still reads."""
        found = {}
        for shard in self.control.known_shards():
            inbox = self.inbox(shard, self.control.view_shard(shard).generation)
            found[shard] = sum(lane.waiting for lane in inbox.lanes()) if inbox else 0
        return found

    def status(self) -> dict[str, Any]:
        """The document that `status()`, `shardmem status --json` and everything else shows."""
        control, view = self.control, self.control.view_engine()
        reading, last = self._next_reading()
        slot_owner, _ = control.slot_table()
        owned = np.bincount(slot_owner[slot_owner < control.room], minlength=control.room)
        shards, by_seat, recent = [], {}, np.zeros(len(FLOORS_NS), "u8")
        board, alive = self.board(), control.supervisor_alive()
        http = board.pop("http")
        lives, limits = board.pop("lives"), board.pop("limits")
        looks = [self._look(shard) for shard in range(control.room)]
        for shard, (shard_view, inbox) in enumerate(looks):
            if not shard_view.state:
                continue
            entry, lanes, latency = self._shard(
                shard, shard_view, inbox, int(owned[shard]), reading, last, lives.get(str(shard), {}), limits
            )
            shards.append(entry)
            recent += latency
            for lane in lanes:
                by_seat[lane.seat] = by_seat.get(lane.seat, 0) + lane.accepted
        producers, refused = [], {}
        for seat, seat_view in control.known_seats():
            reasons = refused_by_reason(seat_view)
            for reason, count in reasons.items():
                refused[reason] = refused.get(reason, 0) + count
            reading.sequences[seat] = seat_view.sequence
            reading.blocked_ns[seat] = seat_view.blocked_ns
            elapsed = max(reading.at - last.at, 1e-9)
            pushed = max(0, seat_view.sequence - last.sequences.get(seat, seat_view.sequence))
            blocked = max(0, seat_view.blocked_ns - last.blocked_ns.get(seat, seat_view.blocked_ns))
            producers.append(
                {
                    "seat": seat,
                    "pid": seat_view.pid,
                    "alive": control.seat_alive(seat),
                    "incarnation": seat_view.incarnation,
                    "accepted": by_seat.get(seat, 0),
                    "sequence": seat_view.sequence,
                    "rate": pushed / elapsed,
                    "blocked": min(1.0, blocked / 1e9 / elapsed),
                    "refused": reasons,
                    "blocked_s": seat_view.blocked_ns / 1e9,
                    "blocked_count": seat_view.blocked_count,
                }
            )
        serving = sum(
            shard["slots"]
            for shard in shards
            if shard["state"] in ("active", "draining") and shard["alive"] and shard["phase"] == "ready"
        )
        now = now_ns()
        accepted = sum(shard["accepted"] for shard in shards)
        shed = sum(shard["shed"] for shard in shards)
        accepted += sum(gone.retired_accepted for gone, _ in looks)
        shed += sum(gone.retired_shed for gone, _ in looks)
        document = {
            "engine": {
                "name": control.engine,
                "state": control.state,
                "slots": control.slots,
                "slots_unowned": control.slots - serving,
                "schema": control.schema.describe(),
                "lane_bytes": control.lane_bytes,
                "max_shards": control.max_shards,
                "max_producers": control.max_producers,
                "quarantine_file": quarantine_file(control.state_dir, control.engine) if control.state_dir else None,
                "quarantine_held": self._quarantine_held(reading.at),
                "http": http if alive else None,
            },
            "supervisor": {
                "pid": view.pid,
                "incarnation": view.incarnation,
                "alive": alive,
                "uptime_s": max(0.0, (now - view.started_ns) / 1e9) if view.started_ns else 0.0,
                "heartbeat_age_s": max(0, now - view.heartbeat_ns) / 1e9 if view.heartbeat_ns else None,
            },
            "shards": shards,
            "producers": producers,
            "handoffs": self.handoffs(),
            **board,
            "events": self.history()[0],
            "accounting": {
                "offered": accepted + sum(refused.values()),
                "accepted": accepted,
                "refused": refused,
                "handled": sum(shard["handled"] for shard in shards) + sum(gone.retired_handled for gone, _ in looks),
                "quarantined": (
                    sum(shard["quarantined"] for shard in shards) + sum(gone.retired_quarantined for gone, _ in looks)
                ),
                "shed": {"oldest": shed} if shed else {},
                "in_flight": sum(shard["in_flight"] for shard in shards),
            },
            "latency": {"p50_us": quantile_us(recent, 0.50), "p99_us": quantile_us(recent, 0.99)},
        }
        document["findings"] = findings(document, self._lately(reading.at, refused, shed))
        return document

    def _lately(self, now: float, refused: dict[str, int], shed: int) -> Lately:
        """What was lost within the last seconds. Looks are kept half a second apart: somebody may read very often."""
        if not self._losses or now - self._losses[-1][0] >= 0.5:
            self._losses.append((now, dict(refused), shed))
        while len(self._losses) > 1 and now - self._losses[1][0] >= LATELY:
            self._losses.popleft()
        at, before, shed_before = self._losses[0]
        return Lately(
            now - at, {reason: count - before.get(reason, 0) for reason, count in refused.items()}, shed - shed_before
        )

    def _quarantine_held(self, now: float) -> int | None:
        """Events in the quarantine file that were not replayed; None when it cannot be read. Counted when the file changes."""
        at, seen, count = self._held
        if not self.control.state_dir or now - at < COUNTED:
            return count
        path = quarantine_file(self.control.state_dir, self.control.engine)
        marks = []
        for suffix in ("", "-wal"):
            try:
                marks.append((os.stat(path + suffix).st_mtime_ns, os.stat(path + suffix).st_size))
            except OSError:
                marks.append(None)
        if marks[0] is None:
            count = 0
        elif marks != seen:
            try:
                with contextlib.closing(
                    sqlite3.connect(f"file:{quote(path)}?mode=ro", uri=True, timeout=0)
                ) as connection:
                    count = connection.execute("select count(*) from events where replayed_at is null").fetchone()[0]
            except sqlite3.Error:
                count, marks = None, None  # of somebody else, damaged, or just being made: the next look may see more
        self._held = now, marks, count
        return count

    def lanes(self, shard: int) -> list[dict[str, Any]] | None:
        """Each open lane of a shard, and whose it is; None: there is no such shard."""
        control = self.control
        if not 0 <= shard < control.room or not control.view_shard(shard).state:
            return None
        inbox = self.inbox(shard, control.view_shard(shard).generation)
        return [
            {
                "seat": lane.seat,
                "pid": control.view_seat(lane.seat).pid,
                "alive": control.seat_alive(lane.seat),
                "accepted": lane.accepted,
                "handled": lane.handled,
                "in_flight": lane.in_flight,
                "fill_ratio": min(1.0, max(0, lane.tail - lane.head) / control.lane_bytes),
                "broken": lane.broken,
            }
            for lane in (inbox.lanes() if inbox else [])
        ]

    def histograms(self) -> dict[int, Histograms]:
        """By shard."""
        views = {shard: self.control.view_shard(shard) for shard in self.control.known_shards()}
        return {
            shard: Histograms(latency_of(view), view.waited_us / 1e6, batch_sizes_of(view), view.rows)
            for shard, view in views.items()
        }

    def _next_reading(self) -> tuple[Reading, Reading]:
        """A new one, and the one to compare it with."""
        reading = Reading(time.monotonic())
        if not self._readings:
            self._readings.append(reading)
            return reading, Reading(reading.at)
        while len(self._readings) > 1 and reading.at - self._readings[1].at >= RATES_OVER:
            self._readings.popleft()
        self._readings.append(reading)
        return reading, self._readings[0]

    def _look(self, shard: int) -> tuple[Any, InboxSegment | None]:
        """Its words, and its inbox unless they say that it is retired: an inbox is counted by its lanes or by its retired
        counts, and both come from this one look, or a shard that goes away meanwhile is counted twice or not at all."""
        last = None
        while True:
            view = self.control.view_shard(shard)
            if not view.state or view.generation <= view.retired_generation:
                return view, None
            inbox = self.inbox(shard, view.generation)
            if inbox is not None or (last is not None and last.retired_generation == view.retired_generation):
                return view, inbox
            last = view  # gone since the words were read: they say more by now

    def board(self) -> dict[str, Any]:
        """What the supervisor last decided, and why; it may be dead by now."""
        board = {
            "auto_scale": False,
            "elastic": False,
            "decisions": [],
            "hot_slots": [],
            "lives": {},
            "limits": Limits(),
            "http": None,
        }
        # damaged: the next one comes with the supervisor's next tick
        with contextlib.suppress(ValueError, TypeError, AttributeError, KeyError):
            said = json.loads(self.control.board("decisions"))
            for each in said.get("decisions", ()):
                each["cause"] + each["reason"], each["advice"]
            for each in said.get("hot_slots", ()):
                each["slot"] + each["shard"] + each["share"] + each["alone"]
            board |= {**said, "limits": Limits(**said.get("limits", {}))}
        return board

    def history(self) -> tuple[list[dict[str, Any]], int]:
        """What happened, oldest first, and how many events had been set aside when it was written."""
        with contextlib.suppress(ValueError, TypeError, KeyError):  # damaged: it begins anew with what happens next
            said = json.loads(self.control.board("events"))
            events = [{key: each[key] for key in ("at", "kind", "shard", "text", "level")} for each in said["events"]]
            return events, said["quarantined"]
        return [], 0

    def handoffs(self) -> list[dict[str, Any]]:
        """Slots in motion: where from and to, in which phase, for how long, and whether that is late."""
        now = now_ns()
        return [
            {
                "slot": move.slot,
                "from": move.source,
                "to": move.target,
                "phase": move.phase,
                "age_s": (now - move.since_ns) / 1e9,
                "late": now > move.deadline_ns,
            }
            for move in self.control.moves()
        ]

    def _shard(
        self,
        shard: int,
        view: Any,
        inbox: InboxSegment | None,
        slots: int,
        reading: Reading,
        before: Reading,
        life: dict[str, Any],
        limits: Limits,
    ) -> tuple[dict[str, Any], list, np.ndarray]:
        control, last, elapsed = self.control, before.shards.get(shard), reading.at - before.at
        lanes = inbox.lanes() if inbox else []
        handled = sum(lane.handled for lane in lanes)
        now = now_ns()
        # The batch in hand counts as busy up to now, or a long batch would look like an idle worker.
        busy_ns = view.busy_ns + (now - view.batch_since_ns if view.batch_since_ns else 0)
        state, alive = name_of(SHARD_STATES, view.state), control.worker_alive(shard)
        cpu_s, rss = self._used(shard, view) if alive else (None, None)
        fill = fullest(lanes, control.lane_bytes)
        latency, batch_sizes = latency_of(view), batch_sizes_of(view)
        earlier = last["latency"] if last is not None and (last["latency"] <= latency).all() else latency
        recent = latency - earlier  # nothing when there was no earlier look, or the number is another shard's by now
        reading.shards[shard] = {
            "handled": handled,
            "busy_ns": busy_ns,
            "fill": fill,
            "cpu_s": cpu_s,
            "pid": view.pid,
            "latency": latency,
        }
        if last is None or elapsed <= 0:
            since = max(1, now - view.entered_ns) / 1e9
            rate, busy = 0.0, min(1.0, busy_ns / 1e9 / since)
        else:
            rate = max(0, handled - last["handled"]) / elapsed
            busy = min(1.0, max(0.0, (busy_ns - last["busy_ns"]) / 1e9 / elapsed))
        uptime = max(1, now - view.entered_ns) / 1e9 if alive else None
        if cpu_s is None or uptime is None:
            cpu = None
        elif last is None or elapsed <= 0 or last["cpu_s"] is None or last["pid"] != view.pid:
            cpu = cpu_s / uptime
        else:
            cpu = max(0.0, cpu_s - last["cpu_s"]) / elapsed
        in_flight = sum(lane.in_flight for lane in lanes)
        due = life.get("restart_at")
        restarting_in = (
            max(0.0, due - now / 1e9) if due is not None and not alive and control.supervisor_alive() else None
        )
        in_hand = max(0, now - view.batch_since_ns) / 1e9 if alive and view.batch_since_ns else None
        condition, reason = condition_of(
            Facts(
                state,
                name_of(PHASES, view.phase),
                alive,
                quiet=max(0, now - view.heartbeat_ns) / 1e9,
                in_hand=in_hand,
                in_flight=in_flight,
                fill=fill,
                filled_before=last["fill"] if last else None,
                error=control.shard_error(shard),
            ),
            limits,
            restarting_in,
        )
        return (
            {
                "id": shard,
                "state": state,
                "pid": view.pid,
                "alive": alive,
                "incarnation": view.incarnation,
                "phase": name_of(PHASES, view.phase),
                "uptime_s": uptime,
                "slots": slots,
                "accepted": sum(lane.accepted for lane in lanes),
                "handled": handled,
                "quarantined": sum(lane.quarantined for lane in lanes),
                "shed": sum(lane.shed for lane in lanes),
                "in_flight": in_flight,
                "fill_ratio": fill,
                "busy": round(busy, 4),
                "rate": rate,
                "batches": view.batches,
                "lanes": len(lanes),
                "broken_lanes": [lane.seat for lane in lanes if lane.broken],
                "latency_p50_us": quantile_us(latency, 0.50),
                "latency_p99_us": quantile_us(latency, 0.99),
                "recent_p50_us": quantile_us(recent, 0.50),
                "recent_p99_us": quantile_us(recent, 0.99),
                "batch_rows_p50": quantile_rows(batch_sizes, 0.50),
                "batch_rows_p99": quantile_rows(batch_sizes, 0.99),
                "cpu": cpu,
                "rss_bytes": rss,
                "condition": condition,
                "reason": reason,
                "in_hand_s": in_hand,
                "crashes": life.get("crashes", 0),
                "recent_crashes": life.get("recent", 0),
                "last_exit": life.get("last_exit"),
                "restarting_in_s": restarting_in,
                "error": control.shard_error(shard),
            },
            lanes,
            recent,
        )

    def _used(self, shard: int, view: Any) -> tuple[float | None, int | None]:
        if self._usage is None:
            from shardmem.status.usage import Usage  # psutil, for those who look, not for those who work

            self._usage = Usage()
        return self._usage.of(shard, view.incarnation, view.pid)
