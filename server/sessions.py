"""Connections that go on after the request for them: who has them, and when they are ended."""

import asyncio
import ctypes
import gc
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from enum import Enum

from db.beside import beside
from db.clock import ticks
from resolvers.callers import Caller
from resolvers.errors import LimitExceeded, Overloaded
from server import metrics
from server.authentication import looked_up
from server.jwt import Jwts
from server.known_tokens import KnownTokens
from server.traffic import Traffic

log = logging.getLogger(__name__)
# With what known tokens themselves may be old by (server/known_tokens.py), one that was revoked is noticed within ten.
LOOK_SECONDS = 2.0
# How long a message may take to go out. Whoever reads more slowly than that is not there to be told anything.
SEND_SECONDS = 10.0
# After so many connections have ended, or messages were sent, and not more often than that.
TIDY_ENDED, TIDY_MESSAGES = 100, 10_000
TIDY_SECONDS = 10.0
# Gives the system back whatever pages are free, in less than a millisecond. glibc alone has it, and alone needs it: by
# itself it gives back no more than what is behind all that is still used.
give_back = getattr(ctypes.CDLL(None), "malloc_trim", None)


class Ending(Enum):
    """Why a connection is ended: how a WebSocket is closed, with which reason."""

    LEAVING = (1012, "This process stops: connect again")
    # Clients take 4401 for the end, and would not come back with another token.
    NOT_GOOD = (4403, "Forbidden")
    TOO_SLOW = (4408, "Messages are not read fast enough: connect again")

    @property
    def code(self) -> int:
        return self.value[0]

    @property
    def reason(self) -> str:
        return self.value[1]


@dataclass(eq=False, slots=True)
class Session:
    """One such connection, of somebody who was let in."""

    caller: Caller
    # What was shown; None where nobody is asked.
    shown: str | None
    # Whose points and places it takes.
    bucket: str
    end: Callable[[Ending], None]

    def drop(self) -> None:
        metrics.subscribers_dropped.inc()
        self.end(Ending.TOO_SLOW)


class Sessions:
    def __init__(self, most_of_one: int) -> None:
        self._most_of_one = most_of_one
        self._open: dict[str, set[Session]] = {}
        self._leaving = False
        # Since the memory was last looked through, and when that was.
        self._ended = self._messages = 0
        self._tidied = float("-inf")

    def told(self) -> None:
        """A subscriber was sent a message."""
        self._messages += 1
        metrics.subscription_messages.inc()

    def open(self, session: Session) -> None:
        """Have it ended when it has to be, until it is closed. Raises LimitExceeded when its client has too many of
        them, and Overloaded when all were ended.
        """
        # Who asks again over a connection that is still there would hold up the process.
        if self._leaving:
            raise Overloaded
        of_client = self._open.setdefault(session.bucket, set())
        if len(of_client) >= self._most_of_one:
            raise LimitExceeded(f"You have {self._most_of_one} connections for subscriptions, and may not have more.")
        of_client.add(session)

    def close(self, session: Session) -> None:
        self._ended += 1
        of_client = self._open[session.bucket]
        of_client.discard(session)
        if not of_client:
            del self._open[session.bucket]

    def end_all(self) -> None:
        """And let nobody begin another."""
        self._leaving = True
        for session in self._all():
            session.end(Ending.LEAVING)

    @asynccontextmanager
    async def looked_after(self, known: KnownTokens, jwts: Jwts | None, traffic: Traffic) -> AsyncIterator[None]:
        """End those whose token is good no more, for as long as the block lasts; and at its end all of them."""
        try:
            async with beside(self._look(known, jwts, traffic)):
                yield
        finally:
            self.end_all()

    async def _look(self, known: KnownTokens, jwts: Jwts | None, traffic: Traffic) -> None:
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            if not traffic.anybody():
                self._tidy()
            try:
                await self._end_those_without_token(known, jwts)
            except Exception:
                log.exception("whether the tokens of subscribers are still good could not be seen")

    async def _end_those_without_token(self, known: KnownTokens, jwts: Jwts | None) -> None:
        shown: dict[str, list[Session]] = {}
        for session in self._all():
            if session.shown is not None:
                shown.setdefault(session.shown, []).append(session)
        for token, sessions in shown.items():
            if not await _is_good(token, sessions[0].caller, known, jwts):
                for session in sessions:
                    session.end(Ending.NOT_GOOD)

    def _tidy(self) -> None:
        """Look through the memory when much of it may be garbage, and nobody waits.

        What GraphQL makes of an operation refers to itself. Of an operation that lasts, and of messages that thousands
        are sent at once, it gets so old that it is hardly ever looked at (server/answering.py).
        """
        much = self._ended >= TIDY_ENDED or self._messages >= TIDY_MESSAGES
        if much and ticks() - self._tidied >= TIDY_SECONDS:
            gc.collect()
            if give_back is not None:
                give_back(0)
            self._ended = self._messages = 0
            self._tidied = ticks()

    def _all(self) -> list[Session]:
        return [session for of_client in self._open.values() for session in of_client]


def in_time() -> asyncio.Timeout:
    """Bounds how long a message takes to go out."""
    return asyncio.timeout(SEND_SECONDS)


async def _is_good(shown: str, caller: Caller, known: KnownTokens, jwts: Jwts | None) -> bool:
    try:
        found = await looked_up(shown, known, jwts)
    except Overloaded:
        return True  # nobody can tell: for how long that is good enough is not decided here
    return found is not None and found.client == caller.client and found.scope == caller.scope
