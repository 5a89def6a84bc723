"""Which segments a user was in at an instant of the past, as history tells it."""

from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from db import rollouts
from db.memberships import Membership, MembershipSource
from db.partitions import OLDEST
from db.segments import COLUMNS, Segment


@dataclass(frozen=True, slots=True)
class AsOf:
    # By the database's clock: nothing is known yet of that instant.
    in_future: bool
    # Where history begins; None unless the instant is before that and something that was then has been dropped.
    kept_since: datetime | None
    # Ordered by slug; empty when one of the above says why.
    memberships: list[Membership]


# An event at the very instant counts, so the last one up to it says whether there was a membership, and until when.
# Where the beginning was dropped with its month the membership's own row has it. If that is gone, too, or of a later
# membership, the next event tells that there was one: only what is there can end or change. It had begun before the
# history that is kept; and it had an expiry if that is how it ended.
MEMBERSHIPS = text(f"""
    WITH asked AS MATERIALIZED (
        SELECT CAST(:at AS timestamptz) AS at, CAST(:at AS timestamptz) > now() AS in_future, oldest,
               CASE WHEN :at < oldest AND EXISTS (SELECT FROM segments WHERE created_at < oldest) THEN oldest END
               AS kept_since
        FROM ({OLDEST}) AS partitions (oldest)
    ), told AS (
        SELECT segment_id, max(at) FILTER (WHERE at <= :at AND action = 'ADDED') AS added_at,
               (array_agg(action ORDER BY at DESC, action DESC) FILTER (WHERE at <= :at))[1] AS last_action,
               (array_agg(expires_at ORDER BY at DESC, action DESC) FILTER (WHERE at <= :at))[1] AS expires_at,
               (array_agg(action ORDER BY at, action) FILTER (WHERE at > :at))[1] AS next_action,
               min(at) FILTER (WHERE at > :at) AS next_at
        FROM membership_events WHERE user_id = :user_id GROUP BY segment_id
    ), explicit AS MATERIALIZED (
        SELECT segment_id, coalesce(told.added_at, m.added_at, asked.oldest) AS added_at, expiry.at AS expires_at
        FROM told FULL JOIN (
            SELECT segment_id, added_at, expires_at FROM memberships WHERE user_id = :user_id AND added_at <= :at
        ) AS m USING (segment_id)
        CROSS JOIN asked CROSS JOIN LATERAL (
            SELECT CASE WHEN last_action IN ('ADDED', 'EXPIRY_CHANGED') THEN told.expires_at
                        WHEN last_action IS NOT NULL OR next_action = 'ADDED' THEN NULL
                        WHEN next_action = 'EXPIRED' THEN next_at
                        WHEN next_action IS NULL THEN m.expires_at
                        ELSE 'infinity' END AS at
        ) AS expiry
        WHERE expiry.at > :at
    ), included AS (
        SELECT c.segment_id, lower(range) AS added_at
        FROM ({rollouts.covered("ARRAY[CAST(:user_id AS text)]")}) AS c CROSS JOIN unnest(c.ranges) AS range
        WHERE range @> CAST(:at AS timestamptz) AND NOT EXISTS (
            SELECT FROM exclusions
            WHERE user_id = :user_id AND segment_id = c.segment_id AND excluded_at <= :at AND ended_at > :at
        )
    ), found AS (
        SELECT segment_id, added_at, expires_at, '{MembershipSource.EXPLICIT}' AS source FROM explicit
        UNION ALL
        SELECT segment_id, added_at, 'infinity', '{MembershipSource.ROLLOUT}' FROM included
        WHERE segment_id NOT IN (SELECT segment_id FROM explicit)
    )
    SELECT asked.in_future, asked.kept_since, active.*
    FROM asked LEFT JOIN (
        SELECT timestamptz_send(added_at), timestamptz_send(expires_at), source, s.*
        FROM found JOIN (SELECT {COLUMNS} FROM segments) AS s ON s.id = found.segment_id
        WHERE s.deleted_at IS NULL OR s.deleted_at > :at
    ) AS active ON NOT asked.in_future AND asked.kept_since IS NULL
    ORDER BY active.slug, active.id
""")


async def memberships(conn: AsyncConnection, user_id: str, at: datetime) -> AsOf:
    """The memberships that were active then, with the segments as they are now."""
    rows = (await conn.execute(MEMBERSHIPS, {"user_id": user_id, "at": at})).all()
    found = [
        Membership(Segment(*segment), _microseconds(added), _microseconds(expires), MembershipSource(source))
        for _, _, added, expires, source, *segment in rows
        if source is not None
    ]
    return AsOf(rows[0].in_future, rows[0].kept_since, found)


def _microseconds(sent: bytes) -> int:
    return int.from_bytes(sent, "big", signed=True)
