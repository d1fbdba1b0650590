"""A view of a batch that outlives its handler's return is found; copies may be kept; nothing is lost by it."""

from __future__ import annotations

import re
from typing import Any

import pytest

import shardmem
from support.recorder import RECORD, payload, records
from support.rig import PATIENCE, Log, Rig, drained, expect_clean

RECORDS = {"dtype": RECORD, "key": "key"}
ESCAPE = {
    "records": ["array", "slice", "field", "keys", "row", "memoryview", "asarray", "reshape", "view", "iterator"],
    "events": ["columns", "data", "int keys"],
}
FINE = {
    "records": ["array copy", "fancy", "sum", "copy", "slots", "sequences", "producers", "len", "batch"],
    "events": ["pairs", "payloads", "starts", "copy", "slots", "sequences", "producers", "len", "batch"],
}
LATE = {
    "records": ["array", "keys", "iterator", "copy", "slots", "sequences", "producers"],
    "events": ["pairs", "payloads", "columns", "copy", "slots", "sequences", "producers"],
}
STILL_KEPT = "still refers to the memory of its batch.*copy"
USED_LATE = "ended when its handler returned.*copy"


def cases(table: dict[str, list[str]]) -> list[tuple[str, str]]:
    return [(schema, how) for schema, ways in table.items() for how in ways]


def push(producer: shardmem.Producer, log: Log, first: int, frames: int, rows: int = 4) -> None:
    """Events first..., key 1, in so many frames."""
    for number in range(first, first + frames * rows, rows):
        numbers = list(range(number, number + rows))
        log.rows("offered", 1, [1] * rows, numbers)
        if producer.schema.is_records:
            producer.send(records(1, [1] * rows, numbers))
        else:
            producer.push_many([1] * rows, [payload(1, 1, each) for each in numbers])
        log.rows("accepted", 1, [1] * rows, numbers)


def schema_of(schema: str) -> dict[str, Any]:
    return RECORDS if schema == "records" else {}


@pytest.mark.parametrize(
    "schema, how, frames",
    [
        *((schema, how, 1) for schema, how in cases(ESCAPE)),
        ("records", "field", 3),
        ("records", "memoryview", 3),
        ("events", "columns", 3),
        ("events", "data", 3),
    ],
)
def test_a_view_that_is_kept_is_found(rig: Rig, schema: str, how: str, frames: int) -> None:
    """Of the second batch; it lies in the lane, or was gathered from several frames."""
    rig.tell("keep-from", "4")
    rig.tell("keep", how)
    engine = rig.engine(None, handler="support.handlers.keeping:Keeper", shards=1, **schema_of(schema))
    with pytest.raises(shardmem.HandlerError, match=STILL_KEPT), engine:
        with engine.producer() as producer, Log(rig.directory) as log:
            with rig.hold():
                push(producer, log, 0, 1)
                rig.wait_held(0)
                push(producer, log, 4, frames)
            with pytest.raises(shardmem.HandlerError, match=STILL_KEPT):
                producer.flush(PATIENCE)
    total = engine.status()["accounting"]
    assert total["handled"] == 4 and total["in_flight"] == 4 * frames, "a batch that escaped is not handled"


@pytest.mark.parametrize("schema", LATE)
def test_a_batch_that_is_used_after_its_end_raises_batch_escaped(rig: Rig, engine_name: str, schema: str) -> None:
    """LateUser does to its first batch, when it has the second, each of these things, and writes down what it got."""
    for how in LATE[schema]:
        rig.tell(f"late-{how}", "")
    with rig.engine(engine_name, handler="support.handlers.keeping:LateUser", shards=1, **schema_of(schema)) as engine:
        with engine.producer() as producer, Log(rig.directory) as log:
            push(producer, log, 0, 1)
            producer.flush(PATIENCE)
            push(producer, log, 4, 1)
            producer.flush(PATIENCE)
    for how in LATE[schema]:
        assert re.match("BatchEscaped: .*" + USED_LATE, (rig.directory / f"late-{how}").read_text()), how


