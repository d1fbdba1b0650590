"""Frames that change while they are read, and words that say anything: what Python does with them."""

from __future__ import annotations

import contextlib
import random
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shardmem.errors import HandlerError
from shardmem.memory.handoff_table import HandoffTable
from shardmem.memory.native import ffi, lib
from shardmem.memory.reader import Reader
from shardmem.policy import LeastLoad, LeastSlots, Move, ScalingPolicy
from shardmem.runtime.aside import Aside, Failure
from shardmem.runtime.batch import Scratch
from shardmem.runtime.commit import Immediate
from shardmem.runtime.explain import explain
from shardmem.runtime.failures import Failures
from shardmem.runtime.outcomes import OnError
from shardmem.status.observer import Observer
from shardmem.supervisor.planner import Planner
from shardmem.supervisor.sampler import Sampler

PAGE = 4096
ROW = np.dtype([("key", "S6"), ("number", "u4"), ("pad", "V6")])


def lane_of(engine: Any, seat: int) -> Any:
    geometry = engine.control.geometry
    address = ffi.cast("uint8_t *", engine.inboxes[0].address) + geometry.lanes_offset + geometry.lane_stride * seat
    return ffi.buffer(address, geometry.lane_stride)


def push(engine: Any, producer: Any, count: int, start: int = 0) -> None:
    numbers = range(start, start + count)
    if engine.control.schema.is_records:
        made = np.zeros(count, ROW)
        made["key"], made["number"] = b"good", numbers
        producer.send(made)
    else:
        producer.push_many(
            ["good" if number % 2 else 7 for number in numbers], [number.to_bytes(2, "little") for number in numbers]
        )


READ = {
    "len": len,
    "repr": repr,
    "records": lambda b: b.records.tolist() if b._schema.is_records else None,
    "items": lambda b: list(b),
    "payloads": lambda b: None if b._schema.is_records else b.payloads,
    "columns": lambda b: (
        None if b._schema.is_records else [bytes(b.columns().data[a:z]) for a, z in zip(*b.columns()[2:])]
    ),
    "keys": lambda b: list(b.keys),
    "slots": lambda b: b.slots.max() < b._slots or pytest.fail("a slot that is not there"),
    "sequences": lambda b: b.sequences.tolist(),
    "producers": lambda b: b.producers.tolist(),
    "copy": lambda b: list(b.copy()),
    "explain": lambda b: explain(b, ValueError()),
}


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    seed=st.integers(0, 1 << 32),
    is_records=st.booleans(),
    batch_rows=st.sampled_from([5, 64, 4096]),
    order=st.permutations(sorted(READ)),
)
def test_a_batch_of_a_changing_frame_is_read_or_refused_and_the_other_lane_is_whole(
    loopback, seed, is_records, batch_rows, order
):
    """Bits flip in a lane's words and frames before rows are chosen, while they are read, and before they are
    committed."""
    draw = random.Random(seed)
    engine = loopback(*((ROW, "key") if is_records else ()), lane_bytes=4096, batch_rows=batch_rows)
    mad, good = engine.producer(), engine.producer()
    lane, seen = None, []

    def flip() -> None:
        for _ in range(draw.randrange(4)):
            at = draw.choice([draw.randrange(32), PAGE + draw.randrange(256), draw.randrange(PAGE, 2 * PAGE)])
            lane[at] = bytes([lane[at][0] ^ 1 << draw.randrange(8)])

    def look(batch: Any) -> None:
        for name in order:
            flip()
            with contextlib.suppress(BufferError):
                READ[name](batch)
        honest = batch.producers == good.seat
        seen.extend(batch.sequences[honest].tolist())

    lane = lane_of(engine, mad.seat)
    for pushed in range(0, 60, 20):
        with contextlib.suppress(Exception):
            push(engine, mad, draw.randrange(1, 30))
        push(engine, good, 20, pushed)
        for _ in range(200):
            flip()
            batch = engine.take()
            if batch is None and engine.last_status == lib.SM_OK:
                break
            if batch is not None:
                look(batch)
                engine.held.pop(0)._end()
                del batch
                flip()
                assert lib.sm_commit(engine.readers[0]) in (lib.SM_OK, lib.SM_CORRUPT)
    assert seen == list(range(60))
    engine.close()
    engine._opened, engine.readers, engine.inboxes, engine.close = [], [], [], lambda: None


