"""The command line. Exit codes: 0 success, 1 failed, 2 usage or configuration, 3 a worker cannot boot,
4 already running.

One file for each command or family of commands. Each imports what it needs when it runs: `--help` imports click only.
"""

from __future__ import annotations

import faulthandler
import json
import sys
from typing import Any

import click

from shardmem import __version__
from shardmem.console.cli import ask, completion, config, demo, doctor, gc, ingest, inside, look, run, source, stop
from shardmem.console.cli.common import AS_JSON, complain
from shardmem.console.cli.quarantine import quarantine
from shardmem.console.cli.state import state
from shardmem.errors import AlreadyRunning, ConfigError, ShardmemError, TooManyProducers
from shardmem.runtime.child import ExitCode, let_threads_sleep


class Commands(click.Group):
    """Turns an error of shardmem into two lines on standard error, error and hint, and its exit code."""

    def invoke(self, context: click.Context) -> Any:
        try:
            return super().invoke(context)
        except (ShardmemError, TimeoutError) as error:
            described: dict[str, Any] = {"error": str(error), "hint": None, "kind": type(error).__name__}
            described |= error.describe() if isinstance(error, ShardmemError) else {}
            complain(described["error"], described["hint"])
            if context.meta.get(AS_JSON):
                click.echo(json.dumps(described))
            context.exit(_exit_code(error))


def _exit_code(error: Exception) -> int:
    if isinstance(error, ConfigError):
        return ExitCode.CONFIG
    is_role = isinstance(error, AlreadyRunning) and not isinstance(error, TooManyProducers)
    return ExitCode.ALREADY if is_role else ExitCode.FAILED


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="shardmem")
def main() -> None:
    """Elastic, key-ordered ingestion on one host, through shared memory.

    \b
    Examples:
      shardmem demo                         count 336,776 real flights
      shardmem run app:handle --name ticks  run handle(batch) of app.py
      shardmem run engine.toml              the same from a file
      shardmem ingest ticks --format csv --key symbol ticks.csv
      shardmem ls                           the engines of this machine
      shardmem status ticks                 a snapshot
      shardmem top ticks                    a live view
      shardmem logs ticks 2 --follow        what shard 2 says
      shardmem stacks ticks 2               where its worker is now
      shardmem scale ticks 3                while events flow
      shardmem move ticks 17,40-60 --to 1   the same
      shardmem where ticks AAPL             slot and shard of a key
      shardmem source status ticks          what feeds it, and how far it is
      shardmem quarantine list ticks        events that kept failing
      shardmem state get ticks visits ann   a value of keyed state
      shardmem stop ticks
      shardmem doctor engine.toml           check this machine
      shardmem config engine.toml           every setting, and where it was set
      shardmem config ticks                 those in force
      shardmem gc                           remove leftovers of dead engines
    """
    let_threads_sleep()
    if sys.stderr is sys.__stderr__ and sys.stderr is not None and not faulthandler.is_enabled():
        faulthandler.enable()
    if click.get_current_context().invoked_subcommand not in (
        "ingest",
        "demo",
    ):  # what pushes must not push into a void
        from shardmem.memory.segment import outlive_lost_memory

        outlive_lost_memory()


for command in (
    run.run,
    config.config,
    look.ls,
    look.status,
    look.top,
    inside.logs,
    inside.stacks,
    look.where,
    stop.stop,
    ask.scale,
    ask.drain,
    ask.move,
    ask.rebalance,
    ask.reload,
    ask.cordon,
    ask.uncordon,
    ask.pin,
    ask.unpin,
    ask.moves,
    quarantine,
    state,
    ingest.ingest,
    source.source,
    gc.gc,
    doctor.doctor,
    demo.demo,
    completion.completion,
):
    main.add_command(command)
