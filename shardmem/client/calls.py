"""What can be asked of a running engine: the same calls for one in this program and for one of another process."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import Any

from shardmem.errors import ConfigError
from shardmem.status.document import SourceStatus, Status, feeding

Slots = str | int | Iterable[int]


class ControlCalls(ABC):
    """Every call that takes a while waits for `timeout` seconds (30 unless given) and then answers with what is done
    so far: `done` says whether all is, `waiting_for` lists who is waited for (shard or seat, pid, slots, text). It goes
    on in the background. Where only shards that wait for their sink are waited for, that comes after two seconds. A
    refusal raises ShardmemError and has changed nothing.
    """

    @abstractmethod
    def status(self) -> Status:
        """The document of `shardmem status --json`."""

    @abstractmethod
    def command(self, name: str, **wanted: Any) -> dict[str, Any]:
        """One call of the control API."""

    def scale_to(self, shards: int | str, timeout: float | None = None) -> dict[str, Any]:
        """Change the number of shards and even out the slots.

        "auto" hands control of the number back to the policy. Returns `shards` (the active ones), `added`, `removed`,
        `moved` (slot, from, to of each) and `seconds` of each phase. Raises ConfigError; ScalingError's text as
        ShardmemError when the number is out of bounds; HandlerError when a new worker cannot start.
        """
        return self._timed("scale", timeout, shards=shards)

    def drain(self, shard: int, timeout: float | None = None) -> dict[str, Any]:
        """Hand a shard's slots to the others, then stop and remove it.

        Returns as `scale_to`, and `drained`. Raises ConfigError: it is not active, has failed, or is the only one.
        """
        return self._timed("drain", timeout, shard=shard)

    def move(self, slots: Slots, to: int, timeout: float | None = None) -> dict[str, Any]:
        """Move slots to a shard while events flow.

        slots: "17,40-60", a number or numbers. No event is lost, repeated or reordered. Returns `moved` and `seconds`.
        Raises ConfigError: no such slot, or source or target cannot hand over or take.
        """
        return self._timed("move", timeout, slots=_plain(slots), to=to)

    def rebalance(self, timeout: float | None = None) -> dict[str, Any]:
        """Even out the slots over the shards, with the fewest moves.

        As the strategy says, small differences included. Returns `moved` and `seconds`. Raises ShardmemError: the
        strategy made no plan, or one that makes no sense.
        """
        return self._timed("rebalance", timeout)

    def reload(self, timeout: float | None = None) -> dict[str, Any]:
        """Replace all workers, with configuration and handler read again.

        Failed shards first. Events keep flowing. Returns `reloaded` (from, to of each shard) and `not_applied`
        (settings that cannot change). Raises HandlerError when a new worker cannot start: those that were not replaced
        yet go on.
        """
        return self._timed("reload", timeout)

    def cordon(self, shard: int) -> dict[str, Any]:
        """Keep a shard from taking more slots.

        It takes no keyless events either, and keeps what it has. Returns `cordoned`, `pins`, `suspended`. Raises
        ConfigError: it is not active.
        """
        return self.command("cordon", shard=shard)

    def uncordon(self, shard: int) -> dict[str, Any]:
        """Let a cordoned shard take slots again.

        Returns as `cordon`. Raises ConfigError: it is not cordoned.
        """
        return self.command("uncordon", shard=shard)

    def pin(self, slots: Slots, to: int, timeout: float | None = None) -> dict[str, Any]:
        """Move slots to a shard and keep them there.

        Whatever the strategy says, until `unpin` or until the shard is removed. Returns as `move` and `cordon`.
        """
        return self._timed("pin", timeout, slots=_plain(slots), to=to)

    def unpin(self, slots: Slots) -> dict[str, Any]:
        """Let the strategy move pinned slots again.

        Returns as `cordon`.
        """
        return self.command("unpin", slots=_plain(slots))

    def suspend_moves(self) -> dict[str, Any]:
        """Suspend the moves of the strategy.

        Moves on request, drains and pins go on. Returns as `cordon`.
        """
        return self.command("moves", suspended=True)

    def resume_moves(self) -> dict[str, Any]:
        """Resume the moves of the strategy.

        Returns as `cordon`.
        """
        return self.command("moves", suspended=False)

    def sources(self) -> list[SourceStatus]:
        """What feeds the engine: what each source does, how far it is, and why it is not further."""
        return self.status()["sources"]

    def source_lag(self, source: str | None = None) -> dict[str, int | None]:
        """How much of each partition is there and was not read.

        Of files in bytes, of a broker in events, with what is not committed; None: that is not known. Raises
        ConfigError: no such source, or several and none named.
        """
        every = self.sources()
        found = feeding(every) if source is None else [each for each in every if each["name"] == source]
        if len(found) != 1:
            names = ", ".join(each["name"] for each in every) or "none"
            raise ConfigError(f"source={source!r} is not one source of this engine; it has {names}")
        return {name: each["lag"] for name, each in found[0]["partitions"].items()}

    def pause_source(
        self, source: str | None = None, partitions: Iterable[str] = (), timeout: float | None = None
    ) -> dict[str, Any]:
        """Let a source, or partitions of it, read no more.

        What was read is handled. It holds for the next run of the engine, too. Raises ConfigError: no such source or
        partition; ShardmemError: it has not noticed yet, and will as soon as it can.
        """
        return self._of_source("pause", source, timeout, partitions=list(partitions) or None)

    def resume_source(
        self, source: str | None = None, partitions: Iterable[str] = (), timeout: float | None = None
    ) -> dict[str, Any]:
        """Let a source, or partitions of it, go on.

        Without partitions: all of it. Raises as `pause_source`.
        """
        return self._of_source("resume", source, timeout, partitions=list(partitions) or None)

    def seek_source(
        self, partition: str, to: str | int, source: str | None = None, timeout: float | None = None
    ) -> dict[str, Any]:
        """Let a partition of a source go on elsewhere.

        partition: a file or topic/number. to: "start", "end", or an offset, of a file a byte. Events before it are not
        taken back; those behind it come again. Raises as `pause_source`; then it goes on as before.
        """
        return self._of_source("seek", source, timeout, partition=partition, to=to)

    def _of_source(self, what: str, source: str | None, timeout: float | None, **wanted: Any) -> dict[str, Any]:
        given = {"source": source, **wanted}
        return self._timed(
            f"source/{what}", timeout, **{key: value for key, value in given.items() if value is not None}
        )

    def _timed(self, name: str, timeout: float | None, **wanted: Any) -> dict[str, Any]:
        return self.command(name, **wanted, **({} if timeout is None else {"timeout": timeout}))


def _plain(slots: Slots) -> str | int | list[int]:
    return slots if isinstance(slots, (str, int)) else [int(slot) for slot in slots]
