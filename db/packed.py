"""Users' memberships on the way from PostgreSQL to the cache and back: bytes that nothing in between has to parse."""

import struct
from collections.abc import Sequence
from dataclasses import dataclass

from db.bare import Pool
from db.clock import ALWAYS
from db.statement import INT, TEXTS, Statement, integer

# One membership of a list: segment id, added_at, expires_at; instants in microseconds since db.clock.EPOCH. PostgreSQL
# writes the very same bytes. A user whom the segment's rollout may not take in is there with an expiry of EXCLUDED.
PACKED = struct.Struct(">iqq")
EXCLUDED = ALWAYS
# (segment id, added, expires) of each membership of a list, ordered by segment id.
unpacked = PACKED.iter_unpack
length = INT.unpack_from

# The row of nobody has the catalogue's version, of the same snapshot: whoever knows that version knows every segment
# listed. User by user, so that one plan is right for one user and for a thousand (db/connections.py).
OF_USERS = Statement(
    """
    SELECT NULL AS user_id, int8send(version) AS packed FROM catalogue
    UNION ALL
    SELECT asked.user_id, listed.packed
    FROM unnest($1::text[]) AS asked (user_id)
    CROSS JOIN LATERAL (
        SELECT string_agg(int4send(segment_id) || timestamptz_send(added_at) || timestamptz_send(expires_at), ''
                          ORDER BY segment_id) AS packed
        FROM (
            SELECT segment_id, added_at, expires_at FROM memberships
            WHERE user_id = asked.user_id AND expires_at > now()
            UNION ALL
            SELECT segment_id, excluded_at, '-infinity' FROM exclusions
            WHERE user_id = asked.user_id AND ended_at = 'infinity'
        ) AS each
    ) AS listed
    WHERE listed.packed IS NOT NULL
    """,
    TEXTS,
)


@dataclass(frozen=True, slots=True)
class Packed:
    """The explicit memberships of some users, as of one snapshot."""

    catalogue_version: int
    # By user id; a user without any is absent.
    lists: dict[str, bytes]


async def of_users(pool: Pool, user_ids: Sequence[str]) -> Packed:
    """The memberships that have not expired; those of deleted segments are among them until they are cleaned up."""
    version, lists = 0, {}
    for row in await pool.fetch(user_ids):
        # What `columns` does, for what there is of every user.
        (size,) = length(row)
        if size < 0:
            version = integer(row[8:])
        else:
            lists[row[4 : 4 + size].decode()] = row[8 + size :]
    return Packed(version, lists)
