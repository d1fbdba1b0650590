"""What an operator reads of a live engine is true of its processes."""

from __future__ import annotations

import os
import signal

import psutil

from support.recorder import payload
from support.rig import Rig, drained, wait_until


def test_status_says_what_workers_use_and_since_when_and_forgets_it_with_them(rig: Rig, engine_name: str) -> None:
    with rig.engine(engine_name, shards=2, state_dir=str(rig.directory)) as engine:
        with engine.producer() as producer:
            for number in range(200):
                producer.push(number, payload(1, number, 0))
            drained(engine)
            document = wait_until(
                lambda: (found := engine.status())["supervisor"]["heartbeat_age_s"] is not None and found,
                "the supervisor's loop has gone round",
            )
            assert sum(each["sequence"] for each in document["producers"]) == 200
        for shard in document["shards"]:
            process = psutil.Process(shard["pid"])
            assert 0.5 < shard["rss_bytes"] / process.memory_info().rss < 2
            assert 0 <= shard["cpu"] and 0 < shard["uptime_s"] < 60
        assert document["supervisor"]["heartbeat_age_s"] < 60 and document["engine"]["slots_unowned"] == 0
        assert document["engine"]["quarantine_file"] == str(rig.directory / f"{engine_name}.quarantine")
        with rig.hold():  # so that the next worker cannot get far
            os.kill(document["supervisor"]["pid"], signal.SIGSTOP)  # nor is there a next one
            try:
                os.kill(document["shards"][0]["pid"], signal.SIGKILL)
                wait_until(lambda: not engine.status()["shards"][0]["alive"], "worker is dead")
                first = engine.status()["shards"][0]
                assert [first[key] for key in ("uptime_s", "cpu", "rss_bytes")] == [None] * 3
                assert engine.status()["engine"]["slots_unowned"] == first["slots"] > 0
            finally:
                os.kill(document["supervisor"]["pid"], signal.SIGCONT)
