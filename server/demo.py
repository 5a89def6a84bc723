"""`segmentql load-demo`: a database as it might look after a year of use, to try things on."""

import asyncio
import gc
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from rich.console import Console
from rich.table import Column, Table

from db import connections, demo
from db.cache import Cache
from server.demo_year import USERS, WEEKS, Year
from server.settings import Settings, StartError
from server.upkeep import progress


@dataclass(frozen=True, slots=True)
class Loaded:
    """How many there are now."""

    segments: int
    users: int
    memberships: int
    events: int


def load_demo(settings: Settings) -> None:
    """Load, and print what there is now."""
    loaded = asyncio.run(load(settings))
    table = Table("loaded", Column("rows", justify="right"), box=None)
    table.add_row("segments", f"{loaded.segments:,}")
    table.add_row("users", f"{loaded.users:,}")
    table.add_row("memberships", f"{loaded.memberships:,}")
    table.add_row("events of history", f"{loaded.events:,}")
    Console().print(table)


async def load(settings: Settings, users: int = USERS) -> Loaded:
    """Make up a year and write it into an empty database: all of it, or nothing."""
    assert settings.database_url is not None
    engine = connections.writer(settings.database_url, 1)
    try:
        async with engine.begin() as tx:
            now = await demo.begin(tx)
            if now is None:
                raise StartError(
                    "The database has segments or operations already, or is just getting some: "
                    "load-demo only fills an empty one."
                )
            year = Year(now, users)
            ids = await demo.add_segments(tx, year.segments)
            events = 0
            with progress() as bars, _no_search_for_garbage():
                bar = bars.add_task("weeks", total=WEEKS)
                weeks = year.weeks(ids)
                batch = next(weeks, None)
                while batch is not None:
                    events += len(batch.events)
                    # While PostgreSQL takes a week in, the next one is made up.
                    batch, _ = await asyncio.gather(asyncio.to_thread(next, weeks, None), demo.write(tx, batch))
                    bars.advance(bar)
                members = year.members()
                await demo.add_members(tx, members)
                version = await demo.finish(tx)
    finally:
        await engine.dispose()
    await _announce(settings, version)
    return Loaded(len(ids), year.users, len(members), events)


async def _announce(settings: Settings, version: int) -> None:
    """Let running servers forget that there was nothing."""
    assert settings.redis_url is not None
    cache = Cache(settings.redis_url, settings.redis_budget_ms)
    async with cache.running():
        await cache.renounce()
        await cache.announce(version)
        told = cache.available
    if not told:
        Console(stderr=True).print("Redis does not answer: servers that are running may show it a minute late.")


@contextmanager
def _no_search_for_garbage() -> Iterator[None]:
    """A million things are made here and all of them used: looking for garbage among them takes half of the time."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
