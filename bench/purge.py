"""Whether the purge is about as fast as one bare statement, and loses and doubles nothing while users come back."""

import json as jsons
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated

import typer

from bench import databases, figures, processes, readding, seeds
from bench.databases import Database
from bench.figures import Json, Results, middle, ratio, said
from bench.readding import UNTIL, Readded

ROUNDS = 3
SEGMENTS = 10
# What the purge does, at once and without anybody else in mind.
BARE = """
    WITH gone AS (
        DELETE FROM memberships WHERE expires_at <= now() RETURNING user_id, segment_id, expires_at
    )
    INSERT INTO membership_events (user_id, segment_id, action, at)
    SELECT user_id, segment_id, 'EXPIRED', expires_at FROM gone
"""
WAITING = "SELECT count(*) FROM memberships WHERE expires_at <= now()"


def measure(users: int = 100_000) -> Results:
    results = Results("purge")
    with databases.running() as database:
        said(f"seeding {users * SEGMENTS} memberships")
        base = seeds.prepare(database)
        seeds.segments(database, SEGMENTS)
        for segment in range(1, SEGMENTS + 1):
            seeds.members(database, base, segment, users, expired=True)
        seeds.settle(database)
        _speed(results, database)
        _races(results, database)
    return results


@dataclass(frozen=True, slots=True)
class Moved:
    rows: int
    seconds: float

    @property
    def speed(self) -> float:
        return self.rows / self.seconds


def _speed(results: Results, seeded: Database) -> None:
    ours: list[float] = []
    bare: list[float] = []
    rows = 0
    for _ in range(ROUNDS):
        with seeded.copied("by_job") as database:
            moved = _by_job(database)
            rows = moved.rows
            assert database.sql(WAITING) == "0"
            ours.append(moved.speed)
        with seeded.copied("by_statement") as database:
            bare.append(_by_statement(database, rows).speed)
        said(f"purge {ours[-1]:.0f}, bare statement {bare[-1]:.0f} rows/s")
    results.raw |= {"purge_rows_per_second": ours, "bare_rows_per_second": bare}
    results.add("expired memberships among all", rows, "rows", least=1_000)
    results.add("segmentql purge, by its own record, median", middle(ours), "rows/s")
    results.add("one bare statement, median", middle(bare), "rows/s")
    results.add("purge / bare statement, median of rounds", ratio(ours, bare), least=0.7)


def _by_job(database: Database) -> Moved:
    """By `segmentql purge`, as its run was recorded: all that a purge does, from its first transaction on."""
    with processes.purge(database) as purge:
        assert purge.wait() == 0
    row = database.sql("""
        SELECT stats->>'memberships', extract(epoch FROM finished_at - started_at)
        FROM job_runs WHERE runner <> 'bench'
    """)
    rows, seconds = row.split("|")
    return Moved(int(rows), float(seconds))


def _by_statement(database: Database, rows: int) -> Moved:
    clock = "SELECT clock_timestamp()"
    began, ended = (datetime.fromisoformat(each) for each in database.sql(clock, BARE, clock).splitlines())
    assert database.sql(WAITING) == "0"
    return Moved(rows, (ended - began).total_seconds())


def _races(results: Results, seeded: Database) -> None:
    with seeded.copied("raced") as database:
        expired = [
            (user_id, slug)
            for user_id, slug in (
                line.split("|")
                for line in database.sql("""
                    SELECT user_id, slug FROM memberships JOIN segments ON id = segment_id
                    WHERE expires_at <= now() ORDER BY expires_at
                """).splitlines()
            )
        ]
        with processes.serving(database, tasks=0) as client, readding.going_on(client, expired) as readded:
            purges = [processes.purge(database) for _ in range(2)]
            for purge in purges:
                with purge:
                    assert purge.wait() == 0
        _count(results, database, len(expired), readded)


def _count(results: Results, database: Database, expired: int, readded: Readded) -> None:
    written, distinct = database.sql("""
        SELECT count(*), count(DISTINCT (user_id, segment_id, at)) FROM membership_events WHERE action = 'EXPIRED'
    """).split("|")
    moved = jsons.loads(
        database.sql("SELECT jsonb_agg((stats->>'memberships')::integer) FROM job_runs WHERE runner <> 'bench'")
    )
    members = set(
        database.sql(f"""
        SELECT user_id, slug FROM memberships JOIN segments ON id = segment_id WHERE expires_at = '{UNTIL}'
    """).splitlines()
    )
    lost = sum("|".join(who) not in members for who in readded.acknowledged)
    ended_by_readding = expired - sum(moved)
    results.raw["two purges"] = {"moved": moved, "acknowledged": len(readded.acknowledged)}
    results.add("expired, with two purges at once", expired, "rows", least=1_000)
    results.add("moved by the purge that moved less", min(moved), "rows", least=1)
    results.add("users re-added meanwhile", len(readded.acknowledged), "users", least=1)
    results.add("of them before a purge came to them", ended_by_readding, "users", least=1)
    results.add("re-additions refused", len(readded.refused), least=0, most=0)
    results.add("re-added users lost", lost, "users", least=0, most=0)
    results.add("members nobody was told of", len(members) - len(readded.acknowledged) + lost, least=0, most=0)
    results.add("EXPIRED events too many or missing", abs(int(written) - expired), least=0, most=0)
    results.add("EXPIRED events written twice", int(written) - int(distinct), least=0, most=0)
    results.add("expired memberships left", int(database.sql(WAITING)), least=0, most=0)
    results.add("differences between history and memberships", database.differences(), least=0, most=0)


def main(
    users: Annotated[int, typer.Option(help=f"How many; twice as many rows are expired, in {SEGMENTS} segments.")] = (
        100_000
    ),
    json: Json = None,
) -> None:
    figures.conclude([measure(users)], json)


if __name__ == "__main__":
    typer.run(main)
