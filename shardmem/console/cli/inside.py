"""`shardmem logs` and `shardmem stacks`: what an engine says, and where a worker is."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import click

from shardmem.console.cli.common import EngineFirst, as_json, engines_like, say

LEVELS = ("debug", "info", "warning", "error")


class _EngineThenShard(EngineFirst):
    """The shard may be left out too."""

    def is_name(self, word: str, options: Any) -> bool:
        return not word.isdecimal()


@click.command(cls=_EngineThenShard, short_help="Show the log of an engine, or of one shard.")
@click.argument("shard", type=click.IntRange(0), required=False, shell_complete=engines_like)
@click.option("--follow", "-f", is_flag=True, help="Go on as it is written, until the engine ends.")
@click.option("--lines", "-n", type=click.IntRange(0), default=100, show_default=True, help="How many of its end.")
@click.option("--level", type=click.Choice(LEVELS), default="debug", help="From this level on; default: all.")
@click.option("--state-dir", help="Where the engine kept its files, if it no longer runs.")
@as_json
def logs(
    shard: int | None, name: str | None, follow: bool, lines: int, level: str, state_dir: str | None, as_json: bool
) -> None:
    """Show what supervisor and workers have logged, the newest last; of SHARD, or of all. Needs no supervisor.

    The log is kept beside the state of the engine, in a file of up to 4 MiB and the one before it, wherever standard
    error goes.
    """
    from shardmem.client.client import only_engine
    from shardmem.client.log import Log, place, wanted
    from shardmem.console.render import log_line

    engine = name or only_engine()
    path, owner, is_over = place(engine, state_dir)
    is_wanted = wanted(shard, level)

    def show(record: dict[str, Any]) -> None:
        if as_json:
            click.echo(json.dumps(record))
        else:
            say(log_line(record))

    with contextlib.closing(Log(path, owner)) as log:
        for record in log.last(lines, is_wanted):
            show(record)
        if follow:
            for record in log.follow(is_wanted, is_over):
                show(record)


@click.command(cls=_EngineThenShard, short_help="Show where the threads of a worker are at this moment.")
@click.argument("shard", type=click.IntRange(0), required=False, shell_complete=engines_like)
@click.option(
    "--timeout", type=click.FloatRange(0), default=5.0, show_default=True, metavar="SECONDS", help="How long to wait."
)
@as_json
def stacks(shard: int | None, name: str | None, timeout: float, as_json: bool) -> None:
    """Show the Python stack of each thread of the worker of SHARD, or of all, the innermost call first.

    A worker is not disturbed, and answers also when its handler hangs. Needs no supervisor.
    """
    from shardmem.client.client import Client, only_engine

    with Client(name or only_engine()) as client:
        if shard is not None:
            found = [client.stacks(shard, timeout)]
        else:
            alive = [each["id"] for each in client.status()["shards"] if each["alive"]]
            found = [client.stacks(each, timeout) for each in alive]
    if as_json:
        click.echo(json.dumps(found if shard is None else found[0], indent=2))
        return
    for each in found:
        hand = (
            "between two batches" if each["in_hand_s"] is None else f"one batch in hand for {each['in_hand_s']:.1f} s"
        )
        worker = f"worker pid {each['pid']}, incarnation {each['incarnation']}"
        say(f"shard {each['shard']}, {worker}: {hand}\n\n{each['text'].rstrip()}\n")
