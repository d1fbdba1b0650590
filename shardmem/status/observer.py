"""One document about an engine, read from shared memory. Reading changes nothing, and needs no process alive."""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections import deque
from typing import Any

import numpy as np

from shardmem.config import quarantine_file
from shardmem.errors import NotRunning, SegmentCorrupt, ShardmemError
from shardmem.memory.engine_segment import ControlSegment
from shardmem.memory.inbox_segment import InboxSegment, LaneView
from shardmem.memory.native import PHASES, SHARD_STATES, ffi, lib
from shardmem.memory.segment import inbox_name, is_cut_short
from shardmem.memory.words import FLOORS_NS, batch_sizes_of, latency_of, name_of, now_ns, refused_by_reason, waiting_of
from shardmem.policy import Facts, Limits, condition_of
from shardmem.runtime.quarantine import QuarantineReader, is_there
from shardmem.status.document import (
    Accounting,
    EngineStatus,
    HandoffStatus,
    HistoryEntry,
    Lane,
    ProducerStatus,
    ShardStatus,
    Status,
    SupervisorStatus,
)
from shardmem.status.findings import Lately, findings
from shardmem.status.footprint import footprint, machine
from shardmem.status.reading import Counts, Histograms, Reading, ShardReading, fullest, quantile_rows, quantile_us
from shardmem.status.sources import sources_of

RATES_OVER = 0.2  # seconds at least, if a reading is that old: shorter intervals would show noise
LATELY = 10.0  # seconds over which refusals are news
COUNTED = 1.0  # seconds for which a count of the quarantine file stands


