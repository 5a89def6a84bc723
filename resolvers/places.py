"""How many of a kind may be under way in this process: whoever finds no place is told so at once."""

from collections.abc import Iterator
from contextlib import contextmanager

from resolvers.errors import Overloaded

# One caller takes no more than a quarter of the places, so that others find some.
SHARE = 4


class Places:
    def __init__(self, most: int) -> None:
        self._free = most
        self._most_of_one = -(-most // SHARE)
        # By caller; whoever has none is not there.
        self._taken: dict[str, int] = {}

    def take(self, caller: str) -> None:
        """Take a place, or raise Overloaded."""
        taken = self._taken.get(caller, 0)
        if self._free <= 0 or taken >= self._most_of_one:
            raise Overloaded
        self._free -= 1
        self._taken[caller] = taken + 1

    def give(self, caller: str) -> None:
        """Leave a place that was taken."""
        self._free += 1
        taken = self._taken[caller]
        if taken == 1:
            del self._taken[caller]
        else:
            self._taken[caller] = taken - 1

    @contextmanager
    def one(self, caller: str) -> Iterator[None]:
        """Take a place for as long as the block lasts, or raise Overloaded."""
        self.take(caller)
        try:
            yield
        finally:
            self.give(caller)
