"""`shardmem run`."""

from __future__ import annotations

import json
import os
import sys
from contextlib import closing
from typing import TYPE_CHECKING, Any

import click

from shardmem.console.cli.common import as_json
from shardmem.console.cli.target import WithSettings, configured
from shardmem.text import plural

if TYPE_CHECKING:
    from shardmem.status.document import Status


@click.command(cls=WithSettings)
@click.argument("target")
@as_json
def run(target: str, as_json: bool, **flags: Any) -> None:
    """Run an engine until it is stopped. TARGET is engine.toml or module:handler.

    TERM drains and stops; INT, QUIT or a second TERM stop now, and events stay in shared memory for the next run; HUP
    reads the configuration again and replaces the workers one by one; TTIN and TTOU add or remove one shard.
    """
    from shardmem.config import log_file
    from shardmem.memory.native import arm_from_environment
    from shardmem.memory.segment import control_name, path_of
    from shardmem.runtime import logs
    from shardmem.runtime.child import begin
    from shardmem.runtime.handler import HandlerRef
    from shardmem.runtime.log_file import keep_in
    from shardmem.supervisor.prestart import Prestarted

    begin()
    arm_from_environment()
    config, sources = configured(target, flags)
    is_there = os.path.exists(path_of(control_name(config.name)))  # then workers may live, and go on
    prestarted = click.get_current_context().with_resource(closing(Prestarted(0 if is_there else config.start_shards)))

    import asyncio

    from shardmem.supervisor.notify import Notify
    from shardmem.supervisor.supervisor import Supervisor

    logs.set_up(config.log_format, config.log_level or "info", config.name)
    keep_in(log_file(config.directory, config.name))
    for_people = not as_json and config.log_format == "human"

    def ready(document: Status) -> None:
        if as_json:
            click.echo(json.dumps({"event": "ready", "status": document}))
        elif for_people:
            click.echo(
                f"engine {config.name} is running with {plural(len(document['shards']), 'shard')}. Push with "
                f"shardmem.connect({config.name!r}); stop with `shardmem stop {config.name}` or Ctrl-C",
                err=True,
            )

    def read_again() -> tuple[Any, HandlerRef]:
        nonlocal sources
        config, sources = configured(target, flags)
        return config, HandlerRef.of(config.handler)

    supervisor = Supervisor(
        config,
        HandlerRef.of(config.handler),
        prestarted,
        on_ready=ready,
        read_again=read_again,
        notify=Notify.from_environment(),
        origins=lambda: sources.origins,
    )
    code = asyncio.run(supervisor.run())
    if as_json:
        click.echo(
            json.dumps(
                {
                    "event": "ended",
                    "code": code,
                    "status": supervisor.outcome,
                    **(supervisor.error.describe() if supervisor.error else {"error": None}),
                }
            )
        )
    elif (
        for_people
        and supervisor.outcome is not None
        and (supervisor.error is None or supervisor.outcome["accounting"]["offered"])
    ):
        from shardmem.console.render import accounting_line

        click.echo(accounting_line(supervisor.outcome["accounting"]), err=True)
    sys.exit(code)
