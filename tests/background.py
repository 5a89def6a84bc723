"""Background tasks as callers see them, and the processes that work them off."""

import asyncio
import csv
import hashlib
import io
import os
import re
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from signal import SIGCONT, SIGKILL
from typing import Any

import forking
from conftest import ROOT, Client
from operations import ERRORS, new_key
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from db import connections
from db.files import Files
from jobs.verification import verify

TASK_FIELDS = """id kind status progress rowsDone createdAt startedAt finishedAt pollAfterMs error
  file { url urlExpiresAt bytes rows sha256 }"""
REPORT = f"""mutation ($input: GenerateReportInput!, $key: String!) {{
  generateReport(input: $input, idempotencyKey: $key) {{ task {{ {TASK_FIELDS} }} {ERRORS} }} }}"""
CANCEL = f"""mutation ($id: ID!, $key: String!) {{
  cancelTask(id: $id, idempotencyKey: $key) {{ task {{ {TASK_FIELDS} }} {ERRORS} }} }}"""
TASK = f"query ($id: ID!) {{ task(id: $id) {{ {TASK_FIELDS} }} }}"
TASKS = f"""query ($first: Int! = 20, $after: String, $kind: TaskKind, $status: TaskStatus) {{
  tasks(first: $first, after: $after, kind: $kind, status: $status) {{
    nodes {{ {TASK_FIELDS} }} pageInfo {{ hasNextPage endCursor }} }} }}"""
WORKER = ["worker"]
BEGINNING = "2020-01-01T00:00:00Z"


async def ask_for_report(client: Client, *, key: str = "", **input: Any) -> Any:
    """The whole payload, refusals included."""
    variables = {"from": BEGINNING, **{name.rstrip("_"): value for name, value in input.items()}}
    return (await client.ask(REPORT, input=variables, key=key or new_key()))["generateReport"]


async def task(client: Client, task_id: str) -> Any:
    return (await client.ask(TASK, id=task_id))["task"]


async def finished(client: Client, task_id: str) -> Any:
    """The task, once it has ended."""
    found = await task(client, task_id)
    for _ in range(600):
        if found["finishedAt"] is not None:
            break
        await asyncio.sleep(0.05)
        found = await task(client, task_id)
    assert found["finishedAt"] is not None, found
    return found


async def comes_to(look: Callable[[], Any], expected: Any) -> None:
    """Wait until that is what is there: a file is published first, what earlier attempts left is removed then."""
    for _ in range(600):
        if look() == expected:
            break
        await asyncio.sleep(0.05)
    assert look() == expected


async def download(client: Client, found: Any) -> bytes:
    """The task's file, which is what the task says."""
    assert found["status"] == "SUCCEEDED", found
    answer = await client.http.get(found["file"]["url"])
    assert answer.status_code == 200, answer.text
    assert len(answer.content) == found["file"]["bytes"]
    assert hashlib.sha256(answer.content).hexdigest() == found["file"]["sha256"]
    return answer.content


async def report(client: Client, **input: Any) -> bytes:
    """A report's bytes."""
    payload = await ask_for_report(client, **input)
    assert payload["userErrors"] == []
    return await download(client, await finished(client, payload["task"]["id"]))


def lines(content: bytes) -> list[tuple[str, ...]]:
    """The rows of a CSV, without its header."""
    header, *rows = csv.reader(io.StringIO(content.decode(), newline=""))
    assert header == ["user_id", "segment", "operation", "at"]
    return [tuple(row) for row in rows]


async def execute(engine: AsyncEngine, statement: str, **values: Any) -> list[tuple[Any, ...]]:
    async with engine.begin() as tx:
        result = await tx.execute(text(statement), values)
        return [tuple(row) for row in result] if result.returns_rows else []


@asynccontextmanager
async def stalled(engine: AsyncEngine) -> AsyncIterator[Callable[[], Awaitable[None]]]:
    """Hold advisory lock 42, which a test's function waits for, until the block ends or what it is given is called."""
    # In no transaction: the server ends those that stay idle.
    async with engine.execution_options(isolation_level="AUTOCOMMIT").connect() as conn:
        await conn.exec_driver_sql("SELECT pg_advisory_lock(42)")

        async def let_go() -> None:
            await conn.exec_driver_sql("SELECT pg_advisory_unlock_all()")

        yield let_go
        await let_go()


async def let_leases_end(engine: AsyncEngine) -> None:
    """As if nobody had been heard of for a long time."""
    await execute(engine, "UPDATE tasks SET heartbeat_at = heartbeat_at - interval '1 hour' WHERE status = 'RUNNING'")
    await execute(engine, "UPDATE job_runs SET heartbeat_at = heartbeat_at - interval '1 hour' WHERE state = 'RUNNING'")


