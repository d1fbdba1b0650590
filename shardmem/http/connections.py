"""The connections of one listener: so many in all and of each peer, and each only as long as it gets on.

Whoever can reach a port can hold connections open and say nothing. Each costs the supervisor a descriptor: 1,100 of
them, and no worker could be started again. So a request's header has seconds to arrive, an answer has to be read, and
where there are too many, the peer that has the most loses the one that has waited longest. What is being answered is
never cut off for another.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable, Hashable
from typing import cast

HEADER_S = 5.0  # from the connection to the end of its first header
IDLE_S = 15.0  # from an answer to the end of the next header, and in which some of an answer has to be read
GRACE_S = 0.2
MOST = 64
MOST_OF_PEER = 32
RATE = 100.0  # requests a second of one peer, answered without delay
BURST = 200.0

_TEXT = json.dumps({"error": "there are too many connections", "hint": "Close some", "kind": "ShardmemError"}).encode()
_REFUSAL = (
    b"HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/json; charset=utf-8\r\nConnection: close\r\n"
    b"Content-Length: %d\r\n\r\n%s" % (len(_TEXT), _TEXT)
)


class Peer:
    """Whoever connects: a user of this machine, if the kernel says which."""

    def __init__(self, now: float) -> None:
        self.connections: list[Connection] = []
        self._tokens, self._at = BURST, now

    def delay(self, now: float) -> float:
        """Seconds that its next request has to wait."""
        self._tokens = min(BURST, self._tokens + (now - self._at) * RATE) - 1.0
        self._at = now
        return max(0.0, -self._tokens / RATE)

    def may_be_forgotten(self, now: float) -> bool:
        return not self.connections and self._tokens + (now - self._at) * RATE >= BURST


class Connections:
    """A factory of protocols, for `loop.create_server`. inner: makes what speaks HTTP. peer_of: who is at the other
    end. paced: whether a peer may ask only so often."""

    def __init__(
        self,
        inner: Callable[[], asyncio.Protocol],
        peer_of: Callable[[asyncio.BaseTransport], Hashable],
        paced: bool,
        most: int = MOST,
        most_of_peer: int = MOST_OF_PEER,
    ) -> None:
        self.inner, self.paced = inner, paced
        self._peer_of, self._most, self._most_of_peer = peer_of, most, most_of_peer
        self._peers: dict[Hashable, Peer] = {}

    def __call__(self) -> Connection:
        return Connection(self)

    def __len__(self) -> int:
        return sum(len(peer.connections) for peer in self._peers.values())

    def admit(self, connection: Connection, transport: asyncio.Transport, now: float) -> Peer | None:
        """Its peer. None: there is no room, and none can be made."""
        for name in [name for name, peer in self._peers.items() if peer.may_be_forgotten(now)]:
            del self._peers[name]
        peer = self._peers.setdefault(self._peer_of(transport), Peer(now))
        if len(peer.connections) >= self._most_of_peer and not _end_one_of(peer):
            return None
        if len(self) >= self._most and not any(
            _end_one_of(each) for each in sorted(self._peers.values(), key=lambda each: -len(each.connections))
        ):
            return None
        peer.connections.append(connection)
        return peer


def _end_one_of(peer: Peer) -> bool:
    """Its connection that has waited longest, if any waits."""
    waiting = [each for each in peer.connections if not each.is_answering]
    if waiting:
        min(waiting, key=lambda each: each.waits_since).end()
    return bool(waiting)


class Connection(asyncio.Protocol):
    """Passes everything on to the protocol that speaks HTTP, and ends what does not get on."""

    def __init__(self, all_of_them: Connections) -> None:
        self._all, self._loop = all_of_them, asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._inner: asyncio.Protocol | None = None
        self._peer: Peer | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._unread = 0
        self.is_answering, self.waits_since = False, 0.0

    @contextlib.asynccontextmanager
    async def answering(self) -> AsyncIterator[None]:
        """While the answer to a request is made. Waits first if its peer asks too often."""
        self._disarm()
        if self._all.paced and self._peer is not None and (delay := self._peer.delay(self._loop.time())):
            await asyncio.sleep(delay)
        self.is_answering = True
        try:
            yield
        finally:
            self.is_answering = False
            self._wait(IDLE_S)

    def end(self) -> None:
        """At once, whatever was not sent yet."""
        self._leave()
        if self._transport is not None:
            self._transport.abort()

    # ---- what the event loop says ------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._peer = self._all.admit(self, self._transport, self._loop.time())
        if self._peer is None:
            self._transport.write(_REFUSAL)
            self._transport.close()
            return
        self._inner = self._all.inner()
        self._inner.connection_made(transport)
        self._wait(HEADER_S)

    def connection_lost(self, exc: Exception | None) -> None:
        self._leave()
        if self._inner is not None:
            self._inner.connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._inner is not None:
            self._inner.data_received(data)

    def eof_received(self) -> bool | None:
        return self._inner.eof_received() if self._inner is not None else None

    def pause_writing(self) -> None:
        if self._inner is not None:
            self._inner.pause_writing()

    def resume_writing(self) -> None:
        if self._inner is not None:
            self._inner.resume_writing()

    # ---- time --------------------------------------------------------------------------------------------------------

    def _wait(self, seconds: float) -> None:
        if self._peer is None:
            return
        self._disarm()
        self.waits_since, self._unread = self._loop.time(), 1 << 62
        self._timer = self._loop.call_later(seconds, self._due)

    def _due(self) -> None:
        """What has arrived while the supervisor was stopped by a signal is read before anything is found late."""
        self._timer = self._loop.call_later(GRACE_S, self._late)

    def _late(self) -> None:
        unread = self._transport.get_write_buffer_size() if self._transport is not None else 0
        if not 0 < unread < self._unread:
            self.end()
        else:  # slow, but it reads
            self._unread = unread
            self._timer = self._loop.call_later(IDLE_S, self._due)

    def _disarm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _leave(self) -> None:
        self._disarm()
        peer, self._peer = self._peer, None
        if peer is not None:
            peer.connections.remove(self)
