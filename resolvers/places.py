"""How many of a kind may be under way in this process: whoever finds no place is told so at once."""

from collections.abc import Iterator
from contextlib import contextmanager

from resolvers.errors import Overloaded


class Places:
    def __init__(self, most: int) -> None:
        self._free = most

    @contextmanager
    def one(self) -> Iterator[None]:
        """Take a place for as long as the block lasts, or raise Overloaded."""
        if self._free <= 0:
            raise Overloaded
        self._free -= 1
        try:
            yield
        finally:
            self._free += 1
