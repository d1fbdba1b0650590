"""The state of one partition as a file: taken while its shards go on, put into the files of another engine."""

from __future__ import annotations

import contextlib
import io
import os
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from shardmem.console.cli import main
from shardmem.errors import ConfigError, ShardmemError, StateError
from shardmem.runtime import partition_count
from shardmem.runtime.partition_count import count, counted
from shardmem.runtime.partition_state import StateFiles, layout_of
from shardmem.runtime.state import StateStore
from shardmem.runtime.state_export import export_compact, export_lines, import_state
from shardmem.runtime.state_files import remove_files, restored_file, restored_files, shard_file
from shardmem.runtime.state_reader import StateReader
from shardmem.state.keys import prefix, read_store_key, slot_of
from shardmem.state.partitions import NEVER, Layout, merged
from support.partitions import ENGINE, KEYS, LAYOUT, Host, applied, fill, slot_in


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Callable[..., Host]]:
    with contextlib.ExitStack() as stack:

        def made(name: str, engine: int = ENGINE) -> Host:
            found = Host(tmp_path / name / "e.state", engine)
            stack.callback(found.close)
            return found

        yield made


def test_a_partition_is_taken_from_the_files_of_all_its_shards_and_taken_up_by_others(host, tmp_path) -> None:
    here, there = host("here"), host("there", engine=9)
    for shard, slots in ((0, range(12)), (1, range(12, 32))):
        fill(here.shard(shard, slots), slots, b"old", 1, merge=True)
        fill(here.stores[shard], slots, b"new", 2)  # in the journal
    fill(there.shard(0, range(32)), range(32), b"theirs", 5)
    for number in range(3):
        path = str(tmp_path / f"{number}.snapshot")
        here.files.export(LAYOUT, number, path)
        assert (LAYOUT, number) == layout_of(path)
        there.files.install(path, LAYOUT, number)
        other = there.content((number + 1) % 3)
        there.stores[0].claim(LAYOUT.slots_of(number))
        assert here.content(number) == there.content(number)
        assert other == there.content((number + 1) % 3)
        assert list(there.content(number)[1].values()) == [[2000 + slot for slot in LAYOUT.slots_of(number)]]
    there.files.remove_taken_up()
    assert {} == restored_files(there.directory)
    remove_files(there.directory)


def test_until_its_worker_has_claimed_them_a_restored_slot_is_what_it_was_and_a_death_in_between_changes_nothing(
    host, tmp_path
) -> None:
    here, there = host("here"), host("there", engine=9)
    fill(here.shard(0, range(32)), range(32), b"here", 3)
    fill(there.shard(0, range(32)), range(32), b"there", 8)
    path = str(tmp_path / "snapshot")
    here.files.export(LAYOUT, 1, path)
    there.files.install(path, LAYOUT, 1)
    fill(there.stores[0], range(32), b"late", 9)  # by a worker that does not know yet
    there.files.remove_taken_up()
    assert [1] == list(restored_files(there.directory))
    there.close()
    there.stores.clear()
    second = StateStore(there.directory, 0, there.engine, LAYOUT.slots, keep=True)
    second.begin_life(2, 1)
    second.claim(range(32))
    assert here.content(1) == there.content(1) and here.content(0) != there.content(0)
    second.leave()


def test_a_slot_that_moves_while_it_is_read_is_read_where_it_is(host, tmp_path, monkeypatch) -> None:
    here = host("here")
    fill(here.shard(0, range(32)), range(32), b"first", 1, merge=True)
    whole, looks = here.content(0), []
    owners = StateFiles.owners

    def moves_between(files: StateFiles, slots: Any) -> Any:
        found = owners(files, slots)
        looks.append(len(looks))
        if len(looks) == 1:  # it was seen with shard 0; when that file is read it is gone, and half of its rows are
            here.stores[0].give(range(8))
            here.shard(1, range(8))
            here.stores[0].purge()
        return found

    monkeypatch.setattr(StateFiles, "owners", moves_between)
    here.files.export(LAYOUT, 0, str(tmp_path / "snapshot"))
    monkeypatch.undo()
    assert len(looks) > 2
    there = host("there", engine=9)
    there.files.install(str(tmp_path / "snapshot"), LAYOUT, 0)
    there.shard(0, range(32))
    assert whole == there.content(0)


