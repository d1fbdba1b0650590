"""What is wanted of an engine, by hand or by the policy. Nothing here waits: whoever wishes says it, and the runner
acts on it with every step until it is so.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Wishes:
    """The wishes of one engine.

    following: the policy may change the number of shards; False: it was set by hand.
    suspended: no slot moves but by hand, or because its shard drains.
    moves: slots that somebody wants elsewhere, and where: until they have arrived, or a newer wish names them.
    succession: a shard that is being replaced -> the one that gets all of its slots.
    eager: even out small differences too, until there is nothing left to even out.
    """

    following: bool = True
    suspended: bool = False
    moves: dict[int, int] = field(default_factory=dict)
    succession: dict[int, int] = field(default_factory=dict)
    eager: bool = False

    def move(self, slots: Iterable[int], target: int) -> None:
        self.moves.update(dict.fromkeys(slots, target))

    def succeed(self, shard: int, successor: int) -> None:
        """What is wanted on the shard, is wanted on its successor now, and all that it has."""
        self.moves = {slot: successor if target == shard else target for slot, target in self.moves.items()}
        self.succession[shard] = successor

    def drain(self, shard: int) -> None:
        """It takes no more: what was to go to it, goes where the strategy says."""
        self.moves = {slot: target for slot, target in self.moves.items() if target != shard}
        self.succession = {old: new for old, new in self.succession.items() if new != shard}

    def forget_shard(self, shard: int) -> None:
        """It is gone: nobody can go there, and nobody comes from there."""
        self.moves = {slot: target for slot, target in self.moves.items() if target != shard}
        self.succession = {old: new for old, new in self.succession.items() if shard not in (old, new)}

    def to_json(self) -> dict[str, Any]:
        """What stands when another supervisor takes over."""
        succession = [list(pair) for pair in self.succession.items()]
        return {"auto_scale": self.following, "suspended": self.suspended, "succession": succession}

    def recall(self, told: Mapping[str, Any]) -> None:
        self.following = self.following and bool(told.get("auto_scale", True))
        self.suspended = bool(told.get("suspended", False))
