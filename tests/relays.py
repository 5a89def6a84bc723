"""What stands between a process and a server that it uses, and does to the bytes what networks do."""

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

from sqlalchemy import make_url

PIECE_BYTES = 65_536


class Relay:
    """Listens on a socket and passes on to another one, until it is told to be a bad network."""

    def __init__(self, socket: Path, target: Path) -> None:
        self.socket, self.target = socket, target
        # Of the database behind it, for whom it is to stand in between.
        self.url = ""
        # Nothing arrives, and nobody is told.
        self.black_hole_there = self.black_hole_back = False
        # Each piece comes so much later, in seconds, both ways.
        self.delay = 0.0
        # Answers to be lost, with their connection: the next ones to what matches.
        self.answers_to_lose = 0
        self.lost_answers = 0
        self.losing: re.Pattern[bytes] = re.compile(b"COMMIT")
        # Whether what is not answered reaches the server.
        self.deliver = True
        # What matches is kept back, with all that comes after it on its connection, until it is let go.
        self.keeping: re.Pattern[bytes] | None = None
        self.kept = 0
        self._letting_go = asyncio.Event()
        self._away = False
        self._writers: set[asyncio.StreamWriter] = set()
        self._connections: set[asyncio.Task[None]] = set()
        # Those that a COPY was sent on; and those that carry nothing any more.
        self._copying: set[asyncio.StreamWriter] = set()
        self._silent: set[asyncio.StreamWriter] = set()

    @property
    def open(self) -> int:
        """How many connections there are."""
        return len(self._writers)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        server = await asyncio.start_unix_server(self._accept, self.socket)
        try:
            yield
        finally:
            server.close()
            for connection in self._connections:
                connection.cancel()
            await asyncio.gather(*self._connections, return_exceptions=True)

    def leave(self) -> None:
        """Refuse everybody, and end what there is."""
        self._away = True
        for writer in list(self._writers):
            writer.transport.abort()

    def silence_copies(self) -> None:
        """Let the connections that a COPY was sent on carry nothing any more, nor end: as when a NAT forgets them."""
        self._silent |= self._copying

    def keep(self, what: re.Pattern[bytes]) -> None:
        self.keeping, self.kept = what, 0
        self._letting_go.clear()

    def let_go(self) -> None:
        self.keeping = None
        self._letting_go.set()

    def heal(self) -> None:
        """Be a good network again. What a black hole has swallowed is gone, so its connections are, too."""
        holes = self.black_hole_there or self.black_hole_back
        self._away = self.black_hole_there = self.black_hole_back = False
        self.delay, self.answers_to_lose = 0.0, 0
        if holes:
            for writer in list(self._writers):
                writer.transport.abort()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = asyncio.current_task()
        assert connection is not None
        self._connections.add(connection)
        connection.add_done_callback(self._connections.discard)
        with suppress(OSError, asyncio.CancelledError):
            await self._connect(reader, writer)

    async def _connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._away:
            writer.transport.abort()
            return
        self._writers.add(writer)
        target = None
        try:
            back, target = await asyncio.open_unix_connection(self.target)
            losing = asyncio.Event()
            ways = [self._there(reader, writer, target, losing), self._back(back, writer, losing)]
            done, pending = await asyncio.wait(map(asyncio.ensure_future, ways), return_when=asyncio.FIRST_COMPLETED)
            for way in pending:
                way.cancel()
            await asyncio.gather(*done, *pending, return_exceptions=True)
        finally:
            for writers in (self._writers, self._copying, self._silent):
                writers.discard(writer)
            for each in (writer, target):
                if each is not None:
                    each.transport.abort()

    async def _there(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        target: asyncio.StreamWriter,
        losing: asyncio.Event,
    ) -> None:
        while sent := await reader.read(PIECE_BYTES):
            if self.delay:
                await asyncio.sleep(self.delay)
            if self.black_hole_there or writer in self._silent:
                continue
            if b"COPY (" in sent:
                self._copying.add(writer)
            if self.keeping is not None and self.keeping.search(sent):
                self.kept += 1
                await self._letting_go.wait()
            if self.answers_to_lose and self.losing.search(sent):
                self.answers_to_lose -= 1
                self.lost_answers += 1
                losing.set()
                if not self.deliver:
                    return
            target.write(sent)
            await target.drain()

    async def _back(self, back: asyncio.StreamReader, writer: asyncio.StreamWriter, losing: asyncio.Event) -> None:
        while answer := await back.read(PIECE_BYTES):
            if self.delay:
                await asyncio.sleep(self.delay)
            if losing.is_set():
                # What was asked for has happened, and nobody hears of it.
                writer.transport.abort()
                return
            if self.black_hole_back or writer in self._silent:
                continue
            writer.write(answer)
            await writer.drain()
        if writer in self._silent:
            await asyncio.Event().wait()  # its end is not told either


@asynccontextmanager
async def relay_before(database_url: str, folder: Path) -> AsyncIterator[Relay]:
    """One that listens in the folder; its `url` is the database's by way of it."""
    url = make_url(database_url)
    name = ".s.PGSQL.5432"
    relay = Relay(folder / name, Path(f"{url.query['host']}/{name}"))
    relay.url = url.update_query_dict({"host": str(folder)}).render_as_string(hide_password=False)
    async with relay.running():
        yield relay
