"""What becomes of batches that fail, with real lanes and the shipped types; only the process is missing. A worker that
dies is one that is made anew: it knows what is in shared memory, and nothing else."""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import shardmem
from shardmem.errors import HandlerError
from shardmem.memory.reader import TRIAL_ASIDE, TRIAL_DIED, TRIAL_TAKEN, TRIAL_WAITS, Reader
from shardmem.memory.words import waiting_of
from shardmem.runtime import failures
from shardmem.runtime.aside import Aside
from shardmem.runtime.batch import Batch, Scratch
from shardmem.runtime.commit import REST_NS, Immediate
from shardmem.runtime.failures import ANOTHER_AFTER, Failures
from shardmem.runtime.outcomes import OnError, RetryOn
from shardmem.runtime.waiting import Waiting
from support.turns import counts, one_turn

TURNS = 20_000  # of a loop that should end long before


class Killed(BaseException):
    """The worker dies here."""


class Handler:
    def __init__(self, handle: Callable[[Batch], None]) -> None:
        self.handle = handle


class Worker:
    """A worker of shard 0: `run` goes on until nothing is left, or so many turns."""

    def __init__(self, engine: Any, handle: Callable[[Batch], None], directory: Path, **rules: Any) -> None:
        self.engine, self.handle, self.file, self.rules = engine, handle, directory / "q", rules
        self.calls: list[list[bytes]] = []
        self._begin("")

    def _begin(self, said: str) -> None:
        engine, settings = (
            self.engine,
            {
                "on_error": "retry",
                "max_attempts": 3,
                "retry_backoff": 0.0001,
                "retry_on": ["ConnectionError", "TimeoutError"],
                "retry_max_wait": 0.001,
                "retry_for": None,
                "quarantine_file": str(self.file),
                "quarantine_limit": 10_000,
                **self.rules,
            },
        )
        self.reader, self.batch, self.scratch = Reader(engine.readers[0], 0), engine.batches[0], Scratch()
        aside = Aside(engine.control, 0, self.reader, settings["quarantine_file"], settings["quarantine_limit"])
        self.commit = Immediate(engine.control, 0, self.reader, Handler(self._call))  # type: ignore[arg-type]
        self.failures = Failures(
            engine.control,
            0,
            self.reader,
            self.batch,
            self.commit,
            aside,
            OnError(**settings),
            "killed by SIGKILL",
            said,
            self.scratch,
        )

    def _call(self, batch: Batch) -> None:
        self.calls.append([payload for _, payload in batch])
        self.handle(batch)

    def die(self, batch_rows: int = 4096) -> None:
        said = self.engine.control.shard_error(0)
        self.engine.restart(batch_rows=batch_rows)
        self._begin(said)

    def turn(self) -> bool:
        """Whether there may be more to do."""
        failures = self.failures
        if one_turn(self.engine, self.reader, self.batch, self.scratch, self.commit, failures):
            return True
        return bool(failures._waiting.kind) or failures.patience_ns < REST_NS

    def run(self, until: Callable[[], bool] = lambda: False) -> None:
        for _ in range(TURNS):
            if until() or not self.turn():
                return
        raise AssertionError("it does not come to an end")

    @property
    def counts(self) -> tuple[int, int, int]:
        return counts(self.engine)

    @property
    def quarantined(self) -> list[tuple[str, bytes, str, int]]:
        """kind, payload, reason, attempts of those that were not replayed"""
        if not self.file.exists():
            return []
        with sqlite3.connect(self.file) as database:
            return database.execute(
                "select kind, payload, reason, attempts from events where replayed_at is null order by id"
            ).fetchall()

    @property
    def waits(self) -> bool:
        return waiting_of(self.engine.control.view_shard(0))[0] is not None


def refuse(*payloads: bytes, by: type[BaseException] = ValueError) -> Callable[[Batch], None]:
    """A handler that raises at each of these."""

    def handle(batch: Batch) -> None:
        for _, payload in batch:
            if payload in payloads:
                raise by(f"cannot read {payload.decode()}")

    return handle


