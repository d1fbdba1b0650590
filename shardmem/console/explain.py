"""The declared settings as flags, as text and as the page docs/settings.md."""

from __future__ import annotations

import functools
import textwrap
from collections.abc import Callable, Iterable
from typing import Any

import click

from shardmem.config import PRESETS, Config
from shardmem.policy import ScalingPolicy
from shardmem.settings import UNITS, Setting, declared
from shardmem.state_settings import RemoteSettings
from shardmem.supervisor.explained import policy_settings

WIDTH = 80


@functools.cache
def flags() -> list[click.Parameter]:
    """One for each setting, except the handler, which is what is run."""
    made: list[click.Parameter] = []
    for each in declared(Config).values():
        if each.name != "handler":
            name = f"{each.flag}/--no-{each.flag[2:]}" if each.unit == "switch" else each.flag
            made.append(click.Option([name], default=None, help=sentence(each)))
    return made


def sentence(each: Setting) -> str:
    """The help with limits and default."""
    default = "" if each.required else f"; default: {each.text(each.default)}"
    return f"{each.help}{f' ({each.limits})' if each.limits else ''}{default}."


def text(rows: Iterable[dict[str, Any]]) -> str:
    """For people: what it is and where it is from, and below it what it is for."""
    lines = []
    for row in rows:
        place = row["place"] if row["from"] == "default" else f"{row['place']}; default: {row['default_text']}"
        missing = row["required"] and row["from"] == "default"
        lines.append(f"{row['name']}: {row['text']}" + ("" if missing else f"   [{place}]"))
        about = f"{row['help']} ({', '.join(filter(None, (row['unit'], row['limits'])))})"
        lines += textwrap.wrap(about, WIDTH, initial_indent="    ", subsequent_indent="    ")
    return "\n".join(lines)


def page() -> str:
    """docs/settings.md."""

    def line(cells: Iterable[str]) -> str:
        return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"

    def table(head: list[str], settings: Iterable[Setting], cells: Callable[[Setting], list[str]]) -> list[str]:
        return [line(head), line(["---"] * len(head)), *(line(cells(each)) for each in settings)]

    def about(each: Setting) -> str:
        return each.help + (f" ({each.limits})" if each.limits else "")

    def engine(each: Setting) -> list[str]:
        return [f"`{each.name}`", each.unit, each.text(each.default), about(each)]

    presets = [getattr(ScalingPolicy, name)(4) for name in PRESETS]

    def policy(each: Setting) -> list[str]:
        return [
            f"`{each.name}`",
            each.unit,
            *(each.text(getattr(preset, each.name)) for preset in presets),
            about(each),
        ]

    return "\n".join(
        [
            "# Settings",
            "",
            "Written by `shardmem config --markdown` from the declarations in `shardmem/config.py` and",
            "`shardmem/policy/scaling.py`; a test compares the two. `shardmem config engine.toml` shows the values in",
            "force and where each was set.",
            "",
            'Set a setting in the TOML file (`lane_bytes = "64KiB"`), in a variable (`SHARDMEM_LANE_BYTES`), by a flag',
            "(`--lane-bytes`), or as an argument of `Engine(...)`. A flag overrides a variable, a variable overrides",
            "the file. `handler` has no flag: it is the argument of `shardmem run`.",
            "",
            *table(["setting", "unit", "default", "meaning"], declared(Config).values(), engine),
            "",
            "## [policy]",
            "",
            '`policy = "conservative"` names a preset; a table `[policy]` changes settings of the preset that its',
            "`preset` names, or of `default`. `min_shards`, `max_shards` and `auto_scale` are settings of the engine.",
            "",
            *table(["setting", "unit", *PRESETS, "meaning"], policy_settings(), policy),
            "",
            "## [state]",
            "",
            "Where the state of partitions is kept for other hosts: see [State](state.md#state-across-hosts).",
            "",
            *table(["setting", "unit", "default", "meaning"], declared(RemoteSettings).values(), engine),
            "",
            "## Units",
            "",
            *(f"- **{name}**: {meaning}" for name, meaning in UNITS.items()),
            "",
        ]
    )
