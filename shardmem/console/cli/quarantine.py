"""`shardmem quarantine`: list, show, replay and purge events that kept failing or killing their handler."""

from __future__ import annotations

import glob
import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, TypeVar

import click

from shardmem.runtime.child import ExitCode

if TYPE_CHECKING:  # imports numpy
    from shardmem.runtime.quarantine import Quarantine, Quarantined

from shardmem.console.cli.common import as_json, complain, engine_option
from shardmem.errors import NotRunning, ShardmemError
from shardmem.text import plural

Command = TypeVar("Command", bound=Callable[..., Any])
directory_option = click.option("--state-dir", help="Where the engine kept its files, if it no longer runs.")


@click.group(short_help="List, show, replay and purge events in quarantine.")
def quarantine() -> None:
    """Events that kept failing or killing their handler: list, show, replay or purge them."""


def _common(command: Command) -> Command:
    return as_json(engine_option(directory_option(command)))


def _path(name: str | None, directory: str | None) -> tuple[str, str]:
    """(engine, its quarantine file), whether or not the engine is running."""
    from shardmem.client.client import only_engine
    from shardmem.config import default_directory, quarantine_file
    from shardmem.memory.engine_segment import ControlSegment

    if name is None:
        files = glob.glob(os.path.join(directory or default_directory(), "*.quarantine"))
        try:
            name = only_engine()
        except NotRunning:
            if len(files) != 1:
                raise
            name = os.path.basename(files[0]).removesuffix(".quarantine")
    if directory is None:
        try:
            control = ControlSegment.attach(name)
        except NotRunning:
            directory = default_directory()
        else:
            directory = control.state_dir
            control.close()
    return name, quarantine_file(directory, name)


def _open(name: str | None, directory: str | None) -> tuple[str, Quarantine | None]:
    """(engine, its quarantine; None if nothing was ever quarantined)."""
    from shardmem.runtime.quarantine import Quarantine

    engine, path = _path(name, directory)
    if not os.path.exists(path):
        return engine, None
    return engine, Quarantine(path)


@quarantine.command("list")
@click.option("--all", "everything", is_flag=True, help="Include replayed events.")
@_common
def list_(everything: bool, name: str | None, state_dir: str | None, as_json: bool) -> None:
    """List the events in quarantine, oldest first."""
    from shardmem.client.quarantine import describe

    engine, found = _open(name, state_dir)
    events = found.events(replayed=everything, payloads=False) if found else []
    if as_json:
        click.echo(json.dumps([describe(event) for event in events], indent=2))
        return
    if not events:
        kept = len(found.numbers(replayed=True)) if found else 0
        click.echo(
            f"engine {engine}: "
            + (
                "the quarantine is empty"
                if not kept
                else "the quarantine holds no event to replay; "
                f"{plural(kept, 'replayed event')} kept until purged (`list --all`, `purge --all`)"
            )
        )
        return
    _print_table(events)


def _print_table(events: list[Quarantined]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False)
    for title in ("id", "when", "shard", "key", "attempts", "reason"):
        table.add_column(
            title,
            justify="right" if title in ("id", "shard", "attempts") else "left",
            overflow="ellipsis" if title in ("key", "reason") else "fold",
            no_wrap=True,
        )
    for event in events:
        when = time.strftime("%m-%d %H:%M:%S", time.localtime(event.at)) + (" replayed" if event.replayed_at else "")
        reason = _cut(event.reason.splitlines()[0] if event.reason else "", 200)
        cells = (event.id, when, event.shard, _cut(repr(event.key), 24), event.attempts, reason)
        table.add_row(*(Text(str(cell)) for cell in cells))
    Console(width=None if sys.stdout.isatty() else 160).print(table)


def _cut(text: str, length: int) -> str:
    return text if len(text) <= length else text[: length - 3] + "..."


@quarantine.command()
@click.argument("id", type=int)
@_common
def show(id: int, name: str | None, state_dir: str | None, as_json: bool) -> None:
    """Show one event: reason, traceback or signal, key and payload."""
    from shardmem.client.quarantine import describe

    _, found = _needed(name, state_dir)
    (event,) = found.events([id])
    described = describe(event, whole=True)
    if as_json:
        click.echo(json.dumps(described, indent=2))
        return
    trace = described.pop("traceback")
    described["at"] = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(event.at))
    for key, value in described.items():
        if value is not None:
            click.echo(f"{key:>10}  {value if isinstance(value, (str, int, float)) else json.dumps(value)}")
    if trace:
        click.echo(f"\n{trace}")


@quarantine.command()
@click.argument("ids", type=int, nargs=-1)
@click.option("--all", "everything", is_flag=True, help="All events that were not replayed yet.")
@click.option("--timeout", type=click.FloatRange(0), help="Seconds to wait for room in lanes; default: no limit.")
@_common
def replay(
    ids: tuple[int, ...],
    everything: bool,
    timeout: float | None,
    name: str | None,
    state_dir: str | None,
    as_json: bool,
) -> None:
    """Push events in quarantine again, as new events, behind newer events of their keys.

    Fix the handler first, then run `shardmem reload`, or start the engine again.
    """
    from shardmem.client.quarantine import replay as replay_events

    if bool(ids) == everything:
        raise click.UsageError("exactly one of IDS and --all is required")
    engine, found = _needed(name, state_dir)
    result = replay_events(engine, found, ids or None, timeout)
    if as_json:
        click.echo(json.dumps({"engine": engine, **asdict(result)}))
    else:
        click.echo(f"engine {engine}: {plural(len(result.replayed), 'event')} replayed")
    if result.left:
        left = f"{plural(len(result.left), 'event')} left in quarantine, from event {result.left[0]} on"
        complain(f"{left}: {result.why}")
        sys.exit(ExitCode.FAILED)


@quarantine.command()
@click.argument("ids", type=int, nargs=-1)
@click.option("--all", "everything", is_flag=True, help="All events, including replayed ones.")
@_common
def purge(ids: tuple[int, ...], everything: bool, name: str | None, state_dir: str | None, as_json: bool) -> None:
    """Delete events in quarantine permanently."""
    if bool(ids) == everything:
        raise click.UsageError("exactly one of IDS and --all is required")
    engine, found = _open(name, state_dir)
    purged = found.purge(ids or None) if found else 0
    click.echo(
        json.dumps({"engine": engine, "purged": purged})
        if as_json
        else f"engine {engine}: {plural(purged, 'event')} purged"
    )


def _needed(name: str | None, directory: str | None) -> tuple[str, Quarantine]:
    engine, found = _open(name, directory)
    if found is None:
        raise ShardmemError(
            f"engine {engine}: nothing was ever quarantined", detail=f"{_path(name, directory)[1]} does not exist."
        )
    return engine, found