@pytest.mark.parametrize(
    "error",
    [
        shardmem.Retry("the database is away"),
        shardmem.Retry("the database is away", after=0.001),
        ConnectionRefusedError("the database is away"),
        TimeoutError("the database is away"),
    ],
)
def test_what_asks_for_another_try_later_comes_again_as_it_was_and_nothing_is_quarantined(loopback, tmp_path, error):
    engine, is_away = loopback(), True

    def handle(batch: Batch) -> None:
        if is_away:
            raise error

    worker = Worker(engine, handle, tmp_path)
    events = [b"%d" % number for number in range(100)]
    engine.producer().push_many([number % 7 for number in range(100)], events)
    worker.run(until=lambda: len(worker.calls) == 20)
    assert [events] * 20 == worker.calls and worker.waits and (0, 0, 100) == worker.counts
    assert "the database is away" in engine.control.shard_error(0)

    since = engine.control.view_shard(0).waiting_since_ns
    worker.die()  # between two tries
    assert worker.waits and since == engine.control.view_shard(0).waiting_since_ns
    assert "the database is away" in engine.control.shard_error(0)
    worker.run(until=lambda: len(worker.calls) == 25)
    assert since == engine.control.view_shard(0).waiting_since_ns

    is_away = False
    worker.run()
    assert events == worker.calls[-1] and (100, 0, 0) == worker.counts and [] == worker.quarantined
    assert not worker.waits and "" == engine.control.shard_error(0)


def test_after_retry_for_the_exception_counts_as_any_other(loopback, tmp_path):
    engine = loopback()
    worker = Worker(engine, refuse(b"2", by=ConnectionError), tmp_path, retry_for=0.0)
    engine.producer().push_many([1, 2, 3], [b"1", b"2", b"3"])
    worker.run()
    assert (2, 1, 0) == worker.counts
    assert [("exception", b"2", "ConnectionError: cannot read 2", 3)] == worker.quarantined


def test_while_an_event_waits_for_its_next_try_only_its_key_waits(loopback, tmp_path):
    engine = loopback(batch_rows=8)
    worker = Worker(engine, refuse(b"bad"), tmp_path, retry_backoff=1e6)
    bad, good = engine.producer(), engine.producer()
    bad.push_many(["a", "b", "a", "c", None, None], [b"bad", b"b", b"behind it", b"c", b"bad", b"keyless"])
    good.push_many(["d", "a"], [b"d", b"of the same key"])

    def handled() -> set[bytes]:
        return {payload for call in worker.calls if b"bad" not in call for payload in call}

    worker.run(until=lambda: len(handled()) == 4)
    for _ in range(100):
        worker.turn()
    assert {b"b", b"c", b"d", b"keyless"} == handled() and 0 == worker.counts[1]


def test_an_event_is_quarantined_after_its_attempts_with_a_witness_and_others_wait_for_none(loopback, tmp_path):
    engine = loopback()
    worker = Worker(engine, refuse(b"bad"), tmp_path)
    engine.producer().push_many(list(range(50)), [b"x"] * 20 + [b"bad"] + [b"y"] * 29)
    worker.run()
    assert (49, 1, 0) == worker.counts and 3 == worker.calls.count([b"bad"])
    assert [("exception", b"bad", "ValueError: cannot read bad", 3)] == worker.quarantined


@pytest.mark.parametrize("keys", [1, 1000])
def test_a_thousand_bad_events_of_one_producer_hold_up_no_other_and_fail_no_shard(loopback, tmp_path, keys):
    engine = loopback(lane_bytes=1 << 18)
    worker = Worker(engine, refuse(b"bad"), tmp_path)
    mallory, ann = engine.producer(), engine.producer()
    mallory.push_many([f"mallory {number % keys}" for number in range(1000)], [b"bad"] * 1000)
    most, before, sent = 0, 0, 0
    for turn in range(TURNS):
        if turn % 3 == 0:
            ann.push(f"ann {turn % 50}", b"good")
            sent += 1
        worker.turn()
        handled = sum(lane.handled for lane in engine.inboxes[0].lanes() if lane.seat == ann.seat)
        most, before = (0, handled) if handled > before else (most + 1, handled)
        assert most < 100, "the other producer waits"
        if worker.counts[1] == 1000:
            break
    worker.run()
    assert (sent, 1000, 0) == worker.counts and 1000 == len(worker.quarantined)
    assert 0 == engine.control.view_shard(0).on_trial


