"""`segmentql verify`: it finds whatever does not fit together, and nothing else, while everybody goes on working."""

import asyncio
import os
import random
import shutil
import subprocess
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import forking
import httpx
import pytest
from background import ask_for_report, execute, finished
from conftest import ROOT, Client, Serve
from databases import fresh, query, sql
from operations import CREATE, DELETE, change, create, delete, expire, new_key
from sqlalchemy import make_url
from sqlalchemy.ext.asyncio import AsyncEngine
from starlette.types import Receive, Scope, Send

from db import connections, files, migrate
from db.files import Files
from jobs import verification
from jobs.partitions import keep_ahead
from jobs.purge import Retention, by_hand
from jobs.verification import Report, verify
from server.app import create_app
from server.embedded import Servers
from server.settings import Settings

SECONDS = 6
RETENTION = Retention(key_hours=24, file_days=7, task_days=30, history_months=None)


@dataclass(frozen=True)
class Place:
    """A database and a folder of files, as the checker sees them."""

    exporter: AsyncEngine
    store: Files

    async def report(self, *, checksums: bool = False) -> Report:
        return await verify(self.exporter, self.store, task_days=30, checksums=checksums)


def found(report: Report) -> dict[str, int]:
    """How many differences, where there are any."""
    return {check.name: check.differences for check in report.checks if check.differences}


def sentences(report: Report) -> list[str]:
    return [example for check in report.checks for example in check.examples]


@asynccontextmanager
async def looking(database_url: str, folder: Path) -> AsyncIterator[Place]:
    store = Files(str(folder))
    store.prepare()
    exporter = connections.exporter(database_url, 1)
    try:
        yield Place(exporter, store)
    finally:
        await exporter.dispose()


@pytest.fixture
async def place(settings: Settings) -> AsyncIterator[Place]:
    """What the application of the test uses."""
    assert settings.database_url is not None
    async with looking(settings.database_url, Path(settings.store)) as place:
        yield place


@dataclass(frozen=True)
class Busy:
    """A database that tests copy, and the folder with its files."""

    name: str
    folder: Path


Use = Callable[[Client, AsyncEngine, Files], Awaitable[None]]


@pytest.fixture(scope="module")
def past(servers: Servers, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Busy]:
    with lived(servers, tmp_path_factory.mktemp("busy"), use) as past:
        yield past


@contextmanager
def lived(servers: Servers, folder: Path, use: Use) -> Iterator[Busy]:
    """A database that has been used like that."""
    with fresh(servers) as url:
        settings = Settings(database_url=url, redis_url=servers.redis_url, data_dir=folder, serve_tasks=2)
        asyncio.run(be_busy(settings, use))
        yield Busy(str(make_url(url).database), folder / "files")


async def be_busy(settings: Settings, use: Use) -> None:
    """Have an application of its own used."""
    assert settings.database_url is not None
    engine = connections.writer(settings.database_url, pool_size=2)
    await migrate.migrate(engine)
    await keep_ahead(engine)
    app = create_app(settings)
    async with app.router.lifespan_context(app) as state, looking(settings.database_url, Path(settings.store)) as place:

        async def answer(scope: Scope, receive: Receive, send: Send) -> None:
            await app({**scope, "state": dict(state or {})}, receive, send)

        async with httpx.AsyncClient(transport=httpx.ASGITransport(answer), base_url="http://localhost") as http:
            await use(Client(http), engine, place.store)
    await engine.dispose()


async def use(client: Client, engine: AsyncEngine, store: Files) -> None:
    """Everything that can happen happens once, to users whose numbers say what."""
    await create(client, "A", "B", "C")
    await change(client, 1, add=["A"])
    await change(client, 2, add=["A"], ttlDays=1)
    await change(client, 2, add=["A"], ttlDays=2)
    await change(client, 3, add=["A"])
    await change(client, 3, add=["B"], remove=["A"])
    for user in (4, 5):
        await change(client, user, add=["A"], ttlDays=1)
        await expire(engine, str(user), "A", 100)
    await change(client, 4, add=["A"])
    await change(client, 4, add=["A"])
    await change(client, 6, add=["C"])
    await change(client, 7, add=["C"], ttlDays=1)
    await expire(engine, "7", "C", 100)
    await delete(client, "C")
    await until_clean(engine)
    await by_hand(engine, store, RETENTION)
    await create(client, "C")
    await change(client, 6, add=["C"], ttlDays=1)
    payload = await ask_for_report(client)
    assert (await finished(client, payload["task"]["id"]))["status"] == "SUCCEEDED"
    # What still waits for its job belongs to history as well.
    await change(client, 8, add=["A"], ttlDays=1)
    await expire(engine, "8", "A", 100)


