"""Reports of membership history: one statement, from the tables to CSV."""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from db import csv_copies, endings, rollouts


@dataclass(frozen=True, slots=True)
class Period:
    """Which events a report has: those in [since, until)."""

    since: datetime
    until: datetime
    # None: all of them.
    user_ids: Sequence[str] | None
    segment_ids: Sequence[int] | None


def _statement(period: Period) -> tuple[str, list[object]]:
    arguments: list[object] = [period.since, period.until]
    chosen, chosen_segments, of_rollouts = "", "", ""
    if period.segment_ids is not None:
        arguments.append(list(period.segment_ids))
        chosen += f" AND m.segment_id = ANY(${len(arguments)}::integer[])"
        chosen_segments = f" AND s.id = ANY(${len(arguments)}::integer[])"
    if period.user_ids is not None:
        arguments.append(list(period.user_ids))
        users = f"${len(arguments)}::text[]"
        chosen += f" AND m.user_id = ANY({users})"
        of_rollouts = OF_ROLLOUTS.format(events=rollouts.events(users, chosen_segments))
    return EVENTS.format(chosen=chosen, of_rollouts=of_rollouts), arguments


# Whom a rollout takes in is known of a user who is named: nothing lists everybody there is.
OF_ROLLOUTS = """
        UNION ALL
        SELECT r.user_id, r.segment_id, r.action, r.at FROM ({events}) AS r WHERE r.at >= $1 AND r.at < $2"""
# What no job has tidied yet is part of it: memberships of deleted segments, and expired ones of all others. Each of
# these two is found by an index of its own.
EVENTS = f"""
    SELECT {csv_copies.defused("e.user_id")} AS user_id, s.slug AS segment, e.action AS operation,
           {csv_copies.instant("e.at")} AS at
    FROM (
        SELECT m.user_id, m.segment_id, m.action, m.at FROM membership_events AS m
        WHERE m.at >= $1 AND m.at < $2{{chosen}}
        UNION ALL
        SELECT m.user_id, m.segment_id, {endings.ACTION}, {endings.AT}
        FROM segments AS s JOIN memberships AS m ON m.segment_id = s.id
        WHERE s.deleted_at IS NOT NULL AND s.cleaned_at IS NULL
          AND {endings.AT} >= $1 AND {endings.AT} < $2{{chosen}}
        UNION ALL
        SELECT m.user_id, m.segment_id, {endings.ACTION}, {endings.AT}
        FROM segments AS s JOIN memberships AS m ON m.segment_id = s.id
        WHERE s.deleted_at IS NULL AND m.expires_at < 'infinity'
          AND m.expires_at >= $1 AND m.expires_at < $2 AND m.expires_at <= now(){{chosen}}{{of_rollouts}}
    ) AS e JOIN segments AS s ON s.id = e.segment_id
    ORDER BY e.user_id, e.at, e.action, e.segment_id
"""


async def copy(conn: AsyncConnection, period: Period, output: Callable[[bytes], Awaitable[None]]) -> int:
    """Give the report's bytes to `output`; returns the events' number.

    CSV, ordered by user, instant, kind of event and segment: the same events, the same bytes.
    """
    statement, arguments = _statement(period)
    return await csv_copies.copy(conn, statement, arguments, output)


async def ids_by_slug(conn: AsyncConnection, slugs: Sequence[str]) -> dict[str, list[int]]:
    """The ids of all segments, live and deleted, that each slug has ever named; a slug that never did is absent."""
    result = await conn.execute(
        text("SELECT slug, array_agg(id ORDER BY id) AS ids FROM segments WHERE slug = ANY(:slugs) GROUP BY slug"),
        {"slugs": list(slugs)},
    )
    return {row.slug: row.ids for row in result}
