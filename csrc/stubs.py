"""Writes shardmem/_native.pyi, the types of the extension, from its headers: run it after each change of the header.

`python csrc/stubs.py` writes it; tests/unit/test_native_stub.py fails when it is not up to date. A pointer to a struct
has the members of the struct, as cffi gives them, and a pointer to integers is a sequence of them.
"""

import re
from pathlib import Path

from pycparser import c_ast, c_parser

ROOT = Path(__file__).parents[1]
HEADERS = (ROOT / "csrc" / "shardmem.h", ROOT / "csrc" / "scan.h", ROOT / "csrc" / "kafka.h")
STUB = ROOT / "shardmem" / "_native.pyi"
INTEGERS = ("int", "uint8_t", "int32_t", "uint32_t", "uint64_t", "int64_t")

TOP = '''"""The extension module as type checkers see it. Written by csrc/stubs.py from csrc/shardmem.h: do not edit."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, overload

from typing_extensions import Buffer

class CData:
    def __int__(self) -> int: ...

class Integers(CData):
    def __len__(self) -> int: ...
    def __add__(self, steps: int) -> Integers: ...
    def __iter__(self) -> Iterator[int]: ...
    @overload
    def __getitem__(self, at: int) -> int: ...
    @overload
    def __getitem__(self, at: slice) -> Integers: ...
    def __setitem__(self, at: int | slice, value: int | Sequence[int]) -> None: ...

class Characters(CData): ...

_Numbers = Literal["char[]", {}]
'''.format(", ".join(f'"{name} *", "{name}[]"' for name in INTEGERS))
FFI = """
class FFI:
    NULL: Any
    def string(self, text: Characters, most: int = ...) -> bytes: ...
    def buffer(self, memory: CData, size: int = ...) -> Buffer: ...
    def memmove(self, to: CData, source: CData | Buffer, size: int) -> None: ...
    def unpack(self, numbers: Integers, count: int) -> list[int]: ...
    def release(self, memory: CData) -> None: ...
    def sizeof(self, declaration: str) -> int: ...
    @overload
    def cast(self, declaration: Literal["void *", "uintptr_t"], value: CData | int) -> CData: ...
    @overload
    def cast(self, declaration: _Numbers, value: CData | int) -> Integers: ...
    @overload
    def from_buffer(self, declaration: Literal["sm_range[]"], memory: Buffer) -> sm_range: ...
    @overload
    def from_buffer(self, declaration: _Numbers, memory: Buffer) -> Integers: ...
    @overload
    def from_buffer(self, declaration: Buffer) -> CData: ...
"""
FASTCALLS = """
class Pusher:
    def __init__(self, slow: Any) -> None: ...
    def push(self, key: int | str | bytes | None, payload: Buffer | None, timeout: float | None = ...) -> bool: ...
    def push_many(self, keys: list[Any], payloads: list[Any]) -> tuple[int, int, int, bytes, int, int] | None: ...
    def push_columns(
        self, keys: Any, data: Any, offsets: Any, *more: Any
    ) -> tuple[int, int, int, bytes, int, int] | int | None: ...
    def offer(self, key: int | str | bytes | None, payload: Buffer | None) -> bool: ...
    def attach(self, sender: int, owner: object) -> None: ...
    def detach(self) -> None: ...

class Cell:
    value: Any
    dirty: bool
    def __init__(self, key: Any, value: Any) -> None: ...

class StateMap:
    live: dict[Any, Cell]
    dirty: list[Cell]
    entries: int
    def mark(self, cell: Cell) -> None: ...
    def forget_found(self) -> None: ...
    def leave(self, cell: Cell) -> None: ...
    def absent(self, keys: Any, /) -> list[Any]: ...
    def add_each(self, keys: Any, amounts: Any, /) -> bool: ...
    @overload
    def get_each(self, keys: Any, /) -> list[Any]: ...
    @overload
    def get_each(self, keys: Any, out: Any, /) -> bool: ...
    def set_each(self, keys: Any, values: Any, /) -> bool: ...
    def take_dirty(self) -> tuple[list[Any], list[Any]]: ...
    def __init__(self, plain: type | None = ...) -> None: ...
    def __getitem__(self, key: Any) -> Any: ...
    def __setitem__(self, key: Any, value: Any) -> None: ...
    def __delitem__(self, key: Any) -> None: ...
    def __contains__(self, key: object) -> bool: ...
    def get(self, key: Any, default: Any = ..., /) -> Any: ...

class Pairs:
    def __iter__(self) -> Pairs: ...
    def __next__(self) -> tuple[Any, bytes | None]: ...
    def __length_hint__(self) -> int: ...
    def close(self, ended: Callable[[], object]) -> None: ...
    def position(self) -> int | None: ...

def decode(batch: int, what: int) -> list[Any]: ...
def pairs(batch: int, owner: object) -> Pairs: ...
def by_key(batch: int) -> list[tuple[Any, list[bytes]]]: ...
def store_keys(keys: list[Any], name: bytes, slots: int, base: int = 0) -> list[bytes]: ...
def slots_of_keys(keys: list[Any], slots: int, base: int = 0) -> bytes: ...

ffi: FFI
lib: Lib
"""


