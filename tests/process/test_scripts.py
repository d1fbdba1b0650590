"""Handlers where people put them: in the script itself, in a module beside it, in a package; and where none can be
found."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from support.rig import PATIENCE, Rig

HANDLE = """
    import os, sys
    import shardmem

    def handle(batch):
        with open(os.environ["RECORD_DIR"] + "/seen", "a") as file:
            for key, payload in batch:
                file.write(f"{key} {payload.decode()}\\n")
"""
USE = """
    with shardmem.Engine(handler=HANDLER, shards=2) as engine, engine.producer() as producer:
        for number in range(20):
            producer.push(number % 4, b"%d" % number)
        producer.flush()
    print("done")
"""


def indented(text: str, by: int) -> str:
    return "".join(" " * by + line[4:] + "\n" for line in text.strip("\n").split("\n"))


def script(use: str = USE, handler: str = "handle", guard: bool = True, handle: str = HANDLE, before: str = "") -> str:
    body = use.replace("HANDLER", handler)
    return (
        indented(handle, 0)
        + before
        + "\n"
        + ('if __name__ == "__main__":\n' + indented(body, 4) if guard else indented(body, 0))
    )


def run(rig: Rig, *command: str, stdin: str | None = None, cwd: Path | None = None) -> subprocess.CompletedProcess:
    """Python with these arguments, in the test's directory, with warnings about unclosed things on."""
    return subprocess.run(
        [sys.executable, "-W", "error::ResourceWarning", *command],
        input=stdin,
        cwd=cwd or rig.directory,
        env=rig.environment,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )


def expect_done(rig: Rig, result: subprocess.CompletedProcess) -> None:
    assert (result.returncode, result.stdout, result.stderr) == (0, "done\n", "")
    seen = (rig.directory / "seen").read_text().split("\n")[:-1]
    assert sorted(seen) == sorted(f"{number % 4} {number}" for number in range(20))
    (rig.directory / "seen").unlink()


@pytest.fixture(autouse=True)
def watched(engine_name: str, rig: Rig) -> None:
    """Engines here have no name; the processes are found by the mark in their environment all the same."""
    rig.environment = {**os.environ}


def test_a_handler_in_the_script_itself_works_under_a_main_guard(rig: Rig) -> None:
    rig.tell("app.py", script())
    expect_done(rig, run(rig, "app.py"))
    expect_done(rig, run(rig, str(rig.directory / "app.py"), cwd=Path("/")))


@pytest.mark.parametrize("handler", ["Handler", "Handler()", "Handler().handle", "'app:handle'", "'app:Handler'"])
def test_every_way_to_name_a_handler_of_the_script_works(rig: Rig, handler: str) -> None:
    rig.tell(
        "app.py",
        script(
            handler=handler,
            before="class Handler(shardmem.Handler):\n    def handle(self, batch):\n        handle(batch)\n",
        ),
    )
    expect_done(rig, run(rig, "app.py"))


def test_an_instance_brings_its_settings_to_the_worker(rig: Rig) -> None:
    before = (
        "class Handler(shardmem.Handler):\n"
        "    def __init__(self, count): self.count = count\n"
        "    def handle(self, batch):\n        assert self.count == 42\n        handle(batch)\n"
    )
    rig.tell("app.py", script(handler="Handler(42)", before=before))
    expect_done(rig, run(rig, "app.py"))


def test_a_script_without_a_main_guard_fails_clearly_and_starts_nothing_twice(rig: Rig) -> None:
    rig.tell("app.py", script(guard=False, before='open(os.environ["RECORD_DIR"] + "/runs", "a").write("x")\n'))
    began = time.monotonic()
    result = run(rig, "-W", "ignore::ResourceWarning", "app.py")
    assert time.monotonic() - began < 10
    assert result.returncode == 1 and "done" not in result.stdout
    assert 'if __name__ == "__main__":' in result.stderr.strip().split("\n")[-1], "the last line says what to do"
    # Once itself, and once in each of the two workers, unless the second was ended before it came to it.
    assert (rig.directory / "runs").read_text() in ("xx", "xxx")
    assert not (rig.directory / "seen").exists()


