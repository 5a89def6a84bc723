"""One attempt at a task, as whoever does the work sees it."""

from dataclasses import dataclass

from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from db import tasks
from db.cache import Cache
from db.files import Files
from db.tables import TaskKind
from db.tasks import Claim
from jobs.courtesy import Courtesy


class LostError(Exception):
    """The task is somebody else's by now, or was canceled: nothing that we write counts any more."""


class HopelessError(Exception):
    """Why the task cannot be done, however often it is tried: a sentence for whoever asked for it."""


class BusyError(Exception):
    """Somebody else has what the task needs: it is tried again a little later, however long that takes."""


@dataclass(slots=True)
class Attempt:
    claim: Claim
    # For short transactions.
    writer: AsyncEngine
    # For long statements that only read.
    exporter: AsyncEngine
    # For transactions that write much, and may take long.
    importer: AsyncEngine
    files: Files
    cache: Cache
    courtesy: Courtesy
    rows_done: int = 0

    def __post_init__(self) -> None:
        self.rows_done = self.claim.rows_done

    async def beat(self, tx: AsyncConnection) -> bool:
        # These count in the transactions that do the rows: a heartbeat must not say less, or more.
        if self.claim.kind in (TaskKind.SEGMENT_CLEANUP, TaskKind.IMPORT):
            return await tasks.advance(tx, self.claim, 0)
        return await tasks.beat(tx, self.claim, self.rows_done)
