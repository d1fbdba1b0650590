"""`shardmem run` as a process of a test."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

from support.rig import PATIENCE, TESTS, Rig


class Daemon:
    """`shardmem run support.recorder:Recorder --name NAME`, or `shardmem run NAME.toml`."""

    def __init__(
        self,
        rig: Rig,
        name: str,
        *flags: str,
        handler: str = "support.recorder:Recorder",
        environment: Mapping[str, str] = {},
    ) -> None:
        target = [name] if name.endswith(".toml") else [handler, "--name", name, "--max-producers", "8"]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "shardmem", "run", *target, "--json", *flags],
            cwd=TESTS,
            env={**rig.environment, **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def ready(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, self.process.communicate()[1]
        return json.loads(line)["status"]

    def end(self) -> tuple[int, dict[str, Any]]:
        """Its exit code and the last status."""
        out, error = self.process.communicate(timeout=PATIENCE)
        last = json.loads(out.strip().split("\n")[-1])
        assert last["code"] == self.process.returncode, error
        return self.process.returncode, last

    def kill_supervisor(self) -> None:
        self.process.kill()
        self.process.wait()

    def __enter__(self) -> Daemon:
        return self

    def __exit__(self, *_: object) -> None:
        try:
            os.killpg(self.process.pid, signal.SIGKILL)  # the workers too, if the supervisor has died before them
        except ProcessLookupError:
            pass
        self.process.communicate()
