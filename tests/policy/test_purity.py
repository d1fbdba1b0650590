"""Policies decide and do nothing else: they import no clock, no chance, no I/O, and nobody but base modules and
numpy."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "shardmem" / "policy"
ALLOWED = {
    "__future__",
    "bisect",
    "collections",
    "dataclasses",
    "enum",
    "functools",
    "heapq",
    "itertools",
    "math",
    "numpy",
    "typing",
    "shardmem.errors",
    "shardmem.policy",
    "shardmem.settings",
}
CALLS = {"open", "print", "input", "hash", "id", "exec", "eval", "__import__"}  # hash and id differ from run to run


def impurities(source: str) -> list[str]:
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names if alias.name.split(".")[0] not in ALLOWED]
        elif isinstance(node, ast.ImportFrom):
            if not any(node.module == name or node.module.startswith(f"{name}.") for name in ALLOWED):
                found.append(node.module)
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in CALLS:
            found.append(f"{node.func.id}()")
        elif isinstance(node, ast.Attribute) and node.attr == "random":
            found.append("random")
    return found


@pytest.mark.parametrize("path", sorted(PACKAGE.glob("*.py")), ids=lambda path: path.stem)
def test_a_policy_has_no_clock_no_chance_and_no_io(path):
    finds_names = ["importlib"] if path.stem == "__init__" else []  # which decides nothing, at their first use
    assert finds_names == impurities(path.read_text())


@pytest.mark.parametrize(
    "source",
    [
        "import time",
        "from random import choice",
        "import numpy as np\nnp.random.rand()",
        "open('x')",
        "from shardmem.memory.engine_segment import ControlSegment",
        "import os.path",
        "hash('key')",
    ],
)
def test_the_check_catches_a_planted_impurity(source):
    assert impurities(source)
