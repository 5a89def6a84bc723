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
from db.tasks import Task
from resolvers.connections import Connection, bad_cursor, connection, decode_cursor, encode_cursor, page_size
from resolvers.context import After, First, IdempotencyKey, Info
from resolvers.errors import Refused, UserError, not_cancelable, task_not_found
from resolvers.idempotency import Done, Outcome
from resolvers.mutations import mutate

CURSOR = "task"
# Milliseconds between two looks at a task that works: no shorter, no longer.
SHORTEST, LONGEST = 250, 10_000
# A worker that is told of a task takes it at once, and others look every second.
QUEUED = 250
# Whoever has not sent an import's file need not look.
UNSENT = 1_000


@dataclass(frozen=True, slots=True)
class TaskFile:
    url: str
    url_expires_at: datetime
    bytes: int
    rows: int
    sha256: str


COUNTS = ("added", "updated", "removed", "unchanged", "duplicate", "invalid")


@dataclass(frozen=True, slots=True)
class ImportResult:
    dry_run: bool
    rows: int
    added: int
    updated: int
    removed: int
    unchanged: int
    duplicate: int
    invalid: int


@dataclass(frozen=True, slots=True)
class TaskPayload:
    task: Task | None
    replayed: bool
    user_errors: list[UserError]


async def task(
    info: Info, id: Annotated[ID, strawberry.argument(description="The task's id. Null when you have no such task.")]
) -> Task | None:
    task_id = parsed(id)
    return None if task_id is None else await of_caller(info, task_id)


async def of_caller(info: Info, task_id: UUID) -> Task | None:
    """The caller's task of that id, as it is now."""
    async with info.context.querying() as conn:
        return await tasks.by_id(conn, task_id, info.context.client)


async def payload(info: Info, done: Done | None, errors: list[UserError]) -> TaskPayload:
    """What a mutation answers whose outcome names a task."""
    if done is None:
        return TaskPayload(None, replayed=False, user_errors=errors)
    return TaskPayload(await of_caller(info, UUID(done.outcome["task_id"])), done.replayed, [])


async def list_tasks(
    info: Info,
    first: First = 20,
    after: After = None,
    kind: Annotated[TaskKind | None, strawberry.argument(description="Only tasks of this kind. Null: of any.")] = None,
    status: Annotated[
        TaskStatus | None, strawberry.argument(description="Only tasks that are so. Null: whatever they are.")
    ] = None,
) -> Connection[Task]:
    size = page_size(first, info.context.services.limits)
    async with info.context.querying() as conn:
        found = await tasks.page(
            conn, info.context.client, kind=kind, status=status, before=_position(after), limit=size + 1
        )
    info.context.budget.spend(len(found))
    return connection(found, size, after, lambda task: encode_cursor(CURSOR, str(task.id)))


def _position(after: str | None) -> UUID | None:
    if after is None:
        return None
    (text,) = decode_cursor(after, CURSOR, str)
    task_id = parsed(str(text))
    if task_id is None:
        raise bad_cursor()
    return task_id


def task_id(task: strawberry.Parent[Task]) -> str:
    return str(task.id)


def progress(task: strawberry.Parent[Task]) -> float | None:
    if task.status is TaskStatus.RUNNING and task.kind is TaskKind.IMPORT:
        return None if task.state is None else float(task.state["progress"])
    if task.status is not TaskStatus.RUNNING or task.rows_total is None:
        return None
    return min(1.0, task.rows_done / max(1, task.rows_total))


def poll_after_ms(task: strawberry.Parent[Task]) -> int | None:
    """A quarter of what is left, where that is known, or of what has passed: so a poller is late by little."""
    if task.status is TaskStatus.QUEUED and task.kind is TaskKind.IMPORT and task.upload is None:
        return UNSENT
    if task.status is TaskStatus.QUEUED:
        return QUEUED + max(0, round((task.run_after - task.seen_at).total_seconds() * 1000))
    if task.status is not TaskStatus.RUNNING or task.started_at is None:
        return None
    expected = (task.seen_at - task.started_at).total_seconds() * 1000
    if done := progress(task):
        expected *= (1 - done) / done
    return min(LONGEST, max(SHORTEST, round(expected / 4)))


def error(task: strawberry.Parent[Task]) -> str | None:
    # Why an earlier attempt failed is not the caller's concern.
    return task.error if task.status is TaskStatus.FAILED else None


async def file(task: strawberry.Parent[Task], info: Info) -> TaskFile | None:
    result = task.result
    if task.status is not TaskStatus.SUCCEEDED or result is None or task.file_removed_at is not None:
        return None
    context = info.context
    link = await context.services.links.make(task.id, result["attempt"], context.origin(), context.caller)
    return TaskFile(link.url, link.expires_at, result["bytes"], result["rows"], result["sha256"])


def upload_url(task: strawberry.Parent[Task], info: Info) -> str | None:
    if task.kind is not TaskKind.IMPORT or task.status is not TaskStatus.QUEUED or task.upload is not None:
        return None
    return info.context.services.links.upload(task.id, info.context.origin(), info.context.caller)


def import_result(task: strawberry.Parent[Task]) -> ImportResult | None:
    state = task.state
    if task.kind is not TaskKind.IMPORT or state is None:
        return None
    return ImportResult(task.args["dry_run"], state["lines"] - state["header"], *(state[name] for name in COUNTS))


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
    task_id = parsed(id)

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
        assert task_id is not None
        info.context.services.cache.news.of_task(task_id)

    wrong = [task_not_found(id)] if task_id is None else []
    # Its worker finds out by itself.
    return await payload(info, *await mutate(info, idempotency_key, {"id": id}, wrong, work, committed))


def parsed(text: str) -> UUID | None:
    """Tasks have ids of one form; what is none is no task's."""
    try:
        task_id = UUID(text)
    except ValueError:
        return None
    return task_id if str(task_id) == text.lower() else None
