"""Events with an origin, from both ends of a lane, in one process."""

from __future__ import annotations

import time

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shardmem.client.quarantine import describe
from shardmem.errors import AlreadyRunning, Backpressure, ConfigError, Superseded
from shardmem.memory.native import ffi, lib
from shardmem.memory.partition_table import NO_PARTITION, Partitions, PartitionTable
from shardmem.memory.reader import Reader
from shardmem.runtime.aside import Aside, Failure
from shardmem.runtime.batch import Batch
from shardmem.runtime.columns import Origin
from shardmem.runtime.origins import columns_of_headers
from shardmem.runtime.quarantine import QuarantineReader


def table_of(engine, partitions=4) -> PartitionTable:
    table = PartitionTable(engine.control)
    table.set_count(partitions)
    return table


def begun(table, topic="clicks", number=0, offset=0) -> tuple[int, int]:
    row = table.row(topic, number)
    return row, table.begin(row, offset)


def push(producer, row, epoch, offsets, *, keys=None, size=4, timeout=0.0, **more) -> int:
    offsets = np.asarray(offsets, "i8")
    keys = offsets % 7 if keys is None else keys
    data = b"".join(int(offset).to_bytes(size, "little") for offset in offsets.tolist())
    ends = np.arange(len(offsets) + 1) * size
    return producer.push_columns(keys, data, ends, timeout, origin=Origin(row, epoch, offsets), **more)


def taken(engine, shard=0) -> list[int]:
    """The offsets that the worker of that shard handles now, in order."""
    found = []
    while (batch := engine.take(shard)) is not None:
        found += [] if batch.origins is None else batch.origins["offset"].tolist()
        del batch
        engine.commit(shard)
    return found


def lane(engine, producer, shard=0):
    return next(each for each in engine.inboxes[shard].lanes() if each.seat == producer.seat)


# ---- what comes with an event ----------------------------------------------------------------------------------------


def test_an_event_arrives_with_its_origin_its_time_its_headers_and_without_a_payload_if_it_had_none(loopback):
    engine = loopback()
    table = table_of(engine)
    row, epoch = begun(table, "clicks", 2, 100)
    headers = [[("trace", b"1"), ("empty", b"")], [], [("none", None)]]

    accepted = engine.producer().push_columns(
        (b"abc", np.array([0, 1, 2, 3]), str),
        b"onethree",
        np.array([0, 3, 3, 8]),
        origin=Origin(row, epoch, np.array([100, 103, 200])),
        timestamps=np.array([10, 20, 30]),
        headers=columns_of_headers(headers),
        missing=np.array([False, True, False]),
    )

    batch = engine.take()
    assert 3 == accepted and [("a", b"one"), ("b", None), ("c", b"three")] == list(batch)
    assert [b"one", None, b"three"] == batch.payloads and [False, True, False] == batch.missing.tolist()
    assert ("clicks",) == batch.topics and [(0, 2, 100), (0, 2, 103), (0, 2, 200)] == batch.origins.tolist()
    assert ("topic", "partition", "offset") == batch.origins.dtype.names
    assert [10, 20, 30] == batch.timestamps.tolist() and headers == batch.headers
    assert [("a", [b"one"]), ("b", [None]), ("c", [b"three"])] == batch.by_key()


def test_a_batch_says_which_of_its_events_came_with_an_origin_and_which_without(loopback):
    engine = loopback()
    row, epoch = begun(table_of(engine), "clicks", 1, 5)
    source, other = engine.producer(), engine.producer()
    other.push(1, b"plain")
    push(source, row, epoch, [5, 6], timestamps=np.array([1, 2]))
    other.push("key", None)

    batch = engine.take()

    assert 4 == len(batch) and batch.headers is None
    known = batch.origins["partition"] != NO_PARTITION
    assert [(0, 1, 5), (0, 1, 6)] == batch.origins[known].tolist() and 2 == known.sum()
    assert [1, 2] == batch.timestamps[known].tolist() and (batch.timestamps[~known] == np.iinfo("i8").min).all()
    assert {b"plain", None} == {payload for payload, is_known in zip(batch.payloads, known) if not is_known}


