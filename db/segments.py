"""Segments, by slug and by id."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

COLUMNS = "id, slug, description, rollout, created_at, updated_at, deleted_at"


@dataclass(frozen=True, slots=True)
class Segment:
    id: int
    slug: str
    description: str | None
    # Hundredths of a percent of all users that are members without being added; None: no rollout.
    rollout: int | None
    created_at: datetime
    updated_at: datetime
    deleted_at: datetime | None

    @property
    def rollout_percent(self) -> float | None:
        return None if self.rollout is None else self.rollout / 100


async def insert(tx: AsyncConnection, slug: str, description: str | None) -> int | None:
    """Create a segment and return its id, or None if the slug is taken."""
    # The catalogue's row first: whoever creates the same slug at the same time waits there.
    result = await tx.execute(
        text("""
            WITH catalogue AS (UPDATE catalogue SET version = version + 1 RETURNING version)
            INSERT INTO segments (slug, description, version)
            SELECT :slug, :description, version FROM catalogue
            ON CONFLICT (slug) WHERE deleted_at IS NULL DO NOTHING
            RETURNING id
        """),
        {"slug": slug, "description": description},
    )
    return result.scalar_one_or_none()


# Row locks let one who shares pass one who waits to change: with users being added all the time, a deletion would wait
# for ever. Advisory locks queue in order. Slugs share a few of them, for a list of slugs may be long. Changes of one
# user share the same ones, in the function that db/changes.py calls: no version of it may have others.
QUEUES = 64
TAKE_QUEUES = text(f"""
    SELECT set_config('lock_timeout', :patience, true), pg_advisory_xact_lock(hashtext('segments'), queue)
    FROM (SELECT DISTINCT hashtext(slug) & {QUEUES - 1} AS queue FROM unnest(CAST(:slugs AS text[])) AS slug
          ORDER BY queue) AS queues
""")
# A change of a hundred thousand users takes its time, and whoever waits for it can. Shorter than any statement may take
# (db/connections.py).
PATIENCE = "8s"


async def lock(tx: AsyncConnection, slug: str) -> int | None:
    """Keep a live segment as it is until the transaction ends, and return its id; None when there is none.

    Waits for transactions that are changing who is in it, and makes later ones wait.
    """
    await tx.execute(TAKE_QUEUES, {"slugs": [slug], "patience": PATIENCE})
    result = await tx.execute(
        text("SELECT id FROM segments WHERE slug = :slug AND deleted_at IS NULL FOR NO KEY UPDATE"), {"slug": slug}
    )
    return result.scalar_one_or_none()


async def describe(tx: AsyncConnection, segment_id: int, description: str | None) -> None:
    """Set the description of a segment that is locked."""
    await tx.execute(
        text("""
            WITH catalogue AS (UPDATE catalogue SET version = version + 1 RETURNING version)
            UPDATE segments SET description = :description, updated_at = clock_timestamp(), version = catalogue.version
            FROM catalogue WHERE id = :id
        """),
        {"id": segment_id, "description": description},
    )


# The clock is read after the lock was granted: every membership's last event is earlier. Unless the clock was set back,
# or that of a new primary lags behind the old one's.
NEXT_INSTANT = """
    greatest(
        clock_timestamp(),
        (SELECT max(at) + interval '1 microsecond' FROM membership_events
         WHERE segment_id = ANY(:segment_ids) AND at >= now()),
        (SELECT max(at) + interval '1 microsecond' FROM rollout_changes WHERE segment_id = ANY(:segment_ids)),
        (SELECT max(excluded_at) + interval '1 microsecond' FROM exclusions
         WHERE segment_id = ANY(:segment_ids) AND excluded_at >= now())
    )
