"""Whether an import tells of every line, in little memory, at half the speed of COPY, and whoever is killed."""

import csv
import os
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from signal import SIGKILL
from typing import Annotated

import typer

from bench import broken, databases, figures, importing, memory, processes, seeds
from bench.broken import NEVER, Listed, Member
from bench.client import Client, Done
from bench.databases import Database
from bench.figures import Json, Results, middle, ratio, said

ROUNDS = 3
KILLS = 10
# Segments are numbered: one for each round, and others for whatever else is measured.
KNOWN, KILLED, WARM = ROUNDS + 1, ROUNDS + 2, ROUNDS + 3
WARM_ROWS = 1_000
MOVED = datetime(2080, 1, 1, tzinfo=UTC)
# What memberships are, and their history, without the service: with the same indexes.
BARE = """
    CREATE TABLE bare_members (LIKE memberships INCLUDING ALL);
    CREATE TABLE bare_events (LIKE membership_events INCLUDING ALL);
"""
# Of the expected members and those that are there.
DIFFERING = """
    SELECT count(*) FROM expected AS e
    FULL JOIN (SELECT user_id, expires_at FROM memberships WHERE segment_id = {}) AS m USING (user_id)
    WHERE e.expires_at IS DISTINCT FROM m.expires_at
"""
HISTORY = """
    SELECT action, count(*), count(DISTINCT user_id) FROM membership_events WHERE segment_id = {}
    GROUP BY action ORDER BY action
"""
AGE = "UPDATE tasks SET heartbeat_at = heartbeat_at - interval '1 minute' WHERE status = 'RUNNING'"


@dataclass(frozen=True, slots=True)
class Before:
    """Who is in a segment when the import comes."""

    # As the file says, and until another instant.
    same: list[Member]
    other: list[Member]
    # Whose time is over already.
    lapsed: list[Member]
    # Of whom the file says nothing.
    strangers: list[Member]

    def counts(self, listed: Listed) -> dict[str, int]:
        """What an import that adds says."""
        known = len(self.same) + len(self.other)
        return {
            "added": len(listed.good) - known,
            "updated": len(self.other),
            "removed": 0,
            "unchanged": len(self.same),
            "duplicate": listed.duplicates,
            "invalid": len(listed.rejects) - listed.duplicates,
        }


def measure(rows: int = 1_000_000, members: int = 50_000) -> Results:
    results, seed = Results("imports"), random.randrange(2**32)
    chance = random.Random(seed)
    results.raw["seed"] = seed
    said(f"seed {seed}")
    with databases.running() as database:
        base = seeds.prepare(database)
        seeds.segments(database, WARM)
        listed = broken.write(database.folder / "list.csv", rows, chance)
        before = _before(listed, members, base, chance)
        with processes.serving(database, tasks=0) as client:
            _speed(results, database, client, listed)
            for segment in (KNOWN, KILLED):
                _put_in(database, segment, before, base)
            seeds.settle(database)
            known = _correct(results, database, client, listed, before)
            _kills(results, database, client, listed, known)
        results.add("differences that verify finds after all of it", database.differences(), most=0)
    return results