def test_a_batch_without_any_says_none(loopback):
    engine = loopback()
    engine.producer().push(1, b"x")
    batch = engine.take()
    assert batch.origins is batch.timestamps is batch.headers is batch.missing is None and () == batch.topics


def test_a_tombstone_is_pushed_by_every_call_and_is_not_an_empty_payload(loopback):
    engine = loopback()
    producer = engine.producer()
    producer.push("fast", None)
    producer.push(b"slow", None, 0.0)
    producer.push_many(["many", 3], [None, b""])
    producer.push_many([np.int64(4)], [None])
    producer.push_columns(np.array([5, 6]), b"x", np.array([0, 0, 1]), missing=np.array([True, False]))

    batch = engine.take()

    assert [("fast", None), (b"slow", None), ("many", None), (3, b""), (4, None), (5, None), (6, b"x")] == list(batch)


def test_what_comes_with_events_survives_a_copy_and_batches_made_by_hand(loopback):
    engine = loopback()
    row, epoch = begun(table_of(engine), "clicks", 3, 0)
    push(engine.producer(), row, epoch, range(10), timestamps=np.arange(10), missing=np.arange(10) == 4)
    batch = engine.take()
    copied = batch.copy()
    for name in ("origins", "topics", "timestamps", "headers", "missing", "slots", "payloads", "keys"):
        assert np.array_equal(getattr(batch, name), getattr(copied, name)), name
    by_hand = Batch.of(
        list(zip(batch.keys, batch.payloads)),
        slots=engine.control.slots,
        origins=[("clicks", 3, offset) for offset in range(10)],
        timestamps=range(10),
        partitions=4,
    )
    for name in ("origins", "topics", "timestamps", "missing", "slots"):
        assert np.array_equal(getattr(copied, name), getattr(by_hand, name)), name
    assert by_hand.borrowed().origins is by_hand.origins


def test_records_engines_take_no_origins(loopback):
    engine = loopback(np.dtype([("key", "u8")]), "key")
    with pytest.raises(TypeError, match="carries records"):
        push(engine.producer(), 0, 1, [1])
    with pytest.raises(TypeError):
        Batch.of(np.zeros(1, [("key", "u8")]), key="key", origins=[("t", 0, 0)])


@pytest.mark.parametrize(
    "more, told",
    [
        ({"origin": Origin(0, 1, np.array([1, 1]))}, "must rise"),
        ({"origin": Origin(0, 1, np.array([-1, 1]))}, "must rise"),
        ({"origin": Origin(0, 1, np.array([1]))}, "1 offsets of an origin for 2 events"),
        ({"timestamps": np.array([1])}, "timestamps have shape"),
        ({"missing": np.array([True])}, "missing have shape"),
        ({"headers": (b"", np.array([0, 0]))}, "offsets of headers have shape"),
        ({"headers": (b"", np.array([0, 1, 2]))}, "offsets of headers must rise"),
    ],
)
def test_what_comes_with_events_is_checked_before_anything_is_accepted(loopback, more, told):
    engine = loopback()
    with pytest.raises(ValueError, match=told):
        engine.producer().push_columns(np.array([1, 2]), b"xy", np.array([0, 1, 2]), **more)
    assert engine.take() is None


# ---- slots by partition ----------------------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(1, 64), st.data())
def test_producer_worker_and_table_agree_on_the_slots_of_a_partition(loopback, partitions, data):
    number = data.draw(st.integers(0, partitions - 1))
    engine = loopback(slots=64)
    table = table_of(engine, partitions)
    row, epoch = begun(table, "t", number)
    keys = [data.draw(st.one_of(st.integers(-(2**63), 2**63 - 1), st.text(max_size=4))) for _ in range(20)]
    texts = [str(key).encode() for key in keys]
    producer = engine.producer()
    push(producer, row, epoch, range(20), keys=(b"".join(texts), np.cumsum([0, *map(len, texts)])))

    batch = engine.take()
    of_batch = batch.slots
    touched = np.zeros(64, "u1")
    assert lib.sm_touched(engine.readers[0], ffi.cast("uint8_t *", touched.ctypes.data)) == 0

    assert set(of_batch.tolist()) <= set(table.slots_of(number))
    assert set(np.flatnonzero(touched).tolist()) == set(of_batch.tolist())
    assert len({slots for other in range(partitions) for slots in table.slots_of(other)}) == partitions * len(
        table.slots_of(0)
    )


