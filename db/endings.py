"""Memberships that have ended, by expiry or with their segment: what their end is, and how it becomes history.

Reads leave them out from their end on. A job moves them out later, and then writes the very event that every answer has
shown since: whether it has run makes no difference to anybody.
"""

from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

# Of a row `m` of memberships with its segment `s`. Whatever comes first has ended it.
AT = "least(m.expires_at, s.deleted_at)"
ACTION = "CAST(CASE WHEN s.deleted_at < m.expires_at THEN 'SEGMENT_DELETED' ELSE 'EXPIRED' END AS membership_action)"
OPERATION_ID = "CASE WHEN s.deleted_at < m.expires_at THEN s.deleted_by END"

# What is `gone` becomes history, even if no segment explains it.
RECORD = f"""
    INSERT INTO membership_events (user_id, segment_id, action, at, operation_id)
    SELECT m.user_id, m.segment_id, {ACTION}, {AT}, {OPERATION_ID}
    FROM gone AS m LEFT JOIN segments AS s ON s.id = m.segment_id
"""

# One statement, so no membership is in neither table, or in both. What somebody else has locked is passed over: it is
# being ended, or begun again, at this moment. Dead entries of the index have to be passed too, until vacuum removes
# them: so a chunk begins where the one before it ended.
PURGE = text(f"""
    WITH gone AS (
        DELETE FROM memberships WHERE ctid = ANY (ARRAY(
            SELECT ctid FROM memberships
            WHERE expires_at >= :begin AND expires_at <= :end AND expires_at < 'infinity'
            ORDER BY expires_at LIMIT :limit FOR UPDATE SKIP LOCKED
        ))
        RETURNING user_id, segment_id, expires_at
    ), recorded AS ({RECORD})
    SELECT count(*) AS rows, max(expires_at) AS last FROM gone
""")

# In the order of users, and never of a live segment. Waits for a row that the purge is moving, which never waits.
CLEAN = text(f"""
    WITH members AS MATERIALIZED (
        SELECT ctid FROM memberships WHERE segment_id = :segment_id AND user_id > :after
          AND EXISTS (SELECT FROM segments WHERE id = :segment_id AND deleted_at IS NOT NULL)
        ORDER BY user_id LIMIT :limit FOR UPDATE
    ), gone AS (
        DELETE FROM memberships WHERE ctid = ANY (ARRAY(SELECT ctid FROM members))
        RETURNING user_id, segment_id, expires_at
    ), recorded AS ({RECORD})
    SELECT count(*) AS rows, max(user_id) AS last FROM gone
""")


@dataclass(frozen=True, slots=True)
class Purged:
    rows: int
    # The latest expiry among them; None when there were none.
    last: datetime | None


@dataclass(frozen=True, slots=True)
class Cleaned:
    rows: int
    # The last user among them; None when there were none.
    last: str | None


async def purge(tx: AsyncConnection, *, begin: datetime, end: datetime, limit: int) -> Purged:
    """Move out up to `limit` memberships that expire in [begin, end], the earliest first.

    Every transaction that dates events before `end` must have ended (db/transactions.py): otherwise it could take a
    membership for alive that is gone. Safe to run in several places at once.
    """
    result = await tx.execute(PURGE, {"begin": begin, "end": end, "limit": limit})
    return Purged(*result.one())


async def count(conn: AsyncConnection, end: datetime) -> int:
    """How many memberships that expired by `end` are waiting to be moved out."""
    result = await conn.execute(
        text("SELECT count(*) FROM memberships WHERE expires_at <= :end AND expires_at < 'infinity'"), {"end": end}
    )
    found: int = result.scalar_one()
    return found


async def clean(tx: AsyncConnection, segment_id: int, *, after: str, limit: int) -> Cleaned:
    """Move out up to `limit` memberships of a deleted segment, of users behind `after`."""
    result = await tx.execute(CLEAN, {"segment_id": segment_id, "after": after, "limit": limit})
    return Cleaned(*result.one())


async def count_of(conn: AsyncConnection, segment_id: int) -> int:
    """How many memberships of a segment are there, ended ones among them."""
    result = await conn.execute(
        text("SELECT count(*) FROM memberships WHERE segment_id = :segment_id"), {"segment_id": segment_id}
    )
    found: int = result.scalar_one()
    return found


async def mark_clean(tx: AsyncConnection, segment_id: int) -> bool:
    """Note that a deleted segment has no memberships left; False when it has."""
    result = await tx.execute(
        text("""
            UPDATE segments SET cleaned_at = coalesce(cleaned_at, clock_timestamp())
            WHERE id = :segment_id AND deleted_at IS NOT NULL
              AND NOT EXISTS (SELECT FROM memberships WHERE segment_id = :segment_id)
        """),
        {"segment_id": segment_id},
    )
    return bool(result.rowcount)
