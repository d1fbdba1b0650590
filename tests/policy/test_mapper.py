"""The lives of shards, and where keyless events go."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from shardmem.policy import ScalingError, ScalingPolicy, ShardMapper, ShardSample, ShardState

from .policy_tools import loads, policy, watch

PROVISIONING, ACTIVE, DRAINING, FAILED, STOPPED = ShardState


def refused(kind, call, *args) -> str:
    with pytest.raises(ScalingError) as caught:
        call(*args)
    assert kind == caught.value.kind
    return str(caught.value)


def test_a_shard_lives_from_provisioning_to_stopped_and_its_callbacks_are_called_once():
    told = []
    mapper = ShardMapper(
        1,
        policy(),
        on_created=lambda shard: told.append(("created", shard)),
        on_removed=lambda shard: told.append(("removed", shard)),
    )

    assert [1] == mapper.scale_up_provisioning(1, 10.0) and PROVISIONING is mapper.shard_state(1)
    assert ([0], [0, 1], 1, 2) == (
        mapper.active_shard_ids(),
        mapper.all_shard_ids(),
        mapper.active_shard_count(),
        mapper.total_shard_count(),
    )
    assert not told
    assert mapper.activate(1, 11.0) and not mapper.activate(1, 11.0) and ACTIVE is mapper.shard_state(1)
    assert mapper.drain_specific(1, 12.0) and not mapper.drain_specific(1, 12.0) and DRAINING is mapper.shard_state(1)
    assert [] == mapper.finalize_draining({1: 0}, 12.05), "a push may have chosen it just before"
    assert [] == mapper.finalize_draining({1: 0}, 13.0, slots={1: 3})
    assert [1] == mapper.finalize_draining({1: 0, 0: 0}, 13.0, slots={0: 64}) and STOPPED is mapper.shard_state(1)
    assert [0] == mapper.all_shard_ids()
    mapper.remove_specific_stopped_shard(1)
    assert None is mapper.shard_state(1)
    assert [("created", 1), ("removed", 1)] == told


def test_what_has_stopped_is_no_capacity_and_in_nobodys_way():
    """Found by TestLives, which took longer to make the case small than a test may take."""
    mapper = ShardMapper(3, policy(max_shards=6), room=9)
    assert [3, 4, 5] == mapper.scale_up_provisioning(3, 0.0)
    for shard in (3, 4, 5):
        mapper.abandon(shard, 0.0)
    assert [6, 7, 8] == mapper.scale_up_provisioning_force(3, 0.0)


def test_scale_up_makes_them_active_at_once_and_tells():
    told = []
    mapper = ShardMapper(1, policy(), on_created=told.append)
    assert [1, 2, 3] == mapper.scale_up(3, 0.0) == told
    assert [] == mapper.scale_up(0, 0.0)


def test_a_callback_sees_the_change_complete():
    mapper = ShardMapper(1, policy(), on_created=lambda shard: seen.append(mapper.active_shard_ids()))
    seen = []
    mapper.scale_up(2, 0.0)
    assert [[0, 1, 2], [0, 1, 2]] == seen


def test_refusals_change_nothing_and_say_the_limit():
    mapper = ShardMapper(2, policy(max_shards=3, min_shards=2, cooldown=5.0))
    assert "max_shards=3" in refused("at_max_shards", mapper.scale_up_provisioning, 2, 0.0)
    assert "min_shards=2" in refused("at_min_shards", mapper.scale_down, 1, 0.0)
    assert "add one first" in refused("at_min_shards", mapper.drain_specific, 0, 0.0)
    assert [2] == mapper.scale_up_provisioning(1, 0.0), "a refusal begins no cooldown"
    assert "lasts 4 s more" in refused("in_cooldown", mapper.scale_up_provisioning, 1, 1.0)
    refused("in_cooldown", mapper.scale_down, 1, 1.0)
    refused("at_max_shards", mapper.scale_up_provisioning_force, 1, 1.0)
    for call in (mapper.activate, mapper.abandon, mapper.drain_specific):
        assert "there is no shard 9" in refused("unknown_shard", call, 9, 1.0)
    refused("unknown_shard", mapper.remove_specific_stopped_shard, 9)
    refused("wrong_state", mapper.drain_specific, 2, 1.0)
    refused("wrong_state", mapper.abandon, 0, 1.0)
    refused("wrong_state", mapper.remove_specific_stopped_shard, 0)
    for call in (mapper.scale_up, mapper.scale_down):
        with pytest.raises(ValueError, match="must not be negative"):
            call(-1, 100.0)
    assert [0, 1] == mapper.active_shard_ids() and [0, 1, 2] == mapper.all_shard_ids()


def test_force_ignores_the_cooldown_and_begins_it_again():
    mapper = ShardMapper(1, policy(cooldown=5.0))
    mapper.scale_up(1, 0.0)
    assert [2] == mapper.scale_up_provisioning_force(1, 4.0)
    assert "lasts 3 s more" in refused("in_cooldown", mapper.scale_up, 1, 6.0)


def test_a_shard_that_cannot_start_frees_its_place():
    mapper = ShardMapper(1, policy(max_shards=2, cooldown=0.1))
    mapper.scale_up_provisioning(1, 0.0)
    mapper.abandon(1, 1.0)
    refused("wrong_state", mapper.activate, 1, 1.0)
    assert [1] == mapper.remove_stopped_shards() and [1] == mapper.scale_up(1, 1.0)


def test_a_policy_that_allows_fewer_stops_an_activation():
    mapper = ShardMapper(2, policy())
    mapper.scale_up_provisioning(1, 0.0)
    mapper.policy = policy(max_shards=2)
    refused("at_max_shards", mapper.activate, 2, 1.0)


def test_places_are_limited_draining_ones_take_one_and_the_lowest_free_is_used():
    mapper = ShardMapper(3, policy(max_shards=4, cooldown=0.1), room=5)
    mapper.drain_specific(1, 0.0)
    assert [3, 4] == mapper.scale_up_provisioning(2, 1.0)
    mapper.drain_specific(0, 1.0)
    assert "of 5 places 5 are taken" in refused("at_max_shards", mapper.scale_up, 1, 2.0)
    assert [0, 1] == mapper.finalize_draining({0: 0, 1: 0}, 2.0) == mapper.remove_stopped_shards()
    assert [0] == mapper.scale_up(1, 2.0)


def test_states_found_by_a_successor_are_taken_over():
    mapper = ShardMapper({4: "active", 2: "draining", 7: "provisioning"}, policy(), now=100.0)
    assert ([4], [2], [2, 4, 7]) == (mapper.active_shard_ids(), mapper.draining_shard_ids(), mapper.all_shard_ids())
    assert [2] == mapper.finalize_draining({2: 0}, 101.0) and mapper.activate(7, 101.0)
    with pytest.raises(ScalingError, match="do not fit into 4 places"):
        ShardMapper({4: "active"}, policy(), room=4)


def test_scale_down_takes_those_with_least_to_do_and_no_more_than_allowed():
    mapper = ShardMapper(4, policy(min_shards=2))
    now = watch(mapper, 0, 2, loads(0.5, 0.1, 0.9, 0.2))
    assert [1, 3] == mapper.scale_down(3, now)
    mapper = ShardMapper(4, policy())
    assert [2, 3] == mapper.scale_down(2, 0.0), "among equals the highest, so that ids stay dense"


# ---- keyless events --------------------------------------------------------------------------------------------------


def share(mapper, draws=8000):
    counts = np.zeros(20)
    for draw in range(draws):
        counts[mapper.select_shard(draw)] += 1
    return counts / draws


def test_keyless_events_go_to_active_shards_only():
    mapper = ShardMapper({0: "active", 1: "draining", 2: "provisioning"}, policy())
    assert {0} == {mapper.select_shard(draw) for draw in range(100)}
    mapper.activate(2, 1.0)
    assert {0, 2} == {mapper.select_shard(draw) for draw in range(100)}
    assert None is ShardMapper({0: "draining"}, policy()).select_shard(5)


def test_equal_shards_get_equal_shares_and_a_full_one_still_gets_some():
    mapper = ShardMapper(4, policy())
    assert np.allclose(0.25, share(mapper)[:4], atol=0.02)
    watch(mapper, 0, 2, loads({"fill_ratio": 1.0}, 0.1, 0.1, 0.1))
    full, *others = share(mapper)[:4]
    assert 0 < full < 0.02 and np.allclose(others, 1 / 3, atol=0.03)


def test_the_share_of_a_shard_changes_by_little_when_its_load_does():
    before = None
    for fill in np.linspace(0, 1, 41):
        mapper = ShardMapper(4, policy())
        watch(mapper, 0, 2, loads({"fill_ratio": float(fill)}, *[{"fill_ratio": 0.5}] * 3))
        now = share(mapper, 2000)[0]
        if (
            before is not None and abs(fill - 0.5) > 0.1
        ):  # where it passes the others, two choices tip within a few percent
            assert abs(now - before) < 0.05
        before = now


def test_the_same_hash_gives_the_same_shard():
    mappers = [ShardMapper(5, policy()) for _ in range(2)]
    for mapper in mappers:
        watch(mapper, 0, 2, loads(0.1, 0.4, 0.2, 0.9, 0.3))
    hashes = [0, 1, 2**64 - 1, 2**63, *range(1000, 1100)]
    assert [mappers[0].select_shard(each) for each in hashes] == [mappers[1].select_shard(each) for each in hashes]


# ---- any order of anything -------------------------------------------------------------------------------------------


class Lives(RuleBasedStateMachine):
    """A plain model of who is in which state, and beside the mapper a twin that is never read."""

    @initialize(first=st.integers(1, 4), spread=st.integers(0, 5), low=st.integers(1, 2), extra=st.integers(0, 3))
    def start(self, first, spread, low, extra):
        self.policy = policy(min_shards=low, max_shards=max(first, low) + spread, scale_down_delay=3.0)
        self.room = self.policy.max_shards + extra
        self.told = {"created": [], "removed": []}
        self.mapper = ShardMapper(
            max(first, low),
            self.policy,
            room=self.room,
            on_created=self.told["created"].append,
            on_removed=self.told["removed"].append,
        )
        self.twin = ShardMapper(max(first, low), self.policy, room=self.room)
        self.model = dict.fromkeys(range(max(first, low)), ACTIVE)
        self.created, self.removed, self.changed, self.now = [], [], -99.0, 0.0
        self.drained_at = {}

    def both(self, method, *args):
        """The answer, or the kind of refusal; the twin must agree."""
        answers = []
        for mapper in (self.mapper, self.twin):
            try:
                answers.append(getattr(mapper, method)(*args))
            except ScalingError as error:
                answers.append(str(error.kind))
        assert answers[0] == answers[1]
        return answers[0]

    def having(self, *states):
        return sorted(shard for shard, state in self.model.items() if state in states)

    @property
    def cooling(self):
        return self.changed + self.policy.cooldown > self.now

    @rule(step=st.sampled_from([0.05, 0.25, 1.0, 3.0]))
    def time_passes(self, step):
        self.now += step

    @rule(
        count=st.integers(0, 5),
        how=st.sampled_from(["scale_up", "scale_up_provisioning", "scale_up_provisioning_force"]),
    )
    def grow(self, count, how):
        answer = self.both(how, count, self.now)
        fits = (
            len(self.having(ACTIVE, PROVISIONING)) + count <= self.policy.max_shards
            and len(self.model) + count <= self.room
        )
        if count == 0:
            assert [] == answer
        elif self.cooling and how != "scale_up_provisioning_force":
            assert "in_cooldown" == answer
        elif not fits:
            assert "at_max_shards" == answer
        else:
            assert answer == [shard for shard in range(self.room) if shard not in self.model][:count]
            self.model.update(dict.fromkeys(answer, ACTIVE if how == "scale_up" else PROVISIONING))
            self.created += answer if how == "scale_up" else []
            self.changed = self.now

    @rule(shard=st.integers(0, 9))
    def activate(self, shard):
        state, answer = self.model.get(shard), self.both("activate", shard, self.now)
        assert answer == {None: "unknown_shard", ACTIVE: False, PROVISIONING: True}.get(state, "wrong_state")
        if answer is True:
            self.model[shard] = ACTIVE
            self.created.append(shard)

    @rule(shard=st.integers(0, 9))
    def abandon(self, shard):
        state, answer = self.model.get(shard), self.both("abandon", shard, self.now)
        assert answer == {None: "unknown_shard", PROVISIONING: None}.get(state, "wrong_state")
        if state is PROVISIONING:
            self.model[shard] = STOPPED  # nobody was told that it had been created

    @rule(shard=st.integers(0, 9))
    def drain(self, shard):
        state, answer = self.model.get(shard), self.both("drain_specific", shard, self.now)
        if state is ACTIVE:
            assert answer == ("at_min_shards" if len(self.having(ACTIVE)) <= self.policy.min_shards else True)
        else:
            assert answer == {None: "unknown_shard", DRAINING: False}.get(state, "wrong_state")
        if answer is True:
            self.model[shard], self.drained_at[shard], self.changed = DRAINING, self.now, self.now

    @rule(count=st.integers(0, 5))
    def shrink(self, count):
        active, answer = self.having(ACTIVE), self.both("scale_down", count, self.now)
        may = min(count, len(active) - self.policy.min_shards)
        if count == 0:
            assert [] == answer
        elif self.cooling:
            assert "in_cooldown" == answer
        elif may <= 0:
            assert "at_min_shards" == answer
        else:
            assert may == len(answer) and set(answer) <= set(active) and answer == sorted(answer)
            self.model.update(dict.fromkeys(answer, DRAINING))
            self.drained_at.update(dict.fromkeys(answer, self.now))
            self.changed = self.now

    @rule(
        left=st.lists(st.sampled_from([0, 0, 1, None]), min_size=10, max_size=10),
        owned=st.sets(st.integers(0, 9), max_size=3),
    )
    def finalize(self, left, owned):
        in_flight = {shard: events for shard, events in enumerate(left) if events is not None}
        answer = self.both("finalize_draining", in_flight, self.now, dict.fromkeys(owned, 1))
        assert answer == [
            shard
            for shard in self.having(DRAINING)
            if in_flight.get(shard) == 0 and shard not in owned and self.now - self.drained_at[shard] >= 0.1
        ]
        self.model.update(dict.fromkeys(answer, STOPPED))
        self.removed += answer

    @rule(shard=st.integers(0, 9))
    def remove_one(self, shard):
        state, answer = self.model.get(shard), self.both("remove_specific_stopped_shard", shard)
        assert answer == {None: "unknown_shard", STOPPED: None}.get(state, "wrong_state")
        if state is STOPPED:
            del self.model[shard]

    @rule()
    def remove_all(self):
        assert self.both("remove_stopped_shards") == self.having(STOPPED)
        self.model = {shard: state for shard, state in self.model.items() if state is not STOPPED}

    @rule(
        busy=st.lists(st.floats(0, 1), min_size=10, max_size=10),
        fill=st.lists(st.floats(0, 1), min_size=10, max_size=10),
        heard=st.sets(st.integers(0, 9), min_size=5),
    )
    def sample(self, busy, fill, heard):
        self.both(
            "collect_metrics",
            [
                ShardSample(shard, fill_ratio=fill[shard], busy=busy[shard], rate=busy[shard] * 1e4)
                for shard in sorted(heard)
            ],
            self.now,
        )

    @rule(hash64=st.integers(0, 2**64 - 1), ahead=st.floats(0, 2))
    def read(self, hash64, ahead):
        assert set(self.mapper.metrics(self.now + ahead)) <= set(self.mapper.all_shard_ids())
        self.mapper.evaluate_scaling(self.now + ahead)
        assert set(self.mapper.weights()) == set(self.having(ACTIVE))
        chosen = self.mapper.select_shard(hash64)
        assert chosen in self.having(ACTIVE) if self.having(ACTIVE) else chosen is None

    @rule(moves=st.sampled_from([None, 0, 5]))
    def follow_the_policy(self, moves):
        decision = self.both("evaluate_scaling", self.now, moves)
        assert (decision.count > 0) == (decision.kind in ("up", "down")) and decision.reason
        if decision.kind == "up":
            assert not self.cooling
            self.grow(decision.count, "scale_up_provisioning")
        elif decision.kind == "down":
            assert not self.cooling and not self.having(PROVISIONING)
            self.shrink(decision.count)
            assert len(self.having(ACTIVE)) >= self.policy.min_shards

    @invariant()
    def it_is_as_the_model_says(self):
        if not hasattr(self, "mapper"):
            return
        assert self.mapper.active_shard_ids() == self.having(ACTIVE)
        assert self.mapper.all_shard_ids() == self.having(ACTIVE, PROVISIONING, DRAINING)
        assert {shard: self.mapper.shard_state(shard) for shard in self.model} == self.model
        assert self.policy.min_shards <= self.mapper.active_shard_count()
        assert len(self.having(ACTIVE, PROVISIONING)) <= self.policy.max_shards
        assert all(shard < self.room for shard in self.model)
        assert self.told == {"created": self.created, "removed": self.removed}


TestLives = Lives.TestCase
TestLives.settings = settings(max_examples=100, stateful_step_count=50, deadline=None)


# ---- one for another -------------------------------------------------------------------------------------------------


def test_a_replacement_is_beyond_every_limit_and_the_number_of_shards_stays():
    mapper = ShardMapper(2, ScalingPolicy(min_shards=2, max_shards=2), room=3)
    assert 2 == mapper.replace(0, 1.0)
    mapper.succeed(0, 2, 2.0)
    assert [1, 2] == mapper.active_shard_ids() and [0] == mapper.draining_shard_ids()
    assert [0] == mapper.finalize_draining({0: 0}, 10.0)
    mapper.remove_specific_stopped_shard(0)
    assert 0 == mapper.replace(1, 11.0)
    mapper.abandon(0, 12.0)
    assert [1, 2] == mapper.active_shard_ids()


def test_a_replacement_without_room_or_of_a_shard_that_is_not_active_is_refused_and_changes_nothing():
    mapper = ShardMapper({0: "active", 1: "draining"}, ScalingPolicy(min_shards=1, max_shards=2), room=2)
    for shard in (0, 1, 7):
        with pytest.raises(ScalingError):
            mapper.replace(shard, 1.0)
    assert [0, 1] == mapper.all_shard_ids()
