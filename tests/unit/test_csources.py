"""Rules of the C sources that no compiler checks: orders are explicit, each shared word has one writer, edges have two
ends."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sysconfig
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

CSRC = Path(__file__).resolve().parents[2] / "csrc"
ROLES = {"producer", "source", "worker", "supervisor", "exception"}
ATOMIC_MEMBER = re.compile(r"_Atomic\s+\w+\s+(\w+)\s*(?:\[[^\]]*\])?\s*;")
ACCESS = re.compile(r"\batomic_(\w+?)_explicit\s*\(")
BANNED = {
    "volatile orders nothing between threads": r"(?<!__asm__ )\b(__)?volatile(__)?\b",
    "a fence is invisible to ThreadSanitizer": (
        r"\batomic_\w*fence\b|\b__sync_\w+|\b__atomic_\w+|fence\b|\bdmb\b|__builtin_ia32_\w*fence"
    ),
    "an order is left to the default": (
        r"\batomic_(?!\w+_explicit\b)(load|store|exchange|fetch|compare|flag|init)\w*\s*\("
    ),
}
# Both sides of a handshake store their own word and then read the other's; weaker than seq_cst, both may read the old
# one.
HANDSHAKES = {
    "sleeping": {"load": None, "store": None},
    "waiting": {"load": None, "store": None},
    "tail": {"store": {"send.c"}, "load": {"frames.c", "reader.c"}},
    "head": {"store": {"frames.c"}, "load": {"park.c"}},
    "mark": {"load": {"supervisor.c"}},
    "engine_state": {"store": {"supervisor.c"}, "load": {"send.c", "reader.c"}},
    "slot_word": {"store": {"supervisor.c"}, "load": {"send.c"}},
    "lane_open": {"store": {"sender.c"}, "load": {"frames.c"}},
    "evict": {"store": {"sender.c"}, "load": {"reader.c"}},
    "shard_orders": {"store": {"supervisor.c"}, "load": {"reader.c", "shard.c"}},
}
BEFORE_PUBLICATION = {"sm_control_format", "put_header"}  # nobody else looks before the version word is stored
LABEL = r"[A-Z]\d"
# What an _Atomic word becomes so that any compiler finds the accesses that do not go through atomic_*_explicit.
PRELUDE = """
#include <stdint.h>
enum { memory_order_relaxed, memory_order_acquire, memory_order_release, memory_order_acq_rel, memory_order_seq_cst };
#define atomic_load_explicit(p, o) ((p)->only_through_atomic_calls)
#define atomic_store_explicit(p, x, o) ((void)((p)->only_through_atomic_calls = (x)))
#define atomic_exchange_explicit(p, x, o) ((p)->only_through_atomic_calls = (x))
#define atomic_fetch_add_explicit(p, x, o) ((p)->only_through_atomic_calls += (x))
#define atomic_compare_exchange_strong_explicit(p, e, d, o, f) ((p)->only_through_atomic_calls == *(e) ? (d) : *(e))
"""


class Access(NamedTuple):
    file: str
    line: int
    function: str
    operation: str  # load, store, exchange, fetch_add...
    target: str  # the first argument
    order: str
    position: int

    @property
    def kind(self) -> str:
        return "load" if self.operation == "load" else "store"


class Source:
    """One file: its code with comments blanked out (same positions), its comments, its functions."""

    def __init__(self, path: Path) -> None:
        self.name, self.text = path.name, path.read_text()
        self.comments = [
            (match.start(), match.end(), match[0][2:-2]) for match in re.finditer(r"/\*.*?\*/", self.text, re.S)
        ]
        self.code = re.sub(r"/\*.*?\*/|//[^\n]*", lambda match: re.sub(r"[^\n]", " ", match[0]), self.text, flags=re.S)
        self.functions = list(self._functions())

    def line(self, position: int) -> int:
        return self.text.count("\n", 0, position) + 1

    def _functions(self) -> Iterator[tuple[str, int, int]]:
        """(name, start of its head, end of its body) of every brace block at depth 0 that follows a parameter list."""
        depth = start = head = 0
        for position, character in enumerate(self.code):
            if character == "{":
                if not depth:
                    start = position
                depth += 1
            elif character == "}":
                depth -= 1
                if not depth:
                    named = re.search(r"(\w+)\s*\([^;{}]*\)\s*$", self.code[head:start])
                    if named and "#define" not in self.code[head:start].rpartition("\n\n")[2].split("(")[0]:
                        yield named[1], head, position + 1
                    head = position + 1
            elif character == ";" and not depth:
                head = position + 1

    def function_at(self, position: int) -> tuple[str, int, int]:
        for name, start, end in self.functions:
            if start <= position < end:
                return name, start, end
        return "", 0, len(self.code)

    def accesses(self) -> Iterator[Access]:
        for match in ACCESS.finditer(self.code):
            if self.code.rfind("\n", 0, match.start()) < self.code.rfind("#define", 0, match.start()):
                continue  # GET in observer.c: its uses are loads, and loads only
            arguments = split_arguments(self.code, match.end())
            order = next((argument for argument in arguments[1:] if argument.startswith("memory_order_")), "")
            yield Access(
                self.name,
                self.line(match.start()),
                self.function_at(match.start())[0],
                match[1],
                arguments[0],
                order.removeprefix("memory_order_"),
                match.start(),
            )

    def members(self, target: str, position: int, depth: int = 0) -> set[str]:
        """Which words of layout.h an atomic access may mean; an empty string among them: cannot be known."""
        if "sm_done_bits" in target:
            return {"sm_done_bits"}
        bare, before = target, None
        while bare != before:
            before, bare = bare, re.sub(r"\[[^\[\]]*\]|\([^()]*\)", "", bare)
        if member := re.search(r"(?:->|\.)\s*(\w+)\s*$", bare):
            return {member[1]}
        name = bare.strip(" *()")
        if not re.fullmatch(r"\w+", name) or depth:
            return {""}
        _, start, end = self.function_at(position)
        assigned = re.findall(rf"\b{name}\s*=(?!=)\s*([^;]+);", self.code[start:end])
        return {found for value in assigned for found in self.members(value, position, depth + 1)} or {""}


def split_arguments(code: str, position: int) -> list[str]:
    """The arguments of a call whose parenthesis opens just before `position`."""
    depth, found, begin = 1, [], position
    while depth:
        character = code[position]
        depth += character in "([{"
        depth -= character in ")]}"
        if (character == "," and depth == 1) or not depth:
            found.append(" ".join(code[begin:position].split()))
            begin = position + 1
        position += 1
    return found


def sources(directory: Path) -> list[Source]:
    return [Source(path) for path in sorted([*directory.glob("*.c"), *directory.glob("*.h")])]


# ---- the rules -------------------------------------------------------------------------------------------------------


def banned_words(directory: Path) -> list[str]:
    return [
        f"{source.name}:{source.line(match.start())}: {why}: {match[0]}"
        for source in sources(directory)
        for why, pattern in BANNED.items()
        for match in re.finditer(pattern, source.code)
    ]


def unnamed_writers(directory: Path) -> list[str]:
    found, seen = [], {}
    for number, line in enumerate((directory / "layout.h").read_text().splitlines(), 1):
        for match in ATOMIC_MEMBER.finditer(line):
            role = re.search(r"writer: (\w+)", line)
            if not role or role[1] not in ROLES:
                found.append(f"layout.h:{number}: {match[1]} names no writer")
            if match[1] in seen:
                found.append(f"layout.h:{number}: {match[1]} is the name of another word too (line {seen[match[1]]})")
            seen[match[1]] = number
    return found


def writers(directory: Path) -> dict[str, str]:
    lines = (directory / "layout.h").read_text().splitlines()
    named = {
        match[1]: role[1]
        for line in lines
        if (match := ATOMIC_MEMBER.search(line)) and (role := re.search(r"writer: (\w+)", line))
    }
    return {**named, "sm_done_bits": "worker"}


def second_writers(directory: Path) -> list[str]:
    owners, found = writers(directory), []
    for source in sources(directory):
        role = re.search(r"role: (\w+)", source.comments[0][2]) if source.comments else None
        if not role and source.name.endswith(".c"):
            found.append(f"{source.name}:1: its first comment names no role")
        for access in source.accesses():
            if access.kind == "load":
                continue
            for member in source.members(access.target, access.position):
                where = f"{access.file}:{access.line}: {access.function} stores to"
                if member not in owners:
                    found.append(f"{where} {access.target}, which cannot be traced to a word of layout.h")
                elif owners[member] not in ("exception", role[1] if role else None):
                    found.append(f"{where} {member}, whose writer is the {owners[member]}")
    return found


def plain_accesses(directory: Path, workspace: Path) -> list[str]:
    """Compiles the sources with every _Atomic word turned into a structure that only the atomic calls can open."""
    types, copy = set(), workspace / "plain"
    shutil.copytree(
        directory, copy, ignore=lambda _, names: [name for name in names if not name.endswith((".c", ".h"))]
    )
    for path in copy.iterdir():
        text = Source(path).code.replace("#include <stdatomic.h>", "")
        types |= set(re.findall(r"_Atomic\s+(\w+)", text))
        path.write_text(re.sub(r"_Atomic\s+(\w+)", r"sm_atomic_\1", text))
    wrapped = "".join(
        f"typedef struct {{ {name} only_through_atomic_calls; }} sm_atomic_{name};\n" for name in sorted(types)
    )
    (copy / "prelude.h").write_text(PRELUDE + wrapped)
    command = [
        *compiler(),
        "-std=gnu11",
        "-D_GNU_SOURCE",
        "-fsyntax-only",
        "-w",
        f"-I{copy}",
        f"-I{sysconfig.get_path('include')}",
        "-include",
        str(copy / "prelude.h"),
    ]
    done = subprocess.run([*command, *map(str, sorted(copy.glob("*.c")))], capture_output=True, text=True, timeout=60)
    return [line.replace(f"{copy}{os.sep}", "") for line in done.stderr.splitlines() if "error" in line]


def compiler() -> list[str]:
    for command in (os.environ.get("CC", ""), "cc", "gcc", "clang"):
        words = shlex.split(command)
        if words and shutil.which(words[0]):
            return words
    pytest.fail(
        "no C compiler: none of $CC, cc, gcc and clang can be run; this test lets one look for plain accesses",
        pytrace=False,
    )


def weak_handshakes(directory: Path) -> list[str]:
    found = []
    for source in sources(directory):
        if source.name == "observer.c":
            continue  # it takes part in none: it only looks
        for access in source.accesses():
            if access.function in BEFORE_PUBLICATION or access.order == "seq_cst":
                continue
            for member in source.members(access.target, access.position):
                files = HANDSHAKES.get(member, {}).get(access.kind, set())
                if files is None or access.file in files:
                    found.append(
                        f"{access.file}:{access.line}: {access.kind} of {member} with {access.order}: the other side "
                        "of "
                        f"the handshake may be missed"
                    )
    return found


def labels(source: Source) -> Iterator[tuple[str, int, int, str]]:
    """Where an edge is named (first in a comment, or with a colon): its label, the comment's place, what follows the
    label."""
    for start, end, text in source.comments:
        for match in re.finditer(rf"(?<!with )(?<!and )\b({LABEL})(?=:)|^\s*({LABEL})\b", text):
            yield match[1] or match[2], start, end, text[match.end() :]


def labelled_orders(source: Source, start: int, end: int) -> set[str]:
    """Orders of the accesses that a label can mean: of its line; of the function below it; or of the next access."""
    accesses = list(source.accesses())
    line = source.line(start)
    before = source.code[source.text.rfind("\n", 0, start) + 1 : start]
    if before.strip():  # behind code: this statement, which may have begun some lines above
        begin = max(source.code.rfind(mark, 0, start - 1) for mark in ";{}")
        same = [access.order for access in accesses if begin - 200 < access.position < start and line - access.line < 3]
        return set(same)
    name, head, tail = source.function_at(end)
    if source.code[head:start].strip() == "" and name:  # in front of a function
        return {access.order for access in accesses if head <= access.position < tail}
    return {
        access.order
        for access in accesses
        if access.position > end
        and access.function == name
        and access.position == min(other.position for other in accesses if other.position > end)
    }


def loose_edges(directory: Path) -> list[str]:
    every, found = sources(directory), []
    places: dict[str, set[str]] = {}
    for source in every:
        for label, start, end, rest in labels(source):
            function = source.function_at(end)[0]
            places.setdefault(label, set()).update({source.name, source.name.removesuffix(".c"), function})
            orders, where = labelled_orders(source, start, end), f"{source.name}:{source.line(start)}: {label}"
            if source.name == "observer.c":
                continue  # all its accesses are one macro's, with acquire
            if not orders - {"relaxed"}:
                found.append(f"{where} is at no ordered access")
            said = re.match(r":\s+(seq_cst|acquire|release)\b", rest)
            if said and said[1] not in orders:
                found.append(f"{where} says {said[1]}, the access says {', '.join(sorted(orders)) or 'nothing'}")
    for source in every:
        for start, _, text in source.comments:
            flat, where = " ".join(text.replace("\n *", " ").split()), f"{source.name}:{source.line(start)}"
            for label in set(re.findall(rf"\b{LABEL}\b", flat)) - places.keys():
                found.append(f"{where}: {label} is nowhere to be found")
            for cited, place in re.findall(
                rf"[Pp]airs with ((?:{LABEL}(?:'s \w+)?(?:, | and )?)+) in (?:the )?(\w+(?:\.c)?)", flat
            ):
                for label in re.findall(LABEL, cited):
                    if place not in places.get(label, {place}):
                        found.append(f"{where}: {label} is not in {place}")
    return found


def calls_between_files(directory: Path) -> dict[str, dict[str, str]]:
    """file -> the files that it calls, each with a call that says so."""
    every = [source for source in sources(directory) if source.name.endswith(".c")]
    homes = {
        name: source.name
        for source in every
        for name, start, end in source.functions
        if not re.search(r"\bstatic\b", source.code[start : source.code.index("{", start)])
    }
    found: dict[str, dict[str, str]] = {source.name: {} for source in every}
    for source in every:
        for name in re.findall(r"\b(\w+)\s*\(", source.code):
            if (home := homes.get(name, source.name)) != source.name:
                found[source.name].setdefault(home, name)
    return found


def circles(directory: Path) -> list[str]:
    """A file that cannot be read without one that cannot be read without it."""
    calls, found = calls_between_files(directory), set()

    def visit(file: str, path: tuple[str, ...]) -> None:
        if file in path:
            circle = path[path.index(file) :]
            first = circle.index(min(circle))
            turned = [*circle[first:], *circle[: first + 1]]
            steps = [f"{a} calls {calls[a][b]} of {b}" for a, b in zip(turned, turned[1:], strict=False)]
            found.add("; ".join(steps))
            return
        for called in calls[file]:
            visit(called, (*path, file))

    for file in calls:
        visit(file, ())
    return sorted(found)


RULES: dict[str, Callable[[Path, Path], list[str]]] = {
    "banned words": lambda directory, _: banned_words(directory),
    "unnamed writers": lambda directory, _: unnamed_writers(directory),
    "second writers": lambda directory, _: second_writers(directory),
    "plain accesses": plain_accesses,
    "weak handshakes": lambda directory, _: weak_handshakes(directory),
    "loose edges": lambda directory, _: loose_edges(directory),
    "circles": lambda directory, _: circles(directory),
}


@pytest.mark.parametrize("rule", RULES)
def test_the_sources_keep_the_rule(rule, tmp_path):
    assert [] == RULES[rule](CSRC, tmp_path)


# ---- the rules find what they are for --------------------------------------------------------------------------------


def plant(directory: Path, file: str, change: Callable[[str], str]) -> None:
    before = (directory / file).read_text()
    after = change(before)
    assert before != after, "nothing was planted"
    (directory / file).write_text(after)


def appended(code: str) -> Callable[[str], str]:
    return lambda text: f"{text}\n{code}\n"


def in_layout(pattern: str, replacement: str) -> Callable[[str], str]:
    return lambda text: re.sub(pattern, replacement, text, count=1)


def planted(body: str, argument: str = "sm_lane *l", comment: str = "") -> Callable[[str], str]:
    return appended(f"{comment}\nstatic void planted({argument})\n{{\n    {body}\n}}")


def store(word: str, order: str = "seq_cst") -> str:
    return f"atomic_store_explicit({word}, 0, memory_order_{order});"


PLANTED = [
    ("banned words", "reader.c", appended("static volatile int planted;"), "volatile orders nothing"),
    ("banned words", "batch.c", appended("static __volatile__ int planted;"), "volatile orders nothing"),
    ("banned words", "park.c", planted("atomic_thread_fence(memory_order_seq_cst);"), "a fence is invisible"),
    ("banned words", "park.c", planted("__sync_synchronize();"), "a fence is invisible"),
    ("banned words", "park.c", planted('__asm__("mfence");'), "a fence is invisible"),
    ("banned words", "hash.c", planted("atomic_load(&l->head);"), "left to the default: atomic_load("),
    ("banned words", "hash.c", planted("atomic_store (&l->head, 1);"), "left to the default: atomic_store ("),
    ("banned words", "hash.c", planted("atomic_fetch_add(&l->head, 1);"), "left to the default: atomic_fetch_add("),
    ("banned words", "hash.c", planted("atomic_exchange(&l->head, 1);"), "left to the default: atomic_exchange("),
    ("unnamed writers", "layout.h", in_layout(r"/\* writer: worker", "/* who: worker"), "names no writer"),
    ("unnamed writers", "layout.h", in_layout(r"/\* writer: producer", "/* writer: anybody"), "names no writer"),
    (
        "unnamed writers",
        "layout.h",
        in_layout(r"_Atomic uint64_t evict;", "_Atomic uint64_t tail;"),
        "tail is the name of another word",
    ),
    ("second writers", "frames.c", planted(store("&l->tail")), "planted stores to tail, whose writer is the producer"),
    (
        "second writers",
        "send.c",
        planted(store("&l[0].ledger[1].ledger_shed")),
        "planted stores to ledger_shed, whose writer is the worker",
    ),
    (
        "second writers",
        "observer.c",
        planted(
            "_Atomic uint64_t *word = &sm_slot_at(c, 0)->slot_word; atomic_exchange_explicit(word, 1, "
            "memory_order_seq_cst);",
            "void *c",
        ),
        "planted stores to slot_word, whose writer is the supervisor",
    ),
    (
        "second writers",
        "sender.c",
        planted("_Atomic uint64_t *word = &sm_done_bits(f)[3]; " + store("word"), "sm_frame *f"),
        "planted stores to sm_done_bits, whose writer is the worker",
    ),
    (
        "second writers",
        "park.c",
        planted(
            "uint64_t x = 0; atomic_compare_exchange_strong_explicit(&l->head, &x, 1, memory_order_seq_cst, "
            "memory_order_seq_cst);"
        ),
        "planted stores to head, whose writer is the worker",
    ),
    ("second writers", "ranges.c", planted(store("anything"), "_Atomic uint64_t *anything"), "cannot be traced"),
    ("second writers", "internal.h", planted(store("&l->head")), "planted stores to head, whose writer is the worker"),
    ("second writers", "sender.h", planted(store("&l->head")), "planted stores to head, whose writer is the worker"),
    ("second writers", "reader.h", planted(store("&l->tail")), "planted stores to tail, whose writer is the producer"),
    ("second writers", "shard.c", in_layout("role: worker", "part: worker"), "names no role"),
    ("plain accesses", "frames.c", planted("l->head = 16;"), "frames.c"),
    ("plain accesses", "observer.c", planted("uint64_t n = l->accepted[1];"), "observer.c"),
    ("plain accesses", "send.c", planted("s->mark++;", "sm_seat *s"), "send.c"),
    (
        "plain accesses",
        "supervisor.c",
        planted("_Atomic uint64_t *word = &s->slot_word; *word = 1;", "sm_slot *s"),
        "supervisor.c",
    ),
    (
        "weak handshakes",
        "reader.c",
        planted(store("&b->sleeping", "release"), "sm_inbox *b"),
        "store of sleeping with release",
    ),
    (
        "weak handshakes",
        "park.c",
        planted("atomic_load_explicit(&l->waiting, memory_order_acquire);"),
        "load of waiting with acquire",
    ),
    ("weak handshakes", "send.c", planted(store("&l->tail", "release")), "store of tail with release"),
    (
        "loose edges",
        "frames.c",
        planted(store("&l->head"), comment="/* Z1: pairs with Z2 */"),
        "Z2 is nowhere to be found",
    ),
    (
        "loose edges",
        "frames.c",
        planted(store("&l->head", "relaxed"), comment="/* Z1: why not */"),
        "Z1 is at no ordered access",
    ),
    (
        "loose edges",
        "frames.c",
        planted(store("&l->head"), comment="/* Z1: pairs with P1 in frames.c. */"),
        "P1 is not in frames.c",
    ),
    (
        "loose edges",
        "frames.c",
        planted("/* Z1: seq_cst */\n    " + store("&l->head", "release")),
        "Z1 says seq_cst, the access says release",
    ),
    (
        "circles",
        "frames.c",
        planted("sm_attempt_load(r);", "sm_reader *r"),
        "attempt.c calls sm_rescan of frames.c; frames.c calls sm_attempt_load of attempt.c",
    ),
    (
        "circles",
        "sender.c",
        planted("sm_push_one(s, e, &(uint32_t){0});", "sm_sender *s, sm_event *e"),
        "send.c calls sm_sender_unlock of sender.c; sender.c calls sm_push_one of send.c",
    ),
]


@pytest.mark.parametrize("rule, file, change, complaint", PLANTED, ids=[f"{row[0]}-{row[3]}" for row in PLANTED])
def test_a_planted_violation_is_found(rule, file, change, complaint, tmp_path):
    directory = tmp_path / "csrc"
    shutil.copytree(CSRC, directory)
    before = RULES[rule](directory, tmp_path / "before")
    plant(directory, file, change)
    new = [line for line in RULES[rule](directory, tmp_path / "after") if line not in before]
    assert any(complaint in line for line in new), new


def test_a_store_is_traced_through_casts_indexes_and_local_pointers(tmp_path):
    (tmp_path / "x.c").write_text("""
static void f(void *inbox, uint32_t seat)
{
    _Atomic uint32_t *word = &((sm_inbox *)inbox)->lane_open[at[seat].index];
    atomic_store_explicit(word, 1, memory_order_release);
    atomic_store_explicit(
        &sm_lane_at(inbox, g->lane_bytes, seat)->ledger[p & 1].ledger_handled, sum(1, 2), memory_order_relaxed);
}
""")
    source = Source(tmp_path / "x.c")
    traced = [
        (source.members(access.target, access.position), access.order, access.function) for access in source.accesses()
    ]
    assert [({"lane_open"}, "release", "f"), ({"ledger_handled"}, "relaxed", "f")] == traced
