"""The handoff: slots go from shard to shard, in opposite directions and back, while events flow and processes die.

Claimed, for the sizes below, every interleaving and a kill at any step:

* the rows of one producer and slot are handled in the order sent; none is lost, none is made up;
* without a kill of the worker each is handled once; with one, the row in hand may be handled once more;
* a slot has one owner: no row of it is handled by the target before the source has said that it is drained;
* state that travels with a slot has been through every row exactly once, kills included, if a worker has it again
  as of its last commit;
* no head passes a row that is not done, and all heads reach their tails in the end;
* never stuck: from every state all moves can still be finished and all rows handled, without any kill.

A supervisor that is killed is followed by one that takes up what the table says. Two ways: with all workers started
anew, and with the living ones adopted.
"""

from __future__ import annotations

import pytest

from .explorer import explore, find_violation
from .handoff_model import A, B, Commit, Model, S, T

AWAY = (((S, A, B),),)
AWAY_AND_BACK = (((S, A, B),), ((S, B, A),))
OPPOSITE = (((S, A, B), (T, B, A)),)
OPPOSITE_AND_BACK = (((S, A, B), (T, B, A)), ((S, B, A), (T, A, B)))

WORKERS, SUPERVISORS, PRODUCERS = (1, 0, 0), (0, 1, 0), (0, 0, 1)


def _explore(model, run=explore, limit=300_000):
    return run(
        model.initial(),
        model.steps,
        invariant=model.invariant,
        final=model.final,
        unhelpful=lambda step: step.startswith("kill"),
        limit=limit,
    )


# plans: by producer, its chunks; the rows of a chunk are routed in one pass
ONE = (((S,), (T,), (S,)),)
PAIRS = (((S, T), (S, T)),)
MIXED = (((S,), (T, S)),)
TWICE = (((S,), (S,)),)
THRICE = (((S,), (S,), (S,)),)
TWO = (((S,), (S,)), ((S,), (S,)))
CROSSED = (((S,), (T,)), ((T, S),))
BEHIND = (((S,), (S, T, S)),)

# rows that one lane holds are limited where that is said; else there is always room
RUNS = {
    "nobody dies": (PAIRS, OPPOSITE, {}, 17_000),
    "nobody dies, fine steps": (ONE, OPPOSITE, {"fine": True}, 23_000),
    "nobody dies, back again": (MIXED, OPPOSITE_AND_BACK, {}, 25_000),
    "nobody dies, state travels": (ONE, OPPOSITE, {"stateful": True}, 22_000),
    "two producers, back again": (TWO, AWAY_AND_BACK, {}, 40_000),
    "full lanes": (BEHIND, OPPOSITE, {"capacity": 1}, 10_000),
    "full lanes, back again": (BEHIND, AWAY_AND_BACK, {"capacity": 2}, 2_000),
    "full lanes, two producers, one dies": (
        (((S,), (S, S)), ((S,),)),
        AWAY,
        {"capacity": 1, "kills": PRODUCERS},
        7_000,
    ),
    "a worker dies": (MIXED, OPPOSITE, {"kills": WORKERS}, 30_000),
    "workers die twice, back again": (THRICE, AWAY_AND_BACK, {"kills": (2, 0, 0)}, 29_000),
    "a worker dies, two producers": ((((S,),), ((S,), (S,))), AWAY, {"kills": WORKERS}, 18_000),
    "a worker dies, state travels": (TWICE, AWAY_AND_BACK, {"kills": WORKERS, "stateful": True}, 7_000),
    "a producer dies": (PAIRS, OPPOSITE, {"kills": PRODUCERS}, 24_000),
    "the supervisor dies, workers begin anew": (TWICE, OPPOSITE, {"kills": SUPERVISORS}, 20_000),
    "the supervisor dies, workers are adopted": (MIXED, OPPOSITE, {"kills": SUPERVISORS, "adopts": True}, 60_000),
    "the supervisor dies, state travels": (TWICE, AWAY_AND_BACK, {"kills": SUPERVISORS, "stateful": True}, 22_000),
    "a worker and the supervisor die": (TWICE, AWAY, {"kills": (1, 1, 0), "adopts": True, "stateful": True}, 18_000),
    "a worker and two supervisors die": (TWICE, AWAY, {"kills": (1, 2, 0)}, 20_000),
    "anyone dies": (TWICE, AWAY, {"kills": (1, 1, 1)}, 20_000),
}


@pytest.mark.parametrize("run", RUNS)
def test_slots_move_and_nothing_is_lost_reordered_or_stuck(run):
    plans, rounds, options, at_least = RUNS[run]
    found = _explore(Model(plans, rounds, **options))
    print(f"handoff, {run}: {found}")
    assert found.states >= at_least, found


@pytest.mark.parametrize("kills", [(0, 0, 0), (0, 1, 0), (0, 0, 1)])
def test_without_a_kill_of_a_worker_no_row_may_be_handled_twice(kills):
    """`again` says which rows may; where it stays empty the model's own check allows none at all."""
    model = Model(TWICE, AWAY, kills=kills, adopts=True)

    def steps(state):
        for label, after in model.steps(state):
            assert not after.again
            yield label, after

    found = explore(
        model.initial(),
        steps,
        invariant=model.invariant,
        final=model.final,
        unhelpful=lambda step: step.startswith("kill"),
    )
    assert found.states >= 400, found


