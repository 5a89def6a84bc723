"""What mutations and the purge would have written: the rules of memberships, for a year that is made up."""

from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any, NamedTuple

from db.demo import Batch, Event, Member, Operation, RolloutChange
from db.tables import MembershipAction
from server.demo_segments import ADMIN, PLANS


class Held(NamedTuple):
    """A membership."""

    added_at: datetime
    # None: for good.
    expires_at: datetime | None


class Ledger:
    """Segments are numbers here: their places in PLANS."""

    def __init__(self, ids: Sequence[int]) -> None:
        self._ids = ids
        self._members: dict[int, dict[int, Held]] = {}
        self._batch = Batch()

    @property
    def users(self) -> int:
        """How many users something has happened to."""
        return len(self._members)

    def batch(self) -> Batch:
        """What was written since this was last asked."""
        batch, self._batch = self._batch, Batch()
        return batch

    def memberships(self, user: int) -> dict[int, Held]:
        """Those that the user has now, by segment."""
        return self._members.get(user, {})

    def members(self) -> list[Member]:
        """All memberships that there are now."""
        return [
            Member(str(user), self._ids[number], held.added_at, held.expires_at)
            for user in sorted(self._members, key=str)
            for number, held in sorted(self._members[user].items())
        ]

    def change_segment(self, at: datetime, kind: str, number: int) -> None:
        self._operate(at, ADMIN, kind, {"segment_id": self._ids[number]})

    def roll_out(self, at: datetime, number: int, rollout: int | None) -> None:
        """Have the last operation change a segment's rollout."""
        self._batch.rollouts.append(RolloutChange(self._ids[number], at, rollout, len(self._batch.operations) - 1))

    def delete(self, at: datetime, number: int) -> None:
        self.change_segment(at, "deleteSegment", number)
        for user, mine in self._members.items():
            if mine.pop(number, None):
                self._tell(at, user, number, MembershipAction.SEGMENT_DELETED)

    def change(
        self,
        at: datetime,
        client: str,
        user: int,
        *,
        add: Iterable[int] = (),
        remove: Iterable[int] = (),
        expires_at: datetime | None = None,
    ) -> list[int]:
        """What `changeUserSegments` does; returns the segments whose memberships began or were moved."""
        mine = self._members.setdefault(user, {})
        result: dict[str, Any] = {"added": [], "updated": [], "removed": [], "unchanged": []}
        self._operate(at, client, "changeUserSegments", result)
        written = []
        for number in add:
            slug, held = PLANS[number].slug, mine.get(number)
            if held is not None and held.expires_at == expires_at:
                result["unchanged"].append(slug)
                continue
            if held is None:
                mine[number] = Held(at, expires_at)
                result["added"].append(slug)
                self._tell(at, user, number, MembershipAction.ADDED, expires_at)
            else:
                mine[number] = Held(held.added_at, expires_at)
                result["updated"].append(slug)
                self._tell(at, user, number, MembershipAction.EXPIRY_CHANGED, expires_at)
            written.append(number)
        for number in remove:
            del mine[number]
            result["removed"].append(PLANS[number].slug)
            self._tell(at, user, number, MembershipAction.REMOVED)
        return written

    def expire(self, at: datetime, user: int, number: int) -> bool:
        """End the membership that expires then; False when there is none, or it was moved."""
        mine = self._members[user]
        if number not in mine or mine[number].expires_at != at:
            return False
        del mine[number]
        event = Event(str(user), self._ids[number], MembershipAction.EXPIRED, at, None, None)
        self._batch.events.append(event)
        return True

    def _operate(self, at: datetime, client: str, kind: str, result: dict[str, Any]) -> None:
        self._batch.operations.append(Operation(client, kind, at, result))

    def _tell(
        self, at: datetime, user: int, number: int, action: MembershipAction, expires_at: datetime | None = None
    ) -> None:
        """By the last operation."""
        operation = len(self._batch.operations) - 1
        self._batch.events.append(Event(str(user), self._ids[number], action, at, expires_at, operation))
