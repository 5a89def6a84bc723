"""Hot reads while the same process cleans up behind a deleted segment and writes a report."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta

from bench import seeds
from bench.client import Client
from bench.speed import rounds, servers, works
from bench.speed.competitors import SEGMENTQL
from bench.speed.rounds import Measured, Plan
from bench.speed.stage import Stage

# Enough that they are not done before the reads are.
MEMBERS = 500_000


def measure(stage: Stage, plan: Plan) -> tuple[list[Measured], list[Measured]]:
    """Of every round the reads with nothing beside them, and those beside both jobs."""
    busy = replace(SEGMENTQL, name="busy", start=lambda data: servers.ours(data, tasks=2))
    alone: list[Measured] = []
    beside: list[Measured] = []
    for number in range(plan.rounds):
        alone.append(rounds.turn(stage, works.MEMBERSHIPS, busy, plan.seconds))
        with _working(stage, stage.server(busy).port, number):
            beside.append(rounds.turn(stage, works.MEMBERSHIPS, busy, plan.seconds))
    return alone, beside


@contextmanager
def _working(stage: Stage, port: int, number: int) -> Iterator[None]:
    """A cleanup and a report, from the beginning of the block until both are done."""
    slug = f"beside-{number}"
    now = datetime.now(UTC)
    with Client("127.0.0.1", port) as client, Client("127.0.0.1", port) as other, ThreadPoolExecutor() as pool:
        client.create(slug)
        segment = int(stage.data.database.sql(f"SELECT id FROM segments WHERE slug = '{slug}'"))
        seeds.members(stage.data.database, now, segment, min(MEMBERS, stage.data.users), expired=False)
        client.delete(slug)
        report = pool.submit(other.report, now - timedelta(days=seeds.DAYS), now)
        yield
        report.result()
        client.cleanup()
