"""Exporting the members of a segment, as they are at the moment."""

from db import members
from jobs import output
from jobs.attempt import Attempt


async def build(attempt: Attempt) -> None:
    segment_id = attempt.claim.segment_id
    assert segment_id is not None
    await output.publish(attempt, lambda conn, write: members.copy(conn, segment_id, write))
