"""`shardmem completion`: what a shell needs to complete commands, options and names of engines."""

from __future__ import annotations

import click

SHELLS = ("bash", "zsh", "fish")
VARIABLE = "_SHARDMEM_COMPLETE"  # by which click knows that a shell asks


@click.command(short_help="Print what makes a shell complete commands, options and names.")
@click.argument("shell", type=click.Choice(SHELLS))
def completion(shell: str) -> None:
    """Print what makes SHELL complete commands, options and the names of engines.

    \b
    bash, in ~/.bashrc:  eval "$(shardmem completion bash)"
    zsh, in ~/.zshrc:    eval "$(shardmem completion zsh)"
    fish:                shardmem completion fish > ~/.config/fish/completions/shardmem.fish
    """
    from click.shell_completion import get_completion_class

    found = get_completion_class(shell)
    assert found is not None
    click.echo(found(click.get_current_context().find_root().command, {}, "shardmem", VARIABLE).source())
