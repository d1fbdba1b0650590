"""The producer for asyncio: it waits without the loop's executor, for as long as was asked, and can be cancelled."""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
import sys
import time

import numpy as np
import pytest

import shardmem
from shardmem.runtime import aio

PATIENCE = 60.0
ROW = np.dtype([("key", "u8"), ("number", "u8")])


@contextlib.asynccontextmanager
async def full(loopback, **options):
    """A producer whose one lane has no room, and its engine."""
    engine = loopback(lane_bytes=4096)
    async with shardmem.AsyncProducer(engine.name, **options) as producer:
        for payload in (bytes(1000), b""):
            with contextlib.suppress(shardmem.Backpressure):
                while await producer.push(7, payload, timeout=0):
                    pass
        yield engine, producer


def begun():
    """What the tasks of this loop wait for."""
    loop = asyncio.get_running_loop()
    return [done for (of, _), done in aio._waits._begun.items() if of is loop]


async def waiting(*tasks):
    """Once they have begun to wait."""
    await asyncio.sleep(0)
    while not begun():
        assert not any(task.done() for task in tasks)
        await asyncio.sleep(0)


def taken(engine):
    found = []
    while (batch := engine.take()) is not None:
        found += batch.payloads
        engine.commit()
    return [payload for payload in found if payload and payload != bytes(1000)]


def run(main):
    return asyncio.run(asyncio.wait_for(main, PATIENCE))


def test_calls_that_wait_take_no_thread_of_the_loop_s_executor(loopback):
    async def main():
        async with full(loopback) as (engine, producer):
            tasks = [asyncio.create_task(producer.push(7, b"%d" % number)) for number in range(60)]
            flush = asyncio.create_task(producer.flush())
            await waiting(*tasks)
            assert asyncio.get_running_loop()._default_executor is None
            assert len(begun()) <= 2, "those that wait for the same are one wait"
            handled = taken(engine)
            while not all(task.done() for task in (*tasks, flush)):
                handled += taken(engine)
                await asyncio.sleep(0.001)
            handled += taken(engine)
            assert sorted(handled, key=int) == [b"%d" % number for number in range(60)]

    run(main())


def test_a_timeout_counts_from_the_call_however_many_wait(loopback):
    async def main():
        async with full(loopback) as (_, producer):
            tasks = [asyncio.create_task(producer.push(7, b"0")) for _ in range(60)]
            await waiting(*tasks)
            began = time.monotonic()
            with pytest.raises(shardmem.Backpressure) as error:
                await producer.push(7, b"1", timeout=0.1)
            assert 0.1 <= time.monotonic() - began < 20
            assert error.value.rest == (7, b"1")
            with pytest.raises(TimeoutError):
                await producer.flush(0.1)
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
            assert producer._producer.outcome()["refused"]["timeout"] == 1

    run(main())


def test_what_was_cancelled_while_it_waited_is_never_accepted_later(loopback):
    async def main():
        async with full(loopback) as (engine, producer):
            accepted = producer._producer.outcome()["accepted"]
            tasks = [asyncio.create_task(producer.push_many([7] * 2, [b"a", b"b"])) for _ in range(5)]
            await waiting(*tasks)
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
            assert all(task.cancelled() for task in tasks)
            assert taken(engine) == []
            assert await producer.push(7, b"after")
            assert taken(engine) == [b"after"]
            assert producer._producer.outcome()["accepted"] == accepted + 1

    run(main())


def test_a_cancellation_that_comes_with_the_room_is_not_swallowed(loopback):
    """Before Python 3.12 wait_for returned the result instead, and the task went on."""

    async def main():
        async with full(loopback) as (engine, producer):

            async def push():
                await producer.push(7, b"lost")
                await asyncio.sleep(PATIENCE)

            task = asyncio.create_task(push())
            await waiting(task)
            (room,) = begun()
            assert taken(engine) == []
            aio._set(room)
            await asyncio.sleep(0)
            task.cancel()
            await asyncio.wait((task,), timeout=PATIENCE / 2)
            assert task.cancelled()

    run(main())


