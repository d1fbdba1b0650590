"""`shardmem ingest --dry-run`: the first events as the engine would get them."""

from __future__ import annotations

import json
import logging
import threading
import time
from collections import deque
from collections.abc import Iterator
from typing import Any

import click
import numpy as np

from shardmem.console.cli.common import complain, say
from shardmem.console.ingest import Wish
from shardmem.memory.engine_segment import ControlSegment
from shardmem.runtime.columns import KEY_UNSIGNED, Keys, spans_of
from shardmem.schema import KEY_INT, KEY_STR
from shardmem.sources.contract import Columns, SourceContext
from shardmem.sources.files.inputs import STDIN
from shardmem.sources.files.reasons import shown
from shardmem.sources.files.source import FileSource, expand

SHOWN = 5


def dry_run(engine: str, wish: Wish, as_json: bool) -> None:
    control = ControlSegment.attach(engine)
    try:
        schema, most = control.schema, control.lane_bytes // 2 - 128
    finally:
        control.close()
    source = FileSource(deque(expand(list(wish.names) or [STDIN])), wish.options, schema, most)
    source.open(SourceContext(logging.getLogger("shardmem.sources"), time.time, threading.Event()))
    limit = wish.limits.events or SHOWN
    events: list[dict[str, Any]] = []
    bad: list[str] = []
    while not source.ended and len(events) < limit:
        columns = source.poll(limit, 0.1)
        if columns is not None:
            bad += [each.text for each in columns.rejected if each.after <= limit - len(events)]
            events += list(events_of(columns, limit - len(events)))
    source.close(False)
    dtype = schema.dtype
    if as_json:
        click.echo(json.dumps({"engine": engine, "events": events, "bad": bad}))
        return
    for event in events:
        if "record" in event:
            say(", ".join(f"{name}={value}" for name, value in event["record"].items()))
        else:
            say(f"key {event['key']!r} ({event['key_type']}), payload {event['payload']}")
    if dtype is not None and dtype.fields is not None:
        say("types: " + ", ".join(f"{name} {field[0]}" for name, field in dtype.fields.items()))
    for text in bad:
        complain(text)
    click.echo(f"dry run: nothing was pushed into engine {engine}")


def events_of(columns: Columns, most: int) -> Iterator[dict[str, Any]]:
    for i in range(min(most, len(columns))):
        if columns.records is not None:
            names = columns.records.dtype.names or ()
            yield {"record": {name: repr(columns.records[name][i].item()) for name in names}}
            continue
        assert columns.payloads is not None
        data, offsets = columns.payloads
        first, last = spans_of(offsets)[i].tolist()
        key = key_of(columns.keys, i)
        yield {"key": key, "key_type": type(key).__name__, "payload": shown(bytes(data[first:last]))}


def key_of(keys: Keys | None, event: int) -> int | str | None:
    if keys is None:
        return None
    kind = keys.kinds if isinstance(keys.kinds, int) else int(keys.kinds[event])
    if kind in (KEY_INT, KEY_UNSIGNED):
        assert keys.numbers is not None
        return int(keys.numbers[event].astype("i8")) if kind == KEY_INT else int(keys.numbers[event])
    assert kind == KEY_STR and keys.offsets is not None
    first, last = np.asarray(keys.offsets)[event].tolist()
    return bytes(keys.data[first:last]).decode("utf-8", "surrogateescape")
