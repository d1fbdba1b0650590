"""A full lane: what is refused is said exactly, waiting keeps to its limit, and every loss is counted."""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import shardmem
from support.checker import accounting, check
from support.programs import sends, waiting
from support.recorder import RECORD, parse, payload, records
from support.rig import (
    PATIENCE,
    SMALL_LANE,
    Log,
    Program,
    Rig,
    drained,
    expect_clean,
    handled_numbers,
    keys_of_shard,
    sleeps_in_futex,
    wait_until,
)

METHODS = ["push", "push_many", "push_columns", "send"]
SLACK = 1.0  # how much later than asked a wait may end on a busy machine
Event = tuple[int, int]  # key, number


def settings(method: str) -> dict[str, Any]:
    return {"dtype": RECORD, "key": "key"} if method == "send" else {}


class Caller:
    """One test-level producer that knows what it offered, and what was said about it."""

    def __init__(self, producer: shardmem.Producer, method: str, log: Log, seed: int = 0) -> None:
        self.producer, self.method, self._log = producer, method, log
        self.random = random.Random(f"{method} {seed}")
        self._numbers: Counter[int] = Counter()
        self.filler = 200  # payloads are of any size up to this
        self.offered = self.accepted = self.refused = self.returned = 0

    def events(self, keys: list[int]) -> list[Event]:
        events = []
        for key in keys:
            events.append((key, self._numbers[key]))
            self._numbers[key] += 1
        return events

    def call(self, events: list[Event], **options: Any) -> list[Event]:
        """Offers them in one call; the events that were not accepted."""
        self._rows("offered", events)
        self.offered += len(events)
        try:
            self.returned += self._call(events, options)
            rest = []
        except shardmem.Backpressure as error:
            rest = self._rest_of(error, events)
        self.refused += len(rest)
        left = Counter(rest)
        taken = [event for event in events if not (left[event] and left.subtract([event]) is None)]
        self.accepted += len(taken)
        self._rows("accepted", taken)
        return rest

    def refuse(self, events: list[Event]) -> None:
        """Their refusal is final: they will not be offered again."""
        self._rows("refused", events)

    def insist(self, events: list[Event]) -> None:
        """Offers the rest again and again until all is accepted."""
        while events:
            events = self.call(events)

    def _call(self, events: list[Event], options: dict[str, Any]) -> int:
        keys = [key for key, _ in events]
        if self.method == "send":
            return self.producer.send(records(0, keys, [number for _, number in events]), **options)
        self._payloads = {event: payload(0, *event, self.random.randrange(self.filler + 1)) for event in events}
        payloads = list(self._payloads.values())
        if self.method == "push":
            assert len(events) == 1
            return self.producer.push(keys[0], payloads[0], **options)
        if self.method == "push_many":
            return self.producer.push_many(keys, payloads, **options)
        return self.producer.push_columns(
            np.array(keys), b"".join(payloads), np.cumsum([0, *map(len, payloads)]), **options
        )

    def _rest_of(self, error: shardmem.Backpressure, offered: list[Event]) -> list[Event]:
        """The rest, checked: of the form that was offered, unchanged, in order, with the count that is said."""
        if self.method == "send":
            assert isinstance(error.rest, np.ndarray) and error.rest.dtype == RECORD
            rest = list(zip(error.rest["key"].tolist(), error.rest["number"].tolist()))
            assert np.array_equal(error.rest, records(0, *zip(*rest)))
        else:
            if self.method == "push":
                keys, payloads = [error.rest[0]], [error.rest[1]]
            elif self.method == "push_many":
                keys, payloads = error.rest
            else:
                columns, data, offsets = error.rest
                keys, payloads = columns.tolist(), [bytes(data[a:b]) for a, b in zip(offsets, offsets[1:])]
            rest = [(key, parse(data)[2]) for key, data in zip(keys, payloads)]
            assert len(keys) == len(payloads) and payloads == [self._payloads[event] for event in rest]
        assert rest, "an error without a rest"
        positions = [offered.index(event) for event in rest]
        assert positions == sorted(positions), "the rest is in the order in which it was offered"
        assert error.accepted == len(offered) - len(rest)
        return rest

    def _rows(self, name: str, events: list[Event]) -> None:
        if events:
            self._log.rows(name, 0, *zip(*events))


