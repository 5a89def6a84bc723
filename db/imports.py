"""What an import does to memberships, with the rows that it has put into a table of its own (db/staging.py)."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from db import buckets, bulk, staging


@dataclass(frozen=True, slots=True)
class Applied:
    """What became of the rows of some users."""

    added: int
    updated: int
    removed: int
    unchanged: int
    # Whose expiry has passed while they waited.
    invalid: int
    # Whose lists have changed.
    user_ids: Sequence[str]


@dataclass(frozen=True, slots=True)
class Change:
    """To which segment rows are applied, when, and by whose operation."""

    segment_id: int
    rolled_out: bool
    at: datetime
    operation_id: int | None


def _sliced(task_id: UUID) -> str:
    """What is `asked` for: rows whose expiry is still to come. Of the others is told what they are."""
    rows, rejects = staging.names(task_id)
    return f"""
        sliced AS (SELECT user_id, line, expires_at FROM {rows} WHERE {staging.SLICE}), refused AS (
            INSERT INTO {rejects} (line, code, reason, "row")
            SELECT line, 'IN_THE_PAST', 'The expiry had passed when it was the row''s turn.', user_id
            FROM sliced WHERE expires_at <= :at
            RETURNING line
        ), asked AS (
            SELECT user_id, CAST(:segment_id AS integer) AS segment_id, expires_at
            FROM sliced WHERE expires_at > :at ORDER BY user_id
        )
    """


REFUSED = """
    (SELECT count(*) FROM refused) AS invalid, (SELECT count(*) FROM asked) AS asked
"""
NOBODY = "CAST(ARRAY[] AS text[])"


def _written(user_ids: str) -> str:
    """What was `written`, counted, and whose lists that has changed."""
    return f"""
        SELECT (SELECT count(*) FROM written WHERE NOT was_member) AS added,
               (SELECT count(*) FROM written WHERE was_member) AS updated,
               0 AS removed, {REFUSED}, {user_ids} AS user_ids
    """


async def add(tx: AsyncConnection, task_id: UUID, change: Change, after: str, last: str | None) -> Applied:
    """Make the users of a slice members."""
    rows, _ = staging.names(task_id)
    place = {"after": after, "last": last, "segment_id": change.segment_id}
    if change.rolled_out:
        await _run(tx, bulk.ending_exclusions(_asked(rows)), change, place)
    # Nobody is between the first and the last of a list's next part, often; else each is looked for, and no others.
    there = f"""
        SELECT EXISTS (SELECT FROM memberships WHERE segment_id = :segment_id AND {staging.SLICE})
           AND EXISTS (SELECT FROM {rows} AS listed CROSS JOIN LATERAL (
                           SELECT FROM memberships AS m
                           WHERE m.segment_id = :segment_id AND m.user_id = listed.user_id LIMIT 1
                       ) AS found WHERE {staging.SLICE})
    """
    any_there: bool = (await _run(tx, there, change, place)).scalar_one()
    write = bulk.WRITE if any_there else bulk.NEW
    counted = _written("ARRAY(SELECT user_id FROM written)")
    result = await _run(tx, f"WITH {_sliced(task_id)}, {write} {counted}", change, place)
    return _applied(result.one())


async def remove(tx: AsyncConnection, task_id: UUID, change: Change, after: str, last: str | None) -> Applied:
    """End the memberships of a slice's users."""
    rows, _ = staging.names(task_id)
    place = {"after": after, "last": last, "segment_id": change.segment_id}
    excluded = 0
    if change.rolled_out:
        excluded = sum(row.members for row in await _run(tx, bulk.excluding(_asked(rows)), change, place))
    # Whoever was excluded may be read from the cache, too.
    users = "sliced" if change.rolled_out else "gone"
    statement = f"""
        WITH {_sliced(task_id)}, {bulk.removing("asked")}
        SELECT 0 AS added, 0 AS updated, (SELECT count(*) FROM gone) AS removed, {REFUSED},
               ARRAY(SELECT user_id FROM {users}) AS user_ids
    """
    return _applied((await _run(tx, statement, change, place)).one(), excluded)


