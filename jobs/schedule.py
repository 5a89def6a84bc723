"""When the jobs run."""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC

import aiocron

log = logging.getLogger(__name__)

# aiocron only ticks. Every process has its ticks, so the jobs themselves are safe to run in several at once, and find
# out whether there is anything to do; a tick that is missed, or comes late after the clock was set, is made up for by
# the next.
EVERY_MINUTE = "* * * * *"


@dataclass(frozen=True, slots=True)
class Job:
    work: Callable[[], Awaitable[None]]
    # What is logged when it fails.
    failure: str
    # Whether nothing else should begin before it was done once.
    first: bool = False


@asynccontextmanager
async def running(*jobs: Job, when: str = EVERY_MINUTE) -> AsyncIterator[None]:
    """Run the jobs, now and at every tick, for as long as the block lasts. Then what is under way is broken off."""
    under_way: dict[Job, asyncio.Task[None]] = {}

    async def tick() -> None:
        for job in jobs:
            if job not in under_way or under_way[job].done():
                under_way[job] = asyncio.create_task(_run(job))

    await tick()
    await asyncio.gather(*(task for job, task in under_way.items() if job.first))
    ticking = aiocron.crontab(when, func=tick, tz=UTC)
    try:
        yield
    finally:
        ticking.stop()
        for task in under_way.values():
            task.cancel()
        await asyncio.gather(*under_way.values(), return_exceptions=True)


async def _run(job: Job) -> None:
    try:
        await job.work()
    except Exception:
        log.exception("%s; the next tick tries again", job.failure)
