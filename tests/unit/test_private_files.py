"""State and quarantine files: whose they are, that they are still there, and that a look changes nothing."""

from __future__ import annotations

import contextlib
import gc
import os
import sqlite3
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from shardmem.errors import ShardmemError
from shardmem.private_files import acting_as, check_directory
from shardmem.runtime.quarantine import Entry, Quarantine, QuarantineReader, is_there
from shardmem.runtime.sqlite import Database, FileVanished
from shardmem.runtime.state import StateStore
from shardmem.status.sources import SourceFile, file_of, sources_of

STRANGER = 65534
EVENT: dict[str, Any] = {
    "shard": 0,
    "slot": 1,
    "seat": 2,
    "sequence": 3,
    "kind": "exception",
    "reason": "ValueError: no",
    "traceback": "",
    "attempts": 3,
    "key": "k",
    "payload": b"p",
    "schema": {"kind": "events"},
}


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "e.quarantine")


def seen(directory: Path) -> list[tuple[str, int, int, int, int]]:
    """What a look could change: names, owners, modes, sizes and times of last change."""
    entries = ((each.name, each.lstat()) for each in sorted(directory.iterdir()))
    return [(name, each.st_uid, each.st_mode, each.st_size, each.st_mtime_ns) for name, each in entries]


# ---- opening ---------------------------------------------------------------------------------------------------------