TRAVELS = {"stateful": True}
# fault: (kind of violation, plans, rounds, options)
FAULTS = {
    "no hold": ("invariant", TWICE, AWAY, {}),
    "slot word before hold": ("invariant", TWICE, AWAY, {}),
    "holds counted after the hold word": ("invariant", TWICE, AWAY, {}),
    "no wait for marks": ("invariant", TWICE, AWAY, {}),
    "draining is said before the marks have settled": ("invariant", TWICE, AWAY, {}),
    "slot word read before the mark": ("invariant", TWICE, AWAY, {}),
    "the mark of the dead is waited for": ("stuck", TWICE, AWAY, {"kills": PRODUCERS}),
    "no drain": ("invariant", TWICE, AWAY, {}),
    "drained by heads": ("stuck", (((S,), (T,), (S,), (T,)),), OPPOSITE, {}),
    "drained is said with a row in hand": ("invariant", TWICE, AWAY, {}),
    "head past a held row": ("invariant", MIXED, OPPOSITE, {}),
    "the head moves in a commit alone": ("stuck", PAIRS, AWAY, {}),
    "what was passed over is forgotten": ("invariant", TWICE, AWAY, {}),
    "orders do not make the worker look again": ("stuck", TWICE, AWAY, {}),
    "no orders when a hold falls": ("stuck", TWICE, AWAY, {}),
    "orders before what they are about": ("stuck", TWICE, AWAY, {}),
    "the drained of an earlier handoff is taken for this one's": ("invariant", THRICE, AWAY_AND_BACK, {}),
    "number of a handoff read after its hold": ("invariant", TWICE, OPPOSITE_AND_BACK, {}),
    "refused rows keep the shard they were routed to": ("invariant", (((S,), (S, S)),), AWAY, {"capacity": 1}),
    "slot word read anew for each row of a pass": ("invariant", (((S,), (S, S)),), AWAY, {"capacity": 1}),
    "hold falls before the state is restored": ("invariant", TWICE, AWAY, TRAVELS),
    "state dropped before it is stored": ("invariant", TWICE, AWAY, {**TRAVELS, "kills": WORKERS}),
    "restored is said before the state is there": ("invariant", TWICE, AWAY, {**TRAVELS, "kills": WORKERS}),
    "restored state is not kept until the next commit": ("invariant", TWICE, AWAY, {**TRAVELS, "kills": WORKERS}),
    "a successor does not set the slot word": ("invariant", THRICE, AWAY, {"kills": SUPERVISORS}),
    "a successor does not wait for marks": ("invariant", TWICE, AWAY, {"kills": SUPERVISORS}),
    "an adopting successor gives orders only where something moves": (
        "stuck",
        TWICE,
        AWAY,
        {"kills": SUPERVISORS, "adopts": True},
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_in_the_handoff_is_caught(fault):
    kind, plans, rounds, options = FAULTS[fault]
    found = _explore(Model(plans, rounds, fault=fault, **options), find_violation)
    assert found is not None, f"{fault}: not caught"
    print(f"{fault}: caught in {len(found.trace)} steps: {found.kind}: {found.what}")
    assert found.trace and found.kind == kind, found


@pytest.mark.parametrize("stateful", [False, True])
def test_a_number_read_after_its_hold_acknowledges_a_handoff_that_is_not_its_own(stateful):
    """Orders about another slot make a worker look while a handoff that it has acknowledged ends and the next
    begins."""
    fault = "number of a handoff read after its hold"
    model = Model(TWICE, OPPOSITE_AND_BACK, stateful=stateful, fault=fault)
    found = _explore(model, find_violation)
    assert found is not None and found.trace, fault
    print(f"{fault}, stateful {stateful}: caught in {len(found.trace)} steps: {found.what}")


COMMITS = [
    (("a", "ab"), 2, 2),
    (("a", "ab", "b", "ab"), 4, 2),
    (("ab", "aba", "b"), 6, 3),
    (("a", "b", "aab", "ba", "b"), 5, 2),
]


@pytest.mark.parametrize("frames, limit, kills", COMMITS)
def test_what_comes_again_after_a_kill_ends_with_the_row_handled_last(frames, limit, kills):
    model = Commit(frames, limit, kills)
    found = _explore(model)
    print(f"commit of batches of up to {limit} rows of frames of {frames}, {kills} kills: {found}")
    assert found.states >= 50, found


def test_done_bits_behind_a_head_that_has_not_moved_bring_back_an_old_row_alone():
    model = Commit(("a", "ab"), 2, 1, "bits are set before the head is past earlier frames of the batch")
    found = _explore(model, find_violation)
    assert found is not None and found.kind == "invariant" and found.trace
    print(f"{model.fault}: caught in {len(found.trace)} steps: {found.what}")
