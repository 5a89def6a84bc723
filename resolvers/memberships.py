"""Putting users into segments and taking them out."""

from collections.abc import Awaitable
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from typing import Annotated

import strawberry
from strawberry import ID

from db import changes
from db.bare import Pool
from resolvers.context import IdempotencyKey, Info
from resolvers.errors import (
    Refused,
    UserError,
    conflicting_change,
    in_progress,
    invalid,
    key_reused,
    segment_not_found,
    too_many_items,
)
from resolvers.expiries import EXPIRES_AT_DESCRIPTION, TTL_DAYS_DESCRIPTION, past, wrong_expiry
from resolvers.idempotency import Done, Outcome, Request
from resolvers.mutations import mutate_by
from resolvers.users import User
from resolvers.values import SLUG, distinct, wrong_slug, wrong_user_id


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


# Not frozen: that would make it three times as slow.
@dataclass(slots=True)
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
    def committed(_: Outcome) -> Awaitable[None]:
        return info.context.services.cache.invalidate([input.user_id])

    wrong = wrong_change(input, info.context.services.limits.changes, "input")
    turn = partial(info.context.services.turns.of, [*input.add, *input.remove], info.context.payer)
    statement = partial(_change, input)
    done, errors = await mutate_by(info, idempotency_key, {"input": input}, wrong, statement, committed, turn)
    if done is None:
        return ChangeUserSegmentsPayload(None, replayed=False, user_errors=errors)
    outcome = done.outcome
    # Operations of before there were rollouts have excluded nobody.
    gone = {*outcome["removed"], *outcome.get("excluded", ())}
    return ChangeUserSegmentsPayload(
        User(input.user_id),
        done.replayed,
        [],
        outcome["added"],
        outcome["updated"],
        [slug for slug in dict.fromkeys(input.remove) if slug in gone],
        outcome["unchanged"],
    )


async def _change(input: ChangeUserSegmentsInput, request: Request, pool: Pool, attempt: int) -> Done:
    answer = await changes.of_user(
        pool,
        changes.Change(
            input.user_id,
            list(dict.fromkeys(input.add)),
            list(dict.fromkeys(input.remove)),
            input.ttl_days,
            input.expires_at,
        ),
        client=request.client,
        kind=request.kind,
        key=request.key,
        fingerprint=request.fingerprint,
        attempt=attempt,
    )
    if answer.outcome is None:
        raise Refused(_refusal(input, answer))
    return Done(answer.outcome, answer.replayed)


def _refusal(input: ChangeUserSegmentsInput, answer: changes.Answer) -> list[UserError]:
    if answer.in_progress:
        return [in_progress()]
    if answer.reused:
        return [key_reused()]
    if answer.past:
        return [past("input")]
    unknown = frozenset(answer.unknown)
    return [
        segment_not_found(slug, "input", name, str(position))
        for name, slugs in (("add", input.add), ("remove", input.remove))
        for position, slug in distinct(slugs)
        if slug in unknown
    ]


def wrong_change(input: ChangeUserSegmentsInput, limit: int, *path: str) -> list[UserError]:
    """What can be seen without the database."""
    lists = (("add", input.add), ("remove", input.remove))
    for name, slugs in lists:
        if len(slugs) > limit:
            return [too_many_items(len(slugs), limit, *path, name)]
    wrong = wrong_user_id(input.user_id, *path, "userId")
    if not input.add and not input.remove:
        wrong.append(invalid("Both lists are empty: there is nothing to change.", *path))
    if not all(map(SLUG.fullmatch, (*input.add, *input.remove))):
        wrong += [
            error
            for name, slugs in lists
            for position, slug in distinct(slugs)
            for error in wrong_slug(slug, *path, name, str(position))
        ]
    if input.add and input.remove and (both := frozenset(input.add).intersection(input.remove)):
        wrong += [
            conflicting_change(slug, *path, "remove", str(position))
            for position, slug in distinct(input.remove)
            if slug in both
        ]
    return wrong + wrong_expiry(input, *path)
