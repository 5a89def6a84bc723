"""The pools of connections to PostgreSQL: one for mutations, one for reads, so that neither can starve the other."""

import socket
from collections.abc import Mapping
from typing import Any

import orjson
from sqlalchemy import URL, event, make_url, text
from sqlalchemy.engine import ExceptionContext
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

# The connection broke off; or the server behind it shuts down, or is read-only after a failover: then it is of no use
# any more, though it answers.
GONE = frozenset({"08000", "08001", "08003", "08006", "25006", "57P01", "57P02", "57P03"})
# Older than this, a connection is replaced when it is next asked for: a pool finds its way to a new primary.
RECYCLE_SECONDS = 600

# Seconds without a word before it is asked, between two questions, and how many of these remain without an answer;
# and milliseconds that what was sent may remain unacknowledged.
KEEP_ALIVE = {"TCP_KEEPIDLE": 30, "TCP_KEEPINTVL": 10, "TCP_KEEPCNT": 3, "TCP_USER_TIMEOUT": 60_000}

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
# Shorter than the lease that a cache fill holds (db/cache.py).
READING = SESSION | {"statement_timeout": "2500", "default_transaction_read_only": "on"}
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


def url(value: str) -> URL:
    """The URL with our driver, whichever of PostgreSQL's schemes it was written with."""
    return make_url(value).set(drivername="postgresql+asyncpg")


def writer(database_url: str, pool_size: int) -> AsyncEngine:
    """For mutations and jobs: transactions."""
    return _engine(database_url, pool_size, WRITING, command_timeout=12)


def reader(database_url: str, pool_size: int) -> AsyncEngine:
    """For queries: each statement is a transaction, and a snapshot, of its own, and none can write."""
    engine = _engine(database_url, pool_size, READING, command_timeout=4)
    return engine.execution_options(isolation_level="AUTOCOMMIT")


def importer(database_url: str, pool_size: int) -> AsyncEngine:
    """For the transactions of imports: one may write a whole list, and nobody waits for an answer."""
    return _engine(database_url, pool_size, IMPORTING, command_timeout=4 * 3_600)


def exporter(database_url: str, pool_size: int) -> AsyncEngine:
    """For reports and checks: long statements, none of which can write."""
    engine = _engine(database_url, pool_size, EXPORTING, command_timeout=300)
    return engine.execution_options(isolation_level="AUTOCOMMIT")


async def is_standby(conn: AsyncConnection) -> bool:
    """Whether the server repeats what another one writes, and can be written to by nobody else."""
    standby: bool = (await conn.execute(text("SELECT pg_is_in_recovery()"))).scalar_one()
    return standby


def _engine(database_url: str, pool_size: int, session: Mapping[str, str], command_timeout: float) -> AsyncEngine:
    engine = create_async_engine(
        url(database_url),
        pool_size=pool_size,
        max_overflow=0,
        pool_timeout=1,  # a queue longer than this is overload, and said so
        pool_recycle=RECYCLE_SECONDS,
        pool_pre_ping=True,
        pool_use_lifo=True,
        json_serializer=lambda value: orjson.dumps(value).decode(),
        json_deserializer=orjson.loads,
        hide_parameters=True,  # ids of users and keys of clients do not belong into logs
        connect_args={
            "timeout": 3,
            # Ends the wait for a server that is frozen or behind a dead network, which no timeout of its own can.
            "command_timeout": command_timeout,
            "server_settings": dict(session),
        },
    )
    event.listen(engine.sync_engine, "handle_error", _discard_when_gone)
    event.listen(engine.sync_engine, "connect", _keep_alive)
    return engine


def _keep_alive(dbapi_connection: Any, _record: object) -> None:
    """Notice within a minute that the other side is gone without a word: its machine lost power, or a NAT forgot us."""
    # The driver has no setting for it.
    connected = dbapi_connection.driver_connection._transport.get_extra_info("socket")  # noqa: SLF001
    if connected is None or connected.family == socket.AF_UNIX:
        return
    connected.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in KEEP_ALIVE.items():
        if hasattr(socket, option):  # each system has its own
            connected.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)


def _discard_when_gone(context: ExceptionContext) -> None:
    if getattr(context.original_exception, "sqlstate", None) in GONE:
        context.is_disconnect = True
