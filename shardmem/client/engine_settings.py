"""The settings of `Engine(...)` for type checkers; declared with help, limits and defaults in config.py, and compared
with it by a test."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypedDict

from shardmem.runtime.batch import Batch
from shardmem.runtime.call import Mode

if TYPE_CHECKING:
    from numpy.typing import DTypeLike

    from shardmem.policy import ScalingPolicy
    from shardmem.policy.placement import Strategy

Seconds = float | str  # 0.25, "250ms", "2s", "5m", "1h"
Bytes = int | str  # 1 << 20, "1MiB", "64kB"


class Handles(Protocol):
    """What a handler needs at least; `shardmem.Handler` has more."""

    def handle(self, batch: Batch, /) -> Any: ...


HandlerLike = str | Callable[[Batch], Any] | Handles | type[Handles]


class EngineSettings(TypedDict, total=False):
    """Durations in seconds, sizes in bytes, or text with a unit. None: what docs/settings.md says of a setting that is
    not set."""

    dtype: DTypeLike | None
    key: str | None
    slots: int
    shards: int | None
    min_shards: int
    max_shards: int | None
    lane_bytes: Bytes
    max_producers: int
    backpressure: Mode
    batch_rows: int
    spin_us: int
    boot_timeout: Seconds
    drain_timeout: Seconds | None
    state_dir: str | None
    state: Mapping[str, Any] | None
    auto_scale: bool
    policy: str | Mapping[str, Any] | ScalingPolicy | None
    source: str | Mapping[str, Any] | Sequence[Mapping[str, Any]] | None
    outbox: str | Mapping[str, Any] | None
    strategy: str | Strategy | None
    on_error: Literal["retry", "quarantine", "stop"]
    max_attempts: int
    retry_backoff: Seconds
    retry_on: str | Sequence[str | type[BaseException]]
    retry_max_wait: Seconds
    retry_for: Seconds | None
    ready_while_waiting: bool
    quarantine_limit: int
    checkpoint_interval: Seconds
    state_cache_bytes: Bytes
    max_restarts: int
    restart_window: Seconds
    spares: int
    stall_timeout: Seconds
    batch_deadline: Seconds | None
    recycle_batches: int | None
    recycle_age: Seconds | None
    recycle_rss: Bytes | None
    log_format: Literal["human", "json"]
    log_level: Literal["debug", "info", "warning", "error"] | None
    http_port: int | None
    http_address: str
    http_allowed_hosts: str | Sequence[str]
    http_token: str | None
