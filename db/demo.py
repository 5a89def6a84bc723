"""Filling an empty database with a history that is made up: GraphQL cannot, for it dates nothing into the past.

Whoever fills holds one transaction from `begin` to its commit. Nobody sees any of it before.
"""

import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, NamedTuple

import asyncpg
import orjson
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection

from db import partitions
from db.tables import MembershipAction

# Months before this one that get a partition: a year, whatever the day.
MONTHS = 12
# Rows of one statement: none takes as long as the server lets it.
ROWS = 20_000
# As COPY reads them.
NULL, FOR_GOOD = "\\N", "infinity"
LASTING = frozenset({MembershipAction.ADDED, MembershipAction.EXPIRY_CHANGED})


class NewSegment(NamedTuple):
    slug: str
    description: str
    rollout: int | None
    seed: str
    created_at: datetime
    updated_at: datetime
    deleted_at: datetime | None


class Operation(NamedTuple):
    client: str
    kind: str
    at: datetime
    result: dict[str, Any]


class Event(NamedTuple):
    user_id: str
    segment_id: int
    action: MembershipAction
    at: datetime
    # None: for good, or the event ends the membership.
    expires_at: datetime | None
    # Which of the batch's operations has caused it; None when the membership expired.
    operation: int | None


class RolloutChange(NamedTuple):
    segment_id: int
    at: datetime
    rollout: int | None
    operation: int


class Member(NamedTuple):
    user_id: str
    segment_id: int
    added_at: datetime
    expires_at: datetime | None


@dataclass(slots=True)
class Batch:
    """What happened in some time, in its order."""

    operations: list[Operation] = field(default_factory=list)
    events: list[Event] = field(default_factory=list)
    rollouts: list[RolloutChange] = field(default_factory=list)


async def begin(tx: AsyncConnection) -> datetime | None:
    """Keep the segments as they are until the transaction ends, make the months, and return the database's clock; None
    when there is a segment or an operation, or somebody is about to make one.
    """
    # It may take longer than what answers callers does; no statement of it may.
    await tx.execute(text("SET LOCAL transaction_timeout = 0"))
    # Who changes segments changes this row first. Without segments nobody can change memberships.
    locked = await tx.execute(text("SELECT version FROM catalogue FOR UPDATE SKIP LOCKED"))
    if locked.first() is None:
        return None
    # A statement of its own: it sees what was committed before the lock was granted.
    result = await tx.execute(
        text("""
            SELECT clock_timestamp() WHERE NOT EXISTS (SELECT FROM segments) AND NOT EXISTS (SELECT FROM operations)
        """)
    )
    now: datetime | None = result.scalar_one_or_none()
    if now is not None:
        await partitions.make(tx, behind=MONTHS)
    return now


async def add_segments(tx: AsyncConnection, segments: Sequence[NewSegment]) -> list[int]:
    """Add the segments and return their ids, in the same order."""
    slugs, descriptions, rollouts, seeds, created, updated, deleted = _columns(segments)
    result = await tx.execute(
        text("""
            WITH catalogue AS (UPDATE catalogue SET version = version + 1 RETURNING version)
            INSERT INTO segments (slug, description, rollout, seed, created_at, updated_at, deleted_at, version)
            SELECT slug, description, rollout, seed, created_at, updated_at, deleted_at, version
            FROM catalogue, unnest(
                CAST(:slugs AS text[]), CAST(:descriptions AS text[]), CAST(:rollouts AS integer[]),
                CAST(:seeds AS text[]), CAST(:created AS timestamptz[]), CAST(:updated AS timestamptz[]),
                CAST(:deleted AS timestamptz[])
            ) WITH ORDINALITY AS s (slug, description, rollout, seed, created_at, updated_at, deleted_at, number)
            ORDER BY number
            RETURNING slug, id
        """),
        {
            "slugs": slugs,
            "descriptions": descriptions,
            "rollouts": rollouts,
            "seeds": seeds,
            "created": created,
            "updated": updated,
            "deleted": deleted,
        },
    )
    ids = {row.slug: row.id for row in result}
    return [ids[segment.slug] for segment in segments]


async def write(tx: AsyncConnection, batch: Batch) -> None:
    """Write what happened next. Operations get their ids in the order of time, as they do in life."""
    # Somebody else may be asking for a report, and take ids in between.
    taken = await tx.execute(
        text("SELECT nextval(pg_get_serial_sequence('operations', 'id')) FROM generate_series(1, :number)"),
        {"number": len(batch.operations)},
    )
    ids = sorted(taken.scalars())
    await _copy(
        tx,
        "operations (id, client, kind, result, at, fingerprint)",
        # What was done under no key is compared with no retry: the fingerprint is empty.
        [
            f"{ids[number]}\t{client}\t{kind}\t{orjson.dumps(result).decode()}\t{at}\t"
            for number, (client, kind, at, result) in enumerate(batch.operations)
        ],
    )
    await _copy(
        tx,
        "membership_events (user_id, segment_id, action, at, expires_at, operation_id)",
        [
            f"{user_id}\t{segment_id}\t{action}\t{at}\t{(expires_at or FOR_GOOD) if action in LASTING else NULL}\t"
            f"{NULL if operation is None else ids[operation]}"
            for user_id, segment_id, action, at, expires_at, operation in batch.events
        ],
    )
    await _copy(
        tx,
        "rollout_changes (segment_id, at, rollout, operation_id)",
        [
            f"{segment_id}\t{at}\t{NULL if rollout is None else rollout}\t{ids[operation]}"
            for segment_id, at, rollout, operation in batch.rollouts
        ],
    )


async def add_members(tx: AsyncConnection, members: Sequence[Member]) -> None:
    """Add the memberships that all of that has led to."""
    for first in range(0, len(members), ROWS):
        await _copy(
            tx,
            "memberships (user_id, segment_id, added_at, expires_at)",
            [
                f"{user_id}\t{segment_id}\t{added_at}\t{expires_at or FOR_GOOD}"
                for user_id, segment_id, added_at, expires_at in members[first : first + ROWS]
            ],
        )


async def _copy(tx: AsyncConnection, columns: str, lines: list[str]) -> None:
    """Add rows to a table, in half of the time that an INSERT takes. No id or slug has anything to escape."""
    if not lines:
        return
    table, _, names = columns.rstrip(")").partition(" (")
    driver = (await tx.get_raw_connection()).driver_connection
    assert driver is not None
    try:
        source = io.BytesIO("\n".join([*lines, ""]).encode())
        await driver.copy_to_table(table, columns=names.split(", "), source=source)
    except (asyncpg.PostgresError, asyncpg.InterfaceError) as error:
        # As every other statement fails.
        raise DBAPIError("COPY", None, error) from error


async def finish(tx: AsyncConnection) -> int:
    """Note who deleted the segments that were, and that they are clean; returns the catalogue's version."""
    await tx.execute(
        text("""
            UPDATE segments AS s SET deleted_by = o.id, cleaned_at = s.deleted_at + interval '20 seconds'
            FROM operations AS o WHERE o.kind = 'deleteSegment' AND s.id = CAST(o.result ->> 'segment_id' AS integer)
        """)
    )
    # So that the first reads are planned well, and nothing waits for the autovacuum to come by.
    await tx.execute(text("ANALYZE segments, rollout_changes, memberships, membership_events, operations"))
    version: int = (await tx.execute(text("SELECT version FROM catalogue"))).scalar_one()
    return version


def _columns(rows: Sequence[tuple[Any, ...]]) -> list[list[Any]]:
    return [list(column) for column in zip(*rows, strict=True)]
