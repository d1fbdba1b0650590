"""The shards and their lives, and where keyless events go. [net-mesh: ShardMapper]

    scale_up_provisioning ─▶ provisioning ─activate▶ active ─drain_specific, scale_down▶ draining
    scale_up ─────────────────────────────────────────▲
    draining ─finalize_draining▶ stopped, provisioning ─abandon▶ stopped ─remove_*▶ (gone; the id is free again)

A shard whose worker is away for long is `failed` (active, draining ─fail▶ failed ─recover▶ as before): it keeps its
slots, counts neither as active nor as busy, and nothing is planned for it.

Every method either does all it was asked for or raises ScalingError and changes nothing. A change of any size is one
change: the cooldown stands between decisions, never between the shards of one.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from enum import Enum
from itertools import accumulate

import numpy as np

from shardmem.policy.decide import Load, decide, needed
from shardmem.policy.scaling import MOST_SHARDS, ScalingDecision, ScalingError, ScalingErrorKind, ScalingPolicy
from shardmem.policy.signals import BUSY, FILL, RATE, SampleWindow, ShardSample

DRAIN_GRACE = 0.1  # seconds: far longer than a push takes between reading that a shard is active and publishing
FLAP = 4.0  # by how much scale_down_delay grows when shards that went were needed again soon after
MOST_FLAPS = 16.0
LEAST_WEIGHT = 0.05  # of keyless events, so that a full shard is seen to recover
NEAR = 0.05  # loads that differ by less are equal
_WORD = (1 << 64) - 1


class ShardState(str, Enum):
    """[net-mesh: the type of the same name]"""

    PROVISIONING = "provisioning"
    ACTIVE = "active"
    DRAINING = "draining"
    FAILED = "failed"
    STOPPED = "stopped"

    __str__ = str.__str__


@dataclass
class _Shard:
    state: ShardState
    since: float
    before: ShardState | None = None  # it failed
    replaces: int | None = None  # a successor, until it succeeds


class ShardMapper:
    """Knows the shards and decides how many there should be.

    shards: how many are active at the start (ids from 0), or the states of those found by a supervisor that takes over.
    policy: may be replaced while running.
    now: seconds of any clock that never goes back; so is every other `now`.
    room: ids are below this, and the lowest free one is used: records of shards can live in an array of this size.
    drain_grace: seconds that a drain takes at least, for pushes that chose the shard while it was active. A supervisor
        that waits for them in another way says 0.
    on_created, on_removed: called with the id of a shard that became active, and of one that was and has stopped.

    Raises ScalingError: at_max_shards when more shards are given than `room`.
    """

    def __init__(
        self,
        shards: int | Mapping[int, ShardState | str],
        policy: ScalingPolicy,
        *,
        now: float = 0.0,
        room: int = MOST_SHARDS,
        drain_grace: float = DRAIN_GRACE,
        on_created: Callable[[int], None] | None = None,
        on_removed: Callable[[int], None] | None = None,
    ) -> None:
        self.policy, self.room, self.drain_grace = policy, room, drain_grace
        self.on_created, self.on_removed = on_created, on_removed
        states = dict.fromkeys(range(shards), ShardState.ACTIVE) if isinstance(shards, int) else shards
        if any(not 0 <= shard < room for shard in states):
            raise ScalingError(ScalingErrorKind.AT_MAX_SHARDS, f"shards {sorted(states)} do not fit into {room} places")
        self._shards = {shard: _Shard(ShardState(state), now) for shard, state in sorted(states.items())}
        self._window = SampleWindow(policy.metrics_window)
        self._changed: float | None = None  # when the cooldown began
        self._went: float | None = None  # when the policy last took shards away
        self._without: frozenset[int] = frozenset()
        self._flaps = 1.0  # what scale_down_delay is multiplied by
        self._watched_since: float | None = None
        self._collected = now
        self._need: int | None = None  # shards needed as of the last look, and until the next
        self._needs: deque[tuple[float, int]] = deque()  # (until when, how many), falling: the front is the largest
        self._lottery: tuple[list[int], list[float], list[float]] | None = None
        for shard in self._shards:
            self._window.open(shard, now)

    def begin(self, now: float) -> None:
        """Nothing that was sampled before counts."""
        for shard in self._shards:
            self._window.open(shard, now)
        self._collected = now

    # ---- what there is -----------------------------------------------------------------------------------------------

    def shard_state(self, shard: int) -> ShardState | None:
        """None: there is no such shard."""
        found = self._shards.get(shard)
        return None if found is None else found.state

    def active_shard_ids(self) -> list[int]:
        return self._ids(ShardState.ACTIVE)

    def draining_shard_ids(self) -> list[int]:
        return self._ids(ShardState.DRAINING)

    def joining_shard_ids(self) -> list[int]:
        """Those that will be one more when their workers are ready: successors are not among them."""
        return [shard for shard in self._ids(ShardState.PROVISIONING) if self._shards[shard].replaces is None]

    def failed_shard_ids(self) -> list[int]:
        return self._ids(ShardState.FAILED)

    def all_shard_ids(self) -> list[int]:
        """All that are not stopped."""
        return [shard for shard, each in self._shards.items() if each.state is not ShardState.STOPPED]

    def active_shard_count(self) -> int:
        return len(self._ids(ShardState.ACTIVE))

    def total_shard_count(self) -> int:
        return len(self.all_shard_ids())

    def _ids(self, state: ShardState) -> list[int]:
        return [shard for shard, each in self._shards.items() if each.state is state]

    # ---- more shards -------------------------------------------------------------------------------------------------

    def scale_up(self, count: int, now: float) -> list[int]:
        """Adds shards that are active at once; their ids. Raises ScalingError: at_max_shards, in_cooldown."""
        return self._create(count, ShardState.ACTIVE, now)

    def scale_up_provisioning(self, count: int, now: float) -> list[int]:
        """Adds shards that get no work until `activate`; their ids. Raises ScalingError: at_max_shards, in_cooldown."""
        return self._create(count, ShardState.PROVISIONING, now)

    def scale_up_provisioning_force(self, count: int, now: float) -> list[int]:
        """The same whatever the cooldown, which begins again. Raises ScalingError: at_max_shards."""
        return self._create(count, ShardState.PROVISIONING, now, force=True)

    def _create(self, count: int, state: ShardState, now: float, force: bool = False) -> list[int]:
        if count < 0:
            raise ValueError(f"how many shards to add must not be negative, and is {count}")
        if not count:
            return []
        if not force:
            self._check_cooldown(now)
        there = [
            shard
            for shard, found in self._shards.items()
            if found.state not in (ShardState.DRAINING, ShardState.STOPPED) and found.replaces is None
        ]  # a failed one may come back; a successor on its way will not be one more
        if len(there) + count > self.policy.max_shards:
            raise ScalingError(
                ScalingErrorKind.AT_MAX_SHARDS,
                f"{len(there)} shards and {count} more would exceed max_shards="
                f"{self.policy.max_shards}; none was added",
            )
        if len(self._shards) + count > self.room:
            raise ScalingError(
                ScalingErrorKind.AT_MAX_SHARDS,
                f"of {self.room} places {len(self._shards)} are taken, some by shards that are draining or not "
                f"removed yet; {count} more do not fit, and none was added",
            )
        if not force:
            self._note_return(now)
        ids: list[int] = []
        for shard in range(self.room):
            if shard not in self._shards:
                ids.append(shard)
                if len(ids) == count:
                    break
        for shard in ids:
            self._shards[shard] = _Shard(state, now)
            self._window.open(shard, now)
        self._shards = dict(sorted(self._shards.items()))
        self._begin_cooldown(now)
        self._note_need(len(there) + count, now)
        if state is ShardState.ACTIVE:
            self._tell(self.on_created, ids)
        return ids

    def activate(self, shard: int, now: float) -> bool:
        """Its worker is ready. False: it was active already.

        Raises ScalingError: unknown_shard; wrong_state when it drains or has stopped; at_max_shards when the policy has
        come to allow fewer since.
        """
        found = self._known(shard)
        if found.state is ShardState.ACTIVE:
            return False
        self._expect(shard, found, ShardState.PROVISIONING)
        active = self.active_shard_count()
        if active >= self.policy.max_shards:
            raise ScalingError(
                ScalingErrorKind.AT_MAX_SHARDS,
                f"shard {shard} is ready, but {active} are active and max_shards={self.policy.max_shards}",
            )
        self._enter(found, ShardState.ACTIVE, now)
        self._window.open(shard, now)
        self._tell(self.on_created, [shard])
        return True

    def abandon(self, shard: int, now: float) -> None:
        """Gives up on a shard whose worker cannot start: provisioning to stopped. Without it, one that never gets ready
        would count as capacity on its way for ever. [net-mesh: none; SHARD_CREATION_FAILED is what to raise or report]

        Raises ScalingError: unknown_shard, wrong_state.
        """
        found = self._known(shard)
        self._expect(shard, found, ShardState.PROVISIONING)
        self._enter(found, ShardState.STOPPED, now)

    def announce(self) -> None:
        """Tells of the shards that there were from the start."""
        self._tell(self.on_created, self.active_shard_ids())

    # ---- failures ----------------------------------------------------------------------------------------------------

    def fail(self, shard: int, now: float) -> bool:
        """Its worker is away for long. False: that is known. Raises ScalingError: unknown_shard; wrong_state."""
        found = self._known(shard)
        if found.state is ShardState.FAILED:
            return False
        if found.state not in (ShardState.ACTIVE, ShardState.DRAINING):
            self._expect(shard, found, ShardState.ACTIVE)
        found.before = found.state
        self._enter(found, ShardState.FAILED, now)
        return True

    def recover(self, shard: int, now: float) -> bool:
        """It has a worker again, and is what it was. False: it had not failed. Raises ScalingError: unknown_shard."""
        found = self._known(shard)
        if found.state is not ShardState.FAILED or found.before is None:
            return False
        self._enter(found, found.before, now)
        found.before = None
        self._window.open(shard, now)
        return True

    def drains(self, shard: int) -> bool:
        """Whether it is on its way out, failed on the way or not."""
        found = self._shards.get(shard)
        return found is not None and ShardState.DRAINING in (found.state, found.before)

    # ---- one for another ---------------------------------------------------------------------------------------------

    def replace(self, shard: int, now: float) -> int:
        """A shard that is to take the place of an active one, provisioning; its id. No limit of the policy is in the
        way: it will not be one more. [net-mesh: none]

        Raises ScalingError: unknown_shard, wrong_state, at_max_shards when there is no room for both.
        """
        self._expect(shard, self._known(shard), ShardState.ACTIVE)
        successor = next((each for each in range(self.room) if each not in self._shards), None)
        if successor is None:
            raise ScalingError(
                ScalingErrorKind.AT_MAX_SHARDS, f"shard {shard} cannot be replaced: all {self.room} places are taken"
            )
        self._shards[successor] = _Shard(ShardState.PROVISIONING, now, replaces=shard)
        self._window.open(successor, now)
        self._shards = dict(sorted(self._shards.items()))
        return successor

    def succeed(self, shard: int, successor: int, now: float) -> None:
        """The successor is ready: it is active, and the shard drains. One step, and no cooldown: their number stays.

        Raises ScalingError: unknown_shard, wrong_state.
        """
        old, new = self._known(shard), self._known(successor)
        self._expect(shard, old, ShardState.ACTIVE)
        self._expect(successor, new, ShardState.PROVISIONING)
        self._enter(new, ShardState.ACTIVE, now)
        new.replaces = None
        self._enter(old, ShardState.DRAINING, now)
        self._tell(self.on_created, [successor])

    # ---- fewer shards ------------------------------------------------------------------------------------------------

    def drain_specific(self, shard: int, now: float) -> bool:
        """Takes one shard out of service, whatever the cooldown, which begins again. False: it drains already.

        Raises ScalingError: unknown_shard, wrong_state, at_min_shards.
        """
        if self._known(shard).state is ShardState.DRAINING:
            return False
        self.drain_all([shard], now)
        return True

    def drain_all(self, shards: Collection[int], now: float) -> None:
        """Takes these out of service, all or none. Raises as `drain_specific`."""
        for shard in shards:
            self._expect(shard, self._known(shard), ShardState.ACTIVE)
        active = self.active_shard_count()
        if active - len(shards) < self.policy.min_shards:
            named = ", ".join(map(str, sorted(shards)))
            raise ScalingError(
                ScalingErrorKind.AT_MIN_SHARDS,
                f"shard{'s' * (len(shards) != 1)} {named} cannot drain: {active} are active and "
                f"min_shards={self.policy.min_shards}; add one first",
            )
        for shard in shards:
            self._enter(self._shards[shard], ShardState.DRAINING, now)
        if shards:
            self._begin_cooldown(now)

    def scale_down(self, count: int, now: float, first: Collection[int] = ()) -> list[int]:
        """Drains the shards that have least to do, as many as `min_shards` lets go; their ids, lowest first. Those in
        `first` before all others: they take no more anyway.

        Raises ScalingError: in_cooldown; at_min_shards when it lets none go.
        """
        if count < 0:
            raise ValueError(f"how many shards to drain must not be negative, and is {count}")
        if not count:
            return []
        self._check_cooldown(now)
        active = self.active_shard_ids()
        count = min(count, len(active) - self.policy.min_shards)
        if count <= 0:
            raise ScalingError(
                ScalingErrorKind.AT_MIN_SHARDS,
                f"{len(active)} shards are active and min_shards={self.policy.min_shards}; none was drained",
            )
        if self._went is not None and now - self._went > 2 * self.scale_down_delay:
            self._flaps = 1.0
        averages = self._window.averages(now)
        cheapest = sorted(
            active,
            key=lambda shard: (
                shard not in first,
                bool(averages.alone[shard]),
                averages.values[shard, BUSY],
                averages.values[shard, RATE],
                -shard,
            ),
        )[:count]
        for shard in cheapest:
            self._enter(self._shards[shard], ShardState.DRAINING, now)
        self._begin_cooldown(now)
        self._went = now
        return sorted(cheapest)

    @property
    def scale_down_delay(self) -> float:
        """The policy's, or a multiple of it while load comes back soon after its shards have gone."""
        return self.policy.scale_down_delay * self._flaps

    def _note_return(self, now: float) -> None:
        if self._went is not None and now - self._went <= 2 * self.scale_down_delay:
            self._flaps = min(MOST_FLAPS, self._flaps * FLAP)
            self._went = None

    def finalize_draining(
        self, in_flight: Mapping[int, int], now: float, slots: Mapping[int, int] | None = None
    ) -> list[int]:
        """Stops the draining shards that are done; their ids.

        in_flight: events accepted and not handled, per shard, as they are now. One that is not named goes on draining.
        slots: slots that a shard owns or that are on their way to it; not named is none.

        What has passed through a shard since its drain began does not matter, only what is there: a push that raced the
        drain delays it until it is handled, no longer. [net-mesh: the same name; one such push keeps a shard for ever]
        """
        done = []
        for shard in self.draining_shard_ids():
            found = self._shards[shard]
            if in_flight.get(shard) == 0 and not (slots or {}).get(shard) and now - found.since >= self.drain_grace:
                self._enter(found, ShardState.STOPPED, now)
                done.append(shard)
        self._tell(self.on_removed, done)
        return done

    def remove_specific_stopped_shard(self, shard: int) -> None:
        """Forgets it; the id may be used again. Raises ScalingError: unknown_shard, wrong_state."""
        self._expect(shard, self._known(shard), ShardState.STOPPED)
        del self._shards[shard]

    def remove_stopped_shards(self) -> list[int]:
        """Forgets all that have stopped; their ids."""
        stopped = self._ids(ShardState.STOPPED)
        for shard in stopped:
            del self._shards[shard]
        return stopped

    # ---- load and decision -------------------------------------------------------------------------------------------

    def collect_metrics(self, samples: Iterable[ShardSample], now: float, without: Collection[int] = ()) -> None:
        """Takes in one sample per shard, each for the time since its last. Samples of unknown shards are passed over.

        without: shards whose figures say nothing of their load at this moment, those of the last samples included.
        """
        self._without = frozenset(without)
        self._window.seconds = self.policy.metrics_window
        self._window.add((each for each in samples if each[0] in self._shards), now)
        if self._watched_since is None:
            self._watched_since = now
        self._collected = now
        self._note_need(needed(self.policy, self._load(now)), now)
        self._lottery = None

    def metrics(self, now: float) -> dict[int, ShardSample]:
        """The average of each shard over the window; those without samples are left out. Reading changes nothing."""
        averages = self._window.averages(now)
        return {
            shard: ShardSample._make([shard, *averages.values[shard].tolist(), bool(averages.alone[shard])])
            for shard in self.all_shard_ids()
            if averages.covered[shard] > 0
        }

    def evaluate_scaling(self, now: float, moves: int | None = None) -> ScalingDecision:
        """What to do, and why. Changes nothing: carrying it out is `scale_up_provisioning` or `scale_down` with its
        count.

        moves: how many slots the strategy would still move or is moving (0: moving cannot help); None if not known.
        """
        policy = self.policy
        since = now - self.scale_down_delay
        load = self._load(now)
        most = next((need for until, need in self._needs if until > since), 0)
        most = load.active + load.provisioning if self._need is None else max(most, self._need)
        left = -1.0 if self._changed is None else self._changed + policy.cooldown - now
        watched = 0.0 if self._watched_since is None else now - self._watched_since
        return decide(
            policy,
            load,
            now=now,
            most_needed=most,
            watched=watched,
            cooldown_left=left,
            moves=moves,
            delay=self.scale_down_delay,
        )

    def _load(self, now: float) -> Load:
        averages = self._window.averages(now)
        active = np.array(self.active_shard_ids(), int)
        voters = active[averages.covered[active] >= self._window.seconds / 2]
        if self._without:
            voters = voters[~np.isin(voters, list(self._without))]
        draining = np.array(self.draining_shard_ids(), int)
        return Load(
            len(active),
            len(self._ids(ShardState.PROVISIONING)),
            voters,
            averages.values[voters],
            averages.alone[voters],
            float(averages.values[draining, BUSY].sum()),
            len(self._ids(ShardState.FAILED)),
        )

    def _note_need(self, need: int, now: float) -> None:
        if self._need is not None:
            while self._needs and self._needs[-1][1] <= self._need:
                self._needs.pop()
            self._needs.append((now, self._need))
        self._need = need
        while self._needs and self._needs[0][0] <= now - self.policy.scale_down_delay * MOST_FLAPS:
            self._needs.popleft()

    # ---- keyless events ----------------------------------------------------------------------------------------------

    def weights(self) -> dict[int, float]:
        """The share of keyless events that each active shard should get, relative to the others: its spare capacity, as
        of the last `collect_metrics`.
        """
        values = self._window.averages(self._collected).values
        return {
            shard: max(LEAST_WEIGHT, 1.0 - float(min(1.0, max(values[shard, FILL], values[shard, BUSY]))))
            for shard in self.active_shard_ids()
        }

    def select_shard(self, hash64: int) -> int | None:
        """The shard for a keyless event, from any 64-bit number; None without an active shard.

        Two draws by weight; of the two the one that has clearly less to do, the first if they are about equal. Weights
        are continuous, so a small difference of load moves a small share of the events. [net-mesh: the same name; there
        all events go to the shards within 0.1 % of the emptiest. Two choices: Mitzenmacher, The Power of Two Choices in
        Randomized Load Balancing, 2001]
        """
        if self._lottery is None:
            weights = self.weights()
            self._lottery = list(weights), list(accumulate(weights.values())), [1.0 - each for each in weights.values()]
        ids, sums, loads = self._lottery
        if not ids:
            return None
        draw = _mixed(hash64)
        first, second = (
            min(bisect_right(sums, each / (1 << 64) * sums[-1]), len(ids) - 1) for each in (draw, _mixed(draw))
        )
        return ids[second if loads[second] < loads[first] - NEAR else first]

    # ---- rules -------------------------------------------------------------------------------------------------------

    def _known(self, shard: int) -> _Shard:
        if shard not in self._shards:
            raise ScalingError(
                ScalingErrorKind.UNKNOWN_SHARD, f"there is no shard {shard}; there are {sorted(self._shards)}"
            )
        return self._shards[shard]

    def _expect(self, shard: int, found: _Shard, state: ShardState) -> None:
        if found.state is not state:
            raise ScalingError(
                ScalingErrorKind.WRONG_STATE, f"shard {shard} is {found.state}, and must be {state} for this"
            )

    def _enter(self, found: _Shard, state: ShardState, now: float) -> None:
        found.state, found.since = state, now
        self._lottery = None

    def _check_cooldown(self, now: float) -> None:
        if self._changed is None:
            return
        if (left := self._changed + self.policy.cooldown - now) > 0:
            raise ScalingError(
                ScalingErrorKind.IN_COOLDOWN,
                f"the last change was {now - self._changed:.3g} s ago; the cooldown "
                f"of {self.policy.cooldown:g} s lasts {left:.3g} s more",
            )

    def _begin_cooldown(self, now: float) -> None:
        self._changed = now
        self._lottery = None

    @staticmethod
    def _tell(callback: Callable[[int], None] | None, shards: Iterable[int]) -> None:
        if callback is not None:
            for shard in shards:
                callback(shard)


def _mixed(word: int) -> int:
    """The finaliser of splitmix64 (Steele, Lea, Flood: Fast Splittable Pseudorandom Number Generators, 2014)."""
    word = (word + 0x9E3779B97F4A7C15) & _WORD
    word = ((word ^ (word >> 30)) * 0xBF58476D1CE4E5B9) & _WORD
    word = ((word ^ (word >> 27)) * 0x94D049BB133111EB) & _WORD
    return word ^ (word >> 31)
