"""CSV as callers get it: RFC 4180, in UTF-8, streamed from one statement."""

from collections.abc import Awaitable, Callable, Sequence

from sqlalchemy.ext.asyncio import AsyncConnection

# What takes longer is asked for in parts.
LONGEST_SECONDS = 24 * 3_600
# A spreadsheet runs what begins so. The apostrophe itself is among them, so that taking one away from the front of
# whatever has one gives the value again.
RUNNABLE = "'=', '+', '-', '@', ''''"


def defused(value: str) -> str:
    """An expression of PostgreSQL with an apostrophe in front of what a spreadsheet would run."""
    return f"CASE WHEN left({value}, 1) IN ({RUNNABLE}) THEN '''' || {value} ELSE {value} END"


def instant(value: str) -> str:
    """An expression of PostgreSQL as the API shows it; null stays null."""
    return f"""to_char({value} AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"')"""


async def copy(
    conn: AsyncConnection, statement: str, arguments: Sequence[object], output: Callable[[bytes], Awaitable[None]]
) -> int:
    """Give the bytes of what the statement finds to `output`, as they come and no faster than it takes them; returns
    the rows' number. Holds one snapshot until the last byte is taken.
    """

    async def with_line_ends(chunk: bytes) -> None:
        # COPY ends lines with LF alone. No value has a control character, so there are no others.
        await output(chunk.replace(b"\n", b"\r\n"))

    driver = (await conn.get_raw_connection()).driver_connection
    assert driver is not None
    try:
        status: str = await driver.copy_from_query(
            statement, *arguments, output=with_line_ends, format="csv", header=True, timeout=LONGEST_SECONDS
        )
    except BaseException:
        # Broken off in its middle it is of no use to anybody, and whoever got it next would wait for its end.
        await conn.invalidate()
        raise
    return int(status.removeprefix("COPY "))
