"""When what was written up to an instant is all there."""

import asyncio
from datetime import datetime

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

# Longer than any transaction of ours that dates events may last (db/connections.py). One that lasts longer, perhaps of
# somebody else's program, is not worth waiting for.
LIMIT_SECONDS = 35
PAUSE_SECONDS = 0.05


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
        for _ in range(round(LIMIT_SECONDS / PAUSE_SECONDS)):
            oldest = await conn.execute(
                text("SELECT CAST(CAST(pg_snapshot_xmin(pg_current_snapshot()) AS text) AS bigint)")
            )
            if oldest.scalar_one() > ours:
                break
            await asyncio.sleep(PAUSE_SECONDS)
    return instant
