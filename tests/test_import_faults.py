"""Imports that are broken off: by kill -9, and by a crash of the database."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from signal import SIGKILL
from typing import Any

import pytest
from background import WORKER, execute, let_leases_end, process, stalled, verified
from conftest import Client, Serve
from importing import TASK, counts, ended, rejects, started
from operations import create, slugs
from sqlalchemy.ext.asyncio import AsyncEngine

from db import connections
from server.settings import Settings

pytestmark = pytest.mark.processes

USERS = [f"user-{n:06}" for n in range(45_000)]
BROKEN = ["", "user-000001", '"']
CONTENT = "\n".join([*USERS, *BROKEN])
# In the second of three chunks.
STALLED = USERS[25_000]


@pytest.fixture
async def engine_of_its_own(prepared_url: str) -> AsyncIterator[AsyncEngine]:
    """A database in which whoever begins or ends the membership of STALLED waits while somebody holds lock 42."""
    engine = connections.writer(prepared_url, pool_size=4)
    await execute(
        engine,
        f"""CREATE FUNCTION stall() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
                IF NEW.user_id = '{STALLED}' THEN
                    PERFORM pg_advisory_xact_lock_shared(42);
                END IF;
                RETURN NEW;
            END $$""",
    )
    await execute(engine, "CREATE TRIGGER stall BEFORE INSERT ON memberships FOR EACH ROW EXECUTE FUNCTION stall()")
    yield engine
    await engine.dispose()


AT_WORK = """SELECT pid FROM pg_stat_activity
             WHERE query LIKE '%sliced%' AND state = 'active' AND pid <> pg_backend_pid()"""


async def stalls(engine: AsyncEngine) -> None:
    waiting = """SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND wait_event = 'advisory'
                 AND query LIKE '%sliced%'"""
    for _ in range(1_500):
        if await execute(engine, waiting):
            return
        await asyncio.sleep(0.02)
    raise AssertionError(await execute(engine, "SELECT wait_event, state, query FROM pg_stat_activity"))


async def look(client: Client, task_id: str) -> Any:
    return (await client.ask(TASK, id=task_id))["task"]


async def is_all_there(client: Client, task_id: str) -> None:
    done = await ended(client, task_id)
    assert counts(done) == (45_000, 0, 0, 0, 1, 2)
    assert await rejects(client, done) == [(45_001, "EMPTY"), (45_002, "DUPLICATE"), (45_003, "QUOTING")]


async def test_a_killed_worker_loses_and_doubles_nothing(
    engine_of_its_own: AsyncEngine, prepared_url: str, serve: Serve, settings: Settings, tmp_path: Path
) -> None:
    engine = engine_of_its_own
    assert settings.redis_url is not None
    environ = {"data_dir": str(tmp_path), "worker_tasks": "2"}
    async with serve(database_url=prepared_url, data_dir=tmp_path) as client:
        await create(client, "A")
        assert await slugs(client, USERS[0]) == []
        task_id = await started(client, "A", CONTENT)
        async with (
            process(tmp_path, prepared_url, settings.redis_url, WORKER, **environ) as first,
            stalled(engine),
        ):
            await stalls(engine)
            found = await look(client, task_id)
            assert found["importResult"]["added"] == 20_000
            assert 0.4 < found["progress"] < 1
            first.send(SIGKILL)
        # As if it had died before it told the cache.
        await let_leases_end(engine)
        async with process(tmp_path, prepared_url, settings.redis_url, WORKER, **environ):
            await is_all_there(client, task_id)
        assert await slugs(client, USERS[0]) == ["A"]
        assert await execute(engine, "SELECT attempt, failures FROM tasks") == [(2, 0)]
        assert await execute(engine, "SELECT count(*) FROM membership_events") == [(45_000,)]
    assert await verified(prepared_url, tmp_path / "files") == []


@pytest.mark.soak
async def test_rows_that_a_crash_of_the_database_took_are_read_again(
    engine_of_its_own: AsyncEngine, prepared_url: str, serve: Serve, settings: Settings, tmp_path: Path
) -> None:
    engine = engine_of_its_own
    assert settings.redis_url is not None
    environ = {"data_dir": str(tmp_path), "worker_tasks": "2"}
    async with serve(database_url=prepared_url, data_dir=tmp_path) as client:
        await create(client, "A")
        task_id = await started(client, "A", CONTENT, packed=True)
        async with (
            process(tmp_path, prepared_url, settings.redis_url, WORKER, **environ) as first,
            stalled(engine),
        ):
            await stalls(engine)
            first.send(SIGKILL)
        for _ in range(500):
            # The killed worker's statement comes to its end, and to nothing.
            if not await execute(engine, AT_WORK):
                break
            await asyncio.sleep(0.02)
        # That is what is left of a table that is not logged.
        ((table,),) = await execute(engine, "SELECT relname FROM pg_class WHERE relname ~ '^import_rows_[0-9a-f]{32}$'")
        await execute(engine, f"TRUNCATE {table}")
        await let_leases_end(engine)
        async with process(tmp_path, prepared_url, settings.redis_url, WORKER, **environ):
            await is_all_there(client, task_id)
    assert await verified(prepared_url, tmp_path / "files") == []
