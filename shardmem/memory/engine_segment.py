"""The control segment of an engine: made, attached, checked. What its words say is in words.py."""

from __future__ import annotations

import os
import re
import time
from typing import TYPE_CHECKING

from shardmem.errors import ConfigError, LayoutMismatch, NotRunning, SegmentCorrupt
from shardmem.memory import lease
from shardmem.memory.description import Description
from shardmem.memory.inbox_segment import PAGE, InboxSegment
from shardmem.memory.native import ffi, lib
from shardmem.memory.own_words import OwnWords
from shardmem.memory.partition_table import Partitions
from shardmem.memory.segment import Segment, control_name, engine_names, engine_of, inbox_name, listed
from shardmem.schema import Schema

if TYPE_CHECKING:
    from shardmem.memory.native import sm_geometry

ENGINE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
_CONDITIONS = {lib.SM_OK: "whole", lib.SM_DAMAGED: "damaged", lib.SM_GEOMETRY: "foreign"}


class ControlSegment(OwnWords):
    """The control segment of one engine. `create` (supervisor) or `attach` (anybody)."""

    def __init__(self, segment: Segment, geometry: sm_geometry, description: Description) -> None:
        self.segment = segment
        self.geometry = geometry
        self.address = segment.address
        self.engine, self.schema = description.engine, description.schema
        self.backpressure, self.state_dir = description.backpressure, description.state_dir
        self.is_named = description.is_named
        self.slots: int = geometry.slots
        self.room: int = geometry.max_shards
        self.max_shards = description.max_shards
        self.max_producers: int = geometry.max_producers
        self.lane_bytes: int = geometry.lane_bytes
        self.partitions = Partitions(self)

    # ---- life --------------------------------------------------------------------------------------------------------

    @classmethod
    def create(
        cls,
        engine: str,
        schema: Schema,
        *,
        slots: int,
        max_shards: int,
        max_producers: int,
        lane_bytes: int,
        backpressure: str = "block",
        state_dir: str = "",
        is_named: bool = True,
    ) -> ControlSegment:
        """A fresh control segment. Raises FileExistsError, OutOfMemory, ConfigError."""
        check_name(engine)
        description = Description(engine, schema, max_shards, backpressure, state_dir, is_named)
        text = description.to_json()
        name = engine.encode()
        if len(text) > lib.SM_SCHEMA_BYTES:
            raise ConfigError(
                f"the description of the dtype takes {len(text):,} bytes, the limit is "
                f"{lib.SM_SCHEMA_BYTES:,}; use fewer or shorter field names"
            )
        geometry = ffi.new(
            "sm_geometry *",
            dict(
                engine_id=int.from_bytes(os.urandom(8), "little"),
                created_ns=time.time_ns(),
                lane_bytes=lane_bytes,
                slots=slots,
                max_shards=_room(max_shards),
                max_producers=max_producers,
                schema_bytes=len(text),
                name_bytes=len(name),
                **schema.geometry(),
            ),
        )
        ffi.memmove(geometry.schema, text, len(text))
        ffi.memmove(geometry.name, name, len(name))
        if lib.sm_geometry_complete(geometry) != lib.SM_OK:
            raise ConfigError(
                f"these do not fit together: slots={slots} (a power of two up to {lib.SM_MAX_SLOTS}), "
                f"max_shards={max_shards} (1 to {lib.SM_MAX_SHARDS}), max_producers={max_producers} (1 to "
                f"{lib.SM_MAX_PRODUCERS}), lane_bytes={lane_bytes} (a power of two from {PAGE} to 2 GiB), "
                f"row of {geometry.row_bytes} bytes (half a lane holds at least one)"
            )
        what = f"the control segment of engine {engine!r}"
        segment = Segment.create(control_name(engine), geometry.control_bytes, PAGE, what)
        try:
            for offset, length in _ranges(geometry):
                segment.reserve(offset, length, what)
        except BaseException:
            segment.unlink()
            segment.close()
            raise
        lib.sm_control_format(segment.address, geometry)
        return cls(segment, geometry, description)

    @classmethod
    def attach(cls, engine: str, wait: float = 0.0) -> ControlSegment:
        """The control segment of an engine that exists. `wait`: seconds to wait for one that is being created.

        Raises NotRunning, LayoutMismatch, SegmentCorrupt, SegmentError.
        """
        check_name(engine)
        deadline = time.monotonic() + wait
        while True:
            try:
                return cls._attach(engine)
            except NotRunning as error:
                if time.monotonic() >= deadline:
                    others = engine_names()
                    here = f"engines here: {listed(others, engine)}" if others else "no engine is running here"
                    raise NotRunning(
                        f"no engine named {engine!r} ({error}); {here}",
                        hint=f"Start it: `shardmem run --name {engine} module:handler`",
                    ) from None
                time.sleep(0.01)

    @classmethod
    def _attach(cls, engine: str) -> ControlSegment:
        segment = Segment.attach(control_name(engine))
        try:
            geometry = _geometry_of(segment)
            description = Description.of(segment.name, geometry)
            if description.engine != engine:
                raise SegmentCorrupt(f"{segment.name} says that it is engine {description.engine!r}", hint="Remove it")
            segment.map(geometry.control_bytes)
        except BaseException:
            segment.close()
            raise
        return cls(segment, geometry, description)

    def close(self) -> None:
        self.segment.close()
        self.address = ffi.NULL

    def repair(self) -> list[str]:
        is_changed = lib.sm_control_mend(self.address, self.geometry)
        return (["the geometry"] if is_changed else []) + super().repair()

    # ---- leases ------------------------------------------------------------------------------------------------------

    def supervisor_alive(self) -> bool:
        return lease.is_held(self.segment, lease.SUPERVISOR)

    def worker_alive(self, shard: int) -> bool:
        return lease.is_held(self.segment, lease.shard_byte(shard))

    def seat_alive(self, seat: int) -> bool:
        return lease.is_held(self.segment, lease.seat_byte(seat))

    # ---- inboxes -----------------------------------------------------------------------------------------------------

    def open_inbox(self, shard: int, generation: int | None = None) -> InboxSegment:
        """Map the inbox of a shard. Raises NotRunning when it is gone, SegmentCorrupt when it is not that inbox."""
        return self._open_inbox(shard, generation, lib.SM_OK)

    def take_inbox(self, shard: int, generation: int | None = None) -> InboxSegment:
        """The same, by the holder of the supervisor's lease, who does not believe a damaged header: the geometry and
        the file's name say all that it says, and the lanes behind it may hold events. It is written again."""
        inbox = self._open_inbox(shard, generation, lib.SM_DAMAGED)
        inbox.repair()
        return inbox

    def _open_inbox(self, shard: int, generation: int | None, worst: int) -> InboxSegment:
        if generation is None:
            generation = self.shard_generation(shard)
        segment = Segment.attach(inbox_name(self.engine, shard, generation))
        try:
            status = self._check_inbox(segment, shard, generation)
            if status == lib.SM_UNREADY:
                raise NotRunning(f"{segment.name} is not formatted yet")
            if status == lib.SM_DAMAGED != worst:
                raise SegmentCorrupt(
                    f"{segment.name} is not the inbox of shard {shard} for now: somebody has written over its header",
                    hint="The supervisor writes it again when it looks, within two seconds; then try again",
                )
            if status not in (lib.SM_OK, worst):
                raise SegmentCorrupt(
                    f"{segment.name} is not the inbox of shard {shard}, generation {generation}, of this engine"
                )
            segment.map(self.geometry.inbox_bytes)
        except BaseException:
            segment.close()
            raise
        return InboxSegment(self, segment, shard, generation)

    def inbox_condition(self, shard: int, generation: int) -> str:
        """Of the file of that name: whole; damaged (its header alone); foreign (it says in good order that it is
        another one); none. Raises SegmentError when it cannot be opened."""
        try:
            segment = Segment.attach(inbox_name(self.engine, shard, generation))
        except (NotRunning, SegmentCorrupt):
            return "none"
        try:
            return _CONDITIONS.get(self._check_inbox(segment, shard, generation), "none")
        finally:
            segment.close()

    def _check_inbox(self, segment: Segment, shard: int, generation: int) -> int:
        """SM_OK, SM_DAMAGED (its header alone), SM_GEOMETRY (another one's), SM_UNREADY (nothing is there yet),
        SM_MAGIC (it is none)."""
        header, size = segment.read(0, PAGE), os.fstat(segment.descriptor).st_size
        if len(header) < PAGE:
            return lib.SM_MAGIC
        status: int = lib.sm_inbox_check(header, size, self.geometry, shard, generation)
        if status in (lib.SM_OK, lib.SM_GEOMETRY) or not any(header):
            return status
        return lib.SM_DAMAGED if size >= self.geometry.inbox_bytes else lib.SM_MAGIC


