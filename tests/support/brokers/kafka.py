"""Apache Kafka in KRaft mode, from the jars that SHARDMEM_KAFKA_JARS names; .ci/run fetches them.

One broker is shared by all workers of a run of tests: it lives as long as one of them holds its file. A test that kills
brokers starts its own.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from base64 import urlsafe_b64encode
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING

from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient

if TYPE_CHECKING:  # bench/kafka.py has this file alone
    from support.brokers.network import Network
    from support.brokers.secured import Secured

JARS = os.environ.get("SHARDMEM_KAFKA_JARS", "")
MORE = bool(JARS and {"SHARDMEM_HOSTS", "SHARDMEM_RUNS"} & os.environ.keys())  # than every run has
TESTS = Path(__file__).parents[2]
START = 90.0  # seconds that a broker may take on a busy machine
LINGER = 3.0  # that a shared one waits for somebody else
_JVM = ("-Xms64m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-Xshare:auto", "-XX:-UsePerfData")


def why_not() -> str | None:
    """Why there is no Kafka here."""
    if not JARS or not any(Path(JARS).glob("kafka_2.13-*.jar")):
        return "no jars of Apache Kafka: set SHARDMEM_KAFKA_JARS, as .ci/run does where Maven and a network are"
    if shutil.which("java") is None:
        return "no Java to run Apache Kafka"
    return None


def free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as opened:
        sockets = [opened.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def _identifier() -> str:
    return urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")


class KafkaCluster:
    """bootstrap: addresses of its brokers, which are numbered from 1. settings: lines that override ours."""

    def __init__(
        self,
        directory: Path,
        brokers: int = 1,
        heap_mb: int = 320,
        settings: Sequence[str] = (),
        networks: Mapping[str, Network] | None = None,
        secured: Secured | None = None,
    ) -> None:
        """networks: by name, others from which it is reached, too. secured: by which it is reached, too, if it is one
        broker."""
        self._directory, self._heap, self._secured = directory, heap_mb, secured
        networks, numbers = networks or {}, range(1, brokers + 1)
        guarded = {} if secured is None else {"SASL": "SASL_SSL", "TLS": "SSL"}
        ports = iter(free_ports((2 + len(networks) + len(guarded)) * brokers))
        self._ports = {number: next(ports) for number in numbers}
        controllers = {number: next(ports) for number in numbers}
        self._ways = {name: {number: way.address(next(ports)) for number in numbers} for name, way in networks.items()}
        self._protocols = {"CONTROLLER": "PLAINTEXT", "PLAINTEXT": "PLAINTEXT", **dict.fromkeys(networks, "PLAINTEXT")}
        self._protocols |= guarded
        if secured is not None:
            settings = [*secured.settings(), *settings]
            for name in guarded:
                address = f"127.0.0.1:{next(ports)}"
                self._ways[name] = {1: (address, address)}
                secured.tell(name, address)
        self.bootstrap = ",".join(f"127.0.0.1:{port}" for port in self._ports.values())
        voters = ",".join(f"{number}@127.0.0.1:{port}" for number, port in controllers.items())
        self._processes: dict[int, subprocess.Popen[bytes]] = {}
        cluster = _identifier()
        for number, port in self._ports.items():
            self._write(number, port, controllers[number], voters, settings)
        for number in self._ports:
            if number == 1:
                self._format(cluster)
            else:
                self._copy_format(number)
        for number in self._ports:
            self.start(number)
        for number in self._ports:
            self.await_ready(number)

    def bootstrap_in(self, network: str) -> str:
        return ",".join(known for _, known in self._ways[network].values())

    def _place(self, number: int) -> Path:
        return self._directory / f"broker-{number}"

    def _write(self, number: int, port: int, controller: int, voters: str, more: Sequence[str]) -> None:
        place = self._place(number)
        place.mkdir(parents=True)
        brokers = len(self._ports)
        ways = {name: addresses[number] for name, addresses in self._ways.items()}
        ways = {"PLAINTEXT": 2 * (f"127.0.0.1:{port}",), **ways}
        listeners = [*(f"{name}://{at}" for name, (at, _) in ways.items()), f"CONTROLLER://127.0.0.1:{controller}"]
        lines = [
            "process.roles=broker,controller",
            f"node.id={number}",
            f"controller.quorum.voters={voters}",
            f"listeners={','.join(listeners)}",
            f"advertised.listeners={','.join(f'{name}://{known}' for name, (_, known) in ways.items())}",
            "controller.listener.names=CONTROLLER",
            f"listener.security.protocol.map={','.join(f'{name}:{by}' for name, by in self._protocols.items())}",
            f"log.dirs={place}/data",
            f"offsets.topic.replication.factor={brokers}",
            "offsets.topic.num.partitions=2",
            f"transaction.state.log.replication.factor={brokers}",
            "transaction.state.log.num.partitions=2",
            f"transaction.state.log.min.isr={min(2, brokers)}",
            f"min.insync.replicas={min(2, brokers)}",
            f"default.replication.factor={brokers}",
            "share.coordinator.state.topic.replication.factor=1",
            "share.coordinator.state.topic.min.isr=1",
            "group.initial.rebalance.delay.ms=100",
            "group.consumer.heartbeat.interval.ms=300",
            "group.consumer.min.heartbeat.interval.ms=100",
            "group.consumer.session.timeout.ms=6000",
            "group.consumer.min.session.timeout.ms=1000",
            "group.consumer.max.session.timeout.ms=3600000",
            "group.min.session.timeout.ms=1000",
            "auto.create.topics.enable=false",
            "log.cleaner.enable=false",
            "num.network.threads=2",
            "num.io.threads=2",
            "background.threads=2",
            *more,
        ]
        (place / "server.properties").write_text("\n".join(lines) + "\n")

    def _java(self, *arguments: str) -> list[str]:
        return ["java", f"-Xmx{self._heap}m", *_JVM, "-cp", f"{JARS}/*", *arguments]

    def _environment(self) -> dict[str, str]:
        return {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST_", "JAVA_"))}

    def _format(self, cluster: str) -> None:
        settings = str(self._place(1) / "server.properties")
        users = [] if self._secured is None else self._secured.format_arguments()
        done = subprocess.run(
            self._java("kafka.tools.StorageTool", "format", f"--cluster-id={cluster}", "-c", settings, *users),
            capture_output=True,
            timeout=START,
            env=self._environment(),
        )
        assert done.returncode == 0, done

    def _copy_format(self, number: int) -> None:
        """As the tool would, without a virtual machine for each."""
        shutil.copytree(self._place(1) / "data", self._place(number) / "data")
        path = self._place(number) / "data" / "meta.properties"
        changed = {"node.id": str(number), "directory.id": _identifier()}
        lines = [line.partition("=") for line in path.read_text().splitlines()]
        path.write_text("".join(f"{name}{sign}{changed.get(name, value)}\n" for name, sign, value in lines))

    def start(self, number: int) -> None:
        place = self._place(number)
        with open(place / "output", "ab") as output:
            self._processes[number] = subprocess.Popen(
                self._java("kafka.Kafka", str(place / "server.properties")),
                stdout=output,
                stderr=output,
                env=self._environment(),
                cwd=place,
            )

    def await_ready(self, number: int) -> None:
        """It writes no log, so it is asked."""
        deadline, address = time.monotonic() + START, f"127.0.0.1:{self._ports[number]}"
        while not _answers(address):
            assert self._processes[number].poll() is None and time.monotonic() < deadline, self._said(number)

    def await_in_sync(self, topic: str) -> None:
        """Until each broker has all of its partitions again."""
        admin, deadline = (
            AdminClient({"bootstrap.servers": self.bootstrap, "log_level": 0}),
            time.monotonic() + 2 * START,
        )
        while True:
            with contextlib.suppress(KafkaException):
                found = admin.list_topics(topic, timeout=5).topics[topic].partitions.values()
                if found and all(len(each.isrs) == len(each.replicas) for each in found):
                    return
            assert time.monotonic() < deadline, "a broker does not come up to date again"
            time.sleep(0.1)

    def _said(self, number: int) -> str:
        return (self._place(number) / "output").read_text(errors="replace")[-4000:]

    def signal(self, number: int, what: signal.Signals) -> None:
        self._processes[number].send_signal(what)

    def kill(self, number: int) -> None:
        self._processes[number].kill()
        self._processes[number].wait()

    def close(self) -> None:
        for each in self._processes.values():
            each.kill()
        for each in self._processes.values():
            each.wait()


def _answers(address: str) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(address.rsplit(":", 1), 1.0):
        admin = AdminClient({"bootstrap.servers": address, "log_level": 0})
        with contextlib.suppress(KafkaException):
            return bool(admin.list_topics(timeout=5).brokers)
        return False
    time.sleep(0.1)
    return False


# ---- one for all ----------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def shared(directory: Path) -> Iterator[str]:
    """The addresses of a broker that all who name this directory share."""
    directory.mkdir(exist_ok=True)
    with open(directory / "users", "a+b") as users, open(directory / "starting", "a+b") as starting:
        fcntl.flock(starting, fcntl.LOCK_EX)
        fcntl.flock(users, fcntl.LOCK_SH)
        address = directory / "bootstrap"
        try:
            if not address.exists():
                clean = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
                with open(directory / "keeper", "wb") as output:
                    subprocess.run(
                        [sys.executable, "-m", "support.brokers.kafka", str(directory)],
                        cwd=TESTS,
                        env=clean,
                        stdout=output,
                        stderr=output,
                        start_new_session=True,
                        check=True,
                    )
                deadline = time.monotonic() + 2 * START
                while not address.exists():
                    assert time.monotonic() < deadline, (directory / "keeper").read_text()
                    time.sleep(0.05)
        finally:
            fcntl.flock(starting, fcntl.LOCK_UN)
        yield address.read_text()


def keep(directory: Path) -> None:
    """Starts it, and ends it when nobody uses it."""
    from support.brokers import secured

    place, secrets = Path(tempfile.mkdtemp(dir=directory)), None
    if secured.why_not() is None:
        secrets = secured.Secured(directory / f"secrets-{place.name}")
        secrets.make()
        (directory / "secrets").unlink(missing_ok=True)
        (directory / "secrets").symlink_to(secrets.directory.name)
    cluster = KafkaCluster(place, secured=secrets)
    try:
        address = directory / "bootstrap"
        fresh = directory / "bootstrap.new"
        fresh.write_text(cluster.bootstrap)
        fresh.rename(address)
        used = time.monotonic()
        with open(directory / "users", "a+b") as users, open(directory / "starting", "a+b") as starting:
            while time.monotonic() - used < LINGER or not _end(users, starting, address):
                time.sleep(0.5)
                if not _is_free(users):
                    used = time.monotonic()
    finally:
        cluster.close()


def _is_free(lock: IO[bytes]) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    fcntl.flock(lock, fcntl.LOCK_UN)
    return True


def _end(users: IO[bytes], starting: IO[bytes], address: Path) -> bool:
    """Whether nobody has come meanwhile; then nobody will find it any more."""
    fcntl.flock(starting, fcntl.LOCK_EX)
    try:
        if free := _is_free(users):
            address.unlink()
        return free
    finally:
        fcntl.flock(starting, fcntl.LOCK_UN)


if __name__ == "__main__":
    if os.fork():
        os._exit(0)  # it belongs to no test
    keep(Path(sys.argv[1]))
