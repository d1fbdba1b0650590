"""A host's network, which can be cut: a namespace with one cable to this machine where that is allowed, else a proxy in
front of each broker that goes silent.

A cut is silent: nobody is told that a connection is over, packets just do not arrive.
"""

from __future__ import annotations

import contextlib
import functools
import os
import secrets
import selectors
import shutil
import socket
import subprocess
import threading
from typing import Protocol

CHUNK = 1 << 16


class Network(Protocol):
    """prefix: what the command of a program begins with that is to be in it."""

    prefix: list[str]

    def address(self, port: int) -> tuple[str, str]:
        """Where a broker listens for this network, at this port of its own, and as what it is known there."""
        ...

    def cut(self) -> None: ...

    def heal(self) -> None: ...

    def close(self) -> None: ...


def network() -> Network:
    """Of the better kind that there may be here."""
    return Namespace() if may_have_namespaces() else Proxies()


@functools.cache
def may_have_namespaces() -> bool:
    if os.geteuid() != 0 or shutil.which("ip") is None:
        return False
    try:
        Namespace().close()
    except (OSError, subprocess.CalledProcessError):
        return False
    return True


class Namespace:
    def __init__(self) -> None:
        self._name = f"sm{secrets.token_hex(4)}"
        self._cable = f"{self._name}h"
        number = secrets.randbelow(1 << 18)  # of 10.128.0.0/10 in fours
        self._here, there = (f"10.{128 + (number >> 14)}.{number >> 6 & 255}.{(number & 63) * 4 + n}" for n in (1, 2))
        self.prefix = ["ip", "netns", "exec", self._name]
        _ip("netns", "add", self._name)
        try:
            end = f"{self._name}n"
            _ip("link", "add", self._cable, "type", "veth", "peer", "name", end, "netns", self._name)
            for where, cable, address in ([], self._cable, self._here), (["-n", self._name], end, there):
                _ip(*where, "addr", "add", f"{address}/30", "dev", cable)
                _ip(*where, "link", "set", cable, "up")
            _ip("-n", self._name, "link", "set", "lo", "up")
        except BaseException:
            self.close()
            raise

    def address(self, port: int) -> tuple[str, str]:
        return f"{self._here}:{port}", f"{self._here}:{port}"

    def cut(self) -> None:
        """At our end: the other one has its address and its route, and nothing that it sends arrives."""
        _ip("link", "set", self._cable, "down")

    def heal(self) -> None:
        _ip("link", "set", self._cable, "up")

    def close(self) -> None:
        _ip("netns", "del", self._name)  # and with it the cable


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)


class Proxies:
    """One thread hands bytes on, in both directions; while it is cut it reads none."""

    def __init__(self) -> None:
        self.prefix: list[str] = []
        self._selector = selectors.DefaultSelector()
        self._whole = threading.Event()
        self._whole.set()
        self._closed = False
        self._listening: list[socket.socket] = []
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def address(self, port: int) -> tuple[str, str]:
        listening = socket.create_server(("127.0.0.1", 0))
        listening.setblocking(False)
        self._listening.append(listening)
        self._selector.register(listening, selectors.EVENT_READ, port)
        return f"127.0.0.1:{port}", f"127.0.0.1:{listening.getsockname()[1]}"

    def cut(self) -> None:
        self._whole.clear()

    def heal(self) -> None:
        self._whole.set()

    def close(self) -> None:
        self._closed = True
        self._whole.set()
        self._thread.join()
        for key in list(self._selector.get_map().values()):
            key.fileobj.close()  # type: ignore[union-attr]
        self._selector.close()

    def _run(self) -> None:
        while not self._closed:
            for key, _ in self._selector.select(0.05):
                self._whole.wait()
                if isinstance(key.data, int):
                    self._accept(key.fileobj, key.data)  # type: ignore[arg-type]
                elif key.fd >= 0:
                    self._hand_on(key.fileobj, key.data)  # type: ignore[arg-type]
            self._whole.wait()

    def _accept(self, listening: socket.socket, port: int) -> None:
        with contextlib.suppress(OSError):
            client, _ = listening.accept()
            try:
                broker = socket.create_connection(("127.0.0.1", port), 1.0)
            except OSError:
                client.close()
                return
            for one, other in ((client, broker), (broker, client)):
                one.settimeout(5.0)
                self._selector.register(one, selectors.EVENT_READ, other)

    def _hand_on(self, one: socket.socket, other: socket.socket) -> None:
        if one.fileno() < 0:
            return
        try:
            data = one.recv(CHUNK)
            other.sendall(data)
        except OSError:
            data = b""
        if not data:
            for each in (one, other):
                self._selector.unregister(each)
                each.close()
