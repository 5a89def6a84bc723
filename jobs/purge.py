"""The nightly purge: what is over leaves, some at a time, and nobody's answer changes by it."""

import asyncio
import logging
import os
import socket
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import partial
from uuid import UUID

from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from db import endings, history, job_runs, operations, partitions, staging, task_retention, tasks, transactions
from db.files import ERRORS, Files, Kept
from db.job_runs import Run, Stats
from db.tables import TaskStatus
from db.tasks import Task
from jobs import metrics
from jobs.partitions import keep_ahead

log = logging.getLogger(__name__)
JOB = "purge"
RUNNER = f"{socket.gethostname()}:{os.getpid()}"
# Bounds how long one transaction holds its locks.
CHUNK = 5_000
FILES_CHUNK = 100
# How long an import waits for its file.
UPLOAD_HOURS = 24
STREAMS = 2
# Between two chunks, for everybody else.
REST_SECONDS = 0.005


class TakenOverError(Exception):
    """Somebody else goes on with the run: we were not heard of for too long."""


@dataclass(frozen=True, slots=True)
class Retention:
    """For how long what is kept."""

    key_hours: int
    file_days: int
    task_days: int
    # None: for ever.
    history_months: int | None


def _silent(_purged: int) -> None:
    pass


@dataclass(slots=True)
class Purge:
    """One run. Each step may be done twice, by several at once, and be broken off anywhere."""

    writer: AsyncEngine
    files: Files
    retention: Retention
    run: Run
    # Told after each chunk how many memberships have left.
    progress: Callable[[int], None] = _silent
    stats: Stats = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.stats = dict(self.run.stats)

    async def work(self) -> None:
        await self._memberships()
        await self._keys()
        await self._all("uploads", lambda tx: task_retention.give_up_uploads(tx, hours=UPLOAD_HOURS, limit=CHUNK))
        await self._files()
        await self._step("staging", staging.drop_left)
        await self._all(
            "tasks", lambda tx: task_retention.delete_finished(tx, days=self.retention.task_days, limit=CHUNK)
        )
        await keep_ahead(self.writer)
        if self.retention.history_months is not None:
            await self._history(self.retention.history_months)
        await self._step("cleanups", tasks.queue_missing_cleanups)
        try:
            await self._leftovers()
        except ERRORS as error:
            log.warning("what killed workers left could not be looked for, the next purge will: %s", error)

    async def finish(self) -> None:
        async with self.writer.begin() as tx:
            if not await job_runs.finish(tx, self.run):
                raise TakenOverError

    async def _memberships(self) -> None:
        end = await transactions.settled(self.writer)
        # While one waits for the disk the other works. Each passes over what the other has locked.
        for done in await asyncio.gather(*(self._leave(end) for _ in range(STREAMS)), return_exceptions=True):
            if done is not None:
                raise done

    async def _leave(self, end: datetime) -> None:
        begin: datetime | None = history.BEGINNING

        async def chunk(tx: AsyncConnection) -> int:
            nonlocal begin
            assert begin is not None
            purged = await endings.purge(tx, begin=begin, end=end, limit=CHUNK)
            begin = purged.last
            return purged.rows

        while begin is not None:
            await self._step("memberships", chunk)
            self.progress(self.stats["memberships"])
            await asyncio.sleep(REST_SECONDS)

    async def _keys(self) -> None:
        after = 0

        async def chunk(tx: AsyncConnection) -> int:
            nonlocal after
            given_up = await operations.give_up_keys(tx, hours=self.retention.key_hours, after=after, limit=CHUNK)
            after = max(given_up, default=after)
            return len(given_up)

        await self._all("keys", chunk)

    async def _files(self) -> None:
        """First no link leads to a file any more, then it goes."""
        given_up: list[UUID] = []

        async def chunk(tx: AsyncConnection) -> int:
            given_up[:] = await task_retention.give_up_files(tx, days=self.retention.file_days, limit=FILES_CHUNK)
            return len(given_up)

        while await self._step("files", chunk):
            for task_id in given_up:
                await self._remove(task_id)

    async def _leftovers(self) -> None:
        """What workers have left that were killed, or could not remove it."""
        async for kept in self.files.kept():
            async with self.writer.connect() as conn:
                known = await tasks.of_files(conn, [each.task_id for each in kept])
            removed = 0
            for each in kept:
                removed += await self._tidy(each, known.get(each.task_id))
            await self._step("leftovers", partial(_already, removed))

    async def _tidy(self, kept: Kept, task: Task | None) -> int:
        if task is None:
            # Perhaps of somebody else who uses the same place: so it gets the time that every file has.
            old = datetime.now(UTC) - kept.modified_at > timedelta(days=self.retention.file_days)
            return await self._remove(kept.task_id) if old else 0
        if task.status in (TaskStatus.QUEUED, TaskStatus.RUNNING):
            return 0
        published = task.result["attempt"] if task.result is not None and task.file_removed_at is None else None
        return await self._remove(kept.task_id, but=published)

    async def _remove(self, task_id: UUID, but: int | None = None) -> int:
        try:
            return await self.files.remove(task_id, but=but)
        except ERRORS as error:
            log.warning("files of task %s could not be removed, the next purge will try: %s", task_id, error)
            return 0

    async def _history(self, months: int) -> None:
        async with self.writer.connect() as conn:
            past = await partitions.past(conn, months)
        for month in past:
            try:
                if not await self._step("partitions", partial(partitions.drop, month=month)):
                    log.warning("kept the history of %s: memberships that ended in it are still there", month)
                    return
            except DBAPIError as error:
                log.warning("kept the history of %s until the next purge: %s", month, error.orig)
                return
        await self._all("operations", lambda tx: operations.delete_unexplaining(tx, limit=CHUNK))

    async def _all(self, what: str, chunk: Callable[[AsyncConnection], Awaitable[int]]) -> None:
        done = 1
        while done:
            done = await self._step(what, chunk)
            await asyncio.sleep(REST_SECONDS)

    async def _step(self, what: str, work: Callable[[AsyncConnection], Awaitable[int]]) -> int:
        """The work and the count of it in one transaction, which also shows that we are at it."""
        async with self.writer.begin() as tx:
            done = await work(tx)
            so_far = await job_runs.advance(tx, self.run, what, done)
            if so_far is None:
                raise TakenOverError
        self.stats[what] = max(so_far, self.stats.get(what, 0))
        metrics.purge_removed.labels(what).inc(done)
        return done


