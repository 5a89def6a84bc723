"""What rollouts have made of memberships: no row tells of these, so they are worked out when somebody asks.

Each begins when the percentage takes the user in and ends when it does so no longer. A user who was removed is left
out, and while somebody is a member by hand the rollout says nothing.
"""

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from db import buckets, endings
from db.partitions import OLDEST


def _reached(user_ids: str, chosen: str = "") -> str:
    """A query: users of an array with every segment whose rollout has ever taken them in, and their buckets in these.

    It decides whom everything else is worked out for: most users are in few rollouts, and most segments have none. Of
    segments `s` only those that are `chosen`, by a condition that begins with AND. The hash is taken once for each.
    """
    return f"""
        SELECT u.user_id, r.segment_id, h.bucket
        FROM (SELECT segment_id, max(rollout) AS highest FROM rollout_changes GROUP BY segment_id) AS r
        JOIN segments AS s ON s.id = r.segment_id{chosen}
        CROSS JOIN (SELECT user_id COLLATE "C" AS user_id FROM unnest({user_ids}) AS user_id) AS u
        CROSS JOIN LATERAL (SELECT {buckets.sql("s.seed", "u.user_id")} AS bucket OFFSET 0) AS h
        WHERE h.bucket < r.highest
    """


def covered(user_ids: str, chosen: str = "") -> str:
    """A query: when the percentages of segments have included users, as `ranges` for each `user_id` and `segment_id`;
    what never was is absent.
    """
    return f"""
        SELECT r.user_id, r.segment_id, range_agg(tstzrange(c.at, c.until)) AS ranges
        FROM ({_reached(user_ids, chosen)}) AS r JOIN (
            SELECT segment_id, at, rollout, lead(at, 1, 'infinity') OVER (PARTITION BY segment_id ORDER BY at) AS until
            FROM rollout_changes
        ) AS c ON c.segment_id = r.segment_id AND c.rollout > r.bucket
        GROUP BY r.user_id, r.segment_id
    """


REACHES = text(f"SELECT EXISTS ({_reached('ARRAY[CAST(:user_id AS text)]')})")


async def reaches(conn: AsyncConnection, user_id: str) -> bool:
    """Whether any rollout has ever taken the user in."""
    found: bool = (await conn.execute(REACHES, {"user_id": user_id})).scalar_one()
    return found


# While users were members by hand, as far as that has ended: an end whose beginning was dropped with its month had one
# before. The events of a user are read once, however many segments they are about.
WRITTEN = """
    SELECT u.user_id, e.segment_id, e.ranges
    FROM (SELECT user_id, array_agg(segment_id) AS segment_ids FROM covered GROUP BY user_id) AS u
    CROSS JOIN LATERAL (
        SELECT ended.segment_id, range_agg(tstzrange(coalesce(ended.began, '-infinity'), ended.at)) AS ranges
        FROM (
            SELECT segment_id, action, at, lag(at) OVER (PARTITION BY segment_id ORDER BY at, action) AS began
            FROM membership_events
            WHERE user_id = u.user_id AND segment_id = ANY (u.segment_ids) AND action <> 'EXPIRY_CHANGED'
        ) AS ended
        WHERE ended.action <> 'ADDED' GROUP BY ended.segment_id
    ) AS e
"""
# And what has not become history yet. An expiry that is still to come may be moved: until then it ends nothing.
CURRENT = f"""
    SELECT range_agg(tstzrange(m.added_at, greatest(m.added_at,
               CASE WHEN {endings.AT} <= now() THEN {endings.AT} ELSE 'infinity' END)))
    FROM memberships AS m WHERE m.user_id = c.user_id AND m.segment_id = c.segment_id
"""
EXCLUDED = """
    SELECT range_agg(tstzrange(x.excluded_at, greatest(x.excluded_at, x.ended_at)))
    FROM exclusions AS x WHERE x.user_id = c.user_id AND x.segment_id = c.segment_id
"""
NOTHING = "CAST('{}' AS tstzmultirange)"


def events(user_ids: str, chosen: str = "") -> str:
    """A query: every begin and end of the users' memberships by rollout, as `user_id`, `segment_id`, `action` and `at`.

    What it takes is looked up row by row, by an index: there are few, of a few users, whatever the planner thinks. None
    is older than the history that is kept: what was dropped of it decided about them, too. As long as nothing was
    dropped no segment is older than that.
    """
    return f"""
        WITH covered AS MATERIALIZED ({covered(user_ids, chosen)}), written AS MATERIALIZED ({WRITTEN})
        SELECT r.user_id, r.segment_id, edge.action, edge.at
        FROM (
            SELECT c.user_id, c.segment_id, s.created_at, s.deleted_at, unnest(
                c.ranges - coalesce(w.ranges, {NOTHING})
                - coalesce(({CURRENT}), {NOTHING}) - coalesce(({EXCLUDED}), {NOTHING})
                - tstzmultirange(tstzrange(coalesce(s.deleted_at, 'infinity'), 'infinity'))
            ) AS range
            FROM covered AS c JOIN segments AS s ON s.id = c.segment_id
            LEFT JOIN written AS w ON w.user_id = c.user_id AND w.segment_id = c.segment_id
        ) AS r
        CROSS JOIN LATERAL (
            VALUES (CAST('ADDED' AS membership_action), lower(r.range)),
                   (CAST(CASE WHEN upper(r.range) = r.deleted_at THEN 'SEGMENT_DELETED' ELSE 'REMOVED' END
                         AS membership_action), upper(r.range))
        ) AS edge (action, at)
        WHERE edge.at < 'infinity' AND (edge.at >= ({OLDEST}) OR r.created_at >= ({OLDEST}))
    """


# The operation behind such an event `e`: it changed the percentage, removed the user, deleted the segment, or made the
# user a member by hand. Behind a begin there is none where an expiry has left the user to the rollout.
OPERATION_ID = """coalesce(
    (SELECT operation_id FROM rollout_changes WHERE segment_id = e.segment_id AND at = e.at),
    (SELECT operation_id FROM exclusions
     WHERE user_id = e.user_id AND segment_id = e.segment_id AND excluded_at = e.at),
    (SELECT deleted_by FROM segments WHERE id = e.segment_id AND deleted_at = e.at),
    (SELECT operation_id FROM membership_events
     WHERE user_id = e.user_id AND segment_id = e.segment_id AND at = e.at AND action = 'ADDED')
)"""