async def verified(database_url: str, folder: str | Path) -> list[str]:
    """What `segmentql verify` finds, files and all; nothing, if all is well."""
    exporter = connections.exporter(database_url, pool_size=1)
    files = Files(str(folder))
    files.prepare()
    found = await verify(exporter, files, task_days=30, checksums=True)
    await exporter.dispose()
    return [example for check in found.checks for example in check.examples]


async def purged(engine: AsyncEngine, runs: int = 1) -> None:
    """Wait until so many purges are finished, and none is under way."""
    states: list[tuple[Any, ...]] = []
    for _ in range(600):
        states = await execute(engine, "SELECT CAST(state AS text) FROM job_runs")
        if states == [("FINISHED",)] * runs:
            break
        await asyncio.sleep(0.05)
    assert states == [("FINISHED",)] * runs


class Process:
    """A process of its own, and what it says."""

    process: subprocess.Popen[bytes] | forking.Command

    def __init__(self, folder: Path, environ: dict[str, str], command: list[str]) -> None:
        self.log = folder / f"{len(list(folder.glob('*.log')))}.log"
        environ = os.environ | environ
        with self.log.open("wb") as log:
            if command == WORKER:
                self.process = forking.Command(command, cwd=ROOT, env=environ, stdout=log, stderr=log)
            else:
                self.process = subprocess.Popen(command, cwd=ROOT, env=environ, stdout=log, stderr=log)

    def said(self, pattern: str) -> bool:
        return re.search(pattern, self.log.read_text()) is not None

    def send(self, signal: int) -> None:
        self.process.send_signal(signal)

    async def says(self, pattern: str) -> None:
        for _ in range(1_000):
            if self.said(pattern) or self.process.poll() is not None:
                break
            await asyncio.sleep(0.02)
        assert self.said(pattern), self.log.read_text()


@asynccontextmanager
async def process(
    folder: Path, database_url: str, redis_url: str, command: list[str], **settings: str
) -> AsyncIterator[Process]:
    urls = {"SEGMENTQL_DATABASE_URL": database_url, "SEGMENTQL_REDIS_URL": redis_url}
    environ = urls | {f"SEGMENTQL_{name.upper()}": value for name, value in settings.items()}
    running = Process(folder, environ, command)
    with running.process:
        try:
            yield running
        finally:
            if running.process.poll() is None:
                running.send(SIGCONT)
                running.send(SIGKILL)
            running.process.wait(20)


STALLED = "user-000500"


@asynccontextmanager
async def stalling_reports(database_url: str) -> AsyncIterator[AsyncEngine]:
    """A database with 1 000 events, in which a report waits in its middle while somebody holds lock 42."""
    engine = connections.writer(database_url, pool_size=4)
    await execute(engine, "INSERT INTO segments (slug, version) VALUES ('A', 1)")
    await execute(engine, "UPDATE catalogue SET version = 1")
    await execute(
        engine, "INSERT INTO operations (client, kind, fingerprint, result) VALUES ('seed', 'seed', '', '{}')"
    )
    await execute(
        engine,
        """WITH added AS (
               INSERT INTO memberships
               SELECT 'user-' || lpad(n::text, 6, '0'), 1, clock_timestamp() FROM generate_series(0, 999) AS n
               RETURNING *
           ) INSERT INTO membership_events SELECT user_id, 1, 'ADDED', added_at, expires_at, 1 FROM added""",
    )
    # Formatting the instants is the last thing that happens to a row.
    ((middle,),) = await execute(engine, "SELECT at FROM membership_events WHERE user_id = :user", user=STALLED)
    await execute(
        engine,
        f"""CREATE FUNCTION to_char(at timestamp, format text) RETURNS text LANGUAGE plpgsql VOLATILE AS $$ BEGIN
                IF at = '{middle:%Y-%m-%d %H:%M:%S.%f}' THEN
                    PERFORM pg_advisory_lock_shared(42);
                    PERFORM pg_advisory_unlock_shared(42);
                END IF;
                RETURN pg_catalog.to_char(at, format);
            END $$""",
    )
    name = engine.url.database
    await execute(engine, f"ALTER DATABASE {name} SET search_path = public, pg_catalog")
    await engine.dispose()
    yield engine
    await engine.dispose()


STALLS = """SELECT pid FROM pg_stat_activity
            WHERE datname = current_database() AND wait_event = 'advisory' AND query LIKE '%COPY%'"""


async def in_the_middle(engine: AsyncEngine, reports: int = 1) -> None:
    for _ in range(1_000):
        if len(await execute(engine, STALLS)) == reports:
            return
        await asyncio.sleep(0.02)
    raise AssertionError(await execute(engine, "SELECT wait_event, state, query FROM pg_stat_activity"))
