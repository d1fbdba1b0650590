"""An embedded engine, as long as its parent wants it: until standard input says so, or ends."""

from __future__ import annotations

import asyncio
import os
import sys

from shardmem.config import Config, log_file
from shardmem.memory.native import arm_from_environment
from shardmem.runtime import logs
from shardmem.runtime.child import Reports, SupervisorOrders, read_orders
from shardmem.runtime.log_file import keep_in
from shardmem.schema import Schema
from shardmem.supervisor.prestart import Prestarted
from shardmem.supervisor.supervisor import Supervisor


def run(line: bytes, prestarted: Prestarted) -> int:
    """line: its orders."""
    arm_from_environment()
    told = read_orders(SupervisorOrders, line)
    assert told is not None
    orders, reports = told
    settings = orders.settings
    logs.set_up(settings["log_format"], settings["log_level"] or "warning", settings["name"])
    return asyncio.run(_run(orders, reports, prestarted))


async def _run(orders: SupervisorOrders, reports: Reports, prestarted: Prestarted) -> int:
    sys.path += [entry for entry in orders.handler.main.get("sys_path", []) if entry not in sys.path]
    schema = Schema.from_json(orders.schema)
    config = Config.of(handler=orders.handler.name, dtype=schema.dtype, key=schema.key, **orders.settings)
    keep_in(log_file(config.directory, config.name))
    supervisor = Supervisor(
        config,
        orders.handler,
        prestarted,
        keep_unfinished=orders.keep_unfinished,
        on_ready=lambda status: reports.say(ready=True, status=status),
        on_created=(lambda shard: reports.say(shard_created=shard)) if orders.tell_shards else None,
        on_removed=(lambda shard: reports.say(shard_removed=shard)) if orders.tell_shards else None,
    )
    lifeline = sys.stdin.fileno()
    loop = asyncio.get_running_loop()
    asked: list[bool] = []

    def parent_said() -> None:
        # A line asks for the stop. The end of the file says the same, but comes only when every copy of the other end
        # is closed, and a program that the parent started without closing it may hold one for long.
        if not os.read(lifeline, 4096):
            loop.remove_reader(lifeline)
            if asked:
                return
        asked.append(True)
        supervisor.request_stop()

    loop.add_reader(lifeline, parent_said)
    try:
        code = await supervisor.run()
    except Exception as error:
        reports.say(ended=1, status=None, error=f"the supervisor failed: {type(error).__name__}: {error}", kind=None)
        raise
    loop.remove_reader(lifeline)
    fault = supervisor.error
    reports.say(ended=code, status=supervisor.outcome, **(fault.describe() if fault else {}))
    return code
