"""What a worker accepts as a handler, without a worker."""

from __future__ import annotations

import functools
import itertools
from typing import Any

import pytest

from shardmem.errors import HandlerError
from shardmem.runtime.handler import Handler, HandlerRef, is_stateful

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
def test_a_handler_keeps_no_state_or_has_what_state_needs_and_is_told_what_is_missing(
    monkeypatch: pytest.MonkeyPatch, methods: set[str], shared: bool
) -> None:
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


async def awaits(batch: Any) -> None: ...


async def awaits_and_yields(batch: Any) -> Any:
    yield batch


def yields(batch: Any) -> Any:
    yield batch


class Called:
    async def __call__(self, batch: Any) -> None: ...


class Awaits:
    async def handle(self, batch: Any) -> None: ...


class Plain:
    def handle(self, batch: Any, more: int = 0) -> None: ...

    def __call__(self, *batches: Any) -> None: ...


def found(monkeypatch: pytest.MonkeyPatch, what: Any) -> Any:
    monkeypatch.setattr(HandlerRef, "_find", lambda self: what)
    return HandlerRef("app:made").load()


@pytest.mark.parametrize(
    "what, kind",
    [
        (awaits, "an async"),
        (awaits_and_yields, "an async"),
        (yields, "a generator"),
        (Called(), "an async"),
        (Awaits, "an async"),
        (functools.partial(awaits), "an async"),
        (functools.partial(yields), "a generator"),
    ],
)
def test_a_handler_whose_call_does_nothing_is_refused(monkeypatch: pytest.MonkeyPatch, what: Any, kind: str) -> None:
    """Every event was counted as handled."""
    with pytest.raises(HandlerError, match=f"'app:made' is {kind} function"):
        found(monkeypatch, what)


@pytest.mark.parametrize("what", [lambda: None, lambda key, payload: None, lambda *, batch: None])
def test_a_handler_that_does_not_take_one_batch_is_refused(monkeypatch: pytest.MonkeyPatch, what: Any) -> None:
    with pytest.raises(HandlerError, match="'app:made' takes .*is called with one batch"):
        found(monkeypatch, what)


def test_a_handler_class_without_handle_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    class Forgetful(Handler):
        def process(self, batch: Any) -> None: ...

    with pytest.raises(HandlerError, match=r"'app:made' has no handle\(batch\): write it in Forgetful"):
        found(monkeypatch, Forgetful)


@pytest.mark.parametrize(
    "what",
    [
        lambda batch: None,
        lambda *all: None,
        lambda batch, more=1: None,
        Plain,
        Plain(),
        Plain().handle,
        len,
        print,
        functools.partial(lambda more, batch: None, 1),
    ],
)
def test_whatever_takes_one_batch_is_a_handler(monkeypatch: pytest.MonkeyPatch, what: Any) -> None:
    assert callable(found(monkeypatch, what).handle)
