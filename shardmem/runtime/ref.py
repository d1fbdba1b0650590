"""A key as somebody to tell something: `producer.ref("cart-17").tell(b"...")`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from shardmem.memory.engine_segment import ControlSegment
from shardmem.runtime.batch import slot_of
from shardmem.runtime.call import DEFAULT
from shardmem.state.keys import Key, plain_key

if TYPE_CHECKING:
    from typing_extensions import Buffer


class Pushes(Protocol):
    """A producer."""

    engine: str

    def push(self, key: Key, payload: Buffer, timeout: float | None = DEFAULT) -> bool: ...
    def _control(self) -> ControlSegment: ...


class Ref:
    """A key of an events engine, and where its events go now."""

    def __init__(self, producer: Pushes, key: Key) -> None:
        self.key = plain_key(key)
        self._producer = producer

    def __repr__(self) -> str:
        return f"<Ref {self.key!r} of engine {self._producer.engine!r}>"

    def tell(self, payload: Buffer, timeout: float | None = DEFAULT) -> bool:
        """Push one event with this key: see `Producer.push`."""
        return self._producer.push(self.key, payload, timeout)

    @property
    def slot(self) -> int:
        return slot_of(self.key, self._producer._control().slots)

    @property
    def shard(self) -> int:
        """The shard that new events of this key go to."""
        return int(self._producer._control().slot_table()[0][self.slot])
