"""Whether this process is alive, and whether it should be sent requests."""

import asyncio

from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from db import connections, migrate, partitions
from resolvers.context import Context

SECONDS = 3
STOPPING = "This process was told to stop: it finishes what it has, and wants nothing more."
EXHAUSTED = (
    "All connections of this process for queries are taken, and were for a second: send it less, "
    "or raise SEGMENTQL_READ_POOL_SIZE."
)


async def alive(_request: Request) -> Response:
    """That there is an answer says it all: it is the event loop that gives it."""
    return JSONResponse({"alive": True})


async def ready(request: Request) -> Response:
    """PostgreSQL can be written to, is at our revision, and has room for next month's history; and we are to stay.

    Redis is reported and never required: without it answers are slower, not wrong.
    """
    context: Context = request.state.context
    if request.state.leaving.begun:
        problems = [STOPPING]
    else:
        problems = await _problems_of_postgresql(context)
    report = {"ready": not problems, "problems": problems, "redis": context.cache.available}
    return JSONResponse(report, status_code=503 if problems else 200)


async def _problems_of_postgresql(context: Context) -> list[str]:
    try:
        async with asyncio.timeout(SECONDS):
            return await _problems(context)
    except PoolTimeoutError:
        return [EXHAUSTED]
    except (SQLAlchemyError, OSError, TimeoutError) as error:
        return [f"PostgreSQL cannot be reached ({type(error).__name__})."]


async def _problems(context: Context) -> list[str]:
    problems: list[str] = []
    async with context.reader.connect() as conn:
        if await connections.is_standby(conn):
            problems.append("PostgreSQL is read-only: it is a standby. Point SEGMENTQL_DATABASE_URL at the primary.")
        # This month and the next: without them no change can be written.
        missing = await partitions.missing(conn, ahead=1)
        problems.extend(f"The history has no partition for {month}. Run: segmentql migrate" for month in missing)
    current = await migrate.current(context.reader)
    if current != migrate.newest() and migrate.known(current):
        problems.append(f"The database is at revision {current}, not {migrate.newest()}. Run: segmentql migrate")
    return problems


ROUTES = [Route("/healthz", alive), Route("/readyz", ready)]