def test_processes_that_open_a_fresh_file_together_all_get_it(tmp_path: Path) -> None:
    """It was "database is locked" in 18 of 200 for two: SQLite waits for nobody while it turns a file to WAL."""
    faults: list[BaseException] = []

    def add(path: str, number: int, gate: threading.Barrier) -> None:
        gate.wait()
        try:
            with Quarantine(path) as store:
                store.add(Entry(f"{number}", **EVENT))
        except BaseException as error:
            faults.append(error)

    for turn in range(20):
        path, gate = str(tmp_path / f"{turn}.quarantine"), threading.Barrier(6)
        threads = [threading.Thread(target=add, args=(path, number, gate)) for number in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not faults and len(QuarantineReader(path).numbers()) == 6


def test_workers_that_open_a_fresh_state_file_together_all_get_it(tmp_path: Path) -> None:
    faults: list[BaseException] = []

    def begin(path: str, shard: int, gate: threading.Barrier) -> None:
        gate.wait()
        try:
            store = StateStore(path, shard, 7, 64, keep=True)
            store.begin_life(1, 1)
            store.close()
        except BaseException as error:
            faults.append(error)

    for turn in range(20):
        gate = threading.Barrier(6)
        threads = [
            threading.Thread(target=begin, args=(str(tmp_path / f"{turn}.state"), shard, gate)) for shard in range(6)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not faults


def test_files_are_private_from_their_first_moment_whatever_the_umask_is(
    path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    modes: list[int] = []

    def connect(where: str, **options: Any) -> sqlite3.Connection:
        modes.append(os.stat(where).st_mode & 0o777)
        return sqlite3.Connection(where, **options)

    monkeypatch.setattr("shardmem.runtime.sqlite.sqlite3.connect", connect)
    before = os.umask(0)
    try:
        store = Quarantine(path)
        store.add(Entry("a", **EVENT))
    finally:
        os.umask(before)
    assert modes == [0o600]
    assert {os.stat(path + suffix).st_mode & 0o777 for suffix in ("", "-wal", "-shm")} == {0o600}
    store.close()


@pytest.mark.parametrize("opened", [Quarantine, QuarantineReader])
def test_a_link_in_the_place_of_the_file_is_not_followed_and_what_it_points_at_stays_as_it_was(
    path: str, tmp_path: Path, opened: type[QuarantineReader]
) -> None:
    victim = tmp_path / "victim"
    victim.write_text("root:x:0:0\n")
    victim.chmod(0o644)
    os.symlink(victim, path)
    with pytest.raises(ShardmemError, match="quarantine file .* is a symbolic link, which is not followed"):
        opened(path)
    assert (victim.read_text(), victim.stat().st_mode & 0o777) == ("root:x:0:0\n", 0o644)


def test_a_file_that_others_can_write_to_is_refused_and_one_that_they_can_read_is_hidden(path: str) -> None:
    Quarantine(path).close()
    os.chmod(path, 0o644)
    Quarantine(path).close()
    assert os.stat(path).st_mode & 0o777 == 0o600
    os.chmod(path, 0o666)
    with pytest.raises(ShardmemError, match="can be written to by others .mode 666") as refused:
        Quarantine(path)
    assert f"chmod 600 {path}" in str(refused.value.hint)


needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can make another user's files")


@needs_root
def test_a_file_of_another_user_is_refused_by_its_owner_s_name(path: str) -> None:
    Quarantine(path).close()
    os.chown(path, STRANGER, STRANGER)
    for opened in (Quarantine, QuarantineReader):
        with pytest.raises(ShardmemError, match=f"belongs to uid {STRANGER}; it must belong to uid 0"):
            opened(path)


@needs_root
def test_root_looks_at_another_user_s_file_with_that_user_s_rights_alone(path: str, tmp_path: Path) -> None:
    with Quarantine(path) as store:
        store.add(Entry("a", **EVENT))
    secret = tmp_path / "secret"
    secret.write_text("s")
    secret.chmod(0o600)
    tmp_path.chmod(0o777)
    for parent in tmp_path.parents[:3]:
        parent.chmod(parent.stat().st_mode | 0o011)
    os.chown(path, STRANGER, STRANGER)
    with acting_as(STRANGER), pytest.raises(PermissionError):
        secret.read_text()
    assert secret.read_text() == "s"
    assert [event.key for event in QuarantineReader(path, STRANGER).events()] == ["k"]
    with Quarantine(path, owner=STRANGER) as store:
        store.purge()
    assert {os.lstat(each).st_uid for each in map(str, tmp_path.glob("e.quarantine*"))} == {STRANGER}


def test_a_directory_has_to_be_private_and_is_no_link(tmp_path: Path) -> None:
    private = tmp_path / "private"
    private.mkdir(mode=0o700)
    check_directory(str(private), os.getuid())
    link = tmp_path / "link"
    link.symlink_to(private)
    with pytest.raises(ShardmemError, match="is a symbolic link; it must be a directory of uid"):
        check_directory(str(link), os.getuid())
    private.chmod(0o755)
    with pytest.raises(ShardmemError, match="with mode 755"):
        check_directory(str(private), os.getuid())


# ---- what vanishes ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("gone", ["", "-wal"])
@pytest.mark.parametrize("how", ["removed", "replaced"])
def test_an_event_is_not_added_to_a_file_that_has_lost_its_name(path: str, gone: str, how: str) -> None:
    """It went into an inode without a name, and was counted as quarantined."""
    store = Quarantine(path)
    store.add(Entry("a", **EVENT))
    os.unlink(path + gone)
    if how == "replaced":
        Path(path + gone).write_bytes(b"")
    with pytest.raises(ShardmemError, match=f"no longer the one that was opened: {path}{gone} has been {how}") as error:
        store.add(Entry("b", **EVENT))
    assert "nothing of this step was written" in str(error.value) and "What it held is lost" in str(error.value.hint)
    with pytest.raises(ShardmemError, match="no longer the one"):
        store.count()
    store.close()


def test_the_end_of_a_file_that_was_removed_takes_nothing_from_the_one_in_its_place(path: str) -> None:
    """SQLite removes the log of what it closes by name."""
    old = Quarantine(path)
    old.add(Entry("a", **EVENT))
    for end in ("", "-wal", "-shm"):
        os.unlink(path + end)
    with pytest.raises(FileVanished):
        old.count()
    new = Quarantine(path)
    new.add(Entry("b", **EVENT))
    old.close()
    del old
    gc.collect()
    assert os.path.getsize(path + "-wal") > 0
    new.add(Entry("c", **EVENT))
    assert new.count() == 2
    new.close()


def test_a_file_that_goes_in_the_middle_of_a_transaction_is_noticed_before_the_commit(tmp_path: Path) -> None:
    store = Database(str(tmp_path / "f"), "create table if not exists t (x);", "the file")
    with pytest.raises(ShardmemError, match="the file .* is no longer the one that was opened"):
        with store.transaction() as connection:
            connection.execute("insert into t values (1)")
            os.rename(store.path, tmp_path / "elsewhere")
    os.rename(tmp_path / "elsewhere", store.path)
    assert store.rows("select count(*) from t") == [(0,)]
    store.close()


# ---- looking ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("writer", ["alive", "ended", "killed"])
def test_a_look_changes_nothing(path: str, tmp_path: Path, writer: str) -> None:
    if writer == "killed":
        program = (
            f"import os; from shardmem.runtime.quarantine import Entry, Quarantine\n"
            f"Quarantine({path!r}).add(Entry('a', **{EVENT!r})); os.kill(os.getpid(), 9)"
        )
        subprocess.run([sys.executable, "-c", program], check=False)
    else:
        store = Quarantine(path)
        store.add(Entry("a", **EVENT))
        if writer == "ended":
            store.close()
    before = seen(tmp_path)
    reader = QuarantineReader(path)
    assert (reader.count(), reader.numbers(), reader.events()[0].payload) == (1, [1], b"p")
    assert seen(tmp_path) == before
    if writer == "alive":
        store.add(Entry("b", **EVENT))
        assert reader.count() == 2, "what was committed since is seen"
        store.close()


def test_a_file_whose_maker_was_killed_before_it_held_anything_holds_nothing(path: str) -> None:
    assert not is_there(path)
    Path(path).touch(0o600)
    assert not is_there(path)
    Quarantine(path).close()
    assert is_there(path)


def test_what_is_no_file_in_the_place_of_one_is_there_and_is_named(tmp_path: Path) -> None:
    """`shardmem quarantine list` found a pipe to be empty, beside a shard that waited because of it."""
    pipe = str(tmp_path / "pipe")
    os.mkfifo(pipe)
    assert is_there(pipe)
    for opened in (Quarantine, QuarantineReader):
        with pytest.raises(ShardmemError, match="is not a regular file"):
            opened(pipe)
    with pytest.raises(ShardmemError, match="cannot create the directory .*/pipe .* something else has that name"):
        Quarantine(f"{pipe}/q")


def test_a_file_that_is_no_database_is_named_with_what_to_do(path: str) -> None:
    Path(path).write_bytes(b"not a database" * 99)
    os.chmod(path, 0o600)
    for attempt in (lambda: Quarantine(path), lambda: QuarantineReader(path, patience=0).count()):
        with pytest.raises(ShardmemError, match=f"the quarantine file {path} cannot be used") as error:
            attempt()
        assert "move it away" in str(error.value.hint)


DAMAGE = {
    "at": ["soon", -1, 1e300, b"x"],
    "shard": ["one", 1.5],
    "kind": [b"x"],
    "reason": [b"\xff"],
    "traceback": [b"x"],
    "attempts": [b""],
    "key": ["", "{}", "[1]", '{"str": 5}', '{"bytes": "zz"}', '{"int": "x"}', "[" * 100_000],
    "payload": ["text"],
    "schema": ["", "1", "{}", '{"kind": "x"}', "{" * 5],
    "replayed_at": ["never", 1e300],
}


@pytest.mark.parametrize("column, value", [(column, value) for column, values in DAMAGE.items() for value in values])
def test_a_damaged_event_is_named_with_what_to_do(path: str, column: str, value: Any) -> None:
    with Quarantine(path) as store:
        store.add(Entry("a", **EVENT))
    with contextlib.closing(sqlite3.connect(path)) as database:
        database.execute(f"update events set {column} = ?", (value,))
        database.commit()
    with pytest.raises(ShardmemError, match="event 1 of the quarantine file .* is damaged") as error:
        QuarantineReader(path).events([1])
    assert "shardmem quarantine purge 1" in str(error.value.hint)
    with Quarantine(path) as store:
        assert store.purge([1]) == 1


def test_an_event_whose_exception_cannot_be_encoded_is_added_like_any_other(path: str) -> None:
    with Quarantine(path) as store:
        store.add(Entry("a", **{**EVENT, "reason": "no such user: eve\udc9b", "traceback": "\ud800"}))
        (event,) = store.events()
    assert (event.reason, event.traceback) == ("no such user: eve\\udc9b", "\\ud800")


def test_a_text_that_is_not_utf8_is_an_error_of_ours(path: str) -> None:
    with Quarantine(path) as store:
        store.add(Entry("a", **EVENT))
    with contextlib.closing(sqlite3.connect(path)) as database:
        database.execute("update events set reason = cast(x'ff1b' as text)")
        database.commit()
    with pytest.raises(ShardmemError, match="the quarantine file .* cannot be used"):
        QuarantineReader(path, patience=0).events([1])


# ---- sources ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "damage",
    [b"", b"[1]", b'{"pid": "x"}', b'{"partitions": 5}', b'{"events": 1e400}', b'{"reasons": {"a": []}}', b"[" * 99999],
)
def test_a_damaged_file_of_a_source_spoils_no_status(tmp_path: Path, damage: bytes) -> None:
    path = Path(file_of(str(tmp_path), "e", "file", "status"))
    path.write_bytes(damage)
    for each in sources_of(str(tmp_path), "e", os.getuid()):
        assert each["state"] == "failed" and f"{path} is damaged" in str(each["error"])


def test_files_of_sources_are_private_and_links_and_pipes_in_their_place_are_not_followed(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        source = SourceFile(str(tmp_path), "e", "file")
        source.write(state="running")
    finally:
        os.umask(before)
    source.close()
    assert {each.stat().st_mode & 0o777 for each in tmp_path.iterdir()} == {0o600}
    path = Path(file_of(str(tmp_path), "e", "file", "status"))
    assert [each["name"] for each in sources_of(str(tmp_path), "e", os.getuid())] == ["file"]
    path.rename(tmp_path / "elsewhere")
    path.symlink_to(tmp_path / "elsewhere")
    assert sources_of(str(tmp_path), "e", os.getuid()) == []
    path.unlink()
    os.mkfifo(path)
    assert sources_of(str(tmp_path), "e", os.getuid()) == []
