"""What several commands share: exit codes, options, and the engine that is meant."""

from __future__ import annotations

import re
from typing import Any

import click

from shardmem.text import printable, printable_lines

AS_JSON = "shardmem.as_json"  # in the `meta` of a context, which the group shares with its commands


def _note_json(context: click.Context, parameter: click.Parameter, value: bool) -> bool:
    context.meta[AS_JSON] = value
    return value


def say(text: str, err: bool = False) -> None:
    """Text for people: names, keys and errors in it are users', and give no orders to a terminal."""
    click.echo(printable_lines(text), err=err)


def complain(text: str, hint: str | None = None) -> None:
    """On standard error, in colour where that is a terminal. What is not the next of a list of faults is indented: an
    error's text may be made to look like something else."""
    listed = re.sub("\n(?!- )", "\n  ", text)
    click.echo(f"{click.style('error', fg='red', bold=True)}: {printable_lines(listed)}", err=True)
    if hint:
        advise(hint)


def warn(text: str, hint: str) -> None:
    """It was done as asked; this is what to know about it."""
    click.echo(f"{click.style('warning', fg='yellow', bold=True)}: {printable_lines(text, '  ')}", err=True)
    advise(hint)


def advise(hint: str) -> None:
    click.echo(f"{click.style('hint', fg='cyan', bold=True)}: {printable(hint)}", err=True)


as_json = click.option(
    "--json", "as_json", is_flag=True, callback=_note_json, help="Print JSON for programs instead of text."
)
engine_argument = click.argument("engine", required=False)
engine_option = click.option(
    "--engine", "name", help="Name of the engine; default: SHARDMEM_NAME, or the only one here."
)


class EngineFirst(click.Command):
    """The engine may stand before its arguments, as in `scale NAME 3`, and be left out where there is only one. It has
    `engine_option` too."""

    def collect_usage_pieces(self, context: click.Context) -> list[str]:
        options, *arguments = super().collect_usage_pieces(context)
        return [options, "[ENGINE]", *arguments]

    def make_parser(self, context: click.Context) -> Any:
        parser = super().make_parser(context)
        parse, names = parser.parse_args, [each.name for each in self.params if isinstance(each, click.Argument)]

        def with_engine(args: list[str]) -> tuple[dict[str, Any], list[str], list[click.Parameter]]:
            found, more, order = parse(args)
            if len(more) == 1:
                values = [*(found[name] for name in names), *more]
                found |= {**dict(zip(names, values[1:])), "name": either(values[0], found.get("name"))}
                more = []
            return found, more, order

        parser.parse_args = with_engine  # type: ignore[method-assign]
        return parser


def either(engine: str | None, name: str | None) -> str | None:
    """The engine that an argument or --engine names."""
    if engine is not None and name is not None and engine != name:
        raise click.UsageError(f"two engines are named, {engine} and {name}")
    return engine or name