def test_an_event_with_an_origin_and_no_key_has_the_slot_of_its_offset_so_that_it_has_one_when_it_comes_again(loopback):
    engine = loopback(slots=64)
    table = table_of(engine)
    row, epoch = begun(table, "t", 3)
    producer = engine.producer()
    push(producer, row, epoch, range(50), keys=np.arange(50))
    data, offsets = b"x" * 50, np.arange(51)
    slots = []
    engine.take() and engine.commit()
    for _ in range(2):
        epoch = table.begin(row, 0)
        producer.push_columns(None, data, offsets, origin=Origin(row, epoch, np.arange(50)))
        batch = engine.take()
        assert [None] * 50 == batch.keys
        slots.append(batch.slots.tolist())
        del batch
        engine.commit()
    assert slots[0] == slots[1] and set(slots[0]) <= set(table.slots_of(3)) and len(set(slots[0])) > 4


# ---- the table -------------------------------------------------------------------------------------------------------


def test_the_table_says_what_it_was_told_to_everybody(loopback):
    engine = loopback(slots=64)
    table, other = table_of(engine, 6), Partitions(engine.control)
    rows = [table.row("a", 0), table.row("b", 5), table.row("a", 1)]
    assert [0, 1, 2] == rows and 1 == table.row("b", 5) and 6 == other.count
    epoch = table.begin(1, 40)
    table.set_safe(1, 30)
    table.set_pushed(1, 50)
    table.renew([1, 2], 77)
    table.set_state(1, "draining")

    one = other.rows()[1]

    assert ("b", 5, epoch, "draining", 50, 30, 77) == (
        one.topic,
        one.number,
        one.epoch,
        one.state,
        one.pushed,
        one.safe,
        one.owned_until_ns,
    )
    assert 50 == table.pushed(1) and 30 == table.safe(1) and ("a", "b") == other.topics
    assert table.resume(1) == epoch
    table.end(1)
    assert epoch + 1 == other.rows()[1].epoch and "none" == other.rows()[1].state
    with pytest.raises(Superseded):
        table.resume(1)
    assert epoch + 2 == table.begin(1, 60) and 60 == table.safe(1) == table.pushed(1)


def test_the_count_of_partitions_is_set_once_and_fits_the_slots(loopback):
    engine = loopback(slots=16)
    table = PartitionTable(engine.control)
    with pytest.raises(ConfigError, match="17 partitions do not fit into 16 slots"):
        table.set_count(17)
    table.set_count(9)
    table.set_count(9)
    assert [range(1), range(8, 9)] == [table.slots_of(0), table.slots_of(8)]
    with pytest.raises(ConfigError, match="by 9 partitions, not by 8"):
        table.set_count(8)


def test_a_full_table_takes_no_more_and_says_so(loopback):
    engine = loopback()
    table = table_of(engine)
    for number in range(lib.SM_MAX_PARTITIONS):
        table.row("t", number)
    with pytest.raises(ConfigError, match="no room for partition 1024"):
        table.row("t", lib.SM_MAX_PARTITIONS)
    assert 3 == table.row("t", 3)
    with pytest.raises(ConfigError, match="no room"):
        table.row("x" * 300, 0)


