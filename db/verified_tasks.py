"""Whether tasks that have succeeded did what they say: which of them have files, and what imports have written.

What a task says when it has succeeded stays so, and so does what it has written: several statements may look at that.
"""

from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from db import buckets
from db.partitions import OLDEST


async def with_files(conn: AsyncConnection, after: UUID | None, rows: int) -> list[UUID]:
    """Up to so many tasks whose files are kept."""
    result = await conn.execute(
        text("""
            SELECT id FROM tasks
            WHERE kind <> 'SEGMENT_CLEANUP' AND status = 'SUCCEEDED' AND file_removed_at IS NULL
              AND (CAST(:after AS uuid) IS NULL OR id > :after)
            ORDER BY id LIMIT :rows
        """),
        {"after": after, "rows": rows},
    )
    return list(result.scalars())


@dataclass(frozen=True, slots=True)
class Written:
    """What history has of an import."""

    added: int
    updated: int
    removed: int
    # In segments that it was not about.
    elsewhere: int

    def __add__(self, other: "Written") -> "Written":
        return Written(
            self.added + other.added,
            self.updated + other.updated,
            self.removed + other.removed,
            self.elsewhere + other.elsewhere,
        )


@dataclass(frozen=True, slots=True)
class Import:
    """An import that has succeeded, and what it tells of."""

    id: UUID
    operation_id: int | None
    segment_id: int | None
    started_at: datetime
    finished_at: datetime
    # None when that is no number.
    added: int | None
    updated: int | None
    removed: int | None

    def tells_of(self, written: Written) -> bool:
        return (self.added, self.updated, self.removed, 0) == (
            written.added,
            written.updated,
            written.removed,
            written.elsewhere,
        )


def _told(name: str) -> str:
    # To try it out changes nothing, whatever is counted.
    return f"""
        CASE WHEN CAST(args ->> 'dry_run' AS boolean) THEN 0
             WHEN jsonb_typeof(state -> '{name}') = 'number' THEN CAST(state ->> '{name}' AS bigint) END
    """


# Of what began in months that were dropped events may be missing.
IMPORTS = text(f"""
    SELECT id, operation_id, segment_id, started_at, finished_at, {_told("added")}, {_told("updated")},
           {_told("removed")}
    FROM tasks
    WHERE kind = 'IMPORT' AND status = 'SUCCEEDED' AND started_at >= ({OLDEST})
      AND (CAST(:after AS uuid) IS NULL OR id > :after)
    ORDER BY id LIMIT :rows
""")


async def imports(conn: AsyncConnection, after: UUID | None, rows: int) -> list[Import]:
    """Up to so many imports that have succeeded."""
    return [Import(*row) for row in await conn.execute(IMPORTS, {"after": after, "rows": rows})]


# Whoever was in by the rollout alone was removed without an event: an exclusion that nothing was removed with tells of
# that, if the percentage had the user in then.
WRITTEN = text(f"""
    SELECT count(*) FILTER (WHERE segment_id = :segment_id AND action = 'ADDED'),
           count(*) FILTER (WHERE segment_id = :segment_id AND action = 'EXPIRY_CHANGED'),
           count(*) FILTER (WHERE segment_id = :segment_id AND action = 'REMOVED') + (
               SELECT count(*) FROM exclusions AS e JOIN segments AS s ON s.id = e.segment_id
               WHERE e.segment_id = :segment_id AND e.operation_id = :operation_id
                 AND e.excluded_at >= :begin AND e.excluded_at < :end
                 AND {buckets.sql("s.seed", "e.user_id")} < (
                     SELECT c.rollout FROM rollout_changes AS c
                     WHERE c.segment_id = e.segment_id AND c.at <= e.excluded_at ORDER BY c.at DESC LIMIT 1
                 )
                 AND NOT EXISTS (
                     SELECT FROM membership_events AS m
                     WHERE m.user_id = e.user_id AND m.at = e.excluded_at AND m.segment_id = e.segment_id
                       AND m.action = 'REMOVED' AND m.at >= :begin AND m.at < :end
                 )
           ),
           count(*) FILTER (WHERE segment_id <> :segment_id)
    FROM membership_events
    WHERE operation_id = :operation_id AND action IN ('ADDED', 'EXPIRY_CHANGED', 'REMOVED')
      AND at >= :begin AND at < :end
""")


async def written(conn: AsyncConnection, some: Import, begin: datetime, end: datetime) -> Written:
    """What history and exclusions of [begin, end) have of the import."""
    result = await conn.execute(
        WRITTEN, {"segment_id": some.segment_id, "operation_id": some.operation_id, "begin": begin, "end": end}
    )
    return Written(*result.one())
