"""A warm process whose forked children are killed, or stopped, inside a send."""

from __future__ import annotations

import os
import random
import signal
import time
from pathlib import Path
from typing import Any

import shardmem
from shardmem.memory.native import arm_point
from support.programs import NOT_REACHED, order, program, reply
from support.programs.children import forked, reap
from support.programs.source import Source
from support.rig import PATIENCE, Log


@program
def nursery() -> None:
    """Forks children of a warm process and has each one killed, or stopped, at a named point of a send.

    After each, another producer and the next holder of the seat must go on.
    """
    first = order()
    directory, method = Path(first["directory"]), first["method"]
    with shardmem.connect(first["engine"], spin_us=0) as producer, Log(directory) as log:
        own = Source(first["first"], log)
        own.push(producer, method, 3, 40)
        reply(ready=True)
        while orders := order():
            how = kill_at_random
            if "point" in orders:
                how = kill_children if orders["signal"] == signal.SIGKILL else stop_children
            reply(**how(producer, own, directory, method, **orders))


def kill_at_random(producer: Any, own: Source, directory: Path, method: str, first: int, count: int) -> dict[str, Any]:
    """Some children at a time, each killed at a moment of its own: while it attaches, opens a lane, pushes or waits."""
    chance, alive, codes = random.Random(method), [], []
    for number in range(first, first + count):

        def work() -> None:
            source = Source(number, Log(directory))
            while True:
                source.push(producer, method, chance.randint(1, 40), 300)

        alive.append(forked(work))
        if len(alive) == 3:
            time.sleep(chance.random() ** 2 * 0.02)
            victim = alive.pop(chance.randrange(3))
            os.kill(victim, signal.SIGKILL)
            codes.append(reap(victim))
            own.push(producer, method, 2, 40, timeout=PATIENCE)
    for victim in alive:
        os.kill(victim, signal.SIGKILL)
        codes.append(reap(victim))
    producer.flush(PATIENCE)
    return {"codes": codes}


def kill_children(
    producer: Any, own: Source, directory: Path, method: str, point: str, first: int, count: int, signal: int
) -> dict[str, Any]:
    chance, codes, rows = random.Random(f"{point} {method}"), [], 100 if point == "send.waiting" else 25
    for number in range(first, first + count):
        passes = chance.randint(1, 3) if point == "send.waiting" else chance.randint(1, 40)

        def work() -> None:
            source = Source(number, Log(directory))
            arm_point(point, passes, signal)
            for _ in range(3000):
                source.push(producer, method, rows, 300)
            os._exit(NOT_REACHED)

        codes.append(reap(forked(work)))
        own.push(producer, method, 2, 40, timeout=PATIENCE)
    last = Source(first + count, Log(directory))
    codes.append(reap(forked(lambda: [last.push(producer, method, 25, 300, timeout=PATIENCE) for _ in range(20)])))
    producer.flush(PATIENCE)
    return {"codes": codes}


def stop_children(
    producer: Any, own: Source, directory: Path, method: str, point: str, first: int, count: int, signal: int
) -> dict[str, Any]:
    from signal import SIGCONT
    from signal import signal as handle_signal

    chance, codes, rows = random.Random(f"{point} {method}"), [], 100 if point == "send.waiting" else 25
    for number in range(first, first + 2 * count, 2):
        passes = chance.randint(1, 3)

        def work() -> None:
            source, continued = Source(number, Log(directory)), []
            handle_signal(SIGCONT, lambda *_: continued.append(True))
            arm_point(point, passes, signal)
            for _ in range(3000):
                source.push(producer, method, rows, 300)
                if continued:
                    break
            for _ in range(10):
                source.push(producer, method, 25, 300)

        pid = forked(work)
        _, status = os.waitpid(pid, os.WUNTRACED)
        if not os.WIFSTOPPED(status):
            return {"codes": [NOT_REACHED]}
        other = Source(number + 1, Log(directory))
        codes.append(reap(forked(lambda: [other.push(producer, method, 25, 300, timeout=PATIENCE) for _ in range(20)])))
        for _ in range(20):
            own.push(producer, method, 25, 300, timeout=PATIENCE)
        producer.flush(PATIENCE)
        os.kill(pid, SIGCONT)
        codes.append(reap(pid))
    return {"codes": codes}
