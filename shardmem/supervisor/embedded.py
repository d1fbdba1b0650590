"""The supervisor process of an embedded engine.

Its orders come on standard input, one line of JSON, and standard input stays open as long as the parent wants the
engine: end of file means the parent has left its block, or was killed, and the engine drains and ends.
"""

from __future__ import annotations

import asyncio
import os
import sys

from shardmem.config import Config, log_file
from shardmem.memory.native import arm_from_environment
from shardmem.runtime import logs
from shardmem.runtime.child import ExitCode, Reports, SupervisorOrders, begin, read_orders
from shardmem.runtime.log_file import keep_in
from shardmem.schema import Schema
from shardmem.supervisor.supervisor import Supervisor


def main() -> int:
    begin()
    arm_from_environment()
    if (told := read_orders(SupervisorOrders)) is None:
        return ExitCode.OK  # nobody wants the engine any more
    orders, reports = told
    settings = orders.settings
    logs.set_up(settings["log_format"], settings["log_level"] or "warning", settings["name"])
    return asyncio.run(_run(orders, reports))


async def _run(orders: SupervisorOrders, reports: Reports) -> int:
    sys.path += [entry for entry in orders.handler.main.get("sys_path", []) if entry not in sys.path]
    schema = Schema.from_json(orders.schema)
    config = Config.of(handler=orders.handler.name, dtype=schema.dtype, key=schema.key, **orders.settings)
    keep_in(log_file(config.directory, config.name))
    supervisor = Supervisor(
        config,
        orders.handler,
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
