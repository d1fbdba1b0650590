"""Processes that share memory with store buffers, futexes and SIGKILL between them.

A process is a short program of accesses to shared words, one step each; what it does in registers in
between takes no time. Two machines are modelled:

x86    A store waits in the process's own FIFO buffer and becomes visible to others later; the process
       itself sees it at once. A seq_cst store and a read-modify-write do not complete before the
       buffer is empty. That is x86-TSO and the way compilers map C11 to it.
arm    Every store is buffered, seq_cst ones too. A release or seq_cst store becomes visible after all
       that are before it, but a plain store may overtake anything to another word, even an earlier
       release store: release is a barrier one way only. A seq_cst load waits for the process's seq_cst
       stores; an acquire load does not (LDAPR does not, and C11 does not ask for it). That is
       multi-copy atomic ARMv8 without reordering of loads, which acquire forbids anyway.

Not modelled: loads performed early or from a stale cache other than by the above. A load that has to be
acquire and is not is planted as a fault by swapping the program's steps.

A kill may come between any two steps. What the dead one had stored still drains, as it does on hardware;
its successor, which the kernel's lock lets in only after the death, starts when all has drained, knows
nothing but shared memory, and runs the same program from `successor` if it has such a label, else from
the top.

`wait` compares and sleeps in one step, as futex does under its bucket lock. Its bound of 100 ms is left
out unless a model asks for it, so a lost wake-up shows as a stuck state. What asks for it says how many
expiries it allows; time passes only when nothing else can happen, and for all sleepers at once, so that
an expiry can never hide a wake-up that was merely late.
"""

from __future__ import annotations

from collections import namedtuple
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

PLAIN, ACQUIRE, RELEASE, SEQ_CST = "plain", "acquire", "release", "seq_cst"
DEAD = -1


class Op(NamedTuple):
    kind: str
    loc: Any = None  # the name of a word, or a function of the registers that gives it
    reg: str | None = None
    value: Any = None  # a constant or a function of the registers
    order: str = PLAIN


def load(reg: str, loc: Any, order: str = ACQUIRE) -> Op:
    return Op("load", loc, reg, None, order)


def store(loc: Any, value: Any, order: str) -> Op:
    return Op("store", loc, None, value, order)


def swap(reg: str, loc: Any, value: Any) -> Op:
    """An atomic exchange, seq_cst."""
    return Op("swap", loc, reg, value, SEQ_CST)


def cas(reg: str, loc: Any, expected: Callable, value: Any) -> Op:
    """An atomic compare and exchange, seq_cst: the register gets 1 if the word was as expected, else 0."""
    return Op("cas", loc, reg, (expected, value), SEQ_CST)


def increment(loc: Any) -> Op:
    """An atomic addition of 1, seq_cst."""
    return Op("increment", loc, None, None, SEQ_CST)


def wait(loc: Any, reg: str) -> Op:
    """futex_wait: sleep if the word still is what the register holds."""
    return Op("wait", loc, reg)


def wake(loc: Any) -> Op:
    return Op("wake", loc)


def pick(reg: str, *values: Any) -> Op:
    """Any of the values: the model explores all of them."""
    return Op("pick", None, reg, values)


def let(reg: str, value: Any) -> Op:
    return Op("let", None, reg, value)


def forget(*regs: str) -> Iterator[Op]:
    """What a register held does not matter any more: states that differ only there are one state."""
    return (let(reg, 0) for reg in regs)


def label(name: str) -> Op:
    return Op("label", name)


def goto(name: str, when: Callable | None = None) -> Op:
    return Op("goto", name, None, when)


def claim(what: str, holds: Callable) -> Op:
    """The model's own assertion; no step of the process."""
    return Op("claim", what, None, holds)


def stop() -> Op:
    return Op("stop")


class Process(NamedTuple):
    pc: int
    regs: tuple
    buffer: tuple = ()  # of (word, value, order), oldest first
    asleep: bool = False


class State(NamedTuple):
    mem: tuple
    procs: tuple[Process, ...]
    kills: int = 0
    expiries: int = 0
    spurious: int = 0
    wrong: str | None = None