def test_a_process_that_pushes_into_a_full_lane_ends_without_close(loopback):
    engine = loopback(lane_bytes=4096)
    program = f"""
import asyncio, shardmem

async def main():
    producer = shardmem.AsyncProducer({engine.name!r})
    tasks = [asyncio.create_task(producer.push(7, bytes(500))) for _ in range(60)]
    done, _ = await asyncio.wait(tasks, timeout=0.3)
    print(len(done))

asyncio.run(main())
"""
    ended = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=PATIENCE, env=os.environ
    )
    assert (ended.returncode, ended.stderr) == (0, "") and int(ended.stdout) < 60


@pytest.mark.parametrize("mode", ["drop_oldest", "sample"])
def test_a_mode_that_waits_for_some_events_does_not_hold_up_the_loop(loopback, mode):
    async def main():
        async with full(loopback, backpressure=mode, sample_every=2) as (engine, producer):
            task = asyncio.create_task(producer.push_many([7] * 4, [b"0", b"1", b"2", b"3"]))
            await waiting(task)  # and so this task is not held up
            handled = taken(engine)
            while not task.done():
                handled += taken(engine)
                await asyncio.sleep(0.001)
            handled += taken(engine)
            assert await task == len(handled) == (4 if mode == "drop_oldest" else 2)

    run(main())


def test_records_wait_alike(loopback):
    async def main():
        engine = loopback(dtype=ROW, key="key", lane_bytes=4096)
        async with shardmem.AsyncProducer(engine.name) as producer:
            rows = np.array([(7, number) for number in range(1000)], ROW)
            task = asyncio.create_task(producer.send(rows))
            handled = []
            while not task.done():
                if (batch := engine.take()) is not None:
                    handled += batch.records["number"].tolist()
                    engine.commit()
                await asyncio.sleep(0)
            while (batch := engine.take()) is not None:
                handled += batch.records["number"].tolist()
                engine.commit()
            assert await task == 1000 and handled == list(range(1000))
            with pytest.raises(TypeError, match="use send"):
                await producer.push(7, b"")

    run(main())


def test_it_attaches_to_the_next_engine_of_its_name_and_waits_for_it_meanwhile(loopback):
    async def main():
        first = loopback()
        async with shardmem.AsyncProducer(first.name) as producer:
            await producer.push(7, b"0")
            taken(first)
            first.end()
            with pytest.raises(shardmem.Unavailable):
                await producer.push(7, b"1", timeout=0.05)
            tasks = [asyncio.create_task(producer.push(7, b"%d" % number)) for number in range(20)]
            await waiting(*tasks)
            second = loopback(name=first.name)
            assert await asyncio.gather(*tasks) == [True] * 20
            assert taken(second) == [b"%d" % number for number in range(20)], "they wait in the order of their calls"

    run(main())


def test_closing_it_ends_calls_that_wait(loopback):
    async def main():
        async with full(loopback) as (_, producer):
            task = asyncio.create_task(producer.push(7, b"0"))
            await waiting(task)
            await producer.close()
            with pytest.raises(shardmem.NotRunning, match="closed"):
                await task

    run(main())


def test_a_loop_that_ended_in_the_middle_of_a_wait_leaves_nothing_to_the_next(loopback):
    engine = loopback(lane_bytes=4096)
    producer = shardmem.AsyncProducer(engine.name)

    async def blocked():
        tasks = [asyncio.create_task(producer.push(7, bytes(500))) for _ in range(20)]
        await waiting()
        assert all(of is asyncio.get_running_loop() for of, _ in aio._waits._begun)
        return len(tasks)

    for _ in range(3):
        assert run(blocked()) == 20

    async def goes_on():
        task = asyncio.create_task(producer.push(7, b"after"))
        while not task.done():
            taken(engine)
            await asyncio.sleep(0.001)

    run(goes_on())
    asyncio.run(producer.close())
