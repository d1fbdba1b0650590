"""Settings are declared once; where each value came from is known down to the line of the file."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import pytest

from shardmem.config import Config, sourced
from shardmem.errors import ConfigError
from shardmem.policy import ScalingPolicy
from shardmem.settings import declared, setting
from shardmem.settings_sources import lines_of
from shardmem.supervisor.configured import faults_of


@pytest.mark.parametrize("cls", [Config, ScalingPolicy])
def test_every_setting_says_in_one_line_what_it_is_for(cls):
    settings = declared(cls)

    assert [each.name for each in fields(cls)] == list(settings)
    for each in settings.values():
        assert 10 <= len(each.help) <= 110, f"{each.name}: {each.help!r}"
        assert "\n" not in each.help and not each.help.endswith("."), f"{each.name}: {each.help!r}"
        if each.unit in ("number", "bytes", "microseconds") and cls is Config:
            assert each.least is not None and each.most is not None, f"{each.name} has no limits"


def test_a_field_without_help_and_a_unit_that_is_none_are_refused():
    @dataclass
    class Bare:
        naked: int = 3

    with pytest.raises(TypeError, match="Bare.naked is not a setting"):
        declared(Bare)
    with pytest.raises(ValueError, match="unit='furlongs' is not one of"):
        setting(1, "how far", "furlongs")


@pytest.mark.parametrize(
    "unit, given, expected",
    [
        ("bytes", "64KiB", 65536),
        ("number", "1_000", 1000),
        ("seconds", "1.5m", 90.0),
        ("seconds", 3, 3.0),
        ("switch", "No", False),
        ("switch", True, True),
        ("text", "x", "x"),
    ],
)
def test_values_are_read_by_their_unit(unit, given, expected):
    assert expected == declared(one_of(unit))["it"].read(given, pytest.fail)


@pytest.mark.parametrize(
    "unit, given",
    [
        ("bytes", "64 parsecs"),
        ("number", 1.5),
        ("number", True),
        ("seconds", "soon"),
        ("seconds", float("nan")),
        ("seconds", -1),
        ("switch", "perhaps"),
        ("switch", 2),
        ("text", 5),
    ],
)
def test_what_cannot_be_read_is_a_fault_that_begins_with_the_name_and_leaves_the_default(unit, given):
    faults: list[str] = []

    assert "the default" == declared(one_of(unit))["it"].read(given, faults.append)
    assert 1 == len(faults) and faults[0].startswith(f"it={given!r} "), faults


def one_of(unit: str) -> Any:
    @dataclass
    class One:
        it: Any = setting("the default", "something to try", unit)

    return One


FILE = """# an engine
handler = "json:loads"
slots = 100
   lane_byte = 65536
drain_timeout = "2 parsecs"
dtype = "nomodule:X"
shards=3   # too few slots are not the matter

