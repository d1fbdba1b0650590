"""The files of state: one of each shard, a fence, rows that move with their slot, damage that is named."""

from __future__ import annotations

import contextlib
import os
import random
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from shardmem.errors import AlreadyRunning, ShardmemError, StateError
from shardmem.runtime import journal
from shardmem.runtime.state import StateStore
from shardmem.runtime.state_files import copy_slots, remove_files, shard_file, shard_files
from shardmem.runtime.state_reader import StateReader
from shardmem.state.keys import Key, after, prefix, read_store_key, slot_of, store_key
from shardmem.state.store import Changes, MemoryStore, Store

SLOTS = 8
Opener = Callable[..., StateStore]


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Opener]:
    """A store of a shard, in a life that has begun."""
    with contextlib.ExitStack() as stack:

        def opened(
            shard: int = 0, incarnation: int = 1, generation: int = 1, engine: int = 7, **more: bool
        ) -> StateStore:
            made = StateStore(str(tmp_path), shard, engine, SLOTS, **{"keep": True, **more})
            stack.callback(made._database.close)
            made.ranges = made.begin_life(incarnation, generation)  # type: ignore[attr-defined]
            return made

        yield opened


def changes(rows: dict[Key, bytes | None], timers: dict[Key, int | None] | None = None, name: bytes = b"n") -> Changes:
    return Changes(
        {store_key(key, name, SLOTS): None if value is None else (value, 1, None) for key, value in rows.items()},
        {store_key(key, b":t", SLOTS): due for key, due in (timers or {}).items()},
    )


def values(store: Store, slots: range = range(SLOTS)) -> dict[Key, bytes]:
    return {read_store_key(key)[2]: row[0] for slot in slots for key, row in store.scan(prefix(slot, b"n"))}


KEYS: list[Key] = [*range(40), "a", b"a", "", b"", -5, 1 << 63]


def test_keys_come_back_as_they_were_and_sort_by_slot_and_name() -> None:
    stored = [store_key(key, name, SLOTS) for key in KEYS for name in (b"a", b"ab", b"b")]
    assert [read_store_key(each) for each in stored] == [
        (slot_of(key, SLOTS), name, key) for key in KEYS for name in (b"a", b"ab", b"b")
    ]
    for each in stored:
        slot, name, _ = read_store_key(each)
        inside = [other for other in stored if prefix(slot, name) <= other < after(prefix(slot, name))]
        assert inside and all(read_store_key(other)[:2] == (slot, name) for other in inside)
    assert after(prefix(65535)) > prefix(65535, b"\xff" * 60)


@pytest.mark.parametrize("make", ["file", "memory"])
def test_what_is_saved_is_read_again(store: Opener, make: str) -> None:
    made = MemoryStore() if make == "memory" else store()
    save = made.save if isinstance(made, MemoryStore) else lambda changed: made.save([], changed, b"")  # type: ignore[union-attr]
    made.claim(range(SLOTS)) if isinstance(made, StateStore) else None
    save(changes({key: b"%d" % n for n, key in enumerate(KEYS)}, {key: n for n, key in enumerate(KEYS)}))
    save(changes({1: b"new", 2: None}, {1: 1000, 2: None}))
    expected = {key: b"%d" % n for n, key in enumerate(KEYS)} | {1: b"new"}
    del expected[2]
    assert expected == values(made)
    assert (b"new", 1, None) == made.get(store_key(1, b"n", SLOTS))
    assert made.get(store_key(2, b"n", SLOTS)) is None
    due = made.timers(0, 10_000, 100)
    assert [(n, key) for n, key in enumerate(KEYS) if n not in (1, 2)] + [(1000, 1)] == [
        (at, read_store_key(key)[2]) for at, key in due
    ]
    assert [3, 4, 5] == [at for at, _ in made.timers(3, 20, 3)]


def test_timers_that_are_due_together_come_together(store: Opener) -> None:
    made = store()
    made.save([], changes({}, dict.fromkeys(range(50), 5) | {100: 4, 101: 6}), b"")
    assert [4, *[5] * 50] == [due for due, _ in made.timers(0, 10, 3)]


def test_a_life_that_is_over_cannot_write(store: Opener) -> None:
    old = store(incarnation=1)
    old.claim([0])
    new = store(incarnation=2)
    for write in (lambda: old.save([], changes({1: b"x"}), b""), lambda: old.claim([1])):
        with pytest.raises(AlreadyRunning):
            write()
    with pytest.raises(AlreadyRunning):
        store(incarnation=1)
    assert {} == values(new)


