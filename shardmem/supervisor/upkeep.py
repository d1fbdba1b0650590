"""What an engine keeps in places that others tidy up: its socket is made again when it is gone, its log begins a
new file when it is large, a quarantine that was removed is said, and its files are touched, because cleaners of
temporary files take what nobody has touched for some days."""

from __future__ import annotations

import asyncio
import contextlib
import glob
import os
import time

from shardmem.config import Config, log_file, quarantine_file
from shardmem.errors import ShardmemError
from shardmem.http.server import Api
from shardmem.private_files import Identity, identity
from shardmem.runtime.log_file import turn
from shardmem.status.observer import Observer
from shardmem.supervisor.history import History
from shardmem.text import plural

LOOK_S = 1.0
TOUCH_S = 3600.0  # systemd-tmpfiles takes what is older than 10 days, others what is older than one


class Upkeep:
    def __init__(self, api: Api, config: Config, observer: Observer, history: History) -> None:
        self._api, self._config, self._observer, self._history = api, config, observer, history
        self._quarantine, self._held = quarantine_file(config.directory, config.name), 0
        self._known: Identity | None = None

    async def run(self) -> None:
        touched = time.monotonic()
        while True:
            await self._api.keep()
            with contextlib.suppress(ShardmemError):  # its memory is being removed: others see to that
                self._api.note()
            with contextlib.suppress(OSError):
                self.look_at_quarantine(time.monotonic())
            with contextlib.suppress(OSError):
                turn(log_file(self._config.directory, self._config.name))
            if time.monotonic() - touched > TOUCH_S:
                touched = time.monotonic()
                self.touch()
            await asyncio.sleep(LOOK_S)

    def look_at_quarantine(self, now: float) -> None:
        """A worker that adds to it makes a new one, so this is all that tells of it."""
        found = identity(self._quarantine)
        if self._held and found != self._known:
            how = "removed" if found is None else "replaced by another file"
            lost = f"the {plural(self._held, 'event')} that it held {'is' if self._held == 1 else 'are'} lost"
            text = f"{self._quarantine} was {how}; {lost}"
            self._history.note("quarantine_lost", text)
            self._held = 0
        self._known = found
        if found and (held := self._observer.quarantine_held(now)) is not None:
            self._held = held

    def touch(self) -> None:
        files = glob.glob(os.path.join(glob.escape(self._config.directory), f"{self._config.name}.*"))
        for path in (os.path.dirname(self._api.path), self._api.path, self._config.directory, *files):
            with contextlib.suppress(OSError):
                os.utime(path, follow_symlinks=False)
