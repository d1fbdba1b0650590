"""Producers of an engine that is stopped and run again, and producers that have lost what they never opened."""

from __future__ import annotations

import shardmem
from support.checker import check
from support.daemon import Daemon
from support.programs import sends
from support.rig import Program, Rig, drained, expect_clean, segments_of, wait_until

LONG = 60.0  # for what has to start processes, on a machine that is busy


def test_producers_go_on_through_stop_and_run_and_nothing_is_lost(rig: Rig, engine_name: str) -> None:
    programs: list[Program] = []
    try:
        for life in range(2):
            with Daemon(rig, engine_name, "--shards", "2") as daemon:
                daemon.ready()
                if not programs:
                    mains = (sends.push_until_told, sends.await_until_told)
                    programs += [Program(main, rig, engine=engine_name, producer=i) for i, main in enumerate(mains)]
                    for program in programs:
                        program.hear(LONG)
                with shardmem.Client(engine_name) as client:
                    wait_until(lambda: _pushed(client) == {0, 1}, "both push into this engine", LONG)
                if life:
                    for program in programs:
                        assert program.ask(LONG)["error"] is None
                        program.end(LONG)
                daemon.process.terminate()
                code, last = daemon.end()
                assert code == 0 and last["status"]["accounting"]["in_flight"] == 0
            assert segments_of(engine_name) == []
    finally:
        for program in programs:
            program.__exit__()
    assert check(rig.logs()) == []


def _pushed(client: shardmem.Client) -> set[int]:
    return {seat["seat"] for seat in client.status()["producers"] if seat["sequence"] > 100}


def test_a_producer_whose_descriptors_were_closed_keeps_its_seat_and_loses_nothing(rig: Rig, engine_name: str) -> None:
    with rig.engine(engine_name, shards=2) as engine:
        with Program(sends.close_descriptors, rig, engine=engine_name, producer=1) as program:
            assert program.hear(LONG) == {"seat": 0}
            with Program(sends.push_until_told, rig, engine=engine_name, producer=2) as other:
                assert other.hear(LONG)["seat"] == 1
                assert program.ask(LONG, blocks=200) == {"seat": 0}
                assert other.ask(LONG)["error"] is None
                other.say()
            assert program.end(LONG) == 0
        expect_clean(rig, drained(engine))
