"""Bring a database to a revision of the schema, forward or back."""

from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, text
from sqlalchemy.ext.asyncio import AsyncEngine

# Any number that nobody else locks: two processes must not migrate at once.
LOCK = 7_303_014_577


def newest() -> str:
    """The revision this code is written for."""
    head = ScriptDirectory.from_config(config()).get_current_head()
    assert head is not None
    return head


def known(revision: str | None) -> bool:
    """Whether this code has a migration of that name; a database that newer code has migrated has one it lacks."""
    return revision is None or any(
        s.revision == revision for s in ScriptDirectory.from_config(config()).walk_revisions()
    )


async def current(engine: AsyncEngine) -> str | None:
    """The revision the database is at; None when it was never migrated."""
    async with engine.connect() as conn:
        return await conn.run_sync(lambda c: MigrationContext.configure(c).get_current_revision())


async def migrate(engine: AsyncEngine, revision: str = "head") -> None:
    """Run what is missing up to `revision`, or take back what is beyond it, in one transaction.

    Safe to run in several processes at once: the later ones wait, and find nothing to do.
    """
    async with engine.begin() as tx:
        # A migration waits for running transactions rather than failing in the middle of a deployment.
        await tx.execute(text("SET LOCAL lock_timeout = '60s'"))
        await tx.execute(text("SET LOCAL statement_timeout = 0"))
        await tx.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": LOCK})
        await tx.run_sync(_run, revision)


def config() -> Config:
    found = Config()
    # A percent sign in the path would be read as interpolation.
    found.set_main_option("script_location", str(Path(__file__).parent / "migrations").replace("%", "%%"))
    return found


def _run(connection: Connection, revision: str) -> None:
    prepared = config()
    prepared.attributes["connection"] = connection
    at = MigrationContext.configure(connection).get_current_revision()
    behind = revision == "head" or at is None or revision > at
    (command.upgrade if behind else command.downgrade)(prepared, revision)