@pytest.fixture
def database_url(servers: Servers, past: Busy) -> Iterator[str]:
    """A copy of the busy database."""
    with fresh(servers, past.name) as url:
        yield url


@pytest.fixture
def folder(past: Busy, tmp_path: Path) -> Path:
    """A copy of its files."""
    return shutil.copytree(past.folder, tmp_path / "files", dirs_exist_ok=True)


@pytest.fixture
async def busy(database_url: str, folder: Path) -> AsyncIterator[Place]:
    async with looking(database_url, folder) as place:
        yield place


async def until_clean(engine: AsyncEngine) -> None:
    waiting = "SELECT FROM segments WHERE deleted_at IS NOT NULL AND cleaned_at IS NULL"
    for _ in range(400):
        if not await execute(engine, waiting):
            return
        await asyncio.sleep(0.05)
    raise AssertionError


async def test_after_a_busy_history_everything_fits(busy: Place) -> None:
    report = await busy.report(checksums=True)
    assert sentences(report) == []
    assert [(check.name, check.looked, check.differences) for check in report.checks] == [
        ("history", 17, 0),
        ("memberships", 6, 0),
        ("operations of events", 17, 0),
        ("segments", 4, 0),
        ("rollouts", 0, 0),
        ("operations", 19, 0),
        ("imports", 0, 0),
        ("files of tasks", 1, 0),
    ]


@dataclass(frozen=True)
class Corruption:
    statement: str
    # The differences of each check that has any.
    found: dict[str, int]
    # What one of the sentences contains.
    sentence: str


