"""`shardmem doctor`."""

from __future__ import annotations

import json
import sys

import click

from shardmem.console.cli.common import as_json, say
from shardmem.console.cli.target import configured, is_engine
from shardmem.runtime.child import ExitCode


@click.command(short_help="Check this machine for what an engine needs.")
@click.argument("target", required=False)
@as_json
def doctor(target: str | None, as_json: bool) -> None:
    """Check this machine for what an engine needs, and print what to change. Exit code 1 if there is a problem.

    TARGET is engine.toml, module:handler or the name of an engine on this host; default: the default settings.
    """
    from dataclasses import replace

    from shardmem.console.render import checks as rendered
    from shardmem.host.brokers import brokers
    from shardmem.host.census import Places, census, judge
    from shardmem.host.doctor import PROBLEM, Plan, examine, worst_of
    from shardmem.host.machine import Host
    from shardmem.memory.engine_segment import ControlSegment

    if target is not None and is_engine(target):
        control = ControlSegment.attach(target)
        plan, host, of_sources = Plan.of_engine(control), Host.of_engine(control), []
        control.close()
    else:
        config, _ = configured(target, {"name": None} if target else {"name": "engine", "handler": "none:none"})
        plan, host, of_sources = Plan.of_config(config), Host(), list(brokers(config))
    places = Places(host.sockets, host.uid)
    engines, others = census(places)
    held = {
        facts.name: sum(inbox.file.bytes for inbox in facts.inboxes) + facts.control.bytes
        for facts in engines
        if facts.control
    }
    leftovers = [*(each for facts in engines for each in judge(facts, places.uid)), *others]
    checks = [*examine(host, replace(plan, held=held.get(plan.name, 0)), leftovers), *of_sources]
    if as_json:
        click.echo(
            json.dumps(
                {"engine": plan.name, "worst": worst_of(checks), "checks": [each.describe() for each in checks]},
                indent=2,
            )
        )
    else:
        say(rendered([each.describe() for each in checks]))
    if worst_of(checks) == PROBLEM:
        sys.exit(ExitCode.FAILED)
