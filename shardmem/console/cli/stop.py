"""`shardmem stop`."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import click

from shardmem.console.cli.common import EngineFirst, as_json, say, warn
from shardmem.http.operations import summary
from shardmem.text import plural

if TYPE_CHECKING:
    from shardmem.status.document import Status


@click.command(cls=EngineFirst, help=summary("stop"))
@click.option("--now", is_flag=True, help="Do not drain; events stay in shared memory for the next run.")
@click.option(
    "--timeout",
    type=click.FloatRange(0),
    metavar="SECONDS",
    help="How long to wait until it has stopped; default: until then. After that it goes on in the background.",
)
@as_json
def stop(name: str | None, now: bool, timeout: float | None, as_json: bool) -> None:
    from shardmem.client.client import Client, only_engine
    from shardmem.console.answers import stopping
    from shardmem.console.progress import Waiting
    from shardmem.console.render import accounting_line

    name = name or only_engine()
    with Client(name) as client:
        last = client.status()

        def progress(status: Status) -> None:
            nonlocal last
            last = status

        with Waiting(lambda: stopping(last), quiet=as_json):
            document = client.stop(now, timeout, progress)
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
