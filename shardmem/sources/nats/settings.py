"""Settings of [source.nats]."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from shardmem.settings import setting


@dataclass(frozen=True)
class NatsTable:
    servers: Any = setting(("nats://127.0.0.1:4222",), "addresses of servers", "names")
    stream: str | None = setting(None, "name of the stream", unset="the one that has the first topic")
    partitions: int | None = setting(
        None,
        "partitions of each topic, where the subjects are mapped elsewhere than in the stream",
        "number",
        least=1,
        most=1024,
        unset="as the stream's subject transform says; without one, 1",
    )
    key_header: str | None = setting(None, "header that is the key", unset="what follows the partition in the subject")
    session: float = setting(10.0, "silence after which the partitions of a member are another's", "seconds")
    member: str | None = setting(None, "name of this member, the same after a restart", unset="host and engine")
    bucket: str = setting(
        "shardmem", "key-value bucket in which the group keeps its record; it is made if it is missing"
    )
    user: str | None = setting(None, "user name")
    password: str | None = setting(None, "password", secret=True)
    token: str | None = setting(None, "token", secret=True)
    credentials: str | None = setting(None, "file of credentials")
    nkeys_seed: str | None = setting(None, "file of an nkey's seed")
    tls_ca: str | None = setting(None, "file of certificates that the server's is checked with")
    tls_certificate: str | None = setting(None, "file of our certificate")
    tls_key: str | None = setting(None, "file of its key")
