"""The C sources under sanitizers. The programs are C, with threads over one mapping: no sanitizer sees across
processes.

Each program's first comment says what it claims. They run with one seed, so that a red run is red again;
SHARDMEM_NATIVE_SEED and SHARDMEM_NATIVE_SECONDS (2) make other and longer runs, SHARDMEM_FUZZ_EPISODES (12000) those of
fuzz.
"""

from __future__ import annotations

import atexit
import os
import platform
import re
import shlex
import shutil
import subprocess
import tempfile
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
SOURCES = HERE.parents[1] / "csrc"
PROGRAMS = sorted(path.stem for path in HERE.glob("*.c"))
RUNS = [
    (program, sanitizer)
    for program in PROGRAMS
    for sanitizer in ("thread", "address,undefined")
    if (program, sanitizer) != ("fuzz", "thread")
]  # its second thread breaks every rule, on purpose
FLAGS = ["-std=gnu11", "-O1", "-g", "-fno-omit-frame-pointer", "-fno-sanitize-recover=all", "-pthread"]
OPTIONS = {
    "TSAN_OPTIONS": "halt_on_error=1:exitcode=66",
    "ASAN_OPTIONS": "halt_on_error=1:exitcode=67:detect_leaks=0",
    "UBSAN_OPTIONS": "halt_on_error=1:print_stacktrace=1",
}
REPORTS = ("WARNING: ThreadSanitizer", "ERROR: AddressSanitizer", "runtime error:", "FATAL: ThreadSanitizer")


def compiler() -> list[str]:
    for command in (os.environ.get("CC", ""), "cc", "gcc", "clang"):
        words = shlex.split(command)
        if words and shutil.which(words[0]):
            return words
    pytest.fail(
        "no C compiler: none of $CC, cc, gcc and clang can be run. The C sources are tested by building them with "
        "sanitizers; install gcc or clang",
        pytrace=False,
    )


@cache
def objects(sanitizer: str) -> dict[str, str]:
    """What is shipped, compiled once for all programs; what needs an interpreter around it is left out."""
    directory = tempfile.mkdtemp(prefix="shardmem-native-")
    atexit.register(shutil.rmtree, directory, ignore_errors=True)
    sources = [path for path in sorted(SOURCES.glob("*.c")) if not needs_an_interpreter(path)]
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        made = pool.map(lambda path: compiled(path, sanitizer, Path(directory)), sources)
    return {path.name: one for path, one in zip(sources, made)}


@cache
def needs_an_interpreter(source: Path) -> bool:
    """It, or a header of ours that it includes, includes CPython's."""
    text = source.read_text()
    own = (SOURCES / name for name in re.findall(r'^ *#include "([^"]+)"', text, re.MULTILINE))
    return "#include <Python.h>" in text or any(map(needs_an_interpreter, own))


def compiled(source: Path, sanitizer: str, directory: Path) -> str:
    to = str(directory / f"{source.stem}.o")
    told([*compiler(), *FLAGS, f"-fsanitize={sanitizer}", f"-I{SOURCES}", f"-I{HERE}", "-c", str(source), "-o", to])
    return to


def told(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, timeout=100)
    if done.returncode:
        pytest.fail(f"{shlex.join(command)}\n{done.stdout}{done.stderr}", pytrace=False)


def build(program: str, sanitizer: str, directory: Path, instead: Path | None = None) -> Path:
    """instead: a source that takes the place of the one of its name."""
    built, parts = directory / program, dict(objects(sanitizer))
    if instead:
        parts[instead.name] = compiled(instead, sanitizer, directory)
    own = directory / "program"
    own.mkdir()
    parts["program"] = compiled(HERE / f"{program}.c", sanitizer, own)
    told([*compiler(), *FLAGS, f"-fsanitize={sanitizer}", *parts.values(), "-o", str(built)])
    return built


