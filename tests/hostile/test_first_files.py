"""All shards meet their first event to be quarantined and save their first state at the same moment, while some of
them, and the supervisor, are killed: no shard fails, and every event is in exactly one place."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import shardmem
from shardmem.runtime.quarantine import QuarantineReader
from support.rig import Rig

LIMIT = 90.0  # seconds that anything may take on a busy machine
KEYS, SHARDS = 48, 4


def kill_some(engine: shardmem.Engine, draw: random.Random, figures: Counter[str]) -> None:
    """A worker at most once: its events are tried three times."""
    status = engine.status()
    victims = [status["supervisor"]["pid"], *(shard["pid"] for shard in status["shards"])]
    for pid in draw.sample(victims, draw.randint(0, len(victims))):
        time.sleep(draw.choice([0.0, 0.005, 0.05]))
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
            figures["kills"] += 1


def flushed(producer: shardmem.Producer) -> int:
    """Events of other keys that were pushed until all was handled: of four bad ones in a row, with nothing that can be
    handled beside them, nobody can say that it is not an outage."""
    pushed, until = 0, time.monotonic() + LIMIT
    while True:
        try:
            producer.flush(1.0)
            return pushed
        except TimeoutError:
            if time.monotonic() > until:
                raise
            producer.push_many(list(range(KEYS, 2 * KEYS)), [b"good"] * KEYS)
            pushed += KEYS


@pytest.mark.skipif("SHARDMEM_MINUTES" not in os.environ, reason="a campaign of minutes: tox -e hostile")
def test_first_events_in_quarantine_and_first_states_of_all_shards_at_once(
    tmp_path: Path, engine_name: str, draws: Callable[[], Iterator[random.Random]], figures: Counter[str]
) -> None:
    for number, draw in enumerate(draws()):
        rig, state = Rig(tmp_path), tmp_path / str(number)
        name = f"{engine_name[:55]}-{number}"
        handler = draw.choice(["Rejecting", "Raising"])
        is_bad = [draw.randrange(4) == 0 for _ in range(10 * KEYS)]
        engine = rig.engine(
            name,
            f"support.handlers.keyed:{handler}",
            shards=SHARDS,
            state_dir=str(state),
            retry_backoff=0.01,
            checkpoint_interval=draw.choice([0.01, 1.0]),
            drain_timeout=LIMIT,
        )
        with engine, engine.producer() as producer:
            for start in range(0, len(is_bad), KEYS):
                producer.push_many(
                    list(range(KEYS)), [b"bad" if bad else b"good" for bad in is_bad[start : start + KEYS]]
                )
            if draw.randrange(3):
                kill_some(engine, draw, figures)
            goods_beside = flushed(producer)
            failed = [shard["error"] for shard in engine.status()["shards"] if shard["state"] == "failed"]
            assert not failed, failed
            counted = [engine.state("good", key) for key in range(KEYS)]
        goods = [sum(not bad for bad in is_bad[key::KEYS]) for key in range(KEYS)]
        assert [0 if found is None else found.value for found in counted] == goods
        with QuarantineReader(str(state / f"{name}.quarantine")) as quarantine:
            assert quarantine.count() == sum(is_bad)
        accounts = engine.status()["accounting"]
        assert (accounts["handled"], accounts["quarantined"]) == (sum(goods) + goods_beside, sum(is_bad))
        figures.update(starts=1, events=len(is_bad), quarantined=sum(is_bad))