def test_a_handler_that_uses_an_old_batch_is_reported_like_any_that_fails(rig: Rig) -> None:
    engine = rig.engine(None, handler="support.handlers.keeping:Careless", shards=1, on_error="stop")
    with pytest.raises(shardmem.HandlerError, match="raised BatchEscaped: .*" + USED_LATE), engine:
        with engine.producer() as producer, Log(rig.directory) as log:
            push(producer, log, 0, 1)
            producer.flush(PATIENCE)
            push(producer, log, 4, 1)
            with pytest.raises(shardmem.HandlerError, match=USED_LATE):
                producer.flush(PATIENCE)
    assert engine.status()["accounting"]["handled"] == 4


@pytest.mark.parametrize("schema", ["records", "events"])
def test_copies_and_plain_values_may_be_kept(rig: Rig, engine_name: str, schema: str) -> None:
    with rig.engine(engine_name, handler="support.handlers.keeping:Keeper", shards=1, **schema_of(schema)) as engine:
        with engine.producer() as producer, Log(rig.directory) as log:
            for at, how in enumerate(FINE[schema]):
                rig.tell("keep", how)
                push(producer, log, 100 * at, 1)
                producer.flush(PATIENCE)
                with rig.hold():
                    push(producer, log, 100 * at + 10, 1)
                    rig.wait_held(0)
                    push(producer, log, 100 * at + 20, 4)
                producer.flush(PATIENCE)
        expect_clean(rig, drained(engine))


@pytest.mark.parametrize("schema", ["records", "events"])
def test_a_copy_of_a_batch_stays_what_it_was(rig: Rig, engine_name: str, schema: str) -> None:
    """KeepsCopies compares each copy with the batch it was made of, many batches later."""
    with rig.engine(
        engine_name, handler="support.handlers.keeping:KeepsCopies", shards=1, lane_bytes=4096, **schema_of(schema)
    ) as engine:
        with engine.producer() as producer, Log(rig.directory) as log:
            for call in range(60):
                push(producer, log, 12 * call, 3)
            producer.flush(PATIENCE)
        expect_clean(rig, drained(engine))


@pytest.mark.parametrize("schema, how", [("records", "slice"), ("events", "data")])
def test_the_events_of_an_escaped_batch_stay_for_the_next_run(
    rig: Rig, engine_name: str, schema: str, how: str
) -> None:
    rig.tell("keep", how)
    engine = rig.engine(engine_name, handler="support.handlers.keeping:Keeper", shards=1, **schema_of(schema))
    with pytest.raises(shardmem.HandlerError, match=STILL_KEPT), engine:
        with engine.producer() as producer, Log(rig.directory) as log:
            push(producer, log, 0, 1)
            with pytest.raises(shardmem.HandlerError):
                producer.flush(PATIENCE)
            push(producer, log, 4, 3)
    (rig.directory / "keep").unlink()
    with rig.engine(engine_name, handler="support.handlers.keeping:Keeper", shards=1, **schema_of(schema)) as engine:
        status = drained(engine)
    assert status["accounting"]["handled"] == 16
    expect_clean(rig, status, duplicates=4)


@pytest.mark.parametrize("handler, on_error", [("Keeper", "quarantine"), ("KeepsAndRaises", "retry")])
def test_a_kept_view_stops_the_shard_until_a_reload_and_no_event_is_blamed(
    rig: Rig, engine_name: str, handler: str, on_error: str
) -> None:
    rig.tell("keep", "slice")
    handler = f"support.handlers.keeping:{handler}"
    with rig.engine(engine_name, handler=handler, shards=1, on_error=on_error, **RECORDS) as engine:
        with engine.producer() as producer, Log(rig.directory) as log:
            push(producer, log, 0, 1, rows=1)
            with pytest.raises(shardmem.HandlerError, match=STILL_KEPT):
                producer.flush(PATIENCE)
            shard = engine.status()["shards"][0]
            assert shard["condition"] == "failed" and re.search(STILL_KEPT, shard["reason"])
            (rig.directory / "keep").unlink()
            engine.reload(timeout=PATIENCE)
            producer.flush(PATIENCE)
        status = drained(engine)
    assert status["accounting"]["quarantined"] == 0 and status["accounting"]["handled"] == 1
    expect_clean(rig, status, duplicates=1)  # it was handed out twice: to the one that kept it, and after the reload
