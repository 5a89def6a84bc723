"""One row per mutation that took effect: who asked for what, under which key, and what came of it."""

from dataclasses import dataclass
from typing import Any

from sqlalchemy import bindparam, text
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.ext.asyncio import AsyncConnection

from db.partitions import OLDEST

SETTLE = text("UPDATE operations SET result = :result WHERE id = :id").bindparams(bindparam("result", type_=JSONB))


@dataclass(frozen=True, slots=True)
class Recorded:
    id: int
    fingerprint: bytes
    result: dict[str, Any]


async def claim(tx: AsyncConnection, client: str, kind: str, key: str, fingerprint: bytes) -> int | None:
    """Take the key and return the id of the new operation, or None if it is taken.

    While another transaction that takes the same key is at work this waits for its end, up to the lock timeout.
    """
    result = await tx.execute(
        text("""
            INSERT INTO operations (client, kind, idempotency_key, fingerprint)
            VALUES (:client, :kind, :key, :fingerprint)
            ON CONFLICT (client, idempotency_key) DO NOTHING
            RETURNING id
        """),
        {"client": client, "kind": kind, "key": key, "fingerprint": fingerprint},
    )
    return result.scalar_one_or_none()


async def by_key(conn: AsyncConnection, client: str, key: str) -> Recorded | None:
    """What the key was used for. A statement of its own: the snapshot of `claim` is older than the winner's commit."""
    result = await conn.execute(
        text(
            "SELECT id, fingerprint, result FROM operations WHERE client = :client AND idempotency_key = :key"
        ).columns(result=JSONB),
        {"client": client, "key": key},
    )
    row = result.one_or_none()
    return None if row is None else Recorded(*row)


async def settle(tx: AsyncConnection, operation_id: int, result: dict[str, Any]) -> None:
    """Keep what came of the operation, in its own transaction."""
    await tx.execute(SETTLE, {"id": operation_id, "result": result})


async def give_up_keys(tx: AsyncConnection, *, hours: int, after: int, limit: int) -> list[int]:
    """Let up to `limit` keys older than so many hours be used anew, of operations behind `after`, the oldest first.

    Returns the operations' ids. What they did stays on record.
    """
    result = await tx.execute(
        text("""
            UPDATE operations SET idempotency_key = NULL
            WHERE id = ANY (ARRAY(
                SELECT id FROM operations
                WHERE id > :after AND idempotency_key IS NOT NULL AND at < now() - make_interval(hours => :hours)
                ORDER BY id LIMIT :limit FOR UPDATE SKIP LOCKED
            )) RETURNING id
        """),
        {"hours": hours, "after": after, "limit": limit},
    )
    return list(result.scalars())


async def delete_unexplaining(tx: AsyncConnection, *, limit: int) -> int:
    """Forget those of the `limit` oldest operations that are older than all history, and whose keys are given up."""
    # An event is dated later than its operation, in the same transaction: an hour is more than any takes. Those of an
    # import come when its file has, and was its turn.
    result = await tx.execute(
        text(f"""
            DELETE FROM operations WHERE id = ANY (ARRAY(
                SELECT id FROM (SELECT id, at, kind, idempotency_key FROM operations ORDER BY id LIMIT :limit) AS oldest
                WHERE idempotency_key IS NULL AND at < ({OLDEST})
                      - CASE kind WHEN 'importMembers' THEN interval '31 days' ELSE interval '1 hour' END
            ))
        """),
        {"limit": limit},
    )
    return result.rowcount
