"""Even counts of slots, with the fewest moves."""
from __future__ import annotations

from typing import Sequence


def even_out(owners: Sequence[int], shards: Sequence[int]) -> list[tuple[int, int, int]]:
    """(slot, source, target) of the fewest moves after which the counts of `shards` differ by at most one.

    Slots of shards that are not among `shards` all move. With the counts even already there is nothing to do, so this
    converges in one round from every start. Going from n to n + 1 shards moves at most ceil(slots / (n + 1)).
    Raises ValueError without a shard.
    """
    if not shards:
        raise ValueError("slots need a shard to go to; got none")
    held: dict[int, list[int]] = {shard: [] for shard in shards}
    homeless: list[int] = []
    for slot, owner in enumerate(owners):
        held.get(owner, homeless).append(slot)
    low, extra = divmod(len(owners), len(shards))
    # those that have most keep the extra slot: it is one move less for each
    ranked = sorted(shards, key=lambda shard: (-len(held[shard]), shard))
    wanted = {shard: low + (rank < extra) for rank, shard in enumerate(ranked)}
    spare = list(homeless)
    for shard in ranked:
        spare += held[shard][wanted[shard]:]
    moves, at = [], 0
    for shard in ranked:
        for _ in range(wanted[shard] - len(held[shard])):
            moves.append((spare[at], owners[spare[at]], shard))
            at += 1
    return moves
