"""How long a broker keeps a member that is silent: with the new protocol of groups that is a setting of the broker."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import Future
from typing import Any

SESSION, HEARTBEAT = "consumer.session.timeout.ms", "consumer.heartbeat.interval.ms"


def session_of(settings: Mapping[str, str], group: str, timeout: float) -> tuple[float, float] | None:
    """Seconds of a session and between two heartbeats. None: the broker does not say, or not to us."""
    import confluent_kafka.admin

    public: Any = confluent_kafka.admin  # its types hide some of what it documents
    wanted = public.ConfigResource(public.ResourceType.GROUP, group)
    admin = public.AdminClient({**settings, "log_level": "0"})  # its end would end the question, too
    asked: dict[Any, Future[Any]] = admin.describe_configs([wanted], request_timeout=timeout)
    try:
        found = asked[wanted].result(timeout)
        return int(found[SESSION].value) / 1000, int(found[HEARTBEAT].value) / 1000
    except (confluent_kafka.KafkaException, TimeoutError, KeyError, TypeError, ValueError):
        return None
