"""Whether a deletion takes no longer for a million members, and readers hardly notice the cleanup behind it."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Annotated

import typer

from bench import databases, figures, load, processes, seeds
from bench.client import Client, Done
from bench.databases import Database
from bench.figures import Json, Results, middle, percentile, said
from bench.load import Load

# Each deletes a large segment. Everybody is in one more, which stays.
ROUNDS = 3
# A second: modest for one process.
RATE = 150
IDLE_SECONDS = 10
EMPTY_ONES = 4
# When the members of one segment came (bench/seeds.py): a report of a million of all these additions.
ADDITIONS = timedelta(days=(seeds.DAYS - 10) / (ROUNDS + 1))
Window = tuple[float, float]


@dataclass(slots=True)
class Measured:
    empty_seconds: list[float] = field(default_factory=list)
    large_seconds: list[float] = field(default_factory=list)
    idle: list[Window] = field(default_factory=list)
    cleaning: list[Window] = field(default_factory=list)
    reporting: list[Window] = field(default_factory=list)
    cleanups: list[Done] = field(default_factory=list)
    reports: list[Done] = field(default_factory=list)


def measure(members: int = 1_000_000, rate: float = RATE) -> Results:
    results, measured = Results("cleanup"), Measured()
    with databases.running() as database:
        base = _seed(database, members)
        with (
            processes.serving(database, tasks=2) as client,
            load.reading(client, rate=rate, users=members, path=database.folder / "reads.json") as reads,
        ):
            _warm_up(client)
            for number in range(1, ROUNDS + 1):
                _round(measured, database, client, f"S{number}")
            seeds.settle(database)
            for _ in range(2):
                _report(measured, client, base)
    _conclude_deletions(results, measured)
    _conclude_reads(results, measured, reads)
    return results


def _seed(database: Database, members: int) -> datetime:
    said(f"seeding {ROUNDS + 1} segments of {members} members")
    base = seeds.prepare(database)
    seeds.segments(database, ROUNDS + 1)
    for segment in range(1, ROUNDS + 2):
        seeds.members(database, base, segment, members, expired=False)
    seeds.settle(database)
    return base


def _warm_up(client: Client) -> None:
    for number in range(EMPTY_ONES):
        client.create(f"warm-{number}")
        client.delete(f"warm-{number}")
        client.cleanup()
    time.sleep(IDLE_SECONDS / 2)


def _round(measured: Measured, database: Database, client: Client, large: str) -> None:
    # What is left of the round before is no part of being idle.
    seeds.settle(database)
    measured.idle.append(_window(lambda: time.sleep(IDLE_SECONDS)))
    for number in range(EMPTY_ONES):
        client.create(f"empty-{large}-{number}")
        measured.empty_seconds.append(client.delete(f"empty-{large}-{number}"))
        client.cleanup()
    measured.large_seconds.append(client.delete(large))
    measured.cleaning.append(_window(lambda: measured.cleanups.append(client.cleanup())))
    said(f"{large}: deleted in {measured.large_seconds[-1]:.3f} s, cleaned up in {measured.cleanups[-1].seconds:.1f} s")


def _report(measured: Measured, client: Client, base: datetime) -> None:
    until = base - timedelta(days=50)
    measured.reporting.append(_window(lambda: measured.reports.append(client.report(until - ADDITIONS, until))))


def _window(work: Callable[[], None]) -> Window:
    began = time.monotonic()
    work()
    return began, time.monotonic()


def _conclude_deletions(results: Results, measured: Measured) -> None:
    empty, large = measured.empty_seconds, measured.large_seconds
    cleanups = measured.cleanups
    results.raw |= {"empty_seconds": empty, "large_seconds": large}
    results.raw["cleanups"] = [[done.rows, done.seconds] for done in cleanups]
    results.add("deleteSegment of an empty segment, median", middle(empty) * 1_000, "ms")
    results.add("deleteSegment of a large segment, median", middle(large) * 1_000, "ms")
    results.add("large / empty", middle(large) / middle(empty), most=2)
    results.add("members of the large segment", middle([done.rows for done in cleanups]), "rows")
    results.add("cleanup, median", middle([done.rows / done.seconds for done in cleanups]), "rows/s")


def _conclude_reads(results: Results, measured: Measured, reads: Load) -> None:
    idle = _percentiles(results, "idle", measured.idle, reads)
    cleaning = _percentiles(results, "while cleaning", measured.cleaning, reads)
    results.add("p99 while cleaning / idle", cleaning / idle, most=3)
    results.raw["report_rows"] = [done.rows for done in measured.reports]
    results.add("report meanwhile", middle([done.rows / done.seconds for done in measured.reports]), "rows/s")
    reporting = _percentiles(results, "while reporting", measured.reporting, reads)
    results.add("p99 while reporting / idle", reporting / idle)


def _percentiles(results: Results, when: str, windows: Sequence[Window], reads: Load) -> float:
    """The 99th, of reads that were due within the windows: the median over these."""
    each = [reads.between(*window) for window in windows]
    p50, p99 = (middle([percentile(seconds, hundredth) for seconds in each]) for hundredth in (50, 99))
    results.raw[f"reads {when}"] = {
        "numbers": [len(seconds) for seconds in each],
        "p50": [percentile(seconds, 50) for seconds in each],
        "p99": [percentile(seconds, 99) for seconds in each],
        "slowest": [max(seconds) for seconds in each],
    }
    results.add(f"reads {when}, p50", p50 * 1_000, "ms")
    results.add(f"reads {when}, p99", p99 * 1_000, "ms")
    return p99


def main(
    members: Annotated[int, typer.Option(help="How many a large segment has.")] = 1_000_000,
    rate: Annotated[float, typer.Option(help="How many reads a second there are besides.")] = RATE,
    json: Json = None,
) -> None:
    figures.conclude([measure(members, rate)], json)


if __name__ == "__main__":
    typer.run(main)
