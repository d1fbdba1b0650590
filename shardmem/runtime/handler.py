"""The user's code: how it is written, how it is named, and how a worker process gets hold of it."""

from __future__ import annotations

import base64
import contextlib
import functools
import importlib
import inspect
import logging
import multiprocessing
import os
import pickle
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from shardmem.errors import ConfigError, HandlerError, StateError
from shardmem.memory.segment import listed
from shardmem.runtime.batch import Batch, slot_of
from shardmem.runtime.forked import end_if_forked
from shardmem.runtime.outbox import Outbox, no_outbox
from shardmem.state.keeper import absent, declared_states, keeper_of, keeps_by_key
from shardmem.state.keys import Key
from shardmem.state.timers import Timers
from shardmem.text import of_error

_MAKES_HANDLER = "__shardmem_handler__"  # of an entity's class and of a stateful function
_IS_PACKAGE_MAIN = (
    "__shardmem_main__"  # of a main module that was imported here: multiprocessing calls any main __mp_main__
)


@dataclass(frozen=True)
class Context:
    """What a handler is told when it is opened, once per life of its worker process.

    incarnation: which life of the shard this is. slots: how many there are. log: a logger of this shard.
    engine_id: another one for each time that the engine's shared memory is made, the same for all lives of its
        processes. Producers count from 0 in each, so (engine_id, producer, sequence) is what identifies an event for
        good.
    """

    engine: str
    shard: int
    incarnation: int
    slots: int
    log: logging.Logger
    engine_id: str = ""
    partitions: Callable[[], int] = field(default=lambda: 0, repr=False, compare=False)
    take_outbox: Callable[[], Outbox] | None = field(default=None, repr=False, compare=False)

    @property
    def outbox(self) -> Outbox:
        """`outbox.send(topic, key, value, headers=None)`: saved together with state and published to the broker of the
        setting `outbox`. To be taken in `open`: a handler that does so has checkpoints, with state or without. Raises
        ShardmemError when there is none."""
        if self.take_outbox is None:
            raise no_outbox("this context was made by hand", "Give it one: take_outbox=lambda: ...")
        return self.take_outbox()

    def slot(self, key: int | str | bytes) -> int:
        """The slot of a key, as the engine sees it: what snapshot, restore and drop are asked about. Raises StateError
        once slots go by partition: a key alone does not say then."""
        if self.partitions():
            raise StateError(
                f"the slot of key {key!r} depends on the partition that its event came from",
                hint="Ask the batch: `batch.slots` has the slot of each event",
            )
        return slot_of(key, self.slots)


class Handler:
    """Base class of handlers. Only `handle` must be written.

    One instance lives in each worker process. `handle` is called with one batch at a time; when it returns, the
    events are handled for good; when it raises, they are not.
    """

    def open(self, context: Context) -> None:
        """Before the first batch. An exception here is a boot failure: the worker is not started again."""

    def handle(self, batch: Batch) -> None:
        """One batch. Its memory is valid until this returns."""
        raise NotImplementedError(f"{type(self).__name__} has no handle(batch)")

    def gained(self, slots: list[int]) -> None:
        """These slots are handled here from now on; called before the first event of any of them. Once after `open`,
        with all that the shard owns, and after each handoff to it. Between batches only."""

    def lost(self, slots: list[int]) -> None:
        """These slots were given up: no event of them is left here, and none comes. Returns before another shard gains
        them. Not called when the worker ends."""

    @property
    def timers(self) -> Timers:
        """`timers.set(key, name, after=60)`: then `on_timer(key, name)` is called."""
        return keeper_of(self).timers

    @absent
    def on_timer(self, key: Key, name: str) -> None:
        """A timer is due. Called between batches, also when no events come."""

    @absent
    def on_expire(self, key: Key, value: Any) -> None:
        """A value of a `KeyedState` with a `ttl` has expired, and is gone."""

    def close(self) -> None:
        """After the last batch, when the worker ends in good order."""

    # State by key is a `KeyedState`. A handler that keeps it in a form of its own defines these as well; then the state
    # of a slot goes where the slot goes.
    # Without drop it is closed and made anew, with all it keeps, whenever a slot goes or a batch has failed: dearer,
    # and just as exact. `Context.slot(key)` tells the slot of a key.
    #
    #     def snapshot(self, slot: int) -> bytes: ...      the state of this slot's keys; changes nothing
    #     def restore(self, slot: int, state: bytes): ...  before the first event of the slot is handled here
    #     def drop(self, slot: int): ...                   the slot is somebody else's now


class _Function(Handler):
    def __init__(self, function: Callable[[Batch], Any]) -> None:
        self.handle = function  # type: ignore[assignment, method-assign]


