"""Tokens of callers."""

from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from db.tables import Scope

# For how long it has been good, and will be, the database's clock says.
COLUMNS = """
    id, name, CAST(scope AS text) AS scope, hash, created_at, expires_at, revoked_at, last_used_at,
    CAST(extract(epoch FROM expires_at - clock_timestamp()) AS float8) AS seconds_left
"""


@dataclass(frozen=True, slots=True)
class Token:
    id: str
    # Whose it is.
    name: str
    scope: Scope
    # Of its secret.
    hash: bytes
    created_at: datetime
    expires_at: datetime | None
    revoked_at: datetime | None
    last_used_at: datetime | None
    # Until it expires, when it was looked at; None: it never does.
    seconds_left: float | None


async def insert(
    tx: AsyncConnection, id: str, name: str, scope: Scope, hash: bytes, expires_at: datetime | None
) -> None:
    await tx.execute(
        text("""
            INSERT INTO tokens (id, name, scope, hash, expires_at)
            VALUES (:id, :name, CAST(:scope AS token_scope), :hash, :expires_at)
        """),
        {"id": id, "name": name, "scope": scope.value, "hash": hash, "expires_at": expires_at},
    )


async def by_ids(conn: AsyncConnection, ids: Collection[str]) -> dict[str, Token]:
    """Those of the tokens that there are, good or not."""
    result = await conn.execute(text(f"SELECT {COLUMNS} FROM tokens WHERE id = ANY(:ids)"), {"ids": list(ids)})
    return {row.id: _token(row) for row in result}


async def everyone(conn: AsyncConnection) -> list[Token]:
    """All that there ever were, by name, then the newest first."""
    result = await conn.execute(text(f"SELECT {COLUMNS} FROM tokens ORDER BY name, created_at DESC, id"))
    return [_token(row) for row in result]


async def any_good(conn: AsyncConnection) -> bool:
    """Whether anybody has a token that is good."""
    result = await conn.execute(
        text("""
            SELECT EXISTS (
                SELECT FROM tokens
                WHERE revoked_at IS NULL AND (expires_at IS NULL OR expires_at > clock_timestamp())
            )
        """)
    )
    found: bool = result.scalar_one()
    return found


async def revoke(tx: AsyncConnection, id: str) -> bool:
    """Let it be good no longer; False when it was revoked before, or is none."""
    result = await tx.execute(
        text("UPDATE tokens SET revoked_at = clock_timestamp() WHERE id = :id AND revoked_at IS NULL"), {"id": id}
    )
    return bool(result.rowcount)


async def note_use(tx: AsyncConnection, ids: Collection[str]) -> bool:
    """Note that they were just used, unless somebody has within the last minute; whether anything was noted."""
    result = await tx.execute(
        text("""
            UPDATE tokens SET last_used_at = clock_timestamp()
            WHERE id IN (SELECT id FROM tokens WHERE id = ANY(:ids) ORDER BY id FOR UPDATE)
              AND (last_used_at IS NULL OR last_used_at < clock_timestamp() - interval '1 minute')
        """),
        {"ids": list(ids)},
    )
    return bool(result.rowcount)


def _token(row: Any) -> Token:
    return Token(row.id, row.name, Scope(row.scope), *row[3:])
