"""The migrations lead from nothing to the tables that the code knows, and back."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from databases import fresh
from sqlalchemy import Connection, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from sqlalchemy.pool import NullPool

from db import migrate, partitions, tables
from server.embedded import Servers

REVISIONS = [script.revision for script in reversed(list(migrate._scripts().walk_revisions()))]
# Everything that a migration may leave behind, as PostgreSQL itself spells it.
SPELLED = """
    SELECT 'relation', c.relkind::text, c.relname, coalesce(pg_get_partkeydef(c.oid), '')
    FROM pg_class c WHERE c.relnamespace = 'public'::regnamespace AND c.relkind <> 'c' AND NOT c.relispartition
UNION ALL
    SELECT 'column', c.relname, a.attname,
        concat_ws(' ', row_number() OVER (PARTITION BY a.attrelid ORDER BY a.attnum),
                  format_type(a.atttypid, a.atttypmod), o.collname, a.attnotnull,
                  a.attidentity, a.attgenerated, pg_get_expr(d.adbin, d.adrelid))
    FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid
    LEFT JOIN pg_collation o ON o.oid = a.attcollation
    LEFT JOIN pg_attrdef d ON d.adrelid = c.oid AND d.adnum = a.attnum
    WHERE c.relnamespace = 'public'::regnamespace AND c.relkind IN ('r', 'p', 'v') AND NOT c.relispartition
        AND a.attnum > 0 AND NOT a.attisdropped
UNION ALL
    SELECT 'index', c.relname, '', pg_get_indexdef(c.oid)
    FROM pg_class c WHERE c.relnamespace = 'public'::regnamespace AND c.relkind IN ('i', 'I') AND NOT c.relispartition
UNION ALL
    SELECT 'constraint', conrelid::regclass::text, conname, pg_get_constraintdef(oid)
    FROM pg_constraint WHERE connamespace = 'public'::regnamespace
UNION ALL
    SELECT 'value', enumtypid::regtype::text, enumlabel,
        row_number() OVER (PARTITION BY enumtypid ORDER BY enumsortorder)::text
    FROM pg_enum
UNION ALL
    SELECT 'function', proname, '', pg_get_functiondef(oid) FROM pg_proc WHERE pronamespace = 'public'::regnamespace
UNION ALL
    SELECT 'trigger', tgrelid::regclass::text, tgname, pg_get_triggerdef(oid) FROM pg_trigger WHERE NOT tgisinternal
"""


@pytest.fixture
async def empty(database_url: str) -> AsyncIterator[AsyncEngine]:
    """A database of the test's own, with nothing in it."""
    engine = create_async_engine(database_url, poolclass=NullPool)
    yield engine
    await engine.dispose()


@pytest.fixture
async def declared(another_url: str) -> AsyncIterator[AsyncEngine]:
    """What `db/tables.py` says, made without a migration."""
    engine = create_async_engine(another_url, poolclass=NullPool)
    async with engine.begin() as tx:
        await tx.run_sync(tables.metadata.create_all)
    yield engine
    await engine.dispose()


@pytest.fixture
def another_url(servers: Servers) -> Iterator[str]:
    with fresh(servers) as url:
        yield url


async def test_forward_from_nothing_back_to_nothing_and_forward_again(empty: AsyncEngine) -> None:
    before = await spelled(empty)
    await migrate.migrate(empty)
    assert await migrate.current(empty) == migrate.newest()
    there = await spelled(empty)
    await migrate.migrate(empty, "base")
    assert await migrate.current(empty) is None
    assert await spelled(empty) == before == set()
    await migrate.migrate(empty)
    assert await spelled(empty) == there


@pytest.mark.parametrize("revision", REVISIONS)
async def test_each_revision_takes_back_what_it_did(empty: AsyncEngine, revision: str) -> None:
    step = REVISIONS.index(revision)
    earlier = REVISIONS[step - 1] if step else "base"
    if step:
        await migrate.migrate(empty, earlier)
    before = await spelled(empty)
    await migrate.migrate(empty, revision)
    assert await migrate.current(empty) == revision
    after = await spelled(empty)
    assert after != before
    await migrate.migrate(empty, earlier)
    assert await spelled(empty) == before
    await migrate.migrate(empty, revision)
    assert await spelled(empty) == after


