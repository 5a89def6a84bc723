"""Whether history and memberships agree with each other, and with segments: what must be so of a live database, asked a
slice at a time.

Nothing is locked and nothing stops meanwhile. What belongs together is written in one transaction, so it is compared in
one statement, which has one snapshot: what comes or goes between two statements is no difference.
"""

from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from db.partitions import OLDEST

# Of the differences in one slice so many are told; all are counted.
EXAMPLES = 10
# What one statement checks, and the table whose rows it looks at.
HISTORY, MEMBERSHIPS, EVENTS = "history", "memberships", "operations of events"
FOLDED = {HISTORY: "membership_events", MEMBERSHIPS: "memberships", EVENTS: "membership_events"}


@dataclass(frozen=True, slots=True)
class Found:
    """What came of one slice."""

    looked: int
    differences: int
    # Sentences, for people.
    examples: list[str] | None
    # The last id, where the statement itself decides; None when nothing was left.
    last: int | None = None


async def about(conn: AsyncConnection, table: str) -> int:
    """How many rows there are in a table or its partitions, as far as PostgreSQL remembers."""
    statement = text("""
        SELECT CAST(coalesce(sum(greatest(reltuples, 0)), 0) AS bigint)
        FROM pg_class LEFT JOIN pg_inherits ON inhrelid = oid
        WHERE CAST(CAST(:table AS text) AS regclass) IN (oid, inhparent) AND relkind = 'r'
    """)
    rows: int = (await conn.execute(statement, {"table": table})).scalar_one()
    return rows


async def end_of_history(conn: AsyncConnection) -> datetime | None:
    """The instant from which on no event can be written yet; None when there is no partition."""
    result = await conn.execute(text(f"SELECT ({OLDEST.replace('min(', 'max(')}) + interval '1 month'"))
    instant: datetime | None = result.scalar_one()
    return instant


# Users without history have memberships, and the other way round: whichever table is fuller there decides.
BOUNDARY = text("""
    SELECT least(
        (SELECT user_id FROM membership_events WHERE CAST(:after AS text) IS NULL OR user_id > :after
         ORDER BY user_id OFFSET :rows LIMIT 1),
        (SELECT user_id FROM memberships WHERE CAST(:after AS text) IS NULL OR user_id > :after
         ORDER BY user_id OFFSET :rows LIMIT 1)
    )
""")


async def boundary(conn: AsyncConnection, after: str | None, rows: int) -> str | None:
    """The last user of a slice of about so many rows behind `after`; None when they are the last."""
    found: str | None = (await conn.execute(BOUNDARY, {"after": after, "rows": rows})).scalar_one()
    return found


def _differences(subject: str) -> str:
    """How many rows have something wrong with them, and sentences about the first."""
    sentence = f"'user ' || user_id || ', segment ' || segment_id || ': ' || {subject} || ' ' || wrong"
    return f"""count(wrong),
        (array_agg({sentence} ORDER BY user_id, segment_id, at) FILTER (WHERE wrong IS NOT NULL))[1:{EXAMPLES}]"""