def failures_of(engine: Any) -> Failures:
    reader = Reader(engine.readers[0], 0)
    rules = OnError(
        on_error="stop",
        max_attempts=3,
        retry_backoff=0.0,
        retry_on=[],
        retry_max_wait=1.0,
        retry_for=None,
        quarantine_file="/nonexistent",
        quarantine_limit=1,
    )
    return Failures(
        engine.control,
        0,
        reader,
        engine.batches[0],
        Immediate(engine.control, 0, reader, object()),
        Aside(engine.control, 0, reader, rules.quarantine_file, rules.quarantine_limit),
        rules,
        None,
        "",
        Scratch(),
    )


def damaged(engine: Any, good: int) -> tuple[Any, Any]:
    """A batch of one event of a lane that has been damaged since, and `good` events of another."""
    mad, other = engine.producer(), engine.producer()
    push(engine, mad, 1)
    if good:
        push(engine, other, good)
    batch = engine.take()
    assert len(batch) == 1 + good
    lane = lane_of(engine, mad.seat)
    lane[PAGE + 48 + 12 : PAGE + 48 + 16] = b"\xff" * 4  # the end of the only entry of the first frame
    return batch, mad


def test_a_handler_that_fails_because_a_frame_changed_is_not_blamed_and_the_other_events_come_again(loopback):
    engine = loopback(batch_rows=64)
    batch, mad = damaged(engine, 5)
    failures = failures_of(engine)  # on_error="stop": a failure of the handler would end the worker
    with pytest.raises(BufferError) as caught:
        list(batch)

    failures.raised(engine.held.pop(0), caught.value)

    batch = engine.take()
    assert engine.last_status == lib.SM_CORRUPT and engine.batches[0].broken_seat == mad.seat
    assert len(batch) == 5 and (batch.producers != mad.seat).all()


def test_a_handler_that_fails_by_itself_is_still_blamed(loopback):
    engine = loopback(batch_rows=64)
    push(engine, engine.producer(), 5)
    engine.take()
    with pytest.raises(HandlerError, match="keys 7 to 7"):
        failures_of(engine).raised(engine.held[0], ValueError("no"))


def test_an_event_that_is_to_be_set_aside_and_has_changed_breaks_its_lane_and_not_the_worker(loopback):
    engine = loopback()
    damaged(engine, 0)
    failures = failures_of(engine)

    assert failures._put_aside({0: Failure("death", "it died")}) is None

    engine.held.clear()
    assert engine.take() is None and engine.last_status == lib.SM_CORRUPT


def test_a_failure_is_explained_while_its_frame_changes(loopback):
    engine = loopback(batch_rows=64)
    batch, mad = damaged(engine, 2)
    assert f"producer {mad.seat}" in explain(batch, ValueError("no"))


WORDS = {  # of the control segment: where, and what
    "phase of a handoff": lambda engine: offsets(engine)[0][2],
    "board": lambda engine: offsets(engine)[0][4],
    "board of events": lambda engine: offsets(engine)[0][4] + offsets(engine)[1][4] // lib.SM_BOARDS,
    "words of a shard": lambda engine: offsets(engine)[0][5] + 128,
    "histogram": lambda engine: offsets(engine)[0][5] + 3 * 128,
}


def offsets(engine: Any) -> tuple[list[int], list[int]]:
    """Of the parts of the control segment: where they begin, and their lengths."""
    found, lengths = ffi.new("uint64_t[8]"), ffi.new("uint64_t[8]")
    lib.sm_control_ranges(engine.control.geometry, found, lengths)
    return list(found), list(lengths)


