"""An engine that runs as a service user, and operators who are somebody else."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

OWNER, STRANGER = 65534, 65533


class Place:
    """What users share: a temporary directory, in which an engine keeps its socket and its files."""

    def __init__(self, directory: str, name: str) -> None:
        self.directory, self.name = directory, name
        self.environment = {**os.environ, "TMPDIR": directory, "PYTHONDONTWRITEBYTECODE": "1"}

    def start(self, uid: int, *arguments: str) -> subprocess.Popen[str]:
        # An interpreter below /root is out of their reach; the capability lets them read it, and write nothing.
        prefix = (
            [
                "setpriv",
                f"--reuid={uid}",
                f"--regid={uid}",
                "--clear-groups",
                "--inh-caps=+dac_read_search",
                "--ambient-caps=+dac_read_search",
            ]
            if uid
            else []
        )
        return subprocess.Popen(
            [*prefix, sys.executable, "-m", *arguments],
            cwd=self.directory,
            env=self.environment if uid else {**self.environment, "TMPDIR": "/"},  # root's is another one
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    def said(self, uid: int, *arguments: str, code: int | None = 0) -> str:
        with self.start(uid, "shardmem", *arguments) as process:
            said = process.communicate(timeout=30)[0]
        assert code in (None, process.returncode), said
        return said


@pytest.fixture
def place(engine_name: str) -> Iterator[Place]:
    if os.getuid() != 0 or shutil.which("setpriv") is None:
        pytest.skip("only root can be several users, with setpriv")
    with tempfile.TemporaryDirectory() as directory:  # tmp_path is private to its user
        os.chmod(directory, 0o777)
        Path(directory, "app.py").write_text("def handle(batch):\n    pass\n")
        found = Place(directory, engine_name)
        yield found


def test_root_gives_commands_to_the_engine_of_a_service_user_and_others_are_told_whose_it_is(place: Place) -> None:
    name = place.name
    with place.start(
        OWNER,
        "shardmem",
        "run",
        "app:handle",
        "--name",
        name,
        "--shards",
        "1",
        "--max-shards",
        "2",
        "--log-level",
        "error",
    ) as daemon:
        try:
            place.said(0, "status", name, "--wait", "20")
            assert "runs 2 shards" in place.said(0, "scale", "2", "--engine", name)
            assert "replaced" in place.said(0, "reload", "--engine", name)
            assert f"engine {name}: the quarantine is empty" in place.said(0, "quarantine", "list", "--engine", name)
            theirs = f"engine {name!r} belongs to uid {OWNER}, and this process runs as uid {STRANGER}: run this as"
            for command in (
                ["status", name],
                ["scale", "2", "--engine", name],
                ["quarantine", "list", "--engine", name],
                ["stop", name],
            ):
                assert theirs in place.said(STRANGER, *command, code=1)
            assert "Traceback" not in place.said(STRANGER, "status", code=1)
            judged = " ".join(place.said(0, "doctor", name, code=None).split())
            assert (
                f"judged for user nobody (uid {OWNER}), with the limits of its supervisor, pid {daemon.pid}" in judged
            )
            assert f"{place.directory}/shardmem-{OWNER} is private and writable" in judged and "uid 0" not in judged
            assert "1 engine in use" in judged, judged
            before = _seen(place.directory)
            for command in (["status", name], ["doctor", name], ["quarantine", "list", "--engine", name]):
                place.said(0, *command)
            assert _seen(place.directory) == before, "root has changed something by looking"
            victim = Path(place.directory, "victim")
            victim.write_text("root:x")
            victim.chmod(0o644)
            link = Path(place.directory, f"shardmem-{OWNER}", f"{name}.quarantine")
            link.symlink_to(victim)
            assert "is a symbolic link" in place.said(0, "quarantine", "list", "--engine", name, code=1)
            assert victim.stat().st_mode & 0o777 == 0o644
            link.unlink()
            place.said(0, "stop", name)
            assert daemon.wait(20) == 0
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(daemon.pid, signal.SIGKILL)


def _seen(directory: str) -> list[tuple[str, int, int, int]]:
    found = [each for each in sorted(Path(directory).rglob("*")) if "__pycache__" not in str(each)]
    return [(str(each), each.lstat().st_uid, each.lstat().st_mode, each.lstat().st_mtime_ns) for each in found]