def test_three_in_a_row_are_quarantined_without_a_witness_and_the_fourth_takes_them_back(loopback, tmp_path):
    engine, is_away = loopback(), True

    def handle(batch: Batch) -> None:
        if is_away:
            raise RuntimeError("it is not the events")

    worker, producer = Worker(engine, handle, tmp_path), engine.producer()
    for number in range(3):
        producer.push("a", b"%d" % number)
        worker.run()
        assert (0, number + 1, 0) == worker.counts and number + 1 == len(worker.quarantined)
    producer.push_many(["a", "b"], [b"3", b"4"])
    worker.run(until=lambda: worker.waits)
    assert (0, 0, 5) == worker.counts and [] == worker.quarantined
    worker.die()
    worker.run(until=lambda: len(worker.calls) > 60)
    assert (0, 0, 5) == worker.counts and [] == worker.quarantined and worker.waits

    is_away, tried = False, len(worker.calls)
    worker.run()
    assert (5, 0, 0) == worker.counts and [] == worker.quarantined and not worker.waits
    handled = [payload for call in worker.calls[tried:] for payload in call]
    assert sorted(handled) == [b"0", b"1", b"2", b"3", b"4"]
    assert [b"0", b"1", b"2", b"3"] == [payload for payload in handled if payload != b"4"]


def test_what_was_bad_is_quarantined_again_when_the_first_success_is_its_witness(loopback, tmp_path):
    engine = loopback()
    worker, producer = Worker(engine, refuse(b"bad"), tmp_path), engine.producer()
    for key in range(6):
        producer.push(key, b"bad")
    worker.run(until=lambda: worker.waits)
    assert (0, 0, 6) == worker.counts
    producer.push("other", b"good")
    worker.run()
    assert (1, 6, 0) == worker.counts and 6 == len(worker.quarantined)


class Mortal(Worker):
    """One whose handler takes the process with it."""

    deaths = 0

    def _begin(self, said: str) -> None:
        super()._begin(said)
        self.failures.raised = self._raised  # type: ignore[method-assign]

    @staticmethod
    def _raised(work: Batch, error: BaseException) -> None:
        raise error

    def live(self, until: Callable[[], bool] = lambda: False, between: Callable[[], object] = lambda: None) -> None:
        """between: what comes from elsewhere while it is dead."""
        for _ in range(2000):
            try:
                return self.run(until)
            except Killed:
                self.deaths += 1
                between()
                self.die(batch_rows=16)
        raise AssertionError("it dies for ever")


@pytest.mark.parametrize("on_error", ["retry", "stop"])
def test_an_event_that_kills_its_worker_is_found_beside_events_that_come_all_the_while(loopback, tmp_path, on_error):
    """Beside steady traffic one killed a worker three hundred times in a minute: each batch of others made its tries
    forgotten."""

    def handle(batch: Batch) -> None:
        if b"bad" in batch.payloads:
            raise Killed

    worker = Mortal(loopback(batch_rows=16), handle, tmp_path, on_error=on_error)
    steady, other = worker.engine.producer(), worker.engine.producer()
    other.push_many([1, 2, 3], [b"x", b"bad", b"y"])
    go_on = lambda: steady.push_many(list(range(10, 20)), [b"z"] * 10)  # noqa: E731
    go_on()
    if on_error == "stop":
        with pytest.raises(HandlerError, match="an event killed the worker"):
            worker.live(between=go_on)
    else:
        worker.live(between=go_on)
        assert worker.counts == (2 + 10 * (worker.deaths + 1), 1, 0) and len(worker.quarantined) == 1
    assert worker.deaths < 12


def test_events_that_kill_their_worker_are_judged_like_others(loopback, tmp_path):
    """One with a witness is quarantined; of an outage that kills, nothing is."""
    engine, deadly = loopback(batch_rows=16), {b"bad"}

    def handle(batch: Batch) -> None:
        for _, payload in batch:
            if payload in deadly:
                raise Killed

    worker = Mortal(engine, handle, tmp_path)
    live = worker.live
    producer = engine.producer()
    producer.push_many(list(range(40)), [b"x"] * 10 + [b"bad"] + [b"y"] * 29)
    live()
    assert (39, 1, 0) == worker.counts
    ((kind, payload, reason, attempts),) = worker.quarantined
    assert ("death", b"bad", 3) == (kind, payload, attempts) and "the last time: killed by SIGKILL" in reason

    deadly |= {b"%d" % number for number in range(8)}
    producer.push_many(list(range(8)), [b"%d" % number for number in range(8)])
    live(until=lambda: worker.waits and len(worker.calls) > 200)
    assert (39, 1, 8) == worker.counts
    deadly.clear()
    live()
    assert (47, 1, 0) == worker.counts


