"""Where bytes come from: files, pipes and standard input; compressed (by their first bytes) or in another encoding."""

from __future__ import annotations

import codecs
import errno
import os
import select
import stat
import sys

from shardmem.errors import ConfigError
from shardmem.sources.contract import SourceError
from shardmem.sources.files.decoders import GZIP, ZSTD, DecodeFault, Decoder, Gzip, Text, Zstd

STDIN = "-"
CHUNK = 1 << 18  # read at once where what is read has to be decoded
PIECE = 1 << 10  # decoded at once
_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


_MAGIC = (GZIP, ZSTD, *(mark for mark, _ in _MARKS))


class Input:
    """The bytes of one file from its beginning, without a byte order mark. `stat` is of the file that is open."""

    def __init__(self, name: str, encoding: str | None = None, *, follow: bool = False) -> None:
        """Raises SourceError."""
        self.name = "standard input" if name == STDIN else name
        self.path = None if name == STDIN else name
        self._encoding = encoding
        self._decoders: list[Decoder] = []
        self._pending, self._raw = b"", memoryview(b"")  # given next; not decoded yet
        self.ended = self._sniffed = False
        self.fault: str | None = None  # why it cannot be decoded beyond what was given; then it has ended
        self.is_complete = True  # what was given is, be there a fault behind it
        if name == STDIN:
            if sys.stdin is None:
                raise SourceError("standard input is closed; name files, or give it something to read")
            self.fd = os.dup(0)
        else:
            try:
                self.fd = os.open(name, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
            except OSError as error:
                raise SourceError(f"cannot read {name}: {error.strerror}") from None
        self.stat = os.fstat(self.fd)
        self.is_file = stat.S_ISREG(self.stat.st_mode)
        self._wait = select.poll()
        self._wait.register(self.fd, select.POLLIN | select.POLLHUP | select.POLLERR)
        self.follows = self._followed = follow
        self._head = b""
        self.at = 0  # bytes that were given

    @property
    def is_plain(self) -> bool:
        """Whether a place in what it gives is a place in the file."""
        return not self._decoders

    def read_into(self, room: memoryview, timeout: float) -> int | None:
        """How many bytes; 0 at the end (of a file that is followed: so far); None when nothing came in time. Raises
        SourceError."""
        if not self._sniffed and not (size := self._sniff(timeout)):
            return size
        if self._pending:
            given = min(len(room), len(self._pending))
            room[:given], self._pending = self._pending[:given], self._pending[given:]
            self.at += given
            return given
        if not self._decoders:
            size = self._read(room, timeout)
            self.at += size or 0
            return size
        while True:
            size = 1 if self._raw else 0 if self.fault else self._fill(timeout)
            if size is None or (size == 0 and self.follows and not self.fault):
                return size
            self._pending = b"" if self.fault else self._decoded(not size)
            if self._pending:
                return self.read_into(room, 0)
            if not size:
                return 0

    def _fill(self, timeout: float) -> int | None:
        """More bytes as they are in the file."""
        data = bytearray(CHUNK)
        size = self._read(memoryview(data), timeout)
        self._raw = memoryview(data)[: size or 0]
        return size

    def look(self, timeout: float = 0.0) -> None:
        """At its first bytes, so far as they are there; what is read next is the same."""
        if not self._sniffed:
            self._sniff(timeout)

    def rewind(self) -> None:
        """As if it had just been opened. Of a file."""
        os.lseek(self.fd, 0, os.SEEK_SET)
        self._decoders, self._pending, self._raw, self._head = [], b"", memoryview(b""), b""
        self.ended = self._sniffed = False
        self.fault, self.follows, self.at, self.skipped, self.is_complete = None, self._followed, 0, 0, True

    def seek(self, offset: int, timeout: float = 60.0) -> int:
        """To a place, counted in what is read. Where it could not get so far, the place that it got to."""
        self.look(timeout)
        if self.is_file and self.is_plain:
            self._pending = b""
            self.at = min(offset, max(0, self.size() - self.skipped))
            os.lseek(self.fd, self.at + self.skipped, os.SEEK_SET)
            return self.at
        room = memoryview(bytearray(CHUNK))
        while self.at < offset:
            size = self.read_into(room[: min(CHUNK, offset - self.at)], timeout)
            if not size:
                break
        return self.at

    def lines_before(self, offset: int, ends: tuple[bytes, ...]) -> int:
        """Of a plain file; elsewhere nobody can tell, and lines are counted from the place. ends: of lines; CR LF is
        one."""
        if not (self.is_file and self.is_plain):
            return 0
        lines, at, end, last = 0, 0, offset + self.skipped, b""
        while at < end and (data := os.pread(self.fd, min(1 << 20, end - at), at)):
            lines, at = lines + sum(map(data.count, ends)), at + len(data)
            if len(ends) > 1:
                lines -= (last + data).count(b"\r\n")
                last = data[-1:]
        return lines

    skipped = 0  # bytes of a mark that are not part of the text

    def _sniff(self, timeout: float) -> int | None:
        """Looks at the first bytes. As read_into, while they are not there yet."""
        if not self._decoders:
            data = bytearray(CHUNK)
            while len(self._head) < 4 and any(mark.startswith(self._head) for mark in _MAGIC):
                size = self._read(memoryview(data), timeout)
                if not size and not self._head and (size is None or self.follows):
                    return size
                if not size:  # a short file, or a stream that pauses after its first bytes: they are no mark then
                    break
                self._head += bytes(data[:size])
                timeout = 0.05
            self._of_bytes()
        while self._decoders and not (self._pending or self.fault):  # enough to see what is inside
            size = 1 if self._raw else self._fill(timeout)
            if size is None or (size == 0 and self.follows):
                return size
            self._pending = self._decoded(not size)
            if not size:
                break
        self._sniffed = True
        self._of_text()
        return 1

    def _of_bytes(self) -> None:
        try:
            if self._head.startswith(GZIP):
                self._decoders.append(Gzip())
            elif self._head.startswith(ZSTD):
                self._decoders.append(Zstd())
        except ConfigError as error:
            raise ConfigError(f"{self.name}: {error}") from None
        if self._decoders:
            self._raw = memoryview(self._head)
        else:
            self._pending = self._head
        self._head = b""

    def _of_text(self) -> None:
        mark, encoding = next(((mark, name) for mark, name in _MARKS if self._pending.startswith(mark)), (b"", None))
        named = codecs.lookup(self._encoding).name if self._encoding else None
        if encoding == "utf-8-sig" and named in (None, "utf-8", "utf-8-sig"):
            self._pending = self._pending[len(mark) :]
            self.skipped = len(mark)
        elif named not in (None, "utf-8", "utf-8-sig") or (named is None and encoding is not None):
            self._decoders.append(Text(self._encoding or encoding or "utf-8"))
            first, self._pending = self._pending, b""
            self._pending = self._through(first, False, len(self._decoders) - 1)
        elif named is None and (likely := _unmarked(self._pending)):
            raise SourceError(
                f"{self.name} looks like {likely.upper()} without its mark: --encoding {likely}, or utf-8 to take its "
                f"bytes as they are"
            )

    def _decoded(self, final: bool) -> bytes:
        """What is at hand, piece by piece: a thousand bytes may hold a million."""
        parts, size = [], 0
        while size < CHUNK:
            piece, self._raw = self._raw[:PIECE], self._raw[PIECE:]
            parts.append(self._through(bytes(piece), final))
            size += len(parts[-1])
            if not self._raw:
                break
        return b"".join(parts)

    def _through(self, data: bytes, final: bool, first: int = 0) -> bytes:
        """Through the decoders, from that one on; after a fault nothing more is read."""
        for number, decoder in enumerate(self._decoders):
            if number < first:
                continue
            try:
                data = decoder.decode(data, final)
            except DecodeFault as fault:
                data, self._raw, final = fault.good, memoryview(b""), fault.is_behind
                self.is_complete &= fault.is_behind
                what = "what is decompressed" if number else "the file"
                self.fault = f"cannot be decoded: at byte {fault.at:,} of {what}, {fault.reason}"
        return data

    def _read(self, room: memoryview, timeout: float) -> int | None:
        if self.ended:
            return 0
        if not self.is_file and not self._wait.poll(max(0, int(timeout * 1000))):
            return None
        try:
            size = os.readv(self.fd, [room])
        except BlockingIOError:
            return None
        except OSError as error:
            if error.errno == errno.EISDIR:
                raise SourceError(f"cannot read {self.name}: it is a directory") from None
            raise SourceError(f"reading {self.name} failed: {error.strerror}") from None
        if size == 0 and not self.follows:
            self.ended = True
        return size

    def size(self) -> int:
        return os.fstat(self.fd).st_size

    def close(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


def _unmarked(head: bytes) -> str | None:
    """The encoding of text whose first characters are all ASCII in 16 bits each."""
    if len(head) < 8:
        return None
    for encoding in ("utf-16-le", "utf-16-be"):
        if all(" " <= c <= "~" or c in "\t\r\n" for c in head[: min(32, len(head) & ~1)].decode(encoding, "replace")):
            return encoding
    return None
