"""The extension module as type checkers see it. Written by csrc/stubs.py from csrc/shardmem.h: do not edit."""

from collections.abc import Iterator, Sequence
from typing import Any, Literal, overload

from typing_extensions import Buffer

class CData:
    def __int__(self) -> int: ...

class Integers(CData):
    def __len__(self) -> int: ...
    def __add__(self, steps: int) -> Integers: ...
    def __iter__(self) -> Iterator[int]: ...
    @overload
    def __getitem__(self, at: int) -> int: ...
    @overload
    def __getitem__(self, at: slice) -> Integers: ...
    def __setitem__(self, at: int | slice, value: int | Sequence[int]) -> None: ...

class Characters(CData): ...

_Numbers = Literal["char[]", "int *", "int[]", "uint8_t *", "uint8_t[]", "int32_t *", "int32_t[]", "uint32_t *", "uint32_t[]", "uint64_t *", "uint64_t[]", "int64_t *", "int64_t[]"]

class sm_geometry(CData):
    engine_id: int
    created_ns: int
    lane_bytes: int
    control_bytes: int
    inbox_bytes: int
    lane_stride: int
    lanes_offset: int
    slots: int
    max_shards: int
    max_producers: int
    row_bytes: int
    key_kind: int
    key_offset: int
    key_bytes: int
    key_signed: int
    schema_bytes: int
    name_bytes: int
    schema: Characters
    name: Characters
    def __getitem__(self, at: int) -> sm_geometry: ...

class sm_sender(CData): ...

class sm_cursor(CData):
    chunk: int
    next: int
    accepted: int
    pending_count: int
    shard: int
    pending: Integers
    def __getitem__(self, at: int) -> sm_cursor: ...

class sm_columns(CData):
    n: int
    key_kind: int
    key_unsigned: int
    spans: int
    key_spans: int
    key_kinds: Integers
    keys: Integers
    key_data: Integers
    key_offsets: Integers
    data: Integers
    offsets: Integers
    data_bytes: int
    key_bytes: int
    def __getitem__(self, at: int) -> sm_columns: ...

class sm_reader(CData): ...

class sm_span(CData):
    rows: Integers
    bytes: Integers
    position: int
    sequence: int
    sent_ns: int
    count: int
    first: int
    frame_rows: int
    frame_length: int
    bytes_length: int
    seat: int
    def __getitem__(self, at: int) -> sm_span: ...

class sm_batch(CData):
    rows: int
    bytes: int
    spans: int
    broken_seat: int
    tries: int
    in_a_row: int
    suspected: int
    span: sm_span
    def __getitem__(self, at: int) -> sm_batch: ...

class sm_range(CData):
    position: int
    to: int
    seat: int
    row: int
    to_row: int
    unused: int
    def __getitem__(self, at: int) -> sm_range: ...

class sm_engine_view(CData):
    incarnation: int
    heartbeat_ns: int
    started_ns: int
    topology: int
    pid: int
    state: int
    def __getitem__(self, at: int) -> sm_engine_view: ...

class sm_seat_view(CData):
    mark: int
    incarnation: int
    entered_ns: int
    sequence: int
    blocked_ns: int
    blocked_count: int
    refused: Integers
    pid: int
    def __getitem__(self, at: int) -> sm_seat_view: ...

class sm_shard_view(CData):
    generation: int
    incarnation: int
    entered_ns: int
    heartbeat_ns: int
    busy_ns: int
    batch_since_ns: int
    batches: int
    rows: int
    pid: int
    retired_generation: int
    retired_accepted: int
    retired_handled: int
    retired_quarantined: int
    retired_shed: int
    state: int
    phase: int
    weight: int
    holds: int
    error_bytes: int
    stateful: int
    waited_us: int
    latency: Integers
    batch_sizes: Integers
    error: Characters
    def __getitem__(self, at: int) -> sm_shard_view: ...

class sm_lane_view(CData):
    tail: int
    head: int
    accepted: int
    handled: int
    quarantined: int
    shed: int
    open: int
    broken: int
    def __getitem__(self, at: int) -> sm_lane_view: ...

class sm_move_view(CData):
    number: int
    since_ns: int
    deadline_ns: int
    drained: int
    restored: int
    phase: int
    source: int
    target: int
    def __getitem__(self, at: int) -> sm_move_view: ...

class sm_bad(CData):
    start: int
    end: int
    line: int
    lines: int
    at: int
    reason: int
    field: int
    def __getitem__(self, at: int) -> sm_bad: ...

class sm_path(CData):
    name: int
    name_end: int
    first: int
    count: int
    wanted: int
    def __getitem__(self, at: int) -> sm_path: ...

