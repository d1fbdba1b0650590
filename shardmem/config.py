"""The settings of an engine: TOML, then SHARDMEM_* variables, then flags. One error lists all faults."""
from __future__ import annotations

import base64
import difflib
import importlib
import os
import pickle
import re
import sys
import tempfile
from dataclasses import asdict, dataclass, fields, is_dataclass
from typing import Any, Mapping

from shardmem.errors import ConfigError
from shardmem.schema import Schema

_UNITS = {"": 1, "B": 1, "K": 1000, "KB": 1000, "KIB": 1 << 10, "M": 10**6, "MB": 10**6, "MIB": 1 << 20, "G": 10**9,
          "GB": 10**9, "GIB": 1 << 30}
_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}
PRESETS = ("default", "high_throughput", "conservative")
STRATEGIES = ("least_load", "least_slots")
BACKPRESSURE = ("block", "fail", "drop_newest", "drop_oldest", "sample")


@dataclass(frozen=True)
class Config:
    """Checked settings. `Config.of` makes one from loose values; `load` from a file, the environment and flags."""

    name: str
    handler: Any
    dtype: Any = None
    key: str | None = None
    slots: int = 1024
    shards: int | None = None
    min_shards: int = 1
    max_shards: int | None = None
    lane_bytes: int = 1 << 20
    max_producers: int = 64
    backpressure: str = "block"
    batch_rows: int = 4096
    spin_us: int = 50
    boot_timeout: float = 30.0
    drain_timeout: float | None = None
    state_dir: str | None = None
    auto_scale: bool = True
    policy: Any = None
    strategy: Any = None
    max_restarts: int = 10
    restart_window: float = 60.0
    stall_timeout: float = 30.0
    batch_deadline: float | None = None
    recycle_batches: int | None = None
    recycle_age: float | None = None
    recycle_rss: int | None = None

    @property
    def elastic(self) -> bool:
        """Whether the policy may change the number of shards: not when `shards` fixes it, or there is room for no other."""
        return self.auto_scale and self.shards is None and self.most_shards > self.min_shards

    @property
    def state_file(self) -> str:
        """Where the state of slots of a stateful handler is kept."""
        directory = self.state_dir or os.path.join(tempfile.gettempdir(), f"shardmem-{os.getuid()}")
        return os.path.join(directory, f"{self.name}.state")

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
        chosen = dict(self.policy) if isinstance(self.policy, Mapping) else {"preset": self.policy} if self.policy else {}
        return {**chosen, "min_shards": self.min_shards if self.elastic else 1, "max_shards": self.most_shards,
                "auto_scale": self.elastic}

    @classmethod
    def of(cls, **values: Any) -> Config:
        """Checked. Raises ConfigError with every fault."""
        faults: list[str] = []
        known = {each.name for each in fields(cls)}
        for key in sorted(values.keys() - known):
            near = difflib.get_close_matches(key, known, 1)
            faults.append(f"{key} is not a setting{f'; did you mean {near[0]}?' if near else ''}")
        values = {key: value for key, value in values.items() if key in known}
        for key in ("slots", "shards", "min_shards", "max_shards", "lane_bytes", "max_producers", "batch_rows", "spin_us",
                    "max_restarts", "recycle_batches", "recycle_rss"):
            if values.get(key) is not None:
                values[key] = _whole(key, values[key], cls.__dataclass_fields__[key].default, faults)
        _plain_policy(values)
        if isinstance(values.get("auto_scale"), str):  # from the environment
            values["auto_scale"] = {"true": True, "1": True, "false": False, "0": False}.get(values["auto_scale"].lower(),
                                                                                             values["auto_scale"])
        for key in ("boot_timeout", "drain_timeout", "restart_window", "stall_timeout", "batch_deadline", "recycle_age"):
            if values.get(key) is not None:
                values[key] = _duration(key, values[key], faults)
        for key in ("name", "handler"):
            if not values.get(key):
                faults.append(f"{key} is missing")
                values.setdefault(key, None)
        config = cls(**values)
        faults += config._faults()
        if faults:
            raise ConfigError(faults)
        return config

    def _faults(self) -> list[str]:
        found = []

        def within(key: str, low: int, high: int) -> None:
            value = getattr(self, key)
            if isinstance(value, int) and not low <= value <= high:
                found.append(f"{key}={value:,} is outside {low:,} to {high:,}")

        within("slots", 1, 65536)
        within("shards", 1, 1024)
        within("min_shards", 1, 1024)
        within("max_shards", 1, 1024)
        within("lane_bytes", 4096, 1 << 31)
        within("max_producers", 1, 512)
        within("batch_rows", 1, 1 << 20)
        within("spin_us", 0, 1_000_000)
        within("max_restarts", 0, 1_000_000)
        within("recycle_batches", 1, 1 << 62)
        within("recycle_rss", 1, 1 << 62)
        if self.stall_timeout < 0.25:
            found.append(f"stall_timeout={self.stall_timeout:g} is less than 0.25 s: an idle worker gives a sign every 0.1 s")
        for key in ("slots", "lane_bytes"):
            value = getattr(self, key)
            if isinstance(value, int) and value > 0 and value & (value - 1):
                found.append(f"{key}={value:,} is not a power of two; the next is {1 << value.bit_length():,}")
        if self.max_shards is not None and self.max_shards < self.start_shards:
            found.append(f"max_shards={self.max_shards} is less than the {self.start_shards} to start with "
                         f"({'shards' if self.shards is not None else 'min_shards'})")
        if isinstance(self.slots, int) and self.slots < self.start_shards:
            found.append(f"slots={self.slots} is less than the {self.start_shards} shards that would own them")
        if not isinstance(self.auto_scale, bool):
            found.append(f"auto_scale={self.auto_scale!r} is neither true nor false")
        if self.policy is not None and not isinstance(self.policy, (str, Mapping)):
            found.append(f"policy={self.policy!r} is neither the name of a preset nor a table of settings")
        if isinstance(self.policy, str) and self.policy not in PRESETS:
            found.append(f"policy={self.policy!r} is not one of {', '.join(PRESETS)}")
        if self.strategy is not None and self.strategy not in STRATEGIES and not (
                isinstance(self.strategy, str) and re.fullmatch(r"[\w.]+:[\w.]+|pickle:.+", self.strategy)):
            found.append(f"strategy={self.strategy!r} is not one of {', '.join(STRATEGIES)} and not module:Class")
        if self.backpressure not in BACKPRESSURE:
            found.append(f"backpressure={self.backpressure!r} is not one of {', '.join(BACKPRESSURE)}")
        if self.name is not None and not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}", str(self.name)):
            found.append(f"name={self.name!r} is not usable: 1 to 64 letters, digits, '-' or '_', the first a letter or digit")
        try:
            schema = self.schema
            rows = schema.geometry()["row_bytes"]
            if isinstance(self.lane_bytes, int) and rows + 64 > self.lane_bytes // 2:
                found.append(f"lane_bytes={self.lane_bytes:,} is too small for rows of {rows:,} bytes: half a lane must hold one")
        except ConfigError as error:
            found += error.faults
        return found


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