def test_the_ranges_of_the_last_checkpoint_are_those_of_its_inbox(store: Opener) -> None:
    first = store(incarnation=1, generation=1)
    first.save([], changes({1: b"x"}), b"ranges")
    assert b"ranges" == store(incarnation=2, generation=1).ranges  # type: ignore[attr-defined]
    assert b"" == store(incarnation=3, generation=2).ranges  # type: ignore[attr-defined]
    assert b"" == store(incarnation=1, generation=2, engine=8).ranges  # type: ignore[attr-defined]


def test_rows_and_timers_move_with_their_slot_and_back(store: Opener) -> None:
    a, b = store(0), store(1)
    a.claim(range(SLOTS))
    content = {key: b"%d" % n for n, key in enumerate(KEYS)}
    a.save([(3, b"snapshot of 3")], changes(content, dict.fromkeys(KEYS, 9)), b"")
    for turn in range(3):
        a.give([3])
        b.claim([3])
        b.claim([3])
        assert {3: b"snapshot of 3"} == b.snapshots([3])
        assert {key: value for key, value in content.items() if slot_of(key, SLOTS) == 3} == values(b)
        assert len(values(b)) == len(b.timers(0, 10, 100))
        mine = next(key for key in KEYS if slot_of(key, SLOTS) == 3)
        content[mine] = b"turn %d" % turn
        b.save([], changes({mine: content[mine]}), b"")
        if turn == 1:
            a.purge()
        b.give([3])
        a.claim([3])
        assert content == values(a)
        if turn == 1:
            b.purge()


def test_rows_that_another_has_newer_are_deleted_and_those_that_nobody_took_are_kept(store: Opener) -> None:
    a, b = store(0), store(1)
    a.claim(range(SLOTS))
    a.save([], changes(dict.fromkeys(KEYS, b"x")), b"", merge=True)
    a.give([2, 3])
    a.purge()
    assert set(KEYS) == values(a).keys(), "nobody has claimed them yet"
    b.claim([3])
    a.purge()
    assert {key for key in KEYS if slot_of(key, SLOTS) != 3} == values(a).keys()
    again = store(0, incarnation=2)  # what was not deleted before a death is deleted after it
    b.claim([2])
    again.claim([slot for slot in range(SLOTS) if slot not in (2, 3)])
    again.purge()
    assert {key for key in KEYS if slot_of(key, SLOTS) not in (2, 3)} == values(again).keys()


def test_a_slot_is_found_whichever_shard_had_it_last_in_an_earlier_engine(store: Opener, tmp_path: Path) -> None:
    shards = [store(number) for number in range(3)]
    shards[0].claim(range(SLOTS))
    shards[0].save([], changes(dict.fromkeys(KEYS, b"old")), b"")
    shards[1].claim(range(4))
    shards[2].claim(range(2))
    shards[2].save([], changes({key: b"new" for key in KEYS if slot_of(key, SLOTS) < 2}), b"")
    next_run = store(0, engine=9)
    next_run.claim(range(SLOTS))
    expected: dict[Key, bytes] = {key: b"new" if slot_of(key, SLOTS) < 2 else b"old" for key in KEYS}
    assert expected == values(next_run)
    with contextlib.closing(StateReader(str(tmp_path))) as reader:
        assert expected == {key: row[0] for _, _, key, row in reader.rows("n")}


def test_a_shard_whose_slots_all_went_leaves_no_file(store: Opener, tmp_path: Path) -> None:
    a, b = store(0), store(1)
    a.claim(range(SLOTS))
    a.save([], changes(dict.fromkeys(KEYS, b"x")), b"")
    a.give(range(SLOTS))
    b.claim(range(SLOTS))
    a.close()
    assert {1} == shard_files(str(tmp_path)).keys()
    b.close()
    assert {1} == shard_files(str(tmp_path)).keys()
    remove_files(str(tmp_path))
    assert not tmp_path.exists()


def test_without_a_directory_of_its_own_state_of_an_earlier_engine_is_dropped(store: Opener) -> None:
    for shard in (0, 1):
        made = store(shard, keep=False)
        made.claim([shard])
        made.save([], changes({key: b"x" for key in KEYS if slot_of(key, SLOTS) == shard}), b"")
    new = store(0, engine=8, keep=False)
    new.claim(range(SLOTS))
    assert {} == values(new)


def test_a_file_of_another_number_of_slots_is_refused(store: Opener, tmp_path: Path) -> None:
    store(0).save([], changes({1: b"x"}), b"")
    with pytest.raises(ShardmemError, match="made with slots=8 and the engine has slots=16"):
        StateStore(str(tmp_path), 1, 7, 16, keep=True)


