"""`shardmem ingest` as a person uses it: what arrives, what is said of the rest, and where to go on."""

from __future__ import annotations

import gzip
import json
import os
import signal
import subprocess
import sys
import threading
import time
import uuid

import numpy as np
import pytest

import shardmem

OUT = "SHARDMEM_TEST_OUT"


def record(batch):
    with open(os.environ[OUT], "a", errors="surrogateescape") as out:
        for key, payload in batch:
            if payload == b"fail":
                raise ValueError("as asked")
            if payload == b"slow":
                time.sleep(0.5)
            out.write(f"{key!r} {payload!r}\n")


def rows(batch):
    with open(os.environ[OUT], "a") as out:
        for row in batch.records.tolist():
            out.write(f"{row!r}\n")


class Shell:
    def __init__(self, directory, engine):
        self.directory, self.engine = directory, engine

    def start(self, *arguments, **options):
        command = [sys.executable, "-m", "shardmem", "ingest", "--engine", self.engine.name, *arguments]
        pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
        return subprocess.Popen(command, cwd=self.directory, **{**pipes, **options})

    def __call__(self, *arguments, given=b"", code=0):
        process = self.start(*arguments)
        out, error = process.communicate(given, timeout=60)
        self.out, self.error = out.decode(), error.decode()
        assert code == process.returncode, (process.returncode, self.out, self.error)
        assert "Traceback" not in self.error
        return json.loads(out) if "--json" in arguments else self.out

    def write(self, name, data):
        (self.directory / name).write_bytes(data)
        return name

    def lines(self):
        path = self.directory / "out.txt"
        return sorted(path.read_text(errors="surrogateescape").splitlines()) if path.exists() else []


@pytest.fixture
def ingest(tmp_path, monkeypatch):
    monkeypatch.setenv(OUT, str(tmp_path / "out.txt"))
    started = []

    def start(handler=record, **settings):
        name = f"ingest-{os.getpid()}-{uuid.uuid4().hex[:6]}"
        engine = shardmem.Engine(name, handler=handler, **{"shards": 2, "drain_timeout": 5, **settings})
        engine.__enter__()
        started.append(engine)
        return Shell(tmp_path, engine)

    yield start
    for engine in started:
        engine.__exit__(None, None, None)


def test_records_of_every_format_arrive_with_their_bytes_and_keys(ingest):
    shell = ingest()
    for form, arguments, given in (
        ("lines", [], b"one\ntwo\n"),
        ("lines", ["--key", "2"], b"a b\nc d e\n"),
        ("csv", ["--key", "who"], b'who,what\nx,1\n"y ""z""","a\nb"\n'),
        ("jsonl", ["--key", "k.i"], b'{"k":{"i":5}}\n\n{"k":{"i":"five"}}\n'),
        ("logfmt", ["--key", "user"], b"user=bob at=info\n"),
    ):
        done = shell("--format", form, *arguments, "--json", given=given)
        assert (len(given), True) == (done["bytes"], done["complete"])
        assert done["events"] == done["accepted"] == done["handled"] > 0
    expected = [
        "None b'one'",
        "None b'two'",
        "'b' b'a b'",
        "'d' b'c d e'",
        "'x' b'x,1'",
        '\'y "z"\' b\'"y ""z""","a\\nb"\'',
    ]
    expected += ['5 b\'{"k":{"i":5}}\'', '\'five\' b\'{"k":{"i":"five"}}\'', "'bob' b'user=bob at=info'"]
    assert sorted(expected) == shell.lines()


def test_a_records_engine_takes_fields_by_name_from_any_format(ingest):
    shell = ingest(rows, dtype=np.dtype([("symbol", "S4"), ("price", "f8"), ("size", "i4")]), key="symbol")
    shell("--format", "csv", given=b"size,junk,symbol,price\n7,x,ABC,1.25\n8,y,DEF,NA\n")
    shell("--format", "jsonl", given=b'{"symbol": "GH", "price": 2, "size": 9, "more": null}\n')
    assert ["(b'ABC', 1.25, 7)", "(b'DEF', nan, 8)", "(b'GH', 2.0, 9)"] == shell.lines()
    shell(code=2, given=b"x\n")
    assert "lines have no field names" in shell.error
    shell("--format", "csv", "--key", "price", code=2)
    assert "the key of the engine is its field symbol" in shell.error


