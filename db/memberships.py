"""Who is in which segment, until when."""

from datetime import datetime
from enum import StrEnum
from typing import NamedTuple

from db.clock import as_datetime
from db.segments import Segment


class MembershipSource(StrEnum):
    """Why a user is in a segment."""

    EXPLICIT = "EXPLICIT"
    ROLLOUT = "ROLLOUT"


class Membership(NamedTuple):
    segment: Segment
    added: int
    expires: int
    source: MembershipSource = MembershipSource.EXPLICIT

    @property
    def added_at(self) -> datetime:
        added_at = as_datetime(self.added)
        assert added_at is not None
        return added_at

    @property
    def expires_at(self) -> datetime | None:
        return as_datetime(self.expires)
