"""What operators do by hand, with a progress bar."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Column, Table
from sqlalchemy.ext.asyncio import AsyncEngine

from db import connections, endings, transactions
from db.files import Files
from db.job_runs import Stats
from jobs import verification
from jobs.purge import STREAMS, by_hand
from jobs.verification import Report
from server.settings import Settings


def purge(settings: Settings) -> None:
    """Purge now, and print what has left."""
    stats = asyncio.run(_purge(settings))
    print("Removed: " + ", ".join(f"{number} {what}" for what, number in stats.items()))  # noqa: T201


def verify(settings: Settings, *, checksums: bool) -> bool:
    """Look whether everything is as it must be, and print what is not; True when nothing was found."""
    report = asyncio.run(_verify(settings, checksums))
    table = Table("check", Column("looked at", justify="right"), Column("differences", justify="right"), box=None)
    for check in report.checks:
        table.add_row(check.name, f"{check.looked:,}", f"{check.differences:,}")
    Console().print(table)
    for check in report.checks:
        for example in check.examples:
            print(f"{check.name}: {example}")  # noqa: T201
        if (more := check.differences - len(check.examples)) > 0:
            print(f"{check.name}: {more:,} more")  # noqa: T201
    return report.differences == 0


async def _verify(settings: Settings, checksums: bool) -> Report:
    files = Files(settings.store)
    files.prepare()
    assert settings.database_url is not None
    exporter = connections.exporter(settings.database_url, 1)
    try:
        with progress() as bars:
            rows: dict[str, TaskID] = {}

            def show(check: str, looked: int, about: int) -> None:
                if check not in rows:
                    rows[check] = bars.add_task(check)
                bars.update(rows[check], completed=looked, total=about)

            return await verification.verify(
                exporter, files, task_days=settings.task_retention_days, checksums=checksums, progress=show
            )
    finally:
        await exporter.dispose()


async def _purge(settings: Settings) -> Stats:
    files = Files(settings.store)
    files.prepare()
    async with _engines(settings) as (writer, exporter):
        async with exporter.connect() as conn:
            waiting = await endings.count(conn, await transactions.now(conn))
        with progress() as bars:
            bar = bars.add_task("expired memberships", total=waiting)
            return await by_hand(writer, files, settings.retention, lambda done: bars.update(bar, completed=done))


@asynccontextmanager
async def _engines(settings: Settings) -> AsyncIterator[tuple[AsyncEngine, AsyncEngine]]:
    assert settings.database_url is not None
    writer = connections.writer(settings.database_url, STREAMS)
    exporter = connections.exporter(settings.database_url, 1)
    try:
        yield writer, exporter
    finally:
        await writer.dispose()
        await exporter.dispose()


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
