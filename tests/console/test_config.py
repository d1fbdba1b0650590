"""`shardmem config`: what is in force, and where it is from."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from shardmem.config import Config, sourced
from shardmem.console import explain
from shardmem.console.cli import main
from shardmem.policy import ScalingPolicy
from shardmem.settings import declared
from shardmem.supervisor import explained

DOCS = Path(__file__).parents[2] / "docs"


@pytest.fixture
def shardmem(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "ticks.toml").write_text(
        'handler = "json:loads"\nlane_bytes = "64KiB"\n[policy]\npreset = "conservative"\ncooldown = "5s"\n'
    )

    def run(*arguments, code=0, **variables):
        done = CliRunner().invoke(main, arguments, env=variables)
        assert code == done.exit_code, (done.output, done.exception)
        return done

    return run


def rows(done):
    return {row["name"]: row for row in json.loads(done.stdout)["settings"]}


def test_every_setting_is_shown_with_value_unit_default_origin_and_help(shardmem):
    found = rows(shardmem("config", "ticks.toml", "--shards", "2", "--json", SHARDMEM_SLOTS="64"))

    of_the_policy = [
        f"policy.{name}" for name in declared(ScalingPolicy) if name not in ("min_shards", "max_shards", "auto_scale")
    ]
    assert [*declared(Config), *of_the_policy] == list(found)
    for name, row in found.items():
        assert row["help"] and row["unit"], name

    def brief(name):
        return tuple(found[name][key] for key in ("value", "unit", "default", "from", "place", "line"))

    assert (65536, "bytes", 1 << 20, "file", "ticks.toml line 2", 2) == brief("lane_bytes")
    assert (64, "number", 1024, "variable", "SHARDMEM_SLOTS", None) == brief("slots")
    assert (2, "number", None, "flag", "--shards", None) == brief("shards")
    assert (64, "number", 64, "default", "default", None) == brief("max_producers")
    assert ("ticks", "text", None, "file", "ticks.toml (its name)", None) == brief("name")
    assert (5.0, "seconds", 15.0, "file", "ticks.toml line 5", 5) == brief("policy.cooldown")
    assert (0.9, "share", 0.9, "default", "default", None) == brief("policy.busy_threshold")


def test_settings_are_shown_to_people_within_80_columns(shardmem):
    lines = shardmem("config", "ticks.toml", "--slots", "64").stdout.splitlines()

    assert "lane_bytes: 65,536 bytes   [ticks.toml line 2; default: 1,048,576 bytes]" in lines
    assert "slots: 64   [--slots; default: 1,024]" in lines
    assert "max_producers: 64   [default]" in lines
    assert "policy: as below, on preset conservative   [ticks.toml line 3; default: default]" in lines
    assert max(map(len, lines)) <= 80
    assert "    how many producers can be connected at once (number, 1 to 512)" in lines


def test_a_secret_is_never_shown(shardmem, tmp_path):
    for arguments in (("config", "ticks.toml"), ("config", "ticks.toml", "--json")):
        said = shardmem(*arguments, SHARDMEM_HTTP_TOKEN="s3cret").stdout
        assert "s3cret" not in said and "set, and not shown" in said and "SHARDMEM_HTTP_TOKEN" in said
    (tmp_path / "bad.toml").write_text('handler = "json:loads"\nhttp_token = 5550123\n')
    said = shardmem("config", "bad.toml", code=2).stderr
    assert "line 2: http_token=... is not text" in said and "5550123" not in said
    for token in ("", "x\n"):
        assert "http_token is empty" in shardmem("config", "ticks.toml", "--http-token", token, code=2).stderr


def test_without_a_target_nobody_has_to_say_what_is_to_be_run(shardmem):
    found = rows(shardmem("config", "--json"))
    assert found["name"]["required"] and found["name"]["value"] is found["handler"]["value"] is None
    assert "handler: required\n" in shardmem("config").stdout


def test_module_and_name_are_a_target_too(shardmem):
    found = rows(shardmem("config", "json:loads", "--json"))
    assert ("json", "json:loads") == (found["name"]["value"], found["handler"]["value"])


def test_faults_have_their_lines_and_exit_code_2(shardmem, tmp_path):
    (tmp_path / "bad.toml").write_text("slots = 3\n\nlane_byte = 4\n")
    done = shardmem("config", "bad.toml", "--spin-us", "x", code=2)
    assert [
        "error: - handler is missing",
        "- --spin-us: spin_us='x' is not a number",
        "- bad.toml line 1: slots=3 is not a power of two; the next is 4",
        "- bad.toml line 3: lane_byte is not a setting; did you mean lane_bytes?",
    ] == done.stderr.splitlines()


def test_run_has_a_flag_for_every_setting_and_reports_faults_with_their_lines_too(shardmem, tmp_path):
    said = shardmem("run", "--help").stdout
    for name, each in declared(Config).items():
        assert name == "handler" or each.flag in said, f"run has no {each.flag}"
    (tmp_path / "bad.toml").write_text('handler = "json:loads"\n[policy]\nbusy_threshold = 7\n')
    assert "bad.toml line 3: policy.busy_threshold must be above 0" in shardmem("run", "bad.toml", code=2).stderr


def test_the_page_of_settings_is_what_the_declarations_say():
    page = explain.page()

    assert (DOCS / "settings.md").read_text() == page, "out of date: shardmem config --markdown > docs/settings.md"
    for name, each in [*declared(Config).items(), *declared(ScalingPolicy).items()]:
        assert f"`{name}`" in page and (each.help in page or name in ("min_shards", "max_shards", "auto_scale")), name


def test_secrets_of_brokers_are_not_shown(tmp_path):
    """They were, by `shardmem config` and by the page."""
    path = tmp_path / "engine.toml"
    path.write_text(
        'name = "e"\nhandler = "app:handle"\n[source]\nkind = "kafka"\ntopics = ["t"]\n'
        '[source.kafka]\n"bootstrap.servers" = "h:1"\n"sasl.password" = "hush"\n'
        '[outbox.kafka]\n"bootstrap.servers" = "h:2"\n"sasl.password" = "hush"\n'
    )
    config, sources = sourced(str(path), {}, {})
    shown = json.dumps(explained.rows(config, sources.origins))
    assert "hush" not in shown and "h:1" in shown and "h:2" in shown
