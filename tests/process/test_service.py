"""An engine as a service manager sees it."""

from __future__ import annotations

import select
import signal
import socket

import pytest

from shardmem.console.top import Source
from support.daemon import Daemon
from support.rig import PATIENCE


@pytest.fixture
def manager(tmp_path):
    receiver = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    receiver.bind(str(tmp_path / "notify"))

    def hear(what):
        """All that is said up to the first message that begins so."""
        heard = []
        while not heard or not heard[-1].startswith(what):
            assert select.select([receiver], [], [], PATIENCE)[0], f"{what} never came; {heard}"
            heard.append(receiver.recv(4096).decode())
        return heard

    hear.address = str(tmp_path / "notify")
    hear.silent = lambda: not select.select([receiver], [], [], 0)[0]
    yield hear
    receiver.close()


def test_a_service_says_that_it_is_ready_lives_and_stops(rig, engine_name, manager):
    environment = {"NOTIFY_SOCKET": manager.address, "WATCHDOG_USEC": "1000000"}
    with Daemon(rig, engine_name, "--shards", "1", environment=environment) as daemon:
        daemon.ready()
        heard = manager("READY=1")
        assert not [each for each in heard if each.startswith(("STATUS=running", "STOPPING"))], heard
        status = manager("STATUS=")[-1]
        assert status.startswith("STATUS=running, 1 shard;") and "0 in flight" in status
        manager("WATCHDOG=1")
        manager("WATCHDOG=1")
        daemon.process.send_signal(signal.SIGTERM)
        assert "READY=1" not in manager("STOPPING=1")
        assert 0 == daemon.end()[0]


@pytest.mark.parametrize("file", ["shards = 1\n", "shards = no number\n"])
def test_a_reload_is_announced_and_ends_with_ready_however_it_went(rig, engine_name, manager, tmp_path, file):
    settings = tmp_path / "engine.toml"
    settings.write_text('handler = "support.recorder:Recorder"\nshards = 1\n')
    with Daemon(rig, engine_name, handler=str(settings), environment={"NOTIFY_SOCKET": manager.address}) as daemon:
        daemon.ready()
        manager("READY=1")
        settings.write_text('handler = "support.recorder:Recorder"\n' + file)
        daemon.process.send_signal(signal.SIGHUP)
        assert "\nMONOTONIC_USEC=" in manager("RELOADING=1")[-1]
        manager("READY=1")
        daemon.process.send_signal(signal.SIGTERM)
        assert 0 == daemon.end()[0]


def test_an_embedded_engine_does_not_speak_for_the_service_that_it_is_in(rig, engine_name, manager, monkeypatch):
    monkeypatch.setenv("NOTIFY_SOCKET", manager.address)
    with rig.engine(engine_name, shards=1):
        pass

    assert manager.silent(), "it said something"


def test_top_shows_an_engine_without_supervisor_and_the_next_one_of_that_name(rig, engine_name):
    source = None
    try:
        with Daemon(rig, engine_name, "--shards", "1") as daemon:
            daemon.ready()
            source = Source(engine_name)
            assert (True, False) == (source.look()[0]["supervisor"]["alive"], source.look()[2])
            daemon.kill_supervisor()
            document, _, gone = source.look()
            assert (False, False) == (document["supervisor"]["alive"], gone)
            assert [True] == [each["alive"] for each in document["shards"]]
            with Daemon(rig, engine_name, "--shards", "1") as second:
                second.ready()
                assert source.look()[0]["supervisor"]["alive"]
                second.process.send_signal(signal.SIGTERM)
                assert 0 == second.end()[0]
        assert source.look()[2], "its memory is gone"
        with Daemon(rig, engine_name, "--shards", "2") as daemon:
            daemon.ready()
            document, _, gone = source.look()
            assert (2, False) == (len(document["shards"]), gone)
            daemon.process.send_signal(signal.SIGTERM)
            assert 0 == daemon.end()[0]
    finally:
        if source is not None:
            source.close()