class sm_scan(CData):
    format: int
    key_mode: int
    delimiter: int
    quote: int
    comment: int
    cr: int
    columns: int
    wanted: int
    most: int
    positions: int
    position: Integers
    paths: int
    path: sm_path
    names: Integers
    blank: int
    line: int
    searched: int
    skip_mode: int
    after_cr: int
    def __getitem__(self, at: int) -> sm_scan: ...

class sm_found(CData):
    capacity: int
    bad_capacity: int
    spans: Integers
    lines: Integers
    fields: Integers
    values: Integers
    key_kinds: Integers
    keys: Integers
    key_spans: Integers
    bad: sm_bad
    records: int
    bads: int
    consumed: int
    scratch: int
    too_long: int
    def __getitem__(self, at: int) -> sm_found: ...

class sm_target(CData):
    kind: int
    itemsize: int
    unit: int
    wanted: int
    field: int
    stride: int
    out: Integers
    def __getitem__(self, at: int) -> sm_target: ...

class FFI:
    NULL: Any
    def string(self, text: Characters, most: int = ...) -> bytes: ...
    def buffer(self, memory: CData, size: int = ...) -> Buffer: ...
    def memmove(self, to: CData, source: CData | Buffer, size: int) -> None: ...
    def unpack(self, numbers: Integers, count: int) -> list[int]: ...
    def release(self, memory: CData) -> None: ...
    def sizeof(self, declaration: str) -> int: ...
    @overload
    def cast(self, declaration: Literal["void *", "uintptr_t"], value: CData | int) -> CData: ...
    @overload
    def cast(self, declaration: _Numbers, value: CData | int) -> Integers: ...
    @overload
    def from_buffer(self, declaration: Literal["sm_range[]"], memory: Buffer) -> sm_range: ...
    @overload
    def from_buffer(self, declaration: _Numbers, memory: Buffer) -> Integers: ...
    @overload
    def from_buffer(self, declaration: Buffer) -> CData: ...
    @overload
    def new(self, declaration: Literal["sm_geometry *"], init: object = ...) -> sm_geometry: ...
    @overload
    def new(self, declaration: Literal["sm_cursor *"], init: object = ...) -> sm_cursor: ...
    @overload
    def new(self, declaration: Literal["sm_columns *"], init: object = ...) -> sm_columns: ...
    @overload
    def new(self, declaration: Literal["sm_span *"], init: object = ...) -> sm_span: ...
    @overload
    def new(self, declaration: Literal["sm_batch *"], init: object = ...) -> sm_batch: ...
    @overload
    def new(self, declaration: Literal["sm_range *"], init: object = ...) -> sm_range: ...
    @overload
    def new(self, declaration: Literal["sm_engine_view *"], init: object = ...) -> sm_engine_view: ...
    @overload
    def new(self, declaration: Literal["sm_seat_view *"], init: object = ...) -> sm_seat_view: ...
    @overload
    def new(self, declaration: Literal["sm_shard_view *"], init: object = ...) -> sm_shard_view: ...
    @overload
    def new(self, declaration: Literal["sm_lane_view *"], init: object = ...) -> sm_lane_view: ...
    @overload
    def new(self, declaration: Literal["sm_move_view *"], init: object = ...) -> sm_move_view: ...
    @overload
    def new(self, declaration: Literal["sm_bad *"], init: object = ...) -> sm_bad: ...
    @overload
    def new(self, declaration: Literal["sm_path *"], init: object = ...) -> sm_path: ...
    @overload
    def new(self, declaration: Literal["sm_scan *"], init: object = ...) -> sm_scan: ...
    @overload
    def new(self, declaration: Literal["sm_found *"], init: object = ...) -> sm_found: ...
    @overload
    def new(self, declaration: Literal["sm_target *"], init: object = ...) -> sm_target: ...
    @overload
    def new(self, declaration: Literal["sm_bad[]"], init: object = ...) -> sm_bad: ...
    @overload
    def new(self, declaration: Literal["sm_path[]"], init: object = ...) -> sm_path: ...
    @overload
    def new(self, declaration: _Numbers, init: object = ...) -> Integers: ...

