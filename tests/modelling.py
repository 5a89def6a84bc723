"""Who is in which segment, as a dictionary would have it: what the service is held against, step by step."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

EXPLICIT, ROLLOUT = "EXPLICIT", "ROLLOUT"


class End(NamedTuple):
    """When a membership ends, in minutes since the model began; None: never."""

    minute: int | None
    # Distinguishes ends that are not the same instant, though they are in the same minute.
    number: int = 0


class Seen(NamedTuple):
    """A membership as callers see it."""

    slug: str
    source: str
    ends: int | None


@dataclass(slots=True)
class Segment:
    id: str
    seed: str
    # A percentage of all users; None: no rollout.
    rollout: float | None = None
    # Whether it has, or has had, a rollout: then whoever is removed stays out.
    rolled_out: bool = False
    members: dict[str, End] = field(default_factory=dict)
    excluded: set[str] = field(default_factory=set)

    def roll_out(self, percent: float | None) -> None:
        self.rolled_out = self.rolled_out or percent is not None
        self.rollout = percent

    def takes_in(self, user: str) -> bool:
        """What the percentage alone says: written down once more, for the product may have it wrong."""
        if self.rollout is None:
            return False
        digest = hashlib.md5(f"{self.seed}:{user}".encode(), usedforsecurity=False).hexdigest()
        return int(digest[:8], 16) % 10_000 < self.rollout * 100


@dataclass(slots=True)
class Model:
    """The live segments, and what time it is."""

    now: int = 0
    live: dict[str, Segment] = field(default_factory=dict)

    def is_member(self, segment: Segment, user: str) -> bool:
        """By hand, that is."""
        end = segment.members.get(user)
        return end is not None and (end.minute is None or end.minute > self.now)

    def add(self, slug: str, user: str, end: End) -> str:
        """What becomes of it."""
        segment = self.live[slug]
        before = segment.members[user] if self.is_member(segment, user) else None
        segment.members[user] = end
        segment.excluded.discard(user)
        if before is None:
            return "added"
        return "unchanged" if before == end else "updated"

    def remove(self, slug: str, user: str) -> str:
        segment = self.live[slug]
        was_member = self.is_member(segment, user)
        was_in = was_member or (segment.takes_in(user) and user not in segment.excluded)
        if was_member:
            del segment.members[user]
        if segment.rolled_out:
            segment.excluded.add(user)
        return "removed" if was_in else "unchanged"

    def seen(self, user: str) -> list[Seen]:
        """The user's memberships, ordered by slug."""
        return sorted(self._seen(user))

    def _seen(self, user: str) -> Iterator[Seen]:
        for slug, segment in self.live.items():
            if self.is_member(segment, user):
                yield Seen(slug, EXPLICIT, segment.members[user].minute)
            elif segment.takes_in(user) and user not in segment.excluded:
                yield Seen(slug, ROLLOUT, None)
