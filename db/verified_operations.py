"""Whether operations did what they say: what their results name is there, and history tells of the same changes.

As in db/verification.py nothing is locked, and what belongs together is compared in one statement.
"""

from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from db.partitions import OLDEST
from db.transactions import LIMIT_SECONDS
from db.verification import EXAMPLES, Found

# An event is dated in the transaction of its operation. A clock that lagged dates it later: that is looked for apart.
WINDOW = f"interval '{LIMIT_SECONDS} seconds'"
# Their results count by slug, where that of a single user lists slugs.
BULK = "('changeMemberships', 'addUsersToSegment', 'removeUsersFromSegment')"
# What this version knows to change memberships, or not to. Of what a newer one does nothing is expected, and an import
# does it later: its task tells of that (db/verified_tasks.py).
KINDS = f"""(
    'changeUserSegments', 'createSegment', 'updateSegment', 'deleteSegment', 'generateReport', 'exportMembers',
    'cancelTask', {BULK.strip("()")}
)"""
# A slice ends with the operation that makes these more, whatever the number of operations: some have a single event,
# some a hundred thousand.
EVENTS = 100_000
# The kinds of operations that make a task, and of which kind it is.
MAKERS = "(VALUES ('generateReport', 'REPORT'), ('importMembers', 'IMPORT'), ('exportMembers', 'EXPORT'))"


@dataclass(frozen=True, slots=True)
class Slice:
    """Some operations, in the order of their ids."""

    last: int
    # The earliest and the latest instant among them.
    begin: datetime
    end: datetime


@dataclass(frozen=True, slots=True)
class Suspect:
    """An operation whose result tells of other changes than the history around it."""

    id: int
    at: datetime
    changes: int
    # The sum of a hash of each: which they are, in any order.
    mark: int


async def next_slice(conn: AsyncConnection, after: int, rows: int) -> Slice | None:
    """Up to so many operations; None when there are no more."""
    result = await conn.execute(
        text(f"""
            SELECT max(id), min(at), max(at) FROM (
                SELECT id, at, coalesce(sum(events) OVER (
                    ORDER BY id ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING
                ), 0) AS before
                FROM (
                    SELECT id, at, CASE WHEN kind IN {BULK} THEN (
                        SELECT sum(CAST(number AS numeric))
                        FROM jsonb_path_query(result, '$.*.* ? (@.type() == "number")') AS number
                    ) END AS events
                    FROM operations WHERE id > :after ORDER BY id LIMIT :rows
                ) AS first
            ) AS slice WHERE before < :events
        """),
        {"after": after, "rows": rows, "events": EVENTS},
    )
    row = result.one()
    return None if row[0] is None else Slice(*row)


# What is no number or no uuid is nobody's id. A task is forgotten some time after its end, and that is no earlier than
# what is asked for here; the hour is for clocks that differ.
OUTCOMES = text(f"""
    WITH slice AS (
        SELECT *, result ->> 'segment_id' AS segment, result ->> 'task_id' AS task
        FROM operations WHERE id > :after AND id <= :last
    ), looked AS MATERIALIZED (
        SELECT o.id, o.kind, o.at, CASE
            WHEN o.result IS NULL THEN 'has no result'
            WHEN o.kind IN ('createSegment', 'updateSegment', 'deleteSegment') THEN CASE
                WHEN s.id IS NULL THEN format('is about segment %s, which there is not', segment)
                WHEN o.kind = 'deleteSegment' AND (s.deleted_at IS NULL OR s.deleted_by IS DISTINCT FROM o.id)
                    THEN format('did not delete segment %s', segment) END
            WHEN (o.kind = 'cancelTask' OR made.kind IS NOT NULL)
                AND o.at > now() - make_interval(days => :task_days) + interval '1 hour' THEN CASE
                WHEN t.id IS NULL THEN format('is about task %s, which there is not', task)
                WHEN o.kind = 'cancelTask' AND t.status <> 'CANCELED' THEN format('did not cancel task %s', task)
                WHEN CAST(t.kind AS text) <> made.kind OR made.kind IS NOT NULL AND t.operation_id IS DISTINCT FROM o.id
                    THEN format('did not make task %s', task) END
        END AS wrong
        FROM slice AS o
        LEFT JOIN {MAKERS} AS made (operation, kind) ON made.operation = o.kind
        LEFT JOIN segments AS s
            ON s.id = CASE WHEN pg_input_is_valid(segment, 'integer') THEN CAST(segment AS integer) END
        LEFT JOIN tasks AS t ON t.id = CASE WHEN pg_input_is_valid(task, 'uuid') THEN CAST(task AS uuid) END
    )
    SELECT count(*), count(wrong),
           (array_agg(format('operation %s (%s at %s) %s', id, kind, at, wrong) ORDER BY id)
               FILTER (WHERE wrong IS NOT NULL))[1:{EXAMPLES}]
    FROM looked
""")