@pytest.fixture
def log(rig: Rig) -> Iterator[Log]:
    with Log(rig.directory) as log:
        yield log


def fill(caller: Caller, key: int) -> None:
    """Until the lane of the key's shard has no room for the smallest event of ours; those that follow are of that
    size."""
    for caller.filler in (200, 0):
        while not caller.call(events := caller.events([key]), timeout=0):
            pass
        caller.refuse(events)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("full", [[1], [0, 1, 2]])
def test_the_rest_is_exactly_what_was_not_accepted(
    rig: Rig, engine_name: str, log: Log, method: str, full: list[int]
) -> None:
    """Random calls against lanes of which some are full; afterwards handlers have what was accepted, and nothing
    else."""
    with rig.engine(engine_name, shards=3, lane_bytes=SMALL_LANE, batch_rows=64, **settings(method)) as engine:
        with engine.producer(backpressure="fail") as producer:
            caller = Caller(producer, method, log)
            refused: list[Event] = []
            for _ in range(2):
                gates = [rig.hold(shard) for shard in full]
                for gate in gates:
                    gate.__enter__()
                for _ in range(30 if method != "push" else 300):
                    size = 1 if method == "push" else caller.random.choice([1, 2, 7, 60, 300])
                    timeout = caller.random.choice([0, 0, 0, 0.01])
                    refused += caller.call(
                        caller.events([caller.random.randrange(40) for _ in range(size)]),
                        **caller.random.choice([{}, {"timeout": timeout}]),
                    )
                for gate in gates:
                    gate.__exit__(None, None, None)
                producer.flush(PATIENCE)
            assert refused and caller.accepted
            caller.refuse(refused)
        status = drained(engine)
        logs = expect_clean(rig, status)
        assert len(logs.handled) == caller.accepted == status["accounting"]["accepted"]
        assert caller.offered == status["accounting"]["offered"]
        assert caller.refused == sum(status["accounting"]["refused"].values())
        assert set(status["accounting"]["refused"]) <= {"full", "timeout"}


@pytest.mark.parametrize("method", METHODS)
def test_offering_the_rest_again_until_it_is_accepted_keeps_order(
    rig: Rig, engine_name: str, log: Log, method: str
) -> None:
    with rig.engine(engine_name, shards=2, lane_bytes=SMALL_LANE, batch_rows=16, **settings(method)) as engine:
        with engine.producer(backpressure="fail") as producer:
            caller = Caller(producer, method, log)
            for _ in range(40 if method != "push" else 1500):
                size = 1 if method == "push" else caller.random.choice([1, 5, 50, 150])
                caller.insist(caller.events([caller.random.randrange(6) for _ in range(size)]))
            producer.flush(PATIENCE)
        status = drained(engine)
        expect_clean(rig, status)
        assert caller.refused == sum(status["accounting"]["refused"].values())
        assert caller.offered == status["accounting"]["offered"]


@pytest.mark.parametrize("method", METHODS)
def test_one_full_shard_refuses_none_of_the_others_events(rig: Rig, engine_name: str, log: Log, method: str) -> None:
    with rig.engine(engine_name, shards=3, lane_bytes=1 << 14, **settings(method)) as engine, rig.hold(1):
        with engine.producer() as producer:
            caller = Caller(producer, method, log)
            stuck, free = keys_of_shard(1, 3, 4), keys_of_shard(0, 3, 4) + keys_of_shard(2, 3, 4)
            fill(caller, stuck[0])
            size = 1 if method == "push" else 30
            for _ in range(20):
                keys = caller.random.choices(stuck + free, k=size)
                rest = caller.call(caller.events(keys), timeout=0)
                assert [key for key, _ in rest] == [key for key in keys if key in stuck]
                for shard in (0, 2):
                    wait_until(lambda: not engine.status()["shards"][shard]["in_flight"], f"shard {shard} goes on")
    # left by the block: the gate is open again and the engine has drained


