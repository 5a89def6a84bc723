"""What the databases are filled with: memberships, and the months of history that have led to them."""

from datetime import UTC, datetime, timedelta

from bench import processes
from bench.databases import Database

# Neighbours among the numbers are none among the ids. Odd, so no two numbers below 2^32 share an id.
SCATTER = 2_654_435_761
# How far back history goes, and how long before now the last of it ended that is written.
DAYS = 200
SEGMENTS = 64
# Of the segments that were deleted some are still waiting for their cleanup.
LIVE, UNCLEANED = 56, 60
STORIES_OF_USER = 5
# Of every kind of story together, with what waits; a little less, so that there are enough.
EVENTS_OF_STORY = 1.5


def user_id(number: int) -> str:
    return str(number * SCATTER % 2**32)


def prepare(database: Database) -> datetime:
    """Migrate, make months for the history, and keep the nightly purge from running; returns about now."""
    processes.migrate(database)
    base = datetime.now(UTC).replace(microsecond=0)
    database.sql(f"""
        DO $$ DECLARE month timestamp; BEGIN
            FOR month IN SELECT generate_series(
                date_trunc('month', timestamp '{base:%Y-%m-%d}' - interval '{DAYS} days'),
                date_trunc('month', timestamp '{base:%Y-%m-%d}' - interval '1 month'), interval '1 month')
            LOOP
                EXECUTE format('CREATE TABLE %I PARTITION OF membership_events FOR VALUES FROM (%L) TO (%L)',
                    'membership_events_' || to_char(month, 'YYYY_MM'), month || 'Z',
                    (month + interval '1 month') || 'Z');
            END LOOP;
        END $$
    """)
    # Whatever is seeded without one of its own names this operation.
    database.sql("INSERT INTO operations (client, kind, fingerprint, result) VALUES ('bench', 'seed', '', '{}')")
    # As if it had run last midnight, and will have run next midnight.
    database.sql("""
        INSERT INTO job_runs (job, slot, state, runner, started_at, heartbeat_at, finished_at)
        SELECT 'purge', date_trunc('day', now(), 'UTC') + day * interval '1 day', 'FINISHED', 'bench',
               now(), now(), now()
        FROM generate_series(0, 1) AS day
    """)
    return base


def segments(database: Database, number: int) -> None:
    """Segments `S1`, `S2`, … of those ids; none is there yet."""
    database.sql(
        f"INSERT INTO segments (slug, version) SELECT 'S' || n, 0 FROM generate_series(1, {number}) AS n",
        "UPDATE catalogue SET version = version + 1",
    )


def members(database: Database, base: datetime, segment: int, users: int, *, expired: bool) -> None:
    """All users become members of the segment, at some time of the months; every fifth until some days ago, or years
    ahead.
    """
    end = (
        f"timestamptz '{base}' - interval '1 minute' - random() * interval '3 days'"
        if expired
        else (f"timestamptz '{base}' + interval '1000 days'")
    )
    database.sql(f"""
        WITH added AS (
            INSERT INTO memberships (user_id, segment_id, added_at, expires_at)
            SELECT (n * {SCATTER} % 4294967296)::text, {segment},
                   timestamptz '{base}' - interval '4 days' - random() * interval '{DAYS - 10} days',
                   CASE WHEN (n + {segment}) % 5 = 0 THEN {end} ELSE 'infinity' END
            FROM generate_series(0, {users - 1}::bigint) AS n
            RETURNING *
        )
        INSERT INTO membership_events (user_id, segment_id, action, at, expires_at, operation_id)
        SELECT user_id, segment_id, 'ADDED', added_at, expires_at, 1 FROM added ORDER BY added_at
    """)


def settle(database: Database) -> None:
    """Let what keeps a database in order have done its work."""
    database.sql("VACUUM (ANALYZE)", "CHECKPOINT")


