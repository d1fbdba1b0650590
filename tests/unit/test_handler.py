"""What a worker accepts as a handler, without a worker."""
from __future__ import annotations

import itertools
from typing import Any

import pytest

from shardmem.errors import HandlerError
from shardmem.runtime.handler import HandlerRef, is_stateful

STATE = ("snapshot", "restore", "drop")
SUBSETS = [set(some) for count in range(4) for some in itertools.combinations(STATE, count)]


def load(monkeypatch: pytest.MonkeyPatch, methods: set[str]) -> Any:
    made = type("Made", (), {name: lambda self, *_: None for name in {"handle", *methods}})
    monkeypatch.setattr(HandlerRef, "_find", lambda self: made)
    return HandlerRef("app:Made").load()


@pytest.mark.parametrize("methods", [set(), {"drop"}, set(STATE)], ids=str)
def test_a_handler_keeps_no_state_or_has_all_that_state_needs(monkeypatch: pytest.MonkeyPatch, methods: set[str]) -> None:
    assert is_stateful(load(monkeypatch, methods)) == (methods == set(STATE))


@pytest.mark.parametrize("methods", [some for some in SUBSETS if some not in (set(), {"drop"}, set(STATE))], ids=str)
def test_a_handler_with_a_part_of_what_state_needs_is_refused_and_told_what_is_missing(monkeypatch: pytest.MonkeyPatch,
                                                                                      methods: set[str]) -> None:
    """It was taken for stateless, or its state was never forgotten and so counted events again."""
    with pytest.raises(HandlerError, match="app:Made") as found:
        load(monkeypatch, methods)
    has, _, lacks = str(found.value).partition(", but no ")
    assert all((name in has.partition(" has ")[2]) == (name in methods) for name in STATE)
    assert all((name in lacks.partition(":")[0]) == (name not in methods) for name in STATE)
