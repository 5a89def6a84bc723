"""When what was written up to an instant is all there."""

import asyncio
from datetime import datetime
from itertools import count

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

# Longer than any transaction of ours that dates events may last (db/connections.py). One that lasts longer, perhaps of
# somebody else's program, is not worth waiting for.
LIMIT_SECONDS = 35
PAUSE_SECONDS = 0.05
# But for a list of millions that is swapped in one transaction: that says so, by a lock that it shares with others.
LONG = 1_936_945_507
LONG_AT_WORK = text(f"""
    SELECT EXISTS (
        SELECT FROM pg_locks WHERE locktype = 'advisory' AND classid = 0 AND objid = {LONG} AND objsubid = 1
          AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
    )
""")


async def take_long(tx: AsyncConnection) -> None:
    """Say that this transaction dates events and may last longer than others."""
    await tx.execute(text(f"SELECT pg_advisory_xact_lock_shared({LONG})"))


async def now(conn: AsyncConnection) -> datetime:
    """What the database's clock shows: whoever dates an event from here on dates it later."""
    instant: datetime = (await conn.execute(text("SELECT clock_timestamp()"))).scalar_one()
    return instant


async def settled(engine: AsyncEngine) -> datetime:
    """An instant, about now, before which no further event will be dated: whoever was about to has ended.

    Who dates an event has its transaction id already (the claim of the key came first), so the one we take after
    reading the clock is later.
    """
    async with engine.connect() as conn:
        await conn.execution_options(isolation_level="AUTOCOMMIT")
        instant = await now(conn)
        ours = (await conn.execute(text("SELECT CAST(CAST(pg_current_xact_id() AS text) AS bigint)"))).scalar_one()
        for look in count():
            oldest = await conn.execute(
                text("SELECT CAST(CAST(pg_snapshot_xmin(pg_current_snapshot()) AS text) AS bigint)")
            )
            if oldest.scalar_one() > ours:
                break
            if look * PAUSE_SECONDS >= LIMIT_SECONDS and not (await conn.execute(LONG_AT_WORK)).scalar_one():
                break
            await asyncio.sleep(PAUSE_SECONDS)
    return instant