@dataclass(frozen=True)
class HandlerRef:
    """A handler that can be sent to a process that is started by exec: "module:name", or a pickle of a reference.

    main: how to import the caller's main module there, for handlers that are defined in it.
    """

    name: str
    pickled: str | None = None
    main: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, handler: Any) -> HandlerRef:
        """From "module:name", a function, a Handler class or instance. Raises ConfigError if no worker could load
        it."""
        if isinstance(handler, str):
            module, colon, name = handler.partition(":")
            if not colon or not module or not name:
                raise ConfigError(f"handler={handler!r} is not of the form 'module:name'")
            return cls(handler, main={"sys_path": [entry or os.getcwd() for entry in sys.path]})
        shape = handler if inspect.isclass(handler) else type(handler)
        called = str(getattr(handler, "__qualname__", None) or shape.__qualname__)
        if not callable(handler) and not hasattr(handler, "handle"):
            raise ConfigError(f"handler={handler!r} is neither a function nor a Handler nor 'module:name'")
        home = getattr(handler, "__module__", None)
        main = sys.modules["__main__"]
        file = getattr(main, "__file__", None)
        spec = getattr(main, "__spec__", None)
        if home == "__main__" and (spec is None or spec.name == "__main__") and not (file and os.path.exists(file)):
            where = "an interactive session" if spec is None else f"__main__ of {os.path.dirname(file or '')}"
            raise ConfigError(
                f"handler {called} is defined in {where}, which worker processes cannot import; put it into a module "
                f"and pass 'module:{called}'" + ("" if spec else ", or run it as a file")
            )
        try:
            pickled = pickle.dumps(handler)
        except Exception as error:
            raise ConfigError(
                f"handler {called} cannot be found by worker processes ({error}); use a function or class at "
                f"the top level of a module, or 'module:name'"
            ) from None
        # The main module is imported in workers only if something of it is needed: a script that takes its handler from
        # elsewhere needs no __main__ guard then.
        return cls(
            f"{home}:{called}", base64.b64encode(pickled).decode(), _main_of_this_process(b"__main__" in pickled)
        )

    def load(self) -> Handler:
        """In the worker: import and build it. Raises HandlerError with the reason."""
        try:
            found = self._find()
            shared = self.pickled is None and not inspect.isclass(found)
            if inspect.isclass(found) and not hasattr(found, _MAKES_HANDLER):
                found = found()
        except (Exception, SystemExit) as error:
            text = f"handler {self.name!r} cannot be loaded: {of_error(error)}"
            if advice := self._advice(error):
                raise HandlerError(f"{text}. {advice}") from None  # a traceback would show our own code only
            raise HandlerError(text) from error
        return handler_of(found, self.name, shared)

    def _advice(self, error: BaseException) -> str | None:
        """Where the name leads nowhere."""
        path, _, name = self.name.partition(":")
        if isinstance(error, ModuleNotFoundError) and error.name == path.partition(".")[0]:
            return (
                f"Workers look in {os.getcwd()} and where Python looks: start in the directory that {error.name} "
                f"is in, or set PYTHONPATH"
            )
        module = sys.modules.get(path)
        if module is None or not isinstance(error, AttributeError) or error.obj is not module:
            return None
        there = [key for key, value in vars(module).items() if getattr(value, "__module__", None) == path]
        return (
            f"{module.__file__} has {listed(there, name)}"
            if there
            else f"{module.__file__} has no function and no class"
        )

    def prepare(self) -> None:
        """Import what `load` will need. What goes wrong does so again there, and is told then."""
        with contextlib.suppress(BaseException):
            if self.pickled is None:
                self._find()
            else:
                self._find_main()
                if not self.name.startswith("__"):
                    importlib.import_module(self.name.partition(":")[0])

    def _find(self) -> Any:
        if self.pickled is None:
            wanted = self.main.get(
                "sys_path", []
            )  # in its order: put first, one of site-packages would hide the standard
            sys.path[:] = [*wanted, *(entry for entry in sys.path if entry not in wanted)]
            module, _, name = self.name.partition(":")
            found: Any = importlib.import_module(module)
            for part in name.split("."):
                found = getattr(found, part)
            return found
        self._find_main()
        return pickle.loads(base64.b64decode(self.pickled))

    def _find_main(self) -> None:
        if self.main:
            from multiprocessing import spawn

            # Importing the main module again would start its engine again if it has no __main__ guard. With this mark
            # Engine notices and explains, as multiprocessing itself does.
            process: Any = multiprocessing.current_process()
            process._inheriting = True
            try:
                spawn.prepare(dict(self.main))
                if self.main.get("init_main_from_name", "").endswith(".__main__"):
                    _import_main_of_package(self.main["init_main_from_name"])
            finally:
                process._inheriting = False


def handler_of(found: Any, name: str = "", shared: bool = False) -> Handler:
    """A Handler of what the user wrote, checked. shared: it is an object of a module. Raises HandlerError."""
    name = name or str(getattr(found, "__qualname__", type(found).__qualname__))
    if hasattr(found, _MAKES_HANDLER):
        found = getattr(found, _MAKES_HANDLER)()
    if callable(getattr(found, "handle", None)):
        if getattr(found.handle, "__func__", None) is Handler.handle:
            raise HandlerError(f"handler {name!r} has no handle(batch): write it in {type(found).__name__}")
        _check_call(found.handle, name)
        _check_state(found, name, shared)
        handler: Handler = found
        return handler
    if not callable(found):
        raise HandlerError(f"handler {name!r} is a {type(found).__name__}: neither a function nor a Handler")
    _check_call(found, name)
    return _Function(found)


