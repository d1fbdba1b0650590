"""What gc makes of what it finds: judgement on facts, then on real segments whose holders are this process."""

from __future__ import annotations

import dataclasses
import errno
import fcntl
import itertools
import os
import random
import socket
import struct
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from shardmem.config import Config
from shardmem.errors import AlreadyRunning, NotRunning, ShardmemError
from shardmem.host import census
from shardmem.host import gc as collector
from shardmem.host.census import KEEP, REMOVE, SKIP, EngineFacts, File, InboxFacts, Places, judge
from shardmem.host.gc import Claim, gc
from shardmem.memory import lease
from shardmem.memory.engine_segment import ControlSegment
from shardmem.memory.inbox_segment import InboxSegment
from shardmem.memory.segment import Segment, control_name, inbox_name, path_of
from shardmem.runtime import seat as seat_module
from shardmem.supervisor.takeover import take_role
from support.seal import seal_inbox

CONTROL = File("/dev/shm/shardmem.e.control", bytes=1000)
FIRST = InboxFacts(File("/dev/shm/shardmem.e.inbox.0.1", bytes=10), 0, 1, named=True)
STRAY = InboxFacts(File("/dev/shm/shardmem.e.inbox.1.4", bytes=20), 1, 4, named=False)
DEAD = EngineFacts("e", CONTROL, "ready", state="running", inboxes=(FIRST,))
ORPHANS = {"workers": ((0, 71), (1, 72)), "locked": True}
HALF = EngineFacts("e", CONTROL, "unformatted")
OTHER = EngineFacts("e", CONTROL, "foreign", trouble="it has layout version 1")


def but(facts: EngineFacts, **changes) -> EngineFacts:
    return dataclasses.replace(facts, **changes)


def young(facts: EngineFacts) -> EngineFacts:
    return but(facts, control=dataclasses.replace(CONTROL, age=0.5))


@pytest.mark.parametrize(
    "facts, action, part",
    [
        (DEAD, REMOVE, "no process uses it, no event in flight (running)"),
        (but(DEAD, state="stopped"), REMOVE, "no process uses it, no event in flight (stopped)"),
        (but(DEAD, in_flight=1234), KEEP, "1,234 events in flight (running, no process uses it)"),
        # 'stop --now' has promised them to the next run
        (but(DEAD, in_flight=1234, state="stopped"), KEEP, "1,234 events in flight"),
        (but(DEAD, in_flight=5, unreadable=2), KEEP, "2 of them in corrupt lanes that no run can read"),
        (
            but(DEAD, supervisor=70, workers=((0, 71),), locked=True),
            KEEP,
            "in use: running, supervisor pid 70, 1 worker, 0 producers",
        ),
        (but(DEAD, **ORPHANS), KEEP, "has live workers (pids 71, 72) and no supervisor"),
        (
            but(DEAD, producers=((3, 80),), locked=True),
            KEEP,
            "has connected producers (pids 80), no supervisor and no worker",
        ),
        (but(DEAD, locked=True), KEEP, "another process is"),
        (young(but(DEAD, state="starting")), KEEP, "0.5 s old: its supervisor may be about to take it"),
        (young(DEAD), REMOVE, "no process uses it"),
        (but(DEAD, state="starting"), REMOVE, "no process uses it"),
        (HALF, REMOVE, "never formatted: its creator was killed while creating it"),
        (young(HALF), KEEP, "not formatted yet"),
        (but(HALF, locked=True), KEEP, "another process is"),
        (OTHER, KEEP, "layout version 1; no process holds a lease on it"),
        (but(OTHER, locked=True), KEEP, "layout version 1; a process holds a lease on it"),
        (
            but(DEAD, condition="damaged", trouble="cannot be understood"),
            KEEP,
            "cannot be understood; no process holds a lease",
        ),
        (but(DEAD, condition="unreadable", trouble="cannot be opened: no"), SKIP, "cannot be opened: no"),
        (but(DEAD, control=dataclasses.replace(CONTROL, uid=33)), SKIP, "belongs to uid 33; this is uid 0"),
        (
            but(DEAD, control=dataclasses.replace(CONTROL, regular=False), condition="unreadable"),
            SKIP,
            "is not a regular file",
        ),
    ],
)
def test_what_becomes_of_an_engine(facts, action, part):
    engine = judge(facts, uid=0)[0]

    assert ("engine", action) == (engine.kind, engine.action) and part in engine.reason, engine
    assert 1010 == engine.bytes or facts is HALF or facts.condition != "ready" or not facts.inboxes


