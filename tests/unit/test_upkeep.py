"""What an engine keeps in places that others tidy up."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from shardmem.config import Config, quarantine_file
from shardmem.runtime.quarantine import Entry, Quarantine
from shardmem.status.observer import COUNTED, Observer
from shardmem.supervisor.history import History
from shardmem.supervisor.upkeep import Upkeep

EVENT = Entry("a", 0, 0, 0, 0, "rejected", "no", "", 1, "key", b"payload", {"kind": "events"})


@pytest.mark.parametrize("how", ["removed", "replaced by another file"])
def test_a_quarantine_that_somebody_has_removed_is_said_once_with_how_many_events_it_held(
    loopback: Any, tmp_path: Path, how: str
) -> None:
    engine = loopback(state_dir=str(tmp_path))
    told: list[bytes] = []
    observer, history = Observer(engine.control), History(told.append, 10_000)
    config = Config.of(name=engine.name, handler="support.recorder:Recorder", state_dir=str(tmp_path))
    upkeep = Upkeep(object(), config, observer, history)  # type: ignore[arg-type]
    path, now = quarantine_file(str(tmp_path), engine.name), 0.0

    def look() -> int:
        nonlocal now
        now += 2 * COUNTED
        upkeep.look_at_quarantine(now)
        return len(told)

    assert look() == 0
    with Quarantine(path) as quarantine:
        quarantine.add(EVENT)
    assert look() == 0
    os.rename(path, path + ".elsewhere")
    if how != "removed":
        Quarantine(path).close()
    assert look() == 1
    assert f"{path} was {how}; the 1 event that it held is lost" in told[0].decode()
    assert look() == 1
    observer.close()
