"""A reader in another process that reads now, and stores later."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from db.cache import Cache


@asynccontextmanager
async def slow_reader(redis_url: str) -> AsyncIterator[Cache]:
    slow = Cache(redis_url, budget_ms=1_000)
    async with slow.running():
        yield slow


async def begun(slow: Cache) -> bytes:
    """What it knows of the journal when it begins to read."""
    entry = await slow.entry()
    assert entry is not None
    return entry
