"""Reaching an engine that some other process runs: its status from shared memory, its supervisor by signal."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import select
import signal
import socket
import struct
import time
from collections.abc import Callable
from typing import Any

from shardmem import errors
from shardmem.client.calls import ControlCalls
from shardmem.client.stacks import Stacks, stacks
from shardmem.client.state import StateAccess, StateValue
from shardmem.errors import NotRunning, SegmentError, ShardmemError
from shardmem.memory import lease
from shardmem.memory.engine_segment import ControlSegment
from shardmem.memory.holders import open_holder
from shardmem.memory.segment import control_name, engine_names, listed
from shardmem.places import check_socket_path
from shardmem.places import socket_path as socket_path
from shardmem.status.document import Status, Where
from shardmem.status.health import against_readiness, hangs
from shardmem.status.observer import Observer
from shardmem.status.where import key_of_text, where

COMMAND_S = 30.0  # for which a command waits until it is done, unless it is told otherwise
ANSWER_S = 30.0  # after which there should have been an answer


class Client(ControlCalls):
    """The engine `name`. Raises NotRunning, LayoutMismatch, SegmentError."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._control = ControlSegment.attach(name)
        self._observer = Observer(self._control)
        self._state: StateAccess | None = None

    def __repr__(self) -> str:
        return f"<Client of engine {self.name!r}>"

    def status(self) -> Status:
        """The document of `shardmem status --json`. Works with the supervisor dead."""
        return self._observer.status()

    def where(self, key: int | str | bytes) -> Where:
        """Which shard handles the events of this key. Works with the supervisor dead. Raises ConfigError: not a key of
        this engine."""
        return where(self._control, key)

    def state(self, name: str, key: int | str | bytes, type: Any = Any) -> StateValue | None:
        """The last committed value of a key of a `KeyedState`, with its age; None: it has none. type: what it was
        declared as; without it, objects are dicts and lists. Works with workers and supervisor dead."""
        if self._state is None:
            self._state = StateAccess(self._control.state_dir, self.name)
        return self._state.get(name, key, type)

    def stacks(self, shard: int, timeout: float = 5.0) -> Stacks:
        """Where the threads of the worker of a shard are at this moment; it goes on undisturbed. Works with the
        supervisor dead. Raises ConfigError: no such shard; NotRunning: it has no worker; ShardmemError: no answer."""
        return stacks(self._control, shard, timeout)

    def where_text(self, text: str, *, as_int: bool = False) -> Where:
        """The same of a key as it is written in a shell: a number where the engine's keys are numbers."""
        return self.where(key_of_text(self._control.schema, text, as_int=as_int))

    def is_current(self) -> bool:
        """Whether the engine's shared memory, as it was found, is still there under its name."""
        return self._control.segment.is_current()

    def stop(
        self, now: bool = False, timeout: float | None = None, progress: Callable[[Status], None] = lambda status: None
    ) -> Status:
        """Drain and stop; returns the last status that could be read. now: leave unhandled events in shared memory.

        progress: called with the status while waiting. Raises NotRunning without a live supervisor,
        TimeoutError when it has not ended after `timeout` seconds.
        """
        if not self._control.supervisor_alive():
            raise NotRunning(
                f"engine {self.name!r} has no supervisor",
                detail="Its shared memory is there.",
                hint="Take it over with `shardmem run` and the same settings; or end it without handling what it "
                f"holds: `shardmem gc --end-orphans {self.name}`",
            )
        self._expect_awake()
        pid = self._control.view_engine().pid
        if (pidfd := open_holder(pid, self._control.segment)) is None:
            owner = self._control.segment.owner
            if not self._control.supervisor_alive():
                raise NotRunning(f"the supervisor of engine {self.name!r} (pid {pid}) has just exited")
            raise SegmentError(
                f"the memory of engine {self.name!r} names pid {pid} as its supervisor, and that is no process of uid "
                f"{owner} that uses this memory",
                detail="No process was signalled.",
                hint="From a container, run this where the supervisor runs; otherwise something has written into the "
                "memory: find the supervisor with `ps`, and send it TERM",
            )
        deadline = None if timeout is None else time.monotonic() + timeout
        try:
            signal.pidfd_send_signal(pidfd, signal.SIGINT if now else signal.SIGTERM)
            while True:
                status = self.status()
                if select.select([pidfd], [], [], 0.1)[0]:
                    self._expect_ended(pid)
                    return self.status()
                self._expect_awake()
                progress(status)
                if deadline is not None and time.monotonic() > deadline:
                    raise TimeoutError(
                        f"engine {self.name!r} has not ended after {timeout:g} s; "
                        f"{status['accounting']['in_flight']:,} events are in flight"
                    )
        finally:
            os.close(pidfd)

    def _expect_ended(self, pid: int) -> None:
        """Raises ShardmemError: the supervisor is gone, and the engine is not."""
        if self._control.state != "stopped":
            raise ShardmemError(
                f"the supervisor of engine {self.name!r} (pid {pid}) ended without stopping the engine: its workers "
                "go on",
                hint=f"See its log; then `shardmem run` takes over, or `shardmem gc --end-orphans {self.name}` ends it",
            )

    def settings(self) -> list[dict[str, Any]]:
        """Every setting that is in force, with its default and where it was set. Raises as `command`."""
        found: list[dict[str, Any]] = self._ask("GET", "/settings", None, COMMAND_S)["settings"]
        return found

    def command(self, name: str, **wanted: Any) -> dict[str, Any]:
        """One call of the control API. Raises what the supervisor says, NotRunning without one or if it hangs."""
        return self._ask("POST", f"/{name}", wanted, wanted.get("timeout", COMMAND_S))

    def _ask(self, method: str, what: str, body: Any, seconds: float) -> dict[str, Any]:
        self._expect_awake()
        path = self._socket_path()
        check_socket_path(path)
        connection = _UnixConnection(path, self._control.segment.owner)
        deadline = time.monotonic() + seconds + ANSWER_S
        try:
            sent = None if body is None else json.dumps(body)
            connection.request(method, what, sent, {"Content-Type": "application/json"})
            while not select.select([connection.sock], [], [], 1.0)[0]:
                self._expect_awake()
                if time.monotonic() > deadline:
                    raise TimeoutError("there was no answer in time")
            response = connection.getresponse()
            answer: dict[str, Any] = json.loads(response.read())
            if not isinstance(answer, dict) or (response.status != 200 and not isinstance(answer.get("error"), str)):
                raise ValueError("what it says is no answer to a command")
        except (OSError, http.client.HTTPException, ValueError, RecursionError) as error:
            why = error.strerror if isinstance(error, OSError) and error.strerror else error
            raise NotRunning(
                f"the supervisor of engine {self.name!r} does not answer at {path}: {why}",
                hint=f"See `shardmem status {self.name}`, which works without it; if it is dead, `shardmem run` with "
                "the same settings takes over with the workers that live",
            ) from None
        finally:
            connection.close()
        if response.status == 200:
            return answer
        raise ShardmemError.of(answer)

    def _socket_path(self) -> str:
        """As its supervisor says; before it has said it, where it should be."""
        return self._observer.board()["socket"] or socket_path(self.name, self._control.segment.owner)

    def _expect_awake(self) -> None:
        if (why := hangs(self._control)) is not None:
            raise NotRunning(
                f"the supervisor of engine {self.name!r} does not answer: {why}",
                hint=f"See `shardmem status {self.name}`, which works without it",
            )

    def close(self) -> None:
        if self._state is not None:
            self._state.close()
        self._observer.close()
        self._control.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class _UnixConnection(http.client.HTTPConnection):
    """owner: the uid that has to listen. The path is in memory that an engine's user can write, who could send root's
    commands to any socket of this machine."""

    def __init__(self, path: str, owner: int | None = None) -> None:
        super().__init__("localhost")
        self._path, self._owner = path, os.geteuid() if owner is None else owner

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(ANSWER_S)
        self.sock.connect(self._path)
        _, uid, _ = struct.unpack("3i", self.sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
        if uid != self._owner:
            raise ConnectionRefusedError(0, f"uid {uid} listens there, and the engine belongs to uid {self._owner}")


def wait_ready(name: str | None, timeout: float, waits_for: list[str] | None = None) -> Status:
    """The status of an engine once it is ready: every slot has a live worker. None: the one engine here, when there is
    one. waits_for: is given what it waits for, as it changes.

    Raises TimeoutError with what it still waits for after `timeout` seconds, LayoutMismatch.
    """
    deadline = time.monotonic() + timeout
    while True:
        try:
            with Client(name or only_engine()) as client:
                document = client.status()
            reasons = ["it has no supervisor"] if not document["supervisor"]["alive"] else against_readiness(document)
            if not reasons:
                return document
        except errors.LayoutMismatch:
            raise
        except (NotRunning, errors.SegmentError) as error:  # not there, or not yet whole
            reasons = [str(error)]
        if waits_for is not None:
            waits_for[:] = reasons
        if time.monotonic() > deadline:
            raise TimeoutError(
                f"{f'engine {name!r}' if name else 'an engine'} is not ready after {timeout:g} s: {'; '.join(reasons)}"
            )
        time.sleep(0.05)


def only_engine() -> str:
    """The engine that SHARDMEM_NAME names; else the one that runs on this host, or the one whose memory is left. Raises
    NotRunning."""
    if named := os.environ.get("SHARDMEM_NAME"):
        return named
    names, free = engine_names(), {}
    for name in names:
        with contextlib.suppress(errors.SegmentError):  # another user's: it is meant only if there is no other
            free[name] = lease.is_free(control_name(name), lease.SUPERVISOR)
    running = [name for name, ended in free.items() if not ended]
    found = running or [*free] or names
    if len(found) == 1:
        return found[0]
    if not found:
        raise NotRunning("no engine is running here", hint="Start one: `shardmem run module:handler`")
    raise NotRunning(
        f"several engines {'run' if running else 'have left their memory'} here: {listed(found)}",
        hint="Name the one that is meant, as the first argument or in SHARDMEM_NAME",
    )
