"""What the supervisor tells the service manager that started it: sd_notify, which is a datagram of lines.

Only `shardmem run` speaks: an embedded engine is in somebody else's service, and must not call that one ready.
"""

from __future__ import annotations

import logging
import math
import os
import socket
import time
from collections.abc import Callable, MutableMapping

from shardmem.settings import some
from shardmem.status.document import Status

STATUS_PAUSE = 5.0  # seconds between two lines of STATUS

log = logging.getLogger("shardmem.notify")


class Notify:
    """address: of a unix datagram socket, "@" for abstract ones; None: nobody wants to know. watchdog: how often a sign
    of life is wanted, in seconds, None: never.

    Nothing here waits: the supervisor is one event loop. A message that the socket has no room for goes before the next
    one, except those that would be old by then.
    """

    def __init__(
        self, address: str | None = None, watchdog: float | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._clock, self._watchdog = clock, watchdog
        self._owed: list[str] = []
        self._alive_due = self._status_due = 0.0
        self._last: tuple[float, int, int] | None = None
        self._socket: socket.socket | None = None
        if address and address[0] in "/@":
            self._address = "\0" + address[1:] if address[0] == "@" else address
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)

    @classmethod
    def from_environment(cls, environ: MutableMapping[str, str] = os.environ) -> Notify:
        """The variables are taken away: what a handler starts does not speak for this service."""
        address, microseconds, pid = (
            environ.pop(name, "") for name in ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID")
        )
        wanted = microseconds.isdigit() and int(microseconds) > 0 and pid in ("", str(os.getpid()))
        return cls(address, int(microseconds) / 2e6 if wanted else None)

    def ready(self) -> None:
        """It runs, or runs again after `reloading`."""
        self._say("READY=1")
        self._status_due = 0.0  # what was said last is not true any more

    def reloading(self) -> None:
        """Until the next `ready`. The time tells systemd which of two reloads that one ends."""
        self._say("RELOADING=1", f"MONOTONIC_USEC={time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000}")

    def stopping(self) -> None:
        self._say("STOPPING=1")
        self._status_due = 0.0

    @property
    def patience(self) -> float:
        """Seconds until the next `tick` at the latest."""
        return math.inf if self._socket is None else min(STATUS_PAUSE, self._watchdog or STATUS_PAUSE) / 2

    def tick(self, document: Callable[[], Status]) -> None:
        """Called by the event loop at each turn and by nobody else: the watchdog is to bark when that loop hangs.

        document: makes the status document, when one is due."""
        if self._socket is None:
            return
        now = self._clock()
        if self._watchdog is not None and now >= self._alive_due:
            self._alive_due = now + self._watchdog
            self._say("WATCHDOG=1")
        if now >= self._status_due:
            self._status_due = now + STATUS_PAUSE
            try:
                self._say("STATUS=" + self._line(document(), now))
            except Exception:  # whatever is wrong with the status: a sign of life matters more
                log.exception("no STATUS can be made")

    def _line(self, document: Status, now: float) -> str:
        counts = document["accounting"]
        accepted, handled = counts["accepted"], counts["handled"]
        before, self._last = self._last, (now, accepted, handled)
        parts = [f"{document['engine']['state']}, {some(len(document['shards']), 'shard')}"]
        if before is not None and now > before[0]:
            seconds = now - before[0]
            parts.append(f"in {(accepted - before[1]) / seconds:,.0f}/s, out {(handled - before[2]) / seconds:,.0f}/s")
        parts.append(f"{counts['in_flight']:,} in flight")
        unwell = [
            f"{shard['id']} {shard['condition']}"
            for shard in document["shards"]
            if shard["condition"] in ("failed", "stuck", "restarting", "dead", "waiting")
            and document["engine"]["state"] == "running"
        ]
        return "; ".join(parts + ([f"shards {', '.join(unwell)}"] if unwell else []))

    def _say(self, *lines: str) -> None:
        if self._socket is None:
            return
        passing = lines[0].startswith(("WATCHDOG=", "STATUS="))
        try:
            for message in (*self._owed, "\n".join(lines)):
                self._socket.sendto(message.encode(), self._address)
                self._owed = self._owed[1:]
        except OSError as error:
            if not passing:
                self._owed.append("\n".join(lines))
            if not isinstance(error, BlockingIOError):
                log.warning("NOTIFY_SOCKET cannot be written to: %s", error)

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None
