"""librdkafka's mock cluster in a process of its own, so that a test may end it like a broker.

    python -m support.brokers.mock

reads commands from its input, a line each, and answers each with a line:
topic NAME PARTITIONS · down ID · up ID · session MS · classic (no new protocol of groups) · fail KEY ERROR (the next
request of this API)
"""

from __future__ import annotations

import ctypes
import subprocess
import sys
from ctypes import c_char_p, c_int, c_int16, c_int32, c_size_t, c_void_p

from shardmem.sources.kafka.librdkafka import find
from support.rig import TESTS

OFFSET_COMMIT, HEARTBEAT, CONSUMER_GROUP_HEARTBEAT = 8, 12, 68
UNKNOWN_MEMBER = 25
CALLS = {
    "cluster_new": (c_void_p, (c_void_p, c_int)),
    "cluster_bootstraps": (c_char_p, (c_void_p,)),
    "topic_create": (c_int, (c_void_p, c_char_p, c_int, c_int)),
    "broker_set_down": (c_int, (c_void_p, c_int32)),
    "broker_set_up": (c_int, (c_void_p, c_int32)),
    "push_request_errors_array": (None, (c_void_p, c_int16, c_size_t, ctypes.POINTER(c_int))),
    "set_apiversion": (c_int, (c_void_p, c_int16, c_int16, c_int16)),
    "group_initial_rebalance_delay_ms": (None, (c_void_p, c_int32)),
    "set_group_consumer_session_timeout_ms": (None, (c_void_p, c_int)),
    "set_group_consumer_heartbeat_interval_ms": (None, (c_void_p, c_int)),
}


class MockBroker:
    """bootstrap: its addresses."""

    def __init__(self, brokers: int = 1) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "support.brokers.mock", str(brokers)],
            cwd=TESTS,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._process.stdin and self._process.stdout
        self._in, self._out = self._process.stdin, self._process.stdout
        self.bootstrap = self._out.readline().strip()
        assert self.bootstrap, "the mock cluster has not started"

    def tell(self, *words: object) -> None:
        self._in.write(" ".join(map(str, words)) + "\n")
        self._in.flush()
        answer = self._out.readline().strip()
        assert answer == "0", f"{words}: {answer}"

    def create(self, topic: str, partitions: int) -> None:
        self.tell("topic", topic, partitions)

    def expel(self) -> None:
        """The next commit and heartbeat are told that the group does not know their member."""
        for api in (OFFSET_COMMIT, HEARTBEAT, CONSUMER_GROUP_HEARTBEAT):
            self.tell("fail", api, UNKNOWN_MEMBER)

    def close(self) -> None:
        self._process.kill()
        self._process.communicate()


def main() -> None:
    library = find()
    loaded = ctypes.CDLL(library.path)
    calls = {}
    for name, (result, arguments) in CALLS.items():
        call = getattr(loaded, f"rd_kafka_mock_{name}")
        call.restype, call.argtypes = result, arguments
        calls[name] = call
    text = ctypes.create_string_buffer(512)
    handle = library.new(0, library.conf_new(), text, c_size_t(len(text)))
    cluster = calls["cluster_new"](handle, int(sys.argv[1]))
    calls["group_initial_rebalance_delay_ms"](cluster, 100)
    calls["set_group_consumer_heartbeat_interval_ms"](cluster, 200)
    print(calls["cluster_bootstraps"](cluster).decode(), flush=True)
    for line in sys.stdin:
        what, *values = line.split()
        answer = 0
        if what == "topic":
            answer = calls["topic_create"](cluster, values[0].encode(), int(values[1]), 1)
        elif what in ("down", "up"):
            answer = calls[f"broker_set_{what}"](cluster, int(values[0]))
        elif what == "session":
            calls["set_group_consumer_session_timeout_ms"](cluster, int(values[0]))
        elif what == "fail":
            calls["push_request_errors_array"](cluster, int(values[0]), 1, (c_int * 1)(int(values[1])))
        elif what == "classic":
            answer = calls["set_apiversion"](cluster, CONSUMER_GROUP_HEARTBEAT, -1, -1)
        print(answer, flush=True)


if __name__ == "__main__":
    main()
