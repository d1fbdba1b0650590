"""Handlers that fail, each in a way and at a place of its own; and what is no handler."""

from __future__ import annotations

import os
import signal
from pathlib import Path

from shardmem import Batch, Context, Handler
from support.recorder import Recorder, parse


class Failing(Recorder):
    """Raises ValueError at the event whose number is in the file `poison`, until that file is removed."""

    def handle(self, batch: Batch) -> None:
        poison = self.directory / "poison"
        if poison.exists():
            wanted = int(poison.read_text())
            for _, data in batch:
                if parse(data)[2] == wanted:
                    raise ValueError(f"cannot stand number {wanted}")
        super().handle(batch)


class FailingBehindTheGate(Failing):
    """Looks for the poison when it has passed the gate."""

    def handle(self, batch: Batch) -> None:
        self.pass_gate(batch)
        super().handle(batch)


class Down(Recorder):
    """Raises RuntimeError at everything while the file `down` is there."""

    def handle(self, batch: Batch) -> None:
        if (self.directory / "down").exists():
            raise RuntimeError("the database is down")
        super().handle(batch)


class Away(Recorder):
    """Raises ConnectionError while the file `away` is there."""

    def handle(self, batch: Batch) -> None:
        if (self.directory / "away").exists():
            raise ConnectionError("the sink is away")
        super().handle(batch)


class AwayAtOpen(Away):
    """In open(), too."""

    def open(self, context: Context) -> None:
        if (Path(os.environ["RECORD_DIR"]) / "away").exists():
            raise ConnectionError("the sink is away")
        super().open(context)


class FailingAtOnce(Handler):
    def handle(self, batch: Batch) -> None:
        raise KeyError("at once")


class FailingAfterList(Handler):
    def handle(self, batch: Batch) -> None:
        key, data = list(batch)[0]
        raise ValueError(f"key {key} is too much")


class FailingOnSecondLook(Handler):
    def handle(self, batch: Batch) -> None:
        total = sum(len(data) for _, data in batch)
        raise ValueError(f"{total} bytes are too much")


class FailingAtLength(Handler):
    def handle(self, batch: Batch) -> None:
        raise ValueError("é" * 3000)


class FailingToOpen(Handler):
    def open(self, context: Context) -> None:
        raise OSError("the warehouse is closed")

    def handle(self, batch: Batch) -> None: ...


class FailingToBuild(Handler):
    def __init__(self) -> None:
        raise RuntimeError("no blueprint")


class FailingToClose(Recorder):
    def close(self) -> None:
        super().close()
        raise OSError("the last page cannot be written")


class Leaving(Handler):
    def handle(self, batch: Batch) -> None:
        raise SystemExit(0)


class Printing(Recorder):
    def handle(self, batch: Batch) -> None:
        print(len(batch), "events", flush=True)
        super().handle(batch)


class Fragile(Recorder):
    """Does in open() and in handle() what the files `open` and `handle` say: raise, or exit with that code."""

    def open(self, context: Context) -> None:
        self.break_as_told(Path(os.environ["RECORD_DIR"]) / "open")
        super().open(context)

    def handle(self, batch: Batch) -> None:
        self.break_as_told(self.directory / "handle")
        super().handle(batch)

    @staticmethod
    def break_as_told(how: Path) -> None:
        if how.exists():
            if (told := how.read_text()) == "raise":
                raise OSError("as told")
            os._exit(int(told))


class Wordless(Recorder):
    """From its second life on the worker is killed when it has become ready and has not reported it."""

    def open(self, context: Context) -> None:
        super().open(context)
        if context.incarnation > 1:
            from shardmem.runtime import child

            child.Reports.say = lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL)


NOT_A_HANDLER = 42