def test_rejected_rows_are_quarantined_with_the_commit_and_the_handler_is_not_called_again(loopback, tmp_path):
    engine = loopback(batch_rows=64)

    def handle(batch: Batch) -> None:
        batch.reject([at for at, (_, payload) in enumerate(batch) if payload == b"bad"], "not json")

    worker, producers = Worker(engine, handle, tmp_path), [engine.producer(), engine.producer()]
    for number in range(100):
        producers[number % 2].push(number % 5, b"bad" if number % 3 == 0 else b"good")
    producers[0].push_many(list(range(40)), [b"bad", b"good"] * 20)
    worker.run()
    assert (86, 54, 0) == worker.counts and 140 == sum(map(len, worker.calls))
    assert [("rejected", b"bad", "not json", 1)] * 54 == worker.quarantined


def test_a_rejected_event_is_found_and_quarantined_without_another_try(loopback, tmp_path):
    engine = loopback()
    worker = Worker(engine, refuse(b"bad", by=shardmem.Reject), tmp_path)
    engine.producer().push_many(list(range(30)), [b"x"] * 10 + [b"bad"] + [b"y"] * 19)
    worker.run()
    assert (29, 1, 0) == worker.counts and 1 == worker.calls.count([b"bad"])
    assert [("rejected", b"bad", "cannot read bad", 1)] == worker.quarantined


@pytest.mark.parametrize(
    "dies_in, again", [("commit", 1), ("set_aside_rows", 0)], ids=["after it was set aside", "before it was set aside"]
)
def test_what_a_worker_rejected_before_it_died_is_in_one_place_whatever_the_next_one_says(
    loopback, tmp_path, dies_in, again
):
    engine = loopback()
    worker = Worker(engine, lambda batch: batch.reject(0, "no"), tmp_path)
    engine.producer().push_many([1, 2, 3], [b"0", b"1", b"2"])
    setattr(worker.reader, dies_in, lambda *_: (_ for _ in ()).throw(Killed()))
    with pytest.raises(Killed):
        worker.run()
    assert 1 == len(worker.quarantined)
    worker.handle = lambda batch: None
    worker.die()
    worker.run()
    assert (3 - again, again, 0) == worker.counts and again == len(worker.quarantined)


def test_the_files_of_others_and_what_was_replayed_stay_in_quarantine_when_a_worker_begins(loopback, tmp_path):
    engine = loopback()
    worker = Worker(engine, lambda batch: batch.reject([0, 1], "no"), tmp_path)
    engine.producer().push_many([1, 2], [b"0", b"1"])
    worker.reader.set_aside_rows = lambda *_: (_ for _ in ()).throw(Killed())  # type: ignore[method-assign]
    with pytest.raises(Killed):
        worker.run()
    with sqlite3.connect(worker.file) as database:
        ((origin,), _) = database.execute("select origin from events order by id").fetchall()
        database.execute("update events set replayed_at = 1 where origin != ?", (origin,))
        others = [origin.replace("/0/1/", "/1/1/"), origin.replace("/0/1/", "/0/2/"), "x/0/1/0/0/0", "damaged"]
        for other in others:
            database.execute(
                "insert into events (at, shard, slot, seat, sequence, kind, reason, traceback, attempts, key, payload, "
                "schema, origin) select at, shard, slot, seat, sequence, kind, reason, traceback, attempts, key, "
                "payload, schema, ? from events where origin = ?",
                (other, origin),
            )
    worker.die()
    with sqlite3.connect(worker.file) as database:
        left = database.execute("select origin from events where replayed_at is null").fetchall()
    assert sorted(others) == sorted(each for (each,) in left)