class Lib:
    SM_LAYOUT_VERSION: int
    SM_CHUNK: int
    SM_MAX_SLOTS: int
    SM_MAX_SHARDS: int
    SM_MAX_PRODUCERS: int
    SM_SCHEMA_BYTES: int
    SM_NAME_BYTES: int
    SM_ERROR_BYTES: int
    SM_NOTE_BYTES: int
    SM_BOARD_BYTES: int
    SM_HISTOGRAM: int
    SM_BATCH_SIZES: int
    SM_REASONS: int
    SM_KEY_UNSIGNED: int
    SM_NOTHING: int
    SM_OK: int
    SM_FULL: int
    SM_TIMEOUT: int
    SM_NEED_LANE: int
    SM_STOPPED: int
    SM_FORKED: int
    SM_TOO_LARGE: int
    SM_CORRUPT: int
    SM_UNROUTED: int
    SM_INTERRUPTED: int
    SM_CLOSED: int
    SM_FENCED: int
    SM_MAGIC: int
    SM_VERSION: int
    SM_GEOMETRY: int
    SM_UNREADY: int
    SM_KEY_NONE: int
    SM_KEY_INT: int
    SM_KEY_BYTES: int
    SM_KEY_STR: int
    SM_ENGINE_STARTING: int
    SM_ENGINE_RUNNING: int
    SM_ENGINE_DRAINING: int
    SM_ENGINE_STOPPED: int
    SM_SHARD_NONE: int
    SM_SHARD_PROVISIONING: int
    SM_SHARD_ACTIVE: int
    SM_SHARD_DRAINING: int
    SM_SHARD_STOPPED: int
    SM_SHARD_FAILED: int
    SM_PHASE_NONE: int
    SM_PHASE_BOOTING: int
    SM_PHASE_READY: int
    SM_PHASE_STOPPED: int
    SM_PHASE_FAILED: int
    SM_MOVE_NONE: int
    SM_MOVE_REROUTING: int
    SM_MOVE_DRAINING: int
    SM_MOVE_RELEASING: int
    SM_BOARD_DECISIONS: int
    SM_BOARD_EVENTS: int
    SM_BOARDS: int
    SM_REASON_FULL: int
    SM_REASON_TIMEOUT: int
    SM_REASON_SAMPLED: int
    SM_REASON_STOPPED: int
    SM_FORMAT_LINES: int
    SM_FORMAT_CSV: int
    SM_FORMAT_JSON: int
    SM_FORMAT_LOGFMT: int
    SM_FORMAT_SYSLOG: int
    SM_FORMAT_COMBINED: int
    SM_VALUE_MISSING: int
    SM_VALUE_TEXT: int
    SM_VALUE_STRING: int
    SM_VALUE_NUMBER: int
    SM_VALUE_TRUE: int
    SM_VALUE_FALSE: int
    SM_VALUE_NULL: int
    SM_VALUE_NESTED: int
    SM_VALUE_BROKEN: int
    SM_KEY_FIELDS: int
    SM_KEY_AUTO: int
    SM_KEY_TEXT: int
    SM_KEY_NUMBER: int
    SM_GOOD: int
    SM_BAD_LONG: int
    SM_BAD_OPEN: int
    SM_BAD_QUOTE: int
    SM_BAD_COUNT: int
    SM_BAD_SYNTAX: int
    SM_BAD_DEPTH: int
    SM_BAD_UTF8: int
    SM_BAD_OBJECT: int
    SM_BAD_TWICE: int
    SM_BAD_MISSING: int
    SM_BAD_NULL: int
    SM_BAD_KIND: int
    SM_BAD_NUMBER: int
    SM_BAD_WHOLE: int
    SM_BAD_RANGE: int
    SM_BAD_EXACT: int
    SM_BAD_WIDTH: int
    SM_BAD_NUL: int
    SM_BAD_BOOL: int
    SM_BAD_TIME: int
    SM_BAD_FINE: int
    SM_BAD_SURROGATE: int
    SM_BAD_FORM: int
    SM_BAD_SEPARATOR: int
    SM_BAD_MARK: int
    def sm_geometry_complete(self, geometry: sm_geometry, /) -> int: ...
    def sm_control_ranges(self, geometry: sm_geometry, offsets: Integers, lengths: Integers, /) -> int: ...
    def sm_control_format(self, control: CData, geometry: sm_geometry, /) -> int: ...
    def sm_control_read(self, control: CData | bytes, bytes: int, out: sm_geometry, version: Integers, /) -> int: ...
    def sm_inbox_format(self, inbox: CData, geometry: sm_geometry, shard: int, generation: int, /) -> int: ...
    def sm_inbox_check(self, inbox: CData | bytes, bytes: int, geometry: sm_geometry, shard: int, generation: int, /) -> int: ...
    def sm_lease_take(self, fd: int, byte: int, /) -> int: ...
    def sm_lease_held(self, fd: int, byte: int, /) -> int: ...
    def sm_xxh64(self, data: CData | bytes, bytes: int, seed: int, /) -> int: ...
    def sm_hash_int(self, key: int, /) -> int: ...
    def sm_hash_bytes(self, key: CData | bytes, bytes: int, /) -> int: ...
    def sm_slots_of_rows(self, geometry: sm_geometry, rows: CData | bytes, n: int, slots: Integers, /) -> int: ...
    def sm_slots_of_ints(self, keys: Integers, n: int, slots_count: int, slots: Integers, /) -> int: ...
    def sm_sender_new(self, control: CData, geometry: sm_geometry, seat: int, /) -> sm_sender: ...
    def sm_sender_free(self, sender: sm_sender, /) -> None: ...
    def sm_sender_close(self, sender: sm_sender, /) -> None: ...
    def sm_sender_link(self, sender: sm_sender, shard: int, generation: int, inbox: CData, /) -> int: ...
    def sm_sender_broken(self, sender: sm_sender, shard: int, /) -> int: ...
    def sm_sender_generation(self, sender: sm_sender, shard: int, /) -> int: ...
    def sm_sender_position(self, sender: sm_sender, shard: int, tail: Integers, head: Integers, /) -> int: ...
    def sm_max_payload(self, sender: sm_sender, key_bytes: int, /) -> int: ...
    def sm_send(self, sender: sm_sender, rows: CData | bytes, n: int, cursor: sm_cursor, /) -> int: ...
    def sm_push_columns(self, sender: sm_sender, columns: sm_columns, cursor: sm_cursor, /) -> int: ...
    def sm_push(self, sender: sm_sender, key_kind: int, key: int, key_unsigned: int, key_bytes: CData | bytes, key_length: int, payload: CData | bytes, payload_length: int, shard: Integers, /) -> int: ...
    def sm_count_refused(self, sender: sm_sender, reason: int, rows: int, /) -> None: ...
    def sm_count_blocked(self, sender: sm_sender, nanoseconds: int, /) -> None: ...
    def sm_evict(self, sender: sm_sender, shard: int, /) -> int: ...
    def sm_wait_room(self, sender: sm_sender, shard: int, spin_ns: int, timeout_ns: int, /) -> int: ...
    def sm_wait_handled(self, sender: sm_sender, shard: int, position: int, spin_ns: int, timeout_ns: int, /) -> int: ...
    def sm_seat_enter(self, control: CData, seat: int, pid: int, now_ns: int, /) -> int: ...
    def sm_seat_leave(self, control: CData, seat: int, /) -> int: ...
    def sm_reader_new(self, control: CData, geometry: sm_geometry, inbox: CData, shard: int, max_rows: int, /) -> sm_reader: ...
    def sm_reader_free(self, reader: sm_reader, /) -> None: ...
    def sm_next(self, reader: sm_reader, spin_ns: int, timeout_ns: int, batch: sm_batch, /) -> int: ...
    def sm_gather(self, batch: sm_batch, row_bytes: int, out: CData, out_bytes: int, /) -> int: ...
    def sm_commit(self, reader: sm_reader, /) -> int: ...
    def sm_recheck(self, reader: sm_reader, /) -> int: ...
    def sm_forgive(self, reader: sm_reader, /) -> None: ...
    def sm_failed(self, reader: sm_reader, again: int, /) -> int: ...
    def sm_set_aside(self, reader: sm_reader, /) -> int: ...
    def sm_defer_commits(self, reader: sm_reader, /) -> None: ...
    def sm_defer(self, reader: sm_reader, /) -> int: ...
    def sm_deferred(self, reader: sm_reader, pressed: Integers, awaited: Integers, /) -> int: ...
    def sm_ranges(self, reader: sm_reader, count: Integers, /) -> sm_range: ...
    def sm_commit_deferred(self, reader: sm_reader, /) -> int: ...
    def sm_commit_ranges(self, reader: sm_reader, ranges: sm_range, count: int, /) -> int: ...
    def sm_touched(self, reader: sm_reader, slots: Integers, /) -> int: ...
    def sm_worker_enter(self, control: CData, shard: int, pid: int, now_ns: int, /) -> int: ...
    def sm_worker_phase(self, control: CData, shard: int, phase: int, /) -> None: ...
    def sm_worker_error(self, control: CData, shard: int, text: CData | bytes, bytes: int, /) -> None: ...
    def sm_worker_stateful(self, control: CData, shard: int, stateful: int, /) -> None: ...
    def sm_worker_orders(self, control: CData | bytes, shard: int, /) -> int: ...
    def sm_supervisor_enter(self, control: CData, pid: int, now_ns: int, /) -> None: ...
    def sm_supervisor_beat(self, control: CData, now_ns: int, /) -> None: ...
    def sm_set_engine_state(self, control: CData, state: int, /) -> None: ...
    def sm_set_shard_state(self, control: CData, shard: int, state: int, /) -> None: ...
    def sm_set_shard_generation(self, control: CData, shard: int, generation: int, /) -> None: ...
    def sm_set_shard_weight(self, control: CData, shard: int, weight: int, /) -> None: ...
    def sm_set_slot(self, control: CData, slot: int, shard: int, /) -> None: ...
    def sm_marks(self, control: CData | bytes, marks: Integers, n: int, /) -> int: ...
    def sm_wake(self, inbox: CData, /) -> None: ...
    def sm_move_begin(self, control: CData, slot: int, source: int, target: int, deadline_ns: int, /) -> int: ...
    def sm_move_phase(self, control: CData, slot: int, phase: int, deadline_ns: int, /) -> None: ...
    def sm_set_holds(self, control: CData, shard: int, holds: int, /) -> None: ...
    def sm_give_orders(self, control: CData, shard: int, inbox: CData, /) -> None: ...
    def sm_retire(self, control: CData, shard: int, generation: int, accepted: int, handled: int, quarantined: int, shed: int, /) -> None: ...
    def sm_post(self, control: CData, board: int, text: CData | bytes, bytes: int, /) -> None: ...
    def sm_shard_note(self, control: CData, shard: int, text: CData | bytes, bytes: int, /) -> None: ...
    def sm_orders(self, reader: sm_reader, /) -> int: ...
    def sm_moves_at(self, control: CData | bytes, geometry: sm_geometry, shard: int, phase: int, slots: Integers, numbers: Integers, limit: int, /) -> int: ...
    def sm_undone(self, reader: sm_reader, slots: Integers, n: int, present: Integers, /) -> int: ...
    def sm_rescan(self, reader: sm_reader, /) -> None: ...
    def sm_move_drained(self, control: CData, slot: int, number: int, /) -> None: ...
    def sm_move_restored(self, control: CData, slot: int, number: int, /) -> None: ...
    def sm_view_engine(self, control: CData | bytes, out: sm_engine_view, /) -> None: ...
    def sm_view_seat(self, control: CData | bytes, seat: int, out: sm_seat_view, /) -> None: ...
    def sm_view_shard(self, control: CData | bytes, shard: int, out: sm_shard_view, /) -> None: ...
    def sm_view_lane(self, inbox: CData | bytes, geometry: sm_geometry, seat: int, out: sm_lane_view, /) -> int: ...
    def sm_view_move(self, control: CData | bytes, slot: int, out: sm_move_view, /) -> None: ...
    def sm_view_moving(self, control: CData | bytes, geometry: sm_geometry, slots: Integers, limit: int, /) -> int: ...
    def sm_view_board(self, control: CData | bytes, board: int, text: CData, /) -> int: ...
    def sm_view_busy(self, control: CData | bytes, geometry: sm_geometry, busy_ns: Integers, /) -> None: ...
    def sm_view_slots(self, control: CData | bytes, geometry: sm_geometry, shards: Integers, epochs: Integers, /) -> None: ...
    def sm_histogram_floor_ns(self, bucket: int, /) -> int: ...
    def sm_now_ns(self) -> int: ...
    def sm_point_count(self) -> int: ...
    def sm_point_name(self, point: int, /) -> Characters: ...
    def sm_point_arm(self, point: int, passes: int, signal_number: int, /) -> None: ...
    def sm_point_pass(self, point: int, /) -> None: ...
    def sm_install_fastcalls(self) -> int: ...
    def sm_scan_block(self, scan: sm_scan, data: Integers, bytes: int, scratch: int, final: int, found: sm_found, /) -> None: ...
    def sm_scan_skip(self, scan: sm_scan, data: Integers, bytes: int, first: int, consumed: Integers, /) -> int: ...
    def sm_convert(self, data: Integers, fields: Integers, values: Integers, n: int, target: sm_target, bad: Integers, bad_field: Integers, /) -> None: ...

class Pusher:
    def __init__(self, sender: int, slow: Any) -> None: ...
    def push(self, key: int | str | bytes | None, payload: Buffer, timeout: float | None = ...) -> bool: ...
    def push_many(self, keys: list[Any], payloads: list[Any]) -> tuple[int, int, int, bytes, int, int] | None: ...
    def detach(self) -> None: ...

def decode(batch: int, what: int) -> list[Any]: ...

ffi: FFI
lib: Lib
