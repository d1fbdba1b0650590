"""What several commands share: exit codes, options, and the engine that is meant."""

from __future__ import annotations

import click

EXIT_FAILED, EXIT_CONFIG, EXIT_ALREADY = 1, 2, 4

as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON for programs instead of text.")
engine_argument = click.argument("engine", required=False)
engine_option = click.option(
    "--engine", "name", help="Name of the engine; default: SHARDMEM_NAME, or the only one here."
)


class OfAnEngine(click.Command):
    """Whose arguments are not the engine: a name too many is one, as it is in `status NAME`."""

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