def test_a_worker_that_cannot_use_the_quarantine_is_followed_by_another_which_waits_if_it_cannot_either(
    loopback, tmp_path
):
    """A handler had set limits for its process, and its shard waited for good."""
    engine = loopback()
    worker = Worker(engine, refuse(b"bad", by=shardmem.Reject), tmp_path)
    worker.file.mkdir()  # what is no file cannot be used by anybody
    engine.producer().push_many([1, 2], [b"bad", b"good"])
    with pytest.raises(shardmem.ShardmemError, match="the quarantine file"):
        worker.run()
    assert ANOTHER_AFTER == engine.control.view_shard(0).waiting_tries
    worker.die()
    worker.run(until=lambda: engine.control.view_shard(0).waiting_tries > 4 * ANOTHER_AFTER)
    worker.file.rmdir()
    worker.run()
    assert (1, 1, 0) == worker.counts and not worker.waits

    for end in ("", "-wal", "-shm"):
        worker.file.with_name(worker.file.name + end).unlink()
    worker.file.mkdir()
    engine.producer().push_many([1, 2], [b"bad", b"good"])
    with pytest.raises(shardmem.ShardmemError, match="the quarantine file"):
        worker.run()  # the same again, when it had been able to


def test_a_quarantine_that_was_removed_is_an_error_and_then_a_new_one(loopback, tmp_path):
    engine = loopback()
    worker, producer = Worker(engine, refuse(b"bad", b"worse", by=shardmem.Reject), tmp_path), engine.producer()
    producer.push_many([1, 2], [b"bad", b"good"])
    worker.run()
    for end in ("", "-wal", "-shm"):
        worker.file.with_name(worker.file.name + end).unlink()
    producer.push_many([1, 2], [b"worse", b"good"])
    worker.run(until=lambda: worker.waits)
    assert "has been removed" in engine.control.shard_error(0)
    worker.run()
    assert (2, 2, 0) == worker.counts and not worker.waits
    assert [b"worse"] == [payload for _, payload, _, _ in worker.quarantined]


@pytest.mark.parametrize(
    "rows, numbers",
    [
        (1, [1]),
        ([0, 2], [0, 2]),
        (np.array([2, 0]), [0, 2]),
        (np.array([True, False, True]), [0, 2]),
        (range(2), [0, 1]),
        ({1}, [1]),
        ([], []),
        (np.int64(2), [2]),
    ],
)
def test_rows_to_reject_are_numbers_or_a_boolean_array(rows, numbers):
    batch = shardmem.Batch.of([("a", b"0"), ("b", b"1"), ("c", b"2")])
    batch.reject(rows, ValueError("no"))
    assert dict.fromkeys(numbers, "ValueError: no") == batch.rejected


@pytest.mark.parametrize("rows", [3, -1, [0, 3], np.array([True, False]), "0", 1.5, None])
def test_rows_that_are_not_there_cannot_be_rejected(rows):
    batch = shardmem.Batch.of([("a", b"0"), ("b", b"1"), ("c", b"2")])
    with pytest.raises((IndexError, TypeError)):
        batch.reject(rows, "no")
    assert {} == batch.rejected


@pytest.mark.parametrize("error", [ValueError, Killed, SystemExit, KeyboardInterrupt])
def test_on_error_stop_passes_no_event_over(loopback, tmp_path, error):
    engine = loopback()
    worker = Worker(engine, refuse(b"1", by=error), tmp_path, on_error="stop")
    engine.producer().push_many([1, 2, 3], [b"0", b"1", b"2"])
    for _ in range(12):
        with pytest.raises(HandlerError):
            worker.run()
        worker.die()
    assert (0, 0, 3) == worker.counts and [] == worker.quarantined


@pytest.mark.parametrize("kills", [1, 2, 3])
def test_on_error_stop_gives_up_at_an_event_that_kills_as_often_as_it_may_be_tried(loopback, tmp_path, kills):
    """A kill from outside may meet a worker with one event in hand: that is no fault of the event."""
    engine = loopback()
    worker = Worker(engine, lambda batch: None, tmp_path, on_error="stop", max_attempts=3)
    engine.producer().push(1, b"0")
    for _ in range(kills):
        worker.failures.attempt = lambda work: (_ for _ in ()).throw(Killed())  # type: ignore[method-assign]
        with pytest.raises(Killed):
            worker.run()
        worker.die()
    if kills < 3:
        worker.run()
        assert (1, 0, 0) == worker.counts
    else:
        for _ in range(3):
            with pytest.raises(HandlerError, match="alone, when the worker died, . times"):
                worker.run()
            worker.die()
        assert (0, 0, 1) == worker.counts
    assert [] == worker.quarantined