@pytest.mark.parametrize(
    "facts, discardable",
    [
        (but(DEAD, in_flight=7), True),
        (OTHER, True),
        (but(OTHER, condition="damaged"), True),
        (but(OTHER, locked=True), False),
        (but(DEAD, in_flight=7, **ORPHANS), False),
        (but(DEAD, in_flight=7, supervisor=3), False),
        (but(DEAD, in_flight=7, producers=((0, 5),)), False),
        (but(DEAD, in_flight=7, locked=True), False),
    ],
)
def test_events_are_only_lost_when_asked_and_only_when_nobody_holds_the_engine(facts, discardable):
    kept, asked = judge(facts, 0)[0], judge(facts, 0, discard=True)[0]

    assert KEEP == kept.action and discardable == kept.discardable == ("gc --discard e" in kept.remedy)
    assert (REMOVE if discardable else KEEP) == asked.action
    assert not discardable or "lost, as asked" in asked.reason


@pytest.mark.parametrize(
    "facts, action, part",
    [
        (but(DEAD, inboxes=(FIRST, STRAY)), REMOVE, "engine e has no inbox of shard 1 with generation 4"),
        (but(DEAD, inboxes=(STRAY,), in_flight=3), REMOVE, "left from an earlier run"),
        (EngineFacts("e", inboxes=(STRAY,)), REMOVE, "no control segment"),
        (but(HALF, inboxes=(STRAY,)), REMOVE, "no control segment"),
        (EngineFacts("e", inboxes=(dataclasses.replace(STRAY, users=(5,)),)), KEEP, "mapped (pids 5)"),
        (EngineFacts("e", inboxes=(dataclasses.replace(STRAY, file=File("/x", uid=9)),)), SKIP, "belongs to uid 9"),
        (EngineFacts("e", socket=File("/run/e.sock")), REMOVE, "has no supervisor"),
        (but(DEAD, socket=File("/run/e.sock"), inboxes=(), in_flight=1), REMOVE, "has no supervisor"),
        (EngineFacts("e", socket=File("/run/e.sock"), answers=True), KEEP, "a process listens"),
    ],
)
def test_what_becomes_of_strays_and_sockets(facts, action, part):
    stray = judge(facts, uid=0)[-1]
    assert stray.kind in ("inbox", "socket") and action == stray.action and part in stray.reason, stray


@pytest.mark.parametrize(
    "facts",
    [
        but(DEAD, supervisor=70, locked=True),
        but(DEAD, **ORPHANS),
        but(DEAD, producers=((0, 5),), locked=True),
        but(HALF, locked=True),
        but(OTHER, locked=True),
        but(DEAD, condition="unreadable"),
    ],
)
def test_strays_and_sockets_of_an_engine_that_has_a_supervisor_or_awaits_one_are_its_own_business(facts):
    assert 1 == len(judge(but(facts, inboxes=(FIRST, STRAY), socket=File("/run/e.sock")), uid=0))


def test_the_inboxes_of_a_segment_that_cannot_be_read_go_the_way_that_it_goes():
    (kept,) = judge(but(OTHER, inboxes=(STRAY,)), uid=0)
    assert (KEEP, 1020) == (kept.action, kept.bytes)


# ---- real segments ---------------------------------------------------------------------------------------------------


@pytest.fixture
def places():
    with tempfile.TemporaryDirectory() as directory:  # tmp_path is too long for the address of a socket
        yield Places(sockets=directory)


@pytest.fixture
def engine(loopback):
    """Name of an engine without processes; it is gone from shared memory afterwards, whatever gc left of it."""
    return loopback(shards=2)


@pytest.fixture
def name(engine_name):
    yield engine_name
    for entry in os.listdir("/dev/shm"):
        if engine_name in entry:
            os.unlink(path_of(entry))