def stories(database: Database, base: datetime, first: int, last: int) -> None:
    """Memberships with all that can become of them, numbered from `first` up to `last`, and every event of them.

    Half of them last. Others were ended, expired or have their expiry moved; some have expired and wait for the purge;
    some ended with their segment, and of some such segments the members still wait for the cleanup.
    """
    start = f"timestamptz '{base}' - interval '{DAYS} days'"
    deleted = f"timestamptz '{base}' - interval '2 days'"
    if first == 0:
        segments(database, SEGMENTS)
        database.sql(f"""
            UPDATE segments SET deleted_at = {deleted}, deleted_by = 1,
                   cleaned_at = CASE WHEN id > {UNCLEANED} THEN {deleted} + interval '1 hour' END
            WHERE id > {LIVE}
        """)
    database.sql(
        f"""
        CREATE UNLOGGED TABLE stories AS
        SELECT {USER} AS user_id, segment_id, added_at, kind, n AS operation_id, turned_at,
               CASE WHEN kind IN (14, 15, 18) THEN CASE WHEN n % 7 = 0 THEN {deleted} ELSE turned_at END
                    WHEN kind = 19 THEN timestamptz '{base}' + interval '90 days' ELSE 'infinity' END AS expires_at
        FROM (
            SELECT n, n / {STORIES_OF_USER} AS u, (n * 3266489917 / 65536) % 20 AS kind,
                   (1 + (n / {STORIES_OF_USER} * 7 + n % {STORIES_OF_USER} * 13) % {SEGMENTS})::integer AS segment_id,
                   {start} + (n * {SCATTER} % 4294967296) / 4294967296.0 * interval '150 days' AS added_at,
                   {start} + (n * {SCATTER} % 4294967296) / 4294967296.0 * interval '150 days' + interval '1 day'
                   + (n * 2246822519 % 4294967296) / 4294967296.0 * interval '45 days' AS turned_at
            FROM generate_series({first}::bigint, {last - 1}::bigint) AS n
        ) AS numbers
        """,
        f"""
        WITH lasting AS (
            SELECT user_id, segment_id, added_at,
                   CASE WHEN kind IN (16, 17) THEN timestamptz '{base}' + interval '30 days' ELSE expires_at END
                   AS expires_at
            FROM stories WHERE kind NOT IN (10, 11, 12, 13, 14, 15)
        ), kept AS (
            INSERT INTO memberships (user_id, segment_id, added_at, expires_at)
            SELECT * FROM lasting WHERE segment_id <= {UNCLEANED}
        )
        INSERT INTO membership_events (user_id, segment_id, action, at, expires_at, operation_id)
        SELECT user_id, segment_id, action::membership_action, at, expires_at, operation_id FROM (
            SELECT user_id, segment_id, 'ADDED' AS action, added_at AS at, expires_at, operation_id FROM stories
            UNION ALL
            SELECT user_id, segment_id, 'REMOVED', turned_at, NULL, operation_id FROM stories
            WHERE kind IN (10, 11, 12, 13)
            UNION ALL
            SELECT user_id, segment_id, 'EXPIRY_CHANGED', turned_at, timestamptz '{base}' + interval '30 days',
                   operation_id
            FROM stories WHERE kind IN (16, 17)
            UNION ALL
            SELECT user_id, segment_id, 'EXPIRED', expires_at, NULL, NULL FROM stories WHERE kind IN (14, 15)
            UNION ALL
            SELECT user_id, segment_id, CASE WHEN expires_at > {deleted} THEN 'SEGMENT_DELETED' ELSE 'EXPIRED' END,
                   least(expires_at, {deleted}), NULL, 1
            FROM lasting WHERE segment_id > {UNCLEANED}
        ) AS events ORDER BY at
        """,
        "DROP TABLE stories",
    )
    settle(database)


# Some of them are such that a spreadsheet might run, or a reader of CSV stumble over.
USER = f"""
    CASE u % 97 WHEN 0 THEN '=1+' WHEN 1 THEN '+' WHEN 2 THEN '-' WHEN 3 THEN '@' WHEN 4 THEN '''' WHEN 5 THEN 'a,"b" '
                WHEN 6 THEN '\\.' WHEN 7 THEN 'жён ' WHEN 8 THEN '"' WHEN 9 THEN ' ' ELSE '' END
    || (u * {SCATTER} % 4294967296)::text
"""


def stories_for(events: int) -> int:
    """How many it takes for so many events."""
    return int(events / EVENTS_OF_STORY)


def period(base: datetime) -> tuple[datetime, datetime]:
    """All of the history but its first and last hours."""
    return base - timedelta(days=DAYS - 0.5), base