ROW = np.dtype([("key", "u8"), ("value", "f8")])


class Carrier(Exception):
    pass


def kept_by(how: str, row: Any, batch: Batch) -> BaseException:
    """An exception that refers to the batch, as handlers raise them."""
    try:
        if how == "argument":
            raise ValueError("bad row", row, batch.records["value"])
        if how == "attribute":
            error = Carrier("bad row")
            error.row = row  # type: ignore[attr-defined]
            raise error
        try:
            raise ValueError("negative", row)
        except ValueError as first:
            if how == "cause":
                raise RuntimeError("cannot parse") from first
            raise RuntimeError("cannot parse")  # noqa: B904 - as many do
    except Exception as error:
        return error


@pytest.mark.parametrize("how", ["argument", "attribute", "cause", "context"])
def test_an_exception_that_refers_to_the_batch_is_a_failure_like_others(loopback, tmp_path, how):
    engine = loopback(ROW, "key")

    def handle(batch: Batch) -> None:
        for row in batch.records:
            if row["value"] < 0:
                raise kept_by(how, row, batch)

    worker = Worker(engine, handle, tmp_path)
    worker._call = handle  # type: ignore[method-assign]
    worker.die()
    rows = np.zeros(100, ROW)
    rows["key"], rows["value"][50] = np.arange(100), -1
    engine.producer().send(rows)
    worker.run()
    assert (99, 1, 0) == worker.counts and rows[50:51].tobytes() == worker.quarantined[0][1]


def test_rejected_records_are_kept_as_the_rows_they_were(loopback, tmp_path):
    """Of several frames, from the middle and the end of them."""
    engine, wrong = loopback(ROW, "key"), [3, 50, 99, 100, 149]
    worker = Worker(engine, lambda batch: batch.reject(batch.records["value"] < 0, "below zero"), tmp_path)
    worker._call = worker.handle  # type: ignore[method-assign]
    worker.die()
    rows = np.zeros(150, ROW)
    rows["key"], rows["value"][wrong] = np.arange(150), -1
    producer = engine.producer()
    producer.send(rows[:100])
    producer.send(rows[100:])
    worker.run()
    assert (145, 5, 0) == worker.counts
    assert [rows[at : at + 1].tobytes() for at in wrong] == [payload for _, payload, _, _ in worker.quarantined]