[policy]   # judgement
cooldown = "5s"
"busy_threshold" = 7
busyness = 3
preset = "conservative"
"""


def test_one_error_lists_all_faults_each_with_its_place(tmp_path):
    file = tmp_path / "engine.toml"
    file.write_text(FILE)

    with pytest.raises(ConfigError) as caught:
        sourced(str(file), {"max_producers": "0", "batch_rows": None}, {"SHARDMEM_SPIN_US": "-1"}, faults_of)

    expected = [
        ("SHARDMEM_SPIN_US: spin_us='-1' is not a number", None),
        ("--max-producers: max_producers=0 is outside 1 to 512", None),
        ("slots=100 is not a power of two; the next is 128", 3),
        ("lane_byte is not a setting; did you mean lane_bytes?", 4),
        ("drain_timeout='2 parsecs' is not a duration", 5),
        ("dtype='nomodule:X' cannot be imported", 6),
        ("policy.busy_threshold must be above 0", 11),
        ("policy.busyness is not a setting", 12),
    ]
    assert len(expected) == len(caught.value.faults), caught.value
    for (part, line), fault in zip(expected, caught.value.faults):
        assert fault.startswith(f"{file} line {line}: {part}" if line else part), fault


def test_a_value_remembers_where_it_came_from_and_the_later_source_wins(tmp_path):
    file = tmp_path / "ticks.toml"
    file.write_text('handler = "json:loads"\nslots = 64\nshards = 2\nlane_bytes = "64KiB"\n')

    config, sources = sourced(
        str(file), {"shards": "5"}, {"SHARDMEM_SLOTS": "128", "SHARDMEM_SHARDS": "3", "SHARDMEM_OTHER": "x"}
    )

    assert (128, 5, 65536, "ticks") == (config.slots, config.shards, config.lane_bytes, config.name)
    found = {name: (origin.kind, origin.text, origin.line) for name, origin in sources.origins.items()}
    assert {
        "handler": ("file", f"{file} line 1", 1),
        "slots": ("variable", "SHARDMEM_SLOTS", None),
        "shards": ("flag", "--shards", None),
        "lane_bytes": ("file", f"{file} line 4", 4),
        "name": ("file", f"{file} (its name)", None),
    } == found


def test_a_preset_that_a_flag_names_replaces_the_table_of_the_file(tmp_path):
    file = tmp_path / "e.toml"
    file.write_text('handler = "json:loads"\n[policy]\ncooldown = 3\n')

    config, sources = sourced(str(file), {"policy": "conservative"}, {}, faults_of)

    assert "conservative" == config.policy and "policy.cooldown" not in sources.origins


@pytest.mark.parametrize(
    "policy, part",
    [
        ({"preset": "eager"}, "policy.preset='eager' is not one of default, high_throughput, conservative"),
        ({"min_shards": 3}, "policy.min_shards is a setting of the engine: write min_shards outside of policy"),
        ({"cooldwon": 3}, "policy.cooldwon is not a setting; did you mean cooldown?"),
        ({"cooldown": "soon"}, "policy.cooldown='soon' is not a duration"),
        ({"underutilized_threshold": 0.9}, "policy.underutilized_threshold=0.9 must be below"),
    ],
)
def test_a_fault_of_the_policy_names_the_member_of_its_table(policy, part):
    assert any(part in fault for fault in faults_of(Config.of(name="e", handler="m:f", policy=policy)))


@pytest.mark.parametrize(
    "line, part",
    [
        ("handler = 5", "handler=5 is neither a function nor a Handler nor 'module:name'"),
        ('handler = "json"', "handler='json' is not of the form 'module:name'"),
        ("strategy = 5", "strategy=5 is not text"),
        ('strategy = "nomodule:Thing"', "strategy='nomodule:Thing' cannot be loaded"),
        ('dtype = [["a"]]', "dtype=[('a',)] is not a numpy dtype"),
        ("policy = 5", "policy=5 is neither the name of a preset nor a table of settings"),
        ("slots = [1]", "slots=[1] is not a whole number"),
    ],
)
def test_what_is_no_setting_at_all_is_one_fault_with_its_line(tmp_path, line, part):
    file = tmp_path / "e.toml"
    file.write_text(("" if "handler" in line else 'handler = "json:loads"') + f"\n{line}\n")
    with pytest.raises(ConfigError) as caught:
        sourced(str(file), {}, {}, faults_of)
    assert 1 == len(caught.value.faults) and caught.value.faults[0].startswith(f"{file} line 2: {part}"), caught.value


def test_a_policy_takes_durations_with_units():
    assert [] == faults_of(Config.of(name="e", handler="m:f", policy={"cooldown": "500ms", "preset": "conservative"}))


@pytest.mark.parametrize(
    "text, expected",
    [
        ("a = 1\n\nb=2", {"a": 1, "b": 3}),
        ('# a = 1\n"a" = 1', {"a": 2}),
        ("[policy]\na = 1\n[other]\na = 2", {"policy": 1, "policy.a": 2, "other": 3, "other.a": 4}),
        ("policy.a = 1\npolicy . b = 2", {"policy": 1, "policy.a": 1, "policy.b": 2}),
        ("policy = {a = 1, b = 'x'} # c = 3", {"policy": 1, "policy.a": 1, "policy.b": 1}),
        ('x = """\na = 1\n"""\na = 2', {"x": 1, "a": 4}),
        ('x = """one line"""\na = 2', {"x": 1, "a": 2}),
        ("x = [\n  ['a', 'u8'],\n]\na = 2", {"x": 1, "a": 4}),
    ],
)
def test_the_line_of_a_key(text, expected):
    assert expected == lines_of(text)
