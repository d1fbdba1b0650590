"""The dashboard and the alerts in examples/ ask for metrics, labels and values that there are."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from shardmem.status.figures import FIGURES, HISTOGRAM

EXAMPLES = Path(__file__).parents[2] / "examples"
ALERTS, DASHBOARD = EXAMPLES / "alerts.yml", EXAMPLES / "grafana-dashboard.json"
FIGURE_OF = {
    each.metric + part: each
    for each in FIGURES
    if each.metric
    for part in (("_bucket", "_sum", "_count") if each.kind == HISTOGRAM else ("",))
}
IN_BRACES = re.compile(r"(shardmem_\w+)(?:\{([^}]*)\})?")
GIVEN = re.compile(r'(\w+)(=~|!=|!~|=)"([^"]*)"')


def rules() -> list[dict]:
    return [rule for group in yaml.safe_load(ALERTS.read_text())["groups"] for rule in group["rules"]]


def expressions() -> Iterator[tuple[str, str]]:
    for rule in rules():
        yield f"alert {rule['alert']}", rule["expr"]
    dashboard = json.loads(DASHBOARD.read_text())
    for panel in dashboard["panels"]:
        for target in panel["targets"]:
            yield f"panel {panel['title']}", target["expr"]
    yield from (("variable", each["query"]) for each in dashboard["templating"]["list"] if each["type"] == "query")


def faults(expression: str) -> list[str]:
    found = []
    for metric, selector in IN_BRACES.findall(expression):
        figure = FIGURE_OF.get(metric)
        if figure is None:
            found.append(f"there is no {metric}")
            continue
        for label, _, value in GIVEN.findall(selector):
            if label not in ("engine", "instance", *figure.labels):
                found.append(f"{metric} has no label {label}")
            elif figure.values and label in figure.labels[-1:] and value not in figure.values:
                found.append(f"{label} of {metric} is never {value!r}")
    return found


def test_what_is_asked_for_exists():
    asked = list(expressions())
    assert {} == {f"{where}: {expression}": found for where, expression in asked if (found := faults(expression))}
    assert 30 < len(asked) and all("shardmem" in expression for _, expression in asked)


@pytest.mark.parametrize(
    "expression, part",
    [
        ("rate(shardmem_handled[5m])", "no shardmem_handled"),
        ("shardmem_slots_unknown", "there is no"),
        ('shardmem_shard_state{state="broken"}', "never 'broken'"),
        ('shardmem_in_flight{shard="0"}', "no label shard"),
        ("shardmem_shard_latency_seconds", "there is no"),
    ],
)
def test_what_does_not_exist_is_found(expression, part):
    assert any(part in each for each in faults(expression))


def test_every_alert_says_how_bad_it_is_and_what_to_do():
    found = {rule["alert"]: rule for rule in rules()}
    assert {
        "ShardmemCrashLoop",
        "ShardmemShardFailed",
        "ShardmemSlotsUnowned",
        "ShardmemLaneNearlyFull",
        "ShardmemQuarantineGrowing",
        "ShardmemSupervisorHeartbeatOld",
        "ShardmemHandoffLate",
        "ShardmemEventsRefused",
    } <= found.keys()
    for name, rule in found.items():
        assert rule["labels"]["severity"] in ("critical", "warning") and rule["annotations"]["summary"], name
        labels = re.findall(r"\$labels\.(\w+)", json.dumps(rule))
        of_metrics = {label for metric, _ in IN_BRACES.findall(rule["expr"]) for label in FIGURE_OF[metric].labels}
        assert set(labels) <= {"engine", "instance", *of_metrics}, f"{name} names a label that its metrics do not have"


def test_engines_of_one_name_on_several_hosts_are_told_apart():
    for where, expression in expressions():
        if where.startswith("panel"):
            assert expression.count('instance=~"$instance"') == len(IN_BRACES.findall(expression)), (
                f"{where}: {expression}"
            )
    for rule in rules():
        assert "$labels.instance" in rule["annotations"]["summary"], rule["alert"]
        assert "by (" not in rule["expr"] or "instance" in rule["expr"], rule["alert"]


def test_every_panel_says_what_it_shows():
    panels = json.loads(DASHBOARD.read_text())["panels"]
    assert [] == [panel["title"] for panel in panels if len(panel.get("description", "")) < 15]


def test_panels_of_the_dashboard_do_not_overlap_and_have_numbers_of_their_own():
    panels = json.loads(DASHBOARD.read_text())["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    cells = [
        (x, y)
        for each in (panel["gridPos"] for panel in panels)
        for x in range(each["x"], each["x"] + each["w"])
        for y in range(each["y"], each["y"] + each["h"])
    ]
    assert len(set(cells)) == len(cells) and max(x for x, _ in cells) < 24


# ---- with Prometheus's own tool --------------------------------------------------------------------------------------

needs_promtool = pytest.mark.skipif(
    shutil.which("promtool") is None,
    reason="promtool is not installed (it is in Debian's package prometheus): rules are not run",
)
# For each alert: series, minute by minute, with which it fires at the minute that is named; its labels beside the
# severity; and what it says by then, where that is not the text of the rule.
ILL: dict[str, tuple[dict[str, str], int, dict[str, str], dict[str, str]]] = {
    "ShardmemDown": (
        {'up{job="shardmem", instance="a:9105"}': "1 0x5"},
        3,
        {"job": "shardmem", "instance": "a:9105"},
        {"summary": "a:9105 does not answer"},
    ),
    "ShardmemSupervisorHeartbeatOld": (
        {'shardmem_supervisor_heartbeat_age_seconds{engine="e", instance="a:9105"}': "0.1 40 100 160"},
        3,
        {"engine": "e", "instance": "a:9105"},
        {"summary": "e on a:9105: the supervisor has not responded for 2m 40s"},
    ),
    "ShardmemShardFailed": (
        {
            'shardmem_shard_state{engine="e", instance="a:9105", shard="3", state="failed"}': "0 1",
            'shardmem_shard_state{engine="e", instance="a:9105", shard="3", state="active"}': "1 0",
        },
        1,
        {"engine": "e", "instance": "a:9105", "shard": "3", "state": "failed"},
        {"summary": "e on a:9105: shard 3 has failed"},
    ),
    "ShardmemShardWaiting": (
        {'shardmem_shard_waiting_seconds{engine="e", instance="a:9105", shard="3"}': "10 90"},
        1,
        {"engine": "e", "instance": "a:9105", "shard": "3"},
        {"summary": "e on a:9105: shard 3 has waited for 1m 30s"},
    ),
    "ShardmemSlotsUnowned": (
        {'shardmem_slots_unowned{engine="e", instance="a:9105"}': "0 512 512 512"},
        3,
        {"engine": "e", "instance": "a:9105"},
        {"summary": "e on a:9105: 512 slots have no live owner"},
    ),
    "ShardmemCrashLoop": (
        {'shardmem_shard_crashes_total{engine="e", instance="a:9105", shard="3"}': "0+1x10"},
        6,
        {"engine": "e", "instance": "a:9105", "shard": "3"},
        {
            "summary": "e on a:9105: workers of shard 3 keep dying",
            "description": "5 in five minutes. `shardmem status --json` has the last exit of each shard.",
        },
    ),
    "ShardmemLaneNearlyFull": (
        {'shardmem_shard_fill_ratio{engine="e", instance="a:9105", shard="3"}': "0.5 0.95x5"},
        4,
        {"engine": "e", "instance": "a:9105", "shard": "3"},
        {"summary": "e on a:9105: a lane of shard 3 is 95% full"},
    ),
    "ShardmemQuarantineGrowing": (
        {'shardmem_quarantined_total{engine="e", instance="a:9105"}': "7x15 8x5"},
        17,
        {"engine": "e", "instance": "a:9105"},
        {"summary": "e on a:9105: quarantined events: 1 in 15 minutes"},
    ),
    "ShardmemHandoffLate": (
        {'shardmem_handoffs_late{engine="e", instance="a:9105"}': "0 2 2 2"},
        3,
        {"engine": "e", "instance": "a:9105"},
        {"summary": "e on a:9105: 2 handoffs are late"},
    ),
    "ShardmemEventsRefused": (
        {'shardmem_refused_total{engine="e", instance="a:9105", reason="full"}': "0+60x12"},
        11,
        {"engine": "e", "instance": "a:9105", "reason": "full"},
        {"summary": "e on a:9105: 1 events a second are refused (full)"},
    ),
    "ShardmemSharedMemoryNearlyFull": (
        {
            'shardmem_shm_free_bytes{engine="e", instance="a:9105"}': "9000 40x9",
            'shardmem_shm_size_bytes{engine="e", instance="a:9105"}': "10000x9",
        },
        7,
        {"engine": "e", "instance": "a:9105"},
        {"summary": "e on a:9105: 0.4% of /dev/shm is free"},
    ),
    "ShardmemEventsOld": (
        {'shardmem_shard_oldest_seconds{engine="e", instance="a:9105", shard="3"}': "0 290+60x10"},
        8,
        {"engine": "e", "instance": "a:9105", "shard": "3"},
        {"summary": "e on a:9105: an event of shard 3 is 11m 50s old and not handled"},
    ),
    "ShardmemCheckpointSlow": (
        {'shardmem_shard_last_checkpoint_seconds{engine="e", instance="a:9105", shard="3"}': "1 12x9"},
        7,
        {"engine": "e", "instance": "a:9105", "shard": "3"},
        {"summary": "e on a:9105: checkpoints of shard 3 take 12s"},
    ),
    "ShardmemSourceDown": (
        {'shardmem_source_up{engine="e", instance="a:9105", source="kafka"}': "1 0x9"},
        7,
        {"engine": "e", "instance": "a:9105", "source": "kafka"},
        {"summary": "e on a:9105: source kafka does not run"},
    ),
}
# An engine that is well, though not idle: what each alert is about has happened, or comes near it.
WELL = {
    'up{job="shardmem", instance="a:9105"}': "1x10 0 1x10",  # started anew
    'shardmem_supervisor_heartbeat_age_seconds{engine="e", instance="a:9105"}': "0.2x8 11 0.2x12",
    'shardmem_shard_state{engine="e", instance="a:9105", shard="0", state="failed"}': "0x20",
    'shardmem_shard_state{engine="e", instance="a:9105", shard="0", state="active"}': "1x20",
    'shardmem_shard_waiting_seconds{engine="e", instance="a:9105", shard="0"}': "_x5 12 50 _x13",  # a sink was away
    'shardmem_slots_unowned{engine="e", instance="a:9105"}': "0x5 512 0x15",  # a worker was started again
    'shardmem_shard_crashes_total{engine="e", instance="a:9105", shard="0"}': "5x6 7x14",
    'shardmem_shard_fill_ratio{engine="e", instance="a:9105", shard="0"}': "0.89x5 0.95 0.89x15",
    'shardmem_quarantined_total{engine="e", instance="a:9105"}': "23x20",
    'shardmem_handoffs_late{engine="e", instance="a:9105"}': "0x5 1 0x15",
    'shardmem_refused_total{engine="e", instance="a:9105", reason="full"}': "900x20",
    'shardmem_refused_total{engine="e", instance="a:9105", reason="sampled"}': "0+600x20",
    'shardmem_refused_total{engine="e", instance="a:9105", reason="timeout"}': "0x20",
    'shardmem_shm_free_bytes{engine="e", instance="a:9105"}': "5000x8 500x2 5000x10",
    'shardmem_shm_size_bytes{engine="e", instance="a:9105"}': "10000x20",
    'shardmem_shard_oldest_seconds{engine="e", instance="a:9105", shard="0"}': "_x5 12 310 400 stale _x12",  # as above
    'shardmem_shard_last_checkpoint_seconds{engine="e", instance="a:9105", shard="0"}': "0.1x8 11 0.1x12",
    'shardmem_source_up{engine="e", instance="a:9105", source="kafka"}': "1x5 0 1x15",
}


def series(values: dict[str, str]) -> list[dict]:
    return [{"series": name, "values": said} for name, said in values.items()]


def for_promtool(ill: dict) -> dict:
    """What promtool is to run: each alert with what is ill, and all of them with what is well."""
    about = {rule["alert"]: rule for rule in rules()}
    tests = []
    for name, (values, minute, labels, said) in ill.items():
        expected = {
            "exp_labels": {**labels, "severity": about[name]["labels"]["severity"]},
            "exp_annotations": {**about[name]["annotations"], **said},
        }
        tests.append(
            {
                "name": name,
                "interval": "1m",
                "input_series": series(values),
                "alert_rule_test": [{"eval_time": f"{minute}m", "alertname": name, "exp_alerts": [expected]}],
            }
        )
    quiet = [{"eval_time": f"{minute}m", "alertname": name, "exp_alerts": []} for name in about for minute in range(21)]
    tests.append({"name": "well", "interval": "1m", "input_series": series(WELL), "alert_rule_test": quiet})
    return {"rule_files": [str(ALERTS)], "evaluation_interval": "1m", "tests": tests}


def promtool(*arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run(["promtool", *arguments], capture_output=True, text=True, timeout=60)


@needs_promtool
def test_promtool_finds_nothing_wrong_with_the_alerts():
    done = promtool("check", "rules", str(ALERTS))
    assert 0 == done.returncode, done.stdout + done.stderr


@needs_promtool
def test_each_alert_fires_when_it_should_with_what_it_says_and_is_quiet_for_an_engine_that_is_well(tmp_path):
    (tmp_path / "tests.yml").write_text(yaml.safe_dump(for_promtool(ILL)))
    done = promtool("test", "rules", str(tmp_path / "tests.yml"))
    assert 0 == done.returncode, done.stdout + done.stderr


def test_every_alert_has_a_test_and_every_metric_of_it_is_seen_well():
    assert {rule["alert"] for rule in rules()} == ILL.keys()
    asked = {metric for rule in rules() for metric, _ in IN_BRACES.findall(rule["expr"])}
    assert set() == asked - {name.partition("{")[0] for name in WELL}