OF_3 = "user_id = '3' AND segment_id = 1"
CORRUPTIONS = {
    "a lost beginning": Corruption(
        f"DELETE FROM membership_events WHERE {OF_3} AND action = 'ADDED'",
        {"history": 1, "operations": 1},
        "user 3, segment 1: REMOVED at ",
    ),
    "a lost end": Corruption(
        f"DELETE FROM membership_events WHERE {OF_3} AND action = 'REMOVED'",
        {"memberships": 1, "operations": 1},
        "user 3, segment 1: the membership is not there, though its last event is ADDED at ",
    ),
    "all of a history lost": Corruption(
        "DELETE FROM membership_events WHERE user_id = '1'",
        {"memberships": 1, "operations": 1},
        "operation 4 (at ",
    ),
    "a doubled event": Corruption(
        "INSERT INTO membership_events SELECT * FROM membership_events WHERE user_id = '1'",
        {"history": 1, "operations": 1},
        "user 1, segment 1: ADDED at ",
    ),
    "an event of another user": Corruption(
        "UPDATE membership_events SET user_id = '9' WHERE user_id = '1'",
        {"memberships": 2},
        "user 9, segment 1: the membership is not there",
    ),
    "an event after the end": Corruption(
        f"""INSERT INTO membership_events SELECT user_id, segment_id, 'REMOVED', at + interval '1 s', NULL, operation_id
            FROM membership_events WHERE {OF_3} AND action = 'REMOVED'""",
        {"history": 1, "operations": 1},
        " comes after the end",
    ),
    "an expiry at another instant": Corruption(
        "UPDATE membership_events SET at = at + interval '1 s' WHERE user_id = '5' AND action = 'EXPIRED'",
        {"history": 1},
        " ends what was to expire at ",
    ),
    "an expiry after which something happens": Corruption(
        f"UPDATE membership_events SET expires_at = at + interval '1 us' WHERE {OF_3} AND action = 'ADDED'",
        {"history": 1},
        " comes after the expiry at ",
    ),
    "an expiry before the beginning": Corruption(
        f"UPDATE membership_events SET expires_at = at WHERE {OF_3} AND action = 'ADDED'",
        {"history": 2},
        ", which is no later",
    ),
    "a beginning without an expiry": Corruption(
        f"UPDATE membership_events SET expires_at = NULL WHERE {OF_3} AND action = 'ADDED'",
        {"history": 1},
        " tells no expiry",
    ),
    "an end with an expiry": Corruption(
        f"UPDATE membership_events SET expires_at = 'infinity' WHERE {OF_3} AND action = 'REMOVED'",
        {"history": 1},
        " tells an expiry",
    ),
    "a deletion at another instant": Corruption(
        "UPDATE membership_events SET at = at + interval '1 us' WHERE action = 'SEGMENT_DELETED'",
        {"history": 1},
        " is not the deletion at ",
    ),
    "a change after the deletion": Corruption(
        "UPDATE membership_events SET action = 'REMOVED', at = at + interval '1 us' WHERE action = 'SEGMENT_DELETED'",
        {"history": 1, "operations": 1},
        " comes after the deletion of the segment at ",
    ),
    "an event of no segment": Corruption(
        f"UPDATE membership_events SET segment_id = 99 WHERE {OF_3}",
        {"history": 2, "operations": 2},
        "user 3, segment 99: ADDED at ",
    ),
    "an event of no operation": Corruption(
        "UPDATE membership_events SET operation_id = NULL WHERE user_id = '1'",
        {"operations of events": 1, "operations": 1},
        " names no operation",
    ),
    "an expiry that somebody asked for": Corruption(
        "UPDATE membership_events SET operation_id = 1 WHERE user_id = '5' AND action = 'EXPIRED'",
        {"operations of events": 1},
        " names operation 1, but an expiry has none",
    ),
    "a lost operation": Corruption(
        "DELETE FROM operations WHERE id = 4",
        {"operations of events": 1},
        " names operation 4, which there is not",
    ),
    "a changed expiry": Corruption(
        "UPDATE memberships SET expires_at = expires_at + interval '1 us' WHERE user_id = '2'",
        {"memberships": 1},
        "user 2, segment 1: the membership expires at ",
    ),
    "an expiry that was to be for ever": Corruption(
        "UPDATE memberships SET expires_at = '2099-01-01Z' WHERE user_id = '1'",
        {"memberships": 1},
        "expires at 2099-01-01 00:00:00+00, by its history at infinity",
    ),
    "a changed beginning": Corruption(
        "UPDATE memberships SET added_at = added_at - interval '1 us' WHERE user_id = '1'",
        {"memberships": 1},
        "user 1, segment 1: the membership was added at ",
    ),
    "a lost membership": Corruption(
        "DELETE FROM memberships WHERE user_id = '1'",
        {"memberships": 1},
        "user 1, segment 1: the membership is not there, though its last event is ADDED at ",
    ),
    "an invented membership": Corruption(
        "INSERT INTO memberships VALUES ('nobody', 1, now())",
        {"memberships": 1},
        "user nobody, segment 1: the membership was added at ",
    ),
    "an invented membership from before all history": Corruption(
        "INSERT INTO memberships VALUES ('nobody', 1, '2001-01-01Z')",
        {"memberships": 1},
        "was added at 2001-01-01 00:00:00+00, of which no event tells",
    ),
    "a membership that came back": Corruption(
        "INSERT INTO memberships VALUES ('3', 1, now())",
        {"memberships": 1},
        "user 3, segment 1: the membership is there, though its last event is REMOVED at ",
    ),
    "a membership of a segment that was cleaned up": Corruption(
        "INSERT INTO memberships VALUES ('nobody', 3, '2001-01-01Z')",
        {"memberships": 1},
        "user nobody, segment 3: the membership is there, though the segment was cleaned up at ",
    ),
    "a membership of no segment": Corruption(
        "INSERT INTO memberships VALUES ('nobody', 99, now())",
        {"memberships": 1},
        "user nobody, segment 99: the membership is of a segment that there is not",
    ),
    "a cleanup that nobody will do": Corruption(
        "UPDATE segments SET cleaned_at = NULL WHERE id = 3",
        {"segments": 1},
        "segment 3 (C) was deleted at ",
    ),
    "a deletion undone": Corruption(
        "UPDATE segments SET deleted_at = NULL, slug = 'D' WHERE id = 3",
        {"history": 1, "segments": 1, "operations": 3},
        "segment 3 (D) is live, and was deleted or cleaned up",
    ),
    "a deletion by somebody else": Corruption(
        "UPDATE segments SET deleted_by = 1 WHERE id = 3",
        {"history": 1, "operations": 1},
        ") did not delete segment 3",
    ),
    "a lost segment": Corruption(
        "DELETE FROM segments WHERE id = 2",
        {"history": 1, "memberships": 1, "operations": 2},
        "is about segment 2, which there is not",
    ),
    "a lost result": Corruption(
        "UPDATE operations SET result = NULL WHERE id = 1", {"operations": 1}, "operation 1 (createSegment at "
    ),
    "a result of another kind": Corruption(
        """UPDATE operations SET result = '{"segment_id": "x"}' WHERE id = 1""",
        {"operations": 1},
        "is about segment x, which there is not",
    ),
    "a result with another segment": Corruption(
        """UPDATE operations SET result = '{"added": ["B"]}' WHERE id = 4""",
        {"operations": 1},
        ") tells of 1 changes, history of others",
    ),
    "a result with too much": Corruption(
        """UPDATE operations SET result = '{"added": ["A", "B"]}' WHERE id = 4""",
        {"operations": 1},
        ") tells of 2 changes, history of 1",
    ),
    "a lost task": Corruption("DELETE FROM tasks WHERE kind = 'REPORT'", {"operations": 1}, "is about task "),
    "a task that somebody else made": Corruption(
        "UPDATE tasks SET operation_id = 1 WHERE kind = 'REPORT'", {"operations": 1}, ") did not make task "
    ),
    "a cancellation undone": Corruption(
        """UPDATE operations SET kind = 'cancelTask' WHERE kind = 'generateReport'""",
        {"operations": 1},
        ") did not cancel task ",
    ),
    "a task that does not name its file": Corruption(
        "UPDATE tasks SET result = NULL WHERE kind = 'REPORT'",
        {"files of tasks": 1},
        " is not named by the task's result",
    ),
}


