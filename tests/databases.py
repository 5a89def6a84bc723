"""Databases of a test's own, on the server that the tests share."""

import asyncio
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from sqlalchemy import make_url
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.pool import NullPool

from db import connections, migrate
from jobs.partitions import keep_ahead
from server.embedded import Servers

# The tables and partitions, and nothing in them: a copy is made faster than a migration.
PREPARED = "prepared"


@contextmanager
def fresh(servers: Servers, like: str = "template1") -> Iterator[str]:
    """The URL of a database of one's own. Not inside a running event loop: it has its own."""
    name = f"test_{secrets.token_hex(6)}"
    sql(servers.database_url, f"CREATE DATABASE {name} TEMPLATE {like}")
    yield make_url(servers.database_url).set(database=name).render_as_string(hide_password=False)
    sql(servers.database_url, f"DROP DATABASE {name} WITH (FORCE)")


def sql(database_url: str, statement: str) -> list[tuple[Any, ...]]:
    return asyncio.run(query(database_url, statement))


async def migrated(database_url: str) -> None:
    """Have our tables there, and the partitions."""
    engine = connections.writer(database_url, pool_size=1)
    await migrate.migrate(engine)
    await keep_ahead(engine)
    await engine.dispose()


async def query(database_url: str, statement: str) -> list[tuple[Any, ...]]:
    engine = create_async_engine(database_url, isolation_level="AUTOCOMMIT", poolclass=NullPool)
    async with engine.connect() as conn:
        result = await conn.exec_driver_sql(statement)
        return [tuple(row) for row in result] if result.returns_rows else []