def entries(name: str) -> list[str]:
    return sorted(entry for entry in os.listdir("/dev/shm") if f".{name}." in entry)


def test_an_engine_that_nobody_holds_is_removed_with_its_inboxes(engine, places):
    before = sum(os.stat(path_of(entry)).st_blocks * 512 for entry in entries(engine.name))

    (would,) = gc(places, [engine.name], dry_run=True)
    assert REMOVE == would.action and not would.done and 3 == len(entries(engine.name))
    (done,) = gc(places, [engine.name])

    assert done.done and before == done.bytes > 3 * 4096
    assert [] == entries(engine.name) == gc(places, [engine.name])


def test_events_in_flight_are_kept_and_counted_until_they_are_discarded_by_name(engine, places):
    with engine.producer() as producer:
        producer.push_many(list(range(10)), [b"x"] * 10)
        batch = engine.take(0)
        handled = len(batch)
        engine.commit(0)
        (in_use,) = gc(places, [engine.name])
        with pytest.raises(ShardmemError, match=rf"has connected producers \(pids {os.getpid()}\).*not discarded"):
            gc(places, discard=engine.name)
    engine.control.set_state("stopped")  # as after 'stop --now'

    (kept,) = gc(places, [engine.name])
    assert (KEEP, KEEP) == (in_use.action, kept.action) and 10 - handled == in_use.events == kept.events > 0
    (lost,) = gc(places, discard=engine.name)
    assert lost.done and kept.events == lost.events and [] == entries(engine.name)
    with pytest.raises(NotRunning, match="nothing of an engine named"):
        gc(places, discard=engine.name)


@pytest.mark.parametrize("byte", [lease.SUPERVISOR, lease.shard_byte(1), lease.seat_byte(7), lease.seat_byte(500)])
def test_any_lease_keeps_an_engine(engine, places, byte):
    held = lease.Lease.take(engine.control.segment, byte)
    (kept,) = gc(places, [engine.name])
    assert KEEP == kept.action and 3 == len(entries(engine.name))
    held.release()
    assert gc(places, [engine.name])[0].done


def test_an_inbox_that_no_control_segment_names_goes_when_nobody_has_it_mapped(engine, places):
    stray = InboxSegment.create(engine.control, 1, 7)
    with engine.producer() as producer:
        producer.push(1, b"keeps the engine")

    assert [KEEP, KEEP] == [each.action for each in gc(places, [engine.name])]
    stray.close()
    assert [("inbox", True), ("engine", False)] == [(each.kind, each.done) for each in gc(places, [engine.name])]

    assert inbox_name(engine.name, 1, 7) not in entries(engine.name) and 3 == len(entries(engine.name))


def test_an_inbox_of_an_engine_that_had_the_name_before_is_a_stray(engine, places):
    with engine.producer() as producer:
        producer.push(1, b"keeps the engine")
    shard = next(
        shard for shard, inbox in enumerate(engine.inboxes) if not inbox.lanes() or not inbox.lanes()[0].in_flight
    )
    path = path_of(inbox_name(engine.name, shard, 1))
    old = bytearray(Path(path).read_bytes()[:4096])
    old[16:24] = b"elsewise"  # the number of its engine
    seal_inbox(old)
    os.unlink(path)
    Path(path).write_bytes(old + bytes(engine.control.geometry.inbox_bytes - 4096))

    found = {each.kind: each for each in gc(places, [engine.name])}

    assert found["inbox"].done and f"no inbox of shard {shard} with generation 1" in found["inbox"].reason
    assert KEEP == found["engine"].action and 1 == found["engine"].events


def test_inboxes_without_control_segment_go_and_nothing_else_comes_into_being(name, places):
    for shard in range(2):
        Path(path_of(inbox_name(name, shard, 3))).write_bytes(bytes(5000))
    assert [True, True] == [each.done for each in gc(places, [name])]
    assert [] == entries(name)


