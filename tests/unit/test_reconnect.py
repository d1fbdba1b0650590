"""A producer outlives its engine: it attaches to the next one of that name, and lets go of the memory of the last."""

from __future__ import annotations

import gc
import os
import threading
import time

import numpy as np
import pytest

import shardmem
from shardmem.memory import lease

ROW = np.dtype([("key", "u8"), ("number", "u8")])
RECORDS = {"dtype": ROW, "key": "key"}
PATIENCE = 60.0
METHODS = ("push", "push_many", "push_columns", "send")


def offer(producer, method, count=3, **options):
    """So many events, numbered from 0; what the call returns."""
    numbers = range(1 if method == "push" else count)
    if method == "push":
        return producer.push(7, b"0", **options)
    if method == "push_many":
        return producer.push_many([7] * count, [b"%d" % each for each in numbers], **options)
    if method == "push_columns":
        return producer.push_columns(
            np.full(count, 7), b"".join(b"%d" % each for each in numbers), np.arange(count + 1)
        )
    return producer.send(np.array([(7, each) for each in numbers], ROW), **options)


def taken(engine):
    """Everything that waits in the engine's lanes, handled."""
    found = []
    while (batch := engine.take()) is not None:
        found += batch.records["number"].tolist() if engine.control.schema.is_records else map(int, batch.payloads)
        engine.commit()
    return found


def mappings(name):
    with open("/proc/self/maps") as maps:
        return [line for line in maps if name in line]


def schema_of(method):
    return RECORDS if method == "send" else {}


def fill(producer):
    """Until the lane has no room for the smallest event."""
    for payload in (bytes(1000), b""):
        try:
            while producer.push(7, payload, timeout=0):
                pass
        except shardmem.Backpressure:
            continue


@pytest.mark.parametrize("method", METHODS)
def test_a_producer_attaches_to_the_next_engine_of_its_name_by_itself(loopback, method):
    first = loopback(**schema_of(method))
    producer = shardmem.connect(first.name)
    offer(producer, method)
    assert len(taken(first)) == len(range(1 if method == "push" else 3))
    first.end()
    second = loopback(name=first.name, **schema_of(method))
    accepted = offer(producer, method)
    assert taken(second) == list(range(accepted))
    assert producer.outcome()["accepted"] == 2 * accepted == producer.outcome()["handled"]
    producer.flush(PATIENCE)
    producer.close()


def test_the_memory_of_an_engine_that_ended_is_let_go_while_there_is_no_other(loopback):
    engine = loopback()
    ours = len(mappings(engine.name))
    producer = shardmem.connect(engine.name, backpressure="fail")
    producer.push(7, b"0")
    assert len(mappings(engine.name)) > ours
    taken(engine)
    engine.end()
    with pytest.raises(shardmem.Unavailable):
        producer.push(7, b"1")
    assert len(mappings(engine.name)) == ours
    assert "away" in repr(producer)
    producer.close()


@pytest.mark.parametrize("method", ["push", "push_many", "send"])
def test_without_an_engine_a_call_waits_as_long_as_for_room_and_says_what_was_not_accepted(loopback, method):
    engine = loopback(**schema_of(method))
    producer = shardmem.connect(engine.name)
    engine.end()
    began = time.monotonic()
    with pytest.raises(shardmem.Unavailable, match=f"{engine.name}.*is stopped") as error:
        offer(producer, method, timeout=0.2)
    assert time.monotonic() - began >= 0.2
    assert isinstance(error.value, shardmem.Backpressure) and isinstance(error.value, shardmem.NotRunning)
    rest = error.value.rest
    assert rest == (7, b"0") if method == "push" else len(rest[0] if method == "push_many" else rest) == 3
    with pytest.raises(shardmem.Unavailable):
        offer(producer, method, timeout=0)
    assert sum(producer.outcome()["refused"].values()) == producer.outcome()["refused"]["stopped"] > 0


@pytest.mark.parametrize("state", ["draining", "stopped"])
@pytest.mark.parametrize("mode", ["fail", "drop_newest", "drop_oldest", "sample"])
@pytest.mark.parametrize("gone", [False, True])
def test_without_an_engine_every_mode_does_what_it_does_without_waiting(loopback, mode, state, gone):
    engine = loopback()
    producer = shardmem.connect(engine.name, backpressure=mode, sample_every=1)
    engine.control.set_state(state)
    if gone:
        engine.end()
    for method in ("push", "push_many", "push_columns"):
        if mode == "fail":
            with pytest.raises(shardmem.Unavailable):
                offer(producer, method)
        else:
            assert offer(producer, method) == 0
    assert producer.outcome()["refused"] == {"stopped": 7}
    if not gone:
        assert list(engine.control.view_seat(producer.seat).refused) == [0, 0, 0, 7], "status says so too"
    producer.close()


