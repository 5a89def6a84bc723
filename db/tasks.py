"""Background tasks: what callers poll, and the queue that workers take from."""

from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import bindparam, text
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.ext.asyncio import AsyncConnection

from db.tables import TaskKind, TaskStatus

# A worker shows so often that it is there; one that has not for the length of the lease has lost its task.
HEARTBEAT_SECONDS = 2
LEASE_SECONDS = 20
# Then it is given up: a task that kills its worker must not kill all of them for ever.
FAILURES = 5
VANISHED = f"Its worker stopped without a word {FAILURES} times."

COLUMNS = """
    id, kind, status, attempt, rows_done, rows_total, result, error, created_at, run_after, started_at, finished_at,
    file_removed_at, args, upload, state, clock_timestamp() AS seen_at
"""


@dataclass(frozen=True, slots=True)
class Task:
    id: UUID
    kind: TaskKind
    status: TaskStatus
    attempt: int
    rows_done: int
    rows_total: int | None
    result: dict[str, Any] | None
    error: str | None
    created_at: datetime
    run_after: datetime
    started_at: datetime | None
    finished_at: datetime | None
    file_removed_at: datetime | None
    args: dict[str, Any]
    # What was uploaded for it.
    upload: dict[str, Any] | None
    # How far it has come, for whoever goes on with it.
    state: dict[str, Any] | None
    # The database's clock when all this was so.
    seen_at: datetime


@dataclass(frozen=True, slots=True)
class Claim:
    """A task that is somebody's to work on, until it is claimed again."""

    id: UUID
    kind: TaskKind
    attempt: int
    operation_id: int | None
    segment_id: int | None
    args: dict[str, Any]
    rows_done: int
    upload: dict[str, Any] | None
    state: dict[str, Any] | None


async def insert(
    tx: AsyncConnection,
    kind: TaskKind,
    *,
    client: str,
    operation_id: int,
    segment_id: int | None = None,
    args: dict[str, Any] | None = None,
) -> UUID:
    """Queue a task, which begins when the transaction is committed."""
    result = await tx.execute(
        text("""
            INSERT INTO tasks (kind, client, operation_id, segment_id, args)
            VALUES (:kind, :client, :operation_id, :segment_id, :args) RETURNING id
        """).bindparams(bindparam("args", type_=JSONB)),
        {"kind": kind, "client": client, "operation_id": operation_id, "segment_id": segment_id, "args": args or {}},
    )
    task_id: UUID = result.scalar_one()
    return task_id


async def by_id(conn: AsyncConnection, task_id: UUID, client: str) -> Task | None:
    """The client's task of that id."""
    result = await conn.execute(
        _select(f"SELECT {COLUMNS} FROM tasks WHERE id = :id AND client = :client"), {"id": task_id, "client": client}
    )
    row = result.one_or_none()
    return None if row is None else _task(row)


async def page(
    conn: AsyncConnection,
    client: str,
    *,
    kind: TaskKind | None,
    status: TaskStatus | None,
    before: UUID | None,
    limit: int,
) -> list[Task]:
    """Up to `limit` of the client's tasks, the newest first, older than the one `before`."""
    result = await conn.execute(
        _select(f"""
            SELECT {COLUMNS} FROM tasks
            WHERE client = :client AND (CAST(:before AS uuid) IS NULL OR id < :before)
              AND (CAST(:kind AS task_kind) IS NULL OR kind = :kind)
              AND (CAST(:status AS task_status) IS NULL OR status = :status)
            ORDER BY id DESC LIMIT :limit
        """),
        {"client": client, "before": before, "kind": kind, "status": status, "limit": limit},
    )
    return [_task(row) for row in result]


async def of_files(conn: AsyncConnection, task_ids: Collection[UUID]) -> dict[UUID, Task]:
    """Those of the tasks that there are, whoever's they are."""
    result = await conn.execute(_select(f"SELECT {COLUMNS} FROM tasks WHERE id = ANY(:ids)"), {"ids": list(task_ids)})
    return {row.id: _task(row) for row in result}


