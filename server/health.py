"""Whether this process is alive, and whether it should be sent requests."""

import asyncio

from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from db import connections, migrate, partitions
from db.clock import ticks
from resolvers.context import Context

SECONDS = 3
# So long everybody who asks is told what was found last: nobody can have us look more often.
SHARED_SECONDS = 0.5
STOPPING = "This process was told to stop: it finishes what it has, and wants nothing more."
EXHAUSTED = (
    "All connections of this process for queries are taken, and were for a second: send it less, "
    "or raise SEGMENTQL_READ_POOL_SIZE."
)


async def alive(_request: Request) -> Response:
    """That there is an answer says it all: it is the event loop that gives it."""
    return JSONResponse({"alive": True})


class Readiness:
    """What this process lacks, looked at by one look at a time, whoever asks."""

    def __init__(self) -> None:
        # When the last look began, by `ticks`.
        self._began = float("-inf")
        self._look: asyncio.Task[list[str]] | None = None
        self.routes = [Route("/healthz", alive), Route("/readyz", self.ready)]

    async def ready(self, request: Request) -> Response:
        """PostgreSQL can be written to, is at our revision, has room for next month's history; and we are to stay.

        Redis is reported and never required: without it answers are slower, not wrong.
        """
        context: Context = request.state.context
        problems = [] if request.state.leaving.begun else await self._problems(context)
        # That it leaves may have been said meanwhile.
        if request.state.leaving.begun:
            problems = [STOPPING]
        report = {"ready": not problems, "problems": problems, "redis": context.services.cache.available}
        return JSONResponse(report, status_code=503 if problems else 200)

    async def _problems(self, context: Context) -> list[str]:
        if self._look is None or (self._look.done() and ticks() - self._began >= SHARED_SECONDS):
            self._began = ticks()
            self._look = asyncio.create_task(_problems_of_postgresql(context))
        # Shielded: who leaves takes the answer from nobody else.
        return await asyncio.shield(self._look)


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
    async with context.services.reader.connect() as conn:
        if await connections.is_standby(conn):
            problems.append("PostgreSQL is read-only: it is a standby. Point SEGMENTQL_DATABASE_URL at the primary.")
        # This month and the next: without them no change can be written.
        missing = await partitions.missing(conn, ahead=1)
        problems.extend(f"The history has no partition for {month}. Run: segmentql migrate" for month in missing)
    current = await migrate.current(context.services.reader)
    if current != migrate.newest() and migrate.known(current):
        problems.append(f"The database is at revision {current}, not {migrate.newest()}. Run: segmentql migrate")
    return problems
