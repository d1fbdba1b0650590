"""Commands that the control API carries out: how many shards, which slots where, fresh workers."""

from __future__ import annotations

import json
import sys
from typing import Any

import click

from shardmem.console.cli.common import EngineFirst, as_json, complain, engines_like, say
from shardmem.http.operations import DEADLINE, summary
from shardmem.runtime.child import ExitCode

timeout_option = click.option(
    "--timeout",
    type=click.FloatRange(DEADLINE["minimum"], DEADLINE["maximum"]),
    metavar="SECONDS",
    help="How long to wait until it is done; default: 30. After that it goes on in the background.",
)
shard_argument = click.argument("shard", type=click.IntRange(0), shell_complete=engines_like)
slots_argument = click.argument("slots", shell_complete=engines_like)
to_option = click.option("--to", "to", type=click.IntRange(0), required=True, help="The shard that will own them.")


class _ShardCount(click.ParamType):  # type: ignore[type-arg,unused-ignore]
    name = "number or auto"

    def convert(self, value: Any, parameter: click.Parameter | None, context: click.Context | None) -> int | str:
        if value != "auto" and not str(value).isdecimal():
            self.fail(f"{value!r} is not a number of shards or 'auto'", parameter, context)
        return "auto" if value == "auto" else int(value)


def _ask(name: str | None, as_json: bool, command: str, timeout: float | None = None, **wanted: Any) -> None:
    """One command of the control API, its answer for people or programs. Exit code 1 when it is not done in time."""
    from shardmem.client.client import Client, only_engine
    from shardmem.console.answers import answer, late, waiting
    from shardmem.console.progress import Waiting

    name = name or only_engine()
    if timeout is not None:
        wanted["timeout"] = timeout
    with Client(name) as client, Waiting(lambda: waiting(client.status()), quiet=as_json):
        done = client.command(command, **wanted)
    if as_json:
        click.echo(json.dumps(done, indent=2))
    elif done.get("done", True):
        say(answer(name, command, done))
    if not done.get("done", True):
        complain(late(command, done), f"See what it comes to: `shardmem status {name}`")
        sys.exit(ExitCode.FAILED)


@click.command(cls=EngineFirst, short_help=summary("scale"))
@click.argument("shards", type=_ShardCount(), shell_complete=engines_like)
@timeout_option
@as_json
def scale(shards: int | str, timeout: float | None, name: str | None, as_json: bool) -> None:
    """Run SHARDS shards: start more, or drain and remove some. Slots are evened out while events flow.

    'auto' hands control back to the policy.
    """
    _ask(name, as_json, "scale", timeout, shards=shards)


@click.command(cls=EngineFirst, short_help=summary("drain"))
@shard_argument
@timeout_option
@as_json
def drain(shard: int, timeout: float | None, name: str | None, as_json: bool) -> None:
    """Hand the slots of SHARD to the others, then stop and remove it."""
    _ask(name, as_json, "drain", timeout, shard=shard)


@click.command(cls=EngineFirst, short_help=summary("move"))
@slots_argument
@to_option
@timeout_option
@as_json
def move(slots: str, to: int, timeout: float | None, name: str | None, as_json: bool) -> None:
    """Move SLOTS (for example 17,40-60) to a shard. No event is lost, repeated or reordered."""
    _ask(name, as_json, "move", timeout, slots=slots, to=to)


@click.command(cls=EngineFirst, help=summary("rebalance"))
@timeout_option
@as_json
def rebalance(timeout: float | None, name: str | None, as_json: bool) -> None:
    _ask(name, as_json, "rebalance", timeout)


@click.command(cls=EngineFirst, short_help=summary("reload"))
@timeout_option
@as_json
def reload(timeout: float | None, name: str | None, as_json: bool) -> None:
    """Replace all workers, with configuration file and handler read again. Events keep flowing."""
    _ask(name, as_json, "reload", timeout)


@click.command(cls=EngineFirst, short_help=summary("cordon"))
@shard_argument
@as_json
def cordon(shard: int, name: str | None, as_json: bool) -> None:
    """Keep SHARD from taking more slots and keyless events. It keeps what it has, until `uncordon` or `drain`."""
    _ask(name, as_json, "cordon", shard=shard)


@click.command(cls=EngineFirst, help=summary("uncordon"))
@shard_argument
@as_json
def uncordon(shard: int, name: str | None, as_json: bool) -> None:
    _ask(name, as_json, "uncordon", shard=shard)


@click.command(cls=EngineFirst, short_help=summary("pin"))
@slots_argument
@to_option
@timeout_option
@as_json
def pin(slots: str, to: int, timeout: float | None, name: str | None, as_json: bool) -> None:
    """Move SLOTS (for example 17,40-60) to a shard and keep them there, whatever the strategy says."""
    _ask(name, as_json, "pin", timeout, slots=slots, to=to)


@click.command(cls=EngineFirst, short_help=summary("unpin"))
@slots_argument
@as_json
def unpin(slots: str, name: str | None, as_json: bool) -> None:
    """Let the strategy move SLOTS (for example 17,40-60) again."""
    _ask(name, as_json, "unpin", slots=slots)


@click.command(cls=EngineFirst, short_help=summary("moves"))
@click.argument("what", type=click.Choice(["suspend", "resume"]), shell_complete=engines_like)
@as_json
def moves(what: str, name: str | None, as_json: bool) -> None:
    """Suspend or resume the moves of the strategy. Moves on request, drains and pins go on."""
    _ask(name, as_json, "moves", suspended=what == "suspend")