def header_text() -> str:
    return "".join(header.read_text() for header in HEADERS)


def declarations(header: str) -> c_ast.FileAST:
    plain = re.sub(r"/\*.*?\*/", "", header, flags=re.DOTALL)
    plain = re.sub(r"^#.*$", "", plain, flags=re.MULTILINE)
    known = "".join(f"typedef int {name};" for name in INTEGERS if name != "int")
    return c_parser.CParser().parse(known + plain)


def constants(header: str, tree: c_ast.FileAST) -> list[str]:
    enums = [each.type for each in tree.ext if isinstance(each, c_ast.Decl) and isinstance(each.type, c_ast.Enum)]
    names = re.findall(r"^#define (\w+) \d+$", header, flags=re.MULTILINE)
    return names + [item.name for enum in enums for item in enum.values.enumerators]


def base(node: c_ast.Node) -> str:
    """The name of the C type that a declaration ends in."""
    while not isinstance(node, c_ast.IdentifierType):
        node = node.type
    return node.names[-1]


def member(node: c_ast.Node) -> str:
    """The Python type of a member of a struct, or of a result."""
    name, pointer = base(node), isinstance(node, (c_ast.PtrDecl, c_ast.ArrayDecl))
    if name == "char":
        return "Characters"
    if name in INTEGERS:
        return "Integers" if pointer else "int"
    return "None" if name == "void" and not pointer else "CData" if name == "void" else name


def argument(node: c_ast.Node) -> str:
    """As `member`; what is only read may be bytes as well, which cffi passes by their address."""
    kind = member(node)
    if isinstance(node, c_ast.PtrDecl) and base(node) in ("char", "void"):
        return "CData | bytes" if "const" in node.type.quals else "CData"
    return kind


def structs(tree: c_ast.FileAST) -> dict[str, c_ast.Struct]:
    return {
        each.name: each.type.type
        for each in tree.ext
        if isinstance(each, c_ast.Typedef) and isinstance(each.type.type, c_ast.Struct)
    }


def stub(header: str) -> str:
    tree = declarations(header)
    known = structs(tree)
    made = {name: struct for name, struct in known.items() if struct.decls}
    lines = [TOP]
    for name, struct in known.items():
        if name not in made:
            lines.append(f"class {name}(CData): ...\n")
            continue
        lines.append(f"class {name}(CData):")
        lines += [f"    {each.name}: {member(each.type)}" for each in struct.decls]
        lines.append(f"    def __getitem__(self, at: int) -> {name}: ...")
        lines.append(f"    def __setitem__(self, at: int, value: {name}) -> None: ...\n")
    lines.append(FFI.strip("\n"))
    for name in made:
        lines.append(
            f'    @overload\n    def new(self, declaration: Literal["{name} *"], init: object = ...) -> {name}: ...'
        )
    lines += [
        f'    @overload\n    def new(self, declaration: Literal["{name}[]"], init: object = ...) -> {name}: ...'
        for name in ("sm_bad", "sm_path", "sm_range", "sm_span")
    ]
    lines.append("    @overload\n    def new(self, declaration: _Numbers, init: object = ...) -> Integers: ...")
    lines.append("\nclass Lib:")
    lines += [f"    {name}: int" for name in constants(header, tree)]
    for each in tree.ext:
        if isinstance(each, c_ast.Decl) and isinstance(each.type, c_ast.FuncDecl):
            given = each.type.args.params if each.type.args else []
            named = [f"{one.name}: {argument(one.type)}" for one in given if one.name]
            marks = ["self", *named, *(["/"] if named else [])]
            lines.append(f"    def {each.name}({', '.join(marks)}) -> {member(each.type.type)}: ...")
    return "\n".join(lines) + "\n" + FASTCALLS


if __name__ == "__main__":
    STUB.write_text(stub(header_text()))
