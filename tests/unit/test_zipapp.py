"""A program in one zip file."""

from __future__ import annotations

import subprocess
import sys
import zipapp
from pathlib import Path

MAIN = """
from shardmem.errors import ConfigError
from shardmem.runtime.handler import HandlerRef

def handle(batch): ...

try:
    HandlerRef.of(handle)
except ConfigError as error:
    print(error)
import inside
print(HandlerRef.of(inside.handle).name)
"""


def test_a_handler_in_the_main_of_a_zipapp_is_refused_with_a_remedy_and_one_of_a_module_in_it_is_not(
    tmp_path: Path,
) -> None:
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "__main__.py").write_text(MAIN)
    (tmp_path / "source" / "inside.py").write_text("def handle(batch): ...\n")
    zipapp.create_archive(tmp_path / "source", tmp_path / "app.pyz")
    done = subprocess.run([sys.executable, str(tmp_path / "app.pyz")], capture_output=True, text=True, timeout=60)
    refused, name = done.stdout.splitlines()
    assert f"is defined in __main__ of {tmp_path / 'app.pyz'}" in refused and "pass 'module:handle'" in refused
    assert name == "inside:handle"
