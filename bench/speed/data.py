"""The data that everybody answers from: users by the million, six memberships of each, and a thousand segments."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from bench import seeds
from bench.databases import Database
from bench.figures import said

SEGMENTS = 1_000
OF_USER = 6
# Of a user's memberships one in so many has expired, and others have an end that is still to come.
EXPIRED, ENDING = 20, 5
LISTS = (Path(__file__).parents[1] / "peers" / "lists.sql").read_text()
# For the peer that makes its contract out of the tables.
ACTIVE = """
    CREATE VIEW peer.active_memberships AS
    SELECT user_id, slug, added_at, nullif(expires_at, 'infinity') AS expires_at
    FROM memberships JOIN segments ON id = segment_id WHERE expires_at > now() AND deleted_at IS NULL
"""
PEER_KEY = "peer:"
# What the peers keep a list for, in seconds, a tenth more or less.
TTL = (45, 55)
INDEXES = ("memberships_segment", "memberships_expiry", "membership_events_user")
ADDITIONS = """
    INSERT INTO membership_events (user_id, segment_id, action, at, expires_at, operation_id)
    SELECT user_id, segment_id, 'ADDED', added_at, expires_at, 1 FROM memberships
"""


@dataclass(frozen=True, slots=True)
class Data:
    database: Database
    users: int

    @property
    def memberships(self) -> int:
        return self.users * OF_USER

    def user_ids(self, first: int, number: int) -> list[str]:
        """So many users from that one on, the first again behind the last."""
        return [seeds.user_id((first + place) % self.users) for place in range(number)]

    def slug(self, number: int, place: int) -> str:
        """The slug of one of the user's memberships; some of these have expired."""
        return f"S{_segment(number, place)}"


def _segment(number: int, place: int) -> int:
    # The steps share no factor with the number of segments: no user is in one of them twice.
    return (number * 7 + place * 149) % SEGMENTS + 1


@contextmanager
def seeded(cluster: Database, name: str, users: int, *, history: bool) -> Iterator[Data]:
    """A database of that name in the cluster, full and at rest, for as long as the block lasts."""
    said(f"seeding {name}: {users} users, {users * OF_USER} memberships")
    maintenance = replace(cluster, url=cluster.url.set(database="postgres"))
    maintenance.sql(f"CREATE DATABASE {name}")
    folder = cluster.folder / name
    folder.mkdir()
    database = replace(cluster, url=cluster.url.set(database=name), folder=folder)
    _fill(database, users, history=history)
    yield Data(database, users)
    maintenance.sql(f"DROP DATABASE {name} WITH (FORCE)")


def _fill(database: Database, users: int, *, history: bool) -> None:
    base = seeds.prepare(database)
    seeds.segments(database, SEGMENTS)
    # Made anew behind the rows, which takes a fraction of keeping them current meanwhile.
    indexes = [
        database.sql(f"SELECT pg_get_indexdef('{index}'::regclass)").replace(" ON ONLY ", " ON ") for index in INDEXES
    ]
    database.sql(
        "SET maintenance_work_mem = '512MB'",
        "ALTER TABLE memberships DROP CONSTRAINT memberships_pkey",
        *(f"DROP INDEX {index}" for index in INDEXES),
        f"""
        INSERT INTO memberships (user_id, segment_id, added_at, expires_at)
        SELECT (n % {users} * {seeds.SCATTER} % 4294967296)::text,
               ((n % {users} * 7 + n / {users} * 149) % {SEGMENTS} + 1)::integer,
               timestamptz '{base}' - interval '10 days' - n % 1000003 * interval '15 seconds',
               CASE
                   WHEN (n % {users} + n / {users} * 3) % {EXPIRED} = 0 THEN timestamptz '{base}' - interval '1 day'
                   WHEN (n % {users} + n / {users}) % {ENDING} = 1 THEN
                        timestamptz '{base}' + interval '90 days' + n % 86400 * interval '1 second'
                   ELSE 'infinity' END
        FROM generate_series(0, {users * OF_USER - 1}::bigint) AS n
        """,
        *([ADDITIONS] if history else []),
        "ALTER TABLE memberships ADD CONSTRAINT memberships_pkey PRIMARY KEY (user_id, segment_id)",
        *indexes,
        "CREATE SCHEMA peer",
        ACTIVE,
    )
    seeds.settle(database)


def stored_by_peers(data: Data, user_ids: Sequence[str]) -> list[tuple[str, str]]:
    """Key and list of each user, as the peers would have stored it."""
    found: dict[str, str] = {}
    for some in batched(user_ids, 5_000):  # what fits into one argument of a program
        listed = ",".join(some)
        lines = data.database.sql(LISTS.replace("$1", f"'{{{listed}}}'::text[]")).splitlines()
        found |= {user_id: text for user_id, _, text in (line.partition("|") for line in lines)}
    return [(PEER_KEY + user_id, found.get(user_id, "[]")) for user_id in user_ids]


def batched(ids: Sequence[str], size: int) -> Iterator[Sequence[str]]:
    return (ids[first : first + size] for first in range(0, len(ids), size))
