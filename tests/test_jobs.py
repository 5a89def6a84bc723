"""Work that nobody waits for, and whether a load balancer learns when it was not done."""

import asyncio
import logging
import socket
import time
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from datetime import UTC, datetime
from itertools import pairwise

import pytest
from conftest import Client, Serve
from databases import query
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from db import connections, migrate
from jobs import schedule
from jobs.partitions import keep_ahead
from server import health
from server.background import partitions_ahead
from server.embedded import Servers

EVERY_SECOND = "* * * * * *"
WAITING = "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"


def running(writer: AsyncEngine) -> AbstractAsyncContextManager[None]:
    return schedule.running(partitions_ahead(writer), when=EVERY_SECOND)


@pytest.fixture
async def writer(database_url: str) -> AsyncIterator[AsyncEngine]:
    """Its connections; the tables are there, and no partition."""
    engine = connections.writer(database_url, pool_size=4)
    await migrate.migrate(engine)
    yield engine
    await engine.dispose()


async def test_partitions_are_there_for_this_month_and_three_more(writer: AsyncEngine, database_url: str) -> None:
    await keep_ahead(writer)
    bounds = [
        f"FOR VALUES FROM ('{first:%Y-%m-%d} 00:00:00+00') TO ('{then:%Y-%m-%d} 00:00:00+00')"
        for first, then in await months(database_url)
    ]
    found = """
        SELECT relname, pg_get_expr(relpartbound, oid) FROM pg_class
        WHERE relispartition AND relkind = 'r' ORDER BY relname
    """
    assert await query(database_url, found) == list(zip(await partitions_of(database_url), bounds, strict=True))
    assert len(bounds) == 4


async def test_making_partitions_again_or_at_once_is_harmless(writer: AsyncEngine, database_url: str) -> None:
    await asyncio.gather(*(keep_ahead(writer) for _ in range(4)))
    there = await partitions_of(database_url)
    assert len(there) == 4
    await query(database_url, f"DROP TABLE {there[2]}")
    await asyncio.gather(*(keep_ahead(writer) for _ in range(4)))
    await keep_ahead(writer)
    assert await partitions_of(database_url) == there


async def test_an_event_lies_in_its_month_by_utc(writer: AsyncEngine, database_url: str) -> None:
    await keep_ahead(writer)
    _, (first, _), *_ = await months(database_url)
    this, next_one, *_ = await partitions_of(database_url)
    for offset in ("- interval '1 microsecond'", ""):
        at = f"timestamptz '{first.isoformat()}' {offset}"
        await query(database_url, f"INSERT INTO membership_events VALUES ('7', 1, 'ADDED', {at}, 'infinity', 1)")
    found = "SELECT tableoid::regclass::text FROM membership_events ORDER BY at"
    assert await query(database_url, found) == [(this,), (next_one,)]


async def test_the_job_runs_at_the_start_and_at_every_tick(writer: AsyncEngine, database_url: str) -> None:
    async with running(writer):
        there = await partitions_of(database_url)
        assert len(there) == 4
        for partition in there[1:3]:
            await query(database_url, f"DROP TABLE {partition}")
            await until_partitions_are(database_url, there)
    await query(database_url, f"DROP TABLE {there[3]}")
    await asyncio.sleep(1.5)  # longer than a tick: after the end there is none
    assert await partitions_of(database_url) == there[:3]


async def test_one_process_does_a_job_once_at_a_time(writer: AsyncEngine, database_url: str) -> None:
    async with running(writer):
        there = await partitions_of(database_url)
        async with writer.connect() as conn:
            await conn.execute(text("SELECT pg_advisory_xact_lock(hashtext('membership_events partitions'))"))
            await query(database_url, f"DROP TABLE {there[2]}")
            began = time.monotonic()
            seen = set()
            while time.monotonic() < began + 2.5:  # at least two ticks
                seen.add(len(await query(database_url, WAITING)))
                await asyncio.sleep(0.02)
            assert seen == {0, 1}
        await until_partitions_are(database_url, there)


