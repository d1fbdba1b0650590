"""`shardmem ls`, `status`, `top` and `where`: they read shared memory, and need no supervisor."""

from __future__ import annotations

import json

import click

from shardmem.console.cli.common import EngineFirst, as_json, engines_like, say


@click.command(short_help="List the engines of this machine.")
@as_json
def ls(as_json: bool) -> None:
    """List the engines of this machine: state, shards, rate, events in flight, findings. Needs no supervisor."""
    from shardmem.client.engines import engines

    found = engines()
    if as_json:
        click.echo(json.dumps(found, indent=2))
    elif found:
        from shardmem.console import render

        say(render.engines(found))
    else:
        click.echo("no engine is here; start one with `shardmem run module:handler`")


@click.command(cls=EngineFirst)
@click.option(
    "--wait",
    "--timeout",
    "wait",
    type=click.FloatRange(0),
    metavar="SECONDS",
    help="First wait until the engine is ready; fail after SECONDS.",
)
@as_json
def status(name: str | None, wait: float | None, as_json: bool) -> None:
    """Show an engine: shards, producers, accounting. Needs no supervisor."""
    from shardmem.client.client import Client, only_engine, wait_ready

    if wait is not None:
        from shardmem.console.progress import Waiting

        reasons: list[str] = []
        with Waiting(lambda: f"{name or 'an engine'}: {'; '.join(reasons)}", quiet=as_json):
            document = wait_ready(name, wait, reasons)
    else:
        with Client(name or only_engine()) as client:
            document = client.status()
    if as_json:
        click.echo(json.dumps(document, indent=2))
    else:
        from rich.console import Console

        from shardmem.console import render

        Console(highlight=False).print(render.status(document))


@click.command(cls=EngineFirst)
@click.option("--once", is_flag=True, help="Print one frame and exit, as without a terminal.")
@click.option(
    "--interval", type=click.FloatRange(0.1, 3600), default=1.0, show_default=True, help="Seconds between two readings."
)
def top(name: str | None, once: bool, interval: float) -> None:
    """Watch an engine: shards, producers, handoffs, decisions. Needs no supervisor.

    \b
    + -  add, remove one shard            s  sort shards by id, rate, fill, busy
    d    drain a shard                    p  pause the display
    a    scale auto: policy decides       q  quit; the engine keeps running
    """
    from shardmem.client.client import only_engine
    from shardmem.console.top import run

    run(name or only_engine(), interval, once)


@click.command(cls=EngineFirst, short_help="Show which shard handles the events of a key.")
@click.argument("key", shell_complete=engines_like)
@click.option("--int", "as_int", is_flag=True, help="KEY is a number; of records it is one where their key field is.")
@as_json
def where(key: str, as_int: bool, name: str | None, as_json: bool) -> None:
    """Show which shard handles the events of KEY: slot, shard, worker, since when. Needs no supervisor."""
    from shardmem.client.client import Client, only_engine
    from shardmem.memory.segment import engine_names

    if name is None and key in engine_names():
        raise click.UsageError(f"{key} is an engine, and no KEY follows it. For the key {key}: where {key} {key}")
    with Client(name or only_engine()) as client:
        found = client.where_text(key, as_int=as_int)
    if as_json:
        click.echo(json.dumps(found, indent=2))
    else:
        from shardmem.console.answers import place

        say(place(found))
