"""The settings of an engine: TOML, then SHARDMEM_* variables, then flags. One error lists all faults."""

from __future__ import annotations

import base64
import builtins
import difflib
import ipaddress
import os
import pickle
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, is_dataclass
from typing import Any

from shardmem.errors import ConfigError
from shardmem.places import temporary_directory
from shardmem.schema import BACKPRESSURE, Schema
from shardmem.settings import REQUIRED, declared, setting
from shardmem.settings_sources import Sources
from shardmem.state_settings import remote_settings
from shardmem.text import plural

PRESETS = ("default", "high_throughput", "conservative")
STRATEGIES = ("least_load", "least_slots")
ON_ERROR = ("retry", "quarantine", "stop")
LOG_FORMATS = ("human", "json")
LOG_LEVELS = ("debug", "info", "warning", "error")

Further = Callable[["Config"], "list[str]"]


@dataclass(frozen=True)
class Config:
    """Checked settings. `Config.of` makes one from loose values; `load` from a file, the environment and flags."""

    name: str = setting(REQUIRED, "name of the engine; default: from the file or the module")
    handler: Any = setting(REQUIRED, "module:name of the function or Handler that takes batches", "object")
    dtype: Any = setting(
        None,
        "module:NAME of a numpy structured dtype, or in a file a list of fields: a records engine",
        "object",
        unset="none: an events engine",
    )
    key: str | None = setting(
        None, "the field of dtype that is the key", unset="none: keys come with each event, if any"
    )
    slots: int = setting(
        1024,
        "hash buckets of keys, the unit of ownership and movement",
        "number",
        least=1,
        most=65536,
        power_of_two=True,
    )
    shards: int | None = setting(
        None, "fixed number of worker processes", "number", least=1, most=1024, unset="from min_shards to max_shards"
    )
    min_shards: int = setting(
        1, "shards to start with, and the fewest, when `shards` is not set", "number", least=1, most=1024
    )
    max_shards: int | None = setting(None, "the most shards", "number", least=1, most=1024, unset="the number of cores")
    lane_bytes: int = setting(
        1 << 20,
        "ring of each producer to each shard; half of it is the largest event",
        "bytes",
        least=4096,
        most=1 << 31,
        power_of_two=True,
    )
    max_producers: int = setting(64, "how many producers can be connected at once", "number", least=1, most=512)
    backpressure: str = setting("block", "what a producer does when a lane is full", "choice", choices=BACKPRESSURE)
    batch_rows: int = setting(4096, "the most events of a batch", "number", least=1, most=1 << 20)
    spin_us: int = setting(50, "the longest spin before a process sleeps", "microseconds", least=0, most=1_000_000)
    boot_timeout: float = setting(30.0, "how long a worker may take to get ready", "seconds")
    drain_timeout: float | None = setting(
        None,
        "how long a stop waits for events to be handled",
        "seconds",
        unset="until all are handled, or none was for a minute",
    )
    state_dir: str | None = setting(
        None,
        "directory for the state of stateful handlers and for the quarantine",
        unset="a private directory in the temporary directory",
    )
    state: Any = setting(
        None,
        "in a file a table [state]: where the state of partitions is kept for other hosts",
        "object",
        unset="nowhere",
    )
    auto_scale: bool = setting(True, "whether the policy may change the number of shards", "switch")
    policy: Any = setting(
        None,
        "when to scale: default, high_throughput, conservative, or in a file a table [policy]",
        "object",
        unset="default",
    )
    source: Any = setting(
        None,
        "what feeds the engine: file:PATH?format=jsonl&key=user, or in a file tables [source] or [[source]]",
        "object",
        unset="none",
    )
    outbox: Any = setting(
        None,
        "where messages of context.outbox go: kafka://host:port, or in a file a table [outbox.kafka]",
        "object",
        unset="the broker of a source of kind kafka",
    )
    strategy: Any = setting(
        None, "where slots go: least_load, least_slots, or module:Class of your own", "object", unset="least_load"
    )
    on_error: str = setting(
        "retry",
        "when the handler raises: try again and quarantine in the end, quarantine at once, or stop",
        "choice",
        choices=ON_ERROR,
    )
    max_attempts: int = setting(
        3, "how often one event may fail, alone, before it is quarantined", "number", least=1, most=1000
    )
    retry_backoff: float = setting(0.1, "the pause before the second attempt; it doubles with each attempt", "seconds")
    retry_on: Any = setting(
        ("ConnectionError", "TimeoutError"),
        "exceptions of the handler after which the shard waits and tries again: built-in names, or module.Name",
        "names",
    )
    retry_max_wait: float = setting(30.0, "the longest wait between two such tries; they begin with 0.1 s", "seconds")
    retry_for: float | None = setting(
        None,
        "how long a shard waits like that before such an exception counts as any other",
        "seconds",
        unset="for as long as it takes",
    )
    ready_while_waiting: bool = setting(
        True, "whether /readyz says that the engine is ready while a shard waits like that", "switch"
    )
    quarantine_limit: int = setting(
        10_000, "events in quarantine at which a shard waits rather than add another", "number", least=0, most=10**9
    )
    checkpoint_interval: float = setting(0.5, "how often state is saved under load", "seconds")
    state_cache_bytes: int = setting(
        256 << 20,
        "about how much memory of a worker values of keyed state may take; the rest is read from its file",
        "bytes",
        least=1 << 20,
        most=1 << 46,
    )
    max_restarts: int = setting(
        10,
        "crashes within restart_window, with no event in hand, after which a shard counts as failed; it is tried again",
        "number",
        least=0,
        most=1_000_000,
    )
    restart_window: float = setting(60.0, "the time over which max_restarts counts", "seconds")
    spares: int = setting(
        1,
        "processes that have imported the handler's module and wait to become workers: milliseconds instead of a start",
        "number",
        least=0,
        most=64,
    )
    stall_timeout: float = setting(
        30.0, "a worker that does not loop for this long, without a batch in hand, is stuck", "seconds"
    )
    batch_deadline: float | None = setting(
        None, "a worker that has had one batch in hand for longer is stuck", "seconds", unset="no limit"
    )
    recycle_batches: int | None = setting(
        None, "a worker that has handled this many batches is replaced", "number", least=1, most=1 << 62, unset="never"
    )
    recycle_age: float | None = setting(None, "a worker that is older is replaced", "seconds", unset="never")
    recycle_rss: int | None = setting(
        None, "a worker with more resident memory is replaced", "bytes", least=1, most=1 << 62, unset="never"
    )
    log_format: str = setting(
        "human", "format of the log on standard error: text for people, or JSON", "choice", choices=LOG_FORMATS
    )
    log_level: str | None = setting(
        None,
        "the lowest level that is logged",
        "choice",
        choices=LOG_LEVELS,
        unset="info; warning for the supervisor of an embedded engine",
    )

    http_port: int | None = setting(
        None,
        "TCP port for status, metrics, health and the page; 0: any free one, see status",
        "number",
        least=0,
        most=65535,
        unset="none: the unix socket only",
    )
    http_address: str = setting(
        "127.0.0.1",
        "address to listen on with http_port; 0.0.0.0: all. From other machines, without the token, health and metrics",
    )
    http_allowed_hosts: Any = setting(
        (),
        "names besides localhost by which clients may call it, as in the header Host; .example.com: all below it",
        "names",
    )
    http_token: str | None = setting(
        None,
        "required over TCP for commands and users' data, as Authorization: Bearer; best given as SHARDMEM_HTTP_TOKEN",
        unset="TCP is read-only",
        secret=True,
    )

    @property
    def elastic(self) -> bool:
        """Whether the policy may change the number of shards: not when `shards` fixes it, or there is room for no
        other."""
        return self.auto_scale and self.shards is None and self.most_shards > self.min_shards

    @property
    def directory(self) -> str:
        """Where state and quarantine are kept: `state_dir`, or a directory that lasts as long as /tmp does."""
        return os.path.abspath(self.state_dir) if self.state_dir else default_directory()

    @property
    def outbox_table(self) -> dict[str, Any] | None:
        """As a table of [source] says what its process does; None: handlers have no outbox."""
        given, sources = self.outbox, self.source if isinstance(self.source, (list, tuple)) else [self.source]
        for each in sources if given is None else ():
            kind = each.get("kind") if isinstance(each, Mapping) else str(each).partition(":")[0]
            given = each if given is None and kind == "kafka" else given
        if given is None:
            return None
        table = {"kafka": given.get("kafka", {})} if isinstance(given, Mapping) else {"url": str(given)}
        return {"kind": "outbox", "name": "outbox", **table}

    def worker_settings(self) -> dict[str, Any]:
        """What a worker is told of these settings, as JSON."""
        return {
            "batch_rows": self.batch_rows,
            "spin_us": self.spin_us,
            "stall_timeout": self.stall_timeout,
            "checkpoint_interval": self.checkpoint_interval,
            "log_format": self.log_format,
            "log_level": self.log_level or "info",
            "log_file": log_file(self.directory, self.name),
            "state_files": state_directory(self.directory, self.name),
            "state_cache_bytes": self.state_cache_bytes,
            "outbox": self.outbox_table is not None,
            "keep_state": self.state_dir is not None,
            "failures": {
                "on_error": self.on_error,
                "max_attempts": self.max_attempts,
                "retry_backoff": self.retry_backoff,
                "retry_on": list(self.retry_on),
                "retry_max_wait": self.retry_max_wait,
                "retry_for": self.retry_for,
                "quarantine_file": quarantine_file(self.directory, self.name),
                "quarantine_limit": self.quarantine_limit,
            },
        }

    @property
    def schema(self) -> Schema:
        return Schema.of(self.dtype, self.key)

    @property
    def start_shards(self) -> int:
        """How many shards the engine starts with."""
        return self.shards if self.shards is not None else self.min_shards

    @property
    def most_shards(self) -> int:
        """How many shards the control segment has room for."""
        return max(self.start_shards, self.max_shards or os.cpu_count() or 1)

    def policy_settings(self) -> dict[str, Any]:
        """The scaling policy by name and value, limits included: what ScalingPolicy is made of."""
        chosen = (
            dict(self.policy) if isinstance(self.policy, Mapping) else {"preset": self.policy} if self.policy else {}
        )
        return {
            **chosen,
            "min_shards": self.min_shards if self.elastic else 1,
            "max_shards": self.most_shards,
            "auto_scale": self.elastic,
        }

    @classmethod
    def of(cls, **values: Any) -> Config:
        """Checked. Raises ConfigError with every fault."""
        config, faults = cls.checked(values)
        if faults:
            raise ConfigError(faults)
        return config

    @classmethod
    def checked(cls, values: Mapping[str, Any]) -> tuple[Config, list[str]]:
        """The settings, with defaults in the place of what could not be read, and every fault."""
        known, faults = declared(cls), []
        for key in sorted(values.keys() - known.keys()):
            near = difflib.get_close_matches(key, known, 1)
            faults.append(f"{key} is not a setting{f'; did you mean {near[0]}?' if near else ''}")
        given = {key: value for key, value in values.items() if key in known}
        _plain_policy(given)
        for key, each in known.items():
            if each.required and not given.get(key):
                faults.append(f"{key} is missing")
                given[key] = None
            elif given.get(key) is not None:
                given[key] = each.read(given[key], faults.append)
        config = cls(**given)
        return config, faults + config._faults()

    def _faults(self) -> list[str]:
        found = [fault for key, each in declared(Config).items() for fault in each.faults(getattr(self, key))]
        if self.stall_timeout < 0.25:
            found.append(
                f"stall_timeout={self.stall_timeout:g} is less than 0.25 s: an idle worker may be quiet for 0.1 s"
            )
        if self.http_token is not None and (not self.http_token or self.http_token != self.http_token.strip()):
            found.append("http_token is empty, or has white space around it, which a header cannot carry")
        try:
            ipaddress.ip_address(self.http_address)
        except ValueError:
            found.append(f"http_address={self.http_address!r} is not an IP address; 0.0.0.0 stands for all of them")
        found += [
            f"retry_on: {name!r} is neither a built-in exception nor module.Name"
            for name in self.retry_on
            if not (re.fullmatch(r"\w+(\.\w+)+", name) or _is_exception(name))
        ]
        if self.max_shards is not None and self.max_shards < self.start_shards:
            found.append(
                f"max_shards={self.max_shards} is less than the {self.start_shards} to start with "
                f"({'shards' if self.shards is not None else 'min_shards'})"
            )
        if isinstance(self.slots, int) and self.slots < self.start_shards:
            found.append(f"slots={self.slots} is less than the {self.start_shards} shards that would own them")
        if self.policy is not None and not isinstance(self.policy, (str, Mapping)):
            found.append(f"policy={self.policy!r} is neither the name of a preset nor a table of settings")
        if isinstance(self.policy, str) and self.policy not in PRESETS:
            found.append(f"policy={self.policy!r} is not one of {', '.join(PRESETS)}")
        if (
            self.strategy is not None
            and self.strategy not in STRATEGIES
            and not (isinstance(self.strategy, str) and re.fullmatch(r"[\w.]+:[\w.]+|pickle:.+", self.strategy))
        ):
            found.append(f"strategy={self.strategy!r} is not one of {', '.join(STRATEGIES)} and not module:Class")
        if self.name is not None and not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}", str(self.name)):
            found.append(
                f"name={self.name!r} is not usable: 1 to 64 letters, digits, '-' or '_', the first a letter or digit"
            )
        try:
            remote_settings(self.state)
        except ConfigError as error:
            found += error.faults
        try:
            schema = self.schema
            rows = schema.geometry()["row_bytes"]
            if isinstance(self.lane_bytes, int) and rows + 64 > self.lane_bytes // 2:
                what = f"rows of {plural(rows, 'byte')}" if rows else "events"
                found.append(f"lane_bytes={self.lane_bytes:,} is too small for {what}: half a lane must hold one")
        except ConfigError as error:
            found += error.faults
        return found