USERS = "(CAST(:after AS text) IS NULL OR user_id > :after) AND (CAST(:last AS text) IS NULL OR user_id <= :last)"
# Three questions to one snapshot of some users. Each is a list of rows with what is wrong with them, null if nothing.
# Months that were dropped have taken beginnings with them: what is left of a membership that began before `oldest` may
# start with anything, or be no event at all. Its segment is older than that, too, and no segment's row ever goes. So as
# long as nothing was dropped all must start with ADDED, for no segment is older than the first partition.
# An operation is looked up row by row: a join would read all of them for each slice.
FOLD = text(f"""
    WITH h AS MATERIALIZED (SELECT ({OLDEST}) AS oldest),
    told AS MATERIALIZED (
        SELECT user_id, segment_id, action, at, expires_at, operation_id,
               lag(action) OVER w AS before, lag(expires_at) OVER w AS until, lead(action) OVER w IS NULL AS last,
               max(at) FILTER (WHERE action = 'ADDED') OVER w AS began
        FROM membership_events WHERE {USERS}
        WINDOW w AS (PARTITION BY user_id, segment_id ORDER BY at, action)
    ),
    kept AS MATERIALIZED (SELECT user_id, segment_id, added_at, expires_at FROM memberships WHERE {USERS}),
    disorder AS MATERIALIZED (
        SELECT told.*, CASE
            WHEN s.id IS NULL THEN 'is of a segment that there is not'
            WHEN action = 'ADDED' AND before IN ('ADDED', 'EXPIRY_CHANGED') THEN 'comes before an end'
            WHEN action <> 'ADDED' AND before IS NULL AND s.created_at >= h.oldest THEN 'comes without a beginning'
            WHEN action <> 'ADDED' AND before NOT IN ('ADDED', 'EXPIRY_CHANGED') THEN 'comes after the end'
            WHEN action IN ('ADDED', 'EXPIRY_CHANGED') AND expires_at IS NULL THEN 'tells no expiry'
            WHEN action NOT IN ('ADDED', 'EXPIRY_CHANGED') AND expires_at IS NOT NULL THEN 'tells an expiry'
            WHEN expires_at <= at THEN format('tells an expiry of %s, which is no later', expires_at)
            WHEN action = 'EXPIRED' AND at <> until THEN format('ends what was to expire at %s', until)
            WHEN action NOT IN ('ADDED', 'EXPIRED') AND at >= until THEN format('comes after the expiry at %s', until)
            WHEN action = 'SEGMENT_DELETED' AND (at, operation_id) IS DISTINCT FROM (s.deleted_at, s.deleted_by)
                THEN format('of operation %s is not the deletion at %s by operation %s',
                            operation_id, s.deleted_at, s.deleted_by)
            WHEN at > s.deleted_at THEN format('comes after the deletion of the segment at %s', s.deleted_at)
        END AS wrong
        FROM told CROSS JOIN h LEFT JOIN segments AS s ON s.id = segment_id
    ),
    strays AS MATERIALIZED (
        SELECT user_id, segment_id, coalesce(kept.added_at, at) AS at, CASE
            WHEN added_at IS NULL THEN CASE WHEN action IN ('ADDED', 'EXPIRY_CHANGED')
                THEN format('is not there, though its last event is %s at %s', action, at) END
            WHEN s.id IS NULL THEN 'is of a segment that there is not'
            WHEN s.cleaned_at IS NOT NULL
                THEN format('is there, though the segment was cleaned up at %s', s.cleaned_at)
            WHEN added_at >= s.deleted_at
                THEN format('was added at %s, after the deletion of the segment at %s', added_at, s.deleted_at)
            WHEN action NOT IN ('ADDED', 'EXPIRY_CHANGED')
                THEN format('is there, though its last event is %s at %s', action, at)
            WHEN began IS NULL AND (added_at >= h.oldest OR s.created_at >= h.oldest)
                THEN format('was added at %s, of which no event tells', added_at)
            WHEN began <> added_at THEN format('was added at %s, by its history at %s', added_at, began)
            WHEN told.expires_at <> kept.expires_at
                THEN format('expires at %s, by its history at %s', kept.expires_at, told.expires_at)
        END AS wrong
        FROM (SELECT * FROM told WHERE last) AS told FULL JOIN kept USING (user_id, segment_id)
        CROSS JOIN h LEFT JOIN segments AS s ON s.id = segment_id
    ),
    orphans AS MATERIALIZED (
        SELECT told.*, CASE
            WHEN action = 'EXPIRED' THEN CASE WHEN operation_id IS NOT NULL
                THEN format('names operation %s, but an expiry has none', operation_id) END
            WHEN operation_id IS NULL THEN 'names no operation'
            WHEN (SELECT o.id FROM operations AS o WHERE o.id = operation_id) IS NULL
                THEN format('names operation %s, which there is not', operation_id)
        END AS wrong
        FROM told
    )
    SELECT '{HISTORY}' AS name, (SELECT count(*) FROM told), {_differences("action || ' at ' || at")} FROM disorder
    UNION ALL
    SELECT '{MEMBERSHIPS}', (SELECT count(*) FROM kept), {_differences("'the membership'")} FROM strays
    UNION ALL
    SELECT '{EVENTS}', (SELECT count(*) FROM told), {_differences("action || ' at ' || at")} FROM orphans
""")


async def fold(conn: AsyncConnection, after: str | None, last: str | None) -> dict[str, Found]:
    """Three checks of the users behind `after`, up to `last`: that their events follow each other as they must and
    make up exactly the memberships that are there, and that each names its operation.
    """
    result = await conn.execute(FOLD, {"after": after, "last": last})
    return {name: Found(*found) for name, *found in result}


SEGMENTS = text(f"""
    WITH slice AS (SELECT * FROM segments WHERE id > :after ORDER BY id LIMIT :rows)
    SELECT count(*), count(wrong),
           (array_agg(format('segment %s (%s) %s', id, slug, wrong) ORDER BY id)
               FILTER (WHERE wrong IS NOT NULL))[1:{EXAMPLES}],
           max(id)
    FROM (
        SELECT id, slug, CASE
            WHEN deleted_at IS NULL AND (cleaned_at IS NOT NULL OR deleted_by IS NOT NULL)
                THEN 'is live, and was deleted or cleaned up'
            WHEN cleaned_at IS NULL AND deleted_at IS NOT NULL AND NOT EXISTS (
                SELECT FROM tasks WHERE segment_id = slice.id AND kind = 'SEGMENT_CLEANUP'
                  AND status IN ('QUEUED', 'RUNNING')
            ) THEN format('was deleted at %s and waits for no cleanup', deleted_at)
        END AS wrong FROM slice
    ) AS looked
""")


async def segments(conn: AsyncConnection, after: int, rows: int) -> Found:
    """Of up to so many segments, whether each that was deleted is clean or will be."""
    result = await conn.execute(SEGMENTS, {"after": after, "rows": rows})
    return Found(*result.one())
