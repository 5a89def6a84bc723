"""Building a report: from the history to a file that is published only when it is whole."""

from dataclasses import replace
from datetime import datetime
from typing import Any

from db import reports, transactions
from db.reports import Period
from jobs import output
from jobs.attempt import Attempt


async def build(attempt: Attempt) -> None:
    # An event of the period may still be on its way. Of what comes after this instant some is known and some is not.
    settled = await transactions.settled(attempt.writer)
    asked = period(attempt.claim.args)
    known = replace(asked, until=min(asked.until, settled))
    await output.publish(attempt, lambda conn, write: reports.copy(conn, known, write))


def period(args: dict[str, Any]) -> Period:
    """What the mutation has kept (resolvers/reports.py)."""
    return Period(
        datetime.fromisoformat(args["from"]),
        datetime.fromisoformat(args["to"]),
        args["user_ids"],
        args["segment_ids"],
    )
