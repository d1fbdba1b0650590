"""The checker: what producers and handlers wrote down, held against what shardmem promises.

Producers log rows of EVENT: `offered` before a call, `accepted` after it returned, `refused` when it said so. A call
cut short by SIGKILL leaves its events in `offered` alone: maybe. Handlers log rows of HANDLED before they return. Every
function returns its violations as sentences; an empty list is a pass.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

# number: rises by one for each event that this producer pushes under this key
EVENT = np.dtype([("producer", "u4"), ("key", "u8"), ("number", "u8")])
# written by one life of one shard; start and end: of the batch, CLOCK_MONOTONIC; good: the payload is what was pushed
HANDLED = np.dtype(
    [
        ("producer", "u4"),
        ("key", "u8"),
        ("number", "u8"),
        ("shard", "u4"),
        ("incarnation", "u4"),
        ("slot", "u4"),
        ("good", "u4"),
        ("start", "i8"),
        ("end", "i8"),
    ]
)
SHOWN = 5


def _none(dtype: np.dtype) -> Any:
    return field(default_factory=lambda: np.empty(0, dtype))


@dataclass
class Logs:
    """One run. `handled` keeps the order in which each life of a shard wrote its rows."""

    offered: np.ndarray = _none(EVENT)
    accepted: np.ndarray = _none(EVENT)
    refused: np.ndarray = _none(EVENT)
    handled: np.ndarray = _none(HANDLED)

    @classmethod
    def read(cls, directory: Path) -> Logs:
        """From the files `offered-*`, `accepted-*`, `refused-*` and `handled-*`."""
        return cls(
            *(
                read_rows(sorted(directory.glob(f"{name}-*")), dtype)
                for name, dtype in (("offered", EVENT), ("accepted", EVENT), ("refused", EVENT), ("handled", HANDLED))
            )
        )

    def of(self, producers: Iterable[int]) -> Logs:
        """Only these producers."""
        wanted = list(producers)
        return Logs(
            *(
                rows[np.isin(rows["producer"], wanted)]
                for rows in (self.offered, self.accepted, self.refused, self.handled)
            )
        )


def read_rows(paths: Sequence[Path], dtype: np.dtype) -> np.ndarray:
    """All rows; a row that its writer's death cut short does not count."""
    parts = [np.empty(0, dtype)]
    for path in paths:
        data = path.read_bytes()
        parts.append(np.frombuffer(data, dtype, len(data) // dtype.itemsize))
    return np.concatenate(parts)


def check(logs: Logs, duplicates: int = 0) -> list[str]:
    """Everything about events. duplicates: how many handlings beyond the first are allowed, in all."""
    return [*check_apart(logs, duplicates), *one_owner(logs)]


def check_apart(logs: Logs, duplicates: int = 0) -> list[str]:
    """Without the owners of slots, who are judged apart where a host that was frozen ends late what it had in hand."""
    return [*no_loss(logs), *no_invention(logs), *order(logs), *few_duplicates(logs, duplicates)]


def no_loss(logs: Logs) -> list[str]:
    lost = logs.accepted[~_among(logs.accepted, logs.handled)]
    return _say(lost, "was accepted but never handled")


def no_invention(logs: Logs) -> list[str]:
    invented = logs.handled[~_among(logs.handled, logs.offered, logs.accepted, logs.refused)]
    refused = logs.handled[_among(logs.handled, logs.refused) & ~_among(logs.handled, logs.accepted)]
    torn = logs.handled[logs.handled["good"] == 0]
    return [
        *_say(invented, "was handled but never offered"),
        *_say(refused, "was handled although it was refused"),
        *_say(torn, "was handled with a payload that was not pushed so: torn"),
    ]


def order(logs: Logs) -> list[str]:
    """Per producer and key, first handling follows push order."""
    rows = logs.handled[np.argsort(logs.handled["start"], kind="stable")]
    _, first = np.unique(_codes(rows)[0], return_index=True)
    rows = rows[np.sort(first)]
    rows = rows[np.lexsort((np.arange(len(rows)), rows["key"], rows["producer"]))]
    same = (rows["producer"][1:] == rows["producer"][:-1]) & (rows["key"][1:] == rows["key"][:-1])
    wrong = np.flatnonzero(same & (rows["number"][1:] < rows["number"][:-1]))
    return _limited(
        [
            f"order: producer {rows['producer'][i]}, key {rows['key'][i]}: number {rows['number'][i + 1]} was first "
            f"handled (shard {rows['shard'][i + 1]}) after number {rows['number'][i]} (shard {rows['shard'][i]})"
            for i in wrong[:SHOWN]
        ],
        len(wrong),
    )


def one_owner(logs: Logs) -> list[str]:
    """No two workers are inside a batch with rows of the same slot at the same time."""
    rows = logs.handled[np.lexsort((logs.handled["start"], logs.handled["slot"]))]
    columns = [rows[name].astype("i8") for name in ("slot", "start", "end", "shard", "incarnation")]
    new = np.ones(len(rows), bool)
    new[1:] = np.any([column[1:] != column[:-1] for column in columns], axis=0)
    batches = zip(*(column[new].tolist() for column in columns))
    found, count = [], 0
    slot, latest = -1, (0,) * 5
    for batch in batches:
        if batch[0] != slot:
            slot, latest = batch[0], batch
            continue
        if batch[1] < latest[2] and batch[3:] != latest[3:]:
            count += 1
            found.append(
                f"owners: slot {slot} was handled by shard {latest[3]} (incarnation {latest[4]}) until {latest[2]} "
                f"and by shard {batch[3]} (incarnation {batch[4]}) from {batch[1]}"
            )
        if batch[2] > latest[2]:
            latest = batch
    return _limited(found[:SHOWN], count)


def few_duplicates(logs: Logs, bound: int) -> list[str]:
    _, first, counts = np.unique(_codes(logs.handled)[0], return_index=True, return_counts=True)
    extra = int(counts.sum()) - len(counts)
    if extra <= bound:
        return []
    worst = int(counts.argmax())
    return [
        f"duplicates: {extra} handlings beyond the first, {bound} are allowed; {_name(logs.handled[first[worst]])} was "
        f"handled {counts[worst]} times"
    ]


def accounting(document: dict[str, Any], *, drained: bool = False, removed: bool = False) -> list[str]:
    """The identities of a status document, in total and per shard. drained: and nothing is in flight. removed: shards
    may be gone, of which the total knows and the lists of shards and producers do not."""
    total, found = document["accounting"], []

    def equal(what: str, left: int, right: int) -> None:
        if left != right:
            found.append(f"accounting: {what}: {left} is not {right}")

    equal("offered = accepted + refused", total["offered"], total["accepted"] + _sum(total["refused"]))
    for name, part in [("in total", total), *((f"shard {shard['id']}", shard) for shard in document["shards"])]:
        equal(
            f"accepted = handled + quarantined + skipped + shed + in flight, {name}",
            part["accepted"],
            part["handled"] + part["quarantined"] + part["skipped"] + _sum(part["shed"]) + part["in_flight"],
        )
        for key in ("accepted", "handled", "quarantined", "skipped", "shed", "in_flight"):
            if _sum(part[key]) < 0:
                found.append(f"accounting: {key}, {name}: {part[key]} is negative")
        if drained:
            equal(f"in flight after the drain, {name}", part["in_flight"], 0)
    for key, part in [
        *((key, "shards") for key in ("accepted", "handled", "quarantined", "skipped", "shed", "in_flight")),
        ("accepted", "producers"),
        ("refused", "producers"),
    ]:
        of_all, of_these = _sum(total[key]), sum(_sum(each[key]) for each in document[part])
        if not removed or of_these > of_all or key in ("in_flight", "refused"):
            equal(f"{key} = sum over {part}", of_all, of_these)
    return found


def _sum(count: int | dict[str, int]) -> int:
    return sum(count.values()) if isinstance(count, dict) else count


def _codes(*logs: np.ndarray) -> list[np.ndarray]:
    """One number for each row of each log, equal where the events are. (numpy sorts structured rows very slowly.)"""
    ends = np.cumsum([len(rows) for rows in logs])
    codes = np.zeros(ends[-1], "u8")
    for name in EVENT.names or ():
        values, numbers = np.unique(np.concatenate([rows[name] for rows in logs]), return_inverse=True)
        codes = codes * np.uint64(len(values)) + numbers.astype("u8")
    return np.split(codes, ends[:-1])


def _among(rows: np.ndarray, *others: np.ndarray) -> np.ndarray:
    """Which rows are in one of the others."""
    codes, *rest = _codes(rows, *others)
    return np.isin(codes, np.concatenate(rest))


def _name(event: Any) -> str:
    return f"event {event['number']} of producer {event['producer']}, key {event['key']},"


def _say(rows: np.ndarray, what: str) -> list[str]:
    return _limited([f"{_name(row)} {what}" for row in rows[:SHOWN]], len(rows))


def _limited(sentences: list[str], count: int) -> list[str]:
    return sentences + ([f"... and {count - len(sentences)} more of these"] if count > len(sentences) else [])