# ---- epochs ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["end", "begin"])
def test_events_of_an_epoch_that_is_over_are_passed_over_and_count_as_lost(loopback, how):
    engine = loopback()
    table = table_of(engine)
    row, epoch = begun(table)
    other_row, other_epoch = begun(table, number=1)
    producer = engine.producer()
    push(producer, row, epoch, range(100))
    push(producer, other_row, other_epoch, range(50))
    getattr(table, how)(row, *([0] if how == "begin" else []))

    assert list(range(50)) == taken(engine)
    at = lane(engine, producer)
    assert (150, 50, 100, 100, 0) == (at.accepted, at.handled, at.shed, at.lost, at.in_flight) and at.head == at.tail


def test_a_push_into_an_epoch_that_is_over_accepts_nothing(loopback):
    engine = loopback()
    table = table_of(engine)
    row, epoch = begun(table)
    producer = engine.producer()
    table.begin(row, 0)
    for size in (5, 5000):
        with pytest.raises(Superseded) as caught:
            push(producer, row, epoch, range(size))
        assert list(range(size)) == list(caught.value.left)
    assert engine.take() is None and 0 == producer.outcome()["accepted"]


def test_without_a_partition_table_nobody_owns_anything(loopback):
    with pytest.raises(Superseded):
        push(loopback().producer(), 0, 0, [1])


def test_a_batch_in_hand_goes_on_when_its_epoch_ends(loopback):
    engine = loopback(batch_rows=10)
    table = table_of(engine)
    row, epoch = begun(table)
    producer = engine.producer()
    push(producer, row, epoch, range(30))
    batch = engine.take()
    table.end(row)
    assert list(range(10)) == batch.origins["offset"].tolist()
    del batch
    engine.commit()
    assert [] == taken(engine)
    at = lane(engine, producer)
    assert (10, 20, 0) == (at.handled, at.lost, at.in_flight)


# ---- leases ----------------------------------------------------------------------------------------------------------


def now_ns() -> int:
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)


def test_nothing_is_taken_of_a_partition_whose_lease_is_over_until_it_is_renewed(loopback):
    engine = loopback()
    table = table_of(engine)
    row, epoch = begun(table)
    producer = engine.producer()
    table.renew([row], now_ns() - 1)
    push(producer, row, epoch, range(20))
    assert engine.take() is None and engine.take() is None
    table.renew([row], now_ns() + 3600 * 10**9)
    assert list(range(20)) == taken(engine)


def test_a_worker_that_waits_for_a_lease_sleeps(loopback):
    engine = loopback()
    table = table_of(engine)
    row, epoch = begun(table)
    producer = engine.producer()
    table.renew([row], 1)
    push(producer, row, epoch, range(20))
    batch, before = engine.batches[0], time.process_time()
    began = time.monotonic()
    assert lib.sm_next(engine.readers[0], 0, 300_000_000, batch) == lib.SM_OK and not batch.rows
    assert time.monotonic() - began >= 0.29 and time.process_time() - before < 0.2


def test_an_epoch_that_ends_while_its_lease_is_over_lets_the_lane_go_on(loopback):
    engine = loopback()
    table = table_of(engine)
    row, epoch = begun(table)
    producer = engine.producer()
    table.renew([row], 1)
    push(producer, row, epoch, range(20))
    assert engine.take() is None
    table.end(row)
    producer.push(1, b"plain")
    batch = engine.take()
    assert [(1, b"plain")] == list(batch)
    assert 20 == lane(engine, producer).lost


# ---- backpressure ----------------------------------------------------------------------------------------------------


def test_what_is_accepted_of_a_partition_is_all_before_some_offset_whichever_lane_is_full(loopback):
    engine = loopback(shards=2, lane_bytes=4096)
    table = table_of(engine, 1)
    row, epoch = begun(table)
    producer = engine.producer()
    pushed, seen, turn = 0, [[], []], 0
    while pushed < 400:
        try:
            push(producer, row, epoch, range(pushed, 400), keys=np.arange(pushed, 400))
            pushed = 400
        except Backpressure as error:
            left = list(error.left)
            assert left == list(range(left[0], 400 - pushed))
            pushed += left[0]
            seen[error.shard if turn % 3 else 1 - error.shard] += taken(
                engine, error.shard if turn % 3 else 1 - error.shard
            )
        turn += 1
        assert pushed == table.pushed(row) and turn < 1000
    for shard in range(2):
        seen[shard] += taken(engine, shard)
    assert list(range(400)) == sorted(seen[0] + seen[1]) and all(each == sorted(each) for each in seen)