def _is_exception(name: str) -> bool:
    found = getattr(builtins, name, None)
    return isinstance(found, type) and issubclass(found, BaseException)


def default_directory() -> str:
    return temporary_directory(os.getuid())


def state_directory(directory: str, engine: str) -> str:
    return os.path.join(directory, f"{engine}.state")


def log_file(directory: str, engine: str) -> str:
    return os.path.join(directory, f"{engine}.log")


def quarantine_file(directory: str, engine: str) -> str:
    return os.path.join(directory, f"{engine}.quarantine")


def _plain_policy(values: dict[str, Any]) -> None:
    """A ScalingPolicy as a table, its limits as settings; a strategy that is an object as text that can be sent."""
    policy, strategy = values.get("policy"), values.get("strategy")
    if is_dataclass(policy) and not isinstance(policy, type):
        table = asdict(policy)
        for key in ("min_shards", "max_shards", "auto_scale"):
            values.setdefault(key, table.pop(key))
        values["policy"] = table
    if strategy is not None and not isinstance(strategy, str):
        values["strategy"] = "pickle:" + base64.b64encode(pickle.dumps(strategy)).decode()


def load(
    path: str | None,
    flags: Mapping[str, Any],
    environ: Mapping[str, str] = os.environ,
    further: Further = lambda config: [],
) -> Config:
    """From a TOML file (or None), SHARDMEM_* variables and flags, the later winning. Raises ConfigError with every
    fault."""
    return sourced(path, flags, environ, further)[0]


def sourced(
    path: str | None,
    flags: Mapping[str, Any],
    environ: Mapping[str, str] = os.environ,
    further: Further = lambda config: [],
) -> tuple[Config, Sources]:
    """As `load`, and which source each value is from. further: finds the faults that this module cannot know."""
    sources = Sources(path, flags, environ, declared(Config))
    config, faults = Config.checked(sources.values)
    faults = sources.faults + faults + further(config)
    if faults:
        raise ConfigError(sources.located(faults))
    return config, sources
