"""The background of a process: ticks of the clock, the purge, and tasks to work off."""

import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial

from sqlalchemy.ext.asyncio import AsyncEngine

from db import connections
from db.beside import beside
from db.cache import Cache
from db.files import Files
from jobs import purge, schedule
from jobs.courtesy import Courtesy
from jobs.metrics import count_unfinished
from jobs.partitions import keep_ahead
from jobs.purge import STREAMS
from jobs.schedule import Job
from jobs.worker import Worker
from server import metrics
from server.settings import Settings, StartError
from server.traffic import Traffic

log = logging.getLogger(__name__)


def prepare(settings: Settings) -> None:
    """See that files can be kept; raises StartError."""
    try:
        Files(settings.store).prepare()
    except OSError as error:
        raise StartError(
            f"Reports cannot be kept in {settings.store} ({error.strerror}): choose another place with "
            "SEGMENTQL_FILES, or leave background tasks to `segmentql worker` with SEGMENTQL_SERVE_TASKS=0."
        ) from error


@asynccontextmanager
async def beside_requests(
    settings: Settings, writer: AsyncEngine, files: Files, cache: Cache, traffic: Traffic
) -> AsyncIterator[Callable[[], None]]:
    """What goes on in a server process besides requests; gives how to tell it that there is a new task."""
    if settings.serve_tasks:
        async with working(settings, files, cache, settings.serve_tasks, Courtesy(traffic.anybody)) as worker:
            yield worker.wake
    else:
        async with schedule.running(partitions_ahead(writer)):
            yield _tell_nobody


def _tell_nobody() -> None:
    pass


@asynccontextmanager
async def working(
    settings: Settings, files: Files, cache: Cache, slots: int, courtesy: Courtesy
) -> AsyncIterator[Worker]:
    """Work off tasks and run the nightly purge, for as long as the block lasts, on connections of their own."""
    assert settings.database_url is not None
    files.prepare()
    # Two for each task, whose heartbeats go on besides its work; one for the queue, the rest for the purge.
    primary = connections.primary(settings.database_url)
    writer = connections.writer(primary, 2 * slots + 1 + STREAMS)
    exporter = connections.exporter(primary, slots)
    importer = connections.importer(primary, slots)
    worker = Worker(writer, exporter, importer, files, cache, slots, courtesy)
    nightly = Job(partial(purge.nightly, writer, files, settings.retention), "the nightly purge was broken off")
    counting = Job(partial(count_unfinished, writer), "the tasks that wait or run were not counted")
    try:
        async with (
            beside(primary.watch()),
            metrics.watching(tasks=writer, exports=exporter, imports=importer),
            schedule.running(partitions_ahead(writer), nightly, counting),
            worker.running(),
        ):
            yield worker
    finally:
        await writer.dispose()
        await exporter.dispose()
        await importer.dispose()


def partitions_ahead(writer: AsyncEngine) -> Job:
    return Job(partial(keep_ahead, writer), "the partitions of the history were not looked after", first=True)
