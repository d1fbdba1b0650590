"""`shardmem stop`."""

from __future__ import annotations

import json
import sys

import click

from shardmem.console.cli.common import as_json, say, warn
from shardmem.http.operations import summary
from shardmem.text import plural


@click.command(help=summary("stop"))
@click.argument("name", required=False)
@click.option("--now", is_flag=True, help="Do not drain; events stay in shared memory for the next run.")
@click.option("--timeout", type=float, help="Seconds to wait until it has stopped.")
@as_json
def stop(name: str | None, now: bool, timeout: float | None, as_json: bool) -> None:
    from shardmem.client.client import Client, only_engine
    from shardmem.console.render import accounting_line

    name = name or only_engine()
    shown = False

    def progress(in_flight: int) -> None:
        nonlocal shown
        if sys.stderr.isatty():
            shown = True
            click.echo(f"\rdraining: {in_flight:,} events in flight   ", nl=False, err=True)

    with Client(name) as client:
        document = client.stop(now, timeout, progress)
    if shown:
        click.echo(err=True)
    left = document["accounting"]["in_flight"]
    if as_json:
        click.echo(json.dumps(document, indent=2))
    else:
        say(f"engine {name} has stopped: {accounting_line(document['accounting'])}")
    if left:
        holders = [each for each in document["shards"] if each["in_flight"]]
        where = ", ".join(f"{each['in_flight']:,} of shard {each['id']}" for each in holders)
        warn(
            f"{plural(left, 'event')} not handled, and in shared memory still: {where}",
            "Run the engine again to handle them; its log says why they were left",
        )
