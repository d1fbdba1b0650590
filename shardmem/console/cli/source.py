"""`shardmem source`: what feeds the engine from outside. Status is read, and wishes are written, beside the engine's
state: no supervisor is needed."""

from __future__ import annotations

import json
from typing import Any

import click

from shardmem.console.cli.common import EngineFirst, as_json, engines_like

source_option = click.option("--source", metavar="SOURCE", help="Name of the source; default: the only one.")
timeout_option = click.option(
    "--timeout", type=click.FloatRange(0), default=30.0, metavar="SECONDS", help="How long to wait until it is done."
)


@click.group(short_help="Look at what feeds the engine, pause it, let it go on elsewhere.")
def source() -> None:
    """Sources of an engine, as [source] in its configuration declares them."""


@source.command(cls=EngineFirst, short_help="What each source does, how far it is, and why it is not further.")
@as_json
def status(name: str | None, as_json: bool) -> None:
    """What each source does, how far it is, and why it is not further."""
    from shardmem.console.render import source_lines
    from shardmem.sources.control import SourcesOf

    found = SourcesOf.engine(name).status()
    click.echo(json.dumps(found, indent=2) if as_json else "\n".join(source_lines(found) or ["there is no source"]))


@source.command(cls=EngineFirst, short_help="How much of each file or partition is there and was not read.")
@as_json
def lag(name: str | None, as_json: bool) -> None:
    """How much of each file or partition is there and was not read."""
    from shardmem.console.render import lag_lines
    from shardmem.sources.control import SourcesOf

    found = SourcesOf.engine(name).status()
    if as_json:
        keys = ("name", "lag_bytes", "lag_events", "last_commit_age_s", "partitions")
        click.echo(json.dumps([{key: value for key, value in each.items() if key in keys} for each in found], indent=2))
    else:
        click.echo("\n".join(lag_lines(found) or ["there is no source"]))


partition_option = click.option(
    "--partition",
    "partitions",
    multiple=True,
    metavar="PARTITION",
    help="Only this file or topic/number; may be repeated.",
)


@source.command(cls=EngineFirst, short_help="Read no more until `resume`; what was read is handled.")
@partition_option
@source_option
@timeout_option
@as_json
def pause(name: str | None, **given: Any) -> None:
    """Read no more until `resume`. What was read is handled. It holds for the next run of the engine, too."""
    _pause(name, True, **given)


@source.command(cls=EngineFirst, short_help="Go on where `pause` left off.")
@partition_option
@source_option
@timeout_option
@as_json
def resume(name: str | None, **given: Any) -> None:
    """Go on where `pause` left off: with everything, unless partitions are named."""
    _pause(name, False, **given)


def _pause(
    engine: str | None, paused: bool, partitions: tuple[str, ...], source: str | None, timeout: float, as_json: bool
) -> None:
    from shardmem.sources.control import SourcesOf

    done = SourcesOf.engine(engine).pause(source, paused, timeout, partitions)
    which = f"{', '.join(done['partitions'])} of source {done['source']}" if partitions else f"source {done['source']}"
    several = len(partitions) > 1
    text = f"{which} {'are' if several else 'is'} paused" if paused else f"{which} {'go' if several else 'goes'} on"
    click.echo(json.dumps(done) if as_json else text + ("" if done["alive"] else " as soon as its process runs"))


@source.command(cls=EngineFirst, short_help="Go on elsewhere in a file or partition.")
@click.argument("partition", shell_complete=engines_like)
@click.argument("to")
@source_option
@timeout_option
@as_json
def seek(partition: str, to: str, name: str | None, as_json: bool, source: str | None, timeout: float) -> None:
    """Go on reading PARTITION, a file or topic/number, at TO: 'start', 'end', or a byte of a file, an offset of a
    topic, as `status` shows it. Events before it are not taken back; those behind it come again."""
    from shardmem.sources.control import SourcesOf

    if to not in ("start", "end") and not to.isdecimal():
        raise click.UsageError(f"{to!r} is neither 'start' nor 'end' nor a place")
    done = SourcesOf.engine(name).seek(source, partition, int(to) if to.isdecimal() else to, timeout)
    click.echo(
        json.dumps(done) if as_json else f"source {done['source']} goes on at {done['offset']:,} of {done['partition']}"
    )
