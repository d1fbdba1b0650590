"""Commands that the control API carries out: scale, drain, move, rebalance, reload."""

from __future__ import annotations

import json
from typing import Any

import click

from shardmem.console.cli.common import WithoutEngine, as_json, either, engine_argument, engine_option
from shardmem.http.operations import summary


def _ask(name: str | None, as_json: bool, command: str, **wanted: Any) -> None:
    """One command of the control API, its answer for people or programs."""
    from shardmem.client.client import Client, only_engine
    from shardmem.console.render import answer

    name = name or only_engine()
    with Client(name) as client:
        done = client.command(command, **wanted)
    click.echo(json.dumps(done, indent=2) if as_json else answer(name, command, done))


@click.command(cls=WithoutEngine, short_help=summary("scale"))
@click.argument("shards")
@engine_option
@as_json
def scale(shards: str, name: str | None, as_json: bool) -> None:
    """Run SHARDS shards: start more, or drain and remove some. Slots are evened out while events flow.

    'auto' hands control back to the policy.
    """
    if shards != "auto" and not shards.isdigit():
        raise click.UsageError(f"{shards!r} is not a number of shards or 'auto'")
    _ask(name, as_json, "scale", shards=shards if shards == "auto" else int(shards))


@click.command(cls=WithoutEngine, short_help=summary("drain"))
@click.argument("shard", type=click.IntRange(0))
@engine_option
@as_json
def drain(shard: int, name: str | None, as_json: bool) -> None:
    """Hand the slots of SHARD to the others, then stop and remove it."""
    _ask(name, as_json, "drain", shard=shard)


@click.command(cls=WithoutEngine, short_help=summary("move"))
@click.argument("slots")
@click.option("--to", "to", type=click.IntRange(0), required=True, help="The shard that will own them.")
@engine_option
@as_json
def move(slots: str, to: int, name: str | None, as_json: bool) -> None:
    """Move SLOTS (for example 17,40-60) to a shard. No event is lost, repeated or reordered."""
    _ask(name, as_json, "move", slots=slots, to=to)


@click.command(help=summary("rebalance"))
@engine_argument
@engine_option
@as_json
def rebalance(engine: str | None, name: str | None, as_json: bool) -> None:
    _ask(either(engine, name), as_json, "rebalance")


@click.command(short_help=summary("reload"))
@engine_argument
@engine_option
@as_json
def reload(engine: str | None, name: str | None, as_json: bool) -> None:
    """Replace all workers, with configuration file and handler read again. Events keep flowing."""
    _ask(either(engine, name), as_json, "reload")