@pytest.mark.parametrize("what", WORDS)
def test_status_and_samples_survive_whatever_words_say(loopback, what):
    engine = loopback()
    observer = Observer(engine.control)
    sampler = Sampler(observer)
    lib.sm_post(engine.control.address, lib.SM_BOARD_DECISIONS, b'{"lives": {}, "limits": {"stall": 1}}', 37)
    lib.sm_post(engine.control.address, lib.SM_BOARD_EVENTS, b'{"events": [], "quarantined": 0}', 32)
    push(engine, engine.producer(), 5)
    memory = ffi.buffer(engine.control.address, engine.control.geometry.control_bytes)
    start, draw = WORDS[what](engine), random.Random(1)
    for number in range(50):
        observer.status()
        sampler.sample([0], float(number))
        values = [draw.choice([0, 1, 200, 1 << 63, (1 << 64) - 1, draw.getrandbits(64)]) for _ in range(16)]
        memory[start : start + 128] = b"".join(value.to_bytes(8, "little") for value in values)
    observer.close()


def planner_of(engine: Any, strategy: Any) -> Planner:
    words, states = HandoffTable(engine.control, lambda shard: None), {0: "active", 1: "active"}
    policy = ScalingPolicy(max_shards=2)
    return Planner(words, policy, strategy, states, now=0.0, room=engine.control.room)


def test_the_planner_moves_nothing_that_a_strategy_should_not_have_answered(loopback):
    class Elsewhere(LeastSlots):
        def rebalance(self, view):
            return [Move(0, 0, 9)]

    planner = planner_of(loopback(shards=2), Elsewhere())
    planner.begin(0.0)
    planner.tick([], None, 1.0)
    assert 0 == planner.handoffs.slots_in_flight() and "strategy Elsewhere" in planner.table.complaints[0]
    assert planner.describe(1.0)["moves"]["complaints"] == planner.table.complaints


@pytest.mark.parametrize("strategy", [LeastLoad, LeastSlots])
def test_the_planner_decides_something_whatever_words_say(loopback, strategy):
    """The supervisor's loop ends with the first error in here."""
    draw = random.Random(2)
    for turn in range(5):
        engine = loopback(shards=2)
        observer = Observer(engine.control)
        planner, sampler = planner_of(engine, strategy()), Sampler(observer)
        begins, lengths = offsets(engine)
        memory = ffi.buffer(engine.control.address, engine.control.geometry.control_bytes)
        for step in range(200):
            part = draw.choice([1, 2, 3, 5, 5])  # slots, holds, moves, shards
            at = begins[part] + 8 * draw.randrange(lengths[part] // 8)
            value = draw.choice([0, 1, 200, 5000, 1 << 63, (1 << 64) - 1, draw.getrandbits(64)])
            memory[at : at + 8] = value.to_bytes(8, "little")
            if step == 100 or draw.randrange(16) == 0:  # another supervisor takes over what is there
                planner = planner_of(engine, strategy())
                planner.begin(float(step))
            if draw.randrange(8) == 0:
                now = turn * 100.0 + step
                planner.wishes.eager = True
                planner.wishes.move(draw.sample(range(engine.control.slots), 3), draw.randrange(2))
                planner.tick(sampler.sample([0, 1], now), sampler.rates, now)
                planner.describe(now)
                planner.progress(now)
                observer.status()
        observer.close()


def test_a_broken_lane_is_not_load(loopback):
    engine = loopback(lane_bytes=4096)
    producer, observer = engine.producer(), Observer(engine.control)
    push(engine, producer, 60)
    sampler = Sampler(observer)
    sampler.sample([0], 1.0)
    assert observer.status()["shards"][0]["fill_ratio"] > 0.3
    lane_of(engine, producer.seat)[PAGE] = b"\x07"
    assert engine.take() is None and engine.last_status == lib.SM_CORRUPT
    shard = observer.status()["shards"][0]
    assert shard["fill_ratio"] == 0.0 and shard["in_flight"] == 60 and shard["broken_lanes"] == [producer.seat]
    assert sampler.sample([0], 2.0)[0].fill_ratio == 0.0
    assert observer.in_flight() == {0: 0}
    observer.close()
