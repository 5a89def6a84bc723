"""Which of several PostgreSQL servers is written to now, and that nobody stays connected to another one.

After a failover the server that was the primary may still be there and answer: what it says is of the past. With one
server in the URL there is nothing to find out; but that name may be another server's by now.
"""

import asyncio
import logging
import time
from typing import Any, NamedTuple, TypeAlias
from weakref import WeakSet

import asyncpg
from sqlalchemy import URL
from sqlalchemy.exc import ArgumentError

log = logging.getLogger(__name__)

Connection: TypeAlias = "asyncpg.Connection[asyncpg.Record]"

# How often a process looks, and how long a server may take to answer: those that use it notice within two seconds.
PAUSE_SECONDS = 0.25
LEAVE_SECONDS = 1
LOOK_SECONDS = 0.75
# The first look may take longer: nobody is connected yet, and a server that is not found would end the process.
FIRST_LOOK_SECONDS = 3
# Within this everybody has noticed a promotion: a look that began before it, the pause, and a look. Nobody uses the new
# server earlier, for a change that is acknowledged there is not seen by whoever still reads from the old one.
NOTICED_SECONDS = LOOK_SECONDS + PAUSE_SECONDS + LOOK_SECONDS
# The timeline on which a server takes writes: each promotion begins a new one. Zero where it takes none.
LOOK = """
    SELECT CASE WHEN pg_is_in_recovery() OR current_setting('default_transaction_read_only') = 'on' THEN 0
                ELSE CAST(CAST('x' || left(pg_walfile_name(pg_current_wal_lsn()), 8) AS bit(32)) AS integer) END
"""
# Not what pools say of themselves: these leave a server that is of the past, and we look at it on.
WATCHING = {"application_name": "segmentql-watch"}
# What a URL may say that SQLAlchemy itself takes, and what is found out here.
NOT_THE_DRIVERS = frozenset({"prepared_statement_cache_size", "prepared_statement_name_func", "target_session_attrs"})
ONLY_THE_PRIMARY = ("any", "primary", "read-write")
NOBODY = "none of the PostgreSQL servers can be written to yet"
# What the driver itself raises; and whatever says that a server cannot be asked.
DRIVERS = (asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError)
UNREACHABLE = (OSError, *DRIVERS)


class Place(NamedTuple):
    host: str
    port: int

    def __str__(self) -> str:
        return f"{self.host}:{self.port}"


class Primary:
    """The server that is written to, of those in the URL. Raises ValueError when the URL names them wrongly."""

    def __init__(self, url: URL) -> None:
        self.url = url
        if url.query.get("target_session_attrs", "primary") not in ONLY_THE_PRIMARY:
            raise ValueError("only the primary is connected to")
        try:
            _, options = url.get_dialect()().create_connect_args(url)
        except ArgumentError as error:
            raise ValueError(str(error)) from error
        self.options: dict[str, Any] = {name: options[name] for name in options.keys() - NOT_THE_DRIVERS}
        self._places = _places(self.options)
        # Where connections are made to; and the latest timeline that was seen: what is on an earlier one is the past.
        self._at: Place | None = None
        self._timeline = 0
        # From when on that timeline is used.
        self._noticed = float("-inf")
        self._made: dict[Place, WeakSet[Connection]] = {place: WeakSet() for place in self._places}
        self._asked: dict[Place, Connection] = {}
        self._looking = asyncio.Lock()
        self._watched = False
        # What was made before is not used again: reads leave a server together with writes.
        self.left = float("-inf")
        self._leaving: asyncio.TimerHandle | None = None

    async def connect(self, **options: Any) -> Connection:
        """A connection with these options, to the server that is written to."""
        if not self._places:
            return await asyncpg.connect(**options)
        place = self._at
        if place is None:
            if self._watched and self._timeline:
                # Whoever watches is looking; if everybody did, they would wait for each other.
                raise ConnectionError(NOBODY)
            place = await self._look()
        try:
            connection = await asyncpg.connect(**options | {"host": place.host, "port": place.port})
        except UNREACHABLE:
            if not self._watched:
                self._at = None
            raise
        if place is not self._at:
            connection.terminate()
            raise ConnectionError(f"{place} has just been left for {self._at}")
        self._made[place].add(connection)
        return connection

    def leave(self) -> None:
        """Use no connection again that there is now: one was told that its server takes no writes."""
        if self._leaving is None:
            # Not after each write that is refused, where no other server is found for a while.
            wait = max(0, self.left + LEAVE_SECONDS - time.monotonic())
            self._leaving = asyncio.get_running_loop().call_later(wait, self._leave)

    def _leave(self) -> None:
        self._leaving, self.left = None, time.monotonic()

    async def watch(self) -> None:
        """Keep looking which one it is, for ever, and end all connections to others."""
        self._watched = True
        try:
            while self._places:
                try:
                    await self._look()
                except ConnectionError as error:
                    log.warning("%s", error)
                await asyncio.sleep(PAUSE_SECONDS)
        finally:
            self._watched = False
            self._forget()

    async def _look(self) -> Place:
        async with self._looking:
            if self._at is not None and not self._watched:
                return self._at  # somebody else has looked while we waited
            found = dict(zip(self._places, await asyncio.gather(*map(self._timeline_of, self._places)), strict=True))
            if not self._watched:
                self._forget()
            # The first of those on the latest.
            place = max(self._places, key=lambda place: found[place])
            if found[place] > self._timeline:
                self._promoted(place, found[place])
            if found[place] == self._timeline > 0 and time.monotonic() >= self._noticed:
                self._at = place
            if self._at is None:
                raise ConnectionError(NOBODY)
            return self._at

    def _promoted(self, place: Place, timeline: int) -> None:
        """Leave the server of an earlier timeline at once; the first one that is found can be used at once."""
        if self._timeline:
            log.warning("PostgreSQL is written to at %s from now on, and no longer at %s", place, self._at)
            self._at, self._noticed = None, time.monotonic() + NOTICED_SECONDS
            asyncio.get_running_loop().call_later(NOTICED_SECONDS, self._use, place, timeline)
        self._timeline = timeline
        for made in self._made.values():
            for connection in list(made):
                connection.terminate()

    def _use(self, place: Place, timeline: int) -> None:
        if timeline == self._timeline:  # there was no other promotion meanwhile
            self._at = place

    async def _timeline_of(self, place: Place) -> int:
        connection = self._asked.get(place)
        try:
            async with asyncio.timeout(LOOK_SECONDS if self._timeline else FIRST_LOOK_SECONDS):
                if connection is None or connection.is_closed():
                    connection = self._asked[place] = await asyncpg.connect(
                        **self.options | {"host": place.host, "port": place.port, "server_settings": WATCHING}
                    )
                timeline: int = await connection.fetchval(LOOK)
        except UNREACHABLE:
            if (connection := self._asked.pop(place, None)) is not None:
                connection.terminate()
            return 0
        return timeline

    def _forget(self) -> None:
        while self._asked:
            self._asked.popitem()[1].terminate()


def _places(options: dict[str, Any]) -> tuple[Place, ...]:
    """Where the servers are, when there are several."""
    hosts, ports = options.get("host"), options.get("port")
    if not isinstance(hosts, list) or not isinstance(ports, list):
        return ()
    return tuple(dict.fromkeys(Place(host, port) for host, port in zip(hosts, ports, strict=True)))
