"""What is compressed or in another encoding, piece by piece. At a fault everything before it has been decoded."""

from __future__ import annotations

import codecs
import sys
import zlib
from typing import Any

from shardmem.errors import ConfigError

GZIP, ZSTD = b"\x1f\x8b", b"\x28\xb5\x2f\xfd"
GZIP_HEADER = 10  # bytes


class DecodeFault(Exception):
    """good: what was decoded before it. at: how many bytes had been taken by then. is_behind: what was decoded is
    complete; what comes then is none of it."""

    def __init__(self, good: bytes, at: int, reason: str, is_behind: bool) -> None:
        super().__init__(reason)
        self.good, self.at, self.reason, self.is_behind = good, at, reason, is_behind


class Decoder:
    """A kind has `_step`, which may raise what is in `faults`. Where it can also go back to a state that it was in, a
    piece with a fault is decoded again byte by byte, so that nothing before the fault is lost."""

    faults: tuple[type[Exception], ...] = (ValueError,)

    def __init__(self) -> None:
        self._taken = 0

    def decode(self, data: bytes, final: bool) -> bytes:
        """Raises DecodeFault; nothing can be decoded after that."""
        state = self._save()
        try:
            made = self._step(data, final)
        except self.faults as error:
            raise self._salvaged(state, data, final, str(error)) from None
        self._taken += len(data)
        return made

    def _salvaged(self, state: Any, data: bytes, final: bool, reason: str) -> DecodeFault:
        self._restore(state)
        good, at = [], 0
        try:
            for i in range(len(data)):
                at = self._taken - self._pending()
                good.append(self._step(data[i : i + 1], False))
                self._taken += 1
            at = self._taken - self._pending()
            good.append(self._step(b"", final))
        except self.faults as error:
            reason = str(error)
        return DecodeFault(b"".join(good), at, reason, self._is_behind())

    def _step(self, data: bytes, final: bool) -> bytes:
        raise NotImplementedError

    def _save(self) -> Any:
        raise NotImplementedError

    def _restore(self, state: Any) -> None:
        raise NotImplementedError

    def _pending(self) -> int:
        """Bytes that were taken and nothing came of yet."""
        return 0

    def _is_behind(self) -> bool:
        """Of a fault: whether it is behind all that is of this kind."""
        return False


class Gzip(Decoder):
    """Members one after another, as `cat a.gz b.gz` makes them, with zeros between and behind them, as tapes have."""

    faults = (zlib.error, EOFError)

    def __init__(self) -> None:
        super().__init__()
        self._member: Any = None
        self._of_member = 0  # bytes
        self._first = b""  # of them

    def _step(self, data: bytes, final: bool) -> bytes:
        parts = []
        while data:
            if self._member is None:
                data = data.lstrip(b"\0")
                if not data:
                    break
                self._member, self._of_member, self._first = zlib.decompressobj(31), 0, b""
            self._first = (self._first + data)[: len(GZIP)]
            parts.append(self._member.decompress(data))
            self._of_member += len(data)
            data = self._member.unused_data
            if self._member.eof:
                self._member = None
        if final and self._member is not None:
            raise EOFError("the compressed data ends too early")
        return b"".join(parts)

    def _save(self) -> Any:
        return None if self._member is None else self._member.copy(), self._of_member, self._first

    def _restore(self, state: Any) -> None:
        self._member, self._of_member, self._first = state

    def _pending(self) -> int:
        return self._of_member if self._member is not None and self._of_member < GZIP_HEADER else 0

    def _is_behind(self) -> bool:
        return self._member is not None and not GZIP.startswith(self._first)


class Zstd(Decoder):
    """Frames one after another. Its state cannot be copied: what a block of the piece with the fault had in it is
    lost."""

    def __init__(self) -> None:
        """Raises ConfigError."""
        super().__init__()
        self._new: Any
        try:
            if sys.version_info >= (3, 14):
                from compression.zstd import ZstdDecompressor, ZstdError

                self._new = ZstdDecompressor
            else:
                from zstandard import ZstdDecompressor, ZstdError

                self._new = lambda: ZstdDecompressor().decompressobj()
        except ImportError:
            raise ConfigError(
                "it is compressed with zstd, which needs the package zstandard: pip install 'shardmem[zstd]'"
            ) from None
        self.faults = (ZstdError, EOFError, ValueError)
        self._frame: Any = None
        self._made: list[bytes] = []
        self._left = 0
        self._first = b""  # of the frame

    def _step(self, data: bytes, final: bool) -> bytes:
        self._made, self._left = [], len(data)
        while data:
            if self._frame is None:
                self._frame, self._first = self._new(), b""
            self._first = (self._first + data)[: len(ZSTD)]
            self._made.append(self._frame.decompress(data))
            data = self._frame.unused_data if self._frame.eof else b""
            self._left = len(data)
            if self._frame.eof:
                self._frame = None
        if final and self._frame is not None:
            raise EOFError("the compressed data ends too early")
        return b"".join(self._made)

    def _salvaged(self, state: Any, data: bytes, final: bool, reason: str) -> DecodeFault:
        # a frame that may be skipped begins in another way
        is_behind = self._first[1:] != b"\x2a\x4d\x18" and not ZSTD.startswith(self._first)
        return DecodeFault(b"".join(self._made), self._taken + len(data) - self._left, reason, is_behind)

    def _save(self) -> Any:
        return None


class Text(Decoder):
    """To UTF-8."""

    def __init__(self, encoding: str) -> None:
        super().__init__()
        self._decoder = codecs.getincrementaldecoder(encoding)()
        self._begun = False

    def _step(self, data: bytes, final: bool) -> bytes:
        text = self._decoder.decode(data, final)
        if text and not self._begun:  # a byte order mark, where the name of the encoding says the order, too
            text, self._begun = text.removeprefix("\ufeff"), True
        return text.encode()

    def _save(self) -> Any:
        return self._decoder.getstate(), self._begun

    def _restore(self, state: Any) -> None:
        self._decoder.setstate(state[0])
        self._begun = state[1]

    def _pending(self) -> int:
        return len(self._decoder.getstate()[0])