def _before(listed: Listed, members: int, base: datetime, chance: random.Random) -> Before:
    some = chance.sample(listed.good, members + members // 10)
    half = members // 2
    return Before(
        some[:half],
        [(user, MOVED) for user, _ in some[half:members]],
        [(user, base - timedelta(days=1)) for user, _ in some[members:]],
        [(f"stranger-{number}", NEVER) for number in range(members // 10)],
    )


def _put_in(database: Database, segment: int, before: Before, base: datetime) -> None:
    everybody = before.same + before.other + before.lapsed + before.strangers
    importing.put_in(database, segment, everybody, base - timedelta(days=10))


def _warm_up(database: Database, client: Client) -> None:
    users = [f"warm-{number}-{time.time_ns()}" for number in range(WARM_ROWS)]
    path = broken.plain(database.folder / "warm.csv", users)
    importing.end(client, importing.begin(client, f"S{WARM}", path))


def _speed(results: Results, database: Database, client: Client, listed: Listed) -> None:
    ours: list[float] = []
    theirs: list[float] = []
    rows = len(listed.good)
    database.sql(BARE)
    with processes.working(database):
        _warm_up(database, client)
        for segment in range(1, ROUNDS + 1):
            database.sql("CHECKPOINT")
            done = importing.end(client, importing.begin(client, f"S{segment}", listed.path))
            if importing.counts(done)["added"] != rows:
                raise RuntimeError(f"the service answered {done}")
            ours.append(rows / done.seconds)
            database.sql("CHECKPOINT")
            theirs.append(rows / _bare(database, segment, listed.good))
            said(f"import {ours[-1]:.0f}, bare COPY {theirs[-1]:.0f} rows/s")
    database.sql("DROP TABLE bare_members, bare_events")
    results.raw |= {"import_rows_per_second": ours, "copy_rows_per_second": theirs}
    results.add("rows of the file that are good", rows, "rows")
    results.add("import, median", middle(ours), "rows/s")
    results.add("bare COPY, median", middle(theirs), "rows/s")
    results.add("import / bare COPY, median of rounds", ratio(ours, theirs), least=0.5)


def _bare(database: Database, segment: int, members: list[Member]) -> float:
    """Seconds that it takes to copy the same members, in the same order, and their history."""
    at = datetime.now(UTC)
    lines = broken.copied(members, f"{segment}\t{at}")
    seconds = importing.copy_in(database, f"bare_members {importing.MEMBERS}", lines)
    lines = broken.copied(members, f"{segment}\tADDED\t{at}\t1")
    return seconds + importing.copy_in(database, f"bare_events {importing.EVENTS}", lines)


def _correct(results: Results, database: Database, client: Client, listed: Listed, before: Before) -> Done:
    with processes.working(database) as pid:
        _warm_up(database, client)
        with memory.growing(pid) as growth:
            done = importing.end(client, importing.begin(client, f"S{KNOWN}", listed.path))
    expected, found = before.counts(listed), importing.counts(done)
    results.raw |= {"counts": found, "memory_samples": growth.samples, "seconds": done.seconds}
    for name, number in expected.items():
        results.add(f"rows that are {name}", found[name], "rows", least=number, most=number)
    results.add("rows", int(done.task["importResult"]["rows"]), "rows", least=listed.rows, most=listed.rows)
    path = database.folder / "rejects.csv"
    client.download(done.task["file"]["url"], path)
    results.add("rejects compared, line and code", len(listed.rejects), "lines", least=listed.rows // broken.BROKEN)
    results.add("of them that differ", _differing(sorted(listed.rejects), path), "lines", most=0)
    database.sql('CREATE TABLE expected (user_id text COLLATE "C", segment_id integer, expires_at timestamptz)')
    importing.copy_in(database, "expected", broken.copied(listed.good + before.strangers, "0"))
    results.add("members that differ", int(database.sql(DIFFERING.format(KNOWN))), "members", most=0)
    results.add("growth of resident memory", growth.resident, "MB", most=64)
    results.add("growth of proportional memory", growth.proportional, "MB", most=64)
    return done


def _differing(expected: list[tuple[int, str]], path: Path) -> int:
    with path.open(encoding="utf-8", newline="") as file:
        header, *rows = csv.reader(file)
    if header != ["line", "code", "reason", "row"]:
        raise RuntimeError(f"the rejects begin with {header}")
    found = [(int(row[0]), row[1]) for row in rows]
    wrong = sorted(set(found).symmetric_difference(expected))
    for line in wrong[:5]:
        said(f"line {line}: {'not expected' if line in found else 'missing'}")
    # The same ones, each once, and in the order of lines.
    return len(wrong) if wrong else int(found != expected)


def _kills(results: Results, database: Database, client: Client, listed: Listed, known: Done) -> None:
    task_id = importing.begin(client, f"S{KILLED}", listed.path)
    shown = list(_killed(database, client, task_id))
    with processes.working(database):
        done = importing.end(client, task_id)
    back = sum(later < earlier for earlier, later in pairwise(shown))
    same_counts = importing.counts(done) == importing.counts(known)
    histories = [database.sql(HISTORY.format(segment)) for segment in (KNOWN, KILLED)]
    results.raw |= {"killed_at": shown, "histories": histories}
    results.add("workers killed", len(shown), least=KILLS, most=KILLS)
    results.add("first of them at", shown[0] * 100 if shown else 0, "%")
    results.add("last of them at", shown[-1] * 100 if shown else 0, "%")
    results.add("times that progress went back", back, most=0)
    results.add("numbers as without the kills", same_counts, least=1, most=1)
    same_rejects = done.task["file"]["sha256"] == known.task["file"]["sha256"]
    results.add("rejects as without the kills, byte for byte", same_rejects, least=1, most=1)
    results.add("members that differ after the kills", int(database.sql(DIFFERING.format(KILLED))), most=0)
    results.add("numbers of events as without the kills", histories[0] == histories[1], least=1, most=1)


def _killed(database: Database, client: Client, task_id: str) -> Iterator[float]:
    """How far the import was when a worker was killed, each time a good deal further than before."""
    shown = 0.0
    for number in range(1, KILLS + 1):
        with processes.working(database) as pid:
            least, task = max(shown, number / (KILLS + 1)), importing.look(client, task_id)
            while task["status"] != "SUCCEEDED" and not least <= (task["progress"] or 0) != shown:
                time.sleep(importing.PAUSE_SECONDS)
                task = importing.look(client, task_id)
            if task["status"] == "SUCCEEDED":
                return
            os.kill(pid, SIGKILL)
        shown = task["progress"]
        said(f"killed at {shown:.2f}, {task['rowsDone']} rows done")
        yield shown
        # As if nobody had been heard of for long.
        database.sql(AGE)


def main(
    rows: Annotated[
        int, typer.Option(help="How many lines the file has; it takes 300 000 for ten steps to be killed in.")
    ] = 1_000_000,
    members: Annotated[int, typer.Option(help="How many of them are members already.")] = 50_000,
    json: Json = None,
) -> None:
    figures.conclude([measure(rows, members)], json)


if __name__ == "__main__":
    typer.run(main)
