"""The command line as a person uses it: a daemon in one terminal, other programs beside it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import uuid

import click
import click.shell_completion
import numpy as np
import pytest
from click.testing import CliRunner

import shardmem
from shardmem.console.answers import answer
from shardmem.console.cli import main
from shardmem.memory.segment import listed

APP = """
import os, numpy as np
TICK = np.dtype([("symbol", "S4"), ("price", "f8"), ("size", "i4")])
def handle(batch):
    with open(os.environ["OUT"], "a") as out:
        for key, payload in batch:
            out.write(f"{key!r} {payload!r}\\n")
def ticks(batch):
    with open(os.environ["OUT"], "a") as out:
        for row in batch.records.tolist():
            out.write(f"{row!r}\\n")
"""


@pytest.fixture
def shell(tmp_path):
    """`shell(...)` runs a command to its end, `shell.daemon(...)` starts an engine and waits until it is ready."""
    (tmp_path / "app.py").write_text(APP)
    environment = dict(os.environ, OUT=str(tmp_path / "out.txt"))
    started = []

    class Shell:
        name = f"cli-{os.getpid()}-{uuid.uuid4().hex[:6]}"
        out = tmp_path / "out.txt"
        directory = tmp_path

        def __call__(self, *arguments, given=None, code=0):
            done = subprocess.run(
                [sys.executable, "-m", "shardmem", *arguments],
                cwd=tmp_path,
                env=environment,
                text=True,
                input=given,
                capture_output=True,
                timeout=60,
            )
            assert code == done.returncode, (done.returncode, done.stdout, done.stderr)
            return done

        def daemon(self, target, *arguments):
            process = subprocess.Popen(
                [sys.executable, "-m", "shardmem", "run", target, "--name", self.name, "--json", *arguments],
                cwd=tmp_path,
                env=environment,
                stdout=subprocess.PIPE,
                text=True,
            )
            started.append(process)
            ready = json.loads(process.stdout.readline())
            assert "ready" == ready["event"]
            return process

        def lines(self):
            return self.out.read_text().splitlines() if self.out.exists() else []

    yield Shell()
    for process in started:
        if process.poll() is None:
            process.kill()
        process.communicate()


def test_run_push_from_several_processes_status_and_stop(shell):
    daemon = shell.daemon("app:handle", "--shards", "2")
    push = f"import shardmem\nwith shardmem.connect({shell.name!r}) as p: p.push_many(list(range(100)), [b'x'] * 100)"
    pushers = [subprocess.Popen([sys.executable, "-c", push], cwd=shell.directory) for _ in range(3)]
    assert [0, 0, 0] == [pusher.wait(30) for pusher in pushers]

    document = json.loads(shell("status", shell.name, "--json").stdout)
    stopped = shell("stop", shell.name)

    assert {"engine", "supervisor", "shards", "producers", "accounting"} <= document.keys()
    assert shell.name == document["engine"]["name"] and document["supervisor"]["alive"]
    assert daemon.pid == document["supervisor"]["pid"]
    assert {
        "id",
        "state",
        "pid",
        "incarnation",
        "slots",
        "accepted",
        "handled",
        "in_flight",
        "fill_ratio",
        "busy",
    } <= document["shards"][0].keys()
    assert "handled 300" in stopped.stdout and "in flight 0" in stopped.stdout
    assert 0 == daemon.wait(10)
    ended = json.loads(daemon.stdout.readline())
    assert 300 == ended["status"]["accounting"]["handled"] and 0 == ended["code"]
    assert 300 == len(shell.lines())
    assert not [entry for entry in os.listdir("/dev/shm") if shell.name in entry]


def test_status_for_people_fits_80_columns_and_names_the_essentials(shell):
    shell.daemon("app:handle", "--shards", "2")
    with shardmem.connect(shell.name) as producer:
        producer.push("k", b"v")
        producer.flush(10)
        text = shell("status", shell.name).stdout

    assert max(map(len, text.splitlines())) <= 80
    for word in (shell.name, "running", "active", "accepted 1", "handled 1", f"pid {os.getpid()}"):
        assert word in text
    shell("stop", shell.name)


def test_an_engine_from_a_toml_file(shell):
    (shell.directory / "engine.toml").write_text(
        'handler = "app:ticks"\ndtype = "app:TICK"\nkey = "symbol"\nshards = 3\nlane_bytes = "64KiB"\n'
    )
    shell.daemon("engine.toml")
    tick = np.dtype([("symbol", "S4"), ("price", "f8"), ("size", "i4")])
    with shardmem.connect(shell.name) as producer:
        producer.send(np.array([(b"ABCD", 1.5, 3), (b"EF", 2.5, 4)], tick))
        producer.flush(10)
        assert 3 == len(json.loads(shell("status", shell.name, "--json").stdout)["shards"])
    shell("stop", shell.name)
    assert ["(b'ABCD', 1.5, 3)", "(b'EF', 2.5, 4)"] == sorted(shell.lines())


@pytest.mark.parametrize(
    "arguments, code, part",
    [
        (["run", "app:handle", "--slots", "3", "--shards", "x"], 2, "slots=3 is not a power of two"),
        (["run", "nonsense"], 2, "is not a file that ends in .toml or module:handler"),
        (["run", "missing.toml"], 2, "file missing.toml does not exist"),
        (["run", "app:nothing"], 3, "/app.py has "),
        (["run", "nomodule:handle"], 3, "No module named 'nomodule'. Workers look in /"),
        (["status", "no-such-engine"], 1, "no engine named 'no-such-engine'"),
        (["stop", "no-such-engine"], 1, "no engine named 'no-such-engine'"),
        (["ingest", "--engine", "no-such-engine"], 1, "no engine named 'no-such-engine'"),
        (["ingest", "--format", "xml"], 2, "'xml' is not one of"),
    ],
)
def test_mistakes_have_their_exit_code_and_say_what_is_wrong(shell, arguments, code, part):
    if arguments[0] == "run":
        arguments = [*arguments, "--name", shell.name]
    said = shell(*arguments, code=code).stderr
    assert part in said and "Traceback" not in said and "offered 0" not in said, "what is wrong is at the end, in words"
    assert not [entry for entry in os.listdir("/dev/shm") if shell.name in entry]


ARGUMENTS = {
    "scale": ["3"],
    "drain": ["1"],
    "move": ["17", "--to", "1"],
    "pin": ["17", "--to", "1"],
    "unpin": ["17"],
    "cordon": ["1"],
    "uncordon": ["1"],
    "moves": ["suspend"],
    "where": ["key"],
    "reload": [],
    "rebalance": [],
    "status": [],
    "top": [],
    "stop": [],
    "stacks": ["1"],
    "source status": [],
    "source pause": [],
    "ingest": [],
}


@pytest.mark.parametrize("command", ARGUMENTS)
def test_the_name_of_the_engine_stands_before_the_arguments_or_in_an_option(command):
    arguments, called = ARGUMENTS[command], command.split()
    for words in (["no-such-engine", *arguments], [*arguments, "--engine", "no-such-engine"]):
        done = CliRunner().invoke(main, [*called, *words])
        assert 1 == done.exit_code and "no engine named 'no-such-engine'" in done.output, done.output
    both = CliRunner().invoke(main, [*called, "one", *arguments, "--engine", "another"])
    assert 2 == both.exit_code and "two engines are named, one and another" in both.output
    if command != "ingest":  # which takes any number of files
        assert 2 == CliRunner().invoke(main, [*called, "one", "two", *arguments]).exit_code


@pytest.mark.parametrize(
    "words, missing",
    [(["drain"], "SHARD"), (["cordon"], "SHARD"), (["scale"], "SHARDS"), (["moves"], "{suspend|resume}")],
)
def test_the_name_of_the_engine_alone_is_no_wrong_argument_but_one_is_missing(words, missing):
    done = CliRunner().invoke(main, [*words, "ticks"])

    assert 2 == done.exit_code and f"Missing argument '{missing}'" in done.output, done.output


def all_commands(group, path=()):
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from all_commands(command, (*path, name))
        else:
            yield (*path, name), command


@pytest.mark.parametrize(
    "path, command", list(all_commands(main)), ids=lambda each: "-".join(each) if isinstance(each, tuple) else ""
)
def test_help_shows_name_where_the_command_is_about_an_engine_and_nowhere_an_option_for_it(path, command):
    said = CliRunner().invoke(main, [*path, "--help"]).output
    assert "--engine" not in said
    about_none = {"run", "ls", "config", "doctor", "gc", "demo", "completion"}
    assert (path[0] in about_none) == ("[NAME]" not in said.partition("\n")[0]), said


def test_an_id_is_an_event_and_a_word_before_it_the_engine(monkeypatch):
    seen = []
    module = sys.modules["shardmem.console.cli.quarantine"]  # a group of commands has its name in the package
    monkeypatch.setattr(module, "_file", lambda name, directory: seen.append(name) or 1 / 0)
    for words, name in (
        (["7", "8"], None),
        (["ticks", "7", "8"], "ticks"),
        (["--all"], None),
        (["ticks", "--all"], "ticks"),
    ):
        CliRunner().invoke(main, ["quarantine", "replay", *words])
        assert seen.pop() == name and not seen, words


def set_aside(path, count):
    from shardmem.runtime.quarantine import Entry, Quarantine

    with Quarantine(str(path)) as store:
        for number in range(count):
            store.add(
                Entry(
                    f"{number}",
                    shard=0,
                    slot=3,
                    seat=1,
                    sequence=number,
                    kind="exception",
                    reason="ValueError",
                    traceback="",
                    attempts=3,
                    schema={"kind": "events"},
                    key="ann",
                    payload=b"x",
                )
            )


def test_purge_of_all_events_asks_first(tmp_path):
    from shardmem.runtime.quarantine import QuarantineReader

    where, path = ["--state-dir", str(tmp_path)], tmp_path / "e.quarantine"
    set_aside(path, 2)
    for given in ("", "n\n"):
        done = CliRunner().invoke(main, ["quarantine", "purge", "e", "--all", *where], input=given)
        assert done.exit_code == 1 and "delete 2 events" in done.output, done.output
        assert "nothing was deleted" in done.output and "add --yes" in done.output, done.output
    with QuarantineReader(str(path)) as kept:
        assert kept.count() == 2
    done = CliRunner().invoke(main, ["quarantine", "purge", "e", "--all", *where], input="y\n")
    assert done.exit_code == 0 and "2 events purged" in done.output, done.output
    assert "0 events purged" in CliRunner().invoke(main, ["quarantine", "purge", "e", "--all", *where]).output


def test_a_word_is_a_file_of_ingest_if_it_is_no_engine_and_there_is_such_a_file(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "visits").write_text("ann,/\n")
    monkeypatch.delenv("SHARDMEM_NAME", raising=False)
    monkeypatch.setattr("shardmem.client.client.engine_names", list)
    assert "no engine is running here" in CliRunner().invoke(main, ["ingest", "visits"]).output
    assert "no engine named 'visit'" in CliRunner().invoke(main, ["ingest", "visit"]).output
    monkeypatch.setattr("shardmem.memory.segment.engine_names", lambda: ["visits"])
    assert "no engine named 'visits'" in CliRunner().invoke(main, ["ingest", "visits", "visits"]).output


@pytest.mark.parametrize(
    "shell, part", [("bash", "complete -o nosort"), ("zsh", "#compdef shardmem"), ("fish", "complete --no-files")]
)
def test_each_shell_gets_its_completion(shell, part):
    assert part in CliRunner().invoke(main, ["completion", shell]).output


def test_a_shell_completes_commands_and_the_names_of_engines(monkeypatch):
    monkeypatch.setattr("shardmem.memory.segment.engine_names", lambda: ["ticks", "tally", "web"])

    def completed(*words):
        complete = click.shell_completion.ShellComplete(main, {}, "shardmem", "_SHARDMEM_COMPLETE")
        return [item.value for item in complete.get_completions(list(words[:-1]), words[-1])]

    assert "stacks" in completed("sta") and "status" in completed("sta")
    for command in (["status"], ["scale"], ["quarantine", "list"], ["stacks"]):
        assert ["ticks", "tally"] == completed(*command, "t"), command
    assert "--json" in completed("status", "--")


def test_a_second_daemon_of_the_same_name_exits_4_and_harms_nothing(shell):
    shell.daemon("app:handle")
    second = shell("run", "app:handle", "--name", shell.name, code=4)
    assert "already run by process" in second.stderr
    with shardmem.connect(shell.name) as producer:
        producer.push(1, b"still here")
        producer.flush(10)
    shell("stop", shell.name)
    assert ["1 b'still here'"] == shell.lines()


def test_scale_move_drain_and_rebalance_answer_with_what_they_did(shell):
    daemon = shell.daemon("app:handle", "--shards", "1", "--max-shards", "3", "--slots", "64")
    scaled = json.loads(shell("scale", "3", "--engine", shell.name, "--json").stdout)
    assert [0, 1, 2] == scaled["shards"] and [1, 2] == scaled["added"] and len(scaled["moved"]) <= 43
    assert {"spawn", "reroute", "drain", "release", "total"} <= scaled["seconds"].keys()

    assert "slots from shard" in shell("move", "0-9,20", "--to", "2", "--engine", shell.name).stdout
    text = shell("drain", "1", "--engine", shell.name).stdout
    assert "shard 1 is drained and removed" in text and "ms" in text
    assert "total" in shell("rebalance", "--engine", shell.name).stdout
    assert (
        "only one"
        in shell("drain", "0", "--engine", shell.name).stdout
        + shell("drain", "2", "--engine", shell.name, code=2).stderr
    )
    assert "does not scale by itself" in shell("scale", "auto", "--engine", shell.name, code=2).stderr

    daemon.send_signal(signal.SIGTTIN)
    deadline = time.monotonic() + 20
    while 2 != len(
        [s for s in json.loads(shell("status", shell.name, "--json").stdout)["shards"] if s["state"] == "active"]
    ):
        assert time.monotonic() < deadline
    shell("stop", shell.name)
    assert 0 == daemon.wait(10)


def test_the_demo_counts_every_flight_and_leaves_nothing_behind(shell):
    result = json.loads(shell("demo", "--json").stdout)
    assert (336776, 336776, 0) == tuple(result["accounting"][key] for key in ("accepted", "handled", "in_flight"))
    assert 4043 == result["aircraft"] and {"flights": 575, "miles": 321198} == result["busiest"]["N725MQ"]
    assert not [entry for entry in os.listdir("/dev/shm") if result["engine"] in entry]


def test_the_demo_for_people_prints_the_accounting_line(shell):
    text = shell("demo", "--shards", "1", "--producers", "1").stdout
    assert "offered 336,776 · accepted 336,776 · refused 0 · handled 336,776 · in flight 0" in text
    assert "N725MQ" in text


def test_a_first_start_that_fails_says_why_once(shell):
    (shell.directory / "bad.py").write_text("def handle(batch):\n    pass\nraise OSError('no ' + 'database')\n")
    said = shell("run", "bad:handle", "--name", shell.name, "--shards", "1", code=3).stderr
    assert 1 == len([line for line in said.splitlines() if "no database" in line and line[:4].isdigit()]), said
    assert "events not handled" not in said, said


def test_an_answer_names_what_was_done_and_no_phase_in_which_nothing_was():
    nothing = {"moved": [], "late": [], "seconds": {"reroute": 0, "drain": 0, "release": 0, "total": 0.25}}
    auto = answer("ticks", "scale", {"auto_scale": True, "shards": [0, 1], "added": [], "removed": [], **nothing})
    assert "engine ticks: the policy now decides the number of shards; running: 2 shards: 0, 1" == auto
    reloaded = answer("ticks", "reload", {"reloaded": [{"from": 0, "to": 1}], "not_applied": [], **nothing})
    assert ["engine ticks: shard 0 is replaced by shard 1", "  total 250.0 ms"] == reloaded.splitlines()


def test_an_error_names_few_engines_and_the_likeliest_first():
    names = [f"t{number}" for number in range(300)] + ["ticks"]

    assert "ticks" == listed(names, "tikcs").split(", ")[0]
    assert listed(names).endswith("t7 and 293 more") and "a, b" == listed(["a", "b"])


def test_every_command_says_what_it_is_for_in_one_line_of_80_columns():
    examples = CliRunner().invoke(main, ["--help"], terminal_width=80).output.partition("Options:\n")[0].splitlines()
    assert not [line for line in examples if len(line) > 80]
    lines = CliRunner().invoke(main, ["--help"], terminal_width=80).output.partition("Commands:\n")[2].splitlines()

    assert len(lines) == len(main.commands)
    assert not [line for line in lines if line.endswith("...")]
