"""What the server counts, and where Prometheus looks."""

import asyncio
import platform
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from importlib.metadata import version
from threading import Lock
from typing import NamedTuple

from prometheus_client import REGISTRY, Counter, Gauge, Histogram, Info, disable_created_metrics, start_http_server
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector
from sqlalchemy import event
from sqlalchemy.ext.asyncio import AsyncEngine
from sqlalchemy.pool import QueuePool

from db.bare import Pool
from resolvers import facts
from resolvers.facts import Facts
from server import counting
from server.counting import Count, Counts, Durations, Level
from server.settings import Settings, StartError

# Callers choose the names of operations: so many are told apart, the first of documents that were valid.
NAMES = 100
OTHER = "other"
METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "OPTIONS"})
# What a status means that came without a code; all those from LEAST_FAILURE on are failures of ours.
FAILURES, LEAST_FAILURE = {503: "OVERLOADED"}, 500
# By which route and method, and with which status.
RIGHT = ("/graphql", "POST", "200")
LAG_SECONDS = 0.25
SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 15)

# When each series was begun: nobody asks, and it is as much again.
disable_created_metrics()  # type: ignore[no-untyped-call]  # the library leaves it untyped
operations = Counts(
    "segmentql_operations_total",
    "Requests to /graphql, by operation, type (none: it was not got to know) and code: OK, or of the first error.",
    ["operation", "type", "code"],
)
operation_seconds = Durations(
    "segmentql_operation_duration_seconds",
    "How long requests to /graphql took, from the headers to the answer's end.",
    ["operation", "type"],
    SECONDS,
)
requests = Counts(
    "segmentql_http_requests_total",
    "Requests by route, method and status; status 0: the caller left before the answer.",
    ["route", "method", "status"],
)
open_requests = Level("segmentql_http_requests_open", "Requests that are being answered.")
statements = Counts("segmentql_statements_total", "Statements that were sent to PostgreSQL.", ["pool"])
lag = Histogram(
    "segmentql_event_loop_lag_seconds",
    "How much later than asked the event loop came back to a timer: how long everything in the process stood still.",
    buckets=(0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5),
)
subscription_messages = Counter("segmentql_subscription_messages_total", "Messages that subscribers were sent.")
subscribers_dropped = Counter(
    "segmentql_subscribers_dropped_total", "Connections that were ended because messages were not read fast enough."
)
draining = Gauge("segmentql_draining", "1 once the process was told to stop: it is not ready, and finishes.")
Info("segmentql_build", "Which version runs, on which Python.").info(
    {"version": version("segmentql"), "python": platform.python_version()}
)


def expose(settings: Settings) -> None:
    """Answer `/metrics` from a thread of its own, if that is wanted, until the process ends."""
    if settings.metrics_port is None:
        return
    host = settings.metrics_host or settings.host
    try:
        start_http_server(settings.metrics_port, host)
    except OSError as error:
        raise StartError(
            f"Metrics cannot be shown on {host} port {settings.metrics_port} ({error.strerror}): choose "
            "another with SEGMENTQL_METRICS_PORT."
        ) from error


class _Names:
    def __init__(self) -> None:
        self._known: set[str] = set()

    def bounded(self, name: str | None) -> str:
        if name is None:
            return ""
        if name not in self._known:
            if len(self._known) >= NAMES:
                return OTHER
            self._known.add(name)
        return name


_names = _Names()


class Counted(NamedTuple):
    """What an operation counts as when its answer is right, found out once."""

    right: Count
    seconds: counting.Histogram


def counted(name: str | None, kind: str) -> Counted:
    bounded = _names.bounded(name)
    return Counted(operations.of((bounded, kind, "OK")), operation_seconds.of((bounded, kind)))


def count_right(operation: Counted, seconds: float) -> None:
    """An answer to a POST to /graphql that has no error in it."""
    requests.count(RIGHT)
    operation.right.value += 1
    operation.seconds.observe(seconds)


def count_request(route: str, method: str, status: int) -> None:
    requests.count((route, method if method in METHODS else OTHER, str(status)))


def count_operation(noted: Facts, status: int, seconds: float) -> None:
    # Without one it was cut short: by an error that nobody has expected, or by what stands around the application.
    code = noted.code or FAILURES.get(status, "INTERNAL_SERVER_ERROR" if status >= LEAST_FAILURE else None)
    if noted.kind is None and code is None:
        return  # it was the page that was asked for
    name, kind = _names.bounded(noted.operation), noted.kind or "none"
    operations.count((name, kind, code or "OK"))
    operation_seconds.of((name, kind)).observe(seconds)


class _Pools(Collector):
    """What the pools say of themselves at the moment they are asked."""

    def __init__(self) -> None:
        self._pools: dict[str, AsyncEngine | Pool] = {}
        self._lock = Lock()

    @contextmanager
    def showing(self, pools: dict[str, AsyncEngine | Pool]) -> Iterator[None]:
        with self._lock:
            self._pools = self._pools | pools
        try:
            yield
        finally:
            with self._lock:
                self._pools = {name: pool for name, pool in self._pools.items() if pools.get(name) is not pool}

    def collect(self) -> Iterator[GaugeMetricFamily]:
        size = GaugeMetricFamily("segmentql_pool_size", "Connections that the pool may have.", labels=["pool"])
        used = GaugeMetricFamily("segmentql_pool_in_use", "Connections that are at work.", labels=["pool"])
        waiting = GaugeMetricFamily("segmentql_pool_waiting", "Who waits for a connection.", labels=["pool"])
        with self._lock:
            pools = self._pools
        for name, pool in pools.items():
            for family, value in zip((size, used, waiting), _use(pool), strict=True):
                family.add_metric([name], value)
        yield from (size, used, waiting)


def _use(pool: AsyncEngine | Pool) -> tuple[int, int, int]:
    """How many connections it may have and has at work, and who waits for one."""
    if isinstance(pool, Pool):
        return pool.size, pool.in_use, pool.waiting
    queue = pool.pool
    assert isinstance(queue, QueuePool)
    # SQLAlchemy counts those who wait nowhere.
    return queue.size(), queue.checkedout(), len(getattr(queue._pool, "_queue")._getters)  # noqa: B009, SLF001  # see above


_pools = _Pools()
REGISTRY.register(_pools)


@asynccontextmanager
async def watching(**pools: AsyncEngine | Pool) -> AsyncIterator[None]:
    """Show these pools, by their names, and count what is sent over them, for as long as the block lasts."""
    for name, pool in pools.items():
        _count_statements(pool, name)
    with _pools.showing(pools):
        yield


def _count_statements(pool: AsyncEngine | Pool, name: str) -> None:
    sent_over = statements.of((name,))

    def sent(*_: object) -> None:
        sent_over.value += 1
        facts.current().statements += 1

    if isinstance(pool, Pool):
        pool.sending = sent
    else:
        event.listen(pool.sync_engine, "before_cursor_execute", sent)


async def watch_the_loop() -> None:
    """See how long everything stands still, until it is cancelled."""
    loop = asyncio.get_running_loop()
    while True:
        before = loop.time()
        await asyncio.sleep(LAG_SECONDS)
        lag.observe(max(0.0, loop.time() - before - LAG_SECONDS))
