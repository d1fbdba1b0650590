"""Files as they grow, are renamed, truncated and made anew."""

from __future__ import annotations

import gzip
import logging
import os
import threading
import time
from collections import deque

import pytest

from shardmem.errors import AlreadyRunning, ConfigError
from shardmem.schema import Schema
from shardmem.sources.contract import Position, SourceContext
from shardmem.sources.files import source as module
from shardmem.sources.files.options import FileOptions
from shardmem.sources.files.positions import Positions
from shardmem.sources.files.source import FileSource, expand


class Following:
    def __init__(self, directory, *names, **options):
        self.positions = Positions(str(directory / "positions")) if options.pop("keep", False) else None
        start = options.pop("from_end", False)
        self.source = FileSource(
            deque(str(directory / name) for name in names),
            FileOptions.of(**options),
            Schema(),
            1 << 16,
            follow=True,
            from_end=start,
            positions=self.positions,
        )
        self.stop = threading.Event()
        self.source.open(SourceContext(logging.getLogger(), time.time, self.stop))

    def take(self, count, seconds=10):
        """So many events; no more may come at once."""
        found, deadline = [], time.monotonic() + seconds
        while len(found) < count:
            columns = self.source.poll(1 << 16, 0.05)
            if columns is not None:
                data, spans = bytes(columns.payloads[0]), columns.payloads[1].tolist()
                found += [data[first:last] for first, last in spans]
                self.source.commit({columns.partition: columns.next}, False)
            assert time.monotonic() < deadline, f"only {found}"
        assert self.source.poll(1 << 16, 0) is None or count == 0
        return found

    def close(self):
        self.source.close(True)
        if self.positions is not None:
            self.positions.close()


@pytest.fixture
def follow(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "SEARCH", 0.05)
    monkeypatch.setattr(module, "QUIET", 0.2)
    made = []

    def follow(*names, **options):
        made.append(Following(tmp_path, *names, **options))
        return made[-1]

    yield follow
    for each in made:
        each.close()


def append(path, text):
    with open(path, "ab") as file:
        file.write(text)


def test_lines_come_as_they_are_written_and_half_a_line_waits_for_its_end(follow, tmp_path):
    append(tmp_path / "a.log", b"1\n")
    followed = follow("a.log")
    assert [b"1"] == followed.take(1)
    append(tmp_path / "a.log", b"2\n3")
    assert [b"2"] == followed.take(1)
    append(tmp_path / "a.log", b"4\n")
    assert [b"34"] == followed.take(1)


def test_a_file_that_is_renamed_is_read_to_its_end_and_the_new_one_from_its_beginning(follow, tmp_path):
    append(tmp_path / "a.log", b"1\n")
    followed = follow("a.log")
    followed.take(1)
    os.rename(tmp_path / "a.log", tmp_path / "a.log.1")
    append(tmp_path / "a.log.1", b"2\n")
    append(tmp_path / "a.log", b"3\n")
    assert {b"2", b"3"} == set(followed.take(2))
    append(tmp_path / "a.log.1", b"late, and without an end")
    assert [b"late, and without an end"] == followed.take(1)


def test_a_pattern_finds_new_files_and_renamed_ones_are_not_read_again(follow, tmp_path):
    append(tmp_path / "a.log", b"1\n")
    followed = follow("*.log*")
    followed.take(1)
    os.rename(tmp_path / "a.log", tmp_path / "a.log.1")
    append(tmp_path / "b.log", b"2\n")
    assert [b"2"] == followed.take(1)


def test_a_file_that_is_truncated_is_read_from_its_beginning(follow, tmp_path):
    append(tmp_path / "a.log", b"1 long line\n")
    followed = follow("a.log")
    followed.take(1)
    os.truncate(tmp_path / "a.log", 0)
    append(tmp_path / "a.log", b"2\n")
    assert [b"2"] == followed.take(1)


def test_standard_input_that_is_followed_ends_with_its_writer(monkeypatch):
    read, write = os.pipe()
    monkeypatch.setattr(os, "dup", lambda fd: read)
    source = FileSource(deque(["-"]), FileOptions.of(), Schema(), 1 << 16, follow=True)
    source.open(SourceContext(logging.getLogger(), time.time, threading.Event()))
    os.write(write, b"1\n2")
    os.close(write)
    found, deadline = 0, time.monotonic() + 30
    while not source.ended:
        columns = source.poll(1 << 16, 0.05)
        found += 0 if columns is None else len(columns)
        assert time.monotonic() < deadline
    assert 2 == found
    source.close(True)


