"""Commands that the control API carries out: scale, drain, move, rebalance, reload."""

from __future__ import annotations

import json
from typing import Any

import click

from shardmem.console.cli.common import OfAnEngine, as_json, either, engine_argument, engine_option


def _ask(name: str | None, as_json: bool, command: str, **wanted: Any) -> None:
    """One command of the control API, its answer for people or programs."""
    from shardmem.client.client import Client, only_engine
    from shardmem.console.render import answer

    name = name or only_engine()
    with Client(name) as client:
        done = client.command(command, **wanted)
    click.echo(json.dumps(done, indent=2) if as_json else answer(name, command, done))


@click.command(cls=OfAnEngine, short_help="Run more or fewer shards, or let the policy decide.")
@click.argument("shards")
@engine_option
@as_json
def scale(shards: str, name: str | None, as_json: bool) -> None:
    """Run SHARDS workers: start more, or drain and remove some; slots are evened out while events flow.

    'auto' hands back to the policy.
    """
    if shards != "auto" and not shards.isdigit():
        raise click.UsageError(f"{shards!r} is neither a number of shards nor 'auto'")
    _ask(name, as_json, "scale", shards=shards if shards == "auto" else int(shards))


@click.command(cls=OfAnEngine, short_help="Hand the slots of a shard to the others; remove it.")
@click.argument("shard", type=click.IntRange(0))
@engine_option
@as_json
def drain(shard: int, name: str | None, as_json: bool) -> None:
    """Hand the slots of SHARD to the others, then stop and remove it."""
    _ask(name, as_json, "drain", shard=shard)


@click.command(cls=OfAnEngine, short_help="Move slots to a shard while events flow.")
@click.argument("slots")
@click.option("--to", "to", type=click.IntRange(0), required=True, help="The shard that is to own them.")
@engine_option
@as_json
def move(slots: str, to: int, name: str | None, as_json: bool) -> None:
    """Move SLOTS (for example 17,40-60) to a shard; nothing is lost, repeated or reordered on the way."""
    _ask(name, as_json, "move", slots=slots, to=to)


@click.command()
@engine_argument
@engine_option
@as_json
def rebalance(engine: str | None, name: str | None, as_json: bool) -> None:
    """Even out the slots over the shards, with the fewest moves."""
    _ask(either(engine, name), as_json, "rebalance")


@click.command(short_help="Fresh workers, with what the configuration says now.")
@engine_argument
@engine_option
@as_json
def reload(engine: str | None, name: str | None, as_json: bool) -> None:
    """Replace every worker by a fresh one, with what the configuration file and the handler's module say now."""
    _ask(either(engine, name), as_json, "reload")