class Machine:
    """`programs`: name -> list of Op. `words`: name -> first value. `order`: "x86" or "arm".

    `killable` names the processes that may be killed, `kills` times in all. `spurious` futex wake-ups
    happen at any time (signals). `expiries` of the bound on a wait: see above.
    """

    def __init__(
        self,
        programs: dict[str, Iterable[Op]],
        words: dict[str, Any],
        order: str = "x86",
        *,
        killable: Iterable[str] = (),
        kills: int = 0,
        expiries: int = 0,
        spurious: int = 0,
    ):
        if order not in ("x86", "arm"):
            raise ValueError(order)
        self.arm = order == "arm"
        self.names = list(programs)
        self.words = namedtuple("Words", list(words))(**words)
        self.index = {name: number for number, name in enumerate(words)}
        self.code: list[list[Op]] = []
        self.labels: list[dict[str, int]] = []
        self.registers: list[type] = []
        for listing in programs.values():
            ops, labels = [], {}
            for op in listing:
                if op.kind == "label":
                    labels[op.loc] = len(ops)
                else:
                    ops.append(op)
            self.code.append(ops)
            self.labels.append(labels)
            self.registers.append(namedtuple("Registers", sorted({op.reg for op in ops if op.reg})))
        self.killable = frozenset(killable)
        self.kills, self.expiries, self.spurious = kills, expiries, spurious

    def initial(self) -> State:
        procs = []
        for who, registers in enumerate(self.registers):
            pc, regs, wrong = self._settle(who, 0, registers(*[0] * len(registers._fields)))
            assert wrong is None
            procs.append(Process(pc, regs))
        return State(self.words, tuple(procs), self.kills, self.expiries, self.spurious)

    def invariant(self, state: State) -> str | None:
        return state.wrong

    # -- what a model may ask about a state ----------------------------------------------------------

    def at_end(self, state: State, name: str) -> bool:
        who = self.names.index(name)
        pc = state.procs[who].pc
        return pc != DEAD and self.code[who][pc].kind == "stop" and not state.procs[who].buffer

    def asleep(self, state: State, name: str) -> bool:
        process = state.procs[self.names.index(name)]
        return process.asleep and not process.buffer

    # -- steps ---------------------------------------------------------------------------------------

    def steps(self, state: State) -> list[tuple[str, State]]:
        found: list[tuple[str, State]] = []
        for who, process in enumerate(state.procs):
            self._drain(state, who, process, found)
            if process.pc == DEAD:
                if not process.buffer:
                    registers = self.registers[who]
                    entry = self.labels[who].get("successor", 0)
                    begun = Process(entry, registers(*[0] * len(registers._fields)))
                    self._go_on(state, who, begun, entry, begun.regs, "a successor begins", found)
            elif not process.asleep:
                self._execute(state, who, process, found)
        if not found and state.expiries and any(process.asleep for process in state.procs):
            after = state._replace(expiries=state.expiries - 1)
            for who, process in enumerate(state.procs):
                if process.asleep:
                    after = self._advance(after, who, process, process.pc + 1, process.regs)
            found.append(("100 ms pass", after))
        for who, process in enumerate(state.procs):
            name = self.names[who]
            if process.pc == DEAD:
                continue
            if state.kills and name in self.killable and self.code[who][process.pc].kind != "stop":
                dead = self._with(state, who, Process(DEAD, (), process.buffer))
                found.append((f"kill {name}", dead._replace(kills=state.kills - 1)))
            if state.spurious and process.asleep:
                fewer = state._replace(spurious=state.spurious - 1)
                self._go_on(fewer, who, process, process.pc + 1, process.regs, "is woken by a signal", found)
        return found

    def _with(self, state: State, who: int, process: Process) -> State:
        mem, procs, kills, expiries, spurious, wrong = state
        return State(mem, procs[:who] + (process,) + procs[who + 1 :], kills, expiries, spurious, wrong)

    def _drain(self, state, who, process, found):
        buffer = process.buffer
        for number, (word, value, order) in enumerate(buffer):
            if number:
                if not self.arm:
                    break
                if order != PLAIN or any(earlier[0] == word for earlier in buffer[:number]):
                    continue
            mem = state.mem._replace(**{word: value})
            after = process._replace(buffer=buffer[:number] + buffer[number + 1 :])
            label = f"{self.names[who]}: its store {word} = {value} becomes visible"
            found.append((label, self._with(state, who, after)._replace(mem=mem)))

    def _execute(self, state, who, process, found):
        pc, regs, buffer, _ = process
        op = self.code[who][pc]
        kind = op.kind
        if kind == "stop":
            return
        if kind == "pick":
            for value in op.value:
                self._go_on(state, who, process, pc + 1, regs._replace(**{op.reg: value}), f"picks {value}", found)
            return
        word = op.loc(regs) if callable(op.loc) else op.loc
        if kind == "load":
            if op.order == SEQ_CST and self.arm and any(entry[2] == SEQ_CST for entry in buffer):
                return
            value = self._read(state, buffer, word)
            text = f"loads {word}: {value}"
            self._go_on(state, who, process, pc + 1, regs._replace(**{op.reg: value}), text, found)
        elif kind == "store":
            value = op.value(regs) if callable(op.value) else op.value
            if op.order == SEQ_CST and not self.arm:
                if buffer:
                    return
                after = state._replace(mem=state.mem._replace(**{word: value}))
                self._go_on(after, who, process, pc + 1, regs, f"stores {word} = {value}", found)
            else:
                buffered = process._replace(buffer=buffer + ((word, value, op.order),))
                self._go_on(state, who, buffered, pc + 1, regs, f"stores {word} = {value}, in its buffer", found)
        elif kind in ("swap", "increment", "cas"):
            if buffer:
                return
            new = value = getattr(state.mem, word)
            if kind == "cas":
                expected, to = op.value
                expected = expected(regs)
                if value == expected:
                    new = to(regs) if callable(to) else to
                regs = regs._replace(**{op.reg: int(value == expected)})
                text = f"puts {new} into {word}" if value == expected else f"finds {value} in {word}, not {expected}"
            elif kind == "swap":
                new = op.value(regs) if callable(op.value) else op.value
                regs = regs._replace(**{op.reg: value})
                text = f"exchanges {word}: {value} for {new}"
            else:
                new = value + 1
                text = f"increments {word} to {new}"
            after = state._replace(mem=state.mem._replace(**{word: new}))
            self._go_on(after, who, process, pc + 1, regs, text, found)
        elif kind == "wait":
            value = getattr(state.mem, word)
            if value == getattr(regs, op.reg):
                text = f"{self.names[who]}: sleeps on {word} == {value}"
                found.append((text, self._with(state, who, process._replace(asleep=True))))
            else:
                text = f"does not sleep: {word} is {value}, not {getattr(regs, op.reg)}"
                self._go_on(state, who, process, pc + 1, regs, text, found)
        elif kind == "wake":
            after, woken = state, []
            for other, sleeper in enumerate(state.procs):
                if sleeper.asleep:
                    where = self.code[other][sleeper.pc].loc
                    if (where(sleeper.regs) if callable(where) else where) == word:
                        after = self._advance(after, other, sleeper, sleeper.pc + 1, sleeper.regs)
                        woken.append(self.names[other])
            text = f"wakes {word}: " + (", ".join(woken) or "nobody is asleep")
            self._go_on(after, who, process, pc + 1, regs, text, found)
        else:
            raise ValueError(op)

    def _read(self, state, buffer, word):
        for entry in reversed(buffer):
            if entry[0] == word:
                return entry[1]
        return getattr(state.mem, word)

    def _go_on(self, state, who, process, pc, regs, text, found):
        found.append((f"{self.names[who]}: {text}", self._advance(state, who, process, pc, regs)))

    def _advance(self, state: State, who: int, process: Process, pc: int, regs) -> State:
        pc, regs, wrong = self._settle(who, pc, regs)
        after = self._with(state, who, Process(pc, regs, process.buffer, False))
        return after._replace(wrong=wrong) if wrong else after

    def _settle(self, who: int, pc: int, regs):
        """Run on through what touches registers only, up to the next access to shared memory."""
        code, labels = self.code[who], self.labels[who]
        while True:
            op = code[pc]
            if op.kind == "let":
                regs = regs._replace(**{op.reg: op.value(regs) if callable(op.value) else op.value})
                pc += 1
            elif op.kind == "goto":
                pc = labels[op.loc] if op.value is None or op.value(regs) else pc + 1
            elif op.kind == "claim":
                if not op.value(regs):
                    return pc, regs, f"{self.names[who]}: {op.loc}: {regs}"
                pc += 1
            else:
                return pc, regs, None