def test_a_bad_record_ends_the_run_and_says_where_to_go_on(ingest):
    shell = ingest()
    shell.write("bad.csv", b"a,b\n1,2\n3\n5,6\n")
    done = shell("--format", "csv", "--json", "bad.csv", "--key", "a", code=1)
    assert "bad.csv, line 3: has 1 field, the header 2" in done["error"] and 1 == done["events"]
    assert [{"file": "bad.csv", "byte": 8, "line": 3}] == done["next"]
    assert "hint: --skip-bad leaves such records out" in shell.error and "--from 8 bad.csv (line 3)" in shell.error
    shell("--format", "csv", "bad.csv", "--key", "a", "--from", "10")
    assert ["'1' b'1,2'", "'5' b'5,6'"] == shell.lines()


def test_bad_records_that_are_skipped_are_counted_by_reason_kept_and_no_success_unless_so_many_may_be(ingest):
    shell = ingest()
    data = b'{"k":1}\nno\n{"k":null}\n{"k":2}\n'
    shell.write("a.jsonl", data)
    skip = ["--format", "jsonl", "--key", "k", "a.jsonl"]
    done = shell(*skip, "--skip-bad", "--json", code=1)
    assert (2, 2, {"not JSON": 1, "null": 1}) == (done["events"], done["skipped"], done["reasons"])
    text = shell(*skip, "--dead-letter", "dead.jsonl", "--max-bad", "2")
    assert "2 records skipped (1 not JSON, 1 null)" in text
    letters = [json.loads(line) for line in (shell.directory / "dead.jsonl").read_text().splitlines()]
    assert [("a.jsonl", 2, 8, "no"), ("a.jsonl", 3, 11, '{"k":null}')] == [
        (each["file"], each["line"], each["byte"], each["data"]) for each in letters
    ]
    shell(*skip, "--max-bad", "50%")
    shell(*skip, "--max-bad", "49%", code=1)
    shell(*skip, "--max-bad", "1", code=1)
    assert "null in 'k'" in shell.error


def test_what_is_refused_shed_or_quarantined_is_said_and_is_no_success(ingest):
    shell = ingest(shards=1, lane_bytes=4096, max_attempts=1, batch_rows=8)
    done = shell("--json", given=b"a\nfail\nb\n", code=1)
    assert (3, 2, 1, True) == (done["accepted"], done["handled"], done["quarantined"], done["complete"])
    assert "1 quarantined" in shell("--max-bad", "1", given=b"fail\n")
    many = b"slow\n" + b"x" * 60 + b"\n"
    done = shell("--backpressure", "drop_newest", "--json", given=many + many[5:] * 500)
    assert done["refused"]["full"] > 0 and 502 == done["accepted"] + done["refused"]["full"]
    done = shell("--backpressure", "drop_oldest", "--json", given=many + many[5:] * 500)
    assert done["shed"] > 0 and 502 == done["handled"] + done["shed"]
    done = shell("--timeout", "0.01", "--json", given=many + many[5:] * 500, code=1)
    assert "is full" in done["error"] and done["next"]


def test_seconds_count_the_wait_until_all_is_handled(ingest):
    shell = ingest()
    done = shell("--json", given=b"slow\n")
    assert 0.5 <= done["seconds"] < 10
    done = shell("--json", "--no-wait", given=b"slow\n")
    assert done["seconds"] < 0.5 and not done["complete"]


