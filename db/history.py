"""What happened to memberships.

Rows are only ever added. What no job has tidied yet is part of every answer, and so is what rollouts have done, of
which there are no rows.
"""

from dataclasses import dataclass
from datetime import UTC, datetime

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from db import endings, rollouts
from db.memberships import MembershipSource
from db.tables import MembershipAction


@dataclass(frozen=True, slots=True)
class MembershipEvent:
    user_id: str
    segment_id: int
    slug: str
    action: MembershipAction
    at: datetime
    expires_at: datetime | None
    source: MembershipSource
    actor: str


@dataclass(frozen=True, slots=True)
class Position:
    """Where an event stands among those of its user: no two are equal, written already or still waiting for a job.

    Nor is one of a rollout equal to another: where it begins or ends, the user is no member by hand, so such a
    membership neither begins nor ends there in the same way.
    """

    at: datetime
    action: MembershipAction
    segment_id: int


# Memberships that have ended, by expiry or with their segment, and still wait for the job that moves them out are
# shown as the events that the job will write. The newest partitions come first, so a first page reads only those,
# unless a rollout has reached the user: only then there is more `besides`.
OF_USER = f"""
    WITH written AS (
        SELECT segment_id, action, at, expires_at, operation_id, '{MembershipSource.EXPLICIT}' AS source
        FROM membership_events
        WHERE user_id = :user_id AND at >= :since AND at < :until AND at <= :before_at
          AND (at, action, segment_id) < (:before_at, CAST(:before_action AS membership_action), :before_id)
        ORDER BY at DESC, action DESC, segment_id DESC LIMIT :limit
    ), unwritten AS (
        SELECT m.segment_id, {endings.ACTION} AS action, {endings.AT} AS at, CAST(NULL AS timestamptz) AS expires_at,
               {endings.OPERATION_ID} AS operation_id, '{MembershipSource.EXPLICIT}' AS source
        FROM memberships AS m JOIN segments AS s ON s.id = m.segment_id
        WHERE m.user_id = :user_id AND {endings.AT} <= now(){{besides}}
    ), page AS (
        SELECT CAST(:user_id AS text) AS user_id, events.* FROM (
            SELECT * FROM written
            UNION ALL
            SELECT * FROM unwritten
            WHERE at >= :since AND at < :until
              AND (at, action, segment_id) < (:before_at, CAST(:before_action AS membership_action), :before_id)
        ) AS events
        ORDER BY at DESC, action DESC, segment_id DESC LIMIT :limit
    )
    SELECT e.segment_id, s.slug, e.action, e.at, nullif(e.expires_at, 'infinity'), e.source, {{actor}}
    FROM page AS e JOIN segments AS s ON s.id = e.segment_id
    ORDER BY e.at DESC, e.action DESC, e.segment_id DESC
"""
BESIDES = f"""
        UNION ALL
        SELECT segment_id, action, at, NULL, NULL, '{MembershipSource.ROLLOUT}'
        FROM ({rollouts.events("ARRAY[CAST(:user_id AS text)]")}) AS edges"""
ACTOR = "coalesce((SELECT client FROM operations WHERE id = e.operation_id), 'purge')"
ACTOR_OF_ROLLOUT = f"coalesce((SELECT client FROM operations WHERE id = {rollouts.OPERATION_ID}), 'rollout')"
OF_USER_IN_NO_ROLLOUT = text(OF_USER.format(besides="", actor=ACTOR))
OF_USER_IN_ROLLOUTS = text(
    OF_USER.format(
        besides=BESIDES,
        actor=f"CASE e.source WHEN '{MembershipSource.ROLLOUT}' THEN {ACTOR_OF_ROLLOUT} ELSE {ACTOR} END",
    )
)
BEGINNING = datetime(1, 1, 1, tzinfo=UTC)
# No event is that late: an expiry may be, and is an event only when it has passed.
END = datetime(9999, 12, 31, tzinfo=UTC)
LAST = Position(END, MembershipAction.ADDED, 0)


async def of_user(
    conn: AsyncConnection,
    user_id: str,
    *,
    since: datetime | None,
    until: datetime | None,
    before: Position | None,
    limit: int,
) -> list[MembershipEvent]:
    """Up to `limit` events in [since, until), newest first, that stand before that position."""
    position = before or LAST
    # Where there is nothing to work out it is not even planned. A rollout that reaches the user between these two
    # statements does so after the question was asked.
    reached = await rollouts.reaches(conn, user_id)
    result = await conn.execute(
        OF_USER_IN_ROLLOUTS if reached else OF_USER_IN_NO_ROLLOUT,
        {
            "user_id": user_id,
            "since": since or BEGINNING,
            "until": until or END,
            "before_at": position.at,
            "before_action": position.action.value,
            "before_id": position.segment_id,
            "limit": limit,
        },
    )
    return [
        MembershipEvent(
            user_id, segment_id, slug, MembershipAction(action), at, expires_at, MembershipSource(source), actor
        )
        for segment_id, slug, action, at, expires_at, source, actor in result
    ]
