"""When the jobs run."""

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC

import aiocron
from sqlalchemy.ext.asyncio import AsyncEngine

from jobs.partitions import keep_ahead

log = logging.getLogger(__name__)

# aiocron only ticks. Every process has its ticks, so the jobs themselves are safe to run in several at once; and a
# tick that is missed, or comes late after the clock was set, is made up for by the next.
HOURLY = "17 * * * *"


@asynccontextmanager
async def running(writer: AsyncEngine, when: str = HOURLY) -> AsyncIterator[None]:
    """Run the jobs, now and then regularly, for as long as the block lasts."""
    busy = asyncio.Lock()

    async def tick() -> None:
        if busy.locked():
            return
        async with busy:
            try:
                await keep_ahead(writer)
            except Exception:
                log.exception("the partitions of the history were not looked after; the next tick tries again")

    await tick()
    ticking = aiocron.crontab(when, func=tick, tz=UTC)
    try:
        yield
    finally:
        ticking.stop()
        # One that is under way ends before the connections do.
        async with busy:
            pass