def test_a_script_whose_handler_is_elsewhere_needs_no_guard(rig: Rig) -> None:
    rig.tell("handlers.py", indented(HANDLE, 0))
    rig.tell("app.py", "import shardmem, handlers\n" + indented(USE.replace("HANDLER", "handlers.handle"), 0))
    expect_done(rig, run(rig, "app.py"))


@pytest.mark.parametrize("handler", ["handle", "'package.app:handle'"])
def test_a_module_of_a_package_runs_with_dash_m(rig: Rig, handler: str) -> None:
    (rig.directory / "package").mkdir()
    rig.tell("package/__init__.py", "")
    rig.tell("package/names.py", "SUFFIX = ''\n")
    rig.tell("package/app.py", script(handler=handler, before="from .names import SUFFIX\n"))
    expect_done(rig, run(rig, "-m", "package.app"))


def test_a_package_runs_with_dash_m(rig: Rig) -> None:
    (rig.directory / "package").mkdir()
    rig.tell("package/__init__.py", "")
    rig.tell("package/__main__.py", script())
    expect_done(rig, run(rig, "-m", "package"))


def test_a_script_that_changes_its_directory_works(rig: Rig) -> None:
    (rig.directory / "elsewhere").mkdir()
    rig.tell("app.py", script(use='\n    os.chdir("elsewhere")\n' + USE.strip("\n")))
    expect_done(rig, run(rig, "app.py"))


@pytest.mark.parametrize("handler", ["lambda batch: None", "nested()", "handle_in_main"])
def test_a_handler_that_no_worker_could_find_is_a_configuration_error(rig: Rig, handler: str) -> None:
    before = "def nested():\n    def inner(batch): pass\n    return inner\n"
    use = "    def handle_in_main(batch): pass\n    handle_in_main.__qualname__ = 'gone'\n" + USE.strip("\n")
    rig.tell("app.py", script(use=use, handler=handler, before=before))
    result = run(rig, "app.py")
    assert result.returncode == 1
    assert "shardmem.errors.ConfigError: handler" in result.stderr and "top level of a module" in result.stderr


@pytest.mark.parametrize("how", ["-c", "-", "-i"])
def test_a_handler_of_an_interactive_session_is_a_configuration_error(rig: Rig, how: str) -> None:
    text = script(guard=False)
    if how == "-i":  # typed: a block ends with an empty line
        text = "import shardmem\ndef handle(batch): pass\n\nshardmem.Engine(handler=handle)\n"
    result = run(rig, "-c", text) if how == "-c" else run(rig, how, stdin=text)
    assert "ConfigError: handler handle is defined in an interactive session" in result.stderr
    assert "done" not in result.stdout


@pytest.mark.parametrize("how", ["-c", "-"])
def test_an_interactive_session_may_name_a_handler_in_a_module(rig: Rig, how: str) -> None:
    rig.tell("handlers.py", indented(HANDLE, 0))
    text = "import shardmem\n" + indented(USE.replace("HANDLER", "'handlers:handle'"), 0)
    expect_done(rig, run(rig, "-c", text) if how == "-c" else run(rig, "-", stdin=text))


def test_an_engine_that_is_never_stopped_ends_with_its_script(rig: Rig) -> None:
    use = (
        "\n    engine = shardmem.Engine(handler=handle, shards=2).start()\n    producer = engine.producer()\n"
        "    for number in range(20):\n        producer.push(number % 4, b'%d' % number)\n    print('done')\n"
    )
    rig.tell("app.py", script(use=use))
    result = run(rig, "-W", "ignore::ResourceWarning", "app.py")
    assert (result.returncode, result.stdout) == (0, "done\n")
    # the fixture waits for its processes and complains about what is left


def test_what_a_handler_prints_arrives(rig: Rig) -> None:
    handle = (
        "    import os, sys\n    import shardmem\n\n    def handle(batch):\n"
        "        print(f'seen {len(batch)}', flush=True)\n        print('and an error', file=sys.stderr)\n"
    )
    use = (
        "\n    with shardmem.Engine(handler=HANDLER, shards=1) as engine, engine.producer() as producer:\n"
        "        producer.push(1, b'')\n"
    )
    rig.tell("app.py", script(use=use, handle=handle))
    result = run(rig, "app.py")
    assert (result.returncode, result.stdout, result.stderr) == (0, "seen 1\n", "and an error\n")
