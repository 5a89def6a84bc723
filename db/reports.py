"""Reports of membership history: one statement, from the tables to CSV."""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from db import endings

# A report that takes longer is asked for in parts.
LONGEST_SECONDS = 24 * 3_600
# A spreadsheet runs what begins so. The apostrophe itself is among them, so that taking one away from the front of
# whatever has one gives the id again.
RUNNABLE = "'=', '+', '-', '@', ''''"


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
    chosen = ""
    if period.user_ids is not None:
        arguments.append(list(period.user_ids))
        chosen += f" AND m.user_id = ANY(${len(arguments)}::text[])"
    if period.segment_ids is not None:
        arguments.append(list(period.segment_ids))
        chosen += f" AND m.segment_id = ANY(${len(arguments)}::integer[])"
    return EVENTS.format(chosen=chosen), arguments


# What no job has tidied yet is part of it: memberships of deleted segments, and expired ones of all others. Each of
# these two is found by an index of its own.
EVENTS = f"""
    SELECT CASE WHEN left(e.user_id, 1) IN ({RUNNABLE}) THEN '''' || e.user_id ELSE e.user_id END AS user_id,
           s.slug AS segment, e.action AS operation,
           to_char(e.at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"') AS at
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
          AND m.expires_at >= $1 AND m.expires_at < $2 AND m.expires_at <= now(){{chosen}}
    ) AS e JOIN segments AS s ON s.id = e.segment_id
    ORDER BY e.user_id, e.at, e.action, e.segment_id
"""


async def copy(conn: AsyncConnection, period: Period, output: Callable[[bytes], Awaitable[None]]) -> int:
    """Give the report's bytes to `output`, as they come and no faster than it takes them; returns the events' number.

    CSV after RFC 4180, in UTF-8, ordered by user, instant, kind of event and segment: the same events, the same bytes.
    Holds one snapshot until the last byte is taken.
    """

    async def with_line_ends(chunk: bytes) -> None:
        # COPY ends lines with LF alone. No id or slug has a control character, so there are no others.
        await output(chunk.replace(b"\n", b"\r\n"))

    statement, arguments = _statement(period)
    driver = (await conn.get_raw_connection()).driver_connection
    assert driver is not None
    try:
        status: str = await driver.copy_from_query(
            statement, *arguments, output=with_line_ends, format="csv", header=True, timeout=LONGEST_SECONDS
        )
    except BaseException:
        # Broken off in its middle it is of no use to anybody, and whoever got it next would wait for its end.
        await conn.invalidate()
        raise
    return int(status.removeprefix("COPY "))


async def ids_by_slug(conn: AsyncConnection, slugs: Sequence[str]) -> dict[str, list[int]]:
    """The ids of all segments, live and deleted, that each slug has ever named; a slug that never did is absent."""
    result = await conn.execute(
        text("SELECT slug, array_agg(id ORDER BY id) AS ids FROM segments WHERE slug = ANY(:slugs) GROUP BY slug"),
        {"slugs": list(slugs)},
    )
    return {row.slug: row.ids for row in result}
