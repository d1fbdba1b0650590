"""The command line. Exit codes: 0 as asked, 1 failed, 2 usage or configuration, 3 a worker cannot boot, 4 already running."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from typing import Any

import click

from shardmem import __version__
from shardmem.console.quarantine import quarantine
from shardmem.errors import AlreadyRunning, ConfigError, ShardmemError
from shardmem.runtime.child import ExitCode
from shardmem.settings import some

as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON for programs instead of text.")


class Commands(click.Group):
    """Turns the errors of shardmem into one line on standard error and the exit code that belongs to it."""

    def invoke(self, context: click.Context) -> Any:
        try:
            return super().invoke(context)
        except ShardmemError as error:
            click.echo(f"shardmem: {error}", err=True)
            code = (
                ExitCode.CONFIG
                if isinstance(error, ConfigError)
                else ExitCode.ALREADY
                if isinstance(error, AlreadyRunning)
                else ExitCode.FAILED
            )
            context.exit(code)
        except TimeoutError as error:
            click.echo(f"shardmem: {error}", err=True)
            context.exit(ExitCode.FAILED)


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


main.add_command(quarantine)


class _WithSettings(click.Command):
    """Has a flag for each setting that shardmem.config declares; looked up late, because that imports numpy."""

    def get_params(self, context: click.Context) -> list[click.Parameter]:
        from shardmem.console.explain import flags

        self.params = [each for each in self.params if each not in flags()] + flags()
        return super().get_params(context)


@main.command(cls=_WithSettings)
@click.argument("target")
@as_json
def run(target: str, as_json: bool, **flags: Any) -> None:
    """Run an engine until it is stopped. TARGET is engine.toml or module:handler.

    TERM drains and stops; INT, QUIT or a second TERM stop now, and events stay in shared memory for the next run; HUP reads the
    configuration again and replaces the workers one by one; TTIN and TTOU are one shard more and one fewer.
    """
    from shardmem.memory.native import arm_from_environment
    from shardmem.runtime import logs
    from shardmem.runtime.handler import HandlerRef
    from shardmem.supervisor.notify import Notify
    from shardmem.supervisor.supervisor import Supervisor

    arm_from_environment()
    config, _ = _configured(target, flags)
    logs.set_up(config.log_format, config.log_level or "info", config.name)
    for_people = not as_json and config.log_format == "human"

    def ready(document: dict[str, Any]) -> None:
        if as_json:
            click.echo(json.dumps({"event": "ready", "status": document}))
        elif for_people:
            click.echo(
                f"engine {config.name} is running: {some(len(document['shards']), 'shard')}. Push with "
                f"shardmem.connect({config.name!r}); stop with 'shardmem stop {config.name}' or Ctrl-C",
                err=True,
            )

    def read_again() -> tuple[Any, HandlerRef]:
        config, _ = _configured(target, flags)
        return config, HandlerRef.of(config.handler)

    supervisor = Supervisor(
        config, HandlerRef.of(config.handler), on_ready=ready, read_again=read_again, notify=Notify.from_environment()
    )
    code = asyncio.run(supervisor.run())
    if as_json:
        click.echo(
            json.dumps(
                {
                    "event": "ended",
                    "code": code,
                    "status": supervisor.outcome,
                    "error": str(supervisor.error) if supervisor.error else None,
                }
            )
        )
    elif for_people and supervisor.outcome is not None:
        from shardmem.console.render import accounting_line

        click.echo(accounting_line(supervisor.outcome["accounting"]), err=True)
    sys.exit(code)


def _configured(target: str | None, flags: dict[str, Any]) -> Any:
    """(settings, their sources) of what `run` is given, or of nothing but variables and flags. Raises ConfigError."""
    from shardmem.config import sourced
    from shardmem.supervisor.configured import faults_of

    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    if target is None or target.endswith(".toml"):
        return sourced(target, flags, further=faults_of)
    if ":" not in target:
        raise click.UsageError(
            f"{target!r} is neither a file that ends in .toml nor module:handler, as app:handle is for "
            f"the function handle of app.py"
        )
    flags["name"] = flags["name"] or os.environ.get("SHARDMEM_NAME") or target.partition(":")[0].rpartition(".")[2]
    return sourced(None, {"handler": target, **flags}, further=faults_of)


@main.command(short_help="Show every setting, and where its value is from.", cls=_WithSettings)
@click.argument("target", required=False)
@click.option("--markdown", is_flag=True, hidden=True, help="Print docs/settings.md.")
@as_json
def config(target: str | None, markdown: bool, as_json: bool, **flags: Any) -> None:
    """Show every setting: value, unit, default, where it came from and what it is for.

    TARGET and flags are those of `run`. Nothing is started; all faults are listed at once, each with its place.
    """
    from shardmem.console import explain

    if markdown:
        click.echo(explain.page(), nl=False)
        return
    if target is None:  # then nobody has to say what is to be run
        flags["name"], flags["handler"] = flags["name"] or os.environ.get("SHARDMEM_NAME", "unnamed"), "none:none"
    rows = explain.rows(*_configured(target, flags), made_up=() if target else ("name", "handler"))
    click.echo(json.dumps({"settings": rows}, indent=2) if as_json else explain.text(rows))


@main.command()
@click.argument("name", required=False)
@click.option(
    "--wait", type=click.FloatRange(0), metavar="SECONDS", help="First wait until the engine is ready, or fail."
)
@as_json
def status(name: str | None, wait: float | None, as_json: bool) -> None:
    """Show an engine: shards, producers, accounting. Works with its supervisor dead."""
    from shardmem.client.client import Client, only_engine, wait_ready

    if wait is not None:
        document = wait_ready(name, wait)
    else:
        with Client(name or only_engine()) as client:
            document = client.status()
    if as_json:
        click.echo(json.dumps(document, indent=2))
    else:
        from rich.console import Console

        from shardmem.console import render

        Console(highlight=False).print(render.status(document))


@main.command()
@click.argument("name", metavar="[ENGINE]", required=False)
@click.option("--once", is_flag=True, help="Print one frame and end, as without a terminal.")
@click.option(
    "--interval", type=click.FloatRange(0.1, 3600), default=1.0, show_default=True, help="Seconds between two looks."
)
def top(name: str | None, once: bool, interval: float) -> None:
    """Watch an engine: shards, producers, handoffs, decisions. Works with its supervisor dead.

    \b
    + -  one shard more, one fewer        s  sort shards by id, rate, fill, busy
    d    drain a shard                    p  pause the display
    a    scale auto: back to the policy   q  quit; the engine goes on
    """
    from shardmem.client.client import only_engine
    from shardmem.console.top import run

    run(name or only_engine(), interval, once)


@main.command()
@click.argument("name", required=False)
@click.option("--now", is_flag=True, help="Do not drain: events stay in shared memory for the next run.")
@click.option("--timeout", type=float, help="Seconds to wait for the end.")
@as_json
def stop(name: str | None, now: bool, timeout: float | None, as_json: bool) -> None:
    """Drain an engine and stop it."""
    from shardmem.client.client import Client, only_engine
    from shardmem.console.render import accounting_line

    name = name or only_engine()
    shown = False

    def progress(in_flight: int) -> None:
        nonlocal shown
        if sys.stderr.isatty():
            shown = True
            click.echo(f"\rdraining: {in_flight:,} events in flight   ", nl=False, err=True)

    with Client(name) as client:
        document = client.stop(now, timeout, progress)
    if shown:
        click.echo(err=True)
    left = document["accounting"]["in_flight"]
    if as_json:
        click.echo(json.dumps(document, indent=2))
    else:
        click.echo(f"engine {name} has stopped: {accounting_line(document['accounting'])}")
    if left and not now:
        click.echo(
            f"shardmem: {left:,} events were not handled (see the engine's log); they stay in shared memory, "
            f"run the engine again to handle them",
            err=True,
        )
        sys.exit(ExitCode.FAILED)


def _ask(name: str | None, as_json: bool, command: str, **wanted: Any) -> None:
    """One command of the control API, its answer for people or programs."""
    from shardmem.client.client import Client, only_engine
    from shardmem.console.render import answer

    name = name or only_engine()
    with Client(name) as client:
        done = client.command(command, **wanted)
    click.echo(json.dumps(done, indent=2) if as_json else answer(name, command, done))


class _OfAnEngine(click.Command):
    """Whose arguments are not the engine: a name too many is one, as it is in `status NAME`."""

    def parse_args(self, context: click.Context, args: list[str]) -> list[str]:
        _, rest, _ = self.make_parser(context).parse_args(list(args))
        if rest:
            more = " ".join(map(str, rest))
            raise click.UsageError(f"too many arguments: {more}; name the engine with --engine NAME", context)
        return super().parse_args(context, args)


def _either(engine: str | None, name: str | None) -> str | None:
    """The engine that an argument or --engine names."""
    if engine is not None and name is not None and engine != name:
        raise click.UsageError(f"two engines are named, {engine} and {name}")
    return engine or name


engine_argument = click.argument("engine", required=False)
engine_option = click.option(
    "--engine", "name", help="Name of the engine; default: SHARDMEM_NAME, or the only one here."
)


@main.command(cls=_OfAnEngine, short_help="Run more or fewer shards, or let the policy decide.")
@click.argument("shards")
@engine_option
@as_json
def scale(shards: str, name: str | None, as_json: bool) -> None:
    """Run SHARDS workers: start more, or drain and remove some; slots are evened out while events flow.

    'auto' hands back to the policy.
    """
    if shards != "auto" and not shards.isdigit():
        raise click.UsageError(f"{shards!r} is neither a number of shards nor 'auto'")
    _ask(name, as_json, "scale", shards=shards if shards == "auto" else int(shards))


@main.command(cls=_OfAnEngine, short_help="Hand the slots of a shard to the others; remove it.")
@click.argument("shard", type=click.IntRange(0))
@engine_option
@as_json
def drain(shard: int, name: str | None, as_json: bool) -> None:
    """Hand the slots of SHARD to the others, then stop and remove it."""
    _ask(name, as_json, "drain", shard=shard)


@main.command(cls=_OfAnEngine, short_help="Move slots to a shard while events flow.")
@click.argument("slots")
@click.option("--to", "to", type=click.IntRange(0), required=True, help="The shard that is to own them.")
@engine_option
@as_json
def move(slots: str, to: int, name: str | None, as_json: bool) -> None:
    """Move SLOTS (for example 17,40-60) to a shard; nothing is lost, repeated or reordered on the way."""
    _ask(name, as_json, "move", slots=slots, to=to)


@main.command()
@engine_argument
@engine_option
@as_json
def rebalance(engine: str | None, name: str | None, as_json: bool) -> None:
    """Even out the slots over the shards, with the fewest moves."""
    _ask(_either(engine, name), as_json, "rebalance")


@main.command(short_help="Fresh workers, with what the configuration says now.")
@engine_argument
@engine_option
@as_json
def reload(engine: str | None, name: str | None, as_json: bool) -> None:
    """Replace every worker by a fresh one, with what the configuration file and the handler's module say now."""
    _ask(_either(engine, name), as_json, "reload")


