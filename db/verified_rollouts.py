"""Whether what is written of rollouts fits together: the percentages of segments, and whom they leave out.

As in db/verification.py nothing is locked, and what belongs together is compared in one statement.
"""

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from db.partitions import OLDEST
from db.verification import EXAMPLES, Found

# Operations are forgotten with the history that they explain, and these rows are not.
NO_OPERATION = """
    {at} >= h.oldest AND (SELECT o.id FROM operations AS o WHERE o.id = operation_id) IS NULL
        THEN format('names operation %s, which there is not', operation_id)
"""
# Changes behind the last segment of a slice belong to it when no segment is left: they may be of none.
CHANGES = text(f"""
    WITH h AS MATERIALIZED (SELECT ({OLDEST}) AS oldest),
    slice AS MATERIALIZED (
        SELECT (SELECT id FROM segments WHERE id > :after ORDER BY id OFFSET :rows LIMIT 1) AS last
    ), changes AS MATERIALIZED (
        SELECT segment_id, at, rollout, operation_id,
               lead(at) OVER (PARTITION BY segment_id ORDER BY at) IS NULL AS newest
        FROM rollout_changes CROSS JOIN slice
        WHERE segment_id > :after AND (slice.last IS NULL OR segment_id <= slice.last)
    ), chosen AS MATERIALIZED (
        SELECT id, created_at, rollout FROM segments CROSS JOIN slice
        WHERE id > :after AND (slice.last IS NULL OR id <= slice.last)
    ), looked AS MATERIALIZED (
        SELECT coalesce(s.id, segment_id) AS id, at, CASE
            WHEN s.id IS NULL THEN 'is of a segment that there is not'
            WHEN at IS NULL THEN CASE WHEN s.rollout IS NOT NULL
                THEN format('is not there, though the rollout is %s', s.rollout) END
            WHEN newest AND c.rollout IS DISTINCT FROM s.rollout
                THEN format('to %s is the last, though the rollout is %s',
                            coalesce(CAST(c.rollout AS text), 'none'), coalesce(CAST(s.rollout AS text), 'none'))
            WHEN at < s.created_at THEN format('comes before the segment, which was created at %s', s.created_at)
            WHEN {NO_OPERATION.format(at="at")}
        END AS wrong
        FROM changes AS c FULL JOIN chosen AS s ON s.id = segment_id CROSS JOIN h
    )
    SELECT count(at), count(wrong),
           (array_agg('segment ' || id || ': the change of the rollout' || coalesce(' at ' || at, '') || ' ' || wrong
                      ORDER BY id, at) FILTER (WHERE wrong IS NOT NULL))[1:{EXAMPLES}],
           (SELECT last FROM slice)
    FROM looked
""")


async def changes(conn: AsyncConnection, after: int, rows: int) -> Found:
    """Of about so many segments, whether the changes of their rollouts lead to what these are now."""
    return Found(*(await conn.execute(CHANGES, {"after": after, "rows": rows})).one())


async def boundary(conn: AsyncConnection, after: str, rows: int) -> str | None:
    """The last user of a slice of about so many exclusions of users behind `after`; None when they are the last."""
    result = await conn.execute(
        text("SELECT user_id FROM exclusions WHERE user_id > :after ORDER BY user_id OFFSET :rows LIMIT 1"),
        {"after": after, "rows": rows},
    )
    found: str | None = result.scalar_one_or_none()
    return found


# Only one of a user and a segment lasts: an index sees to it.
EXCLUSIONS = text(f"""
    WITH h AS MATERIALIZED (SELECT ({OLDEST}) AS oldest),
    looked AS MATERIALIZED (
        SELECT user_id, segment_id, excluded_at AS at, CASE
            WHEN s.id IS NULL THEN 'is of a segment that there is not'
            WHEN excluded_at >= ended_at THEN format('ends at %s, which is no later', ended_at)
            WHEN excluded_at < before THEN format('comes before the end of another one at %s', before)
            WHEN NOT EXISTS (SELECT FROM rollout_changes AS c WHERE c.segment_id = e.segment_id AND c.at <= excluded_at)
                THEN 'is from before all rollouts of the segment'
            WHEN {NO_OPERATION.format(at="excluded_at")}
        END AS wrong
        FROM (
            SELECT *, max(ended_at) OVER (
                PARTITION BY user_id, segment_id ORDER BY excluded_at ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING
            ) AS before
            FROM exclusions WHERE user_id > :after AND (CAST(:last AS text) IS NULL OR user_id <= :last)
        ) AS e CROSS JOIN h LEFT JOIN segments AS s ON s.id = segment_id
    )
    SELECT count(*), count(wrong),
           (array_agg(format('user %s, segment %s: the exclusion at %s %s', user_id, segment_id, at, wrong)
                      ORDER BY user_id, segment_id, at) FILTER (WHERE wrong IS NOT NULL))[1:{EXAMPLES}]
    FROM looked
""")


async def exclusions(conn: AsyncConnection, after: str, last: str | None) -> Found:
    """Of the users behind `after`, up to `last`, whether their exclusions follow each other, and what led to them."""
    return Found(*(await conn.execute(EXCLUSIONS, {"after": after, "last": last})).one())