def test_files_of_another_life_of_the_engine_say_nothing(host, tmp_path) -> None:
    here = host("here")
    fill(here.shard(0, range(32)), range(32), b"old", 1)
    other = StateFiles(here.directory, ENGINE + 1)
    other.export(LAYOUT, 0, str(tmp_path / "snapshot"))
    StateFiles(str(tmp_path / "there"), 1).install(str(tmp_path / "snapshot"), LAYOUT, 0)
    with contextlib.closing(sqlite3.connect(restored_file(str(tmp_path / "there"), 0))) as made:
        assert ([], 8) == (
            made.execute("select * from rows").fetchall(),
            len(made.execute("select * from slots").fetchall()),
        )


def test_what_is_restored_is_newer_than_what_a_shard_of_an_earlier_engine_has_left(host, tmp_path) -> None:
    here, there = host("here"), host("there", engine=9)
    fill(here.shard(0, range(32)), range(32), b"here", 1)
    for _ in range(4):  # the owner numbers of that host are higher
        for shard in (3, 4):
            store = there.shard(shard, range(32))
            fill(store, range(32), b"left", 5)
            store.give(range(32))
    there.close()
    there.stores.clear()
    path = str(tmp_path / "snapshot")
    here.files.export(LAYOUT, 1, path)
    StateFiles(there.directory, ENGINE + 3, keep=True).install(path, LAYOUT, 1)
    there.engine = ENGINE + 3
    there.shard(0, range(32))
    assert here.content(1) == there.content(1) and here.content(0) != there.content(0)


def test_a_cleared_partition_has_nothing_and_its_neighbours_keep_what_they_have(host) -> None:
    here = host("here")
    fill(here.shard(0, range(32)), range(32), b"x", 1, merge=True)
    neighbour = here.content(2)
    here.files.clear(LAYOUT, 1)
    here.stores[0].claim(range(32))
    assert ([[]] * 8, {}) == here.content(1)
    assert neighbour == here.content(2)


def test_a_slot_that_is_claimed_from_nobody_has_nothing_applied(host) -> None:
    here = host("here")
    fill(here.shard(0, range(8)), range(8), b"x", 1)
    store = here.shard(1, range(8))
    here.stores[0].give(range(8))
    while here.stores[0]._given:
        here.stores[0].purge()
    os.unlink(shard_file(here.directory, 1))  # lost, and with it the slots
    store.leave()
    del here.stores[1]
    here.stores[0].claim(range(8))
    assert {} == here.content(0)[1]


@pytest.mark.parametrize("layout, number", [(Layout(64, 3), 1), (Layout(32, 9), 1), (Layout(32, 4), 1), (LAYOUT, 2)])
def test_a_snapshot_of_other_slots_partitions_or_number_is_refused_and_changes_nothing(
    host, tmp_path, layout, number
) -> None:
    here, there, path = host("here"), host("there"), str(tmp_path / "snapshot")
    fill(there.shard(0, range(32)), range(32), b"x", 1)
    before = there.content(1)
    here.files.export(LAYOUT, 1, path)
    with pytest.raises(ShardmemError, match="partition"):
        there.files.install(path, layout, number)
    there.stores[0].claim(range(32))
    assert before == there.content(1) and {} == restored_files(there.directory)


def test_what_is_no_snapshot_is_refused(tmp_path) -> None:
    (tmp_path / "text").write_text("text")
    (tmp_path / "empty").write_text("")
    for name in ("text", "empty"):
        with pytest.raises(StateError, match="is not the state of a partition"):
            StateFiles(str(tmp_path), 1).install(str(tmp_path / name), LAYOUT, 0)


def test_applied_offsets_go_with_their_slots() -> None:
    ours = applied({0: 5, 1: 6, 8: 7})
    theirs = applied({0: 50, 1: 60, 16: 70}) + applied({2: 9}, topic="u")
    found = {(row.topic, row.number): row.array.tolist() for row in merged(ours, theirs, [0, 2, 8, 16])}
    never = [NEVER] * 8
    assert found == {
        ("t", 0): [50, 6, *never[2:]],
        ("t", 1): never,
        ("t", 2): [70, *never[1:]],
        ("u", 0): [NEVER, NEVER, 9, *never[3:]],
    }


# ---- how many partitions ---------------------------------------------------------------------------------------------


