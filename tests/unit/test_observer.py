"""The document of `status`, read while what it is about changes."""

from __future__ import annotations

import time
from types import SimpleNamespace

import numpy as np
import pytest

from shardmem.errors import Backpressure
from shardmem.memory.native import ffi
from shardmem.memory.words import FLOORS_NS, Retired
from shardmem.runtime.quarantine import Entry, Quarantine
from shardmem.status import observer as observing
from shardmem.status.observer import Observer
from shardmem.status.reading import quantile_rows

CHECKPOINTS = ("checkpoints", "checkpoint_s", "last_checkpoint_s", "checkpoint_age_s")


@pytest.mark.parametrize("when", ["before its lanes are read", "after its lanes are read"])
def test_a_shard_that_is_retired_while_status_is_read_is_counted_once(loopback, when):
    engine = loopback(shards=2)
    producer = engine.producer()
    producer.push_many(list(range(100)), [b""] * 100)
    for shard in range(2):
        while engine.take(shard) is not None:
            engine.commit(shard)
    observer = Observer(engine.control)
    observer.status()  # the inboxes are mapped, as they are in a supervisor
    read = observer._shard

    def retire(shard: int) -> None:
        if shard == 1:
            lanes = engine.inboxes[1].lanes()
            engine.control.retire(1, 1, Retired.of(lanes))

    def read_and_retire(shard, *rest):
        if when.startswith("before"):
            retire(shard)
        found = read(shard, *rest)
        if when.startswith("after"):
            retire(shard)
        return found

    observer._shard = read_and_retire
    during, after = observer.status()["accounting"], observer.status()["accounting"]
    observer.close()

    assert 100 == during["accepted"] == during["handled"]
    assert during == after


def test_a_rate_is_not_taken_over_the_moment_between_two_readers(loopback, monkeypatch):
    clock = SimpleNamespace(now=100.0, monotonic=lambda: clock.now)
    monkeypatch.setattr(observing, "time", clock)
    engine = loopback()
    producer, observer = engine.producer(), Observer(engine.control)

    def rates(at: float) -> tuple[float, float]:
        clock.now = at
        document = observer.status()
        return document["shards"][0]["rate"], document["producers"][0]["rate"]

    assert (0, 0) == rates(100.0), "there is nothing to compare with"
    producer.push_many(list(range(100)), [b""] * 100)
    while engine.take() is not None:
        engine.commit()
    assert (50, 50) == rates(102.0)
    assert (50, 50) == pytest.approx(rates(102.001), rel=0.01), "somebody else has read it a moment ago"
    assert (0, 0) == rates(102.3)
    observer.close()


def test_the_histograms_count_each_batch_and_event_once_and_go_on_in_the_next_life_of_a_worker(loopback):
    engine = loopback(shards=1, batch_rows=64)
    observer, producer = Observer(engine.control), engine.producer()
    sizes = [1, 2, 3, 4, 5, 64, 33]
    for turn, size in enumerate(sizes):
        producer.push_many(list(range(size)), [b""] * size)
        assert size == len(engine.take())
        engine.batches[0].span[0].sent_ns -= 10**9  # long enough for a life of it to be missed
        engine.commit()
        if turn == 3:
            engine.restart(batch_rows=64)
    producer.push_many([1, 2], [b""] * 2)
    engine.take()
    engine.restart(batch_rows=64)  # it died with a batch in hand: that one was not handled

    counted = observer.histograms()[0]
    assert {0: 1, 1: 1, 2: 2, 3: 1, 6: 2} == {
        bucket: int(count) for bucket, count in enumerate(counted.batches) if count
    }
    assert sum(sizes) == counted.events == counted.latency.sum()
    floors = sum(floor * int(count) for floor, count in zip(FLOORS_NS, counted.latency)) / 1e9
    assert floors - 1e-6 <= counted.waited_s <= floors * 1.34 + 1e-6
    (shard,) = observer.status()["shards"]
    assert (4, 64, len(sizes)) == (shard["batch_rows_p50"], shard["batch_rows_p99"], shard["batches"])
    observer.close()


@pytest.mark.parametrize("sent", [-1, -1 << 63, (1 << 63) - 1])
def test_a_frame_that_says_nonsense_of_its_time_does_not_spoil_the_sum(loopback, sent):
    engine = loopback(shards=1)
    observer, producer = Observer(engine.control), engine.producer()
    producer.push(1, b"")
    engine.take()
    engine.batches[0].span[0].sent_ns = sent
    engine.commit()
    assert 0 == observer.histograms()[0].waited_s and 1 == observer.histograms()[0].latency.sum()
    observer.close()


def test_the_oldest_event_in_flight_is_as_old_as_its_push_also_where_a_lane_begins_again(loopback):
    engine = loopback(shards=1, lane_bytes=4096, batch_rows=1)
    inbox, producer, pushed = engine.inboxes[0], engine.producer(), []
    assert inbox.oldest_ns(inbox.lanes()) is None
    for turn in range(100):
        before = time.monotonic_ns()
        producer.push(turn, b"x" * 600)
        pushed.append((before, time.monotonic_ns()))
        if turn:
            assert turn - 1 == next(iter(engine.take()))[0]
            earliest, latest = pushed[turn - 1]
            assert earliest <= inbox.oldest_ns(inbox.lanes()) <= latest, "what is in hand is not handled yet"
            engine.commit()
    assert inbox.lanes()[0].tail > 4 * 4096
    engine.take()
    engine.commit()
    assert inbox.oldest_ns(inbox.lanes()) is None


