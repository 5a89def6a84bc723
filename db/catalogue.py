"""The version of all segments together, and what changed since one of them."""

from dataclasses import dataclass

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from db.segments import COLUMNS, Segment

# One statement, so the version and the segments are of one snapshot.
CHANGES = text(f"""
    SELECT catalogue.version AS catalogue_version, clock.*, changed.*
    FROM catalogue
    CROSS JOIN (SELECT timestamptz_send(clock_timestamp()) AS clock) AS clock
    LEFT JOIN (SELECT {COLUMNS}, version FROM segments) AS changed ON changed.version > :version
    ORDER BY changed.id
""")


@dataclass(frozen=True, slots=True)
class Changes:
    version: int
    # The database's clock, in microseconds since db.clock.EPOCH.
    clock: int
    # Live and deleted ones, each once, as it is now.
    segments: list[Segment]


async def since(conn: AsyncConnection, version: int) -> Changes:
    """The segments that were created, changed or deleted after that version; all of them after -1."""
    rows = (await conn.execute(CHANGES, {"version": version})).all()
    segments = [Segment(*row[2:8]) for row in rows if row.id is not None]
    return Changes(rows[0].catalogue_version, int.from_bytes(rows[0].clock, "big", signed=True), segments)
