"""Users: which segments they are in, and how that came to be."""

from collections.abc import Awaitable, Callable
from datetime import datetime, timedelta
from enum import StrEnum
from functools import partial
from typing import Annotated, Any, NamedTuple

import strawberry
from strawberry import ID

from db import as_of, history
from db.clock import EPOCH
from db.history import MembershipEvent, Position
from db.memberships import Membership
from db.segments import Segment
from db.tables import MembershipAction
from resolvers.connections import Connection, bad_cursor, connection, decode_cursor, encode_cursor, page_size
from resolvers.context import After, Context, First, Info
from resolvers.errors import BadUserInput
from resolvers.kept import Kept
from resolvers.later import Later
from resolvers.values import require_user_id, require_user_ids

CURSOR = "event"
MICROSECOND = timedelta(microseconds=1)


class Freshness(StrEnum):
    """Where an answer may come from."""

    CACHED = "CACHED"
    LATEST = "LATEST"


UserId = Annotated[
    ID,
    strawberry.argument(
        description="1 to 128 characters, none of them a control character, compared byte by byte; else BAD_USER_INPUT."
    ),
]
Only = Annotated[
    list[str] | None,
    strawberry.argument(
        description=(
            "Only the segments with these slugs, at most 100; those that do not exist are passed over. Null: all."
        )
    ),
]
From = Annotated[Freshness, strawberry.argument(description="Whether the cache may answer.")]


class User(NamedTuple):
    """Every id is a user: there is no table of them."""

    id: str


def user(id: UserId) -> User:
    return User(require_user_id(id, "id"))


def users(
    info: Info,
    ids: Annotated[
        list[ID],
        strawberry.argument(
            description=(
                "At most 100, each of 1 to 128 characters, none of them a control character; else BAD_USER_INPUT."
            )
        ),
    ],
) -> list[User]:
    _require_few(info, len(ids), "ids")
    info.context.budget.spend(len(ids))
    require_user_ids(ids, "ids")
    # Half of what their own constructor takes.
    return list(map(partial(tuple.__new__, User), zip(ids, strict=True)))


def user_memberships(
    user: strawberry.Parent[User],
    info: Info,
    only: Only = None,
    freshness: From = Freshness.CACHED,
    at: Annotated[
        datetime | None,
        strawberry.argument(
            description=(
                "As of this instant, to the microsecond: what happened at it counts. Told by history, so `freshness` "
                "has no effect. A change that is just being committed is dated when it began: of the last seconds, and "
                "while an import replaces a list, something may still be missing. BAD_USER_INPUT when it is in the "
                "future by the database's clock, or before the history that is kept. Null: now."
            )
        ),
    ] = None,
) -> Awaitable[list[Membership]]:
    if only is not None:
        _require_few(info, len(only), "only")
    if at is not None:
        return _memberships_as_of(info, user.id, only, at)
    return _active(info, user.id, freshness, None if only is None else partial(_chosen, info.context, only))


def _chosen(context: Context, only: list[str] | None, active: list[Membership]) -> list[Membership]:
    if only is not None:
        wanted = frozenset(only)
        active = [membership for membership in active if membership.segment.slug in wanted]
    context.budget.spend(len(active))
    return active


async def _memberships_as_of(info: Info, user_id: str, only: list[str] | None, at: datetime) -> list[Membership]:
    async with info.context.querying() as conn:
        found = await as_of.memberships(conn, user_id, at)
    if found.in_future:
        raise BadUserInput("at", "it is in the future.")
    if found.kept_since is not None:
        raise BadUserInput("at", f"history is kept since {found.kept_since.isoformat()}.")
    return _chosen(info.context, only, found.memberships)


def user_segments(
    user: strawberry.Parent[User],
    info: Info,
    only: Only = None,
    freshness: From = Freshness.CACHED,
) -> Awaitable[list[Segment]]:
    _require_few(info, len(only or ()), "only")
    return _active(info, user.id, freshness, partial(_segments, info.context, only))


def _active(info: Info, user_id: str, freshness: Freshness, make: Callable[[list[Membership]], Any] | None) -> Later:
    """Not to be awaited here: all that one query asks for is read together."""
    context = info.context
    return Later(context.services.reads, context.budget, user_id, make, latest=freshness is Freshness.LATEST)


def _segments(context: Context, only: list[str] | None, active: list[Membership]) -> list[Segment]:
    chosen = _chosen(context, only, active)
    return chosen.segments if isinstance(chosen, Kept) else [membership.segment for membership in chosen]


def is_in(
    user: strawberry.Parent[User],
    info: Info,
    slug: Annotated[str, strawberry.argument(description="A segment's name; one that does not exist has no members.")],
) -> Awaitable[bool]:
    return _active(info, user.id, Freshness.CACHED, partial(_has, info.context, slug))


def _has(context: Context, slug: str, active: list[Membership]) -> bool:
    context.budget.spend(1)
    return any(membership.segment.slug == slug for membership in active)


async def user_history(
    user: strawberry.Parent[User],
    info: Info,
    from_: Annotated[
        datetime | None,
        strawberry.argument(name="from", description="Only events at or after this instant. Null: from the beginning."),
    ] = None,
    to: Annotated[
        datetime | None,
        strawberry.argument(
            description=(
                "Only events before this instant, which must be later than `from`, else BAD_USER_INPUT. Null: to now."
            )
        ),
    ] = None,
    first: First = 50,
    after: After = None,
) -> Connection[MembershipEvent]:
    size = page_size(first, info.context.services.limits)
    if from_ is not None and to is not None and to <= from_:
        raise BadUserInput("to", "it must be later than from.")
    async with info.context.querying() as conn:
        found = await history.of_user(conn, user.id, since=from_, until=to, before=_position(after), limit=size + 1)
    info.context.budget.spend(len(found))
    return connection(found, size, after, _cursor)


def _cursor(event: MembershipEvent) -> str:
    return encode_cursor(CURSOR, (event.at - EPOCH) // MICROSECOND, event.action.value, event.segment_id)


def _position(after: str | None) -> Position | None:
    if after is None:
        return None
    at, action, segment_id = decode_cursor(after, CURSOR, int, str, int)
    assert isinstance(at, int)
    assert isinstance(action, str)
    assert isinstance(segment_id, int)
    if not 0 <= segment_id < 2**31 or action not in MembershipAction.__members__:
        raise bad_cursor()
    try:
        return Position(EPOCH + at * MICROSECOND, MembershipAction(action), segment_id)
    except OverflowError as error:
        raise bad_cursor() from error


def _require_few(info: Info, found: int, argument: str) -> None:
    limit = info.context.services.limits.list_items
    if found > limit:
        raise BadUserInput(argument, f"it has {found} items, at most {limit} are allowed.")