@pytest.mark.parametrize("method", METHODS)
def test_a_timeout_is_honoured(rig: Rig, engine_name: str, log: Log, method: str) -> None:
    with rig.engine(engine_name, shards=1, lane_bytes=SMALL_LANE, **settings(method)) as engine, rig.hold():
        with engine.producer() as producer:
            caller, waited = Caller(producer, method, log), 0.0
            fill(caller, 0)
            for count, timeout in enumerate([0.01, 0.05, 0.3], 1):
                began = time.monotonic()
                rest = caller.call(events := caller.events([0]), timeout=timeout)
                took = time.monotonic() - began
                assert rest == events
                assert timeout <= took < timeout + SLACK
                waited += timeout
                assert engine.status()["accounting"]["refused"] == {"full": 2, "timeout": count}
                seat = engine.status()["producers"][0]
                assert seat["blocked_count"] == count and waited * 0.9 < seat["blocked_s"] < waited + SLACK


@pytest.mark.parametrize("method", METHODS)
def test_without_waiting_a_full_lane_refuses_at_once(rig: Rig, engine_name: str, log: Log, method: str) -> None:
    with rig.engine(engine_name, shards=1, lane_bytes=SMALL_LANE, **settings(method)) as engine, rig.hold():
        for mode, options in [("block", {"timeout": 0}), ("fail", {})]:
            with engine.producer(backpressure=mode) as producer:
                caller = Caller(producer, method, log)
                fill(caller, 0)
                began = time.monotonic()
                for _ in range(50):
                    assert caller.call(caller.events([0]), **options)
                assert time.monotonic() - began < SLACK
                assert engine.status()["producers"][0]["blocked_count"] == 0
        assert engine.status()["accounting"]["refused"]["full"] > 100


@pytest.mark.parametrize("method", METHODS)
def test_a_blocked_call_goes_on_when_there_is_room(rig: Rig, engine_name: str, log: Log, method: str) -> None:
    with rig.engine(engine_name, shards=1, lane_bytes=SMALL_LANE, **settings(method)) as engine:
        with rig.hold() as release, engine.producer(backpressure="block") as producer:
            caller = Caller(producer, method, log)
            fill(caller, 0)
            events = caller.events([0] if method == "push" else [0] * 500)
            thread = threading.Thread(target=caller.call, args=(events,))
            thread.start()
            wait_until(lambda: sleeps_in_futex(os.getpid(), thread.native_id), "the call waits")
            release()
            thread.join(PATIENCE)
            assert not thread.is_alive()
            producer.flush(PATIENCE)
        expect_clean(rig, drained(engine))


@pytest.mark.parametrize("method", [*METHODS, "flush"])
def test_a_signal_interrupts_a_blocked_call_promptly(rig: Rig, engine_name: str, method: str) -> None:
    lane = 1 << 20 if method == "flush" else SMALL_LANE
    with rig.engine(
        engine_name, shards=1, lane_bytes=lane, handler="support.handlers.waiting:Gated", **settings(method)
    ) as engine:
        with rig.hold(), Program(waiting.interrupted, rig, engine=engine_name, method=method) as program:
            pid = program.hear()["pid"]
            wait_until(lambda: sleeps_in_futex(pid), "the call is blocked")
            program.kill(signal.SIGINT)
            reply = program.hear()
            assert reply["ended"] == "KeyboardInterrupt" and reply["after"] < SLACK
            assert program.end() == 0
        assert accounting(drained(engine), drained=True) == []


@pytest.mark.parametrize("method", METHODS)
def test_drop_newest_drops_what_finds_no_room_and_counts_it(rig: Rig, engine_name: str, log: Log, method: str) -> None:
    with rig.engine(
        engine_name, shards=2, lane_bytes=SMALL_LANE, backpressure="drop_newest", **settings(method)
    ) as engine:
        with engine.producer() as producer, rig.hold():
            caller = Caller(producer, method, log)
            for _ in range(300 if method == "push" else 20):
                caller.call(caller.events([caller.random.randrange(9) for _ in range(1 if method == "push" else 30)]))
            status = engine.status()
        assert caller.offered == status["accounting"]["offered"]
        assert caller.returned == status["accounting"]["accepted"] < caller.offered
        assert status["accounting"]["refused"] == {"full": caller.offered - caller.returned}
        status = drained(engine)
        assert accounting(status, drained=True) == []
        logs = rig.logs()
        assert len(logs.handled) == caller.returned and logs.handled["good"].all()


