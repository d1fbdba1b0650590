"""What several commands share: exit codes, options, and the engine that is meant."""

from __future__ import annotations

import click

AS_JSON = "shardmem.as_json"  # in the `meta` of a context, which the group shares with its commands


def _note_json(context: click.Context, parameter: click.Parameter, value: bool) -> bool:
    context.meta[AS_JSON] = value
    return value


def complain(text: str, hint: str | None = None) -> None:
    """On standard error, in colour where that is a terminal."""
    click.echo(f"{click.style('error', fg='red', bold=True)}: {text}", err=True)
    if hint:
        advise(hint)


def advise(hint: str) -> None:
    click.echo(f"{click.style('hint', fg='cyan', bold=True)}: {hint}", err=True)


as_json = click.option(
    "--json", "as_json", is_flag=True, callback=_note_json, help="Print JSON for programs instead of text."
)
engine_argument = click.argument("engine", required=False)
engine_option = click.option(
    "--engine", "name", help="Name of the engine; default: SHARDMEM_NAME, or the only one here."
)


class WithoutEngine(click.Command):
    """Its arguments do not name the engine, as they do in `status NAME`: one too many is probably meant so."""

    def parse_args(self, context: click.Context, args: list[str]) -> list[str]:
        _, rest, _ = self.make_parser(context).parse_args(list(args))
        if rest:
            more = " ".join(map(str, rest))
            raise click.UsageError(f"too many arguments: {more}; name the engine with --engine NAME", context)
        return super().parse_args(context, args)


def either(engine: str | None, name: str | None) -> str | None:
    """The engine that an argument or --engine names."""
    if engine is not None and name is not None and engine != name:
        raise click.UsageError(f"two engines are named, {engine} and {name}")
    return engine or name
