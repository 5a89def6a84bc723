"""Working tasks off: claimed one by one, shown to be alive, and let go when they are somebody else's."""

import asyncio
import logging
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Collection
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from functools import partial

from sqlalchemy.exc import DBAPIError, SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from db import staging, tasks
from db.cache import Cache
from db.files import Files, NotStored
from db.tables import TaskKind
from db.tasks import HEARTBEAT_SECONDS, LEASE_SECONDS, Claim
from jobs import cleanup, exports, imports, metrics, output, reports
from jobs.attempt import Attempt, BusyError, HopelessError, LostError
from jobs.courtesy import Courtesy

log = logging.getLogger(__name__)
# How long a task waits that nobody has told us of. It is one look into an index.
PAUSE_SECONDS = 1.0
# How long an end of ours takes to reach us.
GRACE_SECONDS = 0.5
# When a task is looked at again that somebody else keeps from its segment.
BUSY_SECONDS = 5
QUICK = frozenset(TaskKind) - {TaskKind.SEGMENT_CLEANUP, TaskKind.IMPORT}

WORK: dict[TaskKind, Callable[[Attempt], Awaitable[None]]] = {
    TaskKind.REPORT: reports.build,
    TaskKind.SEGMENT_CLEANUP: cleanup.clean,
    TaskKind.IMPORT: imports.work,
    TaskKind.EXPORT: exports.build,
}


@dataclass(frozen=True, slots=True)
class Worker:
    """Works off `slots` tasks at a time. Any number of them may share a database, on any number of hosts."""

    writer: AsyncEngine
    exporter: AsyncEngine
    importer: AsyncEngine
    files: Files
    cache: Cache
    slots: int
    courtesy: Courtesy
    _news: asyncio.Event = field(default_factory=asyncio.Event)

    def wake(self) -> None:
        """There is a new task."""
        self._news.set()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Work, for as long as the block lasts. What is under way at its end is put back for others at once."""
        slots = [asyncio.create_task(self._work_off(self._kinds(slot))) for slot in range(self.slots)]
        try:
            yield
        finally:
            for slot in slots:
                slot.cancel()
            await asyncio.gather(*slots, return_exceptions=True)

    def _kinds(self, slot: int) -> Collection[TaskKind]:
        """What may take long is not to keep reports from being made: one slot is kept from it."""
        return QUICK if slot == 0 and self.slots > 1 else frozenset(TaskKind)

    async def _work_off(self, kinds: Collection[TaskKind]) -> None:
        reached = True
        while True:
            claim = None
            # Before the look, so that what arrives after it is not missed.
            self._news.clear()
            try:
                claim = await self._claim(kinds)
                reached = True
            except Exception:
                # Once, not every second while the database is away.
                if reached:
                    log.exception("the queue of tasks could not be looked into; it is tried again every second")
                reached = False
            if claim is not None:
                self.cache.news.of_task(claim.id)
                try:
                    await self._attempt(claim)
                finally:
                    self.cache.news.of_task(claim.id)
                continue
            with suppress(TimeoutError):
                await asyncio.wait_for(self._news.wait(), PAUSE_SECONDS)

    async def _claim(self, kinds: Collection[TaskKind]) -> Claim | None:
        async with self.writer.begin() as tx:
            claim = await tasks.claim(tx, kinds)
            if claim is None and (buried := await tasks.bury(tx)):
                log.error("gave up %s tasks whose workers vanished %s times", buried, tasks.FAILURES)
            return claim

    async def _attempt(self, claim: Claim) -> None:
        attempt = Attempt(claim, self.writer, self.exporter, self.importer, self.files, self.cache, self.courtesy)
        what = f"{claim.kind.lower()} {claim.id}, attempt {claim.attempt}"
        log.info("begin %s", what)
        try:
            await self._while_ours(attempt)
        except asyncio.CancelledError:
            log.info("put back %s: this process stops", what)
            await self._settle(claim, tasks.release)
            raise
        except LostError:
            log.warning("lost %s: it was canceled, or another worker took over", what)
            await self._settle(claim, _nothing)
        except BusyError:
            log.info("put back %s: somebody else is at work on its segment", what)
            await self._settle(claim, partial(tasks.release, seconds=BUSY_SECONDS))
        except HopelessError as error:
            log.info("%s cannot be done: %s", what, error)
            if await self._fail(claim, str(error), final=True):
                await output.tidy(attempt)
        except NotStored as error:
            log.error("%s could not store its file: %s", what, error.reason)  # noqa: TRY400  # it says it all
            await self._fail(claim, f"The file could not be stored: {error.reason}", final=error.full)
        except Exception:
            error_id = secrets.token_hex(8)
            log.exception("%s failed (error id %s)", what, error_id)
            await self._fail(claim, f"An internal error stopped it (id {error_id}).", final=False)
        else:
            if claim.kind is not TaskKind.SEGMENT_CLEANUP:
                await output.tidy(attempt)
            metrics.tasks_finished.labels(claim.kind.value).inc()
            log.info("finished %s: %s rows", what, attempt.rows_done)

    async def _while_ours(self, attempt: Attempt) -> None:
        work = asyncio.ensure_future(WORK[attempt.claim.kind](attempt))
        beats = asyncio.create_task(_beat(attempt))
        try:
            await asyncio.wait([work, beats], return_when=asyncio.FIRST_COMPLETED)
            # A task that has ended is nobody's, either: it may be our own end that the heartbeat found.
            await asyncio.wait([work], timeout=GRACE_SECONDS)
            if work.cancelled():
                raise RuntimeError("the work was canceled, and not by us")
            if work.done():
                return work.result()
            beats.result()
        finally:
            work.cancel()
            beats.cancel()
            await asyncio.gather(work, beats, return_exceptions=True)

    async def _fail(self, claim: Claim, error: str, *, final: bool) -> bool:
        """False when the task was somebody else's by then."""
        metrics.task_failures.labels(claim.kind.value).inc()
        return await self._settle(claim, lambda tx, claim: tasks.fail(tx, claim, error, final=final))

    async def _settle(self, claim: Claim, write: Callable[..., Awaitable[bool]]) -> bool:
        """Where that fails too, the lease ends by itself."""
        try:
            async with self.writer.begin() as tx:
                written = await write(tx, claim)
                if claim.kind is TaskKind.IMPORT:
                    # Of this one and others that have ended: a full disk must not stay full until the purge, which
                    # drops what somebody still reads.
                    with suppress(DBAPIError):
                        async with tx.begin_nested():
                            await staging.drop_left(tx)
                return written
        except Exception:
            log.exception("what became of %s could not be written; it is claimed again after its lease", claim.id)
            return False


async def _nothing(_tx: AsyncConnection, _claim: Claim) -> bool:
    return False


async def _beat(attempt: Attempt) -> None:
    """Show that we are at it. Raises LostError once the task is another's, or may be."""
    loop = asyncio.get_running_loop()
    heard, ours = loop.time(), True
    while ours and loop.time() - heard < LEASE_SECONDS:
        await asyncio.sleep(HEARTBEAT_SECONDS)
        try:
            async with asyncio.timeout(LEASE_SECONDS / 2), attempt.writer.begin() as tx:
                ours = await attempt.beat(tx)
            heard = loop.time()
            attempt.cache.news.of_task(attempt.claim.id)
        except (SQLAlchemyError, OSError, TimeoutError) as error:
            log.warning("no heartbeat for task %s: %s", attempt.claim.id, type(error).__name__)
    raise LostError
