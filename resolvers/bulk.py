"""Changing the memberships of many users in one transaction."""

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import Annotated, Any

import strawberry
from sqlalchemy.ext.asyncio import AsyncConnection
from strawberry import ID

from db import bulk, segments
from db.bulk import Added, Pairs
from db.segments import Held
from resolvers.context import IdempotencyKey, Info
from resolvers.errors import (
    Refused,
    UserError,
    UserErrorCode,
    conflicting_change,
    conflicting_expiries,
    invalid,
    segment_not_found,
    told,
    too_many_items,
)
from resolvers.expiries import EXPIRES_AT_DESCRIPTION, TTL_DAYS_DESCRIPTION, expiry, wrong_expiry
from resolvers.idempotency import Outcome, Work
from resolvers.memberships import ChangeUserSegmentsInput, wrong_change
from resolvers.mutations import mutate
from resolvers.values import distinct, unpacked, wrong_slug, wrong_user_ids

SLUG_DESCRIPTION = "The name of a live segment, else SEGMENT_NOT_FOUND. Case matters."
USER_IDS_DESCRIPTION = (
    "1 to 100 000 ids of 1 to 128 characters, none of them a control character, else INVALID or TOO_MANY_ITEMS; one "
    "given twice counts once. Of what is wrong the first 100 are told, and how many more there are. Send them as "
    "variables: a document may not be that long."
)


@strawberry.input(description="Users to put into a segment. Give at most one of ttlDays and expiresAt.")
class AddUsersToSegmentInput:
    slug: str = strawberry.field(description=SLUG_DESCRIPTION)
    user_ids: list[ID] = strawberry.field(description=USER_IDS_DESCRIPTION)
    ttl_days: int | None = strawberry.field(default=None, description=TTL_DAYS_DESCRIPTION)
    expires_at: datetime | None = strawberry.field(default=None, description=EXPIRES_AT_DESCRIPTION)


@strawberry.input(description="Users to take out of a segment. Of a non-member nothing changes.")
class RemoveUsersFromSegmentInput:
    slug: str = strawberry.field(description=SLUG_DESCRIPTION)
    user_ids: list[ID] = strawberry.field(description=USER_IDS_DESCRIPTION)


@strawberry.input(description="Changes of many users, all or nothing.")
class ChangeMembershipsInput:
    changes: list[ChangeUserSegmentsInput] = strawberry.field(
        description=(
            "1 to 10 000 changes, with at most 100 000 slugs together, else INVALID or TOO_MANY_ITEMS. A user may be "
            "in several of them; the same user and slug twice count once, unless they contradict each other: then they "
            "are a CONFLICTING_CHANGE. Of what is wrong the first 100 are told, and how many more there are."
        )
    )


@dataclass(frozen=True, slots=True)
class BulkChangePayload:
    replayed: bool
    user_errors: list[UserError]
    added: int = 0
    updated: int = 0
    removed: int = 0
    unchanged: int = 0


@dataclass(frozen=True, slots=True)
class _Wanted:
    """Pairs of a user and a slug, in the order of users and without a repetition."""

    user_ids: Sequence[str]
    slugs: Sequence[str]

    def pairs(self, held: Mapping[str, Held]) -> Pairs:
        return Pairs(self.user_ids, [held[slug].id for slug in self.slugs])

    def rolled_out(self, held: Mapping[str, Held]) -> Pairs | None:
        """Those of segments that have, or have had, a rollout; None when there are none."""
        chosen = [each for each in zip(self.user_ids, self.slugs, strict=True) if held[each[1]].rolled_out]
        return Pairs([user_id for user_id, _ in chosen], [held[slug].id for _, slug in chosen]) if chosen else None


NOTHING = _Wanted((), ())


def _of_one(user_ids: list[ID], slug: str) -> _Wanted:
    distinct_ids = sorted(set(user_ids))
    return _Wanted(distinct_ids, [slug] * len(distinct_ids))


