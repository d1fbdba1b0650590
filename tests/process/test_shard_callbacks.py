"""A program is told which shards its engine creates and removes."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import threading

import pytest

from shardmem import ConfigError, NotRunning
from support.recorder import payload
from support.rig import PATIENCE, Rig, wait_until


def threads() -> set[str]:
    return {thread.name for thread in threading.enumerate() if thread.name.startswith("shardmem-")}


def test_each_shard_is_told_once_when_it_is_created_and_once_when_it_is_removed(rig: Rig, engine_name: str) -> None:
    told: list[tuple[str, int]] = []
    engine = rig.engine(
        engine_name,
        shards=2,
        max_shards=4,
        on_shard_created=lambda shard: told.append(("created", shard)),
        on_shard_removed=lambda shard: told.append(("removed", shard)),
    )
    with engine:
        wait_until(lambda: told == [("created", 0), ("created", 1)], "the first ones")
        engine.scale_to(3)
        engine.drain(0)
        engine.reload()
        with engine.producer() as producer:
            producer.push(1, payload(1, 1, 0))
            producer.flush(PATIENCE)
    created = [shard for what, shard in told if what == "created"]
    removed = [shard for what, shard in told if what == "removed"]
    assert created[:3] == [0, 1, 2] and removed[0] == 0
    assert len(created) == 5 and len(removed) == 3, "two are left, which end with the engine and are not told"
    assert not threads()


def test_what_a_callback_raises_is_logged_and_one_that_blocks_holds_up_nothing(
    rig: Rig, engine_name: str, caplog: pytest.LogCaptureFixture
) -> None:
    go_on, told = threading.Event(), list[int]()

    def created(shard: int) -> None:
        told.append(shard)
        if shard == 1:
            go_on.wait(PATIENCE)
        raise ValueError(f"no shard {shard} for me")

    with caplog.at_level(logging.ERROR, "shardmem.engine"):
        with rig.engine(engine_name, shards=1, max_shards=3, on_shard_created=created) as engine:
            engine.scale_to(2)
            wait_until(lambda: told == [0, 1], "the second one is being told")
            assert engine.scale_to(3)["shards"] == [0, 1, 2]
            assert told == [0, 1], "one after the other"
            go_on.set()
            wait_until(lambda: told == [0, 1, 2], "the third one is told")
    assert [str(record.exc_info[1]) for record in caplog.records if record.exc_info] == [
        f"no shard {shard} for me" for shard in (0, 1, 2)
    ]


def test_a_callback_may_ask_of_the_engine_and_end_it(rig: Rig, engine_name: str) -> None:
    ended = threading.Event()

    def created(shard: int) -> None:
        if shard == 1:
            assert engine.status()["engine"]["name"] == engine_name
            engine.stop()
            ended.set()

    engine = rig.engine(engine_name, shards=1, max_shards=2, on_shard_created=created).start()
    with contextlib.suppress(NotRunning):  # it ends before the answer
        engine.scale_to(2)
    assert ended.wait(PATIENCE)
    assert engine.stop()["accounting"]["in_flight"] == 0


def test_a_supervisor_that_takes_over_tells_of_new_shards_only(rig: Rig, engine_name: str) -> None:
    told: list[int] = []
    with rig.engine(engine_name, shards=1, max_shards=2, on_shard_created=told.append) as engine:
        wait_until(lambda: told == [0], "the first one")
        os.kill(engine.status()["supervisor"]["pid"], signal.SIGKILL)
        engine.scale_to(2)
        wait_until(lambda: told == [0, 1], "the new one")
    assert told == [0, 1]


def test_without_callbacks_there_are_no_threads_for_them_and_what_cannot_be_called_is_refused(
    rig: Rig, engine_name: str
) -> None:
    with rig.engine(engine_name, shards=1):
        assert threads() == {"shardmem-supervisor"}
    with pytest.raises(ConfigError, match="on_shard_created='no function' is not callable"):
        rig.engine(engine_name, on_shard_created="no function")
