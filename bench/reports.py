"""Whether a report is right, row for row, about as fast as psql's own copy, and made in little memory."""

import csv
import hashlib
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from time import perf_counter
from typing import Annotated

import typer

from bench import databases, figures, memory, processes, seeds
from bench.client import Client, Done
from bench.databases import Database
from bench.figures import Json, Results, middle, ratio, said
from db import connections, reports

ROUNDS = 5
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
# Of the report's statement another telling: what is written, what expired in time, what its segment took along. Ids and
# instants come as they are: how they are shown is decided here as well.
ENDED = """
    SELECT m.user_id, m.segment_id, m.expires_at, coalesce(s.deleted_at, 'infinity') AS deleted_at
    FROM memberships AS m LEFT JOIN segments AS s ON s.id = m.segment_id AND s.deleted_at IS NOT NULL
"""
EXPECTED = """
    WITH ended AS ({ENDED}), events AS (
        SELECT user_id, segment_id, action::text, at FROM membership_events
        UNION ALL
        SELECT user_id, segment_id, 'EXPIRED', expires_at FROM ended
        WHERE expires_at <= deleted_at AND expires_at <= now()
        UNION ALL
        SELECT user_id, segment_id, 'SEGMENT_DELETED', deleted_at FROM ended WHERE deleted_at < expires_at
    )
    SELECT user_id, (SELECT slug FROM segments WHERE id = segment_id), action,
           (extract(epoch FROM at) * 1000000)::bigint
    FROM events WHERE at >= '{since}' AND at < '{until}'
    ORDER BY user_id COLLATE "C", at,
             array_position(ARRAY['EXPIRED', 'SEGMENT_DELETED', 'REMOVED', 'EXPIRY_CHANGED', 'ADDED'], action),
             segment_id
"""


def measure(events: int = 1_000_000, large: int = 5_000_000) -> Results:
    results = Results("reports")
    with databases.running() as database:
        said(f"seeding {events} events")
        base = seeds.prepare(database)
        stories = seeds.stories_for(events)
        seeds.stories(database, base, 0, stories)
        period = seeds.period(base)
        with processes.serving(database, tasks=0) as client:
            _correct(results, database, client, period)
            _speed(results, database, client, period)
            said(f"seeding {large} events")
            seeds.stories(database, base, stories, seeds.stories_for(large))
            _memory(results, database, client, period)
    return results


Period = tuple[datetime, datetime]


def _correct(results: Results, database: Database, client: Client, period: Period) -> None:
    with processes.working(database):
        done = client.report(*period)
    path = database.folder / "report.csv"
    client.download(done.task["file"]["url"], path)
    expected = EXPECTED.format(ENDED=ENDED, since=period[0], until=period[1])
    with database.rows(expected) as lines, path.open(encoding="utf-8", newline="") as report:
        rows, defused, other = _compare(csv.reader(lines), csv.reader(report))
    waiting = int(database.sql(f"SELECT count(*) FROM ({ENDED}) AS e WHERE least(expires_at, deleted_at) <= now()"))
    file = done.task["file"]
    said_truth = (file["bytes"], file["rows"], file["sha256"], _line_ends(path))
    truth = (path.stat().st_size, rows, _sha256(path), (rows + 1, rows + 1))
    results.add("rows compared with an independent query", rows, "rows", least=1_000)
    results.add("of them still waiting for purge or cleanup", waiting, "rows", least=1)
    results.add("of them with an id that is defused", defused, "rows", least=1)
    results.add("rows that differ", other, "rows", least=0, most=0)
    results.add("bytes, rows, sha256 and line ends as told", said_truth == truth, least=1, most=1)
    results.raw["file"] = file


def _compare(expected: Iterator[list[str]], report: Iterator[list[str]]) -> tuple[int, int, int]:
    """How many rows there are, how many of them with a defused id, and how many differ."""
    rows, defused, other = 0, 0, int(next(report) != ["user_id", "segment", "operation", "at"])
    for user_id, slug, action, micros in expected:
        rows += 1
        runnable = user_id.startswith(("=", "+", "-", "@", "'"))
        defused += runnable
        at = (EPOCH + timedelta(microseconds=int(micros))).isoformat(timespec="microseconds")
        other += next(report, None) != [f"'{user_id}" if runnable else user_id, slug, action, at.replace("+00:00", "Z")]
    return rows, defused, other + sum(1 for _ in report)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _line_ends(path: Path) -> tuple[int, int]:
    content = path.read_bytes()
    return content.count(b"\r\n"), content.count(b"\n")


def _speed(results: Results, database: Database, client: Client, period: Period) -> None:
    query = reports.EVENTS.format(chosen="", of_rollouts="")
    for place, instant in enumerate(period, 1):
        query = query.replace(f"${place}", f"'{instant.isoformat()}'::timestamptz")
    settings = {name: value for name, value in connections.EXPORTING.items() if name != "application_name"}
    path = database.folder / "psql.csv"
    ours: list[float] = []
    theirs: list[float] = []
    with processes.working(database):
        for _ in range(ROUNDS):
            done = client.report(*period)
            ours.append(done.rows / done.seconds)
            began = perf_counter()
            database.copy(query, path, settings)
            theirs.append(done.rows / (perf_counter() - began))
            said(f"worker {ours[-1]:.0f}, psql {theirs[-1]:.0f} rows/s")
    results.raw |= {"worker_rows_per_second": ours, "psql_rows_per_second": theirs}
    results.add("worker, median", middle(ours), "rows/s")
    results.add("psql \\copy, median", middle(theirs), "rows/s")
    results.add("worker / psql, median of rounds", ratio(ours, theirs), least=0.8)


def _memory(results: Results, database: Database, client: Client, period: Period) -> None:
    with processes.working(database) as pid:
        small: Done = client.report(period[1] - timedelta(days=60), period[1] - timedelta(days=55))
        with memory.growing(pid) as growth:
            large = client.report(*period)
    results.raw["memory"] = {
        "warmed_with_rows": small.rows,
        "before_mb": [growth.before.resident, growth.before.proportional],
        "samples": growth.samples,
        "seconds": large.seconds,
    }
    results.add("rows of the report that memory was watched in", large.rows, "rows")
    results.add("its speed", large.rows / large.seconds, "rows/s")
    results.add("growth of resident memory", growth.resident, "MB", most=64)
    results.add("growth of proportional memory", growth.proportional, "MB", most=64)


def main(
    events: Annotated[int, typer.Option(help="How many the report has that is compared and timed.")] = 1_000_000,
    large: Annotated[int, typer.Option(help="How many the report has that memory is watched in.")] = 5_000_000,
    json: Json = None,
) -> None:
    figures.conclude([measure(events, large)], json)


if __name__ == "__main__":
    typer.run(main)
