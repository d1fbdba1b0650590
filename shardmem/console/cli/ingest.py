"""`shardmem ingest`."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Mapping
from typing import Any

import click

from shardmem.console.cli.common import EngineFirst, advise, as_json, complain, say

FORMATS = ("lines", "csv", "tsv", "jsonl", "logfmt", "syslog", "combined", "parquet", "arrow")


class MaxBad(click.ParamType):  # type: ignore[type-arg,unused-ignore]
    name = "N|P%"

    def convert(self, value: Any, param: Any, ctx: Any) -> tuple[int | None, float | None]:
        if match := re.fullmatch(r"(\d+)", value):
            return int(match[1]), None
        if (match := re.fullmatch(r"(\d+(?:\.\d+)?)%", value)) and float(match[1]) <= 100:
            return None, float(match[1]) / 100
        return self.fail(f"{value!r} is neither a number nor a percentage")


class _EngineThenFiles(EngineFirst):
    """An engine's name may be that of a file too: then it is the engine, and ./NAME the file."""

    def is_name(self, word: str, options: Mapping[str, Any]) -> bool:
        if re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}", word) is None:
            return False
        from shardmem.memory.segment import engine_names

        return not os.path.lexists(word) or word in engine_names()


@click.command(cls=_EngineThenFiles, short_help="Push files and streams into a running engine.")
@click.argument("files", nargs=-1)
@click.option("--format", "form", type=click.Choice(FORMATS), default="lines", show_default=True)
@click.option("--key", help="Field of the key: column, member (a.b: nested), field number from 1; several: a,b.")
@click.option("--payload", help="Of parquet and arrow into an events engine: the column that is the payload.")
@click.option(
    "--key-type", type=click.Choice(["auto", "str", "int"]), default="auto", help="auto: numbers of JSON are int."
)
@click.option("--key-from-name", is_flag=True, help="The key is the name of the file.")
@click.option("--delimiter", help="Between fields; default ',' for csv, white space for lines. Escapes: \\t, \\x1f.")
@click.option("--quote", help="Around fields of csv; default '\"'. none: quotes are ordinary bytes.")
@click.option("--no-header", is_flag=True, help="The first record of csv is an event; columns have numbers.")
@click.option("--columns", help="Names of the columns of csv without a header: a,b,c.")
@click.option("--comment", help="Leave out lines that begin with this byte.")
@click.option("--skip-lines", type=click.IntRange(0), default=0, help="Leave out the first lines of each file.")
@click.option("--encoding", help="Of the files; default: UTF-8 or bytes, UTF-16 and UTF-32 by their mark.")
@click.option("--skip-bad", is_flag=True, help="Leave out records that are no events, and count them.")
@click.option("--max-bad", type=MaxBad(), help="So many bad records, refused and quarantined events are no failure.")
@click.option("--dead-letter", metavar="FILE", help="Append bad records to FILE, with place and reason.")
@click.option("--limit", type=click.IntRange(1), metavar="N", help="Stop after N events.")
@click.option("--rate", type=click.FloatRange(0, min_open=True), metavar="N", help="At most N events a second.")
@click.option("--timeout", type=click.FloatRange(0), metavar="SECONDS", help="Fail when a lane is full for longer.")
@click.option(
    "--backpressure",
    type=click.Choice(["block", "fail", "drop_newest", "drop_oldest", "sample"]),
    default="block",
    show_default=True,
    help="What to do about a full lane, whatever the engine says.",
)
@click.option(
    "--follow", is_flag=True, help="Go on as files grow, are rotated or truncated; find new ones of a pattern."
)
@click.option("--from-end", is_flag=True, help="With --follow: what is in the files already is left out.")
@click.option("--from", "start", type=click.IntRange(0), metavar="BYTE", help="Begin there in the first file.")
@click.option("--resume", is_flag=True, help="Keep positions beside the engine's state, and go on from them.")
@click.option("--positions", metavar="FILE", help="As --resume, with the positions in FILE.")
@click.option("--jobs", type=click.IntRange(1, 64), default=1, help="Read so many files at the same time.")
@click.option("--dry-run", is_flag=True, help="Show the first events, and push nothing.")
@click.option("--wait/--no-wait", default=True, help="Return when everything is handled (default), or only pushed.")
@as_json
def ingest(**given: Any) -> None:
    """Push the records of FILES (default, or '-': standard input) into a running engine.

    FILES are files, pipes, directories and patterns; gzip and zstd are read as what is in them. An events engine gets
    each record's own bytes as payload; a records engine gets the fields of its dtype by name. A record that is no event
    stops the run, and is named with file, line, field and reason.

    Exit code 0: everything arrived. 1: a record was bad, an event was refused or quarantined (see --max-bad), or the
    run was cut off; then it says where to go on.
    """
    from shardmem.client.client import only_engine
    from shardmem.console.ingest import Ingest, total_of
    from shardmem.console.progress import Meter

    wish = _wish(given)
    engine = given["name"] or only_engine()
    if given["resume"] and wish.positions is None:
        wish.positions = _positions_of(engine)
    if given["dry_run"]:
        from shardmem.console.dry_run import dry_run

        dry_run(engine, wish, given["as_json"])
        return
    if not wish.names and not given["as_json"] and sys.stdin is not None and sys.stdin.isatty():
        click.echo("reading standard input; Ctrl-D ends it, Ctrl-C breaks off", err=True)
    with Meter(total_of(wish.names, wish.follow), quiet=given["as_json"]) as meter:
        work = Ingest(engine, wish, meter)
        work.run()
        meter.finish()
        summary = work.summary()
    if given["as_json"]:
        click.echo(json.dumps(summary))
    elif work.error is None:
        say(work.line())
    if work.error is not None or work.interrupted is not None:
        text, hints = work.trouble()
        if text:
            complain(text)
        for hint in hints:
            advise(hint)
    if work.code:
        sys.exit(work.code)


def _wish(given: dict[str, Any]) -> Any:
    """What is asked for. Raises ConfigError."""
    from shardmem.console.ingest import Wish
    from shardmem.errors import ConfigError
    from shardmem.sources.files.options import FileOptions
    from shardmem.sources.runner import Limits

    names = (
        "key",
        "payload",
        "key_type",
        "key_from_name",
        "delimiter",
        "quote",
        "columns",
        "comment",
        "skip_lines",
        "encoding",
    )
    options = FileOptions.of(
        format=given["form"],
        header=not (given["no_header"] or given["columns"]),
        **{name: given[name] for name in names},
    )
    if given["from_end"] and not given["follow"]:
        raise ConfigError("--from-end is for --follow")
    if given["start"] and given["jobs"] > 1:
        raise ConfigError("--from is for one file; leave --jobs out")
    most, share = given["max_bad"] or (0, None)
    skips = given["skip_bad"] or given["dead_letter"] is not None
    limits = Limits(
        max_bad=None if skips and given["max_bad"] is None else most,
        max_bad_share=share,
        events=given["limit"],
        rate=given["rate"],
    )
    return Wish(
        given["files"],
        options,
        limits,
        allowed=(most, share),
        follow=given["follow"],
        from_end=given["from_end"],
        start=given["start"],
        positions=given["positions"],
        jobs=given["jobs"],
        dead_letter=given["dead_letter"],
        backpressure=given["backpressure"],
        timeout=given["timeout"],
        wait=given["wait"],
    )


def _positions_of(engine: str) -> str:
    """Beside the state of the engine."""
    from shardmem.memory.engine_segment import ControlSegment

    control = ControlSegment.attach(engine)
    try:
        return os.path.join(control.state_dir, f"{engine}.positions")
    finally:
        control.close()
