"""How many partitions the state of an engine is laid out for, and which state it is: a file beside it, written by the
source."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
from typing import NamedTuple

from shardmem.errors import ConfigError, ShardmemError
from shardmem.private_files import make_directory, make_file
from shardmem.runtime.state_files import PARTITIONS
from shardmem.state.partitions import Layout


class Counted(NamedTuple):
    """id: of this state, whatever engine has it."""

    partitions: int
    id: str


def counted(directory: str) -> Counted | None:
    """None: no source with partitions has ever fed it. Raises ShardmemError."""
    path = os.path.join(directory, PARTITIONS)
    try:
        with open(path) as file:
            found = json.load(file)
            return Counted(int(found["partitions"]), str(found["id"]))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ShardmemError(
            f"{path} cannot be read: {error}",
            hint='Write it anew, as {"partitions": <partitions of the topic>, "id": "<any text>"}',
        ) from None


def count(directory: str, slots: int, partitions: int, told: bool) -> Counted:
    """That many from here on. told: somebody has said that the number may change. Raises ConfigError when it has, and
    nobody has, or when slots would be shared out otherwise than they are."""
    found = counted(directory)
    if found is not None and found.partitions == partitions:
        return found
    if found is not None and Layout(slots, found.partitions).width != Layout(slots, partitions).width:
        raise ConfigError(
            f"the state in {directory} is laid out for {found.partitions} partitions, and there are {partitions}: keys "
            "would not find their state",
            hint=f"Stop the engine; `shardmem state export`, and `shardmem state import --partitions {partitions}` "
            "into an empty directory",
        )
    if found is not None and not told:
        raise ConfigError(
            f"the state in {directory} is of {found.partitions} partitions, and there are {partitions}: keys that have "
            "moved to another partition leave their state behind",
            hint=f"If that is what you want, set `partitions = {partitions}` in [source]",
        )
    made = Counted(partitions, found.id if found else secrets.token_hex(8))
    make_directory(directory)
    path = os.path.join(directory, PARTITIONS)
    with contextlib.suppress(FileNotFoundError):
        os.unlink(f"{path}.new")
    make_file(f"{path}.new")
    with open(f"{path}.new", "w") as file:
        json.dump(made._asdict(), file)
    os.replace(f"{path}.new", path)
    return made