def run(command: list[str]) -> tuple[int, str]:
    length = ("SHARDMEM_FUZZ_EPISODES", "12000") if command[-1].endswith("/fuzz") else ("SHARDMEM_NATIVE_SECONDS", "2")
    command = [*command, os.environ.get("SHARDMEM_NATIVE_SEED", "1"), os.environ.get(*length)]
    done = subprocess.run(
        command,
        env={**os.environ, **OPTIONS},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        errors="replace",
    )  # each ends itself by an alarm
    return done.returncode, done.stdout


@pytest.mark.parametrize("program, sanitizer", RUNS)
def test_the_program_keeps_its_claims_and_the_sanitizer_has_nothing_to_report(program, sanitizer, tmp_path):
    built = build(program, sanitizer, tmp_path)
    status, output = run([str(built)])
    if "unexpected memory mapping" in output:
        # kernels with more bits of address randomisation than this ThreadSanitizer knows: run without
        status, output = run(["setarch", platform.machine(), "-R", str(built)])
    print(output)
    if status or any(report in output for report in REPORTS):
        pytest.fail(f"{program} under {sanitizer} ended with {status}:\n{output}", pytrace=False)


# What is wrong in load.c, and by which words: each has to be found by the program of that name.
LOAD_FAULTS = {
    "time is split by rows": ("return !word ? l->mean : cost < MOST ? cost : MOST;", "return l->mean;"),
    "differences of batches are not looked at": ("if (l->before.count)", "if (0)"),
    "a newcomer is not known": (
        "double cost = cost_of(r, slot), most",
        "l->doubt[slot] > 0 ? (void)0 : set_cost(r, slot, l->mean); double cost = cost_of(r, slot), most",
    ),
    "a sample stands for itself only": ("measure(r, took_ns, ns, whole);", "measure(r, took_ns, took_ns, whole);"),
    "a sample stands for all since the last one": ("part < 1 ? (uint64_t)", "0 ? (uint64_t)"),
    "samples are taken in turn": ("double most = 2 * mean - 1;", "return ((uint32_t)mean + 2) & ~1u; double most = 0;"),
}


@pytest.mark.parametrize("fault", LOAD_FAULTS)
def test_a_planted_fault_of_the_load_of_slots_is_caught(fault, tmp_path):
    right, wrong = LOAD_FAULTS[fault]
    source = (SOURCES / "load.c").read_text()
    assert source.count(right) == 1
    planted = tmp_path / "load.c"
    planted.write_text(source.replace(right, wrong))
    program = str(build("load", "undefined", tmp_path, planted))
    for _ in range(
        5
    ):  # how often a sample is taken is measured: on a busy machine a fault of that may not show at once
        status, output = run([program])
        if status:
            break
    assert status == 1 and "load.c" in output and "not so" in output, output


# What is wrong in how a worker follows the table: source, what is replaced, and by what.
FOLLOW_FAULTS = {
    "an epoch is taken that the state is not ready for": ("origin.c", "r->followed[row] == epoch", "epoch"),
    "a batch is of several partitions": ("reader.c", "if (r->span_count && partition != b->partition)", "if (0)"),
    "a slot goes on behind its event on trial, whose key alone waits": (
        "reader.c",
        "if (r->following && r->slots[n]",
        "if (0 && r->slots[n]",
    ),
}


@pytest.mark.parametrize("fault", FOLLOW_FAULTS)
def test_a_planted_fault_of_following_the_table_is_caught(fault, tmp_path):
    name, right, wrong = FOLLOW_FAULTS[fault]
    source = (SOURCES / name).read_text()
    assert source.count(right) == 1
    planted = tmp_path / name
    planted.write_text(source.replace(right, wrong))
    status, output = run([str(build("follow", "undefined", tmp_path, planted))])
    assert status == 1 and "follow.c" in output and "not so" in output, output


def test_there_are_programs_to_run():
    assert {
        "copies",
        "crash",
        "events",
        "follow",
        "fuzz",
        "hostile",
        "load",
        "origins",
        "outcomes",
        "stream",
        "threads",
        "wakeups",
    } <= set(PROGRAMS)