"""


async def next_instant(tx: AsyncConnection, segment_ids: Sequence[int]) -> datetime:
    """When a change of segments that are locked happens: now, and after everything that happened in them."""
    result = await tx.execute(text(f"SELECT {NEXT_INSTANT}"), {"segment_ids": list(segment_ids)})
    instant: datetime = result.scalar_one()
    return instant


async def roll_out(tx: AsyncConnection, segment_id: int, rollout: int | None, operation_id: int) -> None:
    """Have a segment that is locked take in so many hundredths of a percent of all users from now on; None ends it."""
    await tx.execute(
        text(f"""
            WITH catalogue AS (UPDATE catalogue SET version = version + 1 RETURNING version), changed AS (
                UPDATE segments SET rollout = :rollout, updated_at = clock_timestamp(), version = catalogue.version
                FROM catalogue WHERE id = :id AND rollout IS DISTINCT FROM :rollout RETURNING id
            )
            INSERT INTO rollout_changes (segment_id, at, rollout, operation_id)
            SELECT id, {NEXT_INSTANT}, :rollout, :operation_id FROM changed
        """),
        {"id": segment_id, "segment_ids": [segment_id], "rollout": rollout, "operation_id": operation_id},
    )


async def delete(tx: AsyncConnection, segment_id: int, operation_id: int) -> None:
    """Mark a segment that is locked as deleted; its memberships end at that instant, however many there are."""
    await tx.execute(
        text(f"""
            WITH catalogue AS (UPDATE catalogue SET version = version + 1 RETURNING version),
            clock AS (SELECT {NEXT_INSTANT} AS instant)
            UPDATE segments
            SET deleted_at = clock.instant, updated_at = clock.instant, deleted_by = :operation_id,
                version = catalogue.version
            FROM catalogue, clock WHERE id = :id
        """),
        {"id": segment_id, "segment_ids": [segment_id], "operation_id": operation_id},
    )


@dataclass(frozen=True, slots=True)
class Held:
    """A live segment that stays as it is until the transaction ends."""

    id: int
    # Whether it has, or has had, a rollout: then it matters who was removed from it.
    rolled_out: bool


async def hold(tx: AsyncConnection, slugs: Sequence[str], patience: str = PATIENCE) -> dict[str, Held]:
    """Those of the slugs that name live segments: nobody else changes them, or who is in them, until the transaction
    ends.
    """
    await tx.execute(TAKE_QUEUES, {"slugs": list(slugs), "patience": patience})
    result = await tx.execute(
        text("""
            SELECT slug, id, EXISTS (SELECT FROM rollout_changes WHERE segment_id = id) AS rolled_out FROM segments
            WHERE slug = ANY(:slugs) AND deleted_at IS NULL ORDER BY id FOR NO KEY UPDATE
        """),
        {"slugs": list(slugs)},
    )
    return {row.slug: Held(row.id, row.rolled_out) for row in result}


async def by_id(conn: AsyncConnection, segment_id: int) -> Segment | None:
    """The segment, live or deleted."""
    result = await conn.execute(text(f"SELECT {COLUMNS} FROM segments WHERE id = :id"), {"id": segment_id})
    return _segment(result.one_or_none())


async def by_slug(conn: AsyncConnection, slug: str) -> Segment | None:
    """The live segment of that name."""
    result = await conn.execute(
        text(f"SELECT {COLUMNS} FROM segments WHERE slug = :slug AND deleted_at IS NULL"), {"slug": slug}
    )
    return _segment(result.one_or_none())


async def page(
    conn: AsyncConnection, *, slug_prefix: str, deleted: bool, after: tuple[str, int], limit: int
) -> list[Segment]:
    """Up to `limit` segments whose slug begins so, ordered by slug and then id, behind the pair `after`."""
    result = await conn.execute(
        text(f"""
            SELECT {COLUMNS} FROM segments
            WHERE slug ^@ :slug_prefix AND deleted_at IS {"NOT NULL" if deleted else "NULL"}
              AND slug >= :after_slug AND (slug, id) > (:after_slug, :after_id)
            ORDER BY slug, id LIMIT :limit
        """),
        {"slug_prefix": slug_prefix, "after_slug": after[0], "after_id": after[1], "limit": limit},
    )
    return [Segment(*row) for row in result]


def _segment(row: Sequence[Any] | None) -> Segment | None:
    return None if row is None else Segment(*row)
