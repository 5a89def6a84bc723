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
        self._counts: dict[Labels, Count] = {}
        REGISTRY.register(self)

    def of(self, labels: Labels) -> "Count":
        """One of them, for whoever counts it often; it is shown from now on."""
        found = self._counts.get(labels)
        if found is None:
            found = self._counts[labels] = Count()
        return found

    def count(self, labels: Labels) -> None:
        self.of(labels).value += 1

    def collect(self) -> Iterable[CounterMetricFamily]:
        name, description, labels = self._family
        family = CounterMetricFamily(name, description, labels=labels)
        for values, count in dict(self._counts).items():
            family.add_metric(values, count.value)
        return [family]


class Count:
    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value = 0


class Durations(Collector):
    """A histogram of seconds for each combination of labels."""

    def __init__(self, name: str, description: str, labels: Sequence[str], bounds: Sequence[float]) -> None:
        self._family = name, description, tuple(labels)
        self._bounds = tuple(bounds)
        self._histograms: dict[Labels, Histogram] = {}
        REGISTRY.register(self)

    def of(self, labels: Labels) -> "Histogram":
        """One of them, for whoever observes it often; it is shown from now on."""
        found = self._histograms.get(labels)
        if found is None:
            found = self._histograms[labels] = Histogram(self._bounds)
        return found

    def collect(self) -> Iterable[HistogramMetricFamily]:
        name, description, labels = self._family
        family = HistogramMetricFamily(name, description, labels=labels)
        for values, histogram in dict(self._histograms).items():
            family.add_metric(values, list(self._cumulated(list(histogram.counts))), histogram.sum)
        return [family]

    def _cumulated(self, counts: Sequence[int]) -> Iterator[tuple[str, int]]:
        total = 0
        for bound, count in zip((*self._bounds, inf), counts, strict=True):
            total += count
            yield "+Inf" if bound == inf else str(float(bound)), total


class Histogram:
    __slots__ = ("_bounds", "counts", "sum")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self._bounds = bounds
        # How many lie up to each bound and above the one before, and behind the last; and all of them together.
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def observe(self, seconds: float) -> None:
        self.counts[bisect_left(self._bounds, seconds)] += 1
        self.sum += seconds


class Level(Collector):
    """How many there are at this moment."""

    def __init__(self, name: str, description: str) -> None:
        self._family = name, description
        self.value = 0
        REGISTRY.register(self)

    def collect(self) -> Iterable[GaugeMetricFamily]:
        name, description = self._family
        return [GaugeMetricFamily(name, description, value=self.value)]
