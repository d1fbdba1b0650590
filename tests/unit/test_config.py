"""Settings: every fault in one error, each with the value and the limit."""

from __future__ import annotations

import errno
import tempfile

import numpy as np
import pytest

from shardmem import config, places
from shardmem.config import Config, load
from shardmem.errors import ConfigError


def faults_of(**values) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        Config.of(**{"name": "e", "handler": "m:f", **values})
    return caught.value.faults


def test_one_error_lists_every_fault():
    faults = faults_of(slots=100, lane_bytes="5 parsecs", shardz=3, backpressure="maybe", max_producers=0)

    assert 5 == len(faults)
    text = "\n".join(faults)
    assert "shardz is not a setting; did you mean shards?" in text
    assert "slots=100 is not a power of two; the next is 128" in text
    assert "5 parsecs" in text and "maybe" in text and "max_producers=0" in text


@pytest.mark.parametrize("text, expected", [("64KiB", 65536), ("1 MiB", 1 << 20), ("65_536", 65536), (65536, 65536)])
def test_sizes_take_units(text, expected):
    assert expected == Config.of(name="e", handler="m:f", lane_bytes=text).lane_bytes


@pytest.mark.parametrize("text, expected", [("250ms", 0.25), ("2m", 120.0), (3, 3.0), ("1.5", 1.5)])
def test_durations_take_units(text, expected):
    assert expected == Config.of(name="e", handler="m:f", drain_timeout=text).drain_timeout


@pytest.mark.parametrize(
    "values, part",
    [
        ({"shards": 4, "max_shards": 2}, "max_shards=2 is less than the 4 to start with (shards)"),
        ({"slots": 2, "shards": 4}, "slots=2 is less than the 4 shards"),
        ({"key": "x"}, "dtype is not given"),
        ({"dtype": [("a", "u8")], "key": "b"}, "is not a field of the dtype; its fields are a"),
        ({"dtype": [("a", "f8")], "key": "a"}, "a key is a native integer"),
        ({"dtype": [("a", "O")]}, "Python objects"),
        ({"dtype": "f8"}, "has no fields"),
        ({"dtype": [("a", "V9000")], "lane_bytes": 4096}, "too small for rows of 9,000 bytes"),
        ({"lane_bytes": 64}, "lane_bytes=64 is too small for events"),
        ({"name": "no/slash"}, "name='no/slash' is not usable"),
        ({"shards": True}, "shards=True is not a whole number"),
    ],
)
def test_a_fault_says_what_and_why(values, part):
    assert any(part in fault for fault in faults_of(**values)), faults_of(**values)


def test_flags_win_over_the_environment_and_that_over_the_file(tmp_path):
    file = tmp_path / "ticks.toml"
    file.write_text('handler = "m:f"\nslots = 64\nshards = 2\nlane_bytes = "64KiB"\n')

    config = load(
        str(file), {"shards": "5", "name": None}, {"SHARDMEM_SLOTS": "128", "SHARDMEM_SHARDS": "3", "HOME": "x"}
    )

    assert ("ticks", 128, 5, 65536) == (config.name, config.slots, config.shards, config.lane_bytes)


def test_a_dtype_in_a_file_is_a_list_of_fields(tmp_path):
    file = tmp_path / "e.toml"
    file.write_text('handler = "m:f"\ndtype = [["symbol", "u8"], ["price", "f8"]]\nkey = "symbol"\n')

    assert np.dtype([("symbol", "u8"), ("price", "f8")]) == load(str(file), {}, {}).schema.dtype


def test_a_missing_or_broken_file_is_a_clear_error(tmp_path):
    with pytest.raises(ConfigError, match="does not exist"):
        load(str(tmp_path / "nothing.toml"), {}, {})
    broken = tmp_path / "broken.toml"
    broken.write_text("slots = = 3")
    with pytest.raises(ConfigError, match="not valid TOML.*line 1"):
        load(str(broken), {}, {})


def test_a_variable_that_is_all_but_a_setting_is_a_fault_and_others_are_somebody_elses():
    with pytest.raises(ConfigError, match="SHARDMEM_SHARD is not a setting; did you mean SHARDMEM_SHARDS?"):
        load(None, {"name": "e", "handler": "m:f"}, {"SHARDMEM_SHARD": "3"})

    load(
        None,
        {"name": "e", "handler": "m:f"},
        {"SHARDMEM_PORT": "tcp://10.0.0.1:80", "SHARDMEM_SERVICE_HOST": "10.0.0.1"},
    )


DAMAGED = {
    "nested too deeply": b"x = " + b"[" * 100_000 + b"]" * 100_000,
    "not valid TOML: Exceeds the limit": b"slots = " + b"1" * 5000,
    "not valid TOML: 'utf-8' codec": b"\x00\xff\xfe",
    "state_dir='a\\x00b' has control characters": b'handler = "m:f"\nstate_dir = "a\\u0000b"',
    "lane_bytes=111,111": b'handler = "m:f"\nlane_bytes = "' + b"1" * 5000 + b'"',
    "boot_timeout=inf is not a duration": b'handler = "m:f"\nboot_timeout = "' + b"9" * 400 + b'h"',
}


@pytest.mark.parametrize("part", DAMAGED)
def test_a_file_that_is_damaged_on_purpose_is_a_clear_error_too(tmp_path, part):
    path = tmp_path / "e.toml"
    path.write_bytes(DAMAGED[part])
    with pytest.raises(ConfigError) as caught:
        load(str(path), {}, {})
    assert part in str(caught.value) and str(path) in str(caught.value)


def test_without_a_temporary_directory_that_can_be_written_to_the_error_is_one_of_ours(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With 17 descriptors there is none either: a traceback of `shardmem run` in a hostile campaign."""

    def none() -> str:
        raise FileNotFoundError(errno.ENOENT, "No usable temporary directory found in ['/tmp']")

    monkeypatch.setattr(tempfile, "gettempdir", none)
    for asked in (places.runtime_directories, config.default_directory):
        with pytest.raises(ConfigError, match="No usable temporary directory .* no descriptor left"):
            asked()
