"""Building a report: from the history to a file that is published only when it is whole."""

import hashlib
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any
from uuid import UUID

from db import files, reports, tasks, transactions
from db.files import Writing
from db.reports import Period
from jobs.attempt import Attempt, LostError

log = logging.getLogger(__name__)


async def build(attempt: Attempt) -> None:
    """Write the report and publish it. Until then nobody sees it, and a failure leaves nothing behind."""
    claim = attempt.claim
    # An event of the period may still be on its way. Of what comes after this instant some is known and some is not.
    settled = await transactions.settled(attempt.writer)
    asked = period(claim.args)
    known = replace(asked, until=min(asked.until, settled))
    path = files.path(claim.id, claim.attempt)
    try:
        result = await _write(attempt, known, path)
    except BaseException:
        await _discard(attempt)
        raise
    # Were the answer to COMMIT lost, the report would perhaps be published: from here on only who knows that it is not
    # may remove the file.
    async with attempt.writer.begin() as tx:
        published = await tasks.succeed(tx, claim, attempt.rows_done, result)
    if not published:
        await _discard(attempt)
        raise LostError


async def tidy(attempt: Attempt) -> None:
    """Remove what earlier attempts may have left."""
    claim = attempt.claim
    if claim.attempt > 1:
        with _leaving_it_to_the_purge(claim.id):
            await attempt.files.remove(claim.id, but=claim.attempt)


async def _discard(attempt: Attempt) -> None:
    with _leaving_it_to_the_purge(attempt.claim.id):
        await attempt.files.remove_attempt(attempt.claim.id, attempt.claim.attempt)


@contextmanager
def _leaving_it_to_the_purge(task_id: UUID) -> Iterator[None]:
    try:
        yield
    except files.ERRORS as error:
        log.warning("files of task %s could not be removed, the purge will try: %s", task_id, error)


async def _write(attempt: Attempt, period: Period, path: str) -> dict[str, Any]:
    async with attempt.files.writing(path, files.name(attempt.claim.id)) as file:
        output = _Output(attempt, file)
        async with attempt.exporter.connect() as conn:
            attempt.rows_done = await reports.copy(conn, period, output.write)
    return {
        "attempt": attempt.claim.attempt,
        "rows": attempt.rows_done,
        "bytes": output.size,
        "sha256": output.digest.hexdigest(),
    }


@dataclass(slots=True)
class _Output:
    attempt: Attempt
    file: Writing
    size: int = 0
    lines: int = 0
    digest: "hashlib._Hash" = field(default_factory=hashlib.sha256)

    async def write(self, chunk: bytes) -> None:
        self.size += len(chunk)
        self.digest.update(chunk)
        await self.file.write(chunk)
        self.lines += chunk.count(b"\n")
        self.attempt.rows_done = max(0, self.lines - 1)


def period(args: dict[str, Any]) -> Period:
    """What the mutation has kept (resolvers/reports.py)."""
    return Period(
        datetime.fromisoformat(args["from"]),
        datetime.fromisoformat(args["to"]),
        args["user_ids"],
        args["segment_ids"],
    )
