"""The tree is what docs/architecture.md says: a module imports from its own layer or a lower one."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "shardmem"
FLOORS = [
    ("base",),
    ("memory", "policy"),
    ("state",),
    ("runtime",),
    ("remote",),
    ("status",),
    ("client", "sinks"),
    ("sources",),
    ("testing",),
    ("http", "host"),
    ("supervisor",),
    ("console",),
]  # lowest first; the rooms of one floor do not know each other
FLOOR = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}


def layer_of(module: str) -> str:
    parts = module.split(".")
    return parts[1] if len(parts) > 1 and parts[1] in FLOOR else "base"


def imports_of(source: str) -> set[str]:
    """Modules of shardmem that a file imports, at any depth of it and for type checking too: what a type names is
    known."""
    imported = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "shardmem":
            imported |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import):
            imported |= {alias.name for alias in node.names if alias.name.split(".")[0] == "shardmem"}
    return imported


def violations(files: dict[str, set[str]]) -> list[str]:
    found = []
    for module, imported in files.items():
        own = layer_of(module)
        for name in imported:
            other = layer_of(name)
            if "_native" in name and module != "shardmem.memory.native":
                found.append(f"{module} imports the extension; only shardmem.memory.native may")
            elif FLOOR[other] > FLOOR[own] and module not in ("shardmem", "shardmem.__main__"):
                found.append(f"{module} ({own}) imports {name} ({other}), which is above it")
            elif own != other and FLOOR[own] == FLOOR[other]:
                found.append(f"{module} imports {name}: {own} and {other} do not know each other")
    return found


def tree() -> dict[str, set[str]]:
    return {
        ".".join(("shardmem", *path.relative_to(PACKAGE).with_suffix("").parts)).removesuffix(".__init__"): imports_of(
            path.read_text()
        )
        for path in PACKAGE.rglob("*.py")
    }


def test_no_module_imports_from_a_layer_above_its_own():
    assert [] == violations(tree())


@pytest.mark.parametrize(
    "module, imported",
    [
        ("shardmem.memory.lane", "shardmem.runtime.producer.Producer"),
        ("shardmem.policy.placement", "shardmem.memory.engine_segment.ControlSegment"),
        ("shardmem.runtime.worker", "shardmem._native.lib"),
        ("shardmem.errors", "shardmem.memory.native.lib"),
        ("shardmem.http.server", "shardmem.host.census.judge"),
    ],
)
def test_the_layer_check_catches_a_planted_violation(module, imported):
    assert violations({module: {imported}})


def circle_in(files: dict[str, set[str]]) -> tuple[str, ...]:
    """Modules each of which imports the next one, the last of them the first; () when there are none."""
    graph = {
        module: {name if name in files else name.rpartition(".")[0] for name in imported} - {"shardmem"}
        for module, imported in files.items()
        if module != "shardmem"  # the package itself imports lazily, by name
    }
    done: set[str] = set()

    def visit(module: str, path: tuple[str, ...]) -> tuple[str, ...]:
        if module in path:
            return (*path[path.index(module) :], module)
        if module not in done:
            for other in sorted(graph.get(module, ())):
                if circle := visit(other, (*path, module)):
                    return circle
            done.add(module)
        return ()

    return next((circle for module in sorted(graph) if (circle := visit(module, ()))), ())


def test_the_imports_of_the_package_have_no_circle():
    assert () == circle_in(tree())


@pytest.mark.parametrize(
    "lines",
    [
        "from shardmem.supervisor.commands import Commands",
        "def late():\n    from shardmem.supervisor import commands",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from shardmem.supervisor.commands import Commands",
    ],
)
def test_a_circle_is_seen_at_the_top_in_a_function_and_for_type_checking(lines):
    planted = {"shardmem.supervisor.commands": {"shardmem.supervisor.fleet.Fleet"}}
    planted["shardmem.supervisor.fleet"] = imports_of(lines)
    assert ("shardmem.supervisor.commands", "shardmem.supervisor.fleet", "shardmem.supervisor.commands") == circle_in(
        planted
    )


def test_nothing_but_the_ways_in_imports_the_supervisor():
    module = "shardmem.supervisor.supervisor"
    importers = {own for own, imported in tree().items() if any(name.startswith(module) for name in imported)}
    assert {"shardmem.console.cli.run", "shardmem.supervisor.lifeline"} == importers
