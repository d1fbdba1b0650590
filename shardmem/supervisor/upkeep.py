"""What an engine keeps in places that others tidy up: its socket is made again when it is gone, its log begins a
new file when it is large, and its files are touched, because cleaners of temporary files take what nobody has touched
for some days."""

from __future__ import annotations

import asyncio
import contextlib
import glob
import os
import time

from shardmem.config import Config, log_file
from shardmem.errors import ShardmemError
from shardmem.http.server import Api
from shardmem.runtime.log_file import turn

LOOK_S = 1.0
TOUCH_S = 3600.0  # systemd-tmpfiles takes what is older than 10 days, others what is older than one


class Upkeep:
    def __init__(self, api: Api, config: Config) -> None:
        self._api, self._config = api, config

    async def run(self) -> None:
        touched = time.monotonic()
        while True:
            await self._api.keep()
            with contextlib.suppress(ShardmemError):  # its memory is being removed: others see to that
                self._api.note()
            with contextlib.suppress(OSError):
                turn(log_file(self._config.directory, self._config.name))
            if time.monotonic() - touched > TOUCH_S:
                touched = time.monotonic()
                self.touch()
            await asyncio.sleep(LOOK_S)

    def touch(self) -> None:
        files = glob.glob(os.path.join(glob.escape(self._config.directory), f"{self._config.name}.*"))
        for path in (os.path.dirname(self._api.path), self._api.path, self._config.directory, *files):
            with contextlib.suppress(OSError):
                os.utime(path, follow_symlinks=False)
