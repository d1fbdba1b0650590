"""What happens to an engine is told in its history: once, in order, with shard and figures; it outlives the
supervisor."""

from __future__ import annotations

import os
import signal
import time
from typing import Any

import shardmem
from support.daemon import Daemon
from support.recorder import payload
from support.rig import PATIENCE, Rig, drained, wait_until


def kinds(document: dict[str, Any], *wanted: str) -> list[str]:
    return [each["kind"] for each in document["events"] if not wanted or each["kind"] in wanted]


def told(engine: Any, kind: str) -> dict[str, Any]:
    """The last entry of that kind, once there is one."""

    def found() -> dict[str, Any] | None:
        entries = [each for each in engine.status()["events"] if each["kind"] == kind]
        return entries[-1] if entries else None

    return wait_until(found, f"{kind} is in the history")


def test_commands_deaths_and_the_end_are_told_with_their_figures(rig: Rig, engine_name: str) -> None:
    before = time.time()
    with rig.engine(engine_name, shards=None, min_shards=1, max_shards=3, auto_scale=False) as engine:
        assert ["started"] == kinds(engine.status())
        assert "1 shard, 1,024 slots" in engine.status()["events"][0]["text"]
        engine.scale_to(3)
        said = told(engine, "scaled")["text"]
        assert said.startswith("from 1 to 3 shards in ") and ", by hand: added 1, 2; " in said, said
        here = engine.move([0, 1, 2, 3, 4], to=2)["moved"]
        engine.move([0, 1, 2, 3, 4], to=2)  # nothing moves: nothing happened
        assert told(engine, "moved")["text"].startswith(f"{len(here)} slots moved (") and 1 == len(
            kinds(engine.status(), "moved")
        )
        engine.drain(1)
        assert 1 == told(engine, "shard_removed")["shard"]
        pid = next(each["pid"] for each in engine.status()["shards"] if each["id"] == 2)
        os.kill(pid, signal.SIGKILL)
        died, started = told(engine, "worker_died"), told(engine, "worker_started")
        assert 2 == died["shard"] == started["shard"] and "warning" == died["level"]
        assert f"worker pid {pid} ended: killed by SIGKILL" in died["text"]
        now = next(each["pid"] for each in engine.status()["shards"] if each["id"] == 2)
        assert f"worker pid {now} is ready" in started["text"] and "so far: 1" in started["text"]
        engine.reload()
        assert "shard 1 took the place of 0" in told(engine, "reload")["text"]
        document = engine.status()
        assert ["started", "scaled", "moved", "shard_removed", "worker_died", "worker_started", "reload"] == kinds(
            document
        )
    times = [each["at"] for each in document["events"]]
    assert sorted(times) == times and before - 1 < times[0] and times[-1] < time.time() + 1


def test_the_history_is_there_without_a_supervisor_and_a_takeover_keeps_it(rig: Rig, engine_name: str) -> None:
    flags = ("--shards", "2", "--retry-backoff", "0.01", "--state-dir", str(rig.directory))
    rig.tell("poison", "7")
    with Daemon(rig, engine_name, *flags, handler="support.handlers.failing:Failing") as first:
        first.ready()
        with shardmem.connect(engine_name) as producer, shardmem.Client(engine_name) as client:
            client.move("0-3", 1)
            producer.push_many([1] * 9, [payload(1, 1, number) for number in range(9)])
            producer.flush(PATIENCE)
            assert "1 event was quarantined" in told(client, "quarantined")["text"]
            first.kill_supervisor()
            dead = client.status()
            assert not dead["supervisor"]["alive"] and ["started", "moved", "quarantined"] == kinds(dead)
            producer.push_many([1] * 9, [payload(1, 1, number) for number in range(9)])
            producer.flush(PATIENCE)
            with Daemon(rig, engine_name, *flags, handler="support.handlers.failing:Failing") as second:
                after = second.ready()
                assert dead["events"] == after["events"][:3]
                assert ["quarantined", "took_over"] == kinds(after)[3:]
                assert "1 event was quarantined while there was no supervisor" == after["events"][3]["text"]
                assert "workers of shards [0, 1] went on" in after["events"][4]["text"]
                with rig.hold():
                    producer.push(1, payload(1, 1, 1))
                    second.process.terminate()
                    assert "1 events in flight" in told(client, "draining")["text"]
                code, last = second.end()
                assert 0 == code and "stopped with 0 events not handled" == last["status"]["events"][-1]["text"]


def test_a_shard_that_is_given_up_and_a_command_that_cannot_be_done_are_errors_in_the_history(
    rig: Rig, engine_name: str
) -> None:
    engine = rig.engine(engine_name, handler="support.handlers.failing:Fragile", shards=1, max_shards=2).start()
    rig.tell("open", "raise")
    try:
        engine.scale_to(2)
        raise AssertionError("a worker that cannot open was taken")
    except shardmem.HandlerError:
        pass
    document = engine.status()
    assert ["shard_failed", "not_done"] == kinds(document)[1:]
    assert ["error", "error"] == [each["level"] for each in document["events"][1:]]
    assert "as told" in document["events"][1]["text"] and document["events"][2]["text"].startswith("scale by hand: ")
    (rig.directory / "open").unlink()
    drained(engine)
    engine.stop()
