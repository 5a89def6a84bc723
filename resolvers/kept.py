"""Lists that were made of what Redis holds: as long as it holds the very same, they are not made again.

Redis is asked each time, and the bytes are compared: nothing is older here than it is there.
"""

from collections import OrderedDict
from collections.abc import Sequence
from itertools import repeat
from typing import Any

from db.clock import ALWAYS, NEVER
from db.memberships import Membership
from db.packed import unpacked
from db.segments import Segment
from resolvers.active import active
from resolvers.catalogue import Catalogue

# Memberships, and users. With its text each takes about 300 bytes.
MOST = 200_000
# Of one user. Longer lists are rare, and would push out many others.
LONGEST = 1_000
# Each time that one is forgotten, at the most: it is to take no time.
SPARED = 10


class Segments(list[Segment]):
    """The segments of a list that is kept."""

    __slots__ = ("rendered",)

    def __init__(self, segments: list[Segment]) -> None:
        super().__init__(segments)
        self.rendered: Any = None


class Kept(list[Membership]):
    """A user's memberships, and when they are these. Nobody changes it: many answers are made of it."""

    __slots__ = ("_segments", "counting", "rendered", "since", "until", "used", "value", "version")

    def __init__(
        self, found: list[Membership], value: bytes, packed: bytes, counting: bytes, version: int, now: int
    ) -> None:
        super().__init__(found)
        # What lay in Redis, and what of it said that it counts.
        self.value = value
        self.counting = counting
        self.version = version
        ends = [expires for _, _, expires in unpacked(packed)]
        # Between these two instants nothing expires.
        self.since = max((end for end in ends if end <= now), default=ALWAYS)
        self.until = min((end for end in ends if end > now), default=NEVER)
        # Whether it was asked for again since it was last spared.
        self.used = False
        # What was last made of it (server/compiled_values.py).
        self.rendered: Any = None
        self._segments: Segments | None = None

    @property
    def segments(self) -> Segments:
        if self._segments is None:
            self._segments = Segments([membership.segment for membership in self])
        return self._segments


# Of whom nothing is kept: it was made of no list.
NOTHING = Kept([], b"", b"", b"", -1, 0)


class Keeping:
    """The lists of those users who were asked for last."""

    def __init__(self, catalogue: Catalogue) -> None:
        self._catalogue = catalogue
        # The one that is forgotten next comes first.
        self._kept: OrderedDict[str, Kept] = OrderedDict()
        self._weight = 0

    def active(self, user_id: str, value: bytes, counting: bytes, now: int) -> list[Membership] | None:
        """What `resolvers.active.active` makes of a list, which lies in Redis under what says that it counts."""
        kept, version = self._kept.get(user_id), self._catalogue.version
        if kept is not None:
            if kept.value == value and kept.version == version and kept.since <= now < kept.until:
                kept.used = True
                return kept
            del self._kept[user_id]
            self._weight -= 1 + len(kept)
        packed = value[len(counting) :]
        found = active(user_id, packed, now, self._catalogue)
        if found is None or len(found) > LONGEST:
            return found
        kept = self._kept[user_id] = Kept(found, value, packed, counting, version, now)
        self._weight += 1 + len(kept)
        if self._weight > MOST:
            self._forget()
        return kept

    def all_active(
        self, user_ids: Sequence[str], values: Sequence[bytes | None], counting: bytes, now: int
    ) -> Sequence[list[Membership]] | None:
        """The same of many users; None when one has no list, or one that the catalogue does not know enough for."""
        kept = list(map(self._kept.get, user_ids, repeat(NOTHING)))
        if self._are(kept, values, counting, now):
            return kept
        found: list[list[Membership]] = []
        for user_id, value in zip(user_ids, values, strict=True):
            if value is None or not value.startswith(counting):
                return None
            each = self.active(user_id, value, counting, now)
            if each is None:
                return None
            found.append(each)
        return found

    def _are(self, kept: list[Kept], values: Sequence[bytes | None], counting: bytes, now: int) -> bool:
        """Whether each of these lists is still what it was made of; nearly always they are, so all are looked at
        together, which takes half of the time.
        """
        if (
            [each.value for each in kept] != values
            or [each.counting for each in kept].count(counting) != len(kept)
            or [each.version for each in kept].count(self._catalogue.version) != len(kept)
            or max([each.since for each in kept]) > now
            or min([each.until for each in kept]) <= now
        ):
            return False
        for each in kept:
            each.used = True
        return True

    def _forget(self) -> None:
        """Forget those that were kept for longest, and spare some that were asked for again since."""
        spared = 0
        while self._weight > MOST:
            user_id, kept = self._kept.popitem(last=False)
            if kept.used and spared < SPARED:
                kept.used = False
                self._kept[user_id] = kept
                spared += 1
            else:
                self._weight -= 1 + len(kept)
