"""State is exact after any crash: each event is counted once, although it may be handed out twice."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import sqlite3
from pathlib import Path
from typing import Any

import pytest

import shardmem
from shardmem.runtime.quarantine import Quarantine
from shardmem.runtime.state_files import shard_file
from shardmem.runtime.state_reader import StateReader
from support.quarantine_load import totals
from support.rig import PATIENCE, Rig, drained, is_stopped, wait_until
from support.state import kept

POINTS = [
    "poll.taken",
    "commit.entered",
    "commit.counted",
    "commit.released",
    "save.begun",
    "save.saved",
    "save.marked",
]
KEYS = 40


class Feed:
    """Events that say how many of their key came before them."""

    def __init__(self, producer: shardmem.Producer, seed: int) -> None:
        self._producer, self._chance, self.counts = producer, random.Random(seed), [0] * KEYS

    def push(self, events: int, timeout: float | None = None) -> None:
        while events > 0:
            keys = [self._chance.randrange(KEYS) for _ in range(min(events, self._chance.randint(1, 60)))]
            payloads = []
            for key in keys:
                payloads.append(b"%d %s" % (self.counts[key], b"." * self._chance.randint(0, 20)))
                self.counts[key] += 1
            self._producer.push_many(keys, payloads)
            events -= len(keys)

    @property
    def expected(self) -> dict[int, int]:
        return {key: count for key, count in enumerate(self.counts) if count}


@pytest.fixture
def settings(tmp_path: Path) -> dict[str, Any]:
    return {
        "handler": "support.handlers.keyed:KeyedTally",
        "slots": 32,
        "on_error": "stop",
        "state_dir": str(tmp_path / "state"),
        "checkpoint_interval": 0.02,
        "batch_rows": 64,
        "lane_bytes": 1 << 14,
    }


def state_files(settings: dict[str, Any], name: str) -> str:
    return os.path.join(settings["state_dir"], f"{name}.state")


def wait_fired(settings: dict[str, Any], name: str, feed: Feed) -> None:
    directory = state_files(settings, name)
    wait_until(lambda: sum(kept(directory, "fired").values()) >= sum(feed.counts), "every timer has fired", 60)


def expect_exact(settings: dict[str, Any], name: str, feed: Feed) -> None:
    """By slot, by key, and by timers, of which none is left."""
    directory = state_files(settings, name)
    assert feed.expected == totals(directory)
    assert feed.expected == kept(directory, "counted")
    assert feed.expected == kept(directory, "fired")
    assert {key: {"events": count} for key, count in feed.expected.items()} == kept(directory, "seen")
    with contextlib.closing(StateReader(directory)) as reader:
        assert [] == list(reader.timers())


@pytest.mark.parametrize("point", POINTS)
def test_a_worker_killed_at_any_point_resumes_with_state_and_position_that_agree(
    rig: Rig, engine_name: str, settings: dict, point: str
) -> None:
    chance = random.Random(point)
    rig.tell("arm", "\n".join(f"{point} {chance.randint(1, 6)} {signal.SIGKILL:d}" for _ in range(3)))
    with rig.engine(engine_name, shards=1, **settings) as engine, engine.producer() as producer:
        feed = Feed(producer, 1)
        feed.push(4000)
        producer.flush(PATIENCE)
        status = drained(engine)
        assert 4 == status["shards"][0]["incarnation"], f"{point} was not reached three times"
        assert sum(feed.counts) == status["accounting"]["handled"]
        wait_fired(settings, engine_name, feed)
    expect_exact(settings, engine_name, feed)


@pytest.mark.parametrize("point", ["move.saved", "move.copied"])
def test_a_slot_whose_giver_or_taker_is_killed_in_the_middle_of_its_move_keeps_its_state(
    rig: Rig, engine_name: str, settings: dict, point: str
) -> None:
    rig.tell("arm", f"{point} 1 {signal.SIGKILL:d}")
    with rig.engine(engine_name, shards=2, **settings) as engine, engine.producer() as producer:
        feed = Feed(producer, 1)
        for target in (0, 1):
            feed.push(800)
            engine.move(range(32), target)
        producer.flush(PATIENCE)
        status = drained(engine)
        assert [2, 2] == [shard["incarnation"] for shard in status["shards"]], f"{point} was not reached twice"
        wait_fired(settings, engine_name, feed)
    expect_exact(settings, engine_name, feed)


def test_state_is_exact_through_random_kills_and_moves_at_once(rig: Rig, engine_name: str, settings: dict) -> None:
    seed = int(os.environ.get("SHARDMEM_SEED", random.randrange(10**6)))
    print(f"SHARDMEM_SEED={seed}")
    chance = random.Random(seed)
    with rig.engine(engine_name, shards=2, max_shards=3, **settings) as engine, engine.producer() as producer:
        feed = Feed(producer, seed)
        for _ in range(12):
            feed.push(chance.randint(50, 1500))
            what = chance.choice(["kill", "kill", "move", "scale"])
            shards = [shard for shard in engine.status()["shards"] if shard["state"] == "active"]
            if what == "kill":
                with contextlib.suppress(ProcessLookupError):  # dead already, and not yet started again
                    os.kill(chance.choice(shards)["pid"], signal.SIGKILL)
            elif what == "move":
                engine.move(chance.sample(range(32), 12), chance.choice(shards)["id"])
            else:
                engine.scale_to(chance.randint(1, 3))
        producer.flush(PATIENCE)
        status = drained(engine)
        assert sum(feed.counts) == status["accounting"]["handled"] == status["accounting"]["accepted"]
        wait_fired(settings, engine_name, feed)
    expect_exact(settings, engine_name, feed)


def test_a_bad_event_is_set_aside_and_what_it_did_to_the_state_is_undone(
    rig: Rig, engine_name: str, settings: dict
) -> None:
    settings |= {"on_error": "retry", "retry_backoff": 0.01}
    with rig.engine(engine_name, shards=1, **settings) as engine, engine.producer() as producer:
        producer.push_many([1] * 6 + [2], [b"0 ", b"1 ", b"2 bad", b"2 ", b"3 ", b"4 ", b"0 "])
        producer.flush(PATIENCE)
        assert (6, 1) == tuple(drained(engine)["accounting"][name] for name in ("handled", "quarantined"))
    assert {1: 5, 2: 1} == totals(state_files(settings, engine_name))


@pytest.mark.parametrize("handler", ["support.quarantine_load:Tally", "support.quarantine_load:TallyWithoutDrop"])
def test_a_handler_without_drop_is_as_exact_as_one_with_it(
    rig: Rig, engine_name: str, settings: dict, handler: str
) -> None:
    """It is made anew when a batch has failed, and when slots leave: what it kept of them would be there when they
    return."""
    settings |= {"handler": handler, "on_error": "quarantine"}
    with rig.engine(engine_name, shards=2, **settings) as engine, engine.producer() as producer:
        for number in range(30):
            producer.push_many(
                list(range(KEYS)),
                [b"%d %s" % (number, b"bad" if number in (7, 20) and key == 3 else b"") for key in range(KEYS)],
            )
            if number % 10 == 9:
                for shard in (1, 0):
                    engine.move(range(16), to=shard)
            if number in (7, 20):
                producer.flush(PATIENCE)
                producer.push(3, b"%d " % number)  # what the bad one would have counted
        producer.flush(PATIENCE)
        status = drained(engine)
    assert 2 == status["accounting"]["quarantined"]
    assert dict.fromkeys(range(KEYS), 30) == totals(state_files(settings, engine_name))


def test_a_stateful_handler_that_gets_events_without_a_key_says_once_that_they_are_not_saved(
    rig: Rig, engine_name: str, settings: dict, capfd: pytest.CaptureFixture
) -> None:
    settings |= {"handler": "support.quarantine_load:TallyOfKeyed"}
    with rig.engine(engine_name, shards=1, **settings) as engine, engine.producer() as producer:
        for number in range(3):
            producer.push(None, b"%d" % number)
            producer.push(5, b"%d" % number)
            producer.flush(PATIENCE)
    assert 1 == capfd.readouterr().err.count("events without a key")
    assert 3 == totals(state_files(settings, engine_name))[5]


def test_how_soon_a_bad_event_is_set_aside_does_not_depend_on_the_checkpoint_interval(
    rig: Rig, engine_name: str, settings: dict
) -> None:
    """What was handled between two of its attempts was undone by the second, until the interval was over: two million
    calls of the handler for one bad event of a thousand, at 2 s."""
    settings |= {
        "on_error": "retry",
        "retry_backoff": 0.01,
        "checkpoint_interval": 3600,
        "batch_rows": 4096,
        "lane_bytes": 1 << 18,
    }
    with rig.engine(engine_name, shards=1, **settings) as engine, engine.producer() as producer:
        producer.push_many(
            [1] * 1000,
            [b"%d " % number for number in range(500)] + [b"500 bad"] + [b"%d " % number for number in range(500, 999)],
        )
        status = wait_until(
            lambda: (found := engine.status())["accounting"]["quarantined"] and found, "the event is set aside"
        )
        assert status["shards"][0]["batches"] < 3000
    assert {1: 999} == totals(state_files(settings, engine_name))


def test_state_outlives_the_engine_if_it_has_a_directory_of_its_own(rig: Rig, engine_name: str, settings: dict) -> None:
    for first in (0, 3):
        with rig.engine(engine_name, shards=1 + first % 2, **settings) as engine, engine.producer() as producer:
            producer.push_many([7] * 3, [b"%d " % number for number in range(first, first + 3)])
    assert {7: 6} == totals(state_files(settings, engine_name))
    with pytest.raises(shardmem.HandlerError, match="made with slots=32 and the engine has slots=64"):
        rig.engine(engine_name, shards=1, **{**settings, "slots": 64}).start()


def test_state_without_a_directory_lasts_as_long_as_the_shared_memory(
    rig: Rig, engine_name: str, settings: dict
) -> None:
    del settings["state_dir"]
    for _ in range(2):
        with rig.engine(engine_name, shards=1, **settings) as engine, engine.producer() as producer:
            producer.push_many([7] * 3, [b"0 ", b"1 ", b"2 "])
            producer.flush(PATIENCE)


def test_a_state_file_that_cannot_be_written_stops_the_shard_and_loses_nothing(
    rig: Rig, engine_name: str, settings: dict
) -> None:
    path = state_files(settings, engine_name)
    with pytest.raises(shardmem.HandlerError, match="the state file .* cannot be used: no such table: journal"):
        with rig.engine(engine_name, shards=1, **settings) as engine, engine.producer() as producer:
            producer.push(1, b"0 ")
            producer.flush(PATIENCE)
            with sqlite3.connect(shard_file(path, 0)) as database:
                database.execute("alter table journal rename to elsewhere")
            database.close()
            producer.push(1, b"1 ")
            with pytest.raises(shardmem.HandlerError):
                producer.flush(PATIENCE)
            assert 1 == engine.status()["accounting"]["in_flight"]
    with sqlite3.connect(shard_file(path, 0)) as database:
        database.execute("alter table elsewhere rename to journal")
    database.close()
    with rig.engine(engine_name, shards=1, **settings) as engine:
        drained(engine)
    assert {1: 2} == totals(state_files(settings, engine_name))


def test_a_snapshot_that_raises_stops_the_shard_and_says_so(rig: Rig, engine_name: str, settings: dict) -> None:
    settings["handler"] = "support.quarantine_load:CannotSnapshot"
    with pytest.raises(shardmem.HandlerError, match=r"snapshot\(slot \d+\) of the handler of shard 0 raised KeyError"):
        with rig.engine(None, shards=1, **settings) as engine, engine.producer() as producer:
            producer.push(1, b"0 ")
            with pytest.raises(shardmem.HandlerError):
                producer.flush(PATIENCE)


def test_an_event_that_kills_its_worker_is_set_aside_with_the_signal_and_the_rest_flows_on(
    rig: Rig, engine_name: str, settings: dict
) -> None:
    from shardmem.runtime.quarantine import Quarantine

    settings |= {"handler": "support.quarantine_load:dies_of_bad", "on_error": "retry", "retry_backoff": 0.01}
    with rig.engine(engine_name, shards=1, **settings) as engine, engine.producer() as producer:
        producer.push_many([3] * 20, [b"bad" if number == 11 else b"good" for number in range(20)])
        producer.flush(PATIENCE)
        status = drained(engine)
        assert (19, 1) == tuple(status["accounting"][name] for name in ("handled", "quarantined"))
        assert "active" == status["shards"][0]["state"]
        producer.push(3, b"good")
        producer.flush(PATIENCE)
    store = Quarantine(os.path.join(settings["state_dir"], f"{engine_name}.quarantine"))
    (event,) = store.events()
    store.close()
    assert ("death", 3, b"bad", 3) == (event.kind, event.key, event.payload, event.attempts)
    assert "SIGSEGV" in event.reason


def test_what_identifies_an_event_outlives_its_worker_and_is_never_given_to_another(rig: Rig, engine_name: str) -> None:
    """Producers count from 0 whenever shared memory is made anew: without engine_id, whoever leaves out what was seen
    before would leave out all events of the next run."""
    for _ in range(2):
        with (
            rig.engine(engine_name, "support.quarantine_load:Identified", shards=1) as engine,
            engine.producer() as producer,
        ):
            producer.push(1, b"")
            producer.flush(PATIENCE)
            os.kill(engine.status()["shards"][0]["pid"], signal.SIGKILL)
            producer.push(1, b"")
            producer.flush(PATIENCE)
    found = [line.split() for line in (rig.directory / "identities").read_text().splitlines()]
    assert [["0", "0"], ["0", "1"]] * 2 == [identity[1:] for identity in found]
    first, second = {engine_id for engine_id, *_ in found[:2]}, {engine_id for engine_id, *_ in found[2:]}
    assert len(first) == len(second) == 1 and first != second and all(first | second)


def remove_state(settings: dict[str, Any], name: str) -> None:
    for suffix in ("", "-wal", "-shm"):
        Path(shard_file(state_files(settings, name), 0) + suffix).unlink(missing_ok=True)


def test_a_state_file_that_vanishes_is_an_error_before_the_next_commit_and_nothing_is_lost_if_it_is_put_back(
    rig: Rig, engine_name: str, settings: dict
) -> None:
    """400 events were handled, exit code 0, and there was no file: all state was lost without a word."""
    path = shard_file(state_files(settings, engine_name), 0)
    with rig.engine(engine_name, shards=1, **settings) as engine, engine.producer() as producer:
        producer.push(1, b"0 ")
        producer.flush(PATIENCE)
        os.rename(path, f"{path}.away")
        producer.push(1, b"1 ")
        wait_until(lambda: "shardmem reload" in engine.status()["shards"][0]["error"], "it is noticed", 3 * PATIENCE)
        error = engine.status()["shards"][0]["error"]
        assert f"{path} has been removed; nothing of this step was written" in error
        os.rename(f"{path}.away", path)
        wait_until(lambda: engine.reload()["done"], "it goes on", 3 * PATIENCE)
        producer.flush(3 * PATIENCE)
    assert {1: 2} == totals(state_files(settings, engine_name))


def test_a_worker_whose_predecessor_s_state_file_has_vanished_does_not_begin_from_nothing_unless_told_to(
    rig: Rig, engine_name: str, settings: dict, capfd: pytest.CaptureFixture[str]
) -> None:
    with rig.engine(engine_name, shards=1, **settings) as engine, engine.producer() as producer:
        producer.push_many([1, 1], [b"0 ", b"1 "])
        producer.flush(PATIENCE)
        pid = engine.status()["shards"][0]["pid"]
        os.kill(pid, signal.SIGSTOP)  # or it would notice by itself, and say so
        wait_until(lambda: is_stopped(pid), "it has stopped")
        remove_state(settings, engine_name)
        os.kill(pid, signal.SIGKILL)
        wait_until(
            lambda: (
                "knows nothing of shard 0, whose last worker had saved state" in engine.status()["shards"][0]["error"]
            ),
            "its successor says what is missing",
            3 * PATIENCE,
        )
        wait_until(lambda: engine.reload()["done"], "a person says that it may go on", 3 * PATIENCE)
        producer.push(1, b"0 ")
        producer.flush(PATIENCE)
    assert {1: 1} == totals(state_files(settings, engine_name))
    said = capfd.readouterr().err
    assert "knows nothing of shard 0" in said and "Traceback" not in said, "our own errors say all in words"


def quarantined(settings: dict[str, Any], name: str) -> list[bytes]:
    with contextlib.closing(Quarantine(os.path.join(settings["state_dir"], f"{name}.quarantine"))) as quarantine:
        return sorted(event.payload for event in quarantine.events())


@pytest.mark.parametrize("point", ["commit.entered", "aside.stored", "aside.marked", "save.saved"])
def test_what_is_rejected_is_quarantined_once_and_the_rest_counted_once_wherever_the_worker_is_killed(
    rig: Rig, engine_name: str, settings: dict, point: str
) -> None:
    # a batch of one event that its worker dies in is held against that event
    settings |= {"handler": "support.quarantine_load:Rejecting", "on_error": "retry", "max_attempts": 10}
    rig.tell("arm", "\n".join(f"{point} {passes} {signal.SIGKILL:d}" for passes in (1, 3, 2)))
    with rig.engine(engine_name, shards=1, **settings) as engine, engine.producer() as producer:
        counts, bad = [0] * KEYS, []
        for number in range(2000):
            key = number % KEYS
            if number % 7 == 0:
                bad.append(b"%d bad" % number)
                producer.push(key, bad[-1])
            else:
                producer.push(key, b"%d" % counts[key])
                counts[key] += 1
        producer.flush(PATIENCE)
        status = drained(engine)
        assert 4 == status["shards"][0]["incarnation"], f"{point} was not reached three times"
        assert (sum(counts), len(bad)) == tuple(status["accounting"][name] for name in ("handled", "quarantined"))
        assert sorted(bad) == quarantined(settings, engine_name)
    assert dict(enumerate(counts)) == totals(state_files(settings, engine_name))


def test_what_is_taken_back_from_the_quarantine_is_counted_once_by_a_stateful_handler_whatever_is_killed(
    rig: Rig, engine_name: str, settings: dict
) -> None:
    settings |= {
        "handler": "support.quarantine_load:MendableInOrder",
        "on_error": "retry",
        "retry_backoff": 0.001,
        "retry_max_wait": 0.05,
    }
    with rig.engine(engine_name, shards=1, **settings) as engine, engine.producer() as producer:

        def is_replaced(incarnation: int) -> bool:
            shard = engine.status()["shards"][0]
            return shard["incarnation"] > incarnation and shard["phase"] == "ready"

        def kill_worker() -> None:
            shard = engine.status()["shards"][0]
            os.kill(shard["pid"], signal.SIGKILL)
            wait_until(lambda: is_replaced(shard["incarnation"]), "there is another worker", 60)

        def waits() -> bool:
            status = engine.status()
            return status["shards"][0]["condition"] == "waiting" and not status["accounting"]["quarantined"]

        for number in range(3):
            producer.push(1, b"%d" % number)
            producer.flush(PATIENCE)
        assert [b"0", b"1", b"2"] == quarantined(settings, engine_name)
        producer.push(1, b"3")
        wait_until(waits, "they are taken back", 60)
        kill_worker()
        wait_until(waits, "the next one waits too", 60)
        assert [] == quarantined(settings, engine_name)
        (rig.directory / "mended").touch()
        wait_until(lambda: engine.status()["accounting"]["handled"] == 4, "all are handled", 60)
        kill_worker()
        status = drained(engine)
        assert (4, 0) == (status["accounting"]["handled"], status["accounting"]["quarantined"])
        assert [] == quarantined(settings, engine_name)
    assert {1: 4} == totals(state_files(settings, engine_name))
