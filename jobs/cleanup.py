"""Moving the memberships of a deleted segment out, a few at a time; reads have left them out since the deletion."""

import time

from db import endings, tasks
from jobs import courtesy
from jobs.attempt import Attempt, LostError

# Bounds how long one transaction lasts, and what a write ahead of it has to wait for.
CHUNK = 1_000


async def clean(attempt: Attempt) -> None:
    """Each chunk is counted in its own transaction, so it goes on where it, or another worker, stopped."""
    claim = attempt.claim
    assert claim.segment_id is not None
    async with attempt.exporter.connect() as conn:
        left = await endings.count_of(conn, claim.segment_id)
    async with attempt.writer.begin() as tx:
        if not await tasks.expect(tx, claim, claim.rows_done + left):
            raise LostError
    after: str | None = ""
    while after is not None:
        began = time.monotonic()
        after = await _chunk(attempt, claim.segment_id, after)
        # Whether requests come or not: nobody waits for it, and everybody else uses the same disk.
        await courtesy.rest(began)


async def _chunk(attempt: Attempt, segment_id: int, after: str) -> str | None:
    """The last user that was moved out; None when it was the segment's last, and the task is done."""
    async with attempt.writer.begin() as tx:
        cleaned = await endings.clean(tx, segment_id, after=after, limit=CHUNK)
        if not await tasks.advance(tx, attempt.claim, cleaned.rows):
            raise LostError
        rows_done = attempt.rows_done + cleaned.rows
        # Where something is left behind us, it begins again from the front.
        done = cleaned.last is None and await endings.mark_clean(tx, segment_id)
        if done and not await tasks.succeed(tx, attempt.claim, rows_done, None):
            raise LostError
        if not done and after == "" and cleaned.rows == 0:
            raise RuntimeError(f"segment {segment_id} was to be cleaned up and is not deleted")
    attempt.rows_done = rows_done
    if done:
        return None
    return cleaned.last or ""
