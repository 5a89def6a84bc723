"""Who is in which segment, until when."""

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from db import buckets
from db.clock import ALWAYS, as_datetime
from db.segments import PATIENCE, Segment

# One membership of a packed list: segment id, added_at, expires_at; instants in microseconds since db.clock.EPOCH.
# PostgreSQL writes the very same bytes (OF_USERS), so nothing on the way to the cache and back is parsed. A user whom
# the segment's rollout may not take in is there with an expiry of EXCLUDED.
PACKED = struct.Struct(">iqq")
EXCLUDED = ALWAYS


class MembershipSource(StrEnum):
    """Why a user is in a segment."""

    EXPLICIT = "EXPLICIT"
    ROLLOUT = "ROLLOUT"


@dataclass(frozen=True, slots=True)
class Membership:
    segment: Segment
    added: int
    expires: int
    source: MembershipSource = MembershipSource.EXPLICIT

    @property
    def added_at(self) -> datetime:
        added_at = as_datetime(self.added)
        assert added_at is not None
        return added_at

    @property
    def expires_at(self) -> datetime | None:
        return as_datetime(self.expires)


@dataclass(frozen=True, slots=True)
class Packed:
    """The explicit memberships of some users, as of one snapshot."""

    catalogue_version: int
    # By user id; a user without any is absent.
    lists: dict[str, bytes]


# The catalogue's version comes from the same snapshot: whoever knows that version knows every segment listed.
OF_USERS = text("""
    SELECT NULL AS user_id, NULL AS packed, version FROM catalogue
    UNION ALL
    SELECT user_id,
           string_agg(int4send(segment_id) || timestamptz_send(added_at) || timestamptz_send(expires_at), ''
                      ORDER BY segment_id),
           NULL
    FROM (
        SELECT user_id, segment_id, added_at, expires_at FROM memberships
        WHERE user_id = ANY(:user_ids) AND expires_at > now()
        UNION ALL
        SELECT user_id, segment_id, excluded_at, '-infinity' FROM exclusions
        WHERE user_id = ANY(:user_ids) AND ended_at = 'infinity'
    ) AS listed
    GROUP BY user_id
""")


async def of_users(conn: AsyncConnection, user_ids: Sequence[str]) -> Packed:
    """The memberships that have not expired; those of deleted segments are among them until they are cleaned up."""
    version, lists = 0, {}
    for user_id, packed, catalogue_version in await conn.execute(OF_USERS, {"user_ids": list(user_ids)}):
        if user_id is None:
            version = catalogue_version
        else:
            lists[user_id] = packed
    return Packed(version, lists)


def unpacked(packed: bytes | memoryview) -> Iterator[tuple[int, int, int]]:
    """(segment id, added, expires) of each membership, ordered by segment id."""
    return PACKED.iter_unpack(packed)


LOCK = text("""
    SELECT set_config('lock_timeout', :patience, true),
           pg_advisory_xact_lock(hashtext('memberships'), hashtext(:user_id))
""")


async def lock(tx: AsyncConnection, user_id: str) -> None:
    """Let no other transaction change this user's memberships until this one ends.

    Whoever holds it may date its events by the clock: they come after those of everyone who held it before.
    """
    # Whoever holds it may be waiting for a bulk change.
    await tx.execute(LOCK, {"user_id": user_id, "patience": PATIENCE})


async def next_instant(tx: AsyncConnection, user_id: str) -> datetime:
    """When a change of this user's memberships happens: now, and after every event that the user has already."""
    # A clock that was set back, or that of a new primary, may lag behind what the old one wrote.
    result = await tx.execute(
        text("""
            SELECT greatest(clock_timestamp(), (
                SELECT max(at) + interval '1 microsecond' FROM (
                    SELECT at FROM membership_events WHERE user_id = :user_id AND at >= now()
                    UNION ALL
                    SELECT excluded_at FROM exclusions WHERE user_id = :user_id AND excluded_at >= now()
                ) AS later
            ))
        """),
        {"user_id": user_id},
    )
    instant: datetime = result.scalar_one()
    return instant


