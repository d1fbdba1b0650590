"""Files as a source: a list of them to the end, or followed as they grow and are rotated."""

from __future__ import annotations

import errno
import glob
import os
import time
from collections import deque
from collections.abc import Collection, Mapping, Sequence

from shardmem.errors import ConfigError
from shardmem.schema import Schema
from shardmem.sources.contract import Columns, Position, SourceContext, SourceError
from shardmem.sources.files.formats import check_fits
from shardmem.sources.files.inputs import STDIN, Input
from shardmem.sources.files.options import TABLES, FileOptions
from shardmem.sources.files.positions import Positions
from shardmem.sources.files.reader import BLOCK, Reader
from shardmem.sources.files.tables import TableReader

LOOK = 0.01  # seconds between two looks at files that are followed
SEARCH = 1.0  # between two searches for new ones
QUIET = 2.0  # a file that was rotated away and did not grow for so long is at its end


def expand(names: Sequence[str]) -> list[str]:
    """Names, patterns and directories as files, in order. Raises ConfigError, naming what is not there."""
    found: list[str] = []
    for name in names:
        if name == STDIN or os.path.lexists(name) and not os.path.isdir(name):
            found.append(name)
        elif os.path.isdir(name):
            inside = sorted(
                entry.path for entry in os.scandir(name) if entry.is_file() and not entry.name.startswith(".")
            )
            found += inside
        elif glob.has_magic(name):
            matches = sorted(each for each in glob.glob(name, recursive=True) if not os.path.isdir(each))
            if not matches:
                raise ConfigError(f"no file matches {name}; nothing was pushed")
            found += matches
        else:
            raise ConfigError(f"cannot read {name}: No such file or directory; nothing was pushed")
    for name in found:
        if name != STDIN and not os.access(name, os.R_OK):
            why = os.strerror(errno.EACCES if os.path.exists(name) else errno.ENOENT)
            raise ConfigError(f"cannot read {name}: {why}; nothing was pushed")
    return list(dict.fromkeys(found))


class Opened:
    """A file that is being read. path: what it is called now, as far as is known."""

    def __init__(self, reader: Reader | TableReader, path: str) -> None:
        self.reader, self.path = reader, path
        self.grew = time.monotonic()
        self.moved = False  # its path leads to another file, or nowhere
        self.committed: Position | None = None
        self.in_bytes = isinstance(reader, Reader)  # what places count

    @property
    def place(self) -> tuple[int, int]:
        return self.reader.input.stat.st_dev, self.reader.input.stat.st_ino


