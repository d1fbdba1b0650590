"""Apache Kafka behind TLS, with passwords: it is read, a refusal is named as the cause, and no secret is shown."""

from __future__ import annotations

import json
import logging

import psutil
import pytest
from click.testing import CliRunner

import shardmem
from shardmem.console.cli import main
from shardmem.schema import Schema
from shardmem.sources.contract import BrokerUnavailable, SourceContext
from shardmem.sources.kafka import kind
from shardmem.sources.kinds import EngineContext
from support.benches import Member
from support.brokers import kafka, secured
from support.brokers.hosts import Host, Producer, counted, create_topic, end, expected

WHY = kafka.why_not() or secured.why_not()
pytestmark = [pytest.mark.skipif(WHY is not None, reason=str(WHY)), pytest.mark.timeout(240)]
PATIENCE = 30.0


@pytest.fixture(scope="session")
def broker(tmp_path_factory):
    """All workers of a run share one."""
    directory = tmp_path_factory.getbasetemp().parent / "kafka"
    with kafka.shared(directory) as bootstrap:
        yield bootstrap, secured.Secured(directory / "secrets")


def opened(topic, given, reader="c"):
    table = {"topics": [topic], "group": f"g-{topic}", "reader": reader, "kafka": {"socket.timeout.ms": 5000, **given}}
    engine = EngineContext("e", "kafka", "/", Schema(), 1 << 20)
    return kind.open_source(kind.settings_of(table, Schema()), engine)


def why_it_waits(source):
    source.open(SourceContext(logging.getLogger("test"), lambda: 0.0, None))
    with pytest.raises(BrokerUnavailable) as caught:
        source.partition_counts(PATIENCE / 6)
    return str(caught.value)


@pytest.mark.parametrize("mechanism", ["SCRAM-SHA-256", *(["PLAIN"] if kafka.MORE else []), secured.TLS])
def test_it_is_read_by_a_password_or_by_a_certificate(broker, mechanism):
    bootstrap, secrets = broker
    topic = create_topic(bootstrap)
    Producer(bootstrap, topic).put(4)
    member = Member(opened(topic, secrets.client(mechanism)))
    assert {topic: 4} == member.source.partition_counts(PATIENCE)
    member.until(lambda: sum(map(len, member.payloads.values())) == 4)
    member.close()


@pytest.mark.parametrize("reader", ["c", *(["python"] if kafka.MORE else [])])
@pytest.mark.parametrize(
    "changes, cause",
    [
        ({"sasl.password": "wrong-secret"}, "SASL authentication error: Authentication failed"),
        ({"ssl.ca.location": ""}, "certificate verify failed"),
    ],
    ids=["password", "authority"],
)
def test_what_is_refused_is_named_as_what_is_waited_for(broker, changes, cause, reader):
    bootstrap, secrets = broker
    if "ssl.ca.location" in changes:
        changes = {"ssl.ca.location": str(secrets.certificate)}  # which has signed nothing
    said = why_it_waits(opened("t", {**secrets.client("SCRAM-SHA-256"), **changes}, reader))
    assert said.startswith("Kafka refuses: ") and cause in said and "after" not in said
    assert "secret" not in said and secrets.password not in said


def shown(host):
    """All that people may see of an engine."""
    with shardmem.Client(host.name) as client:
        status = client.status()
    tree = psutil.Process(host.process.pid)
    commands = [each.cmdline() for each in (tree, *tree.children(recursive=True))]
    told = [
        CliRunner().invoke(main, arguments, catch_exceptions=False).stdout
        for arguments in (["config", host.name], ["source", "status", host.name], ["status", host.name])
    ]
    kept = [path.read_bytes() for path in host.directory.glob(f"{host.name}.[sl]*/*") if path.is_file()]
    return "".join([json.dumps(status), str(commands), *told, host.said(), *(each.decode("latin-1") for each in kept)])


def test_a_password_is_in_no_status_log_command_line_or_configuration_that_is_shown(broker, tmp_path, monkeypatch):
    bootstrap, secrets = broker
    monkeypatch.setenv("KAFKA_PASSWORD", secrets.password)
    topic, hosts = create_topic(bootstrap), []
    producer = Producer(bootstrap, topic)
    producer.put(400)
    library = {**secrets.client("PLAIN"), "debug": "security"}
    try:
        hosts = [
            Host(tmp_path, bootstrap, topic, **{**library, "sasl.password": "$KAFKA_PASSWORD"}),
            Host(tmp_path, bootstrap, topic, **{**library, "sasl.password": "wrong-secret"}),
        ]
        hosts[0].wait("handled", lambda: counted(hosts[0]) == expected(producer))
        hosts[1].wait("refused", lambda: (hosts[1].source() or {}).get("waits_for"))
        with shardmem.Client(hosts[1].name) as client:
            (found,) = (each for each in client.status()["findings"] if each["kind"] == "source_waits")
        assert "Kafka refuses: " in found["text"] and "Invalid username or password" in found["text"]
        for host, secret in zip(hosts, (secrets.password, "wrong-secret")):
            text = shown(host)
            assert topic in text and secret not in text
    finally:
        end(hosts)
