"""What type checkers say of a user's program: of a right one nothing, of a wrong one where."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import shardmem

HERE = Path(shardmem.__file__).parents[1]  # an editable installation is found by a hook, which checkers do not run
PYRIGHT = Path(sys.executable).parent / "pyright"
USER = Path(__file__).with_name("user.py")
WRONG = [number for number, line in enumerate(USER.read_text().splitlines(), 1) if line.endswith("# WRONG")]


def test_mypy_strict_finds_what_is_wrong_in_a_program_and_nothing_else(tmp_path):
    pytest.importorskip("mypy")
    options = ["--strict", "--follow-imports=silent", "--config-file=", f"--cache-dir={tmp_path}"]
    environment = dict(os.environ) if HERE.name == "site-packages" else {**os.environ, "MYPYPATH": str(HERE)}
    command = [sys.executable, "-m", "mypy", *options, str(USER)]
    found = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment)
    lines = re.findall(r"user\.py:(\d+): error", found.stdout)

    assert WRONG == sorted({int(line) for line in lines}), found.stdout + found.stderr


@pytest.mark.skipif(not PYRIGHT.exists(), reason="pyright is not installed here")
def test_pyright_finds_what_is_wrong_in_a_program_and_nothing_else(tmp_path):
    (tmp_path / "pyrightconfig.json").write_text(json.dumps({"extraPaths": [str(HERE)]}))
    (tmp_path / "user.py").write_text(USER.read_text())
    command = [str(PYRIGHT), "--outputjson", f"--pythonpath={sys.executable}", "-p", str(tmp_path)]
    found = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    faults = json.loads(found.stdout)["generalDiagnostics"]
    lines = {fault["range"]["start"]["line"] + 1 for fault in faults if fault["severity"] == "error"}

    assert WRONG == sorted(lines), found.stdout
