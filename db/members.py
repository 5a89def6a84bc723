"""The members of a segment: a page of them, their number, and all of them as a file."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from db import csv_copies

# Those that were added, and have not expired.
MEMBERS = f"""
    SELECT {csv_copies.defused("user_id")} AS user_id, {csv_copies.instant("added_at")} AS added_at,
           {csv_copies.instant("nullif(expires_at, 'infinity')")} AS expires_at
    FROM memberships AS m
    WHERE segment_id = $1 AND expires_at > now()
      AND EXISTS (SELECT FROM segments WHERE id = $1 AND deleted_at IS NULL)
    ORDER BY m.user_id
"""


@dataclass(frozen=True, slots=True)
class Member:
    user_id: str
    added_at: datetime
    expires_at: datetime | None


async def page(conn: AsyncConnection, segment_id: int, *, after: str, limit: int) -> list[Member]:
    """Up to `limit` members in the order of their ids, behind the user `after`."""
    result = await conn.execute(
        text("""
            SELECT user_id, added_at, nullif(expires_at, 'infinity') FROM memberships
            WHERE segment_id = :segment_id AND user_id > :after AND expires_at > now()
            ORDER BY user_id LIMIT :limit
        """),
        {"segment_id": segment_id, "after": after, "limit": limit},
    )
    return [Member(*row) for row in result]


async def count(conn: AsyncConnection, segment_id: int, limit: int) -> int:
    """How many members there are; `limit` when there are as many, or more."""
    result = await conn.execute(
        text("""
            SELECT count(*) FROM (
                SELECT FROM memberships WHERE segment_id = :segment_id AND expires_at > now() LIMIT :limit
            ) AS members
        """),
        {"segment_id": segment_id, "limit": limit},
    )
    found: int = result.scalar_one()
    return found


async def copy(conn: AsyncConnection, segment_id: int, output: Callable[[bytes], Awaitable[None]]) -> int:
    """Give the bytes of all members to `output`: CSV, in the order of their ids; returns how many they are."""
    return await csv_copies.copy(conn, MEMBERS, [segment_id], output)
