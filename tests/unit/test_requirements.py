"""What packaging says is what is tested."""

from __future__ import annotations

import re
from pathlib import Path

TREE = Path(__file__).parents[2]


def test_the_lowest_versions_that_are_allowed_are_those_that_are_tested() -> None:
    allowed = dict(
        re.findall(r'"([a-z-]+)>=([\d.]+)"', (TREE / "setup.py").read_text().partition("install_requires")[2])
    )
    pinned = dict(re.findall(r"(?m)^([a-z-]+)==([\d.]+)", (TREE / "tests" / "lowest.txt").read_text()))
    assert allowed.keys() == pinned.keys() and len(allowed) == 8
    for name, version in allowed.items():
        assert pinned[name] == version or pinned[name].startswith(f"{version}."), name


def test_the_version_stands_in_one_place() -> None:
    import shardmem

    said = [path.name for path in TREE.glob("*.*") if path.suffix in (".py", ".toml", ".ini")]
    assert {"setup.py", "pyproject.toml", "tox.ini"} <= set(said)
    assert not [name for name in said if f'"{shardmem.__version__}"' in (TREE / name).read_text()]