SPARE_SHARDS = 3


def _room(max_shards: int) -> int:
    """Some shards more than the limit: a worker is replaced by another beside it, and one that takes long to be must
    not keep the others waiting.
    """
    return min(max_shards + SPARE_SHARDS, lib.SM_MAX_SHARDS) if max_shards >= 1 else max_shards


def _geometry_of(segment: Segment) -> sm_geometry:
    """As its header says, which is read and not mapped: what is shorter than it says, or never had memory, must not be
    touched."""
    geometry, version = ffi.new("sm_geometry *"), ffi.new("uint32_t *")
    header, name = segment.read(0, PAGE), segment.name
    found = os.fstat(segment.descriptor)
    size = found.st_size if len(header) == PAGE else len(header)
    status = lib.sm_control_read(header, size, geometry, version)
    if status == lib.SM_UNREADY:
        raise NotRunning(f"{name} is not formatted yet")
    if status == lib.SM_VERSION:
        raise LayoutMismatch(
            f"{name} has layout version {version[0]}, this shardmem reads {lib.SM_LAYOUT_VERSION}",
            hint="Use the version that made it, or stop that engine and start it again",
        )
    if status == lib.SM_MAGIC:
        raise LayoutMismatch(
            f"{name} was not made by shardmem (wrong magic number)", hint="Remove it, or choose another name"
        )
    if status == lib.SM_DAMAGED:
        raise SegmentCorrupt(
            f"{name} is damaged: somebody has written over its geometry, which never changes",
            hint="A supervisor that runs writes it again within two seconds. Remove it if none runs; what it holds is "
            f"lost: `shardmem gc --discard {engine_of(name)}`",
        )
    if status != lib.SM_OK:
        raise SegmentCorrupt(
            f"{name} is damaged or cut short: its sizes do not follow from its geometry", hint="Remove it"
        )
    backed = found.st_blocks * 512
    if backed < reserved_bytes(geometry):
        raise SegmentCorrupt(
            f"{name} is damaged: {backed:,} bytes of it have memory behind them, and an engine uses "
            f"{reserved_bytes(geometry):,}",
            hint="Remove it",
        )
    return geometry


