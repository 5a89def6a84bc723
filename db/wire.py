"""A connection to PostgreSQL on which one statement is sent again before the earlier ones were answered.

PostgreSQL answers in the order in which it was asked, and each time is a transaction of its own: what one comes to is
nothing to the others. Connecting, TLS, names and passwords are the driver's; from then on it is asked nothing more.
"""

import asyncio
import struct
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress

import asyncpg
from asyncpg.exceptions import InvalidCachedStatementError

from db.gone import GONE, keep_alive
from db.primary import Connection
from db.statement import Row, Statement

Rows = asyncio.Future[list[Row]]

# What a message is, and how long without that; and which of them say something to us.
HEAD = struct.Struct("!Bi")
HEAD_BYTES = HEAD.size
# Of a row there is how many columns it has, too.
ROW_BYTES = HEAD_BYTES + 2
ROW, ERROR, READY = b"DEZ"
TERMINATE = b"X\0\0\0\x04"


class ConnectionLost(ConnectionError):
    """The connection is gone, and whether the statement took effect is not known."""


class Wire(asyncio.Protocol):
    """One on which the statement was prepared.

    `answered` is called with it after each answer; `lost`, with the reason, when it ends by itself, before anybody who
    waits is told.
    """

    def __init__(
        self,
        connection: Connection,
        statement: Statement,
        made: float,
        answered: Callable[["Wire"], None],
        lost: Callable[["Wire", Exception], None],
    ) -> None:
        self._connection = connection
        self._statement = statement
        self._tell, self._lost = answered, lost
        # By time.monotonic: when it began to be made, and when PostgreSQL can have begun with what it is at.
        self.made = self.began = made
        # How many were sent and not answered; and who waits for each, in the same order.
        self.under_way = 0
        self._waiting: deque[Rows] = deque()
        # Of the answer that is arriving; and the beginning of a message that has not arrived whole.
        self._rows: list[Row] = []
        self._error: asyncpg.PostgresError | None = None
        self._rest = b""
        self._is_over = False
        self.closed = asyncio.Event()
        self._transport: asyncio.WriteTransport = connection._transport  # noqa: SLF001  # the driver has no name for it
        keep_alive(self._transport)
        self._transport.set_protocol(self)

    @property
    def is_awaited(self) -> bool:
        """Whether anybody waits for an answer."""
        return not all(answer.done() for answer in self._waiting)

    def send(self, message: bytes, answer: Rows) -> None:
        """Have the answer set, if nobody has cancelled it: to rows, to what PostgreSQL says, or to ConnectionLost."""
        self._transport.write(message)
        if not self.under_way:
            self.began = time.monotonic()
        self.under_way += 1
        self._waiting.append(answer)

    def data_received(self, data: bytes) -> None:
        if self._is_over:
            return
        if self._rest:
            data = self._rest + data
        at, arrived, read_head, rows = 0, len(data), HEAD.unpack_from, self._rows
        while arrived - at >= HEAD_BYTES:
            kind, size = read_head(data, at)
            after = at + 1 + size
            if after > arrived:
                break
            if kind == ROW:
                rows.append(data[at + ROW_BYTES : after])
            elif kind == READY:
                if not self._answered():
                    return
                rows = self._rows
            elif kind == ERROR:
                self._error = _error(data[at + HEAD_BYTES : after], self._statement)
                if not self._waiting:  # it takes its leave
                    self._end(self._error)
                    return
            at = after
        self._rest = data[at:]

    def _answered(self) -> bool:
        """Whether it goes on."""
        error, self._error = self._error, None
        if error is not None and (error.sqlstate in GONE or isinstance(error, InvalidCachedStatementError)):
            self._end(error)
            return False
        answer = self._waiting.popleft()
        self.under_way -= 1
        self.began = time.monotonic()
        rows, self._rows = self._rows, []
        if error is not None:
            fail(answer, error)
        elif not answer.done():  # who has asked may have left
            answer.set_result(rows)
        self._tell(self)
        return True

    def connection_lost(self, exc: Exception | None) -> None:
        if not self._is_over:
            self._end(self._error or exc or ConnectionError("PostgreSQL has closed the connection"))
        # Else the driver would warn of having been left open.
        with suppress(Exception):
            self._connection.terminate()
        self.closed.set()

    def _end(self, error: Exception) -> None:
        self._is_over = True
        self._lost(self, error)
        self.fail(ConnectionLost(str(error) or type(error).__name__))

    def fail(self, error: Exception) -> None:
        """Leave it, with this for whoever waits for what it is at; of the others it is not known whether it was."""
        self._is_over = True
        self._transport.abort()
        self.under_way = 0
        while self._waiting:
            fail(self._waiting.popleft(), error)
            error = ConnectionLost("the connection was lost with the statement before")

    def close(self) -> None:
        """End it, when nobody waits for an answer."""
        self._is_over = True
        if not self._transport.is_closing():
            self._transport.write(TERMINATE)
        self._transport.close()


def fail(answer: Rows, error: Exception) -> None:
    """Whoever waits for it may have left."""
    if not answer.done():
        answer.set_exception(error)


def _error(fields: bytes, statement: Statement) -> asyncpg.PostgresError:
    told = {chr(field[0]): field[1:].decode(errors="replace") for field in fields.split(b"\0") if field}
    error: asyncpg.PostgresError = asyncpg.PostgresError.new(told, query=statement.text)
    return error
