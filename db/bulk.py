"""Changes of many memberships at once, each in one statement, with the history of it.

Whoever uses them holds the segments (db/segments.py `hold`), so nobody else changes who is in these: a lock for each
user would be too many. Rows are written in the order of users, wherever they come from, so nobody waits in a circle.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import TextClause, text
from sqlalchemy.ext.asyncio import AsyncConnection

from db import buckets


@dataclass(frozen=True, slots=True)
class Pairs:
    """Users and segments, one of each at a time, in the order of users and without a repetition."""

    user_ids: Sequence[str]
    segment_ids: Sequence[int]


# An expiry is that of the row; of a member it moves. One statement, so no membership is without its event; what is
# unchanged is not written at all.
WRITE = """
    written AS (
        INSERT INTO memberships AS m (user_id, segment_id, added_at, expires_at)
        SELECT user_id, segment_id, CAST(:at AS timestamptz), expires_at FROM asked
        ON CONFLICT (user_id, segment_id) DO UPDATE
        SET added_at = CASE WHEN m.expires_at > :at THEN m.added_at ELSE excluded.added_at END,
            expires_at = excluded.expires_at
        WHERE m.expires_at <= :at OR m.expires_at <> excluded.expires_at
        RETURNING new.user_id, new.segment_id, new.expires_at, old.expires_at AS expired_at,
                  coalesce(old.expires_at > :at, false) AS was_member
    ), recorded AS (
        INSERT INTO membership_events (user_id, segment_id, action, at, expires_at, operation_id)
        SELECT user_id, segment_id,
               CAST(CASE WHEN was_member THEN 'EXPIRY_CHANGED' ELSE 'ADDED' END AS membership_action),
               CAST(:at AS timestamptz), expires_at, CAST(:operation_id AS bigint)
        FROM written
    ), expired AS (
        INSERT INTO membership_events (user_id, segment_id, action, at)
        SELECT user_id, segment_id, 'EXPIRED', expired_at FROM written WHERE expired_at <= :at
    )
"""
# Where none of them is there yet: a quarter faster than looking at each again. Nobody else adds any meanwhile.
NEW = """
    written AS (
        INSERT INTO memberships (user_id, segment_id, added_at, expires_at)
        SELECT user_id, segment_id, CAST(:at AS timestamptz), expires_at FROM asked
        RETURNING user_id, segment_id, expires_at, false AS was_member
    ), recorded AS (
        INSERT INTO membership_events (user_id, segment_id, action, at, expires_at, operation_id)
        SELECT user_id, segment_id, 'ADDED', CAST(:at AS timestamptz), expires_at, CAST(:operation_id AS bigint)
        FROM written
    )
"""
COUNT_WRITTEN = """
    SELECT segment_id, count(*) FILTER (WHERE NOT was_member), count(*) FILTER (WHERE was_member)
    FROM written GROUP BY segment_id
"""
ASKED = """
    asked AS (
        SELECT user_id, segment_id, coalesce(expires_at, 'infinity') AS expires_at
        FROM unnest(CAST(:user_ids AS text[]), CAST(:segment_ids AS integer[]), CAST(:expiries AS timestamptz[]))
            AS asked (user_id, segment_id, expires_at)
    )
"""
ASKED_OF_ONE = """
    asked AS (
        SELECT user_id, CAST(:segment_id AS integer) AS segment_id,
               coalesce(CAST(:expires_at AS timestamptz), 'infinity') AS expires_at
        FROM unnest(CAST(:user_ids AS text[])) AS user_id
    )
"""
ADD = text(f"WITH {ASKED}, {WRITE} {COUNT_WRITTEN}")
ADD_TO_ONE = text(f"WITH {ASKED_OF_ONE}, {WRITE} {COUNT_WRITTEN}")
ADD_NEW_TO_ONE = text(f"WITH {ASKED_OF_ONE}, {NEW} {COUNT_WRITTEN}")
# Whether there is anybody from the first to the last of them is asked first: a new list, or the next part of one, is
# often where nobody is.
ANY_BETWEEN = text("""
    SELECT EXISTS (SELECT FROM memberships WHERE segment_id = :segment_id AND user_id BETWEEN :first AND :last)
""")
ANY_THERE = text("""
    SELECT EXISTS (SELECT FROM memberships WHERE segment_id = :segment_id AND user_id = ANY(CAST(:user_ids AS text[])))
