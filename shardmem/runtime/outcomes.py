"""What a handler may raise to say what becomes of its events, and how other exceptions are understood."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable
from dataclasses import dataclass

from shardmem.text import reason_of


class Retry(Exception):
    """Raised by a handler: not now, try again later. Nothing is quarantined, and nothing else is handled meanwhile.

    reason: for `status` and the log. after: seconds until the next try; without it, they grow up to `retry_max_wait`.
    """

    def __init__(self, reason: object = "", after: float | None = None) -> None:
        super().__init__(reason)
        self.after = after

    @property
    def reason(self) -> str:
        return reason_of(self.args[0] if self.args else "")

    def wait(self) -> float | None:
        """`after`, if it can be waited for."""
        given = getattr(self, "after", None)  # a class of the user's may not have called our __init__
        try:
            after = float(given) if given is not None else -1.0
        except (TypeError, ValueError):
            return None
        return after if after >= 0 and math.isfinite(after) else None


class Reject(Exception):
    """Raised by a handler: no try will ever succeed. The event is quarantined at once. Of a batch of several, it is
    found first; `batch.reject(rows, reason)` says which, and the rest is handled."""

    def __init__(self, reason: object = "") -> None:
        super().__init__(reason)

    @property
    def reason(self) -> str:
        return reason_of(self.args[0] if self.args else "")


@dataclass(frozen=True)
class OnError:
    """What the configuration says of all that is raised: see config.py."""

    on_error: str
    max_attempts: int
    retry_backoff: float
    retry_on: list[str]
    retry_max_wait: float
    retry_for: float | None
    quarantine_file: str
    quarantine_limit: int


class RetryOn:
    """The exceptions of `retry_on`, by name: `ConnectionError`, `psycopg.OperationalError`. Nothing is imported for it:
    what is raised has been."""

    def __init__(self, names: Iterable[str]) -> None:
        self._names = [(module or "builtins", name) for module, _, name in (each.rpartition(".") for each in names)]
        self._known: dict[type[BaseException], bool] = {}

    def retry_of(self, error: BaseException) -> Retry | None:
        """What it asks for, if it asks for another try later. A group asks for it if all of it does."""
        if isinstance(error, Retry):
            return error
        members = getattr(error, "exceptions", None)
        if isinstance(members, tuple) and members and isinstance(error, _GROUP):
            found = [self.retry_of(each) for each in members]
            asked = [each for each in found if each is not None]
            return max(asked, key=lambda each: each.wait() or 0.0) if len(asked) == len(members) else None
        return Retry(error) if self._is_named(type(error)) else None

    def _is_named(self, kind: type[BaseException]) -> bool:
        if (known := self._known.get(kind)) is None:
            known = self._known[kind] = any(self._is(kind, module, name) for module, name in self._names)
        return known

    @staticmethod
    def _is(kind: type[BaseException], module: str, name: str) -> bool:
        """Where a class says that it is defined, or where it is found: `requests.ConnectionError` is both."""
        modules = {module, "__mp_main__"} if module == "__main__" else {module}
        if any(base.__module__ in modules and base.__qualname__ == name for base in kind.__mro__):
            return True
        found = getattr(sys.modules.get(module), name, None)
        return isinstance(found, type) and issubclass(kind, found)


_GROUP: type[BaseException] = getattr(__import__("builtins"), "BaseExceptionGroup", Retry)  # Python 3.10 has none
