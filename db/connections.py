"""The pools of connections to PostgreSQL: one for mutations, one for reads, so that neither can starve the other."""

import time
from collections.abc import Mapping
from functools import partial
from typing import Any

import orjson
from sqlalchemy import URL, event, make_url, text
from sqlalchemy.engine import ExceptionContext
from sqlalchemy.exc import DisconnectionError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine
from sqlalchemy.pool import ConnectionPoolEntry

from db import bare
from db.changes import CHANGE
from db.gone import CONNECT_SECONDS, GONE, READ_ONLY, RECYCLE_SECONDS, WAIT_SECONDS, has_left, keep_alive
from db.packed import OF_USERS
from db.primary import Primary
from db.statement import Statement

# Where the servers are; or what finds out which one of them is written to, for those who share that.
Database = str | URL | Primary

SESSION = {
    "application_name": "segmentql",
    "timezone": "UTC",
    "jit": "off",
    # Lists of ids differ too much in length for one plan to fit them all.
    "plan_cache_mode": "force_custom_plan",
}
# What holds locks must not hold them for long: a client's retry with the same key is always safe.
WRITING = SESSION | {
    # Each statement sees what was committed before it: what a lock was waited for, and the winner of a key.
    "default_transaction_isolation": "read committed",
    "statement_timeout": "10s",
    "lock_timeout": "2s",
    "idle_in_transaction_session_timeout": "10s",
    "transaction_timeout": "30s",
}
# Shorter than a list may take to be stored (db/journal.py).
READING = SESSION | {"statement_timeout": "2500", "default_transaction_read_only": "on"}
# The plan must be right for tables that were empty when it was made.
PLANNED_ONCE = {"plan_cache_mode": "force_generic_plan", "enable_seqscan": "off"}
# A list of millions is swapped in one transaction.
IMPORTING = WRITING | {
    "statement_timeout": "2h",
    "transaction_timeout": "3h",
    "lock_timeout": "60s",
    # A worker that is frozen, or gone without a word, does not keep a segment for long.
    "idle_in_transaction_session_timeout": "10s",
    "work_mem": "64MB",
    # Nobody waits for it: it takes one core, not several.
    "max_parallel_workers_per_gather": "0",
    "max_parallel_maintenance_workers": "0",
}
# For what takes as long as it takes and holds no lock that anybody waits for: a report, a look at everything. Whoever
# asks has to see for himself that it goes on.
EXPORTING = SESSION | {
    "default_transaction_read_only": "on",
    "statement_timeout": "0",
    "transaction_timeout": "0",
    "idle_in_transaction_session_timeout": "60s",
    # It takes one core, and leaves the others to everybody else.
    "max_parallel_workers_per_gather": "0",
    # Sorting a report takes it once; what does not fit goes to disk.
    "work_mem": "64MB",
    # Whoever is frozen, or gone without a word, does not keep a snapshot for ever.
    "tcp_keepalives_idle": "30",
    "tcp_user_timeout": "120s",
}
# How long a statement is waited for: longer than PostgreSQL lets it take.
WRITE_SECONDS, READ_SECONDS = 12, 4


def url(value: str | URL) -> URL:
    """The URL with our driver, whichever of PostgreSQL's schemes it was written with."""
    return make_url(value).set(drivername="postgresql+asyncpg")


def primary(value: str | URL) -> Primary:
    """What pools share that are to leave a server together."""
    return Primary(url(value))


def writer(database: Database, pool_size: int) -> AsyncEngine:
    """For mutations and jobs: transactions."""
    return _engine(_primary(database), pool_size, WRITING, command_timeout=WRITE_SECONDS)


def reader(database: Database, pool_size: int) -> AsyncEngine:
    """For queries: each statement is a transaction, and a snapshot, of its own, and none can write."""
    engine = _engine(_primary(database), pool_size, READING, command_timeout=READ_SECONDS)
    return engine.execution_options(isolation_level="AUTOCOMMIT")


def bare_writer(database: Database, size: int, statement: Statement = CHANGE) -> bare.Pool:
    """For the mutation that is one statement, whose plan is always the same."""
    return bare.Pool(_primary(database), size, WRITING | PLANNED_ONCE, statement, WRITE_SECONDS)


def bare_reader(database: Database, size: int, statement: Statement = OF_USERS) -> bare.Pool:
    """For the query that is asked most, planned once for one id and for a thousand alike."""
    return bare.Pool(_primary(database), size, READING | PLANNED_ONCE, statement, READ_SECONDS)


def importer(database: Database, pool_size: int) -> AsyncEngine:
    """For the transactions of imports: one may write a whole list, and nobody waits for an answer."""
    return _engine(_primary(database), pool_size, IMPORTING, command_timeout=4 * 3_600)


def exporter(database: Database, pool_size: int) -> AsyncEngine:
    """For reports and checks: long statements, none of which can write."""
    engine = _engine(_primary(database), pool_size, EXPORTING, command_timeout=300)
    return engine.execution_options(isolation_level="AUTOCOMMIT")


async def is_standby(conn: AsyncConnection) -> bool:
    """Whether the server repeats what another one writes, and can be written to by nobody else."""
    standby: bool = (await conn.execute(text("SELECT pg_is_in_recovery()"))).scalar_one()
    return standby


def _primary(database: Database) -> Primary:
    return database if isinstance(database, Primary) else primary(database)


def _engine(primary: Primary, pool_size: int, session: Mapping[str, str], command_timeout: float) -> AsyncEngine:
    engine = create_async_engine(
        primary.url.difference_update_query(["target_session_attrs"]),
        pool_size=pool_size,
        max_overflow=0,
        pool_timeout=WAIT_SECONDS,
        pool_recycle=RECYCLE_SECONDS,
        pool_pre_ping=True,
        pool_use_lifo=True,
        json_serializer=lambda value: orjson.dumps(value).decode(),
        json_deserializer=orjson.loads,
        hide_parameters=True,  # ids of users and keys of clients do not belong into logs
        connect_args={
            "async_creator_fn": primary.connect,
            "timeout": CONNECT_SECONDS,
            # Ends the wait for a server that is frozen or behind a dead network, which no timeout of its own can.
            "command_timeout": command_timeout,
            "server_settings": dict(session),
        },
    )
    event.listen(engine.sync_engine, "handle_error", partial(_discard_when_gone, primary))
    event.listen(engine.sync_engine, "connect", _made)
    event.listen(engine.sync_engine, "checkout", partial(_replace_when_left, primary))
    return engine


def _replace_when_left(primary: Primary, _connection: object, record: ConnectionPoolEntry, _proxy: object) -> None:
    if record.info["since"] < primary.left:
        raise DisconnectionError("its server takes no writes any more")


def _made(dbapi_connection: Any, record: ConnectionPoolEntry) -> None:
    record.info["since"] = time.monotonic()
    keep_alive(dbapi_connection.driver_connection._transport)  # noqa: SLF001  # the driver has no setting for it


def _discard_when_gone(primary: Primary, context: ExceptionContext) -> None:
    state = getattr(context.original_exception, "sqlstate", None)
    if state in GONE or has_left(context.original_exception):
        context.is_disconnect = True
    if state == READ_ONLY:
        primary.leave()
