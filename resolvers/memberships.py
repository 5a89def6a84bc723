"""Putting users into segments and taking them out."""

from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Annotated

import strawberry
from sqlalchemy.ext.asyncio import AsyncConnection
from strawberry import ID

from db import memberships, segments
from resolvers.context import IdempotencyKey, Info
from resolvers.errors import Refused, UserError, conflicting_change, invalid, segment_not_found, too_many_items
from resolvers.idempotency import Outcome
from resolvers.mutations import mutate
from resolvers.users import User
from resolvers.values import wrong_slug, wrong_user_id

# A century. More is a mistake in the unit, and would soon leave the calendar.
TTL_DAYS = 36_500


@strawberry.input(
    description=(
        "Give at most one of ttlDays and expiresAt; neither: the membership does not end by itself. They apply to "
        "every slug in `add`. A slug twice in one list counts once; one in both lists is a CONFLICTING_CHANGE; both "
        "lists empty is INVALID."
    )
)
class ChangeUserSegmentsInput:
    user_id: ID = strawberry.field(description="1 to 128 characters, none of them a control character.")
    add: list[str] = strawberry.field(
        default_factory=list,
        description="Slugs of segments to put the user into, at most 1000. Of a member the expiry moves.",
    )
    remove: list[str] = strawberry.field(
        default_factory=list,
        description="Slugs of segments to take the user out of, at most 1000. Of a non-member nothing changes.",
    )
    ttl_days: int | None = strawberry.field(
        default=None,
        description=(
            "How long the memberships last: 1 to 36500 days of 86400 seconds each, from the database's clock. The end "
            "is the first instant outside."
        ),
    )
    expires_at: datetime | None = strawberry.field(
        default=None,
        description=(
            "When the memberships end: the first instant outside. Must be in the future by the database's clock."
        ),
    )


@dataclass(frozen=True, slots=True)
class ChangeUserSegmentsPayload:
    user: User | None
    replayed: bool
    user_errors: list[UserError]
    added: list[str] = field(default_factory=list)
    updated: list[str] = field(default_factory=list)
    removed: list[str] = field(default_factory=list)
    unchanged: list[str] = field(default_factory=list)


async def change_user_segments(
    info: Info,
    input: Annotated[ChangeUserSegmentsInput, strawberry.argument(description="The user, and what to change.")],
    idempotency_key: IdempotencyKey,
) -> ChangeUserSegmentsPayload:
    async def work(tx: AsyncConnection, operation_id: int) -> Outcome:
        return await change(tx, input, operation_id)

    async def committed(_: Outcome) -> None:
        await info.context.cache.invalidate([input.user_id])

    wrong = _wrong(input, info.context.limits.changes)
    done, errors = await mutate(info, idempotency_key, {"input": input}, wrong, work, committed)
    if done is None:
        return ChangeUserSegmentsPayload(None, replayed=False, user_errors=errors)
    slugs = {name: done.outcome[name] for name in ("added", "updated", "removed", "unchanged")}
    return ChangeUserSegmentsPayload(User(input.user_id), done.replayed, [], **slugs)


async def change(tx: AsyncConnection, input: ChangeUserSegmentsInput, operation_id: int) -> Outcome:
    add, remove = list(dict.fromkeys(input.add)), list(dict.fromkeys(input.remove))
    await memberships.lock(tx, input.user_id)
    ids = await segments.share(tx, [*add, *remove])
    if unknown := _unknown(input, ids):
        raise Refused(unknown)
    at = await memberships.next_instant(tx, input.user_id)
    expires_at = _expiry(input, at)
    began, moved, ended = frozenset[int](), frozenset[int](), frozenset[int]()
    if add:
        added_ids = [ids[slug] for slug in add]
        began, moved = await memberships.add(
            tx, input.user_id, added_ids, at=at, expires_at=expires_at, operation_id=operation_id
        )
    if remove:
        removed_ids = [ids[slug] for slug in remove]
        ended = await memberships.remove(tx, input.user_id, removed_ids, at=at, operation_id=operation_id)
    return {
        "added": [slug for slug in add if ids[slug] in began],
        "updated": [slug for slug in add if ids[slug] in moved],
        "removed": [slug for slug in remove if ids[slug] in ended],
        "unchanged": [slug for slug in [*add, *remove] if ids[slug] not in began | moved | ended],
    }


def _wrong(input: ChangeUserSegmentsInput, limit: int) -> list[UserError]:
    """What can be seen without the database."""
    for name, slugs in (("add", input.add), ("remove", input.remove)):
        if len(slugs) > limit:
            return [too_many_items(len(slugs), limit, "input", name)]
    wrong = wrong_user_id(input.user_id, "input", "userId")
    if not input.add and not input.remove:
        wrong.append(invalid("Both lists are empty: there is nothing to change.", "input"))
    for name, slugs in (("add", input.add), ("remove", input.remove)):
        for position, slug in _distinct(slugs):
            wrong += wrong_slug(slug, "input", name, str(position))
    both = frozenset(input.add) & frozenset(input.remove)
    wrong += [
        conflicting_change(slug, "input", "remove", str(position))
        for position, slug in _distinct(input.remove)
        if slug in both
    ]
    if input.ttl_days is not None and input.expires_at is not None:
        wrong.append(invalid("Give at most one of ttlDays and expiresAt.", "input", "expiresAt"))
    if input.ttl_days is not None and not 1 <= input.ttl_days <= TTL_DAYS:
        wrong.append(invalid(f"ttlDays must be from 1 to {TTL_DAYS}.", "input", "ttlDays"))
    return wrong


def _unknown(input: ChangeUserSegmentsInput, ids: dict[str, int]) -> list[UserError]:
    return [
        segment_not_found(slug, "input", name, str(position))
        for name, slugs in (("add", input.add), ("remove", input.remove))
        for position, slug in _distinct(slugs)
        if slug not in ids
    ]


def _distinct(slugs: list[str]) -> list[tuple[int, str]]:
    """Each slug once, with the position where it is first."""
    first: dict[str, int] = {}
    for position, slug in enumerate(slugs):
        first.setdefault(slug, position)
    return [(position, slug) for slug, position in first.items()]


def _expiry(input: ChangeUserSegmentsInput, at: datetime) -> datetime | None:
    if input.ttl_days is not None:
        return at + timedelta(days=input.ttl_days)
    if input.expires_at is not None and input.expires_at <= at:
        raise Refused([invalid("expiresAt must be in the future.", "input", "expiresAt")])
    return input.expires_at
