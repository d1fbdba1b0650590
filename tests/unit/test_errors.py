"""Errors: text, detail and hint, wherever they go."""

from __future__ import annotations

import copy
import inspect
import json
import pickle
import traceback

import pytest
from click.testing import CliRunner

import shardmem
from shardmem import errors
from shardmem.client.client import Client
from shardmem.console.cli import main
from shardmem.errors import ConfigError, NotRunning, OutOfMemory, ShardmemError, with_hint
from shardmem.http.operations import COMMANDS
from shardmem.policy.scaling import InvalidPolicy, ScalingError

ERRORS = [
    ShardmemError("it failed", detail="The disk is full.", hint="Make room"),
    ConfigError(["slots=3 is not a power of two", "shards=0 is outside 1 to 1,024"], hint="See docs/settings.md"),
    NotRunning("no engine is running here", hint="Start one"),
    OutOfMemory.of_segment("lane 3", 4096, 512, "/dev/shm"),
    errors.Backpressure([(1, b"x")], 3, 1, 7, 0.25),
    ScalingError("at_max_shards", "2 shards are the most", hint="Raise `max_shards`"),
    InvalidPolicy(["cooldown is negative", "min_shards=2 is above max_shards=1"]),
]


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_an_error_is_the_same_in_another_process(error, protocol):
    for other in (pickle.loads(pickle.dumps(error, protocol)), copy.copy(error)):
        assert (type(error), str(error), vars(error)) == (type(other), str(other), vars(other))


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_an_error_arrives_by_json_with_text_and_hint(error):
    other = ShardmemError.of(json.loads(json.dumps(error.describe())))

    assert (str(error), error.hint) == (str(other), other.hint)
    if type(error) in (ShardmemError, ConfigError, NotRunning, OutOfMemory):
        assert type(error) is type(other)
    if isinstance(error, OutOfMemory):
        assert (4096, 512) == (other.need, other.free)


def test_every_public_error_can_arrive_by_json_as_what_it_is():
    for cls in vars(errors).values():
        if (
            inspect.isclass(cls)
            and issubclass(cls, ShardmemError)
            and not issubclass(cls, (OutOfMemory, errors.Backpressure))
        ):
            assert cls is type(ShardmemError.of({"error": "text", "hint": None, "kind": cls.__name__}))


def test_a_kind_that_is_not_an_error_of_shardmem_arrives_as_the_base():
    for kind in ("Any", "copyreg", "Backpressure", "OutOfMemory", "Nothing", None):
        assert ShardmemError is type(ShardmemError.of({"error": "text", "kind": kind}))


def test_text_and_detail_are_the_string_and_the_hint_stands_apart():
    error = ERRORS[0]

    assert "it failed. The disk is full." == str(error) and "Make room" == error.hint
    assert "it failed. The disk is full. (hint: Make room)" == with_hint(error)
    assert "nothing to add" == with_hint(ValueError("nothing to add"))
    assert ShardmemError("it failed").hint is None


@pytest.mark.skipif(not hasattr(BaseException, "add_note"), reason="tracebacks show notes from Python 3.11 on")
def test_a_traceback_shows_the_hint_below_the_error():
    assert "hint: Start one\n" == traceback.format_exception_only(ERRORS[2])[-1]


def test_the_command_line_prints_error_and_hint_in_two_lines_and_both_as_json():
    result = CliRunner().invoke(main, ["scale", "2", "--engine", "no-such-engine", "--json"])

    first, second = result.stderr.splitlines()
    assert 1 == result.exit_code and first.startswith("error: no engine named 'no-such-engine'")
    assert second.startswith("hint: ")
    answer = json.loads(result.stdout)
    assert f"error: {answer['error']}" == first and f"hint: {answer['hint']}" == second
    assert "NotRunning" == answer["kind"]
    assert "" == CliRunner().invoke(main, ["scale", "2", "--engine", "no-such-engine"]).stdout


def test_a_command_has_one_text_in_help_openapi_and_docstrings():
    checked = set()
    for declared in COMMANDS:
        method = {"scale": "scale_to"}.get(declared.name, declared.name)
        for cls in (Client, shardmem.Engine):
            if declared.name != "stop" and (found := getattr(cls, method, None)) is not None:
                text = " ".join((inspect.getdoc(found) or "").split())
                assert text.startswith(f"{declared.help}."), (cls, method, text)
                checked.add((cls.__name__, declared.name))
        if (command := main.commands.get(declared.name)) is not None:
            assert f"{declared.help}." == command.get_short_help_str(80)
            checked.add(("shardmem", declared.name))
    for name in ("scale", "drain", "move", "rebalance", "reload"):
        assert {("Client", name), ("Engine", name), ("shardmem", name)} <= checked
