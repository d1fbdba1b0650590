"""`remote`, as people write it."""

from __future__ import annotations

from urllib.parse import unquote, urlsplit

from shardmem.errors import ConfigError
from shardmem.remote.directory import Directory
from shardmem.remote.targets import Target


def target_of(url: str) -> Target:
    """file:///directory or s3://bucket/prefix. Raises ConfigError."""
    parts = urlsplit(url)
    if parts.scheme == "file" and parts.netloc in ("", "localhost") and parts.path.startswith("/"):
        return Directory(url, unquote(parts.path))
    if parts.scheme == "s3" and parts.netloc:
        from shardmem.remote.s3 import Bucket  # imports the client

        return Bucket(url, parts.netloc, unquote(parts.path).strip("/"))
    raise ConfigError(f"remote={url!r} is neither file:///directory nor s3://bucket/prefix")