async def try_out(
    tx: AsyncConnection, task_id: UUID, change: Change, after: str, last: str | None, *, removing: bool
) -> Applied:
    """What `add` or `remove` would say now; of memberships nothing is changed."""
    taken_in = f"""
        SELECT count(*) FROM asked JOIN segments AS s ON s.id = segment_id
        WHERE {buckets.sql("s.seed", "asked.user_id")} < s.rollout
          AND NOT EXISTS (SELECT FROM exclusions AS e WHERE e.user_id = asked.user_id
                          AND e.segment_id = asked.segment_id AND e.ended_at = 'infinity')
          AND asked.user_id NOT IN (SELECT user_id FROM there)
    """
    counted = (
        f"0 AS added, 0 AS updated, (SELECT count(*) FROM there) + ({taken_in}) AS removed"
        if removing
        else """
            (SELECT count(*) FROM asked) - (SELECT count(*) FROM there) AS added,
            (SELECT count(*) FROM there WHERE moved) AS updated, 0 AS removed
        """
    )
    statement = f"""
        WITH {_sliced(task_id)}, there AS (
            SELECT m.user_id, m.expires_at <> asked.expires_at AS moved
            FROM asked JOIN memberships AS m USING (user_id, segment_id) WHERE m.expires_at > :at
        )
        SELECT {counted}, {REFUSED}, {NOBODY} AS user_ids
    """
    place = {"after": after, "last": last, "segment_id": change.segment_id}
    return _applied((await _run(tx, statement, change, place)).one())


# Of a list that replaces another one: who is in it, and still will be.
LISTED = "EXISTS (SELECT FROM {rows} AS listed WHERE listed.user_id = m.user_id AND listed.expires_at > :at)"


async def count_unlisted(tx: AsyncConnection, task_id: UUID, change: Change) -> int:
    """How many members are not in the file."""
    listed = LISTED.format(rows=staging.names(task_id)[0])
    statement = (
        f"SELECT count(*) FROM memberships AS m WHERE segment_id = :segment_id AND expires_at > :at AND NOT {listed}"
    )
    found: int = (await _run(tx, statement, change, {"segment_id": change.segment_id})).scalar_one()
    return found


async def replace(tx: AsyncConnection, task_id: UUID, change: Change) -> Applied:
    """Make the file's users, and nobody else, members. Whose lists have changed is kept for `changed`."""
    rows, _ = staging.names(task_id)
    changed = f"{staging.CHANGED}{task_id.hex}"
    place: dict[str, object] = {"after": "", "last": None, "segment_id": change.segment_id}
    await tx.execute(text(f"DROP TABLE IF EXISTS {changed}"))
    await tx.execute(text(f'CREATE UNLOGGED TABLE {changed} (user_id text COLLATE "C" NOT NULL)'))
    exclude = """
        , excluded AS (
            INSERT INTO exclusions (user_id, segment_id, excluded_at, operation_id)
            SELECT user_id, segment_id, CAST(:at AS timestamptz), CAST(:operation_id AS bigint) FROM gone
            ON CONFLICT (user_id, segment_id) WHERE ended_at = 'infinity' DO NOTHING
        )
    """
    unlisted = f"""
        WITH {bulk.removing(_unlisted(rows))} {exclude if change.rolled_out else ""},
        noted AS (INSERT INTO {changed} SELECT user_id FROM gone)
        SELECT count(*) FROM gone
    """
    removed: int = (await _run(tx, unlisted, change, place)).scalar_one()
    if change.rolled_out:
        await _run(tx, bulk.ending_exclusions(_asked(rows)), change, place)
    note = f"noted AS (INSERT INTO {changed} SELECT user_id FROM written)"
    result = await _run(tx, f"WITH {_sliced(task_id)}, {bulk.WRITE}, {note} {_written(NOBODY)}", change, place)
    # These were not asked for.
    return dataclasses.replace(_applied(result.one()), removed=removed)


def _asked(rows: str) -> str:
    return f"""
        (SELECT user_id, CAST(:segment_id AS integer) AS segment_id FROM {rows}
         WHERE {staging.SLICE} AND expires_at > :at
         ORDER BY user_id) AS asked
    """


def _unlisted(rows: str) -> str:
    return f"""
        (SELECT user_id, segment_id FROM memberships AS m
         WHERE segment_id = :segment_id AND NOT {LISTED.format(rows=rows)}) AS asked
    """


async def _run(tx: AsyncConnection, statement: str, change: Change, values: dict[str, Any]) -> Any:
    return await tx.execute(text(statement), {**values, "at": change.at, "operation_id": change.operation_id})


def _applied(row: Any, excluded: int = 0) -> Applied:
    removed = row.removed + excluded
    unchanged = row.asked - row.added - row.updated - removed
    return Applied(row.added, row.updated, removed, unchanged, row.invalid, row.user_ids)
