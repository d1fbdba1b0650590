"""Every figure of the status document, declared once: docs/metrics.md and GET /metrics follow from it.

    Figure("shards[].fill_ratio", "share", GAUGE, "worker", "...", metric="shardmem_shard_fill_ratio")

A path is walked from the top of the document. `name[]`: each entry of a list, labelled as LABELS says. `name{reason}`:
each member of an object, labelled by its key. With a fold, one value stands for a whole list. Texts and what `schema`
and `order` hold are no figures, except that a STATE may be a text: the metric of the value in force is 1, those of the
others are 0.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from shardmem import __version__

COUNTER, GAUGE, HISTOGRAM, STATE = "counter", "gauge", "histogram", "state"
LABELS = {
    "shards": ("shard", "id"),
    "producers": ("seat", "seat"),
    "sources": ("source", "name"),
    "handoffs": ("slot", "slot"),
    "hot_slots": ("slot", "slot"),
}
FOLDS: dict[str, Callable[[list[Any]], float]] = {
    "count": len,
    "sum": sum,
    "max": lambda values: max(values, default=0),
}
PREFIX = "shardmem_"
# What can happen to an engine, and how bad that is: kind and level of an entry of `history`. docs/operations.md has a
# line on each.
HISTORY_KINDS = {
    "started": "info",
    "took_over": "warning",
    "scaled": "info",
    "shard_added": "info",
    "shard_removed": "info",
    "worker_died": "warning",
    "worker_started": "info",
    "worker_replaced": "info",
    "shard_failed": "error",
    "stuck": "error",
    "moved": "info",
    "late": "warning",
    "lane_broken": "error",
    "memory_lost": "error",
    "memory_damaged": "error",
    "quarantined": "warning",
    "quarantine_lost": "error",
    "replayed": "info",
    "purged": "info",
    "reload": "info",
    "not_done": "error",
    "draining": "info",
    "stopped": "info",
}
LEVELS = ("info", "warning", "error")
SOURCE_STATES = ("starting", "running", "waiting", "paused", "draining", "failed", "misconfigured", "died", "ended")


@dataclass(frozen=True)
class Figure:
    """path: where in the document; None: beside it, because it is too long for it. writer: whose words it is read from;
    several, if it is worked out from words of several. metric: its name for Prometheus; None: it identifies something,
    or is worked out from another that has one. values: what a STATE, or a label that is the key of an object, can be.
    null: whether it may be that. truth: it is true or false.
    """

    path: str | None
    unit: str
    kind: str
    writer: str
    help: str
    metric: str | None = None
    fold: str | None = None
    values: tuple[str, ...] = ()
    null: bool = False
    truth: bool = False

    @property
    def name(self) -> str:
        return self.metric or (self.path or "").replace("[]", "")

    @property
    def labels(self) -> tuple[str, ...]:
        """Of the metric, beside `engine`."""
        parts = (self.path or "shards[].").split(".")
        if self.fold:
            parts = parts[: max(i for i, part in enumerate(parts) if part.endswith("[]"))]
        found = [LABELS[part[:-2]][0] for part in parts if part[:-2] in LABELS and part.endswith("[]")]
        found += [part.partition("{")[2][:-1] for part in parts if part.endswith("}")]
        return (*found, parts[-1]) if self.kind == STATE and self.values else tuple(found)

    def read(self, document: Mapping[str, Any]) -> Iterator[tuple[tuple[str, ...], Any]]:
        """(values of the labels, value) for each place that the path leads to. Raises KeyError if it leads nowhere."""
        if self.path is not None:
            yield from self._read(document, self.path.split("."), ())

    def _read(self, node: Any, parts: list[str], labels: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Any]]:
        if not parts:
            yield labels, node
            return
        part, rest = parts[0], parts[1:]
        if part.endswith("[]"):
            entries, label = node[part[:-2]], LABELS.get(part[:-2])
            if self.fold and not any(each.endswith("[]") for each in rest):
                values = [value for entry in entries for _, value in self._read(entry, rest, ())]
                yield labels, FOLDS[self.fold]([value for value in values if value is not None])
                return
            for entry in entries:
                yield from self._read(entry, rest, (*labels, str(entry[label[1]])) if label and rest else labels)
        elif part.endswith("}"):
            members = node[part.partition("{")[0]]
            for key in (*self.values, *(key for key in members if key not in self.values)):
                yield from self._read(members.get(key, 0), rest, (*labels, key))
        else:
            yield from self._read(node[part], rest, labels)


REFUSALS = ("full", "timeout", "sampled", "stopped")
SHEDS = ("oldest", "lost")

FIGURES = (
    Figure(
        "engine.state",
        "",
        STATE,
        "supervisor",
        "1 for what the engine is doing",
        "shardmem_engine_state",
        values=("starting", "running", "draining", "stopped"),
    ),
    Figure("engine.slots", "slots", GAUGE, "supervisor", "hash buckets of keys", "shardmem_engine_slots"),
    Figure(
        "engine.slots_unowned",
        "slots",
        GAUGE,
        "supervisor, worker",
        "slots whose owner is not a shard with a live worker that is ready; their events wait",
        "shardmem_slots_unowned",
    ),
    Figure(
        "engine.lane_bytes",
        "bytes",
        GAUGE,
        "supervisor",
        "ring of each producer to each shard",
        "shardmem_engine_lane_bytes",
    ),
    Figure(
        "engine.max_shards", "shards", GAUGE, "supervisor", "how many shards there may be", "shardmem_engine_max_shards"
    ),
    Figure(
        "engine.max_producers",
        "producers",
        GAUGE,
        "supervisor",
        "how many producers can be connected at once",
        "shardmem_engine_max_producers",
    ),
    Figure(
        "engine.quarantine_held",
        "events",
        GAUGE,
        "worker",
        "events in the quarantine file that were neither replayed nor purged; null when it cannot be read",
        "shardmem_quarantine_held",
        null=True,
    ),
    Figure(
        "engine.ready_while_waiting",
        "",
        GAUGE,
        "supervisor",
        "1 if a shard that waits is no reason for /readyz to say that the engine is not ready",
        "shardmem_ready_while_waiting",
        truth=True,
    ),
    Figure(
        "engine.version",
        "",
        STATE,
        "supervisor",
        "1 for the version of shardmem that its supervisor runs",
        "shardmem_build_info",
        values=(__version__,),
        null=True,
    ),
    Figure(
        "engine.shm_bytes",
        "bytes",
        GAUGE,
        "supervisor, producer",
        "shared memory behind the segments of the engine",
        "shardmem_shm_used_bytes",
    ),
    Figure(
        "engine.shm_free_bytes",
        "bytes",
        GAUGE,
        "kernel",
        "free in /dev/shm, for whatever is there",
        "shardmem_shm_free_bytes",
        null=True,
    ),
    Figure("engine.shm_size_bytes", "bytes", GAUGE, "kernel", "size of /dev/shm", "shardmem_shm_size_bytes", null=True),
    Figure(
        "engine.state_bytes",
        "bytes",
        GAUGE,
        "worker",
        "size of the state files; null when the engine saved no state",
        "shardmem_state_bytes",
        null=True,
    ),
    Figure(
        "engine.state_age_s",
        "seconds",
        GAUGE,
        "worker",
        "since state was last saved, by whichever shard; null when it never was",
        "shardmem_state_age_seconds",
        null=True,
    ),
    Figure("supervisor.pid", "", STATE, "supervisor", "its process"),
    Figure(
        "supervisor.incarnation",
        "lives",
        COUNTER,
        "supervisor",
        "supervisors that this engine has had",
        "shardmem_supervisor_lives_total",
    ),
    Figure(
        "supervisor.alive",
        "",
        GAUGE,
        "supervisor",
        "1 while a supervisor holds its lease",
        "shardmem_supervisor_up",
        truth=True,
    ),
    Figure(
        "supervisor.uptime_s",
        "seconds",
        GAUGE,
        "supervisor",
        "since it took the role",
        "shardmem_supervisor_uptime_seconds",
    ),
    Figure(
        "supervisor.heartbeat_age_s",
        "seconds",
        GAUGE,
        "supervisor",
        "since its loop last ran",
        "shardmem_supervisor_heartbeat_age_seconds",
        null=True,
    ),
    Figure("machine.cores", "cores", GAUGE, "kernel", "processors that the reader of the document may use"),
    Figure("machine.load_1m", "processes", GAUGE, "kernel", "load average of the last minute", null=True),
    Figure("machine.memory_free_bytes", "bytes", GAUGE, "kernel", "memory that can be had without swapping", null=True),
    Figure("machine.memory_size_bytes", "bytes", GAUGE, "kernel", "memory of the machine", null=True),
    Figure("shards[].id", "", STATE, "supervisor", "number of the shard"),
    Figure(
        "shards[].state",
        "",
        STATE,
        "supervisor",
        "1 for where the shard is in its life",
        "shardmem_shard_state",
        values=("provisioning", "active", "draining", "stopped", "failed"),
    ),
    Figure(
        "shards[].condition",
        "",
        STATE,
        "supervisor, worker",
        "1 for how the shard is doing",
        "shardmem_shard_condition",
        values=("idle", "busy", "slow", "waiting", "starting", "restarting", "stuck", "dead", "failed", "stopped"),
    ),
    Figure("shards[].pid", "", STATE, "worker", "the worker's process"),
    Figure(
        "shards[].alive",
        "",
        GAUGE,
        "worker",
        "1 while a worker holds the shard's lease",
        "shardmem_shard_up",
        truth=True,
    ),
    Figure(
        "shards[].incarnation",
        "lives",
        COUNTER,
        "worker",
        "workers that this shard has had",
        "shardmem_shard_lives_total",
    ),
    Figure(
        "shards[].uptime_s",
        "seconds",
        GAUGE,
        "worker",
        "since the worker entered; null without one",
        "shardmem_shard_uptime_seconds",
        null=True,
    ),
    Figure("shards[].slots", "slots", GAUGE, "supervisor", "slots that the shard owns", "shardmem_shard_slots"),
    Figure(
        "shards[].accepted",
        "events",
        COUNTER,
        "producer",
        "events accepted for this shard",
        "shardmem_shard_accepted_total",
    ),
    Figure(
        "shards[].handled", "events", COUNTER, "worker", "events handled by this shard", "shardmem_shard_handled_total"
    ),
    Figure(
        "shards[].quarantined",
        "events",
        COUNTER,
        "worker",
        "events quarantined by this shard",
        "shardmem_shard_quarantined_total",
    ),
    Figure(
        "shards[].skipped",
        "events",
        COUNTER,
        "worker",
        "events that came again and that the state of this shard holds already",
        "shardmem_shard_skipped_total",
    ),
    Figure(
        "shards[].shed",
        "events",
        COUNTER,
        "worker",
        "accepted events that this shard dropped: as drop_oldest asks, or because their partition is another host's",
        "shardmem_shard_shed_total",
    ),
    Figure(
        "shards[].lost",
        "events",
        COUNTER,
        "worker",
        "of these, those whose partition is another host's",
        "shardmem_shard_lost_total",
    ),
    Figure(
        "shards[].in_flight",
        "events",
        GAUGE,
        "producer, worker",
        "accepted events that this shard still has to handle",
        "shardmem_shard_in_flight",
    ),
    Figure(
        "shards[].oldest_s",
        "seconds",
        GAUGE,
        "producer, worker",
        "how long ago the oldest of these events was pushed; null when there is none",
        "shardmem_shard_oldest_seconds",
        null=True,
    ),
    Figure(
        "shards[].fill_ratio",
        "share",
        GAUGE,
        "producer, worker",
        "how full its fullest lane is",
        "shardmem_shard_fill_ratio",
    ),
    Figure(
        "shards[].busy",
        "share",
        GAUGE,
        "worker",
        "part of the time that was spent in the handler, since an earlier reading",
        "shardmem_shard_busy_ratio",
    ),
    Figure("shards[].rate", "events/s", GAUGE, "worker", "events handled per second, since an earlier reading"),
    Figure(
        "shards[].batches",
        "batches",
        COUNTER,
        "worker",
        "batches that the handler was given",
        "shardmem_shard_batches_total",
    ),
    Figure(
        "shards[].in_hand_s",
        "seconds",
        GAUGE,
        "worker",
        "how long the handler has had the batch that it has now; null between batches",
        "shardmem_shard_in_hand_seconds",
        null=True,
    ),
    Figure(
        "shards[].waiting_s",
        "seconds",
        GAUGE,
        "worker",
        "how long the shard has waited for what its handler needs; null while it does not",
        "shardmem_shard_waiting_seconds",
        null=True,
    ),
    Figure(
        "shards[].next_try_s",
        "seconds",
        GAUGE,
        "worker",
        "until a shard that waits tries again; null while it does not wait",
        "shardmem_shard_next_try_seconds",
        null=True,
    ),
    Figure(
        "shards[].on_trial",
        "events",
        GAUGE,
        "worker",
        "events that failed alone and are tried again before they are quarantined",
        "shardmem_shard_on_trial",
    ),
    Figure(
        "shards[].checkpoints",
        "checkpoints",
        COUNTER,
        "worker",
        "how often state and positions were saved, of a handler that keeps state",
        "shardmem_shard_checkpoints_total",
    ),
    Figure(
        "shards[].checkpoint_s",
        "seconds",
        COUNTER,
        "worker",
        "time that this took, in which nothing is handled",
        "shardmem_shard_checkpoint_seconds_total",
    ),
    Figure(
        "shards[].last_checkpoint_s",
        "seconds",
        GAUGE,
        "worker",
        "time that the last checkpoint took; null: there was none",
        "shardmem_shard_last_checkpoint_seconds",
        null=True,
    ),
    Figure(
        "shards[].checkpoint_age_s",
        "seconds",
        GAUGE,
        "worker",
        "since the last checkpoint; it grows while nothing changes; null: there was none",
        "shardmem_shard_checkpoint_age_seconds",
        null=True,
    ),
    Figure("shards[].lanes", "lanes", GAUGE, "producer", "lanes that are open", "shardmem_shard_lanes"),
    Figure(
        "shards[].broken_lanes[]",
        "lanes",
        GAUGE,
        "worker",
        "lanes found corrupt and read no more",
        "shardmem_shard_broken_lanes",
        fold="count",
    ),
    Figure(
        "shards[].latency_p50_us",
        "microseconds",
        GAUGE,
        "worker",
        "median from push to handled, of all so far",
        null=True,
    ),
    Figure("shards[].latency_p99_us", "microseconds", GAUGE, "worker", "99th percentile of the same", null=True),
    Figure(
        "shards[].recent_p50_us",
        "microseconds",
        GAUGE,
        "worker",
        "median from push to handled, since an earlier reading; null when nothing was handled since",
        null=True,
    ),
    Figure("shards[].recent_p99_us", "microseconds", GAUGE, "worker", "99th percentile of the same", null=True),
    Figure(
        None, "seconds", HISTOGRAM, "worker", "from push to handled, of each event", "shardmem_shard_latency_seconds"
    ),
    Figure(
        "shards[].batch_rows_p50",
        "events",
        GAUGE,
        "worker",
        "median of the events in a batch, of all so far, up to a power of two",
        null=True,
    ),
    Figure("shards[].batch_rows_p99", "events", GAUGE, "worker", "99th percentile of the same", null=True),
    Figure(None, "events", HISTOGRAM, "worker", "events in a batch that was handled", "shardmem_shard_batch_rows"),
    Figure(
        "shards[].cpu",
        "share",
        GAUGE,
        "worker",
        "part of one core that the worker uses, since an earlier reading; null when its process cannot be seen",
        "shardmem_shard_cpu_ratio",
        null=True,
    ),
    Figure(
        "shards[].rss_bytes",
        "bytes",
        GAUGE,
        "worker",
        "resident memory of the worker, its part of shared memory included; null when its process cannot be seen",
        "shardmem_shard_resident_memory_bytes",
        null=True,
    ),
    Figure(
        "shards[].crashes",
        "crashes",
        COUNTER,
        "supervisor",
        "workers of this shard that died",
        "shardmem_shard_crashes_total",
    ),
    Figure(
        "shards[].recent_crashes",
        "crashes",
        GAUGE,
        "supervisor",
        "of these, in the last 60 s while this supervisor was there",
    ),
    Figure(
        "shards[].restarting_in_s",
        "seconds",
        GAUGE,
        "supervisor",
        "until the next worker starts; null when none is due",
        "shardmem_shard_restarting_in_seconds",
        null=True,
    ),
    Figure("producers[].seat", "", STATE, "producer", "number of the seat"),
    Figure("producers[].pid", "", STATE, "producer", "the producer's process; 0 when it has left"),
    Figure(
        "producers[].alive",
        "",
        GAUGE,
        "producer",
        "1 while a producer holds the seat",
        "shardmem_producer_up",
        truth=True,
    ),
    Figure(
        "producers[].incarnation",
        "lives",
        COUNTER,
        "producer",
        "producers that this seat has had",
        "shardmem_producer_lives_total",
    ),
    Figure(
        "producers[].accepted",
        "events",
        GAUGE,
        "producer",
        "events accepted from this seat by the shards that are here; falls when a shard goes",
    ),
    Figure(
        "producers[].sequence",
        "events",
        COUNTER,
        "producer",
        "events pushed from this seat, by all its producers",
        "shardmem_producer_pushed_total",
    ),
    Figure(
        "producers[].in_push",
        "",
        GAUGE,
        "producer",
        "1 while it is inside of a push: one that is stopped there holds up handoffs",
        truth=True,
    ),
    Figure("producers[].rate", "events/s", GAUGE, "producer", "events pushed per second, since an earlier reading"),
    Figure(
        "producers[].blocked",
        "share",
        GAUGE,
        "producer",
        "part of the time that the producer waited for room, since an earlier reading",
    ),
    Figure(
        "producers[].refused{reason}",
        "events",
        COUNTER,
        "producer",
        "events refused at this seat",
        "shardmem_producer_refused_total",
        values=REFUSALS,
    ),
    Figure(
        "producers[].blocked_s",
        "seconds",
        COUNTER,
        "producer",
        "time that the producer waited for room",
        "shardmem_producer_blocked_seconds_total",
    ),
    Figure(
        "producers[].blocked_count", "waits", COUNTER, "producer", "times that it did", "shardmem_producer_waits_total"
    ),
    Figure("sources[].pid", "", STATE, "source", "its process"),
    Figure("sources[].alive", "", GAUGE, "source", "1 while its process runs", "shardmem_source_up", truth=True),
    Figure("sources[].incarnation", "lives", COUNTER, "source", "processes so far", "shardmem_source_lives_total"),
    Figure("sources[].state", "", STATE, "source", "what it does", values=SOURCE_STATES),
    Figure("sources[].paused", "", GAUGE, "source", "1 while it is paused", "shardmem_source_paused", truth=True),
    Figure("sources[].seat", "", STATE, "source", "seat of its producer; null before it has one", null=True),
    Figure(
        "sources[].events",
        "events",
        COUNTER,
        "source",
        "events that its process has pushed",
        "shardmem_source_events_total",
    ),
    Figure(
        "sources[].bytes", "bytes", COUNTER, "source", "bytes that its process has read", "shardmem_source_bytes_total"
    ),
    Figure(
        "sources[].skipped",
        "records",
        COUNTER,
        "source",
        "records that were no events",
        "shardmem_source_skipped_total",
    ),
    Figure(
        "sources[].lag_bytes",
        "bytes",
        GAUGE,
        "source",
        "bytes that are there and were not read; null: that cannot be told",
        "shardmem_source_lag_bytes",
        null=True,
    ),
    Figure(
        "sources[].lag_events",
        "events",
        GAUGE,
        "source",
        "events of a broker that are not committed, messages that the outbox has to publish; null: that cannot be told",
        "shardmem_source_lag_events",
        null=True,
    ),
    Figure(
        "sources[].epoch",
        "",
        GAUGE,
        "source",
        "of a broker: how often a partition of it was taken and given up, at most",
        "shardmem_source_epoch",
        null=True,
    ),
    Figure(
        "sources[].last_commit_age_s",
        "seconds",
        GAUGE,
        "source",
        "since it last wrote down how far it has been handled; null: never",
        "shardmem_source_commit_age_seconds",
        null=True,
    ),
    Figure(
        "sources[].remote_error_age_s",
        "seconds",
        GAUGE,
        "source",
        "for which no state of a partition could be uploaded; null: it can",
        "shardmem_source_remote_failing_seconds",
        null=True,
    ),
    Figure(
        "sources[].uploaded_age_s",
        "seconds",
        GAUGE,
        "source",
        "since the state of a partition was last uploaded; null: never",
        "shardmem_source_uploaded_age_seconds",
        null=True,
    ),
    Figure("handoffs[].slot", "slots", GAUGE, "supervisor", "slots in motion", "shardmem_handoffs", fold="count"),
    Figure("handoffs[].from", "", STATE, "supervisor", "shard that gives the slot"),
    Figure("handoffs[].to", "", STATE, "supervisor", "shard that takes it"),
    Figure(
        "handoffs[].age_s",
        "seconds",
        GAUGE,
        "supervisor",
        "how long the oldest handoff has been in its phase",
        "shardmem_handoff_age_seconds",
        fold="max",
    ),
    Figure(
        "handoffs[].late",
        "slots",
        GAUGE,
        "supervisor",
        "handoffs beyond the deadline of their phase",
        "shardmem_handoffs_late",
        fold="sum",
        truth=True,
    ),
    Figure(
        "moves.automatic", "", STATE, "supervisor", "whether slots move by themselves, as the load asks for", truth=True
    ),
    Figure(
        "moves.suspended",
        "",
        GAUGE,
        "supervisor",
        "1 while that is suspended by hand",
        "shardmem_moves_suspended",
        truth=True,
    ),
    Figure(
        "moves.planned",
        "slots",
        GAUGE,
        "supervisor",
        "slots that the strategy would move now",
        "shardmem_moves_planned",
    ),
    Figure(
        "moves.wished",
        "slots",
        GAUGE,
        "supervisor",
        "slots that were asked to move and have not arrived",
        "shardmem_moves_wished",
    ),
    Figure(
        "cordoned[]",
        "shards",
        GAUGE,
        "supervisor",
        "shards that take no more slots",
        "shardmem_cordoned_shards",
        fold="count",
    ),
    Figure("pins[].shard", "", STATE, "supervisor", "shard that its slots are pinned to"),
    Figure(
        "auto_scale",
        "",
        GAUGE,
        "supervisor",
        "1 while the policy decides on the number of shards",
        "shardmem_auto_scale",
        truth=True,
    ),
    Figure("elastic", "", STATE, "supervisor", "whether it ever may: not when `shards` fixes it", truth=True),
    Figure("decisions[].count", "shards", GAUGE, "supervisor", "how many shards more or fewer"),
    Figure("decisions[].age_s", "seconds", GAUGE, "supervisor", "since it was last taken"),
    Figure("decisions[].since_s", "seconds", GAUGE, "supervisor", "since it was first taken"),
    Figure("decisions[].times", "decisions", GAUGE, "supervisor", "how often in a row"),
    Figure("history[].at", "seconds", GAUGE, "supervisor", "when it happened, since 1970; oldest first, at most 64"),
    Figure("history[].kind", "", STATE, "supervisor", "what happened", values=tuple(HISTORY_KINDS)),
    Figure("history[].shard", "", STATE, "supervisor", "shard that it happened to; null: to the engine", null=True),
    Figure("history[].level", "", STATE, "supervisor", "how bad that is", values=LEVELS),
    Figure(
        "hot_slots[].slot",
        "slots",
        GAUGE,
        "supervisor",
        "slots with more load than a shard's fair share",
        "shardmem_hot_slots",
        fold="count",
    ),
    Figure("hot_slots[].shard", "", STATE, "supervisor", "shard that has it"),
    Figure(
        "hot_slots[].share",
        "share",
        GAUGE,
        "supervisor",
        "part of all load that the hottest slot has",
        "shardmem_hot_slot_ratio",
        fold="max",
    ),
    Figure(
        "hot_slots[].alone",
        "",
        STATE,
        "supervisor",
        "whether its shard has no other slot with traffic to speak of",
        truth=True,
    ),
    Figure("accounting.offered", "events", COUNTER, "producer", "accepted and refused", "shardmem_offered_total"),
    Figure(
        "accounting.accepted",
        "events",
        COUNTER,
        "producer",
        "events that a push returned for; handled + quarantined + skipped + shed + in flight",
        "shardmem_accepted_total",
    ),
    Figure(
        "accounting.refused{reason}",
        "events",
        COUNTER,
        "producer",
        "events that were not accepted",
        "shardmem_refused_total",
        values=REFUSALS,
    ),
    Figure(
        "accounting.handled",
        "events",
        COUNTER,
        "worker",
        "events that a handler returned for",
        "shardmem_handled_total",
    ),
    Figure(
        "accounting.quarantined", "events", COUNTER, "worker", "events in the quarantine", "shardmem_quarantined_total"
    ),
    Figure(
        "accounting.skipped",
        "events",
        COUNTER,
        "worker",
        "events that came again and that the state holds already",
        "shardmem_skipped_total",
    ),
    Figure(
        "accounting.shed{reason}",
        "events",
        COUNTER,
        "worker",
        "accepted events that were dropped: oldest, to make room; lost, their partition is another host's",
        "shardmem_shed_total",
        values=SHEDS,
    ),
    Figure(
        "latency.p50_us",
        "microseconds",
        GAUGE,
        "worker",
        "median from push to handled, of all shards, since an earlier reading; null when nothing was handled since",
        null=True,
    ),
    Figure("latency.p99_us", "microseconds", GAUGE, "worker", "99th percentile of the same", null=True),
    Figure(
        "findings[].shard",
        "",
        STATE,
        "supervisor, worker",
        "shard that it is about; null if it is about the engine",
        null=True,
    ),
    Figure(
        "findings[].shards[]",
        "shards",
        STATE,
        "supervisor, worker",
        "all shards that it is about, the same as `shard` first",
    ),
    Figure(
        "accounting.in_flight",
        "events",
        GAUGE,
        "producer, worker",
        "accepted events that are still to be handled",
        "shardmem_in_flight",
    ),
)


def page() -> str:
    """docs/metrics.md."""

    def table(figures: list[Figure], *, metrics: bool) -> Iterator[str]:
        head = ["metric", "kind", "labels"] if metrics else ["figure", "kind"]
        head += ["unit", "in the document" if metrics else "writer", *(["writer"] if metrics else []), "meaning"]
        yield f"| {' | '.join(head)} |"
        yield f"| {' | '.join(['---'] * len(head))} |"
        for each in figures:
            about = each.help + (f" ({', '.join(each.values)})" if each.values else "")
            place = f"`{each.path}`" + (f" ({each.fold})" if each.fold else "") if each.path else "beside it"
            labels = ", ".join(("engine", *each.labels))
            cells = [f"`{each.metric}`", each.kind, labels, each.unit, place, each.writer, about]
            if not metrics:
                cells = [f"`{each.path}`", each.kind, each.unit, each.writer, about]
            yield f"| {' | '.join(cells)} |"

    return "\n".join(
        [
            "# Metrics",
            "",
            "Written by `python -m shardmem.status.figures` from the declarations in `shardmem/status/figures.py`; a "
            "test",
            "compares the two, and another compares the declarations with a document of `shardmem status --json`.",
            "",
            "`GET /metrics` on the control API gives the first table, as Prometheus text or, if asked for, as "
            "OpenMetrics.",
            "Rates and shares of time in the document are taken over at least a fifth of a second, if it was read "
            "before; for",
            "Prometheus, take `rate()` of the counters. A figure that is null has no sample. Counters of a shard begin "
            "again",
            "when it is removed and its number is used again; those of the engine do not.",
            "",
            *table([each for each in FIGURES if each.metric], metrics=True),
            "",
            "## In the status document only",
            "",
            *table([each for each in FIGURES if not each.metric], metrics=False),
            "",
        ]
    )


if __name__ == "__main__":
    print(page(), end="")
