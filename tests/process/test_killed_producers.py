"""A producer may be killed or stopped at any point of a send: nothing is torn, nothing accepted is lost, nobody
waits."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from support.programs import nursery
from support.recorder import RECORD
from support.rig import SEND_POINTS, SMALL_LANE, Program, Rig, drained, expect_clean

METHODS = ("push", "push_many", "push_columns", "send")
KILLS = 20


class Ward:
    """An engine with small lanes and a nursery of producers, for all the points of one method."""

    def __init__(self, method: str, name: str, directory: Path) -> None:
        self.rig, self.method = Rig(directory), method
        schema = {"dtype": RECORD, "key": "key"} if method == "send" else {}
        self.engine = self.rig.engine(name, shards=2, lane_bytes=SMALL_LANE, spin_us=0, **schema)
        self._next = 1

    def numbers(self, count: int) -> int:
        """The first of so many unused producer numbers."""
        first, self._next = self._next, self._next + count
        return first


@pytest.fixture(scope="module", params=METHODS)
def ward(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, make_engine_name: Callable[[str], str]
) -> Iterator[Ward]:
    ward = Ward(request.param, make_engine_name(request.param), tmp_path_factory.mktemp(request.param))
    with ward.engine:
        with Program(nursery.nursery, ward.rig, engine=ward.engine.name, method=ward.method, first=0) as program:
            assert program.hear() == {"ready": True}
            ward.nursery = program
            yield ward
            assert program.end(stderr="") == 0


@pytest.mark.parametrize("point", SEND_POINTS)
def test_a_producer_killed_at_any_point_of_a_send_loses_tears_and_wedges_nothing(ward: Ward, point: str) -> None:
    seats = {seat["seat"]: seat["incarnation"] for seat in ward.engine.status()["producers"]}
    first = ward.numbers(KILLS + 1)
    reply = ward.nursery.ask(timeout=50, point=point, first=first, count=KILLS, signal=signal.SIGKILL)
    assert reply["codes"] == [-signal.SIGKILL] * KILLS + [0], (
        "each child is killed at the point, the next producer goes on"
    )
    status = drained(ward.engine)
    logs = expect_clean(ward.rig, status, producers=[0, *range(first, first + KILLS + 1)])
    assert len(logs.of(range(first, first + KILLS)).handled) > 0
    after = {seat["seat"]: seat["incarnation"] for seat in status["producers"]}
    assert set(after) == {*seats, 0, 1}, "the dead leave their seats to the next"
    assert after[1] == seats.get(1, 0) + KILLS + 1, "each holder is an incarnation of its own"


@pytest.mark.parametrize("point", SEND_POINTS)
def test_a_producer_stopped_at_any_point_of_a_send_keeps_nobody_waiting(ward: Ward, point: str) -> None:
    first = ward.numbers(4)
    reply = ward.nursery.ask(timeout=50, point=point, first=first, count=2, signal=signal.SIGSTOP)
    assert reply["codes"] == [0] * 4
    logs = expect_clean(ward.rig, drained(ward.engine), producers=[0, *range(first, first + 4)])
    assert len(logs.of([first]).accepted) == len(logs.of([first]).offered)


def test_producers_killed_at_any_moment_lose_tear_and_wedge_nothing(ward: Ward) -> None:
    first = ward.numbers(60)
    reply = ward.nursery.ask(timeout=50, first=first, count=60)
    assert reply["codes"] == [-signal.SIGKILL] * 60
    expect_clean(ward.rig, drained(ward.engine), producers=[0, *range(first, first + 60)])
