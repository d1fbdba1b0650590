"""The fixtures that users of pytest get."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

TEST = """
import shardmem


class Visits(shardmem.Handler):
    visits = shardmem.KeyedState(int, default=0)

    def handle(self, batch):
        for user, page in batch:
            self.visits[user] += 1


def test_in_this_process(shardmem_harness):
    harness = shardmem_harness(Visits)
    harness.feed([("ann", b"/"), ("ann", b"/")])
    assert harness.handler.visits["ann"] == 2


def test_in_an_engine(shardmem_engine):
    engine, producer = shardmem_engine(Visits, shards=1)
    producer.push_many(["ann", "ann"], [b"/", b"/"])
    producer.flush(60)
    assert engine.state("visits", "ann").value == 2
"""


def test_fixtures_run_a_handler_in_the_test_and_in_an_engine(tmp_path: Path) -> None:
    (tmp_path / "test_visits.py").write_text(TEST)
    (tmp_path / "conftest.py").write_text('pytest_plugins = ["shardmem.testing.plugin"]')
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir", str(tmp_path), str(tmp_path)],
        cwd=tmp_path,
        env={**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "TMPDIR": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=110,
    )
    assert 0 == done.returncode and "2 passed" in done.stdout, done.stdout + done.stderr
