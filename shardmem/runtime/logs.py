"""What supervisor and workers say on standard error: lines for people or JSON, who says it, and not the same for
ever."""

from __future__ import annotations

import json
import logging
import sys
import threading
import time
from collections.abc import Mapping
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any, TextIO

from shardmem.text import printable_lines

if TYPE_CHECKING:
    _TextHandler = logging.StreamHandler[TextIO]  # generic for checkers only
else:
    _TextHandler = logging.StreamHandler

INDENT = "    "
PAUSE = 10.0  # seconds in which the same event is let through once
TEXT = 500  # characters of a text that is kept
KINDS = (
    1024  # different events that are remembered; a program that puts values into its format strings has no end of them
)
_PLAIN = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName", "more"}


class Who:
    """Whose records these are. shard None: the supervisor's. incarnation None: it has none yet."""

    def __init__(self, engine: str, shard: int | None = None) -> None:
        self.engine, self.shard = engine, shard
        self.incarnation: int | None = None

    def __str__(self) -> str:
        life = "" if self.incarnation is None else f"/{self.incarnation}"
        return f"shardmem[{self.engine}] " + (
            f"supervisor{life}" if self.shard is None else f"shard {self.shard}{life}"
        )

    def fields(self) -> dict[str, Any]:
        return {"engine": self.engine, "shard": self.shard, "incarnation": self.incarnation}


class _Human(logging.Formatter):
    """A line that begins with a time is ours. What a text or a traceback brings with it is indented: it may be an
    event's, made to look like a line of the log."""

    def __init__(self, who: Who) -> None:
        super().__init__("%(asctime)s")
        self._who = who

    def format(self, record: logging.LogRecord) -> str:
        return printable_lines(super().format(record), INDENT)

    def formatMessage(self, record: logging.LogRecord) -> str:
        return f"{record.asctime} {self._who} {record.levelname} {record.message}{_more(record)}"


class _Json(logging.Formatter):
    """One object a line. What comes with `extra=` is there under its own name, unless that is the name of a field."""

    def __init__(self, who: Who) -> None:
        super().__init__()
        self._who = who

    def format(self, record: logging.LogRecord) -> str:
        at = datetime.fromtimestamp(record.created, timezone.utc).isoformat(timespec="milliseconds")
        fields = {
            "ts": at,
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage() + _more(record),
            **self._who.fields(),
        }
        if fields["shard"] is None:  # the supervisor speaks of a shard with extra={"shard": ...}
            fields["shard"] = getattr(record, "shard", None)
        for name, value in vars(record).items():
            if name not in _PLAIN:
                fields.setdefault(name, value)
        if record.exc_info:
            fields["exception"] = self.formatException(record.exc_info)
        return json.dumps(fields, default=str)


def _more(record: logging.LogRecord) -> str:
    more = getattr(record, "more", 0)
    return f" ({more} more like this)" if more else ""


class Repeats(logging.Filter):
    """Lets the first of a kind pass, then one in PAUSE seconds, which says how many were held back since the one
    before.

    A kind is a logger, a format string and the shard that the record is about: a handler that fails on every batch, or
    a worker that cannot be started, would fill the disk before anybody reads of it.
    """

    def __init__(self, clock: Any = time.monotonic) -> None:
        super().__init__()
        self._clock, self._lock = clock, threading.Lock()
        # When one last passed, its level and text, and how many were held back since. No record is kept: its arguments
        # and its traceback may refer to a batch, whose memory nobody may refer to after the handler's return.
        self._kinds: dict[tuple[str, str, Any], tuple[float, int, str, int]] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        kind, now = (record.name, str(record.msg), getattr(record, "shard", None)), self._clock()
        with self._lock:
            passed, level, text, held = self._kinds.pop(kind, (now - PAUSE, 0, "", 0))
            if now - passed < PAUSE:
                self._kinds[kind] = passed, level, text, held + 1
                return False
            if len(self._kinds) >= KINDS:
                self._kinds.pop(next(iter(self._kinds)))  # the one that was not seen for longest
            self._kinds[kind] = now, record.levelno, record.getMessage()[:TEXT], 0
        record.more = held
        return True

    def held_back(self) -> list[tuple[str, int, str, int]]:
        """(logger, level, what the last that passed said, how many after it did not). They are forgotten with that."""
        with self._lock:
            found = [(kind[0], level, text, held) for kind, (_, level, text, held) in self._kinds.items() if held]
            self._kinds.clear()
        return found


class _Stream(_TextHandler):
    def __init__(self, stream: TextIO, repeats: Repeats) -> None:
        super().__init__(stream)
        self._repeats = repeats
        self.addFilter(repeats)

    def close(self) -> None:
        """At exit: of a kind that had no next one, the count is still owed."""
        for name, level, text, held in self._repeats.held_back():
            self.emit(logging.LogRecord(name, level, __file__, 0, "%d more like this: %s", (held, text), None))
        super().close()


class _Ours(logging.Logger):
    """A logger of shardmem's. A handler's module may configure logging as it likes: dictConfig and fileConfig disable
    the loggers that there are, logging.disable all, and then nobody would hear of an event in quarantine."""

    @property
    def disabled(self) -> bool:
        return False

    @disabled.setter
    def disabled(self, value: bool) -> None: ...

    def isEnabledFor(self, level: int) -> bool:
        return level >= self.getEffectiveLevel()

    def makeRecord(
        self,
        name: str,
        level: int,
        fn: str,
        lno: int,
        msg: object,
        args: Any,
        exc_info: Any,
        func: str | None = None,
        extra: Mapping[str, object] | None = None,
        sinfo: str | None = None,
    ) -> logging.LogRecord:
        """Not by the factory of the process: one that raised at its own application's records killed the worker."""
        record = logging.LogRecord(name, level, fn, lno, msg, args, exc_info, func, sinfo)
        vars(record).update(extra or {})
        return record


_who: Who | None = None


def set_up(
    form: str, level: str, engine: str, shard: int | None = None, stream: TextIO | None = None
) -> logging.Handler:
    """All logging of this process. form: "human" or "json"."""
    global _who
    _who = Who(engine, shard)
    handler = _Stream(stream or sys.stderr, Repeats())
    handler.setFormatter(_Json(_who) if form == "json" else _Human(_who))
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    return handler


def keep() -> None:
    """From here on shardmem's own loggers do not heed what this process does to its logging."""
    root, ours = logging.getLogger(), logging.getLogger("shardmem")
    ours.setLevel(root.level)
    ours.propagate = False
    for handler in root.handlers:
        ours.addHandler(handler)
    for name, logger in list(logging.root.manager.loggerDict.items()):
        if isinstance(logger, logging.Logger) and name.partition(".")[0] == "shardmem":
            vars(logger).pop("disabled", None)
            logger.__class__ = _Ours


def json_formatter() -> logging.Formatter:
    """Whose records these are is as `set_up` said. Raises AssertionError before that."""
    assert _who is not None
    return _Json(_who)


def move(shard: int) -> None:
    """From here on these are the records of this shard."""
    if _who is not None:
        _who.shard = shard


def incarnate(incarnation: int) -> None:
    """From here on records say in which life of the shard, or of the supervisor, they were made."""
    if _who is not None:
        _who.incarnation = incarnation
