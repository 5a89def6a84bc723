"""The file that a task makes: nobody sees it before it is whole, and a failure leaves nothing behind."""

import hashlib
import logging
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncConnection

from db import files, tasks
from db.files import Writing
from jobs.attempt import Attempt, LostError

log = logging.getLogger(__name__)
Write = Callable[[bytes], Awaitable[None]]
# Gives the file's bytes, with a header, to `Write`; returns how many rows there are.
Copy = Callable[[AsyncConnection, Write], Awaitable[int]]


async def publish(attempt: Attempt, copy: Copy, *, counting: bool = True) -> None:
    """Write the file and end the task with it; `counting` when the file's rows are those that the task counts."""
    claim = attempt.claim
    path = files.path(claim.id, claim.attempt)
    try:
        result = await _write(attempt, copy, path, counting=counting)
    except BaseException:
        await _discard(attempt)
        raise
    # Were the answer to COMMIT lost, the file would perhaps be published: from here on only who knows that it is not
    # may remove it.
    async with attempt.writer.begin() as tx:
        published = await tasks.succeed(tx, claim, attempt.rows_done, result)
    if not published:
        await _discard(attempt)
        raise LostError


async def tidy(attempt: Attempt) -> None:
    """Remove what earlier attempts may have left, and what was uploaded."""
    claim = attempt.claim
    if claim.attempt > 1 or claim.upload is not None:
        with _leaving_it_to_the_purge(claim.id):
            await attempt.files.remove(claim.id, but=claim.attempt)


async def _write(attempt: Attempt, copy: Copy, path: str, *, counting: bool) -> dict[str, Any]:
    async with attempt.files.writing(path, files.name(attempt.claim.id, attempt.claim.kind)) as file:
        output = _Output(attempt, file, counting)
        async with attempt.exporter.connect() as conn:
            rows = await copy(conn, output.write)
    if counting:
        attempt.rows_done = rows
    return {
        "attempt": attempt.claim.attempt,
        "rows": rows,
        "bytes": output.size,
        "sha256": output.digest.hexdigest(),
    }


@dataclass(slots=True)
class _Output:
    attempt: Attempt
    file: Writing
    counting: bool
    size: int = 0
    lines: int = 0
    digest: "hashlib._Hash" = field(default_factory=hashlib.sha256)

    async def write(self, chunk: bytes) -> None:
        self.size += len(chunk)
        self.digest.update(chunk)
        await self.file.write(chunk)
        self.lines += chunk.count(b"\n")
        if self.counting:
            self.attempt.rows_done = max(0, self.lines - 1)


async def _discard(attempt: Attempt) -> None:
    with _leaving_it_to_the_purge(attempt.claim.id):
        await attempt.files.remove_attempt(attempt.claim.id, attempt.claim.attempt)


@contextmanager
def _leaving_it_to_the_purge(task_id: UUID) -> Iterator[None]:
    try:
        yield
    except files.ERRORS as error:
        log.warning("files of task %s could not be removed, the purge will try: %s", task_id, error)