@pytest.mark.parametrize("full", [False, True], ids=["stopped", "full, then gone"])
def test_a_call_that_waits_in_a_thread_goes_on_at_the_next_engine(loopback, full):
    first = loopback(lane_bytes=4096)
    producer = shardmem.connect(first.name)
    if full:
        fill(producer)
    else:
        first.end()
    accepted = []
    thread = threading.Thread(target=lambda: accepted.append(producer.push_many([7] * 3, [b"0", b"1", b"2"])))
    thread.start()
    if full:
        first.end()
    second = loopback(name=first.name)
    thread.join(PATIENCE)
    assert accepted == [3] and taken(second) == [0, 1, 2]
    producer.close()


def test_an_engine_that_is_run_again_on_the_same_memory_keeps_its_producers_and_their_seats(loopback):
    engine = loopback()
    producer = shardmem.connect(engine.name)
    producer.push(7, b"0")
    engine.control.set_state("stopped")
    with pytest.raises(shardmem.Unavailable):
        producer.push(7, b"lost", timeout=0)
    thread = threading.Thread(target=producer.push, args=(7, b"1"))
    thread.start()
    engine.control.set_state("starting")
    engine.control.set_state("running")
    thread.join(PATIENCE)
    assert taken(engine) == [0, 1] and producer.seat == 0
    assert engine.control.view_seat(0).incarnation == 1


def test_an_engine_that_came_back_with_another_schema_is_a_clear_error_until_it_fits_again(loopback):
    events = loopback()
    producer = shardmem.connect(events.name)
    events.end()
    records = loopback(name=events.name, **RECORDS)
    for _ in range(2):
        with pytest.raises(shardmem.LayoutMismatch, match="another schema.*records of dtype.*pushes events") as error:
            producer.push(7, b"0")
        assert error.value.rest == (7, b"0") and "connect" in error.value.hint
    assert not any(records.control.seat_alive(seat) for seat in range(8)), "it keeps no seat there"
    records.end()
    again = loopback(name=events.name)
    assert producer.push(7, b"0") and taken(again) == [0]


def test_every_seat_taken_at_the_next_engine_is_said_and_a_seat_that_is_freed_is_taken(loopback):
    first = loopback(max_producers=1)
    late = shardmem.connect(first.name)
    first.end()
    second = loopback(name=first.name, max_producers=1)
    with shardmem.connect(second.name):
        with pytest.raises(shardmem.AlreadyRunning, match="max_producers"):
            late.push(7, b"0")
    assert late.push(7, b"0") and taken(second) == [0]


def test_events_that_an_engine_took_with_it_are_told_of_by_flush_and_are_never_called_handled(loopback):
    first = loopback()
    producer = shardmem.connect(first.name)
    producer.push_many([7] * 3, [b"0"] * 3)
    before = producer.position()
    first.end()
    second = loopback(name=first.name)
    producer.push(7, b"0")
    taken(second)
    with pytest.raises(shardmem.NotRunning, match="3 events were not handled"):
        producer.flush(PATIENCE)
    producer.flush(PATIENCE)
    assert not producer.handled(before)
    assert producer.handled(producer.position())
    assert producer.outcome() == {"accepted": 4, "handled": 1, "quarantined": 0, "skipped": 0, "shed": 0, "refused": {}}


def test_a_position_at_an_engine_that_ended_in_good_order_is_handled(loopback):
    first = loopback()
    producer = shardmem.connect(first.name)
    producer.push(7, b"0")
    before = producer.position()
    assert not producer.handled(before)
    taken(first)
    first.end()
    loopback(name=first.name)
    producer.push_many([7] * 9, [b"0"] * 9)  # a lane as the first, further on
    assert producer.handled(before) and not producer.handled(producer.position())


@pytest.mark.parametrize("gone", [False, True])
def test_nobody_waits_for_an_engine_without_a_name_which_ends_for_good(loopback, gone):
    engine = loopback(is_named=False)
    producer = shardmem.connect(engine.name)
    engine.control.set_state("stopped")
    if gone:
        engine.end()
    with pytest.raises(shardmem.NotRunning, match="accepts nothing any more"):
        producer.push(7, b"0")