def test_an_event_of_a_stream_is_there_before_the_next_one_is_written(ingest):
    shell = ingest()
    process = shell.start()
    for number in range(3):
        process.stdin.write(b"%d\n" % number)
        process.stdin.flush()
        deadline = time.monotonic() + 20
        while len(shell.lines()) <= number:
            assert time.monotonic() < deadline, "it was not pushed"
            time.sleep(0.002)
    process.stdin.close()
    assert 0 == process.wait(20)
    process.stdout.close(), process.stderr.close()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_pushes_what_was_read_and_says_where_to_go_on(ingest, number):
    shell = ingest()
    os.mkfifo(shell.directory / "pipe")
    process = shell.start("--json", "pipe")
    with open(shell.directory / "pipe", "wb", buffering=0) as pipe:
        pipe.write(b"1\n2\nhalf")
        deadline = time.monotonic() + 20
        while len(shell.lines()) < 2:
            assert time.monotonic() < deadline
            time.sleep(0.005)
        process.send_signal(number)
        out, error = process.communicate(timeout=20)
    done = json.loads(out)
    assert (1, 2, number.name) == (process.returncode, done["events"], done["interrupted"])
    assert [{"file": "pipe", "byte": 4, "line": 3}] == done["next"] and b"2 events accepted before that" in error


def test_an_engine_that_stops_cuts_the_run_off_and_the_place_is_said(ingest):
    shell = ingest()
    process = shell.start("--json")
    process.stdin.write(b"x\n" * 4096)
    process.stdin.flush()
    deadline = time.monotonic() + 20
    while shell.engine.status()["accounting"]["accepted"] < 4096:
        assert time.monotonic() < deadline
        time.sleep(0.005)
    shell.engine.stop()
    out, error = process.communicate(b"y\n", timeout=20)
    done = json.loads(out)
    assert (1, 4096) == (process.returncode, done["events"])
    assert "accepts nothing any more" in done["error"]
    assert [{"file": "-", "byte": 8192, "line": 4097}] == done["next"] and b"Traceback" not in error


def test_followed_files_are_read_as_they_grow_and_a_restart_goes_on(ingest):
    shell = ingest()
    shell.write("a.log", b"1\n")
    for expected in (["1", "2"], ["1", "2", "3"]):
        process = shell.start("--follow", "--positions", "where", "a.log")
        if len(expected) == 2:
            while not shell.lines():
                time.sleep(0.005)
        with open(shell.directory / "a.log", "ab") as file:
            file.write(f"{expected[-1]}\n".encode())
        deadline = time.monotonic() + 20
        while len(shell.lines()) < len(expected):
            assert time.monotonic() < deadline
            time.sleep(0.005)
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=20)
        assert 0 == process.returncode
        assert [f"None {line.encode()!r}" for line in expected] == shell.lines()


def test_a_killed_run_repeats_at_most_what_was_not_committed_and_misses_nothing(ingest):
    shell = ingest()
    shell.write("a.log", b"".join(b"%d\n" % i for i in range(1000)))
    process = shell.start("--positions", "where", "--rate", "400", "a.log")
    deadline = time.monotonic() + 20
    while not (shell.directory / "where").exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.kill()
    process.communicate()
    shell("--positions", "where", "a.log")
    assert {f"None {str(i).encode()!r}" for i in range(1000)} == set(shell.lines())


def test_several_files_at_once_keep_the_order_of_each(ingest):
    shell = ingest(shards=1)
    names = [shell.write(f"{n}.log", b"".join(b"%d %d\n" % (n, i) for i in range(3000))) for n in range(3)]
    assert 9000 == shell("--jobs", "2", "--key", "1", "--json", *names)["handled"]
    seen = [
        tuple(map(int, line.partition(" ")[2][2:-1].split()))
        for line in (shell.directory / "out.txt").read_text().splitlines()
    ]
    assert all([(n, i) for i in range(3000)] == [each for each in seen if each[0] == n] for n in range(3))