async def outcomes(conn: AsyncConnection, after: int, last: int, task_days: int) -> Found:
    """Of the operations behind `after`, up to `last`, whether what their results name is there, and was done by them.

    Tasks are kept for so many days.
    """
    result = await conn.execute(OUTCOMES, {"after": after, "last": last, "task_days": task_days})
    return Found(*result.one())


# Hashes of changes add up in any order, and over several statements.
HASH = "hashtextextended(action || ' ' || coalesce(slug, ''), 0)"
WRITTEN = f"""
    SELECT operation_id AS id, {HASH} AS mark FROM membership_events LEFT JOIN segments AS s ON s.id = segment_id
    WHERE action IN ('ADDED', 'EXPIRY_CHANGED', 'REMOVED') AND at >= :begin
"""
# What results tell of: one row for each slug of a list, or one for each slug with its count. What is no number counts
# nothing.
LISTED = """
    SELECT 'ADDED' AS action, jsonb_path_query(result, '$.added[*]') #>> '{}' AS slug
    UNION ALL SELECT 'EXPIRY_CHANGED', jsonb_path_query(result, '$.updated[*]') #>> '{}'
    UNION ALL SELECT 'REMOVED', jsonb_path_query(result, '$.removed[*]') #>> '{}'
"""
COUNTED = """
    SELECT action, counted ->> 'key' AS slug, CAST(counted ->> 'value' AS numeric) AS number
    FROM (VALUES ('ADDED', 'added'), ('EXPIRY_CHANGED', 'updated'), ('REMOVED', 'removed')) AS names (action, name),
         jsonb_path_query(result -> name, '$.keyvalue() ? (@.value.type() == "number")', '{}', true) AS counted
"""
# Both sides are added up together: a join would go by estimates, which are bad here.
SUSPECTS = text(f"""
    SELECT id, max(at), coalesce(sum(told), 0), coalesce(sum(told_mark), 0) FROM (
        SELECT id, at, CASE WHEN action IS NOT NULL THEN 1 END AS told, {HASH} AS told_mark,
               CAST(NULL AS bigint) AS mark
        FROM operations LEFT JOIN LATERAL ({LISTED}) AS change ON kind = 'changeUserSegments'
        WHERE id > :after AND id <= :last AND kind IN {KINDS} AND at >= ({OLDEST})
        UNION ALL
        SELECT id, NULL, number, number * {HASH}, NULL
        FROM operations CROSS JOIN LATERAL ({COUNTED}) AS change
        WHERE id > :after AND id <= :last AND kind IN {BULK}
        UNION ALL
        SELECT id, NULL, NULL, NULL, mark FROM ({WRITTEN} AND at <= CAST(:end AS timestamptz) + {WINDOW}
            AND operation_id > :after AND operation_id <= :last) AS written
    ) AS both_sides
    GROUP BY id
    HAVING max(at) IS NOT NULL
       AND (coalesce(sum(told), 0), coalesce(sum(told_mark), 0)) <> (count(mark), coalesce(sum(mark), 0))
    ORDER BY id
""")


async def suspects(conn: AsyncConnection, after: int, some: Slice) -> list[Suspect]:
    """Of the operations behind `after`, up to the slice's last, those that tell of other changes than events around."""
    result = await conn.execute(SUSPECTS, {"after": after, "last": some.last, "begin": some.begin, "end": some.end})
    return [Suspect(id, at, int(changes), int(mark)) for id, at, changes, mark in result]


async def written(
    conn: AsyncConnection, operation_ids: Collection[int], begin: datetime, end: datetime
) -> dict[int, tuple[int, int]]:
    """How many changes of these operations the history of [begin, end) has, and the sum of their hashes."""
    result = await conn.execute(
        text(f"""
            SELECT id, count(*), sum(mark)
            FROM ({WRITTEN} AND at < :end AND operation_id = ANY(:ids)) AS written GROUP BY id
        """),
        {"ids": list(operation_ids), "begin": begin, "end": end},
    )
    return {operation_id: (changes, int(mark)) for operation_id, changes, mark in result}
