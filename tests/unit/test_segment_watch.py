"""The supervisor's look at segments that somebody else may have removed or cut short."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from shardmem.supervisor.segments import SegmentWatch


class Inbox:
    """Its words are those of `words`; cut: it is cut short while they are read."""

    cut = False

    def __init__(self, words: list[str]) -> None:
        self.words, self.segment = words, SimpleNamespace(trouble=lambda: "it was cut short" if self.cut else "")

    def lanes(self) -> list[str]:
        return self.words

    def repair(self) -> bool:
        return False


def test_what_is_read_of_an_inbox_that_is_cut_short_meanwhile_is_not_what_it_held(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Five events were lost with it, and the history said that it had held none."""
    inbox = Inbox(["five events"])
    fleet: Any = SimpleNamespace(inboxes={0: inbox})
    nobody: Any = None
    watch = SegmentWatch(fleet, nobody, nobody, nobody)
    monkeypatch.setattr(watch, "_control_is_there", lambda: True)
    monkeypatch.setattr(watch, "_mend_words", lambda: None)
    watch.look()

    def cut_short() -> bool:
        inbox.cut, inbox.words = True, ["nothing"]
        return True

    monkeypatch.setattr(inbox, "repair", cut_short)
    watch.look()
    assert not watch._mended, "nobody has damaged the header of a file that is cut short"
    assert watch._last[0] == (inbox, ["five events"])
