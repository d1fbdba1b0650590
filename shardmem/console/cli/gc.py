"""`shardmem gc`."""

from __future__ import annotations

import json

import click

from shardmem.console.cli.common import as_json, say


@click.command(short_help="Remove shared memory and sockets that no process holds.")
@click.argument("engines", nargs=-1)
@click.option("--dry-run", is_flag=True, help="Only print what would be done.")
@click.option("--end-orphans", is_flag=True, help="First send TERM to workers whose supervisor is dead.")
@click.option("--discard", metavar="NAME", help="Remove this one engine's memory; accepted events in it are lost.")
@as_json
def gc(engines: tuple[str, ...], dry_run: bool, end_orphans: bool, discard: str | None, as_json: bool) -> None:
    """Remove shared memory and sockets that no process holds, of ENGINES or of all engines; print what and why.

    Memory with accepted events is kept, because the next run of the engine handles them. State files are kept.
    """
    from shardmem.console.render import collected
    from shardmem.host.census import Places
    from shardmem.host.gc import gc as collect

    found = [
        each.describe()
        for each in collect(Places(), engines, dry_run=dry_run, end_orphans=end_orphans, discard=discard)
    ]
    if as_json:
        freed = sum(each["bytes"] for each in found if each["done"])
        click.echo(json.dumps({"dry_run": dry_run, "freed": freed, "findings": found}, indent=2))
    else:
        say(collected(found, dry_run))
