"""Up to which instant history is complete: nothing that is dated before it will appear any more.

An event is dated before it is committed, and a list of millions is committed hours later (docs/decisions/0026).
"""

from collections import deque
from datetime import datetime, timedelta

from db.clock import ticks
from db.watching import Look

# By so much the clock of a server may be set back without anybody noticing.
OVERLAP = timedelta(seconds=5)
# While a transaction goes on for hours there are more looks than anybody wants to remember.
MOST_MARKS = 1_000
# Each mark takes a transaction id, of which there are many and not endlessly many.
MARK_SECONDS = 1.0


class Settling:
    def __init__(self) -> None:
        # Of earlier looks: their transaction ids, and when they began.
        self._marks: deque[tuple[int, datetime]] = deque()
        self._marked = float("-inf")
        self._end_xid = 0
        # When its server was started, and the latest time that it has shown.
        self._started: datetime | None = None
        self._latest: datetime | None = None
        # None: not known yet.
        self.until: datetime | None = None

    def wants_mark(self) -> bool:
        """Whether the next look is to take a transaction id."""
        return ticks() - self._marked >= MARK_SECONDS

    def note(self, look: Look) -> bool:
        """Take in what a look says; False when the database may be an earlier state of it, or its clock be behind.

        Then nothing that was known before holds any more. Once every transaction up to that of an earlier look has
        ended, whatever is still to appear was dated by a later one: after that look had begun.
        """
        same = self._is_same(look)
        if not same:
            self._marks.clear()
            self.until = self._latest = None
        self._end_xid, self._started = look.end_xid, look.server_started
        self._latest = max(look.at, self._latest or look.at)
        if look.own_xid is not None:
            self._mark(look.own_xid, look.at)
        while self._marks and self._marks[0][0] < look.begin_xid:
            _, at = self._marks.popleft()
            if self.until is None or at - OVERLAP > self.until:
                self.until = at - OVERLAP
        # Whoever keeps a transaction open for longer is none of ours, and dates nothing.
        self.until = max(look.beginning, self.until or look.beginning)
        return same

    def _is_same(self, look: Look) -> bool:
        if self._started is None or self._latest is None:
            return True
        # Another server's clock may have been behind for a while before anybody looked.
        return (
            look.server_started == self._started and look.end_xid >= self._end_xid and look.at >= self._latest - OVERLAP
        )

    def _mark(self, xid: int, at: datetime) -> None:
        self._marked = ticks()
        if len(self._marks) >= MOST_MARKS:
            # To know fewer of them only means to look back further.
            self._marks = deque(list(self._marks)[::2])
        self._marks.append((xid, at))
