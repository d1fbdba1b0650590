"""What systemd is told, over a real datagram socket."""

from __future__ import annotations

import os
import secrets
import socket
import time

import pytest

from shardmem.supervisor.notify import STATUS_PAUSE, Notify


@pytest.fixture(params=["path", "abstract"])
def manager(request, tmp_path):
    """A service manager's end: its address as in NOTIFY_SOCKET, and `heard()`."""
    receiver = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
    name = str(tmp_path / "notify") if request.param == "path" else f"@shardmem-{secrets.token_hex(8)}"
    receiver.bind("\0" + name[1:] if name[0] == "@" else name)

    class Manager:
        address = name

        def heard(self):
            found = []
            while True:
                try:
                    found.append(receiver.recv(4096).decode())
                except BlockingIOError:
                    return found

    yield Manager()
    receiver.close()


def document(accepted=0, handled=0, conditions=("busy", "idle")):
    return {
        "engine": {"state": "running"},
        "shards": [{"id": at, "condition": each} for at, each in enumerate(conditions)],
        "accounting": {"accepted": accepted, "handled": handled, "in_flight": accepted - handled},
    }


@pytest.fixture
def open_notify():
    opened = []

    def make(*arguments, **options):
        opened.append(Notify(*arguments, **options))
        return opened[-1]

    yield make
    for each in opened:
        each.close()


def test_ready_reloading_and_stopping_are_each_one_datagram(manager, open_notify):
    notify = open_notify(manager.address)
    before = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
    notify.ready()
    notify.reloading()
    notify.stopping()

    ready, reloading, stopping = manager.heard()
    assert ("READY=1", "STOPPING=1") == (ready, stopping)
    first, second = reloading.split("\n")
    assert "RELOADING=1" == first and second.startswith("MONOTONIC_USEC=")
    assert before <= int(second.partition("=")[2]) <= time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000


def test_a_sign_of_life_comes_at_half_of_the_time_and_only_when_the_loop_ticks(manager, open_notify):
    now = 0.0
    environment = {
        "NOTIFY_SOCKET": manager.address,
        "WATCHDOG_USEC": "4000000",
        "WATCHDOG_PID": str(os.getpid()),
        "OTHER": "x",
    }
    taken = Notify.from_environment(environment)
    taken.close()
    notify = open_notify(manager.address, taken._watchdog, clock=lambda: now)

    assert {"OTHER": "x"} == environment, "what the handler starts would speak for this service"
    signs = []
    for tenths in [*range(50), 90]:  # nothing from 5 s to 9 s: the loop hung
        now = tenths / 10
        notify.tick(document)
        signs += [now] * manager.heard().count("WATCHDOG=1")
    assert [0.0, 2.0, 4.0, 9.0] == signs


@pytest.mark.parametrize(
    "variables",
    [
        {"WATCHDOG_USEC": "soon"},
        {"WATCHDOG_USEC": "0"},
        {},
        {"WATCHDOG_USEC": "4000000", "WATCHDOG_PID": str(os.getpid() + 1)},
    ],
)
def test_no_sign_of_life_is_given_that_was_not_asked_of_this_process(variables, manager):
    notify = Notify.from_environment({"NOTIFY_SOCKET": manager.address, **variables})
    notify.tick(document)
    notify.close()

    assert ["STATUS="] == [each[:7] for each in manager.heard()]


def test_the_status_is_one_line_with_rates_every_few_seconds(manager, open_notify):
    now = 0.0
    notify = open_notify(manager.address, clock=lambda: now)
    made = []

    def first():
        made.append(1)
        return document(1000, 900)

    notify.tick(first)
    now = STATUS_PAUSE - 0.1
    notify.tick(first)
    now = STATUS_PAUSE
    notify.tick(lambda: document(11_000, 5_900, ("failed", "busy", "stuck")))

    assert 1 == len(made), "a document that is not shown is not made: it costs"
    first_said, then_said = manager.heard()
    assert "STATUS=running, 2 shards; 100 in flight" == first_said
    assert "STATUS=running, 3 shards; in 2,000/s, out 1,000/s; 5,100 in flight; shards 0 failed, 2 stuck" == then_said


def test_a_status_that_cannot_be_made_takes_no_sign_of_life_away(manager, open_notify):
    now = 0.0
    notify = open_notify(manager.address, 1.0, clock=lambda: now)

    def broken():
        raise ValueError("damaged")

    for later in (0.0, 5.0, 10.0):
        now = later
        notify.tick(broken)
    assert 3 * ["WATCHDOG=1"] == manager.heard()


def test_a_new_state_is_told_at_once_and_workers_that_start_are_not_called_dead(manager, open_notify):
    notify = open_notify(manager.address, clock=lambda: 1.0)
    notify.tick(lambda: {**document(conditions=("dead",)), "engine": {"state": "starting"}})
    notify.ready()
    notify.tick(document)
    notify.stopping()
    notify.tick(lambda: {**document(), "engine": {"state": "draining"}})

    assert [
        "STATUS=starting, 1 shard; 0 in flight",
        "READY=1",
        "STATUS=running, 2 shards; 0 in flight",
        "STOPPING=1",
        "STATUS=draining, 2 shards; 0 in flight",
    ] == manager.heard()


def test_a_manager_that_does_not_read_holds_nobody_up_and_still_hears_that_it_stops(manager, open_notify):
    notify = open_notify(manager.address, 0.0)
    for _ in range(10_000):
        notify.tick(document)
    notify.stopping()
    filled = manager.heard()
    assert "STOPPING=1" not in filled and set(filled) >= {"WATCHDOG=1"}, "the buffer was never full"

    notify.tick(document)
    assert ["STOPPING=1", "WATCHDOG=1"] == manager.heard()[:2]


@pytest.mark.parametrize("address", ["", None, "vsock:2:1234", "/nowhere/at/all"])
def test_a_socket_that_is_none_or_gone_is_no_fault_of_the_engine(address, open_notify):
    notify = open_notify(address, 1.0)
    notify.ready()
    notify.tick(document)
    notify.stopping()
