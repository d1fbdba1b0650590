"""The command line. Exit codes: 0 success, 1 failed, 2 usage or configuration, 3 a worker cannot boot, 4 already running.

One file for each command or family of commands. Each imports what it needs when it runs: `--help` imports click only.
"""

from __future__ import annotations

from typing import Any

import click

from shardmem import __version__
from shardmem.console.cli import ask, config, demo, doctor, gc, ingest, look, run, stop
from shardmem.console.cli.common import EXIT_ALREADY, EXIT_CONFIG, EXIT_FAILED
from shardmem.console.cli.quarantine import quarantine
from shardmem.errors import AlreadyRunning, ConfigError, ShardmemError


class Commands(click.Group):
    """Turns the errors of shardmem into one line on standard error and the exit code that belongs to it."""

    def invoke(self, context: click.Context) -> Any:
        try:
            return super().invoke(context)
        except ShardmemError as error:
            click.echo(f"shardmem: {error}", err=True)
            code = (
                EXIT_CONFIG
                if isinstance(error, ConfigError)
                else EXIT_ALREADY
                if isinstance(error, AlreadyRunning)
                else EXIT_FAILED
            )
            context.exit(code)
        except TimeoutError as error:
            click.echo(f"shardmem: {error}", err=True)
            context.exit(EXIT_FAILED)


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="shardmem")
def main() -> None:
    """Elastic, key-ordered ingestion on one host, through shared memory.

    \b
    Examples:
      shardmem demo                                     see it work on 336,776 real flights
      shardmem run app:handle --name ticks --shards 2   run handle(batch) of app.py
      shardmem run engine.toml                          the same from a file
      shardmem ingest --engine ticks --format csv --key symbol ticks.csv
      shardmem status ticks; shardmem top ticks         as it is; as it goes
      shardmem scale 3; shardmem move 17,40-60 --to 1   while events flow
      shardmem quarantine list                          events that failed again and again
      shardmem stop ticks
      shardmem doctor engine.toml                       will it run well here?
      shardmem config engine.toml                       what is set, and where
      shardmem gc                                       remove what nobody holds
    """


for command in (
    run.run,
    config.config,
    look.status,
    look.top,
    stop.stop,
    ask.scale,
    ask.drain,
    ask.move,
    ask.rebalance,
    ask.reload,
    quarantine,
    ingest.ingest,
    gc.gc,
    doctor.doctor,
    demo.demo,
):
    main.add_command(command)