class FileSource:
    """A Source. Without follow it takes files from `names`, which several sources may share, each to its end, one after
    another. With it, names are patterns, looked for again and again, and all their files are open at once."""

    def __init__(
        self,
        names: deque[str],
        options: FileOptions,
        schema: Schema,
        most: int,
        *,
        follow: bool = False,
        from_end: bool = False,
        start: Position | None = None,
        positions: Positions | None = None,
        block: int = BLOCK,
        keep_all: bool = False,
    ) -> None:
        """most: bytes of payload and key. start: of the first file. from_end: files there at the start are read from
        their end."""
        check_fits(options, schema)
        self._names, self._options, self._schema, self._most = names, options, schema, most
        self._follow, self._from_end, self._start, self._positions = follow, from_end, start, positions
        self._block, self._keep_all = block, keep_all
        self._open: dict[tuple[int, int], Opened] = {}
        self._done: dict[str, Opened] = {}  # read to the end, and not committed yet
        self._cut: set[str] = set()  # truncated, when places before that may still be committed
        self._turn: deque[Opened] = deque()
        self._paused: set[str] = set()
        self._searched = self._looked = 0.0
        self._begun: dict[str, Position | None] = {}  # files, and where they ended
        self.ended = False

    # ---- the contract
    # -------------------------------------------------------------------------------------------------------

    def open(self, context: SourceContext) -> None:
        self._context = context
        if self._follow:
            self._search(first=True)
            self._from_end = False

    def poll(self, max_events: int, timeout: float) -> Columns | None:
        return self._poll_following(timeout) if self._follow else self._poll_next(timeout)

    def pause(self, partitions: Sequence[str]) -> None:
        self._paused |= set(partitions)

    def resume(self, partitions: Sequence[str]) -> None:
        self._paused -= set(partitions)

    def seek(self, partition: str, to: str | int) -> Position:
        opened = self._named(partition)
        source = opened.reader.input
        if not source.is_file:
            raise SourceError(f"{partition} is a stream: what was read does not come again")
        source.look()
        if to != "start" and not (source.is_plain and opened.in_bytes):
            raise SourceError(f"{partition} is not read as it is in the file: only its start can be gone to")
        place = Position(0 if to == "start" else _last_line_end(source) if to == "end" else int(to))
        if place.offset:
            _check_between_lines(source, place.offset)
        source.rewind()
        reader = self._reader_of(source)
        reader.name = opened.reader.name
        reader.start(place)
        opened.reader, opened.grew = reader, time.monotonic()
        self._begun[partition] = None
        return place

    def lag(self) -> Mapping[str, int | None]:
        found: dict[str, int | None] = {}
        for opened in list(self._open.values()):
            source = opened.reader.input
            known = source.is_file and source.is_plain and opened.in_bytes
            try:
                found[opened.reader.name] = (
                    max(0, source.size() - source.skipped - opened.reader.position.offset) if known else None
                )
            except OSError:  # closed by now
                continue
        return found

    def commit(self, positions: Mapping[str, Position], sync: bool) -> None:
        if self._positions is None:
            return
        for name, position in positions.items():
            opened = self._done.get(name) or self._find(name)
            if opened is not None and opened.reader.input.is_file:
                opened.committed = position
                source = opened.reader.input
                behind = position.offset + source.skipped if source.is_plain and opened.in_bytes else None
                self._positions.put(source.fd, opened.path, position, behind)
                if name in self._done and position == opened.reader.position:
                    self._done.pop(name).reader.input.close()
        self._positions.save(sync)

    def close(self, drained: bool) -> None:
        for opened in [*self._open.values(), *self._done.values()]:
            opened.reader.input.close()
        self._open.clear()
        self._done.clear()

    def unfinished(self, places: Mapping[str, Position]) -> list[str]:
        """Files that were begun, and of which not all was pushed up to these places; after `close` too."""
        return [
            name
            for name, end in self._begun.items()
            if end is None or name not in places or places[name].offset < end.offset
        ]

    def _find(self, name: str) -> Opened | None:
        return next((each for each in self._open.values() if each.reader.name == name), None)

    def _named(self, partition: str) -> Opened:
        """Raises SourceError."""
        opened = self._find(partition)
        if opened is None:
            names = ", ".join(each.reader.name for each in self._open.values())
            raise SourceError(f"{partition} is not being read; what is: {names or 'no file'}")
        return opened

    # ---- one after another
    # ----------------------------------------------------------------------------------------------------

    def _poll_next(self, timeout: float) -> Columns | None:
        while not self._open:
            try:
                name = self._names.popleft()
            except IndexError:
                self.ended = True
                return None
            if os.path.isdir(name) or (glob.has_magic(name) and not os.path.lexists(name)):
                self._names.extendleft(reversed(expand([name])))
            else:
                self._begin(name)
        ((place, opened),) = self._open.items()
        if opened.reader.name in self._paused:
            self._context.stop.wait(timeout)
            return None
        columns = opened.reader.poll(timeout)
        if opened.reader.ended:
            self._end(place)
        return columns

    def _begin(self, name: str, taken: Collection[str] = ()) -> Opened:
        """taken: names that its partition cannot have."""
        source = Input(name, self._options.encoding, follow=self._follow and name != STDIN)
        reader = self._reader_of(source)
        if self._start is not None:
            reader.start(self._start)
            self._start = None
        elif self._positions is not None and source.is_file and (known := self._positions.of(source.fd)) is not None:
            reader.start(known)
            self._context.log.info("%s: going on at %s", name, known.metadata or f"byte {known.offset:,}")
        elif self._from_end and source.is_file:
            reader.start(Position(_last_line_end(source), ""))
            source.rewind()
        opened = Opened(reader, name)
        if reader.name in taken:
            reader.name = f"{name} (inode {opened.place[1]})"
        number, first = 1, reader.name
        while reader.name in taken:
            reader.name = f"{first} {(number := number + 1)}"
        self._open[opened.place] = opened
        self._begun[reader.name] = None
        self._context.assigned([reader.name])
        return opened

    def _reader_of(self, source: Input) -> Reader | TableReader:
        form = self._options.format
        if form not in TABLES:
            return Reader(source, self._options, self._schema, self._most, block=self._block, keep_all=self._keep_all)
        if not source.is_file or self._follow:
            raise SourceError(f"cannot read {source.name} as {form}: it has to be a file that is complete")
        return TableReader(source, self._options, self._schema, self._most)

    def _end(self, place: tuple[int, int]) -> None:
        opened = self._open.pop(place)
        self._begun[opened.reader.name] = opened.reader.position
        self._context.lost([opened.reader.name])
        if self._positions is None or opened.committed == opened.reader.position:
            opened.reader.input.close()
        else:
            self._done[opened.reader.name] = opened

    # ---- followed
    # -------------------------------------------------------------------------------------------------------------

    def _poll_following(self, timeout: float) -> Columns | None:
        deadline = time.monotonic() + timeout
        while True:
            now = time.monotonic()
            if now - self._searched >= SEARCH:
                self._search()
            for _ in range(len(self._turn)):
                opened = self._turn[0]
                self._turn.rotate(-1)
                if opened.reader.name in self._paused:
                    continue
                columns = opened.reader.poll(0)
                if columns is not None:
                    opened.grew = now
                    return columns
                self._look_at(opened, now)
            self.ended = not self._turn and all(name == STDIN for name in self._names)
            if self.ended or self._context.stop.is_set() or time.monotonic() >= deadline:
                return None
            self._context.stop.wait(min(LOOK, max(0.0, deadline - time.monotonic())))

    def _search(self, first: bool = False) -> None:
        """Opens what is new among the files of the patterns."""
        self._searched = time.monotonic()
        for pattern in self._names:
            if pattern == STDIN:
                paths = [STDIN] if first else []
            elif os.path.isdir(pattern):
                paths = sorted(entry.path for entry in os.scandir(pattern) if entry.is_file() and entry.name[0] != ".")
            else:
                paths = sorted(glob.glob(pattern, recursive=True)) if glob.has_magic(pattern) else [pattern]
            for path in paths:
                self._take_up(path)

    def _take_up(self, path: str) -> None:
        if path != STDIN:
            try:
                status = os.stat(path)
            except OSError:
                return  # not yet there; or not any more
            known = self._open.get((status.st_dev, status.st_ino))
            if known is not None:
                known.path, known.moved = path, False
                return
        # by one that is still read, or that a place can still be committed of
        taken = {each.reader.name for each in self._turn} | self._done.keys() | self._cut
        opened = self._begin(path, taken)
        self._turn.append(opened)

    def _look_at(self, opened: Opened, now: float) -> None:
        """Nothing new in it: was it truncated, or rotated away?"""
        source = opened.reader.input
        if opened.reader.ended and not (source.is_file and source.fault and not opened.moved):
            self._drop(opened)
            return
        if not source.is_file:
            return
        if source.is_plain and source.size() < source.at + source.skipped:
            self._context.log.warning("%s was truncated; reading it from its beginning", opened.path)
            self._drop(opened)
            if self._done.pop(opened.reader.name, None) is not None:  # its places are none of what is there now
                opened.reader.input.close()
                self._cut.add(opened.reader.name)
            self._start = Position(0)
            self._take_up(opened.path)
            return
        if now - self._looked >= SEARCH / 4:
            self._looked = now
            for each in self._turn:
                each.moved = not _leads_to(each.path, each.place)
        if opened.moved and now - opened.grew > QUIET:
            opened.reader.finishing = True  # the last line may have no end

    def _drop(self, opened: Opened) -> None:
        self._turn.remove(opened)
        self._end(opened.place)


def _leads_to(path: str, place: tuple[int, int]) -> bool:
    try:
        status = os.stat(path)
    except OSError:
        return False
    return (status.st_dev, status.st_ino) == place


def _check_between_lines(source: Input, offset: int) -> None:
    """Raises SourceError."""
    size = source.size() - source.skipped
    if not 0 <= offset <= size:
        raise SourceError(f"{source.name} has {size:,} bytes; there is no place {offset:,} in it")
    if os.pread(source.fd, 1, source.skipped + offset - 1) not in (b"\n", b"\r"):
        raise SourceError(f"byte {offset:,} of {source.name} is inside a line")


def _last_line_end(source: Input) -> int:
    """The place behind the last line of a file; of one that is not read as it is, behind all that is in it."""
    source.look()
    if not source.is_plain:
        return source.seek(1 << 62)
    at = source.size()
    while at > source.skipped:
        step = min(at - source.skipped, 1 << 16)
        data = os.pread(source.fd, step, at - step)
        if (end := data.rfind(b"\n")) >= 0:
            return at - step + end + 1 - source.skipped
        at -= step
    return 0
