"""Whether anybody is asking just now: what goes on in the background of the process makes room for them."""

from db.clock import ticks

# Whoever has asked may ask again so soon.
QUIET_SECONDS = 0.25


class Traffic:
    def __init__(self) -> None:
        self._last = float("-inf")

    def note(self) -> None:
        """A request was let in."""
        self._last = ticks()

    def anybody(self) -> bool:
        return ticks() - self._last < QUIET_SECONDS
