"""The control program of an engine: how many shards, which slots where, and each handoff from its first word to its
last.

Facts, samples and wishes go in; what follows is carried out on the words of shared memory at once (carrier.py). It has
no clock and no process, so the simulation in tests/policy runs this very class on a memory of arrays.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from shardmem.errors import ConfigError
from shardmem.policy import (
    NOBODY,
    Allocate,
    BeginHandoff,
    Deadlines,
    DecisionHistory,
    DecisionKind,
    DirectlyAsked,
    Finished,
    HandoffCoordinator,
    HandoffState,
    Late,
    LongBatches,
    Pinned,
    RebalanceRunner,
    ScalingDecision,
    ScalingError,
    ScalingErrorKind,
    ScalingPolicy,
    ShardCoordinator,
    ShardMapper,
    ShardSample,
    ShardState,
    Strategy,
    Wishes,
)
from shardmem.slot_ranges import parse_slots, slot_ranges
from shardmem.supervisor.carrier import Carrier, HandoffWords

REST = 20.0  # seconds that a slot stays where the strategy has put it
ALLOWANCE = 0.12  # of all slots the strategy may move in a minute, once there is a balance
LITTLE = 0.05  # of one worker's time, all shards together: what is less than that is noise, and no load to go by
COMPLAINTS, LINE_CHARS, PINS_CHARS = 4, 300, 4000  # what of it is told: the board has room for 16 kB


class ShardFact(NamedTuple):
    """What is known of a shard's worker at this moment.

    alive: it lives and is ready. failed: why it is away for long; None: it is not. in_hand: seconds that its batch
    takes so far. waits: why it handles nothing until what is downstream is back; None: it does not wait.
    """

    alive: bool = True
    failed: str | None = None
    in_hand: float = 0.0
    waits: str | None = None


class Planner:
    """mapper: shards and their lives. table: slots and their owners. handoffs: slots on their way. wishes: what is
    wanted.

    states: the shards that there are. automatic: slots follow the load by themselves; False: only wishes, pins and
    drains move them. room: ids of shards are below this.
    """

    def __init__(
        self,
        words: HandoffWords,
        policy: ScalingPolicy,
        strategy: Strategy,
        states: Mapping[int, str],
        *,
        now: float,
        room: int,
        automatic: bool = True,
        asked: DirectlyAsked | None = None,
        deadlines: Deadlines = Deadlines(),
        on_created: Callable[[int], None] | None = None,
        on_removed: Callable[[int], None] | None = None,
        on_moved: Callable[[Finished], None] | None = None,
        point: Callable[[str], None] = lambda name: None,
    ) -> None:
        self.mapper = ShardMapper(
            states, policy, now=now, room=room, drain_grace=0.0, on_created=on_created, on_removed=on_removed
        )
        owners = words.owners().astype(np.int64)
        owners[owners >= room] = NOBODY
        pins: dict[int, int] = {}
        if isinstance(strategy, Pinned):  # its pins are pins like all others, which can be taken back
            pins, strategy = dict(strategy.mapping), strategy.fallback
        takers = [shard for shard, state in states.items() if state != ShardState.DRAINING]
        self.table = ShardCoordinator(len(owners), takers, strategy, owners=owners.tolist(), asked=asked)
        self.table.pins.update({slot: shard for slot, shard in pins.items() if 0 <= slot < len(owners)})
        for shard, state in states.items():
            if state == ShardState.DRAINING:
                self.table.add_shard(shard)
                self.table.drain_shard(shard)
        self.wishes = Wishes(following=policy.auto_scale)
        self.handoffs = HandoffCoordinator(self.table, deadlines)
        self.runner = RebalanceRunner(self.table, self.handoffs, wishes=self.wishes, rest=REST, allowance=ALLOWANCE)
        self.carrier = Carrier(words, self.handoffs, point)
        self.history = DecisionHistory()
        self.automatic = automatic
        self._words, self._on_moved = words, on_moved
        self._facts: dict[int, ShardFact] = {}
        self._long = LongBatches()
        self._rates: np.ndarray | None = None
        self._is_loaded = False
        self.stopped_seats: Sequence[int] = ()  # producers in the middle of a push, for long

    def begin(self, now: float) -> None:
        """The first workers are ready: what they did while they booted says nothing. Takes up handoffs that were
        left."""
        self.mapper.begin(now)
        self._done(self.carrier.resume(now))

    def reconfigure(self, policy: ScalingPolicy) -> None:
        self.mapper.policy = policy

    # ---- facts -------------------------------------------------------------------------------------------------------

    def learn(self, facts: Mapping[int, ShardFact], now: float) -> None:
        """What is known of each shard now. What has changed since the last time ends, stops or goes on with what needs
        it."""
        actions = []
        for shard, fact in facts.items():
            before, state = self._facts.get(shard, ShardFact()), self.mapper.shard_state(shard)
            if fact.failed is not None:
                if before.failed is None and state in (ShardState.ACTIVE, ShardState.DRAINING):
                    self.mapper.fail(shard, now)
                    self.handoffs.failed(shard, fact.failed, now)
            elif not fact.alive and (before.alive or before.failed is not None):
                self.mapper.recover(shard, now) if state is ShardState.FAILED else None
                actions += self.handoffs.source_died(shard, now) + self.handoffs.target_died(shard, now)
            elif fact.alive and (not before.alive or before.failed is not None):
                self.mapper.recover(shard, now) if state is ShardState.FAILED else None
                actions += self.handoffs.respawned(shard, now)
        self._facts = dict(facts)
        self.handoffs.waiting = self.waiting()
        self._long.look({shard: fact.in_hand for shard, fact in facts.items() if fact.alive}, now)
        self._done(self.carrier.carry(actions, now))

    def measurable(self, now: float) -> list[int]:
        """Active shards whose figures are those of load: not dead, failed, waiting, or in the middle of one long batch.
        The lanes of one that waits are full because its sink is away: that is no need for more shards."""
        out = self._long.unmeasurable(now).union(self.waiting())
        return [
            shard
            for shard in self.mapper.active_shard_ids() + self.mapper.draining_shard_ids()
            if shard not in out and self._facts.get(shard, ShardFact()).alive
        ]

    def blocked(self) -> set[int]:
        """Shards in the middle of one long batch."""
        return self._long.blocked()

    def waiting(self) -> dict[int, str]:
        """Shards that handle nothing until what is downstream is back, and why."""
        return {shard: fact.waits for shard, fact in self._facts.items() if fact.waits is not None}

    def _out_of_bounds(self, now: float) -> tuple[set[int], bool]:
        """Shards that can neither give nor take at this moment, and whether any of them will without being asked."""
        failed = {shard for shard, fact in self._facts.items() if fact.failed is not None}
        down = {shard for shard, fact in self._facts.items() if not fact.alive and shard not in failed}
        joining = {
            shard
            for shard in self.table.shards
            if self.mapper.shard_state(shard) not in (ShardState.ACTIVE, ShardState.DRAINING)
        }
        # what leaves one that waits would wait at its new owner: it is evened out when its rows can be handled
        soon = down | joining | self._long.blocked() | set(self.waiting())
        if not self.wishes.eager:  # what has piled up behind a long batch is not in any figure: such a shard looks idle
            soon |= self._long.unmeasurable(now)
        return failed | soon, bool(soon)

    # ---- one step ----------------------------------------------------------------------------------------------------

    def tick(self, samples: Collection[ShardSample], rates: np.ndarray | None, now: float) -> ScalingDecision:
        """One look at the load: moves what is to be moved, and says how many shards there should be. rates: load by
        slot."""
        alone = {each.shard for each in self.table.hot_slots() if each.alone}
        unmeasured = set(self.mapper.active_shard_ids()).difference(self.measurable(now))
        self.mapper.collect_metrics([each._replace(alone=each.shard in alone) for each in samples], now, unmeasured)
        self._rates, load = rates, 0.0 if rates is None else float(rates.sum())
        self._is_loaded = load >= (LITTLE / 2 if self._is_loaded else LITTLE)
        self.stopped_seats = self.carrier.stopped_seats(now)
        self.advance(now, is_tick=True)
        decision = self.mapper.evaluate_scaling(now, moves=self.runner.moves if self.automatic else 0)
        if not self.wishes.following and decision.kind is not DecisionKind.NONE:
            count = f" {decision.count}" if decision.count else ""
            decision = decision.against(
                "manual", f"the number of shards was set by hand; otherwise {decision.kind}{count}: {decision.reason}"
            )
        self.history.note(decision)
        return decision

    def advance(self, now: float, *, is_tick: bool = False) -> None:
        """What handoffs have come to, and what can be begun now. Called with every tick and every piece of news. What
        the strategy thinks of slots that only orders move is asked at a tick, for those who look: it takes as long as
        all else of an order.
        """
        self._done(self.carrier.look(now))
        hold = not self.automatic and not self.wishes.eager
        was, self.wishes.suspended = self.wishes.suspended, self.wishes.suspended or hold
        try:
            without, later = self._out_of_bounds(now)
            planning = is_tick or self.runner.needs_plan
            busy = {shard: sample.busy for shard, sample in self.mapper.metrics(now).items()} if planning else {}
            actions = self.runner.step(
                now,
                rates=self._load(busy, now) if planning else None,
                busy=busy if any(busy.values()) else None,
                without=without,
                later=later,
                stopped_seats=self.stopped_seats,
                planning=planning,
            )
        finally:
            self.wishes.suspended = was
        for action in actions:
            if isinstance(action, Allocate):
                for slot in action.slots:
                    self._words.set_slot(slot, action.shard)
                    self.table.allocate(slot, action.shard)
            elif isinstance(action, BeginHandoff):
                self._done(self.carrier.begin(action.slots, action.source, action.target, now))

    def _load(self, busy: Mapping[int, float], now: float) -> np.ndarray | None:
        """By slot, for the strategy; None when there is too little to go by, and then slots are spread by number.

        Evening out goes by what is there at the moment too: who asks for it while nothing comes wants slots even.
        """
        if not self._is_loaded or self.wishes.eager and self._is_quiet(busy, now):
            return None
        return self._rates

    def _is_quiet(self, busy: Mapping[int, float], now: float) -> bool:
        """Next to nothing is done at the moment, and all active shards are known to be so."""
        return sum(busy.values()) < LITTLE and set(self.mapper.active_shard_ids()).issubset(self.measurable(now))

    def finish(self, now: float) -> None:
        """What handoffs have come to, and none begins."""
        self._done(self.carrier.look(now))

    def unreachable(self) -> set[int]:
        """Failed shards, and those to which a handoff from one that has failed is under way."""
        failed = {shard for shard, fact in self._facts.items() if fact.failed is not None}
        return failed | {each.target for each in self.table.in_motion() if each.source in failed}

    def progress(self, now: float) -> None:
        """What handoffs have come to. Cheaper than `advance`, which asks the strategy too."""
        before = self.handoffs.slots_in_flight()
        self._done(self.carrier.look(now))
        if self.handoffs.slots_in_flight() < before and self._has_more():
            self.advance(now)

    def _has_more(self) -> bool:
        return bool(self.wishes.moves or self.wishes.succession or self.wishes.eager or self.table.draining)

    def _done(self, finished: list[Finished]) -> None:
        if self._on_moved is not None:
            for each in finished:
                self._on_moved(each)

    # ---- shards ------------------------------------------------------------------------------------------------------

    def joined(self, shard: int, now: float) -> None:
        """Its worker is ready: it takes slots."""
        self.mapper.activate(shard, now)
        self.table.add_shard(shard)

    def drain(self, shards: Collection[int], now: float) -> None:
        """All or none. Raises ScalingError, when nobody would take their slots too."""
        if shards and not self.table.open_shards.difference(shards):
            raise ScalingError(
                ScalingErrorKind.WRONG_STATE,
                f"nobody would take the slots of {'shards' if len(shards) > 1 else 'shard'} "
                f"{', '.join(map(str, sorted(shards)))}: all others are cordoned; uncordon one first",
            )
        self.mapper.drain_all(shards, now)
        for shard in shards:
            self.drained(shard)

    def drained(self, shard: int) -> None:
        """The mapper has it draining: its slots go, and none comes."""
        self.table.drain_shard(shard)
        self.wishes.drain(shard)

    def abandon(self, shard: int, now: float) -> None:
        """It never got ready, and nothing was sent to it. Raises ScalingError: wrong_state."""
        self.mapper.abandon(shard, now)
        self.mapper.remove_specific_stopped_shard(shard)
        self.left(shard)

    def left(self, shard: int) -> None:
        """It is gone."""
        if shard in self.table.draining or shard in self.table.shards:
            self.table.remove_shard(shard)
        self.wishes.forget_shard(shard)
        self.carrier.forget(shard)
        self._facts.pop(shard, None)
        self._long.forget([shard])

    def succeed(self, shard: int, successor: int, now: float) -> None:
        """The successor is ready: it takes every slot of the shard, which drains."""
        self.mapper.succeed(shard, successor, now)
        self.table.succeed(shard, successor)
        self.wishes.succeed(shard, successor)

    @property
    def is_rerouting(self) -> bool:
        """Whether a handoff waits for pushes that are in progress."""
        return any(each.state is HandoffState.REROUTING for each in self.handoffs.under_way())

    @property
    def is_at_rest(self) -> bool:
        """Nothing moves or would, every worker is as it should be and without a batch."""
        return not (
            self.runner.moves
            or self._has_more()
            or self.stopped_seats
            or self.table.undecided is not None
            or any(not fact.alive or fact.failed or fact.in_hand or fact.waits for fact in self._facts.values())
        )

    # ---- what is asked -----------------------------------------------------------------------------------------------

    def waits(self, now: float, slots: Collection[int] | None = None, shards: Collection[int] = ()) -> list[Late]:
        """Handoffs under way that concern these slots or shards (neither: all), and whom each waits for."""
        found = self.handoffs.waits(now, slots)
        return [each for each in found if not shards or each.source in shards or each.target in shards]

    def describe(self, now: float) -> dict[str, Any]:
        """For status: the policy's state, its last decisions, wishes, and slots too hot for any shard."""
        return {
            **self.wishes.to_json(),
            "wished": _short(_by_shard(self.wishes.moves)),
            "elastic": self.mapper.policy.auto_scale,
            "cordoned": sorted(self.table.cordoned),
            "pins": _short(self.pins()),
            "pins_are_all": _room_of(self.pins()) <= PINS_CHARS,
            "moves": {
                "automatic": self.automatic,
                "suspended": self.wishes.suspended,
                "planned": self.runner.planned,
                "wished": len(self.wishes.moves),
                "held_back": self.runner.held_back or self._why_not_by_themselves(),
                "complaints": [_line(text) for text in self.table.all_complaints[:COMPLAINTS]],
            },
            "decisions": [
                {
                    "kind": str(decision.kind),
                    "count": decision.count,
                    "cause": decision.cause,
                    "reason": decision.reason,
                    "age_s": round(now - decision.at, 3),
                    "since_s": round(now - since, 3),
                    "times": times,
                    "advice": str(decision.advice.kind) if decision.advice else None,
                }
                for decision, since, times in self.history
            ][-16:],
            "hot_slots": [
                {"slot": each.slot, "shard": each.shard, "share": round(each.share, 4), "alone": each.alone}
                for each in self.table.hot_slots()
            ],
        }

    def pins(self) -> list[dict[str, Any]]:
        """The pinned slots of each shard, as text."""
        return _by_shard(self.table.pins)

    def pin(self, slots: Collection[int], shard: int | None) -> None:
        """None: they are pinned no more. Raises ConfigError: there is no room to keep so many ranges of slots."""
        pins = {slot: pinned for slot, pinned in self.table.pins.items() if slot not in set(slots)}
        if shard is not None:
            pins.update(dict.fromkeys(slots, shard))
        if (room := _room_of(_by_shard(pins))) > PINS_CHARS:
            raise ConfigError(
                f"{len(pins):,} slots would be pinned in so many separate ranges that these take {room:,} characters, "
                f"and there is room for {PINS_CHARS:,}: pin whole ranges, such as 0-99"
            )
        self.table.pins = pins

    def _why_not_by_themselves(self) -> str:
        if not self.automatic:
            return "the number of shards is fixed, and then slots move only when that is asked for"
        return "moves are suspended by hand" if self.wishes.suspended else ""

    def recall(self, told: Mapping[str, Any]) -> None:
        """What an earlier supervisor of the same run had been told by hand stands."""
        self.wishes.recall(told)
        for shard in told.get("cordoned", ()):
            if shard in self.table.shards:
                self.table.cordon(shard)
        if told.get("pins_are_all"):  # those of the strategy too, without what was unpinned
            self.table.pins.clear()
        for each in told.get("pins", ()):
            self.table.pins.update(self._recalled(each))
        for each in told.get("wished", ()):
            if each["shard"] in self.table.shards:
                self.wishes.moves.update(self._recalled(each))
        for old, new in told.get("succession", ()):
            if old in self.table.draining and new in self.table.shards:
                self.wishes.succession[old] = new

    def _recalled(self, each: Mapping[str, Any]) -> dict[int, int]:
        with contextlib.suppress(ValueError, ConfigError):
            return dict.fromkeys(parse_slots(each["slots"], self.table.slots), each["shard"])
        return {}  # damaged


def _line(text: str) -> str:
    """What a strategy of the user's own says may be of any length, and on many lines."""
    line = " ".join(text.split())
    return line if len(line) <= LINE_CHARS else f"{line[: LINE_CHARS - 3]}..."


def _by_shard(shard_of_slot: Mapping[int, int]) -> list[dict[str, Any]]:
    found: dict[int, list[int]] = {}
    for slot, shard in shard_of_slot.items():
        found.setdefault(shard, []).append(slot)
    return [{"shard": shard, "slots": slot_ranges(slots)} for shard, slots in sorted(found.items())]


def _room_of(entries: list[dict[str, Any]]) -> int:
    return sum(len(each["slots"]) + 24 for each in entries)


def _short(entries: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """As many as there is room for on the board: without one nothing at all would be known."""
    room, found = PINS_CHARS, []
    for each in entries:
        room -= _room_of([each])
        if room >= 0:
            found.append(each)
    return found
