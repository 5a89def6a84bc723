"""The pools of connections for the statements that are sent most: what SQLAlchemy adds to each costs more than they do.

Each time a statement is a transaction of its own. Where all connections are at work it does not wait for one of them to
be free, but follows what that is at: PostgreSQL finds it there as soon as it is ready, and nobody has to wake it.
"""

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AbstractContextManager, suppress
from itertools import islice
from operator import attrgetter
from typing import Any, NamedTuple

from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from db.gone import CONNECT_SECONDS, GONE, READ_ONLY, RECYCLE_SECONDS, WAIT_SECONDS
from db.primary import DRIVERS, Connection, Primary
from db.statement import Row, Statement
from db.wire import ConnectionLost, Rows, Wire, fail

CLOSE_SECONDS = 2
# So many are sent before the first of them is answered: PostgreSQL has the next one at hand, and nobody waits for more
# than one. And nobody follows what has taken so long, for it may wait for somebody else's lock.
DEPTH, FRESH_SECONDS = 2, 0.02
# How often it is looked who waits for too long.
LOOKS = 10
UNDER_WAY = attrgetter("under_way")


class _Asked(NamedTuple):
    """Who waits for a connection, since when by time.monotonic."""

    message: bytes
    answer: Rows
    since: float


class Pool:
    """Up to `size` connections, made when they are needed; the one that was used last is used next."""

    def __init__(
        self, primary: Primary, size: int, session: Mapping[str, str], statement: Statement, seconds: float
    ) -> None:
        self._primary = primary
        self._options: dict[str, Any] = primary.options | {
            "timeout": CONNECT_SECONDS,
            "server_settings": dict(session),
        }
        self.size = size
        self.statement = statement
        # Ends the wait for a server that is frozen, which no timeout of its own can.
        self._seconds = seconds
        self._loop = asyncio.get_running_loop()
        # All connections; those that nobody uses; and those that are being made.
        self._wires: list[Wire] = []
        self._idle: list[Wire] = []
        self._connecting: set[asyncio.Task[None]] = set()
        self._waiting: deque[_Asked] = deque()
        # What is older is as dead as a connection that was found to be.
        self._lost = float("-inf")
        self._is_closed = False
        # Looks for what takes too long, while there is anything.
        self._timer: asyncio.TimerHandle | None = None
        # Called with each statement that is sent.
        self.sending: Callable[[str], None] | None = None
        # Around each statement, for as long as it takes.
        self.following: Callable[[str], AbstractContextManager[object]] | None = None

    @property
    def in_use(self) -> int:
        """Connections that are at work, or being made."""
        return len(self._connecting) + sum(wire.under_way > 0 for wire in self._wires)

    @property
    def waiting(self) -> int:
        """Who waits for a connection, and has none made for it."""
        return max(0, sum(not asked.answer.done() for asked in self._waiting) - len(self._connecting))

    def fetch(self, *values: object) -> Awaitable[list[Row]]:
        """The rows that the statement answers with these values, committed when they are there.

        Raises ConnectionLost when that cannot be known, and SQLAlchemy's TimeoutError after a second without a
        connection; what PostgreSQL itself says is raised as it is. Whoever is cancelled leaves it at work.
        """
        return self._ask(values) if self.following is None else self._follow(self.following, values)

    async def close(self) -> None:
        """End all connections: after a moment for what somebody waits for."""
        self._is_closed = True
        for task in self._connecting:
            task.cancel()
        for asked in self._waiting:
            fail(asked.answer, ConnectionError("the pool was closed"))
        wires = list(self._wires)
        for wire in wires:
            if wire in self._idle:
                self._drop(wire)
            elif not wire.is_awaited:
                wire.fail(ConnectionError("the pool was closed"))
        with suppress(TimeoutError):
            async with asyncio.timeout(CLOSE_SECONDS):
                await asyncio.gather(*self._connecting, *(wire.closed.wait() for wire in wires), return_exceptions=True)
        for wire in self._wires:
            wire.fail(ConnectionLost("the pool was closed"))
        if self._timer is not None:
            self._timer.cancel()

    async def _follow(
        self, following: Callable[[str], AbstractContextManager[object]], values: tuple[object, ...]
    ) -> list[Row]:
        with following(self.statement.text):
            return await self._ask(values)

    def _ask(self, values: tuple[object, ...]) -> Rows:
        if self._is_closed:
            raise ConnectionError("the pool was closed")
        message = self.statement.bound(values)
        if self.sending is not None:
            self.sending(self.statement.text)
        answer: Rows = self._loop.create_future()
        wire = None if self._waiting else self._free()
        if wire is None:
            self._waiting.append(_Asked(message, answer, time.monotonic()))
            self._serve()
        else:
            wire.send(message, answer)
        if self._timer is None:
            self._look_soon()
        return answer

    def _serve(self) -> None:
        """Give those who wait what connections there are, and have more made for the others."""
        while self._waiting:
            if not self._waiting[0].answer.done():  # who waits may have left
                wire = self._free()
                if wire is None:
                    self._grow()
                    return
                wire.send(self._waiting[0].message, self._waiting[0].answer)
            self._waiting.popleft()

    def _free(self) -> Wire | None:
        """A connection that a statement can be sent on: one without work, or else the one that has least."""
        while self._idle:
            wire = self._idle.pop()
            if self._is_good(wire):
                return wire
            self._drop(wire)
        if len(self._wires) < self.size:
            return None
        wire = min(self._wires, key=UNDER_WAY)
        if wire.under_way >= DEPTH:
            return None
        if self._takes_more(wire):
            return wire
        return next(filter(self._takes_more, self._wires), None)

    def _takes_more(self, wire: Wire) -> bool:
        return wire.under_way < DEPTH and time.monotonic() - wire.began < FRESH_SECONDS and self._is_good(wire)

    def _is_good(self, wire: Wire) -> bool:
        return wire.made > max(self._lost, self._primary.left, time.monotonic() - RECYCLE_SECONDS)

    def _grow(self) -> None:
        room = self.size - len(self._wires) - len(self._connecting)
        if room:
            for _ in range(min(room, self.waiting)):
                self._connecting.add(self._loop.create_task(self._connect()))

    async def _connect(self) -> None:
        """Make one more, or tell the first who waits why there is none."""
        made, task = time.monotonic(), asyncio.current_task()
        assert task is not None
        try:
            wire = Wire(await self._connection(), self.statement, made, self._answered, self._ended)
            self._wires.append(wire)
            self._idle.append(wire)
        except Exception as error:  # noqa: BLE001  # it is not handled here: whoever waits gets it
            self._refuse(_told(error))
        finally:
            self._connecting.discard(task)
        self._serve()

    async def _connection(self) -> Connection:
        """One of the driver's, on which the statement is prepared."""
        async with asyncio.timeout(CONNECT_SECONDS):
            connection = await self._primary.connect(**self._options)
            try:
                await self.statement.prepare(connection)
            except BaseException:
                connection.terminate()
                raise
        if connection.is_closed():  # the driver was told so, and we shall not be
            raise ConnectionError("the connection was lost before it was used")
        return connection

    def _refuse(self, error: Exception) -> None:
        while self._waiting:
            answer = self._waiting.popleft().answer
            if not answer.done():
                answer.set_exception(error)
                return

    def _answered(self, wire: Wire) -> None:
        if not wire.under_way:
            if self._is_good(wire) and not self._is_closed:
                self._idle.append(wire)
            else:
                self._drop(wire)
        if self._waiting:
            self._serve()

    def _ended(self, wire: Wire, error: Exception) -> None:
        self._forget(wire)
        if wire.under_way:  # one that nobody used may have ended for a reason of its own
            self._lost = time.monotonic()
        if getattr(error, "sqlstate", None) == READ_ONLY:
            self._primary.leave()
        self._serve()

    def _drop(self, wire: Wire) -> None:
        self._forget(wire)
        wire.close()

    def _forget(self, wire: Wire) -> None:
        self._wires.remove(wire)
        with suppress(ValueError):
            self._idle.remove(wire)

    def _look_soon(self) -> None:
        self._timer = self._loop.call_later(WAIT_SECONDS / LOOKS, self._look)

    def _look(self) -> None:
        """End what takes too long."""
        self._timer, now = None, time.monotonic()
        for wire in [each for each in self._wires if each.under_way and now - each.began > self._seconds]:
            self._forget(wire)
            wire.fail(TimeoutError(f"PostgreSQL has not answered within {self._seconds} s"))
        self._waiting = deque(asked for asked in self._waiting if not asked.answer.done())
        # The first have a connection made for them, which is given up after a time of its own.
        for asked in islice(self._waiting, len(self._connecting), None):
            if now - asked.since >= WAIT_SECONDS:
                fail(asked.answer, PoolTimeoutError(f"no connection of {self.size} was free in {WAIT_SECONDS} s"))
        self._serve()
        if self._waiting or any(map(UNDER_WAY, self._wires)):
            self._look_soon()


def _told(error: Exception) -> Exception:
    """What whoever wanted a connection is told of that."""
    state = getattr(error, "sqlstate", None)
    if isinstance(error, DRIVERS) and (state is None or state in GONE):
        return ConnectionError(str(error) or type(error).__name__)
    return error
