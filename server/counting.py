"""Metrics that cost a look into a dictionary: of every request several are counted.

prometheus-client's own take a lock for each, since any thread may count. These are counted by the event loop alone;
the thread that Prometheus asks copies them first.
"""

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from math import inf

from prometheus_client import REGISTRY
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.registry import Collector

Labels = tuple[str, ...]


class Counts(Collector):
    """A counter for each combination of labels."""

    def __init__(self, name: str, description: str, labels: Sequence[str]) -> None:
        self._family = name, description, tuple(labels)
        self._counts: dict[Labels, int] = {}
        REGISTRY.register(self)

    def begin(self, labels: Labels) -> None:
        """Have it shown before there is anything to count."""
        self._counts.setdefault(labels, 0)

    def count(self, labels: Labels) -> None:
        self._counts[labels] = self._counts.get(labels, 0) + 1

    def collect(self) -> Iterable[CounterMetricFamily]:
        name, description, labels = self._family
        family = CounterMetricFamily(name, description, labels=labels)
        for values, count in dict(self._counts).items():
            family.add_metric(values, count)
        return [family]


class Durations(Collector):
    """A histogram of seconds for each combination of labels."""

    def __init__(self, name: str, description: str, labels: Sequence[str], bounds: Sequence[float]) -> None:
        self._family = name, description, tuple(labels)
        self._bounds = tuple(bounds)
        # How many lie up to each bound and above the one before, and behind the last; and all of them together.
        self._counts: dict[Labels, list[int]] = {}
        self._sums: dict[Labels, float] = {}
        REGISTRY.register(self)

    def observe(self, labels: Labels, seconds: float) -> None:
        counts = self._counts.get(labels)
        if counts is None:
            counts = self._counts[labels] = [0] * (len(self._bounds) + 1)
            self._sums[labels] = 0
        counts[bisect_left(self._bounds, seconds)] += 1
        self._sums[labels] += seconds

    def collect(self) -> Iterable[HistogramMetricFamily]:
        name, description, labels = self._family
        family = HistogramMetricFamily(name, description, labels=labels)
        for values, counts in dict(self._counts).items():
            family.add_metric(values, list(self._cumulated(list(counts))), self._sums.get(values, 0))
        return [family]

    def _cumulated(self, counts: Sequence[int]) -> Iterator[tuple[str, int]]:
        total = 0
        for bound, count in zip((*self._bounds, inf), counts, strict=True):
            total += count
            yield "+Inf" if bound == inf else str(float(bound)), total


class Level(Collector):
    """How many there are at this moment."""

    def __init__(self, name: str, description: str) -> None:
        self._family = name, description
        self.value = 0
        REGISTRY.register(self)

    def collect(self) -> Iterable[GaugeMetricFamily]:
        name, description = self._family
        return [GaugeMetricFamily(name, description, value=self.value)]
