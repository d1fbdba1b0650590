"""What several commands share: exit codes, options, and the engine that is meant."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import click
from click.shell_completion import CompletionItem

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


def engines_like(context: click.Context, parameter: click.Parameter | None, incomplete: str) -> list[str]:
    """For the shell's completion: the engines of this machine whose name begins so."""
    from shardmem.memory.segment import engine_names

    return [name for name in engine_names() if name.startswith(incomplete)]


class EngineFirst(click.Command):
    """NAME, the engine, stands before the arguments, as in `scale NAME 3`, and may be left out where there is only one.
    The function gets it as `name`."""

    def __init__(self, *args: Any, **settings: Any) -> None:
        super().__init__(*args, **settings)
        self.params.append(click.Option(["--engine", "name"], hidden=True))  # as it was until 0.1; goes with 0.3

    def is_name(self, word: str, options: Mapping[str, Any]) -> bool:
        """Whether the first word is meant as NAME where it could also be an argument."""
        return False

    def collect_usage_pieces(self, context: click.Context) -> list[str]:
        options, *arguments = super().collect_usage_pieces(context)
        return [options, "[NAME]", *arguments]

    def format_help_text(self, context: click.Context, formatter: click.HelpFormatter) -> None:
        super().format_help_text(context, formatter)
        formatter.write_paragraph()
        with formatter.indentation():
            formatter.write_text("NAME is the engine; default: SHARDMEM_NAME, or the only one here.")

    def shell_complete(self, context: click.Context, incomplete: str) -> list[CompletionItem]:
        found = super().shell_complete(context, incomplete)
        if not incomplete.startswith("-") and context.params.get("name") is None:
            found += [CompletionItem(name) for name in engines_like(context, None, incomplete)]
        return found

    def make_parser(self, context: click.Context) -> Any:
        parser = super().make_parser(context)
        parse = parser.parse_args
        arguments = [each for each in self.params if isinstance(each, click.Argument)]
        least = sum(each.required and each.nargs == 1 for each in arguments)
        most = float("inf") if any(each.nargs == -1 for each in arguments) else len(arguments)

        def with_engine(args: list[str]) -> tuple[dict[str, Any], list[str], list[click.Parameter]]:
            found, more, order = parse(args)
            words = [word for each in arguments for word in _words(found.get(each.name or ""))] + more
            is_alone = 0 < len(words) <= least and not _fits(
                arguments[0], words[0], context
            )  # then click asks for the rest
            if len(words) > most or is_alone or (len(words) > least and self.is_name(words[0], found)):
                found["name"] = either(words.pop(0), found.get("name"))
                for each in arguments:
                    taken, words = (words, []) if each.nargs == -1 else (words[:1], words[1:])
                    if taken or each.nargs == -1:
                        found[each.name or ""] = tuple(taken) if each.nargs == -1 else taken[0]
                    else:
                        found.pop(each.name or "", None)
                more = words
            return found, more, order

        parser.parse_args = with_engine  # type: ignore[method-assign]
        return parser


def _words(value: Any) -> list[str]:
    """Of an argument as click's parser has it: what is missing is some mark of its own."""
    return [value] if isinstance(value, str) else list(value) if isinstance(value, (tuple, list)) else []


def _fits(argument: click.Argument, word: str, context: click.Context) -> bool:
    try:
        argument.type.convert(word, argument, context)
    except click.BadParameter:
        return False
    return True


def either(engine: str, name: Any) -> str:
    """The engine that the first word or --engine names."""
    if isinstance(name, str) and engine != name:
        raise click.UsageError(f"two engines are named, {engine} and {name}")
    return engine