async def add_users_to_segment(
    info: Info,
    input: Annotated[AddUsersToSegmentInput, strawberry.argument(description="The segment, and the users.")],
    idempotency_key: IdempotencyKey,
) -> BulkChangePayload:
    input.user_ids = unpacked(input.user_ids)

    async def work(tx: AsyncConnection, operation_id: int) -> Outcome:
        wanted = _of_one(input.user_ids, input.slug)
        held, at = await _hold_one(tx, input.slug)
        ends = [expiry(input, at, "input")] * len(wanted.user_ids)
        return await _change(tx, operation_id, held, at, wanted, ends, NOTHING)

    wrong = [*_wrong_list(info, input.slug, input.user_ids), *wrong_expiry(input, "input")]
    return await _mutate(info, idempotency_key, {"input": input}, wrong, work, input.user_ids, [input.slug])


async def remove_users_from_segment(
    info: Info,
    input: Annotated[RemoveUsersFromSegmentInput, strawberry.argument(description="The segment, and the users.")],
    idempotency_key: IdempotencyKey,
) -> BulkChangePayload:
    input.user_ids = unpacked(input.user_ids)

    async def work(tx: AsyncConnection, operation_id: int) -> Outcome:
        wanted = _of_one(input.user_ids, input.slug)
        held, at = await _hold_one(tx, input.slug)
        return await _change(tx, operation_id, held, at, NOTHING, [], wanted)

    wrong = _wrong_list(info, input.slug, input.user_ids)
    return await _mutate(info, idempotency_key, {"input": input}, wrong, work, input.user_ids, [input.slug])


async def _hold_one(tx: AsyncConnection, slug: str) -> tuple[Mapping[str, Held], datetime]:
    """The segment, which nobody else changes until the transaction ends, and when what we do to it happens."""
    held = await segments.hold(tx, [slug])
    if not held:
        raise Refused([segment_not_found(slug, "input", "slug")])
    return held, await segments.next_instant(tx, [held[slug].id])


def _wrong_list(info: Info, slug: str, user_ids: Sequence[str]) -> list[UserError]:
    limit = info.context.services.limits.bulk_pairs
    if len(user_ids) > limit:
        return [too_many_items(len(user_ids), limit, "input", "userIds")]
    wrong = wrong_slug(slug, "input", "slug")
    if not user_ids:
        return [*wrong, invalid("The list is empty: there is nothing to change.", "input", "userIds")]
    return [*wrong, *told(wrong_user_ids(user_ids, "input", "userIds"), "input", "userIds")]


async def change_memberships(
    info: Info,
    input: Annotated[ChangeMembershipsInput, strawberry.argument(description="The changes.")],
    idempotency_key: IdempotencyKey,
) -> BulkChangePayload:
    slugs = sorted({slug for change in input.changes for slug in change.add + change.remove})

    async def work(tx: AsyncConnection, operation_id: int) -> Outcome:
        held = await segments.hold(tx, slugs)
        if unknown := list(_unknown(input.changes, held)):
            raise Refused(told(unknown, "input", "changes"))
        at = await segments.next_instant(tx, [segment.id for segment in held.values()])
        ends = _expiries(input.changes, at)
        added = sorted(
            {(change.user_id, slug): ends[n] for n, change in enumerate(input.changes) for slug in change.add}.items()
        )
        removed = sorted({(change.user_id, slug) for change in input.changes for slug in change.remove})
        return await _change(
            tx,
            operation_id,
            held,
            at,
            _Wanted([user_id for (user_id, _), _ in added], [slug for (_, slug), _ in added]),
            [end for _, end in added],
            _Wanted([user_id for user_id, _ in removed], [slug for _, slug in removed]),
        )

    wrong = _wrong_changes(info, input.changes)
    user_ids = [change.user_id for change in input.changes]
    return await _mutate(info, idempotency_key, {"input": input}, wrong, work, user_ids, slugs)


def _wrong_changes(info: Info, changes: Sequence[ChangeUserSegmentsInput]) -> list[UserError]:
    limits = info.context.services.limits
    if len(changes) > limits.bulk_changes:
        return [too_many_items(len(changes), limits.bulk_changes, "input", "changes")]
    pairs = sum(len(change.add) + len(change.remove) for change in changes)
    if pairs > limits.bulk_pairs:
        what = f"The changes have {pairs} slugs together, at most {limits.bulk_pairs} are allowed."
        return [UserError(UserErrorCode.TOO_MANY_ITEMS, what, ["input", "changes"])]
    if not changes:
        return [invalid("The list is empty: there is nothing to change.", "input", "changes")]
    wrong: list[UserError] = []
    for position, change in enumerate(changes):
        wrong += wrong_change(change, limits.changes, "input", "changes", str(position))
    return told(wrong or list(_contradictions(changes)), "input", "changes")


