"""`shardmem demo`."""

from __future__ import annotations

import click

from shardmem.console.cli.common import as_json


@click.command(short_help="Ingest 336,776 real flights and count them.")
@click.option("--shards", type=click.IntRange(1), default=3, show_default=True)
@click.option("--producers", type=click.IntRange(1, 32), default=2, show_default=True)
@as_json
def demo(shards: int, producers: int, as_json: bool) -> None:
    """Ingest 336,776 real flights, keyed by aircraft, and print what each aircraft flew."""
    from shardmem.console.demo import run_demo

    run_demo(shards, producers, as_json)
