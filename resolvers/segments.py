"""Segments: finding, creating, changing and deleting them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import strawberry
from sqlalchemy.ext.asyncio import AsyncConnection

from db import segments, tasks
from db.segments import Segment
from db.tables import TaskKind
from resolvers.connections import Connection, bad_cursor, connection, decode_cursor, encode_cursor, page_size
from resolvers.context import After, First, IdempotencyKey, Info
from resolvers.errors import Refused, UserError, segment_exists, segment_not_found
from resolvers.idempotency import Outcome, Work
from resolvers.mutations import mutate
from resolvers.values import basis_points, require_storable, wrong_description, wrong_percent, wrong_slug

CURSOR = "segment"
ROLLOUT = (
    "Share of all users that are members without being added: 0 to 100 with at most two decimals, else INVALID. "
    "Raising it keeps everyone who was in. Null: no rollout."
)
LiveSlug = Annotated[
    str, strawberry.argument(description="The name of a live segment, else SEGMENT_NOT_FOUND. Case matters.")
]


@strawberry.input(description="Which segments to list.")
class SegmentFilter:
    slug_prefix: str | None = strawberry.field(
        default=None, description="Only slugs that begin with these characters; case matters."
    )
    deleted: bool = strawberry.field(
        default=False,
        description="False: live segments. True: deleted ones; a slug deleted several times is there as often.",
    )


@strawberry.input(description="A segment to be.")
class CreateSegmentInput:
    slug: str = strawberry.field(
        description=(
            "The name that callers use: 1 to 255 letters, digits, hyphens and underscores, beginning with a letter "
            "or digit. Case matters. Unique among live segments, else SEGMENT_EXISTS."
        )
    )
    description: str | None = strawberry.field(
        default=None, description="For people: what the segment is for. At most 2000 characters."
    )
    rollout_percent: float | None = strawberry.field(default=None, description=ROLLOUT)


@strawberry.input(description="A field left out keeps its value; null clears it.")
class UpdateSegmentInput:
    description: str | None = strawberry.field(
        default=strawberry.UNSET, description="For people: what the segment is for. At most 2000 characters."
    )
    rollout_percent: float | None = strawberry.field(default=strawberry.UNSET, description=ROLLOUT)


@dataclass(frozen=True, slots=True)
class SegmentPayload:
    segment: Segment | None
    replayed: bool
    user_errors: list[UserError]


async def segment(
    info: Info, slug: Annotated[str, strawberry.argument(description="The segment's name; case matters.")]
) -> Segment | None:
    require_storable(slug, "slug")
    async with info.context.querying() as conn:
        return await segments.by_slug(conn, slug)


async def list_segments(
    info: Info,
    first: First = 50,
    after: After = None,
    filter: Annotated[SegmentFilter | None, strawberry.argument(description="Null: every live segment.")] = None,
) -> Connection[Segment]:
    size = page_size(first, info.context.services.limits)
    wanted = filter or SegmentFilter()
    prefix = require_storable(wanted.slug_prefix or "", "filter.slugPrefix")
    async with info.context.querying() as conn:
        found = await segments.page(
            conn, slug_prefix=prefix, deleted=wanted.deleted, after=_position(after), limit=size + 1
        )
    info.context.budget.spend(len(found))
    return connection(found, size, after, lambda segment: encode_cursor(CURSOR, segment.slug, segment.id))


def _position(after: str | None) -> tuple[str, int]:
    if after is None:
        return "", 0
    slug, segment_id = decode_cursor(after, CURSOR, str, int)
    assert isinstance(slug, str)
    assert isinstance(segment_id, int)
    if wrong_slug(slug) or not 0 <= segment_id < 2**31:
        raise bad_cursor()
    return slug, segment_id


async def create_segment(
    info: Info,
    input: Annotated[CreateSegmentInput, strawberry.argument(description="The segment to create.")],
    idempotency_key: IdempotencyKey,
) -> SegmentPayload:
    async def work(tx: AsyncConnection, operation_id: int) -> Outcome:
        segment_id = await segments.insert(tx, input.slug, input.description)
        if segment_id is None:
            raise Refused([segment_exists(input.slug)])
        if input.rollout_percent is not None:
            await segments.roll_out(tx, segment_id, basis_points(input.rollout_percent), operation_id)
        return {"segment_id": segment_id}

    wrong = [
        *wrong_slug(input.slug, "input", "slug"),
        *wrong_description(input.description, "input", "description"),
        *wrong_percent(input.rollout_percent, "input", "rolloutPercent"),
    ]
    return await _change(info, idempotency_key, {"input": input}, wrong, work)


async def update_segment(
    info: Info,
    slug: LiveSlug,
    input: Annotated[UpdateSegmentInput, strawberry.argument(description="What to change.")],
    idempotency_key: IdempotencyKey,
) -> SegmentPayload:
    async def work(tx: AsyncConnection, operation_id: int) -> Outcome:
        segment_id = await _lock(tx, slug)
        if input.description is not strawberry.UNSET:
            await segments.describe(tx, segment_id, input.description)
        if input.rollout_percent is not strawberry.UNSET:
            percent = input.rollout_percent
            rollout = None if percent is None else basis_points(percent)
            await segments.roll_out(tx, segment_id, rollout, operation_id)
        return {"segment_id": segment_id}

    wrong = [
        *wrong_slug(slug, "slug"),
        *wrong_description(input.description or None, "input", "description"),
        *wrong_percent(input.rollout_percent or None, "input", "rolloutPercent"),
    ]
    return await _change(info, idempotency_key, {"slug": slug, "input": input}, wrong, work)


async def delete_segment(info: Info, slug: LiveSlug, idempotency_key: IdempotencyKey) -> SegmentPayload:
    async def work(tx: AsyncConnection, operation_id: int) -> Outcome:
        segment_id = await _lock(tx, slug)
        await segments.delete(tx, segment_id, operation_id)
        await tasks.insert(
            tx,
            TaskKind.SEGMENT_CLEANUP,
            client=info.context.client,
            operation_id=operation_id,
            segment_id=segment_id,
        )
        return {"segment_id": segment_id}

    payload = await _change(info, idempotency_key, {"slug": slug}, wrong_slug(slug, "slug"), work)
    info.context.services.wake()
    return payload


async def _lock(tx: AsyncConnection, slug: str) -> int:
    segment_id = await segments.lock(tx, slug)
    if segment_id is None:
        raise Refused([segment_not_found(slug, "slug")])
    return segment_id


async def _change(
    info: Info, key: str, arguments: dict[str, Any], wrong: Sequence[UserError], work: Work
) -> SegmentPayload:
    context = info.context

    async def committed(_: Outcome) -> None:
        await context.services.catalogue.refresh()
        await context.services.cache.announce(context.services.catalogue.version)

    done, errors = await mutate(info, key, arguments, wrong, work, committed)
    if done is None:
        return SegmentPayload(None, replayed=False, user_errors=errors)
    async with context.querying() as conn:
        changed = await segments.by_id(conn, done.outcome["segment_id"])
    return SegmentPayload(changed, done.replayed, [])
