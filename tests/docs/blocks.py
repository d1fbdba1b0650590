"""Code blocks of a page, and the page as a session: one directory, one shell, from top to bottom.

```python title="app.py"   any language with a title is written as that file
```python                  is run as a script
```sh                      is run by the shell of the page, which stops at the first command that fails
```console                 `$ command`, and between commands what they print, `...` for whatever is in between
```toml                    is read as configuration
others, `text` and `json` among them, are shown and not run
"""

from __future__ import annotations

import doctest
import os
import re
import shlex
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from markdown_it import MarkdownIt

OUTPUT = doctest.OutputChecker()
LIKE = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
NAMED = re.compile(
    r"(?:--name[ =]|--engine[ =]|\bname\s*=\s*\"|Engine\(\"|connect\(\"|Client\(\"|SHARDMEM_NAME=)([A-Za-z0-9][\w-]*)"
)
# was done, or no test would run: tox is what runs it
PORT = re.compile(r"(?<![\w.])(80\d\d|9105)(?![\w.])")  # of servers on a page
SET_UP = re.compile(r"(?m)^(python3 -m venv .*|(\.venv/bin/)?pip install .*|\.venv/bin/tox .*|\./check)$")
DEMO = re.compile(r"(?m)^\./demo$")  # what it comes to, once the package is there
WHERE = "block.txt"


@dataclass(frozen=True)
class Block:
    """page, line: of the first line of its text. title: the file that it is; empty if it is none."""

    page: str
    line: int
    language: str
    title: str
    text: str

    @property
    def place(self) -> str:
        return f"{self.page}:{self.line}"


def blocks_of(page: str, text: str) -> Iterator[Block]:
    for token in MarkdownIt().parse(text):
        if token.type == "fence":
            language, _, rest = token.info.strip().partition(" ")
            title = re.search(r"title=\"([^\"]+)\"", rest)
            yield Block(page, (token.map or [0])[0] + 2, language, title[1] if title else "", token.content)


def commands_of(block: Block) -> Iterator[tuple[str, str]]:
    """(command, what it prints) of a console block; a command goes on after a backslash at the end of its line."""
    command, printed, going_on = "", "", False
    for line in block.text.splitlines(keepends=True):
        if going_on or line.startswith("$ "):
            if not going_on and command:
                yield command, printed
            command, printed = (command + line if going_on else line[2:]), "" if not going_on else printed
            going_on = line.endswith("\\\n")
        elif not command:
            raise ValueError(f"{block.place}: a console block begins with a command, '$ ...', not with {line!r}")
        else:
            printed += line
    if command:
        yield command, printed


def renamed(text: str, unique: Callable[[str], str]) -> tuple[str, list[str]]:
    """The page with a unique name in the place of each engine's, and those names: pages run beside other engines."""
    names = {name: unique(name) for name in sorted(set(NAMED.findall(text)), key=len, reverse=True)}
    if not names:
        return text, []
    # a script whose engine is called clicks may read clicks.csv: whole words are replaced, whatever they are
    pattern = re.compile(r"(?<![\w-])(" + "|".join(map(re.escape, names)) + r")(?![\w-])")
    return pattern.sub(lambda match: names[match[1]], text), list(names.values())


def with_free_ports(text: str) -> str:
    """The page with a free port of this machine in the place of each that it names. They are held until all are
    chosen, so that no two are the same."""
    held = {port: socket.create_server(("127.0.0.1", 0)) for port in sorted(set(PORT.findall(text)))}
    free = {port: str(each.getsockname()[1]) for port, each in held.items()}
    for each in held.values():
        each.close()
    return PORT.sub(lambda match: free[match[1]], text)


class Page:
    """`run` raises AssertionError with the place, what was run and what was printed."""

    def __init__(self, page: str, text: str, directory: Path, unique: Callable[[str], str]) -> None:
        text, self.engines = renamed(with_free_ports(text), unique)
        self.blocks, self.directory = list(blocks_of(page, text)), directory
        self._outputs: list[tuple[Block, str, str, Path]] = []

    def run(self, timeout: float = 100, programs: str = "", **environ: str) -> None:
        """programs: a directory of some more that the page calls."""
        script = [
            "set -eu",
            f"cd {shlex.quote(str(self.directory))}",
            # a child that is killed before it is what it is to be runs this trap too, and has no jobs to tell of
            "ended() { code=$?; [ $BASHPID = $$ ] || exit $code; set +e; jobs -rp > still-running.txt; kill $(jobs "
            "-rp) 2>/dev/null; wait; exit $code; }",
            "trap ended EXIT",
        ]
        for number, block in enumerate(self.blocks):
            script += [f"echo {block.place} > {WHERE}", *self._script(number, block)]
        environ = {
            **os.environ,
            **environ,
            "PATH": ":".join(filter(None, [str(Path(sys.executable).parent), programs, os.environ["PATH"]])),
            "NO_COLOR": "1",
            "COLUMNS": "100",
            "PYTHONUNBUFFERED": "1",
            "HOME": str(self.directory),
        }
        if len(self.engines) == 1:  # "not needed if there is only one" is true of the reader's machine
            environ["SHARDMEM_NAME"] = self.engines[0]
        with open(self.directory / "output.txt", "w+", encoding="utf-8") as output:
            try:
                done = subprocess.run(
                    ["bash", "-c", "\n".join(script)],
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    env=environ,
                    timeout=timeout,
                )
                code: int | str = done.returncode
            except subprocess.TimeoutExpired:
                code = f"nothing within {timeout:g} s"
            output.seek(0)
            said = output.read()
        assert code == 0, f"{(self.directory / WHERE).read_text().strip()} ended with {code}:\n{said}"
        for block, command, expected, path in self._outputs:
            printed = path.read_text(encoding="utf-8")
            assert OUTPUT.check_output(expected, printed, LIKE), (
                f"{block.place}: $ {command.strip()}\nis said to print\n{expected}\nand prints\n{printed}\n"
                f"(the rest of what the page printed:\n{said})"
            )
        left = (self.directory / "still-running.txt").read_text().split()
        assert not left, (
            f"{self.blocks[0].page} leaves {len(left)} commands running in the background; stop them on the page"
        )

    def _script(self, number: int, block: Block) -> Iterator[str]:
        if block.title:
            path = self.directory / block.title
            path.parent.mkdir(parents=True, exist_ok=True)
            kept = self.directory / f"block{number}.txt"  # written when it is its turn: a page may change a file
            kept.write_text(block.text, encoding="utf-8")
            yield f"cp {kept.name} {shlex.quote(block.title)}"
            # a second version within the same second and of the same size would be taken for the first by Python's
            # cache
            yield "rm -rf __pycache__"
        elif block.language == "python":
            (self.directory / f"block{number}.py").write_text(block.text, encoding="utf-8")
            yield f"python -W error block{number}.py"
        elif block.language == "sh":
            yield DEMO.sub("shardmem demo", SET_UP.sub("", block.text)).replace(".venv/bin/", "")
        elif block.language == "console":
            for index, (command, printed) in enumerate(commands_of(block)):
                path = self.directory / f"printed{number}-{index}.txt"
                self._outputs.append((block, command, printed, path))
                yield f"{{ {command.rstrip()}\n}} > {path.name} 2>&1 || true"
        elif block.language == "toml":
            (self.directory / f"block{number}.toml").write_text(block.text, encoding="utf-8")
            yield f"SHARDMEM_HANDLER=app:handle shardmem config block{number}.toml > /dev/null"