def test_a_value_that_was_damaged_is_named_with_its_file(store: Opener, tmp_path: Path) -> None:
    made = store()
    made.claim(range(SLOTS))
    made.save([], changes({1: b"good", 2: b"fine"}), b"", merge=True)
    made._database.connection.execute("update rows set value = x'00' where key = ?", (store_key(1, b"n", SLOTS),))
    with pytest.raises(StateError, match="the value of .* in the state file .*shard-0.sqlite is damaged"):
        made.get(store_key(1, b"n", SLOTS))
    assert made.get(store_key(2, b"n", SLOTS)) is not None
    with contextlib.closing(StateReader(str(tmp_path))) as reader:
        with pytest.raises(StateError, match="damaged"):
            reader.get("n", 1)


def test_many_rows_that_are_read_together_are_those_that_are_read_one_by_one(store: Opener) -> None:
    made = store()
    made.claim(range(SLOTS))
    made.save([], changes({key: b"%d" % key for key in range(1000)}), b"", merge=True)
    made.save([], changes({1: None, 2: b"new", 5000: b"only in the journal"}), b"")
    made._database.connection.execute("update rows set value = x'00' where key = ?", (store_key(3, b"n", SLOTS),))
    wanted = [store_key(key, b"n", SLOTS) for key in [*range(600), 5000, 6000]]
    found = made.get_many(wanted)
    assert None is found.pop(store_key(3, b"n", SLOTS))
    assert found == {
        key: row for key in wanted if key != store_key(3, b"n", SLOTS) and (row := made.get(key)) is not None
    }
    assert 599 == len(found) and {} == made.get_many([])


def test_a_file_that_is_no_database_is_named_by_whoever_needs_it(store: Opener, tmp_path: Path) -> None:
    a = store(0)
    a.claim(range(SLOTS))
    a.save([], changes(dict.fromkeys(KEYS, b"x")), b"")
    a._database.close()
    path = shard_file(str(tmp_path), 0)
    for suffix in ("-wal", "-shm"):
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path + suffix)
    Path(path).write_bytes(b"not a database" * 1000)
    with pytest.raises(ShardmemError, match="the state file .*shard-0.sqlite"):
        store(1)
    with contextlib.closing(StateReader(str(tmp_path))) as reader:
        with pytest.raises(ShardmemError, match="the state file .*shard-0.sqlite"):
            reader.get("n", 1)


def test_reading_from_outside_finds_the_last_committed_value_and_writes_nothing(store: Opener, tmp_path: Path) -> None:
    made = store()
    made.claim(range(SLOTS))
    made.save([], changes({1: b"one", "1": b"text"}, {1: 77}), b"")
    with contextlib.closing(StateReader(str(tmp_path))) as reader:
        found = reader.get("n", 1)
        assert found is not None and b"one" == found.row[0] and 0 == found.shard
        made.save([], changes({1: b"two"}), b"")
        found = reader.get("n", 1)
        assert found is not None and b"two" == found.row[0]
        assert reader.get("n", 2) is None and reader.get("other", 1) is None
        assert [(slot_of(1, SLOTS), ":t", 1, 77)] == list(reader.timers())
        made._database.close()  # its log goes with it
        assert b"two" == reader.get("n", 1).row[0]  # type: ignore[union-attr]
        before = sorted(os.listdir(tmp_path))
        assert {1: b"two", "1": b"text"} == {key: row[0] for _, _, key, row in reader.rows()}
        assert before == sorted(os.listdir(tmp_path))