def test_a_changed_number_of_partitions_is_refused_until_somebody_says_that_it_may_change(tmp_path) -> None:
    directory = str(tmp_path / "e.state")
    assert counted(directory) is None
    first = count(directory, 32, 3, told=False)
    assert first == count(directory, 32, 3, told=False) == counted(directory)
    with pytest.raises(ConfigError, match="of 3 partitions, and there are 4") as refused:
        count(directory, 32, 4, told=False)
    assert refused.value.hint is not None and "partitions = 4" in refused.value.hint
    assert first == counted(directory)
    assert (4, first.id) == count(directory, 32, 4, told=True) == counted(directory)
    with pytest.raises(ConfigError, match="laid out for 4 partitions, and there are 5"):
        count(directory, 32, 5, told=True)
    Path(directory, partition_count.PARTITIONS).write_text("{}")
    with pytest.raises(ShardmemError, match="cannot be read"):
        counted(directory)


# ---- all of it, as a stream ------------------------------------------------------------------------------------------


def exported(directory: str, compact: bool) -> bytes:
    with contextlib.closing(StateReader(directory)) as reader:
        return b"".join(export_compact(reader)) if compact else "\n".join(export_lines(reader)).encode()


@pytest.mark.parametrize("compact", [True, False])
def test_state_with_partitions_is_exported_and_imported_with_what_was_applied(host, compact) -> None:
    here, there = host("here"), host("there")
    count(here.directory, 32, 3, told=False)
    for shard, slots in ((0, range(12)), (1, range(12, 24))):
        fill(here.shard(shard, slots), slots, b"\x01", 1)
    import_state(io.BytesIO(exported(here.directory, compact)), there.directory)
    assert [here.content(number) for number in range(3)] == [there.content(number) for number in range(3)]
    found = counted(there.directory)
    assert found is not None and found.partitions == 3
    with contextlib.closing(StateReader(there.directory)) as reader:
        saved = reader.get("n", "a")
        assert saved is not None and (slot_in(0, "a"), b"\x01") == (saved.slot, saved.row[0])


def test_lines_are_laid_out_for_more_partitions_and_each_key_stays_in_its_partition(host) -> None:
    here, there = host("here"), host("there")
    count(here.directory, 32, 3, told=False)
    fill(here.shard(0, range(24)), range(24), b"\x01", 1)
    for compact, partitions in ((True, 9), (False, 9)):
        stream = io.BytesIO(exported(here.directory, compact))
        if compact:
            with pytest.raises(ConfigError, match="only lines of JSON"):
                import_state(stream, there.directory, partitions)
        else:
            import_state(stream, there.directory, partitions)
    wide = Layout(32, 9)
    with contextlib.closing(StateReader(there.directory)) as reader:
        found = {(slot, key) for slot, _, key, _ in reader.rows()}
        assert [] == reader.applied()
    assert found == {(wide.slots_of(n)[slot_of(key, wide.width)], key) for n in range(3) for key in KEYS}


def test_a_snapshot_is_imported_into_an_engine_that_does_not_run(host, tmp_path) -> None:
    here, there, path = host("here"), host("there"), tmp_path / "snapshot"
    fill(here.shard(0, range(32)), range(32), b"x", 1)
    here.files.export(LAYOUT, 1, str(path))
    with path.open("rb") as source:
        assert 1 == import_state(source, there.directory)
    there.shard(0, range(32))
    assert here.content(1) == there.content(1)
    assert {slot_in(1, key) for key in KEYS} == {
        read_store_key(key)[0] for slot in LAYOUT.slots_of(1) for key, _ in there.stores[0].scan(prefix(slot, b"n"))
    }


def test_the_command_line_exports_a_partition_and_imports_it(host, tmp_path) -> None:
    here, path = host("here"), str(tmp_path / "p1")

    def said(*command: str, code: int = 0) -> str:
        result = CliRunner().invoke(main, ["state", *command])
        assert code == result.exit_code, result.output
        return result.output + str(result.exception or "")

    fill(here.shard(0, range(32)), range(32), b"x", 1)
    there = ("--state-dir", str(tmp_path / "there"))
    export = ("export", "e", "--state-dir", str(tmp_path / "here"), "--partition")
    assert "its state has no partitions" in said(*export, "1", "-o", path, code=1)
    count(here.directory, 32, 3, told=False)
    assert "its state has partitions 0 to 2" in said(*export, "3", "-o", path, code=1)
    assert "--partition takes --output FILE" in said(*export, "1", code=2)
    said(*export, "1", "-o", path)
    said("import", "e", path, *there)
    other = host("there")
    other.shard(0, range(32))
    assert here.content(1) == other.content(1)
