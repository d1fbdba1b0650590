"""What an engine is, as a text in its control segment: written once, read by whoever attaches, and believed only after
a look: it lies in memory that any process of this user can have damaged."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from shardmem.errors import SegmentCorrupt
from shardmem.memory.native import ffi
from shardmem.schema import BACKPRESSURE, Schema

if TYPE_CHECKING:
    from shardmem.memory.native import sm_geometry


@dataclass(frozen=True)
class Description:
    """backpressure: what producers do on a full lane, unless they say otherwise. state_dir: where its workers keep
    state and quarantine. is_named: it may be run again; an unnamed one ends for good."""

    engine: str
    schema: Schema
    max_shards: int
    backpressure: str
    state_dir: str
    is_named: bool = True

    def to_json(self) -> bytes:
        """Without the name of the engine, which has a place of its own."""
        text = {
            **self.schema.describe(),
            "backpressure": self.backpressure,
            "state_dir": self.state_dir,
            "max_shards": self.max_shards,
        }
        if not self.is_named:
            text["named"] = False
        return json.dumps(text, separators=(",", ":")).encode()

    @classmethod
    def of(cls, segment: str, geometry: sm_geometry) -> Description:
        """As the segment of that name says. Raises SegmentCorrupt."""
        try:
            engine = ffi.string(geometry.name).decode()
            text = ffi.string(geometry.schema, geometry.schema_bytes).decode()
            found = json.loads(text)
            schema = Schema.from_json(text)
            made = cls(
                engine,
                schema,
                _of_type(int, found.get("max_shards", geometry.max_shards)),
                _of_type(str, found.get("backpressure", "block")),
                _of_type(str, found.get("state_dir", "")),
                _of_type(bool, found.get("named", True)),
            )
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError, MemoryError, OverflowError) as error:
            raise _damaged(segment, f"{type(error).__name__}: {error}") from None
        if not 1 <= made.max_shards <= geometry.max_shards:
            raise _damaged(segment, f"max_shards is {made.max_shards}, and there is room for {geometry.max_shards}")
        if made.backpressure not in BACKPRESSURE:
            raise _damaged(segment, f"backpressure is {made.backpressure!r}")
        if "\0" in made.state_dir:
            raise _damaged(segment, f"state_dir is {made.state_dir!r}")
        if any(getattr(geometry, name) != value for name, value in schema.geometry().items()):
            raise _damaged(segment, "its dtype is not the one whose rows it has room for")
        return made


def _of_type(kind: type, value: Any) -> Any:
    if type(value) is not kind:
        raise TypeError(f"{value!r} where there should be an {kind.__name__}")
    return value


def _damaged(segment: str, why: str) -> SegmentCorrupt:
    return SegmentCorrupt(
        f"{segment} is damaged: its description of the engine cannot be understood ({why})",
        hint="Stop what still runs of that engine, and remove the segment: `shardmem gc --discard NAME`",
    )