def test_offsets_that_are_far_apart_are_told_exactly(loopback):
    engine = loopback()
    row, epoch = begun(table_of(engine))
    offsets = [0, 1, 2**32 - 1, 2**32, 2**32 + 5, 2**40, 2**62]
    push(engine.producer(), row, epoch, offsets, keys=np.zeros(7, "i8"), size=8)
    assert offsets == taken(engine)


# ---- named seats -----------------------------------------------------------------------------------------------------


def test_a_named_seat_is_the_same_for_each_holder_of_the_name_and_one_at_a_time_has_it(loopback):
    engine = loopback(max_producers=3)
    first = engine.producer(seat="source:clicks")
    with pytest.raises(AlreadyRunning, match="source:clicks"):
        engine.producer(seat="source:clicks")
    number = first.seat
    first.close()
    others = [engine.producer(), engine.producer()]
    assert number not in {other.seat for other in others}
    assert number == engine.producer(seat="source:clicks").seat


def test_a_producer_without_a_name_takes_a_named_seat_when_there_is_no_other(loopback):
    engine = loopback(max_producers=1)
    named = engine.producer(seat="source")
    named.close()
    other = engine.producer()
    assert other.seat == named.seat
    with pytest.raises(AlreadyRunning, match="without a name"):
        engine.producer(seat="source")
    other.close()
    assert named.seat == engine.producer(seat="source").seat


# ---- flush of some slots ---------------------------------------------------------------------------------------------


def test_flush_of_some_slots_waits_for_the_shards_that_have_them_and_no_others(loopback):
    engine = loopback(shards=2, slots=64)
    table = table_of(engine, 2)
    producer = engine.producer()
    for number in range(2):
        row, epoch = begun(table, number=number)
        push(producer, row, epoch, range(100), keys=np.arange(100))
    owners = engine.control.slot_table()[0]
    mine = [slot for slot in range(64) if owners[slot] == 1]
    taken(engine, 1)
    producer.flush(0.0, slots=mine)
    with pytest.raises(TimeoutError, match="shard 0"):
        producer.flush(0.0, slots=[slot for slot in range(64) if owners[slot] == 0][:1])
    engine.control.begin_move(mine[0], 0, 1, 0)  # it came from shard 0, which may have events of it
    with pytest.raises(TimeoutError, match="shard 0"):
        producer.flush(0.0, slots=mine)


# ---- rows that were applied already ----------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.integers(1, 40), min_size=1, max_size=4), st.integers(0, 2**32), st.booleans())
def test_skipped_rows_are_left_out_of_the_batch_and_counted_apart(loopback, sizes, seed, deferred):
    engine, draw, offset = loopback(), np.random.default_rng(seed), 0
    row, epoch = begun(table_of(engine))
    producer, reader = engine.producer(), Reader(engine.readers[0], 0)
    if deferred:
        reader.defer_commits()
    for size in sizes:
        push(producer, row, epoch, range(offset, offset + size))
        offset += size
    batch = engine.take()
    mask = draw.random(offset) < draw.choice([0.0, 0.3, 1.0])
    before = batch.origins["offset"]
    del batch
    engine.held.pop(0)._end()

    places = reader.skip_rows(mask, engine.batches[0])

    control = engine.control
    left = Batch(control.schema, control.slots, 0, engine.batches[0], engine.scratch, control.partitions)
    assert int((~mask).sum()) == len(left)
    if len(left):
        assert (
            before[~mask].tolist() == left.origins["offset"].tolist() == [int.from_bytes(p, "little") for _, p in left]
        )
    left._end()
    if deferred:
        assert reader.defer()
        ranges = places + reader.ranges()
        engine.restart()  # the worker dies when it has saved
        reader = Reader(engine.readers[0], 0)
        assert reader.set_aside_rows(places) and reader.commit_ranges(ranges)
    else:
        assert reader.set_aside_rows(places) and reader.commit()
    at = lane(engine, producer)
    assert (int(mask.sum()), int((~mask).sum()), 0) == (at.skipped, at.handled, at.in_flight)
    assert engine.take() is None


