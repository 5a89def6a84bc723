"""How many of a kind may be under way in this process: whoever finds no place is told so at once."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from resolvers.errors import Overloaded

# One caller takes no more than a quarter of the places, so that others find some.
SHARE = 4


class Places:
    def __init__(self, most: int) -> None:
        self._free = most
        self._most_of_one = -(-most // SHARE)
        self._taken: Counter[str] = Counter()

    def take(self, caller: str) -> None:
        """Take a place, or raise Overloaded."""
        if self._free <= 0 or self._taken[caller] >= self._most_of_one:
            raise Overloaded
        self._free -= 1
        self._taken[caller] += 1

    def give(self, caller: str) -> None:
        """Leave a place that was taken."""
        self._free += 1
        self._taken[caller] -= 1
        if not self._taken[caller]:
            del self._taken[caller]

    @contextmanager
    def one(self, caller: str) -> Iterator[None]:
        """Take a place for as long as the block lasts, or raise Overloaded."""
        self.take(caller)
        try:
            yield
        finally:
            self.give(caller)