async def test_the_migrated_tables_are_those_of_the_code(empty: AsyncEngine, declared: AsyncEngine) -> None:
    """To the last index predicate, default, collation and enum value."""
    await migrate.migrate(empty)
    there = await spelled(empty)
    # A function is declared nowhere but in its migration.
    assert {row for row in there if row[0] != "function"} == await spelled(declared)


async def test_alembic_would_change_nothing(empty: AsyncEngine) -> None:
    await migrate.migrate(empty)
    async with empty.begin() as tx:
        await partitions.make(tx)
    async with empty.connect() as conn:
        assert await conn.run_sync(differences) == []


async def test_migrating_twice_changes_nothing(empty: AsyncEngine) -> None:
    await migrate.migrate(empty)
    there = await spelled(empty)
    await migrate.migrate(empty)
    assert await spelled(empty) == there
    assert await count(empty, "catalogue") == 1


async def test_of_many_at_once_all_succeed_and_one_does_the_work(empty: AsyncEngine) -> None:
    await asyncio.gather(*(migrate.migrate(empty) for _ in range(5)))
    assert await migrate.current(empty) == migrate.newest()
    assert await count(empty, "alembic_version") == 1
    assert await count(empty, "catalogue") == 1


async def test_a_migration_that_fails_leaves_nothing(empty: AsyncEngine) -> None:
    async with empty.begin() as tx:
        await tx.execute(text("CREATE TABLE operations (is_in_the_way int)"))
    before = await spelled(empty)
    with pytest.raises(DBAPIError, match='relation "operations" already exists'):
        await migrate.migrate(empty)
    assert await spelled(empty) == before


async def test_what_newer_code_has_migrated_is_left_as_it_is(empty: AsyncEngine) -> None:
    await migrate.migrate(empty)
    async with empty.begin() as tx:
        await tx.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    await migrate.migrate(empty)
    assert await migrate.current(empty) == "9999"
    assert not migrate.known("9999")


async def test_a_migration_that_waits_lets_others_pass(empty: AsyncEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(migrate, "LOCK_TIMEOUT", "100ms")
    monkeypatch.setattr(migrate, "PAUSE_SECONDS", 0.1)
    await migrate.migrate(empty)
    async with empty.connect() as reader:
        await reader.execute(text("SELECT FROM segments"))
        back = asyncio.create_task(migrate.migrate(empty, "base"))
        await until_waiting(empty)
        # It wants the table for itself, and this comes after it in the queue.
        async with asyncio.timeout(5):
            assert await count(empty, "segments") == 0
        assert not back.done()
    await back
    assert await migrate.current(empty) is None


async def test_a_migration_gives_up_in_the_end(empty: AsyncEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(migrate, "LOCK_TIMEOUT", "10ms")
    monkeypatch.setattr(migrate, "PAUSE_SECONDS", 0.01)
    await migrate.migrate(empty)
    there = await spelled(empty)
    async with empty.connect() as reader:
        await reader.execute(text("SELECT FROM segments"))
        with pytest.raises(DBAPIError, match="canceling statement due to lock timeout"):
            await migrate.migrate(empty, "base")
    assert await spelled(empty) == there


async def spelled(engine: AsyncEngine) -> set[tuple[str, ...]]:
    async with engine.connect() as conn:
        # Alembic's own table is there to stay.
        return {tuple(row) for row in await conn.execute(text(SPELLED)) if "alembic_version" not in str(row)}


async def count(engine: AsyncEngine, table: str) -> int:
    async with engine.connect() as conn:
        found: int = (await conn.execute(text(f"SELECT count(*) FROM {table}"))).scalar_one()
        return found


async def until_waiting(engine: AsyncEngine) -> None:
    for _ in range(500):
        if await count(engine, "pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"):
            return
        await asyncio.sleep(0.01)
    raise AssertionError("nobody waited for a lock")


def differences(connection: Connection) -> list[Any]:
    def ours(name: str | None, kind: str, _parents: object) -> bool:
        return not (kind == "table" and name is not None and name.startswith("membership_events_"))

    options = {"compare_type": True, "compare_server_default": True, "include_name": ours}
    found: list[Any] = compare_metadata(MigrationContext.configure(connection, opts=options), tables.metadata)
    # Alembic computes both defaults: what draws a number is never equal. How they are spelled is compared above.
    drawn = ("modify_default", None, "segments", "seed")
    return [each for each in found if not (isinstance(each, list) and each[0][:4] == drawn)]