@pytest.mark.parametrize("name", CORRUPTIONS)
async def test_what_does_not_fit_is_found(busy: Place, database_url: str, name: str) -> None:
    await finds(busy, database_url, CORRUPTIONS[name])


async def finds(place: Place, database_url: str, corruption: Corruption) -> None:
    await query(database_url, corruption.statement)
    report = await place.report()
    assert found(report) == corruption.found, sentences(report)
    assert report.differences == sum(corruption.found.values())
    assert any(corruption.sentence in sentence for sentence in sentences(report)), sentences(report)


async def test_a_file_that_is_not_what_was_written_is_found(busy: Place, database_url: str) -> None:
    ((task_id, attempt),) = await query(database_url, "SELECT id, attempt FROM tasks WHERE kind = 'REPORT'")
    file = busy.store.local(files.path(task_id, attempt))
    assert file is not None
    whole = file.read_bytes()
    file.write_bytes(whole[:-1] + b"!")
    assert found(await busy.report()) == {}
    assert sentences(await busy.report(checksums=True)) == [
        f"the file of task {task_id} has other bytes than were written"
    ]
    file.write_bytes(whole[:-1])
    assert sentences(await busy.report()) == [
        f"the file of task {task_id} has {len(whole) - 1} bytes, not {len(whole)}"
    ]
    file.unlink()
    for checksums in (False, True):
        assert sentences(await busy.report(checksums=checksums)) == [f"the file of task {task_id} is not there"]
    # Once its retention is over it may be gone.
    await query(database_url, "UPDATE tasks SET file_removed_at = now() WHERE kind = 'REPORT'")
    assert sentences(await busy.report(checksums=True)) == []


async def test_so_many_differences_are_counted_and_some_told(busy: Place, database_url: str) -> None:
    await query(
        database_url,
        "INSERT INTO memberships SELECT 'nobody ' || n, 1, now() FROM generate_series(1, 1000) AS n",
    )
    report = await busy.report()
    assert found(report) == {"memberships": 1000}
    assert len(sentences(report)) == 10


@pytest.mark.parametrize("rows", [1, 2, 3, 7])
async def test_the_slices_together_are_everything(busy: Place, monkeypatch: pytest.MonkeyPatch, rows: int) -> None:
    whole = await busy.report()
    for name in ("ROWS", "SEGMENTS", "FILES"):
        monkeypatch.setattr(verification, name, rows)
    assert await busy.report() == whole