def importing_main() -> bool:
    """Whether this process is a worker that is importing the user's main module to find the handler in it."""
    return bool(getattr(multiprocessing.current_process(), "_inheriting", False))


def _main_of_this_process(needed: bool) -> dict[str, Any]:
    """What multiprocessing's spawn sends to a child so that it can import what the parent can, its main module if
    needed."""
    from multiprocessing import spawn

    wanted = ["sys_path", "sys_argv", "dir", "orig_dir"] + ["init_main_from_name", "init_main_from_path"] * needed
    data = spawn.get_preparation_data("shardmem")
    return {key: data[key] for key in wanted if data.get(key) is not None}


def _import_main_of_package(name: str) -> None:
    """`python -m package` runs package/__main__.py, which spawn leaves out: it takes every __main__ for a mere
    starter."""
    import runpy
    import types

    if getattr(sys.modules["__main__"], _IS_PACKAGE_MAIN, None) == name:  # it was imported to prepare
        return

    main = types.ModuleType("__mp_main__")
    main.__dict__.update(runpy.run_module(name, run_name="__mp_main__", alter_sys=True))
    setattr(main, _IS_PACKAGE_MAIN, name)
    sys.modules["__main__"] = sys.modules["__mp_main__"] = main


def _check_call(handle: Callable[..., Any], name: str) -> None:
    """Raises HandlerError. What calling a coroutine or generator function returns does nothing until it is awaited or
    iterated, so every event would count as handled and none would be."""
    body = (
        handle
        if inspect.isroutine(handle) or isinstance(handle, functools.partial)
        else getattr(handle, "__call__", handle)  # noqa: B004 - its code is looked at
    )
    if inspect.isgeneratorfunction(body):
        raise HandlerError(
            f"handler {name!r} is a generator function, so calling it handles nothing; make it a plain one, without "
            f"yield"
        )
    if inspect.iscoroutinefunction(body) or inspect.isasyncgenfunction(body):
        raise HandlerError(
            f"handler {name!r} is an async function, so calling it handles nothing; make it a plain one, which may "
            f"call asyncio.run"
        )
    try:
        signature = inspect.signature(handle)
    except (ValueError, TypeError):
        return  # built in: its first batch will show
    try:
        signature.bind(None)
    except TypeError as error:
        raise HandlerError(
            f"handler {name!r} takes {signature}, and is called with one batch ({error}); iterate over the batch "
            f"for keys and payloads"
        ) from None


def _check_state(handler: Any, name: str, shared: bool) -> None:
    """Raises HandlerError. With one of snapshot and restore nothing would ever be saved, and nobody would be told. A
    handler without drop is made anew whenever it has to forget something; one that is an object of a module cannot
    be."""
    have = [method for method in ("snapshot", "restore", "drop") if callable(getattr(handler, method, None))]
    needed = ("snapshot", "restore", "drop") if shared else ("snapshot", "restore")
    missing = [method for method in needed if method not in have]
    if missing and have not in ([], ["drop"]):
        raise HandlerError(
            f"handler {name!r} has {' and '.join(have)}, but no {' and no '.join(missing)}: a handler that keeps "
            f"state per key needs snapshot(slot) and restore(slot, state), and drop(slot) too if it is an object "
            f"and not a class"
        )
    for taken in sorted(declared_states(handler).keys() & {*dir(Handler), "snapshot", "restore", "drop"}):
        raise HandlerError(f"handler {name!r}: {taken} is a name of handlers; call the KeyedState something else")


def is_stateful(handler: Any) -> bool:
    """Whether the state of its slots has to travel."""
    return keeps_slots(handler) or keeps_by_key(handler)


def keeps_slots(handler: Any) -> bool:
    """Whether it keeps state by slot in a form of its own."""
    return callable(getattr(handler, "snapshot", None)) and callable(getattr(handler, "restore", None))


def wants_to_know(handler: Any) -> bool:
    """Whether it has a `gained` of its own, so that no event of a slot may be handled before it was called."""
    gained = getattr(handler, "gained", None)
    return callable(gained) and getattr(gained, "__func__", None) is not Handler.gained


def optional(handler: Handler, method: str) -> Callable[..., Any]:
    """A method that classes which do not derive from ours may lack. It may fork, as `handle` may."""
    found: Callable[..., Any] | None = getattr(handler, method, None)
    if found is None:
        return lambda *_: None

    def call(*values: Any) -> Any:
        try:
            returned = found(*values)
        except BaseException as error:
            end_if_forked(error)
            raise
        end_if_forked()
        return returned

    return call