@pytest.mark.parametrize("size", [0, 20, 100_000])
def test_a_segment_that_its_creator_did_not_finish_goes_if_it_is_old_and_nobody_holds_it(name, places, size):
    path = path_of(control_name(name))
    with open(path, "wb") as file:
        file.truncate(size)
    assert "not formatted yet" in gc(places, [name])[0].reason
    os.utime(path, (1, 1))
    with open(path, "r+b") as holder:
        fcntl.fcntl(holder, fcntl.F_OFD_SETLK, lease._FLOCK.pack(fcntl.F_WRLCK, 0, lease.SUPERVISOR, 1, 0))
        assert "another process is" in gc(places, [name])[0].reason
    assert gc(places, [name])[0].done and [] == entries(name)
    assert size == 0 or not os.path.exists(path)


def test_a_segment_of_another_layout_goes_only_by_name_and_only_when_nobody_locks_it(engine, places):
    path = path_of(control_name(engine.name))
    with open(path, "r+b") as file:
        file.seek(8)
        file.write(struct.pack("<I", 99))
        file.flush()
        # wherever that layout has its locks
        fcntl.fcntl(file, fcntl.F_OFD_SETLK, lease._FLOCK.pack(fcntl.F_WRLCK, 0, 12345, 1, 0))
        (locked,) = gc(places, [engine.name])
        with pytest.raises(ShardmemError, match="layout version 99.*holds a lease.*not discarded"):
            gc(places, discard=engine.name)
    (kept,) = gc(places, [engine.name])

    assert "layout version 99" in locked.reason and not locked.discardable and kept.discardable
    assert 3 == len(entries(engine.name)) == len(kept.files)
    assert gc(places, discard=engine.name)[0].done and [] == entries(engine.name)


@pytest.mark.parametrize(
    "offset, planted, part", [(0, b"NOT OURS", "was not made by shardmem"), (40, b"\xff" * 8, "is damaged")]
)
def test_a_segment_that_cannot_be_understood_goes_only_by_name(engine, places, offset, planted, part):
    with open(path_of(control_name(engine.name)), "r+b") as file:
        file.seek(offset)
        file.write(planted)
    (kept,) = gc(places, [engine.name])
    assert KEEP == kept.action and kept.discardable and part in kept.reason, kept
    assert gc(places, discard=engine.name)[0].done


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_what_belongs_to_another_user_is_skipped(engine, places):
    os.chown(path_of(control_name(engine.name)), 12345, -1)
    (skipped,) = gc(places, [engine.name])
    assert SKIP == skipped.action and "uid 12345" in skipped.reason and 3 == len(entries(engine.name))


def test_a_link_in_the_place_of_a_segment_is_not_followed(name, places, tmp_path):
    (tmp_path / "precious").write_text("keep me")
    os.symlink(tmp_path / "precious", path_of(control_name(name)))
    assert SKIP == gc(places, [name])[0].action
    assert "keep me" == (tmp_path / "precious").read_text()


def test_a_dead_socket_goes_and_one_that_answers_stays(name, places):
    path = os.path.join(places.sockets, f"{name}.sock")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()
        assert "a process listens" in gc(places, [name])[0].reason and os.path.exists(path)
    state = Path(places.sockets, f"{name}.state")
    state.write_text("state")
    assert gc(places, [name])[0].done and not os.path.exists(path)
    assert state.exists() and [] == entries(name)


@pytest.mark.parametrize("broken, part", [("unlink", "be removed: Read-only"), ("open", "be locked: Read-only")])
def test_what_cannot_be_removed_is_kept_and_says_why(name, places, monkeypatch, broken, part):
    def refuse(*arguments, **options):
        raise OSError(errno.EROFS, "Read-only file system")

    Path(path_of(inbox_name(name, 0, 3))).write_bytes(b"")
    with monkeypatch.context() as patch:
        patch.setattr(collector.os, broken, refuse) if broken == "open" else patch.setattr(collector, "_unlink", refuse)
        (kept,) = gc(places, [name])
    assert KEEP == kept.action and part in kept.reason and not kept.done


def test_entries_that_are_no_engines_are_named_and_left_alone(name, places):
    path = path_of(f"shardmem.{name}.something")
    open(path, "wb").close()
    _, others = census.census(places)
    assert f"shardmem.{name}.something" in [each.name for each in others] and {SKIP} == {each.action for each in others}
    assert os.path.exists(path)


# ---- nobody can come in between --------------------------------------------------------------------------------------


