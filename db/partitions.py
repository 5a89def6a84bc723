"""The monthly partitions of `membership_events`: made ahead of time, so that no write ever finds its month missing."""

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

# This month and the next three: when the job fails there is a quarter of a year to notice.
AHEAD = 3

# Not by to_regclass: that looks into a cache, where what another session makes while we wait for its lock is not yet.
MISSING = text("""
    SELECT to_char(month, 'YYYY_MM') AS name, month, month + interval '1 month' AS end
    FROM generate_series(
        date_trunc('month', now() AT TIME ZONE 'UTC'),
        date_trunc('month', now() AT TIME ZONE 'UTC') + make_interval(months => :ahead),
        interval '1 month'
    ) AS month
    WHERE NOT EXISTS (
        SELECT FROM pg_inherits JOIN pg_class ON pg_class.oid = inhrelid
        WHERE inhparent = to_regclass('membership_events')
            AND relname = 'membership_events_' || to_char(month, 'YYYY_MM')
    )
    ORDER BY month
""")


async def missing(conn: AsyncConnection, ahead: int = AHEAD) -> list[str]:
    """The months, as YYYY_MM, that have no partition yet, from this one to `ahead` months on."""
    return [row.name for row in await conn.execute(MISSING, {"ahead": ahead})]


async def make(tx: AsyncConnection, ahead: int = AHEAD) -> list[str]:
    """Make the missing partitions and return their months. Safe to run in several processes at once."""
    # Two makers of one month: the second waits, and finds it made.
    await tx.execute(text("SELECT pg_advisory_xact_lock(hashtext('membership_events partitions'))"))
    made = (await tx.execute(MISSING, {"ahead": ahead})).all()
    for row in made:
        name = f"membership_events_{row.name}"
        # Made aside and then attached: attaching lets readers and writers of the other months go on.
        await tx.execute(text(f"CREATE TABLE {name} (LIKE membership_events INCLUDING DEFAULTS)"))
        bounds = f"FROM ('{row.month}Z') TO ('{row.end}Z')"
        await tx.execute(text(f"ALTER TABLE membership_events ATTACH PARTITION {name} FOR VALUES {bounds}"))
    return [row.name for row in made]