def _ranges(geometry: sm_geometry) -> list[tuple[int, int]]:
    """(offset, length) of what an engine of this geometry uses of its control segment; the rest is never touched."""
    offsets, lengths = ffi.new("uint64_t[]", 8), ffi.new("uint64_t[]", 8)
    return [(offsets[i], lengths[i]) for i in range(lib.sm_control_ranges(geometry, offsets, lengths))]


def memory_needs(
    schema: Schema, *, slots: int, max_shards: int, max_producers: int, lane_bytes: int
) -> tuple[int, int, int]:
    """Bytes that will be backed by memory: of the control segment, of an inbox without lanes, of one lane."""
    geometry = ffi.new(
        "sm_geometry *",
        dict(
            lane_bytes=lane_bytes,
            slots=slots,
            max_shards=_room(max_shards),
            name_bytes=1,
            schema_bytes=2,
            max_producers=max_producers,
            **schema.geometry(),
        ),
    )
    if lib.sm_geometry_complete(geometry) != lib.SM_OK:
        raise ConfigError(
            f"slots={slots}, max_shards={max_shards}, max_producers={max_producers}, lane_bytes={lane_bytes} "
            f"do not fit together"
        )
    return reserved_bytes(geometry), PAGE, geometry.lane_stride


def reserved_bytes(geometry: sm_geometry) -> int:
    """Of a control segment."""
    pages = {
        page for offset, length in _ranges(geometry) for page in range(offset // PAGE, -(-(offset + length) // PAGE))
    }
    return PAGE * len(pages | {0})


def check_name(engine: str) -> None:
    if not isinstance(engine, str) or not ENGINE_NAME.fullmatch(engine):
        raise ConfigError(
            f"engine name {engine!r} is not usable: 1 to 64 letters, digits, '-' or '_', the first a letter or a digit"
        )
