"""Listening to what other processes say through Redis: news of users, tasks and segments that somebody here watches.

What is said is a hint. Whoever hears it looks at PostgreSQL, and whoever hears nothing for a while looks, too.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from typing import Any

import hiredis
from redis.asyncio.connection import AbstractConnection
from redis.exceptions import RedisError

from db.beside import beside
from db.cache_format import CATALOGUE_CHANNEL
from db.redis_connections import connections

log = logging.getLogger(__name__)
CONNECT_SECONDS = 1.0
# A server that is frozen, or behind a dead network, says nothing: so it is asked.
PING_SECONDS = 5.0
# From the first attempt to connect again to the next, and at most.
SHORTEST_PAUSE, LONGEST_PAUSE = 0.1, 2.0
# Channels that one command names.
NAMED = 1_000


class Channels:
    """Which channels are listened to; `heard` is called with the one that said something, and with None when some may
    have been missed.
    """

    def __init__(self, url: str, heard: Callable[[str | None], None]) -> None:
        self._new_connection = connections(url)
        self._heard = heard
        self._wanted: set[str] = set()
        self._anything = asyncio.Event()
        self._wire: _Listening | None = None

    @property
    def listening(self) -> bool:
        return self._wire is not None

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Listen, for as long as the block lasts; Redis is connected to once there is something to listen to."""
        try:
            async with beside(self._listen()):
                yield
        finally:
            if self._wire is not None:
                self._wire.close()

    def add(self, channel: str) -> None:
        """Listen to it. Once that has begun it is `heard`, for it may have said something before."""
        self._wanted.add(channel)
        self._anything.set()
        if self._wire is not None:
            self._wire.send("SUBSCRIBE", channel)

    def remove(self, channel: str) -> None:
        self._wanted.discard(channel)
        if self._wire is not None:
            self._wire.send("UNSUBSCRIBE", channel)

    async def _listen(self) -> None:
        pause, refusal = SHORTEST_PAUSE, None
        await self._anything.wait()
        while True:
            try:
                before, refusal = refusal, await self._refusal()
                if refusal is None:
                    pause = SHORTEST_PAUSE
                    log.info("the channels of Redis are not heard any more; it is connected to again")
                elif refusal != before:
                    log.warning("Redis refuses what listening to its channels takes: %s", refusal)
            except (RedisError, OSError, TimeoutError):  # it is away: the cache says so
                pass
            except Exception:
                log.exception("the channels of Redis could not be listened to, and are again in a moment")
            await asyncio.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE)

    async def _refusal(self) -> str | None:
        """Listen until the connection is lost; why Redis did not let us, if that was the reason."""
        wire = self._wire = await self._connected()
        try:
            self._heard(None)
            await wire.lost(PING_SECONDS)
        finally:
            self._wire = None
            wire.close()
        return wire.refusal

    async def _connected(self) -> "_Listening":
        connection = self._new_connection()
        try:
            async with asyncio.timeout(CONNECT_SECONDS):
                await connection.connect()  # type: ignore[no-untyped-call]  # redis-py's
            wire = _Listening(connection, self._heard)
        except BaseException:
            await connection.disconnect(nowait=True)
            raise
        channels = [CATALOGUE_CHANNEL, *self._wanted]
        for start in range(0, len(channels), NAMED):
            wire.send("SUBSCRIBE", *channels[start : start + NAMED])
        return wire


class _Listening(asyncio.Protocol):
    """A connection that was made and greeted, and from then on is told what channels say."""

    def __init__(self, connection: AbstractConnection, heard: Callable[[str | None], None]) -> None:
        self._connection = connection
        # Connecting, TLS and names and passwords are redis-py's; from here on it is asked nothing more.
        self._transport: asyncio.WriteTransport = connection._writer.transport  # type: ignore[union-attr] # noqa: SLF001
        self._reader = hiredis.Reader(notEnoughData=self)
        self._heard = heard
        # What Redis has said instead of doing what it was told.
        self.refusal: str | None = None
        self._said = self._lost = False
        self._end = asyncio.Event()
        self._transport.set_protocol(self)

    def send(self, *parts: str) -> None:
        self._transport.write(hiredis.pack_command(parts))  # type: ignore[arg-type]  # it means any number of them

    async def lost(self, seconds: float) -> None:
        """Return when the connection has ended, or nothing has come over it for too long."""
        while not self._lost:
            self._said = False
            self.send("PING")
            try:
                async with asyncio.timeout(seconds):
                    await self._end.wait()
            except TimeoutError:
                if not self._said:
                    return

    def data_received(self, data: bytes) -> None:
        self._said = True
        self._reader.feed(data)
        try:
            for reply in self._replies():
                if isinstance(reply, hiredis.ReplyError):
                    self.refusal = str(reply)
                    self._transport.abort()
                    return
                # RESP3 says it in a push, RESP2 in a list. What was said before the channel was listened to is missed.
                if isinstance(reply, list) and reply and reply[0] in (b"message", b"subscribe"):
                    self._heard(reply[1].decode())
        except hiredis.HiredisError:  # what it says cannot be understood
            self._transport.abort()

    def _replies(self) -> Iterable[Any]:
        while (reply := self._reader.gets()) is not self:
            yield reply

    def eof_received(self) -> bool:
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self._lost = True
        self._end.set()

    def close(self) -> None:
        self._transport.abort()
        self._connection._reader = self._connection._writer = None  # noqa: SLF001  # else it warns of being left open