# One statement, so no membership is without its event. The unchanged ones are not written at all.
ADD = text("""
    WITH written AS (
        INSERT INTO memberships AS m (user_id, segment_id, added_at, expires_at)
        SELECT CAST(:user_id AS text), segment_id, CAST(:at AS timestamptz),
               coalesce(CAST(:expires_at AS timestamptz), 'infinity')
        FROM unnest(CAST(:segment_ids AS integer[])) AS segment_id ORDER BY segment_id
        ON CONFLICT (user_id, segment_id) DO UPDATE
        SET added_at = CASE WHEN m.expires_at > :at THEN m.added_at ELSE excluded.added_at END,
            expires_at = excluded.expires_at
        WHERE m.expires_at <= :at OR m.expires_at <> excluded.expires_at
        RETURNING new.segment_id, new.expires_at, old.expires_at AS expired_at,
                  coalesce(old.expires_at > :at, false) AS was_member
    ), recorded AS (
        INSERT INTO membership_events (user_id, segment_id, action, at, expires_at, operation_id)
        SELECT CAST(:user_id AS text), segment_id, CAST('EXPIRED' AS membership_action), expired_at, NULL, NULL
        FROM written WHERE expired_at <= :at
        UNION ALL
        SELECT CAST(:user_id AS text), segment_id,
               CAST(CASE WHEN was_member THEN 'EXPIRY_CHANGED' ELSE 'ADDED' END AS membership_action),
               CAST(:at AS timestamptz), expires_at, CAST(:operation_id AS bigint)
        FROM written
    )
    SELECT segment_id, was_member FROM written
""")


async def add(
    tx: AsyncConnection,
    user_id: str,
    segment_ids: Sequence[int],
    *,
    at: datetime,
    expires_at: datetime | None,
    operation_id: int,
) -> tuple[frozenset[int], frozenset[int]]:
    """Make the user a member until `expires_at`, or for good, and record what that began, moved and found expired.

    Returns the ids of segments whose memberships began, and of those whose expiry moved; the rest were so already.
    """
    result = await tx.execute(
        ADD,
        {
            "user_id": user_id,
            "segment_ids": list(segment_ids),
            "at": at,
            "expires_at": expires_at,
            "operation_id": operation_id,
        },
    )
    rows = result.all()
    began = frozenset(row.segment_id for row in rows if not row.was_member)
    return began, frozenset(row.segment_id for row in rows if row.was_member)


REMOVE = text("""
    WITH gone AS (
        DELETE FROM memberships
        WHERE user_id = :user_id AND segment_id = ANY(:segment_ids) AND expires_at > :at
        RETURNING segment_id
    ), recorded AS (
        INSERT INTO membership_events (user_id, segment_id, action, at, operation_id)
        SELECT CAST(:user_id AS text), segment_id, 'REMOVED', CAST(:at AS timestamptz),
               CAST(:operation_id AS bigint)
        FROM gone
    )
    SELECT segment_id FROM gone
""")


async def remove(
    tx: AsyncConnection, user_id: str, segment_ids: Sequence[int], *, at: datetime, operation_id: int
) -> frozenset[int]:
    """End the memberships that are there, record it, and return the ids of their segments.

    What a rollout takes in is not there: `exclude` keeps it out.
    """
    result = await tx.execute(
        REMOVE, {"user_id": user_id, "segment_ids": list(segment_ids), "at": at, "operation_id": operation_id}
    )
    return frozenset(result.scalars())


# Who was in by the percentage alone has left by this, and no other row tells of it.
EXCLUDE = text(f"""
    WITH written AS (
        INSERT INTO exclusions (user_id, segment_id, excluded_at, operation_id)
        SELECT CAST(:user_id AS text), segment_id, CAST(:at AS timestamptz), CAST(:operation_id AS bigint)
        FROM unnest(CAST(:segment_ids AS integer[])) AS segment_id ORDER BY segment_id
        ON CONFLICT (user_id, segment_id) WHERE ended_at = 'infinity' DO NOTHING
        RETURNING user_id, segment_id
    )
    SELECT w.segment_id FROM written AS w JOIN segments AS s ON s.id = w.segment_id
    WHERE {buckets.sql("s.seed", "w.user_id")} < s.rollout
""")


async def exclude(
    tx: AsyncConnection, user_id: str, segment_ids: Sequence[int], *, at: datetime, operation_id: int
) -> frozenset[int]:
    """Let the rollouts of these segments take the user in no more, and return the ids of those that did."""
    result = await tx.execute(
        EXCLUDE, {"user_id": user_id, "segment_ids": list(segment_ids), "at": at, "operation_id": operation_id}
    )
    return frozenset(result.scalars())


async def end_exclusions(tx: AsyncConnection, user_id: str, segment_ids: Sequence[int], *, at: datetime) -> None:
    """Let the rollouts of these segments take the user in again."""
    await tx.execute(
        text("""
            UPDATE exclusions SET ended_at = :at
            WHERE user_id = :user_id AND segment_id = ANY(:segment_ids) AND ended_at = 'infinity'
        """),
        {"user_id": user_id, "segment_ids": list(segment_ids), "at": at},
    )
