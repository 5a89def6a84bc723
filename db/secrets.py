"""What processes share and nobody else knows."""

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

# Signs links to files. It was drawn when the database was made.
LINKS = "links"


async def by_name(conn: AsyncConnection, name: str) -> bytes:
    """The secret of that name."""
    result = await conn.execute(text("SELECT value FROM secrets WHERE name = :name"), {"name": name})
    value: bytes = result.scalar_one()
    return value
