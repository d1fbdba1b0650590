"""Where records go that are no events, if somebody wants them."""

from __future__ import annotations

import base64
import json
import os
import threading
from typing import IO, Any

from shardmem.errors import ConfigError
from shardmem.sources.contract import Rejected, SourceError


class DeadLetters:
    """Rejected records, a line of JSON each: file, line, byte, reason, text, and the bytes as data, or data_base64."""

    def __init__(self, path: str | None) -> None:
        """Raises ConfigError."""
        self._lock = threading.Lock()
        self._file: IO[str] | None = None
        if path is not None:
            try:
                self._file = open(path, "a", encoding="utf-8", errors="surrogateescape", opener=_private)
            except OSError as error:
                raise ConfigError(f"cannot write to {path}: {error.strerror}") from None

    def put(self, each: Rejected) -> None:
        """Raises SourceError."""
        if self._file is None:
            return
        line = int(each.position.metadata.partition(" ")[2] or 0)
        letter: dict[str, Any] = {"file": each.partition, "line": line, "byte": each.position.offset}
        letter |= {"reason": each.reason, "text": each.text}
        try:
            letter["data"] = each.data.decode()
        except UnicodeDecodeError:
            letter["data_base64"] = base64.b64encode(each.data).decode()
        with self._lock:
            try:
                self._file.write(json.dumps(letter) + "\n")
                self._file.flush()
            except OSError as error:
                raise SourceError(f"cannot write to {self._file.name}: {error.strerror}") from None

    def close(self) -> None:
        if self._file is not None:
            self._file.close()


def _private(path: str, flags: int) -> int:
    """What was rejected is users' data: a file that is made here is read by its user only."""
    return os.open(path, flags | os.O_CLOEXEC, 0o600)