""")


@dataclass(frozen=True, slots=True)
class Added:
    """How many memberships of each segment, by its id, have begun, and of how many the expiry has moved."""

    began: Counter[int]
    moved: Counter[int]


async def add(
    tx: AsyncConnection, pairs: Pairs, expiries: Sequence[datetime | None], *, at: datetime, operation_id: int
) -> Added:
    """Make each pair a membership until its expiry, or for good; the rest was so already."""
    values: dict[str, object] = {"user_ids": list(pairs.user_ids), "at": at, "operation_id": operation_id}
    if len({*pairs.segment_ids}) == 1 and len({*expiries}) == 1:
        values |= {"segment_id": pairs.segment_ids[0], "expires_at": expiries[0]}
        statement = ADD_TO_ONE if await _any_there(tx, pairs) else ADD_NEW_TO_ONE
        result = await tx.execute(statement, values)
    else:
        values |= {"segment_ids": list(pairs.segment_ids), "expiries": list(expiries)}
        result = await tx.execute(ADD, values)
    added = Added(Counter(), Counter())
    for segment_id, began, moved in result:
        added.began[segment_id] += began
        added.moved[segment_id] += moved
    return added


async def _any_there(tx: AsyncConnection, pairs: Pairs) -> bool:
    """Whether any of these users of one segment has a row, ended or not."""
    place = {"segment_id": pairs.segment_ids[0], "first": pairs.user_ids[0], "last": pairs.user_ids[-1]}
    if not (await tx.execute(ANY_BETWEEN, place)).scalar_one():
        return False
    place = {"segment_id": pairs.segment_ids[0], "user_ids": list(pairs.user_ids)}
    there: bool = (await tx.execute(ANY_THERE, place)).scalar_one()
    return there


def removing(asked: str) -> str:
    """The memberships that are `gone` by removing users that are asked for, with their history."""
    return f"""
        gone AS (
            DELETE FROM memberships AS m USING {asked}
            WHERE m.user_id = asked.user_id AND m.segment_id = asked.segment_id AND m.expires_at > :at
            RETURNING m.user_id, m.segment_id
        ), recorded AS (
            INSERT INTO membership_events (user_id, segment_id, action, at, operation_id)
            SELECT user_id, segment_id, 'REMOVED', CAST(:at AS timestamptz), CAST(:operation_id AS bigint) FROM gone
        )
    """


def excluding(asked: str) -> str:
    """Users whom no rollout takes in any more, and who were in by that alone: who is a member by hand has not left by
    this, and so it comes before the removal.
    """
    return f"""
        WITH written AS (
            INSERT INTO exclusions (user_id, segment_id, excluded_at, operation_id)
            SELECT user_id, segment_id, CAST(:at AS timestamptz), CAST(:operation_id AS bigint) FROM {asked}
            ON CONFLICT (user_id, segment_id) WHERE ended_at = 'infinity' DO NOTHING
            RETURNING user_id, segment_id
        )
        SELECT segment_id, count(*) AS members FROM written JOIN segments AS s ON s.id = segment_id
        WHERE {buckets.sql("s.seed", "user_id")} < s.rollout
          AND NOT EXISTS (SELECT FROM memberships AS m WHERE m.user_id = written.user_id
                          AND m.segment_id = written.segment_id AND m.expires_at > :at)
        GROUP BY segment_id
    """


def ending_exclusions(asked: str) -> str:
    """Users whom rollouts may take in again."""
    return f"""
        UPDATE exclusions AS e SET ended_at = :at FROM {asked}
        WHERE e.user_id = asked.user_id AND e.segment_id = asked.segment_id AND e.ended_at = 'infinity'
    """


PAIRS = "unnest(CAST(:user_ids AS text[]), CAST(:segment_ids AS integer[])) AS asked (user_id, segment_id)"
REMOVE = text(f"WITH {removing(PAIRS)} SELECT segment_id, count(*) AS members FROM gone GROUP BY segment_id")
EXCLUDE = text(excluding(PAIRS))
END_EXCLUSIONS = text(ending_exclusions(PAIRS))


async def remove(tx: AsyncConnection, pairs: Pairs, *, at: datetime, operation_id: int) -> Counter[int]:
    """End those memberships that are there, and return how many of each segment those were."""
    return await _counted(tx, REMOVE, pairs, at=at, operation_id=operation_id)


async def exclude(tx: AsyncConnection, pairs: Pairs, *, at: datetime, operation_id: int) -> Counter[int]:
    """Let rollouts take these users in no more, and return how many of each segment were in by that alone.

    To be done before they are removed.
    """
    return await _counted(tx, EXCLUDE, pairs, at=at, operation_id=operation_id)


async def end_exclusions(tx: AsyncConnection, pairs: Pairs, *, at: datetime) -> None:
    """Let rollouts take these users in again."""
    await tx.execute(
        END_EXCLUSIONS, {"user_ids": list(pairs.user_ids), "segment_ids": list(pairs.segment_ids), "at": at}
    )


async def _counted(tx: AsyncConnection, statement: TextClause, pairs: Pairs, **values: object) -> Counter[int]:
    result = await tx.execute(
        statement,
        {"user_ids": list(pairs.user_ids), "segment_ids": list(pairs.segment_ids), **values},
    )
    return Counter({row.segment_id: row.members for row in result})
