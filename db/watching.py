"""What has happened to the memberships of users who are watched, since somebody has looked last."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from db import endings, rollouts
from db.history import ACTOR, ACTOR_OF_ROLLOUT, MembershipEvent, Position
from db.memberships import MembershipSource
from db.tables import MembershipAction

# Longer than any transaction that dates events may last: a list of millions that is swapped (db/connections.py). It is
# looked back so far only until it is known that there is none.
LONGEST_HOURS = 4
# Of one user and one look, the newest. Whoever is changed more often is looked at anew.
MOST_EVENTS = 1_000

# The beginning of the statement is before its own transaction id: whoever takes a later id dates what it writes later
# than that. The memberships that have ended and wait for their job are told as that job will write them (see
# db/history.py).
OF_USERS = f"""
    WITH asked AS MATERIALIZED (
        SELECT user_id COLLATE "C" AS user_id, coalesce(since, now() - interval '{LONGEST_HOURS} hours') AS since
        FROM unnest(CAST(:user_ids AS text[]), CAST(:since AS timestamptz[])) AS asked (user_id, since)
    ), found AS (
        SELECT e.* FROM asked CROSS JOIN LATERAL (
            SELECT user_id, segment_id, action, at, expires_at, operation_id, '{MembershipSource.EXPLICIT}' AS source,
                   count(*) OVER () AS written
            FROM membership_events
            WHERE user_id = asked.user_id AND at >= asked.since
              AND at >= coalesce(CAST(:oldest AS timestamptz), now() - interval '{LONGEST_HOURS} hours')
            ORDER BY at DESC, action DESC, segment_id DESC LIMIT :limit
        ) AS e
        UNION ALL
        SELECT m.user_id, m.segment_id, {endings.ACTION}, {endings.AT}, CAST(NULL AS timestamptz),
               {endings.OPERATION_ID}, '{MembershipSource.EXPLICIT}', 0
        FROM asked JOIN memberships AS m ON m.user_id = asked.user_id JOIN segments AS s ON s.id = m.segment_id
        WHERE {endings.AT} <= now() AND {endings.AT} >= asked.since{{besides}}
    ), told AS (
        SELECT e.user_id, e.segment_id, s.slug, e.action, e.at, nullif(e.expires_at, 'infinity') AS expires_at,
               e.source, {{actor}} AS actor, e.written
        FROM found AS e JOIN segments AS s ON s.id = e.segment_id
    ), taken AS MATERIALIZED (
        SELECT CASE WHEN :mark THEN CAST(CAST(pg_current_xact_id() AS text) AS bigint) END AS xid
    )
    SELECT now() AS looked_at, pg_postmaster_start_time() AS server_started, (SELECT xid FROM taken) AS own_xid,
           CAST(CAST(pg_snapshot_xmin(pg_current_snapshot()) AS text) AS bigint) AS begin_xid,
           CAST(CAST(pg_snapshot_xmax(pg_current_snapshot()) AS text) AS bigint) AS end_xid,
           (SELECT version FROM catalogue) AS catalogue_version,
           asked.user_id AS watched,
           (SELECT min(expires_at) FROM memberships
            WHERE user_id = asked.user_id AND expires_at > now() AND expires_at < 'infinity') AS next_expiry,
           told.*
    FROM asked LEFT JOIN told ON told.user_id = asked.user_id
    ORDER BY told.at, told.action, told.segment_id
"""
BESIDES = f"""
        UNION ALL
        SELECT edges.user_id, edges.segment_id, edges.action, edges.at, NULL, NULL, '{MembershipSource.ROLLOUT}', 0
        FROM ({rollouts.events("CAST(:user_ids AS text[])")}) AS edges JOIN asked ON asked.user_id = edges.user_id
        WHERE edges.at >= asked.since"""
IN_NO_ROLLOUT = text(OF_USERS.format(besides="", actor=ACTOR))
IN_ROLLOUTS = text(
    OF_USERS.format(
        besides=BESIDES,
        actor=f"CASE e.source WHEN '{MembershipSource.ROLLOUT}' THEN {ACTOR_OF_ROLLOUT} ELSE {ACTOR} END",
    )
)


@dataclass(slots=True)
class Watched:
    """One user as the look has found it."""

    # The oldest first.
    events: dict[Position, MembershipEvent] = field(default_factory=dict)
    # When something ends by itself.
    next_expiry: datetime | None = None
    # Events in the history, those among them that were not read.
    written: int = 0

    @property
    def too_many(self) -> bool:
        """Whether there are more events than were read."""
        return self.written > MOST_EVENTS


@dataclass(frozen=True, slots=True)
class Look:
    # By the database's clock, before anything was looked at.
    at: datetime
    server_started: datetime
    # Every transaction before this one has ended.
    begin_xid: int
    # The first one behind all that have ended.
    end_xid: int
    # The look's own, if it took one: later ones have begun after `at`.
    own_xid: int | None
    catalogue_version: int
    users: dict[str, Watched]

    @property
    def beginning(self) -> datetime:
        """From where on it has looked at those without an instant."""
        return self.at - timedelta(hours=LONGEST_HOURS)


async def look(conn: AsyncConnection, since: Mapping[str, datetime | None], *, rolled_out: bool, mark: bool) -> Look:
    """The events of these users, each from an instant on, and where to look from the next time.

    Without an instant: as far back as a transaction that is at work may date events. Those by rollouts are among them
    where there are any. With `mark` it takes a transaction id of its own.
    """
    known = [instant for instant in since.values() if instant is not None]
    result = await conn.execute(
        IN_ROLLOUTS if rolled_out else IN_NO_ROLLOUT,
        {
            "user_ids": list(since),
            "since": list(since.values()),
            "oldest": min(known) if len(known) == len(since) else None,
            "limit": MOST_EVENTS,
            "mark": mark,
        },
    )
    rows = result.all()
    users: dict[str, Watched] = {}
    for row in rows:
        watched = users.setdefault(row.watched, Watched(next_expiry=row.next_expiry))
        if row.segment_id is not None:
            event = _event(row)
            watched.events[Position(event.at, event.action, event.segment_id)] = event
            watched.written = max(watched.written, row.written)
    first = rows[0]
    return Look(
        first.looked_at,
        first.server_started,
        first.begin_xid,
        first.end_xid,
        first.own_xid,
        first.catalogue_version,
        users,
    )


def _event(row: Any) -> MembershipEvent:
    return MembershipEvent(
        row.watched,
        row.segment_id,
        row.slug,
        MembershipAction(row.action),
        row.at,
        row.expires_at,
        MembershipSource(row.source),
        row.actor,
    )
