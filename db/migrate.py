"""Bring a database to a revision of the schema, forward or back."""

import asyncio
from functools import cache
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from sqlalchemy.pool import NullPool

# Any number that nobody else locks: two processes must not migrate at once.
LOCK = 7_303_014_577
# Whoever waits for a table's lock has everybody else wait behind it: so it gives up soon, lets them pass and tries
# again. A mutation holds its locks for 30 s at most (db/connections.py).
LOCK_TIMEOUT = "2s"
ATTEMPTS, PAUSE_SECONDS = 20, 2
LOCK_NOT_AVAILABLE = "55P03"


def newest() -> str:
    """The revision this code is written for."""
    head = _scripts().get_current_head()
    assert head is not None
    return head


def known(revision: str | None) -> bool:
    """Whether this code has a migration of that name; a database that newer code has migrated has one it lacks."""
    return revision is None or any(script.revision == revision for script in _scripts().walk_revisions())


async def current(engine: AsyncEngine) -> str | None:
    """The revision the database is at; None when it was never migrated."""
    async with engine.connect() as conn:
        return await conn.run_sync(_revision)


async def migrate(engine: AsyncEngine, revision: str = "head") -> None:
    """Run what is missing up to `revision`, or take back what is beyond it, in one transaction.

    Safe to run in several processes at once: the later ones wait, and find nothing to do. A database that newer code
    has migrated is left as it is.
    """
    # The connections of the pools have limits for serving; building an index may take as long as it takes.
    patient = create_async_engine(engine.url, poolclass=NullPool, connect_args={"server_settings": SESSION})
    for left in reversed(range(ATTEMPTS)):
        try:
            async with patient.begin() as tx:
                await tx.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": LOCK})
                await tx.execute(text(f"SET LOCAL lock_timeout = '{LOCK_TIMEOUT}'"))
                await tx.run_sync(_run, revision)
        except DBAPIError as error:
            if left == 0 or getattr(error.orig, "sqlstate", None) != LOCK_NOT_AVAILABLE:
                raise
            await asyncio.sleep(PAUSE_SECONDS)
        else:
            return


SESSION = {
    "application_name": "segmentql migrate",
    "timezone": "UTC",
    # Whatever the role or the database says.
    "lock_timeout": "0",
    "statement_timeout": "0",
    "transaction_timeout": "0",
}


def _run(connection: Connection, revision: str) -> None:
    at = _revision(connection)
    if not known(at):
        return
    config = _config()
    config.attributes["connection"] = connection
    behind = {script.revision for script in _scripts().iterate_revisions(at, "base")} if at else set()
    back = revision == "base" or revision in behind
    (command.downgrade if back else command.upgrade)(config, revision)


def _revision(connection: Connection) -> str | None:
    return MigrationContext.configure(connection).get_current_revision()


@cache
def _scripts() -> ScriptDirectory:
    return ScriptDirectory.from_config(_config())


def _config() -> Config:
    config = Config()
    # A percent sign in the path would be read as interpolation.
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations").replace("%", "%%"))
    return config
