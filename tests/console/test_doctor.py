"""`shardmem doctor`: of settings, of a file, of an engine that is here."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner

from shardmem.console.cli import main
from shardmem.memory.engine_segment import ControlSegment
from shardmem.schema import Schema


@pytest.fixture
def doctor(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def run(*arguments, code=0):
        done = CliRunner().invoke(main, ["doctor", *arguments])
        assert code == done.exit_code, (done.output, done.exception)
        return done

    return run


def test_every_check_has_name_level_finding_and_remedy(doctor):
    document = json.loads(doctor("--json").stdout)

    assert document["worst"] in ("ok", "info", "warning")
    for check in document["checks"]:
        assert {"name", "level", "found", "remedy"} == check.keys() and check["name"] and check["found"]
        assert check["level"] in ("ok", "info", "warning", "error") and bool(check["remedy"]) >= (
            check["level"] != "ok"
        ), check
    assert {"shared memory", "kernel", "cores"} <= {check["name"] for check in document["checks"]}


def test_a_problem_is_exit_code_1_and_what_to_do_is_said_within_80_columns(doctor, tmp_path):
    (tmp_path / "huge.toml").write_text('handler = "json:loads"\nlane_bytes = "2GiB"\nshards = 1024\n')
    text = doctor("huge.toml", code=1).stdout
    assert "error    shared memory: " in text and "not one producer fits" in " ".join(text.split())
    assert "remedy: mount -o remount,size=" in text and max(map(len, text.splitlines())) <= 80


def test_an_engine_that_is_here_is_examined_as_it_was_made(doctor, engine_name):
    control = ControlSegment.create(engine_name, Schema(), slots=64, max_shards=3, max_producers=5, lane_bytes=1 << 16)
    try:
        document = json.loads(doctor(engine_name, "--json").stdout)
        memory = next(check for check in document["checks"] if check["name"] == "shared memory")
        assert engine_name == document["engine"] and "with 5 producers at 3 shards" in memory["found"]
        assert " are its own" in memory["found"]
    finally:
        control.segment.unlink()
        control.close()


def test_a_target_that_is_neither_file_nor_engine_fails(doctor):
    assert "no engine named 'no-such-engine'" in doctor("no-such-engine", code=1).stderr
    assert "file nothing.toml does not exist" in doctor("nothing.toml", code=2).stderr