def test_compressed_files_and_directories_and_patterns_are_read_as_what_is_in_them(ingest):
    shell = ingest()
    (shell.directory / "logs").mkdir()
    shell.write("logs/a.log", b"1\n")
    shell.write("logs/b.log.gz", gzip.compress(b"2\n"))
    shell("logs")
    shell("logs/*.log")
    assert ["None b'1'", "None b'1'", "None b'2'"] == shell.lines()


def test_a_dry_run_shows_keys_payloads_and_types_and_pushes_nothing(ingest):
    shell = ingest()
    text = shell("--dry-run", "--format", "jsonl", "--key", "k", given=b'{"k":1}\n{"k":"x"}\nno\n')
    assert "key 1 (int), payload '{\"k\":1}'" in text and "key 'x' (str)" in text and "nothing was pushed" in text
    assert "line 3: is not JSON" in shell.error and not shell.lines()


def test_a_limit_and_a_constant_key_from_the_name(ingest):
    shell = ingest()
    shell.write("a.log", b"1\n2\n3\n")
    assert 2 == shell("--limit", "2", "--key-from-name", "--json", "a.log")["events"]
    assert ["'a.log' b'1'", "'a.log' b'2'"] == shell.lines()


@pytest.mark.parametrize(
    "arguments, code, part",
    [
        (["missing.csv"], 2, "cannot read missing.csv: No such file or directory; nothing was pushed"),
        (["/proc/self/mem"], 1, "reading /proc/self/mem failed: Input/output error"),
        (["--format", "xml"], 2, "'xml' is not one of"),
        (
            ["--format", "csv", "--key", "user", "semi.csv"],
            2,
            "no column user; its columns are user;page; is another --delimiter meant?",
        ),
        (["--key", "²", "semi.csv"], 2, "of lines the key is a field number from 1"),
        (["--max-bad", "x"], 2, "neither a number nor a percentage"),
        (["--from-end", "semi.csv"], 2, "--from-end is for --follow"),
        (["--dead-letter", "/nowhere/x", "semi.csv"], 2, "cannot write to /nowhere/x"),
    ],
)
def test_mistakes_are_said_in_a_line_and_push_nothing(ingest, arguments, code, part):
    shell = ingest()
    shell.write("semi.csv", b"user;page\nann;/\n")
    shell(*arguments, code=code)
    assert part in shell.error and 0 == shell.engine.status()["accounting"]["offered"]


def test_a_closed_standard_input_is_an_error_and_no_traceback(ingest):
    shell = ingest()
    command = f"exec {sys.executable} -m shardmem ingest --engine {shell.engine.name} <&-"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=60)
    assert 1 == done.returncode and "standard input is closed" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize("what", ["long lines", "no line end", "sparse"])
def test_memory_is_bounded(ingest, what):
    shell = ingest()
    path = shell.directory / "big"
    with open(path, "wb") as file:
        if what == "long lines":
            for _ in range(500):
                file.write(b"x" * 200_000 + b"\n")
        else:
            file.truncate(300 << 20 if what == "no line end" else 2 << 30)
    code = (
        "from shardmem.console.cli import main\n"
        "try: main(standalone_mode=False)\n"
        "except SystemExit: pass\n"
        # not ru_maxrss: an exec keeps that of the process that forked, which is this one
        "print(next(line.split()[1] for line in open('/proc/self/status') if line.startswith('VmHWM')))"
    )
    command = [sys.executable, "-c", code, "ingest", "--engine", shell.engine.name, "--skip-bad", "--json", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100)
    summary, peak = done.stdout.splitlines()
    assert int(peak) < 150_000, peak
    assert (500 if what == "long lines" else 0) == json.loads(summary)["events"], done.stderr


def test_two_runs_do_not_share_positions(ingest):
    shell = ingest()
    shell.write("a.log", b"1\n")
    first = shell.start("--follow", "--positions", "where", "a.log")
    while not shell.lines():
        time.sleep(0.005)
    shell("--positions", "where", "a.log", code=4)
    assert "another process reads with the positions" in shell.error
    first.send_signal(signal.SIGINT)
    first.communicate(timeout=20)
    assert threading.active_count() < 20
