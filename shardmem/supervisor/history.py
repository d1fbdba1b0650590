"""What happened to the engine: the last things, each a sentence for people, on a board in shared memory.

The board is written when something happens and at no other time, and it is whole whenever the supervisor is killed:
whoever asks reads it without one, and the next supervisor goes on with it. What is too much for the board goes, oldest
first.
"""

from __future__ import annotations

import json
import logging
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from shardmem.status.figures import HISTORY_KINDS

log = logging.getLogger("shardmem.events")

MOST = 64
LONGEST = 300  # characters of a sentence: an error's text may be a page
TOGETHER = 60.0  # seconds for which more of the same makes an entry larger, where each alone would drive out all others


@dataclass
class _Entry:
    what: Mapping[str, Any]
    began: float
    count: int  # 0: not of those that are counted
    text: bytes


class History:
    """post: writes the board. room: how many bytes that takes. clock: seconds since 1970."""

    def __init__(self, post: Callable[[bytes], None], room: int, clock: Callable[[], float] = time.time) -> None:
        self._post, self._room, self._clock = post, room, clock
        self._entries: deque[_Entry] = deque(maxlen=MOST)
        self._quarantined = 0  # events of the engine that entries tell of
        self._quarantined_of: dict[int, int] = {}
        self._broken: dict[int, frozenset[int]] = {}

    def note(self, kind: str, text: str, shard: int | None = None, logged: bool = False) -> None:
        """kind: one of HISTORY_KINDS. The very same as the last entry replaces it. It is written to the log too, unless
        somebody else has done or does that (logged)."""
        now = self._clock()
        sentence = text if shard is None or f"shard {shard}" in text else f"shard {shard}: {text}"
        # A text of its own and no format with arguments: what happens twice in ten seconds is two things, unless it is
        # the same.
        if not logged:
            level = getattr(logging, HISTORY_KINDS[kind].upper())
            log.log(level, sentence.encode(errors="backslashreplace").decode(), extra={"shard": shard})
        last = self._entries[-1].what if self._entries else {}
        if [last.get(key) for key in ("kind", "shard", "text")] == [kind, shard, _cut(text)]:
            self._entries.pop()
        self._append(kind, text, shard, now, now, 0)

    def count(self, kind: str, number: int, text: Callable[[int], str], shard: int | None = None) -> None:
        """number more of what comes in numbers. text: the sentence for so many."""
        now = self._clock()
        for entry in self._entries:
            if (
                entry.count
                and (entry.what["kind"], entry.what["shard"]) == (kind, shard)
                and 0 <= now - entry.began < TOGETHER
            ):
                self._entries.remove(entry)
                self._append(kind, text(number + entry.count), shard, now, entry.began, number + entry.count)
                return
        self._append(kind, text(number), shard, now, now, number)

    # ---- what workers count, and nobody reports ----------------------------------------------------------------------

    def take_up(self, events: Iterable[Mapping[str, Any]], counted: int, status: Mapping[str, Any]) -> None:
        """What an earlier supervisor had written down, and what came to pass without one. counted: events quarantined
        by then."""
        for each in events:
            self._entries.append(_Entry(each, 0.0, 0, _encoded(each)))
        self._quarantined = status["accounting"]["quarantined"]
        self._quarantined_of = {shard["id"]: shard["quarantined"] for shard in status["shards"]}
        self._broken = {shard["id"]: frozenset(shard["broken_lanes"]) for shard in status["shards"]}
        if (more := self._quarantined - counted) > 0:
            self.note("quarantined", f"{_events(more)} quarantined while there was no supervisor")

    def look(self, shard: int, quarantined: int, broken: Iterable[int] = ()) -> None:
        """The counts of a shard as they are now; that they are the same is found at once."""
        if (more := quarantined - self._quarantined_of.get(shard, 0)) > 0:
            self._quarantined += more
            self.count(
                "quarantined",
                more,
                lambda count: f"{_events(count)} quarantined: 'shardmem quarantine list' shows them",
                shard,
            )
        self._quarantined_of[shard] = quarantined
        if (broken := frozenset(broken)) != (before := self._broken.get(shard, frozenset())):
            self._broken[shard] = broken
            for seat in sorted(broken - before):
                self.note(
                    "lane_broken", f"the lane of producer {seat} is corrupt and read no more; other lanes go on", shard
                )

    def forget(self, shard: int) -> None:
        """Its lanes are gone; the next shard of this number counts from nothing."""
        self._quarantined_of.pop(shard, None)
        self._broken.pop(shard, None)

    # ---- the board ---------------------------------------------------------------------------------------------------

    def _append(self, kind: str, text: str, shard: int | None, now: float, began: float, count: int) -> None:
        what = {"at": round(now, 3), "kind": kind, "shard": shard, "text": _cut(text), "level": HISTORY_KINDS[kind]}
        self._entries.append(_Entry(what, began, count, _encoded(what)))
        head = b'{"quarantined":%d,"events":[' % self._quarantined
        size = len(head) + 1 + sum(len(entry.text) + 1 for entry in self._entries)
        while size > self._room:
            size -= len(self._entries.popleft().text) + 1
        self._post(head + b",".join(entry.text for entry in self._entries) + b"]}")


def _encoded(what: Mapping[str, Any]) -> bytes:
    return json.dumps(what, separators=(",", ":")).encode()


def _cut(text: str) -> str:
    """One line; paths in errors need not be valid text, and what is escaped six-fold in JSON is still one that fits."""
    line = " ".join(text.split())
    return line if len(line) <= LONGEST else line[: LONGEST - 3] + "..."


def _events(count: int) -> str:
    return "1 event was" if count == 1 else f"{count:,} events were"
