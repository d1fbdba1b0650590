"""What a worker accepts as a handler, without a worker."""
from __future__ import annotations

import itertools
from typing import Any

import pytest

from shardmem.errors import HandlerError
from shardmem.runtime.handler import HandlerRef, is_stateful

STATE = ("snapshot", "restore", "drop")
SUBSETS = [set(some) for count in range(4) for some in itertools.combinations(STATE, count)]
ENOUGH = {True: [set(STATE)], False: [set(STATE), {"snapshot", "restore"}]}  # by whether all lives share one object
NONE = [set(), {"drop"}]


def load(monkeypatch: pytest.MonkeyPatch, methods: set[str], shared: bool) -> Any:
    made = type("Made", (), {name: lambda self, *_: None for name in {"handle", *methods}})
    monkeypatch.setattr(HandlerRef, "_find", lambda self: made() if shared else made)
    return HandlerRef("app:Made").load()


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("methods", SUBSETS, ids=lambda methods: "+".join(sorted(methods)))
def test_a_handler_keeps_no_state_or_has_what_state_needs_and_is_told_what_is_missing(monkeypatch: pytest.MonkeyPatch,
                                                                                     methods: set[str], shared: bool) -> None:
    """One with a part of it was taken for stateless, or its state was never forgotten and so counted events again."""
    if methods in ENOUGH[shared] + NONE:
        assert is_stateful(load(monkeypatch, methods, shared)) == (methods not in NONE)
        return
    with pytest.raises(HandlerError, match="app:Made") as found:
        load(monkeypatch, methods, shared)
    has, _, lacks = str(found.value).partition(", but no ")
    needed = STATE if shared else STATE[:2]
    assert all((name in has.partition(" has ")[2]) == (name in methods) for name in STATE)
    assert all((name in lacks.partition(":")[0]) == (name not in methods) for name in needed)
