"""`shardmem config`."""

from __future__ import annotations

import json
import os
from typing import Any

import click

from shardmem.console.cli.common import as_json, say
from shardmem.console.cli.target import WithSettings, configured, is_engine


@click.command(short_help="Show every setting, and where it was set.", cls=WithSettings)
@click.argument("target", required=False)
@click.option("--markdown", is_flag=True, hidden=True, help="Print docs/settings.md.")
@as_json
def config(target: str | None, markdown: bool, as_json: bool, **flags: Any) -> None:
    """Show every setting: value, unit, default, where it was set and what it is for.

    TARGET and flags are those of `run`. Nothing is started; all faults are listed at once, each with its place. With
    the NAME of a running engine as TARGET: the settings that are in force in it.
    """
    from shardmem.console import explain
    from shardmem.supervisor.explained import rows as rows_of

    if markdown:
        click.echo(explain.page(), nl=False)
        return
    if target is None:  # then no handler has to be named
        flags["name"], flags["handler"] = flags["name"] or os.environ.get("SHARDMEM_NAME", "unnamed"), "none:none"
    if target is not None and is_engine(target):
        if given := sorted(name for name, value in flags.items() if value is not None):
            raise click.UsageError(f"{target} is the name of a running engine: --{given[0]} would change nothing")
        from shardmem.client.client import Client

        with Client(target) as client:
            rows = client.settings()
    else:
        settings, sources = configured(target, flags)
        rows = rows_of(settings, sources.origins, made_up=() if target else ("name", "handler"))
    if as_json:
        click.echo(json.dumps({"settings": rows}, indent=2))
    else:
        say(explain.text(rows))
