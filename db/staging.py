"""What an import has read of its file and not applied yet: two tables of its own, one for rows and one for rejects.

Rows are not logged: what a crash of the database takes of them is read from the file again.
"""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from io import BytesIO
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from db import csv_copies

ROWS, REJECTS, CHANGED = "import_rows_", "import_rejects_", "import_changed_"
COLUMNS = ("user_id", "line", "expires_at")
REJECT_COLUMNS = ("line", "code", "reason", "row")
# The users behind `after`, up to `last`.
SLICE = "user_id > :after AND (CAST(:last AS text) IS NULL OR user_id <= :last)"


@dataclass(frozen=True, slots=True)
class Reject:
    line: int
    code: str
    reason: str
    # What stood there, as far as it can be shown.
    row: str


def names(task_id: UUID) -> tuple[str, str]:
    return f"{ROWS}{task_id.hex}", f"{REJECTS}{task_id.hex}"


async def make(tx: AsyncConnection, task_id: UUID) -> None:
    """Make the tables, unless they are there."""
    rows, rejects = names(task_id)
    await tx.execute(
        text(f"""
            CREATE UNLOGGED TABLE IF NOT EXISTS {rows}
            (user_id text COLLATE "C" NOT NULL, line bigint NOT NULL, expires_at timestamptz NOT NULL)
            WITH (autovacuum_enabled = off)
        """)
    )
    await tx.execute(
        text(f"""
            CREATE TABLE IF NOT EXISTS {rejects}
            (line bigint NOT NULL, code text NOT NULL, reason text NOT NULL, "row" text NOT NULL)
        """)
    )


async def empty(tx: AsyncConnection, task_id: UUID) -> None:
    """Remove all rows, and what makes them found."""
    await tx.execute(text(f"DROP TABLE {names(task_id)[0]}"))
    await make(tx, task_id)


async def count(conn: AsyncConnection, task_id: UUID) -> int:
    """How many rows there are."""
    found: int = (await conn.execute(text(f"SELECT count(*) FROM {names(task_id)[0]}"))).scalar_one()
    return found


async def keep(tx: AsyncConnection, task_id: UUID, copied: bytes, rejected: Sequence[Reject]) -> None:
    """Add rows, in COPY's text format, and rejects. The transaction must have begun with another statement."""
    rows, rejects = names(task_id)
    driver = (await tx.get_raw_connection()).driver_connection
    assert driver is not None
    if copied:
        await driver.copy_to_table(rows, source=BytesIO(copied), columns=COLUMNS)
    if rejected:
        # No field has a tab or a line end.
        lines = "".join(f"{each.line}\t{each.code}\t{each.reason}\t{each.row}\n" for each in rejected)
        escaped = lines.replace("\\", "\\\\").encode()
        await driver.copy_to_table(rejects, source=BytesIO(escaped), columns=REJECT_COLUMNS)


# The first row of a user counts. What is told of the others is told once, also if they were read again.
DUPLICATES = """
    WITH told AS (
        SELECT ctid, line, first_value(line) OVER (PARTITION BY user_id ORDER BY line) AS first FROM {rows}
    ), gone AS (
        DELETE FROM {rows} AS r USING told WHERE r.ctid = told.ctid AND told.line > told.first
        RETURNING r.user_id, r.line, told.first
    ), refused AS (
        INSERT INTO {rejects} (line, code, reason, "row")
        SELECT line, 'DUPLICATE', format('Line %s has this user already.', first), user_id FROM gone WHERE :tell
    )
    SELECT count(*) FROM gone
"""


async def sort(tx: AsyncConnection, task_id: UUID, *, tell: bool) -> int:
    """Let rows be found by user from now on, each user once; returns how many rows go for that."""
    rows, _ = names(task_id)
    await tx.execute(text(f"CREATE INDEX IF NOT EXISTS {rows}_user ON {rows} (user_id, line)"))
    await tx.execute(text(f"ANALYZE {rows}"))
    result = await tx.execute(text(DUPLICATES.format(rows=rows, rejects=names(task_id)[1])), {"tell": tell})
    duplicates: int = result.scalar_one()
    return duplicates


async def boundary(conn: AsyncConnection, task_id: UUID, after: str, number: int) -> str | None:
    """The user of the last of so many rows behind `after`; None when there are fewer."""
    result = await conn.execute(
        text(f"""
            SELECT user_id FROM {names(task_id)[0]} WHERE user_id > :after
            ORDER BY user_id OFFSET :number LIMIT 1
        """),
        {"after": after, "number": number - 1},
    )
    found: str | None = result.scalar_one_or_none()
    return found


async def users(conn: AsyncConnection, task_id: UUID, after: str, last: str | None) -> list[str]:
    """The users of a slice."""
    result = await conn.execute(
        text(f"SELECT DISTINCT user_id FROM {names(task_id)[0]} WHERE {SLICE}"), {"after": after, "last": last}
    )
    return list(result.scalars())


async def changed(
    conn: AsyncConnection, task_id: UUID, use: Callable[[list[str]], Awaitable[None]], number: int
) -> None:
    """Have `use` called, and awaited, with the users whose lists `replace` has changed, so many at a time."""
    conn = await conn.execution_options(isolation_level="READ COMMITTED")
    async with conn.begin(), conn.stream(text(f"SELECT user_id FROM {CHANGED}{task_id.hex}")) as result:
        async for some in result.scalars().partitions(number):
            await use(list(some))


async def write_rejects(conn: AsyncConnection, task_id: UUID, output: Callable[[bytes], Awaitable[None]]) -> int:
    """Give the rejects' bytes to `output`: CSV, in the order of lines; returns their number."""
    _, rejects = names(task_id)
    statement = f"""
        SELECT line, code, reason, {csv_copies.defused('"row"')} AS "row" FROM {rejects} ORDER BY line
    """
    return await csv_copies.copy(conn, statement, [], output)


async def drop(tx: AsyncConnection, task_id: UUID) -> None:
    for name in (*names(task_id), f"{CHANGED}{task_id.hex}"):
        await tx.execute(text(f"DROP TABLE IF EXISTS {name}"))


async def drop_left(tx: AsyncConnection) -> int:
    """Drop the tables of imports that have ended, or that there are no more; returns of how many."""
    found = await tx.execute(
        text("""
            SELECT DISTINCT CAST(right(relname, 32) AS uuid) AS task_id FROM pg_class
            WHERE relkind = 'r' AND relnamespace = CAST(current_schema() AS regnamespace)
              AND relname ~ '^import_(rows|rejects|changed)_[0-9a-f]{32}$'
              AND NOT EXISTS (SELECT FROM tasks WHERE id = CAST(right(relname, 32) AS uuid)
                              AND status IN ('QUEUED', 'RUNNING'))
            LIMIT 100
        """)
    )
    left = list(found.scalars())
    for task_id in left:
        await drop(tx, task_id)
    return len(left)
