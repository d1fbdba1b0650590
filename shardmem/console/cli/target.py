"""What `run`, `config` and `doctor` are given: a TARGET and a flag for each setting."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:  # both import numpy
    from shardmem.config import Config
    from shardmem.settings_sources import Sources


class WithSettings(click.Command):
    """Has a flag for each setting that shardmem.config declares; looked up late, because that imports numpy."""

    def get_params(self, context: click.Context) -> list[click.Parameter]:
        from shardmem.console.explain import flags

        self.params = [each for each in self.params if each not in flags()] + flags()
        return super().get_params(context)


def is_engine(target: str) -> bool:
    """Whether it is the name of an engine, and not something to run."""
    return not target.endswith(".toml") and ":" not in target


def configured(target: str | None, flags: dict[str, Any]) -> tuple[Config, Sources]:
    """(settings, their sources) of what `run` is given, or of nothing but variables and flags. Raises ConfigError."""
    from shardmem.config import sourced
    from shardmem.supervisor.configured import faults_of

    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    if target is None or target.endswith(".toml"):
        return sourced(target, flags, further=faults_of)
    if ":" not in target:
        raise click.UsageError(
            f"{target!r} is not a file that ends in .toml or module:handler, such as app:handle for the function "
            "handle in app.py"
        )
    flags["name"] = flags["name"] or os.environ.get("SHARDMEM_NAME") or target.partition(":")[0].rpartition(".")[2]
    return sourced(None, {"handler": target, **flags}, further=faults_of)
