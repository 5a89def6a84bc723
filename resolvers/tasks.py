"""Background tasks: looking how far they are, and calling them off."""

from dataclasses import dataclass
from datetime import datetime
from typing import Annotated
from uuid import UUID

import strawberry
from sqlalchemy.ext.asyncio import AsyncConnection
from strawberry import ID

from db import tasks
from db.tables import TaskKind, TaskStatus
from db.tasks import Task as Record
from resolvers.connections import Connection, bad_cursor, connection, decode_cursor, encode_cursor, page_size
from resolvers.context import After, First, IdempotencyKey, Info
from resolvers.errors import Refused, UserError, not_cancelable, task_not_found
from resolvers.idempotency import Outcome
from resolvers.mutations import mutate

CURSOR = "task"
# Milliseconds between two looks at a task that works: no shorter, no longer.
SHORTEST, LONGEST = 500, 10_000
# A worker sees a task that nobody told it of after a second at the latest.
QUEUED = 1_000


@dataclass(frozen=True, slots=True)
class TaskFile:
    url: str
    url_expires_at: datetime
    bytes: int
    rows: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Task:
    """A task as callers see it."""

    record: Record

    @property
    def id(self) -> str:
        return str(self.record.id)

    @property
    def kind(self) -> TaskKind:
        return self.record.kind

    @property
    def status(self) -> TaskStatus:
        return self.record.status

    @property
    def progress(self) -> float | None:
        record = self.record
        if record.status is not TaskStatus.RUNNING or record.rows_total is None:
            return None
        return min(1.0, record.rows_done / max(1, record.rows_total))

    @property
    def rows_done(self) -> int:
        return self.record.rows_done

    @property
    def created_at(self) -> datetime:
        return self.record.created_at

    @property
    def started_at(self) -> datetime | None:
        return self.record.started_at

    @property
    def finished_at(self) -> datetime | None:
        return self.record.finished_at

    @property
    def poll_after_ms(self) -> int | None:
        """A quarter of what is left, where that is known, or of what has passed: so a poller is late by little."""
        record = self.record
        if record.status is TaskStatus.QUEUED:
            return QUEUED + max(0, round((record.run_after - record.seen_at).total_seconds() * 1000))
        if record.status is not TaskStatus.RUNNING or record.started_at is None:
            return None
        expected = (record.seen_at - record.started_at).total_seconds() * 1000
        if self.progress:
            expected *= (1 - self.progress) / self.progress
        return min(LONGEST, max(SHORTEST, round(expected / 4)))

    @property
    def error(self) -> str | None:
        return self.record.error if self.record.status is TaskStatus.FAILED else None


@dataclass(frozen=True, slots=True)
class TaskPayload:
    task: Task | None
    replayed: bool
    user_errors: list[UserError]


async def task(
    info: Info, id: Annotated[ID, strawberry.argument(description="The task's id. Null when you have no such task.")]
) -> Task | None:
    task_id = _uuid(id)
    return None if task_id is None else await found(info, task_id)


async def found(info: Info, task_id: UUID) -> Task | None:
    """The caller's task of that id, as it is now."""
    async with info.context.querying() as conn:
        record = await tasks.by_id(conn, task_id, info.context.client)
    return None if record is None else Task(record)


async def list_tasks(
    info: Info,
    first: First = 20,
    after: After = None,
    kind: Annotated[TaskKind | None, strawberry.argument(description="Only tasks of this kind. Null: of any.")] = None,
    status: Annotated[
        TaskStatus | None, strawberry.argument(description="Only tasks that are so. Null: whatever they are.")
    ] = None,
) -> Connection[Task]:
    size = page_size(first, info.context.limits)
    async with info.context.querying() as conn:
        records = await tasks.page(
            conn, info.context.client, kind=kind, status=status, before=_position(after), limit=size + 1
        )
    info.context.budget.spend(len(records))
    return connection([Task(record) for record in records], size, after, lambda task: encode_cursor(CURSOR, task.id))


def _position(after: str | None) -> UUID | None:
    if after is None:
        return None
    (text,) = decode_cursor(after, CURSOR, str)
    task_id = _uuid(str(text))
    if task_id is None:
        raise bad_cursor()
    return task_id


async def file(task: strawberry.Parent[Task], info: Info) -> TaskFile | None:
    record = task.record
    if record.status is not TaskStatus.SUCCEEDED or record.result is None or record.file_removed_at is not None:
        return None
    result = record.result
    link = await info.context.links.make(record.id, result["attempt"], info.context.origin())
    return TaskFile(link.url, link.expires_at, result["bytes"], result["rows"], result["sha256"])


async def cancel_task(
    info: Info,
    id: Annotated[
        ID,
        strawberry.argument(
            description=(
                "A task of yours, else TASK_NOT_FOUND, that has not ended and is no cleanup, else NOT_CANCELABLE."
            )
        ),
    ],
    idempotency_key: IdempotencyKey,
) -> TaskPayload:
    task_id = _uuid(id)

    async def work(tx: AsyncConnection, operation_id: int) -> Outcome:
        client = info.context.client
        assert task_id is not None
        if not await tasks.cancel(tx, task_id, client):
            there = await tasks.by_id(tx, task_id, client)
            if there is None:
                raise Refused([task_not_found(id)])
            if there.finished_at is not None:
                raise Refused([not_cancelable("The task has ended already.")])
            raise Refused([not_cancelable("A cleanup goes on until it is done: the segment is deleted already.")])
        return {"task_id": str(task_id)}

    async def committed(_: Outcome) -> None:
        # Its worker finds out by itself.
        pass

    wrong = [task_not_found(id)] if task_id is None else []
    done, errors = await mutate(info, idempotency_key, {"id": id}, wrong, work, committed)
    if done is None:
        return TaskPayload(None, replayed=False, user_errors=errors)
    return TaskPayload(await found(info, UUID(done.outcome["task_id"])), done.replayed, [])


def _uuid(text: str) -> UUID | None:
    """Tasks have ids of one form; what is none is no task's."""
    try:
        task_id = UUID(text)
    except ValueError:
        return None
    return task_id if str(task_id) == text.lower() else None
