"""`shardmem ingest`."""

from __future__ import annotations

import json
import sys
from typing import Any

import click

from shardmem.console.cli.common import as_json
from shardmem.errors import ConfigError, ShardmemError
from shardmem.runtime.child import ExitCode
from shardmem.settings import some


@click.command(short_help="Push lines, CSV or JSON lines into a running engine.")
@click.argument("files", nargs=-1, type=click.Path(dir_okay=False, allow_dash=True))
@click.option("--engine", help="Name of the engine; default: SHARDMEM_NAME, or the only one here.")
@click.option("--format", "form", type=click.Choice(["lines", "csv", "jsonl"]), default="lines", show_default=True)
@click.option("--key", help="Field that is the key: a column of CSV, a member of JSON; of lines a field number from 1.")
@click.option("--delimiter", help="Between fields; default ',' for csv, white space for lines.")
@click.option("--skip-bad", is_flag=True, help="Leave out records that cannot be read, and count them.")
@click.option("--wait/--no-wait", default=True, help="Return when everything has been handled (default), or pushed.")
@as_json
def ingest(
    files: tuple[str, ...],
    engine: str | None,
    form: str,
    key: str | None,
    delimiter: str | None,
    skip_bad: bool,
    wait: bool,
    as_json: bool,
) -> None:
    """Push records of FILES (default, or '-': standard input) into a running engine.

    An events engine gets each record's own bytes as payload; a records engine gets the fields of its dtype by name.
    """
    from shardmem.client.client import only_engine
    from shardmem.console.ingest import BadRecord, Ingest, size_of
    from shardmem.console.progress import Meter
    from shardmem.runtime.producer import connect

    with connect(engine or only_engine()) as producer:
        work = Ingest(producer, form, key=key, delimiter=delimiter, skip_bad=skip_bad)
        cut_off: Exception | None = None
        with Meter(size_of(files), quiet=as_json) as meter:
            try:
                for name in files or ("-",):
                    work.file(name, meter)
                meter.finish()
                if wait:
                    producer.flush()
            except (ConfigError, BadRecord):
                raise
            except (ShardmemError, TimeoutError) as error:
                cut_off = error
        summary: dict[str, Any] = {
            "engine": producer.engine,
            "events": work.events,
            "skipped": work.skipped,
            "bytes": meter.bytes,
            "seconds": round(meter.seconds, 3),
            "rate": round(work.events / max(meter.seconds, 1e-9)),
        }
    if cut_off is not None:
        if as_json:
            click.echo(json.dumps({**summary, "error": str(cut_off), "next": work.next}))
        click.echo(
            f"shardmem: {cut_off}. {some(work.events, 'event')} accepted{f'; {work.next}' if work.next else ''}",
            err=True,
        )
        sys.exit(ExitCode.FAILED)
    if as_json:
        click.echo(json.dumps(summary))
    else:
        from shardmem.console.render import count

        click.echo(
            f"{some(work.events, 'event')} in {meter.seconds:.2f} s ({count(summary['rate'])}/s)"
            + (f", {some(work.skipped, 'record')} skipped" if work.skipped else "")
            + (", all handled" if wait else "")
        )
