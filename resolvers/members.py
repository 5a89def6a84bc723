"""Who is in a segment: those that were added, and have not left."""

from dataclasses import dataclass
from datetime import datetime
from typing import Annotated

import strawberry

from db import members
from db.members import Member
from db.memberships import MembershipSource
from db.segments import Segment
from resolvers.connections import Connection, PageInfo, bad_cursor, connection, decode_cursor, encode_cursor, page_size
from resolvers.context import After, First, Info
from resolvers.errors import BadUserInput
from resolvers.users import User
from resolvers.values import BigInt, is_user_id

CURSOR = "member"
COUNTED_FOR_ONE = 1_000
COUNTED, MOST_COUNTED = BigInt(10_000), 1_000_000


@dataclass(frozen=True, slots=True)
class MemberCount:
    value: int
    exact: bool


@dataclass(frozen=True, slots=True)
class ExplicitMembership:
    segment: Segment
    added_at: datetime
    expires_at: datetime | None
    source: MembershipSource = MembershipSource.EXPLICIT


@dataclass(frozen=True, slots=True)
class MemberEdge:
    node: User
    cursor: str
    membership: ExplicitMembership


@dataclass(frozen=True, slots=True)
class MemberConnection:
    edges: list[MemberEdge]
    page_info: PageInfo

    @property
    def nodes(self) -> list[User]:
        return [edge.node for edge in self.edges]


async def member_count(
    segment: strawberry.Parent[Segment],
    info: Info,
    limit: Annotated[
        BigInt, strawberry.argument(description="How far to count, from 1 to 1 000 000; else BAD_USER_INPUT.")
    ] = COUNTED,
) -> MemberCount:
    if not 1 <= limit <= MOST_COUNTED:
        raise BadUserInput("limit", f"it is {limit}, and must be from 1 to {MOST_COUNTED}.")
    # Counting so many takes as long as showing one.
    info.context.budget.spend(limit // COUNTED_FOR_ONE)
    if segment.deleted_at is not None:
        return MemberCount(0, exact=True)
    async with info.context.querying() as conn:
        # One more says that there are more.
        found = await members.count(conn, segment.id, limit + 1)
    return MemberCount(min(found, limit), exact=found <= limit)


async def list_members(
    segment: strawberry.Parent[Segment], info: Info, first: First = 50, after: After = None
) -> MemberConnection:
    size = page_size(first, info.context.services.limits)
    position = _position(after)
    if segment.deleted_at is None:
        async with info.context.querying() as conn:
            found = await members.page(conn, segment.id, after=position, limit=size + 1)
    else:
        found = []
    info.context.budget.spend(len(found))
    page: Connection[Member] = connection(found, size, after, lambda member: encode_cursor(CURSOR, member.user_id))
    return MemberConnection(
        [
            MemberEdge(
                User(edge.node.user_id),
                edge.cursor,
                ExplicitMembership(segment, edge.node.added_at, edge.node.expires_at),
            )
            for edge in page.edges
        ],
        page.page_info,
    )


def _position(after: str | None) -> str:
    if after is None:
        return ""
    (user_id,) = decode_cursor(after, CURSOR, str)
    assert isinstance(user_id, str)
    if not is_user_id(user_id):
        raise bad_cursor()
    return user_id
