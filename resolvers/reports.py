"""Asking for a report of membership history."""

from datetime import datetime
from typing import Annotated

import strawberry
from sqlalchemy.ext.asyncio import AsyncConnection
from strawberry import ID

from db import reports, tasks, transactions
from db.tables import TaskKind
from resolvers.context import IdempotencyKey, Info
from resolvers.errors import TOLD, Refused, UserError, invalid, segment_not_found, too_many_items
from resolvers.idempotency import Outcome
from resolvers.mutations import mutate
from resolvers.tasks import TaskPayload, payload
from resolvers.values import wrong_slug, wrong_user_id


@strawberry.input(description="The period is [from, to). Without userIds: every user. Without segments: every segment.")
class GenerateReportInput:
    from_: datetime = strawberry.field(name="from", description="Events at or after this instant.")
    to: datetime | None = strawberry.field(
        default=None,
        description=(
            "Events before this instant, which must be later than `from`, else INVALID. Null: now, by the database's "
            "clock. Of a period that is not over the report has what happened until it was made."
        ),
    )
    user_ids: list[ID] | None = strawberry.field(
        default=None,
        description=(
            "Only of these users: 1 to 10 000 ids of 1 to 128 characters, else INVALID or TOO_MANY_ITEMS; one given "
            "twice counts once. Only then the report has the events of rollouts, too: a rollout takes in every id that "
            "its hash includes, and nobody knows which of them are users. Null: of every user."
        ),
    )
    segments: list[str] | None = strawberry.field(
        default=None,
        description=(
            "Only of segments that have, or had until they were deleted, one of these slugs, 1 to 10 000 of them. A "
            "slug that no segment ever had is SEGMENT_NOT_FOUND. Null: of every segment."
        ),
    )


async def generate_report(
    info: Info,
    input: Annotated[GenerateReportInput, strawberry.argument(description="What the report is about.")],
    idempotency_key: IdempotencyKey,
) -> TaskPayload:
    async def work(tx: AsyncConnection, operation_id: int) -> Outcome:
        until = await _until(tx, input)
        segment_ids = None if input.segments is None else await _segment_ids(tx, input.segments)
        user_ids = None if input.user_ids is None else sorted({str(user_id) for user_id in input.user_ids})
        task_id = await tasks.insert(
            tx,
            TaskKind.REPORT,
            client=info.context.client,
            operation_id=operation_id,
            args={"from": input.from_, "to": until, "user_ids": user_ids, "segment_ids": segment_ids},
        )
        return {"task_id": str(task_id)}

    async def committed(_: Outcome) -> None:
        info.context.services.wake()

    wrong = _wrong(input, info.context.services.limits.report_items)
    return await payload(info, *await mutate(info, idempotency_key, {"input": input}, wrong, work, committed))


def _wrong(input: GenerateReportInput, limit: int) -> list[UserError]:
    """What can be seen without the database."""
    for name, items in (("userIds", input.user_ids), ("segments", input.segments)):
        if items is not None and len(items) > limit:
            return [too_many_items(len(items), limit, "input", name)]
    wrong = []
    if input.to is not None and input.to <= input.from_:
        wrong.append(invalid("The period is empty: `to` must be later than `from`.", "input", "to"))
    for name, items in (("userIds", input.user_ids), ("segments", input.segments)):
        if items is not None and not items:
            wrong.append(invalid(f"The list is empty: leave {name} out to mean all of them.", "input", name))
    for position, user_id in enumerate(input.user_ids or ()):
        wrong += wrong_user_id(user_id, "input", "userIds", str(position))
    for position, slug in enumerate(input.segments or ()):
        wrong += wrong_slug(slug, "input", "segments", str(position))
    return wrong[:TOLD]


async def _until(tx: AsyncConnection, input: GenerateReportInput) -> datetime:
    if input.to is not None:
        return input.to
    now = await transactions.now(tx)
    if now <= input.from_:
        raise Refused([invalid("The period is empty: `from` must be in the past.", "input", "from")])
    return now


async def _segment_ids(tx: AsyncConnection, slugs: list[str]) -> list[int]:
    ids = await reports.ids_by_slug(tx, slugs)
    unknown = [
        segment_not_found(slug, "input", "segments", str(position))
        for position, slug in enumerate(slugs)
        if slug not in ids
    ]
    if unknown:
        raise Refused(unknown[:TOLD])
    return sorted({segment_id for slug in slugs for segment_id in ids[slug]})
