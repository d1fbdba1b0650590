"""Export and import of state: nothing is lost in either form, and what is no export is refused."""

from __future__ import annotations

import contextlib
import io
import json
from pathlib import Path

import msgspec
import pytest
from click.testing import CliRunner

from shardmem.client.state import StateAccess, StateValue, find_text
from shardmem.console.cli import main
from shardmem.errors import ConfigError, ShardmemError
from shardmem.runtime.state import StateStore
from shardmem.runtime.state_export import export_compact, export_lines, import_state
from shardmem.runtime.state_reader import StateReader
from shardmem.state.keys import Key, slot_of, store_key
from shardmem.state.store import Changes

SLOTS = 8
VALUES: dict[Key, object] = {
    17: 1,
    "17": "text",
    b"17": b"bytes",
    -3: 1.0,
    "list": [1, 2.5, None, True],
    "object": {"a": {"b": [1]}},
    "numbers as keys": {1: 2},
    "\udc80": "surrogate key",
    1 << 63: float("inf"),
}


@pytest.fixture
def directory(tmp_path: Path) -> str:
    """State of an engine "e": values by key, a timer, an expiry, a snapshot, in two files."""
    path = tmp_path / "from" / "e.state"
    for shard, slots in ((0, range(5)), (1, range(5, SLOTS))):
        store = StateStore(str(path), shard, 7, SLOTS, keep=True)
        store.begin_life(1, 1)
        store.claim(slots)
        mine = {key: value for key, value in VALUES.items() if slot_of(key, SLOTS) in slots}
        rows = {store_key(key, b"n", SLOTS): (msgspec.msgpack.encode(value), 1, None) for key, value in mine.items()}
        rows |= {store_key(key, b"old", SLOTS): (b"\x05", 3, 99_999_999_999_999) for key in mine}
        timers: dict[bytes, int | None] = {store_key(key, b":idle", SLOTS): 12345 for key in mine}
        timers |= {store_key(key, b"=old", SLOTS): 99_999_999_999_999 for key in mine}
        store.save([(min(slots), b"a snapshot")], Changes(rows, timers), b"")
        store.leave()
    return str(path)


def content(directory: str) -> object:
    with contextlib.closing(StateReader(directory)) as reader:
        rows = {(slot, name, key): row for slot, name, key, row in reader.rows()}
        assert len(VALUES) * 2 == len(rows)
        return rows, sorted(map(repr, reader.timers())), reader.snapshots()


def exported(directory: str, compact: bool, slots: range | None = None) -> bytes:
    with contextlib.closing(StateReader(directory)) as reader:
        if compact:
            return b"".join(export_compact(reader, slots))
        return "".join(line + "\n" for line in export_lines(reader, slots)).encode()


@pytest.mark.parametrize("compact", [False, True])
def test_what_is_exported_and_imported_is_the_same(directory: str, tmp_path: Path, compact: bool) -> None:
    data, to = exported(directory, compact), str(tmp_path / "to" / "e.state")
    assert len(VALUES) * 4 + 2 == import_state(io.BytesIO(data), to)
    assert content(directory) == content(to)
    import_state(io.BytesIO(data), to)  # again: nothing changes
    assert content(directory) == content(to)
    store = StateStore(to, 3, 99, SLOTS, keep=True)  # the next engine takes it up
    store.begin_life(1, 1)
    store.claim(range(SLOTS))
    store.leave()
    assert content(directory) == content(to)


@pytest.mark.parametrize("compact", [False, True])
def test_an_export_in_parts_by_slot_is_the_whole(directory: str, tmp_path: Path, compact: bool) -> None:
    to = str(tmp_path / "to")
    for part in (range(3), range(3, SLOTS)):
        import_state(io.BytesIO(exported(directory, compact, part)), to)
    assert content(directory) == content(to)


def test_lines_can_be_laid_out_for_another_number_of_slots(directory: str, tmp_path: Path) -> None:
    data, to = exported(directory, False), str(tmp_path / "to" / "e.state")
    lines = [line for line in data.splitlines(keepends=True) if b'"snapshot"' not in line]
    assert len(VALUES) * 4 == import_state(io.BytesIO(b"".join(lines)), to, slots=64)
    with contextlib.closing(StateReader(directory)) as before, contextlib.closing(StateReader(to)) as after:
        assert 64 == after.slots
        assert {(name, key): row for _, name, key, row in before.rows()} == {
            (name, key): row for _, name, key, row in after.rows()
        }
        assert all(slot == slot_of(key, 64) for slot, _, key, _ in after.rows())
        assert sorted((name, repr(key), due) for _, name, key, due in before.timers()) == sorted(
            (name, repr(key), due) for _, name, key, due in after.timers()
        )
    for wrong, slots, why in ((data, 64, "all keys of a slot together"), (data, 48, "power of two")):
        with pytest.raises(ShardmemError, match=why):
            import_state(io.BytesIO(wrong), str(tmp_path / "other"), slots=slots)
    with pytest.raises(ConfigError, match="only lines of JSON"):
        import_state(io.BytesIO(exported(directory, True)), str(tmp_path / "other"), slots=64)
    with pytest.raises(ShardmemError, match="made with slots=64 and the engine has slots=8"):
        import_state(io.BytesIO(b"".join(lines)), to)