class Observer:
    """Reads an engine again and again; keeps its inboxes mapped and remembers earlier readings for rates."""

    def __init__(self, control: ControlSegment) -> None:
        self.control = control
        self._inboxes: dict[tuple[int, int], InboxSegment] = {}
        self._unreadable: dict[tuple[int, int], str] = {}
        self._readings: deque[Reading] = deque()
        self._losses: deque[tuple[float, dict[str, int], int]] = deque()
        self._held: tuple[float, Any, int | None] = (-COUNTED, None, None)
        self._usage: Any = None

    def close(self) -> None:
        for inbox in self._inboxes.values():
            inbox.close()
        self._inboxes = {}

    def inbox(self, shard: int, generation: int) -> InboxSegment | None:
        """The mapped inbox, or None when it is gone, or is not what it should be: then other shards are read all the
        same. Raises SegmentError only when the system refuses to map it."""
        found = self._inboxes.get((shard, generation))
        if found is None:
            self._unreadable.pop((shard, generation), None)
            try:
                found = self._inboxes[shard, generation] = self.control.open_inbox(shard, generation)
            except (NotRunning, SegmentCorrupt) as error:
                # `attach` takes an empty file for one that is being created; a generation is published after that
                name, size = inbox_name(self.control.engine, shard, generation), self.control.geometry.inbox_bytes
                self._unreadable[shard, generation] = is_cut_short(name, size) or str(error)
                return None
        return found

    def trouble(self, shard: int, view: Any) -> str:
        """What is wrong with the memory of a shard, after `inbox`; empty: nothing, or it is removed as it should be."""
        if view.generation <= view.retired_generation or self.control.state == "stopped":
            return ""
        inbox = self._inboxes.get((shard, view.generation))
        return inbox.segment.trouble() if inbox else self._unreadable.get((shard, view.generation), "")

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

    def status(self) -> Status:
        """The document that `status()`, `shardmem status --json` and everything else shows. Raises SegmentCorrupt when
        the control segment has been cut short, SegmentError when the system refuses to map an inbox."""
        control = self.control
        control.segment.check_whole()
        reading, last = self._next_reading()
        board, alive = self.board(), control.supervisor_alive()
        looks = [self._look(shard) for shard in range(control.room)]
        shards, accepted_by_seat, latency = self._shards(looks, reading, last, board)
        producers = self._producers(accepted_by_seat, reading, last)
        accounting = accounting_of(shards, producers, [view for view, _ in looks])
        history = self.history()[0]
        document: Status = {
            "engine": self._engine(shards, reading.at, board if alive else {}, board),
            "supervisor": self._supervisor(alive),
            "machine": machine(),
            "shards": shards,
            "producers": producers,
            "sources": sources_of(control.state_dir, control.engine, control.segment.owner),
            "handoffs": self.handoffs(),
            "moves": board["moves"],
            "cordoned": board["cordoned"],
            "pins": board["pins"],
            "auto_scale": board["auto_scale"],
            "elastic": board["elastic"],
            "decisions": board["decisions"],
            "hot_slots": board["hot_slots"],
            "history": history,
            "events": history,
            "accounting": accounting,
            "latency": {"p50_us": quantile_us(latency, 0.50), "p99_us": quantile_us(latency, 0.99)},
            "findings": [],
        }
        lately = self._lately(reading.at, accounting["refused"], accounting["shed"].get("oldest", 0))
        document["findings"] = findings(document, lately)
        control.segment.check_whole()  # as all of it was read
        return document

    def _engine(
        self, shards: list[ShardStatus], now: float, board: dict[str, Any], last: dict[str, Any]
    ) -> EngineStatus:
        """board: what the supervisor that lives says; last: what one said last."""
        control = self.control
        serving = sum(
            shard["slots"]
            for shard in shards
            if shard["state"] in ("active", "draining") and shard["alive"] and shard["phase"] == "ready"
        )
        return {
            "name": control.engine,
            "state": control.state,
            "slots": control.slots,
            "slots_unowned": control.slots - serving,
            "schema": control.schema.describe(),
            "lane_bytes": control.lane_bytes,
            "max_shards": control.max_shards,
            "max_producers": control.max_producers,
            "quarantine_file": quarantine_file(control.state_dir, control.engine) if control.state_dir else None,
            "quarantine_held": self.quarantine_held(now),
            "ready_while_waiting": bool(board.get("ready_while_waiting", True)),
            "http": board.get("http"),
            "socket": board.get("socket"),
            "memory": "" if control.state == "stopped" else control.segment.trouble(),
            "version": last.get("version"),
            "handler": last.get("handler"),
            "host": last.get("host"),
            **footprint(
                [control.segment.name, *(each.segment.name for each in self._inboxes.values())],
                control.state_dir,
                control.engine,
            ),
        }

    def _supervisor(self, alive: bool) -> SupervisorStatus:
        view, now = self.control.view_engine(), now_ns()
        return {
            "pid": view.pid,
            "incarnation": view.incarnation,
            "alive": alive,
            "uptime_s": max(0.0, (now - view.started_ns) / 1e9) if view.started_ns else 0.0,
            "heartbeat_age_s": max(0, now - view.heartbeat_ns) / 1e9 if view.heartbeat_ns else None,
        }

    def _shards(
        self, looks: list[tuple[Any, InboxSegment | None]], reading: Reading, last: Reading, board: dict[str, Any]
    ) -> tuple[list[ShardStatus], dict[int, int], Counts]:
        """Every shard; accepted events by seat; the latency of what all shards handled since the last reading."""
        control = self.control
        slot_owner, _ = control.slot_table()
        owned = np.bincount(slot_owner[slot_owner < control.room], minlength=control.room)
        shards: list[ShardStatus] = []
        by_seat: dict[int, int] = {}
        latency: Counts = np.zeros(len(FLOORS_NS), "u8")
        for shard, (view, inbox) in enumerate(looks):
            if not view.state:
                continue
            lanes = inbox.lanes() if inbox else []
            oldest = inbox.oldest_ns(lanes) if inbox else None
            life = board["lives"].get(str(shard), {})
            entry, recent = self._shard(
                shard, view, lanes, oldest, int(owned[shard]), reading, last, life, board["limits"]
            )
            shards.append(entry)
            latency += recent
            for lane in lanes:
                by_seat[lane.seat] = by_seat.get(lane.seat, 0) + lane.accepted
        return shards, by_seat, latency

    def _producers(self, accepted: dict[int, int], reading: Reading, last: Reading) -> list[ProducerStatus]:
        control, found = self.control, list[ProducerStatus]()
        elapsed = max(reading.at - last.at, 1e-9)
        for seat, view in control.known_seats():
            reading.sequences[seat] = view.sequence
            reading.blocked_ns[seat] = view.blocked_ns
            pushed = max(0, view.sequence - last.sequences.get(seat, view.sequence))
            blocked = max(0, view.blocked_ns - last.blocked_ns.get(seat, view.blocked_ns))
            found.append(
                {
                    "seat": seat,
                    "client": ffi.string(view.client, lib.SM_CLIENT_BYTES).decode(errors="replace") or None,
                    "pid": view.pid,
                    "alive": control.seat_alive(seat),
                    "incarnation": view.incarnation,
                    "accepted": accepted.get(seat, 0),
                    "sequence": view.sequence,
                    "in_push": bool(view.mark & 1),
                    "rate": pushed / elapsed,
                    "blocked": min(1.0, blocked / 1e9 / elapsed),
                    "refused": refused_by_reason(view),
                    "blocked_s": view.blocked_ns / 1e9,
                    "blocked_count": view.blocked_count,
                }
            )
        return found

    def _lately(self, now: float, refused: dict[str, int], shed: int) -> Lately:
        """What was lost within the last seconds. Looks are kept half a second apart: a reader may come very often."""
        if not self._losses or now - self._losses[-1][0] >= 0.5:
            self._losses.append((now, dict(refused), shed))
        while len(self._losses) > 1 and now - self._losses[1][0] >= LATELY:
            self._losses.popleft()
        at, before, shed_before = self._losses[0]
        return Lately(
            now - at, {reason: count - before.get(reason, 0) for reason, count in refused.items()}, shed - shed_before
        )

    def quarantine_held(self, now: float) -> int | None:
        """Events in the quarantine file that were not replayed; None when it cannot be read. Counted when the file
        changes."""
        at, seen, count = self._held
        if not self.control.state_dir or now - at < COUNTED:
            return count
        path = quarantine_file(self.control.state_dir, self.control.engine)
        marks: list[tuple[int, int] | None] = []
        for suffix in ("", "-wal"):
            try:
                marks.append((os.stat(path + suffix).st_mtime_ns, os.stat(path + suffix).st_size))
            except OSError:
                marks.append(None)
        if marks[0] is None:
            count = 0
        elif marks != seen:
            try:
                count = QuarantineReader(path, self.control.segment.owner, 0.0).count() if is_there(path) else 0
            except ShardmemError:
                count, marks = None, []  # of another user, damaged, or just being made: the next look may see more
        self._held = now, marks, count
        return count

    def lanes(self, shard: int) -> list[Lane] | None:
        """Each open lane of a shard, and whose it is; None: the shard does not exist."""
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
        """Its words, and its inbox unless they say that it is retired: an inbox is counted by its lanes or by its
        retired counts, and both come from this one look, or a shard that goes away meanwhile is counted twice or not at
        all."""
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
        board: dict[str, Any] = {
            "auto_scale": False,
            "elastic": False,
            "decisions": [],
            "hot_slots": [],
            "moves": {
                "automatic": False,
                "suspended": False,
                "planned": 0,
                "wished": 0,
                "held_back": "",
                "complaints": [],
            },
            "cordoned": [],
            "pins": [],
            "pins_are_all": False,
            "wished": [],
            "succession": [],
            "reload": [],
            "lives": {},
            "limits": Limits(),
            "ready_while_waiting": True,
            "http": None,
            "socket": None,
        }
        # damaged: the next one comes with the supervisor's next tick
        with contextlib.suppress(ValueError, TypeError, AttributeError, KeyError):
            said = json.loads(self.control.board("decisions"))
            for each in said.get("decisions", ()):
                each["cause"] + each["reason"], each["advice"]
            if not isinstance(said.get("socket"), (str, type(None))):
                del said["socket"]
            for each in said.get("hot_slots", ()):
                each["slot"] + each["shard"] + each["share"] + each["alone"]
            for each in (*said.get("pins", ()), *said.get("wished", ())):
                each["shard"] + 0, each["slots"] + ""
            for first, second in (*said.get("succession", ()), *said.get("reload", ())):
                first + second
            if said.get("moves", board["moves"]).keys() != board["moves"].keys():
                del said["moves"]
            board |= {**said, "limits": Limits(**said.get("limits", {}))}
        return board

    def history(self) -> tuple[list[HistoryEntry], int]:
        """What happened, oldest first, and how many events had been quarantined when it was written."""
        with contextlib.suppress(ValueError, TypeError, KeyError):  # damaged: it begins again with what happens next
            said = json.loads(self.control.board("events"))
            entries: list[HistoryEntry] = [
                {key: each[key] for key in ("at", "kind", "shard", "text", "level")}  # type: ignore[misc]
                for each in said["events"]
            ]
            return entries, int(said["quarantined"])
        return [], 0

    def handoffs(self) -> list[HandoffStatus]:
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
        lanes: list[LaneView],
        oldest_ns: int | None,
        slots: int,
        reading: Reading,
        before: Reading,
        life: dict[str, Any],
        limits: Limits,
    ) -> tuple[ShardStatus, Counts]:
        control, now = self.control, now_ns()
        state, phase, error = name_of(SHARD_STATES, view.state), name_of(PHASES, view.phase), control.shard_error(shard)
        alive, fill = control.worker_alive(shard), fullest(lanes, control.lane_bytes)
        in_flight = sum(lane.in_flight for lane in lanes)
        cpu_s, rss = self._used(shard, view) if alive else (None, None)
        look = reading.shards[shard] = ShardReading(
            handled=sum(lane.handled for lane in lanes),
            # The batch in hand counts as busy up to now, or a long batch would look like an idle worker.
            busy_ns=view.busy_ns + (now - view.batch_since_ns if alive and view.batch_since_ns else 0),
            fill=fill,
            cpu_s=cpu_s,
            pid=view.pid,
            latency=latency_of(view),
        )
        last, elapsed = before.shards.get(shard), reading.at - before.at
        recent, batch_sizes = look.latency_since(last), batch_sizes_of(view)
        up = max(1, now - view.entered_ns) / 1e9
        rate, busy = look.rate_and_busy(last, elapsed, up)
        restarting_in = None if alive else self._restarting_in(life, now)
        in_hand = max(0, now - view.batch_since_ns) / 1e9 if alive and view.batch_since_ns else None
        quiet, fill_before = max(0, now - view.heartbeat_ns) / 1e9, last.fill if last else None
        waiting, next_try = waiting_of(view)
        facts = Facts(
            state, phase, alive, quiet, in_hand, in_flight, fill, fill_before, error, waiting, next_try or 0.0
        )
        condition, reason = condition_of(facts, limits, restarting_in)
        return {
            "id": shard,
            "state": state,
            "condition": condition,
            "reason": reason,
            "error": error,
            "pid": view.pid,
            "alive": alive,
            "incarnation": view.incarnation,
            "phase": phase,
            "uptime_s": up if alive else None,
            "slots": slots,
            "accepted": sum(lane.accepted for lane in lanes),
            "handled": look.handled,
            "quarantined": sum(lane.quarantined for lane in lanes),
            "skipped": sum(lane.skipped for lane in lanes),
            "shed": sum(lane.shed for lane in lanes),
            "lost": sum(lane.lost for lane in lanes),
            "in_flight": in_flight,
            "oldest_s": None if oldest_ns is None else max(0, now - oldest_ns) / 1e9,
            "fill_ratio": fill,
            "busy": round(busy, 4),
            "rate": rate,
            "batches": view.batches,
            "in_hand_s": in_hand,
            "waiting_s": waiting,
            "next_try_s": next_try,
            "on_trial": view.on_trial,
            "checkpoints": view.checkpoints,
            "checkpoint_s": view.checkpoint_ns / 1e9,
            "last_checkpoint_s": view.checkpoint_last_ns / 1e9 if view.checkpoint_at_ns else None,
            "checkpoint_age_s": max(0, now - view.checkpoint_at_ns) / 1e9 if view.checkpoint_at_ns else None,
            "lanes": len(lanes),
            "broken_lanes": [lane.seat for lane in lanes if lane.broken],
            "memory": self.trouble(shard, view),
            "latency_p50_us": quantile_us(look.latency, 0.50),
            "latency_p99_us": quantile_us(look.latency, 0.99),
            "recent_p50_us": quantile_us(recent, 0.50),
            "recent_p99_us": quantile_us(recent, 0.99),
            "batch_rows_p50": quantile_rows(batch_sizes, 0.50),
            "batch_rows_p99": quantile_rows(batch_sizes, 0.99),
            "cpu": look.cores_used(last, elapsed, up) if alive else None,
            "rss_bytes": rss,
            "crashes": life.get("crashes", 0),
            "recent_crashes": life.get("recent", 0),
            "last_exit": life.get("last_exit"),
            "restarting_in_s": restarting_in,
        }, recent

    def _restarting_in(self, life: dict[str, Any], now: int) -> float | None:
        """Seconds until the supervisor starts the next worker of a shard that has none."""
        due = life.get("restart_at")
        return max(0.0, due - now / 1e9) if due is not None and self.control.supervisor_alive() else None

    def _used(self, shard: int, view: Any) -> tuple[float | None, int | None]:
        if self._usage is None:
            from shardmem.status.usage import Usage  # psutil, for those who look, not for those who work

            self._usage = Usage()
        used: tuple[float | None, int | None] = self._usage.of(shard, view.incarnation, view.pid)
        return used


def accounting_of(shards: list[ShardStatus], producers: list[ProducerStatus], views: list[Any]) -> Accounting:
    """The identities of all shards and seats, with what shards that are gone had counted."""
    refused: dict[str, int] = {}
    for producer in producers:
        for reason, count in producer["refused"].items():
            refused[reason] = refused.get(reason, 0) + count
    accepted = sum(shard["accepted"] for shard in shards) + sum(view.retired_accepted for view in views)
    shed = {
        "oldest": sum(shard["shed"] - shard["lost"] for shard in shards) + sum(view.retired_shed for view in views),
        "lost": sum(shard["lost"] for shard in shards) + sum(view.retired_lost for view in views),
    }
    return {
        "offered": accepted + sum(refused.values()),
        "accepted": accepted,
        "refused": refused,
        "handled": sum(shard["handled"] for shard in shards) + sum(view.retired_handled for view in views),
        "quarantined": sum(shard["quarantined"] for shard in shards) + sum(view.retired_quarantined for view in views),
        "skipped": sum(shard["skipped"] for shard in shards) + sum(view.retired_skipped for view in views),
        "shed": {reason: count for reason, count in shed.items() if count},
        "in_flight": sum(shard["in_flight"] for shard in shards),
    }