def test_a_file_need_not_be_there_yet(follow, tmp_path):
    followed = follow("a.log")
    append(tmp_path / "a.log", b"1\n")
    assert [b"1"] == followed.take(1)


def test_from_the_end_only_what_is_new_counts_and_a_line_that_has_no_end_yet(follow, tmp_path):
    append(tmp_path / "a.log", b"1\n2\n3")
    followed = follow("a.log", from_end=True)
    append(tmp_path / "a.log", b"4\n5\n")
    append(tmp_path / "b.log", b"x\n")
    assert [b"34", b"5"] == followed.take(2)


@pytest.mark.parametrize("rename", [False, True])
def test_a_restart_neither_repeats_nor_misses_a_line_whatever_the_file_is_called_now(follow, tmp_path, rename):
    append(tmp_path / "a.log", b"1\n2\n")
    first = follow("a.log*", keep=True)
    assert [b"1", b"2"] == first.take(2)
    first.close()
    append(tmp_path / "a.log", b"3\n")
    if rename:
        os.rename(tmp_path / "a.log", tmp_path / "a.log.1")
        append(tmp_path / "a.log", b"4\n")
    again = follow("a.log*", keep=True)
    assert {b"3", b"4"} if rename else {b"3"} == set(again.take(1 + rename))


def test_a_restart_after_two_rotations_repeats_nothing(follow, tmp_path):
    append(tmp_path / "a.log", b"1 is longer\n")
    first = follow("a.log", keep=True)
    first.take(1)
    for number in (2, 3):
        os.rename(tmp_path / "a.log", tmp_path / f"a.log.{number}")
        append(tmp_path / "a.log", b"%d\n" % number)
        assert [b"%d" % number] == first.take(1)
        deadline = time.monotonic() + 10
        while len(first.source._turn) > 1:  # until the one before is known to be at its end
            assert first.source.poll(1, 0.05) is None and time.monotonic() < deadline
    first.close()
    append(tmp_path / "a.log", b"4\n")
    assert [b"4"] == follow("a.log", keep=True).take(1)


def test_a_place_before_a_truncation_is_not_kept_as_one_behind_it(follow, tmp_path):
    append(tmp_path / "a.log", b"1 is long\n")
    first = follow("a.log", keep=True)
    before = first.source.poll(1, 5)
    os.truncate(tmp_path / "a.log", 0)
    assert first.source.poll(1, 0.2) is None
    append(tmp_path / "a.log", b"2\n")
    after = first.source.poll(1, 5)
    assert before.partition != after.partition
    first.source.commit({before.partition: before.next}, False)
    first.close()
    assert [b"2"] == follow("a.log", keep=True).take(1)


def test_another_file_at_the_same_inode_is_read_from_its_beginning(follow, tmp_path):
    append(tmp_path / "a.log", b"1\n2\n")
    first = follow("a.log", keep=True)
    first.take(2)
    first.close()
    os.truncate(tmp_path / "a.log", 0)
    append(tmp_path / "a.log", b"x\ny\nz\n")
    assert [b"x", b"y", b"z"] == follow("a.log", keep=True).take(3)


HEAD = b"a header that is longer than what tells files apart" + b"." * 300 + b"\n"


@pytest.mark.parametrize("then", [b"", b"x\n", b"3\n4\n5\n6\n7\n"])
@pytest.mark.parametrize("follows", [False, True])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_a_file_that_was_truncated_while_nobody_read_it_is_read_from_its_beginning(tmp_path, then, follows, mark):
    path, found = tmp_path / "a.log", []
    for data in (HEAD + b"1\n2\n", HEAD + then, HEAD + then + b"y\n"):
        path.write_bytes(mark + data)
        positions = Positions(str(tmp_path / "positions"))
        source = FileSource(
            deque([str(path)]), FileOptions.of(), Schema(), 1 << 16, follow=follows, positions=positions
        )
        source.open(SourceContext(logging.getLogger(), time.time, threading.Event()))
        got = b""
        while not source.ended:
            if (columns := source.poll(1 << 16, 0.01)) is not None:
                got += b"".join(bytes(columns.payloads[0])[a:b] + b"\n" for a, b in columns.payloads[1].tolist())
                source.commit({columns.partition: columns.next}, False)
            elif follows:
                break
        found.append(got)
        source.close(True)
        positions.close()
    assert [HEAD + b"1\n2\n", HEAD + then, b"y\n"] == found


