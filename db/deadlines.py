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
        # In the order in which they end.
        self._running: dict[_Deadline, None] = {}
        self._timer: asyncio.TimerHandle | None = None

    def one(self) -> "_Deadline":
        """For a `with` block: what is awaited in it when the time is over is cancelled, and TimeoutError raised."""
        return _Deadline(self)

    def _begin(self, deadline: "_Deadline", loop: asyncio.AbstractEventLoop) -> None:
        deadline.ends = loop.time() + self._seconds
        self._running[deadline] = None
        if self._timer is None:
            self._timer = loop.call_at(deadline.ends, self._end, loop)

    def _end(self, loop: asyncio.AbstractEventLoop) -> None:
        self._timer = None
        now = loop.time()
        for deadline in list(self._running):
            if deadline.ends > now:
                self._timer = loop.call_at(deadline.ends, self._end, loop)
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
        loop = asyncio.get_running_loop()
        task = asyncio.current_task(loop)
        assert task is not None
        self._task = task
        self._cancelling = task.cancelling()
        self._deadlines._begin(self, loop)  # noqa: SLF001  # they are one

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self._deadlines._running.pop(self, None)  # noqa: SLF001
        # Whoever was cancelled by somebody else, too, is cancelled.
        if self._expired and self._task.uncancel() <= self._cancelling and kind is asyncio.CancelledError:
            raise TimeoutError from error

    def expire(self) -> None:
        self._expired = True
        self._task.cancel()
