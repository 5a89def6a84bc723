"""The version of all segments together, and what changed since one of them."""

import struct
from dataclasses import dataclass, fields

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from db.buckets import bucket
from db.segments import COLUMNS, Segment

# One statement, so the version and the segments are of one snapshot.
CHANGES = text(f"""
    SELECT catalogue.version AS catalogue_version, clock.*, changed.*,
           ARRAY(SELECT timestamptz_send(at) || int4send(coalesce(rollout, 0)) FROM rollout_changes
                 WHERE segment_id = changed.id AND changed.rollout IS NOT NULL ORDER BY at) AS rollout_changes
    FROM catalogue
    CROSS JOIN (SELECT timestamptz_send(clock_timestamp()) AS clock) AS clock
    LEFT JOIN (SELECT {COLUMNS}, seed, version FROM segments) AS changed ON changed.version > :version
    ORDER BY changed.id
""")


WIDTH = len(fields(Segment))
CHANGE = struct.Struct(">qi")


@dataclass(frozen=True, slots=True)
class Rollout:
    """Whom a segment takes in without their being added."""

    segment: Segment
    seed: str
    # When, in microseconds since db.clock.EPOCH, it was set to how much, in hundredths of a percent; the latest last.
    changes: tuple[tuple[int, int], ...]

    def since(self, user_id: str) -> int | None:
        """From when on the user is taken in without a break; None when it is not."""
        place, since = bucket(self.seed, user_id), None
        for at, rollout in reversed(self.changes):
            if rollout <= place:
                break
            since = at
        return since


@dataclass(frozen=True, slots=True)
class Changes:
    version: int
    # The database's clock, in microseconds since db.clock.EPOCH.
    clock: int
    # Live and deleted ones, each once, as it is now.
    segments: list[Segment]
    # Of those among them that have one.
    rollouts: list[Rollout]


async def since(conn: AsyncConnection, version: int) -> Changes:
    """The segments that were created, changed or deleted after that version; all of them after -1."""
    rows = (await conn.execute(CHANGES, {"version": version})).all()
    changed = [(Segment(*row[2 : 2 + WIDTH]), row) for row in rows if row.id is not None]
    rollouts = [
        Rollout(segment, row.seed, tuple(CHANGE.unpack(change) for change in row.rollout_changes))
        for segment, row in changed
        if segment.rollout is not None and segment.deleted_at is None
    ]
    clock = int.from_bytes(rows[0].clock, "big", signed=True)
    return Changes(rows[0].catalogue_version, clock, [segment for segment, _ in changed], rollouts)
