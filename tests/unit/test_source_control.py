"""Commands to a source that nobody has named."""

from __future__ import annotations

import os

import pytest

from shardmem.errors import ConfigError
from shardmem.sources.control import SourcesOf
from shardmem.status.sources import SourceFile


def test_the_source_that_is_meant_is_the_one_that_feeds_and_not_the_outbox(tmp_path):
    sources = SourcesOf("e", str(tmp_path), os.getuid())
    SourceFile(str(tmp_path), "e", "outbox").write(kind="outbox", state="running")
    with pytest.raises(ConfigError, match="engine e has no source$"):
        sources.pause(None, True)
    SourceFile(str(tmp_path), "e", "clicks").write(kind="kafka", state="running")
    assert "clicks" == sources.pause(None, True)["source"]
    assert "outbox" == sources.pause("outbox", True)["source"]
    SourceFile(str(tmp_path), "e", "orders").write(kind="file", state="running")
    with pytest.raises(ConfigError, match="several sources: clicks, orders; say which"):
        sources.pause(None, True)