def test_an_interrupt_ends_a_call_that_waits_for_an_engine(loopback):
    engine = loopback()
    producer = shardmem.connect(engine.name)
    engine.end()
    ended = []

    def push():
        try:
            producer.push(7, b"0")
        except shardmem.ShardmemError as error:
            ended.append(type(error).__name__)

    thread = threading.Thread(target=push)
    thread.start()
    producer.interrupt()
    thread.join(PATIENCE)
    assert ended == ["Interrupted"]


def test_a_producer_keeps_no_descriptor(loopback):
    engine = loopback(shards=2)
    before = sorted(os.listdir("/proc/self/fd"))
    with shardmem.connect(engine.name) as producer:
        producer.push_many(list(range(20)), [b""] * 20)
        assert sorted(os.listdir("/proc/self/fd")) == before
        producer.push_many(list(range(20)), [b""] * 20)
        assert engine.control.seat_alive(producer.seat)


def test_a_closed_producer_has_given_back_its_descriptors_and_its_memory_without_a_collector(loopback):
    engine = loopback(shards=2)
    gc.collect()
    gc.disable()
    try:
        before = sorted(os.listdir("/proc/self/fd")), len(mappings(engine.name))
        for _ in range(5):
            with shardmem.connect(engine.name) as producer:
                producer.push_many(list(range(20)), [b""] * 20)
            assert (sorted(os.listdir("/proc/self/fd")), len(mappings(engine.name))) == before
            assert not engine.control.seat_alive(producer.seat)
    finally:
        gc.enable()


def test_a_push_that_was_bound_before_serves_the_next_engine_too(loopback):
    first = loopback()
    producer = shardmem.connect(first.name)
    push = producer.push
    push(7, b"0")
    first.end()
    second = loopback(name=first.name)
    assert push(7, b"0") and push(7, b"1") and taken(second) == [0, 1]
    producer.close()
    with pytest.raises(shardmem.NotRunning, match="closed"):
        push(7, b"2")


# ---- the fence -------------------------------------------------------------------------------------------------------


@pytest.fixture
def take_over():
    """Another holder takes the seat of a producer whose lease was lost, and enters it."""
    held = []

    def take(engine, producer):
        producer._attached.seat._leases[0].release()
        held.append(lease.Lease.take(engine.control.segment, lease.seat_byte(producer.seat)))
        engine.control.enter_seat(producer.seat)

    yield take
    for each in held:
        each.release()


def words_of(engine, seat):
    view, lane = engine.control.view_seat(seat), engine.inboxes[0].lanes()[seat]
    return view.mark, view.sequence, view.pid, list(view.refused), view.blocked_ns, lane


@pytest.mark.parametrize("method", METHODS)
def test_a_producer_whose_seat_was_taken_is_told_before_it_writes_and_takes_another(loopback, take_over, method):
    engine = loopback(**schema_of(method))
    producer = shardmem.connect(engine.name)
    offer(producer, method)
    taken(engine)
    take_over(engine, producer)
    before = words_of(engine, 0)
    assert offer(producer, method)
    assert producer.seat == 1 and words_of(engine, 0) == before
    producer.close()
    assert words_of(engine, 0) == before
    lanes = engine.inboxes[0].lanes()
    assert all(lane.in_flight >= 0 for lane in lanes) and sum(lane.accepted for lane in lanes) == 2 * lanes[0].accepted


def test_what_was_pushed_from_a_lost_seat_is_handled_before_anything_from_the_next(loopback, take_over):
    engine = loopback()
    producer = shardmem.connect(engine.name)
    producer.push(7, b"0")
    take_over(engine, producer)
    with pytest.raises(shardmem.Unavailable, match="seat 0.*taken by another process"):
        producer.push(7, b"1", timeout=0.05)
    thread = threading.Thread(target=producer.push, args=(7, b"2"))
    thread.start()
    assert taken(engine) == [0]
    thread.join(PATIENCE)
    assert taken(engine) == [2] and producer.seat == 1


def test_a_producer_that_was_closed_counts_nothing_in_a_seat_that_is_another_s_by_now(loopback):
    engine = loopback(lane_bytes=4096)
    producer = shardmem.connect(engine.name)
    fill(producer)
    ended = []

    def push():
        try:
            producer.push(7, bytes(1000))
        except shardmem.NotRunning as error:
            ended.append(error)

    thread = threading.Thread(target=push)
    thread.start()
    producer.close()
    with shardmem.connect(engine.name) as other:
        assert other.seat == 0
        before = list(engine.control.view_seat(0).refused)
        thread.join(PATIENCE)
        assert len(ended) == 1 and list(engine.control.view_seat(0).refused) == before
