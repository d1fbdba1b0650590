"""The status document and the latency histograms for Prometheus: what catalogue.py declares, and nothing else."""
from __future__ import annotations

from typing import Any, Iterable, Mapping

import numpy as np
from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.exposition import choose_encoder

from shardmem.runtime.catalogue import COUNTER, FIGURES, HISTOGRAM, STATE, Figure
from shardmem.runtime.snapshot import FLOORS_NS

# Powers of two from 1 us to 17 s: every fourth bucket of ours begins at one, so none has to be divided.
BOUNDS = [bucket for bucket in range(36, 136, 4)]


class Collector:
    """One scrape."""

    def __init__(self, document: Mapping[str, Any], latencies: Mapping[int, np.ndarray]) -> None:
        self._document, self._latencies = document, latencies

    def collect(self) -> Iterable[Any]:
        return map(self._family, (figure for figure in FIGURES if figure.metric))

    def _family(self, figure: Figure) -> Any:
        labels, engine = ["engine", *figure.labels], self._document["engine"]["name"]
        if figure.kind == HISTOGRAM:
            family = HistogramMetricFamily(figure.metric, figure.help, labels=labels)
            for shard, counts in self._latencies.items():
                family.add_metric([engine, str(shard)], buckets_of(counts), None)
            return family
        make = CounterMetricFamily if figure.kind == COUNTER else GaugeMetricFamily
        family = make(figure.metric, figure.help, labels=labels)
        for found, value in figure.read(self._document):
            if figure.kind == STATE:
                for each in figure.values:
                    family.add_metric([engine, *found, each], float(value == each))
            elif value is not None:
                family.add_metric([engine, *found], float(value))
        return family


def buckets_of(counts: np.ndarray) -> list[tuple[str, float]]:
    """(upper bound in seconds, events up to there), the last without bound."""
    sums = np.cumsum(counts)
    return [*((repr(FLOORS_NS[bucket] / 1e9), float(sums[bucket - 1])) for bucket in BOUNDS), ("+Inf", float(sums[-1]))]


def exposition(document: Mapping[str, Any], latencies: Mapping[int, np.ndarray], accept: str) -> tuple[bytes, str]:
    """(body, content type): OpenMetrics if the header Accept asks for it, else the text format of Prometheus."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(Collector(document, latencies))
    encode, content_type = choose_encoder(accept)
    return encode(registry), content_type
