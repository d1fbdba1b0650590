"""How the events of one partition may come to those who handle them: what hypothesis draws from."""

from __future__ import annotations

from typing import NamedTuple

from hypothesis import strategies as st


class Deliveries(NamedTuple):
    """keys: of each event of the partition, by offset. batches: (who handles it, the offsets that are in it). All that
    holds is that the events of a key come in order for the first time, and all of them come at some time; whatever
    came comes again, to whomever, and keys that wait are passed by others."""

    keys: list[int]
    batches: list[tuple[int, list[int]]]


@st.composite
def deliveries(draw: st.DrawFn, handlers: int = 3) -> Deliveries:
    keys = draw(st.lists(st.integers(0, 4), min_size=1, max_size=30))
    of_key = {key: [offset for offset, each in enumerate(keys) if each == key] for key in set(keys)}
    came = dict.fromkeys(of_key, 0)
    batches = []
    for _ in range(draw(st.integers(0, 10))):
        offsets: list[int] = []
        for key in draw(st.sets(st.sampled_from(sorted(of_key)))):
            first = draw(st.integers(0, came[key]))
            last = draw(st.integers(first, len(of_key[key])))
            came[key] = max(came[key], last)
            offsets += of_key[key][first:last]
        batches.append((draw(st.integers(0, handlers - 1)), sorted(offsets)))
    rest = [offset for key, offsets in of_key.items() for offset in offsets[came[key] :]]
    return Deliveries(keys, [*batches, (draw(st.integers(0, handlers - 1)), sorted(rest))])