def load(path: str | None, flags: Mapping[str, Any], environ: Mapping[str, str] = os.environ) -> Config:
    """From a TOML file (or None), SHARDMEM_* variables and flags, the later winning. Raises ConfigError."""
    values: dict[str, Any] = {}
    if path is not None:
        values.update(_read_toml(path))
        values.setdefault("name", re.sub(r"[^A-Za-z0-9_-]", "-", os.path.splitext(os.path.basename(path))[0]))
    known = {each.name for each in fields(Config)}
    for variable, text in environ.items():
        key = variable[len("SHARDMEM_"):].lower()
        if variable.startswith("SHARDMEM_") and key in known:
            values[key] = text
    values.update({key: value for key, value in flags.items() if value is not None})
    if isinstance(values.get("dtype"), str) and ":" in values["dtype"]:
        values["dtype"] = _imported(values["dtype"])
    elif isinstance(values.get("dtype"), list):
        values["dtype"] = [tuple(entry) if isinstance(entry, list) else entry for entry in values["dtype"]]
    return Config.of(**values)


def _read_toml(path: str) -> dict[str, Any]:
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
    try:
        with open(path, "rb") as file:
            return tomllib.load(file)
    except FileNotFoundError:
        raise ConfigError(f"there is no file {path}") from None
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path} is not valid TOML: {error}") from None


def _imported(spec: str) -> Any:
    module, _, name = spec.partition(":")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"dtype={spec!r} cannot be imported: {error}") from None


def _whole(key: str, value: Any, default: int | None, faults: list[str]) -> int | None:
    """The number, or the default beside a fault, so that one mistake is not reported twice."""
    if isinstance(value, bool) or not isinstance(value, (int, str)):
        faults.append(f"{key}={value!r} is not a whole number")
        return default
    if isinstance(value, int):
        return value
    match = re.fullmatch(r"\s*([0-9]+(?:_[0-9]+)*)\s*([A-Za-z]*)\s*", value)
    if not match or match[2].upper() not in _UNITS:
        faults.append(f"{key}={value!r} is not a number (units: KiB, MiB, GiB, kB, MB, GB)")
        return default
    return int(match[1].replace("_", "")) * _UNITS[match[2].upper()]


def _duration(key: str, value: Any, faults: list[str]) -> float:
    if isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value < float("inf"):
        return float(value)
    match = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]*)?)\s*(ms|s|m|h)?\s*", value) if isinstance(value, str) else None
    if not match:
        faults.append(f"{key}={value!r} is not a duration (seconds, or a number with ms, s, m, h)")
        return 0.0
    return float(match[1]) * _SECONDS[match[2] or "s"]