async def cancel(tx: AsyncConnection, task_id: UUID, client: str) -> bool:
    """End the client's task, unless it has ended or is a cleanup. Whoever works on it finds that it lost it."""
    result = await tx.execute(
        text("""
            UPDATE tasks SET status = 'CANCELED', finished_at = clock_timestamp()
            WHERE id = :id AND client = :client AND status IN ('QUEUED', 'RUNNING') AND kind <> 'SEGMENT_CLEANUP'
        """),
        {"id": task_id, "client": client},
    )
    return bool(result.rowcount)


async def bury(tx: AsyncConnection) -> int:
    """Give up the tasks whose workers vanished too often."""
    result = await tx.execute(
        text("""
            UPDATE tasks
            SET status = 'FAILED', failures = failures + 1, error = :error, finished_at = clock_timestamp()
            WHERE status = 'RUNNING' AND heartbeat_at < clock_timestamp() - make_interval(secs => :lease)
              AND failures + 1 >= :failures
        """),
        {"error": VANISHED, "lease": LEASE_SECONDS, "failures": FAILURES},
    )
    return result.rowcount


@dataclass(frozen=True, slots=True)
class Unfinished:
    """The tasks of a kind that wait, or run."""

    kind: TaskKind
    status: TaskStatus
    tasks: int
    # For how long the oldest one could have been begun, or has been at work.
    oldest_seconds: float


async def unfinished(conn: AsyncConnection) -> list[Unfinished]:
    result = await conn.execute(
        text("""
            SELECT kind, status, count(*), greatest(0, extract(epoch FROM clock_timestamp()
                - min(CASE status WHEN 'QUEUED' THEN run_after ELSE started_at END)))::float8
            FROM tasks WHERE status IN ('QUEUED', 'RUNNING') GROUP BY kind, status
        """)
    )
    return [Unfinished(TaskKind(kind), TaskStatus(status), *counts) for kind, status, *counts in result]


# A report begins anew; what a cleanup or an import has done is done. An import waits for what it imports.
CLAIM = text("""
    UPDATE tasks
    SET status = 'RUNNING', attempt = attempt + 1,
        failures = failures + CASE WHEN status = 'RUNNING' THEN 1 ELSE 0 END,
        started_at = coalesce(started_at, clock_timestamp()), heartbeat_at = clock_timestamp(),
        rows_done = CASE WHEN kind IN ('SEGMENT_CLEANUP', 'IMPORT') THEN rows_done ELSE 0 END
    WHERE id = (
        SELECT id FROM tasks
        WHERE status IN ('QUEUED', 'RUNNING') AND kind = ANY(CAST(:kinds AS task_kind[]))
          AND (kind <> 'IMPORT' OR upload IS NOT NULL)
          AND CASE status
              WHEN 'QUEUED' THEN run_after <= clock_timestamp()
              ELSE heartbeat_at < clock_timestamp() - make_interval(secs => :lease) AND failures + 1 < :failures
              END
        ORDER BY id LIMIT 1 FOR UPDATE SKIP LOCKED
    )
    RETURNING id, kind, attempt, operation_id, segment_id, args, rows_done, upload, state
""").columns(args=JSONB, upload=JSONB, state=JSONB)


async def claim(tx: AsyncConnection, kinds: Collection[TaskKind]) -> Claim | None:
    """Take the oldest task of these kinds that is waiting, or whose worker has not been heard of."""
    result = await tx.execute(CLAIM, {"kinds": list(kinds), "lease": LEASE_SECONDS, "failures": FAILURES})
    row = result.one_or_none()
    if row is None:
        return None
    return Claim(row.id, TaskKind(row.kind), *row[2:])


async def beat(tx: AsyncConnection, claim: Claim, rows_done: int) -> bool:
    """Show that somebody is at it, and how far; False when the task is no longer theirs."""
    return await _mine(tx, claim, "rows_done = :rows_done, heartbeat_at = clock_timestamp()", rows_done=rows_done)


async def advance(tx: AsyncConnection, claim: Claim, rows: int) -> bool:
    """Count rows in the transaction that did them; False when the task is no longer theirs."""
    return await _mine(tx, claim, "rows_done = rows_done + :rows, heartbeat_at = clock_timestamp()", rows=rows)