def test_a_file_that_is_empty_at_first_may_have_a_mark_or_be_compressed(follow, tmp_path):
    for name in ("a.log", "b.log"):
        append(tmp_path / name, b"")
    followed = follow("*.log")
    assert followed.source.poll(1, 0.05) is None
    append(tmp_path / "a.log", b"\xef\xbb\xbf1\n")
    append(tmp_path / "b.log", gzip.compress(b"2\n"))
    assert {b"1", b"2"} == set(followed.take(2))


def test_a_followed_file_that_cannot_be_decoded_is_reported_once(follow, tmp_path):
    append(tmp_path / "a.log", gzip.compress(b"1\n") + b"garbage")
    followed, rejected = follow("*.log"), []
    deadline = time.monotonic() + 0.5
    while time.monotonic() < deadline:
        columns = followed.source.poll(1 << 16, 0.05)
        rejected += [] if columns is None else columns.rejected
    append(tmp_path / "b.log", b"2\n")
    assert [b"2"] == followed.take(1) and ["cannot be decoded"] == [bad.reason for bad in rejected]


def test_positions_of_files_that_are_gone_are_forgotten_after_a_while(tmp_path, monkeypatch):
    (tmp_path / "a.log").write_bytes(b"1\n")
    for kept in (1, 1, 0):
        positions = Positions(str(tmp_path / "p"))
        if (tmp_path / "a.log").exists():
            with open(tmp_path / "a.log", "rb") as file:
                positions.put(file.fileno(), file.name, Position(2), 2)
            os.unlink(tmp_path / "a.log")
        else:
            monkeypatch.setattr("shardmem.sources.files.positions.KEEP", 0.0)
        assert kept == len(positions._known)
        positions.save(False)
        positions.close()


def test_positions_are_held_by_one_process(tmp_path):
    first = Positions(str(tmp_path / "p"))
    with pytest.raises(AlreadyRunning, match="another process reads with the positions"):
        Positions(str(tmp_path / "p"))
    first.close()
    (tmp_path / "p").write_text("nonsense")
    with pytest.raises(ConfigError, match="does not hold positions"):
        Positions(str(tmp_path / "p"))


def test_names_are_files_directories_and_patterns(tmp_path):
    for name in ("b.log", "a.log", ".hidden", "c.txt"):
        append(tmp_path / name, b"")
    assert [str(tmp_path / name) for name in ("a.log", "b.log", "c.txt")] == expand([str(tmp_path)])
    assert [str(tmp_path / name) for name in ("a.log", "b.log")] == expand(
        [str(tmp_path / "*.log"), str(tmp_path / "a.log")]
    )
    with pytest.raises(ConfigError, match="cannot read .*missing.log: No such file"):
        expand([str(tmp_path / "missing.log")])
    with pytest.raises(ConfigError, match="no file matches .*none\\*"):
        expand([str(tmp_path / "none*")])
    os.symlink(tmp_path / "missing.log", tmp_path / "link")
    with pytest.raises(ConfigError, match="cannot read .*link: No such file"):
        expand([str(tmp_path / "link")])


def test_a_directory_and_a_pattern_are_read_to_the_end_of_each_file(tmp_path):
    for name in ("b.log", "a.log", "c.txt"):
        append(tmp_path / name, name.encode())
    names = deque([str(tmp_path / "*.txt"), str(tmp_path)])
    source, found = FileSource(names, FileOptions.of(), Schema(), 1 << 16), []
    source.open(SourceContext(logging.getLogger(), time.time, threading.Event()))
    while not source.ended:
        columns = source.poll(1, 1)
        found += [] if columns is None else [os.path.basename(columns.partition)]
    assert ["c.txt", "a.log", "b.log", "c.txt"] == found
    source.close(True)


def test_a_named_pipe_is_waited_for_and_read_to_the_end_of_its_writer(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    source = FileSource(deque([str(tmp_path / "pipe")]), FileOptions.of(), Schema(), 1 << 16)
    source.open(SourceContext(logging.getLogger(), time.time, threading.Event()))
    assert source.poll(1, 0.02) is None and not source.ended
    writer = os.open(tmp_path / "pipe", os.O_WRONLY)
    os.write(writer, b"1\n")
    assert 1 == len(source.poll(1, 5))
    os.write(writer, b"2")
    os.close(writer)
    found = [source.poll(1, 1) for _ in range(3)]
    assert 1 == sum(len(each) for each in found if each is not None) and source.ended
    source.close(True)
