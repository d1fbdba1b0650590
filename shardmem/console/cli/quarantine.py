"""`shardmem quarantine`: list, show, replay and purge events that kept failing or killing their handler."""

from __future__ import annotations

import glob
import json
import os
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import click

from shardmem.runtime.child import ExitCode

if TYPE_CHECKING:  # imports numpy
    from shardmem.runtime.quarantine import Quarantined

from shardmem.console.cli.common import EngineFirst, as_json, complain, engines_like, say
from shardmem.errors import NotRunning, ShardmemError
from shardmem.text import plural, printable, printable_lines

Command = TypeVar("Command", bound=Callable[..., Any])
directory_option = click.option("--state-dir", help="Where the engine kept its files, if it no longer runs.")


@click.group(short_help="List, show, replay and purge events in quarantine.")
def quarantine() -> None:
    """Events that kept failing or killing their handler: list, show, replay or purge them."""


def _common(command: Command) -> Command:
    return as_json(directory_option(command))


class _EngineThenIds(EngineFirst):
    """Events have numbers: what is none is the engine."""

    def is_name(self, word: str, options: Mapping[str, Any]) -> bool:
        return not word.isdecimal()


class _File(NamedTuple):
    """The quarantine file of an engine, whether or not it runs, and the uid whose it has to be."""

    engine: str
    path: str
    owner: int


def _file(name: str | None, directory: str | None) -> _File:
    from shardmem.client.client import only_engine
    from shardmem.config import default_directory, quarantine_file
    from shardmem.memory.engine_segment import ControlSegment
    from shardmem.private_files import owner_of

    if name is None:
        files = glob.glob(os.path.join(glob.escape(directory or default_directory()), "*.quarantine"))
        try:
            name = only_engine()
        except NotRunning:
            if len(files) != 1:
                raise
            name = os.path.basename(files[0]).removesuffix(".quarantine")
    owner = None
    if directory is None:
        try:
            control = ControlSegment.attach(name)
        except NotRunning:
            directory = default_directory()
        else:
            directory, owner = control.state_dir, control.segment.owner
            control.close()
    path = quarantine_file(directory, name)
    return _File(name, path, owner_of(path) if owner is None else owner)


@quarantine.command("list", cls=EngineFirst)
@click.option("--all", "everything", is_flag=True, help="Include replayed events.")
@_common
def list_(everything: bool, name: str | None, state_dir: str | None, as_json: bool) -> None:
    """List the events in quarantine, oldest first."""
    from shardmem.client.quarantine import describe
    from shardmem.runtime.quarantine import QuarantineReader, is_there

    engine, path, owner = _file(name, state_dir)
    found = QuarantineReader(path, owner) if is_there(path) else None
    events = found.events(replayed=everything, payloads=False) if found else []
    if as_json:
        click.echo(json.dumps([describe(event) for event in events], indent=2))
        return
    if not events:
        kept = len(found.numbers(replayed=True)) if found else 0
        say(
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
        table.add_row(*(Text(printable(str(cell))) for cell in cells))
    Console(width=None if sys.stdout.isatty() else 160).print(table)


def _cut(text: str, length: int) -> str:
    return text if len(text) <= length else text[: length - 3] + "..."


@quarantine.command(cls=EngineFirst)
@click.argument("id", type=int, shell_complete=engines_like)
@_common
def show(id: int, name: str | None, state_dir: str | None, as_json: bool) -> None:
    """Show one event: reason, traceback or signal, key and payload."""
    from shardmem.client.quarantine import describe
    from shardmem.runtime.quarantine import QuarantineReader

    _, path, owner = _existing(name, state_dir)
    (event,) = QuarantineReader(path, owner).events([id])
    described = describe(event, whole=True)
    if as_json:
        click.echo(json.dumps(described, indent=2))
        return
    trace = described.pop("traceback")
    described["at"] = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(event.at))
    for key, value in described.items():
        if value is not None:
            say(f"{key:>10}  {printable(str(value)) if isinstance(value, (str, int, float)) else json.dumps(value)}")
    if trace:
        click.echo(f"\n  {printable_lines(trace, '  ')}")


@quarantine.command(cls=_EngineThenIds)
@click.argument("ids", type=int, nargs=-1, shell_complete=engines_like)
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
    from shardmem.runtime.quarantine import Quarantine

    if bool(ids) == everything:
        raise click.UsageError("exactly one of IDS and --all is required")
    engine, path, owner = _existing(name, state_dir)
    with Quarantine(path, owner=owner) as found:
        result = replay_events(engine, found, ids or None, timeout)
    if as_json:
        click.echo(json.dumps({"engine": engine, **asdict(result)}))
    else:
        say(f"engine {engine}: {plural(len(result.replayed), 'event')} replayed")
    if result.left:
        left = f"{plural(len(result.left), 'event')} left in quarantine, from event {result.left[0]} on"
        complain(f"{left}: {result.why}")
        sys.exit(ExitCode.FAILED)


@quarantine.command(cls=_EngineThenIds)
@click.argument("ids", type=int, nargs=-1, shell_complete=engines_like)
@click.option("--all", "everything", is_flag=True, help="All events, including replayed ones.")
@click.option("--yes", is_flag=True, help="With --all: do not ask.")
@_common
def purge(
    ids: tuple[int, ...], everything: bool, yes: bool, name: str | None, state_dir: str | None, as_json: bool
) -> None:
    """Delete events in quarantine permanently. --all asks first."""
    from shardmem.runtime.quarantine import Quarantine, is_there

    if bool(ids) == everything:
        raise click.UsageError("exactly one of IDS and --all is required")
    engine, path, owner = _file(name, state_dir)
    purged = 0
    if is_there(path):
        with Quarantine(path, owner=owner) as found:
            if everything and not yes and (kept := len(found.numbers(replayed=True))):
                _expect_yes(f"engine {engine}: delete {plural(kept, 'event')} in quarantine permanently?")
            purged = found.purge(ids or None)
    if as_json:
        click.echo(json.dumps({"engine": engine, "purged": purged}))
    else:
        say(f"engine {engine}: {plural(purged, 'event')} purged")


def _expect_yes(question: str) -> None:
    """Raises ShardmemError: the answer is no, or there is none."""
    try:
        agreed = click.confirm(question, err=True)
    except click.Abort:  # the end of standard input, as in a script
        click.echo(err=True)
        agreed = False
    if not agreed:
        raise ShardmemError("nothing was deleted", hint="--all asks first; in a script, add --yes")


def _existing(name: str | None, directory: str | None) -> _File:
    from shardmem.runtime.quarantine import is_there

    file = _file(name, directory)
    if not is_there(file.path):
        raise ShardmemError(
            f"engine {file.engine}: nothing was ever quarantined", detail=f"{file.path} does not exist."
        )
    return file