def test_lines_are_json_that_people_can_read_and_write(directory: str) -> None:
    lines = [json.loads(line) for line in exported(directory, False).splitlines()]
    assert {"slots": SLOTS} == lines[0]
    assert {"state": "n", "key": 17, "value": 1} in lines
    assert {"state": "n", "key": "17", "value": "text"} in lines
    assert {"timer": "idle", "key": {"base64": "MTc="}, "due": 12345} in lines


@pytest.mark.parametrize(
    "data, why",
    [
        (b"", "does not begin as one"),
        (b"{}\n", "does not begin as one"),
        (b'{"slots": 7}\n', "says slots=7"),
        (b'{"slots": 8}\n{"state": "n", "key": 1.5, "value": 1}\n', "line 2 .*1.5 is not a key"),
        (b'{"slots": 8}\n\n{"key": 1, "value": 1}\n', "line 3 .*KeyError: 'state'"),
        (b'{"slots": 8}\nnot json\n', "line 2 "),
    ],
)
def test_what_is_no_export_is_refused_with_its_line(tmp_path: Path, data: bytes, why: str) -> None:
    with pytest.raises(ShardmemError, match=why):
        import_state(io.BytesIO(data), str(tmp_path / "to"))


def test_a_compact_export_that_is_cut_off_or_damaged_is_refused(directory: str, tmp_path: Path) -> None:
    data = exported(directory, True)
    for wrong, why in ((data[:-5], "cut off"), (data[:-5] + b"\0" + data[-4:], "damaged")):
        with pytest.raises(ShardmemError, match=why):
            import_state(io.BytesIO(wrong), str(tmp_path / "to"))


def test_asking_for_a_value_and_for_all_of_them(directory: str) -> None:
    with contextlib.closing(StateAccess(str(Path(directory).parent), "e")) as access:
        found = access.get("n", 17)
        assert isinstance(found, StateValue) and 1 == found.value == found and found.age < 3600
        assert (b"bytes", slot_of(b"17", SLOTS)) == (access.get("n", b"17"), access.get("n", b"17").slot)  # type: ignore[union-attr]
        assert access.get("n", "nothing") is None and access.get("other", 17) is None
        assert dict(access.items("n")) == VALUES
        assert {"n": len(VALUES), "old": len(VALUES)} == access.count()
        assert ["17", 17, b"17"] == [find_text(access, "n", "17", kind)[0] for kind in (None, "int", "bytes")]  # type: ignore[index]
        assert -3 == find_text(access, "n", "-3", None)[0]  # type: ignore[index]
        assert find_text(access, "n", "nothing", None) is None
        with pytest.raises(ConfigError, match="not an integer"):
            find_text(access, "n", "x", "int")
        with pytest.raises(TypeError):
            access.get("n", None)


def test_the_command_line_asks_exports_and_imports_for_an_engine_that_does_not_run(
    directory: str, tmp_path: Path
) -> None:
    def said(*arguments: str, code: int = 0) -> str:
        done = CliRunner().invoke(main, ["state", *arguments])
        assert code == done.exit_code, done.output
        return done.output

    here, there, file = str(Path(directory).parent), str(tmp_path / "to"), str(tmp_path / "export")
    for more in ([], ["--compact"]):
        said("export", "e", "--state-dir", here, "-o", file, *more)
        assert "engine e: 38 values, timers and snapshots imported" in said("import", "e", file, "--state-dir", there)
        assert content(directory) == content(str(tmp_path / "to" / "e.state"))
    assert '"text"  saved' in said("get", "e", "n", "17", "--state-dir", there)
    assert "1  saved" in said("get", "e", "n", "17", "--int", "--state-dir", there)
    assert "nothing in a state 'm'; states with values: n" in said("get", "e", "m", "17", "--state-dir", there, code=1)
    assert "has no value for key 'nothing'" in said("get", "e", "n", "nothing", "--state-dir", there, code=1)
    assert "n  9 values" in said("count", "e", "--state-dir", there) == said("list", "e", "--state-dir", there)
    listed = said("list", "e", "n", "--state-dir", there)
    assert "17  1\n" in listed and "'17'  \"text\"\n" in listed and "b'17'" in listed
    assert "there are more" in said("list", "e", "n", "--limit", "2", "--state-dir", there)
    assert "import needs NAME and --state-dir" in said("import", "e", file, code=2)
    assert "no state was ever saved" in said("count", "e", "--state-dir", str(tmp_path), code=1)
