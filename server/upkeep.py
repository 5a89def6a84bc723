"""What operators do by hand, with a progress bar."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from sqlalchemy.ext.asyncio import AsyncEngine

from db import connections, endings
from db.files import Files
from db.job_runs import Stats
from db.reports import now
from jobs.purge import by_hand
from server.settings import Settings


def purge(settings: Settings) -> None:
    """Purge now, and print what has left."""
    stats = asyncio.run(_purge(settings))
    print("Removed: " + ", ".join(f"{number} {what}" for what, number in stats.items()))  # noqa: T201


async def _purge(settings: Settings) -> Stats:
    files = Files(settings.store)
    files.prepare()
    async with _engine(settings) as writer:
        async with writer.connect() as conn:
            waiting = await endings.count(conn, await now(conn))
        with progress() as bars:
            bar = bars.add_task("expired memberships", total=waiting)
            return await by_hand(writer, files, settings.retention, lambda done: bars.update(bar, completed=done))


@asynccontextmanager
async def _engine(settings: Settings) -> AsyncIterator[AsyncEngine]:
    assert settings.database_url is not None
    engine = connections.writer(settings.database_url, 2)
    try:
        yield engine
    finally:
        await engine.dispose()


def progress() -> Progress:
    """Bars on standard error: what is printed stays fit for a pipe."""
    return Progress(
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=Console(stderr=True),
    )