async def _already(done: int, _tx: AsyncConnection) -> int:
    return done


async def nightly(writer: AsyncEngine, files: Files, retention: Retention) -> None:
    """The purge of the last midnight, if nobody has finished it or is at it.

    The database says when that was, so a night that was missed is made up for as soon as anybody asks.
    """
    async with writer.begin() as tx:
        run = await job_runs.claim(tx, JOB, RUNNER)
    if run is not None:
        await _run(Purge(writer, files, retention, run))
    async with writer.connect() as conn:
        last = await job_runs.last_finished(conn, JOB)
    if last is not None:
        metrics.purge_finished.set(last.finished_at.timestamp())
        metrics.purge_duration.set((last.finished_at - last.started_at).total_seconds())
        for what, number in last.stats.items():
            metrics.purge_last_removed.labels(what).set(number)


async def by_hand(
    writer: AsyncEngine, files: Files, retention: Retention, progress: Callable[[int], None] = _silent
) -> Stats:
    """A purge now, whatever the clock says; returns how many of what have left."""
    async with writer.begin() as tx:
        run = await job_runs.begin_by_hand(tx, JOB, RUNNER)
    purge = Purge(writer, files, retention, run, progress)
    await _run(purge)
    return purge.stats


async def _run(purge: Purge) -> None:
    began = time.monotonic()
    log.info("the purge of %s begins, attempt %s", purge.run.slot.isoformat(), purge.run.attempt)
    try:
        await purge.work()
        await purge.finish()
    except TakenOverError:
        log.warning("the purge of %s was taken over by another process", purge.run.slot.isoformat())
        raise
    except asyncio.CancelledError:
        log.info("the purge of %s is left to another process: this one stops", purge.run.slot.isoformat())
        async with purge.writer.begin() as tx:
            await job_runs.release(tx, purge.run)
        raise
    except Exception as error:
        metrics.purge_failures.inc()
        async with purge.writer.begin() as tx:
            await job_runs.fail(tx, purge.run, f"{type(error).__name__}: {error}"[:1_000])
        raise
    seconds = time.monotonic() - began
    log.info("the purge of %s took %.1f s: %s", purge.run.slot.isoformat(), seconds, purge.stats)
