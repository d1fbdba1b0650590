"""A function with state: `@stateful(visits=KeyedState(int, default=0))` above `def handle(batch, state)`."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, TypeVar

from shardmem.errors import ConfigError, HandlerError
from shardmem.runtime.handler import Handler
from shardmem.state.values import Declaration

F = TypeVar("F", bound=Callable[..., Any])


def stateful(
    *,
    on_timer: Callable[[Any, str, Any], Any] | None = None,
    on_expire: Callable[[Any, Any, Any], Any] | None = None,
    **states: Declaration[Any],
) -> Callable[[F], F]:
    """The function is called with the batch and its state: `state.visits`, and `state.timers`.

    on_timer, on_expire: called as those of a Handler, with the state behind: `on_timer(key, name, state)`.
    """
    for name, declared in states.items():
        if not isinstance(declared, Declaration):
            raise ConfigError(f"stateful({name}=...) takes a KeyedState, and not {declared!r}")
        if name in dir(Handler):
            raise ConfigError(f"stateful({name}=...): {name} is a name of handlers; choose another")

    def marked(function: F) -> F:
        function.__shardmem_handler__ = lambda: _handler(function, states, on_timer, on_expire)  # type: ignore[attr-defined]
        return function

    return marked


def _handler(
    function: Callable[..., Any],
    states: dict[str, Declaration[Any]],
    on_timer: Callable[..., Any] | None,
    on_expire: Callable[..., Any] | None,
) -> Handler:
    try:
        inspect.signature(function).bind(None, None)
    except TypeError as error:
        raise HandlerError(
            f"handler {function.__name__!r} is stateful, so it takes the batch and its state: {error}",
            hint=f"Write `def {function.__name__}(batch, state)`",
        ) from None
    members: dict[str, Any] = {**states, "handle": lambda self, batch: function(batch, self)}
    if on_timer is not None:
        members["on_timer"] = lambda self, key, name: on_timer(key, name, self)
    if on_expire is not None:
        members["on_expire"] = lambda self, key, value: on_expire(key, value, self)
    made: Handler = type(function.__name__, (Handler,), members)()
    return made
