"""The status document and the histograms for Prometheus: what status/figures.py declares, and nothing else."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import numpy as np
from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.exposition import choose_encoder

from shardmem.memory.words import FLOORS_NS
from shardmem.status.document import Status
from shardmem.status.figures import COUNTER, FIGURES, HISTOGRAM, STATE, Figure
from shardmem.status.reading import Histograms

# Powers of two from 1 us to 17 s: every fourth bucket of ours begins at one, so none has to be divided.
BOUNDS = list(range(36, 136, 4))
ROWS = range(21)  # powers of two up to a million


class Collector:
    """One scrape."""

    def __init__(self, document: Status, histograms: Mapping[int, Histograms]) -> None:
        self._document, self._histograms = document, histograms

    def collect(self) -> Iterable[Metric]:
        return [self._family(figure.metric, figure) for figure in FIGURES if figure.metric]

    def _family(self, name: str, figure: Figure) -> Metric:
        labels, engine = ["engine", *figure.labels], self._document["engine"]["name"]
        if figure.kind == HISTOGRAM:
            histogram = HistogramMetricFamily(name, figure.help, labels=labels)
            for shard, counted in self._histograms.items():
                buckets, total = OF[name](counted)
                histogram.add_metric([engine, str(shard)], buckets, total)
            return histogram
        family: CounterMetricFamily | GaugeMetricFamily = (
            CounterMetricFamily(name, figure.help, labels=labels)
            if figure.kind == COUNTER
            else GaugeMetricFamily(name, figure.help, labels=labels)
        )
        for found, value in figure.read(self._document):
            if figure.kind == STATE:
                for each in figure.values:
                    family.add_metric([engine, *found, each], float(value == each))
            elif value is not None:
                family.add_metric([engine, *found], float(value))
        return family


def seconds_of(counts: np.ndarray) -> list[tuple[str, float]]:
    """(upper bound in seconds, events up to there), the last without bound."""
    sums = np.cumsum(counts)
    return [*((repr(FLOORS_NS[bucket] / 1e9), float(sums[bucket - 1])) for bucket in BOUNDS), ("+Inf", float(sums[-1]))]


def rows_of(counts: np.ndarray) -> list[tuple[str, float]]:
    """(upper bound in rows, batches up to there), the last without bound."""
    sums = np.cumsum(counts)
    return [*((repr(float(1 << bucket)), float(sums[bucket])) for bucket in ROWS), ("+Inf", float(sums[-1]))]


OF: dict[str, Callable[[Histograms], tuple[list[tuple[str, float]], float]]] = {
    "shardmem_shard_latency_seconds": lambda counted: (seconds_of(counted.latency), counted.waited_s),
    "shardmem_shard_batch_rows": lambda counted: (rows_of(counted.batches), float(counted.events)),
}


Encoder = Callable[[CollectorRegistry], bytes]


def encoder(accept: str) -> tuple[Encoder, str]:
    """(encoder, content type): OpenMetrics if the header Accept asks for it, else the text format of Prometheus."""
    return choose_encoder(accept)


def exposition(document: Status, histograms: Mapping[int, Histograms], encode: Encoder) -> bytes:
    registry = CollectorRegistry(auto_describe=False)
    registry.register(Collector(document, histograms))
    return encode(registry)
