"""The kinds of source. Each is one module, which is imported when a configuration names it; or a class of the user's
own, "module:Class"."""

from __future__ import annotations

import importlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar, cast
from urllib.parse import SplitResult

from shardmem.errors import ConfigError
from shardmem.schema import Schema
from shardmem.settings import declared, setting
from shardmem.sources.contract import Source

KINDS = {
    "file": "shardmem.sources.files.kind",
    "kafka": "shardmem.sources.kafka.kind",
    "nats": "shardmem.sources.nats.kind",
    "fake": "shardmem.testing.fake",
}
_WORDS = r"password|passwd|secret|token|oauthbearer\.config|jaas|credential|\.pem\b|nkey|\bseed\b|creds\b"
_SECRET, _IN_QUERY = re.compile(_WORDS), re.compile(rf"(?<=[?&])([^=&]*(?:{_WORDS})[^=&]*=)[^&]*", re.IGNORECASE)


@dataclass(frozen=True)
class EngineContext:
    """What a source is told of the engine that it feeds. source: its own name. directory: where the engine keeps its
    state. largest: bytes of key and payload of the largest event. keep_all: records that are no events are wanted
    whole."""

    engine: str
    source: str
    directory: str
    schema: Schema
    largest: int
    keep_all: bool = False


@dataclass(frozen=True)
class Reach:
    """What can be found out of a broker without joining a group of it. counts: of each topic that there is. patience:
    seconds that it waits for a partition to be given up; None: that cannot be told. protocol: of its groups. together:
    whether partitions of equal number, of several topics, come to the same host."""

    counts: Mapping[str, int]
    patience: float | None = None
    protocol: str = ""
    together: bool = True


class Kind(Protocol):
    """A module. is_broker: its sources are BrokerSource, and `ownership.OwnershipSettings` are settings of theirs too.
    A broker's may have reach(settings, timeout) -> Reach, which `shardmem doctor` asks. It raises what sources raise.

    The table that `settings_of` gets is [source] without what all sources have: kind, name, on_bad, dead_letter, rate,
    and of a broker those of OwnershipSettings. Values that are "$NAME" have become the variable.
    """

    @property
    def is_broker(self) -> bool: ...

    def settings_of(self, table: Mapping[str, Any], schema: Schema) -> Any:
        """Raises ConfigError with every fault; each begins with the name of the setting. Whatever else has to be
        installed or to answer is not looked at."""
        ...

    def open_source(self, settings: Any, engine: EngineContext) -> Source:
        """In the process of the source. Raises ConfigError, SourceError."""
        ...

    def table_of(self, url: SplitResult, query: Mapping[str, Any]) -> dict[str, Any]:
        """The table [source] that a URL stands for, without its kind. Raises ConfigError."""
        ...


@dataclass(frozen=True)
class Subscription:
    """What a source of a broker reads: settings that all those kinds have."""

    topics: Any = setting(None, "topics that are read, in an order that stays: it is their number", "names")
    group: str | None = setting(None, "consumer group; its members share the partitions", unset="the engine's name")
    start: str = setting(
        "earliest", "where a partition begins that nobody has committed of", "choice", choices=("earliest", "latest")
    )
    headers: bool = setting(False, "whether batches carry the headers of events", "switch")


S = TypeVar("S", bound=Subscription)


def kind_named(name: Any) -> Kind:
    """Raises ConfigError."""
    if isinstance(name, str) and name in KINDS:
        return cast(Kind, importlib.import_module(KINDS[name]))
    if isinstance(name, str) and re.fullmatch(r"[\w.]+:[\w.]+", name):
        return OwnKind(name)
    raise ConfigError(f'kind={name!r} is not one of {", ".join(KINDS)}, or "module:Class"')


def read_table(cls: Any, table: Mapping[str, Any], faults: list[str]) -> Any:
    """A dataclass of settings from the members of a table that it declares; what is wrong with them is added to
    faults."""
    known, values = declared(cls), {}
    for name, each in known.items():
        if table.get(name) is not None:
            values[name] = each.read(table[name], faults.append)
            faults += each.faults(values[name])
    return cls(**values)


def subscription_of(table: Mapping[str, Any], faults: list[str], cls: type[S] = Subscription) -> S:  # type: ignore[assignment]
    """cls: Subscription, or what has more settings than that."""
    made: S = read_table(cls, table, faults)
    if not made.topics:
        faults.append("topics is missing: a list of names")
    elif len(set(made.topics)) < len(made.topics):
        faults.append(f"topics={','.join(made.topics)} names one twice")
    return made


def without_secrets(table: Any) -> Any:
    """A table as it may be shown: values of settings whose names speak of secrets are hidden."""
    if isinstance(table, (list, tuple)):
        return [without_secrets(each) for each in table]
    if isinstance(table, str):
        return _IN_QUERY.sub(r"\1***", re.sub(r"(?<=://)[^/@]*@", "***@", table))
    if not isinstance(table, Mapping):
        return table
    return {
        name: "***" if _SECRET.search(str(name).lower()) and value else without_secrets(value)
        for name, value in table.items()
    }


@dataclass(frozen=True)
class OwnKind:
    """A class of the user's own. It is called with the table as keyword arguments; whether it is a BrokerSource, it
    says by having `committed`."""

    name: str
    _loaded: dict[str, Any] = field(default_factory=dict, compare=False)

    def _class(self) -> Any:
        if "class" not in self._loaded:
            module, _, name = self.name.partition(":")
            try:
                found: Any = importlib.import_module(module)
                for part in name.split("."):
                    found = getattr(found, part)
            except Exception as error:
                raise ConfigError(f"kind={self.name!r} cannot be loaded: {type(error).__name__}: {error}") from None
            missing = [
                each
                for each in ("open", "poll", "pause", "resume", "seek", "lag", "commit", "close")
                if not callable(getattr(found, each, None))
            ]
            if hasattr(found, "committed"):
                missing += [
                    each
                    for each in ("partition_counts", "start", "confirmed_ns")
                    if not callable(getattr(found, each, None))
                ]
            if missing:
                raise ConfigError(
                    f"kind={self.name!r} has no {' and no '.join(missing)}; see shardmem.sources.contract"
                )
            self._loaded["class"] = found
        return self._loaded["class"]

    @property
    def is_broker(self) -> bool:
        return hasattr(self._class(), "committed")

    def settings_of(self, table: Mapping[str, Any], schema: Schema) -> Any:
        self._class()
        return dict(table)

    def open_source(self, settings: Any, engine: EngineContext) -> Source:
        try:
            made: Source = self._class()(**settings)
        except (TypeError, ValueError) as error:
            raise ConfigError(f"kind={self.name!r} refuses its settings: {error}") from None
        return made

    def table_of(self, url: SplitResult, query: Mapping[str, Any]) -> dict[str, Any]:
        raise ConfigError(f"kind={self.name!r} is written as a table [source]")
