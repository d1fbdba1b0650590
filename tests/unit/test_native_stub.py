"""The types of the extension are those of its header."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

from shardmem.memory.native import ffi, lib

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def stubs() -> ModuleType:
    pytest.importorskip("pycparser")
    spec = importlib.util.spec_from_file_location("stubs", ROOT / "csrc" / "stubs.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_stub_of_the_extension_is_up_to_date_with_the_header(stubs):
    assert stubs.stub(stubs.header_text()) == stubs.STUB.read_text(), "run: python csrc/stubs.py"


def test_a_function_that_changes_in_the_header_changes_the_stub(stubs):
    header = stubs.header_text()
    changed = header.replace("void sm_wake(void *inbox);", "int sm_wake(void *inbox, uint32_t times);")

    assert "def sm_wake(self, inbox: CData, /) -> None: ..." in stubs.stub(header)
    assert "def sm_wake(self, inbox: CData, times: int, /) -> int: ..." in stubs.stub(changed)


def test_the_stub_names_what_the_extension_has(stubs):
    text = stubs.STUB.read_text()

    assert [] == [name for name in dir(lib) if f"    {name}: int\n" not in text and f"    def {name}(self" not in text]
    assert [] == [name for name in ffi.list_types()[0] if f"class {name}(CData):" not in text]