@pytest.mark.parametrize("method", ["push_many", "push_columns", "send"])
def test_one_full_shard_costs_the_others_nothing_in_a_mode_that_drops(
    rig: Rig, engine_name: str, log: Log, method: str
) -> None:
    """A large call is cut into pieces inside; a piece that meets a full lane must not give up the pieces after it."""
    with rig.engine(
        engine_name, shards=2, lane_bytes=1 << 20, backpressure="drop_newest", **settings(method)
    ) as engine:
        with rig.hold(1), engine.producer() as producer:
            caller = Caller(producer, method, log)
            stuck, free = keys_of_shard(1, 2, 1)[0], keys_of_shard(0, 2, 1)[0]
            while engine.status()["accounting"]["refused"] == {}:
                caller.call(caller.events([stuck] * 1000))
            before = engine.status()["shards"][0]["accepted"]
            caller.call(caller.events([stuck, free] * 4000))
            assert engine.status()["shards"][0]["accepted"] - before == 4000
        drained(engine)


@pytest.mark.parametrize("method", ["push", "push_many", "send"])
def test_sample_keeps_one_in_so_many_of_what_finds_no_room_and_counts_the_others(
    rig: Rig, engine_name: str, log: Log, method: str
) -> None:
    with rig.engine(
        engine_name,
        shards=2,
        lane_bytes=SMALL_LANE,
        backpressure="sample",
        handler="support.handlers.waiting:Slow",
        **settings(method),
    ) as engine:
        with engine.producer(sample_every=5) as producer:
            caller = Caller(producer, method, log)
            for _ in range(600 if method == "push" else 30):
                caller.call(caller.events([caller.random.randrange(9) for _ in range(1 if method == "push" else 50)]))
            producer.flush(PATIENCE)
        status = drained(engine)
        assert accounting(status, drained=True) == []
        assert caller.offered == status["accounting"]["offered"]
        assert caller.returned == status["accounting"]["accepted"] == len(rig.logs().handled)
        assert status["accounting"]["refused"] == {"sampled": caller.offered - caller.returned}
        # 4 of 5 that found no room were dropped, so that at least a quarter as many as were dropped were kept
        assert status["accounting"]["refused"]["sampled"] > 0
        assert caller.returned >= status["accounting"]["refused"]["sampled"] // 4


def test_sample_keeps_exactly_every_so_many(rig: Rig, engine_name: str, log: Log) -> None:
    """With the lane held full: of n that find no room, the first and every fifth after it wait for room."""
    with rig.engine(engine_name, shards=1, lane_bytes=SMALL_LANE, backpressure="sample") as engine:
        with rig.hold() as release, engine.producer(sample_every=5) as producer:
            caller = Caller(producer, "push", log)
            fill(caller, 0)
            before = engine.status()["accounting"]
            thread = threading.Thread(target=lambda: [caller.call(caller.events([0])) for _ in range(10)])
            thread.start()
            wait_until(lambda: sleeps_in_futex(os.getpid(), thread.native_id), "one that is kept waits")
            assert engine.status()["accounting"]["refused"].get("sampled", 0) == 0
            release()
            thread.join(PATIENCE)
        assert before["refused"] == {"full": 2}
        assert accounting(drained(engine), drained=True) == []


@pytest.mark.parametrize("method", ["push", "push_columns", "send"])
def test_drop_oldest_accepts_everything_and_counts_what_it_sheds(
    rig: Rig, engine_name: str, log: Log, method: str
) -> None:
    with rig.engine(
        engine_name,
        shards=2,
        lane_bytes=SMALL_LANE,
        backpressure="drop_oldest",
        handler="support.handlers.waiting:Slow",
        batch_rows=8,
        **settings(method),
    ) as engine:
        with engine.producer() as producer:
            caller = Caller(producer, method, log)
            for _ in range(800 if method == "push" else 30):
                caller.call(caller.events([caller.random.randrange(9) for _ in range(1 if method == "push" else 30)]))
            last = caller.events(list(range(9)))
            for event in last:
                caller.call([event])
            producer.flush(PATIENCE)
        status = drained(engine)
        assert accounting(status, drained=True) == []
        total, logs = status["accounting"], rig.logs()
        assert caller.offered == caller.returned == total["offered"] == total["accepted"]
        assert total["handled"] == len(logs.handled)
        assert total["shed"] == {"oldest": caller.offered - len(logs.handled)} and total["shed"]["oldest"] > 0
        logs.accepted = logs.accepted[:0]  # some are lost on purpose; what was handled is whole and in order
        assert check(logs) == []
        newest = {(row["key"], row["number"]) for row in logs.handled}
        assert newest >= set(last), "the newest are kept"


