"""The measuring itself: competitors take turns, round by round, so that what disturbs the machine disturbs them all."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import TypeVar

from bench.figures import said
from bench.speed import cost, works, wrk
from bench.speed.competitors import Competitor
from bench.speed.servers import Server
from bench.speed.stage import Stage
from bench.speed.works import Work

WARM_UP_SECONDS = 2
Each = TypeVar("Each")


@dataclass(frozen=True, slots=True)
class Measured:
    """One competitor in one round of one work, or the medians of all rounds."""

    # Users a second, which may be several in one request.
    rate: float
    # Seconds, with as many requests under way as there are connections.
    p50: float
    p99: float
    # Seconds for a thousand requests: the server's own, and those of PostgreSQL and Valkey.
    cpu: float
    stores_cpu: float
    # Of the server.
    megabytes: float


@dataclass(frozen=True, slots=True)
class Plan:
    rounds: int
    seconds: float


# Of each competitor all rounds, in their order.
Found = dict[str, list[Measured]]


def measure(stage: Stage, work: Work, who: Sequence[Competitor], plan: Plan) -> Found:
    """All rounds of a work, of everybody who answers in all of them."""
    found: Found = {competitor.name: [] for competitor in who}
    for number in range(plan.rounds):
        for competitor in [each for each in in_turn(who, number) if each.name in found]:
            try:
                one = turn(stage, work, competitor, plan.seconds)
            except wrk.FailedError as error:
                stage.leave_out(competitor, work, error)
                del found[competitor.name]
            else:
                found[competitor.name].append(one)
                said(f"{work.name}: {competitor.title}: {line(one)}")
    return found


def in_turn(who: Sequence[Each], number: int) -> list[Each]:
    """Another one begins each round: whoever comes after somebody else finds what that has left to be done."""
    first = number % len(who)
    return [*who[first:], *who[:first]]


def turn(stage: Stage, work: Work, competitor: Competitor, seconds: float) -> Measured:
    """One measurement, behind a warm-up of its own."""
    server = stage.server(competitor)
    warm_up, requests = (written(stage, work, competitor, name) for name in ("warm-up", "requests"))
    stage.make_ready(competitor, work)
    _run(server, work, warm_up, WARM_UP_SECONDS)
    stores = _stores(stage)
    before = cost.cpu_seconds([server.pid]), cost.cpu_seconds(stores)
    run = _run(server, work, requests, seconds)
    after = cost.cpu_seconds([server.pid]), cost.cpu_seconds(stores)
    cpu, stores_cpu = ((now - then) / run.requests * 1_000 for then, now in zip(before, after, strict=True))
    rate = run.requests * work.units / run.seconds
    return Measured(rate, run.p50, run.p99, cpu, stores_cpu, cost.megabytes(server.pid))


def written(stage: Stage, work: Work, competitor: Competitor, name: str) -> Path:
    """A file of requests that nobody was sent yet, a body a line."""
    path = stage.data.database.folder / f"{name}.jsonl"
    document = competitor.documents.get(work.name, work.document)
    path.write_text("".join(f"{body}\n" for body in work.bodies(stage.data, works.turn(), document)))
    return path


def medians(rounds: Sequence[Measured]) -> Measured:
    columns = zip(
        *((one.rate, one.p50, one.p99, one.cpu, one.stores_cpu, one.megabytes) for one in rounds), strict=True
    )
    return Measured(*(median(column) for column in columns))


def line(one: Measured) -> str:
    """For whoever watches."""
    return (
        f"{one.rate:,.0f}/s, p50 {one.p50 * 1e3:.2f} ms, p99 {one.p99 * 1e3:.2f} ms, "
        f"CPU {one.cpu * 1e3:.0f} µs and {one.stores_cpu * 1e3:.0f} µs in the stores, {one.megabytes:.0f} MB"
    )


def _run(server: Server, work: Work, requests: Path, seconds: float) -> wrk.Run:
    run = wrk.load(server.url, requests, seconds, server.headers)
    if run.wrapped and not work.repeats:
        raise RuntimeError(f"{work.name}: there are fewer requests than were answered")
    return run


def _stores(stage: Stage) -> list[int]:
    """PostgreSQL and Valkey: all that this process has started and that is none of the servers."""
    others = {server.pid for server in stage.running}
    return [pid for pid in cost.children(os.getpid()) if pid not in others]