def test_an_event_whose_frame_says_that_it_comes_from_the_future_is_not_old(loopback):
    engine = loopback(shards=1)
    engine.producer().push(1, b"")
    frame = ffi.cast("char *", engine.inboxes[0].address) + engine.control.geometry.lanes_offset + 4096
    ffi.cast("int64_t *", frame + 32)[0] = (1 << 63) - 1
    observer = Observer(engine.control)
    assert 0 <= observer.status()["shards"][0]["oldest_s"] < 1
    observer.close()


def test_checkpoints_are_counted_with_the_time_that_they_took(loopback):
    engine = loopback(shards=1)
    observer = Observer(engine.control)
    (before,) = observer.status()["shards"]
    assert (0, 0, None, None) == tuple(before[name] for name in CHECKPOINTS)
    for took_s in (3, 2):
        engine.control.note_checkpoint(0, took_s * 10**9)
    (after,) = observer.status()["shards"]
    observer.close()
    assert (2, 5, 2) == tuple(after[name] for name in CHECKPOINTS[:3]) and 0 <= after["checkpoint_age_s"] < 60


def test_quantiles_of_batch_sizes_are_powers_of_two_and_none_without_a_batch():
    def of(**counts):
        sizes = np.array([counts.get(f"b{bucket}", 0) for bucket in range(32)], "u8")
        return quantile_rows(sizes, 0.5), quantile_rows(sizes, 0.99)

    assert (None, None) == of()
    assert (
        (1, 1) == of(b0=1) and (1, 8) == of(b0=51, b3=49) and (8, 8) == of(b0=1, b3=99) and (1 << 31,) * 2 == of(b31=1)
    )


def test_recent_latency_is_that_of_the_events_since_the_last_look(loopback, monkeypatch):
    clock = SimpleNamespace(now=100.0, monotonic=lambda: clock.now)
    monkeypatch.setattr(observing, "time", clock)
    engine = loopback()
    producer, observer = engine.producer(), Observer(engine.control)

    def look(at: float) -> tuple[float | None, float | None]:
        clock.now = at
        document = observer.status()
        shard = document["shards"][0]
        assert (shard["recent_p50_us"], shard["recent_p99_us"]) == tuple(document["latency"].values()), (
            "one shard is all"
        )
        return shard["recent_p99_us"], shard["latency_p99_us"]

    def handle(waiting: float) -> None:
        producer.push_many(list(range(100)), [b""] * 100)
        time.sleep(waiting)  # it is the latency that is measured
        while engine.take() is not None:
            engine.commit()

    assert (None, None) == look(100.0)
    handle(0.1)
    recent, all_of_it = look(102.0)
    assert recent == all_of_it >= 80_000
    for _ in range(5):
        handle(0.0)
    assert look(104.0)[0] < 50_000 <= all_of_it, "the slow ones of long ago are still called recent"
    assert look(106.0)[0] is None, "nothing was handled since"
    observer.close()


def test_events_in_quarantine_are_counted_when_the_file_changes(loopback, tmp_path, monkeypatch):
    clock = SimpleNamespace(now=100.0, monotonic=lambda: clock.now)
    monkeypatch.setattr(observing, "time", clock)
    engine = loopback()
    monkeypatch.setattr(engine.control, "state_dir", str(tmp_path))
    observer, path = Observer(engine.control), tmp_path / f"{engine.name}.quarantine"

    def held() -> int | None:
        clock.now += observing.COUNTED
        return observer.status()["engine"]["quarantine_held"]

    assert 0 == held()
    store = Quarantine(str(path))
    for number in range(3):
        store.add(
            Entry(
                str(number),
                shard=0,
                slot=0,
                seat=0,
                sequence=number,
                kind="exception",
                reason="",
                traceback="",
                attempts=3,
                key=1,
                payload=b"",
                schema={},
            )
        )
    assert 3 == held() == held()
    store.replayed(1)
    assert 2 == held()
    store.purge()
    store.close()
    assert 0 == held()
    path.write_bytes(b"no database at all" * 100)
    assert held() is None
    observer.close()


def test_a_producer_that_waits_for_room_is_said_to(loopback):
    engine = loopback(lane_bytes=4096)
    producer, observer = engine.producer(), Observer(engine.control)
    producer.push_many([1] * 30, [b"x" * 64] * 30)
    observer.status()
    with pytest.raises(Backpressure):
        producer.push_many([1] * 400, [b"x" * 64] * 400, timeout=0.3)
    document = observer.status()
    observer.close()

    assert document["producers"][0]["blocked"] > 0.5
    kinds = [each["kind"] for each in document["findings"]]
    assert "blocked" in kinds or "backpressure" in kinds, kinds
