"""Which worker is due, as the supervisor finds it out from memory and the words of its workers."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from shardmem.policy.recycling import YOUNG
from shardmem.supervisor import replacements


@pytest.fixture
def looks(monkeypatch):
    """look(seconds, bytes) -> whether the worker is due then; notes; the worker, which entered one second after the
    start."""
    clock, notes, memory = SimpleNamespace(now=100.0, monotonic=lambda: clock.now), [], [0]
    monkeypatch.setattr(replacements, "time", clock)
    monkeypatch.setattr(replacements, "_rss", lambda pid: memory[0])
    worker = SimpleNamespace(pid=1, incarnation=1, batches=0, entered_ns=101 * 10**9, phase="ready")
    replaced = replacements.Replacements(
        SimpleNamespace(
            config=SimpleNamespace(recycle_batches=None, recycle_age=None, recycle_rss=1000),
            shards=SimpleNamespace(in_state=lambda *states: [0]),
            history=SimpleNamespace(note=lambda *entry: notes.append(entry)),
            control=SimpleNamespace(view_shard=lambda shard: worker, worker_phase=lambda shard: worker.phase),
            planner=SimpleNamespace(waiting=lambda: set()),
        )
    )

    def look(seconds: float, rss: int) -> bool:
        clock.now, memory[0] = 101.0 + seconds, rss
        return replaced.due() is not None

    return SimpleNamespace(look=look, notes=notes, worker=worker)


def test_a_worker_that_grows_over_the_limit_is_due_when_it_is_no_longer_young(looks):
    assert [False, False, True] == [looks.look(0, 400), looks.look(YOUNG - 1, 1001), looks.look(YOUNG, 1001)]
    assert [] == looks.notes


def test_a_worker_that_began_over_the_limit_is_due_at_twice_that_and_it_is_said_once(looks):
    looks.worker.phase = "booting"
    assert not looks.look(0, 10)
    looks.worker.phase = "ready"
    assert [False, False, True] == [looks.look(1, 1500), looks.look(YOUNG + 2, 2999), looks.look(YOUNG + 2, 3000)]
    looks.worker.incarnation = 2
    assert not looks.look(YOUNG + 3, 1500)
    ((kind, text),) = looks.notes
    assert "not_done" == kind and "1,500 bytes" in text and "recycle_rss=1,000" in text


def test_of_a_worker_that_an_earlier_supervisor_started_nobody_knows_what_it_began_with(looks):
    looks.worker.entered_ns = 1
    assert looks.look(0, 1001) and [] == looks.notes
