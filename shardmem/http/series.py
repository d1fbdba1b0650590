"""What the page draws: figures of the last hour, kept by the supervisor, so that they survive the tab."""

from __future__ import annotations

from collections import deque
from typing import TypedDict

from shardmem.status.document import Status

EVERY_S = 5.0
KEPT_S = 3600.0


class ShardPoint(TypedDict):
    rate: float
    fill: float
    busy: float


class Point(TypedDict):
    """One moment. accepted, handled, refused: events a second since the one before; None: there was none, or the counts
    began again."""

    at: float  # seconds since 1970
    accepted: float | None
    handled: float | None
    refused: float | None
    in_flight: int
    p50: float | None
    p99: float | None
    fullest: float
    mean: float
    shards: dict[str, ShardPoint]


class Series:
    def __init__(self) -> None:
        self._points: deque[Point] = deque(maxlen=int(KEPT_S / EVERY_S))
        self._before: tuple[float, dict[str, int]] | None = None

    def is_due(self, at: float) -> bool:
        return not self._points or not 0 <= at - self._points[-1]["at"] < EVERY_S

    def note(self, document: Status, at: float) -> None:
        accounting = document["accounting"]
        counts = {
            "accepted": accounting["accepted"],
            "handled": accounting["handled"],
            "refused": sum(accounting["refused"].values()),
        }
        last, self._before = self._before, (at, counts)

        def rate(name: str) -> float | None:
            if last is None or at <= last[0] or counts[name] < last[1][name]:
                return None
            return (counts[name] - last[1][name]) / (at - last[0])

        fills = [shard["fill_ratio"] for shard in document["shards"]]
        self._points.append(
            {
                "at": round(at, 3),
                "accepted": rate("accepted"),
                "handled": rate("handled"),
                "refused": rate("refused"),
                "in_flight": accounting["in_flight"],
                "p50": document["latency"]["p50_us"],
                "p99": document["latency"]["p99_us"],
                "fullest": max(fills, default=0.0),
                "mean": sum(fills) / len(fills) if fills else 0.0,
                "shards": {
                    str(each["id"]): {"rate": each["rate"], "fill": each["fill_ratio"], "busy": each["busy"]}
                    for each in document["shards"]
                },
            }
        )

    def points(self) -> list[Point]:
        return list(self._points)
