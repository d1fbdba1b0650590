"""handoff.pml under Spin: the handoff and the takeover by another supervisor, every interleaving, every death.

test_handoff.py claims the same of a model in Python that is finer about frames and passes. This one was written anew
from the C and Python sources, in another language and for another explorer, so that a mistake of a model or of an
explorer would have to be made twice. It has what that one leaves out: the supervisor's lease, seats that change hands,
and each access by which a worker reads the number and the hold of a handoff. That found NUMBER_AFTER_HOLD in the
sources, which the other model, too, knew as a fault to be planted.

Each size is explored to its end without a fault. Each planted fault is caught in one of these sizes.
SHARDMEM_SPIN=full adds sizes that take minutes.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

MODEL = Path(__file__).resolve().parent / "handoff.pml"
DEPTH = 100_000  # the longest run seen is a hundredth of that
FULL = os.environ.get("SHARDMEM_SPIN", "") == "full"

# size: macros of the model, and how many states there are at least
OPPOSITE = "MOVES=3 PLAN=2"
RUNS = {
    "away": ("ROWS=2", 12_500),
    "away, the other slot stays": ("ROWS=2 PLAN=2", 13_000),
    "away and back": ("ROWS=2 ROUNDS=2", 55_000),
    "opposite": (f"ROWS=2 {OPPOSITE}", 100_000),
    "opposite and back": (f"ROWS=2 {OPPOSITE} ROUNDS=2", 850_000),
    "two producers": ("ROWS=1 PRODUCERS=2", 80_000),
    "state travels": ("ROWS=2 STATE=1", 15_000),
    "a producer dies": ("ROWS=2 PRODUCERS_DIE=1", 60_000),
    "a worker dies": (f"ROWS=2 {OPPOSITE} WORKERS_DIE=1", 640_000),
    "a worker dies, back again": ("ROWS=1 ROUNDS=2 WORKERS_DIE=1", 80_000),
    "a worker dies, state travels": ("ROWS=2 STATE=1 WORKERS_DIE=1", 125_000),
    "the supervisor dies": ("ROWS=2 SUPERVISORS_DIE=1", 1_000_000),
    "the supervisor dies, workers are adopted": ("ROWS=2 SUPERVISORS_DIE=1 ADOPT=1", 400_000),
    "the supervisor dies, state travels": ("ROWS=2 SUPERVISORS_DIE=1 ADOPT=1 STATE=1", 530_000),
    "the supervisor dies, three rounds": ("ROWS=1 ROUNDS=3 SUPERVISORS_DIE=1 ADOPT=1", 1_250_000),
    "anyone dies": ("ROWS=1 WORKERS_DIE=1 SUPERVISORS_DIE=1 PRODUCERS_DIE=1 ADOPT=1", 2_100_000),
}
LARGE = {
    "opposite and back, three rows": (f"ROWS=3 {OPPOSITE} ROUNDS=2", 2_700_000),
    "opposite and back, state travels": (f"ROWS=2 {OPPOSITE} ROUNDS=2 STATE=1", 3_400_000),
    "two producers, two rows each": ("ROWS=2 PRODUCERS=2", 1_500_000),
    "workers die twice, state travels": ("ROWS=2 STATE=1 WORKERS_DIE=2 ROUNDS=2", 1_150_000),
    "a worker dies, opposite, state travels": (f"ROWS=2 {OPPOSITE} STATE=1 WORKERS_DIE=1", 1_950_000),
    "the supervisor dies, opposite": (f"ROWS=2 {OPPOSITE} SUPERVISORS_DIE=1", 10_500_000),
    "the supervisor dies, opposite, workers are adopted": (f"ROWS=2 {OPPOSITE} SUPERVISORS_DIE=1 ADOPT=1", 4_000_000),
    "two supervisors die": ("ROWS=1 SUPERVISORS_DIE=2 STATE=1", 1_700_000),
    "two supervisors die, workers are adopted": ("ROWS=1 SUPERVISORS_DIE=2 ADOPT=1 STATE=1", 1_400_000),
    "a worker and the supervisor die, state travels": (
        "ROWS=2 STATE=1 WORKERS_DIE=1 SUPERVISORS_DIE=1 ADOPT=1",
        2_400_000,
    ),
    "anyone dies, state travels": (
        "ROWS=2 STATE=1 WORKERS_DIE=1 SUPERVISORS_DIE=1 PRODUCERS_DIE=1 ADOPT=1",
        12_000_000,
    ),
}

BROKEN, STUCK, ENDLESS = "assertion violated", "invalid end state", "non-progress cycle"
# fault: (what Spin says, size)
FAULTS = {
    "NO_HOLD": (BROKEN, "away"),
    "WORD_BEFORE_HOLD": (BROKEN, "away"),
    "HOLDS_COUNTED_AFTER_HOLD": (BROKEN, "away"),
    "NO_WAIT_FOR_MARKS": (BROKEN, "away"),
    "READS_BEFORE_MARK": (BROKEN, "away"),
    "DEAD_MARK_IS_WAITED_FOR": (STUCK, "a producer dies"),
    "NO_DRAIN": (BROKEN, "away"),
    "DRAINED_BY_HEADS": (STUCK, "opposite"),
    "HEAD_PASSES_HELD": (BROKEN, "away, the other slot stays"),
    "FORGETS_WHAT_IT_PASSED_OVER": (BROKEN, "away"),
    "NO_RESCAN": (STUCK, "away"),
    "NO_ORDERS_WHEN_A_HOLD_FALLS": (STUCK, "away"),
    "ORDERS_STAY_NEW": (ENDLESS, "away"),
    "EARLIER_DRAINED_IS_TAKEN": (BROKEN, "away and back"),
    "NUMBER_AFTER_HOLD": (BROKEN, "a worker dies, back again"),
    "NUMBER_IS_NOT_READ_AGAIN": (BROKEN, "a worker dies, back again"),
    "DRAINED_IS_SAID_FIRST": (BROKEN, "state travels"),
    "RESTORED_IS_SAID_FIRST": (BROKEN, "a worker dies, state travels"),
    "NO_LEASE": (STUCK, "the supervisor dies, workers are adopted"),
    "SUCCESSOR_SETS_NO_WORD": (BROKEN, "the supervisor dies"),
    "SUCCESSOR_SETTLES_NOT": (BROKEN, "the supervisor dies"),
    "SUCCESSOR_FORGETS_HOLDS": (BROKEN, "the supervisor dies, three rounds"),
    "SUCCESSOR_TAKES_RELEASING_FOR_DONE": (BROKEN, "the supervisor dies, state travels"),
    "SUCCESSOR_ORDERS_ONLY_WHERE_SOMETHING_MOVES": (STUCK, "the supervisor dies, workers are adopted"),
}


@dataclass(frozen=True)
class Found:
    states: int
    errors: int
    what: str  # what was violated
    unreached: tuple[str, ...]
    seconds: float
    trail: str


def tools() -> tuple[str, list[str]]:
    """Spin and a C compiler, or a skip that says which is missing."""
    spin = shutil.which("spin")
    if spin is None:
        pytest.skip("spin is not installed (apt-get install spin): handoff.pml is not explored")
    for command in (os.environ.get("CC", ""), "cc", "gcc", "clang"):
        words = shlex.split(command)
        if words and shutil.which(words[0]):
            return spin, words
    pytest.skip("no C compiler: none of $CC, cc, gcc and clang can be run, and Spin's verifier is a C program")


def check(macros: str, directory: Path, optimise: str = "-O1", cycles: bool = False) -> Found:
    """Explore the model with these macros: for assertions and invalid end states, or for cycles."""
    spin, compiler = tools()
    defined = [f"-D{macro}" for macro in macros.split()]
    shutil.copy(MODEL, directory)
    generate = [spin, f"-P{shlex.join(compiler)} -E -x c", *defined]

    def run(command: list[str]) -> str:
        done = subprocess.run(command, cwd=directory, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        assert done.returncode == 0, f"{shlex.join(command)} ended with {done.returncode}:\n{done.stdout}"
        return done.stdout

    said = run([*generate, "-a", MODEL.name])
    assert "rror" not in said, said
    run(
        [*compiler, optimise, "-w", "-DNP" if cycles else "-DSAFETY", "-DNOFAIR", "-DMEMLIM=8000", "-o", "pan", "pan.c"]
    )
    said = run(["./pan", f"-m{DEPTH}", "-w22", *(["-l"] if cycles else [])])
    errors, states = re.search(r"errors: (\d+)", said), re.search(r"(\d+) states, stored", said)
    assert errors and states, said
    assert "max search depth too small" not in said and "out of memory" not in said, said
    assert ("Search not completed" in said) == (errors[1] != "0"), said
    for what in ["non-progress cycles"] if cycles else ["assertion violations", "invalid end states"]:
        assert re.search(rf"{what}\s+\+", said), said
    seconds = re.search(r"elapsed time ([\d.]+)", said)
    trail = ""
    if errors[1] != "0":
        trail = "\n".join(run([*generate, "-t", "-p", MODEL.name]).splitlines()[-80:])
    violated = re.search(r"pan:1: (.*)", said)
    return Found(
        int(states[1]),
        int(errors[1]),
        violated[1] if violated else "",
        tuple(re.findall(r"^\t(\S+:\d+, state .*)", said, re.M)),
        float(seconds[1]) if seconds else 0.0,
        trail,
    )


@pytest.mark.timeout(1200 if FULL else 120)
@pytest.mark.parametrize("run", [*RUNS, *(LARGE if FULL else ())])
def test_nothing_is_lost_reordered_handled_by_two_or_stuck(run, tmp_path):
    macros, at_least = {**RUNS, **LARGE}[run]
    found = check(macros, tmp_path, "-O2" if at_least > 1_000_000 else "-O1")
    print(f"spin, {run}: {found.states} states in {found.seconds} s")
    assert not found.errors, f"{macros}: {found.what}\n{found.trail}"
    assert found.states >= at_least, (
        f"{macros}: {found.states} states are fewer than there have to be: what is left out?"
    )
    if run == "anyone dies, state travels":
        assert not found.unreached, "where all have their turn, these steps cannot be taken:\n" + "\n".join(
            found.unreached
        )


ENDED = ["opposite", "a producer dies", "a worker dies, back again", "the supervisor dies, workers are adopted"]


@pytest.mark.timeout(1200 if FULL else 120)
@pytest.mark.parametrize("run", RUNS if FULL else ENDED)
def test_every_run_comes_to_its_end(run, tmp_path):
    """With the absence of invalid end states: to the one end at which all moves are over and all rows are handled."""
    found = check(RUNS[run][0], tmp_path, cycles=True)
    print(f"spin, {run}: {found.states} states without a cycle in {found.seconds} s")
    assert not found.errors, f"{RUNS[run][0]}: {found.what}\n{found.trail}"


@pytest.mark.parametrize("fault", FAULTS)
def test_spin_catches_a_planted_fault(fault, tmp_path):
    kind, run = FAULTS[fault]
    found = check(f"{RUNS[run][0]} FAULT_{fault}", tmp_path, "-O0", kind == ENDLESS)
    print(f"{fault}: {found.what}, {found.states} states")
    assert found.errors, f"{fault}: not caught in {found.states} states"
    assert kind in found.what, found.what


def test_every_fault_of_the_model_is_planted():
    """And none but those: an unknown macro would plant nothing, and a fault that nobody names catches nobody."""
    named = set(re.findall(r"\bFAULT_(\w+)", MODEL.read_text()))
    assert named == set(FAULTS)