def test_a_slot_that_moves_while_it_is_asked_about_is_found_where_it_has_gone(
    store: Opener, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its rows were deleted between the question who has them and the question what they are."""
    a, b = store(0), store(1)
    a.claim(range(SLOTS))
    a.save([], changes({1: b"one"}), b"")
    with contextlib.closing(StateReader(str(tmp_path))) as reader:
        assert reader.get("n", 1) is not None
        owner, moved = reader._owner, []

        def moves_then(slot: int) -> object:
            found = owner(slot)
            if not moved:
                moved.append(slot)
                a.save([], Changes(), b"", merge=True)
                a.give(range(SLOTS))
                b.claim(range(SLOTS))
                a.purge()
                assert {} == values(a)
            return found

        monkeypatch.setattr(reader, "_owner", moves_then)
        got = reader.get("n", 1)
        assert got is not None and (b"one", 1) == (got.row[0], got.shard)
        assert reader.get("n", 2) is None


def test_keys_that_are_written_all_the_time_stay_in_one_blob_and_out_of_the_tables(
    store: Opener, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journal, "MOST_BYTES", 2000)
    made = store()
    made.claim(range(SLOTS))
    for step in range(100):
        made.save([], changes(dict.fromkeys(range(10), b"%d" % step)), b"")
        assert 2000 >= sum(len(body) for (body,) in made._database.rows("select body from journal"))
    assert [(0,)] == made._database.rows("select count(*) from rows")
    assert dict.fromkeys(range(10), b"99") == values(made) == values(store(incarnation=2))
    with contextlib.closing(StateReader(str(tmp_path))) as reader:
        assert dict.fromkeys(range(10), b"99") == {key: row[0] for _, _, key, row in reader.rows("n")}


def test_a_reader_does_not_keep_a_writer_waiting(store: Opener, tmp_path: Path) -> None:
    made = store()
    made.claim(range(SLOTS))
    made.save([], changes(dict.fromkeys(range(3000), b"x")), b"")
    with contextlib.closing(StateReader(str(tmp_path))) as reader:
        rows = reader.rows("n")
        next(rows)
        made._database.connection.execute("pragma busy_timeout = 0")
        made.save([], changes({1: b"y"}), b"")
        assert 2999 == sum(1 for _ in rows)


def test_a_move_that_dies_in_the_middle_is_done_again(store: Opener, monkeypatch: pytest.MonkeyPatch) -> None:
    a, b = store(0), store(1)
    a.claim(range(SLOTS))
    a.save([], changes(dict.fromkeys(KEYS, b"x")), b"")

    def dies(connection: sqlite3.Connection, slots: list[int]) -> None:
        copy_slots(connection, slots)
        raise sqlite3.OperationalError("killed")

    monkeypatch.setattr("shardmem.runtime.state.copy_slots", dies)
    with pytest.raises(ShardmemError, match="killed"):
        b.claim([3])
    monkeypatch.undo()
    assert {} == values(b)
    b.claim([3])
    assert {key for key in KEYS if slot_of(key, SLOTS) == 3} == values(b).keys()


@pytest.mark.parametrize("seed", range(6))
def test_a_journal_says_the_same_as_tables_do_to_worker_successor_new_owner_and_reader(
    store: Opener, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    chance = random.Random(seed)
    monkeypatch.setattr(journal, "MOST_ENTRIES", chance.choice([0, 5, 30, 10**6]))
    monkeypatch.setattr(journal, "MOST_BYTES", chance.choice([100, 1000, 10**6]))
    made, expected, incarnation, owner = store(), MemoryStore(), 1, 0
    made.claim(range(SLOTS))
    with contextlib.closing(StateReader(str(tmp_path))) as reader:
        for step in range(60):
            keys = chance.sample(KEYS, 5)
            rows = {key: chance.choice([None, b"%d" % step, b"same"]) for key in keys[:3]}
            timers = {key: chance.choice([None, chance.randrange(20)]) for key in keys[2:]}
            made.save([], changes(rows, timers), b"", merge=chance.random() < 0.1)
            expected.save(changes(rows, timers))
            what = chance.random()
            if what < 0.1:  # killed, or the next engine
                incarnation += 1
                made = store(owner, incarnation, engine=chance.choice([7, 8 + step]))
                made.claim(range(SLOTS))
            elif what < 0.2:  # the slots go to another shard, whose file it may have been before
                incarnation, owner = incarnation + 1, chance.randrange(3)
                made = store(owner, incarnation, engine=9 + step)
                made.claim(range(SLOTS))
            assert values(expected) == values(made)
            for limit in (1, 4, 100):
                assert expected.timers(3, 15, limit) == made.timers(3, 15, limit)
            assert values(expected) == {key: row[0] for _, _, key, row in reader.rows("n")}
            found = reader.get("n", keys[0])
            assert values(expected).get(keys[0]) == (found and found.row[0])
            assert sorted(expected.timers(0, 99, 999)) == sorted(
                (due, store_key(key, b":t", SLOTS)) for _, _, key, due in reader.timers()
            )


def test_a_checkpoint_that_was_damaged_is_named_with_its_file(store: Opener) -> None:
    made = store()
    made.claim(range(SLOTS))
    made.save([], changes({1: b"good"}), b"")
    made._database.connection.execute("update journal set body = x'00'")
    with pytest.raises(StateError, match="a checkpoint in the state file .*shard-0.sqlite is damaged"):
        store(incarnation=2)
