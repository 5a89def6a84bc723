"""Lists that were made of what Redis holds: as long as it holds the very same, they are not made again.

Redis is asked each time, and the bytes are compared: nothing is older here than it is there.
"""

from typing import Any

from db.clock import ALWAYS, NEVER
from db.memberships import Membership
from db.packed import unpacked
from db.segments import Segment
from resolvers.active import active
from resolvers.catalogue import Catalogue

# Memberships of both generations together. With its text each takes about 300 bytes.
MOST = 200_000
# Of one user. Longer lists are rare, and would push out many others.
LONGEST = 1_000


class Segments(list[Segment]):
    """The segments of a list that is kept."""

    __slots__ = ("rendered",)

    def __init__(self, segments: list[Segment]) -> None:
        super().__init__(segments)
        self.rendered: Any = None


class Kept(list[Membership]):
    """A user's memberships, and when they are these. Nobody changes it: many answers are made of it."""

    __slots__ = ("_segments", "packed", "rendered", "since", "until", "version")

    def __init__(self, found: list[Membership], packed: bytes, version: int, now: int) -> None:
        super().__init__(found)
        self.packed = packed
        self.version = version
        ends = [expires for _, _, expires in unpacked(packed)]
        # Between these two instants nothing expires.
        self.since = max((end for end in ends if end <= now), default=ALWAYS)
        self.until = min((end for end in ends if end > now), default=NEVER)
        # What was last made of it (server/compiled_values.py).
        self.rendered: Any = None
        self._segments: Segments | None = None

    @property
    def segments(self) -> Segments:
        if self._segments is None:
            self._segments = Segments([membership.segment for membership in self])
        return self._segments


class Keeping:
    """The lists of those users who were asked for last."""

    def __init__(self, catalogue: Catalogue) -> None:
        self._catalogue = catalogue
        # Two generations: when the younger is full it becomes the older, and what was not asked for since is gone.
        self._young: dict[str, Kept] = {}
        self._old: dict[str, Kept] = {}
        self._weight = 0

    def active(self, user_id: str, packed: bytes, now: int) -> list[Membership] | None:
        """What `resolvers.active.active` makes of it."""
        kept = self._young.get(user_id)
        if kept is None:
            kept = self._old.pop(user_id, None)
            if kept is not None:
                self._keep(user_id, kept)
        if (
            kept is not None
            and kept.packed == packed
            and kept.version == self._catalogue.version
            and kept.since <= now < kept.until
        ):
            return kept
        version = self._catalogue.version
        found = active(user_id, packed, now, self._catalogue)
        if found is None or len(found) > LONGEST:
            return found
        kept = Kept(found, packed, version, now)
        self._keep(user_id, kept)
        return kept

    def _keep(self, user_id: str, kept: Kept) -> None:
        if self._weight >= MOST // 2:
            self._young, self._old, self._weight = {}, self._young, 0
        self._young[user_id] = kept
        self._weight += 1 + len(kept)
