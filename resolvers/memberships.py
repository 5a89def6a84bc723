"""Putting users into segments and taking them out."""

from collections.abc import Collection
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from typing import Annotated

import strawberry
from sqlalchemy.ext.asyncio import AsyncConnection
from strawberry import ID

from db import memberships, segments
from resolvers.context import IdempotencyKey, Info
from resolvers.errors import Refused, UserError, conflicting_change, invalid, segment_not_found, too_many_items
from resolvers.expiries import EXPIRES_AT_DESCRIPTION, TTL_DAYS_DESCRIPTION, expiry, wrong_expiry
from resolvers.idempotency import Outcome
from resolvers.mutations import mutate
from resolvers.users import User
from resolvers.values import distinct, wrong_slug, wrong_user_id


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
    ttl_days: int | None = strawberry.field(default=None, description=TTL_DAYS_DESCRIPTION)
    expires_at: datetime | None = strawberry.field(default=None, description=EXPIRES_AT_DESCRIPTION)


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

    wrong = wrong_change(input, info.context.limits.changes, "input")
    turn = partial(info.context.turns.of, [*input.add, *input.remove], info.context.payer)
    done, errors = await mutate(info, idempotency_key, {"input": input}, wrong, work, committed, turn)
    if done is None:
        return ChangeUserSegmentsPayload(None, replayed=False, user_errors=errors)
    outcome = done.outcome
    return ChangeUserSegmentsPayload(
        User(input.user_id),
        done.replayed,
        [],
        outcome["added"],
        outcome["updated"],
        # Operations of before there were rollouts have excluded nobody.
        [slug for slug in dict.fromkeys(input.remove) if slug in {*outcome["removed"], *outcome.get("excluded", ())}],
        outcome["unchanged"],
    )


async def change(tx: AsyncConnection, input: ChangeUserSegmentsInput, operation_id: int) -> Outcome:
    add, remove = list(dict.fromkeys(input.add)), list(dict.fromkeys(input.remove))
    await memberships.lock(tx, input.user_id)
    held = await segments.share(tx, [*add, *remove])
    if unknown := _unknown(input, held):
        raise Refused(unknown)
    ids = {slug: segment.id for slug, segment in held.items()}
    at = await memberships.next_instant(tx, input.user_id)
    expires_at = expiry(input, at, "input")
    began, moved, ended, excluded = frozenset[int](), frozenset[int](), frozenset[int](), frozenset[int]()
    if add:
        added_ids = [ids[slug] for slug in add]
        began, moved = await memberships.add(
            tx, input.user_id, added_ids, at=at, expires_at=expires_at, operation_id=operation_id
        )
        if rolled_out := [held[slug].id for slug in add if held[slug].rolled_out]:
            await memberships.end_exclusions(tx, input.user_id, rolled_out, at=at)
    if remove:
        removed_ids = [ids[slug] for slug in remove]
        ended = await memberships.remove(tx, input.user_id, removed_ids, at=at, operation_id=operation_id)
        if rolled_out := [held[slug].id for slug in remove if held[slug].rolled_out]:
            excluded = (
                await memberships.exclude(tx, input.user_id, rolled_out, at=at, operation_id=operation_id) - ended
            )
    return {
        "added": [slug for slug in add if ids[slug] in began],
        "updated": [slug for slug in add if ids[slug] in moved],
        "removed": [slug for slug in remove if ids[slug] in ended],
        # Removed, too, but from what the rollout had taken it into: the history has no row of it.
        "excluded": [slug for slug in remove if ids[slug] in excluded],
        "unchanged": [slug for slug in [*add, *remove] if ids[slug] not in began | moved | ended | excluded],
    }


def wrong_change(input: ChangeUserSegmentsInput, limit: int, *path: str) -> list[UserError]:
    """What can be seen without the database."""
    for name, slugs in (("add", input.add), ("remove", input.remove)):
        if len(slugs) > limit:
            return [too_many_items(len(slugs), limit, *path, name)]
    wrong = wrong_user_id(input.user_id, *path, "userId")
    if not input.add and not input.remove:
        wrong.append(invalid("Both lists are empty: there is nothing to change.", *path))
    for name, slugs in (("add", input.add), ("remove", input.remove)):
        for position, slug in distinct(slugs):
            wrong += wrong_slug(slug, *path, name, str(position))
    both = frozenset(input.add) & frozenset(input.remove)
    wrong += [
        conflicting_change(slug, *path, "remove", str(position))
        for position, slug in distinct(input.remove)
        if slug in both
    ]
    return [*wrong, *wrong_expiry(input, *path)]


def _unknown(input: ChangeUserSegmentsInput, live: Collection[str]) -> list[UserError]:
    return [
        segment_not_found(slug, "input", name, str(position))
        for name, slugs in (("add", input.add), ("remove", input.remove))
        for position, slug in distinct(slugs)
        if slug not in live
    ]
