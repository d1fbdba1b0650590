"""The dashboard and the alerts in examples/ ask for metrics, labels and values that there are."""
from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Iterator

import pytest
import yaml

from shardmem.runtime.catalogue import FIGURES, HISTOGRAM

EXAMPLES = Path(__file__).parents[2] / "examples"
ALERTS, DASHBOARD = EXAMPLES / "alerts.yml", EXAMPLES / "grafana-dashboard.json"
FIGURE_OF = {each.metric + part: each for each in FIGURES if each.metric
             for part in (("_bucket", "_sum", "_count") if each.kind == HISTOGRAM else ("",))}
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
            if label not in ("engine", *figure.labels):
                found.append(f"{metric} has no label {label}")
            elif figure.values and label in figure.labels[-1:] and value not in figure.values:
                found.append(f"{label} of {metric} is never {value!r}")
    return found


def test_what_is_asked_for_exists():
    asked = list(expressions())
    assert {} == {f"{where}: {expression}": found for where, expression in asked if (found := faults(expression))}
    assert 30 < len(asked) and all("shardmem" in expression for _, expression in asked)


@pytest.mark.parametrize("expression, part", [
    ("rate(shardmem_handled[5m])", "no shardmem_handled"), ("shardmem_slots_unknown", "there is no"),
    ('shardmem_shard_state{state="broken"}', "never 'broken'"), ('shardmem_in_flight{shard="0"}', "no label shard"),
    ("shardmem_shard_latency_seconds", "there is no"),
])
def test_what_does_not_exist_is_found(expression, part):
    assert any(part in each for each in faults(expression))


def test_every_alert_says_how_bad_it_is_and_what_to_do():
    found = {rule["alert"]: rule for rule in rules()}
    assert {"ShardmemCrashLoop", "ShardmemShardFailed", "ShardmemSlotsUnowned", "ShardmemLaneNearlyFull",
            "ShardmemQuarantineGrowing", "ShardmemSupervisorHeartbeatOld", "ShardmemHandoffLate",
            "ShardmemEventsRefused"} <= found.keys()
    for name, rule in found.items():
        assert rule["labels"]["severity"] in ("critical", "warning") and rule["annotations"]["summary"], name
        labels = re.findall(r"\$labels\.(\w+)", json.dumps(rule))
        of_metrics = {label for metric, _ in IN_BRACES.findall(rule["expr"]) for label in FIGURE_OF[metric].labels}
        assert set(labels) <= {"engine", "instance", *of_metrics}, f"{name} names a label that its metrics do not have"


def test_panels_of_the_dashboard_do_not_overlap_and_have_numbers_of_their_own():
    panels = json.loads(DASHBOARD.read_text())["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    cells = [(x, y) for each in (panel["gridPos"] for panel in panels) for x in range(each["x"], each["x"] + each["w"])
             for y in range(each["y"], each["y"] + each["h"])]
    assert len(set(cells)) == len(cells) and max(x for x, _ in cells) < 24


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed")
def test_promtool_finds_nothing_wrong_with_the_alerts():
    done = subprocess.run(["promtool", "check", "rules", str(ALERTS)], capture_output=True, text=True)
    assert 0 == done.returncode, done.stdout + done.stderr
