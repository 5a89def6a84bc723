"""What the database, Redis and the processes hold when everything has come to rest."""

import asyncio
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path

from redis.asyncio import Redis
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from db import connections
from db.files import Files
from db.journal import JOURNAL
from faults.checker import Event, Final
from jobs.verification import verify

# Longer than a journal, a transaction that nobody ends, and a pause of a worker's.
REST_SECONDS = 40
LEAKS = """
    SELECT 'a transaction that nobody ends: ' || left(query, 200) FROM pg_stat_activity
    WHERE datname = current_database() AND state LIKE 'idle in transaction%' AND pid <> pg_backend_pid()
      AND state_change < clock_timestamp() - interval '1 s'
    UNION ALL
    SELECT 'a lock that is waited for: ' || left(query, 200) FROM pg_stat_activity
    WHERE datname = current_database() AND wait_event_type = 'Lock'
    UNION ALL
    SELECT 'an advisory lock' FROM pg_locks WHERE locktype = 'advisory'
    UNION ALL
    SELECT 'a task whose worker is silent: ' || id FROM tasks
    WHERE status = 'RUNNING' AND heartbeat_at < clock_timestamp() - interval '25 s'
    UNION ALL
    SELECT 'a prepared transaction' FROM pg_prepared_xacts
"""
CLIENTS = """SELECT count(*) FROM pg_stat_activity
             WHERE datname = current_database() AND backend_type = 'client backend' AND application_name = 'segmentql'
             AND pid <> pg_backend_pid()"""


async def look(database_url: str, redis: Redis, files: Path, open_connections: Callable[[], int]) -> Final:
    """`open_connections` counts those that somebody still holds; PostgreSQL must know of no others."""
    engine = connections.reader(database_url, pool_size=1)
    exporter = connections.exporter(database_url, pool_size=1)
    try:
        leaks = await _leaks(engine, redis, open_connections)
        # All of it may take longer than a query.
        async with exporter.connect() as conn:
            operations = defaultdict(list)
            for key, id_ in await conn.execute(
                text("SELECT idempotency_key, id FROM operations WHERE idempotency_key IS NOT NULL ORDER BY id")
            ):
                operations[key].append(id_)
            events = [
                Event(*row)
                for row in await conn.execute(
                    text("""SELECT user_id, segment_id, CAST(action AS text), CASE WHEN expires_at < 'infinity'
                                   THEN CAST(extract(epoch FROM expires_at) * 1000000 AS bigint)
                                   WHEN expires_at IS NOT NULL THEN CAST(4611686018427387904 AS bigint) END,
                                   operation_id FROM membership_events""")
                )
            ]
        found = await verify(exporter, Files(str(files)), task_days=30, checksums=True)
        differences = [example for each in found.checks for example in each.examples]
    finally:
        await engine.dispose()
        await exporter.dispose()
    return Final(operations, events, differences, leaks)


async def _leaks(engine: AsyncEngine, redis: Redis, open_connections: Callable[[], int]) -> Sequence[str]:
    """What does not go away of itself."""
    found: list[str] = []
    for _ in range(REST_SECONDS * 2):
        async with engine.connect() as conn:
            found = list((await conn.execute(text(LEAKS))).scalars())
            held = (await conn.execute(text(CLIENTS))).scalar_one()
        if held > (known := open_connections()):
            found.append(f"{held} connections to PostgreSQL, of which {known} are anybody's")
        found += await _endless_journal(redis)
        if not found:
            break
        await asyncio.sleep(0.5)
    return found


async def _endless_journal(redis: Redis) -> list[str]:
    """One ends after three seconds, whatever is written into it."""
    return ["a journal without an end"] if await redis.pttl(JOURNAL) == -1 else []