async def test_a_job_that_fails_is_logged_and_tried_again(
    writer: AsyncEngine, database_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    await query(database_url, "ALTER TABLE membership_events RENAME TO mislaid")
    async with running(writer):
        (record,) = caplog.records
        assert (record.name, record.levelno) == ("jobs.schedule", logging.ERROR)
        assert record.getMessage() == "the partitions of the history were not looked after; the next tick tries again"
        assert 'relation "membership_events" does not exist' in str(record.exc_info)
        await query(database_url, "ALTER TABLE mislaid RENAME TO membership_events")
        await until_partitions_are(
            database_url, [f"membership_events_{m:%Y_%m}" for m, _ in await months(database_url)]
        )


async def test_a_job_that_fails_does_not_end_the_process(
    writer: AsyncEngine, database_url: str, serve: Serve, caplog: pytest.LogCaptureFixture
) -> None:
    await query(database_url, "ALTER TABLE membership_events RENAME TO mislaid")
    async with serve(database_url=database_url) as client:
        assert await client.ask("{ user(id: 7) { segments { slug } } }") == {"user": {"segments": []}}
        assert (await client.http.get("/healthz")).json() == {"alive": True}
    assert [record.name for record in caplog.records if record.levelno == logging.ERROR] == ["jobs.schedule"]


@pytest.fixture(autouse=True)
def looking_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(health, "SHARED_SECONDS", 0)


async def test_ready_is_what_can_be_written_to(client: Client) -> None:
    await until_redis_is(client, available=True)
    answer = await client.http.get("/readyz")
    assert (answer.status_code, answer.json()) == (200, {"ready": True, "problems": [], "redis": True})


async def test_not_ready_without_next_months_partition_until_it_is_made(
    writer: AsyncEngine, database_url: str, serve: Serve
) -> None:
    async with serve(database_url=database_url) as client:
        assert (await client.http.get("/readyz")).status_code == 200
        this, next_one, *others = await partitions_of(database_url)
        for partition in others:
            await query(database_url, f"DROP TABLE {partition}")
        assert (await client.http.get("/readyz")).status_code == 200
        await query(database_url, f"DROP TABLE {next_one}")
        month = next_one.removeprefix("membership_events_")
        await not_ready(client, f"The history has no partition for {month}. Run: segmentql migrate")
        await keep_ahead(writer)
        assert (await client.http.get("/readyz")).status_code == 200
        assert await partitions_of(database_url) == [this, next_one, *others]


async def test_not_ready_while_the_database_is_behind(writer: AsyncEngine, database_url: str, serve: Serve) -> None:
    async with serve(database_url=database_url) as client:
        await query(database_url, "DELETE FROM alembic_version")
        await not_ready(client, f"The database is at revision None, not {migrate.newest()}. Run: segmentql migrate")


async def test_ready_when_a_newer_version_has_migrated(writer: AsyncEngine, database_url: str, serve: Serve) -> None:
    async with serve(database_url=database_url) as client:
        await query(database_url, "UPDATE alembic_version SET version_num = '9999'")
        assert (await client.http.get("/readyz")).status_code == 200


async def test_not_ready_on_a_standby(writer: AsyncEngine, database_url: str, serve: Serve) -> None:
    # What a standby says of itself, said by a function that is found before PostgreSQL's own.
    name = (await query(database_url, "SELECT current_database()"))[0][0]
    await query(database_url, "CREATE FUNCTION pg_is_in_recovery() RETURNS bool LANGUAGE sql AS 'SELECT true'")
    await query(database_url, f"ALTER DATABASE {name} SET search_path = public, pg_catalog")
    async with serve(database_url=database_url) as client:
        await not_ready(
            client, "PostgreSQL is read-only: it is a standby. Point SEGMENTQL_DATABASE_URL at the primary."
        )


async def test_not_ready_while_postgresql_is_away_but_alive(
    writer: AsyncEngine, database_url: str, serve: Serve, servers: Servers
) -> None:
    name = (await query(database_url, "SELECT current_database()"))[0][0]
    async with serve(database_url=database_url) as client:
        assert (await client.http.get("/readyz")).status_code == 200
        await query(servers.database_url, f"ALTER DATABASE {name} ALLOW_CONNECTIONS false")
        await query(
            servers.database_url, f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{name}'"
        )
        answer = await client.http.get("/readyz")
        assert answer.status_code == 503
        (problem,) = answer.json()["problems"]
        assert problem.startswith("PostgreSQL cannot be reached (")
        assert (await client.http.get("/healthz")).json() == {"alive": True}
        await query(servers.database_url, f"ALTER DATABASE {name} ALLOW_CONNECTIONS true")
        assert (await client.http.get("/readyz")).status_code == 200


async def test_ready_without_redis(serve: Serve) -> None:
    with socket.socket() as nobody_listens:
        nobody_listens.bind(("127.0.0.1", 0))
        redis_url = f"redis://127.0.0.1:{nobody_listens.getsockname()[1]}"
        async with serve(redis_url=redis_url) as client:
            await until_redis_is(client, available=False)
            answer = await client.http.get("/readyz")
            assert (answer.status_code, answer.json()) == (200, {"ready": True, "problems": [], "redis": False})


async def months(database_url: str) -> list[tuple[datetime, datetime]]:
    """The first instants of this month by the database's clock and of the next, and so on for four of them."""
    ((now,),) = await query(database_url, "SELECT now()")
    count = now.astimezone(UTC).year * 12 + now.astimezone(UTC).month - 1
    firsts = [datetime((count + n) // 12, (count + n) % 12 + 1, 1, tzinfo=UTC) for n in range(5)]
    return list(pairwise(firsts))


async def partitions_of(database_url: str) -> list[str]:
    found = (
        "SELECT inhrelid::regclass::text FROM pg_inherits WHERE inhparent = 'membership_events'::regclass ORDER BY 1"
    )
    return [name for (name,) in await query(database_url, found)]


async def until_partitions_are(database_url: str, names: list[str]) -> None:
    for _ in range(200):
        if await partitions_of(database_url) == names:
            return
        await asyncio.sleep(0.05)
    assert await partitions_of(database_url) == names


async def until_redis_is(client: Client, *, available: bool) -> None:
    for _ in range(200):
        if (await client.http.get("/readyz")).json()["redis"] is available:
            return
        await asyncio.sleep(0.05)
    raise AssertionError


async def not_ready(client: Client, *problems: str) -> None:
    answer = await client.http.get("/readyz")
    assert (answer.status_code, answer.json()["ready"]) == (503, False)
    assert answer.json()["problems"] == list(problems)