# ---- events that fail ------------------------------------------------------------------------------------------------


def test_an_event_in_quarantine_keeps_what_came_with_it(loopback, tmp_path):
    engine = loopback()
    row, epoch = begun(table_of(engine), "clicks", 2, 40)
    producer = engine.producer()
    headers = [[("trace", b"\xff"), ("none", None)], []]
    push(
        producer,
        row,
        epoch,
        [40, 41],
        timestamps=np.array([7, 8]),
        headers=columns_of_headers(headers),
        missing=np.array([True, False]),
    )
    producer.push("plain", b"x")
    reader = Reader(engine.readers[0], 0)
    aside = Aside(engine.control, 0, reader, str(tmp_path / "q.sqlite"), 10)
    slots = engine.take().slots.tolist()
    engine.held.pop(0)._end()

    places, entries = aside.add(engine.batches[0], {0: Failure("rejected", "no"), 2: Failure("rejected", "no")})

    with QuarantineReader(str(tmp_path / "q.sqlite")) as file:
        first, last = file.events()
    assert {"tombstone": True, "topic": "clicks", "partition": 2, "offset": 40, "timestamp": 7} == {
        name: value for name, value in first.came_with.items() if name != "headers"
    }
    assert first.payload is None and {} == last.came_with and {"kind": "events"}.items() <= first.schema.items()
    assert ("clicks", 2, 40) == tuple(describe(first, whole=True)[name] for name in ("topic", "partition", "offset"))
    again = Batch.of_event(
        engine.control.schema, 64, 0, first.key, first.payload, first.seat, first.sequence, first.slot, first.came_with
    )
    assert [(0, 2, 40)] == again.origins.tolist() and ("clicks",) == again.topics and headers[:1] == again.headers
    assert [7] == again.timestamps.tolist() and [None] == again.payloads and slots[:1] == again.slots.tolist()
    assert reader.set_aside_rows(places) and reader.commit()


def test_an_event_on_trial_waits_for_the_lease_of_its_partition_and_is_shed_with_its_epoch(loopback):
    engine = loopback()
    table = table_of(engine)
    row, epoch = begun(table)
    producer, reader = engine.producer(), Reader(engine.readers[0], 0)
    push(producer, row, epoch, range(1))
    engine.take()
    engine.held.pop(0)._end()
    trial = reader.put_on_trial(1, 0)
    table.renew([row], 1)
    assert reader.trial_waits(trial)
    table.renew([row], now_ns() + 3600 * 10**9)
    assert not reader.trial_waits(trial)
    table.end(row)
    assert not reader.next_trial(trial, engine.batches[0])
    reader.end_trial(trial)
    assert engine.take() is None
    assert (1, 0) == (lane(engine, producer).lost, lane(engine, producer).in_flight)


@given(st.lists(st.tuples(st.one_of(st.none(), st.integers(-(2**63), 2**64 - 1), st.text(max_size=3)), st.booleans())))
def test_a_batch_by_hand_has_the_slots_that_an_engine_would_give(events):
    plain = Batch.of([(key, b"") for key, _ in events], slots=64).slots
    origins = [("t", 5, offset) if has else None for offset, (_, has) in enumerate(events)]
    slots = Batch.of([(key, b"") for key, _ in events], slots=64, origins=origins, partitions=8).slots
    for (key, has), without, slot in zip(events, plain.tolist(), slots.tolist()):
        assert slot // 8 == 5 if has else slot == without
        assert not has or key is None or slot % 8 == without % 8