async def test_an_event_that_a_lagging_clock_dated_later_is_found_where_it_is(busy: Place, database_url: str) -> None:
    for days in (2, 40):
        await query(
            database_url,
            f"""
                WITH moved AS (
                    UPDATE membership_events SET at = at + interval '{days} days' WHERE user_id = '1' RETURNING at
                ) UPDATE memberships SET added_at = at FROM moved WHERE user_id = '1'
            """,
        )
        assert sentences(await busy.report()) == []


async def test_history_that_is_gone_is_searched_for_once_and_all_of_it_is_missed(
    busy: Place, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    await query(database_url, "TRUNCATE membership_events")
    whole = await busy.report()
    assert found(whole) == {"memberships": 6, "operations": 12}
    assert len(sentences(whole)) == 6 + 10
    monkeypatch.setattr(verification, "ROWS", 6)
    monkeypatch.setattr(verification, "MANY", 2)
    report = await busy.report()
    assert found(report) == found(whole)
    assert [example.split(" (")[0] for example in report.checks[5].examples] == [
        "operation 4",
        "operation 5",
        "operation 6",
    ]


async def test_what_tasks_and_operations_outlived_is_not_missed(busy: Place, database_url: str) -> None:
    await query(database_url, "DELETE FROM tasks")
    assert found(await busy.report()) == {"operations": 1}
    await query(database_url, "UPDATE operations SET at = at - interval '31 days' WHERE kind = 'generateReport'")
    assert found(await busy.report()) == {}


MONTHS_AGO = """
    DO $$ DECLARE month timestamp;
    BEGIN
        FOR month IN SELECT date_trunc('month', now() AT TIME ZONE 'UTC') - make_interval(months => n)
                     FROM generate_series(1, 3) AS n LOOP
            EXECUTE format(
                'CREATE TABLE membership_events_%s PARTITION OF membership_events FOR VALUES FROM (%L) TO (%L)',
                to_char(month, 'YYYY_MM'), month || 'Z', month + interval '1 month' || 'Z');
        END LOOP;
        UPDATE membership_events SET at = at - interval '3 months' WHERE operation_id IN (4, 5, 7, 9, 10, 13, 14);
        UPDATE memberships SET added_at = added_at - interval '3 months' WHERE user_id IN ('1', '2');
        UPDATE operations SET at = at - interval '3 months' WHERE id IN (1, 2, 3, 4, 5, 7, 9, 10, 13, 14);
        UPDATE segments SET created_at = created_at - interval '3 months' WHERE id < 4;
    END $$
"""
SINCE_THEN = {
    "a membership of now": (
        "INSERT INTO memberships VALUES ('nobody', 1, now())",
        "memberships: user nobody, segment 1: the membership was added at ",
    ),
    "a membership that is older than its segment": (
        "INSERT INTO memberships VALUES ('nobody', 4, '2001-01-01Z')",
        "memberships: user nobody, segment 4: the membership was added at 2001-01-01 00:00:00+00, of which",
    ),
    "a beginning of now without an event": (
        "UPDATE memberships SET added_at = now() WHERE user_id = '2'",
        "memberships: user 2, segment 1: the membership was added at ",
    ),
    "an expiry that moved since": (
        "UPDATE memberships SET expires_at = expires_at + interval '1 us' WHERE user_id = '2'",
        "memberships: user 2, segment 1: the membership expires at ",
    ),
    "an end without a beginning in a segment of now": (
        "INSERT INTO membership_events VALUES ('nobody', 4, 'EXPIRED', now())",
        "history: user nobody, segment 4: EXPIRED at ",
    ),
}


@pytest.mark.parametrize("name", SINCE_THEN)
async def test_history_that_was_dropped_is_not_missed_and_what_is_left_is_checked(
    busy: Place, database_url: str, name: str
) -> None:
    await query(database_url, MONTHS_AGO)
    assert sentences(await busy.report()) == []
    writer = connections.writer(database_url, pool_size=1)
    stats = await by_hand(writer, busy.store, replace(RETENTION, history_months=1))
    await writer.dispose()
    assert (stats["partitions"], stats["operations"]) == (2, 10)
    report = await busy.report()
    assert sentences(report) == []
    assert [check.looked for check in report.checks] == [18 - 7, 5, 18 - 7, 4, 0, 19 - 10, 0, 1]
    statement, sentence = SINCE_THEN[name]
    await query(database_url, statement)
    report = await busy.report()
    (told,) = [f"{check.name}: {example}" for check in report.checks for example in check.examples]
    assert told.startswith(sentence)


@pytest.mark.soak
async def test_nothing_is_found_while_everybody_is_at_work(
    serve: Serve, engine: AsyncEngine, place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verification, "ROWS", 20)
    monkeypatch.setattr(verification, "FILES", 2)
    ending, reports = time.monotonic() + SECONDS, []
    async with serve(serve_tasks=2) as client:
        await create(client, "A", "B", "C")
        others = [asyncio.create_task(use_memberships(client, ending)) for _ in range(4)]
        others += [asyncio.create_task(use_segments(client, ending)) for _ in range(2)]
        others.append(asyncio.create_task(tidy(client, engine, place.store, ending)))
        while time.monotonic() < ending:
            report = await place.report(checksums=True)
            assert sentences(report) == []
            reports.append(report)
        await asyncio.gather(*others)
    report = await place.report(checksums=True)
    assert sentences(report) == []
    assert len(reports) > 1
    looked = {check.name: check.looked for check in report.checks}
    assert min(looked["history"], looked["operations"]) > 2 * verification.ROWS


async def use_memberships(client: Client, ending: float) -> None:
    while time.monotonic() < ending:
        slugs = random.sample(["A", "B", "C", "X0", "X1"], 2)
        lists: dict[str, Any] = random.choice(
            [{"add": slugs}, {"remove": slugs}, {"add": slugs[:1], "remove": slugs[1:]}]
        )
        if random.random() < 0.6:
            soon = datetime.now(UTC) + timedelta(seconds=random.uniform(0.1, 2))
            lists |= {"expiresAt": soon.isoformat()} if "add" in lists else {}
        payload = await change(client, random.randrange(40), **lists)
        assert {error["code"] for error in payload["userErrors"]} <= {"SEGMENT_NOT_FOUND", "INVALID"}


async def use_segments(client: Client, ending: float) -> None:
    slug = f"X{random.randrange(2)}"
    while time.monotonic() < ending:
        await client.ask(CREATE, slug=slug, key=new_key())
        await asyncio.sleep(random.uniform(0, 0.3))
        await client.ask(DELETE, slug=slug, key=new_key())


async def tidy(client: Client, engine: AsyncEngine, store: Files, ending: float) -> None:
    """Files go as soon as they are there."""
    while time.monotonic() < ending:
        await ask_for_report(client)
        await by_hand(engine, store, replace(RETENTION, file_days=0))


def test_the_command_says_what_it_looked_at_and_fails_when_something_differs(
    database_url: str, folder: Path, servers: Servers
) -> None:
    def run(*options: str) -> subprocess.CompletedProcess[str]:
        settings = {
            "SEGMENTQL_DATABASE_URL": database_url,
            "SEGMENTQL_REDIS_URL": servers.redis_url,
            "SEGMENTQL_FILES": str(folder),
        }
        return forking.run(["verify", *options], cwd=ROOT, env=os.environ | settings)

    well = run("--checksums")
    assert (well.returncode, [line.split() for line in well.stdout.splitlines()]) == (
        0,
        [
            ["check", "looked", "at", "differences"],
            ["history", "17", "0"],
            ["memberships", "6", "0"],
            ["operations", "of", "events", "17", "0"],
            ["segments", "4", "0"],
            ["rollouts", "0", "0"],
            ["operations", "19", "0"],
            ["imports", "0", "0"],
            ["files", "of", "tasks", "1", "0"],
        ],
    ), well.stderr
    sql(database_url, "INSERT INTO memberships SELECT '[b]' || n, 1, '2026-01-02Z' FROM generate_series(10, 21) AS n")
    for file in folder.glob("reports/*/*.csv"):
        file.write_bytes(file.read_bytes().replace(b"A", b"B"))
    wrong = run()
    assert wrong.returncode == 1
    assert wrong.stdout.splitlines()[9:] == [
        *(
            f"memberships: user [b]{n}, segment 1: the membership was added at 2026-01-02 00:00:00+00, "
            "of which no event tells"
            for n in range(10, 20)
        ),
        "memberships: 2 more",
    ]
    sql(database_url, "DELETE FROM memberships WHERE user_id ^@ '['")
    assert (run().returncode, run("--checksums").returncode) == (0, 1)
