"""Where the values of settings come from: a TOML file, SHARDMEM_* variables, flags; each value remembers which."""

from __future__ import annotations

import difflib
import importlib
import os
import re
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from shardmem.errors import ConfigError

PREFIX = "SHARDMEM_"
NEAR = 0.9  # of 1, as difflib counts: a letter wrong, missing or too many in an ordinary name


@dataclass(frozen=True)
class Origin:
    """kind: file, variable or flag; a default has no origin. text: for people, with the line."""

    kind: str
    text: str
    line: int | None = None


class Sources:
    """`values` by name of the setting, the later source winning, and the `origins` of them; of the members of a table
    too, as "policy.cooldown". `faults`: what cannot be had at all."""

    def __init__(
        self, path: str | None, flags: Mapping[str, Any], environ: Mapping[str, str], known: Iterable[str]
    ) -> None:
        """Raises ConfigError when there is no such file, or it is not TOML: then none of its settings can be
        checked."""
        self.values: dict[str, Any] = {}
        self.origins: dict[str, Origin] = {}
        self.faults: list[str] = []
        if path is not None:
            self._file(path)
        variables = {PREFIX + key.upper(): key for key in known}
        for name, key in variables.items():
            if name in environ:
                self._put(key, environ[name], Origin("variable", name))
        for name in sorted(environ):
            # Only what nearly matches a setting: others use the prefix too (Kubernetes gives each pod SHARDMEM_PORT and
            # the like when a service is called shardmem).
            if (
                name.startswith(PREFIX)
                and name not in variables
                and (near := difflib.get_close_matches(name, variables, 1, NEAR))
            ):
                self.faults.append(f"{name} is not a setting; did you mean {near[0]}?")
        for key, value in flags.items():
            if value is not None:
                self._put(key, value, Origin("flag", "--" + key.replace("_", "-")))
        if not isinstance(self.values.get("strategy", ""), str):  # an object is for Engine(...)
            self.faults.append(f"strategy={self.values.pop('strategy')!r} is not text")
        dtype = self.values.get("dtype")
        if isinstance(dtype, str) and ":" in dtype:
            try:
                self.values["dtype"] = imported(dtype)
            except (ImportError, AttributeError) as error:
                self.faults.append(f"dtype={dtype!r} cannot be imported: {error}")
                del self.values["dtype"]
                self.values.pop("key", None)  # whether it fits cannot be told
        elif isinstance(dtype, list):
            self.values["dtype"] = [tuple(entry) if isinstance(entry, list) else entry for entry in dtype]

    def located(self, faults: Iterable[str]) -> list[str]:
        """The faults with where their settings were given, those of the file in its order.

        A fault begins with the name of its setting; all of shardmem keeps to that.
        """
        found = []
        for fault in faults:
            match = re.match(r"(\w+)(\.\w+)?", fault)
            origin = match and (self.origins.get(match[0]) or self.origins.get(match[1]))
            found.append((origin.line or 0 if origin else 0, f"{origin.text}: {fault}" if origin else fault))
        return [text for _, text in sorted(found, key=lambda entry: entry[0])]

    def _put(self, key: str, value: Any, origin: Origin) -> None:
        for member in [each for each in self.origins if each.startswith(f"{key}.")]:
            del self.origins[member]  # the whole table is replaced
        self.values[key], self.origins[key] = value, origin

    def _file(self, path: str) -> None:
        self.values, lines = read_toml(path)
        for key, value in self.values.items():
            for name in (key, *(f"{key}.{member}" for member in value)) if isinstance(value, dict) else (key,):
                line = lines.get(name)
                self.origins[name] = Origin("file", f"{path} line {line}" if line else path, line)
        self.values.setdefault("name", re.sub(r"[^A-Za-z0-9_-]", "-", os.path.splitext(os.path.basename(path))[0]))
        self.origins.setdefault("name", Origin("file", f"{path} (its name)"))


def read_toml(path: str) -> tuple[dict[str, Any], dict[str, int]]:
    """What a file says, and the line of each "key" and "table.key". Raises ConfigError."""
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
    try:
        with open(path, "rb") as file:
            text = file.read().decode()
        return tomllib.loads(text), lines_of(text)
    except FileNotFoundError:
        raise ConfigError(f"file {path} does not exist") from None
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from None
    except RecursionError:
        raise ConfigError(f"{path} is nested too deeply") from None
    except ValueError as error:  # TOML's own errors are, and so are numbers of more digits than Python reads
        raise ConfigError(f"{path} is not valid TOML: {error}") from None


_TABLE = re.compile(r"\s*\[\s*([\w\".-]+)\s*\]")
_KEY = re.compile(r"\s*([\w\"-]+(?:\s*\.\s*[\w\"-]+)*)\s*=")


def lines_of(text: str) -> dict[str, int]:
    """The line of each key of valid TOML. A scan, not a parser: keys begin lines, and a text of several lines hides
    none."""
    found: dict[str, int] = {}
    table, quote = "", ""
    for number, line in enumerate(text.splitlines(), 1):
        if quote:
            quote = "" if quote in line else quote
            continue
        if header := _TABLE.match(line):
            table = header[1].replace('"', "") + "."
            found.setdefault(table[:-1], number)
        elif key := _KEY.match(line):
            name = table + re.sub(r"[\s\"]", "", key[1])
            found.setdefault(name, number)
            found.setdefault(name.partition(".")[0], number)
            if inline := re.fullmatch(r"\s*\{(.*)\}\s*(?:#.*)?", line[key.end() :]):
                for member in re.findall(r"(?:^|,)\s*([\w-]+)\s*=", inline[1]):
                    found.setdefault(f"{name}.{member}", number)
        for mark in ('"""', "'''"):
            if line.count(mark) % 2:
                quote = mark
    return found


def imported(spec: str) -> Any:
    """module:NAME, looked for in the current directory too. Raises ImportError, AttributeError."""
    module, _, name = spec.partition(":")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    return getattr(importlib.import_module(module), name)
