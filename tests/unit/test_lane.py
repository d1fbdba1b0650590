"""A lane from both ends, through the Python layers, in one process."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import shardmem
from shardmem.errors import Backpressure, BatchEscaped
from shardmem.memory.native import lib
from shardmem.runtime.columns import KEY_UNSIGNED, Keys
from shardmem.schema import KEY_BYTES, KEY_INT, KEY_NONE, KEY_STR

ROW = np.dtype([("key", "u8"), ("number", "u4"), ("pad", "V4")])


def rows(count: int, start: int = 0) -> np.ndarray:
    made = np.zeros(count, ROW)
    made["key"] = np.arange(start, start + count) % 7
    made["number"] = np.arange(start, start + count)
    return made


def drain(engine, shard=0) -> list[np.ndarray]:
    found = []
    while (batch := engine.take(shard)) is not None:
        found.append(batch.records.copy())
        engine.commit(shard)
    return found


def test_records_arrive_as_they_were_sent_read_only_and_without_a_copy(loopback):
    engine = loopback(ROW, "key")
    engine.producer().send(rows(2000))

    batch = engine.take()

    assert batch.records.dtype == ROW and not batch.records.flags.writeable
    assert np.array_equal(rows(2000), batch.records)
    assert (np.arange(2000) == batch.sequences).all() and (batch.producers == 0).all()
    with pytest.raises(ValueError):
        batch.records.flags.writeable = True


def test_small_frames_of_many_lanes_are_gathered_into_one_batch(loopback):
    engine = loopback(ROW, "key")
    producers = [engine.producer() for _ in range(4)]
    for number in range(40):
        producers[number % 4].send(rows(1, number))

    batch = engine.take()

    assert 40 == len(batch)
    assert sorted(batch.records["number"].tolist()) == list(range(40))
    for seat in range(4):
        mine = batch.records["number"][batch.producers == seat]
        assert (np.diff(mine.astype(int)) > 0).all()


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_nothing_is_lost_repeated_or_reordered_whatever_the_sizes(loopback, data):
    """Blocks of any size into small lanes, taken in batches of any size, with worker restarts in between."""
    shards, limit = data.draw(st.integers(1, 3)), data.draw(st.sampled_from([1, 7, 64, 500, 4096]))
    engine = loopback(ROW, "key", shards=shards, lane_bytes=4096, batch_rows=limit)
    producer = engine.producer()
    got, pushed = [[] for _ in range(shards)], 0
    for count in data.draw(st.lists(st.integers(1, 700), max_size=12)):
        rest = rows(count, pushed)
        pushed += count
        tries = 0
        while len(rest):
            try:
                producer.send(rest, timeout=0)
                break
            except Backpressure as full:
                assert full.accepted + len(full.rest) == len(rest)
                rest = full.rest
            for shard in range(shards):
                for _ in range(data.draw(st.integers(0, 3))):
                    batch = engine.take(shard)
                    if batch is not None:
                        assert len(batch) <= limit
                        taken = batch.records["number"].tolist()
                        del batch
                        if data.draw(st.booleans()):
                            got[shard] += taken
                            engine.commit(shard)
                        else:  # killed in the handler: the batch comes again
                            engine.restart(shard, limit)
            tries += 1
            assert tries < 10_000, "wedged: no room, whatever is taken"
    for shard in range(shards):
        for part in drain(engine, shard):
            got[shard] += part["number"].tolist()
    assert sorted(sum(got, [])) == list(range(pushed))
    for shard in range(shards):
        for key in range(7):
            mine = [number for number in got[shard] if number % 7 == key]
            assert sorted(mine) == mine
    lanes = [lane for inbox in engine.inboxes for lane in inbox.lanes()]
    assert pushed == sum(lane.accepted for lane in lanes) == sum(lane.handled for lane in lanes)
    engine.held.clear()
    engine.close()
    engine._opened, engine.readers, engine.inboxes = [], [], []
    engine.close = lambda: None


def test_a_restarted_worker_repeats_no_event_of_a_frame_that_it_had_committed_in_part(loopback):
    engine = loopback(ROW, "key", batch_rows=100)
    engine.producer().send(rows(1000))
    first = engine.take().records["number"].tolist()
    engine.commit()

    engine.restart(batch_rows=100)
    second = engine.take().records["number"].tolist()

    assert list(range(100)) == first and list(range(100, 200)) == second


@pytest.mark.parametrize(
    "payload", [b"", b"x", b"y" * 32000, bytearray(b"z" * 10), memoryview(b"abc"), np.arange(4, dtype="u1")]
)
@pytest.mark.parametrize(
    "key", [0, 1, -1, -(1 << 63), (1 << 64) - 1, "", "naïve", b"", b"\x00bytes", None, True, np.int64(-3)]
)
def test_every_kind_of_key_and_payload_comes_out_as_it_went_in(loopback, key, payload):
    engine = loopback()
    producer = engine.producer()

    producer.push(key, payload)
    producer.push_many([key, key], [payload, b"2"])
    seen = []
    while (batch := engine.take()) is not None:
        seen += list(batch)
        columns = batch.columns()
        assert [bytes(columns.data[a:b]) for a, b in zip(columns.starts, columns.ends)] == batch.payloads
        assert list(batch.copy()) == list(batch)
        del columns
        engine.commit()

    wanted = int(key) if isinstance(key, (bool, np.integer)) else key
    assert [(wanted, bytes(payload))] * 2 + [(wanted, b"2")] == seen
    assert all(type(found) is type(wanted) for found, _ in seen)


def test_columns_go_in_and_come_out_without_an_object_per_event(loopback):
    engine = loopback()
    lengths = np.arange(500) % 9
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    data = bytes(range(256)) * 10
    engine.producer().push_columns(np.arange(500) - 250, data, offsets)

    batch = engine.take()
    columns = batch.columns()

    assert (np.arange(500) - 250 == columns.keys).all() and columns.keys.dtype == np.int64
    assert lengths.tolist() == (columns.ends - columns.starts).tolist()
    assert data[: offsets[-1]] == b"".join(columns.data[a:b].tobytes() for a, b in zip(columns.starts, columns.ends))
    assert not columns.data.flags.writeable


SPANS = np.array([[0, 2], [3, 3], [4, 7]])  # of b"ab,,cde"


@pytest.mark.parametrize("kind", [KEY_STR, KEY_BYTES])
def test_keys_are_a_column_of_text_or_bytes_too_and_columns_may_have_bytes_between_that_are_nobodys(loopback, kind):
    engine = loopback()
    producer = engine.producer()
    whole = (b"xyz", np.array([0, 1, 1, 3]))
    producer.push_columns(whole, b"ab,,cde", SPANS)
    producer.push_columns(
        Keys(kind, None, b"-x-yz", np.array([[1, 2], [2, 2], [3, 5]])), b"abcde", np.array([0, 2, 2, 5])
    )
    taken = []
    while (batch := engine.take()) is not None:
        taken += list(batch)
        engine.commit()
    text = [b"x", b"", b"yz"]
    as_kind = [key.decode() for key in text] if kind == KEY_STR else text
    assert [*zip(text, [b"ab", b"", b"cde"]), *zip(as_kind, [b"ab", b"", b"cde"])] == taken


@pytest.mark.parametrize("offsets", ["i8", "u8", "i4"])
def test_text_and_bytes_as_columns_keep_the_nuls_at_their_end(loopback, offsets):
    engine, ends = loopback(), np.array([0, 2, 2, 4], offsets)
    for keys in [(b"a\0\0\0", ends), (b"a\0\0\0", ends, str), (b"a\0\0\0", ends, bytes)]:
        engine.producer().push_columns(keys, b"wxyz", ends)
    text = [b"a\0", b"", b"\0\0"]
    assert [key for key, _ in engine.take()] == [*text, *(key.decode() for key in text), *text]


def test_columns_that_found_no_room_go_on_where_they_stood(loopback):
    engine = loopback(lane_bytes=4096)
    producer, data, offsets = engine.producer(), bytes(range(200)) * 40, np.arange(81) * 100
    with pytest.raises(shardmem.Backpressure) as caught:
        producer.push_columns(np.arange(80), data, offsets, timeout=0)
    taken = list(engine.take())
    engine.commit()
    keys, data, offsets = caught.value.rest
    while len(keys):
        try:
            producer.push_columns(keys, data, offsets, timeout=0)
            keys = keys[:0]
        except shardmem.Backpressure as error:
            keys, data, offsets = error.rest
        taken += list(engine.take())
        engine.commit()
    assert [(i, bytes(range(200))[i % 2 * 100 :][:100]) for i in range(80)] == sorted(taken)


def test_each_key_of_a_column_may_be_of_a_kind_of_its_own(loopback):
    engine = loopback()
    kinds = np.array([KEY_NONE, KEY_INT, KEY_UNSIGNED, KEY_STR, KEY_BYTES], "u1")
    numbers = np.array([0, -5, -1, 0, 0], "i8").view("u8")
    spans = np.array([[0, 0], [0, 0], [0, 0], [0, 2], [2, 3]])
    engine.producer().push_columns(Keys(kinds, numbers, "éx".encode(), spans), b"", np.zeros((5, 2), "i8"))
    assert [None, -5, 2**64 - 1, "é", b"x"] == [key for key, _ in engine.take()]


def test_the_rest_of_columns_that_found_no_room_is_what_was_offered(loopback):
    engine = loopback(lane_bytes=4096)
    spans = np.array([[i, i + 90] for i in range(0, 9000, 100)])
    keys = Keys(np.full(90, KEY_STR, "u1"), np.zeros(90, "u8"), bytes(9000), spans[:, :1] + [0, 2])
    with pytest.raises(shardmem.Backpressure) as caught:
        engine.producer().push_columns(keys, bytes(range(250)) * 36, spans, timeout=0)
    rest, data, offsets = caught.value.rest
    left = caught.value.left
    assert caught.value.accepted == 90 - len(left) and list(left) == list(range(90 - len(left), 90))
    assert len(rest.kinds) == len(rest.offsets) == len(offsets) - 1 == len(left)
    assert data == b"".join((bytes(range(250)) * 36)[first:last] for first, last in spans[left].tolist())


@pytest.mark.parametrize(
    "keys, data, offsets, error",
    [
        ((b"abc", np.array([0, 1])), b"ab", np.array([0, 1, 2]), ValueError),
        ((b"abc", np.array([[0, 1], [2, 9]])), b"ab", np.array([0, 1, 2]), ValueError),
        ((b"abc", np.array([[0, 1], [2, 1]])), b"ab", np.array([0, 1, 2]), ValueError),
        (Keys(np.array([1, 1], "u1"), None, None, None), b"ab", np.array([0, 1, 2]), ValueError),
        (Keys(KEY_STR, None, b"ab", None), b"ab", np.array([0, 1, 2]), ValueError),
        (Keys(KEY_INT, np.zeros(1, "u8"), None, None), b"ab", np.array([0, 1, 2]), ValueError),
        (Keys(np.array([9, 9], "u1"), None, None, None), b"ab", np.array([0, 1, 2]), ValueError),
        (None, b"ab", np.zeros((2, 3), "i8"), TypeError),
        (np.array([1.5, 2.5]), b"ab", np.array([0, 1, 2]), TypeError),
    ],
)
def test_columns_of_keys_that_contradict_themselves_are_refused_whole(loopback, keys, data, offsets, error):
    engine = loopback()
    with pytest.raises(error):
        engine.producer().push_columns(keys, data, offsets, timeout=0)
    assert engine.take() is None


@pytest.mark.parametrize(
    "bad",
    [
        (np.arange(2), b"abc", [0, 1, 9]),
        (np.arange(2), b"abc", [0, 2, 1]),
        (np.arange(3), b"abc", [0, 1, 2]),
        (np.arange(2), b"abc", [0, -1, 2]),
        (np.arange(2), b"abc", [-1, 2, 3]),
        (None, bytes(9000), [*range(9000), 9001]),
        (np.array([b"k"] * 5000), bytes(9000), [0] * 5000 + [9001]),
    ],
)
def test_columns_that_contradict_themselves_are_refused_whole(loopback, bad):
    engine = loopback()
    with pytest.raises(ValueError):
        engine.producer().push_columns(*bad, timeout=0)
    assert engine.take() is None


@pytest.mark.parametrize(
    "keep",
    [
        lambda b: b.records,
        lambda b: b.records[3:5],
        lambda b: b.records["number"],
        lambda b: b.records[0],
        lambda b: memoryview(b.records["number"]),
        lambda b: np.asarray(b.records),
        lambda b: b.keys,
        lambda b: b.records.view("u1"),
        lambda b: b.records.reshape(2, -1),
    ],
)
@pytest.mark.parametrize("frames", [1, 10])
def test_a_view_kept_past_its_batch_is_found(loopback, keep, frames):
    engine = loopback(ROW, "key")
    producer = engine.producer()
    for _ in range(frames):
        producer.send(rows(2000 // frames))
    batch = engine.take()

    kept = keep(batch)

    with pytest.raises(BatchEscaped, match="keep a copy"):
        batch._end()
    del kept


@pytest.mark.parametrize(
    "keep",
    [
        lambda b: b.records.copy(),
        lambda b: b.records["number"].sum(),
        lambda b: b.copy(),
        lambda b: len(b),
        lambda b: b.records[[1, 2]],
        lambda b: b.records["number"].tolist(),
        lambda b: b.sequences,
    ],
)
def test_copies_may_be_kept(loopback, keep):
    engine = loopback(ROW, "key")
    engine.producer().send(rows(2000))
    kept = keep(engine.take())
    engine.commit()
    assert kept is not None


@pytest.mark.parametrize(
    "view", [lambda b: b.records, lambda b: b.records[10:20], lambda b: b.records["number"], lambda b: b.keys]
)
def test_a_view_of_a_copied_batch_outlives_it(loopback, view):
    """batch.copy().records was an address in memory that went with the copy, and nothing held the copy."""
    engine = loopback(ROW, "key")
    engine.producer().send(rows(2000))
    batch = engine.take()
    wanted = view(batch).tolist()

    kept = view(batch.copy())
    others = [np.full(2000 * ROW.itemsize, 0xEE, "u1") for _ in range(50)]  # take the memory that was freed, if any was

    assert wanted == kept.tolist() and not kept.flags.writeable and len(others) == 50
    batch._end()


@pytest.mark.parametrize("key", [7, "seven"])
def test_columns_of_a_copied_batch_outlive_it(loopback, key):
    engine = loopback()
    engine.producer().push_many([key] * 2000, [b"%08d" % number for number in range(2000)])

    kept = engine.take().copy().columns()
    others = [np.full(32000, 0xEE, "u1") for _ in range(50)]

    assert [b"%08d" % number for number in range(2000)] == [
        bytes(kept.data[a:z]) for a, z in zip(kept.starts, kept.ends)
    ]
    assert list(kept.keys) == [key] * 2000 and len(others) == 50


EVENTS = [
    (0, b"zero"),
    (-1, b""),
    ((1 << 64) - 1, b"most"),
    ("na\u00efve", b"x" * 300),
    ("", b"1"),
    (b"\x00", b"2"),
    (None, b"3"),
    ("\udcff", bytearray(b"4")),
    (np.int64(-3), memoryview(b"5")),
    (True, b"6"),
]


@pytest.mark.parametrize("events", [EVENTS, [(number, b"%d" % number) for number in range(300)], EVENTS[3:4]])
def test_a_batch_made_by_hand_is_the_one_that_a_worker_gets(loopback, events):
    engine = loopback(slots=64)
    engine.producer().push_many(*map(list, zip(*events)))
    there, made = engine.take(), shardmem.Batch.of(events, slots=64)

    for look in (
        list,
        len,
        repr,
        lambda b: b.keys,
        lambda b: b.payloads,
        lambda b: b.slots.tolist(),
        lambda b: b.shard,
        lambda b: b.sequences.tolist(),
        lambda b: b.producers.tolist(),
        lambda b: list(b.copy()),
        lambda b: [bytes(b.columns().data[a:z]) for a, z in zip(*b.columns()[2:])],
    ):
        assert look(there) == look(made)
    with pytest.raises(TypeError, match="iteration, payloads or columns"):
        made.records
    there._end()


@pytest.mark.parametrize("key", ["key", "name", None])
def test_a_batch_of_records_made_by_hand_is_the_one_that_a_worker_gets(loopback, key):
    schema = np.dtype([("key", "i2"), ("name", "S5"), ("number", "f8")])
    content = np.array([(number - 50, b"n%d" % (number % 7), number) for number in range(100)], schema)
    engine = loopback(schema, key, slots=64)
    engine.producer().send(content)
    there, made = engine.take(), shardmem.Batch.of(content, key=key, slots=64)
    content["number"] = 0  # it is a copy

    for look in (
        lambda b: b.records.tolist(),
        len,
        repr,
        lambda b: b.keys if key is None else b.keys.tolist(),
        lambda b: b.slots.tolist(),
        lambda b: b.sequences.tolist(),
        lambda b: b.copy().records.tolist(),
    ):
        assert look(there) == look(made)
    assert not made.records.flags.writeable
    there._end()


def test_a_batch_made_by_hand_is_of_the_producer_shard_and_sequence_that_it_is_given():
    made = shardmem.Batch.of([("a", b"1"), ("b", b"2")], shard=3, producer=5, sequence=40)
    assert (made.shard, made.producers.tolist(), made.sequences.tolist()) == (3, [5, 5], [40, 41])
    assert list(shardmem.Batch.of([])) == [] == shardmem.Batch.of([]).columns().data.tolist()


@pytest.mark.parametrize(
    "content, settings, error",
    [
        ([("a", "text")], {}, TypeError),
        ([(1.5, b"")], {}, TypeError),
        ([(1 << 64, b"")], {}, ValueError),
        ([("a", b"")], {"slots": 1000}, ValueError),
        ([("a", b"")], {"key": "user"}, shardmem.ConfigError),
        (np.zeros(3), {}, shardmem.ConfigError),
        (np.zeros(3, ROW), {"key": "nothing"}, shardmem.ConfigError),
    ],
)
def test_a_batch_that_no_engine_could_carry_cannot_be_made_by_hand(content, settings, error):
    with pytest.raises(error):
        shardmem.Batch.of(content, **settings)


def test_a_batch_that_is_used_after_its_end_says_so(loopback):
    engine = loopback(ROW, "key")
    engine.producer().send(rows(10))
    batch = engine.take()
    engine.commit()
    with pytest.raises(BatchEscaped, match="batch.copy"):
        batch.records


def test_a_view_in_a_dead_cycle_is_not_an_escape(loopback):
    engine = loopback(ROW, "key")
    engine.producer().send(rows(10))
    cycle: list = [engine.take().records]
    cycle.append(cycle)
    del cycle
    engine.commit()


def test_a_batch_knows_the_slot_of_each_event(loopback):
    engine = loopback(slots=64)
    producer = engine.producer()
    keys = [1, -1, "a", b"a", "naïve", None]
    producer.push_many(keys, [b""] * 6)
    slots = engine.take().slots.tolist()
    assert slots[2] == slots[3] == lib.sm_hash_bytes(b"a", 1) & 63
    assert slots[0] == lib.sm_hash_int(1) & 63 and slots[1] == lib.sm_hash_int((1 << 64) - 1) & 63
    assert 0 == slots[5]


def test_an_event_larger_than_half_a_lane_is_refused_with_the_limit_and_nothing_is_accepted(loopback):
    engine = loopback(lane_bytes=1 << 16)
    producer = engine.producer()
    limit = producer.largest
    with pytest.raises(ValueError, match=f"{limit:,}.*raise lane_bytes"):
        producer.push(None, b"x" * (limit + 1))
    with pytest.raises(ValueError, match="event 1"):
        producer.push_many([1, 2], [b"fine", b"x" * (limit + 1)])
    assert engine.take() is None
    assert producer.push(None, b"x" * limit) is True
    assert limit == len(engine.take().payloads[0])


@pytest.mark.parametrize(
    "call",
    [
        lambda p: p.push(1.5, b""),
        lambda p: p.push(1, "text"),
        lambda p: p.push_many([1], ["text"]),
        lambda p: p.push_many([1.5], [b""]),
        lambda p: p.send(np.zeros(1)),
        lambda p: p.push([1], b""),
    ],
)
def test_what_is_no_key_or_no_payload_is_a_type_error_and_changes_nothing(loopback, call):
    engine = loopback()
    with pytest.raises(TypeError):
        call(engine.producer())
    assert engine.take() is None


@pytest.mark.parametrize("key", [1 << 64, -(1 << 63) - 1])
def test_an_int_beyond_64_bits_is_a_value_error(loopback, key):
    with pytest.raises(ValueError, match="outside the range of a key"):
        loopback().producer().push(key, b"")


def test_a_worker_leaves_a_corrupt_lane_alone_and_goes_on_with_the_others(loopback):
    engine = loopback(ROW, "key")
    bad, good = engine.producer(), engine.producer()
    bad.send(rows(10))
    from shardmem.memory.native import ffi

    geometry = engine.control.geometry
    lane = ffi.cast("uint8_t *", engine.inboxes[0].address) + geometry.lanes_offset
    ffi.buffer(lane + 4096, 4)[:] = (0xFFFFFFF0).to_bytes(4, "little")  # the frame's length
    good.send(rows(10, 100))

    batch = engine.take()

    assert lib.SM_CORRUPT == engine.last_status and 0 == engine.batches[0].broken_seat
    assert list(range(100, 110)) == batch.records["number"].tolist()
    engine.commit()
    assert engine.take() is None and lib.SM_OK == engine.last_status


def test_keyless_records_go_to_the_emptier_lanes(loopback):
    engine = loopback(ROW, None, shards=2)
    producer = engine.producer()
    for number in range(200):
        producer.send(rows(4, number))
    counts = [sum(lane.accepted for lane in inbox.lanes()) for inbox in engine.inboxes]
    assert 800 == sum(counts) and min(counts) > 300


def test_a_seat_that_is_taken_again_goes_on_where_it_was(loopback):
    engine = loopback(ROW, "key")
    first = engine.producer()
    first.send(rows(10))
    first.close()

    second = engine.producer()
    second.send(rows(10, 10))

    assert 0 == second.seat and 2 == engine.control.view_seat(0).incarnation
    batch = engine.take()
    assert list(range(20)) == batch.records["number"].tolist() == batch.sequences.tolist()
