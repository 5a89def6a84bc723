"""How long something may take, for much that begins all the time and nearly always ends in time."""

import asyncio
from types import TracebackType


class Deadlines:
    """Of the same length, and with one timer for all of them.

    A timer for each is set and taken back within a millisecond, and takes longer than many of the statements that it
    would end.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        # Asking for it takes a system call each time.
        self._loop = asyncio.get_running_loop()
        # In the order in which they end.
        self._running: dict[_Deadline, None] = {}
        self._timer: asyncio.TimerHandle | None = None

    def one(self) -> "_Deadline":
        """For a `with` block: what is awaited in it when the time is over is cancelled, and TimeoutError raised."""
        return _Deadline(self)

    def _begin(self, deadline: "_Deadline") -> None:
        deadline.ends = self._loop.time() + self._seconds
        self._running[deadline] = None
        if self._timer is None:
            self._timer = self._loop.call_at(deadline.ends, self._end)

    def _end(self) -> None:
        self._timer = None
        now = self._loop.time()
        for deadline in list(self._running):
            if deadline.ends > now:
                self._timer = self._loop.call_at(deadline.ends, self._end)
                return
            del self._running[deadline]
            deadline.expire()


class _Deadline:
    """Does what asyncio.Timeout does."""

    __slots__ = ("_cancelling", "_deadlines", "_expired", "_task", "ends")

    def __init__(self, deadlines: Deadlines) -> None:
        self._deadlines = deadlines
        self._expired = False
        self.ends = 0.0

    def __enter__(self) -> None:
        task = asyncio.current_task(self._deadlines._loop)  # noqa: SLF001  # they are one
        assert task is not None
        self._task = task
        self._cancelling = task.cancelling()
        self._deadlines._begin(self)  # noqa: SLF001

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self._deadlines._running.pop(self, None)  # noqa: SLF001
        # Whoever was cancelled by somebody else, too, is cancelled.
        if self._expired and self._task.uncancel() <= self._cancelling and kind is asyncio.CancelledError:
            raise TimeoutError from error

    def expire(self) -> None:
        self._expired = True
        self._task.cancel()
