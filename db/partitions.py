"""The monthly partitions of `membership_events`: made ahead of time, so that no write ever finds its month missing."""

from datetime import datetime

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

# This month and the next three: when the job fails there is a quarter of a year to notice.
AHEAD = 3

# The months, as YYYY_MM, that have a partition.
# Not each by to_regclass: that looks into a cache, where what another session makes while we wait for its lock is not
# yet.
MADE = """
    SELECT right(relname, 7) AS name FROM pg_inherits JOIN pg_class ON pg_class.oid = inhrelid
    WHERE inhparent = to_regclass('membership_events')
"""
# From the oldest one on: a month that nobody was there to make is needed still, for what expired in it. Or from an even
# older one, for history that is brought along.
MISSING = text(f"""
    WITH made AS ({MADE}), this AS (SELECT date_trunc('month', now() AT TIME ZONE 'UTC') AS month)
    SELECT to_char(month, 'YYYY_MM') AS name, month, month + interval '1 month' AS end
    FROM generate_series(
        (SELECT least(
            this.month - make_interval(months => :behind),
            (SELECT min(to_timestamp(name, 'YYYY_MM') AT TIME ZONE 'UTC') FROM made)
        ) FROM this),
        (SELECT this.month + make_interval(months => :ahead) FROM this),
        interval '1 month'
    ) AS month
    WHERE to_char(month, 'YYYY_MM') NOT IN (SELECT name FROM made)
    ORDER BY month
""")

# The instant from which on there is history.
OLDEST = f"SELECT min(to_timestamp(name || ' +00', 'YYYY_MM TZH')) FROM ({MADE}) AS made"


async def missing(conn: AsyncConnection, ahead: int = AHEAD) -> list[str]:
    """The months, as YYYY_MM, that have no partition, from the oldest that has one to `ahead` months from now."""
    return [row.name for row in await conn.execute(MISSING, {"ahead": ahead, "behind": 0})]


async def make(tx: AsyncConnection, ahead: int = AHEAD, *, behind: int = 0) -> list[str]:
    """Make the missing partitions, those of so many months before this one too, and return their months.

    Safe to run in several processes at once.
    """
    # Two makers of one month: the second waits, and finds it made.
    await tx.execute(text("SELECT pg_advisory_xact_lock(hashtext('membership_events partitions'))"))
    made = (await tx.execute(MISSING, {"ahead": ahead, "behind": behind})).all()
    for row in made:
        name = f"membership_events_{row.name}"
        # Made aside and then attached: attaching lets readers and writers of the other months go on.
        await tx.execute(text(f"CREATE TABLE {name} (LIKE membership_events INCLUDING DEFAULTS)"))
        bounds = f"FROM ('{row.month}Z') TO ('{row.end}Z')"
        await tx.execute(text(f"ALTER TABLE membership_events ATTACH PARTITION {name} FOR VALUES {bounds}"))
    return [row.name for row in made]


async def oldest(conn: AsyncConnection) -> datetime | None:
    """The instant from which on there is history; None when there is no partition."""
    instant: datetime | None = (await conn.execute(text(OLDEST))).scalar_one()
    return instant


async def past(conn: AsyncConnection, months: int) -> list[str]:
    """The months, as YYYY_MM, whose partitions lie more than so many whole months before this one, the oldest first."""
    result = await conn.execute(
        text(f"""
            SELECT name FROM ({MADE}) AS made
            WHERE name < to_char(now() AT TIME ZONE 'UTC' - make_interval(months => :months), 'YYYY_MM')
            ORDER BY name
        """),
        {"months": months},
    )
    return list(result.scalars())


async def summarize(tx: AsyncConnection) -> None:
    """Let the index over instants know of events that were just written; else whoever asks for the newest of a segment
    reads all of them, until the database does this by itself, within a minute or two. Gives up at once where the
    database is just about to.
    """
    await tx.execute(text("SET LOCAL lock_timeout = '50ms'"))
    await tx.execute(
        text("""
            SELECT brin_summarize_new_values(indexrelid) FROM pg_index
            JOIN pg_class ON pg_class.oid = indexrelid JOIN pg_am ON pg_am.oid = relam
            WHERE indrelid = to_regclass('membership_events_' || to_char(now() AT TIME ZONE 'UTC', 'YYYY_MM'))
              AND amname = 'brin'
        """)
    )


async def drop(tx: AsyncConnection, month: str) -> int:
    """Drop the month's partition, with all events in it: 1, or 0 while a membership that ended by then still waits to
    become an event.
    """
    needed = await tx.execute(
        text("""
            SELECT EXISTS (SELECT FROM memberships WHERE expires_at < ended.by AND expires_at < 'infinity')
                OR EXISTS (SELECT FROM segments WHERE deleted_at < ended.by AND cleaned_at IS NULL)
            FROM (SELECT to_timestamp(:month || ' +00', 'YYYY_MM TZH') + interval '1 month' AS by) AS ended
        """),
        {"month": month},
    )
    if needed.scalar_one():
        return 0
    # Everybody who reads or writes history waits behind us while we wait.
    await tx.execute(text("SET LOCAL lock_timeout = '250ms'"))
    await tx.execute(text(f"DROP TABLE membership_events_{month}"))
    return 1
