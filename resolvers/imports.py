"""Asking for imports and exports of a segment's members."""

from datetime import datetime
from enum import StrEnum
from typing import Annotated

import strawberry
from sqlalchemy.ext.asyncio import AsyncConnection

from db import segments, tasks, transactions
from db.tables import TaskKind
from resolvers.context import IdempotencyKey, Info
from resolvers.errors import Refused, segment_not_found
from resolvers.expiries import expiry, wrong_expiry
from resolvers.idempotency import Outcome
from resolvers.mutations import mutate
from resolvers.tasks import TaskPayload, payload
from resolvers.values import wrong_slug

SLUG = "The name of a live segment, else SEGMENT_NOT_FOUND. Case matters."


class ImportMode(StrEnum):
    """What an import does with the users of its file."""

    ADD = "ADD"
    REMOVE = "REMOVE"
    REPLACE = "REPLACE"


@strawberry.input(
    description="What to do with a file that is sent afterwards. Give at most one of ttlDays and expiresAt."
)
class ImportMembersInput:
    slug: str = strawberry.field(description=SLUG)
    mode: ImportMode = strawberry.field(default=ImportMode.ADD, description="What happens to the users in the file.")
    ttl_days: int | None = strawberry.field(
        default=None,
        description=(
            "How long memberships last of rows that do not say so themselves: 1 to 36500 days, from when the work on "
            "the file begins."
        ),
    )
    expires_at: datetime | None = strawberry.field(
        default=None,
        description=(
            "When memberships end of rows that do not say so themselves: the first instant outside. Must be in the "
            "future by the database's clock."
        ),
    )
    dry_run: bool = strawberry.field(
        default=False, description="True: count what the import would do, and change nothing."
    )


@strawberry.input(description="Whose members to export.")
class ExportMembersInput:
    slug: str = strawberry.field(description=SLUG)


async def import_members(
    info: Info,
    input: Annotated[ImportMembersInput, strawberry.argument(description="What the file is for.")],
    idempotency_key: IdempotencyKey,
) -> TaskPayload:
    async def work(tx: AsyncConnection, operation_id: int) -> Outcome:
        segment_id = await _live(tx, input.slug)
        expiry(input, await transactions.now(tx), "input")
        task_id = await tasks.insert(
            tx,
            TaskKind.IMPORT,
            client=info.context.client,
            operation_id=operation_id,
            segment_id=segment_id,
            args={
                "mode": input.mode,
                "ttl_days": input.ttl_days,
                "expires_at": input.expires_at,
                "dry_run": input.dry_run,
            },
        )
        return {"task_id": str(task_id)}

    wrong = [*wrong_slug(input.slug, "input", "slug"), *wrong_expiry(input, "input")]
    return await payload(info, *await mutate(info, idempotency_key, {"input": input}, wrong, work))


async def export_members(
    info: Info,
    input: Annotated[ExportMembersInput, strawberry.argument(description="What to export.")],
    idempotency_key: IdempotencyKey,
) -> TaskPayload:
    async def work(tx: AsyncConnection, operation_id: int) -> Outcome:
        segment_id = await _live(tx, input.slug)
        task_id = await tasks.insert(
            tx, TaskKind.EXPORT, client=info.context.client, operation_id=operation_id, segment_id=segment_id
        )
        return {"task_id": str(task_id)}

    async def committed(_: Outcome) -> None:
        info.context.services.wake()

    wrong = wrong_slug(input.slug, "input", "slug")
    return await payload(info, *await mutate(info, idempotency_key, {"input": input}, wrong, work, committed))


async def _live(tx: AsyncConnection, slug: str) -> int:
    segment = await segments.by_slug(tx, slug)
    if segment is None:
        raise Refused([segment_not_found(slug, "input", "slug")])
    return segment.id
