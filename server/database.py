"""The database at the start: waited for, brought up to date or found to be so."""

import asyncio
import logging
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncEngine

from db import connections, migrate, tokens
from jobs.partitions import keep_ahead
from server.settings import Settings, StartError

log = logging.getLogger(__name__)
PAUSE_SECONDS = 0.5
# What passes by itself (classes of SQLSTATE): lost connections, a database not yet made, too many clients, starting up.
PASSING = ("08", "3D", "53", "57")
VERSION = 18


async def prepare(settings: Settings) -> None:
    """Migrate, and make the partitions that are missing."""
    async with _reached(settings) as engine:
        try:
            await migrate.migrate(engine)
            await _compare(engine)
            await keep_ahead(engine)
        except DBAPIError as error:
            raise StartError(f"The database could not be brought up to date: {cause(error)}") from error


async def check(settings: Settings) -> None:
    """Refuse a database that is not at our revision, with the remedy."""
    async with _reached(settings) as engine:
        await _compare(engine)


async def warn_without_tokens(settings: Settings) -> None:
    """Say so when nobody has a token that is good: nobody will be served then."""
    async with _reached(settings) as engine, engine.connect() as conn:
        if not await tokens.any_good(conn):
            log.warning("nobody has a token, so nobody is served: make one with `segmentql token create`")


async def _compare(engine: AsyncEngine) -> None:
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
            async with engine.connect():
                break
        except (OSError, DBAPIError) as error:
            if isinstance(error, DBAPIError) and not _sqlstate(error).startswith(PASSING):
                raise StartError(f"The database at {shown} does not let us in: {cause(error)}") from error
            if time.monotonic() > deadline:
                raise StartError(
                    f"The database at {shown} did not answer in {seconds:.0f} s: {cause(error)}"
                ) from error
            if not said:
                log.info("waiting up to %.0f s for the database at %s: %s", seconds, shown, cause(error))
                said = True
        await asyncio.sleep(PAUSE_SECONDS)
    version = engine.dialect.server_version_info
    if version is not None and version < (VERSION,):
        raise StartError(f"The database at {shown} is PostgreSQL {version[0]}, this version needs {VERSION} or newer.")


def _sqlstate(error: DBAPIError) -> str:
    return getattr(error.orig, "sqlstate", None) or ""


def cause(error: Exception) -> str:
    """In one line, without the statement and SQLAlchemy's advice."""
    origin = (error.orig if isinstance(error, DBAPIError) else error) or error
    return " ".join(str(origin.__cause__ or origin).split()) or type(origin).__name__
