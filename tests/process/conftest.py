"""Fixtures of the process tests."""
from __future__ import annotations

from pathlib import Path
from typing import Iterator

import pytest

from rig import Rig


@pytest.fixture
def rig(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Rig]:
    monkeypatch.setenv("RECORD_DIR", str(tmp_path))
    yield Rig(tmp_path)
