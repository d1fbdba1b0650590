"""The tree is what docs/architecture.md says: a module imports from its own layer or a lower one."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "shardmem"
FLOORS = [
    ("base",),
    ("memory", "policy"),
    ("runtime",),
    ("status",),
    ("client",),
    ("sources",),
    ("http", "host"),
    ("supervisor",),
    ("console",),
]  # lowest first; the rooms of one floor do not know each other
FLOOR = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}


def layer_of(module: str) -> str:
    parts = module.split(".")
    return parts[1] if len(parts) > 1 and parts[1] in FLOOR else "base"


def imports_of(path: Path) -> set[str]:
    """Modules of shardmem that a file imports, at any depth of it, except for type checking."""
    found = set()
    tree = ast.parse(path.read_text())
    guarded = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if id(node) in guarded:
            continue
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "shardmem":
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names if alias.name.split(".")[0] == "shardmem"}
    return found


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
            path
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


def test_the_imports_of_the_package_have_no_cycle():
    files = tree()
    graph = {
        module: {name if name in files else name.rpartition(".")[0] for name in imported}
        for module, imported in files.items()
    }
    done: set[str] = set()

    def visit(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, " -> ".join((*path, module))
        if module in done:
            return
        for other in graph.get(module, ()):
            if other != "shardmem":  # the package itself imports lazily, by name
                visit(other, (*path, module))
        done.add(module)

    for module in graph:
        visit(module, ())
