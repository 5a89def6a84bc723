"""Whether folding the history gives exactly the memberships."""

from bench.databases import Database

# Every membership begins before anything else happens to it, begins again only after an end, and is there, with the
# same beginning and expiry, if and only if its last event was no end.
DIFFERENCES = """
    WITH told AS (
        SELECT *, lag(action) OVER w AS before, lead(action) OVER w IS NULL AS last,
               max(at) FILTER (WHERE action = 'ADDED') OVER w AS began
        FROM membership_events WINDOW w AS (PARTITION BY user_id, segment_id ORDER BY at, action)
    ), folded AS (
        SELECT user_id, segment_id, began, expires_at FROM told WHERE last AND action IN ('ADDED', 'EXPIRY_CHANGED')
    ), kept AS (SELECT user_id, segment_id, added_at, expires_at FROM memberships)
    SELECT (SELECT count(*) FROM told WHERE (action = 'ADDED') = coalesce(before IN ('ADDED', 'EXPIRY_CHANGED'), false))
         + (SELECT count(*) FROM (SELECT * FROM folded EXCEPT SELECT * FROM kept) AS only_in_history)
         + (SELECT count(*) FROM (SELECT * FROM kept EXCEPT SELECT * FROM folded) AS only_in_memberships)
"""


def differences(database: Database) -> int:
    """How many memberships, or events, do not fit the others."""
    return int(database.sql(DIFFERENCES))
