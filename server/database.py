"""The database at the start: waited for, brought up to date or found to be so."""

import asyncio
import logging
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from asyncpg import InvalidAuthorizationSpecificationError
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncEngine

from db import connections, migrate
from jobs.partitions import keep_ahead
from server.settings import Settings, StartError

log = logging.getLogger(__name__)
PAUSE_SECONDS = 0.5


async def prepare(settings: Settings) -> None:
    """Migrate, and make the partitions that are missing."""
    async with _reached(settings) as engine:
        await migrate.migrate(engine)
        await keep_ahead(engine)


async def check(settings: Settings) -> None:
    """Refuse a database that is not at our revision, with the remedy."""
    async with _reached(settings) as engine:
        current = await migrate.current(engine)
    if current == migrate.newest():
        return
    if not migrate.known(current):
        # A newer version was here: its migrations keep us working while processes are replaced one by one.
        log.warning("the database is at revision %s, which is newer than this version's %s", current, migrate.newest())
        return
    found = f"is at revision {current}" if current else "is empty"
    raise StartError(f"The database {found}, this version needs {migrate.newest()}. Run: segmentql migrate")


@asynccontextmanager
async def _reached(settings: Settings) -> AsyncIterator[AsyncEngine]:
    assert settings.database_url is not None
    engine = connections.writer(settings.database_url, pool_size=1)
    try:
        await _wait(engine, settings.database_wait)
        yield engine
    finally:
        await engine.dispose()


async def _wait(engine: AsyncEngine, seconds: float) -> None:
    """Until the database answers: it may be starting next to us."""
    shown = engine.url.render_as_string(hide_password=True)
    deadline, said = time.monotonic() + seconds, False
    while True:
        try:
            await migrate.current(engine)
        except (OSError, DBAPIError) as error:
            cause = error.orig if isinstance(error, DBAPIError) else error
            cause = getattr(cause, "__cause__", None) or cause
            if isinstance(cause, InvalidAuthorizationSpecificationError):
                raise StartError(f"The database at {shown} does not let us in: {cause}") from error
            if time.monotonic() > deadline:
                raise StartError(f"The database at {shown} did not answer within {seconds:.0f} s: {cause}") from error
        else:
            return
        if not said:
            log.info("waiting up to %.0f s for the database at %s", seconds, shown)
            said = True
        await asyncio.sleep(PAUSE_SECONDS)
