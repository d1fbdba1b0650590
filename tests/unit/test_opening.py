"""A handler that cannot be opened yet: its worker waits, and says so, until it can be, or must not wait any longer."""

from __future__ import annotations

from typing import Any

import pytest

import shardmem
from shardmem.memory.words import waiting_of
from shardmem.runtime.opening import Opening, ToldToStop
from shardmem.runtime.outcomes import OnError
from shardmem.runtime.waiting import Waiting


class Away:
    """Raises these, one at a call, and then is open."""

    def __init__(self, *errors: BaseException) -> None:
        self.errors = list(errors)

    def __call__(self) -> Any:
        if self.errors:
            raise self.errors.pop(0)
        return "the handler"


def opening(engine: Any, said: list[Any], told: bool = False, **rules: Any) -> Opening:
    settings: dict[str, Any] = {
        "on_error": "retry",
        "max_attempts": 3,
        "retry_backoff": 0.0,
        "retry_on": ["ConnectionError"],
        "retry_max_wait": 0.001,
        "retry_for": None,
        "quarantine_file": "/nonexistent",
        "quarantine_limit": 1,
        **rules,
    }
    return Opening(engine.control, 0, OnError(**settings), "", lambda: told, lambda **report: said.append(report))


def test_it_is_opened_again_until_it_is_open_and_then_waits_no_more(loopback):
    engine, said = loopback(), list[Any]()
    away = Away(ConnectionError("away"), shardmem.Retry("a rate limit", after=0.001), ConnectionResetError())
    assert "the handler" == opening(engine, said).until_open(away)
    assert [{"waits_to_open": True}] * 3 == said
    assert (None, None) == waiting_of(engine.control.view_shard(0)) and "" == engine.control.shard_error(0)


def test_meanwhile_it_says_why_and_lives(loopback):
    engine, seen = loopback(), list[Any]()

    def look(**report: Any) -> None:
        seen.append((waiting_of(engine.control.view_shard(0))[0] is not None, engine.control.shard_error(0)))

    found = opening(engine, [])
    found._say = look
    found.until_open(Away(ConnectionError("the sink is away")))
    assert [(True, "open() of the handler: ConnectionError: the sink is away")] == seen


def test_it_ends_when_it_is_told_to(loopback):
    with pytest.raises(ToldToStop):
        opening(loopback(), [], told=True, retry_max_wait=60).until_open(Away(*[ConnectionError("away")] * 9))


@pytest.mark.parametrize("error, rules", [(ValueError("no"), {}), (ConnectionError("away"), {"retry_for": 0.0})])
def test_what_asks_for_no_other_try_or_has_asked_for_too_long_is_raised(loopback, error, rules):
    with pytest.raises(type(error)):
        opening(loopback(), [], **rules).until_open(Away(*[error] * 9))


def test_a_shard_in_doubt_of_its_events_is_so_still_when_its_handler_is_open(loopback):
    engine = loopback()
    Waiting(engine.control, 0, 1.0, "").doubt()
    opening(engine, []).until_open(Away(ConnectionError("away")))
    assert "doubt" == Waiting(engine.control, 0, 1.0, "").kind
