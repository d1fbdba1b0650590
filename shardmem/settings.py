"""How a setting is declared: once, as a field of a dataclass. Flags, `shardmem config` and docs/settings.md come from
that.

lane_bytes: int = setting(1 << 20, "ring of each producer to each shard", "bytes", least=4096, power_of_two=True)
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import MISSING, dataclass, field, fields
from typing import Any

from shardmem.text import plural

REQUIRED: Any = MISSING
DIGITS = 60  # characters in which there is a number
LONGEST_S = 1e12  # seconds, which is 30,000 years; clocks count in nanoseconds, and have room for that
UNITS = {
    "text": "text",
    "choice": "one of some names",
    "object": "what the help says",
    "number": "whole number",
    "bytes": "whole number of bytes, or text with a unit: 64KiB, 1MiB, 2GiB, 64kB",
    "microseconds": "whole number of microseconds",
    "seconds": "seconds, or text with a unit: 250ms, 2s, 5m, 1h",
    "share": "number from 0 to 1",
    "names": "list of names, or text with commas between them",
    "switch": "true or false",
}
_BYTES = {
    "": 1,
    "B": 1,
    "K": 1000,
    "KB": 1000,
    "KIB": 1 << 10,
    "M": 10**6,
    "MB": 10**6,
    "MIB": 1 << 20,
    "G": 10**9,
    "GB": 10**9,
    "GIB": 1 << 30,
}
_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}
_SWITCH = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}


def setting(
    default: Any,
    help: str,
    unit: str = "text",
    *,
    least: int | None = None,
    most: int | None = None,
    power_of_two: bool = False,
    choices: tuple[str, ...] = (),
    unset: str = "not set",
    secret: bool = False,
) -> Any:
    """A field. help: one line, no full stop. least, most: of a whole number. unset: what None stands for, in words.
    secret: its value is never shown."""
    if unit not in UNITS:
        raise ValueError(f"unit={unit!r} is not one of {', '.join(UNITS)}")
    return field(
        default=default,
        metadata={
            "help": help,
            "unit": unit,
            "least": least,
            "most": most,
            "power_of_two": power_of_two,
            "choices": choices,
            "unset": unset,
            "secret": secret,
        },
    )


@dataclass(frozen=True)
class Setting:
    """One declared setting."""

    name: str
    default: Any
    help: str
    unit: str
    least: int | None
    most: int | None
    power_of_two: bool
    choices: tuple[str, ...]
    unset: str
    secret: bool

    @property
    def required(self) -> bool:
        return self.default is REQUIRED

    @property
    def flag(self) -> str:
        return "--" + self.name.replace("_", "-")

    @property
    def variable(self) -> str:
        return "SHARDMEM_" + self.name.upper()

    @property
    def limits(self) -> str:
        """For people, after the help; may be empty."""
        parts = ["a power of two"] if self.power_of_two else []
        if self.least is not None and self.most is not None:
            parts.append(f"{self.least:,} to {self.most:,}")
        return ", ".join(parts + ([" | ".join(self.choices)] if self.choices else []))

    def text(self, value: Any) -> str:
        """A value for people, with its unit."""
        if value is REQUIRED:
            return "required"
        if value is None:
            return self.unset
        if self.secret:
            return "set, and not shown"
        if self.unit == "switch":
            return "true" if value else "false"
        if self.unit in ("number", "bytes", "microseconds") and isinstance(value, int):
            return f"{value:,}" + {"bytes": " bytes", "microseconds": " us"}.get(self.unit, "")
        if self.unit == "names":
            return ", ".join(value) or "none"
        return f"{value:g} s" if self.unit == "seconds" and isinstance(value, (int, float)) else str(value)

    def read(self, value: Any, fault: Callable[[str], None]) -> Any:
        """A value from a file, a variable or a flag. What cannot be read is a fault, and the default takes its place,
        so that one mistake is not reported twice. Faults begin with the name of their setting: see
        settings_sources.py."""
        key = self.name
        if self.unit in ("number", "bytes", "microseconds"):
            if isinstance(value, bool) or not isinstance(value, (int, str)):
                fault(f"{key}={value!r} is not a whole number")
                return self.default
            if isinstance(value, str):
                match = re.fullmatch(r"\s*([0-9]+(?:_[0-9]+)*)\s*([A-Za-z]*)\s*", value[:DIGITS])
                if not match or match[2].upper() not in _BYTES:
                    units = " (units: KiB, MiB, GiB, kB, MB, GB)" if self.unit == "bytes" else ""
                    fault(f"{key}={value!r} is not a number{units}")
                    return self.default
                value = int(match[1].replace("_", "")) * _BYTES[match[2].upper()]
        elif self.unit == "seconds":
            match = (
                re.fullmatch(r"\s*([0-9]+(?:\.[0-9]*)?)\s*(ms|s|m|h)?\s*", value) if isinstance(value, str) else None
            )
            if match:
                value = float(match[1]) * _SECONDS[match[2] or "s"]
            if not isinstance(value, (int, float)) or isinstance(value, bool) or not 0 <= value < LONGEST_S:
                fault(f"{key}={value!r} is not a duration (seconds, or a number with ms, s, m, h)")
                return self.default
            return float(value)
        elif self.unit == "switch":
            value = _SWITCH.get(value.lower(), value) if isinstance(value, str) else value
            if not isinstance(value, bool):
                fault(f"{key}={value!r} is neither true nor false")
                return self.default
        elif self.unit == "names":
            members = [value] if isinstance(value, type) else value.split(",") if isinstance(value, str) else value
            if not isinstance(members, (list, tuple)) or not all(isinstance(each, (str, type)) for each in members):
                fault(f"{key}={value!r} is not a list of names")
                return self.default
            value = tuple(name for each in members if (name := _name_of(each)))
        elif self.unit == "text" and not isinstance(value, str):
            fault(f"{key}={'...' if self.secret else repr(value)} is not text")
            return None if self.required else self.default
        if isinstance(value, str) and not self.secret and any(each < " " or each == "\x7f" for each in value):
            fault(f"{key}={value!r} has control characters in it")
            return None if self.required else self.default
        return value

    def faults(self, value: Any) -> Iterator[str]:
        """What is wrong with a value that could be read."""
        if isinstance(value, int) and not isinstance(value, bool):
            if self.least is not None and self.most is not None and not self.least <= value <= self.most:
                yield f"{self.name}={value:,} is outside {self.least:,} to {self.most:,}"
            if self.power_of_two and value > 0 and value & (value - 1):
                yield f"{self.name}={value:,} is not a power of two; the next is {1 << value.bit_length():,}"
        if self.choices and value is not None and value not in self.choices:
            yield f"{self.name}={value!r} is not one of {', '.join(self.choices)}"


def _name_of(member: str | type) -> str:
    """A class, by the name that others find it by."""
    if isinstance(member, str):
        return member.strip()
    return member.__qualname__ if member.__module__ == "builtins" else f"{member.__module__}.{member.__qualname__}"


def declared(cls: Any) -> dict[str, Setting]:
    """The settings of a dataclass, by name. A field without a declaration is an error of the program: it has no
    help."""
    found = {}
    for each in fields(cls):
        if "help" not in each.metadata:
            raise TypeError(
                f"{cls.__name__}.{each.name} is not a setting: declare it as  {each.name} = setting(default, help, "
                "unit)"
            )
        found[each.name] = Setting(each.name, each.default, **each.metadata)
    return found


some = plural  # the name that other rooms still use
