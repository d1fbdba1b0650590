"""An engine at rest is looked at seldom, and at once when something stirs."""

from __future__ import annotations

import asyncio
import threading
from types import SimpleNamespace

from shardmem.runtime import worker as shard_worker
from shardmem.runtime.aside import Aside
from shardmem.runtime.commit import Immediate
from shardmem.runtime.failures import Failures
from shardmem.runtime.moves import Moves
from shardmem.runtime.outcomes import OnError
from shardmem.runtime.worker import Worker
from shardmem.supervisor import pace
from shardmem.supervisor.pace import CALM, REST, TICK, Pace
from support.rig import PATIENCE, wait_until

STALL = 0.25  # so that the worker sleeps for a tenth of a second


def test_what_is_calm_for_long_enough_is_at_rest_until_something_stirs(monkeypatch):
    clock = SimpleNamespace(now=100.0)
    monkeypatch.setattr(pace, "time", SimpleNamespace(monotonic=lambda: clock.now))

    async def both() -> None:
        made = Pace()
        clock.now += CALM
        assert made.interval == TICK
        clock.now += 0.1
        assert made.interval == REST
        made.stir()
        assert made.interval == TICK

    asyncio.run(both())


def test_a_wait_at_rest_ends_when_something_stirs(monkeypatch):
    monkeypatch.setattr(pace, "CALM", -1.0)
    monkeypatch.setattr(pace, "REST", 1e6)

    async def waits() -> None:
        made = Pace()
        waiting = asyncio.create_task(made.wait(1e6))
        await asyncio.sleep(0)
        assert not waiting.done()
        made.stir()
        await asyncio.wait_for(waiting, PATIENCE)

    asyncio.run(waits())


def test_a_worker_says_that_events_come_again_after_a_long_rest_and_not_while_they_flow(
    loopback, tmp_path, monkeypatch
):
    engine, said, handled = loopback(), [], []
    monkeypatch.setattr(shard_worker, "fence", lambda *segments: None)  # this process goes on to fork
    worker = Worker(
        engine.control, 0, batch_rows=64, spin_us=0, stall_timeout=STALL, say=lambda **report: said.append(report)
    )
    rules = OnError("retry", 3, 0.1, [], 1.0, None, str(tmp_path / "q"), 100)
    aside = Aside(engine.control, 0, worker.reader, rules.quarantine_file, rules.quarantine_limit)
    commit = Immediate(engine.control, 0, worker.reader, SimpleNamespace(handle=lambda batch: handled.extend(batch)))
    moves = Moves(engine.control, 0, worker.reader, commit, worker._say)
    failures = Failures(engine.control, 0, worker.reader, worker.batch, commit, aside, rules, None, "", worker.scratch)
    monkeypatch.setattr(shard_worker, "LONG_REST_S", 0.0)
    sleeps, next_batch = [], worker.reader.next
    worker.reader.next = lambda *arguments: next_batch(*arguments) and (sleeps.append(1) or True)
    running = threading.Thread(target=worker.run, args=(commit, moves, failures))
    running.start()
    try:
        with engine.producer() as producer:
            wait_until(lambda: sleeps, "it has slept")
            producer.push(1, b"first")
            wait_until(lambda: handled, "the event is handled")
            assert said == [{"flows": True}]
            monkeypatch.setattr(shard_worker, "LONG_REST_S", 1e6)
            slept = len(sleeps)
            wait_until(lambda: len(sleeps) > slept + 1, "it has slept again, and not for long")
            producer.push(1, b"second")
            wait_until(lambda: len(handled) == 2, "the second one too")
            assert said == [{"flows": True}]
    finally:
        worker.stop_now = True
        running.join(PATIENCE)
        worker._lease.release()