@pytest.mark.parametrize("everything", [True, False])
def test_while_gc_is_at_an_engine_no_supervisor_can_take_it(engine, everything):
    with Claim.take(engine.name, everything) as claim:
        assert not claim.placeholder
        assert lease.Lease.take(engine.control.segment, lease.SUPERVISOR) is None
        seat = lease.Lease.take(engine.control.segment, lease.seat_byte(0))
        assert (seat is None) == everything
        if seat:
            seat.release()
        assert Claim.take(engine.name, everything) is None
    assert Claim.take(engine.name, everything).__exit__() is None


def test_where_there_is_no_control_segment_a_locked_empty_one_stands_for_it(name):
    with Claim.take(name, everything=False) as claim:
        assert claim.placeholder and not lease.is_free(control_name(name), lease.SUPERVISOR)
        with pytest.raises(NotRunning):
            Segment.attach(control_name(name))
        with pytest.raises(FileExistsError):
            Segment.create(control_name(name), 4096, 4096, "a segment")
    assert [] == entries(name)


COLLECTOR = """
import select, sys
from shardmem.host import census
from shardmem.host.gc import gc
census.YOUNG_S = 0.0
print('ready', flush=True)
while not select.select([sys.stdin], [], [], 0)[0]:
    for each in gc(census.Places(sockets=sys.argv[2]), [sys.argv[1]]):
        if each.done:
            print('removed', flush=True)
"""


def test_gc_never_takes_a_segment_from_a_supervisor_that_has_taken_it(name, places, monkeypatch):
    """Supervisors come and vanish, gc runs all the time: who has the role has the segment of that name, and its
    inbox."""
    config = Config.of(name=name, handler="json:loads", lane_bytes=4096, max_shards=1)
    chance, refused = random.Random(1), 0
    with subprocess.Popen(
        [sys.executable, "-c", COLLECTOR, name, places.sockets],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        bufsize=0,
    ) as collector:
        assert b"ready\n" == collector.stdout.readline()
        os.set_blocking(collector.stdout.fileno(), False)
        removed, deadline = 0, time.monotonic() + 60
        for life in itertools.count():
            removed += (collector.stdout.read() or b"").count(b"removed\n")  # on a busy machine it comes seldom
            if life >= 40 and removed > 5 or time.monotonic() > deadline:
                break
            while True:
                try:
                    control, held, _ = take_role(config)
                    break
                except AlreadyRunning:  # gc had just claimed it
                    refused += 1
            assert control.segment.is_current(), f"the segment was taken away from supervisor {life}"
            InboxSegment.create(control, 0, life + 1).close()
            assert control.segment.is_current(), f"the segment was taken away from supervisor {life}"
            assert os.path.exists(path_of(inbox_name(name, 0, life + 1))), (
                f"the inbox was taken away from supervisor {life}"
            )
            held.release()
            control.close()
            over = time.perf_counter() + chance.random() * 0.004  # so that gc comes at every moment
            while time.perf_counter() < over:
                pass
        collector.stdin.close()
        assert 0 == collector.wait(30)
    assert removed > 5, f"gc came too seldom: {removed} removed, {refused} supervisors refused"
    monkeypatch.setattr(census, "YOUNG_S", 0.0)
    gc(places, [name])
    assert [] == entries(name)


def test_a_producer_that_was_about_to_take_a_seat_cannot_push_into_memory_that_gc_removed(engine, places, monkeypatch):
    take_seat = seat_module.take_seat

    def late(control: ControlSegment):
        assert gc(places, [engine.name])[0].done
        return take_seat(control)

    monkeypatch.setattr(seat_module, "take_seat", late)
    with engine.producer() as producer:
        with pytest.raises(NotRunning, match="is stopped"):
            producer.push(1, b"lost?", timeout=0)


def test_what_was_taken_between_the_census_and_the_claim_is_left_alone(engine, places):
    before = judge(census.observe(engine.name, places), places.uid)
    held = lease.Lease.take(engine.control.segment, lease.SUPERVISOR)
    (left,) = collector._sweep(before, engine.name, places, False)

    assert KEEP == left.action and "has just taken" in left.reason and 3 == len(entries(engine.name))
    held.release()