def test_a_drop_of_the_oldest_drops_no_newer_event_before_an_older_one(rig: Rig, engine_name: str, log: Log) -> None:
    with rig.engine(
        engine_name,
        shards=1,
        lane_bytes=SMALL_LANE,
        backpressure="drop_oldest",
        handler="support.handlers.waiting:Slow",
        batch_rows=8,
    ) as engine:
        with engine.producer() as producer:
            caller = Caller(producer, "push", log)
            for _ in range(500):
                caller.call(caller.events([0]))
            producer.flush(PATIENCE)
        numbers = handled_numbers(rig.logs(), 0)
        assert numbers[-5:] == list(range(495, 500)), "half a lane, the newest events, is never dropped"


def test_a_timeout_given_with_the_call_overrides_the_mode(rig: Rig, engine_name: str, log: Log) -> None:
    with rig.engine(engine_name, shards=1, lane_bytes=SMALL_LANE) as engine, rig.hold():
        for mode in ("block", "fail", "drop_newest", "drop_oldest", "sample"):
            producer = engine.producer(backpressure=mode)
            caller = Caller(producer, "push", log)
            fill(caller, 0)
            for timeout in (0, 0.01):
                with pytest.raises(shardmem.Backpressure):
                    producer.push(0, payload(0, 0, 0), timeout=timeout)
                with pytest.raises(shardmem.Backpressure):
                    producer.push_many([0], [payload(0, 0, 0)], timeout=timeout)
            producer.close()


@pytest.mark.parametrize("mode", ["fail", "drop_newest"])
def test_a_connected_producer_follows_the_mode_of_the_engine(rig: Rig, engine_name: str, log: Log, mode: str) -> None:
    with rig.engine(engine_name, shards=1, lane_bytes=SMALL_LANE, backpressure=mode) as engine, rig.hold():
        with shardmem.connect(engine.name) as producer:
            assert producer.backpressure == mode


def test_an_event_larger_than_half_a_lane_is_refused_before_anything_is_pushed(rig: Rig, engine_name: str) -> None:
    with rig.engine(engine_name, shards=1, lane_bytes=SMALL_LANE) as engine, engine.producer() as producer:
        with pytest.raises(ValueError, match="half a lane.*lane_bytes"):
            producer.push(0, bytes(SMALL_LANE))
        with pytest.raises(ValueError, match="event 1"):
            producer.push_many([0, 0], [b"", bytes(SMALL_LANE)])
        with pytest.raises(ValueError, match="event 1"):
            producer.push_columns(np.zeros(2, "i8"), bytes(SMALL_LANE), np.array([0, 0, SMALL_LANE]))
        assert engine.status()["accounting"]["offered"] == 0
        largest = next(size for size in range(SMALL_LANE // 2, 0, -1) if fits(producer, size))
        assert largest > SMALL_LANE // 2 - 128
        producer.push_many([0] * 9, [bytes(largest)] * 9)
        producer.push_columns(np.zeros(9, "i8"), bytes(9 * largest), np.arange(10) * largest)
        producer.flush(PATIENCE)


def fits(producer: shardmem.Producer, size: int) -> bool:
    try:
        return producer.push(0, bytes(size))
    except ValueError:
        return False


def test_every_text_is_a_key_for_push_and_push_many_alike(rig: Rig, engine_name: str) -> None:
    """In processes of their own: a push_many that spins would hold the interpreter."""
    with rig.engine(engine_name, shards=1, handler="support.recorder:nothing"):
        for kind, key in [("str", "plain"), ("str", "\udc80 surrogate"), ("str_", "of numpy"), ("Text", "a subclass")]:
            text = key.encode("utf-8", "surrogateescape").hex()
            with Program(sends.push_keys, engine=engine_name, key=text, kind=kind) as program:
                assert program.hear(10) == {"accepted": 3}, (kind, key)
                assert program.end() == 0
