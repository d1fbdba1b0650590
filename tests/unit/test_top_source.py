"""Where `shardmem top` reads: an engine without a supervisor still has rates, and one that is gone is said to be."""

from __future__ import annotations

from shardmem.console.top import Source


def test_rates_go_on_without_a_supervisor(loopback):
    engine = loopback(shards=1)
    source, producer = Source(engine.name), engine.producer()
    source.look()
    for _ in range(2):
        producer.push_many(list(range(100)), [b""] * 100)
        while engine.take() is not None:
            engine.commit()
        document, rates, gone = source.look()
        assert not document["supervisor"]["alive"] and not gone
        assert document["shards"][0]["rate"] > 0 and rates.handled > 0

    engine.control.segment.unlink()
    assert source.look()[2], "it is not said that its memory is gone"
    source.close()
