"""The pools of connections for the statements that are sent most: what SQLAlchemy adds to each costs more than they do.

Only single statements go over them, each a transaction of its own.
"""

import asyncio
import time
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass
from typing import Any

import asyncpg
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from db.deadlines import Deadlines
from db.gone import CONNECT_SECONDS, GONE, READ_ONLY, RECYCLE_SECONDS, WAIT_SECONDS, has_left, keep_alive
from db.primary import Primary

CLOSE_SECONDS = 2
# Follows a statement where nobody else does.
NOBODY = nullcontext()


class ConnectionLost(ConnectionError):
    """The connection is gone, and whether the statement took effect is not known."""


class _NotSentError(ConnectionLost):
    """The server had taken its leave before anything was sent to it."""


@dataclass(slots=True)
class _Session:
    connection: "asyncpg.Connection[asyncpg.Record]"
    since: float


class Pool:
    """Up to `size` connections, made when they are needed; the one that was used last is used next."""

    def __init__(self, primary: Primary, size: int, session: Mapping[str, str], statement_seconds: float) -> None:
        self._primary = primary
        self._options: dict[str, Any] = primary.options | {
            "timeout": CONNECT_SECONDS,
            "server_settings": dict(session),
        }
        self.size = size
        # Ends the wait for a server that is frozen, which no timeout of its own can; and the wait for a connection.
        self._statements, self._turns = Deadlines(statement_seconds), Deadlines(WAIT_SECONDS)
        # Connections that are at work, or being made.
        self.in_use = 0
        self._idle: list[_Session] = []
        self._waiting: deque[asyncio.Future[None]] = deque()
        # What is older is as dead as a connection that was found to be.
        self._lost = float("-inf")
        # Called with each statement that is sent.
        self.sending: Callable[[str], None] | None = None
        # Around each statement, for as long as it takes.
        self.following: Callable[[str], AbstractContextManager[object]] | None = None

    @property
    def waiting(self) -> int:
        """Who waits for a connection."""
        return len(self._waiting)

    async def fetch(self, statement: str, *args: object) -> "list[asyncpg.Record]":
        """The rows that the statement answers, committed when this returns.

        Raises ConnectionLost when that cannot be known, and SQLAlchemy's TimeoutError after a second without a
        connection; what PostgreSQL itself says is raised as it is.
        """
        if self.in_use < self.size:
            self.in_use += 1
        else:
            await self._turn()
        try:
            if self.sending is not None:
                self.sending(statement)
            with self.following(statement) if self.following is not None else NOBODY:
                if (session := self._idle_one()) is not None:
                    try:
                        return await self._send_over(session, statement, args)
                    except _NotSentError:
                        pass  # another one may be of use
                return await self._send_over(await self._connect(), statement, args)
        finally:
            self._give_turn()

    async def close(self) -> None:
        """End the connections that nobody uses; the others end when they are given back."""
        self._lost = float("inf")
        while self._idle:
            connection = self._idle.pop().connection
            try:
                await connection.close(timeout=CLOSE_SECONDS)
            except (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError):
                connection.terminate()

    async def _send_over(self, session: _Session, statement: str, args: tuple[object, ...]) -> "list[asyncpg.Record]":
        connection, useful = session.connection, False
        try:
            with self._statements.one():
                rows: list[asyncpg.Record] = await connection.fetch(statement, *args)
            useful = True
        except (asyncpg.PostgresError, asyncpg.InterfaceError, OSError) as error:
            if isinstance(error, TimeoutError):
                raise
            if connection.is_closed() or getattr(error, "sqlstate", None) in GONE:
                self._lost = time.monotonic()
                if getattr(error, "sqlstate", None) == READ_ONLY:
                    self._primary.leave()
                raise ConnectionLost(str(error) or type(error).__name__) from error
            useful = isinstance(error, asyncpg.PostgresError)
            raise
        except asyncpg.InternalClientError as error:
            if not has_left(error):
                raise
            self._lost = time.monotonic()
            raise _NotSentError(str(error)) from error
        finally:
            # What was cancelled or timed out may still be answered: that must be nobody else's answer.
            if useful and session.since > self._lost:
                self._idle.append(session)
            else:
                connection.terminate()
        return rows

    def _idle_one(self) -> _Session | None:
        while self._idle:
            session = self._idle.pop()
            oldest = max(self._lost, self._primary.left, time.monotonic() - RECYCLE_SECONDS)
            if session.since > oldest and not session.connection.is_closed():
                return session
            session.connection.terminate()
        return None

    async def _connect(self) -> _Session:
        since = time.monotonic()
        try:
            connection = await self._primary.connect(**self._options)
        except (asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError) as error:
            state = getattr(error, "sqlstate", None)
            if state is not None and state not in GONE:
                raise
            raise ConnectionError(str(error) or type(error).__name__) from error
        keep_alive(connection._transport)  # noqa: SLF001  # the driver has no setting for it
        return _Session(connection, since)

    async def _turn(self) -> None:
        turn = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        try:
            with self._turns.one():
                await turn
        except BaseException as error:
            if turn.done() and not turn.cancelled():  # it had come just before
                self._give_turn()
            else:
                with suppress(ValueError):  # its turn had come, when it was cancelled already
                    self._waiting.remove(turn)
            if isinstance(error, TimeoutError):
                raise PoolTimeoutError(f"no connection of {self.size} was free in {WAIT_SECONDS} s") from error
            raise

    def _give_turn(self) -> None:
        while self._waiting:
            turn = self._waiting.popleft()
            if not turn.done():  # who waited for it may have left
                turn.set_result(None)
                return
        self.in_use -= 1
