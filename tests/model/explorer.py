"""Breadth-first exploration of every state that a small model can reach.

Breadth first, so the first violation found is one of the shortest there is: a trace that a person can
read. Four things are looked for:

* a state in which the invariant does not hold;
* a stuck state: no step leads out of it and it is not a final one;
* a trap: a state from which no run, however lucky, gets to a final state or to a step that counts as
  progress. A livelock is such a trap: steps are always enabled, none of them ever helps;
* more states than the limit, because a model that outgrew its test proves nothing by stopping early.

States must be hashable and carry everything that the future depends on.
"""

from __future__ import annotations

import gc
from array import array
from collections.abc import Callable, Hashable, Iterable
from typing import NamedTuple

State = Hashable


class Explored(NamedTuple):
    states: int
    transitions: int
    depth: int

    def __str__(self) -> str:
        return f"{self.states:,} states, {self.transitions:,} transitions, depth {self.depth}"


class Violation(AssertionError):
    """What went wrong, and the shortest way there: `trace` is a list of (label, state after it)."""

    def __init__(self, kind: str, what: str, initial: State, trace: list[tuple[str, State]], states: int):
        self.kind, self.what, self.initial, self.trace, self.states = kind, what, initial, trace, states
        super().__init__(str(self))

    def __str__(self) -> str:
        lines = [f"{self.kind}: {self.what} (step {len(self.trace)}, after {self.states:,} states)"]
        before = self.initial
        for number, (label, state) in enumerate(self.trace, 1):
            lines.append(f"{number:4}. {label}{_changes(before, state)}")
            before = state
        return "\n".join(lines)


def _changes(before: State, after: State) -> str:
    """Only what a step changed: whole states are too wide to follow."""
    changed = list(_differences("", before, after))
    return "    [" + ", ".join(changed) + "]" if changed else ""


def _differences(path: str, before: State, after: State) -> Iterable[str]:
    fields = getattr(after, "_fields", None)
    nested = isinstance(before, tuple) and isinstance(after, tuple) and len(before) == len(after)
    if before == after:
        return
    if fields is not None and getattr(before, "_fields", None) == fields:
        for field, a, b in zip(fields, before, after, strict=True):
            yield from _differences(f"{path}.{field}" if path else field, a, b)
    elif nested and any(isinstance(item, tuple) for item in after):
        for number, (a, b) in enumerate(zip(before, after, strict=True)):
            yield from _differences(f"{path}[{number}]", a, b)
    else:
        yield f"{path}={after!r}" if path else repr(after)


def explore(
    initial: State,
    steps: Callable[[State], Iterable[tuple[str, State]]],
    *,
    invariant: Callable[[State], str | None] = lambda state: None,
    final: Callable[[State], bool] = lambda state: False,
    progress: Callable[[str], bool] | None = None,
    unhelpful: Callable[[str], bool] = lambda label: False,
    traps: bool = True,
    limit: int = 1_000_000,
) -> Explored:
    """Explore everything or raise the `Violation` found first.

    `progress(label)` names the steps that an endless model must always be able to get to; a model that
    ends needs none. `unhelpful(label)` names steps that must not be counted on to get anywhere: a crash
    may happen at any moment, but a protocol that needs one to go on is wedged.
    """
    collecting = gc.isenabled()
    gc.disable()  # states form no cycles, and the collector would walk through all of them again and again
    try:
        return _explore(initial, steps, invariant, final, progress, unhelpful, traps, limit)
    finally:
        if collecting:
            gc.enable()


def _explore(initial, steps, invariant, final, progress, unhelpful, traps, limit) -> Explored:
    index: dict[State, int] = {initial: 0}
    order: list[State] = [initial]
    parent, via = array("l", [-1]), [""]
    sources, targets = array("l"), array("l")
    good: list[int] = []
    transitions = 0

    def violation(kind: str, what: str, at: int) -> Violation:
        trace = []
        while at:
            trace.append((via[at], order[at]))
            at = parent[at]
        return Violation(kind, what, initial, trace[::-1], len(order))

    if (what := invariant(initial)) is not None:
        raise violation("invariant", what, 0)
    here = 0
    while here < len(order):
        state = order[here]
        leaves, helps = False, final(state)
        for label, after in steps(state):
            leaves = True
            transitions += 1
            there = index.get(after)
            if there is None:
                there = index[after] = len(order)
                order.append(after)
                parent.append(here)
                via.append(label)
                if (what := invariant(after)) is not None:
                    raise violation("invariant", what, there)
                if there >= limit:
                    raise RuntimeError(f"more than {limit:,} states: the model is too big for its test")
            if progress is not None and progress(label):
                helps = True
            elif traps and not unhelpful(label):
                sources.append(here)
                targets.append(there)
        if not leaves and not helps:
            raise violation("stuck", "no step is enabled and the state is not final", here)
        if helps:
            good.append(here)
        here += 1
    if traps:
        trapped = _first_trapped(len(order), sources, targets, good)
        if trapped is not None:
            raise violation("trap", "from here nothing that happens ever helps", trapped)
    depth, at = 0, len(order) - 1
    while at:
        depth, at = depth + 1, parent[at]
    return Explored(len(order), transitions, depth)


def _first_trapped(count: int, sources: array, targets: array, good: list[int]) -> int | None:
    into: list[list[int] | None] = [None] * count
    for source, target in zip(sources, targets, strict=True):
        if (known := into[target]) is None:
            into[target] = [source]
        else:
            known.append(source)
    seen = bytearray(count)
    for state in good:
        seen[state] = 1
    queue = list(good)
    while queue:
        for source in into[queue.pop()] or ():
            if not seen[source]:
                seen[source] = 1
                queue.append(source)
    first = seen.find(0)
    return None if first < 0 else first


def find_violation(*args, **kwargs) -> Violation | None:
    """For planted faults: the violation is what is hoped for."""
    try:
        explore(*args, **kwargs)
    except Violation as found:
        return found
    return None
