"""Seats: taken by a lock that death gives up, reused with a higher incarnation, and limited."""

from __future__ import annotations

import gc
import os
import signal

import pytest

import shardmem
from support.programs import sends
from support.rig import PATIENCE, Program, Rig, drained, expect_clean


def seats(engine: shardmem.Engine) -> dict[int, dict]:
    return {seat["seat"]: seat for seat in engine.status()["producers"]}


def test_a_closed_producer_leaves_its_seat_to_the_next(rig: Rig, engine_name: str) -> None:
    with rig.engine(engine_name, shards=1) as engine:
        for life in range(1, 6):
            with engine.producer() as producer:
                producer.push(0, b"")
                found = seats(engine)[0]
                assert found == found | {"pid": os.getpid(), "alive": True, "incarnation": life}
            assert seats(engine)[0]["alive"] is False
        assert list(seats(engine)) == [0]


def test_a_forgotten_producer_leaves_its_seat_when_it_is_collected(rig: Rig, engine_name: str) -> None:
    with rig.engine(engine_name, shards=1) as engine:
        producer = engine.producer()
        producer.push(0, b"")
        del producer
        gc.collect()
        assert seats(engine)[0]["alive"] is False


def test_a_killed_producer_leaves_its_seat_and_its_events(rig: Rig, engine_name: str) -> None:
    with rig.engine(engine_name, shards=1) as engine:
        for life in range(1, 4):
            with Program(sends.pusher, rig, engine=engine_name, producer=life) as program:
                assert program.hear()["seat"] == 0
                found = seats(engine)[0]
                assert found == found | {"pid": program.pid, "alive": True, "incarnation": life}
                program.kill()
                program.process.wait()
                assert seats(engine)[0]["alive"] is False, "the kernel's word, without a delay"
        logs = expect_clean(rig, drained(engine))
        assert len(logs.accepted) == 30


def test_a_stopped_producer_keeps_its_seat(rig: Rig, engine_name: str) -> None:
    with rig.engine(engine_name, shards=1) as engine:
        with Program(sends.pusher, rig, engine=engine_name, producer=1) as program:
            program.hear()
            program.kill(signal.SIGSTOP)
            os.waitid(os.P_PID, program.pid, os.WSTOPPED)
            with engine.producer() as producer:
                assert producer.seat == 1
            assert seats(engine)[0]["alive"] is True
            program.kill(signal.SIGCONT)
            assert program.end() == 0


def test_a_full_house_raises_already_running_and_says_what_to_do(rig: Rig, engine_name: str) -> None:
    with rig.engine(engine_name, shards=1, max_producers=3) as engine:
        crowd = [engine.producer() for _ in range(3)]
        with pytest.raises(shardmem.AlreadyRunning, match=f"{engine_name}.*3 producers.*max_producers"):
            engine.producer()
        crowd[1].close()
        with engine.producer() as late:
            assert late.seat == 1
            late.push(0, b"")
            late.flush(PATIENCE)
        for producer in crowd:
            producer.close()


def test_a_refused_producer_leaves_no_descriptor_behind(rig: Rig, engine_name: str) -> None:
    with rig.engine(engine_name, shards=1, max_producers=1) as engine, engine.producer():

        def refused() -> int:
            with pytest.raises(shardmem.AlreadyRunning):
                engine.producer()
            return len(os.listdir("/proc/self/fd"))

        before = refused()  # others in this process may open one meanwhile, and not as often
        assert [refused() for _ in range(20)][-1] - before < 10


def test_a_closed_producer_leaves_no_descriptor_and_no_mapping_behind(rig: Rig, engine_name: str) -> None:
    with rig.engine(engine_name, shards=2) as engine:

        def used() -> tuple[int, int]:
            with engine.producer() as producer:
                producer.push_many(list(range(20)), [b""] * 20)
            del producer
            gc.collect()
            with open("/proc/self/maps") as maps:
                return len(os.listdir("/proc/self/fd")), sum(engine_name in line for line in maps)

        before = used()
        assert [used() for _ in range(5)] == [before] * 5


def test_a_producer_takes_the_seat_of_a_dead_one_while_its_events_still_wait(rig: Rig, engine_name: str) -> None:
    with rig.engine(engine_name, shards=1) as engine:
        with rig.hold():
            for life in range(1, 4):
                with Program(sends.pusher, rig, engine=engine_name, producer=life) as program:
                    program.hear()
            status = engine.status()
            assert status["accounting"]["in_flight"] == 30
            assert [seat["incarnation"] for seat in status["producers"]] == [3]
        expect_clean(rig, drained(engine))