@main.command(short_help="Push lines, CSV or JSON lines into a running engine.")
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
        summary = {
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


@main.command(short_help="Remove shared memory and sockets that nobody holds.")
@click.argument("engines", nargs=-1)
@click.option("--dry-run", is_flag=True, help="Only say what would be done.")
@click.option(
    "--end-orphans", is_flag=True, help="TERM to workers whose supervisor is gone; then look at their engine."
)
@click.option("--discard", metavar="NAME", help="Remove this one engine's memory; accepted events in it are lost.")
@as_json
def gc(engines: tuple[str, ...], dry_run: bool, end_orphans: bool, discard: str | None, as_json: bool) -> None:
    """Remove shared memory and sockets that nobody holds, of ENGINES or of all, and say what and why.

    What holds accepted events is kept, because a run of the same engine handles them; state files are not touched.
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
        click.echo(collected(found, dry_run))


@main.command(short_help="Will an engine run well on this machine?")
@click.argument("target", required=False)
@as_json
def doctor(target: str | None, as_json: bool) -> None:
    """Look whether an engine will run well here, and say what to change. Exit code 1 if there is a problem.

    TARGET is engine.toml, module:handler or the name of an engine that is here; without it, the default settings.
    """
    from dataclasses import replace

    from shardmem.console.render import checks as rendered
    from shardmem.host.census import Places, census, judge
    from shardmem.host.doctor import PROBLEM, Plan, examine, worst_of
    from shardmem.host.machine import Host
    from shardmem.memory.engine_segment import ControlSegment

    if target is not None and not target.endswith(".toml") and ":" not in target:
        control = ControlSegment.attach(target)
        plan = Plan.of_engine(control)
        control.close()
    else:
        config, _ = _configured(target, {"name": None} if target else {"name": "engine", "handler": "none:none"})
        plan = Plan.of_config(config)
    places = Places()
    engines, others = census(places)
    held = {
        facts.name: sum(inbox.file.bytes for inbox in facts.inboxes) + facts.control.bytes
        for facts in engines
        if facts.control
    }
    leftovers = [*(each for facts in engines for each in judge(facts, places.uid)), *others]
    checks = examine(Host(), replace(plan, held=held.get(plan.name, 0)), leftovers)
    if as_json:
        click.echo(
            json.dumps(
                {"engine": plan.name, "worst": worst_of(checks), "checks": [each.describe() for each in checks]},
                indent=2,
            )
        )
    else:
        click.echo(rendered([each.describe() for each in checks]))
    if worst_of(checks) == PROBLEM:
        sys.exit(ExitCode.FAILED)


@main.command(short_help="See it work on 336,776 real flights.")
@click.option("--shards", type=click.IntRange(1), default=3, show_default=True)
@click.option("--producers", type=click.IntRange(1, 32), default=2, show_default=True)
@as_json
def demo(shards: int, producers: int, as_json: bool) -> None:
    """Ingest 336,776 real flights, keyed by aircraft, and print what each aircraft flew."""
    from shardmem.console.demo import run_demo

    run_demo(shards, producers, as_json)


if __name__ == "__main__":
    main(prog_name="shardmem")
