"""The examples for systemd, containers and Kubernetes are what they say they are."""

from __future__ import annotations

import configparser
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from shardmem.config import load
from shardmem.console.cli import main
from shardmem.host.doctor import Plan
from shardmem.http.access import OPEN
from shardmem.schema import Schema
from shardmem.sources.configured import sources_in

EXAMPLES = Path(__file__).parents[2] / "examples"
SERVICE = EXAMPLES / "service" / "shardmem@.service"
MIB = 1 << 20


def parsed(path):
    yaml = pytest.importorskip("yaml", reason="PyYAML is not installed: the YAML of the examples is not looked at")
    return list(yaml.safe_load_all((EXAMPLES / path).read_text()))


def understood(words):
    """What the command line makes of `shardmem run engine.toml --shards 2`."""
    assert words[0].rpartition("/")[2] == "shardmem", words
    return main.commands[words[1]].make_context(words[1], list(words[2:])).params


def unit():
    found = configparser.RawConfigParser(strict=True, delimiters="=")
    found.optionxform = str
    found.read_string(SERVICE.read_text())
    return found["Service"]


def test_the_unit_is_valid_for_systemd(tmp_path):
    if not shutil.which("systemd-analyze"):
        pytest.skip("systemd-analyze is not here")
    text = re.sub(r"(?m)^Documentation=.*\n", "", SERVICE.read_text())  # and the program has to exist
    (tmp_path / "shardmem@.service").write_text(text.replace("/opt/shardmem/bin/shardmem", sys.executable))
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", str(tmp_path / "shardmem@ticks.service")],
        capture_output=True,
        text=True,
    )
    said = [line for line in done.stderr.splitlines() if "shardmem" in line]

    assert not said, "\n".join(said)


def test_the_unit_runs_a_command_that_there_is_and_drains_before_it_kills():
    service = unit()

    assert "human" != understood(service["ExecStart"].split())["log_format"]
    assert ("notify", "mixed", "no") == (service["Type"], service["KillMode"], service["RemoveIPC"])
    assert "DynamicUser" not in service and "PrivateTmp" not in service, (
        "segments go, or commands do not find the socket"
    )
    assert "/dev/shm" in service["ReadWritePaths"]
    assert "2 3 4" == service["RestartPreventExitStatus"]


def test_the_image_ends_when_it_is_told_to():
    last = [
        line for line in (EXAMPLES / "container" / "Dockerfile").read_text().splitlines() if line.startswith("CMD")
    ][-1]

    assert "engine.toml" == understood(json.loads(last.removeprefix("CMD ")))["target"]


def test_the_shared_memory_of_the_compose_file_is_enough_for_its_settings():
    (file,) = parsed("container/compose.yaml")
    engine, producer = file["services"]["engine"], file["services"]["producer"]
    config = load(None, {"name": "e", "handler": "m:f"}, engine["environment"])

    assert "service:engine" == producer["ipc"] and "shareable" == engine["ipc"]
    assert engine["shm_size"].endswith("m")
    assert Plan.of_config(config).worst <= int(engine["shm_size"][:-1]) * MIB
    assert engine["stop_grace_period"] == "2m" and engine["init"] is True


def test_the_pod_has_memory_for_its_settings_and_drains_before_it_is_killed(tmp_path):
    files, deployment = parsed("kubernetes/engine.yaml")
    pod = deployment["spec"]["template"]["spec"]
    (engine,) = pod["containers"]
    for name, text in files["data"].items():
        (tmp_path / name).write_text(text)
    config = load(str(tmp_path / "engine.toml"), {}, {})
    compile((tmp_path / "app.py").read_text(), "app.py", "exec")
    shm = next(volume["emptyDir"] for volume in pod["volumes"] if volume["name"] == "shm")
    stop = understood(engine["lifecycle"]["preStop"]["exec"]["command"])

    assert "Memory" == shm["medium"] and shm["sizeLimit"].endswith("Mi")
    assert {"name": "shm", "mountPath": "/dev/shm"} in engine["volumeMounts"]
    assert Plan.of_config(config).worst <= int(shm["sizeLimit"][:-2]) * MIB
    assert "engine.toml" == understood(engine["command"])["target"]
    assert config.name == stop["name"] and 0 < stop["timeout"] < pod["terminationGracePeriodSeconds"]
    assert {"name": "state", "mountPath": config.state_dir} in engine["volumeMounts"]
    asked = {probe: engine[probe]["httpGet"]["path"] for probe in ("startupProbe", "readinessProbe", "livenessProbe")}
    assert {"startupProbe": "/readyz", "readinessProbe": "/readyz", "livenessProbe": "/livez"} == asked
    assert set(asked.values()) <= set(OPEN), "a probe comes from outside of the pod, and shows no token"
    ports = {port["name"]: port["containerPort"] for port in engine["ports"]}
    assert ports == {"http": config.http_port} and config.http_address == "0.0.0.0"
    annotations = deployment["spec"]["template"]["metadata"]["annotations"]
    assert annotations["prometheus.io/port"] == str(config.http_port)


def settings_of_kafka(text, tmp_path, monkeypatch, **variables):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    path = tmp_path / "engine.toml"
    path.write_text(text)
    config = load(str(path), {}, {})
    (source,) = sources_in(config.source, Schema())
    return config, source


def test_the_hosts_of_the_compose_file_are_members_with_a_name_each(tmp_path, monkeypatch):
    (compose,) = parsed("kafka/compose.yaml")
    hosts = [compose["services"][name] for name in ("host-a", "host-b")]
    assert ["host-a", "host-b"] == [host["hostname"] for host in hosts]
    assert not set(hosts[0]["volumes"][1:]) & set(hosts[1]["volumes"][1:])
    text = (EXAMPLES / "kafka" / "engine.toml").read_text()
    variables = {**hosts[0]["environment"], "HOSTNAME": "host-a"}
    config, source = settings_of_kafka(text, tmp_path, monkeypatch, **variables)
    assert ("broker:9092", "host-a") == tuple(
        source.own.librdkafka[name] for name in ("bootstrap.servers", "group.instance.id")
    )
    assert Plan.of_config(config).worst <= int(hosts[0]["shm_size"].removesuffix("m")) * MIB
    compile((EXAMPLES / "kafka" / "app.py").read_text(), "app.py", "exec")


def test_the_pods_keep_their_names_and_there_are_no_more_than_partitions(tmp_path, monkeypatch):
    settings, _, pods, keda = parsed("kubernetes/kafka.yaml")
    container = pods["spec"]["template"]["spec"]["containers"][0]
    assert pods["kind"] == "StatefulSet" and "POD_NAME" in [each["name"] for each in container["env"]]
    _, source = settings_of_kafka(settings["data"]["engine.toml"], tmp_path, monkeypatch, POD_NAME="clicks-0")
    assert "clicks-0" == source.own.librdkafka["group.instance.id"]
    grace = pods["spec"]["template"]["spec"]["terminationGracePeriodSeconds"]
    stop = container["lifecycle"]["preStop"]["exec"]["command"]
    assert source.ownership.drain_timeout < int(stop[-1]) < grace
    (trigger,) = keda["spec"]["triggers"]
    assert keda["spec"]["scaleTargetRef"] == {"kind": "StatefulSet", "name": pods["metadata"]["name"]}
    assert [trigger["metadata"]["topic"]] == list(source.own.subscription.topics)
    assert trigger["metadata"]["consumerGroup"] == (source.own.subscription.group or "clicks")
