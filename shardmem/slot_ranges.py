"""Slots as text: "17,40-60". One way to read it, and one to write it."""

from __future__ import annotations

from collections.abc import Iterable

from shardmem.errors import ConfigError


def parse_slots(wanted: str | int | list[int], count: int) -> list[int]:
    """[17, 40, 41, ...] from "17,40-60", a number or a list of numbers. Raises ConfigError."""
    if isinstance(wanted, str):
        ends = [
            (_number(low), _number(high or low)) for part in wanted.split(",") for low, _, high in [part.partition("-")]
        ]
    else:
        ends = [(slot, slot) for slot in ([wanted] if isinstance(wanted, int) else wanted)]
    # Limits first: all numbers of "0-99999999999" would fill the memory of the supervisor.
    inside = all(0 <= low and high < count for low, high in ends)
    slots = sorted({slot for low, high in ends for slot in range(low, high + 1)}) if inside else []
    if not slots:
        raise ConfigError(f"slots={wanted!r} must name at least one of the slots 0 to {count - 1}, and no other")
    return slots


def slot_ranges(slots: Iterable[int]) -> str:
    """The shortest text of these."""
    runs: list[list[int]] = []
    for slot in sorted(set(slots)):
        if runs and runs[-1][1] == slot - 1:
            runs[-1][1] = slot
        else:
            runs.append([slot, slot])
    return ",".join(str(low) if low == high else f"{low}-{high}" for low, high in runs)


def _number(digits: str) -> int:
    """int() does not read thousands of them; any number of more than twenty is beyond the last slot."""
    return int(digits.lstrip("0")[:20] or "0")
