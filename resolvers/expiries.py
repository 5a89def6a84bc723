"""When memberships end that are begun or moved: the two arguments that say so, wherever they are taken."""

from datetime import datetime, timedelta
from typing import Protocol

from db.clock import TTL_DAYS
from resolvers.errors import Refused, UserError, invalid

TTL_DAYS_DESCRIPTION = (
    "How long the memberships last: 1 to 36500 days of 86400 seconds each, from the database's clock. The end is the "
    "first instant outside."
)
EXPIRES_AT_DESCRIPTION = (
    "When the memberships end: the first instant outside. Must be in the future by the database's clock."
)


class Expiring(Protocol):
    """An input that has both; at most one is given."""

    @property
    def ttl_days(self) -> int | None: ...
    @property
    def expires_at(self) -> datetime | None: ...


def wrong_expiry(input: Expiring, *path: str) -> list[UserError]:
    """What can be seen without the database."""
    wrong = []
    if input.ttl_days is not None and input.expires_at is not None:
        wrong.append(invalid("Give at most one of ttlDays and expiresAt.", *path, "expiresAt"))
    if input.ttl_days is not None and not 1 <= input.ttl_days <= TTL_DAYS:
        wrong.append(invalid(f"ttlDays must be from 1 to {TTL_DAYS}.", *path, "ttlDays"))
    return wrong


def expiry(input: Expiring, at: datetime, *path: str) -> datetime | None:
    """The first instant outside, of what begins at `at`; None: it does not end by itself. Raises Refused."""
    if input.ttl_days is not None:
        return at + timedelta(days=input.ttl_days)
    if input.expires_at is not None and input.expires_at <= at:
        raise Refused([past(*path)])
    return input.expires_at


def past(*path: str) -> UserError:
    """What is wrong with an `expiresAt` that the database's clock has reached."""
    return invalid("expiresAt must be in the future.", *path, "expiresAt")
