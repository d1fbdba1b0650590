"""What is proven is what runs: every public name of the policy layer has a use outside it."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import shardmem.policy

PACKAGE = Path(shardmem.policy.__file__).parents[1]
# Types of fields and base classes of errors that users meet without importing them; nobody has to name them to use
# them.
MET = {
    "HandoffError": "raised by HandoffCoordinator",
    "HotSlot": "in ShardCoordinator.hot_slots",
    "InvalidPolicy": "raised by ScalingPolicy",
    "Move": "returned by users' strategies",
    "Restart": "returned by Restarts.ended",
    "ScalingError": "raised by ShardMapper, met by its base ShardmemError",
    "ScalingErrorKind": "in ScalingError.kind",
    "first_table": "in ShardCoordinator.propose",
    "View": "handed to users' strategies",
}


def used(files: dict[str, str]) -> set[str]:
    """Names that modules outside policy import from it."""
    return {
        alias.name
        for source in files.values()
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("shardmem.policy")
        for alias in node.names
    }


def outside() -> dict[str, str]:
    return {str(path): path.read_text() for path in PACKAGE.rglob("*.py") if path.parent.name != "policy"}


def test_every_public_name_of_policy_is_imported_by_a_module_outside_it():
    assert set() == set(shardmem.policy.__all__) - used(outside()) - set(MET)


def test_a_name_that_nobody_uses_is_found():
    files = {path: text for path, text in outside().items() if not path.endswith(("planner.py", "carrier.py"))}
    assert {"RebalanceRunner", "BeginHandoff", "HandoffCoordinator"} <= set(shardmem.policy.__all__) - used(files)


def test_every_public_name_of_policy_is_found_at_its_first_use():
    for name in shardmem.policy.__all__:
        assert getattr(shardmem.policy, name) is not None
    with pytest.raises(AttributeError, match="nothing_of_that_name"):
        shardmem.policy.nothing_of_that_name