def _contradictions(changes: Sequence[ChangeUserSegmentsInput]) -> Iterator[UserError]:
    """Of each change those that contradict an earlier one; within one there are none."""
    decided: dict[tuple[str, str], object] = {}
    for position, change in enumerate(changes):
        for name, slugs, wish in (
            ("add", change.add, (change.ttl_days, change.expires_at)),
            ("remove", change.remove, "remove"),
        ):
            for place, slug in distinct(slugs):
                other = decided.setdefault((change.user_id, slug), wish)
                if other != wish:
                    path = ("input", "changes", str(position), name, str(place))
                    both_add = name == "add" and other != "remove"
                    yield conflicting_expiries(slug, *path) if both_add else conflicting_change(slug, *path)


def _unknown(changes: Sequence[ChangeUserSegmentsInput], live: Collection[str]) -> Iterator[UserError]:
    """One error for each slug, where it is first."""
    known = set(live)
    for position, change in enumerate(changes):
        for name, slugs in (("add", change.add), ("remove", change.remove)):
            for place, slug in enumerate(slugs):
                if slug not in known:
                    known.add(slug)
                    yield segment_not_found(slug, "input", "changes", str(position), name, str(place))


def _expiries(changes: Sequence[ChangeUserSegmentsInput], at: datetime) -> list[datetime | None]:
    found: list[datetime | None] = []
    past: list[UserError] = []
    for position, change in enumerate(changes):
        try:
            found.append(expiry(change, at, "input", "changes", str(position)))
        except Refused as refused:
            past += refused.errors
    if past:
        raise Refused(told(past, "input", "changes"))
    return found


async def _change(
    tx: AsyncConnection,
    operation_id: int,
    held: Mapping[str, Held],
    at: datetime,
    add: _Wanted,
    expiries: Sequence[datetime | None],
    remove: _Wanted,
) -> Outcome:
    """Write it all, at one instant. What came of it is counted by slug: history can be held against that."""
    added, ended, excluded = Added(Counter(), Counter()), Counter[int](), Counter[int]()
    if add.user_ids:
        if rolled_out := add.rolled_out(held):
            await bulk.end_exclusions(tx, rolled_out, at=at)
        added = await bulk.add(tx, add.pairs(held), expiries, at=at, operation_id=operation_id)
    if remove.user_ids:
        if rolled_out := remove.rolled_out(held):
            excluded = await bulk.exclude(tx, rolled_out, at=at, operation_id=operation_id)
        ended = await bulk.remove(tx, remove.pairs(held), at=at, operation_id=operation_id)
    slugs = {segment.id: slug for slug, segment in held.items()}
    counts = {"added": added.began, "updated": added.moved, "removed": ended, "excluded": excluded}
    changed = sum(count.total() for count in counts.values())
    outcome = {name: {slugs[each]: n for each, n in count.items() if n} for name, count in counts.items()}
    return {**outcome, "unchanged": len(add.user_ids) + len(remove.user_ids) - changed}


async def _mutate(
    info: Info,
    key: str,
    arguments: dict[str, Any],
    wrong: Sequence[UserError],
    work: Work,
    user_ids: Sequence[str],
    slugs: Collection[str],
) -> BulkChangePayload:
    async def committed(_: Outcome) -> None:
        await info.context.services.cache.invalidate(list(set(user_ids)))

    turn = partial(info.context.services.bulk_turns.of, slugs, info.context.payer)
    done, errors = await mutate(info, key, arguments, wrong, work, committed, turn)
    if done is None:
        return BulkChangePayload(replayed=False, user_errors=errors)
    outcome = done.outcome
    return BulkChangePayload(
        done.replayed,
        [],
        added=sum(outcome["added"].values()),
        updated=sum(outcome["updated"].values()),
        removed=sum(outcome["removed"].values()) + sum(outcome["excluded"].values()),
        unchanged=outcome["unchanged"],
    )
