"""The status document, as types: what `status()` returns and `shardmem status --json` prints.

http/answers.py has the same as a JSON schema, made of the declared figures; a test compares the two.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal, TypedDict

Level = Literal["info", "warning", "error"]
OUTBOX = "outbox"  # the kind of what publishes
LEVELS: tuple[Level, ...] = ("error", "warning", "info")  # the worst first; findings, history and doctor use these


class EngineStatus(TypedDict):
    name: str
    state: str
    slots: int
    slots_unowned: int
    schema: dict[str, Any]
    lane_bytes: int
    max_shards: int
    max_producers: int
    quarantine_file: str | None
    quarantine_held: int | None
    ready_while_waiting: bool
    http: str | None
    memory: str
    socket: str | None
    version: str | None  # of its supervisor, as it last said; handler and host too
    handler: str | None
    host: str | None
    shm_bytes: int
    shm_free_bytes: int | None
    shm_size_bytes: int | None
    state_bytes: int | None
    state_age_s: float | None


class MachineStatus(TypedDict):
    """The machine that all share. What cannot be seen is None."""

    cores: int
    load_1m: float | None
    memory_free_bytes: int | None
    memory_size_bytes: int | None


class SupervisorStatus(TypedDict):
    pid: int
    incarnation: int
    alive: bool
    uptime_s: float
    heartbeat_age_s: float | None


class ShardStatus(TypedDict):
    id: int
    state: str
    condition: str
    reason: str
    error: str
    pid: int
    alive: bool
    incarnation: int
    phase: str
    uptime_s: float | None
    slots: int
    accepted: int
    handled: int
    quarantined: int
    skipped: int
    shed: int
    lost: int
    in_flight: int
    oldest_s: float | None  # how long ago the first of them was sent
    fill_ratio: float
    busy: float
    rate: float
    batches: int
    in_hand_s: float | None
    waiting_s: float | None
    next_try_s: float | None
    on_trial: int
    checkpoints: int
    checkpoint_s: float  # all together
    last_checkpoint_s: float | None
    checkpoint_age_s: float | None
    lanes: int
    broken_lanes: list[int]
    memory: str
    latency_p50_us: float | None
    latency_p99_us: float | None
    recent_p50_us: float | None
    recent_p99_us: float | None
    batch_rows_p50: int | None
    batch_rows_p99: int | None
    cpu: float | None
    rss_bytes: int | None
    crashes: int
    recent_crashes: int
    last_exit: str | None
    restarting_in_s: float | None


class ProducerStatus(TypedDict):
    seat: int
    client: str | None  # what it calls itself
    pid: int
    alive: bool
    incarnation: int
    accepted: int
    sequence: int
    in_push: bool
    rate: float
    blocked: float
    refused: dict[str, int]
    blocked_s: float
    blocked_count: int


class PartitionStatus(TypedDict):
    offset: int  # all before it was pushed
    at: str  # what the source says besides: "line 7"
    committed: int | None  # all before it was handled, and that is written down; null: nothing yet
    lag: int | None  # bytes that were not read, of a broker events that were not committed; null: that cannot be told
    state: str


class SourceStatus(TypedDict):
    name: str
    kind: str
    pid: int
    alive: bool
    incarnation: int
    state: str
    paused: bool
    error: str | None
    seat: int | None
    events: int
    bytes: int
    skipped: int
    reasons: dict[str, int]
    lag_bytes: int | None
    lag_events: int | None
    group: str | None
    epoch: int | None
    apart: list[str]  # partitions that are not here, while others of their number are
    waits_for: str | None
    remote: str | None
    remote_error: str | None
    remote_error_age_s: float | None
    uploaded_age_s: float | None
    partitions: dict[str, PartitionStatus]
    last_commit_age_s: float | None


def feeding(sources: Iterable[SourceStatus]) -> list[SourceStatus]:
    """Those that feed the engine: what publishes for its handlers is shown among them."""
    return [each for each in sources if each["kind"] != OUTBOX]


HandoffStatus = TypedDict(
    "HandoffStatus", {"slot": int, "from": int, "to": int, "phase": str, "age_s": float, "late": bool}
)


class Moves(TypedDict):
    """How slots move. automatic: by themselves, as the load asks for. planned: moves that the strategy would make now.
    wished: slots that somebody wants elsewhere and that are not there yet. held_back: why nothing moves by itself;
    empty: it does. complaints: what is wrong with the strategy's last plan.
    """

    automatic: bool
    suspended: bool
    planned: int
    wished: int
    held_back: str
    complaints: list[str]


class Pin(TypedDict):
    """slots: as `pin` takes them, "17,40-60"."""

    shard: int
    slots: str


class Decision(TypedDict):
    kind: str
    cause: str
    reason: str
    advice: str | None
    count: int
    age_s: float
    since_s: float
    times: int


class HistoryEntry(TypedDict):
    at: float
    kind: str
    shard: int | None
    text: str
    level: Level


class HotSlot(TypedDict):
    slot: int
    shard: int
    share: float
    alone: bool


class Accounting(TypedDict):
    offered: int
    accepted: int
    refused: dict[str, int]
    handled: int
    quarantined: int
    skipped: int
    shed: dict[str, int]
    in_flight: int


class Latency(TypedDict):
    p50_us: float | None
    p99_us: float | None


class Order(TypedDict):
    """A command of the control API."""

    name: str
    body: dict[str, Any]


class Finding(TypedDict):
    """What is wrong, and what helps: `command` is for a shell, `order` the same for the control API. shards: all that
    it is about, the first of them as `shard` too."""

    level: Level
    kind: str
    shard: int | None
    shards: list[int]
    text: str
    advice: str
    command: str | None
    order: Order | None


class Status(TypedDict):
    engine: EngineStatus
    supervisor: SupervisorStatus
    machine: MachineStatus
    shards: list[ShardStatus]
    producers: list[ProducerStatus]
    sources: list[SourceStatus]
    handoffs: list[HandoffStatus]
    moves: Moves
    cordoned: list[int]
    pins: list[Pin]
    auto_scale: bool
    elastic: bool
    decisions: list[Decision]
    hot_slots: list[HotSlot]
    history: list[HistoryEntry]
    events: list[HistoryEntry]  # the name that `history` had in 0.1; goes with 0.3
    accounting: Accounting
    latency: Latency
    findings: list[Finding]


class Where(TypedDict):
    """Where the events of a key go. shard: handles them now; None: no shard has the slot yet. owner_since: seconds
    since the slot came to it; None: it has had it from the start, or is giving it up. moving_to: a handoff is under
    way.
    """

    key: int | str
    slot: int
    shard: int | None
    pid: int | None
    incarnation: int | None
    owner_since: float | None
    moving_to: int | None


class Lane(TypedDict):
    """An open lane of a shard, and whose it is."""

    seat: int
    pid: int
    alive: bool
    accepted: int
    handled: int
    in_flight: int
    fill_ratio: float
    broken: bool