class NoText(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text")


@pytest.mark.parametrize(
    "error", [NoText(), ValueError("caf\udce9.txt"), ValueError("x" * 1_000_000), ValueError("a\0b")]
)
def test_an_exception_whose_text_cannot_be_written_is_a_failure_like_others(loopback, tmp_path, error):
    engine = loopback()

    def handle(batch: Batch) -> None:
        if b"bad" in batch.payloads:
            raise error.__class__(*error.args)

    worker = Worker(engine, handle, tmp_path)
    engine.producer().push_many(list(range(9)), [b"x"] * 4 + [b"bad"] + [b"x"] * 4)
    worker.run()
    assert (8, 1, 0) == worker.counts and len(json.dumps(worker.quarantined[0][2])) < 100_000


class Elsewhere(ConnectionError):
    """Found as other.Elsewhere too."""


def test_names_of_retry_on_need_no_import(monkeypatch):
    import sys
    import types

    other = types.ModuleType("other")
    other.OtherName = Elsewhere  # type: ignore[attr-defined]
    named = {
        "ConnectionError": Elsewhere(),
        f"{__name__}.Elsewhere": Elsewhere(),
        "other.OtherName": Elsewhere(),
        "OSError": ConnectionResetError(),
    }
    monkeypatch.setitem(sys.modules, "other", other)
    for name, error in named.items():
        assert RetryOn([name]).retry_of(error) is not None, name
    for name in ("TimeoutError", "other.Missing", "nowhere.Elsewhere", "Elsewhere"):
        assert RetryOn([name]).retry_of(Elsewhere()) is None, name
    assert RetryOn([]).retry_of(shardmem.Retry("x", after=2)).wait() == 2.0  # type: ignore[union-attr]
    for odd in (-1, float("nan"), float("inf"), "soon", None):
        assert shardmem.Retry("x", after=odd).wait() is None  # type: ignore[arg-type]


def test_a_shard_that_waits_gives_a_sign_of_life(loopback, tmp_path):
    engine = loopback()
    worker = Worker(engine, refuse(b"x", by=ConnectionError), tmp_path, retry_max_wait=60)
    engine.producer().push(1, b"x")
    worker.run(until=lambda: worker.failures._waiting.left > 0.1)
    before = engine.control.view_shard(0).heartbeat_ns
    worker.turn()
    assert engine.control.view_shard(0).heartbeat_ns > before and time.monotonic_ns() > before


def test_a_damaged_word_of_an_event_on_trial_keeps_its_key_back_for_no_longer_than_a_pause(
    loopback, tmp_path, monkeypatch
):
    """A campaign: the events of one key waited for good."""
    monkeypatch.setattr(failures, "LONGEST_PAUSE", 0.01)
    engine = loopback()
    worker = Worker(engine, refuse(b"bad"), tmp_path, retry_backoff=1e6)
    engine.producer().push_many([1, 1, 1], [b"bad", b"after it", b"last"])
    worker.run(until=lambda: bool(worker.failures._trials.events))
    ((event, _),) = worker.failures._trials.events.items()
    worker.reader.set_trial(event, TRIAL_WAITS, 1, (1 << 63) - 1)
    worker.rules["retry_backoff"] = 0.0001
    worker.die()
    engine.producer().push("other", b"witness")
    for _ in range(2000):
        worker.turn()
        if worker.counts[2] == 0:
            break
        time.sleep(0.001)
    assert (3, 1, 0) == worker.counts


@pytest.mark.parametrize("kind", ["retry", "doubt", "quarantine"])
def test_a_shard_whose_last_life_waited_and_that_has_nothing_left_waits_no_more(
    loopback: Any, tmp_path: Path, kind: str
) -> None:
    """It got no slots because it waited, and waited because no event came: for ever."""
    worker = Worker(loopback(shards=1), lambda batch: None, tmp_path)
    Waiting(worker.engine.control, 0, 30.0, "").begin(kind, "the sink is away", 0.02)
    worker.die()
    assert worker.waits and worker.engine.control.shard_error(0) == "the sink is away"
    worker.run()
    assert not worker.waits and not worker.failures.busy and worker.engine.control.shard_error(0) == ""


def test_a_flush_that_gives_up_says_what_the_shard_says(loopback: Any) -> None:
    """A snapshot that raised at every start was read in the log alone."""
    engine = loopback(shards=1)
    producer = engine.producer()
    producer.push(1, b"x")
    engine.control.set_worker_error(0, "snapshot(slot 3) raised TypeError")
    with pytest.raises(TimeoutError, match="it says: snapshot"):
        producer.flush(0.01)


def test_tries_that_no_event_can_have_had_set_none_aside(loopback: Any, tmp_path: Path) -> None:
    """A damaged word had an event quarantined "after 4,294,967,295 times"."""
    worker = Worker(loopback(shards=1), refuse(b"bad"), tmp_path)
    producer = worker.engine.producer()
    producer.push_many([1, 2], [b"bad", b"x"])
    worker.run(until=lambda: bool(worker.failures._trials.events))
    (number,) = worker.failures._trials.events
    worker.reader.set_trial(number, TRIAL_WAITS, (1 << 32) - 1, 0)
    worker.die()
    assert worker.failures._trials.events[number].tries == 0
    worker.run()
    assert worker.counts == (1, 1, 0) and worker.quarantined[0][3] == 3


@pytest.mark.parametrize("state", [TRIAL_WAITS, TRIAL_DIED, TRIAL_ASIDE, TRIAL_TAKEN])
def test_a_wild_record_of_a_trial_keeps_no_key_back_whose_lane_is_opened_later(
    loopback: Any, tmp_path: Path, state: int
) -> None:
    """It named the first row of a lane that was not there yet: its key waited for ever, on a shard that was idle."""
    worker = Worker(loopback(shards=1), lambda batch: None, tmp_path)
    worker.reader.set_trial(5, state, 0, 0)
    worker.die()
    producer = worker.engine.producer()
    producer.push_many([17, 18, 17], [b"a", b"b", b"c"])
    worker.run()
    assert worker.counts == (3, 0, 0)
