"""Changing one user's memberships in one statement: claim, effect, history and result, and their commit.

What it does is said where the function is made, in `migrations/versions/0005_changes.py`.
"""

from collections.abc import Sequence
from datetime import datetime
from typing import Any, NamedTuple

from asyncpg.exceptions import LockNotAvailableError

from db.bare import Pool
from db.statement import BIGINT, BYTES, INSTANT, INTEGER, TEXT, TEXTS, Statement, columns, json

CHANGE = Statement(
    "SELECT change_user_segments_1($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)",
    *(TEXT, TEXT, TEXT, BYTES, BIGINT, TEXT, TEXTS, INTEGER, INTEGER, INSTANT),
)
# How the function waits for another transaction with the same key: all its other waiting is for locks.
CLAIM = "INSERT INTO operations"


class Change(NamedTuple):
    """Slugs are distinct, and none is in both lists; of `ttl_days` and `expires_at` at most one is given."""

    user_id: str
    add: Sequence[str]
    remove: Sequence[str]
    ttl_days: int | None
    expires_at: datetime | None


class Answer(NamedTuple):
    """What came of a change, or else why nothing did: then it has left nothing behind."""

    outcome: dict[str, Any] | None = None
    # Whether it is what an earlier call came to; then this one did nothing.
    replayed: bool = False
    # The key has another fingerprint, or is still at work.
    reused: bool = False
    in_progress: bool = False
    # The slugs that no live segment has.
    unknown: Sequence[str] = ()
    # `expires_at` is not in the future.
    past: bool = False


async def of_user(
    pool: Pool, change: Change, *, client: str, kind: str, key: str, fingerprint: bytes, attempt: int
) -> Answer:
    """Make the change unless the key was used, and have it committed; else answer what it was used for.

    Who has lost the answer asks again with the same `attempt`: what it came to is no replay then. Raises what
    `Pool.fetch` raises.
    """
    slugs = [*change.add, *change.remove]
    try:
        (row,) = await pool.fetch(
            client,
            kind,
            key,
            fingerprint,
            attempt,
            change.user_id,
            slugs,
            len(change.add),
            change.ttl_days,
            change.expires_at,
        )
    except LockNotAvailableError as error:
        if CLAIM in (error.context or ""):
            return Answer(in_progress=True)
        raise
    (answer,) = columns(row)
    assert answer is not None
    return Answer(**json(answer))