async def keep(tx: AsyncConnection, claim: Claim, rows_done: int, state: dict[str, Any]) -> bool:
    """Note how far it has come in the transaction that came so far; False when the task is no longer theirs.

    What goes on does not kill its workers: they may vanish as often as they like.
    """
    return await _mine(
        tx,
        claim,
        "rows_done = :rows_done, state = :state, failures = 0, heartbeat_at = clock_timestamp()",
        rows_done=rows_done,
        state=state,
    )


async def upload(tx: AsyncConnection, task_id: UUID, upload: dict[str, Any]) -> bool:
    """Give an import what it waits for; False when it does not, or no longer."""
    statement = text("""
        UPDATE tasks SET upload = :upload, run_after = clock_timestamp()
        WHERE id = :id AND kind = 'IMPORT' AND status = 'QUEUED' AND upload IS NULL
    """).bindparams(bindparam("upload", type_=JSONB))
    return bool((await tx.execute(statement, {"id": task_id, "upload": upload})).rowcount)


async def expect(tx: AsyncConnection, claim: Claim, rows_total: int) -> bool:
    """Note how many rows there are to do; False when the task is no longer theirs."""
    return await _mine(tx, claim, "rows_total = :rows_total", rows_total=rows_total)


async def succeed(tx: AsyncConnection, claim: Claim, rows_done: int, result: dict[str, Any] | None) -> bool:
    """End it with its result; False when the task is no longer theirs."""
    return await _mine(
        tx,
        claim,
        "status = 'SUCCEEDED', rows_done = :rows_done, result = :result, finished_at = clock_timestamp()",
        rows_done=rows_done,
        result=result,
    )


async def fail(tx: AsyncConnection, claim: Claim, error: str, *, final: bool) -> bool:
    """End it, or have it tried again a little later if it did not fail too often; False when it is no longer theirs."""
    return await _mine(
        tx,
        claim,
        """
            failures = failures + 1, error = :error,
            status = CAST(CASE WHEN :final OR failures + 1 >= :failures THEN 'FAILED' ELSE 'QUEUED' END AS task_status),
            finished_at = CASE WHEN :final OR failures + 1 >= :failures THEN clock_timestamp() END,
            run_after = clock_timestamp() + make_interval(secs => 2 * 4 ^ failures)
        """,
        error=error,
        final=final,
        failures=FAILURES,
    )


async def release(tx: AsyncConnection, claim: Claim, seconds: float = 0) -> bool:
    """Put it back for somebody else, after so many seconds; False when it is no longer theirs."""
    return await _mine(
        tx, claim, "status = 'QUEUED', run_after = clock_timestamp() + make_interval(secs => :secs)", secs=seconds
    )


async def _mine(tx: AsyncConnection, claim: Claim, change: str, **values: object) -> bool:
    """The fence: a worker that was away too long, or whose task was canceled, moves nothing."""
    statement = text(f"UPDATE tasks SET {change} WHERE id = :id AND attempt = :attempt AND status = 'RUNNING'")
    for name in {"result", "state"} & values.keys():
        statement = statement.bindparams(bindparam(name, type_=JSONB(none_as_null=True)))
    result = await tx.execute(statement, {"id": claim.id, "attempt": claim.attempt, **values})
    return bool(result.rowcount)


async def queue_missing_cleanups(tx: AsyncConnection) -> int:
    """Queue a cleanup of each deleted segment that has memberships left and none waiting: it failed, say."""
    result = await tx.execute(
        text("""
            INSERT INTO tasks (kind, client, operation_id, segment_id)
            SELECT 'SEGMENT_CLEANUP', coalesce(o.client, 'cleanup'), s.deleted_by, s.id
            FROM segments AS s LEFT JOIN operations AS o ON o.id = s.deleted_by
            WHERE s.deleted_at IS NOT NULL AND s.cleaned_at IS NULL
            ON CONFLICT (segment_id) WHERE kind = 'SEGMENT_CLEANUP' AND status IN ('QUEUED', 'RUNNING') DO NOTHING
        """)
    )
    return result.rowcount


def _select(statement: str) -> Any:
    return text(statement).columns(result=JSONB, args=JSONB, upload=JSONB, state=JSONB)


def _task(row: Any) -> Task:
    kind, status = TaskKind(row.kind), TaskStatus(row.status)
    return Task(row.id, kind, status, *row[3:])
